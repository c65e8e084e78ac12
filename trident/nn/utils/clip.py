"""Gradient clipping, and parameters as one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable

import trident

from ... import Tensor


def _listed(tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _grads(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in _listed(parameters) if p.grad is not None]


def get_total_norm(
    tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """The norm of all ``tensors`` as if they were one vector; 0 for none."""
    items = _listed(tensors)
    if not items:
        return trident.tensor(0.0)
    with trident.no_grad():
        norms = [_norm(t.detach(), norm_type) for t in items]
        total = _norm(trident.stack([n.to(norms[0].device) for n in norms]), norm_type)
    if error_if_nonfinite and not math.isfinite(float(total)):
        raise RuntimeError(
            f"the total norm of order {norm_type} is {float(total)}; "
            "pass error_if_nonfinite=False to go on"
        )
    return total


def _norm(t: Tensor, norm_type: float) -> Tensor:
    if norm_type == 2.0:
        return (t * t).sum().sqrt()
    if norm_type == math.inf:
        return t.abs().amax()
    return (t.abs() ** norm_type).sum() ** (1.0 / norm_type)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients so that their norm, as one vector, is at most ``max_norm``; returns the
    norm.

    The factor is ``min(1, max_norm / (norm + 1e-6))``. ``foreach`` is accepted and changes nothing.

    >>> w = trident.zeros(2, requires_grad=True)
    >>> w.grad = trident.tensor([3.0, 4.0])
    >>> trident.nn.utils.clip_grad_norm_([w], 1.0).item()
    5.0
    >>> w.grad.round(decimals=4).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    items = _listed(parameters)
    total = get_total_norm(_grads(items), norm_type, error_if_nonfinite)
    clip_grads_with_norm_(items, max_norm, total)
    return total


def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    """Scale all gradients by ``min(1, max_norm / (total_norm + 1e-6))``, without waiting for its
    value.
    """
    with trident.no_grad():
        factor = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
        for g in _grads(parameters):
            g.mul_(factor.to(device=g.device, dtype=g.dtype))


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Limit every element of every gradient to [-clip_value, clip_value]."""
    with trident.no_grad():
        for g in _grads(parameters):
            g.clamp_(-clip_value, clip_value)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All parameters flattened into one vector (recorded: gradients flow back).

    >>> net = trident.nn.Linear(2, 3)
    >>> trident.nn.utils.parameters_to_vector(net.parameters()).shape
    trident.Size([9])
    """
    return trident.cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Replace the data of ``parameters`` by consecutive pieces of ``vec``."""
    if not isinstance(vec, Tensor):
        raise TypeError(f"vector_to_parameters: vec must be a Tensor; got {type(vec).__name__}")
    parameters = list(parameters)
    wanted = sum(p.numel() for p in parameters)
    if vec.numel() != wanted:
        raise ValueError(
            f"vector_to_parameters: the parameters hold {wanted} elements; vec holds {vec.numel()}"
        )
    at = 0
    for p in parameters:
        p.data = vec[at : at + p.numel()].reshape(p.shape).detach().clone()
        at += p.numel()
