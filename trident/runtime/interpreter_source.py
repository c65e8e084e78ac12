"""Kernels as the Python functions that the interpreter calls, with breakpoints put in."""

from __future__ import annotations

import ast
import linecache
import os
import sys
import types
from collections.abc import Callable
from typing import Any

codes: set[types.CodeType] = set()
"""The functions of kernel files as they run; Triton's own helpers are not among them."""

_TRITON = os.sep + os.path.join("triton", "language") + os.sep


def rewrite(fn: Callable, stop: Stop | None) -> Callable:
    """What the interpreter makes of a kernel's source, with its file and lines."""
    from triton.runtime import interpreter

    class Rewriter(interpreter.FunctionRewriter):
        def _find_def(self, lines: list[str]) -> int:  # Triton's takes the last line with "def"
            return next(i for i, line in enumerate(lines, 1) if line.strip().startswith("def "))

        def _transform_ast(self, src: str) -> ast.AST:
            tree = super()._transform_ast(src)
            if stop is not None:
                stop.insert(tree, self.filename, fn.__globals__)
            return tree

    plain = Rewriter(fn).rewrite_ast()
    if _TRITON not in plain.__code__.co_filename:
        codes.add(plain.__code__)
    return plain


class Stop:
    """A breakpoint at a line of a kernel that need not be edited.

    ``at``: a line number, ``"file.py:12"``, or text that the line contains. A line number counts
    in files outside of this package. The call of ``breakpoint()`` is put before that statement.
    """

    def __init__(self, at: int | str, program: tuple[int, ...] | None, every: bool) -> None:
        self.at = at
        self.program = None if program is None else (*program, 0, 0, 0)[:3]
        self.every = every
        self.done = False  # in this launch
        self.found: list[str] = []
        self.launched: set[str] = set()
        self._functions: dict[Any, Callable] = {}

    def rewritten(self, fn: Any) -> Callable:
        plain = self._functions.get(fn)
        if plain is None:
            self.launched.add(fn.fn.__name__)
            plain = self._functions[fn] = rewrite(fn.fn, self)
        return plain

    def line_in(self, filename: str, first: int, last: int) -> int | None:
        """The line of this file between ``first`` and ``last`` that is meant, if one is."""
        if _TRITON in filename:
            return None
        if isinstance(self.at, int):
            package = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
            own = os.path.abspath(filename).startswith(package)
            return self.at if first <= self.at <= last and not own else None
        name, _, number = self.at.rpartition(":")
        if number.isdigit() and name.endswith(".py"):
            tail = os.sep + name.lstrip("./")
            here = os.path.abspath(filename).endswith(tail) or os.path.abspath(name) == filename
            return int(number) if here and first <= int(number) <= last else None
        for line in range(first, last + 1):
            if self.at in linecache.getline(filename, line):
                return line
        return None

    def insert(self, tree: Any, filename: str, scope: dict) -> None:
        function = tree.body[0]
        line = self.line_in(filename, function.lineno, function.end_lineno)
        if line is None:
            return
        best: tuple[int, list, int] | None = None
        for node in ast.walk(function):
            for block in (getattr(node, f, None) for f in ("body", "orelse")):
                for i, s in enumerate(block if isinstance(block, list) else ()):
                    size = s.end_lineno - s.lineno
                    after = s.lineno > line
                    if s.lineno <= line <= s.end_lineno or after:
                        rank = (1 << 20) + s.lineno if after else size
                        if best is None or rank < best[0]:
                            best = (rank, block, i)  # type: ignore[assignment]
        if best is None:
            return
        _, block, i = best
        target = block[i]
        self.found.append(f"{filename}:{target.lineno}")
        question = f"_trident_stop_{id(self)}"
        call = ast.parse(f"{question}() and breakpoint()").body[0]
        # a debugger stops at the next line event, which must be that of the statement; from 3.13
        # on it stops at the call itself
        own = target.lineno if sys.version_info >= (3, 13) else target.lineno - 1
        for node in ast.walk(call):
            if hasattr(node, "lineno"):
                node.lineno = node.end_lineno = own  # type: ignore[attr-defined]
        block.insert(i, call)
        scope[question] = self.wanted

    def wanted(self) -> bool:
        """Whether to stop now (the inserted line asks)."""
        from triton.runtime import interpreter

        here = interpreter.interpreter_builder.grid_idx
        if self.done or (self.program is not None and here != self.program):
            return False
        self.done = not self.every
        return True
