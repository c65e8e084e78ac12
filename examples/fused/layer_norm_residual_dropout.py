"""The seam between two blocks of a pre-norm transformer: dropout, residual sum and layer norm.

    s = residual + dropout(x, p)                      x, residual (..., N) -> s (..., N)
    y = (s - mean) rstd weight + bias                 rstd = 1 / sqrt(var + eps)

Both come back: y goes into the next block, s is the residual of the seam after it. Plain ops read
or write seven arrays of that size; here forward reads two and writes two, and mean and variance are
computed in float32 while the row is in registers. Backward gets g, the gradient of y, and k, that
of s, and makes all four gradients in one pass. With n = (s - mean) rstd and h = g weight,

    ds = k + rstd (h - mean(h) - n mean(h n))         dresidual = ds
    dweight = the sum of g n over rows                dx = ds / (1 - p) where x was kept, else 0
    dbias = the sum of g over rows

No mask is stored. Whether an element is kept depends on its index and on (seed, offset) alone, so
backward draws the mask again, and the CPU draws the same one. Philox makes four random words at a
time; for none to be made twice, the tile of a row starts at a multiple of eight elements, up to
seven before the row (eight: loads of float16 stay 16 bytes wide). The rows of one backward program
lie a multiple of eight apart, so they all start at the same place in the tile, and the partial sums
for weight and bias can stay in registers. Rows longer than ``LIMIT`` do not fit there: the loops
over blocks then run more than once, and make s again where they need it.

Source: Ba, Kiros, Hinton, "Layer normalization", 2016; Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", 2011. Drawing again follows Triton's tutorial on low-memory dropout, the fixed
number of programs Fast-LLM #546.
"""

from __future__ import annotations

import math

from _bench import bench, main

import trident
from trident.errors import wrong
from trident.kernels.layout import contiguous
from trident.kernels.norm import flat
from trident.kernels.random import dropout_threshold, philox, sealed, unsealed, word
from trident.kernels.reduce import SUM, reduce
from trident.lang import cdiv, next_power_of_2, tl

LIMIT = 4096  # float32 numbers of a row that the registers of a program hold
PROGRAMS = 264  # that share the rows in backward: two for each multiprocessor of an H100


