"""Learning-rate schedules: the rate as a function of the number of ``scheduler.step()`` calls.

Where a formula exists the rate is computed from the step count, not from the rate before: nothing
drifts, and a scheduler neither watches nor cares whether the optimizer has stepped in between. When
something else has changed a group's rate (another scheduler, the user), the schedule scales what it
finds by the ratio of its own values, as a chain of multiplications would.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import missing_name
from .optimizer import Optimizer


class LRScheduler:
    """Base of schedules. A subclass gives ``_closed(base_lr, t)``, or overrides ``get_lr()``.

    ``last_epoch`` is the number of steps done (0 after construction); ``base_lrs`` are the groups'
    initial rates. To resume, give ``last_epoch`` with groups that hold ``initial_lr``, or load a
    ``state_dict``.
    """

    _floor = 0.0  # the rate that the schedule scales towards (eta_min of a cosine)
    _jumps = False  # resuming at a step where the rate jumps makes that jump, as torch does

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__}: optimizer must be an Optimizer; "
                f"got {type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    f"{type(self).__name__}: resuming at last_epoch={last_epoch} needs "
                    f"'initial_lr' in param group {i}; load the optimizer's state first, or set it"
                )
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr: list[float] = []
        if last_epoch >= 0 and self._has_formula() and not self._jumps:
            self.last_epoch += 1  # resumed: the groups hold the rate of this step already
            self._set([group["lr"] for group in optimizer.param_groups])
        else:
            self.step()

    def _has_formula(self) -> bool:
        return type(self)._closed is not LRScheduler._closed

    def _closed(self, base: float, t: int) -> float:
        """The rate after ``t`` steps of a group whose initial rate is ``base``."""
        raise TypeError(
            f"{type(self).__name__}: a schedule must define get_lr() or _closed(base, t)"
        )

    def get_lr(self) -> list[float]:
        """The rates at ``last_epoch``, one per group; for the present ones ``get_last_lr()``."""
        t, floor = self.last_epoch, self._floor
        rates = []
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            now, before = group["lr"], self._closed(base, t - 1) if t > 0 else base
            rate = self._closed(base, t)
            if now != before and before != floor:
                rate = floor + (rate - floor) * (now - floor) / (before - floor)
            rates.append(rate)
        return rates

    def get_last_lr(self) -> list[float]:
        """The rates that the last step set, one per group."""
        return self._last_lr

    def step(self, epoch: int | None = None) -> None:
        """Advance by one and set the rates of all groups; ``epoch`` jumps to that count instead.

        >>> w = trident.zeros(1, requires_grad=True)
        >>> opt = trident.optim.SGD([w], lr=1.0)
        >>> schedule = trident.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.1)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(opt.param_groups[0]["lr"])
        ...     schedule.step()
        >>> rates
        [1.0, 1.0, 0.1, 0.1]
        """
        if epoch is None:
            self.last_epoch += 1
            self._set(self.get_lr())
        else:
            self._jump(epoch)

    def _jump(self, t: int) -> None:
        """Set the rates of step ``t``, whatever the groups hold now."""
        self.last_epoch = t
        if self._has_formula():
            self._set([self._closed(base, t) for base in self.base_lrs])
        else:
            self._set(self.get_lr())

    def _rewind(self) -> None:
        """Undo the count (not the rates) of the step that construction made."""
        self.last_epoch -= 1

    def _set(self, rates: Sequence[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _per_group(self, name: str, value: Any) -> list[Any]:
        """``value`` for each group: itself repeated, or a list of the right length."""
        n = len(self.optimizer.param_groups)
        if not isinstance(value, (list, tuple)):
            return [value] * n
        if len(value) != n:
            raise ValueError(
                f"{type(self).__name__}: {name} must hold one value for each of the {n} param "
                f"groups; got {len(value)}"
            )
        return list(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict()`` gave; load the optimizer's as well, it holds the rates."""
        self.__dict__.update(state_dict)


_LRScheduler = LRScheduler


