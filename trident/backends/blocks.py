"""A program on the CPU without a compiler: numpy bodies on blocks that stay in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..runtime import host_threads
from .arrange import Work, strides_along
from .graph import python_function
from .loops import Loops

BLOCK = 1 << 16
"""Elements a block: intermediates of a few operations stay in a core's cache."""


def run_loops(work: Work) -> list[np.ndarray]:
    """Fill ``work.stores``; the partial sums, in the shape of the columns or 0-d."""
    p = work.program
    flat = not p.cols
    rows, cols = ((), p.rows) if flat else (p.rows, p.cols)
    inputs = [
        _matrix(a, work, rows, cols, p.dims[i]) if isinstance(a, np.ndarray) else a
        for i, a in enumerate(work.arrays)
    ]
    windows = [
        _matrix(out, work, rows, cols, axes) for out, (_, axes) in zip(work.stores, p.stores)
    ]
    outs = [np.empty(m.shape, m.dtype) if not _shares(m, o) else m
            for m, o in zip(windows, work.stores)]  # fmt: skip
    function = _function(p, inputs)
    n_rows, n_cols = work.extent(rows), work.extent(cols)
    over_cols = flat or (n_rows == 1 and not _reduces(p))
    blocks = _split(n_cols if over_cols else n_rows, BLOCK if over_cols else BLOCK // n_cols or 1)
    sums: list[list[Any]] = [[None] * len(blocks) for _ in p.partials]

    def work_on(k: int) -> None:
        part = slice(*blocks[k])
        taken = [_take(a, part, over_cols) for a in inputs]
        results = function(None, taken, None)
        for out, r in zip(outs, results):
            _take(out, part, over_cols)[...] = r
        for j, (d, along_cols) in enumerate(p.partials):
            value = results[len(outs) + j]
            total = np.add.reduce(value, axis=0 if along_cols else None, dtype=d.np)
            sums[j][k] = (part, total)

    _threads(work_on, len(blocks))
    for out, m, (_, axes) in zip(work.stores, outs, p.stores):
        if not _shares(m, out):  # it lacks some axes of a group: the same along them
            whole = m.reshape([work.sizes[a] for a in (*rows, *cols)])
            whole = whole[tuple(slice(None) if a in axes else 0 for a in (*rows, *cols))]
            out[...] = whole
    return [_total(s, n_cols, over_cols, *described) for s, described in zip(sums, p.partials)]


def _shares(a: np.ndarray, b: np.ndarray) -> bool:
    return np.may_share_memory(a, b)


def _reduces(p: Any) -> bool:
    """Whether rows have reductions of their own, so that they cannot be cut."""
    return Loops(p).depth > 1


def _matrix(a: np.ndarray, work: Work, rows: tuple, cols: tuple, dims: tuple) -> np.ndarray:
    """``a`` as rows by columns, with 1 where it does not differ. A view where it can be one."""
    steps = [s // a.itemsize for s in a.strides]
    shape: list[int] = []
    strides: list[int] = []
    lengths = []
    for axes in (rows, cols):
        own = strides_along(axes, dims, tuple(steps))
        there = any(c in dims for c in axes)
        shape += [work.sizes[c] for c in axes] if there else [1]
        strides += list(own) if there else [0]
        lengths.append(work.extent(axes) if there else 1)
    view = np.lib.stride_tricks.as_strided(a, shape, [s * a.itemsize for s in strides])
    return view.reshape(lengths)


def _take(a: Any, part: slice, over_cols: bool) -> Any:
    if not isinstance(a, np.ndarray):
        return a
    if over_cols:
        return a if a.shape[1] == 1 else a[:, part]
    return a if a.shape[0] == 1 else a[part]


def _function(p: Any, inputs: list) -> Any:
    """The graph as a Python function of blocks, kept with the program."""
    big = max((a.size for a in inputs if isinstance(a, np.ndarray)), default=1)
    key = tuple([isinstance(a, np.ndarray) and a.size == big for a in inputs])
    known = p.__dict__.setdefault("python", {})
    if key not in known:
        g = p.graph
        bindings = {}
        for i, (name, d) in enumerate(zip(g.inputs, g.input_dtypes)):
            half = d is not None and d.compute is not d
            bindings[name] = f"a[{i}].astype(np.float32)" if half else f"a[{i}]"
        known[key] = python_function(g, bindings, key)
    return known[key]


def _split(n: int, size: int) -> list[tuple[int, int]]:
    return [(i, min(i + size, n)) for i in range(0, n, size)]


def _threads(task: Any, count: int) -> None:
    workers = min(host_threads.get_num_threads(), count)

    def share(w: int) -> None:
        for k in range(count * w // workers, count * (w + 1) // workers):
            task(k)

    host_threads.run(share, workers)


def _total(parts: list, n_cols: int, over_cols: bool, dtype: Any, along_cols: bool) -> np.ndarray:
    """The partial sums of all blocks, added in their order."""
    if not along_cols:
        return np.asarray(np.add.reduce([t for _, t in parts]), dtype.np)
    if not over_cols:
        return np.add.reduce(np.stack([np.broadcast_to(t, n_cols) for _, t in parts]))
    total = np.empty(n_cols, dtype.np)
    for part, t in parts:
        total[part] = t
    return total
