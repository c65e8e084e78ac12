"""``unfold`` and ``fold``: images as the columns of their windows, and back."""

from __future__ import annotations

import math
from typing import Any

from ..errors import wrong
from ..kernels import conv_direct as kernels
from . import conv_numpy
from .conv import Sizes, output_size, tuple_of
from .registry import Spec, composite, ops, primitive


def _pixels(x_size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> Sizes:
    return output_size("unfold", x_size, kernel, stride, padding, dilation)


def _check_columns(
    columns: Sizes, size: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Sizes:
    """The numbers of windows along the axes; raises where ``columns`` has not so many."""
    if len(columns) != 3:
        raise wrong("fold", "input must have 3 axes (n, channels * taps, windows)", got=columns)
    taps = math.prod(kernel)
    if columns[1] % taps:
        raise wrong(
            "fold",
            f"axis 1 of input {columns} must be divisible by the {taps} taps of kernel {kernel}",
        )
    out = output_size("fold", size, kernel, stride, padding, dilation)
    if math.prod(out) != columns[2]:
        raise wrong(
            "fold", f"output_size {tuple(size)} has {' * '.join(map(str, out))} windows, input "
            f"{columns} holds {columns[2]}",
        )  # fmt: skip
    return out


def _draw(draw: Any) -> tuple[Sizes, Sizes, Sizes, dict[str, Any]]:
    """Shapes of image and columns, the kernel, and attributes, of one random unfold."""
    ndim = draw.integer(2, 3)
    kernel = tuple(draw.integer(1, 3) for _ in range(ndim))
    stride = tuple(draw.integer(1, 3) for _ in range(ndim))
    padding = tuple(draw.integer(0, 2) for _ in range(ndim))
    dilation = tuple(draw.integer(1, 2) for _ in range(ndim))
    size = tuple(
        max(d * (k - 1) + 1 - 2 * p, 1) + draw.integer(0, 3)
        for k, p, d in zip(kernel, padding, dilation)
    )
    out = output_size("samples", size, kernel, stride, padding, dilation)
    n, c = draw.integer(0, 2), draw.integer(1, 3)
    attrs = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return (n, c, *size), (n, c * math.prod(kernel), math.prod(out)), kernel, attrs


@primitive(method=False)
class im2col:
    """Every window of x as a column: x (n, c, *size) -> (n, c * taps, windows)."""

    def infer(x, *, kernel_size, stride, padding, dilation):
        out = _pixels(x.shape[2:], kernel_size, stride, padding, dilation)
        return Spec((x.shape[0], x.shape[1] * math.prod(kernel_size), math.prod(out)), x.dtype)

    def numpy(x, *, kernel_size, stride, padding, dilation):
        out = _pixels(x.shape[2:], kernel_size, stride, padding, dilation)
        return conv_numpy.im2col(x, kernel_size, out, stride, padding, dilation)

    def launch(out, x, *, kernel_size, stride, padding, dilation):
        kernels.unfold(
            out, x, kernel=kernel_size, stride=stride, padding=padding, dilation=dilation,
            size=_pixels(x.shape[2:], kernel_size, stride, padding, dilation),
        )  # fmt: skip

    def vjp(g, x_spec, kernel_size, stride, padding, dilation):
        return ops.col2im(
            g, input_size=tuple(x_spec.shape[2:]), kernel_size=kernel_size, stride=stride,
            padding=padding, dilation=dilation,
        )  # fmt: skip

    def samples(draw):
        x, _, _, attrs = _draw(draw)
        return (draw.tensor(x),), attrs


@primitive(method=False)
class col2im:
    """The adjoint of ``im2col``: (n, c * taps, windows) -> (n, c, *input_size), overlaps added."""

    def infer(columns, *, input_size, kernel_size, stride, padding, dilation):
        shape = tuple(columns.shape)
        _check_columns(shape, input_size, kernel_size, stride, padding, dilation)
        return Spec((shape[0], shape[1] // math.prod(kernel_size), *input_size), columns.dtype)

    def numpy(columns, *, input_size, kernel_size, stride, padding, dilation):
        out = _check_columns(columns.shape, input_size, kernel_size, stride, padding, dilation)
        return conv_numpy.col2im(
            columns, tuple(input_size), kernel_size, out, stride, padding, dilation
        )

    def launch(out, columns, *, input_size, kernel_size, stride, padding, dilation):
        size = _check_columns(columns.shape, input_size, kernel_size, stride, padding, dilation)
        kernels.fold(
            out, columns, kernel=kernel_size, size=size, stride=stride, padding=padding,
            dilation=dilation,
        )  # fmt: skip

    def vjp(g, kernel_size, stride, padding, dilation):
        return ops.im2col(
            g, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation
        )

    def samples(draw):
        x, columns, _, attrs = _draw(draw)
        return (draw.tensor(columns),), {"input_size": x[2:], **attrs}


def _window(
    op: str, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> dict[str, Sizes]:
    return {
        "kernel_size": tuple_of(op, "kernel_size", kernel_size, 2, 1),
        "dilation": tuple_of(op, "dilation", dilation, 2, 1),
        "padding": tuple_of(op, "padding", padding, 2, 0),
        "stride": tuple_of(op, "stride", stride, 2, 1),
    }


@composite(method=False)
def unfold(
    input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Any:
    """Every window of the input as a column: (n, c, h, w) -> (n, c * kh * kw, windows).

    Also unbatched: (c, h, w) -> (c * kh * kw, windows).

    >>> image = trident.arange(9.0).reshape(1, 1, 3, 3)
    >>> trident.nn.functional.unfold(image, 2)[0].tolist()[0]
    [0.0, 1.0, 3.0, 4.0]
    """
    attrs = _window("unfold", kernel_size, dilation, padding, stride)
    if input.ndim == 3:
        return ops.squeeze(ops.im2col(ops.unsqueeze(input, 0), **attrs), 0)
    if input.ndim != 4:
        raise wrong(
            "unfold", "input must have 4 axes (n, c, h, w) or, unbatched, 3", got=tuple(input.shape)
        )
    return ops.im2col(input, **attrs)


@composite(method=False)
def fold(
    input: Any,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Any:
    """Add columns of windows back into an image: (n, c * kh * kw, windows) -> (n, c, *output_size).

    The adjoint of ``unfold``: where windows overlap, their values are added. Also unbatched.

    >>> columns = trident.ones(1, 4, 4)
    >>> trident.nn.functional.fold(columns, (3, 3), 2)[0, 0].tolist()
    [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    """
    attrs = _window("fold", kernel_size, dilation, padding, stride)
    size = tuple_of("fold", "output_size", output_size, 2, 1)
    if input.ndim == 2:
        return ops.squeeze(ops.col2im(ops.unsqueeze(input, 0), input_size=size, **attrs), 0)
    return ops.col2im(input, input_size=size, **attrs)
