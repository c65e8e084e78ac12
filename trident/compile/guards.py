"""What a captured function depends on besides its tensors: part of the key that its capture is
found by.

A capture holds the numbers that the function read as constants. So its arguments that are not
tensors must be values that cannot change unseen, and what the function takes from outside (globals,
variables of an enclosing function, attributes of either) is read again at each call.
"""

from __future__ import annotations

import dis
import enum
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from ..dtypes import dtype as DType
from ..errors import FusionError

_PLAIN = (bool, int, float, str, bytes, type(None), DType, type(Ellipsis), enum.Enum)
_FIXED = (*_PLAIN, types.FunctionType, types.BuiltinFunctionType, type)


def frozen(value: Any) -> Any:
    """A key for a plain value: 1, 1.0 and True differ, 0.0 and -0.0 too; NaN equals itself."""
    if value.__class__ is float and (value == 0 or value != value):
        return float, repr(value)
    if isinstance(value, (tuple, list)):
        return value.__class__, tuple([frozen(v) for v in value])
    if isinstance(value, dict):
        return dict, tuple([(k, frozen(v)) for k, v in value.items()])
    return value.__class__, value


def check_argument(name: str, argument: str, value: Any) -> None:
    """Raise for an argument that could change without being another object."""
    if isinstance(value, tuple):
        for v in value:
            check_argument(name, argument, v)
    elif not isinstance(value, _FIXED) and not hasattr(value, "trace"):
        raise FusionError(
            f"fuse: {name}: argument {argument} is a {type(value).__name__}, whose contents could "
            "change unseen. Pass tensors, numbers, strings, dtypes, functions or tuples of these"
        )


def outside(fn: Callable, depth: int = 3) -> list[Callable[[], Any]]:
    """Readers of what ``fn``, and functions of the user's that it calls, take from outside."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return []
    cells = dict(zip(code.co_freevars, fn.__closure__ or ()))  # type: ignore[attr-defined]
    space = fn.__globals__  # type: ignore[attr-defined]
    readers: list[Callable[[], Any]] = []
    for where, chain in dict.fromkeys(_reads(code, set(cells))):
        root = _Root(cells[chain[0]]) if where == "cell" else _Root(space, chain[0])
        value = root.follow(chain[1:])
        if isinstance(value, types.FunctionType):
            if depth and not (value.__module__ or "").startswith("trident"):
                readers += outside(value, depth - 1)
        elif not callable(value) and not isinstance(value, types.ModuleType):
            readers.append(_reader(root, chain[1:]))
    return readers


_NOTHING = object()


class _Root:
    """A global by name, or the cell of a variable of an enclosing function."""

    def __init__(self, source: Any, name: str | None = None) -> None:
        self.source, self.name = source, name

    def follow(self, chain: tuple[str, ...]) -> Any:
        """The value of ``root.a.b``; _NOTHING where there is none."""
        try:
            if self.name is None:
                value = self.source.cell_contents
            else:
                value = self.source.get(self.name, _NOTHING)
            for attribute in chain:
                value = getattr(value, attribute)
        except (ValueError, AttributeError):
            return _NOTHING
        return value


def _reader(root: _Root, chain: tuple[str, ...]) -> Callable[[], Any]:
    def read() -> Any:
        value = root.follow(chain)
        if isinstance(value, (*_PLAIN, tuple, list, dict)):
            return frozen(value)
        return id(value)

    return read


def _reads(code: types.CodeType, free: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(kind, names) of what ``code`` reads from outside: ("global", ("math", "pi"))."""
    found: tuple[str, list[str]] | None = None
    for i in dis.get_instructions(code):
        if found is not None and i.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found[1].append(i.argval)
            continue
        if found is not None:
            yield found[0], tuple(found[1])
            found = None
        if i.opname == "LOAD_GLOBAL":
            found = ("global", [i.argval])
        elif i.opname == "LOAD_DEREF" and i.argval in free:
            found = ("cell", [i.argval])
    for const in code.co_consts:
        if inspect.iscode(const):  # a function inside; its own variables are not from outside
            yield from (r for r in _reads(const, free) if r[0] == "global" or r[1][0] in free)
