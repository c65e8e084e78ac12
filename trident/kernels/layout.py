"""Moving elements: copies between any two strided layouts and dtypes, fills, ranges, triangles.

``copy`` is the one road by which data changes its layout or dtype: clones, casts, in-place writes,
``cat`` and ``flip`` are copies into or out of a window. The axes are ordered by the destination's
strides and merged where both sides allow it; up to five remain, more become several launches. Where
the two sides disagree on the fastest axis a tile kernel turns the data inside the chip.

``collapse``, ``offset_of`` and ``block_index`` serve the other families of this layer that walk
arrays element by element.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import numpy as np

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import Device, DeviceArray, launch
from ..shapes import Shape

MAX_AXES = 5
TILE_SIDE = 64

BOOL, INT, FLOAT = 0, 1, 2  # what ``convert`` goes through


@jit
def block_index(BLOCK: tl.constexpr, INT64: tl.constexpr):
    """The linear indices of this program's block."""
    start = tl.program_id(0)
    if INT64:
        start = start.to(tl.int64)
    return start * BLOCK + tl.arange(0, BLOCK)


@jit
def offset_of(i, n1, n2, n3, n4, s0, s1, s2, s3, s4, AXES: tl.constexpr):
    """Offset of linear index ``i`` in a shape (n0, n1, n2, n3, n4) with these strides.

    Axes are counted from the back: with AXES = 2 only the sizes n4 and the strides s3, s4 are read.
    """
    if AXES == 1:
        return i * s4
    offset = i % n4 * s4
    i = i // n4
    if AXES == 2:
        return offset + i * s3
    offset += i % n3 * s3
    i = i // n3
    if AXES == 3:
        return offset + i * s2
    offset += i % n2 * s2
    i = i // n2
    if AXES == 4:
        return offset + i * s1
    return offset + i % n1 * s1 + i // n1 * s0


@jit
def convert(x, VIA: tl.constexpr):
    """``x`` on its way to another dtype: numpy's and torch's rules, spelled out.

    To bool: not zero (so NaN is True). Float to integer: through int64, so that -1.0 becomes 255 in
    uint8 on every device. To and from the half types: through float32.
    """
    if VIA == 0:
        x = (x != 0).to(tl.uint8)
    elif VIA == 1:
        if x.dtype != tl.float64:
            x = x.to(tl.float32)
        x = x.to(tl.int64)
    elif VIA == 2:
        x = x.to(tl.float32)
    return x


def route(source: DType, target: DType) -> int | None:
    """The VIA of ``convert`` for a copy from ``source`` to ``target``."""
    if source is target:
        return None
    if target.kind == "bool":
        return BOOL
    if source.kind == "float" and target.kind == "int":
        return INT
    if source in dtypes.HALVES or target in dtypes.HALVES:
        return FLOAT
    return None


@jit
def copy_kernel(
    x_ptr,  # (n0, n1, n2, n3, n4), any strides
    out_ptr,  # the same shape, any strides
    n,
    n1,
    n2,
    n3,
    n4,
    xs0,
    xs1,
    xs2,
    xs3,
    xs4,
    os0,
    os1,
    os2,
    os3,
    os4,
    VIA: tl.constexpr,
    AXES: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, INT64)
    mask = i < n
    x = tl.load(x_ptr + offset_of(i, n1, n2, n3, n4, xs0, xs1, xs2, xs3, xs4, AXES), mask=mask)
    at = out_ptr + offset_of(i, n1, n2, n3, n4, os0, os1, os2, os3, os4, AXES)
    tl.store(at, convert(x, VIA), mask=mask)


