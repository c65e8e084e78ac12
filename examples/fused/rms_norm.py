"""RMS norm with a weight: every row divided by its root mean square.

    y = x rsqrt(mean(x^2) + eps) weight            x (..., N), weight (N,) or None -> y (..., N)

In plain ops the forward makes five passes over memory (square, mean, root, two products). Here a
row is read once, stays in registers while its mean is formed, and is written once. Backward needs
one saved number a row, r = rsqrt(mean(x^2) + eps), and makes both gradients in one pass over g
and x. With n = x r and h = g weight,

    dx = r (h - n mean(h n))                       dweight = the sum of g n over all rows

That sum has the same order, and so the same bits, in every run: a fixed number of programs walk
over the rows, each with a partial sum in registers, and a second small launch adds those up. There
are no atomics. Rows longer than ``LIMIT`` do not fit in registers: the loops over blocks then run
more than once, and read again what they need after the mean.

Source: Zhang and Sennrich, "Root mean square layer normalization", 2019. The fixed number of
programs follows Fast-LLM #546, the saved r Liger-Kernel's ops/rms_norm.py.
"""

from __future__ import annotations

import math

from _bench import bench, main

import trident
from trident.errors import wrong
from trident.kernels.layout import contiguous
from trident.kernels.norm import flat
from trident.kernels.reduce import SUM, reduce
from trident.lang import next_power_of_2, tl

LIMIT = 8192  # float32 numbers of a row that the registers of a program hold
PROGRAMS = 264  # that share the rows in backward: two for each multiprocessor of an H100


