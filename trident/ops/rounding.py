"""Rounding to whole numbers. The gradients are 0, but that of ``frac``, which is 1."""

from __future__ import annotations

import numpy as np

from ..kernels.device_math import div_exact, round_even
from ..kernels.device_math import trunc as _trunc
from ..lang import jit, tl
from .arithmetic import zero
from .registry import Interval, elementwise

_BETWEEN = Interval(0.05, 0.45)


@elementwise(takes="number", domain=_BETWEEN)
class floor:
    """The largest whole number not above x; integers stay as they are.

    >>> trident.floor(trident.tensor([-1.5, 1.5]))
    tensor([-2.,  1.])
    """

    def numpy(x):
        return np.floor(x)

    @jit
    def triton(x):
        if x.dtype.is_floating():
            return tl.floor(x)
        else:
            return x

    def vjp(g):
        return zero(g)


@elementwise(takes="number", domain=_BETWEEN)
class ceil:
    """The smallest whole number not below x; integers stay as they are.

    >>> trident.ceil(trident.tensor([-1.5, 1.5]))
    tensor([-1.,  2.])
    """

    def numpy(x):
        return np.ceil(x)

    @jit
    def triton(x):
        if x.dtype.is_floating():
            return tl.ceil(x)
        else:
            return x

    def vjp(g):
        return zero(g)


@elementwise(takes="number", domain=_BETWEEN)
class trunc:
    """x rounded towards zero; integers stay as they are.

    >>> trident.trunc(trident.tensor([-1.5, 1.5]))
    tensor([-1.,  1.])
    """

    def numpy(x):
        return np.trunc(x)

    @jit
    def triton(x):
        return _trunc(x)

    def vjp(g):
        return zero(g)


@elementwise(takes="number", domain=_BETWEEN)
class round:
    """x rounded to the nearest multiple of 10**-decimals, ties to even; integers stay as they are.

    >>> trident.round(trident.tensor([0.5, 1.5, -2.6]))
    tensor([ 0.,  2., -3.])
    """

    def numpy(x, *, decimals=0):
        x = np.asarray(x)
        if x.dtype.kind != "f":
            return x.copy()
        if decimals == 0:
            return np.rint(x)
        unit = 10.0 ** (decimals if decimals > 0 else -decimals)
        return np.rint(x * unit) / unit if decimals > 0 else np.rint(x / unit) * unit

    @jit
    def triton(x, decimals: tl.constexpr):
        if x.dtype.is_floating():
            if decimals > 0:
                up: tl.constexpr = 10.0**decimals
                return div_exact(round_even(x * up), tl.full((), up, x.dtype))
            else:
                if decimals < 0:
                    down: tl.constexpr = 10.0 ** (-decimals)
                    return round_even(div_exact(x, tl.full((), down, x.dtype))) * down
        return round_even(x)

    def vjp(g):
        return zero(g)


@elementwise(takes="float", domain=_BETWEEN)
class frac:
    """x - trunc(x): what follows the decimal point, with the sign of x.

    >>> trident.frac(trident.tensor([-1.5, 2.25]))
    tensor([-0.5000,  0.2500])
    """

    def numpy(x):
        return x - np.trunc(x)

    @jit
    def triton(x):
        return x - _trunc(x)

    def vjp(g):
        return g
