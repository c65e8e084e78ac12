"""Convolutions and their transposes."""

from __future__ import annotations

import math
from typing import Any

import trident

from .. import Tensor
from . import functional as F
from . import init
from .module import Module
from .parameter import Parameter

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def _per_axis(name: str, value: Any, n: int) -> tuple[int, ...]:
    """``value`` for each of ``n`` spatial axes: an int, or n ints."""
    if isinstance(value, int):
        return (value,) * n
    values = tuple(value)
    if len(values) != n:
        raise ValueError(f"{name} must be an int or {n} ints; got {value}")
    return values


class _Conv(Module):
    """What convolutions share: arguments, initial values, repr."""

    n_axes: int
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        output_padding: Any,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        name, n = type(self).__name__, self.n_axes
        if groups <= 0:
            raise ValueError(f"{name}: groups must be > 0; got {groups}")
        for what, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}: {what}={channels} must be a multiple of groups={groups}")
        if padding_mode not in (("zeros",) if self.transposed else _PADDING_MODES):
            allowed = "'zeros'" if self.transposed else ", ".join(map(repr, _PADDING_MODES))
            raise ValueError(f"{name}: padding_mode must be {allowed}; got {padding_mode!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _per_axis(f"{name}: kernel_size", kernel_size, n)
        self.stride = _per_axis(f"{name}: stride", stride, n)
        self.dilation = _per_axis(f"{name}: dilation", dilation, n)
        self.output_padding = _per_axis(f"{name}: output_padding", output_padding, n)
        self.groups = groups
        self.padding_mode = padding_mode
        if isinstance(padding, str):
            if padding not in ("same", "valid") or self.transposed:
                raise ValueError(
                    f"{name}: padding must be ints, 'same' or 'valid'; got {padding!r}"
                )
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f"{name}: padding='same' needs stride 1; got {self.stride}")
            self.padding: Any = padding
        else:
            self.padding = _per_axis(f"{name}: padding", padding, n)
        shape = (out_channels, in_channels // groups)
        if self.transposed:
            shape = (in_channels, out_channels // groups)
        self.weight = Parameter(
            trident.empty(*shape, *self.kernel_size, device=device, dtype=dtype)
        )
        if bias:
            self.bias = Parameter(trident.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh initial values: uniform on ±1 / sqrt(fan_in)."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = self.weight.shape[1] * math.prod(self.kernel_size)
            bound = 1 / math.sqrt(fan_in) if fan_in else 0
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        zeros, ones = (0,) * self.n_axes, (1,) * self.n_axes
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
        if self.padding != zeros:
            text += f", padding={self.padding}"
        if self.dilation != ones:
            text += f", dilation={self.dilation}"
        if self.output_padding != zeros:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text

    def _label(self) -> str:
        return (
            f"{self._get_name()}({self.in_channels} -> {self.out_channels}, "
            f"kernel_size={self.kernel_size})"
        )


class _ConvNd(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, 0, device, dtype,
        )  # fmt: skip

    def _margins(self) -> list[int]:
        """Padding for ``F.pad``, last axis first: what is added before and after each axis."""
        margins: list[int] = []
        for i in reversed(range(self.n_axes)):
            if self.padding == "same":
                total = self.dilation[i] * (self.kernel_size[i] - 1)
                margins += [total // 2, total - total // 2]
            else:
                margins += [0, 0] if self.padding == "valid" else [self.padding[i]] * 2
        return margins

    def forward(self, input: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._margins(), mode=self.padding_mode)
            padding = 0
        return self._conv(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class Conv1d(_ConvNd):
    """Cross-correlation along one axis: x (N, C, L) or (C, L) -> (N, out_channels, L_out).

    ``weight`` (out_channels, in_channels / groups, k). ``padding`` may be "same" or "valid".
    """

    n_axes = 1
    _conv = staticmethod(F.conv1d)


class Conv2d(_ConvNd):
    """Cross-correlation along two axes: x (N, C, H, W) or (C, H, W) -> (N, out_channels, H_out,
    W_out).

    ``weight`` (out_channels, in_channels / groups, kh, kw), ``bias`` (out_channels,);
    H_out = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1. ``padding`` may be "same" or
    "valid"; ``padding_mode`` is "zeros", "reflect", "replicate" or "circular".

    >>> trident.nn.Conv2d(3, 8, 3, padding=1)(trident.zeros(2, 3, 5, 5)).shape
    trident.Size([2, 8, 5, 5])
    """

    n_axes = 2
    _conv = staticmethod(F.conv2d)


class Conv3d(_ConvNd):
    """Cross-correlation along three axes: x (N, C, D, H, W) -> (N, out_channels, ...)."""

    n_axes = 3
    _conv = staticmethod(F.conv3d)


class _ConvTransposeNd(_Conv):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, output_padding, device, dtype,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        extra = self.output_padding
        if output_size is not None:
            extra = self._output_padding(input, output_size)
        return self._conv(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups,
            self.dilation,
        )  # fmt: skip

    def _output_padding(self, input: Tensor, output_size: Any) -> tuple[int, ...]:
        """The output_padding that gives ``output_size`` (spatial sizes, or the whole shape)."""
        n = self.n_axes
        wanted = tuple(output_size)[-n:]
        smallest = [
            (i - 1) * s - 2 * p + d * (k - 1) + 1
            for i, s, p, d, k in zip(
                input.shape[-n:], self.stride, self.padding, self.dilation, self.kernel_size
            )
        ]
        largest = [m + s - 1 for m, s in zip(smallest, self.stride)]
        if not all(low <= w <= high for low, w, high in zip(smallest, wanted, largest)):
            raise ValueError(
                f"{type(self).__name__}: output_size must lie between {smallest} and {largest} for "
                f"an input of shape {tuple(input.shape)}; got {wanted}"
            )
        return tuple(w - m for w, m in zip(wanted, smallest))


class ConvTranspose1d(_ConvTransposeNd):
    """The adjoint of Conv1d: x (N, C, L) -> (N, out_channels, L_out)."""

    n_axes = 1
    _conv = staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTransposeNd):
    """The adjoint of Conv2d, which makes images larger: x (N, C, H, W) -> (N, out_channels, H_out,
    W_out).

    ``weight`` (in_channels, out_channels / groups, kh, kw);
    H_out = (H - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1.

    >>> up = trident.nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1)
    >>> up(trident.zeros(1, 4, 5, 5)).shape
    trident.Size([1, 2, 10, 10])
    """

    n_axes = 2
    _conv = staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_ConvTransposeNd):
    """The adjoint of Conv3d: x (N, C, D, H, W) -> (N, out_channels, ...)."""

    n_axes = 3
    _conv = staticmethod(F.conv_transpose3d)
