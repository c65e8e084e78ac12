"""GEGLU, the gated feed-forward activation, without writing a kernel.

    y = gelu(gate + bias) * up

In plain ops the activation reads and writes its operands four times. ``@trident.fuse`` captures the
function once and emits one kernel forward (three arrays are read, one is written) and one backward,
which computes gelu and its derivative again from ``gate`` and gives all three gradients: as C on
the CPU, as Triton on a GPU. The gradient of the bias is a sum over rows: every program keeps a
partial sum, and these are added in a fixed order.

Compare ``swiglu.py``, the same kind of function with hand-written kernels.

Source: Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202.
"""

from __future__ import annotations

import numpy as np
from _bench import bench, main

import trident
import trident.nn.functional as F


@trident.fuse
def geglu(gate, up, bias):
    """gelu(gate + bias) * up. gate and up (..., N), bias (N,)."""
    return F.gelu(gate + bias) * up


@geglu.samples
def _(draw):
    """More rows than programs that share them, and rows of several blocks."""
    shape = (*(s or 1 for s in draw.shape(0, 1)), draw.integer(1, 12), draw.size(1, 9, 70))
    return (draw.tensor(shape), draw.tensor(shape), draw.tensor(shape[-1:])), {}


def example() -> None:
    """A forward and backward pass, and what was made of it."""
    trident.manual_seed(0)
    device = "cuda" if trident.cuda.is_available() else "cpu"
    gate, up = (trident.randn(64, 256, device=device, requires_grad=True) for _ in range(2))
    bias = trident.zeros(256, device=device, requires_grad=True)
    geglu(gate, up, bias).sum().backward()
    print(geglu.explain())


def bench_variants(device: str) -> None:
    """A feed-forward layer of a small transformer: 2048 tokens, 4096 features."""
    rng = np.random.default_rng(0)
    shapes = ((2048, 4096), (2048, 4096), (4096,))
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    xs = [trident.tensor(a, device=device, requires_grad=True) for a in arrays]
    g = trident.ones(*shapes[0], device=device)

    def both(f):
        def step():
            return trident.autograd.grad(f(*xs), xs, g)

        return step

    def forward(f):
        def step():
            with trident.no_grad():
                return f(*xs)

        return step

    size = arrays[0].nbytes
    bench("forward", {"fused": forward(geglu), "plain ops": forward(geglu.fn)}, bytes=3 * size)
    bench(
        "forward and backward", {"fused": both(geglu), "plain ops": both(geglu.fn)}, bytes=8 * size
    )


if __name__ == "__main__":
    main(geglu, bench_variants, example)
