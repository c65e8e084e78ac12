"""Reverse-mode differentiation on a dynamic tape."""

from __future__ import annotations

import warnings
from typing import Any

from ..tape.anomaly import detect_anomaly, is_anomaly_enabled, set_detect_anomaly
from ..tape.engine import backward, grad
from ..tape.grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from ..tape.node import Node
from ..tensor import Tensor
from .function import Function, FunctionCtx, once_differentiable
from .gradcheck import GradcheckError, gradcheck, gradgradcheck


def Variable(data: Tensor, requires_grad: bool = False, volatile: bool | None = None) -> Tensor:
    """The wrapper of 2018: a tensor on the same memory (tensors record their own history now)."""
    warnings.warn(
        "Variable is the spelling of 2018; use the tensor itself, with requires_grad=True",
        DeprecationWarning, stacklevel=2,
    )  # fmt: skip
    if volatile is not None:
        raise TypeError("Variable: volatile is gone; compute under trident.no_grad() instead")
    if not isinstance(data, Tensor):
        raise TypeError(f"Variable: expected a Tensor; got {type(data).__name__}")
    out = data.detach()
    out.requires_grad = requires_grad
    return out


__all__ = [
    "Function", "FunctionCtx", "GradcheckError", "Node", "Variable", "backward", "detect_anomaly",
    "enable_grad", "grad", "gradcheck", "gradgradcheck", "inference_mode", "is_anomaly_enabled",
    "is_grad_enabled", "no_grad", "once_differentiable", "set_detect_anomaly", "set_grad_enabled",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    from ..errors import missing_name

    raise missing_name("trident.autograd", name, __all__)
