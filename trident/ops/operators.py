"""Python's operators, for everything that ops can be applied to: tensors and symbols."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .registry import REGISTRY, ops

_NUMBERS = (bool, int, float)


class Operators:
    """``x + y`` is ``add(x, y)``; a subclass has ``_apply(op, args, attrs)``."""

    _apply: Callable

    if TYPE_CHECKING:  # what install() gives, said to the type checker

        def _of_two(self, other: Any) -> Any: ...
        def _of_one(self) -> Any: ...

        __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = _of_two
        __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = _of_two
        __and__ = __or__ = __xor__ = __lshift__ = __rshift__ = _of_two
        __rand__ = __ror__ = __rxor__ = __rlshift__ = __rrshift__ = _of_two
        __lt__ = __le__ = __gt__ = __ge__ = _of_two
        __neg__ = __abs__ = __invert__ = _of_one

    def __pow__(self, other: Any) -> Any:
        return ops.pow(self, other)

    def __rpow__(self, other: Any) -> Any:
        return ops.pow(other, self)

    def __matmul__(self, other: Any) -> Any:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return ops.matmul(other, self)

    def __pos__(self) -> Any:
        return self


def _binary(name: str, reflected: bool) -> Callable:
    op = REGISTRY[name]
    attrs = op.defaults

    def forward(self: Any, other: Any) -> Any:
        if hasattr(other, "_apply") or isinstance(other, _NUMBERS) or hasattr(other, "dtype"):
            return self._apply(op, (self, other), attrs)
        return NotImplemented

    def backward(self: Any, other: Any) -> Any:
        if isinstance(other, _NUMBERS) or hasattr(other, "dtype"):
            return self._apply(op, (other, self), attrs)
        return NotImplemented

    return backward if reflected else forward


def _unary(name: str) -> Callable:
    op = REGISTRY[name]
    attrs = op.defaults

    def method(self: Any) -> Any:
        return self._apply(op, (self,), attrs)

    return method


_REFLECTED = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "truediv": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift",
}
_COMPARISONS = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
_UNARY = {"neg": "neg", "abs": "abs", "invert": "bitwise_not"}


BINARY = {f"__{dunder}__": name for dunder, name in (_REFLECTED | _COMPARISONS).items()}
"""The op behind each binary operator, left operand first."""


def install() -> None:
    """Give ``Operators`` the methods of the ops (called once, when the entries are loaded)."""
    methods: dict[str, Callable] = {}
    for dunder, name in _REFLECTED.items():
        methods[f"__{dunder}__"] = _binary(name, False)
        methods[f"__r{dunder}__"] = _binary(name, True)
    for dunder, name in _COMPARISONS.items():
        methods[f"__{dunder}__"] = _binary(name, False)
    for dunder, name in _UNARY.items():
        methods[f"__{dunder}__"] = _unary(name)
    for dunder, method in methods.items():
        method.__name__ = dunder
        setattr(Operators, dunder, method)
    Operators.__hash__ = object.__hash__  # type: ignore[method-assign]
