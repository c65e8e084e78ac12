"""Layer, RMS and group normalisation, forward; ``norm_backward`` has their gradients.

A row (the elements that share a mean) is read once where it fits in registers. Means and reciprocal
deviations are kept in float32.
"""

from __future__ import annotations

from .. import shapes
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .reduce import Layout, acc_type, accumulator, layout, offset_of, packed, warps
from .softmax import row_tile


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
    EPS: tl.constexpr,
    FITS: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    out_row = out_ptr + rows[:, None] * n_cols
    if INT64:
        cols = cols.to(tl.int64)
    else:
        rows = rows.to(tl.int32)
    inside = rows < n_rows
    x_row = x_ptr + offset_of(rows, rn1, rn2, xs0, xs1, xs2)[:, None]
    first_channel = ((rows % groups) * channels)[:, None]
    mean = tl.zeros((ROWS,), ACC)
    if FITS:
        mask = inside[:, None] & (cols < n_cols)[None, :]
        x = tl.load(x_row + cols[None, :] * x_step, mask=mask, other=0.0).to(ACC)
        if mean_ptr is not None:
            mean = tl.sum(x, 1) / n_cols
        centred = tl.where(mask, x - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / n_cols + EPS)
        out = centred * rstd[:, None]
        if weight_ptr is not None:
            at = first_channel + (cols // spatial)[None, :]
            out *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
            if bias_ptr is not None:
                out += tl.load(bias_ptr + at, mask=mask, other=0.0).to(ACC)
        elif bias_ptr is not None:
            at = first_channel + (cols // spatial)[None, :]
            out += tl.load(bias_ptr + at, mask=mask, other=0.0).to(ACC)
        tl.store(out_row + cols[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        sums = tl.zeros((ROWS, COLS), ACC)
        if mean_ptr is not None:
            for first in range(0, n_cols, COLS):
                c = first + cols
                mask = inside[:, None] & (c < n_cols)[None, :]
                sums += tl.load(x_row + c[None, :] * x_step, mask=mask, other=0.0).to(ACC)
            mean = tl.sum(sums, 1) / n_cols
        squares = tl.zeros((ROWS, COLS), ACC)
        for first in range(0, n_cols, COLS):
            c = first + cols
            mask = inside[:, None] & (c < n_cols)[None, :]
            x = tl.load(x_row + c[None, :] * x_step, mask=mask, other=0.0).to(ACC)
            centred = tl.where(mask, x - mean[:, None], 0.0)
            squares += centred * centred
        rstd = 1.0 / tl.sqrt(tl.sum(squares, 1) / n_cols + EPS)
        for first in range(0, n_cols, COLS):
            c = first + cols
            mask = inside[:, None] & (c < n_cols)[None, :]
            x = tl.load(x_row + c[None, :] * x_step, mask=mask, other=0.0).to(ACC)
            out = (x - mean[:, None]) * rstd[:, None]
            at = first_channel + (c // spatial)[None, :]
            if weight_ptr is not None:
                out *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
            if bias_ptr is not None:
                out += tl.load(bias_ptr + at, mask=mask, other=0.0).to(ACC)
            tl.store(out_row + c[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
    if mean_ptr is not None:
        tl.store(mean_ptr + rows, mean, mask=inside)
    tl.store(rstd_ptr + rows, rstd, mask=inside)


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
    plan, (x,) = _rows(over, x)
    acc = accumulator(x.dtype)
    rows, cols, fits = row_tile(plan, acc, x.device.interpreted, 8192)
    launch(
        rows_kernel,
        (cdiv(plan.n_rows, rows),),
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
        EPS=float(eps),
        FITS=fits,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(x, out),
        ROWS=rows,
        COLS=cols,
        num_warps=warps(rows * cols),
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
