"""Split k: pieces of a long k are summed side by side, then the sums are added in a fixed order.

A product of few tiles and a long k keeps few multiprocessors busy. Here k is cut into chunks of
whole blocks; each chunk is a batch of its own whose result goes to a float32 workspace, and a
second kernel adds the chunks, the first one first, and applies the epilogue. Two runs give the same
bits, which atomic additions would not.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import dtypes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import launch
from .matmul_common import Problem, finish


@jit
def combine_kernel(
    part_ptr,  # (splits, batches, m, n), contiguous
    bias_ptr,  # (m,) or (n,) or None
    c_ptr,  # (batches, m, n) or None
    out_ptr,  # (batches, m, n)
    alpha,
    beta,
    m,
    n,
    batches,
    splits,
    bias_stride,
    c_batch_stride,
    c_m_stride,
    c_n_stride,
    out_batch_stride,
    out_m_stride,
    out_n_stride,
    ACC: tl.constexpr,
    ACT: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    batch = (tl.program_id(0) // (tiles_m * tiles_n)).to(tl.int64)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    rows = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < m
    col_mask = cols < n
    if INT64:
        rows = rows.to(tl.int64)
        cols = cols.to(tl.int64)
    mask = row_mask[:, None] & col_mask[None, :]
    size = tl.cast(m, tl.int64) * n
    part_ptrs = part_ptr + batch * size + rows[:, None] * n + cols[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for _ in range(splits):
        acc += tl.load(part_ptrs, mask=mask, other=0)
        part_ptrs += batches * size

    c_first = c_ptr
    if c_ptr is not None:
        c_first = c_ptr + batch * c_batch_stride
    value = finish(
        acc, rows, cols, row_mask, col_mask, bias_ptr, bias_stride, c_first, c_m_stride,
        c_n_stride, alpha, beta, out_ptr.dtype.element_ty, ACT, BIAS_ROWS, False,
    )  # fmt: skip
    out_ptrs = out_ptr + batch * out_batch_stride
    out_ptrs += rows[:, None] * out_m_stride + cols[None, :] * out_n_stride
    tl.store(out_ptrs, value, mask=mask)


def run(p: Problem, splits: int, block_k: int, launcher: Callable[[Problem], None]) -> None:
    """Launch ``p`` by ``launcher`` in about ``splits`` chunks of whole blocks, and add them up."""
    m, n, k = p.mnk
    chunk = cdiv(cdiv(k, block_k), splits) * block_k
    splits = cdiv(k, chunk) if chunk else 1
    outer, inner = p.out.shape[:2]
    if splits == 1 or (outer > 1 and inner > 1):  # with two batch axes none is left for chunks
        launcher(p)
        return
    if outer > 1:
        p = p.swapped()
        inner = outer
    device = p.out.device
    part = device.empty((splits, inner, m, n), _accumulated(p.a.dtype))
    a, b = (x.as_strided((splits, *x.shape[1:]), (0, *x.strides[1:])) for x in (p.a, p.b))
    launcher(Problem(part, a, b, chunk=chunk))
    most, wide = (1 << 14, 1 << 14) if device.interpreted else (1024, 128)
    bn = min(next_power_of_2(n), wide)
    bm = min(next_power_of_2(m), most // bn)
    launch(
        combine_kernel,
        (inner * cdiv(m, bm) * cdiv(n, bn),),
        *(part, p.bias, p.c, p.out, p.scalar(p.alpha), p.scalar(p.beta)),
        *(m, n, inner, splits),
        *p.addend_strides(),
        *p.out.strides[1:],
        num_warps=4,
        BLOCK_M=bm,
        BLOCK_N=bn,
        **p.constants(),
    )


def _accumulated(dtype: DType) -> DType:
    """The dtype of the workspace: that of the accumulators."""
    if dtype.is_floating_point:
        return dtype.compute
    return dtypes.int64 if dtype is dtypes.int64 else dtypes.int32
