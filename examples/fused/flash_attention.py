"""Attention whose M x N matrix of scores never exists in memory.

    out = softmax(scale q k^T) v      q (B, H, M, D), k and v (B, H / group, N, D) -> (B, H, M, D)

In plain ops the scores and their softmax are written and read several times, B H M N numbers each.
Here a program keeps a block of query rows and walks over blocks of keys. For every row it carries
the largest score so far, ``top``, and two sums relative to it, ``total`` of 2^(score - top) and
``acc`` of 2^(score - top) v. A new block that raises ``top`` shrinks both sums by one factor, and
at the end out = acc / total. Scores are measured in base 2 (scale log2(e) is one constant).

Forward keeps one number a row, lse = top + log2(total), from which backward makes any block of the
softmax again: p = 2^(score - lse). With delta = sum(g out) along a row, the gradients are

    dv = p^T g        ds = p (g v^T - delta)        dq = scale ds k        dk = scale ds^T q

A program of ``dq_kernel`` keeps query rows and walks over keys; one of ``dkdv_kernel`` keeps key
rows and walks over the queries of all heads that share them. Each writes its own rows once: no
atomics, so the same call gives the same bits.

``causal`` lets query i see the keys j <= i, counted from the first row and column as in torch.
Blocks above that diagonal are skipped; where a program keeps queries, the blocks below it run in a
loop without a mask.

Source: Dao et al., "FlashAttention", arXiv:2205.14135, and Dao, "FlashAttention-2",
arXiv:2307.08691, for the loops and the two gradient kernels; Milakov and Gimelshein,
arXiv:1805.02867, for the running maximum; Shazeer, arXiv:1911.02150, and Ainslie et al.,
arXiv:2305.13245, for heads that share keys.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from _bench import bench, main

import trident
from trident import dtypes
from trident.errors import DTypeError, wrong
from trident.lang import cdiv, next_power_of_2, tl

LOG2E = math.log2(math.e)


# ---- kernels: q and out have M rows, k and v have N; a stride has its tensor's and axis' name ----


@trident.jit
def load_rows(
    ptr, first, n_rows, row_stride, D, col_stride,
    ROWS: tl.constexpr, COLS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """ROWS rows of a matrix (n_rows, D) from row ``first`` on; zeros outside of it."""
    rows = first + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    offsets = rows.to(tl.int64)[:, None] * row_stride + cols.to(tl.int64)[None, :] * col_stride
    inside = (rows < n_rows)[:, None] & (cols < D)[None, :]
    return tl.load(ptr + offsets, mask=inside, other=0.0).to(DTYPE)


@trident.jit
def store_rows(ptr, first, n_rows, D, value, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Write ``value`` (ROWS, COLS) where it lies inside of a contiguous matrix (n_rows, D)."""
    rows = first + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    inside = (rows < n_rows)[:, None] & (cols < D)[None, :]
    offsets = rows.to(tl.int64)[:, None] * D + cols[None, :]
    tl.store(ptr + offsets, value.to(ptr.dtype.element_ty), mask=inside)


