"""Activation functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import wrong
from ..kernels.device_math import div_exact, exp_accurate, typed
from ..kernels.device_math import erfc as _erfc
from ..kernels.device_math import expm1 as _expm1
from ..kernels.device_math import sigmoid as _sigmoid
from ..kernels.device_math import softplus as _softplus
from ..kernels.device_math import tanh as _tanh
from ..lang import jit, tl
from .arithmetic import abs, where
from .blockwise import blockwise, select
from .exponential import exp, sigmoid
from .extrema import clamp_max
from .power import square
from .registry import composite, elementwise, ops
from .special import erfc, erfc_float32
from .trigonometry import tanh

_ROOT_HALF = 0.7071067811865476
_INV_ROOT_TWO_PI = 0.3989422804014327
_ROOT_TWO_BY_PI = 0.7978845608028654
_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


@elementwise(kinks=(0.0,))
class relu:
    """max(x, 0). NaN stays NaN; the gradient at 0 is 0.

    >>> trident.relu(trident.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def numpy(x):
        return np.maximum(x, 0)

    @jit
    def triton(x):
        return tl.maximum(x, 0, propagate_nan=tl.PropagateNan.ALL)

    def vjp(g, out):
        return where(out > 0, g, 0.0)


@elementwise(kinks=(0.0, 6.0), method=False)
class relu6:
    """min(max(x, 0), 6). The gradient at 0 and at 6 is 0.

    >>> trident.relu6(trident.tensor([-1.0, 2.0, 7.0]))
    tensor([0., 2., 6.])
    """

    def numpy(x):
        return np.minimum(np.maximum(x, 0), 6)

    @jit
    def triton(x):
        x = tl.maximum(x, 0, propagate_nan=tl.PropagateNan.ALL)
        return tl.minimum(x, 6, propagate_nan=tl.PropagateNan.ALL)

    def vjp(g, x):
        return where((x > 0) & (x < 6), g, 0.0)


@elementwise(takes="float", kinks=(0.0,), method=False)
class leaky_relu:
    """x where x > 0, else negative_slope * x. The gradient at 0 is negative_slope.

    >>> trident.leaky_relu(trident.tensor([-1.0, 2.0]))
    tensor([-0.0100,  2.0000])
    """

    def numpy(x, *, negative_slope=0.01):
        if 0 <= negative_slope <= 1:
            return np.maximum(x, x * negative_slope)
        return select(x > 0, x, x * negative_slope)

    @jit
    def triton(x, negative_slope: tl.constexpr):
        return tl.where(x > 0, x, x * negative_slope)

    def vjp(g, x, negative_slope):
        return where(x > 0, g, g * negative_slope)


@elementwise(takes="float", kinks=(0.0,), method=False)
class elu:
    """x where x > 0, else alpha * (e**x - 1).

    >>> trident.elu(trident.tensor([-1.0, 2.0]))
    tensor([-0.6321,  2.0000])
    """

    @blockwise
    def numpy(x, *, alpha=1.0):
        t = np.minimum(x, 0, out=np.empty_like(x))
        np.expm1(t, out=t)
        t *= alpha
        return np.add(t, np.maximum(x, 0), out=t)

    @jit
    def triton(x, alpha: tl.constexpr):
        return tl.where(x > 0, x, alpha * _expm1(x))

    def vjp(g, x, alpha):
        return where(x > 0, g, g * (alpha * exp(clamp_max(x, 0.0))))


@elementwise(takes="float", kinks=(0.0,), method=False)
class selu:
    """scale * (x where x > 0, else alpha * (e**x - 1)), alpha 1.6733 and scale 1.0507.

    Source: Klambauer et al., Self-Normalizing Neural Networks, 2017.

    >>> trident.selu(trident.tensor([-1.0, 2.0]))
    tensor([-1.1113,  2.1014])
    """

    @blockwise
    def numpy(x):
        t = np.minimum(x, 0, out=np.empty_like(x))
        np.expm1(t, out=t)
        t *= _SELU_ALPHA
        t += np.maximum(x, 0)
        t *= _SELU_SCALE
        return t

    @jit
    def triton(x):
        return tl.where(x > 0, x * _SELU_SCALE, _SELU_ALPHA * _SELU_SCALE * _expm1(x))

    def vjp(g, x):
        below = exp(clamp_max(x, 0.0)) * (_SELU_ALPHA * _SELU_SCALE)
        return where(x > 0, g * _SELU_SCALE, g * below)


@elementwise(takes="float", kinks=(0.0,), method=False)
class celu:
    """x where x > 0, else alpha * (e**(x / alpha) - 1).

    >>> trident.celu(trident.tensor([-1.0, 2.0]))
    tensor([-0.6321,  2.0000])
    """

    @blockwise
    def numpy(x, *, alpha=1.0):
        t = np.minimum(x, 0, out=np.empty_like(x))
        t /= alpha
        np.expm1(t, out=t)
        t *= alpha
        return np.add(t, np.maximum(x, 0), out=t)

    @jit
    def triton(x, alpha: tl.constexpr):
        return tl.where(x > 0, x, alpha * _expm1(x / alpha))

    def vjp(g, x, alpha):
        return where(x > 0, g, g * exp(clamp_max(x, 0.0) * (1.0 / alpha)))


@elementwise(takes="float", method=False)
class gelu:
    """x times the normal distribution's share below x; "tanh": its tanh approximation.

    Source: Hendrycks and Gimpel, arXiv:1606.08415.

    >>> trident.gelu(trident.tensor([-1.0, 2.0]))
    tensor([-0.1587,  1.9545])
    """

    @blockwise
    def numpy(x, *, approximate="none"):
        if approximate == "tanh":
            # 0.5 * (1 + tanh(u)) is 1 / (1 + e**(-2 u)), and that does not cancel for negative x
            t = np.multiply(x, x, out=np.empty_like(x))
            t *= -2 * _ROOT_TWO_BY_PI * 0.044715
            t -= 2 * _ROOT_TWO_BY_PI
            t *= x
            np.exp(t, out=t)
            t += 1
            return np.divide(x, t, out=t)
        if approximate != "none":
            raise wrong(
                "gelu", "approximate must be 'none' or 'tanh'", got=approximate, error=ValueError
            )
        if x.dtype == np.float32:
            t = erfc_float32(x * np.float32(-_ROOT_HALF))
        else:
            from scipy.special import erfc

            t = erfc(x * -_ROOT_HALF)
        t *= 0.5
        t *= x
        return t

    @jit
    def triton(x, approximate: tl.constexpr):
        if approximate == "tanh":
            return x * _sigmoid(x * (1.5957691216057308 + 0.07135481627260025 * (x * x)))
        else:
            return x * (0.5 * _erfc(x * -_ROOT_HALF))

    def vjp(g, x, approximate):
        if approximate == "tanh":
            t = square(x)
            s = sigmoid(x * (t * (0.044715 * 2 * _ROOT_TWO_BY_PI) + 2 * _ROOT_TWO_BY_PI))
            slope = t * (3 * 0.044715 * 2 * _ROOT_TWO_BY_PI) + 2 * _ROOT_TWO_BY_PI
            return g * (s * (1 + x * (1 - s) * slope))
        density = exp(square(x) * -0.5) * _INV_ROOT_TWO_PI
        return g * (0.5 * erfc(x * -_ROOT_HALF) + x * density)


@elementwise(takes="float", method=False)
class silu:
    """x / (1 + e**-x).

    >>> trident.silu(trident.tensor([-1.0, 2.0]))
    tensor([-0.2689,  1.7616])
    """

    @blockwise
    def numpy(x):
        t = np.negative(x, out=np.empty_like(x))
        np.exp(t, out=t)
        t += 1
        return np.divide(x, t, out=t)

    @jit
    def triton(x):
        return div_exact(x, 1 + exp_accurate(-x))

    def vjp(g, x):
        s = sigmoid(x)
        return g * (s * (1 + x * (1 - s)))


@elementwise(takes="float", method=False)
class mish:
    """x * tanh(softplus(x)).

    Source: Misra, arXiv:1908.08681.

    >>> trident.mish(trident.tensor([-1.0, 2.0]))
    tensor([-0.3034,  1.9440])
    """

    @blockwise
    def numpy(x):
        t = np.minimum(x, 20, out=np.empty_like(x))
        np.exp(t, out=t)
        t *= t + 2  # tanh(log(1 + e)) is t / (t + 2) with t = e * (e + 2)
        return x * (t / (t + 2))

    @jit
    def triton(x):
        e = exp_accurate(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))
        t = e * (e + 2)
        return x * div_exact(t, t + 2)

    def vjp(g, x):
        t = tanh(softplus(x))
        return g * (t + x * (1 - t * t) * sigmoid(x))


