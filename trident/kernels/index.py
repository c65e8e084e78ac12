"""Reading and writing at positions that are data: gather, scatter, sums by index, nonzero.

Writes are deterministic and use no atomics. Every write is a pair (destination, source position);
the pairs are packed into int64 keys and sorted (``kernels/sort.py``), so that equal destinations
stand side by side in their original order. Then ``add`` gives each run of equal destinations to one
lane that sums it in order, and ``assign`` lets the last pair of a run write. Long runs are cut at
every ``RUN`` keys: the pieces are summed first, by ``heads_kernel``, and joined by the run's owner.

Indices are checked before use: ``check_indices`` names the first one that is out of range.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import IndexBoundsError, wrong
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import Device, DeviceArray, launch
from ..shapes import Shape
from .layout import (
    MAX_AXES,
    block_index,
    block_size,
    collapse,
    contiguous,
    copy,
    fill,
    offset_of,
    padded,
)
from .sort import sort_keys

CHECKERS = 256  # programs that look for a bad index; each reports one number
RUN = 128  # keys of one destination that are summed without a break


def out_of_range(op: str, index: int, size: int, axis: int | None) -> Exception:
    """The error for an index that lies outside of an axis."""
    where = f"axis {axis} of size {size}" if axis is not None else f"the {size} elements"
    return wrong(op, f"index {index} is out of range for {where}", error=IndexBoundsError)


@jit
def check_kernel(
    index_ptr,  # (n0, n1, n2, n3, n4), any strides
    bad_ptr,  # (programs,): 1 + where the program's first bad index stands, or 0
    n,
    size,
    n1,
    n2,
    n3,
    n4,
    is0,
    is1,
    is2,
    is3,
    is4,
    AXES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    first = tl.full((BLOCK,), 9223372036854775807, tl.int64)
    for base in range(0, n, tl.num_programs(0) * BLOCK):
        i = base + start + tl.arange(0, BLOCK)
        at = offset_of(i, n1, n2, n3, n4, is0, is1, is2, is3, is4, AXES)
        index = tl.load(index_ptr + at, mask=i < n, other=0).to(tl.int64)
        bad = (index >= size) | (index < -size)
        first = tl.where((i < n) & bad & (i < first), i, first)
    found = tl.min(first, 0)
    tl.store(bad_ptr + tl.program_id(0), tl.where(found < n, found + 1, 0))


def check_indices(op: str, index: DeviceArray, size: int, axis: int | None) -> None:
    """Raise IndexBoundsError unless ``index`` lies in [-size, size). Waits for the device."""
    n = index.size
    if n == 0:
        return
    sizes, (steps,) = collapse(index.shape, index.strides)
    if len(sizes) > MAX_AXES:
        index = contiguous(index)
        sizes, steps = (n,), (1,)
    block = block_size(n, index.device)
    programs = min(cdiv(n, block), CHECKERS)
    bad = index.device.empty((programs,), dtypes.int64)
    launch(
        check_kernel, (programs,), index, bad, n, size, *padded(sizes, steps), AXES=len(sizes),
        BLOCK=block, num_warps=4,
    )  # fmt: skip
    found = bad.numpy()
    if found.any():
        place = int(found[found > 0].min()) - 1
        raise out_of_range(op, int(index.numpy().reshape(-1)[place]), size, axis)


@jit
def wrap(index, size):
    """Indices as int64, with negative ones counted from the end."""
    index = index.to(tl.int64)
    return tl.where(index < 0, index + size, index)


@jit
def gather_kernel(
    x_ptr,
    index_ptr,  # the shape of out, any strides
    out_ptr,  # (n0, n1, n2, n3, n4), contiguous
    n,
    size,
    x_step,  # stride of x along the indexed axis
    n1,
    n2,
    n3,
    n4,
    xs0,  # strides of x along the other axes, 0 for the indexed one
    xs1,
    xs2,
    xs3,
    xs4,
    is0,
    is1,
    is2,
    is3,
    is4,
    AXES: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, INT64)
    mask = i < n
    at = offset_of(i, n1, n2, n3, n4, is0, is1, is2, is3, is4, AXES)
    index = wrap(tl.load(index_ptr + at, mask=mask, other=0), size)
    base = offset_of(i, n1, n2, n3, n4, xs0, xs1, xs2, xs3, xs4, AXES)
    tl.store(out_ptr + i, tl.load(x_ptr + (base + index * x_step), mask=mask), mask=mask)


def _gather(
    out: DeviceArray, x: DeviceArray, base: Shape, step: int, index: DeviceArray, size: int
) -> None:
    """``out[p] = x at offset p . base + index[p] step``, where ``base`` strides x by out's axes."""
    if out.size == 0:
        return
    lead = out.shape[: max(out.ndim - 1, 0)]
    sizes, (xs, ins) = collapse(out.shape, base, index.strides)
    if len(sizes) > MAX_AXES:  # more axes than a kernel walks: one launch for each leading position
        for at in np.ndindex(*lead[:1]):
            start = sum(i * s for i, s in zip(at, base))
            part = x.as_strided(x.shape, x.strides, start)
            _gather(out[at], part, base[1:], step, index[at], size)
        return
    block = block_size(out.size, out.device)
    launch(
        gather_kernel, (cdiv(out.size, block),), x, index, out, out.size, size, step,
        *padded(sizes, xs, ins), AXES=len(sizes),
        INT64=shapes.needs_int64(out, x, index), BLOCK=block, num_warps=4,
    )  # fmt: skip


