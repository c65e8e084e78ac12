"""Layer, RMS, group and batch normalisation, forward and backward.

Layer, RMS and group norm are row kernels: a row (the elements that share a mean) is read once where
it fits in registers. Batch norm reduces over the outer axes, so its statistics are a split reduction
(Welford, merged in a fixed order) and the rest is elementwise. Means and reciprocal deviations are
kept in float32. Gradients of weight and bias are summed by a fixed number of programs into partial
results, then by a second small kernel: no atomics, the same bits in every run.
Source: Welford 1962 and Chan, Golub, LeVeque 1979 for the merge; the fixed program count of the
backward pass follows Fast-LLM #546.
"""

from __future__ import annotations

from .. import shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .reduce import (
    PROGRAMS,
    SUM,
    Layout,
    acc_type,
    accumulator,
    interpreted_block,
    layout,
    offset_of,
    packed,
    reduce,
    tile,
    warps,
)
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
        if FITS:
            mask = inside[:, None] & (cols < n_cols)[None, :]
            g = tl.load(g_row + cols[None, :] * g_step, mask=mask, other=0.0).to(ACC)
            x = tl.load(x_row + cols[None, :] * x_step, mask=mask, other=0.0).to(ACC)
            normed = tl.where(mask, (x - mean) * rstd, 0.0)
            if partial_ptr is not None:
                dweight += g * normed
                dbias += g
            if weight_ptr is not None:
                at = first_channel + (cols // spatial)[None, :]
                g *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
            dx = g - normed * (tl.sum(g * normed, 1) / n_cols)[:, None]
            if mean_ptr is not None:
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
                along += g * (x - mean) * rstd
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
                dx = g - (x - mean) * rstd * slope
                if mean_ptr is not None:
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


def _flat(w: DeviceArray | None) -> DeviceArray | None:
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
    rows, cols, fits = row_tile(plan, acc, x.device.interpreted, 16384)
    launch(
        rows_kernel,
        (cdiv(plan.n_rows, rows),),
        x,
        _flat(weight),
        _flat(bias),
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


def _parameter_gradients(
    dweight: DeviceArray | None,
    dbias: DeviceArray | None,
    g: DeviceArray,
    x: DeviceArray,
    mean: DeviceArray | None,
    rstd: DeviceArray,
    over: tuple[int, ...],
    statistic: tuple[int, int, int],
) -> DeviceArray:
    """Writes the gradients that are wanted; returns (2, parameters, splits) sums of g normed and g."""
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
    by_column: bool,
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
    if not interpreted and rows * cols > 2048 and rows > 1:
        rows = max(1, 2048 // cols)
    programs = min(cdiv(plan.n_rows, rows), PROGRAMS if wanted else 2**30)
    partial = x.device.empty((2, programs, plan.n_cols), acc) if wanted else None
    launch(
        rows_backward_kernel,
        (programs,),
        g,
        x,
        _flat(weight),
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
        _clear(dweight, dbias)
        return
    done = _rows_backward(
        dx, dweight, dbias, g, x, weight, mean, rstd, inner, (1, 1, 1), by_column=True
    )
    if not done and (dweight is not None or dbias is not None):
        n = shapes.numel(x.shape[a] for a in inner)
        _parameter_gradients(dweight, dbias, g, x, mean, rstd, outer, (1, 1, n))


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
        _clear(dweight, dbias)
        return
    per, spatial = x.shape[1] // num_groups, shapes.numel(x.shape[2:])
    over = tuple(range(2, x.ndim + 1))
    grouped = _grouped(g, num_groups), _grouped(x, num_groups)
    channel = (num_groups, per, spatial)
    _rows_backward(dx, None, None, *grouped, weight, mean, rstd, over, channel, by_column=False)
    if dweight is not None or dbias is not None:
        _parameter_gradients(
            dweight, dbias, g, x, mean, rstd, _but_channels(x.ndim), (spatial, num_groups, per)
        )


def _but_channels(ndim: int) -> tuple[int, ...]:
    """Every axis except 1."""
    return (0, *range(2, ndim))


def _clear(*targets: DeviceArray | None) -> None:
    """Zero gradients: the sum over an empty axis."""
    for target in targets:
        if target is not None:
            empty = target.as_strided((0, *target.shape), (0, *target.strides))
            reduce(target, empty, over=(0,), kind=SUM)


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
    arrays = (x,) if g is None else (x, g)
    plan, arrays = layout(_but_channels(x.ndim), *arrays, out=out)
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
        _flat(weight),
        _flat(bias),
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
    """out = x (N, C, ...) normalised by its channels' mean and (biased) variance, which are kept."""
    if x.size == 0:
        return
    plan, (walked,) = layout(_but_channels(x.ndim), x)
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
        _clear(dweight, dbias)
        return
    acc = accumulator(x.dtype)
    over = _but_channels(x.ndim)
    partial = _parameter_gradients(dweight, dbias, g, x, mean, rstd, over, (1, 0, 1))
    sums = x.device.empty(partial.shape[:2], acc)
    reduce(sums, partial, over=(2,), kind=SUM)
    _batch_launch(dx, x, weight, None, mean, rstd, g, sums, acc)
