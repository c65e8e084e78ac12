"""What people use who write kernels of their own: ``kernel``; ``elementwise`` and ``fused`` beside it
come from ``ops.registry``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .lang import Jit
from .runtime import DeviceArray, launch
from .tensor import Tensor


class Kernel:
    """A Triton function that is started on tensors: ``k[grid](x, out, n, BLOCK=1024)``."""

    def __init__(self, fn: Any, strided: tuple[str, ...] = ()) -> None:
        self.jit = fn if isinstance(fn, Jit) else Jit(getattr(fn, "fn", fn))
        self.strided = strided
        self.__name__ = self.jit.name
        self.__doc__ = self.jit.__doc__

    def __getitem__(self, grid: Any) -> Callable:
        def start(*args: Any, **constexprs: Any) -> None:
            sizes = grid(constexprs) if callable(grid) else grid
            passed = [a._data if isinstance(a, Tensor) else a for a in args]
            launch(self.jit, tuple(sizes), *passed, **constexprs)

        return start

    def __repr__(self) -> str:
        return f"<kernel {self.__name__}>"


def kernel(fn: Any = None, *, strided: tuple[str, ...] = ()) -> Any:
    """Make a Triton function (plain, or decorated with ``triton.jit``) one that is started on
    tensors."""
    if fn is None:
        return lambda f: kernel(f, strided=strided)
    return Kernel(fn, strided)


__all__ = ["DeviceArray", "Kernel", "kernel"]
