"""Mean and variance over any axes: a split reduction in one pass.

Every lane of a tile keeps its own mean and sum of squared deviations by Welford's update; lanes,
and then the pieces of a row, are merged in a fixed order. Exact to rounding where the mean is
large against the deviation, as a sum of squares is not.
Source: Welford 1962; Chan, Golub, LeVeque 1979 for the merge.
"""

from __future__ import annotations

from typing import Any

from .. import shapes
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
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
def moments_kernel(
    x_ptr,  # n_rows x n_cols
    partial_ptr,  # (3, splits, n_rows): mean, sum of squared deviations, count
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
    CENTRED: tl.constexpr,  # else the mean counts as 0
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
    at = tl.program_id(1).to(tl.int64) * n_rows + rows
    if not INT64:
        rows = rows.to(tl.int32)
        start = start.to(tl.int32)
    stop = tl.minimum(start + chunk, n_cols)
    inside = rows < n_rows
    x_row = x_ptr + multiple(offset_of(rows, rn1, rn2, rs0, rs1, rs2), COL_VEC)[:, None]
    mean = tl.zeros((ROWS, COLS), ACC)
    squares = tl.zeros((ROWS, COLS), ACC)
    count = tl.zeros((COLS,), ACC)
    for first in range(start, stop, COLS):
        cols = first + tl.arange(0, COLS)
        live = cols < stop
        mask = inside[:, None] & live[None, :]
        x_tile = x_row + multiple(offset_of(cols, cn1, cn2, cs0, cs1, cs2), ROW_VEC)[None, :]
        x = tl.load(x_tile, mask=mask, other=0.0).to(ACC)
        count += tl.where(live, 1.0, 0.0)
        if CENTRED:
            delta = tl.where(mask, x - mean, 0.0)
            mean += delta * (1.0 / tl.maximum(count, 1.0))[None, :]
            squares += delta * (x - mean)
        else:  # an infinity makes the sum infinite, and no difference of infinities NaN
            squares += x * x
    n = tl.sum(count, 0)
    joint = tl.sum(mean * count[None, :], 1) / n
    off = tl.where(count[None, :] > 0, mean - joint[:, None], 0.0)
    tl.store(partial_ptr + at, joint, mask=inside)
    step = tl.num_programs(1).to(tl.int64) * n_rows
    tl.store(partial_ptr + at + step, tl.sum(squares + off * off * count[None, :], 1), mask=inside)
    tl.store(partial_ptr + at + 2 * step, tl.zeros((ROWS,), ACC) + n, mask=inside)


@jit
def moments_finish_kernel(
    partial_ptr,  # (3, splits, n_rows)
    mean_ptr,  # (n_rows,), or None
    var_ptr,  # (n_rows,), or None
    rstd_ptr,
    n_rows,
    splits,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    inside = rows < n_rows
    mask = inside[:, None] & (cols < splits)[None, :]
    at = partial_ptr + cols.to(tl.int64)[None, :] * n_rows + rows[:, None]
    step = tl.cast(splits, tl.int64) * n_rows
    means = tl.load(at, mask=mask, other=0.0)
    squares = tl.load(at + step, mask=mask, other=0.0)
    counts = tl.load(at + 2 * step, mask=mask, other=0.0)
    n = tl.sum(counts, 1)
    mean = tl.sum(means * counts, 1) / n
    off = means - mean[:, None]
    var = tl.sum(squares + off * off * counts, 1) / n
    if mean_ptr is not None:
        tl.store(mean_ptr + rows, mean, mask=inside)
    if var_ptr is not None:
        tl.store(var_ptr + rows, var, mask=inside)
    tl.store(rstd_ptr + rows, 1.0 / tl.sqrt(var + EPS), mask=inside)


def moments(
    x: DeviceArray,
    over: tuple[int, ...],
    mean: DeviceArray | None,
    var: DeviceArray | None,
    rstd: DeviceArray,
    *,
    eps: float,
    centred: bool = True,
) -> None:
    """Mean, (biased) variance and 1 / sqrt(variance + eps) of ``x`` over the axes ``over``; the
    mean square instead of the variance unless ``centred``. x has no size of 0."""
    plan, (x,) = layout(over, x)
    acc = accumulator(x.dtype)
    t = pieces(plan, acc, x.device)
    partial = x.device.empty((3, t.splits, plan.n_rows), acc)
    common: dict[str, Any] = {"ACC": acc_type(acc)}
    launch(
        moments_kernel,
        (cdiv(plan.n_rows, t.rows), t.splits),
        x,
        partial,
        plan.n_rows,
        plan.n_cols,
        t.chunk,
        *plan.row_sizes,
        *plan.col_sizes,
        *plan.row_strides[0],
        *plan.col_strides[0],
        CENTRED=centred,
        INT64=shapes.needs_int64(x),
        **tiled(plan, t.rows, t.cols),
        **common,
    )
    cols = next_power_of_2(t.splits)
    room = interpreted_block() if x.device.interpreted else 2048
    rows = min(next_power_of_2(plan.n_rows), max(1, room // cols))
    launch(
        moments_finish_kernel,
        (cdiv(plan.n_rows, rows),),
        partial,
        mean,
        var,
        rstd,
        plan.n_rows,
        t.splits,
        EPS=float(eps),
        ROWS=rows,
        COLS=cols,
        **common,
    )
