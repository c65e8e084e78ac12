"""Learning-rate schedules: the rate as a function of the number of ``scheduler.step()`` calls.

Where a formula exists the rate is computed from the step count, not from the rate before: nothing
drifts, and a scheduler neither watches nor cares whether the optimizer has stepped in between. When
something else has changed a group's rate (another scheduler, the user), the schedule scales what it
finds by the ratio of its own values, as a chain of multiplications would.
"""

from __future__ import annotations

from typing import Any

from ...errors import missing_name
from .base import LRScheduler
from .closed_form import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from .compose import ChainedScheduler, SequentialLR
from .cycle import CosineAnnealingWarmRestarts, OneCycleLR
from .function import LambdaLR, MultiplicativeLR
from .plateau import ReduceLROnPlateau

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]

_LRScheduler = LRScheduler


def __getattr__(name: str) -> Any:
    raise missing_name("trident.optim.lr_scheduler", name, __all__)
