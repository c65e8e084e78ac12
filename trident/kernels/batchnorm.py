"""Batch normalisation over the outer axes, forward and backward.

The statistics of a channel are a split reduction (Welford's update in every lane, merged in a fixed
order); the rest is elementwise.
Source: Welford 1962; Chan, Golub, LeVeque 1979 for the merge.
"""

from __future__ import annotations

from .. import shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .norm import flat
from .norm_backward import but_channels, clear, parameter_gradients
from .reduce import (
    SUM,
    acc_type,
    accumulator,
    interpreted_block,
    layout,
    offset_of,
    reduce,
    tile,
)


@jit
def moments_kernel(
    x_ptr,  # n_rows x n_cols
    partial_ptr,  # (3, n_rows, splits): mean, sum of squared deviations, count
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
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(1).to(tl.int64) * chunk
    at = rows * tl.num_programs(1) + tl.program_id(1)
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    inside = rows < n_rows
    row_ptr = x_ptr + offset_of(rows, rn1, rn2, rs0, rs1, rs2)[:, None]
    mean = tl.zeros((ROWS, COLS), ACC)
    squares = tl.zeros((ROWS, COLS), ACC)
    count = tl.zeros((COLS,), ACC)
    for first in range(start, stop, COLS):  # Welford's update in every lane of the tile
        cols = first + tl.arange(0, COLS)
        live = cols < stop
        mask = inside[:, None] & live[None, :]
        x = tl.load(
            row_ptr + offset_of(cols, cn1, cn2, cs0, cs1, cs2)[None, :], mask=mask, other=0.0
        )
        x = x.to(ACC)
        count += tl.where(live, 1.0, 0.0)
        delta = tl.where(mask, x - mean, 0.0)
        mean += delta * (1.0 / tl.maximum(count, 1.0))[None, :]
        squares += delta * (x - mean)
    n = tl.sum(count, 0)
    joint = tl.sum(mean * count[None, :], 1) / n
    off = tl.where(count[None, :] > 0, mean - joint[:, None], 0.0)
    tl.store(partial_ptr + at, joint, mask=inside)
    step = tl.num_programs(1).to(tl.int64) * n_rows
    tl.store(partial_ptr + at + step, tl.sum(squares + off * off * count[None, :], 1), mask=inside)
    tl.store(partial_ptr + at + 2 * step, tl.zeros((ROWS,), ACC) + n, mask=inside)


@jit
def moments_finish_kernel(
    partial_ptr,  # (3, n_rows, splits)
    mean_ptr,
    var_ptr,
    rstd_ptr,
    n_rows,
    splits,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    COLS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, COLS)
    at = partial_ptr + row * splits + cols
    step = n_rows * splits
    means = tl.load(at, mask=cols < splits, other=0.0)
    squares = tl.load(at + step, mask=cols < splits, other=0.0)
    counts = tl.load(at + 2 * step, mask=cols < splits, other=0.0)
    n = tl.sum(counts, 0)
    mean = tl.sum(means * counts, 0) / n
    off = tl.where(cols < splits, means - mean, 0.0)
    var = tl.sum(squares + off * off * counts, 0) / n
    tl.store(mean_ptr + row, mean)
    tl.store(var_ptr + row, var)
    tl.store(rstd_ptr + row, 1.0 / tl.sqrt(var + EPS))


@jit
def batch_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    g_ptr,  # None: the forward pass
    sums_ptr,  # (2, n_rows): sums of g * normed, and of g
    out_ptr,  # out, or dx
    n_rows,
    n_cols,
    rn1,
    rn2,
    cn1,
    cn2,
    xr0,
    xr1,
    xr2,
    xc0,
    xc1,
    xc2,
    gr0,
    gr1,
    gr2,
    gc0,
    gc1,
    gc2,
    or0,
    or1,
    or2,
    oc0,
    oc1,
    oc2,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0).to(tl.int64) * COLS + tl.arange(0, COLS)
    if INT64:
        rows = rows.to(tl.int64)
    else:
        cols = cols.to(tl.int32)
    inside = rows < n_rows
    mask = inside[:, None] & (cols < n_cols)[None, :]
    x_at = offset_of(rows, rn1, rn2, xr0, xr1, xr2)[:, None]
    x_at += offset_of(cols, cn1, cn2, xc0, xc1, xc2)[None, :]
    out_at = offset_of(rows, rn1, rn2, or0, or1, or2)[:, None]
    out_at += offset_of(cols, cn1, cn2, oc0, oc1, oc2)[None, :]
    x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(ACC)
    mean = tl.load(mean_ptr + rows, mask=inside, other=0.0).to(ACC)
    rstd = tl.load(rstd_ptr + rows, mask=inside, other=0.0).to(ACC)
    scale = rstd
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + rows, mask=inside, other=0.0).to(ACC)
    if g_ptr is None:
        out = (x - mean[:, None]) * scale[:, None]
        if bias_ptr is not None:
            out += tl.load(bias_ptr + rows, mask=inside, other=0.0).to(ACC)[:, None]
    else:
        g_at = offset_of(rows, rn1, rn2, gr0, gr1, gr2)[:, None]
        g_at += offset_of(cols, cn1, cn2, gc0, gc1, gc2)[None, :]
        g = tl.load(g_ptr + g_at, mask=mask, other=0.0).to(ACC)
        slope = tl.load(sums_ptr + rows, mask=inside, other=0.0) * rstd / n_cols
        shift = tl.load(sums_ptr + n_rows + rows, mask=inside, other=0.0) / n_cols
        out = (g - shift[:, None] - (x - mean[:, None]) * slope[:, None]) * scale[:, None]
    tl.store(out_ptr + out_at, out.to(out_ptr.dtype.element_ty), mask=mask)


