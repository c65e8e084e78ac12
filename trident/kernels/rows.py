"""What every row kernel shares: arrays seen as rows x columns, tiles, and vector accesses.

The launcher sorts the axes into kept ones (the rows) and reduced ones (the columns) and merges
neighbours that lie evenly in memory; up to three of each remain. A program owns a tile of
ROWS x COLS: tall where neighbouring rows are neighbours in memory (so that loads are coalesced when
a leading axis is reduced), otherwise wide.

Loads and stores are of 16 bytes where the compiler knows that so many elements lie side by side on
an aligned address, and are inside of the array together. It sees that of sizes and strides that
divide by 16. For the rest (1000 columns) ``tiled`` finds the power of two that divides them, and
``multiple`` tells the compiler.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import Device, DeviceArray
from .layout import copy


class Layout(NamedTuple):
    """How a kernel walks arrays of one shape as rows x columns (see ``layout``)."""

    n_rows: int
    n_cols: int
    row_sizes: tuple[int, int]  # sizes of the inner two of three row axes
    col_sizes: tuple[int, int]
    row_strides: tuple[tuple[int, int, int], ...]  # for each array
    col_strides: tuple[tuple[int, int, int], ...]
    wide: bool  # neighbouring columns of the first array are nearer in memory than rows


def collapse(sizes: shapes.Shape, *strides: shapes.Shape) -> list[tuple[int, ...]]:
    """(size, stride in each array) of the axes that remain after merging the mergeable ones."""
    if 0 in sizes:
        return [(0,) * (1 + len(strides))]
    merged: list[tuple[int, ...]] = []
    for size, *steps in zip(sizes, *strides):
        if size == 1:
            continue
        if merged and all(a == s * size for a, s in zip(merged[-1][1:], steps)):
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    return merged


@functools.lru_cache(maxsize=4096)
def _layout(
    shape: shapes.Shape, strides: tuple[shapes.Shape, ...], over: tuple[int, ...]
) -> Layout | None:
    parts = []
    nearest = []
    for axes in ([a for a in range(len(shape)) if a not in over], over):
        found = collapse(
            tuple(shape[a] for a in axes), *(tuple(st[a] for a in axes) for st in strides)
        )
        if len(found) > 3:
            return None
        nearest.append(min((abs(f[1]) for f in found if f[1]), default=2**62))
        absent = (1,) + (0,) * len(strides)
        found += [absent] * (3 - len(found))  # absent axes last: a size of 1 costs no division
        n = found[0][0] * found[1][0] * found[2][0]
        parts.append((n, (found[1][0], found[2][0]), tuple(zip(*(f[1:] for f in found)))))
    rows, cols = parts
    wide = nearest[1] <= nearest[0] or rows[0] == 1
    return Layout(rows[0], cols[0], rows[1], cols[1], rows[2], cols[2], wide)


def layout(
    over: tuple[int, ...], *arrays: DeviceArray, out: DeviceArray | None = None
) -> tuple[Layout, tuple[DeviceArray, ...]]:
    """Rows (the axes that are kept) and columns (``over``) of arrays that have one shape.

    Inputs with more than three unmergeable axes on a side are first copied into row order; ``out``,
    the last of the layout's arrays where it is given, is contiguous up to reversed axes.
    """
    last = () if out is None else (out.strides,)
    found = _layout(arrays[0].shape, (*(a.strides for a in arrays), *last), over)
    if found is None:
        arrays = tuple(packed(a, over) for a in arrays)
        found = _layout(arrays[0].shape, (*(a.strides for a in arrays), *last), over)
        assert found is not None
    return found, arrays


def packed(x: DeviceArray, over: tuple[int, ...]) -> DeviceArray:
    """A copy of ``x`` whose memory order is (kept axes, axes ``over``), seen in x's axis order."""
    order = [a for a in range(x.ndim) if a not in over] + list(over)
    target = x.device.empty(tuple(x.shape[a] for a in order), x.dtype)
    copy(target, x.transpose(tuple(order)))
    back = [0] * x.ndim
    for at, a in enumerate(order):
        back[a] = at
    return target.transpose(tuple(back))


def interpreted_block() -> int:
    """Tile elements under the interpreter, where a program costs the same however large its
    tile."""
    return config.interpret_block.get() or 1 << 15


def accumulator(d: DType) -> DType:
    """The dtype that values of ``d`` are accumulated in."""
    if d.is_floating_point:
        return d.compute
    return dtypes.int64 if d is dtypes.int64 else dtypes.int32


def acc_type(d: DType) -> object:
    """Triton's type of an accumulator dtype."""
    return getattr(tl, d.name)


def warps(elements: int, device: Device | None = None) -> int:
    """Warps for a tile: about 16 elements a thread. 32 warps, for rows beyond 16384, from sm_90 on:
    AMD's 64 lanes allow 16."""
    if elements > 16384 and device is not None and device.capability >= (9, 0):
        return 32
    return 4 if elements <= 2048 else 8 if elements <= 4096 else 16


