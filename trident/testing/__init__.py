"""The test kit: what trident tests its own ops with, for yours. ``docs/testing.md`` shows it.

Names load when they are first used: pytest imports ``trident.testing.plugin`` in every project
where trident is installed, and ``tensors``, ``shapes`` and ``broadcastable`` need hypothesis.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..autograd import gradcheck, gradgradcheck
    from .check import check_op
    from .closeness import assert_close, tolerance
    from .draw import Draw
    from .mutation import mutate
    from .strategies import broadcastable, shapes, tensors

_WHERE = {
    "Draw": ".draw",
    "assert_close": ".closeness",
    "broadcastable": ".strategies",
    "check_op": ".check",
    "gradcheck": "..autograd",
    "gradgradcheck": "..autograd",
    "mutate": ".mutation",
    "shapes": ".strategies",
    "tensors": ".strategies",
    "tolerance": ".closeness",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        from ..errors import missing_name

        raise missing_name("trident.testing", name, _WHERE)
    value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Draw",
    "assert_close",
    "broadcastable",
    "check_op",
    "gradcheck",
    "gradgradcheck",
    "mutate",
    "shapes",
    "tensors",
    "tolerance",
]
