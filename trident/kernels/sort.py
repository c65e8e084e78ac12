"""Sorting along rows, with positions; the same order on every device and in every run.

Everything is reduced to sorting unique int64 keys: 32 bits that order like the values, above the
position in the row. So every sort is stable, and the positions come with it. 64-bit values take two
rounds: by their low halves, then (stably) by their high halves.

Keys are sorted by tiles in registers (``bitonic``), then runs are merged two by two: an
element's place in the merged run is its place in its own run plus the number of smaller keys in the
other one, found by bisection. That takes log2(n / tile) launches with no idle lanes and no atomics.
``topk`` keeps the first k of each tile and so shrinks the rows instead of merging them.

NaN is the largest value, as in torch: last when ascending, first when descending.
"""

from __future__ import annotations

from .. import dtypes
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .layout import block_size, contiguous, copy

TILE = 1024
LAST = 2**63 - 1  # above every key


@jit
def order_bits(x):
    """Integers (int32, or int64 for 64-bit values) that compare as the values do; NaN on top."""
    if x.dtype == tl.float64:
        bits = (x + 0.0).to(tl.int64, bitcast=True)  # -0.0 + 0.0 is 0.0: the zeros are equal
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)
        bits = tl.where(x != x, 0x7FFFFFFFFFFFFFFF, bits)
    elif x.dtype.is_floating():
        x = x.to(tl.float32)
        bits = (x + 0.0).to(tl.int32, bitcast=True)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        bits = tl.where(x != x, 0x7FFFFFFF, bits)
    elif x.dtype == tl.int64:
        bits = x
    else:
        bits = x.to(tl.int32)
    return bits


