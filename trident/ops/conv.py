"""Convolution: torch's functions, and the three primitives they are made of.

``convolution``, ``conv_data_grad`` and ``conv_weight_grad`` are the three partial maps of one form
that is linear in each of input, weight and output gradient, so the gradient of each is written in
the other two, to any order. Transposed convolution is ``conv_data_grad`` with its size given.
The primitives take attributes as full tuples, one entry a spatial axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import shapes
from ..errors import DTypeError, wrong
from ..kernels import conv as kernels
from ..kernels import conv_data, conv_weight, reduce
from . import conv_numpy
from .registry import Spec, composite, ops, primitive

Sizes = tuple[int, ...]
_AXES = {1: "length", 2: "h, w", 3: "d, h, w"}


def _check_dtypes(op: str, **arrays: Any) -> None:
    given = {name: a.dtype for name, a in arrays.items() if a is not None}
    first = next(iter(given.values()))
    if not first.is_floating_point or any(d is not first for d in given.values()):
        text = ", ".join(f"{name} {d.name}" for name, d in given.items())
        raise wrong(
            op, "all operands must have one floating dtype", got=text, error=DTypeError,
            hint="convert with .to(dtype)",
        )  # fmt: skip


def _check_weight(op: str, x: Sequence[int], w: Sequence[int], groups: int) -> None:
    if len(x) != len(w):
        raise wrong(
            op, f"weight must have {len(x)} axes, as the (batched) input {tuple(x)}", got=tuple(w)
        )
    if groups < 1:
        raise wrong(op, "groups must be at least 1", got=groups)
    if w[0] % groups:
        raise wrong(op, f"groups={groups} must divide the {w[0]} channels of weight {tuple(w)}")
    if 0 in w[2:]:
        raise wrong(op, "the kernel must have at least one tap along each axis", got=tuple(w[2:]))


def _check_bias(op: str, bias: Any, channels: int) -> None:
    if bias is not None and tuple(bias.shape) != (channels,):
        raise wrong(
            op, f"bias must have shape ({channels},), one number an output channel",
            got=tuple(bias.shape),
        )  # fmt: skip


def output_size(
    op: str, size: Sequence[int], kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Sizes:
    """How many windows fit along each axis; raises where none does."""
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation))
    room = tuple(i + 2 * p for i, p in zip(size, padding))
    if any(s > r for s, r in zip(spans, room)):
        dilated = f" (dilation {tuple(dilation)})" if max(dilation) > 1 else ""
        raise wrong(
            op, f"kernel {tuple(kernel)}{dilated} spans {spans}, which does not fit in the padded "
            f"input of size {room}",
        )  # fmt: skip
    return tuple((r - s) // st + 1 for r, s, st in zip(room, spans, stride))


def _forward_size(
    x: Sequence[int], w: Sequence[int], bias: Any, stride: Sizes, padding: Sizes, dilation: Sizes,
    groups: int,
) -> Sizes:  # fmt: skip
    op = f"conv{len(stride)}d"
    _check_weight(op, x, w, groups)
    if x[1] != w[1] * groups:
        raise wrong(
            op, f"input has {x[1]} channels, weight {tuple(w)} with groups={groups} expects "
            f"{w[1] * groups}",
        )  # fmt: skip
    _check_bias(op, bias, w[0])
    return output_size(op, x[2:], tuple(w[2:]), stride, padding, dilation)


def _check_transposed(
    y: Sequence[int], w: Sequence[int], bias: Any, ndim: int, groups: int
) -> None:
    op = f"conv_transpose{ndim}d"
    _check_weight(op, y, w, groups)
    if y[1] != w[0]:
        raise wrong(op, f"input has {y[1]} channels, weight {tuple(w)} expects {w[0]}")
    _check_bias(op, bias, w[1] * groups)


def _fit(x: Any, size: Sequence[int]) -> Any:
    """x without the last windows of an axis that ``size`` does not count (output_padding)."""
    for axis, n in enumerate(size, 2):
        if x.shape[axis] != n:
            x = ops.narrow(x, axis, 0, n)
    return x


def _draw(draw: Any) -> tuple[Sizes, Sizes, Sizes, dict[str, Any]]:
    """Shapes of x, w and y, and attributes, of one random convolution."""
    if draw.blocks == "gpu" and draw.integer(0, 3) == 3:  # several tiles along every axis
        attrs = {"stride": (1, 1), "padding": (1, 0), "dilation": (1, 1), "groups": 1}
        return (3, 6, 9, 9), (12, 6, 3, 3), (3, 12, 9, 7), attrs
    ndim = draw.integer(1, 3)
    kernel = tuple(draw.integer(1, 3) for _ in range(ndim))
    stride = tuple(draw.choice((1, 1, 2, 3)) for _ in range(ndim))
    padding = tuple(draw.integer(0, 2) for _ in range(ndim))
    dilation = tuple(draw.integer(1, 2) for _ in range(ndim))
    groups = draw.integer(1, 3)
    cg, og = draw.size(1, 2, 19), draw.size(1, 2, 19)
    if draw.integer(0, 2) == 2:  # depthwise, with kernels of its own
        groups, cg, og = draw.integer(2, 3), 1, draw.integer(1, 2)
    more = 8 if draw.blocks == "gpu" and draw.boolean() else 0  # several programs
    size = tuple(
        max(d * (k - 1) + 1 - 2 * p, 1) + (more or draw.integer(0, 3))
        for k, p, d in zip(kernel, padding, dilation)
    )
    x, w = (draw.integer(0, 3), groups * cg, *size), (groups * og, cg, *kernel)
    out = output_size("samples", size, kernel, stride, padding, dilation)
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x, w, (x[0], w[0], *out), attrs


@primitive(method=False)
class convolution:
    """out[n, o, p] = bias[o] + sum over c, t of w[o, c, t] * x[n, c, s*p - padding + dilation*t].

    x (n, groups*c, *size), w (groups*o, c, *kernel), bias (groups*o,) -> (n, groups*o, *out), with
    one to three spatial axes; s is the stride. x outside of its bounds is 0.
    """

    def infer(x, w, bias=None, *, stride, padding, dilation, groups=1):
        _check_dtypes(f"conv{len(stride)}d", input=x, weight=w, bias=bias)
        size = _forward_size(x.shape, w.shape, bias, stride, padding, dilation, groups)
        return Spec((x.shape[0], w.shape[0], *size), x.dtype)

    layout = shapes.kept_strides

    def numpy(x, w, bias=None, *, stride, padding, dilation, groups=1):
        if x.dtype.kind != "f":
            raise TypeError
        size = _forward_size(x.shape, w.shape, bias, stride, padding, dilation, groups)
        return conv_numpy.convolution(x, w, bias, size, stride, padding, dilation, groups)

    def launch(out, x, w, bias=None, *, stride, padding, dilation, groups=1):
        kernels.convolution(
            out, x, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
        )

    def vjp(g, x, w, needs, stride, padding, dilation, groups):
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        dx = dw = None
        if needs[0]:
            dx = ops.conv_data_grad(g, w, input_size=tuple(x.shape[2:]), **attrs)
        if needs[1]:
            dw = ops.conv_weight_grad(g, x, kernel_size=tuple(w.shape[2:]), **attrs)
        return dx, dw, ops.channel_sum(g) if needs[2] else None

    def samples(draw):
        x, w, _, attrs = _draw(draw)
        bias = (draw.tensor(w[:1]),) if draw.boolean() else ()
        return (draw.tensor(x), draw.tensor(w), *bias), attrs


@primitive(method=False)
class conv_data_grad:
    """The gradient of ``convolution`` for its input, which is transposed convolution.

    y (n, groups*o, *out), w (groups*o, c, *kernel), bias (groups*c,) -> (n, groups*c, *input_size).
    """

    def infer(y, w, bias=None, *, input_size, stride, padding, dilation, groups=1):
        _check_dtypes(f"conv_transpose{len(stride)}d", input=y, weight=w, bias=bias)
        _check_transposed(y.shape, w.shape, bias, len(stride), groups)
        return Spec((y.shape[0], w.shape[1] * groups, *input_size), y.dtype)

    layout = shapes.kept_strides

    def numpy(y, w, bias=None, *, input_size, stride, padding, dilation, groups=1):
        if y.dtype.kind != "f":
            raise TypeError
        _check_transposed(y.shape, w.shape, bias, len(stride), groups)
        return conv_numpy.conv_data_grad(
            y, w, bias, tuple(input_size), stride, padding, dilation, groups
        )

    def launch(out, y, w, bias=None, *, input_size, stride, padding, dilation, groups=1):
        conv_data.conv_data_grad(
            out, y, w, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
        )

    def vjp(g, y, w, needs, stride, padding, dilation, groups):
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        dy = dw = None
        if needs[0]:
            dy = _fit(ops.convolution(g, w, **attrs), y.shape[2:])
        if needs[1]:
            dw = ops.conv_weight_grad(y, g, kernel_size=tuple(w.shape[2:]), **attrs)
        return dy, dw, ops.channel_sum(g) if needs[2] else None

    def samples(draw):
        x, w, y, attrs = _draw(draw)
        bias = (draw.tensor(x[1:2]),) if draw.boolean() else ()
        return (draw.tensor(y), draw.tensor(w), *bias), {"input_size": x[2:], **attrs}


@primitive(method=False)
class conv_weight_grad:
    """The gradient of ``convolution`` for its weight.

    y (n, groups*o, *out), x (n, groups*c, *size) -> (groups*o, c, *kernel_size).
    """

    def infer(y, x, *, kernel_size, stride, padding, dilation, groups=1):
        _check_dtypes("conv_weight_grad", y=y, x=x)
        fits = y.shape[:1] == x.shape[:1] and y.ndim == x.ndim == len(stride) + 2
        if not fits or y.shape[1] % groups or x.shape[1] % groups:
            raise wrong(
                "conv_weight_grad",
                f"y and x must have one batch size and channels that groups={groups} divides",
                got=f"{tuple(y.shape)} and {tuple(x.shape)}",
            )
        output_size("conv_weight_grad", x.shape[2:], kernel_size, stride, padding, dilation)
        return Spec((y.shape[1], x.shape[1] // groups, *kernel_size), x.dtype)

    layout = shapes.kept_strides

    def numpy(y, x, *, kernel_size, stride, padding, dilation, groups=1):
        if y.shape[0] != x.shape[0] or y.shape[1] % groups or x.shape[1] % groups:
            raise ValueError
        if x.dtype.kind != "f":
            raise TypeError
        output_size("conv_weight_grad", x.shape[2:], kernel_size, stride, padding, dilation)
        return conv_numpy.conv_weight_grad(
            y, x, tuple(kernel_size), stride, padding, dilation, groups
        )

    def launch(out, y, x, *, kernel_size, stride, padding, dilation, groups=1):
        conv_weight.conv_weight_grad(
            out, y, x, stride=stride, padding=padding, dilation=dilation, groups=groups
        )

    def vjp(g, y, x, needs, stride, padding, dilation, groups):
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        dy = dx = None
        if needs[0]:
            dy = _fit(ops.convolution(x, g, **attrs), y.shape[2:])
        if needs[1]:
            dx = ops.conv_data_grad(y, g, input_size=tuple(x.shape[2:]), **attrs)
        return dy, dx

    def samples(draw):
        x, w, y, attrs = _draw(draw)
        return (draw.tensor(y), draw.tensor(x)), {"kernel_size": w[2:], **attrs}


@primitive(method=False)
class channel_sum:
    """The sum over all axes but axis 1: x (n, c, ...) -> (c,). It is the gradient of a bias."""

    def infer(x):
        if x.ndim < 2:
            raise wrong(
                "channel_sum", "x must have at least 2 axes (n, c, ...)", got=tuple(x.shape)
            )
        return Spec((x.shape[1],), x.dtype)

    def numpy(x):
        # over the batch by BLAS, then along rows: 4 times faster than x.sum((0, 2, 3))
        n, c = x.shape[:2]
        area = math.prod(x.shape[2:])
        rows = np.ones(n, x.dtype) @ np.ascontiguousarray(x).reshape(n, c * area)
        return rows.reshape(c, area).sum(1)

    def launch(out, x):
        over = (0, *range(2, x.ndim))
        reduce.reduce(out, x, over=over, kind=reduce.SUM)

    def vjp(g, x_spec):
        shape = tuple(x_spec.shape)
        return ops.expand(ops.reshape(g, (1, -1, *(1 for _ in shape[2:]))), shape)

    def samples(draw):
        return (draw.tensor(draw.shape(2, 5)),), {}


def tuple_of(op: str, name: str, value: Any, ndim: int, least: int) -> Sizes:
    """``value`` for every spatial axis: an int, or a sequence of one or ``ndim`` ints."""
    try:
        sizes = tuple(int(v) for v in value)
    except TypeError:
        sizes = (int(value),)
    if len(sizes) == 1:
        sizes *= ndim
    if len(sizes) != ndim or min(sizes) < least:
        raise wrong(
            op, f"{name} must be an int or {ndim} ints, each at least {least}", got=repr(value)
        )
    return sizes


def _batched(op: str, input: Any, weight: Any, ndim: int) -> Any:
    if weight.ndim != ndim + 2:
        raise wrong(
            op,
            f"weight must have {ndim + 2} axes (out, in, {_AXES[ndim]})",
            got=tuple(weight.shape),
        )
    if input.ndim == ndim + 2:
        return input
    if input.ndim == ndim + 1:
        return ops.unsqueeze(input, 0)
    raise wrong(
        op,
        f"input must have {ndim + 2} axes (n, channels, {_AXES[ndim]}) or, unbatched, {ndim + 1}",
        got=tuple(input.shape),
    )  # fmt: skip


def _convolve(
    ndim: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    groups: int,
) -> Any:  # fmt: skip
    op = f"conv{ndim}d"
    x = _batched(op, input, weight, ndim)
    stride = tuple_of(op, "stride", stride, ndim, 1)
    dilation = tuple_of(op, "dilation", dilation, ndim, 1)
    if padding == "valid":
        padding = (0,) * ndim
    elif padding == "same":
        if max(stride) > 1:
            raise wrong(op, "padding='same' needs stride 1", got=f"stride {stride}")
        total = tuple(d * (k - 1) for d, k in zip(dilation, weight.shape[2:]))
        padding = tuple(t // 2 for t in total)
        if any(t % 2 for t in total):  # one more zero at the end of the axis, as torch
            x = ops.pad(x, [n for t in reversed(total) for n in (0, t % 2)])
    elif isinstance(padding, str):
        raise wrong(op, "padding must be ints, 'same' or 'valid'", got=repr(padding))
    else:
        padding = tuple_of(op, "padding", padding, ndim, 0)
    out = ops.convolution(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return out if input.ndim == ndim + 2 else ops.squeeze(out, 0)


def _transpose(
    ndim: int, input: Any, weight: Any, bias: Any, stride: Any, padding: Any, output_padding: Any,
    groups: int, dilation: Any,
) -> Any:  # fmt: skip
    op = f"conv_transpose{ndim}d"
    y = _batched(op, input, weight, ndim)
    stride = tuple_of(op, "stride", stride, ndim, 1)
    padding = tuple_of(op, "padding", padding, ndim, 0)
    extra = tuple_of(op, "output_padding", output_padding, ndim, 0)
    dilation = tuple_of(op, "dilation", dilation, ndim, 1)
    if any(e >= max(s, d) for e, s, d in zip(extra, stride, dilation)):
        raise wrong(
            op, f"output_padding must be smaller than stride {stride} or dilation {dilation}",
            got=extra,
        )  # fmt: skip
    size = tuple(
        (i - 1) * s - 2 * p + d * (k - 1) + e + 1
        for i, k, s, p, d, e in zip(y.shape[2:], weight.shape[2:], stride, padding, dilation, extra)
    )
    if min(size) < 1:
        raise wrong(
            op, f"input of size {tuple(y.shape[2:])} with kernel {tuple(weight.shape[2:])}, stride "
            f"{stride} and padding {padding} would give an output of size {size}",
        )  # fmt: skip
    out = ops.conv_data_grad(
        y, weight, bias,
        input_size=size, stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    return out if input.ndim == ndim + 2 else ops.squeeze(out, 0)


@composite(method=False)
def conv1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """Cross-correlation along one axis; see ``conv2d``.

    input (n, c, L) or (c, L), weight (o, c / groups, k), bias (o,) -> (n, o, L_out) or (o, L_out).

    >>> trident.conv1d(trident.ones(1, 1, 5), trident.ones(1, 1, 3), padding=1).tolist()
    [[[2.0, 3.0, 3.0, 3.0, 2.0]]]
    """
    return _convolve(1, input, weight, bias, stride, padding, dilation, groups)


@composite(method=False)
def conv2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """Cross-correlation: out[o, p] = bias[o] + sum over channels c and taps t of
    weight[o, c, t] * input[c, stride*p - padding + dilation*t], for each image.

    input (n, c, h, w) or (c, h, w), weight (o, c / groups, kh, kw), bias (o,); the output is
    (n, o, h_out, w_out), h_out = (h + 2*padding - dilation*(kh - 1) - 1) // stride + 1. Floating
    dtypes, one for all. ``stride``, ``padding``, ``dilation``: an int, or one an axis; ``padding``
    may be 'valid' (none) or 'same' (output as large as the input; needs stride 1). ``groups`` cuts
    the channels into so many parts that see only each other. ShapeError where shapes do not fit.

    >>> image = trident.arange(9.0).reshape(1, 1, 3, 3)
    >>> trident.conv2d(image, trident.ones(1, 1, 2, 2)).tolist()
    [[[[8.0, 12.0], [20.0, 24.0]]]]
    """
    return _convolve(2, input, weight, bias, stride, padding, dilation, groups)


@composite(method=False)
def conv3d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    """Cross-correlation along three axes; see ``conv2d``.

    input (n, c, d, h, w) or (c, d, h, w), weight (o, c / groups, kd, kh, kw), bias (o,).

    >>> trident.conv3d(trident.ones(1, 1, 2, 2, 2), trident.ones(1, 1, 2, 2, 2)).item()
    8.0
    """
    return _convolve(3, input, weight, bias, stride, padding, dilation, groups)


@composite(method=False)
def conv_transpose1d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    """The adjoint of ``conv1d``; see ``conv_transpose2d``. weight (c, o / groups, k).

    >>> trident.conv_transpose1d(trident.ones(1, 1, 3), trident.ones(1, 1, 2)).tolist()
    [[[1.0, 2.0, 2.0, 1.0]]]
    """
    return _transpose(
        1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )  # fmt: skip


@composite(method=False)
def conv_transpose2d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    """The adjoint of ``conv2d`` (its gradient for the input), used to make images larger.

    input (n, c, h, w) or (c, h, w), weight (c, o / groups, kh, kw), bias (o,); the output is
    (n, o, h_out, w_out), h_out = (h - 1)*stride - 2*padding + dilation*(kh - 1)
    + output_padding + 1.
    ``output_padding`` says which of the sizes that ``conv2d`` maps to h is meant; it is smaller
    than stride or dilation. The other arguments are those of ``conv2d``.

    >>> x = trident.ones(1, 1, 1, 2)
    >>> trident.conv_transpose2d(x, trident.ones(1, 1, 1, 2), stride=2).tolist()
    [[[[1.0, 1.0, 1.0, 1.0]]]]
    """
    return _transpose(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


@composite(method=False)
def conv_transpose3d(
    input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    """The adjoint of ``conv3d``; see ``conv_transpose2d``. weight (c, o / groups, kd, kh, kw).

    >>> trident.conv_transpose3d(trident.ones(1, 1, 1, 1, 1), trident.ones(1, 1, 1, 1, 2)).shape
    trident.Size([1, 1, 1, 1, 2])
    """
    return _transpose(3, input, weight, bias, stride, padding, output_padding, groups, dilation)
