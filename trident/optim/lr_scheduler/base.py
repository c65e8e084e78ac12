"""The base class of schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..optimizer import Optimizer


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
