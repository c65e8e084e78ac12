"""Reductions over any axes of an array with any strides, and what every row kernel shares.

The launcher sorts the axes into kept ones (the rows) and reduced ones (the columns) and merges
neighbours that lie evenly in memory; up to three of each remain. A program owns a tile of
ROWS x COLS: it walks the columns of its rows, keeps one accumulator per tile element and folds them
once at the end. Where neighbouring rows are neighbours in memory the tile is tall (coalesced loads
for reductions over leading axes), otherwise it is wide. A few long rows are split over programs
that write partial results, which a second launch reduces: the same order every time, no atomics.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .layout import copy

SUM = 0
PROD = 1
MAX = 2
MIN = 3

PROGRAMS = 264  # two for each of 132 multiprocessors; below this, long rows are split


class Layout(NamedTuple):
    """How a kernel walks arrays of one shape as rows x columns (see ``layout``)."""

    n_rows: int
    n_cols: int
    row_sizes: tuple[int, int]  # sizes of the inner two of three row axes
    col_sizes: tuple[int, int]
    row_strides: tuple[tuple[int, int, int], ...]  # for each array
    col_strides: tuple[tuple[int, int, int], ...]
    wide: bool  # neighbouring columns of the first array are nearer in memory than rows


def collapse(sizes: shapes.Shape, *strides: shapes.Shape) -> list[tuple[int, ...]]:
    """(size, stride in each array) of the axes that remain after merging the mergeable ones."""
    if 0 in sizes:
        return [(0,) * (1 + len(strides))]
    merged: list[tuple[int, ...]] = []
    for size, *steps in zip(sizes, *strides):
        if size == 1:
            continue
        if merged and all(a == s * size for a, s in zip(merged[-1][1:], steps)):
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    return merged


@functools.lru_cache(maxsize=4096)
def _layout(
    shape: shapes.Shape, strides: tuple[shapes.Shape, ...], over: tuple[int, ...]
) -> Layout | None:
    parts = []
    nearest = []
    for axes in ([a for a in range(len(shape)) if a not in over], over):
        found = collapse(
            tuple(shape[a] for a in axes), *(tuple(st[a] for a in axes) for st in strides)
        )
        if len(found) > 3:
            return None
        nearest.append(min((abs(f[1]) for f in found if f[1]), default=2**62))
        absent = (1,) + (0,) * len(strides)
        found += [absent] * (3 - len(found))  # absent axes last: a size of 1 costs no division
        n = found[0][0] * found[1][0] * found[2][0]
        parts.append((n, (found[1][0], found[2][0]), tuple(zip(*(f[1:] for f in found)))))
    rows, cols = parts
    wide = nearest[1] <= nearest[0] or rows[0] == 1
    return Layout(rows[0], cols[0], rows[1], cols[1], rows[2], cols[2], wide)


def layout(
    over: tuple[int, ...], *arrays: DeviceArray, out: DeviceArray | None = None
) -> tuple[Layout, tuple[DeviceArray, ...]]:
    """Rows (the axes that are kept) and columns (``over``) of arrays that have one shape.

    Inputs with more than three unmergeable axes on a side are first copied into row order; ``out``,
    the last of the layout's arrays where it is given, is contiguous up to reversed axes.
    """
    last = () if out is None else (out.strides,)
    found = _layout(arrays[0].shape, (*(a.strides for a in arrays), *last), over)
    if found is None:
        arrays = tuple(packed(a, over) for a in arrays)
        found = _layout(arrays[0].shape, (*(a.strides for a in arrays), *last), over)
        assert found is not None
    return found, arrays


def packed(x: DeviceArray, over: tuple[int, ...]) -> DeviceArray:
    """A copy of ``x`` whose memory order is (kept axes, axes ``over``), seen in x's axis order."""
    order = [a for a in range(x.ndim) if a not in over] + list(over)
    target = x.device.empty(tuple(x.shape[a] for a in order), x.dtype)
    copy(target, x.transpose(tuple(order)))
    back = [0] * x.ndim
    for at, a in enumerate(order):
        back[a] = at
    return target.transpose(tuple(back))


