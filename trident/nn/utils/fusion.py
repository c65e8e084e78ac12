"""Batch norm folded into the layer before it, for inference: one layer fewer, the same function."""

from __future__ import annotations

import copy
from typing import Any

import trident

from ... import Tensor
from ..parameter import Parameter


def fuse_conv_bn_eval(conv: Any, bn: Any, transpose: bool = False) -> Any:
    """A copy of ``conv`` that computes ``bn(conv(x))``; both must be in evaluation mode.

    ``transpose``: conv is a transposed convolution.

    >>> conv, bn = trident.nn.Conv2d(3, 8, 3).eval(), trident.nn.BatchNorm2d(8).eval()
    >>> fused = trident.nn.utils.fuse_conv_bn_eval(conv, bn)
    >>> x = trident.randn(2, 3, 6, 6)
    >>> trident.allclose(fused(x), bn(conv(x)), atol=1e-5)
    True
    """
    return _fused("fuse_conv_bn_eval", conv, bn, transpose)


def fuse_conv_bn_weights(
    conv_w: Tensor,
    conv_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor | None,
    bn_b: Tensor | None,
    transpose: bool = False,
) -> tuple[Parameter, Parameter]:
    """The weight and bias of a convolution followed by a batch norm with these running mean and
    variance, weight and bias. A convolution's weight is (out, in / groups, ...), with ``transpose``
    (in, out / groups, ...)."""
    scale = trident.rsqrt(bn_rv + bn_eps)
    if bn_w is not None:
        scale = bn_w * scale
    shift = (0 if conv_b is None else conv_b) - bn_rm
    shift = shift * scale if bn_b is None else shift * scale + bn_b
    if transpose:  # an input channel sees the outputs of its group
        groups = scale.shape[0] // conv_w.shape[1]
        factor = scale.reshape(groups, conv_w.shape[1]).repeat_interleave(
            conv_w.shape[0] // groups, dim=0
        )
    else:
        factor = scale.reshape(-1, 1)
    factor = factor.reshape(*factor.shape, *(1 for _ in conv_w.shape[2:]))
    weight = (conv_w * factor).to(conv_w.dtype)
    bias = shift.to(conv_w.dtype if conv_b is None else conv_b.dtype)
    needs_bias = True if conv_b is None else conv_b.requires_grad
    return (
        Parameter(weight.detach(), requires_grad=conv_w.requires_grad),
        Parameter(bias.detach(), requires_grad=needs_bias),
    )


def fuse_linear_bn_eval(linear: Any, bn: Any) -> Any:
    """A copy of ``linear`` that computes ``bn(linear(x))``; both must be in evaluation mode.

    >>> linear, bn = trident.nn.Linear(3, 8).eval(), trident.nn.BatchNorm1d(8).eval()
    >>> fused = trident.nn.utils.fuse_linear_bn_eval(linear, bn)
    >>> x = trident.randn(2, 3)
    >>> trident.allclose(fused(x), bn(linear(x)), atol=1e-5)
    True
    """
    return _fused("fuse_linear_bn_eval", linear, bn, False)


def fuse_linear_bn_weights(
    linear_w: Tensor,
    linear_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor | None,
    bn_b: Tensor | None,
) -> tuple[Parameter, Parameter]:
    """As ``fuse_conv_bn_weights``, for a linear layer: weight (out, in)."""
    return fuse_conv_bn_weights(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b)


def _fused(name: str, layer: Any, bn: Any, transpose: bool) -> Any:
    if layer.training or bn.training:
        raise RuntimeError(
            f"{name}: both layers must be in evaluation mode, where batch norm uses its running "
            "statistics; call .eval() on them first"
        )
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            f"{name}: the batch norm has no running statistics to fold (track_running_stats=False)"
        )
    outputs = layer.weight.shape[1] * layer.groups if transpose else layer.weight.shape[0]
    if bn.num_features != outputs:
        raise ValueError(
            f"{name}: the batch norm is for {bn.num_features} channels, the layer has {outputs}"
        )
    fused = copy.deepcopy(layer)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias,
        transpose,
    )  # fmt: skip
    return fused


__all__ = [
    "fuse_conv_bn_eval", "fuse_conv_bn_weights", "fuse_linear_bn_eval", "fuse_linear_bn_weights",
]  # fmt: skip
