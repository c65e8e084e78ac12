"""Layers that learn their input size at the first call, and then become the plain layer."""

from __future__ import annotations

from typing import Any

import trident

from .. import Tensor
from .conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .linear import Linear
from .module import Module
from .normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d


class _Lazy(Module):
    """Parameters are empty until the first call; they keep their identity when they get a shape."""

    becomes: Any  # the class of the plain layer

    def reset_parameters(self) -> None:
        """Nothing yet; the initial values are drawn when the size is known."""

    def _materialize(self, input: Tensor) -> None:
        raise TypeError(f"{type(self).__name__}: a lazy layer must define _materialize")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with trident.no_grad():
            self._materialize(args[0] if args else kwargs["input"])
        self.__class__ = self.becomes
        self.reset_parameters()
        return self(*args, **kwargs)


def _shape(p: Tensor, *shape: int) -> None:
    p.data = trident.empty(*shape, dtype=p.dtype, device=p.device)


class LazyLinear(_Lazy, Linear):
    """Linear whose ``in_features`` is the size of the first input's last axis.

    >>> layer = trident.nn.LazyLinear(3)
    >>> layer(trident.zeros(2, 5)).shape
    trident.Size([2, 3])
    >>> layer
    Linear(in_features=5, out_features=3, bias=True)
    """

    becomes = Linear

    def __init__(
        self, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        Linear.__init__(self, 0, out_features, bias, device, dtype)

    def _materialize(self, input: Tensor) -> None:
        self.in_features = input.shape[-1]
        _shape(self.weight, self.out_features, self.in_features)


class _LazyConv(_Lazy):
    def __init__(self, out_channels: int, kernel_size: Any, *args: Any, **kwargs: Any) -> None:
        self.becomes.__init__(self, 0, out_channels, kernel_size, *args, **kwargs)

    def _materialize(self, input: Tensor) -> None:
        self.in_channels = input.shape[-1 - self.n_axes]
        if self.in_channels % self.groups:
            raise ValueError(
                f"{self._get_name()}: the input has {self.in_channels} channels, not a multiple of "
                f"groups={self.groups}"
            )
        shape = (self.out_channels, self.in_channels // self.groups)
        if self.transposed:
            shape = (self.in_channels, self.out_channels // self.groups)
        _shape(self.weight, *shape, *self.kernel_size)


class LazyConv1d(_LazyConv, Conv1d):
    """Conv1d whose ``in_channels`` is that of the first input."""

    becomes = Conv1d


class LazyConv2d(_LazyConv, Conv2d):
    """Conv2d whose ``in_channels`` is that of the first input."""

    becomes = Conv2d


class LazyConv3d(_LazyConv, Conv3d):
    """Conv3d whose ``in_channels`` is that of the first input."""

    becomes = Conv3d


class LazyConvTranspose1d(_LazyConv, ConvTranspose1d):
    """ConvTranspose1d whose ``in_channels`` is that of the first input."""

    becomes = ConvTranspose1d


class LazyConvTranspose2d(_LazyConv, ConvTranspose2d):
    """ConvTranspose2d whose ``in_channels`` is that of the first input."""

    becomes = ConvTranspose2d


class LazyConvTranspose3d(_LazyConv, ConvTranspose3d):
    """ConvTranspose3d whose ``in_channels`` is that of the first input."""

    becomes = ConvTranspose3d


class _LazyBatchNorm(_Lazy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.becomes.__init__(self, 0, *args, **kwargs)

    def _materialize(self, input: Tensor) -> None:
        self.num_features = n = input.shape[1]
        for t in (self.weight, self.bias, self.running_mean, self.running_var):
            if t is not None:
                _shape(t, n)


class LazyBatchNorm1d(_LazyBatchNorm, BatchNorm1d):
    """BatchNorm1d whose ``num_features`` is that of the first input."""

    becomes = BatchNorm1d


class LazyBatchNorm2d(_LazyBatchNorm, BatchNorm2d):
    """BatchNorm2d whose ``num_features`` is that of the first input."""

    becomes = BatchNorm2d


class LazyBatchNorm3d(_LazyBatchNorm, BatchNorm3d):
    """BatchNorm3d whose ``num_features`` is that of the first input."""

    becomes = BatchNorm3d
