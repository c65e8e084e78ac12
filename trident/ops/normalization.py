"""Layer, RMS, group, batch and instance normalisation, and ``normalize``.

Layer, RMS and group norm are fused ops: the bodies say what they mean, the kernels are in
``kernels/norm.py``. Batch norm is a primitive, because the CPU wants fewer passes over its large
arrays than plain ops make; its second derivative is written out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..errors import DTypeError, wrong
from ..kernels import norm as kernels
from .registry import Spec, composite, fused, ops, primitive


def _float_only(op: str, x: Any) -> None:
    if not x.dtype.is_floating_point:
        raise wrong(op, "x must have a floating dtype", got=x.dtype.name, error=DTypeError)


def _parameter(op: str, name: str, p: Any, shape: shapes.Shape, what: str) -> None:
    if p is not None and tuple(p.shape) != shape:
        raise wrong(op, f"{name} must have shape {shape}, {what}", got=tuple(p.shape))


# ---- layer norm and RMS norm ----------------------------------------------------------------------


def _row_shape(x: Any, *_: Any, axes: int, **__: Any) -> shapes.Shape:
    return tuple(x.shape)[: x.ndim - axes]


def _last(x: Any, axes: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - axes, x.ndim))


def _affine(x: Any, weight: Any, bias: Any) -> Any:
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


@fused(
    forward=kernels.layer_norm_forward,
    backward=kernels.layer_norm_backward,
    residuals={"mean": _row_shape, "rstd": _row_shape},
    method=False,
)
def layer_norm_axes(x, weight=None, bias=None, *, axes=1, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last ``axes`` axes."""
    over = _last(x, axes)
    centred = x - ops.mean(x, over, True)
    variance = ops.mean(centred * centred, over, True)
    return _affine(centred * ops.rsqrt(variance + eps), weight, bias)


@layer_norm_axes.samples
def _(draw):
    shape = tuple(s or 1 for s in draw.shape(1, 4))
    axes = draw.integer(1, len(shape))
    inner = shape[len(shape) - axes :]
    weight = draw.tensor(inner) if draw.boolean() else None
    bias = draw.tensor(inner) if draw.boolean() else None
    return (draw.tensor(shape), weight, bias), {"axes": axes, "eps": 0.1}


@fused(
    forward=kernels.rms_norm_forward,
    backward=kernels.rms_norm_backward,
    residuals={"rstd": _row_shape},
    method=False,
)
def rms_norm_axes(x, weight=None, *, axes=1, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) * weight over the last ``axes`` axes."""
    scaled = x * ops.rsqrt(ops.mean(x * x, _last(x, axes), True) + eps)
    return _affine(scaled, weight, None)


@rms_norm_axes.samples
def _(draw):
    shape = tuple(s or 1 for s in draw.shape(1, 4))
    axes = draw.integer(1, len(shape))
    weight = draw.tensor(shape[len(shape) - axes :]) if draw.boolean() else None
    return (draw.tensor(shape), weight), {"axes": axes, "eps": 0.1}


def _normalized_axes(op: str, x: Any, normalized_shape: int | Sequence[int]) -> shapes.Shape:
    wanted = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    _float_only(op, x)
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
    _parameter("layer_norm", "weight", weight, wanted, what)
    _parameter("layer_norm", "bias", bias, wanted, what)
    return layer_norm_axes(x, weight, bias, axes=len(wanted), eps=eps)


@composite(method=False)
def rms_norm(
    x: Any, normalized_shape: int | Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight over the last axes. ``eps`` defaults to the dtype's epsilon.
    x (..., *normalized_shape); weight (*normalized_shape).
    Source: Zhang and Sennrich, "Root mean square layer normalization", 2019.

    >>> trident.rms_norm(trident.tensor([[3., 3.]]), (2,), eps=0.0)
    tensor([[1., 1.]])
    """
    wanted = _normalized_axes("rms_norm", x, normalized_shape)
    _parameter("rms_norm", "weight", weight, wanted, f"the last axes of x {tuple(x.shape)}")
    if eps is None:
        eps = _epsilon(x.dtype)
    return rms_norm_axes(x, weight, axes=len(wanted), eps=eps)


