"""Gradients of the weights and biases of normalisations: sums over all elements that share a
parameter, in pieces that a second small kernel adds up in a fixed order.
"""

from __future__ import annotations

from .. import shapes
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .reduce import SUM, reduce
from .rows import (
    acc_type,
    accumulator,
    interpreted_block,
    layout,
    multiple,
    offset_of,
    pieces,
    tiled,
)


@jit
def parameter_kernel(
    g_ptr,  # n_rows x n_cols: a row holds the elements that share a parameter
    x_ptr,
    mean_ptr,  # or None
    rstd_ptr,
    partial_ptr,  # (splits, 2, n_rows): sums of g * normed, and of g
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
    stat_step,  # None: it is at the row
    channels,  # None: no row is added
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
    at = tl.program_id(1).to(tl.int64) * 2 * n_rows + rows
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    inside = rows < n_rows
    g_row = g_ptr + multiple(offset_of(rows, rn1, rn2, gr0, gr1, gr2), COL_VEC)[:, None]
    x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, xr0, xr1, xr2), COL_VEC)[:, None]
    along = tl.zeros((ROWS, COLS), ACC)
    level = tl.zeros((ROWS, COLS), ACC)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        live = cols < stop
        mask = inside[:, None] & live[None, :]
        g_at = multiple(offset_of(cols, cn1, cn2, gc0, gc1, gc2), ROW_VEC)[None, :]
        x_at = multiple(offset_of(cols, cn1, cn2, xc0, xc1, xc2), ROW_VEC)[None, :]
        g = tl.load(g_row + g_at, mask=mask, other=0.0).to(ACC)
        x = tl.load(x_row + x_at, mask=mask, other=0.0).to(ACC)
        if stat_step is None:
            stat = rows[:, None]
            known = inside[:, None]
        else:
            stat = (cols // spatial * stat_step)[None, :]
            known = live[None, :]
            if channels is not None:
                stat += (rows // channels)[:, None]
                known = mask
        if mean_ptr is not None:
            x -= tl.load(mean_ptr + stat, mask=known, other=0.0).to(ACC)
        along += g * x * tl.load(rstd_ptr + stat, mask=known, other=0.0).to(ACC)
        level += g
    tl.store(partial_ptr + at, tl.sum(along, 1), mask=inside)
    tl.store(partial_ptr + at + n_rows, tl.sum(level, 1), mask=inside)


@jit
def parameter_finish_kernel(
    partial_ptr,  # (parts, 2, n)
    dweight_ptr,  # (n,), or None
    dbias_ptr,  # (n,), or None
    sums_ptr,  # (2, n) in ACC, or None
    n,
    parts,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Adds up the parts: program axis 1 is 0 for the weight's, 1 for the bias's."""
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    which = tl.program_id(1)
    live = cols < n
    total = tl.zeros((ROWS, COLS), ACC)
    for first in range(0, parts, ROWS):
        rows = first + tl.arange(0, ROWS)
        at = (rows.to(tl.int64) * 2 + which)[:, None] * n + cols[None, :]
        mask = (rows < parts)[:, None] & live[None, :]
        total += tl.load(partial_ptr + at, mask=mask, other=0.0)
    out = tl.sum(total, 0)
    if sums_ptr is not None:
        tl.store(sums_ptr + which * n + cols, out, mask=live)
    if which == 0:
        if dweight_ptr is not None:
            tl.store(dweight_ptr + cols, out.to(dweight_ptr.dtype.element_ty), mask=live)
    else:
        if dbias_ptr is not None:
            tl.store(dbias_ptr + cols, out.to(dbias_ptr.dtype.element_ty), mask=live)


def finish(
    partial: DeviceArray,
    dweight: DeviceArray | None,
    dbias: DeviceArray | None,
    sums: DeviceArray | None = None,
) -> None:
    """Add up ``partial`` (parts, 2, n) into the arrays that are wanted."""
    parts, _, n = partial.shape
    room = interpreted_block() if partial.device.interpreted else 2048
    cols = min(next_power_of_2(n), 16, room)
    rows = min(next_power_of_2(parts), max(1, room // cols))
    launch(
        parameter_finish_kernel,
        (cdiv(n, cols), 1 if dbias is None and sums is None else 2),
        partial,
        dweight,
        dbias,
        sums,
        n,
        parts,
        ACC=acc_type(partial.dtype),
        ROWS=rows,
        COLS=cols,
    )


def parameter_gradients(
    dweight: DeviceArray | None,
    dbias: DeviceArray | None,
    sums: DeviceArray | None,
    g: DeviceArray,
    x: DeviceArray,
    mean: DeviceArray | None,
    rstd: DeviceArray,
    over: tuple[int, ...],
    statistic: tuple[int, int | None, int | None],
) -> None:
    """Sums of g normed and of g over the axes ``over``, in those of ``dweight``, ``dbias`` (any
    shape) and ``sums`` (2, parameters) that are wanted."""
    plan, (g, x) = layout(over, g, x)
    acc = accumulator(x.dtype)
    t = pieces(plan, acc, x.device)
    partial = x.device.empty((t.splits, 2, plan.n_rows), acc)
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
        **tiled(plan, t.rows, t.cols),
    )
    finish(partial, dweight, dbias, sums)


def but_channels(ndim: int) -> tuple[int, ...]:
    """Every axis except 1."""
    return (0, *range(2, ndim))


def clear(*targets: DeviceArray | None) -> None:
    """Zero gradients: the sum over an empty axis."""
    for target in targets:
        if target is not None:
            empty = target.as_strided((0, *target.shape), (0, *target.strides))
            reduce(target, empty, over=(0,), kind=SUM)
