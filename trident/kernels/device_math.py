"""Scalar functions for kernels that Triton does not have, or has only approximately.

Pure functions of float32 or float64 values in registers, for elementwise bodies and for the
epilogues of other kernels: ``from .device_math import tanh``. They use no external library, so that
they run in the interpreter and on every target, and none depends on ``fma`` being fused. The
polynomials are our own: interpolants at Chebyshev nodes, computed with 50 digits. Errors are a few
ulp; NaN, the infinities and signed zeros come out as in numpy.

A branch on the dtype is decided while compiling. It has an ``else`` throughout, because Triton
would compile what follows a ``return`` as well.
"""

from __future__ import annotations

from ..lang import jit, tl


@jit
def typed(x, like):
    """``x`` as a block like ``like``: in generated kernels x may be a scalar or a literal number.

    The interpreter would lose the dtype of a comparison of scalars that then meets a block, and
    ``tl.maximum`` and ``tl.minimum`` of Triton 3.6 round a literal to float32.
    """
    if not isinstance(x, tl.tensor):
        return tl.full(like.shape, x, like.dtype)
    elif isinstance(like, tl.tensor):
        return tl.broadcast(x, like)[0]
    else:
        return x


@jit
def div_exact(x, y):
    """x / y, correctly rounded (``/`` may be 2 ulp off in float32)."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@jit
def sqrt_exact(x):
    """Square root, correctly rounded (``tl.sqrt`` is approximate in float32)."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@jit
def negate(x):
    """-x, also of zeros: ``-`` is ``0 - x`` in Triton 3.6, which makes 0.0 of 0.0."""
    if x.dtype.is_floating():
        return x * -1.0
    else:
        return -x


