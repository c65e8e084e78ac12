"""Schedules made of schedules: one after the other, or all together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from ..optimizer import Optimizer
from .base import LRScheduler
from .plateau import ReduceLROnPlateau


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
