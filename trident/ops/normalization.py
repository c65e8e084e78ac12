"""Layer, RMS, group and instance normalisation, and ``normalize``.

Layer, RMS and group norm are fused ops: their bodies say what they mean, in terms of
``standardize``, which is a primitive because the CPU wants fewer passes over memory than plain ops
make.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..errors import DTypeError, wrong
from ..kernels import norm as kernels
from ..kernels import norm_backward
from .registry import Spec, composite, fused, ops, primitive


def float_only(op: str, x: Any) -> None:
    if not x.dtype.is_floating_point:
        raise wrong(op, "x must have a floating dtype", got=x.dtype.name, error=DTypeError)


def check_parameter(op: str, name: str, p: Any, shape: shapes.Shape, what: str) -> None:
    if p is not None and tuple(p.shape) != shape:
        raise wrong(op, f"{name} must have shape {shape}, {what}", got=tuple(p.shape))


# ---- layer norm and RMS norm --------------------------------------------------------------------


def _row_shape(x: Any, *_: Any, axes: int, **__: Any) -> shapes.Shape:
    return tuple(x.shape)[: x.ndim - axes]


def _last(x: Any, axes: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - axes, x.ndim))


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


def _flatten(x: np.ndarray, axes: int) -> np.ndarray:
    """x as rows of its last ``axes`` axes."""
    return x.reshape(-1, math.prod(x.shape[x.ndim - axes :])) if x.size else x.reshape(0, 1)


def _row_sums(rows: np.ndarray) -> np.ndarray:
    """rows.sum(1); through BLAS where that is faster than numpy's own sum."""
    if rows.size < 8192:
        return np.add.reduce(rows, axis=1)
    return rows @ np.ones(rows.shape[1], rows.dtype)


def _tall(draw: Any) -> np.ndarray:
    """Long rows side by side in memory: no tile holds them, and they do not fill one."""
    return np.ascontiguousarray(draw.tensor((draw.integer(257, 300), 3))).T


@primitive(method=False)
class standardize:
    """(y, rstd): y = (x - mean) rstd over the last ``axes`` axes, rstd = 1 / sqrt(var + eps).
    Without ``centred`` the mean counts as 0, so that rstd is 1 / sqrt(mean(x^2) + eps)."""

    def infer(x, *, axes=1, eps=1e-5, centred=True):
        float_only("standardize", x)
        return Spec(tuple(x.shape), x.dtype), Spec(_row_shape(x, axes=axes), x.dtype.compute)

    def numpy(x, *, axes=1, eps=1e-5, centred=True):
        if x.dtype.kind != "f":
            raise TypeError("x must be floating")
        rows = _flatten(x, axes)
        n = x.dtype.type(rows.shape[1])
        y = rows
        if centred:
            y = rows - (_row_sums(rows) / n)[:, None]
        rstd = 1 / np.sqrt(np.vecdot(y, y) / n + x.dtype.type(eps))
        y = np.multiply(y, rstd[:, None], out=y if centred else None)
        return y.reshape(x.shape), rstd.reshape(x.shape[: x.ndim - axes])

    def launch(out, x, *, axes=1, eps=1e-5, centred=True):
        kernels.standardize(*out, x, axes=axes, eps=eps, centred=centred)

    def vjp(g, x, out, *, axes, eps, centred):
        y, rstd = out
        dx = None
        if g[0] is not None:
            dx = ops.standardize_backward(g[0], x, y, rstd, axes=axes, eps=eps, centred=centred)
        if g[1] is not None:
            n = shapes.numel(y.shape[y.ndim - axes :])
            share = y * _beside(g[1] * rstd * rstd * (-1.0 / max(n, 1)), axes)
            dx = share if dx is None else dx + share
        return dx

    def samples(draw):
        attrs = {"axes": 1, "eps": 0.1, "centred": draw.boolean()}
        if draw.blocks == "gpu" and draw.boolean():
            return (_tall(draw),), attrs
        shape = tuple(s or 1 for s in draw.shape(1, 5))
        attrs = {"axes": draw.integer(1, len(shape)), "eps": 0.1, "centred": draw.boolean()}
        return (draw.tensor(shape),), attrs