def gather(out: DeviceArray, x: DeviceArray, index: DeviceArray, *, dim: int, op: str) -> None:
    """``out[i][j][k] = x[index[i][j][k]][j][k]`` for dim 0; ``index`` has out's shape."""
    size = x.shape[dim] if x.ndim else 1
    check_indices(op, index, size, dim)
    step = x.strides[dim] if x.ndim else 0
    base = tuple(0 if a == dim else s for a, s in enumerate(x.strides))
    _gather(out, x, base, step, index, size)


def index_select(
    out: DeviceArray, x: DeviceArray, index: DeviceArray, *, dim: int, op: str
) -> None:
    """The slices of ``x`` along ``dim`` that ``index`` (m,) names, in the m slices of ``out``."""
    check_indices(op, index, x.shape[dim], dim)
    steps = tuple(index.strides[0] if a == dim else 0 for a in range(x.ndim))
    base = tuple(0 if a == dim else s for a, s in enumerate(x.strides))
    spread = index.as_strided(out.shape, steps)
    _gather(out, x, base, x.strides[dim], spread, x.shape[dim])


@jit
def combine_kernel(
    index_ptr,  # (n0, n1, n2, n3, n4), any strides
    out_ptr,  # the same shape, contiguous
    n,
    size,
    weight,
    n1,
    n2,
    n3,
    n4,
    is0,
    is1,
    is2,
    is3,
    is4,
    FIRST: tl.constexpr,
    AXES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, True)
    mask = i < n
    at = offset_of(i, n1, n2, n3, n4, is0, is1, is2, is3, is4, AXES)
    place = wrap(tl.load(index_ptr + at, mask=mask, other=0), size) * weight
    if not FIRST:
        place += tl.load(out_ptr + i, mask=mask, other=0)
    tl.store(out_ptr + i, place, mask=mask)


def ravel_index(out: DeviceArray, *indices: DeviceArray, sizes: Shape) -> None:
    """``out = (i0 * sizes[1] + i1) * sizes[2] + ...`` of indices that broadcast, checked here."""
    for axis, (index, size) in enumerate(zip(indices, sizes)):
        check_indices("getitem", index, size, axis)
    _combine(out, indices, sizes, shapes.contiguous_strides(sizes))


def _combine(
    out: DeviceArray, indices: Sequence[DeviceArray], sizes: Shape, weights: Shape
) -> None:
    for axis, (index, size, weight) in enumerate(zip(indices, sizes, weights)):
        spread = index.broadcast_to(out.shape)
        walk, (steps, _) = collapse(out.shape, spread.strides, out.strides)
        if len(walk) > MAX_AXES:
            spread = contiguous(spread)
            walk, steps = (out.size,), (1,)
        block = block_size(out.size, out.device)
        launch(
            combine_kernel, (cdiv(out.size, block),), spread, out, out.size, size, weight,
            *padded(walk, steps), FIRST=axis == 0, AXES=len(walk), BLOCK=block, num_warps=4,
        )  # fmt: skip