@trident.kernel(strided=("x_ptr",))
def forward_kernel(
    x_ptr,  # (n_rows, n_cols), rows x_row apart
    weight_ptr,  # (n_cols,), or None
    out_ptr,  # (n_rows, n_cols) contiguous
    r_ptr,  # (n_rows,) float32, or float64: what is computed in
    n_cols,
    x_row,
    EPS: tl.constexpr,
    FITS: tl.constexpr,  # a row is one block, so that it is still there in the second loop
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x = tl.zeros((BLOCK,), r_ptr.dtype.element_ty)
    squares = tl.zeros_like(x)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_row + cols, mask=cols < n_cols, other=0.0).to(x.dtype)
        squares += x * x
    r = 1.0 / tl.sqrt(tl.sum(squares, 0) / n_cols + EPS)
    tl.store(r_ptr + row, r)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < n_cols
        if not FITS:
            x = tl.load(x_ptr + row * x_row + cols, mask=mask, other=0.0).to(x.dtype)
        y = x * r
        if weight_ptr is not None:
            y *= tl.load(weight_ptr + cols, mask=mask, other=0.0).to(y.dtype)
        tl.store(out_ptr + row * n_cols + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


@trident.jit
def block_of(g_row_ptr, x_row_ptr, weight_ptr, r, cols, mask):
    """n = x r, g and h = g weight in some columns of a row, in the dtype of r."""
    n = tl.load(x_row_ptr + cols, mask=mask, other=0.0).to(r.dtype) * r
    g = tl.load(g_row_ptr + cols, mask=mask, other=0.0).to(r.dtype)
    h = g
    if weight_ptr is not None:
        h = g * tl.load(weight_ptr + cols, mask=mask, other=0.0).to(r.dtype)
    return n, g, h


@trident.kernel(strided=("g_ptr", "x_ptr"))
def backward_kernel(
    g_ptr,  # (n_rows, n_cols), rows g_row apart
    x_ptr,  # (n_rows, n_cols), rows x_row apart
    weight_ptr,  # (n_cols,), or None
    r_ptr,  # (n_rows,)
    dx_ptr,  # (n_rows, n_cols) contiguous, or None
    partial_ptr,  # (programs, n_cols), their shares of dweight, or None
    n_rows,
    n_cols,
    g_row,
    x_row,
    FITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    dweight = tl.zeros((BLOCK,), r_ptr.dtype.element_ty)
    for row in range(program, n_rows, tl.num_programs(0)):
        r = tl.load(r_ptr + row)
        n, g, h = tl.zeros_like(dweight), tl.zeros_like(dweight), tl.zeros_like(dweight)
        products = tl.zeros_like(dweight)
        for start in range(0, n_cols, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            n, g, h = block_of(
                g_ptr + row * g_row, x_ptr + row * x_row, weight_ptr, r, cols, cols < n_cols
            )
            products += h * n
        slope = tl.sum(products, 0) / n_cols
        if FITS:
            dweight += g * n
        if dx_ptr is not None:
            for start in range(0, n_cols, BLOCK):
                cols = start + tl.arange(0, BLOCK)
                mask = cols < n_cols
                if not FITS:
                    n, g, h = block_of(
                        g_ptr + row * g_row, x_ptr + row * x_row, weight_ptr, r, cols, mask
                    )
                dx = r * (h - n * slope)
                tl.store(dx_ptr + row * n_cols + cols, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        for start in range(0, n_cols, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            mask = cols < n_cols
            if not FITS:  # one block of columns after the other, down the rows
                dweight = tl.zeros((BLOCK,), r_ptr.dtype.element_ty)
                for row in range(program, n_rows, tl.num_programs(0)):
                    n, g, h = block_of(
                        g_ptr + row * g_row, x_ptr + row * x_row, None, tl.load(r_ptr + row),
                        cols, mask,
                    )  # fmt: skip
                    dweight += g * n
            tl.store(partial_ptr + program * n_cols + cols, dweight, mask=mask)


def rows(a):
    """a (..., n_cols) as (n_rows, n_cols) with neighbours side by side; a copy where it must be."""
    shape = (math.prod(a.shape[:-1]), a.shape[-1])
    if a.strides[-1] != 1 or not a.can_reshape(shape):
        a = contiguous(a)
    return a.reshape(shape)


def tile(n_cols, r):
    """The constants of a launch: at most 16 float32 numbers of a row for each thread."""
    fits = n_cols * r.dtype.itemsize <= LIMIT * 4
    block = next_power_of_2(n_cols) if fits else 2048
    return {"FITS": fits, "BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def forward(out, r, x, weight, *, eps):
    x = rows(x)
    n_rows, n_cols = x.shape
    forward_kernel[(n_rows,)](
        x, flat(weight), out, r, n_cols, x.strides[0], EPS=eps, **tile(n_cols, r)
    )


def backward(dx, dweight, g, x, weight, r):
    g, x = rows(g), rows(x)
    n_rows, n_cols = x.shape
    programs = min(n_rows, 4 if x.device.interpreted else PROGRAMS)
    partial = None if dweight is None else x.device.empty((programs, n_cols), r.dtype)
    backward_kernel[(programs,)](
        g, x, flat(weight), r, dx, partial, n_rows, n_cols,
        g.strides[0], x.strides[0], **tile(n_cols, r),
    )  # fmt: skip
    if partial is not None:
        reduce(dweight, partial, over=(0,), kind=SUM)


@trident.fused(
    forward=forward, backward=backward, residuals={"r": lambda x, weight, **_: x.shape[:-1]}
)
def rms_norm(x, weight=None, *, eps=1e-6):
    """x rsqrt(mean(x^2) + eps) weight over the last axis. x (..., N); weight (N,) or None."""
    y = x * trident.rsqrt(trident.mean(x * x, -1, keepdim=True) + eps)
    return y if weight is None else y * weight


@rms_norm.check
def _(x, weight=None, *, eps=1e-6):
    if weight is not None and tuple(weight.shape) != tuple(x.shape[-1:]):
        expected = f"weight must have shape {tuple(x.shape[-1:])}, the last axis of x"
        raise wrong("rms_norm", f"{expected} {tuple(x.shape)}", got=tuple(weight.shape))


@rms_norm.samples
def _(draw):
    """Rows shorter than a block, as long as one, longer than ``LIMIT``; more rows than programs;
    windows, whose rows lie further apart than they are long."""
    shape = draw.choice(
        [draw.shape(1, 3), (draw.integer(9, 20), 8), (3, 2, 100), (2, LIMIT + draw.integer(1, 99))]
    )
    weight = draw.tensor(shape[-1:]) if draw.boolean() else None
    x = draw.tensor(shape)
    if draw.boolean():
        x = draw.tensor((*shape[:-1], shape[-1] + 3))[..., 1:-2]
    return (x, weight), {"eps": draw.choice([1e-6, 0.1])}


def example():
    x = trident.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    weight = trident.tensor([1.0, 10.0], requires_grad=True)
    y = rms_norm(x, weight)
    y.sum().backward()
    print(y, x.grad, weight.grad, sep="\n")


def bench_variants(device):
    x = trident.randn(4096, 1024, device=device)
    weight = trident.randn(1024, device=device)
    body = rms_norm.op.body
    bench(
        f"RMS norm forward, {tuple(x.shape)} {x.dtype.name} on {device}",
        {"fused": lambda: rms_norm(x, weight), "plain ops": lambda: body(x, weight)},
        bytes=2 * x.numel() * x.element_size(),
    )


if __name__ == "__main__":
    main(rms_norm, bench_variants, example)
