"""What is made of reductions: extrema with their indices, variances and norms."""

from __future__ import annotations

import math
from collections import namedtuple
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import wrong
from .reduction import Dims, float_only, not_empty
from .registry import composite, ops

max_result = namedtuple("max_result", ["values", "indices"])
min_result = namedtuple("min_result", ["values", "indices"])


def _extremum(name: str, x: Any, dim: Any, keepdim: bool, other: Any) -> Any:
    if other is None and dim is not None and not isinstance(dim, (int, np.integer)):
        dim, other = None, dim
    if other is not None:
        if dim is not None:
            raise TypeError(f"{name}: takes dim or a second tensor, not both")
        return ops.maximum(x, other) if name == "max" else ops.minimum(x, other)
    if dim is None:
        not_empty(name, x, None)
        return ops.amax(x) if name == "max" else ops.amin(x)
    along = ops.max_along if name == "max" else ops.min_along
    result = max_result if name == "max" else min_result
    return result(*along(x, dim=int(dim), keepdim=keepdim))


@composite
def max(
    x: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None, axis: int | None = None
) -> Any:
    """The maximum: ``max(x)`` of all elements; ``max(x, dim)`` a (values, indices) named tuple
    along an axis; ``max(x, y)`` elementwise. Gradients of ``max(x)`` are shared evenly among
    equals; those of ``max(x, dim)`` go to the index that was found.

    >>> trident.max(trident.tensor([[1., 5.], [3., 4.]]), 1).indices
    tensor([1, 1])
    """
    return _extremum("max", x, dim if axis is None else axis, keepdim, other)


@composite
def min(
    x: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None, axis: int | None = None
) -> Any:
    """The minimum: ``min(x)``, ``min(x, dim)`` (values, indices), or ``min(x, y)``; see ``max``.

    >>> trident.min(trident.tensor([[1., 5.], [3., 4.]]), 1).values
    tensor([1., 3.])
    """
    return _extremum("min", x, dim if axis is None else axis, keepdim, other)


def _moments(
    op: str, x: Any, dim: Any, unbiased: bool | None, correction: float | None, keepdim: bool
) -> tuple[Any, Any]:
    """(variance, mean)."""
    float_only(op, x)
    if isinstance(dim, bool):  # the old form var(x, unbiased)
        dim, unbiased = None, dim
    if unbiased is not None:
        if correction is not None:
            raise TypeError(f"{op}: takes correction or unbiased, not both")
        correction = 1 if unbiased else 0
    if correction is None:
        correction = 1
    over = shapes.axes(op, dim, x.ndim)
    n = shapes.numel(x.shape[a] for a in over)
    middle = ops.mean(x, over, True) if over else x
    away = x - middle
    total = ops.sum(away * away, over, keepdim) if over else away * away
    left = n - correction
    variance = total / float(left if left > 0 else 0)
    if not keepdim and over:
        middle = ops.reshape(middle, shape=shapes.reduced(tuple(x.shape), over, False))
    return variance, middle


@composite
def var(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """sum((x - mean)^2) / (n - correction) over ``dim``; correction is 1 (unbiased) by default.

    >>> trident.var(trident.tensor([1., 2., 3.]))
    tensor(1.)
    """
    return _moments("var", x, dim, unbiased, correction, keepdim)[0]


@composite
def std(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """The square root of ``var``.

    >>> trident.std(trident.tensor([1., 3., 5.]))
    tensor(2.)
    """
    return ops.sqrt(_moments("std", x, dim, unbiased, correction, keepdim)[0])


@composite
def var_mean(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Any, Any]:
    """(var, mean) over ``dim``.

    >>> trident.var_mean(trident.tensor([1., 2., 3.]))
    (tensor(1.), tensor(2.))
    """
    return _moments("var_mean", x, dim, unbiased, correction, keepdim)


@composite
def std_mean(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Any, Any]:
    """(std, mean) over ``dim``.

    >>> trident.std_mean(trident.tensor([1., 3., 5.]))
    (tensor(2.), tensor(3.))
    """
    variance, middle = _moments("std_mean", x, dim, unbiased, correction, keepdim)
    return ops.sqrt(variance), middle


def _root(total: Any, power: float) -> Any:
    """total ** (1 / power) whose gradient at 0 is 0, not NaN."""
    zero = ops.eq(total, 0.0)
    safe = ops.where(zero, 1.0, total)
    root = ops.sqrt(safe) if power == 2 else ops.pow(safe, 1.0 / power)
    return ops.where(zero, 0.0, root)


@composite(method=False)
def vector_norm(
    x: Any, ord: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: DType | None = None
) -> Any:
    """(sum |x|^ord)^(1/ord) over ``dim``; ord inf and -inf are the largest and smallest |x|, ord 0
    counts what is not zero. The gradient at 0 is 0.

    >>> trident.vector_norm(trident.tensor([3., 4.]))
    tensor(5.)
    """
    if dtype is not None:
        x = ops.to_dtype(x, dtype=dtypes.as_dtype(dtype))
    float_only("norm", x)
    over = shapes.axes("norm", dim, x.ndim)
    if ord == 2:
        return _root(_total(x * x, over, keepdim), 2)
    if ord == math.inf:
        return ops.amax(ops.abs(x), over, keepdim) if over else ops.abs(x)
    if ord == -math.inf:
        return ops.amin(ops.abs(x), over, keepdim) if over else ops.abs(x)
    if ord == 0:
        return _total(ops.to_dtype(ops.ne(x, 0.0), dtype=x.dtype), over, keepdim)
    if ord == 1:
        return _total(ops.abs(x), over, keepdim)
    return _root(_total(ops.pow(ops.abs(x), float(ord)), over, keepdim), float(ord))


def _total(x: Any, over: tuple[int, ...], keepdim: bool) -> Any:
    return ops.sum(x, over, keepdim) if over else x


@composite
def norm(
    x: Any,
    p: float | str | None = "fro",
    dim: Dims = None,
    keepdim: bool = False,
    dtype: DType | None = None,
) -> Any:
    """The p-norm of x over ``dim`` (all axes by default): ``vector_norm`` with torch's old
    signature. "fro" is 2; any number, inf and -inf are taken.

    >>> trident.norm(trident.tensor([[3., 4.], [0., 5.]]), dim=1)
    tensor([5., 5.])
    """
    if p is None or p == "fro":
        p = 2.0
    if isinstance(p, str):
        raise wrong("norm", "p must be a number, inf, -inf or 'fro'", got=repr(p), error=ValueError)
    return vector_norm(x, p, dim, keepdim, dtype=dtype)