@jit
def turn_kernel(
    x_ptr,  # (b1, b2, b3, rows, cols); consecutive along rows
    out_ptr,  # (b1, b2, b3, rows, cols); consecutive along cols
    n_rows,
    n_cols,
    n_row_tiles,
    n_col_tiles,
    b2,
    b3,
    xs0,
    xs1,
    xs2,
    xs3,
    xs4,
    os0,
    os1,
    os2,
    os3,
    os4,
    VIA: tl.constexpr,
    INT64: tl.constexpr,
    SIDE: tl.constexpr,
):
    pid = tl.program_id(0)
    if INT64:
        pid = pid.to(tl.int64)
    cols = pid % n_col_tiles * SIDE + tl.arange(0, SIDE)
    pid = pid // n_col_tiles
    rows = pid % n_row_tiles * SIDE + tl.arange(0, SIDE)
    batch = pid // n_row_tiles
    i2, i1, i0 = batch % b3, batch // b3 % b2, batch // b3 // b2
    mask = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    x_ptr += i0 * xs0 + i1 * xs1 + i2 * xs2
    out_ptr += i0 * os0 + i1 * os1 + i2 * os2
    x = tl.load(x_ptr + rows[:, None] * xs3 + cols[None, :] * xs4, mask=mask)
    tl.store(out_ptr + rows[:, None] * os3 + cols[None, :] * os4, convert(x, VIA), mask=mask)


def block_size(n: int, device: Device, wanted: int = 1024) -> int:
    """Elements a program: few and large programs under the interpreter, which pays for each."""
    if device.interpreted:
        return config.interpret_block.get() or min(max(next_power_of_2(n), 16), 32768)
    return wanted


def collapse(shape: Shape, *strides: Shape) -> tuple[Shape, list[Shape]]:
    """Drop axes of size 1, merge neighbours that every layout walks as one; leave at least one."""
    merged: list[tuple[int, ...]] = []
    for size, *steps in zip(shape, *strides):
        if size == 1:
            continue
        if merged and all(a == s * size for a, s in zip(merged[-1][1:], steps)):
            merged[-1] = (merged[-1][0] * size, *steps)
        else:
            merged.append((size, *steps))
    if not merged:
        merged = [(1,) * (1 + len(strides))]
    columns = list(zip(*merged))
    return columns[0], columns[1:]


def padded(sizes: Shape, *strides: Shape) -> list[int]:
    """The launch arguments of a walk: sizes n1 to n4, then five strides for each layout."""
    lead = MAX_AXES - len(sizes)
    args = list(((1,) * lead + tuple(sizes))[1:])
    for steps in strides:
        args += (0,) * lead + tuple(steps)
    return args


def pieces(sizes: Shape, *strides: Shape) -> Iterator[tuple[Shape, tuple[Shape, ...], Shape]]:
    """Split a walk of more than MAX_AXES axes: (sizes, strides, start offset of each layout)."""
    extra = max(len(sizes) - MAX_AXES, 0)
    for lead in itertools.product(*map(range, sizes[:extra])):
        starts = tuple(sum(i * s for i, s in zip(lead, steps)) for steps in strides)
        yield sizes[extra:], tuple(steps[extra:] for steps in strides), starts


def copy(out: DeviceArray, x: DeviceArray) -> None:
    """``out[...] = x``: any strides on both sides, converting the dtype. ``x`` has out's shape (a
    stride of 0 repeats). The two must not overlap in memory unless they are the same window."""
    if out.size == 0:
        return
    order = sorted(range(out.ndim), key=lambda a: -abs(out.strides[a]))
    sizes, (xs, os) = collapse(
        tuple(out.shape[a] for a in order),
        tuple(x.strides[a] for a in order),
        tuple(out.strides[a] for a in order),
    )
    via = route(x.dtype, out.dtype)
    wide = shapes.needs_int64(out, x)
    fast = min(range(len(sizes)), key=lambda a: (xs[a] == 0, abs(xs[a])))
    big = sizes[fast] >= 16 and sizes[-1] >= 16 and abs(xs[fast]) == 1
    turned = fast != len(sizes) - 1 and xs[-1] != 0 and big
    if turned:
        rest = [a for a in range(len(sizes)) if a not in (fast, len(sizes) - 1)]
        axes = [*rest, fast, len(sizes) - 1]
        sizes = tuple(sizes[a] for a in axes)
        xs, os = tuple(xs[a] for a in axes), tuple(os[a] for a in axes)
    for part, (x_steps, out_steps), (x_start, out_start) in pieces(sizes, xs, os):
        source = x.as_strided(part, x_steps, x_start)
        target = out.as_strided(part, out_steps, out_start)
        if turned:
            _turn(target, source, via, wide)
            continue
        n = shapes.numel(part)
        block = block_size(n, out.device)
        launch(
            copy_kernel, (cdiv(n, block),), source, target, n, *padded(part, x_steps, out_steps),
            VIA=via, AXES=len(part), INT64=wide, BLOCK=block, num_warps=4,
        )  # fmt: skip


