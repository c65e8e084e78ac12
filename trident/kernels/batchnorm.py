"""Batch normalisation over the outer axes, forward and backward.

The statistics of a channel are a split reduction (``moments``); the rest is elementwise.
"""

from __future__ import annotations

from .. import shapes
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .moments import moments
from .norm import flat
from .norm_parameters import but_channels, clear, parameter_gradients
from .rows import acc_type, accumulator, layout, multiple, offset_of, pieces, tiled


@jit
def batch_kernel(
    x_ptr,  # n_rows x n_cols: the channels, which are one axis, and all other axes
    weight_ptr,
    bias_ptr,
    mean_ptr,
    rstd_ptr,
    g_ptr,  # None: the forward pass
    sums_ptr,  # (2, n_rows): sums of g * normed, and of g
    out_ptr,  # out, or dx
    n_rows,
    n_cols,
    cn1,
    cn2,
    x_row_stride,
    xc0,
    xc1,
    xc2,
    g_row_stride,
    gc0,
    gc1,
    gc2,
    out_row_stride,
    oc0,
    oc1,
    oc2,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROW_VEC: tl.constexpr,
    COL_VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    n_rows = multiple(n_rows, ROW_VEC)
    n_cols = multiple(n_cols, COL_VEC)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0).to(tl.int64) * COLS + tl.arange(0, COLS)
    if INT64:
        rows = rows.to(tl.int64)
    else:
        cols = cols.to(tl.int32)
    inside = rows < n_rows
    mask = inside[:, None] & (cols < n_cols)[None, :]
    x_at = multiple(rows * x_row_stride, COL_VEC)[:, None]
    x_at += multiple(offset_of(cols, cn1, cn2, xc0, xc1, xc2), ROW_VEC)[None, :]
    out_at = multiple(rows * out_row_stride, COL_VEC)[:, None]
    out_at += multiple(offset_of(cols, cn1, cn2, oc0, oc1, oc2), ROW_VEC)[None, :]
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
        g_at = multiple(rows * g_row_stride, COL_VEC)[:, None]
        g_at += multiple(offset_of(cols, cn1, cn2, gc0, gc1, gc2), ROW_VEC)[None, :]
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
) -> None:
    acc = accumulator(x.dtype)
    arrays: tuple[DeviceArray, ...] = (x,) if g is None else (x, g)
    plan, arrays = layout(but_channels(x.ndim), *arrays, out=out)
    t = pieces(plan, acc, x.device, nbytes=4096)
    g_at = 1 if g is not None else 0
    launch(
        batch_kernel,
        (cdiv(plan.n_cols, t.cols), cdiv(plan.n_rows, t.rows)),
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
        *plan.col_sizes,
        plan.row_strides[0][0],
        *plan.col_strides[0],
        plan.row_strides[g_at][0],
        *plan.col_strides[g_at],
        plan.row_strides[-1][0],
        *plan.col_strides[-1],
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(*arrays, out),
        **tiled(plan, t.rows, t.cols),
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
    moments(x, but_channels(x.ndim), mean, var, rstd, eps=eps)
    _batch_launch(out, x, weight, bias, mean, rstd, None, None)


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
    sums = x.device.empty((2, x.shape[1]), accumulator(x.dtype))
    over = but_channels(x.ndim)
    parameter_gradients(dweight, dbias, sums, g, x, mean, rstd, over, (1, None, None))
    _batch_launch(dx, x, weight, None, mean, rstd, g, sums)
