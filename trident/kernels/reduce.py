"""Reductions over any axes of an array with any strides.

A program walks the columns of a tile of rows, keeps one accumulator per tile element and folds them
once at the end. A few long rows are split over programs that write partial results, which a second
launch reduces: the same order every time, no atomics.
"""

from __future__ import annotations

from typing import Any

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .rows import (
    Layout,
    Tile,
    acc_type,
    accumulator,
    interpreted_block,
    layout,
    multiple,
    offset_of,
    over_splits,
    tile,
    tiled,
)

SUM = 0
PROD = 1
MAX = 2
MIN = 3


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
    out_ptr,  # (splits, n_rows)
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
    ROW_VEC: tl.constexpr,
    COL_VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    n_rows = multiple(n_rows, ROW_VEC)
    n_cols = multiple(n_cols, COL_VEC)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1).to(tl.int64) * chunk
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    row_ptr = x_ptr + multiple(offset_of(rows, rn1, rn2, rs0, rs1, rs2), COL_VEC)[:, None]
    inside = rows < n_rows
    acc = tl.full((ROWS, COLS), IDENTITY, ACC)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < stop)[None, :]
        at = multiple(offset_of(cols, cn1, cn2, cs0, cs1, cs2), ROW_VEC)[None, :]
        x = tl.load(row_ptr + at, mask=mask, other=0)
        if NONZERO:
            x = x != 0
        acc = combine(acc, tl.where(mask, x.to(ACC), IDENTITY), KIND)
    out = fold(acc, KIND, IDENTITY, FLOAT)
    if MEAN:
        out = out / (tl.zeros((ROWS,), ACC) + total)
    at = tl.program_id(1).to(tl.int64) * n_rows + rows
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def arg_kernel(
    x_ptr,  # n_rows x n_cols, any strides
    index_ptr,  # (n_cols, n_rows) int64: where x came from, or None for the column itself
    value_out_ptr,  # (splits, n_rows), or None
    index_out_ptr,  # (splits, n_rows) int64
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
    ROW_VEC: tl.constexpr,
    COL_VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    n_rows = multiple(n_rows, ROW_VEC)
    n_cols = multiple(n_cols, COL_VEC)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1).to(tl.int64) * chunk
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    row_ptr = x_ptr + multiple(offset_of(rows, rn1, rn2, rs0, rs1, rs2), COL_VEC)[:, None]
    inside = rows < n_rows
    best = tl.full((ROWS, COLS), IDENTITY, ACC)
    where = tl.full((ROWS, COLS), UNSEEN, tl.int64 if INT64 else tl.int32)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < stop)[None, :]
        at = multiple(offset_of(cols, cn1, cn2, cs0, cs1, cs2), ROW_VEC)[None, :]
        x = tl.load(row_ptr + at, mask=mask, other=0)
        x = x.to(ACC)
        if index_ptr is not None:
            origin = cols.to(tl.int64)[None, :] * n_rows + rows[:, None]
            index = tl.load(index_ptr + origin, mask=mask, other=0).to(where.dtype)
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
    at = tl.program_id(1).to(tl.int64) * n_rows + rows
    tl.store(index_out_ptr + at, found.to(tl.int64), mask=inside)
    if value_out_ptr is not None:
        if FLOAT:
            top = tl.where(some_nan, float("nan"), top)
        tl.store(value_out_ptr + at, top.to(value_out_ptr.dtype.element_ty), mask=inside)


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
    t = tile(plan, elements, x.device)
    target = out if t.splits == 1 else x.device.empty((t.splits, plan.n_rows), acc)
    common: dict[str, Any] = {
        "KIND": kind,
        "IDENTITY": _identity(kind, acc),
        "ACC": acc_type(acc),
        "FLOAT": acc.is_floating_point,
        "total": plan.n_cols,
    }
    only = t.splits == 1
    _reduce(target, x, plan, t, nonzero=nonzero, mean=mean and only, **common)
    if not only:
        plan = over_splits(target)
        t = tile(plan, elements, x.device, split=False)
        _reduce(out, target, plan, t, nonzero=False, mean=mean, **common)


def _reduce(
    out: DeviceArray, x: DeviceArray, plan: Layout, t: Tile, *, total: int, nonzero: bool,
    mean: bool, **common: Any,
) -> None:  # fmt: skip
    launch(
        reduce_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        x,
        out,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        total,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        NONZERO=nonzero,
        MEAN=mean,
        INT64=shapes.needs_int64(x),
        **tiled(plan, t.rows, t.cols),
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
    elements = interpreted_block() if x.device.interpreted else 1024
    t = tile(plan, elements, x.device)
    wide_index = shapes.needs_int64(x)
    common: dict[str, Any] = {
        "LARGEST": largest,
        "IDENTITY": _identity(MAX if largest else MIN, acc),
        "UNSEEN": 2**63 - 1 if wide_index else 2**31 - 1,
        "ACC": acc_type(acc),
        "FLOAT": acc.is_floating_point,
        "INT64": wide_index,
    }
    if t.splits == 1:
        _arg_reduce(index, values, x, None, plan, t, **common)
        return
    some_index = x.device.empty((t.splits, plan.n_rows), dtypes.int64)
    some_value = x.device.empty((t.splits, plan.n_rows), acc)
    _arg_reduce(some_index, some_value, x, None, plan, t, **common)
    plan = over_splits(some_value)
    t = tile(plan, elements, x.device, split=False)
    _arg_reduce(index, values, some_value, some_index, plan, t, **common)


def _arg_reduce(
    index: DeviceArray, values: DeviceArray | None, x: DeviceArray, origin: DeviceArray | None,
    plan: Layout, t: Tile, **common: Any,
) -> None:  # fmt: skip
    launch(
        arg_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        x,
        origin,
        values,
        index,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        **tiled(plan, t.rows, t.cols),
        **common,
    )