def _turn(out: DeviceArray, x: DeviceArray, via: int | None, wide: bool) -> None:
    lead = MAX_AXES - out.ndim
    _, b2, b3, n_rows, n_cols = (1,) * lead + out.shape
    side = TILE_SIDE
    if out.device.interpreted:
        side = min(max(next_power_of_2(max(n_rows, n_cols)), 16), 256)
    row_tiles, col_tiles = cdiv(n_rows, side), cdiv(n_cols, side)
    batch = out.size // (n_rows * n_cols)
    launch(
        turn_kernel, (batch * row_tiles * col_tiles,), x, out, n_rows, n_cols, row_tiles, col_tiles,
        b2, b3, *(0,) * lead, *x.strides, *(0,) * lead, *out.strides,
        VIA=via, INT64=wide, SIDE=side, num_warps=8,
    )  # fmt: skip


def contiguous(x: DeviceArray) -> DeviceArray:
    """``x`` itself where it is contiguous, else a contiguous copy in scratch memory."""
    if x.is_contiguous():
        return x
    out = x.device.empty(x.shape, x.dtype)
    copy(out, x)
    return out


@jit
def fill_kernel(
    out_ptr,  # (n,)
    n,
    bits,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, INT64)
    tl.store(out_ptr + i, tl.full((BLOCK,), bits, out_ptr.dtype.element_ty), mask=i < n)


_BITS = {
    1: (dtypes.int8, "b"),
    2: (dtypes.int16, "h"),
    4: (dtypes.int32, "i"),
    8: (dtypes.int64, "q"),
}


def fill(out: DeviceArray, value: bool | int | float) -> None:
    """``out[...] = value``, exactly: the kernel writes the bits of the value in out's dtype.

    ``out`` has no gaps (row-major or channels-last).
    """
    if out.size == 0:
        return
    assert shapes.is_dense(out.shape, out.strides)
    as_int, code = _BITS[out.dtype.itemsize]
    if out.dtype.kind == "int" and not isinstance(value, int):
        value = int(value)
    bits = struct.unpack(code, np.asarray(value).astype(out.dtype.np).tobytes())[0]
    target = DeviceArray(out.buffer, out.shape, out.strides, as_int, out.offset)
    block = block_size(out.size, out.device)
    launch(
        fill_kernel, (cdiv(out.size, block),), target, out.size, bits,
        INT64=shapes.needs_int64(out), BLOCK=block, num_warps=4,
    )  # fmt: skip


