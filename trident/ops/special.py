"""The error function and its kin. numpy has none: scipy's, and our own for float32."""

from __future__ import annotations

import numpy as np

from ..kernels.device_math import erfc as _erfc
from ..kernels.device_math import erfinv as _erfinv
from ..lang import jit, tl
from .blockwise import blockwise, select
from .exponential import exp
from .power import square
from .registry import UNIT, elementwise

_TWO_BY_ROOT_PI = 1.1283791670955126
_ROOT_PI_BY_TWO = 0.886226925452758

# (1 + 2 a) e**(a*a) erfc(a) for a >= 0 as a polynomial in (a - 3) / (a + 3), highest power first
_ERFC_TAIL = (
    -2.76390256e-4, -7.95749233e-4, 1.99637574e-3, 2.57884536e-3, -2.3791348e-2, 6.82933674e-2,
    -1.19272474e-1, 1.29646612e-1, -4.75622894e-2, -1.35621145e-1, 1.25300806,
)  # fmt: skip

# erf(x) / x as a series in x * x, highest power first; for x * x < 0.75
_ERF_SERIES = (
    1.64621144e-06, -1.49256504e-05, 0.00012055333, -0.000854832702, 0.00522397763,
    -0.0268661706, 0.112837917, -0.376126389, 1.12837917,
)  # fmt: skip


def _horner(coefficients: tuple[float, ...], t: np.ndarray) -> np.ndarray:
    r = np.multiply(t, coefficients[0], out=np.empty_like(t))
    for c in coefficients[1:-1]:
        r += c
        r *= t
    r += coefficients[-1]
    return r


def erfc_float32(x: np.ndarray) -> np.ndarray:
    """1 - erf(x) of a float32 array, in passes that numpy vectorises (scipy's is scalar code)."""
    a = np.abs(x, out=np.empty_like(x))
    np.minimum(a, 10.5, out=a)
    t = np.add(a, 3, out=np.empty_like(a))
    np.divide(np.subtract(a, 3), t, out=t)
    r = _horner(_ERFC_TAIL, t)
    # e**(-a*a) in two factors: the rounding error of a * a would be scaled by a * a
    high = np.bitwise_and(a.view(np.int32), -0x1000, out=t.view(np.int32)).view(np.float32)
    low = np.subtract(high, a, out=np.empty_like(a))
    low *= high + a
    r *= np.exp(low, out=low)
    high *= high
    r *= np.exp(np.negative(high, out=high), out=high)
    a *= 2
    a += 1
    r /= a
    side = np.copysign(np.float32(1), x, out=a)  # -r + 2 below 0, r + 0 above
    r *= side
    np.subtract(1, side, out=side)
    return np.add(r, side, out=r)


def _erf_float32(x: np.ndarray) -> np.ndarray:
    """erf(x) of a float32 array: its series near 0, where 1 - erfc(x) would cancel."""
    far = np.subtract(1, erfc_float32(x), out=np.empty_like(x))
    square = np.multiply(x, x, out=np.empty_like(x))
    near = _horner(_ERF_SERIES, square)
    near *= x
    return select(square < 0.75, near, far)


@elementwise(result="float")
class erf:
    """2 / sqrt(pi) times the integral of e**(-t*t) from 0 to x.

    >>> trident.erf(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 0.8427])
    """

    @blockwise
    def numpy(x):
        if x.dtype == np.float32:
            return _erf_float32(x)
        from scipy.special import erf

        return erf(x)

    @jit
    def triton(x):
        return tl.erf(x)

    def vjp(g, x):
        return g * (exp(-square(x)) * _TWO_BY_ROOT_PI)


@elementwise(result="float")
class erfc:
    """1 - erf(x), accurate where erf(x) is near 1.

    >>> trident.erfc(trident.tensor([0.0, 1.0]))
    tensor([1.0000, 0.1573])
    """

    @blockwise
    def numpy(x):
        if x.dtype == np.float32:
            return erfc_float32(x)
        from scipy.special import erfc

        return erfc(x)

    @jit
    def triton(x):
        return _erfc(x)

    def vjp(g, x):
        return g * (exp(-square(x)) * -_TWO_BY_ROOT_PI)


@elementwise(result="float", domain=UNIT)
class erfinv:
    """The inverse of erf; +-inf at +-1, NaN beyond.

    >>> trident.erfinv(trident.tensor([0.0, 0.5]))
    tensor([0.0000, 0.4769])
    """

    def numpy(x):
        from scipy.special import erfinv

        return np.copysign(erfinv(x), x)

    @jit
    def triton(x):
        return _erfinv(x)

    def vjp(g, out):
        return g * (exp(square(out)) * _ROOT_PI_BY_TWO)
