"""Optimizers, and learning-rate schedules in ``optim.lr_scheduler``."""

from __future__ import annotations

from typing import Any

from ..errors import missing_name as _missing_name
from . import lr_scheduler
from .adam import Adam, AdamW
from .optimizer import LeafOptimizer, Optimizer
from .rules import Adadelta, Adagrad, Adamax, NAdam, RAdam, RMSprop, Rprop
from .sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "LeafOptimizer",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "lr_scheduler",
]


def __getattr__(name: str) -> Any:
    raise _missing_name("trident.optim", name, __all__)
