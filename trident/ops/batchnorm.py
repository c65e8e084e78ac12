"""Batch normalisation: a primitive, because the CPU wants fewer passes over its large arrays than
plain ops make. Its second derivative is written out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import shapes
from ..errors import wrong
from ..kernels import batchnorm as kernels
from .normalization import by_channel, check_channels, check_parameter, move_running
from .registry import Spec, composite, ops, primitive

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
    check_channels("batch_norm", x, weight, bias)
    stat = Spec((x.shape[1],), x.dtype.compute)
    return Spec(tuple(x.shape), x.dtype), stat, stat, stat


@primitive(method=False)
class batch_norm_train:
    """(x - mean) / sqrt(var + eps) * weight + bias with the mean and the biased variance of each
    channel of x (N, C, ...). Gives (out, mean, var, rstd)."""

    def infer(x, weight=None, bias=None, *, eps=1e-5):
        return _batch_infer(x, weight, bias)

    layout = shapes.kept_strides

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

    def vjp(g, x, weight, bias, out, *, eps, needs):
        _, mean, _, rstd = out
        dx = dweight = dbias = None
        if g[0] is not None:
            dx, dweight, dbias = ops.batch_norm_backward(g[0], x, weight, mean, rstd, eps=eps)
        if g[1] is not None or g[2] is not None or g[3] is not None:
            share = _statistics_gradient(g, x, eps)
            dx = share if dx is None else dx + share
        return dx, dweight if needs[1] else None, dbias if needs[2] else None

    def samples(draw):
        return _training_sample(draw, small=draw.blocks is not None and draw.boolean())


def _training_sample(draw: Any, small: bool = False) -> tuple[tuple, dict]:
    """x (N, C, ...), weight and bias; ``small``: numbers of which no digit may be lost."""
    n, c = draw.integer(2, 4), draw.size(1, 4, 6)
    rest = tuple(s or 1 for s in draw.shape(0, 3))
    lost = draw.blocks == 4 and draw.boolean()
    if lost:  # three partial results a channel, and the second one is NaN
        n, c, rest = 2, 2, (draw.integer(17, 20),)
    elif draw.integer(0, 3) == 3:  # channels side by side, in a block that they fill in part
        c, rest = 6, ()
    size, eps = (1e-4, 1e-12) if small else (1.0, 0.1)
    weight = draw.tensor((c,), low=-2 * size, high=2 * size) if small or draw.boolean() else None
    bias = draw.tensor((c,)) if draw.boolean() else None
    x = draw.tensor((n, c, *rest), low=-2 * size, high=2 * size)
    if lost:
        x = np.array(x)
        x[:, 1] = np.nan
    return (x, weight, bias), {"eps": eps}


def _statistics_gradient(g: tuple, x: Any, eps: float) -> Any:
    """The gradient of x through its channels' mean, variance and rstd."""
    over = (0, *range(2, x.ndim))
    n = shapes.numel(x.shape) // (x.shape[1] or 1) or 1
    away = x - ops.mean(x, over, True)
    level = slope = None
    if g[1] is not None:
        level = by_channel(g[1], x.ndim) / n
    if g[2] is not None:
        slope = by_channel(g[2], x.ndim) * 2.0
    if g[3] is not None:
        cube = ops.pow(ops.mean(away * away, over, True) + eps, -1.5)
        part = -by_channel(g[3], x.ndim) * cube
        slope = part if slope is None else slope + part
    if slope is None:
        return ops.expand(level, shape=tuple(x.shape))
    spread = away * (slope / n)
    return spread if level is None else spread + level


# mean and rstd follow x, so that these three cannot be tested apart
@primitive(method=False, constant=("x", "mean", "rstd"))
class batch_norm_backward:
    """Gradients (dx, dweight, dbias) of ``batch_norm_train``, whose mean and rstd follow x."""

    def infer(grad, x, weight, mean, rstd, *, eps=1e-5):
        parameter = Spec((x.shape[1],), x.dtype if weight is None else weight.dtype)
        return Spec(tuple(x.shape), x.dtype), parameter, parameter

    layout = shapes.kept_strides

    def numpy(grad, x, weight, mean, rstd, *, eps=1e-5):
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

    def launch(out, grad, x, weight, mean, rstd, *, eps=1e-5):
        kernels.batch_norm_backward(*out, grad, x, weight, mean, rstd)

    def vjp(g, grad, x, weight, *, eps, needs):
        # mean and rstd follow x: they are made again here, and their share goes to x
        h, hw, hb = g
        ndim = x.ndim
        over = (0, *range(2, ndim))

        def average(v: Any) -> Any:
            return ops.mean(v, over, True)

        w = by_channel(weight, ndim)
        away = x - average(x)
        r = ops.rsqrt(average(away * away) + eps)
        normed = away * r
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
            part = by_channel(hw, ndim)
            dgrad = part * normed if dgrad is None else dgrad + part * normed
            through = part * grad if through is None else through + part * grad
        if hb is not None:
            level = ops.expand(by_channel(hb, ndim), shape=tuple(x.shape))
            dgrad = level if dgrad is None else dgrad + level
        if through is not None:
            dx = project(through) if dx is None else dx + project(through)
        return dgrad, dx, dweight, None, None

    def samples(draw):
        (x, weight, _), attrs = _training_sample(draw)
        over = (0, *range(2, x.ndim))
        wide = np.asarray(x, np.float64)
        compute = draw.dtype.compute.np
        mean = wide.mean(over).astype(compute)
        rstd = (1 / np.sqrt(wide.var(over) + attrs["eps"])).astype(compute)
        return (draw.tensor(x.shape), x, weight, mean, rstd), attrs


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
    check_channels("batch_norm", x, weight, bias)
    what = f"the channels of x {tuple(x.shape)}"
    check_parameter("batch_norm", "running_mean", running_mean, (x.shape[1],), what)
    check_parameter("batch_norm", "running_var", running_var, (x.shape[1],), what)
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
    out, mean, var, _ = ops.batch_norm_train(x, weight, bias, eps=eps)
    move_running(running_mean, mean, momentum, 1.0)
    move_running(running_var, var, momentum, n / (n - 1) if n > 1 else 1.0)
    return out


def _evaluated(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
    scale = ops.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    out = x * by_channel(scale, x.ndim) + by_channel(shift, x.ndim)
    return out if out.dtype is x.dtype else ops.to_dtype(out, dtype=x.dtype)
