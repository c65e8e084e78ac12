"""Writing at positions that are data: scatter, sums by index. Deterministic, without atomics.

Every write is a pair (destination, source position); the pairs are packed into int64 keys and
sorted (``kernels/sort.py``), so that equal destinations stand side by side in their original order.
Then ``add`` gives each run of equal destinations to one lane that sums it, a few rows at a time in
a fixed order, and ``assign`` lets the last pair of a run write. Long runs are cut at every ``RUN``
keys: the pieces are summed first, by ``heads_kernel``, and joined by the run's owner.
"""

from __future__ import annotations

import math

import numpy as np

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import wrong
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import Device, DeviceArray, launch
from ..shapes import Shape
from .index import check_indices, combine, wrap
from .layout import (
    MAX_AXES,
    block_index,
    block_size,
    collapse,
    copy,
    fill,
    offset_of,
    padded,
)
from .rows import multiple
from .sort import sort_keys

RUN = 128  # keys of one destination that are summed without a break
AHEAD = 4  # rows of a run that a lane asks for at once


@jit
def pack_kernel(
    index_ptr,  # (n0, n1, n2, n3, n4), any strides
    keys_ptr,  # (n,)
    n,
    size,
    step,  # of a destination along the indexed axis
    shift,
    n1,
    n2,
    n3,
    n4,
    is0,
    is1,
    is2,
    is3,
    is4,
    ds0,  # strides of the destination along the other axes
    ds1,
    ds2,
    ds3,
    ds4,
    AXES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, True)
    mask = i < n
    at = offset_of(i, n1, n2, n3, n4, is0, is1, is2, is3, is4, AXES)
    target = wrap(tl.load(index_ptr + at, mask=mask, other=0), size) * step
    target += offset_of(i, n1, n2, n3, n4, ds0, ds1, ds2, ds3, ds4, AXES)
    tl.store(keys_ptr + i, (target << shift) | i, mask=mask)


def _pairs(
    index: DeviceArray, size: int, step: int, base: Shape, n_targets: int
) -> tuple[DeviceArray, int]:
    """Sorted keys (destination << shift | position), one for each index, and the shift."""
    shift = index.size.bit_length()
    if shift + n_targets.bit_length() > 62:
        raise wrong("scatter", "destinations and positions must fit in 62 bits together")
    sizes, (ins, ds) = collapse(index.shape, index.strides, base)
    if len(sizes) > MAX_AXES:
        # fold the destinations into a contiguous index first: then one axis is left
        flat = index.device.empty(index.shape, dtypes.int64)
        copy(flat, index)
        places = np.zeros(index.shape, np.int64)
        for axis, stride in enumerate(base):
            line = np.arange(index.shape[axis]) * stride
            places += line.reshape((-1,) + (1,) * (index.ndim - axis - 1))
        offsets = index.device.from_host(places)
        rows = index.device.empty(index.shape, dtypes.int64)
        combine(rows, (flat, offsets), (size, n_targets), (step, 1))
        return _pairs(rows.reshape((index.size,)), n_targets, 1, (0,), n_targets)
    keys = index.device.empty((1, index.size), dtypes.int64)
    block = block_size(index.size, index.device)
    launch(
        pack_kernel, (cdiv(index.size, block),), index, keys, index.size, size, step, shift,
        *padded(sizes, ins, ds), AXES=len(sizes), BLOCK=block, num_warps=4,
    )  # fmt: skip
    return sort_keys(keys).reshape((index.size,)), shift


