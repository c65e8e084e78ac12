"""Larger, smaller, limited: maximum, minimum, clamp and their kin."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import wrong
from ..lang import jit, tl
from .arithmetic import where
from .registry import Interval, composite, elementwise

_LOW = Interval(-4.0, -1.0)
_HIGH = Interval(1.0, 4.0)
_WIDE = Interval(-8.0, 8.0)


@elementwise
class maximum:
    """The larger of x and y; NaN where either is NaN. Equal operands share the gradient in halves.

    >>> trident.maximum(trident.tensor([1.0, 5.0]), trident.tensor([3.0, 2.0]))
    tensor([3., 5.])
    """

    def numpy(x, y):
        return np.maximum(x, y)

    @jit
    def triton(x, y):
        return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)

    def vjp(g, x, y):
        shared = where(x == y, 0.5 * g, g)
        return where(x < y, 0.0, shared), where(y < x, 0.0, shared)


@elementwise
class minimum:
    """The smaller of x and y; NaN where either is NaN. Equal operands share the gradient in halves.

    >>> trident.minimum(trident.tensor([1.0, 5.0]), trident.tensor([3.0, 2.0]))
    tensor([1., 2.])
    """

    def numpy(x, y):
        return np.minimum(x, y)

    @jit
    def triton(x, y):
        return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)

    def vjp(g, x, y):
        shared = where(x == y, 0.5 * g, g)
        return where(x > y, 0.0, shared), where(y > x, 0.0, shared)


@elementwise
class fmax:
    """The larger of x and y; where one is NaN, the other. Equal operands: the gradient goes to x.

    >>> trident.fmax(trident.tensor([1.0, float("nan")]), trident.tensor([3.0, 2.0]))
    tensor([3., 2.])
    """

    def numpy(x, y):
        return np.fmax(x, y)

    @jit
    def triton(x, y):
        return tl.maximum(x, y)

    def vjp(g, x, y):
        first = (x >= y) | (y != y)
        return where(first, g, 0.0), where(first, 0.0, g)


@elementwise
class fmin:
    """The smaller of x and y; where one is NaN, the other. Equal operands: the gradient goes to x.

    >>> trident.fmin(trident.tensor([1.0, float("nan")]), trident.tensor([3.0, 2.0]))
    tensor([1., 2.])
    """

    def numpy(x, y):
        return np.fmin(x, y)

    @jit
    def triton(x, y):
        return tl.minimum(x, y)

    def vjp(g, x, y):
        first = (x <= y) | (y != y)
        return where(first, g, 0.0), where(first, 0.0, g)


@elementwise(domain=(_WIDE, _LOW))
class clamp_min:
    """max(x, min); NaN stays NaN. At the bound the gradient goes to x.

    >>> trident.clamp_min(trident.tensor([-3.0, 3.0]), -1.0)
    tensor([-1.,  3.])
    """

    def numpy(x, min):
        return np.maximum(x, min)

    @jit
    def triton(x, min):
        return tl.maximum(x, min, propagate_nan=tl.PropagateNan.ALL)

    def vjp(g, x, min):
        return where(x >= min, g, 0.0), where(x < min, g, 0.0)


@elementwise(domain=(_WIDE, _HIGH))
class clamp_max:
    """min(x, max); NaN stays NaN. At the bound the gradient goes to x.

    >>> trident.clamp_max(trident.tensor([-3.0, 3.0]), 1.0)
    tensor([-3.,  1.])
    """

    def numpy(x, max):
        return np.minimum(x, max)

    @jit
    def triton(x, max):
        return tl.minimum(x, max, propagate_nan=tl.PropagateNan.ALL)

    def vjp(g, x, max):
        return where(x <= max, g, 0.0), where(x > max, g, 0.0)


@elementwise(domain=(_WIDE, _LOW, _HIGH), method=False)
class clamp_both:
    """min(max(x, min), max) in one pass: ``clamp`` with both bounds.

    >>> trident.clamp_both(trident.tensor([-3.0, 0.5, 3.0]), -1.0, 1.0)
    tensor([-1.0000,  0.5000,  1.0000])
    """

    def numpy(x, min, max):
        return np.minimum(np.maximum(x, min), max)

    @jit
    def triton(x, min, max):
        raised = tl.maximum(x, min, propagate_nan=tl.PropagateNan.ALL)
        return tl.minimum(raised, max, propagate_nan=tl.PropagateNan.ALL)

    def vjp(g, x, min, max):
        inside = (x >= min) & (x <= max)
        below = (x < min) & (min < max)
        above = (x > max) | (min > max)
        return where(inside, g, 0.0), where(below, g, 0.0), where(above, g, 0.0)


@composite
def clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    """input limited to [min, max]; bounds are numbers, tensors or absent. NaN stays NaN.

    The gradient passes where min <= input <= max, bounds included. Where min > max, max is given.

    >>> trident.clamp(trident.tensor([-3.0, 0.5, 3.0]), -1.0, 1.0)
    tensor([-1.0000,  0.5000,  1.0000])
    """
    if min is not None and max is not None:
        return clamp_both(input, min, max)
    if min is not None:
        return clamp_min(input, min)
    if max is not None:
        return clamp_max(input, max)
    raise wrong("clamp", "at least one of min and max must be given", error=ValueError)


@elementwise
class nan_to_num:
    """x with NaN, inf and -inf replaced by numbers; see the public ``nan_to_num``.

    >>> trident.nan_to_num(trident.tensor([float("nan"), 1.0]), 5.0)
    tensor([5., 1.])
    """

    def numpy(x, *, nan=0.0, posinf=None, neginf=None):
        return np.nan_to_num(x, nan=nan or 0.0, posinf=posinf, neginf=neginf)

    @jit
    def triton(x, nan: tl.constexpr, posinf: tl.constexpr, neginf: tl.constexpr):
        if x.dtype.is_floating():
            if x.dtype == tl.float64:
                high: tl.constexpr = 1.7976931348623157e308
            else:
                high: tl.constexpr = 3.4028234663852886e38
            r = tl.where(x == float("inf"), high if posinf is None else posinf, x)
            r = tl.where(x == -float("inf"), -high if neginf is None else neginf, r)
            return tl.where(x != x, 0.0 if nan is None else nan, r)
        else:
            return x

    def vjp(g, x):
        return where((x - x) == 0, g, 0.0)


_nan_to_num = nan_to_num


@composite
def nan_to_num(
    input: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Any:
    """input with NaN, inf and -inf replaced by ``nan``, ``posinf`` and ``neginf``.

    ``posinf`` and ``neginf`` default to the largest and the lowest number of the dtype. The
    gradient is 0 where something was replaced.

    >>> trident.nan_to_num(trident.tensor([float("nan"), 1.0]), 5.0)
    tensor([5., 1.])
    """
    from ..dtypes import HALVES, finfo

    dtype = getattr(input, "dtype", None)
    if dtype in HALVES:  # the body computes in float32, whose largest number rounds to inf
        posinf = finfo(dtype).max if posinf is None else posinf
        neginf = finfo(dtype).min if neginf is None else neginf
    return _nan_to_num(input, nan=nan, posinf=posinf, neginf=neginf)
