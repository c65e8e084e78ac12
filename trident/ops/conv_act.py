"""Convolution with what follows it in a network, in one kernel: folded batch norm, the sum with a
residual branch, the activation.
"""

from __future__ import annotations

from typing import Any

from .. import shapes
from ..errors import DTypeError, wrong
from ..kernels import conv as kernels
from ..kernels import conv_gather
from . import conv_numpy
from .conv import _batched, _check_dtypes, _draw, _forward_size, tuple_of
from .matmul import _activation, _activation_gradient, _device_function
from .normalization import by_channel
from .registry import Spec, composite, ops, primitive


def _check_affine(x: Any, w: Any, scale: Any, shift: Any) -> None:
    if (scale is None) != (shift is None):
        raise wrong("conv_act", "scale and shift go together", got="one of the two")
    for name, v in (("scale", scale), ("shift", shift)):
        if v is None:
            continue
        if tuple(v.shape) != (w.shape[0],):
            raise wrong(
                "conv_act", f"{name} must have shape ({w.shape[0]},), one number an output channel",
                got=tuple(v.shape),
            )  # fmt: skip
        if v.dtype is not x.dtype.compute:
            raise wrong(
                "conv_act", f"{name} must be {x.dtype.compute.name}, in which {x.dtype.name} is "
                "computed", got=v.dtype.name, error=DTypeError, hint="convert it with .to(dtype)",
            )  # fmt: skip


@primitive(method=False)
class convolution_act:
    """``act(convolution(x, w, bias) * scale + shift + residual)``, with numbers a channel.

    x (n, groups*c, *size), w (groups*o, c, *kernel), bias, scale, shift (groups*o,), residual
    (n, groups*o, *out), the last four or None. scale and shift are float32 for the half types.
    """

    def infer(
        x, w, bias=None, scale=None, shift=None, residual=None, *, stride, padding, dilation,
        groups=1, activation=None,
    ):  # fmt: skip
        _check_dtypes("conv_act", input=x, weight=w, bias=bias, residual=residual)
        size = _forward_size(x.shape, w.shape, bias, stride, padding, dilation, groups)
        _check_affine(x, w, scale, shift)
        shape = (x.shape[0], w.shape[0], *size)
        if residual is not None and tuple(residual.shape) != shape:
            raise wrong(
                "conv_act", f"residual must have the shape of the convolution, {shape}",
                got=tuple(residual.shape),
            )  # fmt: skip
        if activation is not None:
            _activation(activation, "conv_act")
        return Spec(shape, x.dtype)

    layout = shapes.kept_strides

    def numpy(
        x, w, bias=None, scale=None, shift=None, residual=None, *, stride, padding, dilation,
        groups=1, activation=None,
    ):  # fmt: skip
        size = _forward_size(x.shape, w.shape, bias, stride, padding, dilation, groups)
        y = conv_numpy.convolution(x, w, bias, size, stride, padding, dilation, groups)
        if scale is not None:
            if shift is None or scale.shape != (w.shape[0],) or shift.shape != scale.shape:
                raise ValueError
            y *= by_axis(scale, y.ndim)
            y += by_axis(shift, y.ndim)
        if residual is not None:
            if residual.shape != y.shape:
                raise ValueError
            y += residual
        if activation is not None:
            op = _activation(activation, "conv_act")
            y = op.numpy(y, **op.defaults)
        return y

    def launch(
        out, x, w, bias=None, scale=None, shift=None, residual=None, *, stride, padding, dilation,
        groups=1, activation=None,
    ):  # fmt: skip
        act = _device_function(activation) if activation is not None else None
        kernels.convolution(
            out, x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups,
            epilogue=conv_gather.Epilogue(scale, shift, residual, act),
        )  # fmt: skip

    def vjp(
        g, x, w, bias, scale, shift, residual, needs, stride, padding, dilation, groups, activation
    ):
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        z = y = ops.convolution(x, w, bias, **attrs)
        if scale is not None:
            affine = z * by_channel(scale, z.ndim) + by_channel(shift, z.ndim)
            y = ops.to_dtype(affine, dtype=x.dtype)
        if activation is not None:
            y = y if residual is None else y + residual
            g = _activation_gradient(activation, g, y)
        dx = dw = db = dscale = dshift = None
        dz = g
        if scale is not None:
            wide = ops.to_dtype(g, dtype=scale.dtype)
            dscale = ops.channel_sum(wide * z) if needs[3] else None
            dshift = ops.channel_sum(wide) if needs[4] else None
            dz = ops.to_dtype(wide * by_channel(scale, z.ndim), dtype=x.dtype)
        if needs[0]:
            dx = ops.conv_data_grad(dz, w, input_size=tuple(x.shape[2:]), **attrs)
        if needs[1]:
            dw = ops.conv_weight_grad(dz, x, kernel_size=tuple(w.shape[2:]), **attrs)
        if needs[2]:
            db = ops.channel_sum(dz)
        return dx, dw, db, dscale, dshift, g if needs[5] else None

    def samples(draw):
        x, w, y, attrs = _draw(draw)
        compute = draw.dtype.compute
        bias = draw.tensor(w[:1]) if draw.boolean() else None
        scale = shift = residual = None
        if draw.boolean():
            scale, shift = draw.tensor(w[:1], compute), draw.tensor(w[:1], compute)
        if draw.boolean():
            residual = draw.tensor(y)
        attrs["activation"] = draw.choice([None, "tanh", "sigmoid"])
        return (draw.tensor(x), draw.tensor(w), bias, scale, shift, residual), attrs