@functools.cache
def _epsilon(dtype: dtypes.dtype) -> float:
    return dtypes.finfo(dtype).eps


# ---- group norm -----------------------------------------------------------------------------------


def _group_shape(x: Any, *_: Any, num_groups: int, **__: Any) -> shapes.Shape:
    return (x.shape[0], num_groups)


@fused(
    forward=kernels.group_norm_forward,
    backward=kernels.group_norm_backward,
    residuals={"mean": _group_shape, "rstd": _group_shape},
    method=False,
)
def group_norm_channels(x, weight=None, bias=None, *, num_groups, eps=1e-5):
    """Each group of C / num_groups channels of x (N, C, ...) with mean 0 and variance 1, then
    weight and bias by channel."""
    shape = tuple(x.shape)
    per = shapes.numel(shape[1:]) // num_groups
    rows = ops.reshape(x, shape=(shape[0], num_groups, per))
    centred = rows - ops.mean(rows, -1, True)
    variance = ops.mean(centred * centred, -1, True)
    out = ops.reshape(centred * ops.rsqrt(variance + eps), shape=shape)
    return _affine(out, _by_channel(weight, x.ndim), _by_channel(bias, x.ndim))


@group_norm_channels.samples
def _(draw):
    groups, per = draw.integer(1, 3), draw.integer(1, 2)
    shape = (draw.integer(1, 3), groups * per, *(s or 1 for s in draw.shape(0, 2)))
    weight = draw.tensor((shape[1],)) if draw.boolean() else None
    bias = draw.tensor((shape[1],)) if draw.boolean() else None
    return (draw.tensor(shape), weight, bias), {"num_groups": groups, "eps": 0.1}


def _by_channel(p: Any, ndim: int) -> Any:
    """A vector over channels in the shape (C, 1, ...) that broadcasts to (N, C, ...)."""
    return p if p is None or ndim == 2 else ops.reshape(p, shape=(-1,) + (1,) * (ndim - 2))


def _check_channels(op: str, x: Any, weight: Any, bias: Any) -> None:
    _float_only(op, x)
    if x.ndim < 2:
        raise wrong(op, "x must have shape (N, C, ...)", got=tuple(x.shape))
    what = f"the channels of x {tuple(x.shape)}"
    _parameter(op, "weight", weight, (x.shape[1],), what)
    _parameter(op, "bias", bias, (x.shape[1],), what)


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
    _check_channels("group_norm", x, weight, bias)
    if num_groups < 1 or x.shape[1] % num_groups:
        raise wrong(
            "group_norm", f"num_groups must divide the {x.shape[1]} channels", got=num_groups
        )
    return group_norm_channels(x, weight, bias, num_groups=num_groups, eps=eps)


# ---- batch norm -----------------------------------------------------------------------------------

_BLOCK = 1 << 17  # elements of a block of samples: it stays in the cache between passes


def _planes(x: np.ndarray) -> np.ndarray:
    """x (N, C, ...) as (N, C, S) contiguous."""
    return np.ascontiguousarray(x).reshape(x.shape[0], x.shape[1], -1)


