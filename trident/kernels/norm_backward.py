"""Gradients of layer, RMS and group normalisation.

Gradients of weight and bias are summed by a fixed number of programs into partial results, then by
a second small kernel: no atomics, the same bits in every run. Source: the fixed program count
follows Fast-LLM #546.
"""

from __future__ import annotations

from .. import shapes
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .norm import _grouped, _rows, _trailing, flat
from .reduce import (
    PROGRAMS,
    SUM,
    acc_type,
    accumulator,
    interpreted_block,
    layout,
    offset_of,
    reduce,
    tile,
    warps,
)
from .softmax import row_tile


@jit
def rows_backward_kernel(
    g_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,  # (n_rows, n_cols) contiguous
    partial_ptr,  # (2, programs, n_cols): shares of dweight and dbias; or None
    n_rows,
    n_cols,
    rn1,
    rn2,
    gs0,
    gs1,
    gs2,
    g_step,
    xs0,
    xs1,
    xs2,
    x_step,
    groups,
    channels,
    spatial,
    CENTRED: tl.constexpr,
    NORMED: tl.constexpr,  # x is normalised already
    FITS: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    cols = tl.arange(0, COLS)
    if INT64:
        cols = cols.to(tl.int64)
    if partial_ptr is not None:
        dweight = tl.zeros((ROWS, COLS), ACC)
        dbias = tl.zeros((ROWS, COLS), ACC)
    for block in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        rows = tl.full((ROWS,), block, tl.int64) * ROWS + tl.arange(0, ROWS)
        dx_row = dx_ptr + rows[:, None] * n_cols
        if not INT64:
            rows = rows.to(tl.int32)
        inside = rows < n_rows
        g_row = g_ptr + offset_of(rows, rn1, rn2, gs0, gs1, gs2)[:, None]
        x_row = x_ptr + offset_of(rows, rn1, rn2, xs0, xs1, xs2)[:, None]
        first_channel = ((rows % groups) * channels)[:, None]
        rstd = tl.load(rstd_ptr + rows, mask=inside, other=0.0).to(ACC)[:, None]
        mean = tl.zeros((ROWS, 1), ACC)
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + rows, mask=inside, other=0.0).to(ACC)[:, None]
        scale = tl.full((ROWS, 1), 1.0, ACC) if NORMED else rstd
        if FITS:
            mask = inside[:, None] & (cols < n_cols)[None, :]
            g = tl.load(g_row + cols[None, :] * g_step, mask=mask, other=0.0).to(ACC)
            x = tl.load(x_row + cols[None, :] * x_step, mask=mask, other=0.0).to(ACC)
            normed = tl.where(mask, (x - mean) * scale, 0.0)
            if partial_ptr is not None:
                dweight += g * normed
                dbias += g
            if weight_ptr is not None:
                at = first_channel + (cols // spatial)[None, :]
                g *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
            dx = g - normed * (tl.sum(g * normed, 1) / n_cols)[:, None]
            if CENTRED:
                dx -= (tl.sum(g, 1) / n_cols)[:, None]
            dx *= rstd
            tl.store(dx_row + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
        else:
            along = tl.zeros((ROWS, COLS), ACC)
            level = tl.zeros((ROWS, COLS), ACC)
            for first in range(0, n_cols, COLS):
                c = first + cols
                mask = inside[:, None] & (c < n_cols)[None, :]
                g = tl.load(g_row + c[None, :] * g_step, mask=mask, other=0.0).to(ACC)
                x = tl.load(x_row + c[None, :] * x_step, mask=mask, other=0.0).to(ACC)
                if weight_ptr is not None:
                    at = first_channel + (c // spatial)[None, :]
                    g *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
                along += g * (x - mean) * scale
                level += g
            slope = (tl.sum(along, 1) / n_cols)[:, None]
            shift = (tl.sum(level, 1) / n_cols)[:, None]
            for first in range(0, n_cols, COLS):
                c = first + cols
                mask = inside[:, None] & (c < n_cols)[None, :]
                g = tl.load(g_row + c[None, :] * g_step, mask=mask, other=0.0).to(ACC)
                x = tl.load(x_row + c[None, :] * x_step, mask=mask, other=0.0).to(ACC)
                if weight_ptr is not None:
                    at = first_channel + (c // spatial)[None, :]
                    g *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
                dx = g - (x - mean) * scale * slope
                if CENTRED:
                    dx -= shift
                dx *= rstd
                tl.store(dx_row + c[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        at = tl.program_id(0).to(tl.int64) * n_cols + cols
        tl.store(partial_ptr + at, tl.sum(dweight, 0), mask=cols < n_cols)
        at += tl.num_programs(0).to(tl.int64) * n_cols
        tl.store(partial_ptr + at, tl.sum(dbias, 0), mask=cols < n_cols)


@jit
def parameter_kernel(
    g_ptr,  # n_rows x n_cols: a row holds the elements that share a parameter
    x_ptr,
    mean_ptr,  # or None
    rstd_ptr,
    partial_ptr,  # (2, n_rows, splits): sums of g * normed, and of g
    n_rows,
    n_cols,
    chunk,
    rn1,
    rn2,
    cn1,
    cn2,
    gr0,
    gr1,
    gr2,
    gc0,
    gc1,
    gc2,
    xr0,
    xr1,
    xr2,
    xc0,
    xc1,
    xc2,
    spatial,  # the statistic of (row, column) is at column // spatial * stat_step + row // channels
    stat_step,
    channels,
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
    g_row = g_ptr + offset_of(rows, rn1, rn2, gr0, gr1, gr2)[:, None]
    x_row = x_ptr + offset_of(rows, rn1, rn2, xr0, xr1, xr2)[:, None]
    along = tl.zeros((ROWS, COLS), ACC)
    level = tl.zeros((ROWS, COLS), ACC)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < stop)[None, :]
        g_at = offset_of(cols, cn1, cn2, gc0, gc1, gc2)[None, :]
        x_at = offset_of(cols, cn1, cn2, xc0, xc1, xc2)[None, :]
        g = tl.load(g_row + g_at, mask=mask, other=0.0).to(ACC)
        x = tl.load(x_row + x_at, mask=mask, other=0.0).to(ACC)
        stat = (cols // spatial * stat_step)[None, :] + (rows // channels)[:, None]
        if mean_ptr is not None:
            x -= tl.load(mean_ptr + stat, mask=mask, other=0.0).to(ACC)
        along += g * x * tl.load(rstd_ptr + stat, mask=mask, other=0.0).to(ACC)
        level += g
    tl.store(partial_ptr + at, tl.sum(along, 1), mask=inside)
    at += tl.num_programs(1).to(tl.int64) * n_rows
    tl.store(partial_ptr + at, tl.sum(level, 1), mask=inside)


def parameter_gradients(
    dweight: DeviceArray | None,
    dbias: DeviceArray | None,
    g: DeviceArray,
    x: DeviceArray,
    mean: DeviceArray | None,
    rstd: DeviceArray,
    over: tuple[int, ...],
    statistic: tuple[int, int, int],
) -> DeviceArray:
    """Writes the gradients that are wanted; returns (2, parameters, splits) sums of g normed and
    g."""
    plan, (g, x) = layout(over, g, x)
    acc = accumulator(x.dtype)
    t = tile(plan, interpreted_block() if x.device.interpreted else 2048 * 4 // acc.itemsize)
    partial = x.device.empty((2, plan.n_rows, t.splits), acc)
    launch(
        parameter_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        g,
        x,
        mean,
        rstd,
        partial,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        *plan.row_strides[1],
        *plan.col_strides[1],
        *statistic,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(g, x),
        ROWS=t.rows,
        COLS=t.cols,
    )
    for target, i in ((dweight, 0), (dbias, 1)):
        if target is not None:
            reduce(target.reshape((plan.n_rows,)), partial[i], over=(1,), kind=SUM, acc=acc)
    return partial


def _rows_backward(
    dx: DeviceArray | None,
    dweight: DeviceArray | None,
    dbias: DeviceArray | None,
    g: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    mean: DeviceArray | None,
    rstd: DeviceArray,
    over: tuple[int, ...],
    channel: tuple[int, int, int],
    *,
    by_column: bool = False,
    centred: bool = True,
    normed: bool = False,
) -> bool:
    """The gradient of the row norms; True if dweight and dbias were written on the way."""
    plan, (g, x) = _rows(over, g, x)
    acc = accumulator(x.dtype)
    interpreted = x.device.interpreted
    rows, cols, fits = row_tile(plan, acc, interpreted, 8192)
    wanted = fits and by_column and (dweight is not None or dbias is not None)
    if dx is None:
        if not wanted:
            return False
        dx = x.device.empty(x.shape, x.dtype)
    if not interpreted:
        rows = min(rows, max(1, 8192 // acc.itemsize // cols))
    programs = min(cdiv(plan.n_rows, rows), PROGRAMS if wanted else 2**30)
    partial = x.device.empty((2, programs, plan.n_cols), acc) if wanted else None
    launch(
        rows_backward_kernel,
        (programs,),
        g,
        x,
        flat(weight),
        mean,
        rstd,
        dx,
        partial,
        plan.n_rows,
        plan.n_cols,
        *plan.row_sizes,
        *plan.row_strides[0],
        plan.col_strides[0][0],
        *plan.row_strides[1],
        plan.col_strides[1][0],
        *channel,
        CENTRED=centred,
        NORMED=normed,
        FITS=fits,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(g, x),
        ROWS=rows,
        COLS=cols,
        num_warps=warps(2 * rows * cols),
    )
    if partial is not None:
        for target, i in ((dweight, 0), (dbias, 1)):
            if target is not None:
                reduce(target.reshape((plan.n_cols,)), partial[i], over=(0,), kind=SUM, acc=acc)
    return wanted


def layer_norm_backward(
    dx: DeviceArray | None,
    dweight: DeviceArray | None,
    dbias: DeviceArray | None,
    g: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    mean: DeviceArray | None,
    rstd: DeviceArray,
    *,
    axes: int,
) -> None:
    """Gradients of layer norm; of RMS norm where ``mean`` is None."""
    outer, inner = _trailing(x.ndim, axes)
    if x.size == 0:
        clear(dweight, dbias)
        return
    done = _rows_backward(
        dx,
        dweight,
        dbias,
        g,
        x,
        weight,
        mean,
        rstd,
        inner,
        (1, 1, 1),
        by_column=True,
        centred=mean is not None,
    )
    if not done and (dweight is not None or dbias is not None):
        n = shapes.numel(x.shape[a] for a in inner)
        parameter_gradients(dweight, dbias, g, x, mean, rstd, outer, (1, 1, n))


def standardize_backward(
    dx: DeviceArray, g: DeviceArray, y: DeviceArray, rstd: DeviceArray, *, axes: int, centred: bool
) -> None:
    """The gradient of ``standardize`` from its results ``y`` and ``rstd``."""
    if dx.size == 0:
        return
    _, inner = _trailing(y.ndim, axes)
    _rows_backward(
        dx, None, None, g, y, None, None, rstd, inner, (1, 1, 1), centred=centred, normed=True
    )


def rms_norm_backward(
    dx: DeviceArray | None,
    dweight: DeviceArray | None,
    g: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    rstd: DeviceArray,
    *,
    axes: int,
) -> None:
    """Gradients of RMS norm."""
    layer_norm_backward(dx, dweight, None, g, x, weight, None, rstd, axes=axes)


def group_norm_backward(
    dx: DeviceArray | None,
    dweight: DeviceArray | None,
    dbias: DeviceArray | None,
    g: DeviceArray,
    x: DeviceArray,
    weight: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
    *,
    num_groups: int,
) -> None:
    """Gradients of group norm."""
    if x.size == 0:
        clear(dweight, dbias)
        return
    per, spatial = x.shape[1] // num_groups, shapes.numel(x.shape[2:])
    over = tuple(range(2, x.ndim + 1))
    grouped = _grouped(g, num_groups), _grouped(x, num_groups)
    channel = (num_groups, per, spatial)
    _rows_backward(dx, None, None, *grouped, weight, mean, rstd, over, channel)
    if dweight is not None or dbias is not None:
        parameter_gradients(
            dweight, dbias, g, x, mean, rstd, but_channels(x.ndim), (spatial, num_groups, per)
        )


def but_channels(ndim: int) -> tuple[int, ...]:
    """Every axis except 1."""
    return (0, *range(2, ndim))


def clear(*targets: DeviceArray | None) -> None:
    """Zero gradients: the sum over an empty axis."""
    for target in targets:
        if target is not None:
            empty = target.as_strided((0, *target.shape), (0, *target.strides))
            reduce(target, empty, over=(0,), kind=SUM)
