"""Launches and copies, as a profile records them: the seams of devices and launch plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime.device import Device
from ..runtime.plan import Plan
from . import sizes
from .session import current, recorded, recording


def _inside(kind: str) -> bool:
    """Whether this is part of an event of that kind."""
    outer = current.get()
    return outer is not None and outer.kind == kind


def launch(original: Callable) -> Callable:
    def run(
        self: Device, kernel: Any, grid: tuple, args: tuple, constexprs: dict, options: dict
    ) -> None:
        given = (self, kernel, grid, args, constexprs, options)
        if not recording() or _inside("kernel"):  # by a plan
            return original(*given)
        moves = kernel.fn.__module__ == "trident.kernels.layout"  # copies and fills
        return recorded(
            original, given, kernel.name, "kernel", operands=args, on=self, launches=1,
            cost=lambda result: (sizes.moved(list(args)), 0 if moves else None),
        )  # fmt: skip

    return run


def plan(original: Callable) -> Callable:
    """A plan starts its kernels itself. What they move is known to the op that it stands for."""

    def run(self: Any, *args: Any) -> Any:
        if not recording() or _inside("kernel"):
            return original(self, *args)
        n = len(self.launches) if isinstance(self, Plan) else 1
        return recorded(
            original, (self, *args), "launch plan", "kernel", on=self.allocate.__self__, launches=n,
            cost=lambda result: (0, None),
        )  # fmt: skip

    return run


def copy(name: str, at: int, original: Callable) -> Callable:
    """``at``: which argument is what moves."""

    def run(self: Device, *args: Any, **kwargs: Any) -> Any:
        if not recording() or _inside("copy"):
            return original(self, *args, **kwargs)
        return recorded(
            original, (self, *args), name, "copy", kwargs, on=self,
            cost=lambda result: (args[at].nbytes, 0),
        )  # fmt: skip

    return run


__all__ = ["copy", "launch", "plan"]
