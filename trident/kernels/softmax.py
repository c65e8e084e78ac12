"""Softmax and log-softmax along any axis, forward and backward, and the logarithm of a sum of
exponentials over any axes.

A row that fits in registers is read once and written once. Longer rows are shared by several
programs: the first launch finds each piece's maximum and sum of exponentials (kept together while
reading), a small one joins the pieces, and the last writes the result.
Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

from __future__ import annotations

from .. import shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .reduce import SUM, reduce
from .rows import (
    Layout,
    Tile,
    acc_type,
    accumulator,
    layout,
    multiple,
    offset_of,
    over_splits,
    pieces,
    row_max,
    tiled,
    warps,
    whole,
)


@jit
def softmax_kernel(
    x_ptr,
    top_ptr,  # (n_rows,): the rows' maxima; None where COLS columns hold a whole row
    total_ptr,  # (n_rows,): the sums of exp(x - top), or None
    out_ptr,
    n_rows,
    n_cols,
    rn1,
    rn2,
    xs0,
    xs1,
    xs2,
    x_step,  # stride along the axis
    os0,
    os1,
    os2,
    out_step,
    LOG: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROW_VEC: tl.constexpr,
    COL_VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    n_rows = multiple(n_rows, ROW_VEC)
    n_cols = multiple(n_cols, COL_VEC)
    rows = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    if top_ptr is not None:
        cols += tl.program_id(0) % tl.cdiv(n_cols, COLS) * COLS
        rows = rows // tl.cdiv(n_cols, COLS)
    rows = rows * ROWS + tl.arange(0, ROWS)
    if INT64:
        cols = cols.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    inside = (rows < n_rows)[:, None]
    mask = inside & (cols < n_cols)[None, :]
    x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, xs0, xs1, xs2), COL_VEC)[:, None]
    x_tile = x_row + multiple(cols * x_step, ROW_VEC)[None, :]
    x = tl.load(x_tile, mask=mask, other=float("-inf")).to(ACC)
    if top_ptr is None:
        x -= row_max(x)[:, None]  # NaN in the row, or nothing but -inf: NaN, as it should
        e = tl.exp(x)
        total = tl.sum(tl.where(mask, e, 0.0), 1)[:, None]
    else:
        x -= tl.load(top_ptr + rows[:, None], mask=inside, other=0.0)
        e = tl.exp(x)
        total = tl.load(total_ptr + rows[:, None], mask=inside, other=1.0)
    out = x - tl.log(total) if LOG else e / total
    out_row = out_ptr + multiple(offset_of(rows, rn1, rn2, os0, os1, os2), COL_VEC)[:, None]
    out_tile = out_row + multiple(cols * out_step, ROW_VEC)[None, :]
    tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def softmax_backward_kernel(
    g_ptr,
    out_ptr,  # the result of the forward pass
    total_ptr,  # (n_rows,): sums of g y, of g where LOG; None where COLS columns hold a whole row
    dx_ptr,
    n_rows,
    n_cols,
    rn1,
    rn2,
    gs0,
    gs1,
    gs2,
    g_step,
    os0,
    os1,
    os2,
    out_step,
    ds0,
    ds1,
    ds2,
    dx_step,
    LOG: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROW_VEC: tl.constexpr,
    COL_VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    n_rows = multiple(n_rows, ROW_VEC)
    n_cols = multiple(n_cols, COL_VEC)
    rows = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    if total_ptr is not None:
        cols += tl.program_id(0) % tl.cdiv(n_cols, COLS) * COLS
        rows = rows // tl.cdiv(n_cols, COLS)
    rows = rows * ROWS + tl.arange(0, ROWS)
    if INT64:
        cols = cols.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    inside = (rows < n_rows)[:, None]
    mask = inside & (cols < n_cols)[None, :]
    g_row = g_ptr + multiple(offset_of(rows, rn1, rn2, gs0, gs1, gs2), COL_VEC)[:, None]
    out_row = out_ptr + multiple(offset_of(rows, rn1, rn2, os0, os1, os2), COL_VEC)[:, None]
    g = tl.load(g_row + multiple(cols * g_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
    y = tl.load(out_row + multiple(cols * out_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
    if total_ptr is None:
        total = tl.sum(g if LOG else g * y, 1)[:, None]
    else:
        total = tl.load(total_ptr + rows[:, None], mask=inside, other=0.0)
    dx = g - tl.exp(y) * total if LOG else y * (g - total)
    dx_row = dx_ptr + multiple(offset_of(rows, rn1, rn2, ds0, ds1, ds2), COL_VEC)[:, None]
    dx_tile = dx_row + multiple(cols * dx_step, ROW_VEC)[None, :]
    tl.store(dx_tile, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@jit
def exponentials_kernel(
    x_ptr,  # n_rows x n_cols, any strides
    weight_ptr,  # (n_cols, n_rows): what each exponential counts; None: 1
    top_ptr,  # (splits, n_rows): the maximum, or None
    total_ptr,  # (splits, n_rows): the sum of exp(x - top), or None
    out_ptr,  # (n_rows,): the logarithm of the sum of exponentials, or None
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
    FINITE: tl.constexpr,  # an infinite maximum makes a NaN
    ACC: tl.constexpr,
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
    at = tl.program_id(1).to(tl.int64) * n_rows + rows
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    inside = rows < n_rows
    x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, rs0, rs1, rs2), COL_VEC)[:, None]
    top = tl.full((ROWS,), float("-inf"), ACC)
    sums = tl.zeros((ROWS, COLS), ACC)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < stop)[None, :]
        x_tile = x_row + multiple(offset_of(cols, cn1, cn2, cs0, cs1, cs2), ROW_VEC)[None, :]
        x = tl.load(x_tile, mask=mask, other=float("-inf")).to(ACC)
        higher = tl.maximum(top, row_max(x))
        # -inf - -inf would be NaN, and so would inf - inf
        none = higher == float("-inf") if FINITE else tl.abs(higher) == float("inf")
        shift = tl.where(none, 0.0, higher)
        e = tl.exp(x - shift[:, None])
        if weight_ptr is not None:
            place = cols.to(tl.int64)[None, :] * n_rows + rows[:, None]
            e *= tl.load(weight_ptr + place, mask=mask, other=0.0)
        sums = sums * tl.exp(top - shift)[:, None] + e
        top = higher
    total = tl.sum(sums, 1)
    if top_ptr is not None:
        tl.store(top_ptr + at, top, mask=inside)
        tl.store(total_ptr + at, total, mask=inside)
    else:
        out = tl.log(total) + tl.where(tl.abs(top) == float("inf"), 0.0, top)
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def products_kernel(
    a_ptr,  # n_rows x n_cols
    b_ptr,
    out_ptr,  # (splits, n_rows): sums of a b
    n_rows,
    n_cols,
    chunk,
    rn1,
    rn2,
    as0,
    as1,
    as2,
    a_step,
    bs0,
    bs1,
    bs2,
    b_step,
    ACC: tl.constexpr,
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
    at = tl.program_id(1).to(tl.int64) * n_rows + rows
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    inside = rows < n_rows
    a_row = a_ptr + multiple(offset_of(rows, rn1, rn2, as0, as1, as2), COL_VEC)[:, None]
    b_row = b_ptr + multiple(offset_of(rows, rn1, rn2, bs0, bs1, bs2), COL_VEC)[:, None]
    sums = tl.zeros((ROWS, COLS), ACC)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < stop)[None, :]
        a = tl.load(a_row + multiple(cols * a_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
        b = tl.load(b_row + multiple(cols * b_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
        sums += a * b
    tl.store(out_ptr + at, tl.sum(sums, 1), mask=inside)


# ---- launching ----------------------------------------------------------------------------------


def _exponentials(
    x: DeviceArray, weight: DeviceArray | None, ends: tuple, plan: Layout, t: Tile, acc: DType,
    finite: bool,
) -> None:  # fmt: skip
    launch(
        exponentials_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        x,
        weight,
        *ends,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        FINITE=finite,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x),
        **tiled(plan, t.rows, t.cols),
    )


def _normalize(x: DeviceArray, plan: Layout, ends: tuple, acc: DType, finite: bool) -> None:
    """Fill ``ends``: (maxima, sums of exponentials, None), or (None, None, the logarithms)."""
    t = pieces(plan, acc, x.device)
    if t.splits == 1:
        _exponentials(x, None, ends, plan, t, acc, finite)
        return
    top, total = (x.device.empty((t.splits, plan.n_rows), acc) for _ in range(2))
    _exponentials(x, None, (top, total, None), plan, t, acc, finite)
    plan = over_splits(top)
    t = pieces(plan, acc, x.device, split=False)
    _exponentials(top, total, ends, plan, t, acc, finite)


def softmax(out: DeviceArray, x: DeviceArray, *, dim: int, log: bool) -> None:
    """out = softmax of ``x``, or its logarithm, along the axis ``dim`` (counted from the front)."""
    if out.size == 0:
        return
    plan, (x,) = layout((dim,), x, out=out)
    acc = accumulator(out.dtype)
    top = total = None
    found = whole(plan, acc, x.device, 32768 if x.device.capability >= (9, 0) else 16384)
    if found is None:
        top, total = (x.device.empty((plan.n_rows,), acc) for _ in range(2))
        read, _ = layout((dim,), x)
        _normalize(x, read, (top, total, None), acc, True)
        t = pieces(plan, acc, x.device)
        found = t.rows, t.cols
    rows, cols = found
    launch(
        softmax_kernel,
        (cdiv(plan.n_rows, rows) * cdiv(plan.n_cols, cols),),
        x,
        top,
        total,
        out,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.row_strides[0],
        plan.col_strides[0][0],
        *plan.row_strides[1],
        plan.col_strides[1][0],
        LOG=log,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x, out),
        num_warps=warps(rows * cols, x.device),
        **tiled(plan, rows, cols),
    )


def softmax_backward(
    dx: DeviceArray, g: DeviceArray, out: DeviceArray, *, dim: int, log: bool
) -> None:
    """dx = the gradient of (log-)softmax from ``g`` and the forward result ``out``."""
    if dx.size == 0:
        return
    plan, (g, out) = layout((dim,), g, out, out=dx)
    acc = accumulator(dx.dtype)
    total = None
    found = whole(plan, acc, g.device, 16384)
    if found is None:
        t = pieces(plan, acc, g.device)
        total = g.device.empty((plan.n_rows,), acc)
        if log:
            reduce(total, g, over=(dim,), kind=SUM, acc=acc)
        else:
            _products(total, g, out, plan, t, acc)
        found = t.rows, t.cols
    rows, cols = found
    launch(
        softmax_backward_kernel,
        (cdiv(plan.n_rows, rows) * cdiv(plan.n_cols, cols),),
        g,
        out,
        total,
        dx,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.row_strides[0],
        plan.col_strides[0][0],
        *plan.row_strides[1],
        plan.col_strides[1][0],
        *plan.row_strides[2],
        plan.col_strides[2][0],
        LOG=log,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(g, out, dx),
        num_warps=warps(rows * cols),
        **tiled(plan, rows, cols),
    )


def _products(
    total: DeviceArray, a: DeviceArray, b: DeviceArray, plan: Layout, t: Tile, acc: DType
) -> None:
    """``total`` (n_rows,) = the sums of a b along the columns."""
    partial = total.reshape((1, plan.n_rows))
    if t.splits > 1:
        partial = total.device.empty((t.splits, plan.n_rows), acc)
    launch(
        products_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        a,
        b,
        partial,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        *plan.row_sizes,
        *plan.row_strides[0],
        plan.col_strides[0][0],
        *plan.row_strides[1],
        plan.col_strides[1][0],
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(a, b),
        **tiled(plan, t.rows, t.cols),
    )
    if t.splits > 1:
        reduce(total, partial, over=(0,), kind=SUM, acc=acc)


def logsumexp(out: DeviceArray, x: DeviceArray, *, over: tuple[int, ...]) -> None:
    """out = log(sum(exp(x))) over the axes ``over``; -inf for an empty row."""
    if out.size == 0:
        return
    plan, (x,) = layout(over, x)
    _normalize(x, plan, (None, None, out), accumulator(x.dtype), False)
