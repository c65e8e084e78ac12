"""Anomaly mode: each node remembers the line that made it, and NaN gradients raise.

Slow (it walks the stack at every op); for finding a fault, not for training.
"""

from __future__ import annotations

import os
import traceback
from contextvars import ContextVar
from typing import Any

_mode: ContextVar[bool] = ContextVar("trident_anomaly", default=False)
_check_nan: ContextVar[bool] = ContextVar("trident_anomaly_nan", default=True)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

is_anomaly_enabled = _mode.get
checks_nan = _check_nan.get


def user_line() -> str:
    """The innermost stack entry outside of the package, as traceback prints it."""
    frames = traceback.extract_stack()
    outside = [f for f in frames if not os.path.abspath(f.filename).startswith(_PACKAGE)]
    last = (outside or frames)[-1]
    text = f'  File "{last.filename}", line {last.lineno}, in {last.name}'
    return text + (f"\n    {last.line}" if last.line else "")


class set_detect_anomaly:
    """Turn anomaly mode on or off, for good or (as a context manager) for a block."""

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        self.tokens: tuple[Any, Any] = (_mode.set(mode), _check_nan.set(check_nan))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        _mode.reset(self.tokens[0])
        _check_nan.reset(self.tokens[1])


class detect_anomaly(set_detect_anomaly):
    """``with detect_anomaly(): loss.backward()`` shows the forward line of a failing gradient."""

    def __init__(self, check_nan: bool = True) -> None:
        self.check_nan = check_nan

    def __enter__(self) -> None:
        self.tokens = (_mode.set(True), _check_nan.set(self.check_nan))