@trident.kernel(strided=("q_ptr", "k_ptr", "v_ptr"), writes=("out_ptr", "lse_ptr"))
def forward_kernel(
    q_ptr, q_b, q_h, q_m, q_d,  # (B, H, M, D), any strides
    k_ptr, k_b, k_h, k_n, k_d,  # (B, H / GROUP, N, D), any strides
    v_ptr, v_b, v_h, v_n, v_d,  # (B, H / GROUP, N, D), any strides
    out_ptr,  # (B, H, M, D) contiguous
    lse_ptr,  # (B, H, M) contiguous
    H, GROUP, M, N, D,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)  # of B * H
    block = blocks - 1 - tl.program_id(0) % blocks  # the last rows see the most keys: begin there
    b, h = head // H, head % H
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h // GROUP * k_h
    v_ptr += b * v_b + h // GROUP * v_h

    first = block * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    q = load_rows(q_ptr, first, M, q_m, D, q_d, BLOCK_M, BLOCK_D, DOT)
    top = tl.full((BLOCK_M,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_M,), ACC)
    acc = tl.zeros((BLOCK_M, BLOCK_D), ACC)

    end = tl.minimum(first + BLOCK_M, N) if CAUSAL else N  # no row sees a key from here on
    whole = (tl.minimum(first, N) if CAUSAL else N) // BLOCK_N * BLOCK_N  # all see all up to here
    for edge in tl.static_range(2):  # unrolled: the whole blocks, then those that need a mask
        for start in range(whole if edge else 0, end if edge else whole, BLOCK_N):
            k = load_rows(k_ptr, start, N, k_n, D, k_d, BLOCK_N, BLOCK_D, DOT)
            v = load_rows(v_ptr, start, N, v_n, D, v_d, BLOCK_N, BLOCK_D, DOT)
            score = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=ACC) * (SCALE * LOG2E)
            if edge:
                cols = start + tl.arange(0, BLOCK_N)
                seen = (cols < N)[None, :]
                if CAUSAL:
                    seen = seen & (cols[None, :] <= rows[:, None])
                score = tl.where(seen, score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            p = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(top - higher)
            total = total * shrink + tl.sum(p, 1)
            acc = acc * shrink[:, None]
            acc = tl.dot(p.to(DOT), v, acc, input_precision="ieee", out_dtype=ACC)
            top = higher

    total = tl.where(total == 0, 1.0, total)  # no key at all: zeros, not 0 / 0
    tl.store(lse_ptr + head * M + rows, top + tl.log2(total), mask=rows < M)
    store_rows(out_ptr + head * M * D, first, M, D, acc / total[:, None], BLOCK_M, BLOCK_D)


@trident.kernel(strided=("g_ptr",), writes=("delta_ptr",))
def delta_kernel(
    g_ptr, g_b, g_h, g_m, g_d,  # (B, H, M, D), any strides
    out_ptr,  # (B, H, M, D) contiguous
    delta_ptr,  # (B, H, M) contiguous
    H, M, D,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK_M
    g_ptr += head // H * g_b + head % H * g_h
    out_ptr += head * M * D
    ACC: tl.constexpr = delta_ptr.dtype.element_ty
    g = load_rows(g_ptr, first, M, g_m, D, g_d, BLOCK_M, BLOCK_D, ACC)
    out = load_rows(out_ptr, first, M, D, D, 1, BLOCK_M, BLOCK_D, ACC)
    rows = first + tl.arange(0, BLOCK_M)
    tl.store(delta_ptr + head * M + rows, tl.sum(g * out, 1), mask=rows < M)


@trident.kernel(strided=("g_ptr", "q_ptr", "k_ptr", "v_ptr"), writes=("dq_ptr",))
def dq_kernel(
    g_ptr, g_b, g_h, g_m, g_d,  # (B, H, M, D), any strides
    q_ptr, q_b, q_h, q_m, q_d,  # (B, H, M, D), any strides
    k_ptr, k_b, k_h, k_n, k_d,  # (B, H / GROUP, N, D), any strides
    v_ptr, v_b, v_h, v_n, v_d,  # (B, H / GROUP, N, D), any strides
    lse_ptr,  # (B, H, M) contiguous
    delta_ptr,  # (B, H, M) contiguous
    dq_ptr,  # (B, H, M, D) contiguous
    H, GROUP, M, N, D,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(M, BLOCK_M)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    block = blocks - 1 - tl.program_id(0) % blocks
    b, h = head // H, head % H
    g_ptr += b * g_b + h * g_h
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h // GROUP * k_h
    v_ptr += b * v_b + h // GROUP * v_h

    first = block * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    q = load_rows(q_ptr, first, M, q_m, D, q_d, BLOCK_M, BLOCK_D, DOT)
    g = load_rows(g_ptr, first, M, g_m, D, g_d, BLOCK_M, BLOCK_D, DOT)
    lse = tl.load(lse_ptr + head * M + rows, mask=rows < M, other=0.0)[:, None]
    delta = tl.load(delta_ptr + head * M + rows, mask=rows < M, other=0.0)[:, None]
    dq = tl.zeros((BLOCK_M, BLOCK_D), ACC)

    end = tl.minimum(first + BLOCK_M, N) if CAUSAL else N
    whole = (tl.minimum(first, N) if CAUSAL else N) // BLOCK_N * BLOCK_N
    for edge in tl.static_range(2):
        for start in range(whole if edge else 0, end if edge else whole, BLOCK_N):
            k = load_rows(k_ptr, start, N, k_n, D, k_d, BLOCK_N, BLOCK_D, DOT)
            v = load_rows(v_ptr, start, N, v_n, D, v_d, BLOCK_N, BLOCK_D, DOT)
            score = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=ACC) * (SCALE * LOG2E)
            if edge:
                cols = start + tl.arange(0, BLOCK_N)
                seen = (cols < N)[None, :]
                if CAUSAL:
                    seen = seen & (cols[None, :] <= rows[:, None])
                score = tl.where(seen, score, float("-inf"))
            dp = tl.dot(g, tl.trans(v), input_precision="ieee", out_dtype=ACC)
            ds = tl.exp2(score - lse) * (dp - delta)
            dq = tl.dot(ds.to(DOT), k, dq, input_precision="ieee", out_dtype=ACC)
    store_rows(dq_ptr + head * M * D, first, M, D, dq * SCALE, BLOCK_M, BLOCK_D)


@trident.kernel(strided=("g_ptr", "q_ptr", "k_ptr", "v_ptr"), writes=("dk_ptr", "dv_ptr"))
def dkdv_kernel(
    g_ptr, g_b, g_h, g_m, g_d,  # (B, H, M, D), any strides
    q_ptr, q_b, q_h, q_m, q_d,  # (B, H, M, D), any strides
    k_ptr, k_b, k_h, k_n, k_d,  # (B, H / GROUP, N, D), any strides
    v_ptr, v_b, v_h, v_n, v_d,  # (B, H / GROUP, N, D), any strides
    lse_ptr,  # (B, H, M) contiguous
    delta_ptr,  # (B, H, M) contiguous
    dk_ptr,  # (B, H / GROUP, N, D) contiguous
    dv_ptr,  # (B, H / GROUP, N, D) contiguous
    H, GROUP, M, N, D,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, DOT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(N, BLOCK_N)
    shared = (tl.program_id(0) // blocks).to(tl.int64)  # of B * H / GROUP
    first = tl.program_id(0) % blocks * BLOCK_N
    b = shared * GROUP // H
    k_ptr += b * k_b + shared % (H // GROUP) * k_h
    v_ptr += b * v_b + shared % (H // GROUP) * v_h

    cols = first + tl.arange(0, BLOCK_N)
    ACC: tl.constexpr = lse_ptr.dtype.element_ty
    k = load_rows(k_ptr, first, N, k_n, D, k_d, BLOCK_N, BLOCK_D, DOT)
    v = load_rows(v_ptr, first, N, v_n, D, v_d, BLOCK_N, BLOCK_D, DOT)
    dk = tl.zeros((BLOCK_N, BLOCK_D), ACC)
    dv = tl.zeros((BLOCK_N, BLOCK_D), ACC)

    # the transposed blocks, keys down and queries across. Rows past M load as zeros and add
    # nothing, keys past N spoil only rows that are not stored: the diagonal alone needs a mask
    begin = first // BLOCK_M * BLOCK_M if CAUSAL else 0  # the queries above see none of the keys
    for head in range(shared * GROUP, shared * GROUP + GROUP):
        g_head = g_ptr + b * g_b + head % H * g_h
        q_head = q_ptr + b * q_b + head % H * q_h
        for start in range(begin, M, BLOCK_M):
            g = load_rows(g_head, start, M, g_m, D, g_d, BLOCK_M, BLOCK_D, DOT)
            q = load_rows(q_head, start, M, q_m, D, q_d, BLOCK_M, BLOCK_D, DOT)
            rows = start + tl.arange(0, BLOCK_M)
            lse = tl.load(lse_ptr + head * M + rows, mask=rows < M, other=0.0)[None, :]
            delta = tl.load(delta_ptr + head * M + rows, mask=rows < M, other=0.0)[None, :]
            score = tl.dot(k, tl.trans(q), input_precision="ieee", out_dtype=ACC)
            score = score * (SCALE * LOG2E)
            if CAUSAL:
                score = tl.where(cols[:, None] <= rows[None, :], score, float("-inf"))
            p = tl.exp2(score - lse)
            dv = tl.dot(p.to(DOT), g, dv, input_precision="ieee", out_dtype=ACC)
            dp = tl.dot(v, tl.trans(g), input_precision="ieee", out_dtype=ACC)
            ds = p * (dp - delta)
            dk = tl.dot(ds.to(DOT), q, dk, input_precision="ieee", out_dtype=ACC)
    store_rows(dk_ptr + shared * N * D, first, N, D, dk * SCALE, BLOCK_N, BLOCK_D)
    store_rows(dv_ptr + shared * N * D, first, N, D, dv, BLOCK_N, BLOCK_D)


# ---- launchers -----------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Rows that a program keeps, rows that a step of its loop reads, and launch options."""

    keep: int
    step: int
    warps: int
    stages: int


# By bytes of an element and D padded to a power of two, for forward, dq, and dk with dv: what four
# targets (sm_80, sm_90, sm_100, gfx942 with its 64 KB of shared memory) compile without spills. No
# GPU has timed them.
TILES = {
    (2, 64): (Tile(128, 64, 8, 3), Tile(64, 32, 4, 2), Tile(64, 32, 4, 1)),
    (2, 128): (Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(64, 16, 8, 2)),
    (2, 256): (Tile(64, 32, 8, 2), Tile(32, 16, 8, 1), Tile(32, 16, 8, 1)),
    (4, 64): (Tile(32, 32, 4, 2), Tile(32, 32, 4, 2), Tile(16, 16, 4, 2)),
    (4, 128): (Tile(32, 16, 4, 2), Tile(32, 16, 4, 2), Tile(32, 16, 8, 2)),
    (4, 256): (Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
    (8, 64): (Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
    (8, 128): (Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)),
}
SMALL = Tile(32, 16, 4, 1), Tile(16, 32, 4, 1), Tile(32, 16, 4, 1)  # many blocks in small tests


def tiles(q):
    """The tiles of the forward, the dq and the dkdv kernel."""
    if q.device.interpreted:
        return SMALL
    return TILES[q.dtype.itemsize, max(64, next_power_of_2(q.shape[3]))]


def constants(q, causal, scale):
    """What the kernels take by name, except for the rows of a block."""
    widen = q.device.interpreted and q.dtype in dtypes.HALVES  # it would multiply their bits
    return {
        "SCALE": scale_of(q, scale),
        "CAUSAL": causal,
        "DOT": trident.float32 if widen else q.dtype,  # what products are taken of
        "BLOCK_D": max(16, next_power_of_2(q.shape[3])),
    }


def options(tile):
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def sizes(q, k):
    """H, GROUP, M, N, D."""
    _, h, m, d = q.shape
    return h, h // k.shape[1], m, k.shape[2], d


def forward(out, lse, q, k, v, *, causal, scale):
    b, h, m, _ = q.shape
    tile, _, _ = tiles(q)
    forward_kernel[(b * h * cdiv(m, tile.keep),)](
        *(q, *q.strides, k, *k.strides, v, *v.strides, out, lse, *sizes(q, k)),
        **constants(q, causal, scale),
        **options(tile),
        BLOCK_M=tile.keep,
        BLOCK_N=tile.step,
    )


def backward(dq, dk, dv, g, q, k, v, out, lse, *, causal, scale):
    (b, h, m, d), (_, hkv, n, _) = q.shape, k.shape
    _, rows, cols = tiles(q)
    common = constants(q, causal, scale)
    delta = q.device.empty(lse.shape, lse.dtype)
    delta_kernel[(b * h * cdiv(m, 32),)](
        *(g, *g.strides, out, delta, h, m, d), BLOCK_M=32, BLOCK_D=common["BLOCK_D"]
    )
    read = (g, *g.strides, q, *q.strides, k, *k.strides, v, *v.strides, lse, delta)
    if dq is not None:
        dq_kernel[(b * h * cdiv(m, rows.keep),)](
            *(*read, dq, *sizes(q, k)),
            **common,
            **options(rows),
            BLOCK_M=rows.keep,
            BLOCK_N=rows.step,
        )
    if dk is not None or dv is not None:  # the one that nobody asked for is scratch
        dk = dk or k.device.empty(k.shape, k.dtype)
        dv = dv or v.device.empty(v.shape, v.dtype)
        dkdv_kernel[(b * hkv * cdiv(n, cols.keep),)](
            *(*read, dk, dv, *sizes(q, k)),
            **common,
            **options(cols),
            BLOCK_M=cols.step,
            BLOCK_N=cols.keep,
        )


# ---- the op --------------------------------------------------------------------------------------


def scale_of(q, scale):
    return 1.0 / math.sqrt(q.shape[3]) if scale is None else float(scale)


@trident.fused(
    forward=forward,
    backward=backward,
    residuals={"lse": lambda q, k, v, **_: q.shape[:3]},
    method=False,
)
def flash_attention(q, k, v, *, causal=False, scale=None):
    """softmax(scale q k^T) v for every head, without the matrix of scores.

    q (B, H, M, D), k and v (B, Hkv, N, D) -> (B, H, M, D), all of one floating dtype, any strides.
    H is a multiple of Hkv: query heads h * H / Hkv and following share key head h. D is at most
    256, in float64 128. ``scale`` defaults to 1 / sqrt(D). With ``causal`` query i sees the keys
    j <= i (aligned at the top left where M != N). Without keys (N = 0) the result is 0. A GPU
    multiplies half types as they are, p and ds rounded to them, and sums in float32. Raises
    ShapeError and DTypeError.

    >>> q = trident.zeros(1, 4, 3, 8)
    >>> k = v = trident.ones(1, 2, 5, 8)
    >>> flash_attention(q, k, v, causal=True).shape
    trident.Size([1, 4, 3, 8])
    """
    b, h, m, d = q.shape
    _, hkv, n, _ = k.shape
    groups = trident.reshape(q, (b, hkv, h // hkv, m, d))
    keys, values = trident.unsqueeze(k, 2), trident.unsqueeze(v, 2)
    scores = trident.matmul(groups, trident.transpose(keys, -1, -2)) * scale_of(q, scale)
    if causal:
        row = trident.unsqueeze(trident.arange_like(q, n=m, dtype=trident.int64), 1)
        col = trident.arange_like(k, n=n, dtype=trident.int64)
        scores = trident.where(col <= row, scores, -math.inf)
    out = trident.matmul(trident.softmax(scores, -1), values)
    return trident.reshape(out, (b, h, m, d))


@flash_attention.check
def _(q, k, v, *, causal, scale):
    op, got = "flash_attention", f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise wrong(op, "q must be (B, H, M, D), k and v (B, Hkv, N, D)", got=got)
    (b, h, _, d), hkv = q.shape, k.shape[1]
    if k.shape != v.shape or (k.shape[0], k.shape[3]) != (b, d):
        raise wrong(op, f"k and v must both be (B, Hkv, N, D) with B = {b} and D = {d}", got=got)
    if hkv == 0 or h % hkv:
        hint = "every key head serves the same number of query heads"
        raise wrong(op, f"H = {h} must be a multiple of Hkv = {hkv}", got=got, hint=hint)
    if not q.dtype.is_floating_point or not q.dtype is k.dtype is v.dtype:
        got = f"{q.dtype.name}, {k.dtype.name} and {v.dtype.name}"
        hint = "convert with x.to(dtype)"
        expected = "q, k and v must have one floating dtype"
        raise wrong(op, expected, got=got, hint=hint, error=DTypeError)
    largest = max(columns for size, columns in TILES if size == q.dtype.itemsize)
    if not 1 <= d <= largest:
        hint = "longer rows: flash_attention.op.body(q, k, v), in plain ops"
        raise wrong(op, f"D must lie in [1, {largest}] in {q.dtype.name}", got=d, hint=hint)


@flash_attention.samples
def _(draw):
    b, hkv, group = draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 3)
    m, n = (draw.choice([1, 5, 16, 33, 70]) for _ in range(2))
    d = draw.choice([1, 8, 16, 20])

    def heads(count, rows):
        if draw.boolean():  # heads last, as a projection of (B, M, H * D) leaves them
            return draw.tensor((b, rows, count, d)).transpose(0, 2, 1, 3)
        return draw.tensor((b, count, rows, d))

    call = heads(hkv * group, m), heads(hkv, n), heads(hkv, n)
    return call, {"causal": draw.boolean(), "scale": draw.choice([None, 0.3])}


# ---- python flash_attention.py -------------------------------------------------------------------


def example():
    trident.manual_seed(0)
    q, k, v = trident.randn(1, 8, 50, 40), trident.randn(1, 2, 50, 40), trident.randn(1, 2, 50, 40)
    print("two key heads for eight query heads:", flash_attention(q, k, v, causal=True).shape)
    first = flash_attention(q, k, v, causal=True)[:, :, 0]
    print("the first query sees one key:", trident.allclose(first[:, :4], v[:, :1, 0]))


def variants(device):
    dtype, (b, h, m, d) = (trident.float32, (1, 4, 512, 64))
    if device == "cuda":
        dtype, (b, h, m, d) = (trident.bfloat16, (4, 32, 4096, 128))
    leaves = [trident.randn(b, h, m, d, dtype=dtype, device=device) for _ in range(3)]
    for x in leaves:
        x.requires_grad = True
    g = trident.randn(b, h, m, d, dtype=dtype, device=device)

    def train(function, causal):
        return trident.autograd.grad(function(*leaves, causal=causal, scale=None), leaves, g)

    def infer(function, causal):
        with trident.no_grad():
            return function(*leaves, causal=causal, scale=None)

    functions = {"plain ops": flash_attention.op.body, "flash_attention": flash_attention}
    for causal in (False, True):
        products = 2 * b * h * m * m * d / (2 if causal else 1)  # flops of one matrix product
        for what, call, count in (("forward", infer, 2), ("forward and backward", train, 7)):
            bench(
                f"{what}{', causal' * causal}, ({b}, {h}, {m}, {d}) {dtype.name} on {device}",
                {n: (lambda f=f, call=call, c=causal: call(f, c)) for n, f in functions.items()},
                flops=count * products,
            )


if __name__ == "__main__":
    main(flash_attention, variants, example)
