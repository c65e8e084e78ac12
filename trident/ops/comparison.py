"""Comparisons, tests, logic and bits. Nothing here has a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.device_math import typed
from ..lang import jit, tl
from .arithmetic import abs
from .registry import Interval, composite, elementwise, ops

_COUNTS = Interval(0, 6)


@elementwise(result="bool")
class eq:
    """x == y.

    >>> trident.eq(trident.tensor([1.0, 2.0]), 2.0)
    tensor([False,  True])
    """

    def numpy(x, y):
        return x == y

    @jit
    def triton(x, y):
        return x == y


@elementwise(result="bool")
class ne:
    """x != y; true where either is NaN.

    >>> trident.ne(trident.tensor([1.0, 2.0]), 2.0)
    tensor([ True, False])
    """

    def numpy(x, y):
        return x != y

    @jit
    def triton(x, y):
        return x != y


@elementwise(result="bool")
class lt:
    """x < y.

    >>> trident.lt(trident.tensor([1.0, 2.0]), 2.0)
    tensor([ True, False])
    """

    def numpy(x, y):
        return x < y

    @jit
    def triton(x, y):
        return x < y


@elementwise(result="bool")
class le:
    """x <= y.

    >>> trident.le(trident.tensor([1.0, 3.0]), 2.0)
    tensor([ True, False])
    """

    def numpy(x, y):
        return x <= y

    @jit
    def triton(x, y):
        return x <= y


@elementwise(result="bool")
class gt:
    """x > y.

    >>> trident.gt(trident.tensor([1.0, 3.0]), 2.0)
    tensor([False,  True])
    """

    def numpy(x, y):
        return x > y

    @jit
    def triton(x, y):
        return x > y


@elementwise(result="bool")
class ge:
    """x >= y.

    >>> trident.ge(trident.tensor([1.0, 2.0]), 2.0)
    tensor([False,  True])
    """

    def numpy(x, y):
        return x >= y

    @jit
    def triton(x, y):
        return x >= y


@elementwise(result="bool")
class isnan:
    """Whether x is NaN; false for integers.

    >>> trident.isnan(trident.tensor([1.0, float("nan")]))
    tensor([False,  True])
    """

    def numpy(x):
        return np.isnan(x)

    @jit
    def triton(x):
        return x != x


@elementwise(result="bool")
class isinf:
    """Whether x is inf or -inf; false for integers.

    >>> trident.isinf(trident.tensor([1.0, float("-inf")]))
    tensor([False,  True])
    """

    def numpy(x):
        return np.isinf(x)

    @jit
    def triton(x):
        if x.dtype.is_floating():
            return tl.abs(x) == float("inf")
        else:
            return x != x


@elementwise(result="bool")
class isfinite:
    """Whether x is neither NaN nor infinite; true for integers.

    >>> trident.isfinite(trident.tensor([1.0, float("inf")]))
    tensor([ True, False])
    """

    def numpy(x):
        return np.isfinite(x)

    @jit
    def triton(x):
        if x.dtype.is_floating():
            return tl.abs(x) < float("inf")
        else:
            return x == x


@elementwise(result="bool")
class signbit:
    """Whether x is negative, -0.0 included.

    >>> trident.signbit(trident.tensor([1.0, -0.0]))
    tensor([False,  True])
    """

    def numpy(x):
        x = np.asarray(x)
        return np.signbit(x) if x.dtype.kind == "f" else x < 0

    @jit
    def triton(x):
        if x.dtype == tl.float32:
            return x.to(tl.int32, bitcast=True) < 0
        else:
            if x.dtype == tl.float64:
                return x.to(tl.int64, bitcast=True) < 0
            else:
                if x.dtype == tl.int1:
                    return x != x
                else:
                    return x < 0


@composite
def isclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Any:
    """abs(input - other) <= atol + rtol * abs(other), or equal; bool.

    Infinities are close to themselves alone; NaN is close to NaN with ``equal_nan``.

    >>> trident.isclose(trident.tensor([1.0, 2.0]), trident.tensor([1.0, 2.1]))
    tensor([ True, False])
    """
    gap = abs(ops.sub(input, other))
    close = logical_or(
        eq(input, other), logical_and(isfinite(gap), gap <= abs(other) * rtol + atol)
    )
    if equal_nan:
        close = logical_or(close, logical_and(isnan(input), isnan(other)))
    return close


# Logic: anything that is not zero is true


@elementwise(result="bool")
class logical_and:
    """x and y, where what is not zero is true.

    >>> trident.logical_and(trident.tensor([True, True]), trident.tensor([True, False]))
    tensor([ True, False])
    """

    def numpy(x, y):
        return np.logical_and(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        return (x != 0) & (y != 0)


@elementwise(result="bool")
class logical_or:
    """x or y, where what is not zero is true.

    >>> trident.logical_or(trident.tensor([True, False]), trident.tensor([False, False]))
    tensor([ True, False])
    """

    def numpy(x, y):
        return np.logical_or(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        return (x != 0) | (y != 0)


@elementwise(result="bool")
class logical_xor:
    """Whether one of x and y is true, where what is not zero is true.

    >>> trident.logical_xor(trident.tensor([True, True]), trident.tensor([True, False]))
    tensor([False,  True])
    """

    def numpy(x, y):
        return np.logical_xor(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        return (x != 0) ^ (y != 0)


@elementwise(result="bool")
class logical_not:
    """Whether x is zero.

    >>> trident.logical_not(trident.tensor([1.0, 0.0]))
    tensor([False,  True])
    """

    def numpy(x):
        return np.logical_not(x)

    @jit
    def triton(x):
        return x == 0


# Bits: integers, and bools as single bits


@elementwise(takes="int", domain=_COUNTS)
class bitwise_and:
    """The bits that are set in x and in y; of bools, "and".

    >>> trident.bitwise_and(trident.tensor([6, 5]), 3)
    tensor([2, 1])
    """

    def numpy(x, y):
        return x & y

    @jit
    def triton(x, y):
        return x & y


@elementwise(takes="int", domain=_COUNTS)
class bitwise_or:
    """The bits that are set in x or in y; of bools, "or".

    >>> trident.bitwise_or(trident.tensor([6, 5]), 3)
    tensor([7, 7])
    """

    def numpy(x, y):
        return x | y

    @jit
    def triton(x, y):
        return x | y


@elementwise(takes="int", domain=_COUNTS)
class bitwise_xor:
    """The bits that are set in one of x and y; of bools, "not equal".

    >>> trident.bitwise_xor(trident.tensor([6, 5]), 3)
    tensor([5, 6])
    """

    def numpy(x, y):
        return x ^ y

    @jit
    def triton(x, y):
        return x ^ y


@elementwise(takes="int", domain=_COUNTS)
class bitwise_not:
    """The bits of x inverted, -x - 1 for signed integers; of bools, "not".

    >>> trident.bitwise_not(trident.tensor([0, 5]))
    tensor([-1, -6])
    """

    def numpy(x):
        return np.invert(x)

    @jit
    def triton(x):
        if x.dtype == tl.int1:
            return x == 0
        else:
            return ~x


@elementwise(takes="int", domain=(_COUNTS, _COUNTS))
class bitwise_left_shift:
    """x * 2**y: the bits of x moved up by y; 0 from the width of the dtype on.

    >>> trident.bitwise_left_shift(trident.tensor([1, 3]), 2)
    tensor([ 4, 12])
    """

    def numpy(x, y):
        if np.result_type(x, y) == np.bool_:  # one bit wide
            return x & ~y
        return np.left_shift(x, y)

    @jit
    def triton(x, y):
        width: tl.constexpr = (x + y).dtype.primitive_bitwidth
        inside = (y >= 0) & (y < width)
        return tl.where(inside, x << tl.where(inside, y, 0), 0)


@elementwise(takes="int", domain=(_COUNTS, _COUNTS))
class bitwise_right_shift:
    """floor(x / 2**y): the bits of x moved down by y; the sign fills from above.

    >>> trident.bitwise_right_shift(trident.tensor([8, -8]), 2)
    tensor([ 2, -2])
    """

    def numpy(x, y):
        if np.result_type(x, y) == np.bool_:  # one bit wide
            return x & ~y
        return np.right_shift(x, y)

    @jit
    def triton(x, y):
        width: tl.constexpr = (x + y).dtype.primitive_bitwidth
        inside = (y >= 0) & (y < width)
        return tl.where(inside, x >> tl.where(inside, y, 0), tl.where(x < 0, -1, 0).to(x.dtype))


@composite
def allclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether all elements agree: ``|input - other| <= atol + rtol * |other|``.

    >>> trident.allclose(trident.tensor([1.0]), trident.tensor([1.0 + 1e-6]))
    True
    """
    return bool(ops.all(isclose(input, other, rtol=rtol, atol=atol, equal_nan=equal_nan)))


@composite
def equal(input: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and elements (NaN differs from everything).

    >>> trident.equal(trident.tensor([1, 2]), trident.tensor([1, 2]))
    True
    """
    if tuple(input.shape) != tuple(other.shape):
        return False
    return bool(ops.all(ops.eq(input, other)))