def interpreted_block() -> int:
    """Tile elements under the interpreter, where a program costs the same however large its
    tile."""
    return config.interpret_block.get() or 1 << 15


def accumulator(d: DType) -> DType:
    """The dtype that values of ``d`` are accumulated in."""
    if d.is_floating_point:
        return d.compute
    return dtypes.int64 if d is dtypes.int64 else dtypes.int32


def acc_type(d: DType) -> object:
    """Triton's type of an accumulator dtype."""
    return getattr(tl, d.name)


def warps(elements: int) -> int:
    """Warps for a tile: about 16 elements a thread (16 warps are the most that AMD's 64 lanes
    allow)."""
    return 4 if elements <= 2048 else 8 if elements <= 4096 else 16


@jit
def offset_of(i, n1, n2, s0, s1, s2):
    """Element offset of flat index i over axes of sizes (any, n1, n2) with strides s0, s1, s2."""
    rest = i // n2
    return (rest // n1) * s0 + (rest % n1) * s1 + (i % n2) * s2


@jit
def row_max(x):
    """Maximum along axis 1, NaN left out: tl.max treats NaN differently from device to device."""
    return tl.max(tl.where(x != x, float("-inf"), x), 1)


@jit
def multiply(a, b):
    return a * b


@jit
def combine(a, b, KIND: tl.constexpr):
    """One step of a reduction; the larger (smaller) of a NaN and a number is NaN."""
    if KIND == SUM:
        return a + b
    elif KIND == PROD:
        return a * b
    elif KIND == MAX:
        return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    else:
        return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@jit
def fold(acc, KIND: tl.constexpr, IDENTITY: tl.constexpr, FLOAT: tl.constexpr):
    """Reduce axis 1 of the accumulators."""
    if KIND == SUM:
        return tl.sum(acc, 1)
    elif KIND == PROD:
        return tl.reduce(acc, 1, multiply)
    if FLOAT:
        # tl.max and tl.min drop or keep NaN depending on the device: take it out and put it back
        is_nan = acc != acc
        acc = tl.where(is_nan, IDENTITY, acc)
        some_nan = tl.max(is_nan.to(tl.int32), 1) != 0
    if KIND == MAX:
        out = tl.max(acc, 1)
    else:
        out = tl.min(acc, 1)
    if FLOAT:
        out = tl.where(some_nan, float("nan"), out)
    return out


@jit
def reduce_kernel(
    x_ptr,  # n_rows x n_cols, any strides
    out_ptr,  # (n_rows, splits)
    n_rows,
    n_cols,
    chunk,  # columns of one split, a multiple of COLS
    total,  # the divisor of a mean
    rn1,
    rn2,
    cn1,
    cn2,
    rs0,
    rs1,
    rs2,
    cs0,
    cs1,
    cs2,
    KIND: tl.constexpr,
    IDENTITY: tl.constexpr,
    NONZERO: tl.constexpr,
    MEAN: tl.constexpr,
    ACC: tl.constexpr,
    FLOAT: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1).to(tl.int64) * chunk
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    row_ptr = x_ptr + offset_of(rows, rn1, rn2, rs0, rs1, rs2)[:, None]
    acc = tl.full((ROWS, COLS), IDENTITY, ACC)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        mask = (rows < n_rows)[:, None] & (cols < stop)[None, :]
        x = tl.load(row_ptr + offset_of(cols, cn1, cn2, cs0, cs1, cs2)[None, :], mask=mask, other=0)
        if NONZERO:
            x = x != 0
        acc = combine(acc, tl.where(mask, x.to(ACC), IDENTITY), KIND)
    out = fold(acc, KIND, IDENTITY, FLOAT)
    if MEAN:
        out = out / (tl.zeros((ROWS,), ACC) + total)
    at = rows.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=rows < n_rows)


