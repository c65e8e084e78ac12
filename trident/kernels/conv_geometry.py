"""What the window kernels share: three spatial axes, how long the vectors of a layout are, pixels.

Everything runs as three spatial axes; 1-D and 2-D calls have leading axes of size 1, whose
arithmetic folds away.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import jit, tl
from ..runtime import DeviceArray
from .layout import copy

Sizes = tuple[int, ...]

TURN_PRODUCTS = 1 << 23
"""From so many products on, an operand whose channels are not consecutive is copied first: the
copy is one pass, and then all loads are vectors. (Reckoned from bandwidths, not measured.)"""


@jit
def split_pixel(pixel, size_d, size_h, size_w):
    """A flat pixel as (sample, d, h, w)."""
    row = pixel // size_w
    plane = row // size_h
    return plane // size_d, plane % size_d, row % size_h, pixel % size_w


@jit
def next_pixel(n, d, h, w, STEP: tl.constexpr, size_d, size_h, size_w):
    """The pixel ``STEP`` further on. Carries instead of divisions: this is for inner loops."""
    w += STEP % size_w
    carry = w >= size_w
    w -= tl.where(carry, size_w, 0)
    h += STEP // size_w % size_h + carry.to(tl.int32)
    carry = h >= size_h
    h -= tl.where(carry, size_h, 0)
    d += STEP // (size_w * size_h) % size_d + carry.to(tl.int32)
    carry = d >= size_d
    d -= tl.where(carry, size_d, 0)
    n += STEP // (size_w * size_h * size_d) + carry.to(tl.int32)
    return n, d, h, w


@jit
def inside(d, h, w, size_d, size_h, size_w, BOUNDED: tl.constexpr):
    """Which places exist. An axis that is not BOUNDED is known to hold all of them."""
    seen = tl.full(d.shape, True, tl.int1)
    if BOUNDED[0]:
        seen = seen & (d >= 0) & (d < size_d)
    if BOUNDED[1]:
        seen = seen & (h >= 0) & (h < size_h)
    if BOUNDED[2]:
        seen = seen & (w >= 0) & (w < size_w)
    return seen


def accumulator(dtype: DType) -> Any:
    """float32 for the half types and float32, float64 for itself."""
    return tl.float64 if dtype is dtypes.float64 else tl.float32


def product_constants(x: DeviceArray) -> dict[str, Any]:
    """How ``tl.dot`` is to multiply."""
    high = x.dtype is dtypes.float32 and config.matmul_precision.get() == "high"
    return {
        "ACC": accumulator(x.dtype),
        "PRECISION": "tf32" if high else "ieee",
    }


def needs_int64(*arrays: DeviceArray | None) -> bool:
    """Whether offsets (or the last tile's pixel numbers, which overshoot) can pass 2**31 - 1."""
    return shapes.needs_int64(*arrays) or any(a.size > 2**31 - 2**16 for a in arrays if a)


def three(x: DeviceArray) -> DeviceArray:
    """x (n, c, *size) with leading axes of size 1 up to three spatial axes; the stride of every
    axis of size 1 is 0."""
    lead = (1,) * (5 - x.ndim)
    shape = (*x.shape[:2], *lead, *x.shape[2:])
    steps = (*x.strides[:2], *lead, *x.strides[2:])
    strides = tuple(0 if n == 1 else s for n, s in zip(shape, steps))
    return x.as_strided(shape, strides)


def geometry(kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> dict[str, Any]:
    """The constants of a window as three-axis tuples."""
    lead = 3 - len(stride)
    return {
        "KERNEL": (1,) * (3 - len(kernel)) + tuple(kernel),
        "STRIDE": (1,) * lead + tuple(stride),
        "PADDING": (0,) * lead + tuple(padding),
        "DILATION": (1,) * lead + tuple(dilation),
    }


def vector(itemsize: int, *numbers: int) -> int:
    """The largest power of two that divides all ``numbers`` and makes at most 16 bytes."""
    return math.gcd(16 // itemsize, *numbers)


class Walk(NamedTuple):
    """The strides of an array (n, c, d, h, w) as kernels take them.

    Those of all axes but the channels are counted in ``unit`` elements, a constant of the kernel:
    so the compiler sees that every pixel starts at a multiple of it, and loads vectors.
    """

    unit: int
    n: int
    c: int
    d: int
    h: int
    w: int

    @staticmethod
    def of(x: DeviceArray, channels: int = 0) -> Walk:
        """Of x with three spatial axes; groups start at multiples of ``channels``."""
        n, c, *space = x.strides
        channels_last = c == 1 or x.shape[1] == 1
        unit = vector(x.dtype.itemsize, channels, n, *space) if channels_last else 1
        return Walk(unit, n // unit, 1 if channels_last else c, *(s // unit for s in space))


def output_strides(out: DeviceArray, channels: int = 0) -> tuple[int, int, int, int]:
    """(unit, n, c, pixel) strides of out (n, c, d, h, w), all but that of c counted in units. Its
    pixels follow each other at one step, as in row-major and in channels-last arrays; groups
    start at multiples of ``channels``."""
    n, c = out.strides[:2]
    if c != 1:
        return 1, n, c, 1
    unit = vector(out.dtype.itemsize, n, out.shape[1], channels)
    return unit, n // unit, 1, out.shape[1] // unit


def laid_out_like(x: DeviceArray | None, out: DeviceArray) -> DeviceArray | None:
    """x, of out's shape, with the strides of out (n, c, d, h, w): a copy where it has others."""
    if x is None or three(x).strides == out.strides:
        return x
    same = out.device.empty_strided(out.shape, out.strides, x.dtype)
    copy(same, three(x))
    return same


def _channels_last(x: DeviceArray) -> DeviceArray:
    """x (n, c, d, h, w), or a copy in scratch memory, with consecutive channels."""
    if x.strides[1] == 1 or x.shape[1] == 1:
        return x
    out = x.device.empty_strided(x.shape, shapes.channels_last_strides(x.shape), x.dtype)
    copy(out, x)
    return three(out)


def worth_turning(products: int) -> bool:
    """Whether a call of so many products gains by a copy of an operand in another layout."""
    return products >= TURN_PRODUCTS


def staged(products: int, *arrays: DeviceArray) -> tuple[DeviceArray, ...]:
    """The arrays (n, c, d, h, w) with consecutive channels where the ``products`` of the call are
    worth the copies."""
    if not worth_turning(products):
        return arrays
    return tuple(_channels_last(x) for x in arrays)


__all__ = [
    "Sizes", "Walk", "accumulator", "geometry", "inside", "laid_out_like", "needs_int64",
    "next_pixel", "output_strides", "product_constants", "split_pixel", "staged", "three", "vector",
    "worth_turning",
]  # fmt: skip
