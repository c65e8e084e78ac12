"""Depthwise convolution, one input channel a group: nothing to multiply as a matrix.

A program owns a tile (pixels, channels) and goes over the taps. In a channels-last array the tile
is wide in channels, which are consecutive; in a row-major one it is a row of pixels of one channel.
"""

from __future__ import annotations

import math

from .. import config
from ..lang import cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch
from .conv_gather import PLAIN, Epilogue, store_tile
from .conv_geometry import (
    Sizes,
    Walk,
    accumulator,
    geometry,
    inside,
    laid_out_like,
    needs_int64,
    next_pixel,
    output_strides,
    split_pixel,
    staged,
    three,
    vector,
    worth_turning,
)
from .conv_parts import Parts, parts_of
from .layout import copy

TAPS = 4
"""How many taps of a weight gradient a program owns: g is read once for all of them."""


@jit
def depthwise_forward_kernel(
    x_ptr,  # (n, channels, in_d, in_h, in_w)
    w_ptr,  # (channels * og, 1, *KERNEL)
    bias_ptr,  # (channels * og,) or None
    scale_ptr,  # (channels * og,) or None, with shift_ptr
    shift_ptr,
    residual_ptr,  # laid out like out, or None
    out_ptr,  # (n, channels * og, pixels of a sample)
    pixels,
    area,
    outputs,  # channels * og
    og,
    tap_rows,  # KERNEL[0] * KERNEL[1]; no constant, so that the loop is not unrolled
    in_d,
    in_h,
    in_w,
    out_d,
    out_h,
    out_w,
    x_n_stride,  # in units of X_UNIT, as those of d, h and w
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    w_o_stride,
    w_d_stride,
    w_h_stride,
    w_w_stride,
    out_n_stride,  # in units of OUT_UNIT
    out_c_stride,
    out_pixel_stride,  # in units of OUT_UNIT
    bias_stride,
    scale_stride,
    shift_stride,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    BOUNDED: tl.constexpr,
    X_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    O_UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACT: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles = tl.cdiv(outputs, BLOCK_C)
    o = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = tl.program_id(0) // tiles
    if INT64:
        o = o.to(tl.int64)
        tile = tile.to(tl.int64)
    place = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    o_mask = o // O_UNIT < outputs // O_UNIT
    n, d, h, w = split_pixel(tl.minimum(place, pixels - 1), out_d, out_h, out_w)
    x_ptrs = x_ptr + n[:, None] * x_n_stride * X_UNIT + (o // og * x_c_stride)[None, :]
    w_ptrs = w_ptr + o * w_o_stride
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=ACC)
    for row in range(0, tap_rows):
        td = row // KERNEL[1]
        th = row % KERNEL[1]
        xd = d * STRIDE[0] - PADDING[0] + td * DILATION[0]
        xh = h * STRIDE[1] - PADDING[1] + th * DILATION[1]
        for tw in range(0, KERNEL[2]):
            xw = w * STRIDE[2] - PADDING[2] + tw * DILATION[2]
            seen = inside(xd, xh, xw, in_d, in_h, in_w, BOUNDED)
            x_at = (xd * x_d_stride + xh * x_h_stride + xw * x_w_stride) * X_UNIT
            x = tl.load(x_ptrs + x_at[:, None], mask=seen[:, None] & o_mask[None, :], other=0.0)
            tap = td * w_d_stride + th * w_h_stride + tw * w_w_stride
            weight = tl.load(w_ptrs + tap, mask=o_mask, other=0.0)
            acc += x.to(ACC) * weight.to(ACC)[None, :]
    at = (place // area * out_n_stride + place % area * out_pixel_stride) * OUT_UNIT
    store_tile(
        acc, out_ptr, at, place < pixels, o, o_mask, out_c_stride, bias_ptr, bias_stride,
        scale_ptr, scale_stride, shift_ptr, shift_stride, residual_ptr, ACT, CHANNELS_LAST,
    )  # fmt: skip


@jit
def depthwise_data_grad_kernel(
    g_ptr,  # (n, channels * og, out_d, out_h, out_w)
    w_ptr,  # (channels * og, 1, *KERNEL)
    bias_ptr,  # (channels,) or None
    dx_ptr,  # (n, channels, pixels of a sample)
    pixels,
    area,
    channels,
    og,
    tap_rows,  # KERNEL[0] * KERNEL[1]; no constant, so that the loop is not unrolled
    in_d,
    in_h,
    in_w,
    out_d,
    out_h,
    out_w,
    g_n_stride,  # in units of G_UNIT, as those of d, h and w
    g_o_stride,
    g_d_stride,
    g_h_stride,
    g_w_stride,
    w_o_stride,
    w_d_stride,
    w_h_stride,
    w_w_stride,
    dx_n_stride,  # in units of DX_UNIT
    dx_c_stride,
    dx_pixel_stride,  # in units of DX_UNIT
    bias_stride,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    G_UNIT: tl.constexpr,
    DX_UNIT: tl.constexpr,
    C_UNIT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles = tl.cdiv(channels, BLOCK_C)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    tile = tl.program_id(0) // tiles
    if INT64:
        c = c.to(tl.int64)
        tile = tile.to(tl.int64)
    place = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c_mask = c // C_UNIT < channels // C_UNIT
    n, d, h, w = split_pixel(tl.minimum(place, pixels - 1), in_d, in_h, in_w)
    g_ptrs = g_ptr + n[:, None] * g_n_stride * G_UNIT
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=ACC)
    for m in range(0, og):
        o = c * og + m
        for row in range(0, tap_rows):
            td = row // KERNEL[1]
            th = row % KERNEL[1]
            gd = d + PADDING[0] - td * DILATION[0]
            gh = h + PADDING[1] - th * DILATION[1]
            row_mask = (gd >= 0) & (gd % STRIDE[0] == 0) & (gd // STRIDE[0] < out_d)
            row_mask = row_mask & (gh >= 0) & (gh % STRIDE[1] == 0) & (gh // STRIDE[1] < out_h)
            for tw in range(0, KERNEL[2]):
                gw = w + PADDING[2] - tw * DILATION[2]
                seen = row_mask & (gw >= 0) & (gw % STRIDE[2] == 0) & (gw // STRIDE[2] < out_w)
                g_at = (
                    gd // STRIDE[0] * g_d_stride
                    + gh // STRIDE[1] * g_h_stride
                    + gw // STRIDE[2] * g_w_stride
                ) * G_UNIT
                at = g_at[:, None] + (o * g_o_stride)[None, :]
                mask = seen[:, None] & c_mask[None, :]
                g = tl.load(g_ptrs + at, mask=mask, other=0.0).to(ACC)
                tap = td * w_d_stride + th * w_h_stride + tw * w_w_stride
                weight = tl.load(w_ptr + o * w_o_stride + tap, mask=c_mask, other=0.0)
                product = g * weight.to(ACC)[None, :]
                acc += tl.where(seen[:, None], product, 0.0)  # not 0 times infinity
    at = (place // area * dx_n_stride + place % area * dx_pixel_stride) * DX_UNIT
    store_tile(
        acc, dx_ptr, at, place < pixels, c, c_mask, dx_c_stride, bias_ptr, bias_stride,
        None, 0, None, 0, None, None, CHANNELS_LAST,
    )  # fmt: skip


@jit
def depthwise_weight_grad_kernel(
    g_ptr,  # (n, channels * og, out_d, out_h, out_w)
    x_ptr,  # (n, channels, in_d, in_h, in_w)
    dw_ptr,  # (parts, taps, channels * og)
    pixels,
    part_pixels,
    outputs,  # channels * og
    og,
    in_d,
    in_h,
    in_w,
    out_d,
    out_h,
    out_w,
    g_n_stride,  # in units of G_UNIT, as those of d, h and w
    g_o_stride,
    g_d_stride,
    g_h_stride,
    g_w_stride,
    x_n_stride,  # in units of X_UNIT, as those of d, h and w
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    dw_part_stride,  # in units of DW_UNIT, as that of the taps
    dw_tap_stride,
    dw_o_stride,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    BOUNDED: tl.constexpr,
    G_UNIT: tl.constexpr,
    X_UNIT: tl.constexpr,
    DW_UNIT: tl.constexpr,
    O_UNIT: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    tiles = tl.cdiv(outputs, BLOCK_C)
    tap_tiles: tl.constexpr = (TAPS + BLOCK_T - 1) // BLOCK_T
    o = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.program_id(0) // tiles % tap_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(0) // (tiles * tap_tiles)
    o_mask = o // O_UNIT < outputs // O_UNIT
    td = tap // (KERNEL[1] * KERNEL[2]) * DILATION[0] - PADDING[0]
    th = tap // KERNEL[2] % KERNEL[1] * DILATION[1] - PADDING[1]
    tw = tap % KERNEL[2] * DILATION[2] - PADDING[2]
    if INT64:
        o = o.to(tl.int64)
        part = part.to(tl.int64)
        td = td.to(tl.int64)
        th = th.to(tl.int64)
        tw = tw.to(tl.int64)
    x_taps = (td * x_d_stride + th * x_h_stride + tw * x_w_stride) * X_UNIT
    x_ptrs = x_ptr + x_taps[:, None, None] + (o // og * x_c_stride)[None, None, :]
    g_ptrs = g_ptr + (o * g_o_stride)[None, :]
    tap_mask = (tap < TAPS)[:, None]
    first = part * part_pixels
    stop = tl.minimum(first + part_pixels, pixels)
    n, d, h, w = split_pixel(first + tl.arange(0, BLOCK_P), out_d, out_h, out_w)
    acc = tl.zeros((BLOCK_T, BLOCK_P, BLOCK_C), dtype=ACC)
    for start in range(first, stop, BLOCK_P):
        live = start + tl.arange(0, BLOCK_P) < stop
        g_at = (n * g_n_stride + d * g_d_stride + h * g_h_stride + w * g_w_stride) * G_UNIT
        g = tl.load(g_ptrs + g_at[:, None], mask=live[:, None] & o_mask[None, :], other=0.0)
        xd = d * STRIDE[0]
        xh = h * STRIDE[1]
        xw = w * STRIDE[2]
        seen = live[None, :] & tap_mask & inside(
            xd[None, :] + td[:, None], xh[None, :] + th[:, None], xw[None, :] + tw[:, None],
            in_d, in_h, in_w, BOUNDED,
        )  # fmt: skip
        x_at = (n * x_n_stride + xd * x_d_stride + xh * x_h_stride + xw * x_w_stride) * X_UNIT
        mask = seen[:, :, None] & o_mask[None, None, :]
        x = tl.load(x_ptrs + x_at[None, :, None], mask=mask, other=0.0)
        acc += x.to(ACC) * g.to(ACC)[None, :, :]
        n, d, h, w = next_pixel(n, d, h, w, BLOCK_P, out_d, out_h, out_w)
    total = tl.sum(acc, axis=1)
    rows = (part * dw_part_stride + tap * dw_tap_stride) * DW_UNIT
    at = rows[:, None] + (o * dw_o_stride)[None, :]
    tl.store(dw_ptr + at, total.to(dw_ptr.dtype.element_ty), mask=tap_mask & o_mask[None, :])


def _tile(like: DeviceArray, channels: int, pixels: int, elements: int) -> dict[str, int]:
    """Blocks of about ``elements``; of half as many where they are loaded one by one, or take two
    registers."""
    wide = like.strides[1] == 1 or like.shape[1] == 1
    if like.device.interpreted:
        elements = config.interpret_block.get() or 1 << 14
    elif not wide or like.dtype.itemsize == 8:
        elements //= 2
    most = 32 if channels % 64 and channels % 32 == 0 else 64  # 96 channels are three times 32
    block_c = min(next_power_of_2(channels), most, elements) if wide else 1
    block_p = min(next_power_of_2(pixels), elements // block_c)
    return {"BLOCK_P": block_p, "BLOCK_C": block_c}


def _rows_of_outputs(w: DeviceArray, products: int) -> DeviceArray:
    """w, or a copy with consecutive outputs where the ``products`` of the call are worth it: then
    a tap of a tile is one vector load."""
    if w.strides[0] == 1 or not worth_turning(products):
        return w
    turned = w.device.empty((*w.shape[1:], w.shape[0]), w.dtype).transpose((4, 0, 1, 2, 3))
    copy(turned, w)
    return turned


def forward(
    out: DeviceArray,
    x: DeviceArray,
    w: DeviceArray,
    bias: DeviceArray | None,
    *,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    epilogue: Epilogue = PLAIN,
) -> None:
    """out (n, c*m, *out), x (n, c, *in), w (c*m, 1, *kernel), bias (c*m,)."""
    out, x, w = three(out), three(x), three(w)
    residual = laid_out_like(epilogue.residual, out)
    area = math.prod(out.shape[2:])
    pixels = out.shape[0] * area
    xs = Walk.of(x)
    w = _rows_of_outputs(w, out.size * math.prod(w.shape[2:]))
    unit, *out_strides = output_strides(out)
    constants = geometry(w.shape[2:], stride, padding, dilation)
    outputs = out.shape[1]
    tile = _tile(out, outputs, pixels, 2048)
    launch(
        depthwise_forward_kernel,
        (cdiv(pixels, tile["BLOCK_P"]) * cdiv(outputs, tile["BLOCK_C"]),),
        *(x, w, bias, epilogue.scale, epilogue.shift, residual, out),
        *(pixels, area, outputs, outputs // x.shape[1], math.prod(w.shape[2:4])),
        *(*x.shape[2:], *out.shape[2:]),
        *xs[1:],
        *(w.strides[0], *w.strides[2:]),
        *out_strides,
        *(v.strides[0] if v is not None else 0 for v in (bias, epilogue.scale, epilogue.shift)),
        **constants,
        BOUNDED=tuple(p > 0 for p in constants["PADDING"]),
        X_UNIT=xs.unit,
        OUT_UNIT=unit,
        O_UNIT=vector(out.dtype.itemsize, outputs),
        CHANNELS_LAST=out.strides[1] == 1,
        ACT=epilogue.function(),
        ACC=accumulator(x.dtype),
        INT64=needs_int64(x, w, out),
        **tile,
    )


def data_grad(
    dx: DeviceArray,
    g: DeviceArray,
    w: DeviceArray,
    bias: DeviceArray | None,
    *,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> None:
    """dx (n, c, *in), g (n, c*m, *out), w (c*m, 1, *kernel), bias (c,)."""
    dx, g, w = three(dx), three(g), three(w)
    area = math.prod(dx.shape[2:])
    pixels = dx.shape[0] * area
    products = g.size * math.prod(w.shape[2:])
    if dx.strides[1] == 1:
        (g,) = staged(products, g)
    gs = Walk.of(g)
    w = _rows_of_outputs(w, products)
    unit, *dx_strides = output_strides(dx)
    channels = dx.shape[1]
    tile = _tile(dx, channels, pixels, 2048)
    launch(
        depthwise_data_grad_kernel,
        (cdiv(pixels, tile["BLOCK_P"]) * cdiv(channels, tile["BLOCK_C"]),),
        *(g, w, bias, dx),
        *(pixels, area, channels, g.shape[1] // channels, math.prod(w.shape[2:4])),
        *(*dx.shape[2:], *g.shape[2:]),
        *gs[1:],
        *(w.strides[0], *w.strides[2:]),
        *dx_strides,
        bias.strides[0] if bias is not None else 0,
        **geometry(w.shape[2:], stride, padding, dilation),
        G_UNIT=gs.unit,
        DX_UNIT=unit,
        C_UNIT=vector(dx.dtype.itemsize, channels),
        CHANNELS_LAST=dx.strides[1] == 1,
        ACC=accumulator(g.dtype),
        INT64=needs_int64(dx, g, w),
        **tile,
    )


def weight_grad(
    dw: DeviceArray,
    g: DeviceArray,
    x: DeviceArray,
    *,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> None:
    """dw (c*m, 1, *kernel), g (n, c*m, *out), x (n, c, *in)."""
    out = dw
    dw, g, x = three(dw), three(g), three(x)
    taps, outputs = math.prod(dw.shape[2:]), dw.shape[0]
    pixels = g.shape[0] * math.prod(g.shape[2:])
    if x.strides[1] == 1 or g.strides[1] == 1:
        g, x = staged(g.size * taps, g, x)
    block_t = min(TAPS, next_power_of_2(taps))
    tile = _tile(g, outputs, pixels, 4096 // TAPS)
    programs = cdiv(outputs, tile["BLOCK_C"]) * cdiv(taps, block_t)
    parts, part = parts_of(pixels, tile["BLOCK_P"], programs, x.device.interpreted)
    target = Parts(out.reshape((1, outputs, taps)).transpose((0, 2, 1)), parts)
    gs, xs = Walk.of(g), Walk.of(x)
    constants = geometry(dw.shape[2:], stride, padding, dilation)
    launch(
        depthwise_weight_grad_kernel,
        (programs * parts,),
        *(g, x, target.array),
        *(pixels, part, outputs, outputs // x.shape[1], *x.shape[2:], *g.shape[2:]),
        *gs[1:],
        *xs[1:],
        *(target.strides[0], target.strides[2], target.last_stride),
        **constants,
        BOUNDED=tuple(p > 0 for p in constants["PADDING"]),
        G_UNIT=gs.unit,
        X_UNIT=xs.unit,
        DW_UNIT=target.unit,
        O_UNIT=vector(g.dtype.itemsize, outputs),
        ACC=accumulator(x.dtype),
        INT64=needs_int64(g, x, target.array),
        BLOCK_T=block_t,
        **tile,
    )
    target.add()