@elementwise(takes="float", method=False)
class softplus:
    """log(1 + e**(beta * x)) / beta; x itself where beta * x > threshold.

    >>> trident.softplus(trident.tensor([-1.0, 2.0]))
    tensor([0.3133, 2.1269])
    """

    @blockwise
    def numpy(x, *, beta=1.0, threshold=20.0):
        t = np.multiply(x, beta, out=np.empty_like(x))
        linear = t > threshold  # seldom true
        np.minimum(t, threshold, out=t)
        np.exp(t, out=t)
        np.log1p(t, out=t)
        t /= beta
        if linear.any():
            np.copyto(t, x, where=linear)
        return t

    @jit
    def triton(x, beta: tl.constexpr, threshold: tl.constexpr):
        scaled = x * beta
        return tl.where(scaled > threshold, x, _softplus(scaled) / beta)

    def vjp(g, x, beta, threshold):
        scaled = x * beta
        return where(scaled > threshold, g, g * sigmoid(scaled))


@elementwise(takes="number", kinks=(-1.0, 1.0), method=False)
class hardtanh:
    """x limited to [min_val, max_val]. The gradient at the bounds is 0.

    >>> trident.hardtanh(trident.tensor([-3.0, 0.5]))
    tensor([-1.0000,  0.5000])
    """

    def numpy(x, *, min_val=-1.0, max_val=1.0):
        return np.minimum(np.maximum(x, min_val), max_val)

    @jit
    def triton(x, min_val: tl.constexpr, max_val: tl.constexpr):
        x = tl.maximum(x, typed(min_val, x), propagate_nan=tl.PropagateNan.ALL)
        return tl.minimum(x, typed(max_val, x), propagate_nan=tl.PropagateNan.ALL)

    def vjp(g, x, min_val, max_val):
        return where((x > min_val) & (x < max_val), g, 0.0)


