"""Convolution and its gradient for the input as implicit matrix products.

Everything runs as three spatial axes; 1-D and 2-D calls have leading axes of size 1, whose
arithmetic folds away. No window is ever written to memory: a program owns a tile (channels, pixels)
of the result and gathers, for each block of (tap, channel) pairs, the input that its pixels see.
Pixels are the second axis of every tile, so NCHW inputs are read along rows; channels-last inputs
have stride 1 along the first axis, and the compiler orders the loads by that.

The gradient is the same gather from g. The pixels of dx are visited by phase, their place modulo
the stride: all pixels of one phase meet the same taps, so a stride wastes no product.

Source: implicit GEMM is the method of cuDNN (Chetlur et al., arXiv:1410.0759).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import config, dtypes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from . import conv_direct
from .conv_direct import Sizes, accumulator, geometry, needs_int64, split_pixel, three


@jit
def gather_dot(
    x_ptr,  # at (0, first channel of the group, 0, 0, 0)
    w_ptr,  # at the group's first row, channel and tap
    w_rows,  # (R,) offsets of the rows of the result in w
    row_mask,  # (R,)
    base,  # (P,) offsets in x of where the first tap falls; it may lie outside
    d0,  # (P,) the same place, per axis
    h0,
    w0,
    pixel_mask,  # (P,)
    x_d,
    x_h,
    x_w,
    depth,
    taps_h,
    taps_w,
    taps,
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    w_c_stride,
    w_d_stride,
    w_h_stride,
    w_w_stride,
    STEP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    PACKED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(R, P) sums over (tap, channel) of w * x; tap t of an axis reads x at first + t * STEP.

    PACKED numbers the pairs without gaps, for few channels. Otherwise a block lies within one tap:
    then the tap is a scalar and the bounds are tested once a pixel instead of once an element.
    """
    acc = tl.zeros((BLOCK_R, BLOCK_P), dtype=ACC)
    ks = tl.arange(0, BLOCK_K)
    if PACKED:
        steps = tl.cdiv(depth * taps, BLOCK_K)
    else:
        steps = tl.cdiv(depth, BLOCK_K) * taps
    for step in range(0, steps):
        if PACKED:
            k = step * BLOCK_K + ks
            tap = k // depth
            c = k % depth
            k_mask = tap < taps
        else:
            per_tap = tl.cdiv(depth, BLOCK_K)
            tap = step // per_tap
            c = step % per_tap * BLOCK_K + ks
            k_mask = c < depth
        td = tap // (taps_h * taps_w)
        th = tap // taps_w % taps_h
        tw = tap % taps_w
        if INT64:
            c = c.to(tl.int64)
            td = td.to(tl.int64)
            th = th.to(tl.int64)
            tw = tw.to(tl.int64)
        if PACKED:
            d = d0[None, :] + (td * STEP[0])[:, None]
            h = h0[None, :] + (th * STEP[1])[:, None]
            w = w0[None, :] + (tw * STEP[2])[:, None]
        else:
            d = d0[None, :] + td * STEP[0]
            h = h0[None, :] + th * STEP[1]
            w = w0[None, :] + tw * STEP[2]
        inside = (d >= 0) & (d < x_d) & (h >= 0) & (h < x_h) & (w >= 0) & (w < x_w)
        seen = inside & pixel_mask[None, :] & k_mask[:, None]
        x_k = (
            c * x_c_stride
            + td * STEP[0] * x_d_stride
            + th * STEP[1] * x_h_stride
            + tw * STEP[2] * x_w_stride
        )
        x = tl.load(x_ptr + base[None, :] + x_k[:, None], mask=seen, other=0.0)
        w_k = c * w_c_stride + td * w_d_stride + th * w_h_stride + tw * w_w_stride
        w_mask = row_mask[:, None] & k_mask[None, :]
        weight = tl.load(w_ptr + w_rows[:, None] + w_k[None, :], mask=w_mask, other=0.0)
        if WIDEN:  # the interpreter multiplies the raw bits of half types
            x = x.to(ACC)
            weight = weight.to(ACC)
        acc = tl.dot(weight, x, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc


@jit
def forward_kernel(
    x_ptr,  # (n, groups * c, in_d, in_h, in_w)
    w_ptr,  # (groups * o, c, *KERNEL)
    bias_ptr,  # (groups * o,) or None
    out_ptr,  # (n, groups * o, out_d, out_h, out_w), contiguous
    pixels,
    groups,
    og,
    cg,
    in_d,
    in_h,
    in_w,
    out_d,
    out_h,
    out_w,
    x_n_stride,
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    w_o_stride,
    w_c_stride,
    w_d_stride,
    w_h_stride,
    w_w_stride,
    bias_stride,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    PACKED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # neighbouring programs share their pixels: x is then read from memory once, w stays in L2
    tiles_o = tl.cdiv(og, BLOCK_R)
    o = tl.program_id(0) % tiles_o * BLOCK_R + tl.arange(0, BLOCK_R)
    tile = tl.program_id(0) // tiles_o
    if INT64:
        tile = tile.to(tl.int64)
        o = o.to(tl.int64)
    pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    pixel_mask = pixel < pixels
    o_mask = o < og
    n, d, h, w = split_pixel(pixel, out_d, out_h, out_w)
    d = d * STRIDE[0] - PADDING[0]
    h = h * STRIDE[1] - PADDING[1]
    w = w * STRIDE[2] - PADDING[2]
    group = tl.program_id(1).to(tl.int64)
    acc = gather_dot(
        x_ptr + group * cg * x_c_stride,
        w_ptr + group * og * w_o_stride,
        o * w_o_stride,
        o_mask,
        n * x_n_stride + d * x_d_stride + h * x_h_stride + w * x_w_stride,
        d,
        h,
        w,
        pixel_mask,
        in_d,
        in_h,
        in_w,
        cg,
        KERNEL[1],
        KERNEL[2],
        KERNEL[0] * KERNEL[1] * KERNEL[2],
        x_c_stride,
        x_d_stride,
        x_h_stride,
        x_w_stride,
        w_c_stride,
        w_d_stride,
        w_h_stride,
        w_w_stride,
        DILATION,
        ACC,
        PRECISION,
        WIDEN,
        PACKED,
        INT64,
        BLOCK_R,
        BLOCK_P,
        BLOCK_K,
    )
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + (group * og + o) * bias_stride, mask=o_mask, other=0.0)
        acc += bias.to(ACC)[:, None]
    area = out_d * out_h * out_w
    start = n * (groups * og * area) + pixel % area
    out_ptr += group * og * area
    value = acc.to(out_ptr.dtype.element_ty)
    tl.store(
        out_ptr + start[None, :] + (o * area)[:, None], value, o_mask[:, None] & pixel_mask[None, :]
    )


@jit
def first_tap(
    place, DIVISOR: tl.constexpr, STEP: tl.constexpr, INVERSE: tl.constexpr, KERNEL: tl.constexpr
):
    """The least t with ``place - t * dilation`` divisible by the stride; KERNEL where none is."""
    tap = place // DIVISOR % STEP * INVERSE % STEP
    return tl.where(place % DIVISOR == 0, tl.minimum(tap, KERNEL), KERNEL)


@jit
def data_grad_kernel(
    g_ptr,  # (n, groups * o, out_d, out_h, out_w)
    w_ptr,  # (groups * o, c, *KERNEL)
    bias_ptr,  # (groups * c,) or None: transposed convolution adds it to its output
    dx_ptr,  # (n, groups * c, in_d, in_h, in_w), contiguous
    pixels,
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
    w_o_stride,
    w_c_stride,
    w_d_stride,
    w_h_stride,
    w_w_stride,
    bias_stride,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    DIVISOR: tl.constexpr,  # gcd(stride, dilation)
    STEP: tl.constexpr,  # stride / DIVISOR: the taps that one pixel meets are STEP apart
    INVERSE: tl.constexpr,  # of dilation / DIVISOR modulo STEP
    BACK: tl.constexpr,  # -dilation / DIVISOR: from tap to tap, g is read this much further
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    PACKED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_c = tl.cdiv(cg, BLOCK_R)
    c = tl.program_id(0) % tiles_c * BLOCK_R + tl.arange(0, BLOCK_R)
    tile = tl.program_id(0) // tiles_c
    if INT64:
        tile = tile.to(tl.int64)
        c = c.to(tl.int64)
    pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c_mask = c < cg
    # the phase of this program, and the taps that its pixels meet
    phase = tl.program_id(2)
    phase_d = phase // (STRIDE[1] * STRIDE[2])
    phase_h = phase // STRIDE[2] % STRIDE[1]
    phase_w = phase % STRIDE[2]
    tap_d = first_tap(phase_d + PADDING[0], DIVISOR[0], STEP[0], INVERSE[0], KERNEL[0])
    tap_h = first_tap(phase_h + PADDING[1], DIVISOR[1], STEP[1], INVERSE[1], KERNEL[1])
    tap_w = first_tap(phase_w + PADDING[2], DIVISOR[2], STEP[2], INVERSE[2], KERNEL[2])
    taps_d = tl.cdiv(KERNEL[0] - tap_d, STEP[0])
    taps_h = tl.cdiv(KERNEL[1] - tap_h, STEP[1])
    taps_w = tl.cdiv(KERNEL[2] - tap_w, STEP[2])
    n, d, h, w = split_pixel(
        pixel, tl.cdiv(in_d, STRIDE[0]), tl.cdiv(in_h, STRIDE[1]), tl.cdiv(in_w, STRIDE[2])
    )
    gd = d + (phase_d + PADDING[0] - tap_d * DILATION[0]) // STRIDE[0]
    gh = h + (phase_h + PADDING[1] - tap_h * DILATION[1]) // STRIDE[1]
    gw = w + (phase_w + PADDING[2] - tap_w * DILATION[2]) // STRIDE[2]
    group = tl.program_id(1).to(tl.int64)
    acc = gather_dot(
        g_ptr + group * og * g_o_stride,
        w_ptr
        + group * og * w_o_stride
        + (tap_d * w_d_stride + tap_h * w_h_stride + tap_w * w_w_stride),
        c * w_c_stride,
        c_mask,
        n * g_n_stride + gd * g_d_stride + gh * g_h_stride + gw * g_w_stride,
        gd,
        gh,
        gw,
        pixel < pixels,
        out_d,
        out_h,
        out_w,
        og,
        taps_h,
        taps_w,
        taps_d * taps_h * taps_w,
        g_o_stride,
        g_d_stride,
        g_h_stride,
        g_w_stride,
        w_o_stride,
        w_d_stride * STEP[0],
        w_h_stride * STEP[1],
        w_w_stride * STEP[2],
        BACK,
        ACC,
        PRECISION,
        WIDEN,
        PACKED,
        INT64,
        BLOCK_R,
        BLOCK_P,
        BLOCK_K,
    )
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + (group * cg + c) * bias_stride, mask=c_mask, other=0.0)
        acc += bias.to(ACC)[:, None]
    d = d * STRIDE[0] + phase_d
    h = h * STRIDE[1] + phase_h
    w = w * STRIDE[2] + phase_w
    pixel_mask = (pixel < pixels) & (d < in_d) & (h < in_h) & (w < in_w)
    area = in_d * in_h * in_w
    start = n * (groups * cg * area) + (d * in_h + h) * in_w + w
    dx_ptr += group * cg * area
    value = acc.to(dx_ptr.dtype.element_ty)
    tl.store(
        dx_ptr + start[None, :] + (c * area)[:, None], value, c_mask[:, None] & pixel_mask[None, :]
    )


class Tile(NamedTuple):
    """Block sizes (channels of the result, pixels, summed axis) and launch options."""

    rows: int
    pixels: int
    depth: int
    warps: int
    stages: int


# All stages of the operand tiles fit the 64 KiB of gfx942. By dtype: from how many elements of the
# result on a tile is used.
TILES = {
    "half": ((1 << 20, Tile(128, 128, 32, 8, 3)), (0, Tile(64, 64, 32, 4, 3))),
    "tf32": ((1 << 20, Tile(64, 128, 32, 4, 2)), (0, Tile(64, 64, 32, 4, 2))),
    "single": ((1 << 18, Tile(32, 128, 16, 4, 3)), (0, Tile(32, 64, 16, 4, 3))),
    "double": ((0, Tile(32, 64, 16, 4, 2)),),
}


def tile_for(x: DeviceArray, rows: int, pixels: int, depth: int) -> Tile:
    """Block sizes for a (rows, pixels) result; never much wider than the problem."""
    if x.device.interpreted:  # the cost of a program hardly depends on its size there
        most = Tile(128, 1024, 64, 4, 1)
    else:
        if x.dtype is dtypes.float64:
            kind = "double"
        elif x.dtype is dtypes.float32:
            kind = "tf32" if _precision(x.dtype) == "tf32" else "single"
        else:
            kind = "half"
        most = next(tile for least, tile in TILES[kind] if rows * pixels >= least)
    fit = {
        "rows": min(most.rows, max(16, next_power_of_2(rows))),
        "pixels": min(most.pixels, max(16, next_power_of_2(pixels))),
        "depth": min(most.depth, max(16, next_power_of_2(depth))),
    }
    return most._replace(**fit)


def _precision(dtype: DType) -> str:
    return "tf32" if dtype is dtypes.float32 and config.matmul_precision.get() == "high" else "ieee"


def constants_of(x: DeviceArray) -> dict[str, Any]:
    return {
        "ACC": accumulator(x.dtype),
        "PRECISION": _precision(x.dtype),
        "WIDEN": x.device.interpreted and x.dtype in dtypes.HALVES,
    }


def convolution(
    out: DeviceArray,
    x: DeviceArray,
    w: DeviceArray,
    bias: DeviceArray | None,
    *,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> None:
    """out (n, groups*o, *out), x (n, groups*c, *in), w (groups*o, c, *kernel), bias (groups*o,).

    The sum and the bias are rounded once, at the store.
    """
    if out.size == 0:
        return
    if w.shape[1] == 1 and groups > 1:
        conv_direct.depthwise_forward(
            out, x, w, bias, stride=stride, padding=padding, dilation=dilation
        )
        return
    out, x, w = three(out), three(x), three(w)
    og, cg = out.shape[1] // groups, w.shape[1]
    pixels = out.shape[0] * math.prod(out.shape[2:])
    packed = cg < 16
    tile = tile_for(x, og, pixels, cg * math.prod(w.shape[2:]) if packed else cg)
    launch(
        forward_kernel,
        (cdiv(pixels, tile.pixels) * cdiv(og, tile.rows), groups),
        *(x, w, bias, out),
        *(pixels, groups, og, cg),
        *(*x.shape[2:], *out.shape[2:], *x.strides, *w.strides),
        bias.strides[0] if bias is not None else 0,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **geometry(w.shape[2:], stride, padding, dilation),
        **constants_of(x),
        PACKED=packed,
        INT64=needs_int64(x, w, out),
        BLOCK_R=tile.rows,
        BLOCK_P=tile.pixels,
        BLOCK_K=tile.depth,
    )


def conv_data_grad(
    dx: DeviceArray,
    g: DeviceArray,
    w: DeviceArray,
    bias: DeviceArray | None,
    *,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> None:
    """dx (n, groups*c, *in), g (n, groups*o, *out), w (groups*o, c, *kernel), bias (groups*c,)."""
    if dx.size == 0:
        return
    if w.shape[1] == 1 and groups > 1:
        conv_direct.depthwise_data_grad(
            dx, g, w, bias, stride=stride, padding=padding, dilation=dilation
        )
        return
    dx, g, w = three(dx), three(g), three(w)
    og, cg = w.shape[0] // groups, w.shape[1]
    constants = geometry(w.shape[2:], stride, padding, dilation)
    strides, dilations = constants["STRIDE"], constants["DILATION"]
    divisor = tuple(math.gcd(s, d) for s, d in zip(strides, dilations))
    step = tuple(s // k for s, k in zip(strides, divisor))
    # pixels of one phase; the last ones of a shorter phase are masked
    pixels = dx.shape[0] * math.prod(cdiv(i, s) for i, s in zip(dx.shape[2:], strides))
    packed = og < 16
    tile = tile_for(g, cg, pixels, og * math.prod(w.shape[2:]) if packed else og)
    launch(
        data_grad_kernel,
        (cdiv(pixels, tile.pixels) * cdiv(cg, tile.rows), groups, math.prod(strides)),
        *(g, w, bias, dx),
        *(pixels, groups, og, cg),
        *(*dx.shape[2:], *g.shape[2:], *g.strides, *w.strides),
        bias.strides[0] if bias is not None else 0,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **constants,
        **constants_of(g),
        DIVISOR=divisor,
        STEP=step,
        INVERSE=tuple(pow(d // k, -1, s) for d, k, s in zip(dilations, divisor, step)),
        BACK=tuple(-d // k for d, k in zip(dilations, divisor)),
        PACKED=packed,
        INT64=needs_int64(dx, g, w),
        BLOCK_R=tile.rows,
        BLOCK_P=tile.pixels,
        BLOCK_K=tile.depth,
    )