def programs(device: Device) -> int:
    """How many programs fill the device: below this long rows are split, and kernels that keep a
    partial sum a program launch so many."""
    return max(2 * device.multiprocessors, 8)


def tiled(
    plan: Layout, rows: int, cols: int, *which: int, wide: bool | None = None
) -> dict[str, int]:
    """The constants of a tile ROWS x COLS: its sizes, and ROW_VEC and COL_VEC, how many neighbours
    along rows, or along columns, lie side by side in memory, begin at a multiple of themselves and
    are all inside or all outside of the arrays ``which`` of the plan (default: of all)."""
    wide = plan.wide if wide is None else wide
    steps, others = plan.row_strides, plan.col_strides
    sizes = (plan.n_rows, *plan.row_sizes)
    if wide:
        steps, others = others, steps
        sizes = (plan.n_cols, *plan.col_sizes)
    last = 2 if sizes[2] > 1 else 1 if sizes[1] > 1 else 0  # the innermost axis there is
    found = math.gcd(16, sizes[0], sizes[last], cols if wide else rows)
    for i in which or range(len(steps)):
        if steps[i][last] not in (0, 1):
            found = 1
        found = math.gcd(found, *others[i], *steps[i][:last])
    by = {"ROW_VEC": 1, "COL_VEC": found} if wide else {"ROW_VEC": found, "COL_VEC": 1}
    return {"ROWS": rows, "COLS": cols, **by}


@jit
def offset_of(i, n1, n2, s0, s1, s2):
    """Element offset of flat index i over axes of sizes (any, n1, n2) with strides s0, s1, s2."""
    rest = i // n2
    return (rest // n1) * s0 + (rest % n1) * s1 + (i % n2) * s2


@jit
def multiple(n, VEC: tl.constexpr):
    """``n``, which VEC divides, written so that the compiler sees it. It knows of 16 by itself."""
    if VEC > 1 and VEC < 16:
        n = n // VEC * VEC
    return n


@jit
def row_max(x):
    """Maximum along axis 1, NaN left out: tl.max treats NaN differently from device to device."""
    return tl.max(tl.where(x != x, float("-inf"), x), 1)


class Tile(NamedTuple):
    """Tile sizes, and how the columns are split over programs."""

    rows: int
    cols: int
    splits: int
    chunk: int


def tile(plan: Layout, elements: int, device: Device, split: bool = True) -> Tile:
    """The tile of ``elements`` for a reduction of ``plan``, and its splits."""
    cols_wanted = next_power_of_2(plan.n_cols)
    if plan.wide:
        cols = min(cols_wanted, elements)
        rows = min(next_power_of_2(plan.n_rows), max(1, elements // cols))
    else:
        rows = min(next_power_of_2(plan.n_rows), max(1, min(64, elements)))
        cols = min(cols_wanted, max(1, elements // rows))
    there = max(1, cdiv(plan.n_rows, rows))
    splits = 1
    if split and there < programs(device) and plan.n_cols > 4 * cols:
        splits = min(cdiv(plan.n_cols, 4 * cols), cdiv(2 * programs(device), there))
    chunk = max(1, cdiv(cdiv(plan.n_cols, splits), cols)) * cols
    return Tile(rows, cols, max(1, cdiv(plan.n_cols, chunk)), chunk)


SHORT = 256
"""Columns held by a tile of rows that are neighbours in memory."""


def whole(plan: Layout, acc: DType, device: Device, limit: int) -> tuple[int, int] | None:
    """(ROWS, COLS) of a tile that holds whole rows in registers; None where they are too long.
    ``limit`` is the longest row of 4-byte numbers."""
    cols = next_power_of_2(plan.n_cols)
    n_rows = next_power_of_2(plan.n_rows)
    if device.interpreted:
        room = interpreted_block()
        return (min(n_rows, max(1, room // cols)), cols) if cols <= room else None
    if cols > (limit * 4 // acc.itemsize if plan.wide else SHORT):
        return None
    # rows that are neighbours in memory: at least 16 of them make whole sectors
    return min(n_rows, max(1 if plan.wide else 16, 2048 // cols)), cols


def pieces(
    plan: Layout, acc: DType, device: Device, *, split: bool = True, nbytes: int = 8192
) -> Tile:
    """A tile of ``nbytes`` that does not hold whole rows, and how the columns are split."""
    elements = interpreted_block() if device.interpreted else nbytes // acc.itemsize
    return tile(plan, elements, device, split=split)


def over_splits(partial: DeviceArray) -> Layout:
    """The layout of partial results (splits, n_rows), whose columns are the splits."""
    plan, _ = layout((0,), partial)
    return plan
