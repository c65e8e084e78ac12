"""Random numbers on the device: Philox 4x32-10 and what is made of its words.

The functions mirror ``runtime/random.py`` one by one: words, 64-bit words, uniform floats and
integers agree bit by bit with numpy, normals to a few units in the last place. Seeds, offsets and
float64 bounds are passed as 32-bit words that no launch specialises on (see ``sealed``): a kernel
compiled for one draw serves all draws.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import struct

from .. import dtypes, shapes
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .layout import MAX_AXES, block_size, collapse, contiguous, offset_of, padded

TWO_PI = 6.283185307179586

UNIFORM, NORMAL, EXPONENTIAL = 0, 1, 2
KINDS = {"uniform": UNIFORM, "normal": NORMAL, "exponential": EXPONENTIAL}


def sealed(*values: int) -> list[int]:
    """Each 64-bit value as two launch arguments that are always int64, never 1, never a multiple of
    16.

    Triton compiles a kernel anew for such values; seeds and offsets change with every draw.
    """
    words = []
    for value in values:
        for word in (value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF):
            words.append(1 << 40 | word << 2 | 2)
    return words


def _float_words(*values: float) -> list[int]:
    return sealed(*(struct.unpack("<Q", struct.pack("<d", v))[0] for v in values))


@jit
def word(x):
    """The 32 bits in one sealed argument."""
    return (x >> 2 & 0xFFFFFFFF).to(tl.uint32)


@jit
def unsealed(lo, hi):
    """The 64 bits in two sealed arguments, as int64."""
    return ((hi >> 2 & 0xFFFFFFFF) << 32) | (lo >> 2 & 0xFFFFFFFF)


@jit
def double(lo, hi):
    """The float64 in two sealed arguments."""
    return unsealed(lo, hi).to(tl.float64, bitcast=True)


@jit
def philox(c0, c1, c2, k0, k1):
    """Four vectors of words: Philox 4x32-10 of counters (c0, c1, c2, 0) under the key (k0, k1)."""
    a = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    b = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    k0 = k0 + tl.zeros_like(c0)
    k1 = k1 + tl.zeros_like(c0)
    c3 = tl.zeros_like(c0)
    for _ in tl.static_range(10):
        high_a, low_a = tl.umulhi(a, c0), a * c0
        high_b, low_b = tl.umulhi(b, c2), b * c2
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0 = k0 + tl.full(k0.shape, 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full(k1.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@jit
def words(seed_lo, seed_hi, offset_lo, offset_hi, PLANE: tl.constexpr, SIZE: tl.constexpr):
    """The uint32 words of this program's SIZE elements, in order."""
    first = tl.program_id(0).to(tl.int64) * (SIZE // 4)
    counter = unsealed(offset_lo, offset_hi) + first + tl.arange(0, SIZE // 4)
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = (counter >> 32 & 0xFFFFFFFF).to(tl.uint32)
    c2 = tl.full(c0.shape, PLANE, tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, c2, word(seed_lo), word(seed_hi))
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@jit
def draw_words(seed_lo, seed_hi, offset_lo, offset_hi, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """(indices, words) of this program's SIZE elements: uint32 words, or uint64 where WIDE."""
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    w = words(seed_lo, seed_hi, offset_lo, offset_hi, 0, SIZE)
    if WIDE:
        low = words(seed_lo, seed_hi, offset_lo, offset_hi, 1, SIZE)
        w = (w.to(tl.uint64) << 32) | low.to(tl.uint64)
    return i, w


@jit
def to_uniform(w, BITS: tl.constexpr):
    """[0, 1): float32 from the top BITS of uint32, float64 from 53 bits of uint64."""
    if w.dtype == tl.uint64:
        u = (w >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16
    else:
        u = (w >> (32 - BITS)).to(tl.int32).to(tl.float32) * (1.0 / (1 << BITS))
    return u


@jit
def to_positive(w):
    """(0, 1]: float32 from uint32, float64 from uint64."""
    if w.dtype == tl.uint64:
        u = to_uniform(w, 24) + 5.551115123125783e-17
    else:
        u = w.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    return u


@jit
def to_normal(w, SIZE: tl.constexpr):
    """Standard normals from pairs of neighbouring words (Box and Muller)."""
    w0, w1 = tl.split(tl.reshape(w, (SIZE // 2, 2)))
    radius = tl.sqrt(-2.0 * tl.log(to_positive(w0)))
    if w.dtype == tl.uint64:
        angle = to_uniform(w1, 24) * TWO_PI
    else:
        angle = w1.to(tl.float32) * 2.3283064365386963e-10 * TWO_PI
    return tl.interleave(radius * tl.cos(angle), radius * tl.sin(angle))


@jit
def float_kernel(
    out_ptr,  # (n,)
    n,
    seed_lo,
    seed_hi,
    offset_lo,
    offset_hi,
    shift_lo,
    shift_hi,
    scale_lo,
    scale_hi,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    AFFINE: tl.constexpr,
    WIDE: tl.constexpr,
    SIZE: tl.constexpr,
):
    i, w = draw_words(seed_lo, seed_hi, offset_lo, offset_hi, SIZE, WIDE)
    if KIND == 0:
        x = to_uniform(w, BITS)
    elif KIND == 1:
        x = to_normal(w, SIZE)
    else:
        x = -tl.log(to_positive(w))
    if AFFINE:  # in float64, so that contraction to a fused multiply-add cannot show in float32
        x = x.to(tl.float64) * double(scale_lo, scale_hi) + double(shift_lo, shift_hi)
        if not WIDE:
            x = x.to(tl.float32)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty), mask=i < n)


def floats(
    out: DeviceArray, *, kind: str, seed: int, offset: int, shift: float = 0.0, scale: float = 1.0
) -> None:
    """``shift + scale * draw`` into contiguous ``out``; kind: uniform, normal or exponential."""
    size = block_size(out.size, out.device)
    bits = {"float16": 11, "bfloat16": 8}.get(out.dtype.name, 24)
    launch(
        float_kernel, (cdiv(out.size, size),), out, out.size, *sealed(seed, offset),
        *_float_words(shift, scale), KIND=KINDS[kind], BITS=bits,
        AFFINE=(shift, scale) != (0.0, 1.0), WIDE=out.dtype is dtypes.float64, SIZE=size,
        num_warps=4,
    )  # fmt: skip


@jit
def int_kernel(
    out_ptr,  # (n,)
    n,
    seed_lo,
    seed_hi,
    offset_lo,
    offset_hi,
    low_lo,
    low_hi,
    span_lo,
    span_hi,
    WIDE: tl.constexpr,
    SIZE: tl.constexpr,
):
    i, w = draw_words(seed_lo, seed_hi, offset_lo, offset_hi, SIZE, WIDE)
    if WIDE:
        value = (w % unsealed(span_lo, span_hi).to(tl.uint64)).to(tl.int64)
    else:
        value = tl.umulhi(w, word(span_lo) + tl.zeros_like(w)).to(tl.int64)
    value += unsealed(low_lo, low_hi)
    if out_ptr.dtype.element_ty.is_floating():
        value = value.to(tl.float64 if WIDE else tl.float32)
    tl.store(out_ptr + i, value.to(out_ptr.dtype.element_ty), mask=i < n)


def ints(out: DeviceArray, *, seed: int, offset: int, low: int, high: int) -> None:
    """Integers of [low, high) into the contiguous ``out``."""
    size = block_size(out.size, out.device)
    launch(
        int_kernel, (cdiv(out.size, size),), out, out.size, *sealed(seed, offset),
        *sealed(low, high - low), WIDE=high - low >= 2**32, SIZE=size, num_warps=4,
    )  # fmt: skip


@jit
def shuffle_keys_kernel(
    keys_ptr,  # (n,)
    n,
    seed_lo,
    seed_hi,
    offset_lo,
    offset_hi,
    SIZE: tl.constexpr,
):
    i, w = draw_words(seed_lo, seed_hi, offset_lo, offset_hi, SIZE, False)
    tl.store(keys_ptr + i, (w >> 1).to(tl.int64) << 32 | i, mask=i < n)


def shuffle_keys(keys: DeviceArray, *, seed: int, offset: int) -> None:
    """31 random bits above the position: sorting these int64 keys shuffles 0 .. n - 1."""
    size = block_size(keys.size, keys.device)
    launch(
        shuffle_keys_kernel, (cdiv(keys.size, size),), keys, keys.size, *sealed(seed, offset),
        SIZE=size, num_warps=4,
    )  # fmt: skip


@jit
def mask_kernel(
    x_ptr,  # (n0, n1, n2, n3, n4), any strides
    out_ptr,  # the same shape, contiguous
    n,
    seed_lo,
    seed_hi,
    offset_lo,
    offset_hi,
    threshold,
    scale_lo,
    scale_hi,
    n1,
    n2,
    n3,
    n4,
    xs0,
    xs1,
    xs2,
    xs3,
    xs4,
    BERNOULLI: tl.constexpr,
    AXES: tl.constexpr,
    SIZE: tl.constexpr,
):
    i, w = draw_words(seed_lo, seed_hi, offset_lo, offset_hi, SIZE, False)
    mask = i < n
    x = tl.load(
        x_ptr + offset_of(i, n1, n2, n3, n4, xs0, xs1, xs2, xs3, xs4, AXES), mask=mask, other=0
    )
    if x.dtype.primitive_bitwidth == 16:
        x = x.to(tl.float32)
    if BERNOULLI:
        y = (to_uniform(w, 24) < x).to(tl.float32)
    else:
        y = tl.where(w >= word(threshold), x * double(scale_lo, scale_hi).to(x.dtype), 0.0)
    tl.store(out_ptr + i, y.to(out_ptr.dtype.element_ty), mask=mask)


def dropout_threshold(p: float) -> int:
    """Words below it are dropped: a share ``p`` of all 2**32 (one step less where p is 1)."""
    return min(round(p * 2**32), 2**32 - 1)


def _masked(
    out: DeviceArray, x: DeviceArray, seed: int, offset: int, p: float, bernoulli: bool
) -> None:
    sizes, (steps, _) = collapse(x.shape, x.strides, shapes.contiguous_strides(x.shape))
    if len(sizes) > MAX_AXES:
        x = contiguous(x)
        sizes, steps = (x.size,), (1,)
    size = block_size(out.size, out.device)
    launch(
        mask_kernel, (cdiv(out.size, size),), x, out, out.size, *sealed(seed, offset),
        sealed(dropout_threshold(p))[0], *_float_words(1.0 / (1.0 - p) if p < 1 else 0.0),
        *padded(sizes, steps), BERNOULLI=bernoulli, AXES=len(sizes), SIZE=size, num_warps=4,
    )  # fmt: skip


def dropout(out: DeviceArray, x: DeviceArray, *, p: float, seed: int, offset: int) -> None:
    """``x / (1 - p)`` where the word of the element is at least p 2**32, else 0."""
    _masked(out, x, seed, offset, p, False)


def bernoulli(out: DeviceArray, p: DeviceArray, *, seed: int, offset: int) -> None:
    """1 with probability ``p``, element by element, else 0."""
    _masked(out, p, seed, offset, 0.0, True)