class LambdaLR(LRScheduler):
    """``lr = initial * lr_lambda(t)``; one function, or one for each group."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | list[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self.optimizer = optimizer
        self.lr_lambdas = self._per_group("lr_lambda", lr_lambda)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [base * f(self.last_epoch) for base, f in zip(self.base_lrs, self.lr_lambdas)]

    def state_dict(self) -> dict[str, Any]:
        """As the base's, without functions: only callable objects give their ``__dict__``."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "lr_lambdas")}
        state["lr_lambdas"] = [
            None if callable(f) and hasattr(f, "__code__") else dict(f.__dict__)
            for f in self.lr_lambdas
        ]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict()`` gave; the functions stay those of the constructor."""
        self.__dict__.update({k: v for k, v in state_dict.items() if k != "lr_lambdas"})
        for f, members in zip(self.lr_lambdas, state_dict["lr_lambdas"]):
            if members is not None:
                f.__dict__.update(members)


class MultiplicativeLR(LambdaLR):
    """``lr *= lr_lambda(t)`` at every step."""

    def get_lr(self) -> list[float]:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if self.last_epoch <= 0:
            return rates
        return [rate * f(self.last_epoch) for rate, f in zip(rates, self.lr_lambdas)]


class StepLR(LRScheduler):
    """``lr = initial * gamma^(t // step_size)``."""

    _jumps = True

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        if step_size <= 0:
            raise ValueError(f"StepLR: step_size must be > 0; got {step_size}")
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _closed(self, base: float, t: int) -> float:
        return base * self.gamma ** (t // self.step_size)


class MultiStepLR(LRScheduler):
    """``lr = initial * gamma^(number of milestones <= t)``."""

    _jumps = True

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _closed(self, base: float, t: int) -> float:
        return base * self.gamma ** bisect_right(self.milestones, t)


class ExponentialLR(LRScheduler):
    """``lr = initial * gamma^t``."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def _closed(self, base: float, t: int) -> float:
        return base * self.gamma**t


class ConstantLR(LRScheduler):
    """``lr = initial * factor`` for ``t < total_iters``, then ``initial``."""

    _jumps = True

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= factor <= 1:
            raise ValueError(f"ConstantLR: factor must lie in [0, 1]; got {factor}")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _closed(self, base: float, t: int) -> float:
        return base * self.factor if t < self.total_iters else base


class LinearLR(LRScheduler):
    """The factor on the initial rate goes in a line from ``start_factor`` to ``end_factor``.

    It arrives at ``t = total_iters`` and stays there: a warm-up with the defaults.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1:
            raise ValueError(f"LinearLR: start_factor must lie in (0, 1]; got {start_factor}")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"LinearLR: end_factor must lie in [0, 1]; got {end_factor}")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def _closed(self, base: float, t: int) -> float:
        if t >= self.total_iters:
            return base * self.end_factor
        part = t / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * part)


class PolynomialLR(LRScheduler):
    """``lr = initial * (1 - min(t, total_iters) / total_iters)^power``."""

    def __init__(
        self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1
    ) -> None:
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer, last_epoch)

    def _closed(self, base: float, t: int) -> float:
        return base * (1.0 - min(t, self.total_iters) / self.total_iters) ** self.power


class CosineAnnealingLR(LRScheduler):
    """``lr = eta_min + (initial - eta_min) * (1 + cos(pi * t / T_max)) / 2``.

    Past ``T_max`` it rises again, with period ``2 * T_max``. Source: Loshchilov, Hutter 2017,
    arXiv:1608.03983.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        if T_max <= 0:
            raise ValueError(f"CosineAnnealingLR: T_max must be > 0; got {T_max}")
        self.T_max = T_max
        self.eta_min = self._floor = eta_min
        super().__init__(optimizer, last_epoch)

    def _closed(self, base: float, t: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * t / self.T_max)) / 2


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


class SequentialLR(LRScheduler):
    """Run ``schedulers`` one after the other: number ``i + 1`` starts, from its step 0, at
    ``milestones[i]``.

    >>> w = trident.zeros(1, requires_grad=True)
    >>> opt = trident.optim.SGD([w], lr=1.0)
    >>> S = trident.optim.lr_scheduler
    >>> warm, cool = S.ConstantLR(opt, 0.5, total_iters=2), S.ExponentialLR(opt, 0.5)
    >>> schedule = S.SequentialLR(opt, [warm, cool], milestones=[2])
    >>> rates = []
    >>> for _ in range(4):
    ...     rates.append(opt.param_groups[0]["lr"])
    ...     schedule.step()
    >>> rates
    [0.5, 0.5, 1.0, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        _same_optimizer(type(self).__name__, optimizer, schedulers)
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"SequentialLR: {len(schedulers)} schedulers need {len(schedulers) - 1} "
                f"milestones; got {len(milestones)}"
            )
        self.optimizer = optimizer
        self._schedulers = schedulers
        self._milestones = milestones
        self.last_epoch = last_epoch + 1
        for group in optimizer.param_groups:  # construction let every scheduler write its step 0
            group["lr"] = group["initial_lr"]
        self._rewind_all()
        first = schedulers[bisect_right(milestones, 0)]
        first.step()
        self._last_lr = first.get_last_lr()

    def _rewind_all(self) -> None:
        for s in self._schedulers:
            s._rewind()

    def _rewind(self) -> None:
        self.last_epoch -= 1
        self._rewind_all()

    def step(self) -> None:  # type: ignore[override]
        """Advance the scheduler whose turn it is."""
        self.last_epoch += 1
        turn = bisect_right(self._milestones, self.last_epoch)
        scheduler = self._schedulers[turn]
        if turn and self._milestones[turn - 1] == self.last_epoch:
            scheduler._jump(0)
        else:
            scheduler.step()
        self._last_lr = scheduler.get_last_lr()

    def _jump(self, t: int) -> None:
        self.last_epoch = t
        turn = bisect_right(self._milestones, t)
        self._schedulers[turn]._jump(t - (self._milestones[turn - 1] if turn else 0))
        self._last_lr = self._schedulers[turn].get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """As the base's, with the states of the schedulers."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "_schedulers")}
        state["_schedulers"] = [s.state_dict() for s in self._schedulers]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict()`` gave, down to the schedulers."""
        self.__dict__.update({k: v for k, v in state_dict.items() if k != "_schedulers"})
        for s, state in zip(self._schedulers, state_dict["_schedulers"]):
            s.load_state_dict(state)