@jit
def copysign(x, y):
    """The magnitude of x with the sign bit of y."""
    if x.dtype == tl.float64:
        sign = y.to(tl.int64, bitcast=True) & -0x8000000000000000
        return (tl.abs(x).to(tl.int64, bitcast=True) | sign).to(tl.float64, bitcast=True)
    else:
        sign = y.to(tl.int32, bitcast=True) & -0x80000000
        return (tl.abs(x).to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@jit
def signbit(x):
    """Whether the sign bit is set: true for -0.0."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True) < 0
    else:
        return x.to(tl.int32, bitcast=True) < 0


@jit
def high_half(x):
    """x with the lower half of its significand cleared, so that its square is exact."""
    if x.dtype == tl.float64:
        return (x.to(tl.int64, bitcast=True) & -0x8000000).to(tl.float64, bitcast=True)
    else:
        return (x.to(tl.int32, bitcast=True) & -0x1000).to(tl.float32, bitcast=True)


@jit
def power_of_two(n):
    """2**n for an integral n that gives a normal number."""
    if n.dtype == tl.float64:
        return ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@jit
def clip(x, low, high):
    """x limited to [low, high]; NaN stays NaN."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


# Rounding


@jit
def trunc(x):
    """Round towards zero."""
    if x.dtype.is_floating():
        return tl.where(x < 0, tl.ceil(x), tl.floor(x))
    else:
        return x


@jit
def round_even(x):
    """Round to nearest, ties to even."""
    if x.dtype.is_floating():
        down = tl.floor(x)
        rest = x - down
        odd = down - 2 * tl.floor(down * 0.5)  # 0 or 1
        up = (rest > 0.5) | ((rest == 0.5) & (odd == 1))
        return copysign(tl.where(up, down + 1, down), x)
    else:
        return x


@jit
def fmod(x, y):
    """The remainder of x / y with the sign of x; exact for abs(x / y) < 2**78, else NaN."""
    a = tl.abs(x).to(tl.float64)
    b = tl.abs(y).to(tl.float64)
    b_high = high_half(b)
    b_low = b - b_high
    rest = a
    for _ in tl.static_range(3):  # each step takes 26 bits off the quotient, without rounding
        q = high_half(tl.floor(rest / b))
        rest = (rest - q * b_high) - q * b_low
    rest = tl.where(rest < 0, rest + b, rest)
    rest = tl.where(rest >= b, rest - b, rest)
    rest = tl.where(rest < b, rest, float("nan"))
    rest = tl.where((b == float("inf")) & (a < float("inf")), a, rest)
    return copysign(rest.to(x.dtype), x)


# Exponentials and logarithms


@jit
def exp_accurate(x):
    """e**x. ``tl.exp`` in float32 loses a digit where abs(x) is large."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = clip(x, -104.0, 89.0)
        n = tl.floor(x * 1.44269504 + 0.5)
        r = (x - n * 0.693359375) + n * 2.12194440e-4
        half = tl.floor(n * 0.5)
        return tl.exp(r) * power_of_two(half) * power_of_two(n - half)


@jit
def expm1(x):
    """e**x - 1, accurate near 0."""
    if x.dtype == tl.float64:
        a = clip(x, -60.0, 710.0)
        n = tl.floor(a * 1.4426950408889634 + 0.5)
        r = (a - n * 0.6931471803691238) - n * 1.9082149292705877e-10
        p = (1.1470745597729725e-11 * r + 1.6059043836821615e-10) * r + 2.0876756987868099e-9
        p = ((p * r + 2.5052108385441719e-8) * r + 2.7557319223985891e-7) * r
        p = ((p + 2.7557319223985891e-6) * r + 2.4801587301587302e-5) * r
        p = ((p + 0.00019841269841269841) * r + 0.0013888888888888889) * r
        p = ((p + 0.0083333333333333333) * r + 0.041666666666666667) * r
        p = (p + 0.16666666666666667) * r + 0.5
    else:
        a = clip(x, -60.0, 89.0)
        n = tl.floor(a * 1.44269504 + 0.5)
        r = (a - n * 0.693359375) + n * 2.12194440e-4
        p = (2.48015873e-5 * r + 0.000198412698) * r + 0.00138888889
        p = ((p * r + 0.00833333333) * r + 0.0416666667) * r
        p = (p + 0.166666667) * r + 0.5
    p = r + r * r * p
    half = power_of_two(n - 1)  # 2**n itself can overflow where the result does not
    return tl.where(x == 0, x, 2 * (half * p + (half - 0.5)))


@jit
def log1p(x):
    """log(1 + x), accurate near 0: the rounding error of 1 + x is put back to first order."""
    u = 1 + x
    log = tl.log(u)
    r = tl.where(u == 0, log, log + div_exact(x - (u - 1), u))
    return tl.where((x == 0) | (x == float("inf")), x, r)


@jit
def sigmoid(x):
    """1 / (1 + e**-x)."""
    return div_exact(typed(1.0, x), 1 + exp_accurate(-x))


@jit
def softplus(x):
    """log(1 + e**x) without overflow."""
    top = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return top + log1p(exp_accurate(-tl.abs(x)))


@jit
def power(x, y):
    """x**y for floats, as C's pow. float32 goes through float64: y * log(x) needs the digits."""
    a = tl.abs(x).to(tl.float64)
    wide = y.to(tl.float64)
    log = tl.log(a)
    size = tl.where((log == 0) | (y == 0), 0.0, wide * log)
    r = tl.exp(size).to(x.dtype)
    whole = y == tl.floor(y)
    odd = whole & (y * 0.5 != tl.floor(y * 0.5))
    r = tl.where((x < 0) & (x > -float("inf")) & (whole == 0), float("nan"), r)
    return tl.where(signbit(x) & odd, negate(r), r)


@jit
def integer_power(x, y):
    """x**y for integers, by squaring, wrapping on overflow; for y < 0, 1 / x**-y truncated."""
    result = x * 0 + 1
    base = x
    rest = y
    for _ in range(x.dtype.primitive_bitwidth):
        result = tl.where((rest & 1) != 0, result * base, result)
        base = base * base
        rest = rest >> 1
    if x.dtype.is_int_signed():
        unit = tl.where(x == -1, tl.where((y & 1) != 0, x, x * x), x * 0)
        result = tl.where(y < 0, tl.where(x == 1, x, unit), result)
    return result


# Hyperbolic functions and their inverses


@jit
def tanh(x):
    """Hyperbolic tangent."""
    t = expm1(-2 * tl.abs(x))
    return copysign(div_exact(-t, t + 2), x)


@jit
def sinh(x):
    """Hyperbolic sine."""
    a = tl.abs(x)
    t = expm1(a)
    half = exp_accurate(a * 0.5)  # e**a overflows before its half does
    r = tl.where(a < 20, 0.5 * (t + div_exact(t, t + 1)), (0.5 * half) * half)
    return copysign(r, x)


@jit
def cosh(x):
    """Hyperbolic cosine."""
    a = tl.abs(x)
    half = exp_accurate(a * 0.5)
    e = exp_accurate(a)
    return tl.where(a < 20, 0.5 * e + div_exact(typed(0.5, x), e), (0.5 * half) * half)


@jit
def asinh(x):
    """Inverse hyperbolic sine."""
    a = tl.abs(x)
    # above 1e8 the square is of no use and might overflow
    small = tl.minimum(a, 1e8, propagate_nan=tl.PropagateNan.ALL)
    square = small * small
    near = log1p(small + div_exact(square, 1 + sqrt_exact(square + 1)))
    return copysign(tl.where(a > 1e8, tl.log(a) + 0.6931471805599453, near), x)


@jit
def acosh(x):
    """Inverse hyperbolic cosine; NaN below 1."""
    t = tl.minimum(x, 1e8, propagate_nan=tl.PropagateNan.ALL) - 1
    near = log1p(t + sqrt_exact(t * (t + 2)))
    near = tl.where(x < 1, float("nan"), near)
    return tl.where(x > 1e8, tl.log(x) + 0.6931471805599453, near)


@jit
def atanh(x):
    """Inverse hyperbolic tangent; NaN outside of [-1, 1]."""
    a = tl.abs(x)
    return copysign(0.5 * log1p(div_exact(2 * a, 1 - a)), x)


# Inverse trigonometric functions


@jit
def _atan_positive(a):
    """atan(a) for a >= 0: reduced to abs(z) <= tan(pi / 8)."""
    big = a > 2.414213562373095
    middle = (a > 0.4142135623730951) & (big == 0)
    top = tl.where(big, -1.0, tl.where(middle, a - 1, a))
    bottom = tl.where(big, a, tl.where(middle, a + 1, 1.0))
    z = div_exact(top.to(a.dtype), bottom.to(a.dtype))
    w = z * z
    if a.dtype == tl.float64:
        p = (-0.019176887119062259 * w + 0.039231658295587191) * w - 0.050854497379402599
        p = ((p * w + 0.058581489128022099) * w - 0.06664511447381948) * w
        p = ((p + 0.076921831908260866) * w - 0.090909045781239019) * w
        p = ((p + 0.11111111015256362) * w - 0.14285714284666543) * w
        p = (p + 0.19999999999995521) * w - 0.3333333333333333
        # pi / 2 in two parts: the second is what the first lost to rounding
        low = tl.where(big, 6.123233995736766e-17, tl.where(middle, 3.061616997868383e-17, a * 0))
    else:
        p = (-0.0645192821 * w + 0.107437315) * w - 0.142639556
        p = (p * w + 0.199995405) * w - 0.333333318
        low = tl.where(big, -4.37113883e-8, tl.where(middle, -2.18556941e-8, w * 0))
    base = tl.where(big, 1.5707963267948966, tl.where(middle, 0.7853981633974483, w * 0))
    return base + (z + (z * (w * p) + low))


@jit
def atan(x):
    """Inverse tangent."""
    return copysign(_atan_positive(tl.abs(x)), x)


@jit
def atan2(y, x):
    """The angle of the point (x, y), in [-pi, pi]."""
    a = tl.abs(y)
    b = tl.abs(x)
    low = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    high = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    ratio = div_exact(low, tl.where(high == 0, 1.0, high).to(low.dtype))
    ratio = tl.where((low == high) & (high > 0), 1.0, ratio).to(low.dtype)
    r = _atan_positive(ratio)
    r = tl.where(a > b, 1.5707963267948966 - r, r)
    r = tl.where(signbit(x), 3.141592653589793 - r, r)
    return copysign(r, y)


@jit
def _asin_series(s, z):
    """asin(s) for z = s * s <= 1 / 4."""
    if s.dtype == tl.float64:
        p = (0.028757851367421565 * z - 0.014851887071247203) * z + 0.017400879442694022
        p = ((p * z + 0.0054575067186403583) * z + 0.010322814350185779) * z
        p = ((p + 0.011479177415184906) * z + 0.013971212973552933) * z
        p = ((p + 0.017352392720869973) * z + 0.022372172942149888) * z
        p = ((p + 0.030381944138531247) * z + 0.04464285714635543) * z
        p = (p + 0.074999999999984329) * z + 0.16666666666666668
    else:
        p = (0.0336908472 * z + 0.0171492384) * z + 0.0311006627
        p = ((p * z + 0.0445994015) * z + 0.0750009454) * z + 0.166666663
    return s + s * (z * p)


@jit
def asin(x):
    """Inverse sine; NaN outside of [-1, 1]."""
    a = tl.abs(x)
    far = 0.5 * (1 - a)
    z = tl.where(a > 0.5, far, a * a)
    r = _asin_series(tl.where(a > 0.5, sqrt_exact(far), a), z)
    return copysign(tl.where(a > 0.5, 1.5707963267948966 - 2 * r, r), x)


@jit
def acos(x):
    """Inverse cosine; NaN outside of [-1, 1]."""
    a = tl.abs(x)
    far = 0.5 * (1 - a)
    z = tl.where(a > 0.5, far, a * a)
    r = _asin_series(tl.where(a > 0.5, sqrt_exact(far), x), z)
    outer = tl.where(x > 0, 2 * r, 3.141592653589793 - 2 * r)
    return tl.where(a > 0.5, outer, 1.5707963267948966 - r)


# The error function's family


@jit
def erfc(x):
    """1 - erf(x), accurate in the tail.

    For a >= 0, (1 + 2 a) e**(a*a) erfc(a) is a smooth function of t = (a - 3) / (a + 3).
    Source: Shepherd and Laframboise, Mathematics of Computation 36 (1981), for the substitution.
    """
    a = tl.abs(x)
    if x.dtype == tl.float64:
        a = tl.minimum(a, 28.0, propagate_nan=tl.PropagateNan.ALL)
        t = (a - 3) / (a + 3)
        p = (-4.1825825144926722e-9 * t - 8.4340016556519746e-9) * t + 3.2870681633694287e-8
        p = ((p * t + 9.1651635298453784e-8) * t - 1.3113322169787246e-7) * t
        p = ((p - 6.047180034444154e-7) * t + 3.4908866785504096e-7) * t
        p = ((p + 3.4637798916718806e-6) * t - 7.2768869661578999e-7) * t
        p = ((p - 2.0096529953503007e-5) * t + 4.9482018665564795e-6) * t
        p = ((p + 0.00012509812224376388) * t - 0.00010515950712088183) * t
        p = ((p - 0.00077983203254647508) * t + 0.0018886903150891137) * t
        p = ((p + 0.0025293917876690922) * t - 0.023770514914554266) * t
        p = ((p + 0.068308027345841853) * t - 0.11927366341551179) * t
        p = ((p + 0.12964515870270443) * t - 0.047562294353446709) * t
        p = (p - 0.13562110612458068) * t + 1.2530080582697296
    else:
        a = tl.minimum(a, 10.5, propagate_nan=tl.PropagateNan.ALL)
        t = div_exact(a - 3, a + 3)
        p = (-0.000276390256 * t - 0.000795749233) * t + 0.00199637574
        p = ((p * t + 0.00257884536) * t - 0.023791348) * t
        p = ((p + 0.0682933674) * t - 0.119272474) * t
        p = ((p + 0.129646612) * t - 0.0475622894) * t
        p = (p - 0.135621145) * t + 1.25300806
    high = high_half(a)  # a * a in two parts: its rounding error would be scaled by a * a
    tail = exp_accurate(-high * high) * exp_accurate((high - a) * (high + a))
    r = tail * div_exact(p, 1 + 2 * a)
    return tl.where(x < 0, 2 - r, r)


@jit
def erfinv(x):
    """The inverse of erf; +-inf at +-1, NaN outside.

    erfinv(x) / x is smooth in w = -log(1 - x * x). float64 adds one step of Halley's method.
    Source: Giles, Approximating the erfinv function (2012), for the variable w.
    """
    w = -tl.log((1 - x) * (1 + x))
    u = tl.minimum(w, 5.0, propagate_nan=tl.PropagateNan.ALL) - 2.5
    p = (-8.93192597e-9 * u + 2.33359672e-8) * u + 4.68131348e-7
    p = ((p * u - 3.46398527e-6) * u - 4.97241969e-6) * u
    p = ((p + 0.000218349386) * u - 0.00125272639) * u
    p = ((p - 0.00417739288) * u + 0.246640279) * u + 1.50140936
    v = sqrt_exact(tl.maximum(tl.minimum(w, 38.0), 5.0)) - 3
    if x.dtype == tl.float64:
        q = (-3.50218816e-6 * v + 5.40663031e-5) * v - 0.000359311546
        q = ((q * v + 0.00135754795) * v - 0.00328024252) * v
        q = ((q + 0.00557899734) * v - 0.00769983696) * v
        q = ((q + 0.00948626689) * v + 1.00167474) * v + 2.83297506
    else:
        q = (0.000107638454 * v - 0.000301416563) * v - 4.50486734e-5
        q = ((q * v + 0.00147444809) * v - 0.00360360179) * v
        q = ((q + 0.005691305) * v - 0.00763593195) * v
        q = ((q + 0.00944473239) * v + 1.00167488) * v + 2.83297681
    a = tl.abs(x)
    y = a * tl.where(w < 5, p, q)
    if x.dtype == tl.float64:
        miss = tl.where(a < 0.5, tl.erf(y) - a, (1 - a) - erfc(y))
        step = miss / (1.1283791670955126 * tl.exp(-y * y))
        y = y - step / (1 + y * step)
    y = tl.where(a == 1, float("inf"), tl.where(w != w, w, y))
    return copysign(y, x)
