"""Matrix multiplication: a tiled kernel for tensor cores, a sum-of-products kernel for thin shapes.

``matmul`` views every call as batches of ``(m, k) @ (k, n)`` with free strides on all three axes,
so that transposed, sliced and broadcast operands are read where they lie. Then ``schedule`` names
the function of a ``Problem`` that launches it; a new schedule (persistent, split-K) goes beside
``tiled`` and ``thin`` and is chosen there.

Source: the grouped order of output tiles, which keeps the operands of neighbouring programs in L2,
is that of Triton's matrix multiplication tutorial.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import Jit, cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from ..shapes import Shape


@jit
def finish(acc, bias_ptr, offsets, mask, out_type: tl.constexpr, ACT: tl.constexpr):
    """``ACT(acc + bias)`` in the type of ``acc``, rounded to ``out_type`` after each of the three.

    That is where separate ops would round, so a fused call and the ops it stands for agree.
    """
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offsets, mask=mask, other=0).to(acc.dtype)
        acc = acc.to(out_type).to(acc.dtype) + bias
    if ACT is not None:
        acc = ACT(acc.to(out_type).to(acc.dtype))
    return acc.to(out_type)


@jit
def tiled_kernel(
    a_ptr,  # (outer, inner, m, k)
    b_ptr,  # (outer, inner, k, n)
    bias_ptr,  # (m, n) or None
    out_ptr,  # (outer, inner, m, n)
    m,
    n,
    k,
    inner,
    a_outer_stride,
    a_inner_stride,
    a_m_stride,
    a_k_stride,
    b_outer_stride,
    b_inner_stride,
    b_k_stride,
    b_n_stride,
    bias_m_stride,
    bias_n_stride,
    out_outer_stride,
    out_inner_stride,
    out_m_stride,
    out_n_stride,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    ACT: tl.constexpr,
    WIDEN: tl.constexpr,
    EVEN_K: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    # bands of GROUP_M rows of tiles, each walked column by column
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    batch = tl.program_id(0) // (tiles_m * tiles_n)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    first_m = tile // (GROUP_M * tiles_n) * GROUP_M
    band = tl.minimum(tiles_m - first_m, GROUP_M)
    tile_m = first_m + tile % (GROUP_M * tiles_n) % band
    tile_n = tile % (GROUP_M * tiles_n) // band

    outer = (batch // inner).to(tl.int64)
    step = (batch % inner).to(tl.int64)
    a_ptr += outer * a_outer_stride + step * a_inner_stride
    b_ptr += outer * b_outer_stride + step * b_inner_stride
    out_ptr += outer * out_outer_stride + step * out_inner_stride

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask = rows < m
    col_mask = cols < n
    if INT64:
        rows = rows.to(tl.int64)
        cols = cols.to(tl.int64)
        ks = ks.to(tl.int64)
    a_ptrs = a_ptr + rows[:, None] * a_m_stride + ks[None, :] * a_k_stride
    b_ptrs = b_ptr + ks[:, None] * b_k_stride + cols[None, :] * b_n_stride

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_ptrs, mask=row_mask[:, None], other=0.0)
            b = tl.load(b_ptrs, mask=col_mask[None, :], other=0.0)
        else:
            k_mask = ks < k - start
            a = tl.load(a_ptrs, mask=row_mask[:, None] & k_mask[None, :], other=0.0)
            b = tl.load(b_ptrs, mask=k_mask[:, None] & col_mask[None, :], other=0.0)
        if WIDEN:  # the interpreter multiplies the raw bits of half types
            a = a.to(ACC)
            b = b.to(ACC)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)
        a_ptrs += BLOCK_K * a_k_stride
        b_ptrs += BLOCK_K * b_k_stride

    mask = row_mask[:, None] & col_mask[None, :]
    bias_offsets = rows[:, None] * bias_m_stride + cols[None, :] * bias_n_stride
    value = finish(acc, bias_ptr, bias_offsets, mask, out_ptr.dtype.element_ty, ACT)
    tl.store(out_ptr + rows[:, None] * out_m_stride + cols[None, :] * out_n_stride, value, mask)


@jit
def thin_kernel(
    a_ptr,  # (outer, inner, m, k), m small
    b_ptr,  # (outer, inner, k, n)
    bias_ptr,  # (m, n) or None
    out_ptr,  # (outer, inner, m, n)
    m,
    n,
    k,
    inner,
    a_outer_stride,
    a_inner_stride,
    a_m_stride,
    a_k_stride,
    b_outer_stride,
    b_inner_stride,
    b_k_stride,
    b_n_stride,
    bias_m_stride,
    bias_n_stride,
    out_outer_stride,
    out_inner_stride,
    out_m_stride,
    out_n_stride,
    ACC: tl.constexpr,
    ACT: tl.constexpr,
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
    step = (batch % inner).to(tl.int64)
    a_ptr += outer * a_outer_stride + step * a_inner_stride
    b_ptr += outer * b_outer_stride + step * b_inner_stride
    out_ptr += outer * out_outer_stride + step * out_inner_stride

    rows = tile % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask = rows < m
    col_mask = cols < n
    if INT64:
        rows = rows.to(tl.int64)
        cols = cols.to(tl.int64)
        ks = ks.to(tl.int64)
    a_ptrs = a_ptr + rows[:, None] * a_m_stride + ks[None, :] * a_k_stride
    b_ptrs = b_ptr + cols[:, None] * b_n_stride + ks[None, :] * b_k_stride

    acc = tl.zeros((BLOCK_M, BLOCK_N, BLOCK_K), dtype=ACC)
    for start in range(0, k, BLOCK_K):
        k_mask = (ks < k - start)[None, :]
        a = tl.load(a_ptrs, mask=row_mask[:, None] & k_mask, other=0).to(ACC)
        b = tl.load(b_ptrs, mask=col_mask[:, None] & k_mask, other=0).to(ACC)
        acc += a[:, None, :] * b[None, :, :]
        a_ptrs += BLOCK_K * a_k_stride
        b_ptrs += BLOCK_K * b_k_stride

    mask = row_mask[:, None] & col_mask[None, :]
    bias_offsets = rows[:, None] * bias_m_stride + cols[None, :] * bias_n_stride
    total = tl.sum(acc, axis=2).to(ACC)
    value = finish(total, bias_ptr, bias_offsets, mask, out_ptr.dtype.element_ty, ACT)
    tl.store(out_ptr + rows[:, None] * out_m_stride + cols[None, :] * out_n_stride, value, mask)


@dataclass(frozen=True)
class Problem:
    """``out = act(a @ b + bias)`` with at most two batch axes (outer, inner), all four of rank 4.

    a (outer, inner, m, k), b (outer, inner, k, n), out (outer, inner, m, n), bias (m, n) or None.
    """

    out: DeviceArray
    a: DeviceArray
    b: DeviceArray
    bias: DeviceArray | None
    act: Jit | None

    @property
    def mnk(self) -> tuple[int, int, int]:
        return self.a.shape[2], self.b.shape[3], self.a.shape[3]

    @property
    def batches(self) -> int:
        return self.out.shape[0] * self.out.shape[1]

    def transposed(self) -> Problem:
        """The same numbers as ``out.T = b.T @ a.T``."""
        swap = (0, 1, 3, 2)
        bias = self.bias.transpose((1, 0)) if self.bias is not None else None
        return Problem(
            self.out.transpose(swap), self.b.transpose(swap), self.a.transpose(swap), bias, self.act
        )

    def args(self) -> tuple:
        """The arguments that every kernel of this file begins with."""
        bias_strides = self.bias.strides if self.bias is not None else (0, 0)
        return (
            *(self.a, self.b, self.bias, self.out),
            *self.mnk,
            self.out.shape[1],
            *self.a.strides,
            *self.b.strides,
            *bias_strides,
            *self.out.strides,
        )

    def constants(self) -> dict:
        """The constants that every kernel of this file takes."""
        return {
            "ACC": _accumulator(self.a.dtype),
            "ACT": self.act.triton() if self.act is not None else None,
            "INT64": shapes.needs_int64(self.a, self.b, self.out, self.bias),
        }


def _accumulator(dtype: DType) -> object:
    """float32 for halves and float32, float64 for itself; small ints in int32 (sums wrap alike)."""
    if dtype is dtypes.float64:
        return tl.float64
    if dtype.is_floating_point:
        return tl.float32
    return tl.int64 if dtype is dtypes.int64 else tl.int32


class Tile(NamedTuple):
    """Block sizes and launch options of one entry of the tables below."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# Chosen so that the operand buffers of all stages fit the smallest target: 64 KiB on gfx942.