@jit
def arg_kernel(
    x_ptr,  # n_rows x n_cols, any strides
    index_ptr,  # (n_rows, n_cols) int64: where x came from, or None for the column itself
    value_out_ptr,  # (n_rows, splits), or None
    index_out_ptr,  # (n_rows, splits) int64
    n_rows,
    n_cols,
    chunk,
    rn1,
    rn2,
    cn1,
    cn2,
    rs0,
    rs1,
    rs2,
    cs0,
    cs1,
    cs2,
    LARGEST: tl.constexpr,
    IDENTITY: tl.constexpr,
    UNSEEN: tl.constexpr,
    ACC: tl.constexpr,
    FLOAT: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1).to(tl.int64) * chunk
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    row_ptr = x_ptr + offset_of(rows, rn1, rn2, rs0, rs1, rs2)[:, None]
    best = tl.full((ROWS, COLS), IDENTITY, ACC)
    where = tl.full((ROWS, COLS), UNSEEN, tl.int64 if INT64 else tl.int32)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        mask = (rows < n_rows)[:, None] & (cols < stop)[None, :]
        x = tl.load(row_ptr + offset_of(cols, cn1, cn2, cs0, cs1, cs2)[None, :], mask=mask, other=0)
        x = x.to(ACC)
        if index_ptr is not None:
            at = rows.to(tl.int64)[:, None] * n_cols + cols[None, :]
            index = tl.load(index_ptr + at, mask=mask, other=0).to(where.dtype)
        else:
            index = cols[None, :] + tl.zeros((ROWS, COLS), where.dtype)
        # strictly better, so that the first of equals stays; the first NaN beats every number
        if LARGEST:
            better = x > best
        else:
            better = x < best
        better = mask & (better | ((x != x) & (best == best)) | (where == UNSEEN))
        best = tl.where(better, x, best)
        where = tl.where(better, index, where)
    some_nan = tl.max((best != best).to(tl.int32), 1) != 0
    clean = tl.where(best != best, IDENTITY, best)
    if LARGEST:
        top = tl.max(clean, 1)
    else:
        top = tl.min(clean, 1)
    hit = tl.where(some_nan[:, None], best != best, best == top[:, None])
    found = tl.min(tl.where(hit, where, UNSEEN), 1)
    at = rows.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(index_out_ptr + at, found.to(tl.int64), mask=rows < n_rows)
    if value_out_ptr is not None:
        if FLOAT:
            top = tl.where(some_nan, float("nan"), top)
        tl.store(value_out_ptr + at, top.to(value_out_ptr.dtype.element_ty), mask=rows < n_rows)


class Tile(NamedTuple):
    """Tile sizes, and how the columns are split over programs."""

    rows: int
    cols: int
    splits: int
    chunk: int