class ChainedScheduler(SequentialLR):
    """Step all ``schedulers`` together; their factors multiply."""

    def __init__(
        self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None
    ) -> None:
        optimizer = optimizer or schedulers[0].optimizer
        _same_optimizer(type(self).__name__, optimizer, schedulers)
        self.optimizer = optimizer
        self._schedulers = list(schedulers)
        self._last_lr = [group["lr"] for group in optimizer.param_groups]

    def step(self) -> None:  # type: ignore[override]
        """Advance every scheduler by one."""
        for s in self._schedulers:
            s.step()
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _rewind(self) -> None:
        self._rewind_all()

    def _jump(self, t: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        for s in self._schedulers:
            s.last_epoch = -1
        for _ in range(t + 1):
            self.step()


class ReduceLROnPlateau(LRScheduler):
    """Multiply the rate by ``factor`` once ``metrics`` has not improved for more than ``patience``
    steps.

    ``mode`` "min" or "max" says which way is better; ``threshold`` by how much, relative ("rel") or
    absolute ("abs"). After a reduction ``cooldown`` steps are not counted. Reductions of less than
    ``eps`` are not made.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        if factor >= 1.0:
            raise ValueError(f"ReduceLROnPlateau: factor must be < 1; got {factor}")
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceLROnPlateau: mode must be 'min' or 'max'; got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(
                f"ReduceLROnPlateau: threshold_mode must be 'rel' or 'abs'; got {threshold_mode!r}"
            )
        self.optimizer = optimizer
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.min_lrs = self._per_group("min_lr", min_lr)
        self.eps = eps
        self.last_epoch = 0
        self._last_lr = [group["lr"] for group in optimizer.param_groups]
        self._reset()

    def _reset(self) -> None:
        """Forget the best value and all counts."""
        self.best = math.inf if self.mode == "min" else -math.inf
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    @property
    def in_cooldown(self) -> bool:
        """Whether steps are not counted yet after a reduction."""
        return self.cooldown_counter > 0

    def _is_better(self, value: float) -> bool:
        gain = self.threshold if self.mode == "max" else -self.threshold
        wanted = self.best * (1 + gain) if self.threshold_mode == "rel" else self.best + gain
        return value > wanted if self.mode == "max" else value < wanted

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take the value of the watched quantity (a number or a 0-d Tensor)."""
        value = float(metrics)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self._is_better(value):
            self.best = value
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, low in zip(self.optimizer.param_groups, self.min_lrs):
                rate = max(group["lr"] * self.factor, low)
                if group["lr"] - rate > self.eps:
                    group["lr"] = rate
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def _same_optimizer(name: str, optimizer: Optimizer, schedulers: Sequence[LRScheduler]) -> None:
    if not schedulers:
        raise ValueError(f"{name}: schedulers must hold at least one scheduler; got none")
    for i, s in enumerate(schedulers):
        if isinstance(s, ReduceLROnPlateau):
            raise ValueError(
                f"{name}: schedulers[{i}] is a ReduceLROnPlateau, whose step needs a metric; "
                "step it on its own"
            )
        if s.optimizer is not optimizer:
            raise ValueError(f"{name}: schedulers[{i}] belongs to another optimizer")


def __getattr__(name: str) -> Any:
    raise missing_name("trident.optim.lr_scheduler", name, globals())
