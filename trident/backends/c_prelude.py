"""C helpers of translated scalar functions: what C lacks, or has only as calls.

Every function is a straight line of arithmetic and selects, so a loop that calls it vectorises (gcc
12, ``-O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp-simd``). Results of exp, exp2,
log, log2, sin, cos and erf are within about 2 ulp, those of erfc within 6, subnormal numbers
included; NaN, infinities and signed zeros come out as in C. ``__builtin_fma`` is one instruction
where the machine has it (``-march=native``), and sin and cos rely on its single rounding.

The polynomials are our own: interpolants at Chebyshev nodes, computed with 50 digits.
Sources: Cody and Waite, Software Manual for the Elementary Functions (1980), for the reductions of
exp and sin; Tang, ACM TOMS 16 (1990), and FreeBSD's msun, for the form of the logarithm.

``TEXT`` is C: blocks that blank lines divide, one function a block. ``helpers(text)`` gives
those that a text needs.
"""

from __future__ import annotations

import functools
import re

HEADER = """\
#include <math.h>
#include <stdint.h>
#define INLINE static inline __attribute__((always_inline))
"""

TEXT = r"""
INLINE uint32_t t_bits_f32(float x) {
    uint32_t r;
    __builtin_memcpy(&r, &x, 4);
    return r;
}

INLINE float t_from_bits_f32(uint32_t x) {
    float r;
    __builtin_memcpy(&r, &x, 4);
    return r;
}

INLINE uint64_t t_bits_f64(double x) {
    uint64_t r;
    __builtin_memcpy(&r, &x, 8);
    return r;
}

INLINE double t_from_bits_f64(uint64_t x) {
    double r;
    __builtin_memcpy(&r, &x, 8);
    return r;
}

INLINE int64_t t_f64_to_i64(double x) {  /* truncated; INT64_MIN where that does not fit, as x86 */
#if defined(__x86_64__) && !defined(__AVX512DQ__)
    /* no vector instruction: shift the significand */
    const uint64_t u = t_bits_f64(x);
    const int64_t shift = (int64_t)(u >> 52 & 2047) - 1075;
    const uint64_t m = (u & 0xfffffffffffffull) | 0x10000000000000ull;
    const uint64_t left = m << (shift & 63);
    const uint64_t right = shift < -63 ? 0 : m >> (-shift & 63);
    const uint64_t size = shift >= 0 ? left : right;
    const uint64_t sign = -(u >> 63);
    return shift > 10 ? INT64_MIN : (int64_t)((size ^ sign) - sign);
#else
    return x >= -0x1p63 && x < 0x1p63 ? (int64_t)x : INT64_MIN;
#endif
}

INLINE double t_i64_to_f64(int64_t x) {  /* two exact halves and one rounding */
#if defined(__x86_64__) && !defined(__AVX512DQ__)
    const uint64_t u = (uint64_t)x;
    const double low = t_from_bits_f64((u & 0xffffffffull) | 0x4330000000000000ull);
    const double high = t_from_bits_f64((u >> 32) ^ 0x4530000080000000ull);
    return (high - 0x1.00000801p84) + low;
#else
    return (double)x;
#endif
}

INLINE float t_i64_to_f32(int64_t x) {
    /* from 2^53 on, the bits that float64 would round off become one sticky bit */
    const uint64_t u = (uint64_t)x;
    const uint64_t size = x < 0 ? -u : u;
    const uint64_t sticky = (u & ~0x7ffull) | ((u & 0x7ff) != 0 ? 0x800 : 0);
    return (float)t_i64_to_f64((int64_t)(size >> 53 != 0 ? sticky : u));
}

INLINE int32_t t_div_i32(int32_t x, int32_t y) {
    /* truncated; the float64 quotient of int32 numbers never rounds up to a whole number */
    const double q = (double)x / (double)(y == 0 ? 1 : y);
    const int32_t r = (int32_t)(q == 2147483648.0 ? -q : q);
    return y == 0 ? 0 : r;
}

INLINE int32_t t_mod_i32(int32_t x, int32_t y) {
    const uint32_t r = (uint32_t)x - (uint32_t)t_div_i32(x, y) * (uint32_t)y;
    return y == 0 ? 0 : (int32_t)r;
}

INLINE int64_t t_div_i64(int64_t x, int64_t y) {
    /* 0 for y = 0, as numpy; the quotient by -1 wraps where C would trap */
    const int64_t r = x / (y == 0 || y == -1 ? 1 : y);
    return y == 0 ? 0 : y == -1 ? (int64_t)(0 - (uint64_t)x) : r;
}

INLINE int64_t t_mod_i64(int64_t x, int64_t y) {
    const int64_t r = x % (y == 0 || y == -1 ? 1 : y);
    return y == 0 || y == -1 ? 0 : r;
}

INLINE uint64_t t_div_u64(uint64_t x, uint64_t y) {
    return y == 0 ? 0 : x / (y == 0 ? 1 : y);
}

INLINE uint64_t t_mod_u64(uint64_t x, uint64_t y) {
    return y == 0 ? 0 : x % (y == 0 ? 1 : y);
}

INLINE uint64_t t_umulhi_u64(uint64_t x, uint64_t y) {
    const uint64_t a = x & 0xffffffffull, b = x >> 32, c = y & 0xffffffffull, d = y >> 32;
    const uint64_t low = a * c, middle = b * c + (low >> 32);
    const uint64_t other = a * d + (middle & 0xffffffffull);
    return b * d + (middle >> 32) + (other >> 32);
}

INLINE float t_maximum_f32(float x, float y) {  /* NaN if either is */
    const float r = x < y ? y : x;
    return y != y ? y : r;
}

INLINE double t_maximum_f64(double x, double y) {
    const double r = x < y ? y : x;
    return y != y ? y : r;
}

INLINE float t_minimum_f32(float x, float y) {
    const float r = y < x ? y : x;
    return y != y ? y : r;
}

INLINE double t_minimum_f64(double x, double y) {
    const double r = y < x ? y : x;
    return y != y ? y : r;
}

INLINE float t_fmax_f32(float x, float y) {  /* the number where one is NaN */
    const float r = y < x ? x : y;
    return y != y ? x : r;
}

INLINE double t_fmax_f64(double x, double y) {
    const double r = y < x ? x : y;
    return y != y ? x : r;
}

INLINE float t_fmin_f32(float x, float y) {
    const float r = x < y ? x : y;
    return y != y ? x : r;
}

INLINE double t_fmin_f64(double x, double y) {
    const double r = x < y ? x : y;
    return y != y ? x : r;
}

INLINE float t_power_of_two_f32(float n) {
    /* integral n in [-126, 127]: the low bits of n + 1.5 * 2^23 are those of n */
    return t_from_bits_f32((t_bits_f32(n + 0x1.8p23f) + 127) << 23);
}

INLINE double t_power_of_two_f64(double n) {
    return t_from_bits_f64((t_bits_f64(n + 0x1.8p52) + 1023) << 52);
}

INLINE float t_scale_f32(float x, float n) {  /* x * 2^n, in two steps for subnormal results */
    const float half = __builtin_fmaf(n, 0.5f, 0x1.8p23f) - 0x1.8p23f;
    return x * t_power_of_two_f32(half) * t_power_of_two_f32(n - half);
}

INLINE double t_scale_f64(double x, double n) {
    const double half = __builtin_fma(n, 0.5, 0x1.8p52) - 0x1.8p52;
    return x * t_power_of_two_f64(half) * t_power_of_two_f64(n - half);
}

INLINE float t_exp_f32(float x) {
    x = x < -104.0f ? -104.0f : x;  /* in this form NaN stays, and it is one instruction */
    x = 89.0f < x ? 89.0f : x;
    const float n = __builtin_fmaf(x, 1.44269502f, 0x1.8p23f) - 0x1.8p23f;
    float r = __builtin_fmaf(n, -0.693147182f, x);
    r = __builtin_fmaf(n, 1.90465421e-9f, r);
    float p = 1.3926176e-3f;
    p = __builtin_fmaf(p, r, 8.363173e-3f);
    p = __builtin_fmaf(p, r, 4.1666556e-2f);
    p = __builtin_fmaf(p, r, 1.6666578e-1f);
    p = __builtin_fmaf(p, r, 0.5f);
    p = __builtin_fmaf(p, r * r, r) + 1.0f;
    return t_scale_f32(p, n);
}

INLINE double t_exp_f64(double x) {
    x = x < -746.0 ? -746.0 : x;
    x = 710.0 < x ? 710.0 : x;
    const double n = __builtin_fma(x, 1.4426950408889634, 0x1.8p52) - 0x1.8p52;
    double r = __builtin_fma(n, -0.6931471805599453, x);
    r = __builtin_fma(n, -2.3190468138462996e-17, r);
    double p = 2.5100375832561234e-08;
    p = __builtin_fma(p, r, 2.7620075879983367e-07);
    p = __builtin_fma(p, r, 2.7557268480310024e-06);
    p = __builtin_fma(p, r, 2.4801521322368692e-05);
    p = __builtin_fma(p, r, 0.00019841269863040545);
    p = __builtin_fma(p, r, 0.0013888888917196719);
    p = __builtin_fma(p, r, 0.008333333333330065);
    p = __builtin_fma(p, r, 0.041666666666624164);
    p = __builtin_fma(p, r, 0.16666666666666669);
    p = __builtin_fma(p, r, 0.5000000000000001);
    p = __builtin_fma(p, r * r, r) + 1.0;
    return t_scale_f64(p, n);
}

INLINE float t_exp2_f32(float x) {
    x = x < -151.0f ? -151.0f : x;
    x = 129.0f < x ? 129.0f : x;
    const float n = (x + 0x1.8p23f) - 0x1.8p23f;
    const float r = x - n;
    float p = 1.5453163e-4f;
    p = __builtin_fmaf(p, r, 1.3390863e-3f);
    p = __builtin_fmaf(p, r, 9.618083e-3f);
    p = __builtin_fmaf(p, r, 5.550357e-2f);
    p = __builtin_fmaf(p, r, 2.402265e-1f);
    p = __builtin_fmaf(p, r, 6.931472e-1f);
    return t_scale_f32(__builtin_fmaf(p, r, 1.0f), n);
}

INLINE double t_exp2_f64(double x) {
    x = x < -1076.0 ? -1076.0 : x;
    x = 1025.0 < x ? 1025.0 : x;
    const double n = (x + 0x1.8p52) - 0x1.8p52;
    const double r = x - n;
    double p = 4.4549605981865186e-10;
    p = __builtin_fma(p, r, 7.072585949269223e-09);
    p = __builtin_fma(p, r, 1.0178062445845774e-07);
    p = __builtin_fma(p, r, 1.321544258792169e-06);
    p = __builtin_fma(p, r, 1.525273382983612e-05);
    p = __builtin_fma(p, r, 0.0001540353044173605);
    p = __builtin_fma(p, r, 0.0013333558146416936);
    p = __builtin_fma(p, r, 0.009618129107606888);
    p = __builtin_fma(p, r, 0.0555041086648216);
    p = __builtin_fma(p, r, 0.24022650695910097);
    p = __builtin_fma(p, r, 0.6931471805599453);
    return t_scale_f64(__builtin_fma(p, r, 1.0), n);
}

INLINE float t_logarithm_f32(float x, int base) {
    /* x = 2^n (1 + f) with 1 + f from sqrt(1/2) to sqrt(2); base 2, or else e */
    const float y = x < 0x1p-126f ? x * 0x1p23f : x;
    const uint32_t u = t_bits_f32(y) + (0x3f800000 - 0x3f3504f3);
    const float n = (float)((int32_t)(u >> 23) - 127) - (x < 0x1p-126f ? 23.0f : 0.0f);
    const float f = t_from_bits_f32((u & 0x7fffff) + 0x3f3504f3) - 1.0f;
    float p = 6.971612e-2f;
    p = __builtin_fmaf(p, f, -1.1479734e-1f);
    p = __builtin_fmaf(p, f, 1.168542e-1f);
    p = __builtin_fmaf(p, f, -1.2425687e-1f);
    p = __builtin_fmaf(p, f, 1.4249058e-1f);
    p = __builtin_fmaf(p, f, -1.6667803e-1f);
    p = __builtin_fmaf(p, f, 2.0000716e-1f);
    p = __builtin_fmaf(p, f, -2.4999997e-1f);
    p = __builtin_fmaf(p, f, 3.333333e-1f);
    const float square = f * f, half = 0.5f * square, cube = square * f;
    float r;
    if (base == 2) {
        r = f - __builtin_fmaf(-cube, p, half);
        r = __builtin_fmaf(r, 1.44269502f, __builtin_fmaf(r, 1.92596299e-8f, n));
    } else {
        r = f - (half - __builtin_fmaf(cube, p, n * 1.42860677e-6f));
        r = __builtin_fmaf(n, 0x1.62e4p-1f, r);
    }
    const float special = x == 0 ? -__builtin_inff() : x < 0 ? __builtin_nanf("") : x;
    return (x > 0) & (x < __builtin_inff()) ? r : special;
}

INLINE double t_logarithm_f64(double x, int base) {
    const double y = x < 0x1p-1022 ? x * 0x1p52 : x;
    const uint64_t u = t_bits_f64(y) + (0x3ff0000000000000ull - 0x3fe6a09e667f3bcdull);
    const double biased = t_from_bits_f64(u >> 52 | 0x4330000000000000ull) - 0x1p52;
    const double n = biased - (x < 0x1p-1022 ? 1075.0 : 1023.0);
    const double f = t_from_bits_f64((u & 0xfffffffffffffull) + 0x3fe6a09e667f3bcdull) - 1.0;
    const double s = f / (2.0 + f), z = s * s;
    double p = 0.13086626147840102;
    p = __builtin_fma(p, z, 0.13268773138656886);
    p = __builtin_fma(p, z, 0.15386239702814658);
    p = __builtin_fma(p, z, 0.18181795640132906);
    p = __builtin_fma(p, z, 0.22222222391713917);
    p = __builtin_fma(p, z, 0.28571428570803614);
    p = __builtin_fma(p, z, 0.4000000000000088);
    p = __builtin_fma(p, z, 0.6666666666666666);
    const double half = 0.5 * f * f, tail = __builtin_fma(p, z, half);
    double r;
    if (base == 2) {
        r = f - __builtin_fma(-s, tail, half);
        r = __builtin_fma(r, 1.4426950408889634, __builtin_fma(r, 2.0355273740931033e-17, n));
    } else {
        r = f - (half - __builtin_fma(s, tail, n * 5.497923018708371e-14));
        r = __builtin_fma(n, 0x1.62e42fefa38p-1, r);
    }
    const double special = x == 0 ? -__builtin_inf() : x < 0 ? __builtin_nan("") : x;
    return (x > 0) & (x < __builtin_inf()) ? r : special;
}

INLINE float t_log_f32(float x) {
    return t_logarithm_f32(x, 0);
}

INLINE double t_log_f64(double x) {
    return t_logarithm_f64(x, 0);
}

INLINE float t_log2_f32(float x) {
    return t_logarithm_f32(x, 2);
}

INLINE double t_log2_f64(double x) {
    return t_logarithm_f64(x, 2);
}

INLINE float t_erf_f32(float x) {
    const float a = __builtin_fabsf(x), z = x * x;
    float near = 7.875875e-05f;
    near = __builtin_fmaf(near, z, -8.0168643e-4f);
    near = __builtin_fmaf(near, z, 5.1890872e-3f);
    near = __builtin_fmaf(near, z, -2.6854211e-2f);
    near = __builtin_fmaf(near, z, 1.1283594e-1f);
    near = __builtin_fmaf(near, z, -3.7612626e-1f);
    near = __builtin_fmaf(near, z, 1.2837917e-1f);
    near = __builtin_fmaf(near, a, a);
    const float t = (4.0f < a ? 4.0f : a) - 2.5f;
    float far = 8.8379664e-07f;
    far = __builtin_fmaf(far, t, 4.8799006e-07f);
    far = __builtin_fmaf(far, t, -1.5667485e-05f);
    far = __builtin_fmaf(far, t, 1.7837625e-05f);
    far = __builtin_fmaf(far, t, 8.093342e-05f);
    far = __builtin_fmaf(far, t, -2.70836e-4f);
    far = __builtin_fmaf(far, t, 2.5899912e-4f);
    far = __builtin_fmaf(far, t, 5.606544e-4f);
    far = __builtin_fmaf(far, t, -2.797779e-3f);
    far = __builtin_fmaf(far, t, 6.1089164e-3f);
    far = __builtin_fmaf(far, t, -8.622514e-3f);
    far = __builtin_fmaf(far, t, 8.351824e-3f);
    far = __builtin_fmaf(far, t, -5.4457025e-3f);
    far = __builtin_fmaf(far, t, 2.1781803e-3f);
    far = __builtin_fmaf(far, t, 9.99593e-1f);
    far = a >= 3.92f ? 1.0f : far;
    return __builtin_copysignf(a < 1.0f ? near : far, x);
}

INLINE double t_erf_f64(double x) {  /* from 1 on: 1 - e^(-a a) (a polynomial of 1 / (a + 3)) */
    const double size = __builtin_fabs(x), z = x * x;
    double near = -7.795898827002142e-10;
    near = __builtin_fma(near, z, 1.3720064546777686e-08);
    near = __builtin_fma(near, z, -1.6208483801871705e-07);
    near = __builtin_fma(near, z, 1.6447424703317362e-06);
    near = __builtin_fma(near, z, -1.492473690741966e-05);
    near = __builtin_fma(near, z, 0.00012055294904839707);
    near = __builtin_fma(near, z, -0.0008548325975389692);
    near = __builtin_fma(near, z, 0.0052239776071164225);
    near = __builtin_fma(near, z, -0.02686617064323777);
    near = __builtin_fma(near, z, 0.11283791670945006);
    near = __builtin_fma(near, z, -0.37612638903183543);
    near = __builtin_fma(near, z, 0.12837916709551256);
    near = __builtin_fma(near, size, size);
    const double a = 6.0 < size ? 6.0 : size;
    const double t = 1.0 / (a + 3.0) - 0.18055555555555555;
    double p = 100321.025996593;
    p = __builtin_fma(p, t, -6922.7957731014685);
    p = __builtin_fma(p, t, -20442.70512009431);
    p = __builtin_fma(p, t, 1456.4213810985038);
    p = __builtin_fma(p, t, 4347.306735395225);
    p = __builtin_fma(p, t, 120.51586310943216);
    p = __builtin_fma(p, t, -1024.4944252854825);
    p = __builtin_fma(p, t, -311.42180250033323);
    p = __builtin_fma(p, t, 174.4308733503767);
    p = __builtin_fma(p, t, 205.31981287766445);
    p = __builtin_fma(p, t, 106.60599383674045);
    p = __builtin_fma(p, t, 37.96125560897377);
    p = __builtin_fma(p, t, 10.305469638847914);
    p = __builtin_fma(p, t, 2.222800909838916);
    p = __builtin_fma(p, t, 0.20798329133342885);
    const double far = __builtin_fma(-t_exp_f64(-a * a), p, 1.0);
    return __builtin_copysign(size < 1.0 ? near : far, x);
}

INLINE float t_erfc_f32(float x) {  /* e^(-a a) w (a polynomial of w), w = 1 / (a + 2.5) */
    const float size = __builtin_fabsf(x), a = 10.5f < size ? 10.5f : size;
    const float w = 1.0f / (a + 2.5f), t = w - 0.23846153914928436f;
    float p = -3.119121e+02f;
    p = __builtin_fmaf(p, t, 1.4812872e+02f);
    p = __builtin_fmaf(p, t, 1.03854355e+02f);
    p = __builtin_fmaf(p, t, -5.508645e+01f);
    p = __builtin_fmaf(p, t, -4.1695408e+01f);
    p = __builtin_fmaf(p, t, 1.1114256e+01f);
    p = __builtin_fmaf(p, t, 2.3663605e+01f);
    p = __builtin_fmaf(p, t, 1.3957861e+01f);
    p = __builtin_fmaf(p, t, 4.99488e+00f);
    p = __builtin_fmaf(p, t, 1.2268136e+00f);
    const float square = a * a, low = __builtin_fmaf(a, a, -square);
    float e = t_exp_f32(-square);
    e = __builtin_fmaf(-e, low, e);  /* what the square lost to rounding */
    const float r = e * (w * p);
    return x < 0 ? 2.0f - r : r;
}

INLINE double t_erfc_f64(double x) {
    const double size = __builtin_fabs(x), a = 28.0 < size ? 28.0 : size;
    const double w = 1.0 / (a + 3.0), t = w - 0.1827957034111023;
    double p = -155620710.6131834;
    p = __builtin_fma(p, t, -202370923.73322585);
    p = __builtin_fma(p, t, 84931739.3775093);
    p = __builtin_fma(p, t, 42512269.79960049);
    p = __builtin_fma(p, t, -21679344.957183503);
    p = __builtin_fma(p, t, -3851327.2677303567);
    p = __builtin_fma(p, t, 3936831.7220691415);
    p = __builtin_fma(p, t, -8277.61840310912);
    p = __builtin_fma(p, t, -617646.3651972145);
    p = __builtin_fma(p, t, 79101.542386664);
    p = __builtin_fma(p, t, 96080.30660150285);
    p = __builtin_fma(p, t, -20905.283597724236);
    p = __builtin_fma(p, t, -16847.19413161977);
    p = __builtin_fma(p, t, 3981.6769077763142);
    p = __builtin_fma(p, t, 3648.819102074726);
    p = __builtin_fma(p, t, -448.7277223792758);
    p = __builtin_fma(p, t, -939.0554741849651);
    p = __builtin_fma(p, t, -158.09901241986347);
    p = __builtin_fma(p, t, 198.30346155342195);
    p = __builtin_fma(p, t, 171.38183459352877);
    p = __builtin_fma(p, t, 77.59087028482486);
    p = __builtin_fma(p, t, 24.74357307799593);
    p = __builtin_fma(p, t, 6.040800277154923);
    p = __builtin_fma(p, t, 1.1653164436814043);
    const double square = a * a, low = __builtin_fma(a, a, -square);
    double e = t_exp_f64(-square);
    e = __builtin_fma(-e, low, e);
    const double r = e * (w * p);
    return x < 0 ? 2.0 - r : r;
}

#define T_REACH 0x1p49  /* sin and cos reduce their argument exactly up to here */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
/* Arguments beyond T_REACH go to libm, lane by lane; -0.0, which adds nothing, is returned for the
   others. gcc would make a loop over the lanes of this. These are its vector versions, by the names
   of the x86 vector function ABI, with one test for all lanes. */
#define T_HUGE(name, V, I, N, isa, f)                                                   \
    __attribute__((target(isa), weak, visibility("hidden"))) V name(V x) {              \
        V out = -(V){0};                                                                \
        I big = (x >= T_REACH) | (x <= -T_REACH) | (x != x);                            \
        int64_t any = 0;                                                                \
        for (int lane = 0; lane < N; lane++) any |= big[lane];                          \
        if (__builtin_expect(any != 0, 0))                                              \
            for (int lane = 0; lane < N; lane++)                                        \
                if (big[lane]) out[lane] = f(x[lane]);                                  \
        return out;                                                                     \
    }
#define T_HUGE_FUNCTION(f)                                                              \
    __attribute__((simd("notinbranch"), const, visibility("hidden")))                   \
    double t_huge_##f(double x);                                                        \
    __attribute__((weak, visibility("hidden")))                                         \
    double t_huge_one_##f(double x) __asm__("t_huge_" #f);                              \
    double t_huge_one_##f(double x) {                                                   \
        return __builtin_fabs(x) < T_REACH ? -0.0 : f(x);                               \
    }                                                                                   \
    T_HUGE(_ZGVbN2v_t_huge_##f, t_double2, t_int2, 2, "sse4.2", f)                      \
    T_HUGE(_ZGVcN4v_t_huge_##f, t_double4, t_int4, 4, "avx", f)                         \
    T_HUGE(_ZGVdN4v_t_huge_##f, t_double4, t_int4, 4, "avx2", f)                        \
    T_HUGE(_ZGVeN8v_t_huge_##f, t_double8, t_int8, 8, "avx512f", f)
typedef double t_double2 __attribute__((vector_size(16)));
typedef double t_double4 __attribute__((vector_size(32)));
typedef double t_double8 __attribute__((vector_size(64)));
typedef int64_t t_int2 __attribute__((vector_size(16)));
typedef int64_t t_int4 __attribute__((vector_size(32)));
typedef int64_t t_int8 __attribute__((vector_size(64)));
#else
#define T_HUGE_FUNCTION(f)                                                              \
    static __attribute__((const, unused)) double t_huge_##f(double x) {                 \
        return __builtin_fabs(x) < T_REACH ? -0.0 : f(x);                               \
    }
#endif
T_HUGE_FUNCTION(sin)
T_HUGE_FUNCTION(cos)

INLINE float t_trigonometric_f32(float y, int quarter) {  /* sin; cos for quarter 1; in float64 */
    const double x = (double)y;
    const double t = __builtin_fma(x, 0.6366197723675814, 0x1.8p52), n = t - 0x1.8p52;
    const double r = __builtin_fma(n, -0x1.1a62633145c07p-54,
                                   __builtin_fma(n, -0x1.921fb54442d18p+0, x));
    const double z = r * r;
    double s = 2.724992580305979e-06;
    s = __builtin_fma(s, z, -0.00019840086735384846);
    s = __builtin_fma(s, z, 0.008333331874710208);
    s = __builtin_fma(s, z, -0.1666666666385529);
    s = __builtin_fma(s * z, r, r);
    double c = -2.730095920390147e-07;
    c = __builtin_fma(c, z, 2.480060037715673e-05);
    c = __builtin_fma(c, z, -0.001388888767201679);
    c = __builtin_fma(c, z, 0.0416666666643212);
    c = __builtin_fma(c, z, -0.5);
    c = __builtin_fma(c, z, 1.0);
    const uint64_t q = t_bits_f64(t) + (uint64_t)quarter;
    const double v = (q & 1) != 0 ? c : s;
    double w = t_from_bits_f64(t_bits_f64(v) ^ (q & 2) << 62);
    w = quarter == 0 && x == 0 ? x : w;
    w = __builtin_fabs(x) < T_REACH ? w : -0.0;
    w += quarter ? t_huge_cos(x) : t_huge_sin(x);  /* added, so that the call is in no branch */
    return (float)w;
}

INLINE double t_trigonometric_f64(double x, int quarter) {
    const double t = __builtin_fma(x, 0.6366197723675814, 0x1.8p52), n = t - 0x1.8p52;
    /* pi / 2 in three parts; the first step is exact, low is what the second rounds off */
    const double first = __builtin_fma(n, -0x1.921fb54442d18p+0, x);
    const double part = n * 0x1.1a62633145c07p-54;
    const double part_low = __builtin_fma(n, 0x1.1a62633145c07p-54, -part);
    const double r = first - part, back = r - first;
    const double rest = (first - (r - back)) - (part + back);
    const double low = __builtin_fma(n, 0x1.f1976b7ed8fbcp-110, rest - part_low);
    const double z = r * r, half = 0.5 * z, one = 1.0 - half;
    double s = 1.5918129294866608e-10;
    s = __builtin_fma(s, z, -2.5051131845003624e-08);
    s = __builtin_fma(s, z, 2.755731610255244e-06);
    s = __builtin_fma(s, z, -0.00019841269836758574);
    s = __builtin_fma(s, z, 0.008333333333330948);
    s = __builtin_fma(s, z, -0.16666666666666666);
    s = r + __builtin_fma(s * z, r, low * one);
    double c = -1.1382632425517172e-11;
    c = __builtin_fma(c, z, 2.08761462684032e-09);
    c = __builtin_fma(c, z, -2.7557317271729793e-07);
    c = __builtin_fma(c, z, 2.480158729876569e-05);
    c = __builtin_fma(c, z, -0.0013888888888887398);
    c = __builtin_fma(c, z, 0.041666666666666664);
    c = one + (((1.0 - one) - half) + __builtin_fma(c * z, z, -r * low));
    const uint64_t q = t_bits_f64(t) + (uint64_t)quarter;
    const double v = (q & 1) != 0 ? c : s;
    double w = t_from_bits_f64(t_bits_f64(v) ^ (q & 2) << 62);
    w = quarter == 0 && x == 0 ? x : w;
    w = __builtin_fabs(x) < T_REACH ? w : -0.0;
    w += quarter ? t_huge_cos(x) : t_huge_sin(x);  /* added, so that the call is in no branch */
    return w;
}

INLINE double t_sin_f64(double x) {
    return t_trigonometric_f64(x, 0);
}

INLINE double t_cos_f64(double x) {
    return t_trigonometric_f64(x, 1);
}

INLINE float t_sin_f32(float x) {
    return t_trigonometric_f32(x, 0);
}

INLINE float t_cos_f32(float x) {
    return t_trigonometric_f32(x, 1);
}
"""


@functools.cache
def _blocks() -> dict[str, str]:
    """Each helper's text by its name, in order: a helper uses only those above it."""
    found = {}
    for block in TEXT.strip().split("\n\n"):
        names = re.findall(r"^INLINE \w+ (t_\w+)|^T_HUGE_FUNCTION\((\w+)\)$", block, re.M)
        for inline, huge in names:
            found[inline or f"t_huge_{huge}"] = block
    return found


def helpers(text: str) -> str:
    """The helpers that the C text ``text`` names, and those that they use, in order."""
    blocks = _blocks()
    needed: set[str] = set()
    waiting = set(re.findall(r"\b[tT]_\w+", text))
    while waiting:
        name = waiting.pop()
        if name in blocks and name not in needed:
            needed.add(name)
            waiting |= set(re.findall(r"\b[tT]_\w+", blocks[name]))
    # two helpers may share a block
    found = dict.fromkeys(block for name, block in blocks.items() if name in needed)
    return "\n\n".join(found)