@trident.jit
def kept(first, seed_lo, seed_hi, offset_lo, offset_hi, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    """Which of BLOCK elements dropout keeps, from index ``first`` on, a multiple of four."""
    counter = unsealed(offset_lo, offset_hi) + first // 4 + tl.arange(0, BLOCK // 4)
    low = (counter & 0xFFFFFFFF).to(tl.uint32)
    high = (counter >> 32 & 0xFFFFFFFF).to(tl.uint32)
    a, b, c, d = philox(low, high, tl.zeros_like(low), word(seed_lo), word(seed_hi))
    words = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    return words >= tl.full((BLOCK,), LEAST, tl.uint32)


@trident.jit
def sum_of(
    x_row_ptr,
    residual_row_ptr,
    first,  # the index of the block's first element in the contiguous array
    cols,
    mask,
    seed_lo,
    seed_hi,
    offset_lo,
    offset_hi,
    LEAST: tl.constexpr,
    SCALE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """residual + dropout(x) in some columns of a row, 0 outside of it."""
    x = tl.load(x_row_ptr + cols, mask=mask, other=0.0).to(ACC)
    if LEAST > 0:
        keep = kept(first, seed_lo, seed_hi, offset_lo, offset_hi, LEAST, BLOCK)
        x = tl.where(keep, x * SCALE, 0.0)
    return x + tl.load(residual_row_ptr + cols, mask=mask, other=0.0).to(ACC)


@trident.kernel(strided=("x_ptr", "residual_ptr"))
def forward_kernel(
    x_ptr,  # (n_rows, n_cols), rows x_row apart
    residual_ptr,  # (n_rows, n_cols), rows residual_row apart
    weight_ptr,  # (n_cols,), or None
    bias_ptr,  # (n_cols,), or None
    y_ptr,  # (n_rows, n_cols) contiguous
    s_ptr,  # (n_rows, n_cols) contiguous
    mean_ptr,  # (n_rows,) float32, or float64: what is computed in
    rstd_ptr,  # (n_rows,)
    n_cols,
    x_row,
    residual_row,
    seed_lo,
    seed_hi,
    offset_lo,
    offset_hi,
    EPS: tl.constexpr,
    LEAST: tl.constexpr,
    SCALE: tl.constexpr,
    FITS: tl.constexpr,  # a row is one block, so that s is still there in the later loops
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    lead = (row * n_cols % 8).to(tl.int32)
    x_at, residual_at, out_at = x_ptr + row * x_row, residual_ptr + row * residual_row, row * n_cols
    s = tl.zeros((BLOCK,), ACC)
    total = tl.zeros((BLOCK,), ACC)
    for start in range(-lead, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = (cols >= 0) & (cols < n_cols)
        s = sum_of(
            x_at, residual_at, out_at + start, cols, mask,
            seed_lo, seed_hi, offset_lo, offset_hi, LEAST, SCALE, ACC, BLOCK,
        )  # fmt: skip
        tl.store(s_ptr + out_at + cols, s.to(s_ptr.dtype.element_ty), mask=mask)
        total += s
    mean = tl.sum(total, 0) / n_cols
    squares = tl.zeros((BLOCK,), ACC)
    for start in range(-lead, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = (cols >= 0) & (cols < n_cols)
        if not FITS:
            s = sum_of(
                x_at, residual_at, out_at + start, cols, mask,
                seed_lo, seed_hi, offset_lo, offset_hi, LEAST, SCALE, ACC, BLOCK,
            )  # fmt: skip
        centred = tl.where(mask, s - mean, 0.0)
        squares += centred * centred
    rstd = 1.0 / tl.sqrt(tl.sum(squares, 0) / n_cols + EPS)
    for start in range(-lead, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = (cols >= 0) & (cols < n_cols)
        if not FITS:
            s = sum_of(
                x_at, residual_at, out_at + start, cols, mask,
                seed_lo, seed_hi, offset_lo, offset_hi, LEAST, SCALE, ACC, BLOCK,
            )  # fmt: skip
        y = (s - mean) * rstd
        if weight_ptr is not None:
            y *= tl.load(weight_ptr + cols, mask=mask, other=0.0).to(ACC)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + cols, mask=mask, other=0.0).to(ACC)
        tl.store(y_ptr + out_at + cols, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)


@trident.jit
def block_of(g_row_ptr, s_row_ptr, weight_ptr, mean, rstd, cols, mask):
    """n = (s - mean) rstd, g and h = g weight in some columns of a row; 0 outside of it."""
    s = tl.load(s_row_ptr + cols, mask=mask, other=0.0).to(mean.dtype)
    n = tl.where(mask, (s - mean) * rstd, 0.0)
    g = tl.load(g_row_ptr + cols, mask=mask, other=0.0).to(mean.dtype)
    h = g
    if weight_ptr is not None:
        h = g * tl.load(weight_ptr + cols, mask=mask, other=0.0).to(mean.dtype)
    return n, g, h


@trident.kernel(strided=("g_ptr", "k_ptr"))
def backward_kernel(
    g_ptr,  # (n_rows, n_cols), the gradient of y, rows g_row apart
    k_ptr,  # (n_rows, n_cols), the gradient of s, rows k_row apart
    s_ptr,  # (n_rows, n_cols) contiguous
    weight_ptr,  # (n_cols,), or None
    mean_ptr,  # (n_rows,)
    rstd_ptr,  # (n_rows,)
    dx_ptr,  # (n_rows, n_cols) contiguous, or None
    dresidual_ptr,  # (n_rows, n_cols) contiguous, or None
    partial_ptr,  # (2, programs, n_cols), their shares of dweight and dbias, or None
    n_rows,
    n_cols,
    g_row,
    k_row,
    seed_lo,
    seed_hi,
    offset_lo,
    offset_hi,
    LEAST: tl.constexpr,
    SCALE: tl.constexpr,
    FITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0)  # a multiple of 8, so that all rows here have one lead
    lead = (program * n_cols % 8).to(tl.int32)
    dweight = tl.zeros((BLOCK,), ACC)
    dbias = tl.zeros((BLOCK,), ACC)
    for row in range(program, n_rows, programs):
        mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
        g_at, s_at, k_at = g_ptr + row * g_row, s_ptr + row * n_cols, k_ptr + row * k_row
        n, g, h = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
        products, level = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
        for start in range(-lead, n_cols, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            mask = (cols >= 0) & (cols < n_cols)
            n, g, h = block_of(g_at, s_at, weight_ptr, mean, rstd, cols, mask)
            products += h * n
            level += h
        slope, shift = tl.sum(products, 0) / n_cols, tl.sum(level, 0) / n_cols
        if FITS:
            dweight += g * n
            dbias += g
        for start in range(-lead, n_cols, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            mask = (cols >= 0) & (cols < n_cols)
            if not FITS:
                n, g, h = block_of(g_at, s_at, weight_ptr, mean, rstd, cols, mask)
            ds = rstd * (h - shift - n * slope)
            ds += tl.load(k_at + cols, mask=mask, other=0.0).to(ACC)
            at = row * n_cols + cols
            if dresidual_ptr is not None:
                tl.store(dresidual_ptr + at, ds.to(dresidual_ptr.dtype.element_ty), mask=mask)
            if dx_ptr is not None:
                if LEAST > 0:
                    first = row * n_cols + start
                    keep = kept(first, seed_lo, seed_hi, offset_lo, offset_hi, LEAST, BLOCK)
                    ds = tl.where(keep, ds * SCALE, 0.0)
                tl.store(dx_ptr + at, ds.to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        for start in range(-lead, n_cols, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            mask = (cols >= 0) & (cols < n_cols)
            if not FITS:  # one block of columns after the other, down the rows
                dweight = tl.zeros((BLOCK,), ACC)
                dbias = tl.zeros((BLOCK,), ACC)
                for row in range(program, n_rows, programs):
                    mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
                    g_at, s_at = g_ptr + row * g_row, s_ptr + row * n_cols
                    n, g, h = block_of(g_at, s_at, None, mean, rstd, cols, mask)
                    dweight += g * n
                    dbias += g
            at = partial_ptr + program * n_cols + cols
            tl.store(at, dweight, mask=mask)
            tl.store(at + programs.to(tl.int64) * n_cols, dbias, mask=mask)


def rows(a):
    """a (..., n_cols) as (n_rows, n_cols) with neighbours side by side; a copy where it must be."""
    shape = (math.prod(a.shape[:-1]), a.shape[-1])
    if a.strides[-1] != 1 or not a.can_reshape(shape):
        a = contiguous(a)
    return a.reshape(shape)


def constants(n_cols, p, mean):
    """The constants of a launch: at most 8 float32 numbers of a row for each thread."""
    fits = n_cols * mean.dtype.itemsize <= LIMIT * 4
    width = n_cols if n_cols % 8 == 0 else n_cols + 7  # the tile begins up to 7 before the row
    block = max(next_power_of_2(width), 8) if fits else 2048
    return {
        "LEAST": dropout_threshold(p),
        "SCALE": 1 / (1 - p) if p < 1 else 0.0,
        "FITS": fits,
        "BLOCK": block,
        "num_warps": min(max(block // 256, 1), 16),
    }


def forward(out, mean, rstd, x, residual, weight, bias, *, p, seed, offset, eps):
    x, residual = rows(x), rows(residual)
    n_rows, n_cols = x.shape
    forward_kernel[(n_rows,)](
        x, residual, flat(weight), flat(bias), *out, mean, rstd, n_cols,
        x.strides[0], residual.strides[0], *sealed(seed, offset), EPS=eps,
        **constants(n_cols, p, mean),
    )  # fmt: skip


def backward(dx, dresidual, dweight, dbias, g, out, mean, rstd, weight, *, p, seed, offset):
    (g, k), s = (rows(a) for a in g), rows(out[1])
    n_rows, n_cols = s.shape
    programs = min(cdiv(n_rows, 8) * 8, 8 if s.device.interpreted else PROGRAMS)
    partial = None
    if dweight is not None or dbias is not None:
        partial = s.device.empty((2, programs, n_cols), mean.dtype)
    backward_kernel[(programs,)](
        g, k, s, flat(weight), mean, rstd, dx, dresidual, partial, n_rows, n_cols,
        g.strides[0], k.strides[0], *sealed(seed, offset), **constants(n_cols, p, mean),
    )  # fmt: skip
    for i, gradient in enumerate((dweight, dbias)):
        if gradient is not None:
            reduce(gradient, partial[i], over=(0,), kind=SUM)


def row_shape(x, residual, weight, bias, **_):
    return x.shape[:-1]


@trident.fused(forward=forward, backward=backward, residuals={"mean": row_shape, "rstd": row_shape})
def dropout_sum_norm(x, residual, weight=None, bias=None, *, p, seed, offset, eps=1e-5):
    """(y, s): s = residual + dropout(x, p), drawn at (seed, offset), and its layer norm y."""
    if p > 0:
        x = trident.ops.dropout_mask_apply(x, p=p, seed=seed, offset=offset)
    s = residual + x
    return trident.layer_norm(s, s.shape[-1:], weight, bias, eps), s


def layer_norm_residual_dropout(
    x, residual, weight=None, bias=None, p=0.1, training=True, eps=1e-5
):
    """(y, s): s = residual + dropout(x, p), and y = layer_norm(s) weight + bias over the last axis.

    x and residual (..., N); weight and bias (N,) or None. What is dropped comes from trident's
    generator, as in ``trident.dropout``: ``trident.manual_seed`` repeats it.
    """
    p = float(p) if training else 0.0
    seed, offset = trident.default_generator.take(x.numel()) if p > 0 else (0, 0)
    return dropout_sum_norm(x, residual, weight, bias, p=p, seed=seed, offset=offset, eps=eps)


@dropout_sum_norm.check
def _(x, residual, weight=None, bias=None, *, p, **_):
    name = "layer_norm_residual_dropout"
    if not x.shape or tuple(x.shape) != tuple(residual.shape):
        got = f"{tuple(x.shape)} and {tuple(residual.shape)}"
        raise wrong(name, "x and residual must have one shape (..., N)", got=got)
    for what, a in (("weight", weight), ("bias", bias)):
        if a is not None and tuple(a.shape) != tuple(x.shape[-1:]):
            expected = f"{what} must have shape {tuple(x.shape[-1:])}, the last axis of x"
            raise wrong(name, f"{expected} {tuple(x.shape)}", got=tuple(a.shape))
    if not 0.0 <= p <= 1.0:
        raise wrong(name, "p must lie in [0, 1]", got=p)


@dropout_sum_norm.samples
def _(draw):
    """Rows that begin between multiples of eight, more rows than programs, rows of several
    blocks, and windows, whose rows lie further apart than they are long."""
    few, width = draw.integer(0, 3), draw.integer(1, 40)
    shape = draw.choice([(few, width), (2, 1, 64), (9, width), (2, LIMIT + width)])
    x, residual = draw.tensor(shape), draw.tensor(shape)
    if draw.boolean():
        both = draw.tensor((*shape[:-1], 2 * shape[-1]))
        x, residual = both[..., : shape[-1]], both[..., shape[-1] :]
    weight = draw.tensor(shape[-1:]) if draw.boolean() else None
    bias = draw.tensor(shape[-1:]) if draw.boolean() else None
    p = draw.choice([0.0, 0.25, 0.5])
    # on the CPU s is rounded to its dtype, and rstd, up to 1 / sqrt(eps), magnifies that
    stream = {"seed": draw.integer(0, 2**62), "offset": draw.integer(0, 2**34)}
    return (x, residual, weight, bias), {"p": p, **stream, "eps": 1.0}


def example():
    trident.manual_seed(0)
    x = trident.ones(2, 4, requires_grad=True)
    residual = trident.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 4.0]])
    y, s = layer_norm_residual_dropout(x, residual, p=0.5)
    s.sum().backward()
    print(y, s, x.grad, sep="\n")  # the gradient is 0 where x was dropped, and 2 elsewhere


def bench_variants(device):
    x, residual = trident.randn(4096, 1024, device=device), trident.randn(4096, 1024, device=device)
    weight, bias = trident.randn(1024, device=device), trident.randn(1024, device=device)

    def plain():
        s = residual + trident.dropout(x, 0.1)
        return trident.layer_norm(s, (1024,), weight, bias), s

    bench(
        f"dropout, residual sum, layer norm, {tuple(x.shape)} {x.dtype.name} on {device}",
        {
            "fused": lambda: layer_norm_residual_dropout(x, residual, weight, bias),
            "plain ops": plain,
        },
        bytes=4 * x.numel() * x.element_size(),
    )


if __name__ == "__main__":
    main(dropout_sum_norm, bench_variants, example)
