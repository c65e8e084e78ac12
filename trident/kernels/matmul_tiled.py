"""Matrix products from pointers: any strides, any floating dtype, ``tl.dot`` along k.

A program computes one tile of the output, or (``PERSISTENT``) one program runs on each
multiprocessor and walks over tiles, so that loads for a tile begin before the one before is stored.

Source: the grouped order of output tiles and the persistent loop are those of Triton's matrix
multiplication tutorials (03 and 09).
"""

from __future__ import annotations

from ..lang import cdiv, jit, tl
from ..runtime import launch
from ..runtime.tuning import Config
from .matmul_common import Problem, finish, place


@jit
def tiled_kernel(
    a_ptr,  # (outer, inner, m, k)
    b_ptr,  # (outer, inner, k, n)
    bias_ptr,  # (m,) or (n,) or None
    c_ptr,  # (inner, m, n) or None
    out_ptr,  # (outer, inner, m, n), rows contiguous
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
    items,
    programs,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    ACT: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    ACT_HALVED: tl.constexpr,
    EVEN_K: tl.constexpr,
    PERSISTENT: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    first = tl.program_id(0)
    last = first + 1
    step = 1
    if PERSISTENT:
        last = items
        step = programs
    for item in tl.range(first, last, step, flatten=PERSISTENT):
        batch, tile_m, tile_n = place(item, tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP_M)
        outer = (batch // inner).to(tl.int64)
        within = (batch % inner).to(tl.int64)
        rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
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
        b_ptrs += ks[:, None] * b_k_stride + cols[None, :] * b_n_stride

        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
        for start in range(0, length, BLOCK_K):
            if EVEN_K:
                a = tl.load(a_ptrs, mask=row_mask[:, None], other=0.0)
                b = tl.load(b_ptrs, mask=col_mask[None, :], other=0.0)
            else:
                k_mask = ks < k - start
                a = tl.load(a_ptrs, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
                b = tl.load(b_ptrs, mask=k_mask[:, None] & col_mask[None, :], other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)
            a_ptrs += BLOCK_K * a_k_stride
            b_ptrs += BLOCK_K * b_k_stride

        out_ptrs = out_ptr + outer * out_outer_stride + within * out_inner_stride
        out_ptrs += rows[:, None] * out_m_stride + cols[None, :]
        c_first = c_ptr
        if c_ptr is not None:
            c_first = c_ptr + within * c_batch_stride
        value = finish(
            acc, rows, cols, row_mask, col_mask, bias_ptr, bias_stride, c_first, c_m_stride,
            c_n_stride, alpha, beta, out_ptr.dtype.element_ty, ACT, BIAS_ROWS, ACT_HALVED,
        )  # fmt: skip
        tl.store(out_ptrs, value, mask=row_mask[:, None] & col_mask[None, :])


def run(p: Problem, tile: Config, persistent: bool) -> None:
    """Launch ``p`` with the blocks of ``tile``: BLOCK_M, BLOCK_N, BLOCK_K and GROUP_M."""
    m, n, k = p.mnk
    blocks = {name: tile.constants[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")}
    items = p.batches * cdiv(m, blocks["BLOCK_M"]) * cdiv(n, blocks["BLOCK_N"])
    programs = min(items, p.a.device.multiprocessors) if persistent else items
    launch(
        tiled_kernel,
        (programs,),
        *p.operands(),
        *p.a.strides,
        *p.b.strides,
        *p.addend_strides(),
        *p.out.strides[:3],
        *((items, programs) if persistent else (None, None)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        PRECISION=p.precision,
        EVEN_K=k % (p.chunk or blocks["BLOCK_K"]) == 0,
        PERSISTENT=persistent,
        ACT_HALVED=p.act_halved(blocks["BLOCK_M"], blocks["BLOCK_N"], tile.num_warps),
        **blocks,
        **p.constants(),
    )
