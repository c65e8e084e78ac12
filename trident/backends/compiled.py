"""Running a program as compiled C: layout of the operands, division of the work among threads."""

from __future__ import annotations

import ctypes
import functools
import warnings
from typing import Any

import numpy as np

from ..runtime import c_compiler, host_threads
from . import c_loops
from .arrange import Work, merged, strides_along
from .c_loops import Layout
from .transpile import Untranslatable

KEEP = 1 << 16
"""Longest row of which costly values are kept between passes: a longer one leaves the cache."""
SHARE = 1 << 17
"""Elements that are worth a thread: handing work over costs some 50 us."""


def available() -> bool:
    """Whether programs can be compiled here."""
    return c_compiler.find() is not None


class Compiled:
    """One program and layout, compiled; ``text`` is its source."""

    def __init__(self, program: Any, layout: Layout) -> None:
        emitter = c_loops.Emitter(program, layout)
        self.text = emitter.text()
        self.inputs = emitter.inputs
        self.kept = [emitter.loops.compute(i) for i in emitter.loops.kept]
        self.divisible = emitter.loops.depth == 1  # rows have no reductions: they can be cut
        self.function = c_compiler.load(self.text, f"{program.graph.name}_loops")
        self.function.restype = None
        self.function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 4


def run_loops(work: Work) -> list[np.ndarray] | None:
    """Fill ``work.stores`` and return the partial sums; None where the program cannot be
    compiled.
    """
    known = work.program.__dict__.setdefault("compiled", {})
    if known is None:
        return None
    plan = _Plan(work, known)
    try:
        compiled = plan.compiled()
    except (Untranslatable, c_compiler.CompileError) as error:
        _report(work.program.graph.name, str(error))
        work.program.__dict__["compiled"] = None
        return None
    return plan.run(compiled)


@functools.lru_cache(maxsize=64)
def _report(name: str, text: str) -> None:
    warnings.warn(
        f"fuse: {name} could not be compiled for the CPU and runs in numpy: {text}", stacklevel=2
    )


class _Plan:
    """The operands of one run as the C function wants them."""

    def __init__(self, work: Work, known: dict[Layout, Compiled]) -> None:
        self.work, self.known = work, known
        p = work.program
        self.flat = not p.cols
        self.row_axes, self.col_axes = p.rows, p.cols
        used = [i for i in _used(p) if i not in p.counts]
        dims = [p.dims[i] for i in used]
        pairs = list(zip((work.arrays[i] for i in used), dims))
        if not self.flat:
            pairs = [_even(work, a, d, p.cols) for a, d in pairs]
        pairs += list(zip(work.stores, (axes for _, axes in p.stores)))
        self.arrays = [a for a, _ in pairs]
        steps = [tuple(s // a.itemsize for s in a.strides) for a in self.arrays]
        rows = [strides_along(p.rows, d, st) for (_, d), st in zip(pairs, steps)]
        sizes, rows = merged(work.shape(p.rows), rows)
        if self.flat:  # the innermost axis is what the inner loop walks
            inner, col_steps = (sizes[-1], [r[-1] for r in rows]) if sizes else (1, [0] * len(rows))
            sizes, rows = sizes[:-1], [r[:-1] for r in rows]
        else:
            cols = [strides_along(p.cols, d, st) for (_, d), st in zip(pairs, steps)]
            both, cols = merged(work.shape(p.cols), cols)
            inner, col_steps = (both[0], [c[0] for c in cols]) if both else (1, [0] * len(rows))
        self.n_rows, self.n_cols = int(np.prod(sizes, dtype=np.int64)), inner
        kinds = tuple([s if s in (0, 1) else None for s in col_steps])
        self.layout = Layout(max(len(sizes), 1), kinds, inner <= KEEP)
        packed: list[int] = list(sizes) or [1]
        for r, step, kind in zip(rows, col_steps, kinds):
            packed += r or (0,)
            if kind is None:
                packed.append(step)
        self.packed = np.array(packed, np.int64)

    def compiled(self) -> Compiled:
        found = self.known.get(self.layout)
        if found is None:
            found = self.known[self.layout] = Compiled(self.work.program, self.layout)
        return found

    def run(self, c: Compiled) -> list[np.ndarray]:
        p = self.work.program
        over_cols = self.n_rows == 1 and c.divisible
        total = self.n_rows * self.n_cols
        count = max(min(host_threads.get_num_threads(), total // SHARE), 1)
        count = min(count, self.n_cols if over_cols else self.n_rows)
        ends = [(self.n_cols if over_cols else self.n_rows) * k // count for k in range(count + 1)]
        sums = []
        for d, along_cols in p.partials:
            shape = (count, self.n_cols) if along_cols else (count,)
            wide = d.np if along_cols else (np.float64 if d.kind == "float" else np.int64)
            sums.append(np.zeros(shape, wide))
        kept = [np.empty((count, self.n_cols), d.np) for d in c.kept]
        base = [_address(a) for a in self.arrays]
        numbers = np.array([self.work.arrays[i] for i in p.counts], np.float64)
        moving = [(_address(a), a.strides[0]) for a in (*sums, *kept)]

        def task(k: int) -> None:
            pointers = np.array([*base, *(at + k * step for at, step in moving)], np.uint64)
            rows = (0, 1) if over_cols else (ends[k], ends[k + 1])
            cols = (ends[k], ends[k + 1]) if over_cols else (0, self.n_cols)
            c.function(_address(self.packed), _address(pointers), _address(numbers), *rows, *cols)

        host_threads.run(task, count)
        found = []
        for s, (d, along_cols) in zip(sums, p.partials):
            total_sum = s[0] if count == 1 else np.add.reduce(s, axis=0)
            found.append(_in_columns(self.work, total_sum, d, along_cols))
        return found


def _used(program: Any) -> list[int]:
    n = len(program.graph.inputs)
    known = program.__dict__.get("used")
    if known is None:
        known = program.__dict__["used"] = [i for i in program.graph.live() if i < n]
    return known


def _address(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


def _in_columns(work: Work, total: Any, d: Any, along_cols: bool) -> np.ndarray:
    total = np.asarray(total, d.np)
    return total.reshape(work.shape(work.program.cols)) if along_cols else total


def _even(work: Work, a: np.ndarray, dims: tuple, cols: tuple) -> tuple[np.ndarray, tuple]:
    """(``a``, its dims), of a copy where its column axes cannot be walked as one."""
    steps = strides_along(cols, dims, tuple(s // a.itemsize for s in a.strides))
    sizes, _ = merged(work.shape(cols), [steps])
    if len(sizes) <= 1:
        return a, dims
    rows = tuple(d for d in dims if d is not None and d not in cols)
    own = tuple(s for s, d in zip(a.shape, dims) if d is not None)
    order = [d for d in dims if d is not None]
    wanted = [*rows, *(c for c in cols if c in order)]
    b = a.reshape(own).transpose([order.index(d) for d in wanted])
    shape = [work.sizes[d] for d in rows]
    b = b.reshape(shape + [work.sizes[c] if c in order else 1 for c in cols])
    full = np.broadcast_to(b, shape + [work.sizes[c] for c in cols])
    return np.ascontiguousarray(full), (*rows, *cols)
