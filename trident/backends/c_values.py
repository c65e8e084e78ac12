"""Values that write C, and what ``tl`` is to them: the arithmetic of Triton, with its types.

Types follow Triton's rules (``triton/language/semantic.py``): a Python number is weak, int1 is an
unsigned integer of one bit, integers divide truncated. A TypeError says what has no C form;
``transpile`` adds the function and the line.
"""

from __future__ import annotations

import builtins
import math
import struct
from collections.abc import Callable
from typing import Any, Protocol

C_TYPES: dict[str, str] = {
    "i1": "_Bool",
    "u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t",
    "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t",
    "f32": "float", "f64": "double",
}  # fmt: skip
"""The C type of a value of each type. Arrays of bools are better read as uint8_t (``x[i] != 0``):
gcc 12 does not vectorise loads of ``_Bool``."""


class Writer(Protocol):
    """Where values write their statements: a ``transpile.CModule``."""

    def statement(self, t: Type, expr: str) -> Value: ...


class Type:
    """What ``tl.float32`` and its siblings are while a body is translated."""

    def __init__(self, name: str, short: str, kind: int, bits: int) -> None:
        self.name = name
        self.short = short
        self.kind = kind  # 0 bool, 1 integer, 2 floating
        self.primitive_bitwidth = self.int_bitwidth = bits
        self.itemsize = max(bits // 8, 1)

    @property
    def scalar(self) -> Type:
        return self

    element_ty = scalar

    def is_floating(self) -> bool:
        return self.kind == 2

    is_standard_floating = is_floating

    def is_int(self) -> bool:
        return self.kind < 2

    def is_int_signed(self) -> bool:
        return self.short[0] == "i" and self.kind == 1

    def is_int_unsigned(self) -> bool:
        return self.is_int() and not self.is_int_signed()

    def is_bool(self) -> bool:
        return self.kind == 0

    is_int1 = is_bool

    def is_fp16(self) -> bool:
        return self.name == "fp16"

    def is_bf16(self) -> bool:
        return self.name == "bf16"

    def is_fp32(self) -> bool:
        return self.name == "fp32"

    def is_fp64(self) -> bool:
        return self.name == "fp64"

    def is_ptr(self) -> bool:
        return False

    is_block = is_ptr

    def __repr__(self) -> str:
        return self.name


_I1 = Type("int1", "i1", 0, 1)
_F32 = Type("fp32", "f32", 2, 32)
_F64 = Type("fp64", "f64", 2, 64)
TYPES: dict[str, Type] = {"int1": _I1, "float32": _F32, "float64": _F64,
                           "float16": Type("fp16", "f16", 2, 16),
                           "bfloat16": Type("bf16", "bf16", 2, 16)}  # fmt: skip
for _bits in (8, 16, 32, 64):
    TYPES[f"int{_bits}"] = Type(f"int{_bits}", f"i{_bits}", 1, _bits)
    TYPES[f"uint{_bits}"] = Type(f"uint{_bits}", f"u{_bits}", 1, _bits)
_I32, _I64, _U32, _U64 = (TYPES[n] for n in ("int32", "int64", "uint32", "uint64"))
SHORT = {t.short: t for t in TYPES.values()}


def c_type(t: Type) -> str:
    if t.short not in C_TYPES:
        raise TypeError(f"a value of {t.name}: half types are widened before the body")
    return C_TYPES[t.short]


def _unsigned(t: Type) -> str:
    """The C type in which the arithmetic of ``t`` wraps without being undefined."""
    return "uint64_t" if t.int_bitwidth == 64 else "uint32_t"


def _type_of_number(x: Any) -> Type:
    if isinstance(x, bool):
        return _I1
    if isinstance(x, int):
        for t, low, high in (
            (_I32, -(2**31), 2**31), (_U32, 0, 2**32), (_I64, -(2**63), 2**63), (_U64, 0, 2**64)
        ):  # fmt: skip
            if low <= x < high:
                return t
        raise TypeError(f"the integer {x} fits no type")
    size = abs(x)
    narrow = size == 0 or size != size or size == math.inf
    return _F32 if narrow or 2.0**-126 <= size <= (2 - 2.0**-23) * 2.0**127 else _F64


def _integers(a: Type, b: Type) -> Type:
    """The common type of two integer types: C's usual conversions, by rank and sign."""
    if a.is_int_signed() == b.is_int_signed():
        return a if a.int_bitwidth > b.int_bitwidth else b
    unsigned, signed = (b, a) if a.is_int_signed() else (a, b)
    return unsigned if unsigned.int_bitwidth >= signed.int_bitwidth else signed


def _common(x: Any, y: Any, division: bool = False) -> Type:
    """The type in which Triton combines two operands; a number is weak beside a value."""
    a = x.dtype if isinstance(x, Value) else _type_of_number(x)
    b = y.dtype if isinstance(y, Value) else _type_of_number(y)
    if isinstance(x, Value) != isinstance(y, Value):
        strong, weak = (a, b) if isinstance(x, Value) else (b, a)
        if weak.kind <= strong.kind:
            return strong
    for t in (_F64, _F32):
        if t in (a, b):
            return t
    if division and a.is_int_signed() != b.is_int_signed():
        raise TypeError(f"division and remainder of {a} and {b}: cast them to the same signedness")
    return _integers(a, b)


def _literal(x: Any, t: Type) -> str:
    """A Python number as a C constant of type ``t``, in parentheses where it has a sign."""
    text = _float_literal(float(x), t) if t.is_floating() else _integer_literal(x, t)
    return f"({text})" if text[0] == "-" else text


def _float_literal(x: float, t: Type) -> str:
    suffix = "f" if t is _F32 else ""
    if t is _F32:
        try:
            (x,) = struct.unpack("f", struct.pack("f", x))
        except OverflowError:
            x = math.copysign(math.inf, x)
    if x != x:
        return f'__builtin_nan{suffix}("")'
    if math.isinf(x):
        return f"{'-' if x < 0 else ''}__builtin_inf{suffix}()"
    text = f"{x:.9g}" if t is _F32 else repr(x)
    return (text if any(c in text for c in ".e") else text + ".0") + suffix


def _integer_literal(x: Any, t: Type) -> str:
    if isinstance(x, float) and not x.is_integer():
        raise TypeError(f"the number {x} as {t}")
    x = int(x)
    low = -(2 ** (t.int_bitwidth - 1)) if t.is_int_signed() else 0
    if not low <= x < low + 2**t.int_bitwidth:
        raise TypeError(f"the number {x} is out of range for {t}")
    if x in (-(2**31), -(2**63)):  # C has no negative constants: these would overflow
        return "INT32_MIN" if t is _I32 else f"({x + 1}ll - 1)"
    suffix = {"u32": "u", "u64": "ull", "i64": "ll"}.get(t.short, "")
    return f"{x}{suffix}"


# Values


class Shape:
    """The shape of every value: bodies hand it on to ``tl.full`` and cannot look inside."""

    def __getitem__(self, _: Any) -> Any:
        raise TypeError("reading a shape: a scalar function is the same for every shape")

    __len__ = __iter__ = __getitem__  # type: ignore[assignment]


class Value:
    """A value of the function being written: a C expression without effects, and its type."""

    __slots__ = ("dtype", "expr", "module")
    __hash__ = None  # type: ignore[assignment]
    shape = Shape()

    def __init__(self, module: Writer, dtype: Type, expr: str) -> None:
        self.module = module
        self.dtype = dtype
        self.expr = expr

    @property
    def type(self) -> Type:
        return self.dtype

    def __bool__(self) -> bool:
        raise TypeError(
            "a branch (if, while, and, or, not, min, max) on a value that is only known at run "
            "time: use tl.where, &, |, tl.minimum or tl.maximum"
        )

    def to(self, dtype: Any, fp_downcast_rounding: Any = None, bitcast: bool = False) -> Value:
        if fp_downcast_rounding not in (None, "rtne"):
            raise TypeError(f"x.to(fp_downcast_rounding={fp_downcast_rounding!r})")
        return _bitcast(self, dtype) if bitcast else _cast(self, dtype)

    def cast(self, dtype: Any, bitcast: bool = False) -> Value:
        return self.to(dtype, bitcast=bitcast)

    def __getattr__(self, name: str) -> Any:
        member = _MEMBERS.get(name)
        if member is None:
            raise TypeError(f"x.{name} has no C form")
        return lambda *args, **kwargs: member(self, *args, **kwargs)

    def __pos__(self) -> Value:
        return self

    def __neg__(self) -> Value:
        t = self.dtype
        return new(self, t, f"-{self.expr}") if t.is_floating() else _sub(_typed(self, 0, t), self)

    def __invert__(self) -> Value:
        if self.dtype.is_floating():
            raise TypeError(f"~ of {self.dtype}")
        operator = "!" if self.dtype is _I1 else "~"
        return new(self, self.dtype, f"({c_type(self.dtype)}){operator}{self.expr}")

    def __abs__(self) -> Value:
        return _abs(self)


def new(like: Value, t: Type, expr: str) -> Value:
    return like.module.statement(t, expr)


def _typed(like: Value, x: Any, t: Type) -> Value:
    """``x`` (a value or a number) in type ``t``."""
    if isinstance(x, Value):
        return _cast(x, t)
    return Value(like.module, t, _literal(x, t))


def _pair(x: Any, y: Any, division: bool = False) -> tuple[Value, Value, Type]:
    for operand in (x, y):
        if not isinstance(operand, (Value, int, float)):
            raise TypeError(f"an operand of type {type(operand).__name__}")
    like = x if isinstance(x, Value) else y
    t = _common(x, y, division)
    return _typed(like, x, t), _typed(like, y, t), t


def _wrapping(operator: str) -> Callable[[Any, Any], Value]:
    def apply(x: Any, y: Any) -> Value:
        a, b, t = _pair(x, y)
        if t.is_floating():
            return new(a, t, f"{a.expr} {operator} {b.expr}")
        if t is _I1:  # modulo 2
            return new(a, t, f"{a.expr} {'&' if operator == '*' else '^'} {b.expr}")
        wide = _unsigned(t)
        return new(a, t, f"({c_type(t)})(({wide}){a.expr} {operator} ({wide}){b.expr})")

    return apply


_add, _sub, _mul = _wrapping("+"), _wrapping("-"), _wrapping("*")


def _truediv(x: Any, y: Any) -> Value:
    a, b, t = _pair(x, y, division=True)
    if not t.is_floating():
        a, b, t = _cast(a, _F32), _cast(b, _F32), _F32
    return new(a, t, f"{a.expr} / {b.expr}")


def _divide_integers(name: str) -> Callable[[Any, Any], Value]:
    def apply(x: Any, y: Any) -> Value:
        a, b, t = _pair(x, y, division=True)
        if t.is_floating():
            if name == "div":
                raise TypeError(f"// of {t} operands; it is for integers")
            return new(a, t, f"__builtin_fmod{'f' if t is _F32 else ''}({a.expr}, {b.expr})")
        if t.is_int_unsigned():
            helper = "u64"
        else:
            helper = "i64" if t.int_bitwidth == 64 else "i32"
        return new(a, t, f"({c_type(t)})t_{name}_{helper}({a.expr}, {b.expr})")

    return apply


def _bitwise(operator: str) -> Callable[[Any, Any], Value]:
    def apply(x: Any, y: Any) -> Value:
        a, b, t = _pair(x, y)
        if t.is_floating():
            raise TypeError(f"{operator} of {t} operands")
        if operator in ("<<", ">>"):
            wide = _unsigned(t) if operator == "<<" else c_type(t)
            count = f"({b.expr} & {max(t.int_bitwidth, 32) - 1})"  # C leaves larger ones undefined
            return new(a, t, f"({c_type(t)})(({wide}){a.expr} {operator} {count})")
        return new(a, t, f"({c_type(t)})({a.expr} {operator} {b.expr})")

    return apply


def _comparison(operator: str) -> Callable[[Any, Any], Value]:
    def apply(x: Any, y: Any) -> Value:
        if y is None:
            raise TypeError(f"{operator} with None: write `is None`")
        a, b, _ = _pair(x, y)
        return new(a, _I1, f"{a.expr} {operator} {b.expr}")

    return apply


def _binary(apply: Callable) -> tuple[Callable, Callable]:
    def forward(self: Value, other: Any) -> Value:
        return apply(self, other)

    def reflected(self: Value, other: Any) -> Value:
        return apply(other, self)

    return forward, reflected


for _name, _apply in {
    "add": _add, "sub": _sub, "mul": _mul, "truediv": _truediv,
    "floordiv": _divide_integers("div"), "mod": _divide_integers("mod"),
    "and": _bitwise("&"), "or": _bitwise("|"), "xor": _bitwise("^"),
    "lshift": _bitwise("<<"), "rshift": _bitwise(">>"),
}.items():  # fmt: skip
    _forward, _reflected = _binary(_apply)
    setattr(Value, f"__{_name}__", _forward)
    setattr(Value, f"__r{_name}__", _reflected)
for _name, _operator in {
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
}.items():
    setattr(Value, f"__{_name}__", _binary(_comparison(_operator))[0])


def _cast(x: Value, t: Any) -> Value:
    if not isinstance(t, Type):
        raise TypeError(f"a cast to {t!r}, which is no dtype")
    source = x.dtype
    if source is t:
        return x
    if t is _I1:
        return new(x, t, f"{x.expr} != 0")
    target = c_type(t)
    expr = f"({target}){x.expr}"
    if source.is_floating() and t.is_int():
        if t.int_bitwidth < 32:  # C leaves the overflow of a cast to a small type undefined
            expr = f"({target})(int32_t){x.expr}"
        elif t is _I64 or t is _U32:
            wide = x.expr if source is _F64 else f"(double){x.expr}"
            expr = f"({target})t_f64_to_i64({wide})"
    elif source is _I64 and t.is_floating():
        expr = f"t_i64_to_{t.short}({x.expr})"
    return new(x, t, expr)


def _bitcast(x: Value, t: Any) -> Value:
    source = x.dtype
    if source.primitive_bitwidth != t.primitive_bitwidth:
        raise TypeError(f"a bitcast from {source} to {t}, which have different sizes")
    if source.is_floating() == t.is_floating():
        return _cast(x, t)
    if source.is_floating():
        return new(x, t, f"({c_type(t)})t_bits_{source.short}({x.expr})")
    wide = "uint64_t" if t is _F64 else "uint32_t"
    return new(x, t, f"t_from_bits_{t.short}(({wide}){x.expr})")


# tl


def as_value(module: Writer, x: Any) -> Value:
    """What Triton's ``to_tensor`` makes of a value or a number."""
    if isinstance(x, Value):
        return x
    if not isinstance(x, (int, float)):
        raise TypeError(f"an operand of type {type(x).__name__}")
    t = _type_of_number(x)
    return Value(module, t, _literal(x, t))


def _float_function(name: str) -> Callable[[Any], Value]:
    def apply(x: Any) -> Value:
        if not isinstance(x, Value) or not x.dtype.is_floating():
            kind = x.dtype if isinstance(x, Value) else type(x).__name__
            raise TypeError(f"tl.{name} of {kind}; it takes float32 and float64 values")
        suffix = "f" if x.dtype is _F32 else ""
        forms = {
            "sqrt": f"__builtin_sqrt{suffix}({x.expr})",
            "sqrt_rn": f"__builtin_sqrt{suffix}({x.expr})",
            "rsqrt": f"1 / __builtin_sqrt{suffix}({x.expr})",
            "floor": f"__builtin_floor{suffix}({x.expr})",
            "ceil": f"__builtin_ceil{suffix}({x.expr})",
        }
        return new(x, x.dtype, forms.get(name) or f"t_{name}_{x.dtype.short}({x.expr})")

    return apply


def _abs(x: Value) -> Value:
    t = x.dtype
    if t.is_floating():
        return new(x, t, f"__builtin_fabs{'f' if t is _F32 else ''}({x.expr})")
    if t.is_int_unsigned():
        return x
    return new(x, t, f"{x.expr} < 0 ? ({c_type(t)})(0 - ({_unsigned(t)}){x.expr}) : {x.expr}")


class _PropagateNan:
    NONE = "none"
    ALL = "all"


def _extremum(name: str, helper: str, order: str) -> Callable:
    def apply(x: Any, y: Any, propagate_nan: str = _PropagateNan.NONE) -> Value:
        if not isinstance(x, Value) and not isinstance(y, Value):
            raise TypeError(f"tl.{name} of two Python numbers")
        a, b, t = _pair(x, y)
        every = propagate_nan == _PropagateNan.ALL
        if not t.is_floating():
            return new(a, t, f"{a.expr} {order} {b.expr} ? {a.expr} : {b.expr}")
        for number, value, c in ((x, b, a), (y, a, b)):  # one comparison does beside a number
            if every and not isinstance(number, Value) and number == number:
                # where both are zeros, of two signs: max is 0.0 and min is -0.0
                same = number == 0 and (math.copysign(1, number) > 0) == (name == "maximum")
                test = f"{c.expr} {order}{'=' if same else ''} {value.expr}"
                return new(a, t, f"{test} ? {c.expr} : {value.expr}")
        stem = name if every else helper
        return new(a, t, f"t_{stem}_{t.short}({a.expr}, {b.expr})")

    return apply


_maximum, _minimum = _extremum("maximum", "fmax", ">"), _extremum("minimum", "fmin", "<")


def _clamp(x: Any, min: Any, max: Any, propagate_nan: str = _PropagateNan.NONE) -> Value:
    return _minimum(_maximum(x, min, propagate_nan), max, propagate_nan)


def _fma(x: Any, y: Any, z: Any) -> Value:
    operands = (x, y, z)
    like = next((a for a in operands if isinstance(a, Value)), None)
    if like is None:
        raise TypeError("tl.fma of three Python numbers")
    values = [a for a in operands if isinstance(a, Value)]
    strong = values[0]
    for a in values[1:]:
        strong = Value(like.module, _common(strong, a), "")
    t = strong.dtype
    for a in operands:
        if not isinstance(a, Value):
            t = _common(Value(like.module, t, ""), a)
    a, b, c = (_typed(like, operand, t) for operand in operands)
    if not t.is_floating():
        return _add(_mul(a, b), c)
    return new(a, t, f"__builtin_fma{'f' if t is _F32 else ''}({a.expr}, {b.expr}, {c.expr})")


def _umulhi(x: Any, y: Any) -> Value:
    a, b, t = _pair(x, y)
    if t.int_bitwidth == 32 and t.is_int():
        return new(a, t, f"({c_type(t)})((uint64_t)(uint32_t){a.expr} * (uint32_t){b.expr} >> 32)")
    if t.int_bitwidth == 64 and t.is_int():
        return new(a, t, f"({c_type(t)})t_umulhi_u64((uint64_t){a.expr}, (uint64_t){b.expr})")
    raise TypeError(f"tl.umulhi of {t} operands")


_FLOAT_FUNCTIONS = ("exp", "exp2", "log", "log2", "sin", "cos", "erf", "sqrt", "sqrt_rn", "rsqrt",
                    "floor", "ceil")  # fmt: skip
_MEMBERS: dict[str, Callable] = {name: _float_function(name) for name in _FLOAT_FUNCTIONS}
_MEMBERS["abs"] = _abs
_FUNCTIONS: dict[str, Callable] = {
    **_MEMBERS,
    "maximum": _maximum, "minimum": _minimum, "clamp": _clamp, "fma": _fma, "umulhi": _umulhi,
    "div_rn": _truediv, "fdiv": lambda x, y, ieee_rounding=False: _truediv(x, y),
    "broadcast": lambda x, y: (x, y), "broadcast_to": lambda x, *shape: x,
    "zeros_like": lambda x: Value(x.module, x.dtype, _literal(0, x.dtype)),
    "static_print": lambda *args, **kwargs: None, "assume": lambda condition: None,
    "cdiv": lambda x, div: (x + (div - 1)) // div,
    "sigmoid": lambda x: 1 / (1 + _MEMBERS["exp"](x * -1.0)),
}  # fmt: skip
"""``tl.NAME`` for functions that need no place in a module."""


class Language:
    """Stands for ``triton.language`` while a body of ``module`` runs."""

    tensor = Value
    PropagateNan = _PropagateNan

    def __init__(self, module: Writer) -> None:
        self._module = module
        self.math = self

    def __getattr__(self, name: str) -> Any:
        found = TYPES.get(name) or _FUNCTIONS.get(name)
        if found is None:
            raise TypeError(f"tl.{name} has no C form")
        return found

    @staticmethod
    def constexpr(value: Any) -> Any:
        return value

    static_range = staticmethod(builtins.range)

    def range(self, *bounds: int, **options: Any) -> builtins.range:
        return builtins.range(*bounds)

    def static_assert(self, condition: Any, message: str = "") -> None:
        if not condition:
            raise TypeError(f"tl.static_assert failed: {message}")

    def where(self, condition: Any, x: Any, y: Any) -> Value:
        chosen = _cast(as_value(self._module, condition), _I1)
        if not isinstance(x, Value) and not isinstance(y, Value):
            t = _common(x, y)
            a, b = _typed(chosen, x, t), _typed(chosen, y, t)
        else:
            a, b, t = _pair(x, y)
        return new(chosen, t, f"{chosen.expr} ? {a.expr} : {b.expr}")

    def full(self, shape: Any, value: Any, dtype: Any) -> Value:
        sides = () if isinstance(shape, Shape) else tuple(shape)
        if any(side != 1 for side in sides):
            raise TypeError(f"a block of shape {sides}: a scalar function has no blocks")
        if isinstance(value, Value):
            return _cast(value, dtype)
        return Value(self._module, dtype, _literal(value, dtype))

    def zeros(self, shape: Any, dtype: Any) -> Value:
        return self.full(shape, 0, dtype)

    def cast(self, x: Any, dtype: Any, bitcast: bool = False) -> Value:
        return as_value(self._module, x).to(dtype, bitcast=bitcast)

    def to_tensor(self, x: Any) -> Value:
        return as_value(self._module, x)
