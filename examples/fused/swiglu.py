"""SwiGLU, the gated unit in the feed-forward layers of most language models.

    y = silu(gate) up,   silu(x) = x sigmoid(x)             gate, up (..., N) -> y (..., N)

Plain ops write silu(gate) to memory only to read it again, and backward keeps it there all the
while. Here forward is one launch that reads two arrays and writes one, and backward one launch that
reads three and writes two: it computes sigmoid(gate) once more, which costs less than loading it.
With s = sigmoid(gate),

    dgate = g up s (1 + gate (1 - s))                       dup = g gate s

``gate`` and ``up`` are usually the two halves of one product, ``gate, up = (x @ w).chunk(2, -1)``.
The kernels take such views as they are: the rows of an operand may lie any distance apart.

Source: Shazeer, "GLU variants improve transformer", 2020. Computing it again in backward follows
Liger-Kernel's ops/swiglu.py.
"""

from __future__ import annotations

import math

from _bench import bench, main

import trident
from trident.errors import wrong
from trident.kernels.layout import contiguous
from trident.lang import cdiv, next_power_of_2, tl


@trident.jit
def load_wide(ptr, mask):
    """What is computed with: half types become float32."""
    x = tl.load(ptr, mask=mask, other=0.0)
    if x.dtype.primitive_bitwidth == 16:
        x = x.to(tl.float32)
    return x


@trident.kernel(strided=("gate_ptr", "up_ptr"))
def forward_kernel(
    gate_ptr,  # (n_rows, n_cols), rows gate_row apart
    up_ptr,  # (n_rows, n_cols), rows up_row apart
    out_ptr,  # (n_rows, n_cols) contiguous
    n_cols,
    gate_row,
    up_row,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < n_cols
    gate = load_wide(gate_ptr + row * gate_row + cols, mask)
    up = load_wide(up_ptr + row * up_row + cols, mask)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * n_cols + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


@trident.kernel(strided=("g_ptr", "gate_ptr", "up_ptr"))
def backward_kernel(
    g_ptr,  # (n_rows, n_cols), rows g_row apart
    gate_ptr,  # (n_rows, n_cols), rows gate_row apart
    up_ptr,  # (n_rows, n_cols), rows up_row apart
    dgate_ptr,  # (n_rows, n_cols) contiguous, or None
    dup_ptr,  # (n_rows, n_cols) contiguous, or None
    n_cols,
    g_row,
    gate_row,
    up_row,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < n_cols
    g = load_wide(g_ptr + row * g_row + cols, mask)
    gate = load_wide(gate_ptr + row * gate_row + cols, mask)
    s = 1.0 / (1.0 + tl.exp(-gate))
    at = row * n_cols + cols
    if dgate_ptr is not None:
        up = load_wide(up_ptr + row * up_row + cols, mask)
        dgate = g * up * s * (1.0 + gate * (1.0 - s))
        tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
    if dup_ptr is not None:
        tl.store(dup_ptr + at, (g * gate * s).to(dup_ptr.dtype.element_ty), mask=mask)


def rows(a):
    """a (..., n_cols) as (n_rows, n_cols) with neighbours side by side; a copy where it must be."""
    shape = (math.prod(a.shape[:-1]), a.shape[-1])
    if a.strides[-1] != 1 or not a.can_reshape(shape):
        a = contiguous(a)
    return a.reshape(shape)


def start(kernel, inputs, outputs):
    """A program for every block of every row; the kernel takes the row strides of the inputs."""
    inputs = [rows(a) for a in inputs]
    n_rows, n_cols = inputs[0].shape
    block = min(next_power_of_2(n_cols), 1024)
    kernel[(n_rows, cdiv(n_cols, block))](
        *inputs, *outputs, n_cols, *(a.strides[0] for a in inputs),
        BLOCK=block, num_warps=max(block // 256, 1),
    )  # fmt: skip


def forward(out, gate, up):
    start(forward_kernel, (gate, up), (out,))


def backward(dgate, dup, g, gate, up):
    start(backward_kernel, (g, gate, up), (dgate, dup))


@trident.fused(forward=forward, backward=backward)
def swiglu(gate, up):
    """silu(gate) up, element by element. gate and up have one shape, (..., N)."""
    return trident.silu(gate) * up


@swiglu.check
def _(gate, up):
    if tuple(gate.shape) != tuple(up.shape) or not gate.shape:
        got = f"{tuple(gate.shape)} and {tuple(up.shape)}"
        raise wrong("swiglu", "gate and up must have one shape (..., N)", got=got)


@swiglu.samples
def _(draw):
    """Rows of one partial block, of several, and the halves of one array."""
    shape = draw.choice([draw.shape(1, 3), (2, 3, 40), (2, 1024 + draw.integer(1, 99)), (3, 1024)])
    if draw.boolean():
        both = draw.tensor((*shape[:-1], 2 * shape[-1]))
        return (both[..., : shape[-1]], both[..., shape[-1] :]), {}
    return (draw.tensor(shape), draw.tensor(shape)), {}


def example():
    gate = trident.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    up = trident.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    y = swiglu(gate, up)
    y.sum().backward()
    print(y, gate.grad, up.grad, sep="\n")


def bench_variants(device):
    gate, up = trident.randn(1024, 2 * 4096, device=device).chunk(2, -1)
    g = trident.randn(1024, 4096, device=device)
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    plain = swiglu.op.body

    def train(function):
        return trident.autograd.grad(function(gate, up), (gate, up), g)

    where = f"{tuple(g.shape)} {g.dtype.name} on {device}"
    one_pass = g.numel() * g.element_size()
    bench(
        f"SwiGLU forward, {where}",
        {"fused": lambda: swiglu(gate, up), "plain ops": lambda: plain(gate, up)},
        bytes=3 * one_pass,
    )
    bench(
        f"SwiGLU forward and backward, {where}",
        {"fused": lambda: train(swiglu), "plain ops": lambda: train(plain)},
        bytes=8 * one_pass,
    )


if __name__ == "__main__":
    main(swiglu, bench_variants, example)
