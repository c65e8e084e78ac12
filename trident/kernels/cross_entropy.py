"""Cross entropy of logits with class indices, and the negative log likelihood, without a softmax
array.

The forward kernel reads the logits once (twice where a row does not fit in registers) and keeps one
number a row, the log of the sum of exponentials; the backward kernel writes the gradient once from
it. Sums over rows go through one partial result a program and a second small kernel.
Source: the fused loss of Liger-Kernel (Hsu et al., 2024), here out of place and with labels of any
rank.
"""

from __future__ import annotations

from .. import shapes
from ..errors import IndexBoundsError, wrong
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .index import check_range
from .rows import (
    acc_type,
    accumulator,
    interpreted_block,
    layout,
    multiple,
    offset_of,
    pieces,
    row_max,
    tiled,
    warps,
    whole,
)

MEAN = 0
TOTAL = 1
NONE = 2
REDUCTIONS = {"mean": MEAN, "sum": TOTAL, "none": NONE}


@jit
def target_of(
    target_ptr, at, inside, n_cols, ignore_index, weight_ptr, weight_step, ACC: tl.constexpr
):
    """(class, weight) of rows; the weight of an ignored row is 0, that of a class out of range
    NaN."""
    target = tl.load(target_ptr + at, mask=inside, other=0).to(tl.int64)
    used = inside & (target != ignore_index)
    valid = used & (target >= 0) & (target < n_cols)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + target * weight_step, mask=valid, other=0.0).to(ACC)
    else:
        weight = tl.where(valid, 1.0, 0.0).to(ACC)
    return target, tl.where(used & (valid == 0), float("nan"), weight), used, valid


@jit
def forward_kernel(
    x_ptr,  # n_rows x n_cols: logits, or log-probabilities
    target_ptr,  # n_rows
    weight_ptr,  # (n_cols,), or None
    loss_ptr,  # n_rows contiguous, or None
    lse_ptr,  # n_rows contiguous, or None
    partial_loss_ptr,  # one a program, or None
    partial_weight_ptr,  # one a program, or None
    n_rows,
    n_cols,
    rn1,
    rn2,
    xs0,
    xs1,
    xs2,
    x_step,
    ts0,
    ts1,
    ts2,
    weight_step,
    ignore_index,
    LOGITS: tl.constexpr,
    SMOOTHING: tl.constexpr,
    FITS: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROW_VEC: tl.constexpr,
    COL_VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    n_rows = multiple(n_rows, ROW_VEC)
    n_cols = multiple(n_cols, COL_VEC)
    pid = tl.program_id(0).to(tl.int64)
    rows = pid * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    if INT64:
        cols = cols.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    inside = rows < n_rows
    x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, xs0, xs1, xs2), COL_VEC)
    at = offset_of(rows, rn1, rn2, ts0, ts1, ts2)
    target, weight, used, valid = target_of(
        target_ptr, at, inside, n_cols, ignore_index, weight_ptr, weight_step, ACC
    )
    lse = tl.zeros((ROWS,), ACC)
    weights = tl.zeros((ROWS,), ACC)  # sum of the class weights
    weighted = tl.zeros((ROWS,), ACC)  # sum of class weight times x
    if FITS and LOGITS:
        mask = inside[:, None] & (cols < n_cols)[None, :]
        x_tile = x_row[:, None] + multiple(cols * x_step, ROW_VEC)[None, :]
        x = tl.load(x_tile, mask=mask, other=float("-inf")).to(ACC)
        top = row_max(x)
        lse = tl.log(tl.sum(tl.where(mask, tl.exp(x - top[:, None]), 0.0), 1)) + top
        if SMOOTHING > 0:
            if weight_ptr is not None:
                w = tl.load(weight_ptr + cols * weight_step, mask=cols < n_cols, other=0.0).to(ACC)
            else:
                w = tl.where(cols < n_cols, 1.0, 0.0).to(ACC)
            weights += tl.sum(w, 0)
            weighted = tl.sum(tl.where(mask, x * w[None, :], 0.0), 1)
    elif LOGITS:
        top = tl.full((ROWS,), float("-inf"), ACC)
        sums = tl.zeros((ROWS, COLS), ACC)
        for first in range(0, n_cols, COLS):
            c = first + cols
            mask = inside[:, None] & (c < n_cols)[None, :]
            x_tile = x_row[:, None] + multiple(c * x_step, ROW_VEC)[None, :]
            x = tl.load(x_tile, mask=mask, other=float("-inf")).to(ACC)
            higher = tl.maximum(top, row_max(x))
            shift = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be NaN
            sums = sums * tl.exp(top - shift)[:, None] + tl.exp(x - shift[:, None])
            top = higher
            if SMOOTHING > 0:
                if weight_ptr is not None:
                    w = tl.load(weight_ptr + c * weight_step, mask=c < n_cols, other=0.0).to(ACC)
                else:
                    w = tl.where(c < n_cols, 1.0, 0.0).to(ACC)
                weights += tl.sum(w, 0)
                weighted += tl.sum(tl.where(mask, x * w[None, :], 0.0), 1)
        lse = tl.log(tl.sum(sums, 1)) + top
    chosen = tl.load(x_row + target * x_step, mask=valid, other=0.0).to(ACC)
    loss = weight * (lse - chosen)
    if SMOOTHING > 0:
        loss = loss * (1.0 - SMOOTHING) + (weights * lse - weighted) * SMOOTHING / n_cols
    loss = tl.where(used, loss, 0.0)
    if loss_ptr is not None:
        tl.store(loss_ptr + rows, loss.to(loss_ptr.dtype.element_ty), mask=inside)
    if lse_ptr is not None:
        tl.store(lse_ptr + rows, lse, mask=inside)
    if partial_loss_ptr is not None:
        tl.store(partial_loss_ptr + pid, tl.sum(loss, 0))
        tl.store(partial_weight_ptr + pid, tl.sum(weight, 0))