def tile(plan: Layout, elements: int) -> Tile:
    """The tile of ``elements`` for a reduction of ``plan``, and its splits."""
    cols_wanted = next_power_of_2(plan.n_cols)
    if plan.wide:
        cols = min(cols_wanted, elements)
        rows = min(next_power_of_2(plan.n_rows), max(1, elements // cols))
    else:
        rows = min(next_power_of_2(plan.n_rows), max(1, min(64, elements)))
        cols = min(cols_wanted, max(1, elements // rows))
    programs = max(1, cdiv(plan.n_rows, rows))
    splits = 1
    if programs < PROGRAMS and plan.n_cols > 4 * cols:
        splits = min(cdiv(plan.n_cols, 4 * cols), cdiv(2 * PROGRAMS, programs))
    chunk = max(1, cdiv(cdiv(plan.n_cols, splits), cols)) * cols
    return Tile(rows, cols, max(1, cdiv(plan.n_cols, chunk)), chunk)


def _identity(kind: int, acc: DType) -> float | int:
    if kind == SUM:
        return 0.0 if acc.is_floating_point else 0
    if kind == PROD:
        return 1.0 if acc.is_floating_point else 1
    if acc.is_floating_point:
        return float("-inf") if kind == MAX else float("inf")
    limits = dtypes.iinfo(acc)
    return limits.min if kind == MAX else limits.max


def reduce(
    out: DeviceArray,
    x: DeviceArray,
    *,
    over: tuple[int, ...],
    kind: int,
    nonzero: bool = False,
    mean: bool = False,
    acc: DType | None = None,
) -> None:
    """out = the reduction of ``x`` over the axes ``over``; ``out`` is contiguous, kept axes in
    order.

    ``kind`` is SUM, PROD, MAX or MIN; ``nonzero`` reduces ``x != 0`` instead of x (any, all,
    count); ``mean`` divides a sum by the number of elements; ``acc`` overrides the accumulator's
    dtype. An empty row gives the identity (0, 1, -inf, inf) and NaN for a mean.
    """
    if out.size == 0:
        return
    if acc is None:
        acc = accumulator(out.dtype if kind in (SUM, PROD) else x.dtype)
    plan, (x,) = layout(over, x)
    if x.device.interpreted:
        # the interpreter reduces with a function of ours element by element, in Python
        elements = 256 if kind == PROD else interpreted_block()
    else:
        elements = 2048 if acc.itemsize == 4 else 1024
    t = tile(plan, elements)
    common: dict[str, Any] = {
        "KIND": kind,
        "IDENTITY": _identity(kind, acc),
        "ACC": acc_type(acc),
        "FLOAT": acc.is_floating_point,
        "INT64": shapes.needs_int64(x),
        "ROWS": t.rows,
        "COLS": t.cols,
    }
    target = out if t.splits == 1 else x.device.empty((plan.n_rows, t.splits), acc)
    launch(
        reduce_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        x,
        target,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        plan.n_cols,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        NONZERO=nonzero,
        MEAN=mean and t.splits == 1,
        **common,
    )
    if t.splits > 1:
        cols = min(next_power_of_2(t.splits), elements)
        common |= {"INT64": False, "ROWS": 1, "COLS": cols}
        launch(
            reduce_kernel,
            (plan.n_rows, 1),
            target,
            out,
            plan.n_rows,
            t.splits,
            cdiv(t.splits, cols) * cols,
            plan.n_cols,
            *(1, 1, 1, 1),
            *(t.splits, 0, 0),
            *(1, 0, 0),
            NONZERO=False,
            MEAN=mean,
            **common,
        )


def arg_reduce(
    index: DeviceArray,
    x: DeviceArray,
    *,
    over: tuple[int, ...],
    largest: bool,
    values: DeviceArray | None = None,
) -> None:
    """index = where the largest (smallest) element lies along ``over``, flattened in axis order.

    The first of equals; NaN counts as the extreme. ``values``, where given, gets the elements.
    """
    if index.size == 0:
        return
    plan, (x,) = layout(over, x)
    acc = accumulator(x.dtype)
    t = tile(plan, interpreted_block() if x.device.interpreted else 1024)
    wide_index = shapes.needs_int64(x)
    common: dict[str, Any] = {
        "LARGEST": largest,
        "IDENTITY": _identity(MAX if largest else MIN, acc),
        "UNSEEN": 2**63 - 1 if wide_index else 2**31 - 1,
        "ACC": acc_type(acc),
        "FLOAT": acc.is_floating_point,
        "INT64": wide_index,
    }
    some_index, some_value = index, values
    if t.splits > 1:
        some_index = x.device.empty((plan.n_rows, t.splits), dtypes.int64)
        some_value = x.device.empty((plan.n_rows, t.splits), acc)
    launch(
        arg_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        x,
        None,
        some_value,
        some_index,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        ROWS=t.rows,
        COLS=t.cols,
        **common,
    )
    if t.splits > 1:
        cols = min(next_power_of_2(t.splits), 1024)
        launch(
            arg_kernel,
            (plan.n_rows, 1),
            some_value,
            some_index,
            values,
            index,
            plan.n_rows,
            t.splits,
            cdiv(t.splits, cols) * cols,
            *(1, 1, 1, 1),
            *(t.splits, 0, 0),
            *(1, 0, 0),
            ROWS=1,
            COLS=cols,
            **common,
        )
