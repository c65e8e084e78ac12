"""Softmax, its logarithm and softmin, with backward kernels of their own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import DTypeError, wrong
from ..kernels import softmax as kernels
from .registry import Spec, composite, ops, primitive


def _infer(op: str, x: Any, dim: int | None, dtype: DType | None) -> Spec:
    if dim is not None:
        shapes.axis(op, dim, x.ndim)
    dtype = x.dtype if dtype is None else dtypes.as_dtype(dtype)
    if not dtype.is_floating_point:
        raise wrong(
            op,
            "x must have a floating dtype",
            got=dtype.name,
            error=DTypeError,
            hint="convert with x.float(), or give dtype=",
        )
    return Spec(tuple(x.shape), dtype)


def _default_axis(dim: int | None, ndim: int) -> int:
    """``dim``, or torch's old choice where there is none: axis 0 of 0, 1 or 3 axes, else axis 1."""
    return dim if dim is not None else 0 if ndim in (0, 1, 3) else 1


def _axis(op: str, dim: int | None, ndim: int) -> int:
    """``dim`` from the front; a warning where the caller left it out."""
    axis = _default_axis(dim, ndim)
    if dim is None:
        warnings.warn(f"{op}: give dim; without it axis {axis} is used", UserWarning, stacklevel=2)
    return shapes.axis(op, axis, ndim)


def _as_float(x: np.ndarray, dtype: DType | None) -> np.ndarray:
    if dtype is not None:
        return x.astype(dtypes.as_dtype(dtype).compute.np, copy=False)
    if x.dtype.kind != "f":
        raise TypeError("x must be floating")
    return x


def _rounded(r: np.ndarray, dtype: DType | None) -> np.ndarray:
    return r if dtype is None else r.astype(dtypes.as_dtype(dtype).np, copy=False)


def _flat(x: Any, out: Any, dim: int) -> tuple[Any, Any, int]:
    """0-d arrays as 1-d ones."""
    if x.ndim == 0:
        return x.reshape((1,)), out.reshape((1,)), 0
    return x, out, dim


def _samples(draw: Any) -> tuple[tuple, dict]:
    if draw.blocks == "gpu" and draw.boolean():  # no tile holds a column; 3 do not fill one
        return (draw.tensor((draw.integer(257, 300), 3)),), {"dim": 0}
    shape = draw.shape(1, 4)
    low = draw.choice([-2.0, -2.0, -602.0])  # far below 0, where exp(x) is 0
    x = draw.tensor(shape, low=low, high=low + 4.0)
    return (x,), {"dim": draw.integer(-len(shape), len(shape) - 1)}


def _backward_samples(draw: Any, log: bool) -> tuple[tuple, dict]:
    (x,), attrs = _samples(draw)
    out = np.asarray(x, np.float64)
    if out.size:
        out = out - out.max(attrs["dim"], keepdims=True)
        out = out - np.log(np.exp(out).sum(attrs["dim"], keepdims=True))
    out = out if log else np.exp(out)
    return (draw.tensor(x.shape), out.astype(x.dtype)), attrs


@primitive
class softmax:
    """exp(x) / sum(exp(x)) along ``dim``; ``dtype`` converts x first. A row of -inf gives NaN.

    >>> trident.softmax(trident.tensor([0., 0.]), dim=0)
    tensor([0.5000, 0.5000])
    """

    def infer(x, *, dim=None, dtype=None):
        return _infer("softmax", x, dim, dtype)

    def numpy(x, *, dim=None, dtype=None):
        x = _as_float(x, dtype)
        if x.ndim == 0 or not x.size:
            return _rounded(np.exp(x - x), dtype)
        axis = _axis("softmax", dim, x.ndim)
        e = x - np.maximum.reduce(x, axis=axis, keepdims=True)
        np.exp(e, out=e)
        e /= np.add.reduce(e, axis=axis, keepdims=True)
        return _rounded(e, dtype)

    def launch(out, x, *, dim=None, dtype=None):
        x, out, axis = _flat(x, out, _axis("softmax", dim, x.ndim))
        kernels.softmax(out, x, dim=axis, log=False)

    def vjp(g, out, *, dim):
        return ops.softmax_backward(g, out, dim=dim)

    def samples(draw):
        return _samples(draw)