@jit
def finish_kernel(
    partial_loss_ptr,
    partial_weight_ptr,
    out_ptr,  # the loss, or None
    total_ptr,  # the sum of the weights of the rows' classes
    n,
    DIVIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    losses = tl.zeros((BLOCK,), ACC)
    weights = tl.zeros((BLOCK,), ACC)
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK)
        losses += tl.load(partial_loss_ptr + i, mask=i < n, other=0.0)
        weights += tl.load(partial_weight_ptr + i, mask=i < n, other=0.0)
    loss = tl.sum(losses, 0)
    total = tl.sum(weights, 0)
    tl.store(total_ptr, total)
    if DIVIDE:
        loss = loss / total
    if out_ptr is not None:
        tl.store(out_ptr, loss.to(out_ptr.dtype.element_ty))


@jit
def backward_kernel(
    dx_ptr,
    g_ptr,  # a scalar, or one a row
    x_ptr,  # logits; None for log-probabilities
    target_ptr,
    weight_ptr,
    lse_ptr,  # n_rows contiguous; None for log-probabilities
    total_ptr,  # a scalar: the divisor of a mean, or None
    n_rows,
    n_cols,
    rn1,
    rn2,
    ds0,
    ds1,
    dx_step,
    ts0,
    ts1,
    ts2,
    gs0,
    gs1,
    gs2,
    xs0,
    xs1,
    xs2,
    x_step,
    weight_step,
    ignore_index,
    SMOOTHING: tl.constexpr,
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
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    if INT64:
        cols = cols.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    inside = rows < n_rows
    mask = inside[:, None] & (cols < n_cols)[None, :]
    at = offset_of(rows, rn1, rn2, ts0, ts1, ts2)
    target, weight, used, _ = target_of(
        target_ptr, at, inside, n_cols, ignore_index, weight_ptr, weight_step, ACC
    )
    scale = tl.load(g_ptr + offset_of(rows, rn1, rn2, gs0, gs1, gs2), mask=inside, other=0.0).to(
        ACC
    )
    if total_ptr is not None:
        scale = scale / tl.load(total_ptr).to(ACC)
    hit = tl.where(cols[None, :] == target[:, None], 1.0, 0.0).to(ACC)
    if x_ptr is None:
        dx = -hit * weight[:, None]
    else:
        x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, xs0, xs1, xs2), COL_VEC)
        x_tile = x_row[:, None] + multiple(cols * x_step, ROW_VEC)[None, :]
        x = tl.load(x_tile, mask=mask, other=0.0).to(ACC)
        p = tl.exp(x - tl.load(lse_ptr + rows, mask=inside, other=0.0)[:, None])
        dx = (p - hit) * weight[:, None]
        if SMOOTHING > 0:
            if weight_ptr is not None:
                w = tl.load(weight_ptr + cols * weight_step, mask=cols < n_cols, other=0.0).to(ACC)
                sums = tl.zeros((COLS,), ACC)
                for first in range(0, n_cols, COLS):
                    c = first + tl.arange(0, COLS)
                    sums += tl.load(weight_ptr + c * weight_step, mask=c < n_cols, other=0.0).to(
                        ACC
                    )
                spread = p * tl.sum(sums, 0) - w[None, :]
            else:
                spread = p * n_cols - 1.0
            dx = dx * (1.0 - SMOOTHING) + spread * SMOOTHING / n_cols
    dx = tl.where(used[:, None], dx * scale[:, None], 0.0)
    # dx is contiguous: where its rows have three axes, the last has stride 1
    dx_row = dx_ptr + multiple(offset_of(rows, rn1, rn2, ds0, ds1, 1), COL_VEC)
    dx_tile = dx_row[:, None] + multiple(cols * dx_step, ROW_VEC)[None, :]
    tl.store(dx_tile, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def class_axis(ndim: int) -> int:
    """The axis of the classes: 0 of (C,), otherwise 1 of (N, C, ...)."""
    return 0 if ndim == 1 else 1


def _beside(x: DeviceArray, rows: DeviceArray, axis: int) -> DeviceArray:
    """``rows`` (x's shape without ``axis``, or a scalar) seen in x's shape, stride 0 along
    ``axis``."""
    if rows.ndim == 0:  # a scalar, or the only row of (C,)
        return rows.broadcast_to(x.shape)
    return rows[(slice(None),) * axis + (None,)].broadcast_to(x.shape)


def forward(
    out: DeviceArray,
    lse: DeviceArray | None,
    total: DeviceArray | None,
    x: DeviceArray,
    target: DeviceArray,
    weight: DeviceArray | None,
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float = 0.0,
) -> None:
    """The loss of logits ``x`` (N, C, ...), or of log-probabilities where ``lse`` is None.

    ``total`` gets the sum of the rows' weights; with reduction 'none' it may be None.
    """
    axis = class_axis(x.ndim)
    each = reduction == "none"
    plan, (x, target) = layout((axis,), x, _beside(x, target, axis))
    acc = accumulator(x.dtype)
    found = whole(plan, acc, x.device, 16384)
    if lse is None:
        rows, cols = (interpreted_block() if x.device.interpreted else 128), 1
    elif found is not None:
        rows, cols = found
    else:
        t = pieces(plan, acc, x.device, split=False, nbytes=16384)
        rows, cols = t.rows, t.cols
    programs = cdiv(plan.n_rows, rows)
    partial_loss = partial_weight = None
    if total is not None:
        partial_loss = x.device.empty((programs,), acc)
        partial_weight = x.device.empty((programs,), acc)
    launch(
        forward_kernel,
        (programs,),
        x,
        target,
        weight,
        out if each else None,
        lse,
        partial_loss,
        partial_weight,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.row_strides[0],
        plan.col_strides[0][0],
        *plan.row_strides[1],
        weight.strides[0] if weight is not None else 0,
        ignore_index,
        LOGITS=lse is not None,
        SMOOTHING=float(label_smoothing),
        FITS=found is not None,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x, target),
        num_warps=warps(rows * cols),
        **tiled(plan, rows, cols, 0),
    )
    if partial_loss is not None and partial_weight is not None:
        launch(
            finish_kernel,
            (1,),
            partial_loss,
            partial_weight,
            None if each else out,
            total,
            programs,
            DIVIDE=reduction == "mean",
            ACC=acc_type(acc),
            BLOCK=min(
                interpreted_block() if x.device.interpreted else 1024,
                next_power_of_2(max(programs, 16)),
            ),
        )