@jit
def run_sum(
    keys_ptr,
    source_ptr,
    j,
    active,
    m,
    shift,
    run,
    columns,
    column_mask,
    row_step,
    ACC: tl.constexpr,
):
    """Sum the rows of ``source`` from key ``j`` on while the destination stays the same, up to the
    next multiple of ``run``, AHEAD rows at a time. ``active`` (J,) marks the lanes; returns
    (J, columns)."""
    target = tl.load(keys_ptr + j, mask=active, other=0) >> shift
    total = tl.zeros((j.shape[0], columns.shape[0]), ACC)
    stop = tl.minimum((j // run + 1) * run, m)[:, None]
    ahead = tl.arange(0, AHEAD)[None, :]
    while tl.max(active.to(tl.int32), 0) > 0:
        place = j[:, None] + ahead
        there = active[:, None] & (place < stop)
        key = tl.load(keys_ptr + place, mask=there, other=0)
        there = there & (key >> shift == target[:, None])
        row = key & ((tl.zeros_like(key) + 1 << shift) - 1)
        at = (row * row_step)[:, :, None] + columns[None, None, :]
        mask = there[:, :, None] & column_mask[None, None, :]
        total += tl.sum(tl.load(source_ptr + at, mask=mask, other=0).to(ACC), 1)
        j += AHEAD
        active = tl.min(there.to(tl.int32), 1) != 0
    return total


@jit
def heads_kernel(
    keys_ptr,  # (m,)
    source_ptr,  # (outer, m, inner)
    heads_ptr,  # (pieces, n_cols): the sum of the piece's first destination, if it began before
    m,
    shift,
    run,
    n_cols,
    inner,
    n_pieces,
    VEC: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
    n_cols = multiple(n_cols, VEC)
    inner = multiple(inner, VEC)
    piece = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLS + tl.arange(0, COLS)
    column_mask = column < n_cols
    j = piece * run
    active = (piece > 0) & (j < m)
    target = tl.load(keys_ptr + j, mask=active, other=0) >> shift
    active = active & (tl.load(keys_ptr + j - 1, mask=active, other=0) >> shift == target)
    at = column // inner * inner * m + column % inner
    total = run_sum(keys_ptr, source_ptr, j, active, m, shift, run, at, column_mask, inner, ACC)
    mask = (piece < n_pieces)[:, None] & column_mask[None, :]
    tl.store(heads_ptr + piece[:, None] * n_cols + column[None, :], total, mask=mask)


@jit
def add_kernel(
    keys_ptr,  # (m,)
    source_ptr,  # (outer, m, inner)
    heads_ptr,  # (pieces, n_cols), or None where no run can be longer than a piece
    out_ptr,  # (outer, n_targets, inner), added to
    m,
    shift,
    run,
    n_cols,
    inner,
    out_outer_stride,
    VEC: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
    n_cols = multiple(n_cols, VEC)
    inner = multiple(inner, VEC)
    j = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLS + tl.arange(0, COLS)
    column_mask = column < n_cols
    target = tl.load(keys_ptr + j, mask=j < m, other=0) >> shift
    before = tl.load(keys_ptr + j - 1, mask=(j < m) & (j > 0), other=-1) >> shift
    owner = (j < m) & ((j == 0) | (before != target))
    at = column // inner * inner * m + column % inner
    total = run_sum(keys_ptr, source_ptr, j, owner, m, shift, run, at, column_mask, inner, ACC)
    if heads_ptr is not None:
        piece = j // run + 1
        active = owner & (piece * run < m)
        active = active & (tl.load(keys_ptr + piece * run, mask=active, other=0) >> shift == target)
        while tl.max(active.to(tl.int32), 0) > 0:
            mask = active[:, None] & column_mask[None, :]
            head = piece[:, None] * n_cols + column[None, :]
            total += tl.load(heads_ptr + head, mask=mask, other=0)
            piece += 1
            active = active & (piece * run < m)
            key = tl.load(keys_ptr + piece * run, mask=active, other=0)
            active = active & (key >> shift == target)
    to = column // inner * out_outer_stride + column % inner
    to_ptr = out_ptr + target[:, None] * inner + to[None, :]
    mask = owner[:, None] & column_mask[None, :]
    total += tl.load(to_ptr, mask=mask, other=0).to(ACC)
    tl.store(to_ptr, total.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def assign_kernel(
    keys_ptr,  # (m,)
    source_ptr,  # (outer, m, inner)
    out_ptr,  # (outer, n_targets, inner)
    m,
    shift,
    n_cols,
    inner,
    out_outer_stride,
    VEC: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
):
    n_cols = multiple(n_cols, VEC)
    inner = multiple(inner, VEC)
    j = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLS + tl.arange(0, COLS)
    key = tl.load(keys_ptr + j, mask=j < m, other=0)
    after = tl.load(keys_ptr + j + 1, mask=j + 1 < m, other=-1)
    last = (j < m) & (after >> shift != key >> shift)  # no key is negative, so -1 ends the last run
    mask = last[:, None] & (column < n_cols)[None, :]
    row = key & ((tl.zeros_like(key) + 1 << shift) - 1)
    at = row[:, None] * inner + (column // inner * inner * m + column % inner)[None, :]
    to = (key >> shift)[:, None] * inner + (column // inner * out_outer_stride + column % inner)[
        None, :
    ]
    tl.store(out_ptr + to, tl.load(source_ptr + at, mask=mask), mask=mask)


@jit
def winners_kernel(
    keys_ptr,  # (m,)
    out_ptr,  # (m,)
    m,
    shift,
    BLOCK: tl.constexpr,
):
    j = block_index(BLOCK, True)
    key = tl.load(keys_ptr + j, mask=j < m, other=0)
    after = tl.load(keys_ptr + j + 1, mask=j + 1 < m, other=-1)
    row = key & ((tl.zeros_like(key) + 1 << shift) - 1)
    tl.store(out_ptr + row, (after >> shift != key >> shift).to(tl.uint8), mask=j < m)


def _tile(device: Device, n_cols: int, inner: int, m: int, itemsize: int) -> dict[str, int]:
    """The constants of a program that writes ``m`` runs of ``n_cols`` columns: 16 bytes a lane."""
    room = block_size(1 << 14, device, 2048 // itemsize)
    cols = min(next_power_of_2(n_cols), room)
    rows = min(max(room // cols, 1), block_size(1 << 14, device, 128), next_power_of_2(m))
    return {"ROWS": rows, "COLS": cols, "VEC": math.gcd(16, inner, cols)}


def accumulator(d: DType) -> DType:
    """The dtype in which values of ``d`` are summed."""
    if d is dtypes.float64:
        return d
    return dtypes.float32 if d.kind == "float" else dtypes.int64


def _write(
    out: DeviceArray, keys: DeviceArray, shift: int, source: DeviceArray, n_cols: int, inner: int,
    outer_stride: int, add: bool,
) -> None:  # fmt: skip
    m = keys.size
    tile = _tile(out.device, n_cols, inner, m, out.dtype.itemsize)
    rows = tile["ROWS"]
    grid = (cdiv(m, rows), cdiv(n_cols, tile["COLS"]))
    if not add:
        launch(
            assign_kernel, grid, keys, source, out, m, shift, n_cols, inner, outer_stride,
            **tile, num_warps=4,
        )  # fmt: skip
        return
    acc = accumulator(out.dtype)
    tl_acc = getattr(tl, acc.name)
    heads = None
    run = block_size(RUN, out.device, RUN)  # as short as the blocks where a test makes these short
    if m > run:
        n_pieces = cdiv(m, run)
        heads = out.device.empty((n_pieces, n_cols), acc)
        launch(
            heads_kernel, (cdiv(n_pieces, rows), grid[1]), keys, source, heads, m, shift, run,
            n_cols, inner, n_pieces, **tile, ACC=tl_acc, num_warps=4,
        )  # fmt: skip
    launch(
        add_kernel, grid, keys, source, heads, out, m, shift, run, n_cols, inner, outer_stride,
        **tile, ACC=tl_acc, num_warps=4,
    )  # fmt: skip


def _same_dtype(source: DeviceArray, d: DType) -> DeviceArray:
    if source.dtype is d and source.is_contiguous():
        return source
    out = source.device.empty(source.shape, d)
    copy(out, source)
    return out


def _start(out: DeviceArray, x: DeviceArray | None) -> None:
    if out.size:
        if x is None:
            fill(out, 0)
        else:
            copy(out, x)


def scatter(
    out: DeviceArray, x: DeviceArray | None, index: DeviceArray, source: DeviceArray, *, dim: int,
    add: bool, op: str,
) -> None:  # fmt: skip
    """``out = x`` (or zeros) with ``source`` written (the last wins) or added at ``index``.

    ``index`` is at most as large as out in the other axes, ``source`` at least as large as index.
    """
    size = out.shape[dim] if out.ndim else 1
    check_indices(op, index, size, dim)
    _start(out, x)
    if index.size == 0:
        return
    window = tuple(slice(0, n) for n in index.shape)
    source = _same_dtype(source[window] if index.ndim else source, out.dtype)
    keys, shift = _targets(out, index, dim, size)
    _write(out, keys, shift, source, 1, 1, 0, add)


def _targets(out: DeviceArray, index: DeviceArray, dim: int, size: int) -> tuple[DeviceArray, int]:
    strides = shapes.contiguous_strides(out.shape)
    step = strides[dim] if out.ndim else 0
    base = tuple(0 if a == dim else s for a, s in enumerate(strides))
    return _pairs(index, size, step, base, out.size)


def scatter_winners(out: DeviceArray, index: DeviceArray, *, dim: int, shape: Shape) -> None:
    """Which elements of ``index`` are the last to name their place in an array of ``shape``."""
    if index.size == 0:
        return
    target = index.as_strided(shape, shapes.contiguous_strides(shape))
    keys, shift = _targets(target, index, dim, shape[dim] if shape else 1)
    _winners(out, keys, shift)


def _winners(out: DeviceArray, keys: DeviceArray, shift: int) -> None:
    block = block_size(keys.size, out.device)
    launch(
        winners_kernel, (cdiv(keys.size, block),), keys, out, keys.size, shift, BLOCK=block,
        num_warps=4,
    )  # fmt: skip


def index_write(
    out: DeviceArray, x: DeviceArray | None, index: DeviceArray, source: DeviceArray, *, dim: int,
    add: bool, op: str,
) -> None:  # fmt: skip
    """``out = x`` (or zeros) with slices of ``source`` written or added at ``index`` along ``dim``.

    x (outer, size, inner) and out alike, index (m,), source (outer, m, inner), each with any number
    of axes before and behind ``dim``.
    """
    size = out.shape[dim]
    check_indices(op, index, size, dim)
    _start(out, x)
    if source.size == 0:
        return
    source = _same_dtype(source, out.dtype)
    inner = shapes.numel(out.shape[dim + 1 :])
    keys, shift = _pairs(index, size, 1, (0,), size)
    _write(out, keys, shift, source, source.size // index.size, inner, inner * size, add)
