"""Layers, containers, losses and their initial values: ``trident.nn``."""

from __future__ import annotations

from typing import Any

from ..errors import missing_name as _missing_name
from . import functional, init, modules, parameter, utils
from .modules import *  # noqa: F403
from .parameter import Buffer, Parameter

__all__ = ["Buffer", "Parameter", "functional", "init", "modules", "parameter", "utils"]
__all__ += modules.__all__


def __getattr__(name: str) -> Any:
    raise _missing_name("trident.nn", name, globals())
