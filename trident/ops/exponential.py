"""Exponentials, logarithms and the sigmoid family."""

from __future__ import annotations

import numpy as np

from ..kernels.device_math import div_exact, exp_accurate, typed
from ..kernels.device_math import expm1 as _expm1
from ..kernels.device_math import log1p as _log1p
from ..kernels.device_math import sigmoid as _sigmoid
from ..lang import jit, tl
from .arithmetic import where, zero
from .blockwise import blockwise
from .registry import POSITIVE, REALS, Interval, elementwise

_LN2 = 0.6931471805599453
_LN10 = 2.302585092994046
_INSIDE = Interval(0.05, 0.95)


@elementwise(result="float")
class exp:
    """e**x.

    >>> trident.exp(trident.tensor([0.0, 1.0]))
    tensor([1.0000, 2.7183])
    """

    def numpy(x):
        return np.exp(x)

    @jit
    def triton(x):
        return exp_accurate(x)

    def vjp(g, out):
        return g * out


@elementwise(result="float")
class exp2:
    """2**x.

    >>> trident.exp2(trident.tensor([0.0, 3.0]))
    tensor([1., 8.])
    """

    def numpy(x):
        return np.exp2(x)

    @jit
    def triton(x):
        return tl.exp2(x)

    def vjp(g, out):
        return g * (out * _LN2)


@elementwise(result="float")
class expm1:
    """e**x - 1, accurate near 0.

    >>> trident.expm1(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 1.7183])
    """

    def numpy(x):
        return np.expm1(x)

    @jit
    def triton(x):
        return _expm1(x)

    def vjp(g, out):
        return g * (out + 1)


@elementwise(result="float", domain=POSITIVE)
class log:
    """The natural logarithm of x; -inf at 0, NaN below.

    >>> trident.log(trident.tensor([1.0, 2.0]))
    tensor([0.0000, 0.6931])
    """

    def numpy(x):
        return np.log(x)

    @jit
    def triton(x):
        return tl.log(x)

    def vjp(g, x):
        return g / x


@elementwise(result="float", domain=POSITIVE)
class log2:
    """The logarithm of x to base 2; -inf at 0, NaN below.

    >>> trident.log2(trident.tensor([1.0, 8.0]))
    tensor([0., 3.])
    """

    def numpy(x):
        return np.log2(x)

    @jit
    def triton(x):
        return tl.log2(x)

    def vjp(g, x):
        return g / (x * _LN2)


@elementwise(result="float", domain=POSITIVE)
class log10:
    """The logarithm of x to base 10; -inf at 0, NaN below.

    >>> trident.log10(trident.tensor([1.0, 2.0]))
    tensor([0.0000, 0.3010])
    """

    def numpy(x):
        return np.log10(x)

    @jit
    def triton(x):
        return tl.log(x) * 0.4342944819032518

    def vjp(g, x):
        return g / (x * _LN10)


@elementwise(result="float", domain=Interval(-0.9, 8.0))
class log1p:
    """log(1 + x), accurate near 0; -inf at -1, NaN below.

    >>> trident.log1p(trident.tensor([0.0, 1.0]))
    tensor([0.0000, 0.6931])
    """

    def numpy(x):
        return np.log1p(x)

    @jit
    def triton(x):
        return _log1p(x)

    def vjp(g, x):
        return g / (1 + x)


@elementwise(result="float")
class sigmoid:
    """1 / (1 + e**-x), accurate in both tails.

    >>> trident.sigmoid(trident.tensor([0.0, 2.0]))
    tensor([0.5000, 0.8808])
    """

    @blockwise
    def numpy(x):
        t = np.empty_like(x)
        np.negative(x, out=t)
        np.exp(t, out=t)
        t += 1
        return np.divide(1, t, out=t)

    @jit
    def triton(x):
        return _sigmoid(x)

    def vjp(g, out):
        return g * (out * (1 - out))


@elementwise(result="float", method=False)
class logsigmoid:
    """log(1 / (1 + e**-x)) without overflow.

    >>> trident.logsigmoid(trident.tensor([0.0, 2.0]))
    tensor([-0.6931, -0.1269])
    """

    @blockwise
    def numpy(x):
        t = np.empty_like(x)
        np.abs(x, out=t)
        np.negative(t, out=t)
        np.exp(t, out=t)
        np.log1p(t, out=t)
        return np.subtract(np.minimum(x, 0), t, out=t)

    @jit
    def triton(x):
        low = tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return low - _log1p(exp_accurate(-tl.abs(x)))

    def vjp(g, x):
        return g * sigmoid(-x)


@elementwise(result="float")
class logaddexp:
    """log(e**x + e**y) without overflow.

    >>> trident.logaddexp(trident.tensor([0.0]), trident.tensor([1.0]))
    tensor([1.3133])
    """

    def numpy(x, y):
        return np.logaddexp(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        gap = tl.where(x == y, 0.0, tl.abs(x - y))
        return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL) + _log1p(exp_accurate(-gap))

    def vjp(g, x, y):
        # equal infinities share alike; their difference is NaN
        share = sigmoid(where((x == y) & (x - x != 0), 0.0, x - y))
        return g * share, g * (1 - share)


@elementwise(result="float", domain=_INSIDE)
class logit:
    """log(x / (1 - x)), the inverse of sigmoid; with ``eps``, x is first limited to [eps, 1 - eps].

    >>> trident.logit(trident.tensor([0.5, 0.9]))
    tensor([0.0000, 2.1972])
    """

    def numpy(x, *, eps=None):
        if eps is not None:
            x = np.minimum(np.maximum(x, eps), 1 - eps)
        return np.log(x / (1 - x))

    @jit
    def triton(x, eps: tl.constexpr):
        if eps is not None:
            x = tl.maximum(x, typed(eps, x), propagate_nan=tl.PropagateNan.ALL)
            x = tl.minimum(x, typed(1 - eps, x), propagate_nan=tl.PropagateNan.ALL)
        return tl.log(div_exact(x, 1 - x))

    def vjp(g, x, eps):
        low = 0.0 if eps is None else eps
        inside = (x >= low) & (x <= 1 - low)
        safe = where(inside, x, 0.5)
        return where(inside, g / (safe * (1 - safe)), float("nan") if eps is None else 0.0)


@elementwise(result="float", domain=(REALS, POSITIVE))
class xlogy:
    """x * log(y), and 0 where x is 0 and y is not NaN.

    >>> trident.xlogy(trident.tensor([0.0, 2.0]), trident.tensor([0.0, 1.0]))
    tensor([0., 0.])
    """

    def numpy(x, y):
        return np.where(
            np.equal(x, 0) & ~np.isnan(y), 0.0, x * np.log(y, dtype=np.result_type(x, y))
        )

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        return tl.where((x == 0) & (y == y), 0.0, x * tl.log(y))

    def vjp(g, x, y):
        gx = xlogy(g, where((x == 0) & (y <= 0), 1.0, y + zero(g)))
        return gx, g * (x / where((x == 0) & (y == 0), 1.0, y))
