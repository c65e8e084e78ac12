"""Schedules with a position in a cycle: warm restarts and one-cycle."""

from __future__ import annotations

import math

from ..optimizer import Optimizer
from .base import LRScheduler


class CosineAnnealingWarmRestarts(LRScheduler):
    """A cosine from ``initial`` to ``eta_min`` that restarts after ``T_0``, ``T_0 * T_mult``, ...
    steps.

    ``step(epoch)`` may be given fractions of an epoch. ``T_cur`` and ``T_i`` are the position in
    the present cycle and its length. Source: Loshchilov, Hutter 2017, arXiv:1608.03983.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if T_0 <= 0 or not isinstance(T_0, int):
            raise ValueError(f"CosineAnnealingWarmRestarts: T_0 must be an integer > 0; got {T_0}")
        if T_mult < 1 or not isinstance(T_mult, int):
            raise ValueError(
                f"CosineAnnealingWarmRestarts: T_mult must be an integer >= 1; got {T_mult}"
            )
        self.T_0 = self.T_i = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        self.T_cur: float = last_epoch
        super().__init__(optimizer, last_epoch)

    def _locate(self, t: float) -> None:
        """Find the cycle that holds ``t``: its length ``T_i`` and the position ``T_cur`` in it."""
        start, length = 0, self.T_0
        if self.T_mult == 1:
            start = int(t // length) * length
        else:
            while t >= start + length:
                start, length = start + length, length * self.T_mult
        self.T_cur, self.T_i = t - start, length

    def get_lr(self) -> list[float]:
        part = (1 + math.cos(math.pi * self.T_cur / self.T_i)) / 2
        return [self.eta_min + (base - self.eta_min) * part for base in self.base_lrs]

    def step(self, epoch: float | None = None) -> None:
        """Advance by one step (from a fraction: by one as well), or go to ``epoch``, e.g. 3.25."""
        if epoch is None:
            # a fraction of an epoch given before is kept: 3.25 is followed by 4.25 in the cycle
            fraction = self.T_cur % 1 if self.last_epoch >= 0 else 0
            epoch = self.last_epoch + 1 + fraction
        self._jump(epoch)  # type: ignore[arg-type]

    def _jump(self, t: float) -> None:
        if t < 0:
            raise ValueError(f"CosineAnnealingWarmRestarts: epoch must be >= 0; got {t}")
        self.last_epoch = math.floor(t)
        self._locate(t)
        self._set(self.get_lr())


class OneCycleLR(LRScheduler):
    """Up from ``max_lr / div_factor`` to ``max_lr`` in ``pct_start`` of the steps, then down again.

    The end is ``max_lr / div_factor / final_div_factor``. ``cycle_momentum`` moves the momentum (or
    Adam's first beta) the other way, between ``max_momentum`` and ``base_momentum``.
    ``three_phase`` returns to the first rate symmetrically before the last descent. Step it once
    per batch. Source: Smith, Topin 2018, arXiv:1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR: give total_steps, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        if total_steps <= 0:
            raise ValueError(f"OneCycleLR: total_steps must be > 0; got {total_steps}")
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycleLR: pct_start must lie in [0, 1]; got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"OneCycleLR: anneal_strategy must be 'cos' or 'linear'; got {anneal_strategy!r}"
            )
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.anneal_strategy = anneal_strategy
        peak = pct_start * total_steps - 1
        # (last step, rate at its start and end, momentum at its start and end)
        down: list[tuple[float, str, str, str, str]] = [
            (total_steps - 1, "max_lr", "min_lr", "base_momentum", "max_momentum")
        ]
        if three_phase:
            down = [
                (2 * peak, "max_lr", "initial_lr", "base_momentum", "max_momentum"),
                (total_steps - 1, "initial_lr", "min_lr", "max_momentum", "max_momentum"),
            ]
        self.phases = [(peak, "initial_lr", "max_lr", "max_momentum", "base_momentum"), *down]
        if last_epoch == -1:
            for group, top in zip(optimizer.param_groups, self._per_group("max_lr", max_lr)):
                group["initial_lr"] = top / div_factor
                group["max_lr"] = top
                group["min_lr"] = group["initial_lr"] / final_div_factor
        self.cycle_momentum = cycle_momentum
        if cycle_momentum:
            if "momentum" not in optimizer.defaults and "betas" not in optimizer.defaults:
                raise ValueError(
                    f"OneCycleLR: {type(optimizer).__name__} has no momentum to cycle; "
                    "give cycle_momentum=False"
                )
            lows = self._per_group("base_momentum", base_momentum)
            highs = self._per_group("max_momentum", max_momentum)
            if last_epoch == -1:
                for group, low, high in zip(optimizer.param_groups, lows, highs):
                    group["base_momentum"], group["max_momentum"] = low, high
        super().__init__(optimizer, last_epoch)

    def _between(self, start: float, end: float, part: float) -> float:
        if self.anneal_strategy == "cos":
            return end + (start - end) / 2 * (1 + math.cos(math.pi * part))
        return start + (end - start) * part

    def get_lr(self) -> list[float]:
        t = self.last_epoch
        if t > self.total_steps:
            raise ValueError(f"OneCycleLR: step {t} is past the total_steps={self.total_steps}")
        rates = []
        for group in self.optimizer.param_groups:
            begin, phase = 0.0, self.phases[-1]
            for phase in self.phases:
                if t <= phase[0]:
                    break
                if phase is not self.phases[-1]:
                    begin = phase[0]
            end, lr0, lr1, m0, m1 = phase
            part = (t - begin) / (end - begin) if end != begin else 1.0
            rates.append(self._between(group[lr0], group[lr1], part))
            if self.cycle_momentum:
                momentum = self._between(group[m0], group[m1], part)
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum
        return rates
