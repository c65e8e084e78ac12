"""Kernels that the tests of the launch path start, and what they are started with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trident.lang import jit, tl
from trident.runtime import aot, libcuda
from trident.runtime.libcuda import cu


@jit
def many_kernel(
    a_ptr,
    b_ptr,
    absent_ptr,
    out_ptr,
    n,
    one,
    wide,
    scale,
    SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(a_ptr + at, mask=at < n) * scale + tl.load(b_ptr + at, mask=at < n) + one
    if SQUARE:
        x = x * x
    if absent_ptr is not None:
        x += tl.load(absent_ptr + at, mask=at < n)
    tl.store(out_ptr + at + wide, x, mask=at < n)


@jit
def zero_kernel(out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), 0.0)


@jit
def described_kernel(x_ptr, out_ptr, n_rows, n_cols, BLOCK: tl.constexpr):
    """Makes tensor descriptors on the GPU, which takes global scratch memory."""
    x = tl.make_tensor_descriptor(x_ptr, [n_rows, n_cols], [n_cols, 1], [BLOCK, BLOCK])
    out = tl.make_tensor_descriptor(out_ptr, [n_rows, n_cols], [n_cols, 1], [BLOCK, BLOCK])
    i, j = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    out.store([i, j], x.load([i, j]))


@jit
def halves_kernel(out_ptr, a, b, c, d, e, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, (a + b + c + d + e).to(tl.float32))


@jit
def wide_dot_kernel(a_ptr, b_ptr, out_ptr, BLOCK: tl.constexpr):
    """Two whole blocks in shared memory: more than there is where BLOCK is large."""
    i = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in tl.range(0, 1024, BLOCK):
        a = tl.load(a_ptr + i[:, None] * 1024 + k + i[None, :])
        b = tl.load(b_ptr + (k + i[:, None]) * 1024 + i[None, :])
        acc += tl.dot(a, b, input_precision="tf32")
    tl.store(out_ptr + i[:, None] * 1024 + i[None, :], acc)


def many(device: Any, n: int = 4096) -> tuple[tuple, dict, dict]:
    """(args, constexprs, options) for ``many_kernel``."""
    import trident

    a, b, out = (trident.empty(n, device=str(device))._data for _ in range(3))
    wide = 2**40
    return (a, b, None, out, n, 1, wide, 0.5), {"SQUARE": True, "BLOCK": 128}, {"num_warps": 4}


def bind_many(device: Any) -> tuple[Any, tuple]:
    """``many_kernel`` bound anew (no cache of ours), and plain arguments for ``start``."""
    args, constants, options = many(device)
    bound = device.bind(aot.specialize(many_kernel, args, constants, options))
    a, b, _, out, n, one, wide, scale = args
    return bound, (a.ptr, b.ptr, None, out.ptr, n, one, wide, scale, None, None)


@contextmanager
def capture(stream: int) -> Iterator[list]:
    """Capture what is put onto ``stream``; the graph is in the list afterwards."""
    mode = libcuda.driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    graph: list = []
    cu.cuStreamBeginCapture(stream, mode)
    try:
        yield graph
    except BaseException:
        libcuda.driver().cuStreamEndCapture(stream)  # it may be spoilt
        raise
    graph.append(cu.cuStreamEndCapture(stream))
