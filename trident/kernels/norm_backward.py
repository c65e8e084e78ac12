"""Gradients of layer, RMS and group normalisation.

Gradients of weight and bias are summed by a fixed number of programs, each over its share of the
rows and in registers, into one partial row a program, then by a second small kernel: no atomics,
the same bits in every run, and partial results that do not grow with the number of rows.
Source: the fixed program count follows Fast-LLM #546.
"""

from __future__ import annotations

from typing import Any

from .. import shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .norm import _grouped, _rows, _trailing, flat
from .norm_parameters import but_channels, clear, finish, parameter_gradients
from .reduce import SUM, reduce
from .rows import (
    Layout,
    acc_type,
    accumulator,
    multiple,
    offset_of,
    pieces,
    programs,
    tiled,
    warps,
    whole,
)


@jit
def rows_backward_kernel(
    g_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,  # (n_rows, n_cols) contiguous
    partial_ptr,  # (programs, 2, n_cols): shares of dweight and dbias; or None
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
    BIAS: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROW_VEC: tl.constexpr,
    COL_VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Rows that fit in a tile; ``shared_backward_kernel`` takes longer ones."""
    n_rows = multiple(n_rows, ROW_VEC)
    n_cols = multiple(n_cols, COL_VEC)
    cols = tl.arange(0, COLS)
    live = cols < n_cols
    if INT64:
        cols = cols.to(tl.int64)
    dweight = tl.zeros((ROWS, COLS), ACC)
    dbias = tl.zeros((ROWS, COLS), ACC)
    for block in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        rows = tl.full((ROWS,), block, tl.int64) * ROWS + tl.arange(0, ROWS)
        dx_row = dx_ptr + (rows * n_cols)[:, None]
        if not INT64:
            rows = rows.to(tl.int32)
        inside = rows < n_rows
        mask = inside[:, None] & live[None, :]
        g_row = g_ptr + multiple(offset_of(rows, rn1, rn2, gs0, gs1, gs2), COL_VEC)[:, None]
        x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, xs0, xs1, xs2), COL_VEC)[:, None]
        g = tl.load(g_row + multiple(cols * g_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
        x = tl.load(x_row + multiple(cols * x_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
        rstd = tl.load(rstd_ptr + rows, mask=inside, other=0.0).to(ACC)[:, None]
        if mean_ptr is not None:
            x = tl.where(mask, x - tl.load(mean_ptr + rows, mask=inside, other=0.0)[:, None], 0.0)
        if not NORMED:
            x *= rstd
        if partial_ptr is not None:
            dweight += g * x
            if BIAS:
                dbias += g
        if weight_ptr is not None:
            at = (rows % groups * channels)[:, None] + (cols // spatial)[None, :]
            g *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
        dx = g - x * (tl.sum(g * x, 1) / n_cols)[:, None]
        if CENTRED:
            dx -= (tl.sum(g, 1) / n_cols)[:, None]
        tl.store(dx_row + cols[None, :], (dx * rstd).to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        at = partial_ptr + tl.program_id(0).to(tl.int64) * 2 * n_cols + cols
        tl.store(at, tl.sum(dweight, 0), mask=live)
        if BIAS:
            tl.store(at + n_cols, tl.sum(dbias, 0), mask=live)


@jit
def shared_backward_kernel(
    g_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    sums_ptr,  # (2, n_rows): sums of g weight normed and of g weight; None: find them
    out_ptr,  # dx (n_rows, n_cols) contiguous, or the sums of pieces, (2, splits, n_rows)
    n_rows,
    n_cols,
    chunk,  # columns of a piece; those of a tile where sums_ptr is given
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
    NORMED: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    ROW_VEC: tl.constexpr,
    COL_VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One piece of rows that several programs share."""
    n_rows = multiple(n_rows, ROW_VEC)
    n_cols = multiple(n_cols, COL_VEC)
    splits = tl.cdiv(n_cols, chunk)
    split = tl.program_id(0) % splits
    rows = (tl.program_id(0) // splits).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = split.to(tl.int64) * chunk
    row_start = rows * n_cols
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    inside = rows < n_rows
    g_row = g_ptr + multiple(offset_of(rows, rn1, rn2, gs0, gs1, gs2), COL_VEC)[:, None]
    x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, xs0, xs1, xs2), COL_VEC)[:, None]
    rstd = tl.load(rstd_ptr + rows, mask=inside, other=0.0).to(ACC)[:, None]
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + rows, mask=inside, other=0.0).to(ACC)[:, None]
    if sums_ptr is not None:
        slope = tl.load(sums_ptr + rows, mask=inside, other=0.0)[:, None] / n_cols
        if CENTRED:
            shift = tl.load(sums_ptr + n_rows + rows, mask=inside, other=0.0)[:, None] / n_cols
    along = tl.zeros((ROWS, COLS), ACC)
    level = tl.zeros((ROWS, COLS), ACC)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < stop)[None, :]
        g = tl.load(g_row + multiple(cols * g_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
        x = tl.load(x_row + multiple(cols * x_step, ROW_VEC)[None, :], mask=mask, other=0.0).to(ACC)
        if mean_ptr is not None:
            x -= mean
        if not NORMED:
            x *= rstd
        if weight_ptr is not None:
            at = (rows % groups * channels)[:, None] + (cols // spatial)[None, :]
            g *= tl.load(weight_ptr + at, mask=mask, other=0.0).to(ACC)
        if sums_ptr is None:
            along += g * x
            level += g
        else:
            dx = g - x * slope
            if CENTRED:
                dx -= shift
            dx_tile = out_ptr + row_start[:, None] + cols[None, :]
            tl.store(dx_tile, (dx * rstd).to(out_ptr.dtype.element_ty), mask=mask)
    if sums_ptr is None:
        at = split.to(tl.int64) * n_rows + rows
        tl.store(out_ptr + at, tl.sum(along, 1), mask=inside)
        at += tl.cast(splits, tl.int64) * n_rows
        tl.store(out_ptr + at, tl.sum(level, 1), mask=inside)


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
    device = x.device
    tile = None
    if by_column and (dweight is not None or dbias is not None):
        tile = whole(plan, acc, device, SUMMED)
    wanted = tile is not None
    if tile is None:
        tile = whole(plan, acc, device, LONGEST)
    if dx is None:
        if not wanted:
            return False
        dx = device.empty(x.shape, x.dtype)
    arrays = (g, x, flat(weight), mean, rstd)
    flags = {"CENTRED": centred, "NORMED": normed}
    if tile is None:
        _shared_backward(dx, plan, acc, arrays, channel, flags)
        return False
    rows, cols = tile
    if not device.interpreted:
        rows = min(next_power_of_2(plan.n_rows), max(1, 16384 // acc.itemsize // cols))
    tiles = cdiv(plan.n_rows, rows)
    there = min(tiles, programs(device)) if wanted else tiles
    partial = device.empty((there, 2, plan.n_cols), acc) if wanted else None
    launch(
        rows_backward_kernel,
        (there,),
        *arrays,
        dx,
        partial,
        plan.n_rows,
        plan.n_cols,
        *_walk(plan),
        *channel,
        BIAS=dbias is not None,
        ACC=acc_type(acc),
        INT64=shapes.needs_int64(g, x),
        num_warps=warps(2 * rows * cols),
        **flags,
        **tiled(plan, rows, cols),
    )
    if partial is not None:
        finish(partial, dweight, dbias)
    return wanted


LONGEST = 16384
"""The longest row of 4-byte numbers whose gradient is made in registers."""
SUMMED = 8192
"""The same where the sums for dweight and dbias are kept there as well."""


def _walk(plan: Layout) -> list[int]:
    """Sizes and strides of two arrays as launch arguments."""
    (g_row, x_row), (g_col, x_col) = plan.row_strides, plan.col_strides
    return [*plan.row_sizes, *g_row, g_col[0], *x_row, x_col[0]]


def _shared_backward(
    dx: DeviceArray,
    plan: Layout,
    acc: DType,
    arrays: tuple[DeviceArray | None, ...],
    channel: tuple[int, int, int],
    flags: dict[str, bool],
) -> None:
    """dx where rows are too long for a tile: the sums over pieces of rows, then the gradient."""
    t = pieces(plan, acc, dx.device)
    partial = dx.device.empty((2, t.splits, plan.n_rows), acc)
    sums = partial.reshape((2, plan.n_rows))
    if t.splits > 1:
        sums = dx.device.empty((2, plan.n_rows), acc)
    common: dict[str, Any] = {
        "ACC": acc_type(acc),
        "INT64": shapes.needs_int64(*arrays[:2]),
        **flags,
        **tiled(plan, t.rows, t.cols),
    }
    for given, out, chunk in ((None, partial, t.chunk), (sums, dx, t.cols)):
        launch(
            shared_backward_kernel,
            (cdiv(plan.n_rows, t.rows) * cdiv(plan.n_cols, chunk),),
            *arrays,
            given,
            out,
            plan.n_rows,
            plan.n_cols,
            chunk,
            *_walk(plan),
            *channel,
            **common,
        )
        if given is None and t.splits > 1:
            reduce(sums, partial, over=(1,), kind=SUM, acc=acc)


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
        parameter_gradients(dweight, dbias, None, g, x, mean, rstd, outer, (1, 1, None))


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
        over, at = but_channels(x.ndim), (spatial, num_groups, per)
        parameter_gradients(dweight, dbias, None, g, x, mean, rstd, over, at)