# -- writes ------------------------------------------------------------------------------------


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
        _combine(rows, (flat, offsets), (size, n_targets), (step, 1))
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
    next multiple of ``run``. ``active`` (J,) marks the lanes; returns (J, columns)."""
    target = tl.load(keys_ptr + j, mask=active, other=0) >> shift
    total = tl.zeros((j.shape[0], columns.shape[0]), ACC)
    position_mask = (tl.zeros_like(j) + 1 << shift) - 1
    while tl.max(active.to(tl.int32), 0) > 0:
        row = tl.load(keys_ptr + j, mask=active, other=0) & position_mask
        at = row[:, None] * row_step + columns[None, :]
        mask = active[:, None] & column_mask[None, :]
        total += tl.load(source_ptr + at, mask=mask, other=0).to(ACC)
        j += 1
        active = active & (j < m) & (j % run != 0)
        active = active & (tl.load(keys_ptr + j, mask=active, other=0) >> shift == target)
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
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
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
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    ACC: tl.constexpr,
):
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
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
):
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


def _tile(device: Device, n_cols: int, m: int) -> tuple[int, int]:
    """(ROWS, COLS) of a program that writes ``m`` runs of ``n_cols`` columns."""
    room = 16384 if device.interpreted else 256
    cols = min(next_power_of_2(n_cols), room)
    return min(max(room // cols, 1), next_power_of_2(m)), cols


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
    rows, cols = _tile(out.device, n_cols, m)
    grid = (cdiv(m, rows), cdiv(n_cols, cols))
    if not add:
        launch(
            assign_kernel, grid, keys, source, out, m, shift, n_cols, inner, outer_stride,
            COLS=cols, ROWS=rows, num_warps=4,
        )  # fmt: skip
        return
    acc = accumulator(out.dtype)
    tl_acc = getattr(tl, acc.name)
    heads = None
    if m > RUN:
        n_pieces = cdiv(m, RUN)
        heads = out.device.empty((n_pieces, n_cols), acc)
        launch(
            heads_kernel, (cdiv(n_pieces, rows), grid[1]), keys, source, heads, m, shift, RUN,
            n_cols, inner, n_pieces, COLS=cols, ROWS=rows, ACC=tl_acc, num_warps=4,
        )  # fmt: skip
    launch(
        add_kernel, grid, keys, source, heads, out, m, shift, RUN, n_cols, inner, outer_stride,
        COLS=cols, ROWS=rows, ACC=tl_acc, num_warps=4,
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


# -- nonzero, one-hot ---------------------------------------------------------------------------


@jit
def count_kernel(
    x_ptr,  # (n,)
    counts_ptr,  # (programs,)
    n,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, True)
    there = tl.load(x_ptr + i, mask=i < n, other=0) != 0
    tl.store(counts_ptr + tl.program_id(0), tl.sum(there.to(tl.int64), 0))


@jit
def nonzero_kernel(
    x_ptr,  # (n,)
    starts_ptr,  # (programs,)
    out_ptr,  # (count,)
    n,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, True)
    there = tl.load(x_ptr + i, mask=i < n, other=0) != 0
    rank = tl.cumsum(there.to(tl.int32), 0).to(tl.int64) - 1
    tl.store(out_ptr + tl.load(starts_ptr + tl.program_id(0)) + rank, i, mask=there)


@jit
def coordinates_kernel(
    flat_ptr,  # (count,)
    out_ptr,  # (count, ndim), this axis
    n,
    step,
    size,
    ndim,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, True)
    flat = tl.load(flat_ptr + i, mask=i < n, other=0)
    tl.store(out_ptr + i * ndim, flat // step % size, mask=i < n)


def count_nonzero(x: DeviceArray) -> int:
    """How many elements are not zero. Waits for the device."""
    return int(_counts(contiguous(x))[0].sum()) if x.size else 0


def _counts(x: DeviceArray) -> tuple[np.ndarray, int]:
    block = block_size(x.size, x.device)
    counts = x.device.empty((cdiv(x.size, block),), dtypes.int64)
    launch(count_kernel, counts.shape, x, counts, x.size, BLOCK=block, num_warps=4)
    return counts.numpy(), block


def nonzero(out: DeviceArray, x: DeviceArray) -> None:
    """The coordinates (count, ndim) of the elements that are not zero, in memory order."""
    if out.size == 0:
        return
    x = contiguous(x)
    counts, block = _counts(x)
    starts = x.device.from_host(np.cumsum(counts) - counts)
    flat = x.device.empty(out.shape[:1], dtypes.int64)
    launch(nonzero_kernel, starts.shape, x, starts, flat, x.size, BLOCK=block, num_warps=4)
    for axis, (size, step) in enumerate(zip(x.shape, shapes.contiguous_strides(x.shape))):
        column = out.as_strided(out.shape, out.strides, axis)
        launch(
            coordinates_kernel, (cdiv(flat.size, block),), flat, column, flat.size, step, size,
            x.ndim, BLOCK=block, num_warps=4,
        )  # fmt: skip


@jit
def one_hot_kernel(
    index_ptr,  # (n // classes,)
    out_ptr,  # (n // classes, classes)
    n,
    classes,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, True)
    index = tl.load(index_ptr + i // classes, mask=i < n, other=-1).to(tl.int64)
    tl.store(out_ptr + i, (index == i % classes).to(out_ptr.dtype.element_ty), mask=i < n)


def one_hot(out: DeviceArray, index: DeviceArray) -> None:
    """1 where the last axis of ``out`` (..., classes) equals ``index`` (...), else 0."""
    if out.size == 0:
        return
    block = block_size(out.size, out.device)
    launch(
        one_hot_kernel, (cdiv(out.size, block),), contiguous(index), out, out.size, out.shape[-1],
        BLOCK=block, num_warps=4,
    )  # fmt: skip
