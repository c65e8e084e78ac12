"""Every op, one family a file. ``trident.ops.relu`` is the function; ``trident.ops.relu.op`` its record."""

from __future__ import annotations

from typing import Any
import importlib, os
_here = os.path.dirname(__file__)
_skip = {"__init__", "registry", "operators", "conv_numpy", "blockwise","aliases"}
for _f in sorted(os.listdir(_here)):
    if _f.endswith(".py") and _f[:-3] not in _skip:
        try:
            importlib.import_module("trident.ops." + _f[:-3])
        except Exception as _e:
            print("ops import failed:", _f, repr(_e)[:200])
from .registry import FUNCTIONS, REGISTRY
from . import aliases
aliases.install()
globals().update(FUNCTIONS)


def __getattr__(name: str) -> Any:
    try:
        return FUNCTIONS[name]
    except KeyError:
        from ..errors import missing_name

        raise missing_name("trident.ops", name, FUNCTIONS) from None