@jit
def arange_kernel(
    out_ptr,  # (n,)
    n,
    start,  # int64, or the bits of a float64
    step,
    stop,  # the last value of a linspace
    FLOAT: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, True)
    first = tl.cast(start, tl.int64)
    by = tl.cast(step, tl.int64)
    if FLOAT:
        by = by.to(tl.float64, bitcast=True)
        value = first.to(tl.float64, bitcast=True) + i.to(tl.float64) * by
        if SYMMETRIC:
            last = tl.cast(stop, tl.int64).to(tl.float64, bitcast=True)
            value = tl.where(i < n // 2, value, last - (n - 1 - i).to(tl.float64) * by)
        value = convert(value, 2 if out_ptr.dtype.element_ty.primitive_bitwidth == 16 else -1)
    else:
        value = first + i * by
    tl.store(out_ptr + i, value.to(out_ptr.dtype.element_ty), mask=i < n)


def _bits64(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def arange(out: DeviceArray, start: float, step: float) -> None:
    """``out[i] = start + i step``; computed in int64 or float64 and rounded once. ``out``: (n,)."""
    as_float = out.dtype.is_floating_point or not (isinstance(start, int) and isinstance(step, int))
    first, by = (_bits64(start), _bits64(step)) if as_float else (int(start), int(step))
    block = block_size(out.size, out.device)
    launch(
        arange_kernel, (cdiv(out.size, block),), out, out.size, first, by, 0,
        FLOAT=as_float, SYMMETRIC=False, BLOCK=block, num_warps=4,
    )  # fmt: skip


def linspace(out: DeviceArray, start: float, end: float) -> None:
    """``out`` (n,) evenly from ``start`` to ``end``, both met exactly; computed in float64."""
    step = (end - start) / (out.size - 1) if out.size > 1 else 0.0
    last = end if out.size > 1 else start
    block = block_size(out.size, out.device)
    launch(
        arange_kernel, (cdiv(out.size, block),), out, out.size, _bits64(start), _bits64(step),
        _bits64(last), FLOAT=True, SYMMETRIC=True, BLOCK=block, num_warps=4,
    )  # fmt: skip


@jit
def triangle_kernel(
    x_ptr,  # (n0, n1, n2, n3, n4), any strides
    out_ptr,  # (..., n_rows, n_cols), contiguous
    n,
    n_rows,
    n_cols,
    diagonal,
    n1,
    n2,
    n3,
    n4,
    xs0,
    xs1,
    xs2,
    xs3,
    xs4,
    UPPER: tl.constexpr,
    AXES: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = block_index(BLOCK, INT64)
    mask = i < n
    above = i % n_cols - i // n_cols % n_rows  # how far right of the main diagonal
    keep = above >= diagonal if UPPER else above <= diagonal
    at = offset_of(i, n1, n2, n3, n4, xs0, xs1, xs2, xs3, xs4, AXES)
    x = tl.load(x_ptr + at, mask=mask & keep, other=0)
    tl.store(out_ptr + i, x, mask=mask)


def triangle(out: DeviceArray, x: DeviceArray, *, diagonal: int, upper: bool) -> None:
    """Matrices ``x`` (..., R, C) with zeros below a diagonal (``upper``) or above it."""
    if out.size == 0:
        return
    sizes, (steps, _) = collapse(x.shape, x.strides, out.strides)
    if len(sizes) > MAX_AXES:
        x = contiguous(x)
        sizes, (steps, _) = collapse(x.shape, x.strides, out.strides)
    block = block_size(out.size, out.device)
    launch(
        triangle_kernel, (cdiv(out.size, block),), x, out, out.size, *out.shape[-2:], diagonal,
        *padded(sizes, steps), UPPER=upper, AXES=len(sizes),
        INT64=shapes.needs_int64(out, x), BLOCK=block, num_warps=4,
    )  # fmt: skip


def cat(out: DeviceArray, xs: tuple[DeviceArray, ...], *, dim: int) -> None:
    """``xs`` one after the other along ``dim``, converted to out's dtype."""
    start = 0
    for x in xs:
        size = x.shape[dim]
        window = (slice(None),) * dim + (slice(start, start + size),)
        copy(out[window], x)
        start += size


def pad(out: DeviceArray, x: DeviceArray, *, before: Shape, value: bool | int | float) -> None:
    """``x`` inside of ``value``; ``before`` elements (negative: cropped) lead each axis."""
    fill(out, value)
    inside, kept = [], []
    for b, n, m in zip(before, x.shape, out.shape):
        inside.append(slice(max(b, 0), min(b + n, m)))
        kept.append(slice(max(-b, 0), min(n, m - b)))
    copy(out[tuple(inside)], x[tuple(kept)])


def flip(out: DeviceArray, x: DeviceArray, *, dims: Shape) -> None:
    """``x`` read backwards along ``dims``."""
    copy(out, x[tuple(slice(None, None, -1 if a in dims else 1) for a in range(x.ndim))])
