"""Triton kernels and their launchers, one family a file. Loaded when first used.

``from ..kernels import scan`` gives a stand-in that imports ``kernels/scan.py`` at the first
launch: a process that stays on the CPU never loads a kernel.
"""

from __future__ import annotations

import importlib
from typing import Any


class _Family:
    """Stands for a kernel module until one of its names is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(importlib.import_module(f"{__name__}.{self._name}"), name)
        setattr(self, name, value)
        return value


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Family(name)
