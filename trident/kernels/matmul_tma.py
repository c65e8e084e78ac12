"""Matrix products through tensor descriptors, from sm_90 on: the memory unit fetches whole blocks.

One program a multiprocessor walks over the tiles. A block arrives in shared memory by one
instruction of one thread, laid out as the tensor cores read it; what lies outside of the array
arrives as zeros, so no load has a mask. An operand is described in its own memory order, rows of
k or rows of m (n), and turned round on the way into the product: nothing is copied.

Source: the loop is that of Triton's tutorial on persistent matrix multiplication (09).
"""

from __future__ import annotations

from .. import dtypes
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from ..runtime.tuning import Config
from . import configs
from .matmul_common import Problem, finish, halved, place

ALIGNMENT = 16
"""Bytes that the first address and every stride but the last must be a multiple of."""
RESERVED = 2048
"""Bytes of shared memory for barriers and small things."""


@jit
def descriptor(
    ptr, outer, inner, rows, cols, outer_stride, inner_stride, row_stride,
    BATCHED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Blocks (BLOCK_R, BLOCK_C) of the matrices in an array (outer, inner, rows, cols)."""
    if BATCHED:
        desc = tl.make_tensor_descriptor(
            ptr,
            shape=[outer, inner, rows, cols],
            strides=[outer_stride, inner_stride, row_stride, 1],
            block_shape=[1, 1, BLOCK_R, BLOCK_C],
        )
    else:
        desc = tl.make_tensor_descriptor(
            ptr, shape=[rows, cols], strides=[row_stride, 1], block_shape=[BLOCK_R, BLOCK_C]
        )
    return desc


@jit
def block(
    desc, o, i, row, col,
    BATCHED: tl.constexpr, TURNED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The (BLOCK_R, BLOCK_C) block at (row, col); TURNED: the array in memory is its transpose."""
    if BATCHED and TURNED:
        x = desc.load([o, i, col, row]).reshape(BLOCK_C, BLOCK_R).T
    elif BATCHED:
        x = desc.load([o, i, row, col]).reshape(BLOCK_R, BLOCK_C)
    elif TURNED:
        x = desc.load([col, row]).T
    else:
        x = desc.load([row, col])
    return x


@jit
def tma_kernel(
    a_ptr,  # (a_outer, a_inner, m, k), or (a_outer, a_inner, k, m) with A_TURNED
    b_ptr,  # (b_outer, b_inner, k, n), or (b_outer, b_inner, n, k) with B_TURNED
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
    outer,
    programs,
    a_outer,  # outer, or 1 where all of outer reads the same a
    a_inner,
    b_outer,
    b_inner,
    a_outer_stride,
    a_inner_stride,
    a_row_stride,
    b_outer_stride,
    b_inner_stride,
    b_row_stride,
    bias_stride,
    c_batch_stride,
    c_m_stride,
    c_n_stride,
    out_outer_stride,
    out_inner_stride,
    out_m_stride,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    ACT: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    ACT_HALVED: tl.constexpr,
    BATCHED: tl.constexpr,
    A_TURNED: tl.constexpr,
    B_TURNED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    HALVES: tl.constexpr,
    FLATTEN: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):
    if A_TURNED:
        a_desc = descriptor(
            a_ptr, a_outer, a_inner, k, m, a_outer_stride, a_inner_stride, a_row_stride,
            BATCHED, BLOCK_K, BLOCK_M,
        )  # fmt: skip
    else:
        a_desc = descriptor(
            a_ptr, a_outer, a_inner, m, k, a_outer_stride, a_inner_stride, a_row_stride,
            BATCHED, BLOCK_M, BLOCK_K,
        )  # fmt: skip
    if B_TURNED:
        b_desc = descriptor(
            b_ptr, b_outer, b_inner, n, k, b_outer_stride, b_inner_stride, b_row_stride,
            BATCHED, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        b_desc = descriptor(
            b_ptr, b_outer, b_inner, k, n, b_outer_stride, b_inner_stride, b_row_stride,
            BATCHED, BLOCK_K, BLOCK_N,
        )  # fmt: skip
    PARTS: tl.constexpr = 2 if HALVES else 1
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    out_desc = descriptor(
        out_ptr, outer, inner, m, n, out_outer_stride, out_inner_stride, out_m_stride,
        BATCHED, BLOCK_M, WIDTH,
    )  # fmt: skip
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    length = k
    if chunk is not None:
        length = chunk

    for item in tl.range(
        tl.program_id(0),
        outer * inner * tiles_m * tiles_n,
        programs,
        flatten=FLATTEN,
        warp_specialize=WARP_SPECIALIZE,
    ):
        batch, tile_m, tile_n = place(item, tiles_m, tiles_n, GROUP_M)
        o = batch // inner
        i = batch % inner
        a_o = tl.minimum(o, a_outer - 1)
        a_i = tl.minimum(i, a_inner - 1)
        b_o = tl.minimum(o, b_outer - 1)
        b_i = tl.minimum(i, b_inner - 1)
        row = tile_m * BLOCK_M
        col = tile_n * BLOCK_N
        first = 0
        if chunk is not None:
            first = o * chunk

        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
        for start in range(0, length, BLOCK_K):
            at = first + start
            a = block(a_desc, a_o, a_i, row, at, BATCHED, A_TURNED, BLOCK_M, BLOCK_K)
            b = block(b_desc, b_o, b_i, at, col, BATCHED, B_TURNED, BLOCK_K, BLOCK_N)
            acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)

        if HALVES:  # half as much shared memory on the way out
            parts = halved(acc)
        else:
            parts = (acc,)
        rows = row + tl.arange(0, BLOCK_M)
        row_mask = rows < m
        c_first = c_ptr
        if c_ptr is not None:
            c_first = c_ptr + i.to(tl.int64) * c_batch_stride
        if INT64:
            rows = rows.to(tl.int64)
        for part in tl.static_range(PARTS):
            cols = col + part * WIDTH + tl.arange(0, WIDTH)
            col_mask = cols < n
            if INT64:
                cols = cols.to(tl.int64)
            value = finish(
                parts[part], rows, cols, row_mask, col_mask, bias_ptr, bias_stride, c_first,
                c_m_stride, c_n_stride, alpha, beta, out_ptr.dtype.element_ty, ACT, BIAS_ROWS,
                ACT_HALVED,
            )  # fmt: skip
            if BATCHED:
                value = value.reshape(1, 1, BLOCK_M, WIDTH)
                out_desc.store([o, i, row, col + part * WIDTH], value)
            else:
                out_desc.store([row, col + part * WIDTH], value)


def fits(p: Problem) -> bool:
    """Whether descriptors can be made of the operands and of the result."""
    arrays = ((p.a, turned(p.a)), (p.b, turned(p.b)), (p.out, False))
    return p.mnk[2] > 0 and all(_described(x, turn) for x, turn in arrays)


def pays(p: Problem) -> bool:
    """Whether ``p`` ``fits`` and is faster for it. TF32 wants both operands in rows of k: others
    go through registers on the way to the tensor cores, which pointers do on the way in."""
    if p.a.dtype in dtypes.HALVES:
        return fits(p)
    return p.precision == "tf32" and not turned(p.a) and turned(p.b) and fits(p)


def turned(x: DeviceArray) -> bool:
    """Whether rows of memory run along the third axis, not the last."""
    return x.strides[3] != 1


def _described(x: DeviceArray, turn: bool) -> bool:
    unit, row = (2, 3) if turn else (3, 2)
    steps = [x.strides[axis] for axis in (0, 1, row) if x.shape[axis] > 1]
    return (
        (x.strides[unit] == 1 or x.shape[unit] == 1)
        and (x.strides[row] > 0 or x.shape[row] == 1)
        and all(step >= 0 and step * x.dtype.itemsize % ALIGNMENT == 0 for step in steps)
        and x.ptr % ALIGNMENT == 0
    )


def _axes(x: DeviceArray) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Sizes of the batch axes, 1 where all of one is the same memory; strides of outer, inner and
    the rows of memory. An axis of size 1 is never stepped along: its stride only has to be
    aligned."""
    row = 3 if turned(x) else 2
    sizes = tuple(size if stride else 1 for size, stride in zip(x.shape[:2], x.strides))
    steps = ((sizes[0], x.strides[0]), (sizes[1], x.strides[1]), (x.shape[row], x.strides[row]))
    return sizes, tuple(s if size > 1 else ALIGNMENT for size, s in steps)  # type: ignore[return-value]


def stages(p: Problem, tile: Config) -> int:
    """As many of the configuration's stages as fit into shared memory beside the result (and c) on
    its way out; a float32 workspace or a c may take the place of one."""
    block = tile.constants
    m, n, k = (block[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    out = m * n // (2 if block["HALVES"] else 1)
    bytes_ = out * p.out.dtype.itemsize + RESERVED
    if p.c is not None:
        bytes_ += out * p.c.dtype.itemsize
    room = configs.SHARED[configs.table_name(p.a.device.architecture)] - bytes_
    return max(1, min(tile.num_stages, room // ((m + n) * k * p.a.dtype.itemsize)))


def run(p: Problem, tile: Config) -> None:
    """Launch ``p``, which ``fits``, with the blocks and the switches of ``tile``."""
    m, n, _ = p.mnk
    constants = {
        name: tile.constants[name]
        for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "HALVES", "WARP_SPECIALIZE")
    }
    items = p.batches * cdiv(m, constants["BLOCK_M"]) * cdiv(n, constants["BLOCK_N"])
    batched = p.batches > 1
    # the rules of Triton 3.6: sm_90 specialises the warps of nested loops, without batches or
    # halves (and a heavy activation would spill); sm_100 those of flat loops
    hopper = p.a.device.capability[0] == 9
    if hopper and (batched or p.heavy or constants["HALVES"]):
        constants["WARP_SPECIALIZE"] = False
    a_sizes, a_strides = _axes(p.a)
    b_sizes, b_strides = _axes(p.b)
    _, out_strides = _axes(p.out)
    programs = min(items, p.a.device.multiprocessors)
    launch(
        tma_kernel,
        (programs,),
        *p.operands(),
        p.out.shape[0],
        programs,
        *a_sizes,
        *b_sizes,
        *a_strides,
        *b_strides,
        *p.addend_strides(),
        *out_strides,
        num_warps=tile.num_warps,
        num_stages=stages(p, tile),
        PRECISION=p.precision,
        BATCHED=batched,
        A_TURNED=turned(p.a),
        B_TURNED=turned(p.b),
        ACT_HALVED=p.act_halved(
            constants["BLOCK_M"],
            constants["BLOCK_N"] // (2 if constants["HALVES"] else 1),
            tile.num_warps,
        ),
        FLATTEN=not (hopper and constants["WARP_SPECIALIZE"]),
        **constants,
        **p.constants(),
    )