def by_axis(p: Any, ndim: int) -> Any:
    """A vector over channels as an array that broadcasts to (n, c, ...)."""
    return p.reshape((-1,) + (1,) * (ndim - 2))


@composite(method=False)
def conv_act(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, *, scale: Any = None, shift: Any = None,
    residual: Any = None, activation: str | None = "relu",
) -> Any:  # fmt: skip
    """``act(conv(input) * scale + shift + residual)`` in one pass over the output.

    The convolution is that of ``conv1d``, ``conv2d`` or ``conv3d``, as weight (o, c / groups,
    *kernel) has axes. scale and shift (o,), float32 for the half types, are a batch norm in
    evaluation: scale = weight / sqrt(running_var + eps), shift = bias - running_mean * scale.
    residual has the output's shape. activation names an elementwise op of one operand, or is None.
    The value is rounded to the dtype after the convolution and after each of the three steps, so
    that the result is that of the separate ops. Differentiable; the gradient computes again what
    goes into the activation.

    >>> x, w = trident.ones(1, 2, 3, 3), trident.ones(1, 2, 3, 3)
    >>> scale, shift = trident.tensor([0.5]), trident.tensor([-10.0])
    >>> trident.conv_act(x, w, scale=scale, shift=shift).item()
    0.0
    >>> trident.conv_act(x, w, scale=scale, shift=shift, activation=None).item()
    -1.0
    """
    ndim = weight.ndim - 2
    if ndim not in (1, 2, 3):
        raise wrong("conv_act", "weight must have 3 to 5 axes (o, c, ...)", got=tuple(weight.shape))
    x = _batched("conv_act", input, weight, ndim)
    if residual is not None and input.ndim == ndim + 1:
        residual = ops.unsqueeze(residual, 0)
    out = ops.convolution_act(
        x, weight, bias, scale, shift, residual,
        stride=tuple_of("conv_act", "stride", stride, ndim, 1),
        padding=tuple_of("conv_act", "padding", padding, ndim, 0),
        dilation=tuple_of("conv_act", "dilation", dilation, ndim, 1),
        groups=groups, activation=activation,
    )  # fmt: skip
    return out if input.ndim == ndim + 2 else ops.squeeze(out, 0)
