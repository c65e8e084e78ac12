"""Softmax and log-softmax along any axis, forward and backward.

A row that fits in registers is read once and written once. A longer row is read twice: first for
its maximum and the sum of exponentials (kept together while reading, so that one pass is enough),
then for the result.
Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

from __future__ import annotations

from .. import shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .reduce import (
    Layout,
    acc_type,
    accumulator,
    interpreted_block,
    layout,
    offset_of,
    row_max,
    warps,
)


@jit
def softmax_kernel(
    x_ptr,
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
    FITS: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    if INT64:
        cols = cols.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    x_tile = x_ptr + offset_of(rows, rn1, rn2, xs0, xs1, xs2)[:, None] + cols[None, :] * x_step
    out_tile = out_ptr + offset_of(rows, rn1, rn2, os0, os1, os2)[:, None]
    out_tile += cols[None, :] * out_step
    inside = (rows < n_rows)[:, None]
    if FITS:
        mask = inside & (cols < n_cols)[None, :]
        x = tl.load(x_tile, mask=mask, other=float("-inf")).to(ACC)
        shifted = x - row_max(x)[:, None]  # NaN in the row, or nothing but -inf: NaN, as it should
        e = tl.exp(shifted)
        total = tl.sum(tl.where(mask, e, 0.0), 1)[:, None]
        out = shifted - tl.log(total) if LOG else e / total
        tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        top = tl.full((ROWS,), float("-inf"), ACC)
        sums = tl.zeros((ROWS, COLS), ACC)
        for first in range(0, n_cols, COLS):
            mask = inside & (cols + first < n_cols)[None, :]
            x = tl.load(x_tile + first * x_step, mask=mask, other=float("-inf")).to(ACC)
            higher = tl.maximum(top, row_max(x))
            shift = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN
            sums = sums * tl.exp(top - shift)[:, None] + tl.exp(x - shift[:, None])
            top = higher
        total = tl.sum(sums, 1)[:, None]
        log_total = tl.log(total)
        for first in range(0, n_cols, COLS):
            mask = inside & (cols + first < n_cols)[None, :]
            x = tl.load(x_tile + first * x_step, mask=mask, other=float("-inf")).to(ACC)
            shifted = x - top[:, None]
            out = shifted - log_total if LOG else tl.exp(shifted) / total
            tl.store(out_tile + first * out_step, out.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def softmax_backward_kernel(
    g_ptr,
    out_ptr,  # the result of the forward pass
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
    FITS: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    if INT64:
        cols = cols.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    g_tile = g_ptr + offset_of(rows, rn1, rn2, gs0, gs1, gs2)[:, None] + cols[None, :] * g_step
    out_tile = out_ptr + offset_of(rows, rn1, rn2, os0, os1, os2)[:, None]
    out_tile += cols[None, :] * out_step
    dx_tile = dx_ptr + offset_of(rows, rn1, rn2, ds0, ds1, ds2)[:, None] + cols[None, :] * dx_step
    inside = (rows < n_rows)[:, None]
    if FITS:
        mask = inside & (cols < n_cols)[None, :]
        g = tl.load(g_tile, mask=mask, other=0.0).to(ACC)
        y = tl.load(out_tile, mask=mask, other=0.0).to(ACC)
        if LOG:
            dx = g - tl.exp(y) * tl.sum(g, 1)[:, None]
        else:
            dx = y * (g - tl.sum(g * y, 1)[:, None])
        tl.store(dx_tile, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    else:
        sums = tl.zeros((ROWS, COLS), ACC)
        for first in range(0, n_cols, COLS):
            mask = inside & (cols + first < n_cols)[None, :]
            g = tl.load(g_tile + first * g_step, mask=mask, other=0.0).to(ACC)
            if not LOG:
                g *= tl.load(out_tile + first * out_step, mask=mask, other=0.0).to(ACC)
            sums += g
        total = tl.sum(sums, 1)[:, None]
        for first in range(0, n_cols, COLS):
            mask = inside & (cols + first < n_cols)[None, :]
            g = tl.load(g_tile + first * g_step, mask=mask, other=0.0).to(ACC)
            y = tl.load(out_tile + first * out_step, mask=mask, other=0.0).to(ACC)
            dx = g - tl.exp(y) * total if LOG else y * (g - total)
            tl.store(dx_tile + first * dx_step, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@jit
def logsumexp_kernel(
    x_ptr,
    out_ptr,  # (n_rows,) contiguous
    n_rows,
    n_cols,
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
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if not INT64:
        rows = rows.to(tl.int32)
    x_row = x_ptr + offset_of(rows, rn1, rn2, rs0, rs1, rs2)[:, None]
    inside = rows < n_rows
    top = tl.full((ROWS,), float("-inf"), ACC)
    sums = tl.zeros((ROWS, COLS), ACC)
    for first in range(0, n_cols, COLS):
        cols = first + tl.arange(0, COLS)
        if INT64:
            cols = cols.to(tl.int64)
        mask = inside[:, None] & (cols < n_cols)[None, :]
        at = offset_of(cols, cn1, cn2, cs0, cs1, cs2)[None, :]
        x = tl.load(x_row + at, mask=mask, other=float("-inf")).to(ACC)
        higher = tl.maximum(top, row_max(x))
        # inf - inf would be NaN: an infinite maximum is not subtracted
        shift = tl.where(tl.abs(higher) == float("inf"), 0.0, higher)
        sums = sums * tl.exp(top - shift)[:, None] + tl.exp(x - shift[:, None])
        top = higher
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    out = tl.log(tl.sum(sums, 1)) + shift
    tl.store(out_ptr + rows, out.to(out_ptr.dtype.element_ty), mask=inside)


def row_tile(plan: Layout, acc: DType, interpreted: bool, limit: int) -> tuple[int, int, bool]:
    """(ROWS, COLS, whether a row fits): ``limit`` is the longest 4-byte row held in registers."""
    limit = limit * 4 // acc.itemsize
    want = next_power_of_2(plan.n_cols)
    n_rows = next_power_of_2(plan.n_rows)
    if interpreted:
        cols = min(want, interpreted_block())
        return min(n_rows, max(1, interpreted_block() // cols)), cols, cols == want
    if plan.wide or plan.n_cols > limit:
        cols = want if want <= limit else 4096 * 4 // acc.itemsize
        rows = min(n_rows, max(1, 2048 // cols))
    else:  # rows are neighbours in memory: at least 16 of them make whole sectors
        cols = min(want, 256)
        rows = min(n_rows, max(16, 2048 // cols))
    return rows, cols, cols == want


def softmax(out: DeviceArray, x: DeviceArray, *, dim: int, log: bool) -> None:
    """out = softmax of ``x``, or its logarithm, along the axis ``dim`` (counted from the front)."""
    if out.size == 0:
        return
    plan, (x,) = layout((dim,), x, out=out)
    acc = accumulator(out.dtype)
    rows, cols, fits = row_tile(plan, acc, x.device.interpreted, 16384)
    launch(
        softmax_kernel,
        (cdiv(plan.n_rows, rows),),
        x,
        out,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.row_strides[0],
        plan.col_strides[0][0],
        *plan.row_strides[1],
        plan.col_strides[1][0],
        LOG=log,
        FITS=fits,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x, out),
        ROWS=rows,
        COLS=cols,
        num_warps=warps(rows * cols),
    )


def softmax_backward(
    dx: DeviceArray, g: DeviceArray, out: DeviceArray, *, dim: int, log: bool
) -> None:
    """dx = the gradient of (log-)softmax from ``g`` and the forward result ``out``."""
    if dx.size == 0:
        return
    plan, (g, out) = layout((dim,), g, out, out=dx)
    acc = accumulator(dx.dtype)
    rows, cols, fits = row_tile(plan, acc, g.device.interpreted, 8192)
    launch(
        softmax_backward_kernel,
        (cdiv(plan.n_rows, rows),),
        g,
        out,
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
        FITS=fits,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(g, out, dx),
        ROWS=rows,
        COLS=cols,
        num_warps=warps(rows * cols),
    )


def logsumexp(out: DeviceArray, x: DeviceArray, *, over: tuple[int, ...]) -> None:
    """out = log(sum(exp(x))) over the axes ``over``; -inf for an empty row."""
    if out.size == 0:
        return
    plan, (x,) = layout(over, x)
    acc = accumulator(x.dtype)
    rows, cols, _ = row_tile(plan, acc, x.device.interpreted, 4096)
    launch(
        logsumexp_kernel,
        (cdiv(plan.n_rows, rows),),
        x,
        out,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x),
        ROWS=rows,
        COLS=cols,
        num_warps=warps(rows * cols),
    )
