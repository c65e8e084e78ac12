"""Triton's interpreter computes on numpy arrays; here it is made to compute what a GPU computes.

The differences were found by probing 3.6.0 and 3.9.0; ``tests/test_interpret.py`` has each of them.
bfloat16 travels as its bits in uint16, on which the interpreter does plain arithmetic, sums and
products: here they are widened, computed in float32 and rounded after every operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, to nearest even; NaN stays NaN."""
    x = np.asarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(x != x, bits >> 16 | 0x40, rounded).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 as float32."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def values(handle: Any) -> np.ndarray:
    """The numbers of an interpreter's handle: its array, bfloat16 as float32."""
    return widened(handle.data) if handle.dtype.scalar.is_bf16() else handle.data


def mend(interpreter: Any, version: tuple[int, int]) -> None:
    """Mend casts, arithmetic and products of the interpreter's builder."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    tl = interpreter.tl
    cast, binary, unary = builder.cast_impl, builder.binary_op, builder.unary_op
    ternary, fma, dot = builder.ternary_op, builder.create_fma, builder.create_dot
    to_float = builder.create_fp_to_fp

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        source, to = src.dtype.scalar, dst_type.scalar
        if to.is_bf16():  # 3.9 and 3.6 cut float32 off, and take other types for bits
            return handle(bfloat16_bits(values(src)), to)
        if source.is_bf16():
            return cast(self, handle(widened(src.data), tl.float32), dst_type)
        return cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding: Any) -> Any:
        toward_zero = interpreter._ir.ROUNDING_MODE.RTZ
        if dst_type.scalar.is_bf16() and src.dtype.scalar.is_fp32() and rounding != toward_zero:
            return cast_impl(self, src, dst_type)
        return to_float(self, src, dst_type, rounding)

    def rounded(output: np.ndarray, bf16: Any) -> Any:
        if output.dtype == bool:  # a comparison; Triton's keeps the operands' dtype in the handle
            return handle(output, tl.int1)
        return handle(bfloat16_bits(output), bf16)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        scalar = lhs.dtype.scalar
        if scalar.is_bf16():
            return rounded(op(widened(lhs.data), widened(rhs.data)), scalar)
        return binary(self, lhs, rhs, op)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        scalar = arg.dtype.scalar
        return rounded(op(widened(arg.data)), scalar) if scalar.is_bf16() else unary(self, arg, op)

    def ternary_op(self: Any, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        scalar = other.dtype.scalar
        if scalar.is_bf16() and op is not np.where:
            return rounded(op(values(lhs), values(rhs), values(other)), scalar)
        return ternary(self, lhs, rhs, other, op)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.dtype.scalar.is_bf16():
            return rounded(widened(x.data) * widened(y.data) + widened(z.data), z.dtype.scalar)
        return fma(self, x, y, z)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.dtype.scalar.is_bf16():
            a, b = handle(widened(a.data), tl.float32), handle(widened(b.data), tl.float32)
        return dot(self, a, b, d, *rest)

    builder.cast_impl, builder.create_fp_to_fp = cast_impl, create_fp_to_fp
    builder.binary_op, builder.unary_op, builder.ternary_op = binary_op, unary_op, ternary_op
    builder.create_fma, builder.create_dot = create_fma, create_dot
    if version < (3, 9):
        _mend_36(interpreter)


def _mend_36(interpreter: Any) -> None:
    """What 3.6 does and 3.9 does not: it keeps in maximum, minimum and clamp a NaN that compiled
    ones drop, forgets the sign of the number -0.0, and rounds an fma twice.
    """
    builder = interpreter.InterpreterBuilder
    builder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    builder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)
    builder.get_bf16 = lambda self, value: self.create_fp_trunc(
        self.get_fp32(value), interpreter.tl.bfloat16
    )
    constant, clamp = interpreter.TritonSemantic.scalar_constant, builder.create_clampf

    def create_clampf(self: Any, x: Any, low: Any, high: Any, propagate: Any) -> Any:
        if propagate == interpreter._ir.PROPAGATE_NAN.NONE:
            return self.binary_op(self.binary_op(x, low, np.fmax), high, np.fmin)
        return clamp(self, x, low, high, propagate)

    def scalar_constant(self: Any, value: Any, dtype: Any) -> Any:
        if value == 0 and np.signbit(value) and dtype is not None and dtype.is_floating():
            return self.tensor(getattr(self.builder, f"get_{dtype.name}")(value), dtype)
        return constant(self, value, dtype)

    builder.create_clampf = create_clampf
    interpreter.TritonSemantic.scalar_constant = scalar_constant


def reductions(interpreter: Any, fail: Callable[[str], Exception]) -> tuple[type, type]:
    """The classes that stand in for the interpreter's ReduceOps and ScanOps."""
    tl = interpreter.tl
    standard = tl.standard

    def counted(data: np.ndarray, results: int) -> None:
        note = getattr(interpreter.interpreter_builder, "note_flops", None)
        if note is not None and data.dtype.kind == "f":
            note(data.size - results)

    class Reduce(interpreter.ReduceOps):
        """tl.sum, max, min, argmax and argmin; other combine functions run element by element."""

        def apply_impl(self, input: tuple) -> Any:
            combine = self.combine_fn
            if combine is standard._sum_combine:
                return self.total(input[0])
            if combine is standard._elementwise_max:
                return self.extreme(input[0], np.fmax)
            if combine is standard._elementwise_min:
                return self.extreme(input[0], np.fmin)
            for name, pick in (("argmax", np.argmax), ("argmin", np.argmin)):
                left = getattr(standard, f"_{name}_combine_tie_break_left")
                if combine in (left, getattr(standard, f"_{name}_combine_tie_break_fast")):
                    return self.index(input[0], name, pick)
            return self.generic_reduce(input)

        def total(self, x: Any) -> Any:
            """Half types are rounded after each addition, as a GPU does that sums in pairs."""
            data = values(x.handle)
            scalar = x.dtype.scalar
            if not (scalar.is_bf16() or scalar.is_fp16()):
                out = np.sum(data, axis=self.axis, keepdims=self.keep_dims)
                counted(data, out.size)
                return self.to_tensor(out, x.dtype)
            axis = self.axis
            rest = data.reshape(-1) if axis is None else np.moveaxis(data, axis, 0)
            while len(rest) > 1:
                half = len(rest) // 2
                rest = rest[:half] + rest[half:]
                if scalar.is_bf16():
                    rest = widened(bfloat16_bits(rest))
            out = rest[0]
            if self.keep_dims:
                out = out.reshape((1,) * data.ndim) if axis is None else np.expand_dims(out, axis)
            out = np.asarray(out)
            counted(data, out.size)
            return self.packed(out, x.dtype)

        def extreme(self, x: Any, ufunc: Any) -> Any:
            """A GPU drops NaN unless propagate_nan is asked for; all NaN stays NaN."""
            data = values(x.handle)
            out = np.asarray(ufunc.reduce(data, axis=self.axis, keepdims=self.keep_dims))
            counted(data, out.size)
            return self.packed(out, x.dtype)

        def index(self, x: Any, name: str, pick: Any) -> Any:
            data = values(x.handle)
            if data.dtype.kind == "f" and np.isnan(data).any():
                raise fail(
                    f"NaN among the values of tl.{name}: on a GPU the answer depends on the order "
                    "in which lanes are compared. Replace NaN first with tl.where(x == x, x, ...), "
                    "or use tl.reduce with a combine function that says where NaN goes"
                )
            at = pick(data, axis=self.axis, keepdims=True)
            if self.axis is None:
                out = data.reshape(-1)[at.reshape(-1)].reshape(at.shape)
            else:
                out = np.take_along_axis(data, at, self.axis)
            counted(data, out.size)
            if not self.keep_dims:
                shape = () if self.axis is None else np.delete(np.array(data.shape), self.axis)
                out, at = out.reshape(shape), at.reshape(shape)
            return self.packed(out, x.dtype), self.to_tensor(at, tl.int32)

        def packed(self, out: np.ndarray, dtype: Any) -> Any:
            out = bfloat16_bits(out) if dtype.scalar.is_bf16() else out
            return self.to_tensor(out if out.ndim else out[()], dtype)

    class Scan(interpreter.ScanOps):
        """tl.cumsum and cumprod; other combine functions run element by element."""

        def cumsum(self, x: Any) -> Any:
            return self.along(x, np.cumsum)

        def cumprod(self, x: Any) -> Any:
            return self.along(x, np.cumprod)

        def along(self, x: Any, scan: Any) -> Any:
            data = values(x.handle)
            out = scan(data, axis=self.axis)
            counted(data, data.size // max(data.shape[self.axis], 1))
            if x.dtype.scalar.is_bf16():
                out = bfloat16_bits(out)
            return [self.to_tensor(out, dtype=x.dtype)]

    return Reduce, Scan
