"""Padding of the last one, two or three axes, and pixel shuffling and upsampling."""

from __future__ import annotations

from typing import Any

from .. import Tensor
from . import functional as F
from .module import Module


class _Pad(Module):
    """``padding`` is an int, or (before, after) for each axis, the last axis first."""

    n_axes: int
    mode: str

    def __init__(self, padding: int | tuple[int, ...]) -> None:
        super().__init__()
        n = 2 * self.n_axes
        self.padding = (padding,) * n if isinstance(padding, int) else tuple(padding)
        if len(self.padding) != n:
            raise ValueError(
                f"{type(self).__name__}: padding must be an int or {n} ints; got {padding}"
            )

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, mode=self.mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class _ConstantPad(_Pad):
    def __init__(self, padding: int | tuple[int, ...], value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, mode="constant", value=self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    """Surround the last axis with ``value``."""

    n_axes = 1


class ConstantPad2d(_ConstantPad):
    """Surround the last two axes with ``value``: padding (left, right, top, bottom).

    >>> trident.nn.ConstantPad2d((1, 0, 0, 0), 7.0)(trident.zeros(1, 1, 1, 1)).tolist()
    [[[[7.0, 0.0]]]]
    """

    n_axes = 2


class ConstantPad3d(_ConstantPad):
    """Surround the last three axes with ``value``."""

    n_axes = 3


class _ZeroPad(_ConstantPad):
    def __init__(self, padding: int | tuple[int, ...]) -> None:
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class ZeroPad1d(_ZeroPad):
    """Surround the last axis with zeros."""

    n_axes = 1


class ZeroPad2d(_ZeroPad):
    """Surround the last two axes with zeros: padding (left, right, top, bottom)."""

    n_axes = 2


class ZeroPad3d(_ZeroPad):
    """Surround the last three axes with zeros."""

    n_axes = 3


class ReflectionPad1d(_Pad):
    """Mirror the last axis at its ends, the end itself not repeated."""

    n_axes, mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """Mirror the last two axes at their ends, the ends themselves not repeated."""

    n_axes, mode = 2, "reflect"


class ReflectionPad3d(_Pad):
    """Mirror the last three axes at their ends, the ends themselves not repeated."""

    n_axes, mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """Repeat the ends of the last axis."""

    n_axes, mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """Repeat the edges of the last two axes."""

    n_axes, mode = 2, "replicate"


class ReplicationPad3d(_Pad):
    """Repeat the faces of the last three axes."""

    n_axes, mode = 3, "replicate"


class CircularPad1d(_Pad):
    """Continue the last axis periodically."""

    n_axes, mode = 1, "circular"


class CircularPad2d(_Pad):
    """Continue the last two axes periodically."""

    n_axes, mode = 2, "circular"


class CircularPad3d(_Pad):
    """Continue the last three axes periodically."""

    n_axes, mode = 3, "circular"


class PixelShuffle(Module):
    """Channels to pixels: x (..., C * r^2, H, W) -> (..., C, H * r, W * r). Source: Shi et al.
    2016.

    >>> trident.nn.PixelShuffle(2)(trident.zeros(1, 8, 3, 3)).shape
    trident.Size([1, 2, 6, 6])
    """

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_shuffle(input, self.upscale_factor)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


class PixelUnshuffle(Module):
    """The inverse of PixelShuffle: x (..., C, H * r, W * r) -> (..., C * r^2, H, W)."""

    def __init__(self, downscale_factor: int) -> None:
        super().__init__()
        self.downscale_factor = downscale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_unshuffle(input, self.downscale_factor)

    def extra_repr(self) -> str:
        return f"downscale_factor={self.downscale_factor}"


class Upsample(Module):
    """Resize the axes after (N, C) to ``size`` or by ``scale_factor``; see ``F.interpolate``.

    >>> trident.nn.Upsample(scale_factor=2)(trident.ones(1, 1, 2, 2)).shape
    trident.Size([1, 1, 4, 4])
    """

    def __init__(
        self,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        if isinstance(scale_factor, (tuple, list)):
            self.scale_factor: Any = tuple(float(s) for s in scale_factor)
        else:
            self.scale_factor = float(scale_factor) if scale_factor else None
        self.mode = mode
        self.align_corners = align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(
            input, self.size, self.scale_factor, self.mode, self.align_corners,
            self.recompute_scale_factor,
        )  # fmt: skip

    def extra_repr(self) -> str:
        if self.scale_factor is not None:
            return f"scale_factor={self.scale_factor!r}, mode={self.mode!r}"
        return f"size={self.size!r}, mode={self.mode!r}"


class UpsamplingNearest2d(Upsample):
    """``Upsample`` with mode "nearest"."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, mode="nearest")


class UpsamplingBilinear2d(Upsample):
    """``Upsample`` with mode "bilinear" and aligned corners."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, mode="bilinear", align_corners=True)


class Fold(Module):
    """Add up overlapping windows: x (N, C * kh * kw, L) -> (N, C, *output_size)."""

    def __init__(
        self,
        output_size: Any,
        kernel_size: Any,
        dilation: Any = 1,
        padding: Any = 0,
        stride: Any = 1,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return F.fold(
            input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, padding={self.padding}, stride={self.stride}"
        )


class Unfold(Module):
    """Every window as a column: x (N, C, H, W) -> (N, C * kh * kw, L)."""

    def __init__(
        self, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, dilation={self.dilation}, padding={self.padding}, "
            f"stride={self.stride}"
        )
