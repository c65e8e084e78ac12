"""Triton scalar functions as C: the ``triton`` body of an elementwise op becomes a C function.

The body is run once, as plain Python, on values that write C: ``x * y`` appends
``const float v3 = x * y;`` to the function being written and returns the value ``v3``. Everything
that Triton decides while compiling (``if x.dtype == tl.float64``, ``static_range``, tuples, calls)
is then decided by Python itself, so there is no second reading of the syntax, and what is left has
no branches: gcc inlines it into a loop and vectorises it. What depends on values (``if x > 0``)
raises ``Untranslatable``.

``c_values`` has the values and ``tl``, ``c_prelude`` the C functions they use. Triton itself is not
needed.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from typing import Any

from ..kernels import device_math
from ..lang import Jit, _names, tl
from . import c_prelude
from .c_values import C_TYPES, SHORT, Language, Type, Value, as_value, c_type, new

__all__ = ["C_TYPES", "CModule", "Untranslatable"]

STATEMENTS = 20_000
"""A longer function (a loop that was unrolled) is refused: gcc would take minutes."""


class Untranslatable(Exception):
    """A construct that has no C form. The message names function, line and construct."""


_NATIVE: dict[Any, str] = {
    # tl.exp of c_prelude is accurate already, its power of two needs no conversion to int64, and
    # with fma one exponential does for erfc
    device_math.exp_accurate: "exp",
    device_math.power_of_two: "power_of_two",
    device_math.erfc: "erfc",
}
"""Functions that have a shorter form in C: the helper that takes their place."""


class _Written:
    """A function that was written: its C name, what its body returned with a ``_Ref`` for every
    value, and the types of what the C function returns.
    """

    def __init__(self, name: str, result: Any, fields: list[Type]) -> None:
        self.name = name
        self.result = result
        self.fields = fields


class _Ref:
    """A value that a body returned: "field" number ``at`` of the C function's result, its run-time
    "argument" number ``at``, or the C "literal" ``at``.
    """

    def __init__(self, kind: str, at: Any, dtype: Type | None = None) -> None:
        self.kind, self.at, self.dtype = kind, at, dtype


class _Callee:
    """What a ``Jit`` is to the bodies that call it."""

    def __init__(self, module: CModule, fn: Any) -> None:
        self.module = module
        self.fn = fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module._call(self.fn, args, kwargs)


class CModule:
    """C functions made of Triton scalar functions, each once per argument types and constants.

    Functions are ``static inline`` and without branches, so that loops calling them vectorise.
    Compile with ``-ffp-contract=off -fno-math-errno -fno-trapping-math``, and without
    ``-ffast-math``.

    >>> from trident.backends.transpile import CModule
    >>> module = CModule()
    >>> module.function(trident.softshrink.op.triton, ("f32",), {"lambd": 0.5})
    ('f_softshrink_f32', 'f32')
    >>> "float f_softshrink_f32(float a0)" in module.text()
    True
    """

    def __init__(self) -> None:
        self._written: dict[tuple, _Written] = {}
        self._definitions: list[str] = []
        self._names: set[str] = set()
        self._bodies: list[list[str]] = []  # of the functions being written, the innermost last
        self._seen: list[dict[tuple[Type, str], Value]] = []
        self._callees: dict[int, _Callee] = {}
        self._language = Language(self)

    def function(
        self, fn: Jit, types: tuple[str | int | float | bool, ...], constants: dict[str, Any]
    ) -> tuple[str, str]:
        """The C name and the result type of ``fn`` for arguments of these types.

        types: one per operand; a str such as "f32" is a value known at run time, a Python number is
        a literal, weakly typed as in Triton. constants: the constexpr arguments by name. Only the
        run-time values are parameters of the C function, in order. Raises Untranslatable.
        """
        key = ("entry", fn, _frozen((types, constants), []))
        if key not in self._written:
            self._written[key] = self._entry(fn, types, constants)
        done = self._written[key]
        return done.name, done.fields[0].short

    def text(self) -> str:
        """All that was asked for, with the helpers it uses: a self-contained C text."""
        own = "\n\n".join(self._definitions)
        helpers = c_prelude.helpers(own)
        return "\n".join((c_prelude.HEADER, helpers, "", own, ""))

    # Writing

    def _entry(self, fn: Jit, types: tuple, constants: dict[str, Any]) -> _Written:
        parameters: list[Type] = []
        operands: list[Any] = []
        for x in types:
            if isinstance(x, str):
                operands.append(Value(self, SHORT[x], f"a{len(parameters)}"))
                parameters.append(SHORT[x])
            else:
                operands.append(x)
        result, lines = self._run(fn, _bound(fn, tuple(operands), constants))
        if isinstance(result, (int, float)):
            result = as_value(self, result)
        if not isinstance(result, Value):
            raise Untranslatable(f"{_title(fn.fn)}: it returns {result!r}, not one value")
        name = self._name(fn, parameters)
        lines.append(f"return {result.expr};")
        self._define(name, c_type(result.dtype), parameters, lines)
        return _Written(name, None, [result.dtype])

    def _call(self, fn: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A call inside of a body."""
        bound = _bound(fn, args, kwargs)
        native = _NATIVE.get(fn)
        if native is not None:
            (x,) = bound.values()
            return new(x, x.dtype, f"t_{native}_{x.dtype.short}({x.expr})")
        values: list[Value] = []
        key = (fn, _frozen(bound, values))
        if key not in self._written:
            self._written[key] = self._callee(fn, bound, [v.dtype for v in values])
        done = self._written[key]
        if done.fields:
            call = f"{done.name}({', '.join(v.expr for v in values)})"
            if len(done.fields) == 1:
                results = [self.statement(done.fields[0], call)]
            else:
                at = self._line(f"const struct {done.name}_result", call)
                results = [Value(self, t, f"{at}.r{i}") for i, t in enumerate(done.fields)]
        else:
            results = []

        def fill(x: Any) -> Any:
            if isinstance(x, _Ref):
                if x.kind == "literal":
                    assert x.dtype is not None
                    return Value(self, x.dtype, x.at)
                return (results if x.kind == "field" else values)[x.at]
            return tuple(fill(item) for item in x) if isinstance(x, tuple) else x

        return fill(done.result)

    def _callee(self, fn: Any, bound: dict[str, Any], parameters: list[Type]) -> _Written:
        """Write a function that a body calls. What it returns may be values, numbers, tuples."""
        count = iter(range(len(parameters)))

        def formal(x: Any) -> Any:
            if isinstance(x, Value):
                return Value(self, x.dtype, f"a{next(count)}")
            if isinstance(x, dict):
                return {key: formal(item) for key, item in x.items()}
            return tuple(formal(item) for item in x) if isinstance(x, (tuple, list)) else x

        result, lines = self._run(fn, formal(bound))
        returned: list[Value] = []

        def refer(x: Any) -> Any:
            if isinstance(x, Value):
                if re.fullmatch(r"a\d+", x.expr):
                    return _Ref("argument", int(x.expr[1:]))
                if not re.fullmatch(r"v\d+(\.r\d+)?", x.expr):
                    return _Ref("literal", x.expr, x.dtype)
                returned.append(x)
                return _Ref("field", len(returned) - 1)
            return tuple(refer(item) for item in x) if isinstance(x, (tuple, list)) else x

        template = refer(result)
        fields = [v.dtype for v in returned]
        name = self._name(fn, parameters)
        if len(returned) == 1:
            lines.append(f"return {returned[0].expr};")
            self._define(name, c_type(fields[0]), parameters, lines)
        elif returned:
            struct_name = f"struct {name}_result"
            members = " ".join(f"{c_type(t)} r{i};" for i, t in enumerate(fields))
            self._definitions.append(f"{struct_name} {{ {members} }};")
            lines.append(f"return ({struct_name}){{{', '.join(v.expr for v in returned)}}};")
            self._define(name, struct_name, parameters, lines)
        return _Written(name, template, fields)

    def _run(self, fn: Any, arguments: dict[str, Any]) -> tuple[Any, list[str]]:
        """Run a body; its result and the statements it wrote."""
        lines: list[str] = []
        bound = inspect.BoundArguments(inspect.signature(fn.fn), arguments)  # type: ignore[arg-type]
        self._bodies.append(lines)
        self._seen.append({})
        try:
            return self._resolved(fn.fn)(*bound.args, **bound.kwargs), lines
        except Untranslatable:
            raise
        except Exception as error:
            raise Untranslatable(f"{_place(error, fn.fn)}: {error}") from error
        finally:
            self._bodies.pop()
            self._seen.pop()

    def _resolved(self, fn: Callable) -> Callable:
        """``fn`` with ``tl`` and the Triton functions it names replaced."""

        def replace(value: Any) -> Any:
            if value is tl or getattr(value, "__name__", None) == "triton.language":
                return self._language
            if isinstance(value, Jit) or type(value).__name__ in _TRITON_FUNCTIONS:
                if id(value) not in self._callees:
                    self._callees[id(value)] = _Callee(self, value)
                return self._callees[id(value)]
            return value

        def cell(old: types.CellType) -> types.CellType:
            try:
                return types.CellType(replace(old.cell_contents))
            except ValueError:  # not assigned yet
                return old

        scope = dict(fn.__globals__)
        scope.update({n: replace(scope[n]) for n in _names(fn.__code__) if n in scope})
        closure = tuple(cell(c) for c in fn.__closure__ or ()) or None
        clone = types.FunctionType(fn.__code__, scope, fn.__name__, fn.__defaults__, closure)
        clone.__kwdefaults__ = fn.__kwdefaults__
        return clone

    def statement(self, t: Type, expr: str) -> Value:
        """A new variable, or the one that has this value already."""
        seen = self._seen[-1]
        if (t, expr) not in seen:
            seen[t, expr] = Value(self, t, self._line(f"const {c_type(t)}", expr))
        return seen[t, expr]

    def _line(self, declaration: str, expr: str) -> str:
        lines = self._bodies[-1]
        if len(lines) >= STATEMENTS:
            raise TypeError(f"more than {STATEMENTS} operations, loops unrolled")
        name = f"v{len(lines)}"
        lines.append(f"{declaration} {name} = {expr};")
        return name

    def _name(self, fn: Any, parameters: list[Type]) -> str:
        stem = re.sub(r"\W", "_", _title(fn.fn)).strip("_") or "function"
        stem = "_".join([f"f_{stem}", *(t.short for t in parameters)])
        name, k = stem, 1
        while name in self._names:
            k += 1
            name = f"{stem}_{k}"
        self._names.add(name)
        return name

    def _define(self, name: str, result: str, parameters: list[Type], lines: list[str]) -> None:
        formals = ", ".join(f"{c_type(t)} a{i}" for i, t in enumerate(parameters)) or "void"
        body = "\n".join(f"    {line}" for line in lines)
        self._definitions.append(f"INLINE {result} {name}({formals}) {{\n{body}\n}}")


