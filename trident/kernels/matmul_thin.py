"""Products of few rows or columns, and of integers: sums of products without ``tl.dot``.

What such a product waits for is memory: the large operand is read once, as it lies.
"""

from __future__ import annotations

from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import launch
from ..runtime.tuning import Config
from .matmul_common import Problem, finish

ROWS = 4
"""Up to this many rows or columns, memory and not arithmetic is what a product waits for."""


@jit
def thin_kernel(
    a_ptr,  # (outer, inner, m, k), m small
    b_ptr,  # (outer, inner, k, n)
    bias_ptr,  # (m,) or (n,) or None
    c_ptr,  # (inner, m, n) or None
    out_ptr,  # (outer, inner, m, n)
    alpha,
    beta,
    m,
    n,
    k,
    inner,
    chunk,
    a_outer_stride,
    a_inner_stride,
    a_m_stride,
    a_k_stride,
    b_outer_stride,
    b_inner_stride,
    b_k_stride,
    b_n_stride,
    bias_stride,
    c_batch_stride,
    c_m_stride,
    c_n_stride,
    out_outer_stride,
    out_inner_stride,
    out_m_stride,
    out_n_stride,
    ACC: tl.constexpr,
    ACT: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # products are kept in a (BLOCK_M, BLOCK_N, BLOCK_K) tile and summed over k once at the end:
    # b is read once from memory and no lane waits for another inside the loop
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    batch = tl.program_id(0) // (tiles_m * tiles_n)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    outer = (batch // inner).to(tl.int64)
    within = (batch % inner).to(tl.int64)
    rows = tile % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    length = k
    if chunk is not None:
        length = chunk
        ks += batch // inner * chunk
    row_mask = rows < m
    col_mask = cols < n
    if INT64:
        rows = rows.to(tl.int64)
        cols = cols.to(tl.int64)
        ks = ks.to(tl.int64)
    a_ptrs = a_ptr + outer * a_outer_stride + within * a_inner_stride
    a_ptrs += rows[:, None] * a_m_stride + ks[None, :] * a_k_stride
    b_ptrs = b_ptr + outer * b_outer_stride + within * b_inner_stride
    b_ptrs += cols[:, None] * b_n_stride + ks[None, :] * b_k_stride

    acc = tl.zeros((BLOCK_M, BLOCK_N, BLOCK_K), dtype=ACC)
    for start in range(0, length, BLOCK_K):
        k_mask = (ks < k - start)[None, :]
        a = tl.load(a_ptrs, mask=row_mask[:, None] & k_mask, other=0).to(ACC)
        b = tl.load(b_ptrs, mask=col_mask[:, None] & k_mask, other=0).to(ACC)
        acc += a[:, None, :] * b[None, :, :]
        a_ptrs += BLOCK_K * a_k_stride
        b_ptrs += BLOCK_K * b_k_stride

    c_first = c_ptr
    if c_ptr is not None:
        c_first = c_ptr + within * c_batch_stride
    value = finish(
        tl.sum(acc, axis=2).to(ACC), rows, cols, row_mask, col_mask, bias_ptr, bias_stride,
        c_first, c_m_stride, c_n_stride, alpha, beta, out_ptr.dtype.element_ty, ACT, BIAS_ROWS,
        False,
    )  # fmt: skip
    out_ptrs = out_ptr + outer * out_outer_stride + within * out_inner_stride
    out_ptrs += rows[:, None] * out_m_stride + cols[None, :] * out_n_stride
    tl.store(out_ptrs, value, mask=row_mask[:, None] & col_mask[None, :])


def blocks(p: Problem, tile: Config) -> tuple[int, int, int]:
    """(BLOCK_M, BLOCK_N, BLOCK_K) of a launch: those of ``tile``, no wider than the matrices; what
    is saved in rows and columns makes BLOCK_K longer."""
    m, n, k = p.mnk
    most = tile.constants
    bm = min(next_power_of_2(m), most["BLOCK_M"])
    bn = min(next_power_of_2(n), most["BLOCK_N"])
    room = most["BLOCK_M"] * most["BLOCK_N"] * most["BLOCK_K"]
    return bm, bn, min(next_power_of_2(k), room // (bm * bn))


def run(p: Problem, tile: Config) -> None:
    """Launch ``p``, whose m is small, with blocks up to those of ``tile``."""
    m, n, _ = p.mnk
    bm, bn, bk = blocks(p, tile)
    launch(
        thin_kernel,
        (p.batches * cdiv(m, bm) * cdiv(n, bn),),
        *p.operands(),
        *p.a.strides,
        *p.b.strides,
        *p.addend_strides(),
        *p.out.strides,
        num_warps=tile.num_warps,
        BLOCK_M=bm,
        BLOCK_N=bn,
        BLOCK_K=bk,
        **p.constants(),
    )