@elementwise(takes="float", kinks=(-3.0, 3.0), method=False)
class hardsigmoid:
    """min(max(x + 3, 0), 6) / 6. The gradient at -3 and 3 is 0.

    >>> trident.hardsigmoid(trident.tensor([-4.0, 0.0]))
    tensor([0.0000, 0.5000])
    """

    @blockwise
    def numpy(x):
        t = np.add(x, 3, out=np.empty_like(x))
        np.maximum(t, 0, out=t)
        np.minimum(t, 6, out=t)
        t /= 6
        return t

    @jit
    def triton(x):
        t = tl.maximum(x + 3, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return tl.minimum(t, 6.0, propagate_nan=tl.PropagateNan.ALL) / 6

    def vjp(g, x):
        return where((x > -3) & (x < 3), g * (1.0 / 6.0), 0.0)


@elementwise(takes="float", kinks=(-3.0, 3.0), method=False)
class hardswish:
    """x * min(max(x + 3, 0), 6) / 6.

    >>> trident.hardswish(trident.tensor([-4.0, 1.0]))
    tensor([-0.0000, 0.6667])
    """

    @blockwise
    def numpy(x):
        t = np.add(x, 3, out=np.empty_like(x))
        np.maximum(t, 0, out=t)
        np.minimum(t, 6, out=t)
        t *= x
        t /= 6
        return t

    @jit
    def triton(x):
        t = tl.maximum(x + 3, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return x * tl.minimum(t, 6.0, propagate_nan=tl.PropagateNan.ALL) / 6

    def vjp(g, x):
        middle = g * (x * (1.0 / 3.0) + 0.5)
        return where(x <= -3, 0.0, where(x < 3, middle, g))


@elementwise(takes="float", method=False)
class softsign:
    """x / (1 + abs(x)).

    >>> trident.softsign(trident.tensor([-1.0, 3.0]))
    tensor([-0.5000,  0.7500])
    """

    @blockwise
    def numpy(x):
        t = np.abs(x, out=np.empty_like(x))
        t += 1
        return np.divide(x, t, out=t)

    @jit
    def triton(x):
        return div_exact(x, 1 + tl.abs(x))

    def vjp(g, x):
        return g / square(1 + abs(x))


@elementwise(takes="float", method=False)
class tanhshrink:
    """x - tanh(x).

    >>> trident.tanhshrink(trident.tensor([-1.0, 2.0]))
    tensor([-0.2384,  1.0360])
    """

    @blockwise
    def numpy(x):
        t = np.tanh(x, out=np.empty_like(x))
        return np.subtract(x, t, out=t)

    @jit
    def triton(x):
        return x - _tanh(x)

    def vjp(g, x):
        return g * square(tanh(x))


@elementwise(takes="float", kinks=(-0.5, 0.5), method=False)
class softshrink:
    """x moved towards 0 by lambd, and 0 where abs(x) <= lambd.

    >>> trident.softshrink(trident.tensor([-1.0, 0.2]))
    tensor([-0.5000,  0.0000])
    """

    @blockwise
    def numpy(x, *, lambd=0.5):
        t = np.clip(x, -lambd, lambd)
        return np.subtract(x, t)

    @jit
    def triton(x, lambd: tl.constexpr):
        t = tl.where(x > lambd, x - lambd, tl.where(x < -lambd, x + lambd, 0.0))
        return tl.where(x != x, x, t)

    def vjp(g, x, lambd):
        return where(abs(x) > lambd, g, 0.0)


@elementwise(takes="float", kinks=(-0.5, 0.5))
class hardshrink:
    """x, and 0 where abs(x) <= lambd.

    >>> trident.hardshrink(trident.tensor([-1.0, 0.2]))
    tensor([-1.,  0.])
    """

    def numpy(x, *, lambd=0.5):
        return select(~(np.abs(x) <= lambd), x, 0.0)

    @jit
    def triton(x, lambd: tl.constexpr):
        return tl.where(tl.abs(x) <= lambd, 0.0, x)

    def vjp(g, x, lambd):
        return where(abs(x) > lambd, g, 0.0)


@elementwise(takes="number", method=False)
class threshold:
    """x where x > threshold, else value.

    >>> trident.threshold(trident.tensor([-1.0, 2.0]), 0.5, 0.0)
    tensor([0., 2.])
    """

    def numpy(x, *, threshold=0.0, value=0.0):
        return select(x <= threshold, np.asarray(value, x.dtype), x)

    @jit
    def triton(x, threshold: tl.constexpr, value: tl.constexpr):
        return tl.where(x <= threshold, value, x)

    def vjp(g, x, threshold):
        return where(x <= threshold, 0.0, g)


@composite
def prelu(input: Any, weight: Any) -> Any:
    """input where it is positive, else weight * input. input (N, C, ...); weight (C,), (1,) or ().

    >>> trident.prelu(trident.tensor([[-1.0, 2.0]]), trident.tensor([0.5, 0.5]))
    tensor([[-0.5000,  2.0000]])
    """
    channels = input.shape[1] if input.ndim > 1 else 1
    size = 1
    for s in weight.shape:
        size *= s
    if weight.ndim > 1 or size not in (1, channels):
        raise wrong(
            "prelu",
            f"weight must have 1 or {channels} elements, the channels of x {tuple(input.shape)}",
            got=tuple(weight.shape),
        )
    if input.ndim == 0:
        weight = ops.reshape(weight, ())
    elif input.ndim > 1:
        weight = ops.reshape(weight, (1, size) + (1,) * (input.ndim - 2))
    return where(input > 0, input, weight * input)