@primitive
class log_softmax:
    """log(softmax(x)) along ``dim``, without overflow; ``dtype`` converts x first.

    >>> trident.log_softmax(trident.tensor([0., 0.]), dim=0)
    tensor([-0.6931, -0.6931])
    """

    def infer(x, *, dim=None, dtype=None):
        return _infer("log_softmax", x, dim, dtype)

    def numpy(x, *, dim=None, dtype=None):
        x = _as_float(x, dtype)
        if x.ndim == 0 or not x.size:
            return _rounded(x - x, dtype)
        axis = _axis("log_softmax", dim, x.ndim)
        shifted = x - np.maximum.reduce(x, axis=axis, keepdims=True)
        shifted -= np.log(np.add.reduce(np.exp(shifted), axis=axis, keepdims=True))
        return _rounded(shifted, dtype)

    def launch(out, x, *, dim=None, dtype=None):
        x, out, axis = _flat(x, out, _axis("log_softmax", dim, x.ndim))
        kernels.softmax(out, x, dim=axis, log=True)

    def vjp(g, out, *, dim):
        return ops.log_softmax_backward(g, out, dim=dim)

    def samples(draw):
        return _samples(draw)


@primitive(method=False)
class softmax_backward:
    """The gradient of softmax, y (grad - sum(grad y)), from the incoming one and the result
    ``y``."""

    def infer(grad, y, *, dim=None):
        return Spec(tuple(y.shape), y.dtype)

    def numpy(grad, y, *, dim=None):
        if y.ndim == 0:
            return y * (grad - grad * y)
        dx = grad * y
        total = np.add.reduce(dx, axis=_default_axis(dim, y.ndim), keepdims=True)
        dx -= y * total
        return dx

    def launch(out, grad, y, *, dim=None):
        _launch_backward(out, grad, y, dim, log=False)

    def vjp(g, grad, y, *, dim, needs):
        dim = _default_axis(dim, y.ndim)
        dgrad = ops.softmax_backward(g, y, dim=dim) if needs[0] else None
        dy = None
        if needs[1]:
            dy = g * (grad - ops.sum(grad * y, dim, True)) - grad * ops.sum(g * y, dim, True)
        return dgrad, dy

    def samples(draw):
        return _backward_samples(draw, log=False)


@primitive(method=False)
class log_softmax_backward:
    """The gradient of log_softmax, grad - exp(y) sum(grad), from the incoming one and the result
    ``y``."""

    def infer(grad, y, *, dim=None):
        return Spec(tuple(y.shape), y.dtype)

    def numpy(grad, y, *, dim=None):
        if y.ndim == 0:
            return grad - np.exp(y) * grad
        dx = np.exp(y)
        dx *= np.add.reduce(grad, axis=_default_axis(dim, y.ndim), keepdims=True)
        return np.subtract(grad, dx, out=dx)

    def launch(out, grad, y, *, dim=None):
        _launch_backward(out, grad, y, dim, log=True)

    def vjp(g, grad, y, *, dim, needs):
        dim = _default_axis(dim, y.ndim)
        p = ops.exp(y)
        inner = ops.sum(g * p, dim, True)
        dy = -(g * p * ops.sum(grad, dim, True)) if needs[1] else None
        return g - inner, dy

    def samples(draw):
        return _backward_samples(draw, log=True)


def _launch_backward(out: Any, grad: Any, y: Any, dim: int | None, log: bool) -> None:
    axis = shapes.axis("softmax", _default_axis(dim, y.ndim), y.ndim)
    if y.ndim == 0:
        grad, y, out = (a.reshape((1,)) for a in (grad, y, out))
    kernels.softmax_backward(out, grad, y, dim=axis, log=log)


@composite
def softmin(x: Any, dim: int | None = None, dtype: DType | None = None) -> Any:
    """softmax(-x) along ``dim``.

    >>> trident.softmin(trident.tensor([0., 0.]), dim=0)
    tensor([0.5000, 0.5000])
    """
    return ops.softmax(-x, dim=dim, dtype=dtype)