def _batch_launch(
    out: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    bias: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
    g: DeviceArray | None,
    sums: DeviceArray | None,
    acc: DType,
) -> None:
    arrays: tuple[DeviceArray, ...] = (x,) if g is None else (x, g)
    plan, arrays = layout(but_channels(x.ndim), *arrays, out=out)
    elements = interpreted_block() if x.device.interpreted else 1024
    if plan.wide:
        cols = min(next_power_of_2(plan.n_cols), elements)
        rows = min(next_power_of_2(plan.n_rows), max(1, elements // cols))
    else:
        rows = min(next_power_of_2(plan.n_rows), min(64, elements))
        cols = min(next_power_of_2(plan.n_cols), max(1, elements // rows))
    g_at = 1 if g is not None else 0
    launch(
        batch_kernel,
        (cdiv(plan.n_cols, cols), cdiv(plan.n_rows, rows)),
        arrays[0],
        flat(weight),
        flat(bias),
        mean,
        rstd,
        None if g is None else arrays[1],
        sums,
        out,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        *plan.row_strides[g_at],
        *plan.col_strides[g_at],
        *plan.row_strides[-1],
        *plan.col_strides[-1],
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(*arrays, out),
        ROWS=rows,
        COLS=cols,
    )


def batch_norm_forward(
    out: DeviceArray,
    mean: DeviceArray,
    var: DeviceArray,
    rstd: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    bias: DeviceArray | None,
    *,
    eps: float,
) -> None:
    """out = x (N, C, ...) normalised by its channels' mean and (biased) variance, which are
    kept."""
    if x.size == 0:
        return
    plan, (walked,) = layout(but_channels(x.ndim), x)
    acc = accumulator(x.dtype)
    t = tile(plan, interpreted_block() if x.device.interpreted else 2048 * 4 // acc.itemsize)
    partial = x.device.empty((3, plan.n_rows, t.splits), acc)
    launch(
        moments_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        walked,
        partial,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x),
        ROWS=t.rows,
        COLS=t.cols,
    )
    launch(
        moments_finish_kernel,
        (plan.n_rows,),
        partial,
        mean,
        var,
        rstd,
        plan.n_rows,
        t.splits,
        EPS=float(eps),
        ACC=acc_type(acc),
        COLS=next_power_of_2(t.splits),
    )
    _batch_launch(out, walked, weight, bias, mean, rstd, None, None, acc)


def batch_norm_backward(
    dx: DeviceArray,
    dweight: DeviceArray,
    dbias: DeviceArray,
    g: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
) -> None:
    """Gradients of training batch norm; ``dweight`` and ``dbias`` are sums over the channel."""
    if x.size == 0:
        clear(dweight, dbias)
        return
    acc = accumulator(x.dtype)
    over = but_channels(x.ndim)
    partial = parameter_gradients(dweight, dbias, g, x, mean, rstd, over, (1, 0, 1))
    sums = x.device.empty(partial.shape[:2], acc)
    reduce(sums, partial, over=(2,), kind=SUM)
    _batch_launch(dx, x, weight, None, mean, rstd, g, sums, acc)