_TRITON_FUNCTIONS = ("JITFunction", "InterpretedFunction")


def _bound(fn: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the parameters, defaults filled in."""
    try:
        bound = inspect.signature(fn.fn).bind(*args, **kwargs)
    except TypeError as error:
        raise Untranslatable(f"{_title(fn.fn)}: {error}") from None
    bound.apply_defaults()
    return bound.arguments


def _title(fn: Callable) -> str:
    """``relu`` for the body ``relu.triton`` of an entry."""
    parts = [p for p in fn.__qualname__.split(".") if p != "<locals>"]
    return parts[-2] if parts[-1] == "triton" and len(parts) > 1 else parts[-1]


def _place(error: Exception, fn: Callable) -> str:
    """The function and the line of its text that an error passed through."""
    line = fn.__code__.co_firstlineno
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is fn.__code__:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{_title(fn)} ({fn.__code__.co_filename}:{line})"


def _frozen(x: Any, values: list[Value]) -> Any:
    """A hashable key of an argument; its run-time values go into ``values``."""
    if isinstance(x, Value):
        values.append(x)
        return ("value", x.dtype.short)
    if isinstance(x, (tuple, list)):
        return tuple(_frozen(item, values) for item in x)
    if isinstance(x, dict):
        return tuple((k, _frozen(v, values)) for k, v in x.items())
    if isinstance(x, (int, float, str)) or x is None:
        return (type(x).__name__, repr(x))  # 1, 1.0 and True differ, as 0.0 and -0.0
    return ("object", x)
