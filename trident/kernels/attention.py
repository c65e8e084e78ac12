"""Attention, forward: the matrix of scores never exists in memory.

    out = softmax(scale q k^T + mask) v    q (B, H, M, D), k (B, H / group, N, D), v (..., N, E)

A program keeps a block of query rows and walks over blocks of keys. For each row it carries the
largest score so far and, relative to it, the sum of the exponentials and the weighted sum of the
values; a block that raises the maximum shrinks both. Scores are measured in base 2. One number a
row is kept for backward: ``lse``, the base-2 logarithm of the sum of exponentials.

``causal`` lets query i see the keys j <= i. Blocks that nobody sees are skipped, and those that
every row sees run in a loop without masks. A row that may see no key at all is 0. Dropout takes the
word of element (b, h, i, j) from the Philox stream as for an array (B, H, M, N), so what is dropped
is the same on every device and is not kept for backward.

Source: Dao et al., "FlashAttention", arXiv:2205.14135; Dao, "FlashAttention-2", arXiv:2307.08691;
Milakov and Gimelshein, arXiv:1805.02867, for the running maximum; Ainslie et al., arXiv:2305.13245,
for heads that share keys.
"""

from __future__ import annotations

import math
from typing import Any

from .. import dtypes
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from . import configs
from .attention_blocks import blocks, choose, family
from .layout import contiguous
from .random import dropout_threshold, philox, sealed, unsealed, word

LOG2E = math.log2(math.e)


# ---- pieces -------------------------------------------------------------------------------------


@jit
def matrices(
    ptr, b, b_step, n_heads, h_step, n_rows, row_step, n_cols, VEC: tl.constexpr,
    TMA: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The matrices (n_rows, n_cols) of batch ``b``, for ``load_tile``: a tensor descriptor where
    TMA, else a pointer."""
    ptr += tl.multiple_of(b * b_step, VEC)
    if TMA:
        x = tl.make_tensor_descriptor(
            ptr, shape=[n_heads, n_rows, n_cols], strides=[h_step, row_step, 1],
            block_shape=[1, ROWS, COLS],
        )  # fmt: skip
    else:
        x = ptr
    return x


@jit
def load_tile(
    x, h, h_step, first, n_rows, row_step, n_cols, col_step, VEC: tl.constexpr, TMA: tl.constexpr,
    TAIL: tl.constexpr, NARROW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """ROWS rows from ``first`` on of head ``h`` of ``matrices``, zeros outside. TAIL: rows may lie
    outside; NARROW: n_cols < COLS; VEC: so many columns lie on 16 aligned bytes."""
    rows = tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    if TMA:
        value = x.load([tl.cast(h, tl.int32), first, 0]).reshape(ROWS, COLS)
    else:
        x += tl.multiple_of(h * h_step, VEC)
        x += tl.multiple_of(tl.cast(first, tl.int64) * row_step, VEC)
        tile = x + (tl.multiple_of(rows * row_step, VEC)[:, None] + (cols * col_step)[None, :])
        if NARROW:
            inside = tl.max_constancy(cols < n_cols, VEC)[None, :]
            if TAIL:
                inside = inside & (first + rows < n_rows)[:, None]
            value = tl.load(tile, mask=inside, other=0.0)
        elif TAIL:
            value = tl.load(tile, mask=(first + rows < n_rows)[:, None], other=0.0)
        else:
            value = tl.load(tile)
    return value.to(DOT)


@jit
def store_tile(
    ptr, matrix, first, n_rows, n_cols, value, VEC: tl.constexpr, NARROW: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write ``value`` where it lies inside of a contiguous matrix (n_rows, n_cols)."""
    ptr += tl.multiple_of(matrix * n_rows * n_cols, VEC)
    rows = first + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    inside = (rows < n_rows)[:, None]
    if NARROW:
        inside = inside & tl.max_constancy(cols < n_cols, VEC)[None, :]
    at = tl.multiple_of(rows.to(tl.int64) * n_cols, VEC)[:, None] + cols[None, :]
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=inside)


@jit
def masked(
    score, mask_ptr, mask_m, mask_n, rows, cols, M, N, TAIL: tl.constexpr, CAUSAL: tl.constexpr
):
    """Base-2 scores of queries ``rows`` and keys ``cols``, which broadcast to the block's shape,
    with the mask in: -inf where a query does not see a key, or (TAIL) there is no key."""
    if mask_ptr is not None:
        at = rows.to(tl.int64) * mask_m + cols.to(tl.int64) * mask_n
        mask = tl.load(mask_ptr + at, mask=(rows < M) & (cols < N), other=0)
        if mask_ptr.dtype.element_ty.is_floating():
            score += mask.to(score.dtype) * LOG2E
        else:
            score = tl.where(mask != 0, score, float("-inf"))
    if TAIL:
        score = tl.where(cols < N, score, float("-inf"))
    if CAUSAL:
        score = tl.where(cols <= rows, score, float("-inf"))
    return score


