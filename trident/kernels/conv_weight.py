"""The gradient of convolution for its weight, as an implicit matrix product.

dw[o, c, t] = sum over pixels of g[o, pixel] * x[c, where tap t of that pixel falls]. A program owns
a tile (o, (c, t)) and walks pixels. A weight has few tiles and a batch many pixels, so the pixels
are split into parts, which a second kernel adds in fixed order: no atomics, the same bits each run.
"""

from __future__ import annotations

import math

from .. import dtypes
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .conv import constants_of, tile_for
from .conv_direct import Sizes, accumulator, geometry, needs_int64, split_pixel, three

PARTS = 256
"""The pixels are split until about so many programs run."""


@jit
def weight_grad_kernel(
    g_ptr,  # (n, groups * o, out_d, out_h, out_w)
    x_ptr,  # (n, groups * c, in_d, in_h, in_w)
    dw_ptr,  # (parts, groups * o, c * TAPS), contiguous
    pixels,
    part_pixels,
    groups,
    og,
    cg,
    in_d,
    in_h,
    in_w,
    out_d,
    out_h,
    out_w,
    g_n_stride,
    g_o_stride,
    g_d_stride,
    g_h_stride,
    g_w_stride,
    x_n_stride,
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    width = cg * TAPS
    tiles_k = tl.cdiv(width, BLOCK_K)
    tiles_o = tl.cdiv(og, BLOCK_R)
    k = tl.program_id(0) % tiles_k * BLOCK_K + tl.arange(0, BLOCK_K)
    o = tl.program_id(0) // tiles_k % tiles_o * BLOCK_R + tl.arange(0, BLOCK_R)
    part = tl.program_id(0) // (tiles_k * tiles_o)
    group = tl.program_id(1).to(tl.int64)
    g_ptr += group * og * g_o_stride
    x_ptr += group * cg * x_c_stride
    k_mask = k < width
    o_mask = o < og
    c = k // TAPS
    td = k // (KERNEL[1] * KERNEL[2]) % KERNEL[0] * DILATION[0] - PADDING[0]
    th = k // KERNEL[2] % KERNEL[1] * DILATION[1] - PADDING[1]
    tw = k % KERNEL[2] * DILATION[2] - PADDING[2]
    o_place = o
    if INT64:
        part = part.to(tl.int64)
        o_place = o.to(tl.int64)
        c = c.to(tl.int64)
        td = td.to(tl.int64)
        th = th.to(tl.int64)
        tw = tw.to(tl.int64)
    o_place = o_place * g_o_stride
    x_k = c * x_c_stride + td * x_d_stride + th * x_h_stride + tw * x_w_stride

    first = part * part_pixels
    stop = tl.minimum(first + part_pixels, pixels)
    acc = tl.zeros((BLOCK_R, BLOCK_K), dtype=ACC)
    for start in range(first, stop, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        pixel_mask = pixel < stop
        n, d, h, w = split_pixel(pixel, out_d, out_h, out_w)
        g_place = n * g_n_stride + d * g_d_stride + h * g_h_stride + w * g_w_stride
        g_mask = o_mask[:, None] & pixel_mask[None, :]
        g = tl.load(g_ptr + o_place[:, None] + g_place[None, :], mask=g_mask, other=0.0)
        d = d * STRIDE[0]
        h = h * STRIDE[1]
        w = w * STRIDE[2]
        xd = d[None, :] + td[:, None]
        xh = h[None, :] + th[:, None]
        xw = w[None, :] + tw[:, None]
        inside = (xd >= 0) & (xd < in_d) & (xh >= 0) & (xh < in_h) & (xw >= 0) & (xw < in_w)
        seen = inside & pixel_mask[None, :] & k_mask[:, None]
        x_place = n * x_n_stride + d * x_d_stride + h * x_h_stride + w * x_w_stride
        x = tl.load(x_ptr + x_k[:, None] + x_place[None, :], mask=seen, other=0.0)
        if WIDEN:  # the interpreter multiplies the raw bits of half types
            g = g.to(ACC)
            x = x.to(ACC)
        acc = tl.dot(g, tl.trans(x), acc, input_precision=PRECISION, out_dtype=ACC)

    row = (part.to(tl.int64) * groups + group) * og + o
    target = dw_ptr + row[:, None] * width + k[None, :]
    tl.store(target, acc.to(dw_ptr.dtype.element_ty), o_mask[:, None] & k_mask[None, :])


@jit
def sum_parts_kernel(
    parts_ptr,  # (parts, size)
    out_ptr,  # (size,)
    size,
    parts,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    total = tl.zeros((BLOCK,), dtype=ACC)
    for _ in range(0, parts):
        total += tl.load(parts_ptr + place, mask=mask, other=0.0)
        parts_ptr += size
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask)


def conv_weight_grad(
    dw: DeviceArray,
    g: DeviceArray,
    x: DeviceArray,
    *,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> None:
    """dw (groups*o, c, *kernel), g (n, groups*o, *out), x (n, groups*c, *in)."""
    if dw.size == 0:
        return
    out = dw
    dw, g, x = three(dw), three(g), three(x)
    og, cg = dw.shape[0] // groups, dw.shape[1]
    width = cg * math.prod(dw.shape[2:])
    pixels = g.shape[0] * math.prod(g.shape[2:])
    tile = tile_for(x, og, width, pixels)
    tile = tile._replace(depth=max(tile.depth, 32))  # pixels are many: longer steps pay
    tiles = cdiv(og, tile.rows) * cdiv(width, tile.pixels)
    most = 3 if x.device.interpreted else cdiv(PARTS, tiles * groups)
    steps = cdiv(cdiv(pixels, tile.depth), most)  # a part has at least 4 steps
    part = max(steps, 4) * tile.depth
    parts = max(cdiv(pixels, part), 1)
    if parts > 1:
        widest = dtypes.float64 if x.dtype is dtypes.float64 else dtypes.float32
        target = x.device.empty((parts, dw.size), widest)
    else:
        target = out
    launch(
        weight_grad_kernel,
        (tiles * parts, groups),
        *(g, x, target),
        *(pixels, part, groups, og, cg),
        *(*x.shape[2:], *g.shape[2:], *g.strides, *x.strides),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **geometry(dw.shape[2:], stride, padding, dilation),
        **constants_of(x),
        INT64=needs_int64(g, x),
        BLOCK_R=tile.rows,
        BLOCK_K=tile.pixels,
        BLOCK_P=tile.depth,
    )
    if parts > 1:
        block = 1 << 14 if x.device.interpreted else 512
        launch(
            sum_parts_kernel,
            (cdiv(out.size, block),),
            *(target, out, out.size, parts),
            ACC=accumulator(x.dtype),
            BLOCK=block,
        )
