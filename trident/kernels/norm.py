"""Layer, RMS and group normalisation, forward; ``norm_backward`` has their gradients.

A row (the elements that share a mean) is read once where it fits in registers. Longer rows are
shared by several programs, which find the statistics first (``moments``) and read again to write.
Means and reciprocal deviations are kept in float32.
"""

from __future__ import annotations

from .. import shapes
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .moments import moments
from .rows import (
    Layout,
    acc_type,
    accumulator,
    layout,
    multiple,
    offset_of,
    packed,
    pieces,
    tiled,
    warps,
    whole,
)


@jit
def rows_kernel(
    x_ptr,  # n_rows x n_cols
    weight_ptr,  # contiguous, or None
    bias_ptr,  # contiguous, or None
    out_ptr,  # (n_rows, n_cols) contiguous
    mean_ptr,  # (n_rows,), or None where the rows are not centred
    rstd_ptr,  # (n_rows,)
    n_rows,
    n_cols,
    rn1,
    rn2,
    xs0,
    xs1,
    xs2,
    x_step,
    groups,  # the weight of (row, column) is at (row % groups) * channels + column // spatial
    channels,
    spatial,
    GIVEN: tl.constexpr,  # mean and rstd are read; else COLS columns hold a row, and they are made
    EPS: tl.constexpr,
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
    if GIVEN:
        cols += tl.program_id(0) % tl.cdiv(n_cols, COLS) * COLS
        rows = rows // tl.cdiv(n_cols, COLS)
    rows = rows * ROWS + tl.arange(0, ROWS)
    out_row = out_ptr + (rows * n_cols)[:, None]
    if INT64:
        cols = cols.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    inside = rows < n_rows
    mask = inside[:, None] & (cols < n_cols)[None, :]
    x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, xs0, xs1, xs2), COL_VEC)[:, None]
    x = tl.load(x_row + multiple(cols * x_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
    if GIVEN:
        if mean_ptr is not None:
            x -= tl.load(mean_ptr + rows, mask=inside, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + rows, mask=inside, other=0.0)
    else:
        if mean_ptr is not None:
            mean = tl.sum(x, 1) / n_cols
            x = tl.where(mask, x - mean[:, None], 0.0)
            tl.store(mean_ptr + rows, mean, mask=inside)
        rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / n_cols + EPS)
        tl.store(rstd_ptr + rows, rstd, mask=inside)
    out = x * rstd[:, None]
    at = (rows % groups * channels)[:, None] + (cols // spatial)[None, :]
    if weight_ptr is not None:
        out *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
    if bias_ptr is not None:
        out += tl.load(bias_ptr + at, mask=mask, other=0.0).to(ACC)
    tl.store(out_row + cols[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


def flat(w: DeviceArray | None) -> DeviceArray | None:
    """A parameter as contiguous memory."""
    return w if w is None or w.is_contiguous() else packed(w, ())


def _rows(over: tuple[int, ...], *arrays: DeviceArray) -> tuple[Layout, tuple[DeviceArray, ...]]:
    """The layout of arrays whose columns are one evenly spaced axis; copies those where not so."""
    plan, arrays = layout(over, *arrays)
    if plan.col_sizes != (1, 1):
        plan, arrays = layout(over, *(packed(a, over) for a in arrays))
    return plan, arrays


def _grouped(x: DeviceArray, groups: int) -> DeviceArray:
    """(N, C, ...) seen as (N, groups, C / groups, ...)."""
    per = x.shape[1] // groups
    (n, _, *space), (sn, sc, *steps) = x.shape, x.strides
    return x.as_strided((n, groups, per, *space), (sn, sc * per, sc, *steps))


def _normalize_rows(
    out: DeviceArray,
    mean: DeviceArray | None,
    rstd: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    bias: DeviceArray | None,
    over: tuple[int, ...],
    eps: float,
    channel: tuple[int, int, int],
) -> None:
    if rstd.size == 0:
        return
    device = x.device
    plan, (x,) = _rows(over, x)
    acc = accumulator(x.dtype)
    tile = whole(plan, acc, device, 32768 if device.capability >= (9, 0) else 16384)
    given = tile is None
    if tile is None:
        moments(x, over, mean, None, rstd, eps=eps, centred=mean is not None)
        t = pieces(plan, acc, device)
        tile = t.rows, t.cols
    rows, cols = tile
    launch(
        rows_kernel,
        (cdiv(plan.n_rows, rows) * max(cdiv(plan.n_cols, cols), 1),),
        x,
        flat(weight),
        flat(bias),
        out,
        mean,
        rstd,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.row_strides[0],
        plan.col_strides[0][0],
        *channel,
        GIVEN=given,
        EPS=float(eps),
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x, out),
        num_warps=warps(rows * cols, device),
        **tiled(plan, rows, cols),
    )


def _trailing(ndim: int, axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the outer axes, the last ``axes`` axes)."""
    return tuple(range(ndim - axes)), tuple(range(ndim - axes, ndim))


def layer_norm_forward(
    out: DeviceArray,
    mean: DeviceArray | None,
    rstd: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    bias: DeviceArray | None,
    *,
    axes: int,
    eps: float,
) -> None:
    """Layer norm over the last ``axes`` axes; RMS norm where ``mean`` is None."""
    _, inner = _trailing(x.ndim, axes)
    _normalize_rows(out, mean, rstd, x, weight, bias, inner, eps, (1, 1, 1))


def standardize(
    out: DeviceArray, rstd: DeviceArray, x: DeviceArray, *, axes: int, eps: float, centred: bool
) -> None:
    """Layer norm (RMS norm unless ``centred``) without weights."""
    mean = x.device.empty(rstd.shape, rstd.dtype) if centred else None
    layer_norm_forward(out, mean, rstd, x, None, None, axes=axes, eps=eps)


def rms_norm_forward(
    out: DeviceArray,
    rstd: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    *,
    axes: int,
    eps: float,
) -> None:
    """x / sqrt(mean(x^2) + eps) * weight over the last ``axes`` axes."""
    layer_norm_forward(out, None, rstd, x, weight, None, axes=axes, eps=eps)


def group_norm_forward(
    out: DeviceArray,
    mean: DeviceArray,
    rstd: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    bias: DeviceArray | None,
    *,
    num_groups: int,
    eps: float,
) -> None:
    """Group norm of (N, C, ...): every group of C / num_groups channels is a row."""
    per = x.shape[1] // num_groups
    channel = (num_groups, per, shapes.numel(x.shape[2:]))
    over = tuple(range(2, x.ndim + 1))
    _normalize_rows(out, mean, rstd, _grouped(x, num_groups), weight, bias, over, eps, channel)