# Each row: from how many output elements on it is used, and the tile.
TILES = {
    "half": ((1 << 20, Tile(128, 128, 32, 8, 4)), (1 << 16, Tile(64, 128, 32, 8, 4)),
             (0, Tile(32, 64, 32, 4, 4))),
    "tf32": ((1 << 20, Tile(128, 64, 32, 4, 3)), (0, Tile(64, 32, 32, 4, 3))),
    "single": ((1 << 18, Tile(64, 64, 16, 8, 2)), (0, Tile(32, 32, 16, 4, 3))),
    "double": ((1 << 18, Tile(64, 64, 16, 8, 2)), (0, Tile(32, 32, 16, 4, 3))),
}  # fmt: skip
THIN = 4
"""Up to this many rows or columns, memory and not arithmetic is what a product waits for."""


def tile_for(dtype: DType, precision: str, m: int, n: int, k: int) -> Tile:
    """The block sizes for a GPU; never wider than the matrix asks for."""
    if dtype is dtypes.float64:
        kind = "double"
    elif dtype is dtypes.float32:
        kind = "tf32" if precision == "tf32" else "single"
    else:
        kind = "half"
    tile = next(t for least, t in TILES[kind] if m * n >= least)
    fit = {
        "m": min(tile.m, max(16, next_power_of_2(m))),
        "n": min(tile.n, max(16, next_power_of_2(n))),
    }
    return tile._replace(**fit)


