"""Rotary position embedding: pairs of a head's features, turned by an angle that grows with t.

    y1 = x1 cos - x2 sin,   y2 = x2 cos + x1 sin    x (B, H, T, D), cos and sin (T, D / 2) -> y as x

x1 and x2 are the first and the second half of the last axis: feature d is paired with d + D / 2.
This is the order of GPT-NeoX and of LLaMA in Hugging Face's files; LLaMA's own code and RoFormer
pair neighbours (2 d, 2 d + 1), and weights of one order have to be permuted for the other.

In plain ops these are four passes over memory: the halves are swapped, there are two products and
a sum. Here x is read once and y is written once. A rotation is undone by the opposite angle, so
that the gradient of x is the same kernel with the sign of sin turned: it needs nothing but the
tables.

cos and sin are constants in most models. Where they want gradients (learned frequencies), a second
kernel forms

    dcos = the sum of g1 x1 + g2 x2,    dsin = the sum of g2 x1 - g1 x2,    over all B H heads

One program owns its part of the tables and walks over the heads, so that the sum has one order and
needs no atomics.

Source: Su et al., "RoFormer: enhanced transformer with rotary position embedding",
arXiv:2104.09864.
"""

from __future__ import annotations

import numpy as np
from _bench import bench, main

import trident
from trident.errors import wrong
from trident.lang import cdiv, next_power_of_2, tl


@trident.jit
def read(ptr, mask):
    """Half types are computed in float32."""
    x = tl.load(ptr, mask=mask, other=0.0)
    return x.to(tl.float32) if x.dtype.primitive_bitwidth == 16 else x


