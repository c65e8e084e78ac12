"""``jit`` and ``tl`` for files that hold Triton code, loaded only when a kernel is first used.

``import trident`` must not import triton (0.1 s and 70 MB), and on a machine without Triton the
same files must still import. So ``@jit`` only remembers the function; ``Jit.triton()`` makes the
real ``triton.jit`` function at first use, with the globals it names resolved: ``tl`` becomes the
module, other ``Jit`` objects become their Triton functions, plain numbers become ``tl.constexpr``.

Files that use these start with ``from __future__ import annotations``, so that
``BLOCK: tl.constexpr`` in a signature is text and not evaluated.
"""

from __future__ import annotations

import dis
import functools
import importlib.util
import types
from collections.abc import Callable
from typing import Any

from . import config
from .errors import DeviceError


class _Lazy:
    """Stands for the module ``triton.language`` until it is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_triton().language, name)


tl: Any = _Lazy()


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed (it is not imported to find out)."""
    return importlib.util.find_spec("triton") is not None


def _triton() -> Any:
    try:
        import triton
    except ImportError:
        raise DeviceError(
            "this needs Triton, which is not installed; `pip install 'triton>=3.6'` (Linux), "
            "or use device='cpu', which needs no Triton"
        ) from None
    return triton


def _names(code: types.CodeType) -> set[str]:
    """The globals that a function reads (``co_names`` would add attributes: tl.load is not
    load).
    """
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            found |= _names(const)
    return found


def _compiled(value: Any) -> Any:
    """A global of a kernel as the compiler takes it."""
    if isinstance(value, Jit):
        return value.triton()
    if isinstance(value, _Lazy):
        return _triton().language
    return _triton().language.constexpr(value) if isinstance(value, (int, float)) else value


def _as_interpreted(value: Any) -> Any:
    """A global of a kernel as the interpreter takes it."""
    if isinstance(value, Jit):
        return value.interpreted()
    return _triton().language if isinstance(value, _Lazy) else value


class Jit:
    """A Triton function that has not been built yet. Call it only from other ``@jit`` functions."""

    def __init__(self, fn: Callable) -> None:
        self.fn = fn
        self.name: str = fn.__name__
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self._built: Any = None
        self._interpreted: Any = None
        self.bound: dict[tuple, Any] = {}  # what it is on GPUs, by specialisation (CudaDevice)

    def triton(self) -> Any:
        """The ``triton.jit`` function (or the interpreter's, under TRITON_INTERPRET=1)."""
        if config.INTERPRET:
            return self.interpreted()
        if self._built is None:
            self._built = _triton().jit(self._resolved(_compiled))
            self._built.__dict__["_trident_jit"] = self  # an interpreted caller finds its way back
        return self._built

    def interpreted(self) -> Any:
        """The function of Triton's interpreter, whatever TRITON_INTERPRET says."""
        if self._interpreted is None:
            _triton()
            from triton.runtime.interpreter import InterpretedFunction

            self._interpreted = InterpretedFunction(self._resolved(_as_interpreted))
        return self._interpreted

    def _resolved(self, resolve: Callable[[Any], Any]) -> Callable:
        """A copy of the function that sees Triton's objects under its global and closed-over
        names.
        """
        fn = self.fn
        cells = fn.__closure__ or ()
        closed = {
            name: resolve(cell.cell_contents) for name, cell in zip(fn.__code__.co_freevars, cells)
        }
        scope = dict(fn.__globals__)
        scope["tl"] = _triton().language
        for name in _names(fn.__code__) & scope.keys():
            scope[name] = resolve(scope[name])
        scope |= closed  # the interpreter compiles the source anew, outside of its enclosing scope
        cells = tuple(types.CellType(value) for value in closed.values())
        clone = types.FunctionType(fn.__code__, scope, self.name, fn.__defaults__, cells or None)
        clone.__kwdefaults__ = fn.__kwdefaults__
        clone.__annotations__ = dict(fn.__annotations__)
        clone.__module__ = fn.__module__
        clone.__qualname__ = fn.__qualname__
        clone.__doc__ = fn.__doc__
        return clone

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise TypeError(
            f"{self.name} is a Triton function: other @jit functions call it; "
            f"from Python, launch it with trident.runtime.launch({self.name}, grid, ...)"
        )

    def __repr__(self) -> str:
        return f"<jit {self.name}>"


def jit(fn: Callable) -> Jit:
    """Mark ``fn`` as a Triton function; it is built when it is first launched."""
    return Jit(fn)


def cdiv(a: int, b: int) -> int:
    """Ceiling division, for grids."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n`` (1 for n <= 1)."""
    return 1 << (n - 1).bit_length() if n > 1 else 1