def backward(
    dx: DeviceArray | None,
    g: DeviceArray,
    x: DeviceArray | None,
    target: DeviceArray,
    weight: DeviceArray | None,
    lse: DeviceArray | None,
    total: DeviceArray,
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float = 0.0,
) -> None:
    """dx = the gradient of the loss; ``x`` and ``lse`` are None for log-probabilities."""
    if dx is None or dx.size == 0:
        return
    axis = class_axis(dx.ndim)
    beside = [_beside(dx, target, axis), _beside(dx, g, axis)]
    plan, arrays = layout((axis,), *beside, *([] if x is None else [x]), out=dx)
    acc = accumulator(dx.dtype)
    elements = interpreted_block() if dx.device.interpreted else 8192 // acc.itemsize
    n_rows, n_cols = next_power_of_2(plan.n_rows), next_power_of_2(plan.n_cols)
    wide = plan.col_strides[-1][0] == 1
    if wide:
        cols = min(n_cols, elements)
        rows = min(n_rows, max(1, elements // cols))
    else:
        rows = min(n_rows, max(1, elements // 16))
        cols = min(n_cols, max(1, elements // rows))
    launch(
        backward_kernel,
        (cdiv(plan.n_rows, rows), cdiv(plan.n_cols, cols)),
        dx,
        arrays[1],
        None if x is None else arrays[2],
        arrays[0],
        weight,
        lse,
        total if reduction == "mean" else None,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.row_strides[-1][:2],
        plan.col_strides[-1][0],
        *plan.row_strides[0],
        *plan.row_strides[1],
        *(plan.row_strides[2] if x is not None else (0, 0, 0)),
        plan.col_strides[2][0] if x is not None else 0,
        weight.strides[0] if weight is not None else 0,
        ignore_index,
        SMOOTHING=float(label_smoothing),
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(dx, *arrays),
        **tiled(plan, rows, cols, -1, *([] if x is None else [2]), wide=wide),
    )


def check_target(op: str, target: DeviceArray, classes: int, ignore_index: int) -> None:
    """IndexBoundsError for a class outside of [0, classes): see ``index.check_range``."""
    expected = f"target must lie in [0, {classes}) or be ignore_index={ignore_index}"
    check_range(
        target, 0, classes, ignore_index, (op, classes, ignore_index),
        lambda i: wrong(op, expected, got=i, error=IndexBoundsError),
    )  # fmt: skip