def tiled(p: Problem) -> None:
    """One program a tile of the output, ``tl.dot`` along k."""
    m, n, k = p.mnk
    high = p.a.dtype is dtypes.float32 and config.matmul_precision.get() == "high"
    precision = "tf32" if high else "ieee"
    if p.a.device.interpreted:  # the cost of a program hardly depends on its size there
        bm, bn, bk = (min(256, max(16, next_power_of_2(size))) for size in (m, n, k))
        tile = Tile(bm, bn, bk, 4, 1)
    else:
        tile = tile_for(p.a.dtype, precision, m, n, k)
    launch(
        tiled_kernel,
        (p.batches * cdiv(m, tile.m) * cdiv(n, tile.n),),
        *p.args(),
        num_warps=tile.warps,
        num_stages=tile.stages,
        PRECISION=precision,
        WIDEN=p.a.device.interpreted and p.a.dtype in dtypes.HALVES,
        EVEN_K=k % tile.k == 0,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        GROUP_M=8,
        **p.constants(),
    )


def thin(p: Problem) -> None:
    """Sums of products without ``tl.dot``: matrix times vector, few rows, all integer types."""
    m, n, k = p.mnk
    if m > n:
        p = p.transposed()
        m, n = n, m
    if p.a.device.interpreted:
        room, bm, bk = 1 << 17, 32, 256
    else:
        room, bm, bk = (1 << 12, THIN, 128) if p.a.dtype.itemsize < 8 else (1 << 10, THIN, 64)
    bm = min(next_power_of_2(m), bm)
    bk = min(next_power_of_2(k), bk)
    bn = min(next_power_of_2(n), room // (bm * bk))
    if bn == 1:  # an inner product: one program walks all of k
        bk = min(next_power_of_2(k), room // bm)
    launch(
        thin_kernel,
        (p.batches * cdiv(m, bm) * cdiv(n, bn),),
        *p.args(),
        num_warps=4,
        BLOCK_M=bm,
        BLOCK_N=bn,
        BLOCK_K=bk,
        **p.constants(),
    )


def schedule(p: Problem) -> Callable[[Problem], None]:
    """Which kernel family runs ``p``."""
    m, n, _ = p.mnk
    return thin if not p.a.dtype.is_floating_point or min(m, n) <= THIN else tiled


def matmul(
    out: DeviceArray,
    a: DeviceArray,
    b: DeviceArray,
    *,
    bias: DeviceArray | None = None,
    act: Jit | None = None,
) -> None:
    """``out = act(a @ b + bias)``: a (..., m, k), b (..., k, n), batch axes broadcast.

    ``out`` is contiguous. ``bias`` broadcasts to (m, n): ``(n,)`` is one number a column,
    ``(m, 1)`` one a row. ``act`` is a ``@jit`` function of one value. All of one dtype.
    """
    if out.size == 0:
        return
    batch = out.shape[:-2]
    a = a.broadcast_to(batch + a.shape[-2:])
    b = b.broadcast_to(batch + b.shape[-2:])
    if bias is not None:
        bias = bias.broadcast_to(out.shape[-2:])
    if batch and (bias is None or bias.strides[0] == 0) and not any(b.strides[:-2]):
        rows = shapes.numel(out.shape[:-1])  # one b for all batches: their rows are one long matrix
        if a.can_reshape((rows, a.shape[-1])):
            a = a.reshape((rows, a.shape[-1]))
            b = b.as_strided(b.shape[-2:], b.strides[-2:])
            out = out.reshape((rows, out.shape[-1]))
            bias = bias.as_strided(out.shape, bias.strides) if bias is not None else None
    for o, x, y in _four_axes(out, a, b):
        p = Problem(o, x, y, bias, act)
        schedule(p)(p)


def _four_axes(*arrays: DeviceArray) -> Iterator[tuple[DeviceArray, ...]]:
    """The arrays with their (equal) batch axes merged into two; more of them are looped over."""
    sizes, strides = merge_axes(arrays[0].shape[:-2], [x.strides[:-2] for x in arrays])
    lead = max(len(sizes) - 2, 0)
    pad = (1,) * (2 - len(sizes))
    for index in itertools.product(*(range(size) for size in sizes[:lead])):
        yield tuple(
            x.as_strided(
                pad + sizes[lead:] + x.shape[-2:],
                (0,) * len(pad) + st[lead:] + x.strides[-2:],
                sum(i * s for i, s in zip(index, st)),
            )
            for x, st in zip(arrays, strides)
        )


def merge_axes(sizes: Shape, strides: list[Shape]) -> tuple[Shape, list[Shape]]:
    """Drop axes of size 1 and join neighbours that every array walks as one axis.

    ((2, 1, 3), [(3, 9, 1), (0, 0, 0)]) -> ((6,), [(1,), (0,)]).
    """
    kept: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(sizes):
        if size == 1:
            continue
        if kept and all(done[-1] == st[axis] * size for done, st in zip(steps, strides)):
            kept[-1] *= size
            for done, st in zip(steps, strides):
                done[-1] = st[axis]
        else:
            kept.append(size)
            for done, st in zip(steps, strides):
                done.append(st[axis])
    return tuple(kept), [tuple(s) for s in steps]
