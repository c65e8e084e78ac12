"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trident

from .. import Tensor, ops
from .optimizer import Optimizer, update


class SGD(Optimizer):
    """``v = momentum * v + (1 - dampening) * g``; ``p -= lr * v``, with ``g`` plus
    ``weight_decay * p``.

    ``nesterov`` steps along ``g + momentum * v``. At a parameter's first step ``v`` is ``g``
    itself. ``foreach`` and ``fused`` are accepted and change nothing: a step is one multi-tensor
    update.

    >>> w = trident.tensor([3.0], requires_grad=True)
    >>> opt = trident.optim.SGD([w], lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     opt.zero_grad()
    ...     w.sum().backward()
    ...     opt.step()
    >>> round(w.item(), 4)
    2.71
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "fused": fused,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        plain = group["momentum"] <= 0 or group["dampening"] != 0
        self._require(
            not (group["nesterov"] and plain),
            "nesterov needs momentum > 0 and dampening == 0",
            f"momentum={group['momentum']}, dampening={group['dampening']}",
        )

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        options = {name: group[name] for name in _OPTIONS}
        if not group["momentum"]:
            update(ops.sgd_, params, grads, [], first=False, **options)
            return
        state = self.state
        try:
            buffers = [state[p]["momentum_buffer"] for p in params]
        except KeyError:  # some parameters step for the first time
            self._first(params, grads, options)
            return
        update(ops.sgd_, params, grads, buffers, first=False, **options)

    def _first(self, params: list[Tensor], grads: list[Tensor], options: dict[str, Any]) -> None:
        """A step where some momentum buffers are new: those become the gradients."""
        for first in (False, True):
            chosen = [
                (p, g)
                for p, g in zip(params, grads)
                if ("momentum_buffer" not in self.state[p]) is first
            ]
            if not chosen:
                continue
            some, their = [p for p, _ in chosen], [g for _, g in chosen]
            if first:
                for p in some:
                    self.state[p]["momentum_buffer"] = trident.empty_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in some]
            update(ops.sgd_, some, their, buffers, first=first, **options)


_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