@jit
def pack_kernel(
    x_ptr,  # (rows, n)
    before_ptr,  # (rows, n) keys sorted by the low halves, or None in the first round
    keys_ptr,  # (rows, n)
    total,
    n,
    DESCENDING: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    at = i
    if before_ptr is not None:
        at = i - i % n + (tl.load(before_ptr + i, mask=mask, other=0) & 0xFFFFFFFF)
    bits = order_bits(tl.load(x_ptr + at, mask=mask, other=0))
    if DESCENDING:
        bits = ~bits
    if bits.dtype == tl.int64:
        if LOW:  # moved to the signed range, where it orders as unsigned
            bits = (bits & 0xFFFFFFFF) - 0x80000000
        else:
            bits = bits >> 32
    tl.store(keys_ptr + i, (bits.to(tl.int64) << 32) | i % n, mask=mask)


@jit
def exchange(keys, ROWS: tl.constexpr, TILE: tl.constexpr, STAGE: tl.constexpr, BIT: tl.constexpr):
    """Order the pairs whose places differ in BIT: upwards, or downwards where bit STAGE is set."""
    PAIRS: tl.constexpr = 1 << BIT
    GROUPS: tl.constexpr = ROWS * TILE // (2 * PAIRS)
    pairs = tl.permute(tl.reshape(keys, (GROUPS, 2, PAIRS)), (0, 2, 1))
    a, b = tl.split(pairs)
    swap = a > b
    if TILE > 1 << STAGE:
        down = tl.arange(0, GROUPS)[:, None] >> (STAGE - BIT - 1) & 1
        swap = swap ^ (down == 1)
    pairs = tl.join(tl.where(swap, b, a), tl.where(swap, a, b))
    return tl.reshape(tl.permute(pairs, (0, 2, 1)), (ROWS, TILE))


@jit
def bitonic(keys, ROWS: tl.constexpr, TILE: tl.constexpr, LOG: tl.constexpr):
    """(ROWS, TILE = 2**LOG) keys with each row ascending.

    After stage s, blocks of 2**s keys are sorted, upwards and downwards in turn.
    Source: Batcher, "Sorting networks and their applications", 1968.
    """
    for stage in tl.static_range(1, LOG + 1):
        for step in tl.static_range(stage):
            keys = exchange(keys, ROWS, TILE, stage, stage - 1 - step)
    return keys


@jit
def sort_tiles_kernel(
    keys_ptr,  # (rows, n)
    out_ptr,  # (rows, n_tiles keep)
    n_rows,
    n,
    n_tiles,
    keep,
    n_out,  # valid columns of out; beyond lies nothing
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    LOG: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    tile = pid % n_tiles
    rows = (pid // n_tiles * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, TILE)[None, :]
    source = tile * TILE + column
    keys = tl.load(keys_ptr + rows * n + source, mask=(rows < n_rows) & (source < n), other=LAST)
    keys = bitonic(keys, ROWS, TILE, LOG)
    target = tile * keep + column
    mask = (rows < n_rows) & (column < keep) & (target < n_out)
    tl.store(out_ptr + rows * n_out + target, keys, mask=mask)


@jit
def merge_kernel(
    keys_ptr,  # (rows, n), runs of ``run`` sorted keys
    out_ptr,  # (rows, n), runs of 2 run
    total,
    n,
    run,
    steps,  # of bisection: the bit length of run
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    place = i % n
    row = i - place
    key = tl.load(keys_ptr + i, mask=mask, other=0)
    own = place // run
    first = (own ^ 1) * run  # where the other run starts; it may lie beyond the row's end
    low = tl.minimum(first, n)
    high = tl.minimum(first + run, n)
    start = low
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = (low < high) & mask
        less = tl.load(keys_ptr + row + middle, mask=open_, other=0) < key
        low = tl.where(open_ & less, middle + 1, low)
        high = tl.where(open_ & (less == 0), middle, high)
    smaller = low - start
    base = (own // 2) * 2 * run
    tl.store(out_ptr + row + base + (place - own * run) + smaller, key, mask=mask)


@jit
def unpack_kernel(
    keys_ptr,  # (rows, n_keys)
    before_ptr,  # (rows, n) keys of the first round of a 64-bit sort, or None
    x_ptr,  # (rows, n)
    values_ptr,  # (rows, k) or None
    indices_ptr,  # (rows, k)
    total,
    k,
    n,
    n_keys,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    row = i // k
    place = tl.load(keys_ptr + row * n_keys + i % k, mask=mask, other=0) & 0xFFFFFFFF
    if before_ptr is not None:
        place = tl.load(before_ptr + row * n + place, mask=mask, other=0) & 0xFFFFFFFF
    tl.store(indices_ptr + i, place, mask=mask)
    if values_ptr is not None:
        tl.store(values_ptr + i, tl.load(x_ptr + row * n + place, mask=mask), mask=mask)


def _tiles(keys: DeviceArray, keep: int) -> tuple[DeviceArray, int]:
    """Sort tiles of the rows and keep the first ``keep`` keys of each; also the size of a tile."""
    n_rows, n = keys.shape
    tile = min(max(next_power_of_2(n), 2), TILE)
    keep = min(keep, tile)
    n_tiles = cdiv(n, tile)
    n_out = (n_tiles - 1) * keep + min(keep, n - (n_tiles - 1) * tile)
    rows = 1
    if n_tiles == 1:  # several short rows a program
        room = 32768 if keys.device.interpreted else TILE
        rows = min(max(room // tile, 1), next_power_of_2(n_rows))
    out = keys.device.empty((n_rows, n_out), dtypes.int64)
    launch(
        sort_tiles_kernel, (cdiv(n_rows, rows) * n_tiles,), keys, out, n_rows, n, n_tiles, keep,
        n_out, ROWS=rows, TILE=tile, LOG=tile.bit_length() - 1, num_warps=4,
    )  # fmt: skip
    return out, tile


def sort_keys(keys: DeviceArray, keep: int | None = None) -> DeviceArray:
    """Unique int64 keys (rows, n), each row sorted; at least the first ``keep`` are, if given."""
    n = keys.shape[1]
    if keep is not None:
        while 0 < keep * 2 <= min(n, TILE):
            keys, tile = _tiles(keys, keep)
            if n <= tile:
                return keys
            n = keys.shape[1]
    run_keys, run = _tiles(keys, n)
    spare = keys.device.empty(keys.shape, dtypes.int64) if run < n else run_keys
    block = block_size(run_keys.size, keys.device, 256)
    while run < n:
        launch(
            merge_kernel, (cdiv(run_keys.size, block),), run_keys, spare, run_keys.size, n, run,
            run.bit_length(), BLOCK=block, num_warps=4,
        )  # fmt: skip
        run_keys, spare = spare, run_keys
        run *= 2
    return run_keys


def _order(
    x: DeviceArray, descending: bool, keep: int | None
) -> tuple[DeviceArray, DeviceArray | None]:
    """The sorted keys of contiguous ``x`` (rows, n), and those of a first round, if it took two."""
    keys = x.device.empty(x.shape, dtypes.int64)
    block = block_size(x.size, x.device)
    before = None
    if x.dtype.itemsize == 8:
        _pack(keys, x, None, descending, True, block)
        before = sort_keys(keys)
        keys = x.device.empty(x.shape, dtypes.int64)
    _pack(keys, x, before, descending, False, block)
    return sort_keys(keys, keep), before


def _pack(
    keys: DeviceArray,
    x: DeviceArray,
    before: DeviceArray | None,
    descending: bool,
    low: bool,
    block: int,
) -> None:
    launch(
        pack_kernel, (cdiv(x.size, block),), x, before, keys, x.size, x.shape[1],
        DESCENDING=descending, LOW=low, BLOCK=block, num_warps=4,
    )  # fmt: skip


def sort(
    values: DeviceArray | None,
    indices: DeviceArray,
    x: DeviceArray,
    *,
    dim: int,
    descending: bool,
) -> None:
    """The first elements along ``dim`` of ``x`` in order, and their positions (int64).

    How many: the size of ``indices`` along ``dim``. ``values`` may be None. Outputs are contiguous.
    """
    if indices.size == 0:
        return
    axes = (*(a for a in range(x.ndim) if a != dim), dim)
    back = tuple(axes.index(a) for a in range(x.ndim))
    n, k = (x.shape[dim], indices.shape[dim]) if x.ndim else (1, 1)
    if x.ndim:
        x = x.transpose(axes)
    lines = contiguous(x).reshape((x.size // n, n))
    keys, before = _order(lines, descending, k if k < n else None)
    last = not x.ndim or dim == x.ndim - 1
    device = x.device
    shape = (lines.shape[0], k)
    moved = tuple(indices.shape[a] for a in axes) if x.ndim else ()
    targets = [
        None if t is None else t.reshape(shape) if last else device.empty(shape, t.dtype)
        for t in (values, indices)
    ]
    total = lines.shape[0] * k
    block = block_size(total, device)
    launch(
        unpack_kernel, (cdiv(total, block),), keys, before, lines, *targets, total, k, n,
        keys.shape[1], BLOCK=block, num_warps=4,
    )  # fmt: skip
    if not last:
        for out, line in zip((values, indices), targets):
            if out is not None and line is not None:
                copy(out, line.reshape(moved).transpose(back))


def positions(out: DeviceArray, keys: DeviceArray) -> None:
    """``out`` (n,): the low 32 bits of ``keys`` (n,), in the order of the keys."""
    ordered = sort_keys(keys.reshape((1, keys.size)))
    block = block_size(out.size, out.device)
    launch(
        unpack_kernel, (cdiv(out.size, block),), ordered, None, ordered, None, out, out.size,
        out.size, out.size, out.size, BLOCK=block, num_warps=4,
    )  # fmt: skip


@jit
def search_kernel(
    edges_ptr,  # (rows, n) or (n,), ascending along the last axis
    x_ptr,  # (rows, m)
    out_ptr,  # (rows, m)
    total,
    m,
    n,
    edges_row_stride,  # 0: one sequence for all
    steps,
    RIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < total
    x = order_bits(tl.load(x_ptr + i, mask=mask, other=0))
    row = edges_ptr + i // m * edges_row_stride
    low = tl.zeros_like(i)
    high = low + n
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = (low < high) & mask
        edge = order_bits(tl.load(row + middle, mask=open_, other=0))
        before = edge <= x if RIGHT else edge < x
        low = tl.where(open_ & before, middle + 1, low)
        high = tl.where(open_ & (before == 0), middle, high)
    tl.store(out_ptr + i, low.to(out_ptr.dtype.element_ty), mask=mask)


def searchsorted(out: DeviceArray, edges: DeviceArray, x: DeviceArray, *, right: bool) -> None:
    """Where ``x`` (..., m) would go into the ascending ``edges`` (n,) or (..., n); equal dtypes."""
    n = edges.shape[-1]
    m = x.shape[-1] if x.ndim else 1
    block = block_size(out.size, out.device)
    launch(
        search_kernel, (cdiv(out.size, block),), contiguous(edges), contiguous(x), out, out.size, m,
        n, 0 if edges.ndim == 1 else n, n.bit_length(), RIGHT=right, BLOCK=block, num_warps=8,
    )  # fmt: skip
