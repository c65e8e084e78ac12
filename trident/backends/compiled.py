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

PLACES = 256
"""Shapes and strides of which a program remembers how they are passed."""


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
    p = work.program
    places: dict[tuple, _Place] | None = p.__dict__.setdefault("places", {})
    if places is None:
        return None
    pairs = [(work.arrays[i], p.dims[i]) for i in _used(p)]
    if p.cols:
        pairs = [_even(work, a, d, p.cols) for a, d in pairs]
    pairs += [(out, axes) for out, (_, axes) in zip(work.stores, p.stores)]
    key = (*[(a.shape, a.strides) for a, _ in pairs], *work.sizes.values())
    place = places.get(key)
    if place is None:
        try:
            place = _Place(work, pairs)
        except (Untranslatable, c_compiler.CompileError) as error:
            _report(p.graph.name, str(error))
            p.__dict__["places"] = None
            return None
        if len(places) >= PLACES:
            places.clear()
        places[key] = place
    return place.run(work, [a for a, _ in pairs])


@functools.lru_cache(maxsize=64)
def _report(name: str, text: str) -> None:
    warnings.warn(
        f"fuse: {name} could not be compiled for the CPU and runs in numpy: {text}", stacklevel=2
    )


class _Place:
    """How operands of these shapes and strides are passed to the C function of their layout."""

    def __init__(self, work: Work, pairs: list[tuple[np.ndarray, tuple]]) -> None:
        p = work.program
        steps = [(tuple(s // a.itemsize for s in a.strides), d) for a, d in pairs]
        sizes, rows = merged(work.shape(p.rows), [strides_along(p.rows, d, st) for st, d in steps])
        col_steps = [0] * len(rows)
        self.n_cols = 1
        if p.cols:
            cols = [strides_along(p.cols, d, st) for st, d in steps]
            both, cols = merged(work.shape(p.cols), cols)
            if both:
                self.n_cols, col_steps = both[0], [c[0] for c in cols]
        elif sizes:  # flat: the innermost axis is what the inner loop walks
            self.n_cols, col_steps = sizes[-1], [r[-1] for r in rows]
            sizes, rows = sizes[:-1], [r[:-1] for r in rows]
        self.n_rows = int(np.prod(sizes, dtype=np.int64))
        kinds = tuple([s if s in (0, 1) else None for s in col_steps])
        packed: list[int] = list(sizes) or [1]
        for r, step, kind in zip(rows, col_steps, kinds):
            packed += r or (0,)
            if kind is None:
                packed.append(step)
        self.packed = np.array(packed, np.int64)
        known: dict[Layout, Compiled] = p.__dict__.setdefault("compiled", {})
        layout = Layout(max(len(sizes), 1), kinds, self.n_cols <= KEEP)
        if layout not in known:
            known[layout] = Compiled(p, layout)
        self.compiled = known[layout]
        self.over_cols = self.n_rows == 1 and self.compiled.divisible

    def run(self, work: Work, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Call the function, in as many threads as the work is worth; the partial sums."""
        p, c, n_cols = work.program, self.compiled, self.n_cols
        length = n_cols if self.over_cols else self.n_rows
        count = 1
        if self.n_rows * n_cols >= 2 * SHARE:
            count = min(host_threads.get_num_threads(), self.n_rows * n_cols // SHARE, length)
        sums = []
        for d, along_cols in p.partials:
            shape = (count, n_cols) if along_cols else (count,)
            wide = d.np if along_cols else (np.float64 if d.kind == "float" else np.int64)
            sums.append(np.zeros(shape, wide))
        kept = [np.empty((count, n_cols), d.np) for d in c.kept]
        base = [_address(a) for a in arrays]
        numbers = np.array([work.arrays[i] for i in p.counts], np.float64)
        own = [(_address(a), a.strides[0]) for a in (*sums, *kept)]
        fixed = _address(self.packed), _address(numbers)

        def task(k: int) -> None:
            pointers = np.array([*base, *[at + k * step for at, step in own]], np.uint64)
            part = length * k // count, length * (k + 1) // count
            rows, cols = ((0, 1), part) if self.over_cols else (part, (0, n_cols))
            c.function(fixed[0], _address(pointers), fixed[1], *rows, *cols)

        if count == 1:
            task(0)
        else:
            host_threads.run(task, count)
        return [
            _in_columns(work, s[0] if count == 1 else np.add.reduce(s, axis=0), d, along_cols)
            for s, (d, along_cols) in zip(sums, p.partials)
        ]


def _used(program: Any) -> list[int]:
    """The inputs that are arrays and are read."""
    n = len(program.graph.inputs)
    known = program.__dict__.get("used")
    if known is None:
        live = program.graph.live()
        known = [i for i in live if i < n and i not in program.counts]
        program.__dict__["used"] = known
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
