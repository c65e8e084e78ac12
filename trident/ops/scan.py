"""Running sums, products, extrema and linear recurrences along an axis."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import DTypeError, wrong
from ..kernels import scan as kernels
from .reduction import distinct
from .registry import Spec, composite, ops, primitive


def _cumulated(op: str, x: Any, dim: int, dtype: DType | None) -> Spec:
    shapes.axis(op, dim, x.ndim)
    if dtype is None:
        dtype = x.dtype if x.dtype.is_floating_point else dtypes.int64
    return Spec(tuple(x.shape), dtypes.as_dtype(dtype))


def _numpy(function: Any, x: np.ndarray, dim: int, dtype: DType | None) -> np.ndarray:
    if x.ndim == 0:
        x, dim = x.reshape(1), 0
        return _numpy(function, x, dim, dtype).reshape(())
    if dtype is not None:
        dtype = dtypes.as_dtype(dtype)
        return function(x, axis=dim, dtype=dtype.compute.np).astype(dtype.np, copy=False)
    return function(x, axis=dim, dtype=None if x.dtype.kind == "f" else np.int64)


def _launch(out: Any, x: Any, dim: int, product: bool) -> None:
    if x.ndim == 0:
        x, out, dim = x.reshape((1,)), out.reshape((1,)), 0
    kernels.cumulate(out, x, dim=shapes.axis("cumsum", dim, x.ndim), product=product)


def _samples(draw: Any) -> tuple[tuple, dict]:
    if draw.integer(0, 3) == 3:  # three axes of lines that cannot be walked as one
        return (draw.tensor(draw.box(4)),), {"dim": -1}
    shape = draw.shape(1, 4)
    return (draw.tensor(shape),), {"dim": draw.integer(-len(shape), len(shape) - 1)}


@primitive
class cumsum:
    """Running sum of x along ``dim``, of x's shape. Integers and bool give int64.

    >>> trident.cumsum(trident.tensor([1., 2., 3.]), dim=0)
    tensor([1., 3., 6.])
    """

    def infer(x, *, dim, dtype=None):
        return _cumulated("cumsum", x, dim, dtype)

    def numpy(x, *, dim, dtype=None):
        return _numpy(np.cumsum, x, dim, dtype)

    def launch(out, x, *, dim, dtype=None):
        _launch(out, x, dim, product=False)

    def vjp(g, *, dim):
        if g.ndim == 0:
            return g
        return ops.flip(ops.cumsum(ops.flip(g, (dim,)), dim=dim), (dim,))

    def samples(draw):
        return _samples(draw)


@primitive
class cumprod:
    """Running product of x along ``dim``, of x's shape. Gradients hold where x has zeros.

    >>> trident.cumprod(trident.tensor([1., 2., 3.]), dim=0)
    tensor([1., 2., 6.])
    """

    def infer(x, *, dim, dtype=None):
        return _cumulated("cumprod", x, dim, dtype)

    def numpy(x, *, dim, dtype=None):
        return _numpy(np.cumprod, x, dim, dtype)

    def launch(out, x, *, dim, dtype=None):
        _launch(out, x, dim, product=True)

    def vjp(g, x, out, *, dim):
        # dx[k] = out[k-1] * s[k], where s[k] = g[k] + x[k+1] s[k+1]: no division, so zeros are
        # right
        if g.ndim == 0:
            return g
        if x.dtype is not g.dtype:
            x = ops.to_dtype(x, dtype=g.dtype)
        s = ops.linear_scan(_shifted(x, dim, 1, 0.0), g, dim=dim, reverse=True)
        return _shifted(out, dim, -1, 1.0) * s

    def samples(draw):
        return _samples(draw)


def _shifted(x: Any, dim: int, by: int, fill: float) -> Any:
    """y[t] = x[t + by] along ``dim`` for by = 1 or -1, and ``fill`` where that lies outside."""
    n = x.shape[dim]
    if n == 0:
        return x
    shape = list(x.shape)
    shape[dim] = 1
    edge = ops.full_like(x, value=fill, shape=tuple(shape))
    if n == 1:
        return edge
    if by == 1:
        return ops.cat([ops.narrow(x, dim, 1, n - 1), edge], dim)
    return ops.cat([edge, ops.narrow(x, dim, 0, n - 1)], dim)


@primitive(method=False)
class linear_scan:
    """h[t] = a[t] h[t-1] + b[t] along ``dim``, starting from h[0] = b[0]; a and b have one shape.

    ``reverse=True`` runs from the end. This is the recurrence of discounted returns, of exponential
    averages and of diagonal state-space models; the kernel scans it in parallel.

    >>> a = trident.tensor([0.5, 0.5, 0.5])
    >>> trident.linear_scan(a, trident.ones(3), dim=0)
    tensor([1.0000, 1.5000, 1.7500])
    """

    def infer(a, b, *, dim, reverse=False):
        if tuple(a.shape) != tuple(b.shape):
            raise wrong("linear_scan", f"b must have the shape of a, {tuple(a.shape)}", got=b.shape)
        if a.dtype is not b.dtype or not a.dtype.is_floating_point:
            raise wrong(
                "linear_scan",
                "a and b must have one floating dtype",
                got=f"{a.dtype.name} and {b.dtype.name}",
                error=DTypeError,
            )
        shapes.axis("linear_scan", dim, a.ndim)
        if a.ndim == 0:
            raise wrong("linear_scan", "a must have at least one axis", got="shape ()")
        return Spec(tuple(a.shape), a.dtype)

    def numpy(a, b, *, dim, reverse=False):
        if a.shape != b.shape or a.dtype != b.dtype or a.dtype.kind != "f":
            raise ValueError("shapes or dtypes differ")
        out = np.empty_like(b, order="C")
        a, b, h = np.moveaxis(a, dim, 0), np.moveaxis(b, dim, 0), np.moveaxis(out, dim, 0)
        if reverse:
            a, b, h = a[::-1], b[::-1], h[::-1]
        if len(b):
            h[0] = b[0]
        for t in range(1, len(b)):
            np.multiply(a[t], h[t - 1], out=h[t, ...])
            h[t] += b[t]
        return out

    def launch(out, a, b, *, dim, reverse=False):
        kernels.linear(out, a, b, dim=shapes.axis("linear_scan", dim, a.ndim), reverse=reverse)

    def vjp(g, a, out, *, dim, reverse, needs):
        by = -1 if reverse else 1
        db = ops.linear_scan(_shifted(a, dim, by, 0.0), g, dim=dim, reverse=not reverse)
        return db * _shifted(out, dim, -by, 0.0) if needs[0] else None, db

    def samples(draw):
        shape = draw.box(4) if draw.boolean() else draw.shape(1, 4)
        dim = draw.integer(-len(shape), len(shape) - 1)
        args = draw.tensor(shape, low=-1.0, high=1.0), draw.tensor(shape)
        return args, {"dim": dim, "reverse": draw.boolean()}


def _extremum_numpy(x: np.ndarray, dim: int, largest: bool) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim == 0:
        return x, np.zeros((), np.int64)
    values = (np.maximum if largest else np.minimum).accumulate(x, axis=dim)
    moved = np.moveaxis(x, dim, -1)
    # where the running extremum is met (again); after a NaN only NaNs meet it
    met = moved == np.moveaxis(values, dim, -1)
    if x.dtype.kind == "f":
        met |= np.isnan(moved)
    at = np.where(met, np.arange(moved.shape[-1]), 0)
    return values, np.moveaxis(np.maximum.accumulate(at, axis=-1), -1, dim)


def _extremum_infer(op: str, x: Any, dim: int) -> tuple[Spec, Spec]:
    shapes.axis(op, dim, x.ndim)
    return Spec(tuple(x.shape), x.dtype), Spec(tuple(x.shape), dtypes.int64)


def _extremum_vjp(g: tuple, out: tuple, dim: int) -> Any:
    if g[0].ndim == 0:
        return g[0]
    zeros = ops.full_like(g[0], value=0.0)
    return ops.scatter_add(zeros, dim, out[1], g[0])


def _extremum_launch(out: Any, x: Any, dim: int, largest: bool) -> None:
    values, indices = out
    if x.ndim == 0:
        x, values, indices, dim = x.reshape((1,)), values.reshape((1,)), indices.reshape((1,)), 0
    dim = shapes.axis("cummax", dim, x.ndim)
    kernels.extremum(values, indices, x, dim=dim, largest=largest)


@primitive(method=False)
class cummax_along:
    """(values, indices) of the running maximum along ``dim``; the last of equals."""

    def infer(x, *, dim):
        return _extremum_infer("cummax", x, dim)

    def numpy(x, *, dim):
        return _extremum_numpy(x, dim, True)

    def launch(out, x, *, dim):
        _extremum_launch(out, x, dim, True)

    def vjp(g, out, *, dim):
        return _extremum_vjp(g, out, dim)

    def samples(draw):
        (x,), attrs = _samples(draw)
        return (distinct(draw, x),), attrs


@primitive(method=False)
class cummin_along:
    """(values, indices) of the running minimum along ``dim``; the last of equals."""

    def infer(x, *, dim):
        return _extremum_infer("cummin", x, dim)

    def numpy(x, *, dim):
        return _extremum_numpy(x, dim, False)

    def launch(out, x, *, dim):
        _extremum_launch(out, x, dim, False)

    def vjp(g, out, *, dim):
        return _extremum_vjp(g, out, dim)

    def samples(draw):
        (x,), attrs = _samples(draw)
        return (distinct(draw, x),), attrs


cummax_result = namedtuple("cummax_result", ["values", "indices"])
cummin_result = namedtuple("cummin_result", ["values", "indices"])


@composite
def cummax(x: Any, dim: int) -> cummax_result:
    """Running maximum along ``dim`` and its indices; the last of equals, and NaN once there is one.

    >>> trident.cummax(trident.tensor([1., 3., 2.]), 0).values
    tensor([1., 3., 3.])
    """
    return cummax_result(*ops.cummax_along(x, dim=dim))


@composite
def cummin(x: Any, dim: int) -> cummin_result:
    """Running minimum along ``dim`` and its indices; the last of equals, and NaN once there is one.

    >>> trident.cummin(trident.tensor([2., 3., 1.]), 0).indices
    tensor([0, 0, 2])
    """
    return cummin_result(*ops.cummin_along(x, dim=dim))
