"""Optimizers as their papers give them: two multi-tensor updates, the rest tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import trident

from .. import Tensor, ops
from .optimizer import LeafOptimizer, update


class RMSprop(LeafOptimizer):
    """``v = alpha * v + (1 - alpha) * g^2``; ``p -= lr * g / (sqrt(v) + eps)``.

    ``centered`` divides by the standard deviation, ``sqrt(v - mean(g)^2)``; ``momentum``
    accumulates the quotients. Source: Hinton, lecture 6e; Graves 2013, arXiv:1308.0850 (centered).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        self._require(group["alpha"] >= 0, "alpha must be >= 0", group["alpha"])

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["square_avg"] = trident.zeros_like(p)
        if group["momentum"] > 0:
            state["momentum_buffer"] = trident.zeros_like(p)
        if group["centered"]:
            state["grad_avg"] = trident.zeros_like(p)

    def _step(self, group: dict[str, Any], params: list, grads: list, states: list) -> None:
        update(
            ops.rmsprop_,
            params,
            grads,
            [s["square_avg"] for s in states],
            [s["grad_avg"] for s in states] if group["centered"] else [],
            [s["momentum_buffer"] for s in states] if group["momentum"] > 0 else [],
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            maximize=group["maximize"],
        )


class Adagrad(LeafOptimizer):
    """``s += g^2``; ``p -= lr_t * g / (sqrt(s) + eps)`` with
    ``lr_t = lr / (1 + (t - 1) * lr_decay)``.

    Source: Duchi, Hazan, Singer 2011, JMLR 12.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "foreach": foreach,
                "maximize": maximize,
                "fused": fused,
            },
        )

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["sum"] = trident.full_like(p, group["initial_accumulator_value"])

    def _step(self, group: dict[str, Any], params: list, grads: list, states: list) -> None:
        for step in {s["step"] for s in states}:  # one, unless parameters joined later
            at = [i for i, s in enumerate(states) if s["step"] == step]
            update(
                ops.adagrad_,
                [params[i] for i in at],
                [grads[i] for i in at],
                [states[i]["sum"] for i in at],
                lr=group["lr"] / (1 + (step - 1) * group["lr_decay"]),
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                maximize=group["maximize"],
            )


class Adadelta(LeafOptimizer):
    """``p -= lr * g * sqrt(u + eps) / sqrt(v + eps)``: ``v``, ``u`` average ``g^2`` and the steps
    squared.

    Source: Zeiler 2012, arXiv:1212.5701.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        self._require(0 <= group["rho"] <= 1, "rho must lie in [0, 1]", group["rho"])

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["square_avg"] = trident.zeros_like(p)
        state["acc_delta"] = trident.zeros_like(p)

    def _leaf(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        rho, eps = group["rho"], group["eps"]
        v, u = state["square_avg"], state["acc_delta"]
        v.mul_(rho).add_(g * g, alpha=1 - rho)
        delta = g * ((u + eps).sqrt() / (v + eps).sqrt())
        u.mul_(rho).add_(delta * delta, alpha=1 - rho)
        p.sub_(delta, alpha=group["lr"])


class Adamax(LeafOptimizer):
    """Adam with the infinity norm: ``u = max(beta2 * u, |g| + eps)``;
    ``p -= lr / (1 - beta1^t) * m / u``.

    Source: Kingma, Ba 2015, arXiv:1412.6980, section 7.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
            },
        )

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["exp_avg"] = trident.zeros_like(p)
        state["exp_inf"] = trident.zeros_like(p)

    def _leaf(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        m, u = state["exp_avg"], state["exp_inf"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        u.copy_(trident.maximum(u * beta2, g.abs() + group["eps"]))
        p.sub_(m / u, alpha=group["lr"] / (1 - beta1 ** state["step"]))


class NAdam(LeafOptimizer):
    """Adam whose first moment looks one step ahead, as Nesterov's momentum does.

    ``mu_t = beta1 * (1 - 0.5 * 0.96^(t * momentum_decay))`` weighs gradient and moment.
    Source: Dozat 2016, "Incorporating Nesterov Momentum into Adam".
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        decay = group["momentum_decay"]
        self._require(decay >= 0, "momentum_decay must be >= 0", decay)

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["mu_product"] = 1.0
        state["exp_avg"] = trident.zeros_like(p)
        state["exp_avg_sq"] = trident.zeros_like(p)

    def _load_value(self, key: str, value: Any, p: Tensor) -> Any:
        return float(value) if key == "mu_product" else super()._load_value(key, value, p)

    def _leaf(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        t, decay, lr = state["step"], group["momentum_decay"], group["lr"]
        mu = beta1 * (1 - 0.5 * 0.96 ** (t * decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * decay))
        product = state["mu_product"] = state["mu_product"] * mu
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).add_(g * g, alpha=1 - beta2)
        denominator = (v / (1 - beta2**t)).sqrt() + group["eps"]
        p.sub_(g / denominator, alpha=lr * (1 - mu) / (1 - product))
        p.sub_(m / denominator, alpha=lr * mu_next / (1 - product * mu_next))


class RAdam(LeafOptimizer):
    """Adam whose step is rectified by the variance of its second moment, plain momentum until it
    exists.

    Source: Liu et al. 2020, arXiv:1908.03265.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["exp_avg"] = trident.zeros_like(p)
        state["exp_avg_sq"] = trident.zeros_like(p)

    def _leaf(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        t, m, v = state["step"], state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).add_(g * g, alpha=1 - beta2)
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        step = m / (1 - beta1**t)
        if rho > 5:  # below, the variance of the adaptive rate is not finite enough to correct
            rectify = math.sqrt(
                (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
            )
            step = step * (rectify * math.sqrt(1 - beta2**t)) / (v.sqrt() + group["eps"])
        p.sub_(step, alpha=group["lr"])


class Rprop(LeafOptimizer):
    """Resilient backpropagation: each weight's step grows while its gradient keeps its sign.

    Only signs are used: for full batches. Source: Riedmiller, Braun 1993.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "etas": etas,
                "step_sizes": step_sizes,
                "foreach": foreach,
                "maximize": maximize,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        low, high = group["etas"]
        self._require(0 < low < 1 < high, "etas must hold 0 < etas[0] < 1 < etas[1]", (low, high))

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["prev"] = trident.zeros_like(p)
        state["step_size"] = trident.full_like(p, group["lr"])

    def _leaf(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        shrink, grow = group["etas"]
        low, high = group["step_sizes"]
        same = g * state["prev"]
        size = state["step_size"]
        grown = trident.where(same > 0, size * grow, trident.where(same < 0, size * shrink, size))
        size.copy_(grown.clamp(low, high))
        g = trident.where(same < 0, trident.zeros_like(g), g)  # the sign changed: forget this step
        p.sub_(g.sign() * size)
        state["prev"].copy_(g)