@trident.kernel(strided=("x_ptr", "cos_ptr", "sin_ptr"))
def rotate_kernel(
    x_ptr,  # (B, H, T, 2 half), any strides
    cos_ptr,  # (T, half), any strides
    sin_ptr,  # (T, half), any strides
    out_ptr,  # (B, H, T, 2 half) contiguous
    H,
    T,
    half,
    x_b,
    x_h,
    x_t,
    x_d,
    cos_t,
    cos_d,
    sin_t,
    sin_d,
    SIGN: tl.constexpr,  # 1 turns by the angle, -1 back
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    head = tl.program_id(0)
    t = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    d = (tl.program_id(2) * COLS + tl.arange(0, COLS))[None, :]
    mask = (t < T) & (d < half)
    cos = read(cos_ptr + t * cos_t + d * cos_d, mask)
    sin = read(sin_ptr + t * sin_t + d * sin_d, mask) * SIGN
    x_ptr += (head // H).to(tl.int64) * x_b + (head % H).to(tl.int64) * x_h
    x1 = read(x_ptr + t * x_t + d * x_d, mask)
    x2 = read(x_ptr + t * x_t + (d + half) * x_d, mask)
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    out_ptr += (head.to(tl.int64) * T + t) * (2 * half)
    tl.store(out_ptr + d, y1.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + d + half, y2.to(out_ptr.dtype.element_ty), mask=mask)


@trident.kernel(strided=("g_ptr", "x_ptr"))
def tables_kernel(
    g_ptr,  # (B, H, T, 2 half), any strides
    x_ptr,  # (B, H, T, 2 half), any strides
    dcos_ptr,  # (T, half) contiguous, or None
    dsin_ptr,  # (T, half) contiguous, or None
    heads,  # B H
    H,
    T,
    half,
    g_b,
    g_h,
    g_t,
    g_d,
    x_b,
    x_h,
    x_t,
    x_d,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    t = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    d = (tl.program_id(1) * COLS + tl.arange(0, COLS))[None, :]
    mask = (t < T) & (d < half)
    dcos = tl.zeros((ROWS, COLS), ACC)
    dsin = tl.zeros((ROWS, COLS), ACC)
    for head in range(0, heads):
        b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
        g = g_ptr + b * g_b + h * g_h + t * g_t
        x = x_ptr + b * x_b + h * x_h + t * x_t
        g1, g2 = read(g + d * g_d, mask), read(g + (d + half) * g_d, mask)
        x1, x2 = read(x + d * x_d, mask), read(x + (d + half) * x_d, mask)
        dcos += g1 * x1 + g2 * x2
        dsin += g2 * x1 - g1 * x2
    if dcos_ptr is not None:
        tl.store(dcos_ptr + t * half + d, dcos.to(dcos_ptr.dtype.element_ty), mask=mask)
    if dsin_ptr is not None:
        tl.store(dsin_ptr + t * half + d, dsin.to(dsin_ptr.dtype.element_ty), mask=mask)


def tile(T, half):
    """About 1024 pairs a program: all of a head's features, then as many positions as fit."""
    cols = min(next_power_of_2(half), 128)
    return min(next_power_of_2(T), 1024 // cols), cols


def rotate(out, x, cos, sin, sign):
    B, H, T, D = x.shape
    rows, cols = tile(T, D // 2)
    rotate_kernel[B * H, cdiv(T, rows), cdiv(D // 2, cols)](
        x, cos, sin, out, H, T, D // 2, *x.strides, *cos.strides, *sin.strides,
        SIGN=sign, ROWS=rows, COLS=cols,
    )  # fmt: skip


def forward(out, x, cos, sin):
    rotate(out, x, cos, sin, 1)


def backward(dx, dcos, dsin, g, x, cos, sin):
    if dx is not None:
        rotate(dx, g, cos, sin, -1)
    if dcos is not None or dsin is not None:
        B, H, T, D = x.shape
        rows, cols = tile(T, D // 2)
        tables_kernel[cdiv(T, rows), cdiv(D // 2, cols)](
            g, x, dcos, dsin, B * H, H, T, D // 2, *g.strides, *x.strides,
            ACC=x.dtype.compute, ROWS=rows, COLS=cols,
        )  # fmt: skip


@trident.fused(forward=forward, backward=backward)
def rotary(x, cos, sin):
    """Turn the pairs (x1, x2), the two halves of the last axis, by the angle of their position.

    x (B, H, T, D), any floating dtype; cos and sin (T, D / 2) in float32 (float64 for a float64 x)
    or in x's dtype. The result has x's shape and dtype. All three have gradients.

    >>> x = trident.tensor([1.0, 0.0]).expand(1, 1, 2, 2)  # one pair, at two positions
    >>> rotary(x, *rotary_tables(2, 2))[0, 0]
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """
    swapped = trident.roll(x, x.shape[-1] // 2, -1)  # (x2, x1)
    y = x * trident.cat([cos, cos], -1) + swapped * trident.cat([-sin, sin], -1)
    return y if y.dtype is x.dtype else trident.to_dtype(y, dtype=x.dtype)


@rotary.check
def _(x, cos, sin):
    if x.ndim != 4 or x.shape[-1] % 2 or not x.dtype.is_floating_point:
        raise wrong(
            "rotary",
            "x must have shape (B, H, T, D) with an even D, and a floating dtype",
            got=f"{tuple(x.shape)} {x.dtype.name}",
        )
    wanted = (x.shape[2], x.shape[3] // 2)
    for name, table in (("cos", cos), ("sin", sin)):
        if tuple(table.shape) != wanted or table.dtype not in (x.dtype, x.dtype.compute):
            raise wrong(
                "rotary",
                f"{name} must have shape {wanted}, (T, D / 2) of x {tuple(x.shape)}, and dtype "
                f"{x.dtype.compute.name}",
                got=f"{tuple(table.shape)} {table.dtype.name}",
                hint="make both with rotary_tables(T, D), and cut longer ones: cos[:T], sin[:T]",
            )


@rotary.samples
def _(draw):
    B, H = draw.integer(0, 2), draw.integer(1, 3)
    T, half = draw.choice([(1, 1), (5, 4), (130, 5), (11, 130), (0, 2), (3, 0)])
    table = draw.choice([draw.dtype, draw.dtype.compute])
    cos, sin = draw.tensor((T, half), table, -1, 1), draw.tensor((T, half), table, -1, 1)
    return (draw.tensor((B, H, T, 2 * half)), cos, sin), {}


def rotary_tables(T, D, base=10000.0, *, dtype=trident.float32, device="cpu"):
    """cos and sin (T, D / 2) of the angles t base^(-2 d / D), for positions t = 0 to T - 1.

    The angles are formed in float64: at position 100,000 one in float32 is off by 0.004.
    """
    angle = np.outer(np.arange(T), base ** (-np.arange(0, D, 2) / D))
    cos, sin = np.cos(angle), np.sin(angle)
    return tuple(trident.tensor(table, dtype=dtype, device=device) for table in (cos, sin))


def by_halves(x, cos, sin):
    """The formula of the first lines, as it stands."""
    x1, x2 = trident.chunk(x, 2, -1)
    return trident.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def bench_variants(device):
    B, H, T, D = 2, 16, 1024, 64
    x = trident.randn(B, H, T, D, device=device, requires_grad=True)
    g = trident.randn(B, H, T, D, device=device)
    cos, sin = rotary_tables(T, D, device=device)
    calls = {
        "rotary": lambda: rotary(x, cos, sin),
        "the body in plain ops": lambda: rotary.op.body(x, cos, sin),
        "plain ops, half by half": lambda: by_halves(x, cos, sin),
    }
    words = x.numel() * x.element_size()
    bench(f"rotary forward, x {tuple(x.shape)}, {device}", calls, bytes=2 * words)
    both = {n: lambda f=f: trident.autograd.grad(f(), x, g) for n, f in calls.items()}
    bench(f"rotary forward and backward, x {tuple(x.shape)}, {device}", both, bytes=4 * words)


def example():
    """A score between a query and a key depends on their distance alone."""
    q, k = trident.randn(1, 1, 1, 64), trident.randn(1, 1, 1, 64)
    cos, sin = rotary_tables(8, 64)
    turned_q = rotary(q.expand(1, 1, 8, 64), cos, sin)  # the same vectors at 8 positions
    turned_k = rotary(k.expand(1, 1, 8, 64), cos, sin)
    scores = (turned_q @ turned_k.transpose(-1, -2))[0, 0]
    print("scores of one q and one k at distance 2:", scores.diagonal(-2))


if __name__ == "__main__":
    main(rotary, bench_variants, example)