# y and rstd follow x, so that these three cannot be tested apart
@primitive(method=False, constant=("x", "y", "rstd"))
class standardize_backward:
    """The gradient of ``standardize``: rstd (grad - mean(grad) - y mean(grad y)), rows apart. Its
    values come from the results y and rstd; derivatives of it go to x, which those follow."""

    def infer(grad, x, y, rstd, *, axes=1, eps=1e-5, centred=True):
        return Spec(tuple(y.shape), y.dtype)

    def numpy(grad, x, y, rstd, *, axes=1, eps=1e-5, centred=True):
        g, rows = _flatten(grad, axes), _flatten(y, axes)
        n = y.dtype.type(rows.shape[1])
        dx = rows * (-np.vecdot(g, rows) / n)[:, None]
        dx += g
        if centred:
            dx -= (_row_sums(g) / n)[:, None]
        dx *= rstd.reshape(-1, 1)
        return dx.reshape(y.shape)

    def launch(out, grad, x, y, rstd, *, axes=1, eps=1e-5, centred=True):
        norm_backward.standardize_backward(out, grad, y, rstd, axes=axes, centred=centred)

    def vjp(g, grad, x, *, axes, eps, centred, needs):
        y, rstd = standardize(x, axes=axes, eps=eps, centred=centred)
        over = _last(y, axes)

        def project(v: Any) -> Any:
            """The gradient of x through y; it is its own adjoint."""
            return ops.standardize_backward(v, x, y, rstd, axes=axes, eps=eps, centred=centred)

        dgrad = project(g) if needs[0] else None
        dx = None
        if needs[1]:
            inner = ops.mean(grad * y, over, True)
            away = grad - y * inner
            if centred:
                away = away - ops.mean(grad, over, True)
            dy = -_beside(rstd, axes) * (g * inner + grad * ops.mean(g * y, over, True))
            slope = ops.mean(g * away, over, True) * _beside(rstd * rstd, axes)
            dx = project(dy) - y * slope
        return dgrad, dx, None, None

    def samples(draw):
        (x,), attrs = standardize.op.samples(draw)
        y, rstd = standardize.op.numpy(np.asarray(x, np.float64), **attrs)
        grad, rstd = draw.tensor(x.shape), rstd.astype(draw.dtype.compute.np)
        return (grad, x, y.astype(x.dtype), rstd), attrs


def _beside(rows: Any, axes: int) -> Any:
    """One value a row, with axes of size 1 that broadcast over the row."""
    return ops.reshape(rows, shape=(*rows.shape, *(1,) * axes))


