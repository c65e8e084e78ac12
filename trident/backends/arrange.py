"""Running a program: how its inputs lie along rows and columns, and what becomes of its outputs.

Everything that the backends share is here. A backend's ``run_loops(program, loops, work)`` fills
the stores and returns the partial sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import shapes
from ..dtypes import dtype as DType
from .program import Dims, Output, Program


@dataclass
class Work:
    """One run: arrays with their strides (in elements) along the axes of the domain."""

    program: Program
    sizes: dict[int, int]
    arrays: list[Any]  # per input of the graph: an array, or a number
    stores: list[Any]

    def extent(self, axes: tuple[int, ...]) -> int:
        return shapes.numel(self.sizes[a] for a in axes)

    def shape(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.sizes[a] for a in axes)


def strides_along(axes: tuple[int, ...], dims: Dims, strides: tuple[int, ...]) -> tuple[int, ...]:
    """An array's strides along domain axes: 0 where it has none."""
    own = {d: s for d, s in zip(dims, strides) if d is not None}
    return tuple(own.get(a, 0) for a in axes)


def merged(
    sizes: tuple[int, ...], strides: list[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Neighbouring axes made one where all operands walk them as one; axes of size 1 dropped."""
    groups: list[tuple[int, tuple[int, ...]]] = []
    for i, size in enumerate(sizes):
        if size == 1:
            continue
        steps = tuple(st[i] for st in strides)
        if groups and all(o == s * size for o, s in zip(groups[-1][1], steps)):
            groups[-1] = (groups[-1][0] * size, steps)
        else:
            groups.append((size, steps))
    return (
        tuple(g[0] for g in groups),
        [tuple(g[1][k] for g in groups) for k in range(len(strides))],
    )


def run(program: Program, arrays: list[Any], sizes: dict[int, int], backend: Any) -> list[Any]:
    """The results of ``program`` on arrays of one device; None where one is not wanted.

    ``sizes`` are those of the domain's axes, none of them 0; ``backend`` is the module that the
    arrays belong to.
    """
    return list(
        backend.repeated(program, arrays, sizes, lambda a: _run(program, list(a), sizes, backend))
    )


def _run(program: Program, arrays: list[Any], sizes: dict[int, int], backend: Any) -> tuple:
    values = list(arrays)
    for axes in program.counts.values():
        values.append(float(shapes.numel(sizes[a] for a in axes)))
    stores = [
        backend.empty_like_device(arrays[0], tuple(sizes[a] for a in axes), d)
        for d, axes in program.stores
    ]
    work = Work(program, sizes, values, stores)
    sums = backend.run_loops(work)
    tail: list[Any] = []
    if program.tail is not None:
        operands = []
        for how, i in program.tail_inputs:
            if how == "partial":
                operands.append(sums[i])
            elif i in program.counts:
                operands.append(values[i])
            else:
                operands.append(_beside_columns(work, i))
        tail = backend.run_small(program.tail, operands, _tail_shapes(program, work))
    return tuple(_finish(o, work, tail, backend) for o in program.outputs)


def _beside_columns(work: Work, i: int) -> Any:
    """Input ``i`` of the tail in the shape of the columns, 1 where it does not differ."""
    dims, a = work.program.dims[i], work.arrays[i]
    own = {d: s for d, s in zip(dims, a.shape) if d is not None}
    return a.reshape(tuple(own.get(c, 1) for c in work.program.cols)) if own else a.reshape(())


def _tail_shapes(program: Program, work: Work) -> list[tuple[tuple[int, ...], DType]]:
    """Shape and dtype of each result of the tail."""
    found = []
    for o in program.outputs:
        if o is not None and o.how == "tail":
            own = set(o.dims) - {None}
            found.append((work.shape(program.cols) if own else (), o.dtype))
    return found


def _finish(o: Output | None, work: Work, tail: list[Any], backend: Any) -> Any:
    """A result in its own shape and dtype."""
    if o is None:
        return None
    shape = tuple(1 if d is None else work.sizes[d] for d in o.dims)
    if o.how == "tail":
        data = tail[o.index]
        return data if tuple(data.shape) == shape else data.reshape(shape)
    data = work.stores[o.index]
    if o.how == "spill":
        data = backend.sum_to(data, tuple(work.sizes[a] if a in o.dims else 1 for a in o.axes))
        if backend.dtype_of(data) is not o.dtype:
            data = backend.cast(data, o.dtype)
    kept = [a for a in o.axes if a in o.dims]
    order = tuple(kept.index(d) for d in o.dims if d is not None)
    if order != tuple(range(len(order))):  # the columns are not the last axes
        data = data.reshape(work.shape(tuple(kept)))
        data = backend.contiguous(data.transpose(order))
    # not a view where it need not be one: backward may then hand the array on without a copy
    return data if tuple(data.shape) == shape else data.reshape(shape)


__all__ = ["Work", "merged", "run", "strides_along"]
