"""Whether operations are recorded: ``no_grad``, ``enable_grad``, ``set_grad_enabled``,
``inference_mode``.

The switch is a context variable, so threads and coroutines each have their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

_enabled: ContextVar[bool] = ContextVar("trident_grad_enabled", default=True)

is_grad_enabled: Callable[[], bool] = _enabled.get
"""Whether operations on tensors that require grad are recorded here and now."""


class _Switch:
    """Context manager and decorator that sets the grad mode."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode
        self.tokens: list[Token] = []

    def __enter__(self) -> None:
        self.tokens.append(_enabled.set(self.mode))

    def __exit__(self, *_: object) -> None:
        _enabled.reset(self.tokens.pop())

    def __call__(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            token = _enabled.set(self.mode)
            try:
                return function(*args, **kwargs)
            finally:
                _enabled.reset(token)

        return wrapped


def _bare(switch: Any, function: Any) -> Any:
    """``@no_grad`` without parentheses decorates too."""
    return switch(function) if callable(function) else switch


class no_grad(_Switch):
    """Nothing is recorded inside: ``with trident.no_grad(): ...`` or ``@trident.no_grad()``.

    >>> w = trident.ones(2, requires_grad=True)
    >>> with trident.no_grad():
    ...     print((w * 2).requires_grad)
    False
    """

    def __new__(cls, function: Callable | None = None) -> Any:
        self = object.__new__(cls)
        _Switch.__init__(self, False)
        return _bare(self, function)

    def __init__(self, function: Callable | None = None) -> None:
        pass


class enable_grad(_Switch):
    """Recording is on inside, also within ``no_grad``."""

    def __new__(cls, function: Callable | None = None) -> Any:
        self = object.__new__(cls)
        _Switch.__init__(self, True)
        return _bare(self, function)

    def __init__(self, function: Callable | None = None) -> None:
        pass


class inference_mode(_Switch):
    """As ``no_grad``; ``inference_mode(False)`` leaves recording on."""

    def __new__(cls, mode: Any = True) -> Any:
        self = object.__new__(cls)
        _Switch.__init__(self, mode is False)
        return _bare(self, mode)

    def __init__(self, mode: Any = True) -> None:
        pass


class set_grad_enabled(_Switch):
    """Set the mode at once, and restore it at the end of a ``with`` block."""

    def __init__(self, mode: bool) -> None:
        super().__init__(bool(mode))
        self.first = _enabled.set(bool(mode))

    def __enter__(self) -> None:
        self.tokens.append(self.first)

    def __call__(self, function: Callable) -> Callable:
        _enabled.reset(self.first)  # a decorator: the mode is meant for the function alone
        return super().__call__(function)