@fused(
    forward=kernels.layer_norm_forward,
    backward=norm_backward.layer_norm_backward,
    residuals={"mean": _row_shape, "rstd": _row_shape},
    method=False,
)
def layer_norm_axes(x, weight=None, bias=None, *, axes=1, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last ``axes`` axes."""
    return _affine(standardize(x, axes=axes, eps=eps)[0], weight, bias)


def _apart(draw: Any) -> tuple[int, np.ndarray, np.ndarray]:
    """axes, x and weight of a norm over, or beside, three axes that cannot be walked as one; a row
    does not fit in a small block."""
    axes = draw.choice([1, 3])
    x = draw.tensor((3, 3, 2, 2) if axes == 3 else (18, 3, 2, 2)).transpose()
    return axes, x, draw.tensor(x.shape[4 - axes :])


@layer_norm_axes.samples
def _(draw):
    shape = tuple(s or 1 for s in draw.shape(1, 5))
    x = None
    kind = draw.integer(0, 2) if draw.blocks in (4, 16) else 2
    if kind == 0 and draw.blocks == 4:  # more rows than programs
        shape = (266, 3)
        return (draw.tensor(shape), draw.tensor((3,)), draw.tensor((3,))), {"axes": 1, "eps": 0.1}
    if kind < 2:
        axes, x, weight = _apart(draw)
        return (x, weight, draw.tensor(weight.shape)), {"axes": axes, "eps": 0.1}
    if draw.blocks == "gpu" and draw.boolean():
        x = _tall(draw)
        shape = x.shape
    axes = draw.integer(1, len(shape)) if x is None else 1
    inner = shape[len(shape) - axes :]
    weight = draw.tensor(inner) if draw.boolean() else None
    bias = draw.tensor(inner) if draw.boolean() else None
    x = draw.tensor(shape) if x is None else x
    return (x, weight, bias), {"axes": axes, "eps": 0.1}


@fused(
    forward=kernels.rms_norm_forward,
    backward=norm_backward.rms_norm_backward,
    residuals={"rstd": _row_shape},
    method=False,
)
def rms_norm_axes(x, weight=None, *, axes=1, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) * weight over the last ``axes`` axes."""
    return _affine(standardize(x, axes=axes, eps=eps, centred=False)[0], weight, None)


@rms_norm_axes.samples
def _(draw):
    if draw.blocks in (4, 16) and draw.boolean():
        axes, *operands = _apart(draw)
        return tuple(operands), {"axes": axes, "eps": 0.1}
    shape = tuple(s or 1 for s in draw.shape(1, 5))
    axes = draw.integer(1, len(shape))
    weight = draw.tensor(shape[len(shape) - axes :]) if draw.boolean() else None
    return (draw.tensor(shape), weight), {"axes": axes, "eps": 0.1}


def _normalized_axes(op: str, x: Any, normalized_shape: int | Sequence[int]) -> shapes.Shape:
    wanted = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    float_only(op, x)
    shape = tuple(x.shape)
    if not wanted or shape[len(shape) - len(wanted) :] != wanted:
        raise wrong(op, f"x must end in normalized_shape {wanted}", got=f"x of shape {shape}")
    return wanted


@composite(method=False)
def layer_norm(
    x: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias, over the last axes, whose sizes are
    ``normalized_shape``. x (..., *normalized_shape); weight and bias have that shape.
    Source: Ba, Kiros, Hinton, "Layer normalization", 2016.

    >>> trident.layer_norm(trident.tensor([[1., 3.]]), (2,), eps=0.0)
    tensor([[-1.,  1.]])
    """
    wanted = _normalized_axes("layer_norm", x, normalized_shape)
    what = (
        f"the last axes of x {tuple(x.shape)}"
        if len(wanted) > 1
        else (f"the last axis of x {tuple(x.shape)}")
    )
    check_parameter("layer_norm", "weight", weight, wanted, what)
    check_parameter("layer_norm", "bias", bias, wanted, what)
    return layer_norm_axes(x, weight, bias, axes=len(wanted), eps=eps)


@composite(method=False)
def rms_norm(
    x: Any, normalized_shape: int | Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight over the last axes. ``eps`` defaults to the dtype's
    epsilon. x (..., *normalized_shape); weight (*normalized_shape).
    Source: Zhang and Sennrich, "Root mean square layer normalization", 2019.

    >>> trident.rms_norm(trident.tensor([[3., 3.]]), (2,), eps=0.0)
    tensor([[1., 1.]])
    """
    wanted = _normalized_axes("rms_norm", x, normalized_shape)
    check_parameter("rms_norm", "weight", weight, wanted, f"the last axes of x {tuple(x.shape)}")
    if eps is None:
        eps = _epsilon(x.dtype)
    return rms_norm_axes(x, weight, axes=len(wanted), eps=eps)


@functools.cache
def _epsilon(dtype: dtypes.dtype) -> float:
    return dtypes.finfo(dtype).eps


# ---- group norm ---------------------------------------------------------------------------------


def _group_shape(x: Any, *_: Any, num_groups: int, **__: Any) -> shapes.Shape:
    return (x.shape[0], num_groups)


@fused(
    forward=kernels.group_norm_forward,
    backward=norm_backward.group_norm_backward,
    residuals={"mean": _group_shape, "rstd": _group_shape},
    method=False,
)
def group_norm_channels(x, weight=None, bias=None, *, num_groups, eps=1e-5):
    """Each group of C / num_groups channels of x (N, C, ...) with mean 0 and variance 1, then
    weight and bias by channel."""
    shape = tuple(x.shape)
    per = shapes.numel(shape[1:]) // num_groups
    rows = ops.reshape(x, shape=(shape[0], num_groups, per))
    out = ops.reshape(standardize(rows, eps=eps)[0], shape=shape)
    return _affine(out, by_channel(weight, x.ndim), by_channel(bias, x.ndim))


@group_norm_channels.samples
def _(draw):
    groups, per = draw.integer(1, 3), draw.integer(1, 2)
    shape = (draw.integer(1, 3), groups * per, *(s or 1 for s in draw.shape(0, 3)))
    weight = draw.tensor((shape[1],)) if draw.boolean() else None
    bias = draw.tensor((shape[1],)) if draw.boolean() else None
    return (draw.tensor(shape), weight, bias), {"num_groups": groups, "eps": 0.1}


def by_channel(p: Any, ndim: int) -> Any:
    """A vector over channels in the shape (C, 1, ...) that broadcasts to (N, C, ...)."""
    return p if p is None or ndim == 2 else ops.reshape(p, shape=(-1,) + (1,) * (ndim - 2))


def check_channels(op: str, x: Any, weight: Any, bias: Any) -> None:
    float_only(op, x)
    if x.ndim < 2:
        raise wrong(op, "x must have shape (N, C, ...)", got=tuple(x.shape))
    what = f"the channels of x {tuple(x.shape)}"
    check_parameter(op, "weight", weight, (x.shape[1],), what)
    check_parameter(op, "bias", bias, (x.shape[1],), what)


@composite(method=False)
def group_norm(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var are those of the groups of
    C / num_groups channels of every sample. x (N, C, ...); weight and bias (C,).
    Source: Wu and He, "Group normalization", 2018.

    >>> x = trident.tensor([[[1., 3.], [5., 9.]]])
    >>> trident.group_norm(x, 2, eps=0.0)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    check_channels("group_norm", x, weight, bias)
    if num_groups < 1 or x.shape[1] % num_groups:
        raise wrong(
            "group_norm", f"num_groups must divide the {x.shape[1]} channels", got=num_groups
        )
    return group_norm_channels(x, weight, bias, num_groups=num_groups, eps=eps)


# ---- others -----------------------------------------------------------------------------------


def move_running(running: Any, batch: Any, momentum: float, factor: float) -> None:
    """running += momentum (factor batch - running), in place and not recorded."""
    if running is not None:
        running.copy_(running * (1.0 - momentum) + batch.detach() * (momentum * factor))


@composite(method=False)
def instance_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Batch norm with the mean and variance of every sample's channel; x (N, C, ...), weight (C,).
    Running values, where given, follow the average over samples; without ``use_input_stats`` they
    are what normalises. Source: Ulyanov, Vedaldi, Lempitsky, 2016.

    >>> trident.instance_norm(trident.tensor([[[1., 3.], [5., 9.]]]), eps=0.0)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    check_channels("instance_norm", x, weight, bias)
    if not use_input_stats:
        return ops.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if shapes.numel(x.shape[2:]) == 1:
        raise wrong(
            "instance_norm",
            "needs more than one spatial element",
            got=f"x of shape {tuple(x.shape)}",
            error=ValueError,
        )
    if running_mean is not None or running_var is not None:
        over = tuple(range(2, x.ndim))
        var, mean = ops.var_mean(x.detach(), over)
        move_running(running_mean, ops.mean(mean, 0), momentum, 1.0)
        move_running(running_var, ops.mean(var, 0), momentum, 1.0)
    return group_norm_channels(x, weight, bias, num_groups=x.shape[1], eps=eps)


@composite(method=False)
def normalize(x: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> Any:
    """x / max(norm(x), eps): the p-norm along ``dim`` becomes 1.

    >>> trident.normalize(trident.tensor([[3., 4.]]))
    tensor([[0.6000, 0.8000]])
    """
    return x / ops.maximum(ops.vector_norm(x, p, dim, True), eps)


@composite(method=False)
def local_response_norm(
    x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    """x / (k + alpha mean(x^2 over ``size`` neighbouring channels))^beta; x (N, C, ...).
    Source: Krizhevsky, Sutskever, Hinton, 2012.

    >>> trident.local_response_norm(trident.ones(1, 2, 3), 2).shape
    trident.Size([1, 2, 3])
    """
    check_channels("local_response_norm", x, None, None)
    channels = x.shape[1]
    edge = list(x.shape)
    parts = []
    for count in (size // 2, (size - 1) // 2):
        edge[1] = count
        parts.append(ops.full_like(x, value=0.0, shape=tuple(edge)))
    padded = ops.cat([parts[0], x * x, parts[1]], 1)
    total = ops.narrow(padded, 1, 0, channels)
    for i in range(1, size):
        total = total + ops.narrow(padded, 1, i, channels)
    return x / ops.pow(total * (alpha / size) + k, beta)
