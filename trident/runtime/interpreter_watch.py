"""Counting what a launch computes, and refusing int32 arithmetic that overflows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .lanes import Counts

_ONE = (
    "fadd fsub fmul fdiv frem fneg precise_divf approx_divf minimumf minnumf maximumf maxnumf "
    "cos sin exp exp2 log log2 sqrt precise_sqrt rsqrt erf floor ceil"
)
FLOPS = {**dict.fromkeys(_ONE.split(), 1), "fma": 2, "clampf": 2}
"""Operations counted per lane, by the builder's name; what is not here counts nothing."""


class Watched:
    """The builder object of the interpreter with methods of its own, for one launch."""

    def __init__(
        self,
        interpreter: Any,
        counts: Counts | None,
        strict: bool,
        fail: Callable[[str], Exception],
    ) -> None:
        self.builder = interpreter.interpreter_builder
        self.options = interpreter.InterpreterOptions
        self.counts, self.strict, self.fail = counts, strict, fail
        self.before: dict[str, Any] = {}

    def __enter__(self) -> None:
        self.before = dict(vars(self.builder))
        for name in self.before.keys() & _INSTANCE_NAMES:  # a launch inside another's debugger
            delattr(self.builder, name)
        if self.counts is not None:
            self.count(self.counts)
        if self.strict:
            self.builder.options = self.options(sanitize_overflow=False, debug=True)
            for op in ("add", "sub", "mul"):
                self.guard(op)

    def __exit__(self, *_: object) -> None:
        now = vars(self.builder)
        for name in now.keys() - self.before.keys():
            delattr(self.builder, name)
        now.update(self.before)

    def count(self, counts: Counts) -> None:
        builder = self.builder

        def note(n: int) -> None:
            counts.flops += n

        builder.note_flops = note
        for name, each in FLOPS.items():
            plain = getattr(builder, f"create_{name}", None)
            if plain is None:
                continue

            def method(*args: Any, plain: Any = plain, each: int = each) -> Any:
                out = plain(*args)
                counts.flops += each * out.data.size
                return out

            setattr(builder, f"create_{name}", method)
        for name in ("dot", "dot_scaled"):
            plain = getattr(builder, f"create_{name}", None)
            if plain is None:
                continue

            def product(a: Any, *args: Any, plain: Any = plain, name: str = name) -> Any:
                out = plain(a, *args)
                # a scaled operand may hold two numbers a byte: its other operand tells the length
                k = (
                    a.data.shape[-1]
                    if name == "dot"
                    else max(a.data.shape[-1], args[1].data.shape[-2])
                )
                counts.flops += 2 * k * out.data.size
                return out

            setattr(builder, f"create_{name}", product)

    def guard(self, op: str) -> None:
        """int32 sums and products that leave int32 wrap on a GPU; here they raise."""
        plain = getattr(self.builder, f"create_{op}")
        exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[op]
        sign = {"add": "+", "sub": "-", "mul": "*"}[op]

        def method(lhs: Any, rhs: Any) -> Any:
            if lhs.data.dtype == np.int32 and rhs.data.dtype == np.int32:
                wide = exact(lhs.data, rhs.data, dtype=np.int64)
                over = (wide > 2**31 - 1) | (wide < -(2**31))
                if over.any():
                    k = int(np.flatnonzero(over)[0])
                    a, b = (np.broadcast_to(h.data, wide.shape).flat[k] for h in (lhs, rhs))
                    raise self.fail(
                        f"int32 overflow: {a} {sign} {b} = {wide.flat[k]} wraps on a GPU. Make one "
                        "operand int64 with .to(tl.int64), or uint32 where wrapping is meant"
                    )
            return plain(lhs, rhs)

        setattr(self.builder, f"create_{op}", method)


_INSTANCE_NAMES = {"note_flops", "create_dot", "create_dot_scaled"} | {
    f"create_{name}" for name in (*FLOPS, "add", "sub", "mul")
}
