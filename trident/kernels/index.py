"""Reading at positions that are data: gather, index_select, nonzero, one-hot, and the index check.

Indices are checked before use: ``check_indices`` names the first one that is out of range. In the
interpreter that is at once; on a GPU the error is raised where the host next waits
(``runtime/reports.py``), and until then ``wrap`` takes the nearest valid index instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from .. import dtypes, shapes
from ..errors import IndexBoundsError, wrong
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from ..runtime.reports import VALUES
from ..shapes import Shape
from .layout import (
    MAX_AXES,
    block_index,
    block_size,
    collapse,
    contiguous,
    offset_of,
    padded,
)
from .rows import multiple

CHECKERS = 256  # programs that look for a bad index; each reports one number


def out_of_range(op: str, index: int, size: int, axis: int | None) -> Exception:
    """The error for an index that lies outside of an axis."""
    where = f"axis {axis} of size {size}" if axis is not None else f"the {size} elements"
    return wrong(op, f"index {index} is out of range for {where}", error=IndexBoundsError)


@jit
def check_kernel(
    index_ptr,  # (n0, n1, n2, n3, n4), any strides
    bad_ptr,  # (programs,): 1 + where the program's first bad index stands, or 0
    words_ptr,  # the device's reports, where those are used and bad_ptr is not
    n,
    low,
    high,
    ignored,  # an index that is not looked at
    site,
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
    value = tl.full((BLOCK,), 0, tl.int64)
    for base in range(0, n, tl.num_programs(0) * BLOCK):
        i = base + start + tl.arange(0, BLOCK)
        at = offset_of(i, n1, n2, n3, n4, is0, is1, is2, is3, is4, AXES)
        index = tl.load(index_ptr + at, mask=i < n, other=0).to(tl.int64)
        bad = (i < n) & ((index >= high) | (index < low)) & (index != ignored)
        value = tl.where(bad & (i < first), index, value)
        first = tl.where(bad & (i < first), i, first)
    found = tl.min(first, 0)
    if words_ptr is not None:
        if found < n:
            it = tl.sum(tl.where(first == found, value, 0), 0)
            tl.store(words_ptr + 1 + site % VALUES, it)
            tl.store(words_ptr, it * 0 + site)
    else:
        tl.store(bad_ptr + tl.program_id(0), tl.where(found < n, found + 1, 0))


def check_range(
    index: DeviceArray,
    low: int,
    high: int,
    ignored: int | None,
    key: Hashable,
    error: Callable[[int], Exception],
) -> None:
    """``error(i)`` for an index ``i`` outside of [low, high) that is not ``ignored``.

    In the interpreter it is raised here, on a GPU where the host next waits. ``key`` tells checks
    with different errors apart.
    """
    n = index.size
    if n == 0:
        return
    ignored = low if ignored is None else ignored
    sizes, (steps,) = collapse(index.shape, index.strides)
    if len(sizes) > MAX_AXES:
        index = contiguous(index)
        sizes, steps = (n,), (1,)
    block = block_size(n, index.device)
    programs = min(cdiv(n, block), CHECKERS)
    reports = index.device.reports
    bad = words = None
    site = 0
    if reports is None:
        bad = index.device.empty((programs,), dtypes.int64)
    else:
        words, site = reports.array, reports.site(key, error)
    launch(
        check_kernel, (programs,), index, bad, words, n, low, high, ignored, site,
        *padded(sizes, steps), AXES=len(sizes), BLOCK=block, num_warps=4,
    )  # fmt: skip
    if bad is not None:
        found = bad.numpy()
        if found.any():
            raise error(int(index.numpy().reshape(-1)[int(found[found > 0].min()) - 1]))


def check_indices(op: str, index: DeviceArray, size: int, axis: int | None) -> None:
    """IndexBoundsError unless every index lies in [-size, size): see ``check_range``."""
    key = (op, size, axis)
    check_range(index, -size, size, None, key, lambda i: out_of_range(op, i, size, axis))


@jit
def wrap(index, size):
    """Indices as int64, with negative ones counted from the end; the nearest that there is where
    one is out of range (``check_indices`` reports it)."""
    index = index.to(tl.int64)
    index = tl.where(index < 0, index + size, index)
    return tl.maximum(tl.minimum(index, size - 1), 0)


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


@jit
def select_kernel(
    x_ptr,  # (outer, size, inner), consecutive along inner
    index_ptr,  # (m,) contiguous
    out_ptr,  # (outer, m, inner) contiguous
    n_rows,  # outer * m
    m,
    size,
    inner,
    x_outer_stride,
    x_step,
    VEC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    inner = multiple(inner, VEC)
    blocks = tl.cdiv(inner, COLS)
    rows = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0) % blocks * COLS + tl.arange(0, COLS)
    inside = rows < n_rows
    mask = inside[:, None] & (cols < inner)[None, :]
    index = wrap(tl.load(index_ptr + rows % m, mask=inside, other=0), size)
    start = multiple(rows // m * x_outer_stride + index * x_step, VEC)
    x = tl.load(x_ptr + start[:, None] + cols[None, :], mask=mask)
    tl.store(out_ptr + (rows * inner)[:, None] + cols[None, :], x, mask=mask)


WIDE = 8
"""Slices of so many neighbouring elements are copied as rows, not element by element."""


def _select_rows(out: DeviceArray, x: DeviceArray, index: DeviceArray, dim: int) -> bool:
    """Whether the slices are rows of memory; then they are copied."""
    m, inner = index.shape[0], shapes.numel(x.shape[dim + 1 :])
    tail = shapes.is_contiguous(x.shape[dim + 1 :], x.strides[dim + 1 :])
    lead, (steps,) = collapse(x.shape[:dim], x.strides[:dim])
    if inner < WIDE or not tail or len(lead) > 1 or not index.is_contiguous():
        return False
    outer = steps[0] if lead != (1,) else 0
    n_rows = out.size // inner
    room = block_size(1 << 14, out.device, 8192 // out.dtype.itemsize)
    cols = min(next_power_of_2(inner), max(room // 8, 1))
    rows = min(next_power_of_2(n_rows), max(room // cols, 1))
    launch(
        select_kernel, (cdiv(n_rows, rows) * cdiv(inner, cols),), x, index, out, n_rows, m,
        x.shape[dim], inner, outer, x.strides[dim],
        VEC=math.gcd(16, inner, outer, x.strides[dim], cols), ROWS=rows, COLS=cols, num_warps=4,
    )  # fmt: skip
    return True


def index_select(
    out: DeviceArray, x: DeviceArray, index: DeviceArray, *, dim: int, op: str
) -> None:
    """The slices of ``x`` along ``dim`` that ``index`` (m,) names, in the m slices of ``out``."""
    check_indices(op, index, x.shape[dim], dim)
    if out.size == 0 or _select_rows(out, x, index, dim):
        return
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
    combine(out, indices, sizes, shapes.contiguous_strides(sizes))


def combine(out: DeviceArray, indices: Sequence[DeviceArray], sizes: Shape, weights: Shape) -> None:
    for axis, (index, size, weight) in enumerate(zip(indices, sizes, weights)):
        spread = index.broadcast_to(out.shape)
        walk, (steps, _) = collapse(out.shape, spread.strides, out.strides)
        if len(walk) > MAX_AXES:
            spread = contiguous(spread)
            walk, steps = (out.size,), (1,)
        block = block_size(out.size, out.device)
        launch(
            combine_kernel, (cdiv(out.size, block),), spread, out, out.size, size, weight,
            *padded(walk, steps), FIRST=axis == 0, AXES=len(walk), BLOCK=block, num_warps=8,
        )  # fmt: skip


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
    if x.device.interpreted:  # elsewhere it may be the compile-only device, which counts nothing
        assert counts.sum() == out.shape[0], f"nonzero: {counts.sum()} elements, not {out.shape[0]}"
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
