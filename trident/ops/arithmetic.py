"""Sums, products, quotients, signs and ``where``: one elementwise entry an op.

numpy bodies that gradient rules use on plain numbers are written with Python's operators: those
keep a Python float weak, where ``np.subtract(2.5, 1)`` is a float64 that widens what follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import wrong
from ..kernels.device_math import copysign as _copysign
from ..kernels.device_math import div_exact as _div
from ..kernels.device_math import fmod as _fmod
from ..kernels.device_math import negate as _negate
from ..kernels.device_math import trunc as _trunc
from ..kernels.device_math import typed
from ..lang import jit, tl
from .blockwise import select
from .registry import NONZERO, REALS, composite, elementwise


def is_integral(*operands: Any) -> bool:
    """Whether the operands (arrays or numbers) promote to an integer or bool dtype."""
    return np.result_type(*operands).kind in "iub"


def check_divisor(op: str, x: Any, y: Any) -> None:
    """Integer division by zero is an error; numpy alone would return 0."""
    if is_integral(x, y) and not np.all(y):
        raise wrong(
            op,
            "integer division by zero",
            hint="floats give inf or nan; convert with x.to(trident.float32)",
            error=ZeroDivisionError,
        )


@elementwise
class zero:
    """0 with the shape and dtype of x: the gradient of what is piecewise constant.

    >>> trident.zero(trident.tensor([1.0, 2.0]))
    tensor([0., 0.])
    """

    def numpy(x):
        return np.zeros_like(x)

    @jit
    def triton(x):
        return tl.zeros_like(x)

    def vjp(g):
        return zero(g)


@elementwise(untyped=("condition",))
class where:
    """x where condition, else y. The condition is bool; x and y promote to one dtype.

    >>> trident.where(trident.tensor([True, False]), trident.tensor([1.0, 2.0]), 0.0)
    tensor([1., 0.])
    """

    def numpy(condition, x, y):
        return select(condition, x, y)

    @jit
    def triton(condition, x, y):
        return tl.where(condition, x, y)

    def vjp(g, condition):
        return None, where(condition, g, 0.0), where(condition, 0.0, g)


# Sums, products, quotients


@elementwise
class add:
    """x + y; of bools, their "or".

    >>> trident.add(trident.tensor([1.0, 2.0]), 1.0)
    tensor([2., 3.])
    """

    def numpy(x, y):
        return x + y

    @jit
    def triton(x, y):
        total = x + y
        if total.dtype == tl.int1:
            return x | y
        else:
            return total

    def vjp(g):
        return g, g


@elementwise(takes="number")
class sub:
    """x - y.

    >>> trident.sub(trident.tensor([1.0, 2.0]), 1.0)
    tensor([0., 1.])
    """

    def numpy(x, y):
        return x - y

    @jit
    def triton(x, y):
        return x - y

    def vjp(g):
        return g, -g


@elementwise
class mul:
    """x * y; of bools, their "and".

    >>> trident.mul(trident.tensor([1.0, 2.0]), 3.0)
    tensor([3., 6.])
    """

    def numpy(x, y):
        return x * y

    @jit
    def triton(x, y):
        return x * y

    def vjp(g, x, y):
        return g * y, g * x


@elementwise(result="float", domain=(REALS, NONZERO))
class div:
    """x / y, correctly rounded. Integers become the default float dtype.

    >>> trident.div(trident.tensor([1.0, 2.0]), 2.0)
    tensor([0.5000, 1.0000])
    """

    def numpy(x, y):
        return np.divide(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        return _div(x, typed(y, x))

    def vjp(g, y, out):
        gx = g / y
        return gx, -(gx * out)


@elementwise(domain=(REALS, NONZERO), takes="number")
class floor_divide:
    """floor(x / y): the quotient that belongs to ``remainder``. Integers divided by 0 raise.

    >>> trident.floor_divide(trident.tensor([-7, 7]), 2)
    tensor([-4,  3])
    """

    def numpy(x, y):
        check_divisor("floor_divide", x, y)
        return np.floor_divide(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        if x.dtype.is_floating():
            rest = _fmod(x, y)
            quotient = _div(x, y)
            whole = _div(x - rest, y)
            whole = tl.where((rest != 0) & ((y < 0) != (rest < 0)), whole - 1, whole)
            down = tl.floor(whole)
            down = tl.where(whole - down > 0.5, down + 1, down)
            down = tl.where(down == 0, _copysign(down, quotient), down)
            # a quotient beyond 2**53 is whole already
            whole_already = (tl.abs(quotient) > 9e15) & (tl.abs(x) < float("inf"))
            return tl.where((y == 0) | whole_already, quotient, down)
        else:
            quotient = x // y
            return tl.where((x - quotient * y != 0) & ((x < 0) != (y < 0)), quotient - 1, quotient)

    def vjp(g):
        return zero(g), zero(g)


@elementwise(domain=(REALS, NONZERO), method=False, takes="number")
class trunc_divide:
    """x / y rounded towards zero: ``div(x, y, rounding_mode="trunc")``.

    >>> trident.trunc_divide(trident.tensor([-7, 7]), 2)
    tensor([-3,  3])
    """

    def numpy(x, y):
        check_divisor("div", x, y)
        if is_integral(x, y):
            return (x - np.fmod(x, y)) // y
        return np.trunc(np.divide(x, y))

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        if x.dtype.is_floating():
            return _trunc(_div(x, y))
        else:
            return x // y

    def vjp(g):
        return zero(g), zero(g)


@elementwise(domain=(REALS, NONZERO), takes="number")
class remainder:
    """x - y * floor(x / y): the sign is the divisor's, as in Python. Integers modulo 0 raise.

    >>> trident.remainder(trident.tensor([-3.0, 3.0]), 2.0)
    tensor([1., 1.])
    """

    def numpy(x, y):
        check_divisor("remainder", x, y)
        return np.remainder(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        if x.dtype.is_floating():
            rest = _fmod(x, y)
            shifted = tl.where((rest < 0) != (y < 0), rest + y, rest)
            return tl.where(rest == 0, _copysign(rest, y), shifted)
        else:
            rest = x % y
            return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)

    def vjp(g, x, y):
        return g, -(g * floor_divide(x, y))


@elementwise(domain=(REALS, NONZERO), takes="number")
class fmod:
    """x - y * trunc(x / y): the sign is the dividend's, as in C. Integers modulo 0 raise.

    >>> trident.fmod(trident.tensor([-3.0, 3.0]), 2.0)
    tensor([-1.,  1.])
    """

    def numpy(x, y):
        check_divisor("fmod", x, y)
        return np.fmod(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        y = typed(y, x)
        if x.dtype.is_floating():
            return _fmod(x, y)
        else:
            return x % y

    def vjp(g, x, y):
        return g, -(g * trunc_divide(x, y))


@elementwise(domain=(REALS, REALS, REALS), takes="number")
class addcmul:
    """input + value * tensor1 * tensor2.

    >>> trident.addcmul(trident.tensor([1.0]), trident.tensor([2.0]), trident.tensor([3.0]))
    tensor([7.])
    """

    def numpy(input, tensor1, tensor2, *, value=1):
        product = np.multiply(tensor1, tensor2)
        return np.add(input, product if value == 1 else product * value)

    @jit
    def triton(input, tensor1, tensor2, value: tl.constexpr):
        return input + value * (tensor1 * tensor2)

    def vjp(g, tensor1, tensor2, value):
        scaled = g if value == 1 else g * value
        return g, scaled * tensor2, scaled * tensor1


@elementwise(domain=(REALS, REALS, NONZERO), result="float")
class addcdiv:
    """input + value * tensor1 / tensor2.

    >>> trident.addcdiv(trident.tensor([1.0]), trident.tensor([3.0]), trident.tensor([2.0]))
    tensor([2.5000])
    """

    def numpy(input, tensor1, tensor2, *, value=1):
        quotient = np.divide(tensor1, tensor2)
        return np.add(input, quotient if value == 1 else quotient * value)

    @jit
    def triton(input, tensor1, tensor2, value: tl.constexpr):
        tensor1 = typed(tensor1, tensor2)
        return input + value * _div(tensor1, typed(tensor2, tensor1))

    def vjp(g, tensor1, tensor2, value):
        gx = (g if value == 1 else g * value) / tensor2
        return g, gx, -(gx * tensor1 / tensor2)


@elementwise(result="float")
class lerp:
    """input + weight * (end - input), written so that weight 1 gives end.

    >>> trident.lerp(trident.tensor([0.0, 2.0]), trident.tensor([4.0, 4.0]), 0.5)
    tensor([2., 3.])
    """

    def numpy(input, end, weight):
        gap = np.subtract(end, input)
        if np.ndim(weight) == 0:
            return input + weight * gap if weight < 0.5 else end - (1 - weight) * gap
        return select(np.less(weight, 0.5), input + weight * gap, end - (1 - weight) * gap)

    @jit
    def triton(input, end, weight):
        gap = end - input
        return tl.where(weight < 0.5, input + weight * gap, end - (1 - weight) * gap)

    def vjp(g, input, end, weight):
        return g * (1 - weight), g * weight, g * (end - input)


# Signs


@elementwise(takes="number")
class neg:
    """-x.

    >>> trident.neg(trident.tensor([1.0, -2.0]))
    tensor([-1.,  2.])
    """

    def numpy(x):
        return np.negative(x)

    @jit
    def triton(x):
        return _negate(x)

    def vjp(g):
        return -g


@elementwise(takes="number")
class positive:
    """x.

    >>> trident.positive(trident.tensor([1.0, -2.0]))
    tensor([ 1., -2.])
    """

    def numpy(x):
        return np.positive(x)

    @jit
    def triton(x):
        return x

    def vjp(g):
        return g


@elementwise(takes="number", kinks=(0.0,))
class abs:
    """The absolute value of x. The gradient at 0 is 0.

    >>> trident.abs(trident.tensor([1.0, -2.0]))
    tensor([1., 2.])
    """

    def numpy(x):
        return np.abs(x)

    @jit
    def triton(x):
        return tl.abs(x)

    def vjp(g, x):
        return g * sign(x)


@elementwise(kinks=(0.0,))
class sign:
    """-1, 0 or 1. The gradient is 0.

    >>> trident.sign(trident.tensor([-0.5, 0.0, 3.0]))
    tensor([-1.,  0.,  1.])
    """

    def numpy(x):
        if x.dtype == np.bool_:
            return np.logical_and(x, x)
        return np.subtract(np.greater(x, 0), np.less(x, 0), dtype=x.dtype)

    @jit
    def triton(x):
        if x.dtype == tl.int1:
            return x
        else:
            return ((x > 0).to(tl.int8) - (x < 0).to(tl.int8)).to(x.dtype)

    def vjp(g):
        return zero(g)


@elementwise(result="float", domain=(NONZERO, NONZERO), kinks=(0.0,))
class copysign:
    """The magnitude of x with the sign of y; the gradient at x = 0 is 0.

    >>> trident.copysign(trident.tensor([1.0, -2.0]), -1.0)
    tensor([-1., -2.])
    """

    def numpy(x, y):
        return np.copysign(x, y)

    @jit
    def triton(x, y):
        x = typed(x, y)
        return _copysign(x, typed(y, x))

    def vjp(g, x, out):
        return where(x == 0, 0.0, where((x < 0) == (out < 0), g, -g)), zero(g)


# What torch's functions take beyond the two operands; the plain entries stay cheap to call

_add, _sub, _div_true = add, sub, div


@composite
def add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """input + alpha * other. Both broadcast; the dtypes promote.

    >>> trident.add(trident.tensor([1.0, 2.0]), 1.0, alpha=2)
    tensor([3., 4.])
    """
    return _add(input, other if alpha == 1 else other * alpha)


@composite
def sub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """input - alpha * other. Both broadcast; the dtypes promote; bool is refused.

    >>> trident.sub(trident.tensor([1.0, 2.0]), 1.0, alpha=2)
    tensor([-1.,  0.])
    """
    return _sub(input, other if alpha == 1 else other * alpha)


@composite
def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """input / other. Integers become the default float dtype, unless ``rounding_mode`` is given.

    ``rounding_mode``: None, "floor" (towards minus infinity, as ``//``) or "trunc" (towards zero).

    >>> trident.div(trident.tensor([-7.0, 7.0]), 2.0, rounding_mode="floor")
    tensor([-4.,  3.])
    """
    if rounding_mode is None:
        return _div_true(input, other)
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode == "trunc":
        return trunc_divide(input, other)
    raise wrong(
        "div",
        "rounding_mode must be None, 'floor' or 'trunc'",
        got=repr(rounding_mode),
        error=ValueError,
    )


@composite
def rsub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """other - alpha * input.

    >>> trident.rsub(trident.tensor([1.0, 2.0]), 1.0)
    tensor([ 0., -1.])
    """
    return _sub(other, input if alpha == 1 else input * alpha)
