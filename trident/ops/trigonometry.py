"""Trigonometric and hyperbolic functions and their inverses. Angles are in radians."""

from __future__ import annotations

import math

import numpy as np

from ..kernels.device_math import acos as _acos
from ..kernels.device_math import acosh as _acosh
from ..kernels.device_math import asin as _asin
from ..kernels.device_math import asinh as _asinh
from ..kernels.device_math import atan as _atan
from ..kernels.device_math import atan2 as _atan2
from ..kernels.device_math import atanh as _atanh
from ..kernels.device_math import cosh as _cosh
from ..kernels.device_math import div_exact, typed
from ..kernels.device_math import sinh as _sinh
from ..kernels.device_math import tanh as _tanh
from ..lang import jit, tl
from .arithmetic import where
from .blockwise import select
from .power import rsqrt
from .registry import NONZERO, UNIT, Interval, elementwise

_PI = math.pi
_DEGREE = math.pi / 180.0
_RADIAN = 180.0 / math.pi


@elementwise(result="float")
class sin:
    """The sine of x.

    >>> trident.sin(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 0.8415])
    """

    def numpy(x):
        return np.sin(x)

    @jit
    def triton(x):
        return tl.sin(x)

    def vjp(g, x):
        return g * cos(x)


@elementwise(result="float")
class cos:
    """The cosine of x.

    >>> trident.cos(trident.tensor([0.0, 1.0]))
    tensor([1.0000, 0.5403])
    """

    def numpy(x):
        return np.cos(x)

    @jit
    def triton(x):
        return tl.cos(x)

    def vjp(g, x):
        return -(g * sin(x))


@elementwise(result="float", domain=Interval(-1.3, 1.3))
class tan:
    """The tangent of x.

    >>> trident.tan(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 1.5574])
    """

    def numpy(x):
        return np.tan(x)

    @jit
    def triton(x):
        return div_exact(tl.sin(x), tl.cos(x))

    def vjp(g, out):
        return g * (1 + out * out)


@elementwise(result="float", domain=UNIT)
class asin:
    """The inverse sine of x, in [-pi / 2, pi / 2]; NaN outside of [-1, 1].

    >>> trident.asin(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 1.5708])
    """

    def numpy(x):
        return np.arcsin(x)

    @jit
    def triton(x):
        return _asin(x)

    def vjp(g, x):
        return g * rsqrt((1 - x) * (1 + x))


@elementwise(result="float", domain=UNIT)
class acos:
    """The inverse cosine of x, in [0, pi]; NaN outside of [-1, 1].

    >>> trident.acos(trident.tensor([0.0, 1.0]))
    tensor([1.5708, 0.0000])
    """

    def numpy(x):
        return np.arccos(x)

    @jit
    def triton(x):
        return _acos(x)

    def vjp(g, x):
        return -(g * rsqrt((1 - x) * (1 + x)))


@elementwise(result="float")
class atan:
    """The inverse tangent of x, in [-pi / 2, pi / 2].

    >>> trident.atan(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7854])
    """

    def numpy(x):
        return np.arctan(x)

    @jit
    def triton(x):
        return _atan(x)

    def vjp(g, x):
        return g / (1 + x * x)


@elementwise(result="float", domain=NONZERO)
class atan2:
    """The angle of the point (y, x) = (other, input), in [-pi, pi]; the gradient at (0, 0) is 0.

    >>> trident.atan2(trident.tensor([1.0, -1.0]), trident.tensor([1.0, -1.0]))
    tensor([ 0.7854, -2.3562])
    """

    def numpy(x, y):
        return np.arctan2(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        return _atan2(x, typed(y, x))

    def vjp(g, x, y):
        square = x * x + y * y
        scaled = g / where(square == 0, 1.0, square)
        return scaled * y, -(scaled * x)


@elementwise(result="float")
class sinh:
    """The hyperbolic sine of x.

    >>> trident.sinh(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 1.1752])
    """

    def numpy(x):
        return np.sinh(x)

    @jit
    def triton(x):
        return _sinh(x)

    def vjp(g, x):
        return g * cosh(x)


@elementwise(result="float")
class cosh:
    """The hyperbolic cosine of x.

    >>> trident.cosh(trident.tensor([0.0, 1.0]))
    tensor([1.0000, 1.5431])
    """

    def numpy(x):
        return np.cosh(x)

    @jit
    def triton(x):
        return _cosh(x)

    def vjp(g, x):
        return g * sinh(x)


@elementwise(result="float")
class tanh:
    """The hyperbolic tangent of x.

    >>> trident.tanh(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7616])
    """

    def numpy(x):
        return np.tanh(x)

    @jit
    def triton(x):
        return _tanh(x)

    def vjp(g, out):
        return g * (1 - out * out)


@elementwise(result="float")
class asinh:
    """The inverse hyperbolic sine of x.

    >>> trident.asinh(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 0.8814])
    """

    def numpy(x):
        return np.arcsinh(x)

    @jit
    def triton(x):
        return _asinh(x)

    def vjp(g, x):
        return g * rsqrt(x * x + 1)


@elementwise(result="float", domain=Interval(1.1, 8.0))
class acosh:
    """The inverse hyperbolic cosine of x; NaN below 1.

    >>> trident.acosh(trident.tensor([1.0, 2.0]))
    tensor([0.0000, 1.3170])
    """

    def numpy(x):
        return np.arccosh(x)

    @jit
    def triton(x):
        return _acosh(x)

    def vjp(g, x):
        return g * rsqrt((x - 1) * (x + 1))


@elementwise(result="float", domain=UNIT)
class atanh:
    """The inverse hyperbolic tangent of x; +-inf at +-1, NaN beyond.

    >>> trident.atanh(trident.tensor([0.0, 0.5]))
    tensor([0.0000, 0.5493])
    """

    def numpy(x):
        return np.arctanh(x)

    @jit
    def triton(x):
        return _atanh(x)

    def vjp(g, x):
        return g / ((1 - x) * (1 + x))


@elementwise(result="float", domain=NONZERO)
class sinc:
    """sin(pi * x) / (pi * x), and 1 at 0.

    >>> trident.sinc(trident.tensor([0.0, 0.5]))
    tensor([1.0000, 0.6366])
    """

    def numpy(x):
        t = np.multiply(x, _PI)
        return select(np.equal(t, 0), 1.0, np.sin(t) / t)

    @jit
    def triton(x):
        t = x * _PI
        return tl.where(t == 0, 1.0, div_exact(tl.sin(t), tl.where(t == 0, 1.0, t)))

    def vjp(g, x, out):
        slope = (cos(x * _PI) - out) / where(x == 0, 1.0, x)
        return g * where(x == 0, 0.0, slope)


@elementwise(result="float")
class deg2rad:
    """x degrees in radians.

    >>> trident.deg2rad(trident.tensor([180.0]))
    tensor([3.1416])
    """

    def numpy(x):
        return np.multiply(x, _DEGREE)

    @jit
    def triton(x):
        return x * _DEGREE

    def vjp(g):
        return g * _DEGREE


@elementwise(result="float")
class rad2deg:
    """x radians in degrees.

    >>> trident.rad2deg(trident.tensor([1.0]))
    tensor([57.2958])
    """

    def numpy(x):
        return np.multiply(x, _RADIAN)

    @jit
    def triton(x):
        return x * _RADIAN

    def vjp(g):
        return g * _RADIAN
