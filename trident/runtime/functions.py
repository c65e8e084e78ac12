"""Triton functions as people write them, and as ``Jit`` and ``launch`` take them."""

from __future__ import annotations
import __future__

import inspect
import linecache
from collections.abc import Callable
from typing import Any

from ..lang import Jit, tl

_TEXT_ANNOTATIONS = __future__.annotations.compiler_flag


def plain(fn: Any) -> Any:
    """The Python function in a plain function, a ``Jit``, or what ``triton.jit`` made."""
    inner = fn if inspect.isfunction(fn) else getattr(fn, "fn", None)
    if inspect.isfunction(inner):
        return inner
    if hasattr(inner, "fn"):  # triton.autotune and triton.heuristics stand around a JITFunction
        raise TypeError(
            f"kernel: {type(fn).__name__} around {getattr(inner, '__name__', 'a kernel')}; declare "
            "its configurations with @trident.kernel(configs=[trident.Config(...)], key=(...))"
        )
    raise TypeError(
        f"kernel: expected a function, a @trident.jit or a @triton.jit function; got a "
        f"{type(fn).__name__}"
    )


def is_constexpr(annotation: Any) -> bool:
    """Whether a parameter is declared ``tl.constexpr``, as text or as the class."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text.strip("\"' ").rpartition(".")[2] == "constexpr"


def run_time_first(fn: Callable, constexprs: frozenset[str]) -> Jit:
    """A kernel with the run-time parameters of ``fn`` in front, as ``launch`` passes them: that of
    ``fn`` itself, or one that calls it."""
    jit = Jit(fn)
    parameters = list(inspect.signature(fn).parameters)
    front = [n for n in parameters if n not in constexprs]
    if parameters[: len(front)] == front:
        return jit
    inner = f"call_{jit.name}"
    head = [*front, *(f"{n}: tl.constexpr" for n in parameters if n in constexprs)]
    text = f"def {jit.name}({', '.join(head)}):\n    {inner}({', '.join(parameters)})\n"
    filename = f"<trident kernel {fn.__module__}.{fn.__qualname__} {abs(hash(text)):x}>"
    # Triton reads the text of a function through linecache
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    scope: dict[str, Any] = {"tl": tl, inner: jit, "__name__": "trident.generated"}
    exec(compile(text, filename, "exec", flags=_TEXT_ANNOTATIONS), scope)
    return Jit(scope[jit.name])
