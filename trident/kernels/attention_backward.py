"""Attention, backward: the gradients of queries, keys and values.

A block of the softmax is made again from the scores and the number ``lse`` that forward kept for
each row, p = 2^(score - lse). With delta = sum(g out) along a row the gradients are

    dv = p^T g      ds = p (g v^T - delta)      dq = scale ds k      dk = scale ds^T q

A program of ``dq_kernel`` keeps queries and walks over keys; one of ``dkdv_kernel`` keeps keys and
walks over the queries of all heads that share them. Each writes its own rows once: no atomics, the
same bits in every run. Source: as in ``attention``.
"""

from __future__ import annotations

from typing import Any

from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .attention import (
    LOG2E,
    constants,
    dropout_words,
    kept,
    load_tile,
    masked,
    matrices,
    near,
    sizes,
    store_tile,
    strided,
)
from .attention_blocks import blocks, choose, family


@jit
def delta_kernel(
    g_ptr, g_b, g_h, g_m, g_e,  # (B, H, M, E), any strides
    out_ptr,  # (B, H, M, E) contiguous
    delta_ptr,  # (B, H, M) contiguous
    H, M, E, VEC: tl.constexpr, NARROW_E: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK_M
    ACC: tl.constexpr = delta_ptr.dtype.element_ty
    g = matrices(g_ptr, head // H, g_b, H, g_h, M, g_m, E, VEC, False, BLOCK_M, BLOCK_E)
    g = load_tile(
        g, head % H, g_h, first, M, g_m, E, g_e, VEC, False, True, NARROW_E, BLOCK_M, BLOCK_E, ACC
    )
    out = load_tile(
        out_ptr, head * M, E, first, M, E, E, 1, VEC, False, True, NARROW_E, BLOCK_M, BLOCK_E, ACC
    )
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(delta_ptr + head * M + rows, tl.sum(g * out, 1), mask=rows < M)


@jit
def dq_kernel(
    g_ptr, g_b, g_h, g_m, g_e,  # (B, H, M, E), any strides
    q_ptr, q_b, q_h, q_m, q_d,  # (B, H, M, D), any strides
    k_ptr, k_b, k_h, k_n, k_d,  # (B, H / GROUP, N, D), any strides
    v_ptr, v_b, v_h, v_n, v_e,  # (B, H / GROUP, N, E), any strides
    mask_ptr, mask_b, mask_h, mask_m, mask_n,  # (B, H, M, N), any strides, or None
    lse_ptr,  # (B, H, M) contiguous
    delta_ptr,  # (B, H, M) contiguous
    dq_ptr,  # (B, H, M, D) contiguous
    H, GROUP, M, N, D, E, seed_lo, seed_hi, offset_lo, offset_hi, threshold,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, KEPT: tl.constexpr, FOURS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, VEC: tl.constexpr, TMA: tl.constexpr,
    TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, NARROW_D: tl.constexpr, NARROW_E: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M
    b, h = head // H, head % H
    shared = h // GROUP
    g = matrices(g_ptr, b, g_b, H, g_h, M, g_m, E, VEC, False, BLOCK_M, BLOCK_E)
    q = matrices(q_ptr, b, q_b, H, q_h, M, q_m, D, VEC, False, BLOCK_M, BLOCK_D)
    ks = matrices(k_ptr, b, k_b, H // GROUP, k_h, N, k_n, D, VEC, TMA, BLOCK_N, BLOCK_D)
    vs = matrices(v_ptr, b, v_b, H // GROUP, v_h, N, v_n, E, VEC, TMA, BLOCK_N, BLOCK_E)
    if mask_ptr is not None:
        mask_ptr += b * mask_b + h * mask_h

    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    rows = first + tl.arange(0, BLOCK_M)
    q = load_tile(
        q, h, q_h, first, M, q_m, D, q_d, VEC, False, True, NARROW_D, BLOCK_M, BLOCK_D, DOT
    )
    g = load_tile(
        g, h, g_h, first, M, g_m, E, g_e, VEC, False, True, NARROW_E, BLOCK_M, BLOCK_E, DOT
    )
    lse = tl.load(lse_ptr + head * M + rows, mask=rows < M, other=0.0)[:, None]
    delta = tl.load(delta_ptr + head * M + rows, mask=rows < M, other=0.0)[:, None]
    dq = tl.zeros((BLOCK_M, BLOCK_D), ACC)

    end = N
    whole = N // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(first + BLOCK_M, N)
        whole = tl.minimum(first, N) // BLOCK_N * BLOCK_N
    for edge in tl.static_range(2 if CAUSAL or TAIL else 1):
        for start in range(whole if edge else 0, end if edge else whole, BLOCK_N):
            k = load_tile(
                ks, shared, k_h, start, N, k_n, D, k_d, VEC, TMA, TAIL and edge, NARROW_D,
                BLOCK_N, BLOCK_D, DOT,
            )  # fmt: skip
            v = load_tile(
                vs, shared, v_h, start, N, v_n, E, v_e, VEC, TMA, TAIL and edge, NARROW_E,
                BLOCK_N, BLOCK_E, DOT,
            )  # fmt: skip
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
            cols = start + tl.arange(0, BLOCK_N)
            score = masked(
                score * (SCALE * LOG2E), mask_ptr, mask_m, mask_n, rows[:, None], cols[None, :],
                M, N, TAIL and edge, CAUSAL and edge,
            )  # fmt: skip
            dp = tl.dot(g, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
            if KEPT is not None:
                keep = kept(
                    head, first, start, M, N, seed_lo, seed_hi, offset_lo, offset_hi, threshold,
                    FOURS, BLOCK_M, BLOCK_N,
                )  # fmt: skip
                dp = tl.where(keep, dp * KEPT, 0.0)
            ds = tl.exp2(score - lse) * (dp - delta)
            dq = tl.dot(ds.to(DOT), k, dq, input_precision=PRECISION, out_dtype=ACC)
    store_tile(dq_ptr, head, first, M, D, dq * SCALE, VEC, NARROW_D, BLOCK_M, BLOCK_D)


@jit
def dkdv_kernel(
    g_ptr, g_b, g_h, g_m, g_e,  # (B, H, M, E), any strides
    q_ptr, q_b, q_h, q_m, q_d,  # (B, H, M, D), any strides
    k_ptr, k_b, k_h, k_n, k_d,  # (B, H / GROUP, N, D), any strides
    v_ptr, v_b, v_h, v_n, v_e,  # (B, H / GROUP, N, E), any strides
    mask_ptr, mask_b, mask_h, mask_m, mask_n,  # (B, H, M, N), any strides, or None
    lse_ptr,  # (B, H, M) contiguous
    delta_ptr,  # (B, H, M) contiguous
    dk_ptr,  # (B, H / GROUP, N, D) contiguous
    dv_ptr,  # (B, H / GROUP, N, E) contiguous
    H, GROUP, M, N, D, E, seed_lo, seed_hi, offset_lo, offset_hi, threshold,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, KEPT: tl.constexpr, FOURS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, VEC: tl.constexpr, TMA: tl.constexpr,
    TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, NARROW_D: tl.constexpr, NARROW_E: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(N, BLOCK_N)
    shared = (tl.program_id(0) // blocks).to(tl.int64)  # of B * H / GROUP
    first = tl.program_id(0) % blocks * BLOCK_N
    b, h = shared * GROUP // H, shared % (H // GROUP)
    k = matrices(k_ptr, b, k_b, H // GROUP, k_h, N, k_n, D, VEC, False, BLOCK_N, BLOCK_D)
    v = matrices(v_ptr, b, v_b, H // GROUP, v_h, N, v_n, E, VEC, False, BLOCK_N, BLOCK_E)
    gs = matrices(g_ptr, b, g_b, H, g_h, M, g_m, E, VEC, TMA, BLOCK_M, BLOCK_E)
    qs = matrices(q_ptr, b, q_b, H, q_h, M, q_m, D, VEC, TMA, BLOCK_M, BLOCK_D)

    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    cols = first + tl.arange(0, BLOCK_N)
    k = load_tile(
        k, h, k_h, first, N, k_n, D, k_d, VEC, False, True, NARROW_D, BLOCK_N, BLOCK_D, DOT
    )
    v = load_tile(
        v, h, v_h, first, N, v_n, E, v_e, VEC, False, True, NARROW_E, BLOCK_N, BLOCK_E, DOT
    )
    dk = tl.zeros((BLOCK_N, BLOCK_D), ACC)
    dv = tl.zeros((BLOCK_N, BLOCK_E), ACC)

    # The blocks are transposed, keys down and queries across. Queries past M load as zeros and add
    # nothing, keys past N spoil only rows that are not stored: TAIL (of M) is for loads alone.
    begin = 0
    free = 0
    if CAUSAL:
        begin = tl.minimum(first, M) // BLOCK_M * BLOCK_M  # the queries above see none of the keys
        free = tl.cdiv(tl.minimum(first + BLOCK_N, M), BLOCK_M) * BLOCK_M  # these see all of them
    for group in range(0, GROUP):
        head = shared * GROUP + group
        for diagonal in tl.static_range(1 if CAUSAL else 0, -1, -1):  # along it, then below it
            for start in tl.range(
                begin if diagonal else free, free if diagonal else M, BLOCK_M,
                num_stages=1 if diagonal else None,  # few blocks: they are not worth the registers
            ):  # fmt: skip
                rows = start + tl.arange(0, BLOCK_M)
                lse = tl.load(lse_ptr + head * M + rows, mask=rows < M, other=0.0)[None, :]
                q = load_tile(
                    qs, head % H, q_h, start, M, q_m, D, q_d, VEC, TMA, TAIL, NARROW_D,
                    BLOCK_M, BLOCK_D, DOT,
                )  # fmt: skip
                g = load_tile(
                    gs, head % H, g_h, start, M, g_m, E, g_e, VEC, TMA, TAIL, NARROW_E,
                    BLOCK_M, BLOCK_E, DOT,
                )  # fmt: skip
                if (
                    SCALE > 0 and mask_ptr is None
                ):  # the product starts from -lse, and needs no registers for it later
                    score = tl.zeros((BLOCK_N, BLOCK_M), ACC) - lse * (1.0 / (SCALE * LOG2E))
                    score = tl.dot(k, tl.trans(q), score, input_precision=PRECISION, out_dtype=ACC)
                else:
                    score = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACC)
                delta = tl.load(delta_ptr + head * M + rows, mask=rows < M, other=0.0)[None, :]
                if KEPT is None:
                    dp = tl.zeros((BLOCK_N, BLOCK_M), ACC) - delta
                    dp = tl.dot(v, tl.trans(g), dp, input_precision=PRECISION, out_dtype=ACC)
                else:
                    dp = tl.dot(v, tl.trans(g), input_precision=PRECISION, out_dtype=ACC)
                mask_head = mask_ptr
                if mask_ptr is not None:
                    mask_head += b * mask_b + head % H * mask_h
                score = masked(
                    score * (SCALE * LOG2E), mask_head, mask_m, mask_n, rows[None, :],
                    cols[:, None], M, N, False, diagonal,
                )  # fmt: skip
                if SCALE > 0 and mask_ptr is None:
                    p = tl.exp2(score)
                else:
                    p = tl.exp2(score - lse)
                seen = p
                if KEPT is not None:
                    keep = kept(
                        head, start, first, M, N, seed_lo, seed_hi, offset_lo, offset_hi,
                        threshold, FOURS, BLOCK_M, BLOCK_N,
                    )  # fmt: skip
                    keep = tl.trans(keep)
                    seen = tl.where(keep, p * KEPT, 0.0)
                    dp = tl.where(keep, dp * KEPT, 0.0) - delta
                dv = tl.dot(seen.to(DOT), g, dv, input_precision=PRECISION, out_dtype=ACC)
                ds = p * dp
                dk = tl.dot(ds.to(DOT), q, dk, input_precision=PRECISION, out_dtype=ACC)
    store_tile(dk_ptr, shared, first, N, D, dk * SCALE, VEC, NARROW_D, BLOCK_N, BLOCK_D)
    store_tile(dv_ptr, shared, first, N, E, dv, VEC, NARROW_E, BLOCK_N, BLOCK_E)


def attention_backward(
    dq: DeviceArray | None, dk: DeviceArray | None, dv: DeviceArray | None, g: DeviceArray,
    q: DeviceArray, k: DeviceArray, v: DeviceArray, mask: DeviceArray | None, out: DeviceArray,
    lse: DeviceArray, *, causal: bool, scale: float, dropout: float = 0.0, seed: int = 0,
    offset: int = 0,
) -> None:  # fmt: skip
    """The gradients that are not None, contiguous, from what ``attention`` was given and gave."""
    (b, h, m, _), n, e = q.shape, k.shape[2], v.shape[3]
    g, q, k, v = near(g), near(q), near(k), near(v)
    common = constants(q, v, [g, q, k, v], scale, causal, dropout)
    delta = q.device.empty(lse.shape, lse.dtype)
    row = {name: common[name] for name in ("VEC", "NARROW_E", "BLOCK_E")}
    block = max(1, 4096 // common["BLOCK_E"])
    launch(
        delta_kernel, (b * h * cdiv(m, block),), g, *g.strides, out, delta, h, m, e, BLOCK_M=block,
        **row,
    )  # fmt: skip
    read = [
        g, *g.strides, q, *q.strides, k, *k.strides, v, *v.strides,
        *strided(mask, (b, h, m, n)), lse, delta,
    ]  # fmt: skip
    rest = [*sizes(q, k, v), *dropout_words(dropout, seed, offset)]
    if dq is not None:
        c = blocks(choose("attention_dq", q, k, mask, common), common, k, v)
        launch(
            dq_kernel, (b * h * cdiv(m, c["BLOCK_M"]),), *read, dq, *rest,
            TAIL=n % c["BLOCK_N"] != 0, **common, **c,
        )  # fmt: skip
    if dk is not None or dv is not None:  # the one that nobody asked for is scratch
        dk = k.device.empty(k.shape, k.dtype) if dk is None else dk
        dv = v.device.empty(v.shape, v.dtype) if dv is None else dv
        c = blocks(choose("attention_dkdv", q, k, mask, common), common, g, q)
        launch(
            dkdv_kernel, (b * k.shape[1] * cdiv(n, c["BLOCK_N"]),), *read, dk, dv, *rest,
            TAIL=m % c["BLOCK_M"] != 0, **common, **c,
        )  # fmt: skip


def _run_dq(q: Any, k: Any, v: Any, g: Any, out: Any, lse: Any, mask: Any, dropout: float) -> None:
    dq = q.device.empty(q.shape, q.dtype)
    attention_backward(
        dq, None, None, g, q, k, v, mask, out, lse, causal=mask is None, scale=0.1, dropout=dropout
    )


def _run_dkdv(
    q: Any, k: Any, v: Any, g: Any, out: Any, lse: Any, mask: Any, dropout: float
) -> None:
    dk = k.device.empty(k.shape, k.dtype)
    attention_backward(
        None, dk, None, g, q, k, v, mask, out, lse, causal=mask is None, scale=0.1, dropout=dropout
    )


_BLOCKS = [
    (m, n, warps, stages)
    for m in (32, 64, 128)
    for n in (32, 64, 128)
    for warps in (4, 8)
    for stages in (1, 2, 3)
]
family("attention_dq", (dq_kernel,), _run_dq, _BLOCKS)
family("attention_dkdv", (dkdv_kernel,), _run_dkdv, _BLOCKS)