def _blocks(x: np.ndarray) -> list[slice]:
    step = max(1, _BLOCK // max(1, x[0].size))
    return [slice(i, i + step) for i in range(0, len(x), step)]


def _channel_sum(x: np.ndarray) -> np.ndarray:
    """Sums of (N, C, S) over N and S."""
    if x.shape[2] > 1:
        x = np.add.reduce(x, axis=2)
    return np.ones(len(x), x.dtype) @ x.reshape(len(x), -1)


def _statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of the channels of (N, C, S): two passes, the second in blocks."""
    n = x.dtype.type(x.shape[0] * x.shape[2])
    mean = _channel_sum(x) / n
    squares = np.zeros_like(mean)
    for block in _blocks(x):
        away = x[block] - mean[:, None]
        away *= away
        squares += _channel_sum(away)
    return mean, squares / n


def _batch_infer(x: Any, weight: Any = None, bias: Any = None, **_: Any) -> tuple[Spec, ...]:
    _check_channels("batch_norm", x, weight, bias)
    stat = Spec((x.shape[1],), x.dtype.compute)
    return Spec(tuple(x.shape), x.dtype), stat, stat, stat


@primitive(method=False)
class batch_norm_train:
    """(x - mean) / sqrt(var + eps) * weight + bias with the mean and the biased variance of each
    channel of x (N, C, ...). Gives (out, mean, var, rstd); gradients flow through ``out`` alone."""

    def infer(x, weight=None, bias=None, *, eps=1e-5):
        return _batch_infer(x, weight, bias)

    def numpy(x, weight=None, bias=None, *, eps=1e-5):
        if x.ndim < 2 or x.dtype.kind != "f":
            raise ValueError("x must be (N, C, ...)")
        planes = _planes(x)
        if not x.size:
            nothing = np.full(x.shape[1], np.nan, x.dtype)
            return x.copy(), nothing, nothing.copy(), nothing.copy()
        mean, var = _statistics(planes)
        rstd = 1 / np.sqrt(var + x.dtype.type(eps))
        scale = rstd if weight is None else rstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        out = np.empty_like(planes)
        for block in _blocks(planes):
            part = out[block]
            np.multiply(planes[block], scale[:, None], out=part)
            part += shift[:, None]
        return out.reshape(x.shape), mean, var, rstd

    def launch(out, x, weight=None, bias=None, *, eps=1e-5):
        kernels.batch_norm_forward(*out, x, weight, bias, eps=eps)

    def vjp(g, x, weight, bias, out, needs):
        if g[0] is None:
            return None, None, None
        _, mean, _, rstd = out
        dx, dweight, dbias = ops.batch_norm_backward(g[0], x, weight, mean, rstd)
        return dx, dweight if needs[1] else None, dbias if needs[2] else None

    def samples(draw):
        c = draw.integer(1, 4)
        shape = (draw.integer(2, 4), c, *(s or 1 for s in draw.shape(0, 2)))
        weight = draw.tensor((c,)) if draw.boolean() else None
        bias = draw.tensor((c,)) if draw.boolean() else None
        return (draw.tensor(shape), weight, bias), {"eps": 0.1}


@primitive(method=False)
class batch_norm_backward:
    """Gradients (dx, dweight, dbias) of ``batch_norm_train``, whose mean and rstd follow x."""

    def infer(grad, x, weight, mean, rstd):
        parameter = Spec((x.shape[1],), x.dtype if weight is None else weight.dtype)
        return Spec(tuple(x.shape), x.dtype), parameter, parameter

    def numpy(grad, x, weight, mean, rstd):
        planes, g = _planes(x), _planes(grad)
        n = x.dtype.type(max(1, planes.shape[0] * planes.shape[2]))
        dbias = _channel_sum(g)
        dweight = np.zeros_like(dbias)
        for block in _blocks(planes) if planes.size else ():
            away = planes[block] - mean[:, None]
            away *= g[block]
            dweight += _channel_sum(away)
        dweight *= rstd
        scale = rstd if weight is None else rstd * weight
        # dx = scale (g - dbias / n - (x - mean) rstd dweight / n), as scale g + slope x + shift
        slope = -scale * rstd * dweight / n
        shift = -scale * dbias / n - mean * slope
        dx = np.empty_like(planes)
        for block in _blocks(planes) if planes.size else ():
            part = dx[block]
            np.multiply(planes[block], slope[:, None], out=part)
            part += shift[:, None]
            part += g[block] * scale[:, None]
        return dx.reshape(x.shape), dweight, dbias

    def launch(out, grad, x, weight, mean, rstd):
        kernels.batch_norm_backward(*out, grad, x, weight, mean, rstd)

    def vjp(g, grad, x, weight, mean, rstd, needs):
        # mean and rstd are functions of x: their share is in the gradient of x
        h, hw, hb = g
        ndim = x.ndim
        over = (0, *range(2, ndim))

        def average(v: Any) -> Any:
            return ops.mean(v, over, True)

        r, w = _by_channel(rstd, ndim), _by_channel(weight, ndim)
        normed = (x - _by_channel(mean, ndim)) * r
        u = grad if w is None else grad * w

        def project(v: Any) -> Any:
            """The gradient of x through ``normed``; it is its own adjoint."""
            return r * (v - average(v) - normed * average(v * normed))

        dgrad = dweight = through = None  # ``through``: the gradient of normed
        dx = None
        if h is not None:
            along = project(h)
            dgrad = along if w is None else w * along
            if needs[2]:
                dweight = ops.sum(grad * along, over)
            through = -r * (h * average(u * normed) + u * average(h * normed))
            dx = -r * normed * average(h * project(u))
        if hw is not None:
            part = _by_channel(hw, ndim)
            dgrad = part * normed if dgrad is None else dgrad + part * normed
            through = part * grad if through is None else through + part * grad
        if hb is not None:
            level = ops.expand(_by_channel(hb, ndim), shape=tuple(x.shape))
            dgrad = level if dgrad is None else dgrad + level
        if through is not None:
            dx = project(through) if dx is None else dx + project(through)
        return dgrad, dx, dweight, None, None

    def samples(draw):
        (x, weight, _), _ = batch_norm_train.op.samples(draw)
        over = (0, *range(2, x.ndim))
        wide = np.asarray(x, np.float64)
        compute = draw.dtype.compute.np
        mean = wide.mean(over).astype(compute)
        rstd = (1 / np.sqrt(wide.var(over) + 0.1)).astype(compute)
        return (draw.tensor(x.shape), x, weight, mean, rstd), {}


@composite(method=False)
def batch_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias by channel; x (N, C, ...), the others (C,).

    In training, mean and var (biased) are the batch's, and the running ones, where given, move in
    place by ``momentum`` towards the batch's mean and unbiased variance. Otherwise the running ones
    are used. Source: Ioffe and Szegedy, "Batch normalization", 2015.

    >>> x = trident.tensor([[1.], [3.]])
    >>> trident.batch_norm(x, training=True, eps=0.0)
    tensor([[-1.],
            [ 1.]])
    """
    _check_channels("batch_norm", x, weight, bias)
    what = f"the channels of x {tuple(x.shape)}"
    _parameter("batch_norm", "running_mean", running_mean, (x.shape[1],), what)
    _parameter("batch_norm", "running_var", running_var, (x.shape[1],), what)
    if not training:
        if running_mean is None or running_var is None:
            raise wrong(
                "batch_norm",
                "evaluation needs running_mean and running_var",
                error=ValueError,
                hint="give both, or training=True to use the batch's own",
            )
        return _evaluated(x, running_mean, running_var, weight, bias, eps)
    n = shapes.numel(x.shape) // max(x.shape[1], 1)
    if n == 1:
        raise wrong(
            "batch_norm",
            "training needs more than one value per channel",
            got=f"x of shape {tuple(x.shape)}",
            error=ValueError,
        )
    out, mean, var, _ = batch_norm_train(x, weight, bias, eps=eps)
    _move(running_mean, mean, momentum, 1.0)
    _move(running_var, var, momentum, n / (n - 1) if n > 1 else 1.0)
    return out


def _move(running: Any, batch: Any, momentum: float, factor: float) -> None:
    """running += momentum (factor batch - running), in place and not recorded."""
    if running is not None:
        running.copy_(running * (1.0 - momentum) + batch.detach() * (momentum * factor))


def _evaluated(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    scale = ops.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    out = x * _by_channel(scale, x.ndim) + _by_channel(shift, x.ndim)
    return out if out.dtype is x.dtype else ops.to_dtype(out, dtype=x.dtype)


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
    _check_channels("instance_norm", x, weight, bias)
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
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
        _move(running_mean, ops.mean(mean, 0), momentum, 1.0)
        _move(running_var, ops.mean(var, 0), momentum, 1.0)
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
    _check_channels("local_response_norm", x, None, None)
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