@jit
def kept(
    head, row, col, M, N, seed_lo, seed_hi, offset_lo, offset_hi, threshold, FOURS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Which elements of the block at (row, col) dropout keeps. FOURS: N is a multiple of 4, as
    ``col`` is, so that four neighbours share one call of Philox."""
    first = unsealed(offset_lo, offset_hi)
    line = ((head * M + row + tl.arange(0, BLOCK_M)) * N + col)[:, None]  # where each row begins
    if FOURS:
        counter = first + line // 4 + tl.arange(0, BLOCK_N // 4)[None, :]
    else:
        element = line + tl.arange(0, BLOCK_N)[None, :]
        counter = first + element // 4
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = (counter >> 32 & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = philox(c0, c1, tl.zeros_like(c0), word(seed_lo), word(seed_hi))
    if FOURS:
        w = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    else:
        lane = element % 4
        w = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
    return w >= word(threshold)


# ---- the kernel ---------------------------------------------------------------------------------


@jit
def forward_kernel(
    q_ptr, q_b, q_h, q_m, q_d,  # (B, H, M, D), any strides
    k_ptr, k_b, k_h, k_n, k_d,  # (B, H / GROUP, N, D), any strides
    v_ptr, v_b, v_h, v_n, v_e,  # (B, H / GROUP, N, E), any strides
    mask_ptr, mask_b, mask_h, mask_m, mask_n,  # (B, H, M, N), any strides, or None
    out_ptr,  # (B, H, M, E) contiguous
    lse_ptr,  # (B, H, M) contiguous
    H, GROUP, M, N, D, E, seed_lo, seed_hi, offset_lo, offset_hi, threshold,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, KEPT: tl.constexpr, FOURS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, VEC: tl.constexpr, TMA: tl.constexpr,
    TAIL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, NARROW_D: tl.constexpr, NARROW_E: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)  # of B * H
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M  # the last rows see the most keys
    b, h = head // H, head % H
    shared = h // GROUP
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
    top = tl.full((BLOCK_M,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_M,), ACC)
    acc = tl.zeros((BLOCK_M, BLOCK_E), ACC)

    end = N
    whole = N // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(first + BLOCK_M, N)  # no row of the block sees a key from here on
        whole = tl.minimum(first, N) // BLOCK_N * BLOCK_N  # all rows see all keys up to here
    for edge in tl.static_range(2 if CAUSAL or TAIL else 1):  # the whole blocks, then the others
        for start in range(whole if edge else 0, end if edge else whole, BLOCK_N):
            k = load_tile(
                ks, shared, k_h, start, N, k_n, D, k_d, VEC, TMA, TAIL and edge, NARROW_D,
                BLOCK_N, BLOCK_D, DOT,
            )  # fmt: skip
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
            if edge or mask_ptr is not None or SCALE < 0:
                cols = start + tl.arange(0, BLOCK_N)
                score = masked(
                    score * (SCALE * LOG2E), mask_ptr, mask_m, mask_n, rows[:, None],
                    cols[None, :], M, N, TAIL and edge, CAUSAL and edge,
                )  # fmt: skip
                higher = tl.maximum(top, tl.max(score, 1))
                shift = higher
                if mask_ptr is not None:  # no key seen so far: -inf - -inf would be NaN
                    shift = tl.where(higher == float("-inf"), 0.0, higher)
                p = tl.exp2(score - shift[:, None])
            else:  # one multiply-add a score
                higher = tl.maximum(top, tl.max(score, 1) * (SCALE * LOG2E))
                shift = higher
                p = tl.exp2(score * (SCALE * LOG2E) - shift[:, None])
            shrink = tl.exp2(top - shift)
            total = total * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None]
            if KEPT is not None:
                keep = kept(
                    head, first, start, M, N, seed_lo, seed_hi, offset_lo, offset_hi, threshold,
                    FOURS, BLOCK_M, BLOCK_N,
                )  # fmt: skip
                p = tl.where(keep, p, 0.0)
            v = load_tile(
                vs, shared, v_h, start, N, v_n, E, v_e, VEC, TMA, TAIL and edge, NARROW_E,
                BLOCK_N, BLOCK_E, DOT,
            )  # fmt: skip
            acc = tl.dot(p.to(DOT), v, acc, input_precision=PRECISION, out_dtype=ACC)
            top = higher

    blind = total == 0
    lse = tl.where(blind, float("inf"), top + tl.log2(total))  # 2^(score - inf) is 0
    tl.store(lse_ptr + head * M + rows, lse, mask=rows < M)
    share = 1.0 / tl.where(blind, 1.0, total)
    if KEPT is not None:
        share *= KEPT
    store_tile(out_ptr, head, first, M, E, acc * share[:, None], VEC, NARROW_E, BLOCK_M, BLOCK_E)


# ---- launching ----------------------------------------------------------------------------------


def supports(query: Any, value: Any) -> bool:
    """Whether the kernels take heads of these widths: at most 256, in float64 128."""
    return max(query.shape[3], value.shape[3]) <= (128 if query.dtype is dtypes.float64 else 256)


def near(x: DeviceArray) -> DeviceArray:
    """``x``, copied where rows of one head are so far apart that a tile would overflow int32."""
    return contiguous(x) if max(abs(s) for s in x.strides[2:]) >= 1 << 22 else x


def dropout_words(dropout: float, seed: int, offset: int) -> list[int]:
    """The launch arguments of ``kept``."""
    if not dropout:
        return [0] * 5
    return [*sealed(seed, offset), sealed(dropout_threshold(dropout))[0]]


def constants(
    q: DeviceArray, v: DeviceArray, arrays: list[DeviceArray], scale: float, causal: bool,
    dropout: float,
) -> dict[str, Any]:  # fmt: skip
    """What all kernels take by name, except the rows of a block. ``arrays`` are all that tiles are
    loaded from."""
    d, e = q.shape[3], v.shape[3]
    n = v.shape[2]
    aligned = [1 << 16, d, e]
    for a in arrays:
        aligned += [a.strides[2], *a.strides[:2]] if a.strides[3] == 1 else [1]
        aligned.append(a.ptr // a.dtype.itemsize)
    item = q.dtype.itemsize
    block_d, block_e = (max(16, next_power_of_2(x)) for x in (d, e))
    halves = q.dtype in dtypes.HALVES
    return {
        "SCALE": scale,
        "CAUSAL": causal,
        "KEPT": None if not dropout else 1.0 / (1.0 - dropout) if dropout < 1 else 0.0,
        "FOURS": n % 4 == 0,
        # the interpreter would multiply the bits of half types
        "DOT": tl.float32 if halves and q.device.interpreted else getattr(tl, q.dtype.name),
        "PRECISION": "tf32" if configs.kind_of(q.dtype) == "tf32" else "ieee",
        "VEC": min(math.gcd(*aligned) & -math.gcd(*aligned), 16 // item),
        "BLOCK_D": block_d,
        "BLOCK_E": block_e,
        "NARROW_D": d < block_d,
        "NARROW_E": e < block_e,
    }


def sizes(q: DeviceArray, k: DeviceArray, v: DeviceArray) -> tuple[int, ...]:
    """H, GROUP, M, N, D, E."""
    _, h, m, d = q.shape
    return h, h // k.shape[1], m, k.shape[2], d, v.shape[3]


def strided(x: DeviceArray | None, like: tuple[int, ...]) -> list[Any]:
    """An array and its strides as launch arguments; ``x`` broadcasts to ``like``."""
    if x is None:
        return [None, 0, 0, 0, 0]
    return [x, *x.broadcast_to(like).strides]


def attention(
    out: DeviceArray, lse: DeviceArray, q: DeviceArray, k: DeviceArray, v: DeviceArray,
    mask: DeviceArray | None, *, causal: bool, scale: float, dropout: float = 0.0, seed: int = 0,
    offset: int = 0,
) -> None:  # fmt: skip
    """``out`` (B, H, M, E) and ``lse`` (B, H, M) from q (B, H, M, D), k (B, H / group, N, D), v
    (B, H / group, N, E) and a mask that broadcasts to (B, H, M, N): boolean (True is seen) or added
    to the scores."""
    b, h, m, _ = q.shape
    if lse.size == 0:
        return
    q, k, v = near(q), near(k), near(v)
    n = k.shape[2]
    common = constants(q, v, [q, k, v], scale, causal, dropout)
    c = blocks(choose("attention", q, k, mask, common), common, k, v)
    launch(
        forward_kernel, (b * h * cdiv(m, c["BLOCK_M"]),), q, *q.strides, k, *k.strides, v,
        *v.strides, *strided(mask, (b, h, m, n)), out, lse, *sizes(q, k, v),
        *dropout_words(dropout, seed, offset), TAIL=n % c["BLOCK_N"] != 0, **common, **c,
    )  # fmt: skip


def _run(q: Any, k: Any, v: Any, g: Any, out: Any, lse: Any, mask: Any, dropout: float) -> None:
    attention(out, lse, q, k, v, mask, causal=mask is None, scale=0.1, dropout=dropout)


family(
    "attention",
    (forward_kernel,),
    _run,
    [(m, n, w, s) for m in (64, 128) for n in (32, 64, 128) for w in (4, 8) for s in (2, 3, 4)],
)
