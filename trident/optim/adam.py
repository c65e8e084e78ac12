"""Adam and AdamW: one multi-tensor update per group and step count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trident

from .. import Tensor, ops
from .optimizer import Optimizer, update


class Adam(Optimizer):
    """``m = b1 m + (1 - b1) g``; ``v = b2 v + (1 - b2) g^2``; ``p -= lr m' / (sqrt(v') + eps)``.

    ``m' = m / (1 - b1^t)`` and ``v' = v / (1 - b2^t)`` undo the start from zero.
    ``weight_decay * p`` is added to the gradient, or, with ``decoupled_weight_decay``, taken from
    ``p`` directly (AdamW). ``amsgrad`` uses the largest ``v`` so far. ``foreach`` and ``fused``
    are accepted and change nothing. Source: Kingma, Ba 2015, arXiv:1412.6980; Reddi et al. 2018
    (amsgrad).

    >>> w = trident.tensor([1.0], requires_grad=True)
    >>> opt = trident.optim.Adam([w], lr=0.1)
    >>> (w * w).sum().backward()
    >>> opt.step()
    >>> round(w.item(), 4)
    0.9
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "foreach": foreach,
                "fused": fused,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    def _start(self, p: Tensor, amsgrad: bool) -> dict[str, Any]:
        state = self.state[p]
        state.update(step=0, exp_avg=trident.zeros_like(p), exp_avg_sq=trident.zeros_like(p))
        if amsgrad:
            state["max_exp_avg_sq"] = trident.zeros_like(p)
        return state

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        amsgrad = group["amsgrad"]
        state = self.state
        states = [state[p] or self._start(p, amsgrad) for p in params]
        for s in states:
            s["step"] += 1
        step = states[0]["step"]
        if len(states) == sum([s["step"] == step for s in states]):
            self._call(group, params, grads, states, step)
            return
        for step in {s["step"] for s in states}:  # parameters that joined later
            at = [i for i, s in enumerate(states) if s["step"] == step]
            some, their = [params[i] for i in at], [grads[i] for i in at]
            self._call(group, some, their, [states[i] for i in at], step)

    def _call(
        self, group: dict[str, Any], params: list, grads: list, states: list, step: int
    ) -> None:
        beta1, beta2 = group["betas"]
        update(
            ops.adam_,
            params,
            grads,
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [],
            step=step,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group["decoupled_weight_decay"],
            maximize=group["maximize"],
        )


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: ``p -= lr * weight_decay * p`` before the
    step.

    Source: Loshchilov, Hutter 2019, arXiv:1711.05101.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad,
            foreach=foreach, maximize=maximize, fused=fused, decoupled_weight_decay=True,
        )  # fmt: skip
