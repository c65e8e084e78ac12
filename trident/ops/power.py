"""Powers and roots: ``square``, ``sqrt``, ``rsqrt``, ``reciprocal``, ``pow``, ``hypot``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DTypeError, wrong
from ..kernels.device_math import div_exact as _div
from ..kernels.device_math import integer_power, power, sqrt_exact, typed
from ..lang import jit, tl
from .arithmetic import is_integral, where, zero
from .exponential import log
from .registry import NONZERO, POSITIVE, Interval, composite, elementwise


@elementwise
class square:
    """x * x.

    >>> trident.square(trident.tensor([1.0, -2.0]))
    tensor([1., 4.])
    """

    def numpy(x):
        return np.multiply(x, x)

    @jit
    def triton(x):
        return x * x

    def vjp(g, x):
        return g * (2 * x)


@elementwise(result="float", domain=POSITIVE)
class sqrt:
    """The square root of x, correctly rounded; NaN for x < 0.

    >>> trident.sqrt(trident.tensor([1.0, 4.0]))
    tensor([1., 2.])
    """

    def numpy(x):
        return np.sqrt(x)

    @jit
    def triton(x):
        return sqrt_exact(x)

    def vjp(g, out):
        return g / (2 * out)


@elementwise(result="float", domain=POSITIVE)
class rsqrt:
    """1 / sqrt(x).

    >>> trident.rsqrt(trident.tensor([1.0, 4.0]))
    tensor([1.0000, 0.5000])
    """

    def numpy(x):
        root = np.empty_like(x)
        np.sqrt(x, out=root)
        return np.divide(1, root, out=root)

    @jit
    def triton(x):
        return _div(typed(1.0, x), sqrt_exact(x))

    def vjp(g, out):
        return g * (out * out * out) * -0.5


@elementwise(result="float", domain=NONZERO)
class reciprocal:
    """1 / x.

    >>> trident.reciprocal(trident.tensor([1.0, 4.0]))
    tensor([1.0000, 0.2500])
    """

    def numpy(x):
        return np.divide(1, x)

    @jit
    def triton(x):
        return _div(typed(1.0, x), x)

    def vjp(g, out):
        return -(g * (out * out))


@elementwise(domain=(POSITIVE, Interval(-3.0, 3.0, whole_low=0)))
class pow:
    """x ** y, element by element; the public ``pow`` knows the common exponents.

    >>> trident.pow(trident.tensor([1.0, 2.0]), trident.tensor([2.0, 3.0]))
    tensor([1., 8.])
    """

    def numpy(x, y):
        if is_integral(x, y) and np.any(np.less(y, 0)):
            raise _negative_power()
        return np.power(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        if x.dtype.is_floating():
            return power(x, y)
        else:
            if x.dtype == tl.int1:
                return x | (y == 0)
            else:
                return integer_power(x, y)

    def vjp(g, x, y, out):
        # 0**(y - 1) at y = 0 and log(0) at y >= 0 are kept away from the products: no NaN arises
        gx = g * (y * _pow(where((x == 0) & (y == 0), 1.0, x), y - 1))
        safe = where((x == 0) & (y >= 0), 1.0, x + zero(out))
        return gx, g * (out * log(safe))


_pow = pow


def _negative_power() -> Exception:
    return wrong(
        "pow",
        "integers to negative integer powers are not allowed",
        hint="make one of the operands floating: x.to(trident.float32)",
        error=DTypeError,
    )


@composite
def pow(input: Any, exponent: Any) -> Any:
    """input ** exponent: 0 ** 0 is 1; a negative base gives NaN unless the exponent is whole.

    The exponents 2, 3, 0.5, -0.5 and -1 are done by products and roots. Integers to a negative
    integer power raise DTypeError.

    >>> trident.pow(trident.tensor([1.0, 2.0]), 3)
    tensor([1., 8.])
    """
    if exponent.__class__ is int or exponent.__class__ is float:
        dtype = getattr(input, "dtype", None)
        integral = dtype is not None and not dtype.is_floating_point
        if integral and exponent.__class__ is int:
            if exponent < 0:
                raise _negative_power()
        elif exponent in _SHORT:
            return _SHORT[exponent](input)
        if not integral and exponent in (2, 3):
            return square(input) if exponent == 2 else square(input) * input
    return _pow(input, exponent)


_SHORT = {0.5: sqrt, -0.5: rsqrt, -1: reciprocal}


@elementwise(result="float", domain=NONZERO)
class hypot:
    """sqrt(x * x + y * y) without overflow; the gradient at (0, 0) is 0.

    >>> trident.hypot(trident.tensor([3.0]), trident.tensor([4.0]))
    tensor([5.])
    """

    def numpy(x, y):
        return np.hypot(x, y)

    @jit
    def triton(x, y):
        x = tl.abs(typed(x, y))
        y = tl.abs(typed(y, x))
        high = tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
        low = tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)
        ratio = _div(low, tl.where(high == 0, high + 1, high))
        r = high * sqrt_exact(1 + ratio * ratio)
        infinite = (x == float("inf")) | (y == float("inf"))
        return tl.where(infinite, float("inf"), r)

    def vjp(g, x, y, out):
        scaled = g / where(out == 0, 1.0, out)
        return scaled * x, scaled * y
