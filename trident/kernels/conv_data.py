"""The gradient of convolution for its input, which is transposed convolution: the gather of
``conv_gather`` from g.

The pixels of dx are visited by phase, their place modulo the stride: all pixels of one phase meet
the same taps, so a stride wastes no product.
"""

from __future__ import annotations

import math

from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from . import conv_depthwise
from .conv import as_matmul
from .conv_gather import gather_dot, packed_dot, store_tile
from .conv_geometry import (
    Sizes,
    Walk,
    geometry,
    needs_int64,
    output_strides,
    product_constants,
    split_pixel,
    staged,
    three,
    vector,
)
from .conv_tiles import PACKED, family, tile_for


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
    dx_ptr,  # (n, groups * c, pixels of a sample)
    pixels,  # of one phase; the last ones of a shorter phase are masked
    area,
    groups,
    og,
    cg,
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
    w_o_stride,  # in units of W_UNIT, as those of d, h and w
    w_c_stride,
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
    DIVISOR: tl.constexpr,  # gcd(stride, dilation)
    STEP: tl.constexpr,  # stride / DIVISOR: the taps that one pixel meets are STEP apart
    INVERSE: tl.constexpr,  # of dilation / DIVISOR modulo STEP
    BACK: tl.constexpr,  # -dilation / DIVISOR: from tap to tap, g is read this much further
    BOUNDED: tl.constexpr,
    G_UNIT: tl.constexpr,
    W_UNIT: tl.constexpr,
    DX_UNIT: tl.constexpr,
    C_UNIT: tl.constexpr,
    O_UNIT: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS: tl.constexpr,  # of g per group where they are packed, else None
    CHANNELS_LAST: tl.constexpr,  # dx is
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles = tl.cdiv(cg, BLOCK_R)
    c = tl.program_id(0) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    group = tl.program_id(0) // tiles % groups
    tile = tl.program_id(0) // (tiles * groups)
    if INT64:
        c = c.to(tl.int64)
        group = group.to(tl.int64)
        tile = tile.to(tl.int64)
    place = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c_mask = c // C_UNIT < cg // C_UNIT
    # the phase of this program, and the taps that its pixels meet
    phase_d = tl.program_id(1) // (STRIDE[1] * STRIDE[2])
    phase_h = tl.program_id(1) // STRIDE[2] % STRIDE[1]
    phase_w = tl.program_id(1) % STRIDE[2]
    tap_d = first_tap(phase_d + PADDING[0], DIVISOR[0], STEP[0], INVERSE[0], KERNEL[0])
    tap_h = first_tap(phase_h + PADDING[1], DIVISOR[1], STEP[1], INVERSE[1], KERNEL[1])
    tap_w = first_tap(phase_w + PADDING[2], DIVISOR[2], STEP[2], INVERSE[2], KERNEL[2])
    taps_d = tl.cdiv(KERNEL[0] - tap_d, STEP[0])
    taps_h = tl.cdiv(KERNEL[1] - tap_h, STEP[1])
    taps_w = tl.cdiv(KERNEL[2] - tap_w, STEP[2])
    taps = taps_d * taps_h * taps_w
    reach_d = tl.cdiv(in_d, STRIDE[0])
    reach_h = tl.cdiv(in_h, STRIDE[1])
    reach_w = tl.cdiv(in_w, STRIDE[2])
    n, d, h, w = split_pixel(tl.minimum(place, pixels - 1), reach_d, reach_h, reach_w)
    gd = d + (phase_d + PADDING[0] - tap_d * DILATION[0]) // STRIDE[0]
    gh = h + (phase_h + PADDING[1] - tap_h * DILATION[1]) // STRIDE[1]
    gw = w + (phase_w + PADDING[2] - tap_w * DILATION[2]) // STRIDE[2]
    first = (n * g_n_stride + gd * g_d_stride + gh * g_h_stride + gw * g_w_stride) * G_UNIT
    g_ptr += group * (og // G_UNIT) * G_UNIT * g_o_stride
    w_ptr += group * og * w_o_stride * W_UNIT
    w_ptr += (tap_d * w_d_stride + tap_h * w_h_stride + tap_w * w_w_stride) * W_UNIT
    rows = c * w_c_stride
    if CHANNELS is None:
        acc = gather_dot(
            g_ptr, w_ptr, first, gd, gh, gw, rows, c_mask, out_d, out_h, out_w, og,
            taps_h, taps_w, taps,
            g_o_stride, g_d_stride * G_UNIT, g_h_stride * G_UNIT, g_w_stride * G_UNIT,
            w_o_stride * W_UNIT, w_d_stride * W_UNIT * STEP[0], w_h_stride * W_UNIT * STEP[1],
            w_w_stride * W_UNIT * STEP[2],
            BACK, BOUNDED, O_UNIT, EVEN, ACC, PRECISION, INT64, BLOCK_P, BLOCK_R, BLOCK_K,
        )  # fmt: skip
    else:
        acc = packed_dot(
            g_ptr, w_ptr, first, gd, gh, gw, rows, c_mask, out_d, out_h, out_w,
            taps_h, taps_w, taps,
            g_o_stride, g_d_stride * G_UNIT, g_h_stride * G_UNIT, g_w_stride * G_UNIT,
            w_o_stride * W_UNIT, w_d_stride * W_UNIT * STEP[0], w_h_stride * W_UNIT * STEP[1],
            w_w_stride * W_UNIT * STEP[2],
            CHANNELS, BACK, BOUNDED, ACC, PRECISION, INT64, BLOCK_P, BLOCK_R, BLOCK_K,
        )  # fmt: skip
    live = place < pixels
    if STRIDE[0] * STRIDE[1] * STRIDE[2] == 1:
        at = place // area * dx_n_stride + place % area * dx_pixel_stride
    else:  # once more, so that nothing is kept in registers during the sum
        n, d, h, w = split_pixel(place, reach_d, reach_h, reach_w)
        d = d * STRIDE[0] + phase_d
        h = h * STRIDE[1] + phase_h
        w = w * STRIDE[2] + phase_w
        live = live & (d < in_d) & (h < in_h) & (w < in_w)
        at = n * dx_n_stride + ((d * in_h + h) * in_w + w) * dx_pixel_stride
    dx_ptr += group * (cg // DX_UNIT) * DX_UNIT * dx_c_stride
    if bias_ptr is not None:
        bias_ptr += group * cg * bias_stride
    store_tile(
        acc, dx_ptr, at * DX_UNIT, live, c, c_mask, dx_c_stride, bias_ptr, bias_stride,
        None, 0, None, 0, None, None, CHANNELS_LAST,
    )  # fmt: skip


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
    """dx (n, groups*c, *in), g (n, groups*o, *out), w (groups*o, c, *kernel), bias (groups*c,).

    ``dx`` is row-major or channels-last.
    """
    if dx.size == 0:
        return
    if bias is None and groups == 1 and as_matmul(dx, g, w.swapaxes(0, 1), stride, padding):
        return
    if w.shape[1] == 1 and groups > 1:
        conv_depthwise.data_grad(dx, g, w, bias, stride=stride, padding=padding, dilation=dilation)
        return
    dx, g, w = three(dx), three(g), three(w)
    og, cg = w.shape[0] // groups, w.shape[1]
    taps = math.prod(w.shape[2:])
    constants = geometry(w.shape[2:], stride, padding, dilation)
    strides, paddings, dilations = (constants[k] for k in ("STRIDE", "PADDING", "DILATION"))
    divisor = tuple(math.gcd(s, d) for s, d in zip(strides, dilations))
    step = tuple(s // k for s, k in zip(strides, divisor))
    reach = tuple(cdiv(i, s) for i, s in zip(dx.shape[2:], strides))
    pixels = dx.shape[0] * math.prod(reach)
    if og >= PACKED:
        g, w = staged(dx.size * og * taps // math.prod(strides), g, w)
    gs = Walk.of(g, og if groups > 1 else 0)
    ws = Walk.of(w)
    unit, dx_n, dx_c, dx_pixel = output_strides(dx, cg if groups > 1 else 0)
    scattered = dx_c != 1 and math.prod(strides) > 1  # elements are stored one by one
    sizes = (pixels, cg, og, taps, 1 if scattered else min(gs.unit, ws.unit))
    tile = tile_for("conv_data", g, sizes, ("BLOCK_P", "BLOCK_R"))
    item = g.dtype.itemsize
    launch(
        data_grad_kernel,
        (cdiv(pixels, tile["BLOCK_P"]) * groups * cdiv(cg, tile["BLOCK_R"]), math.prod(strides)),
        *(g, w, bias, dx),
        *(pixels, math.prod(dx.shape[2:]), groups, og, cg, *dx.shape[2:], *g.shape[2:]),
        *gs[1:],
        *ws[1:],
        *(dx_n, dx_c, dx_pixel),
        bias.strides[0] if bias is not None else 0,
        **constants,
        **product_constants(g),
        DIVISOR=divisor,
        STEP=step,
        INVERSE=tuple(pow(d // k, -1, s) for d, k, s in zip(dilations, divisor, step)),
        BACK=tuple(-d // k for d, k in zip(dilations, divisor)),
        BOUNDED=tuple(map(_leaves, reach, g.shape[2:], w.shape[2:], strides, paddings, dilations)),
        G_UNIT=gs.unit,
        W_UNIT=ws.unit,
        DX_UNIT=unit,
        C_UNIT=vector(item, cg),
        O_UNIT=vector(item, og),
        EVEN=og % tile["BLOCK_K"] == 0,
        CHANNELS=og if og < PACKED else None,
        CHANNELS_LAST=dx_c == 1,
        INT64=needs_int64(dx, g, w),
        **tile,
    )


def _leaves(reach: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether a pixel of a phase, of which there are ``reach`` along the axis, may look for a
    window that is not there, among ``size``."""
    least = (padding - (kernel - 1) * dilation) // stride
    most = (reach * stride - 1 + padding) // stride
    return least < 0 or most >= size


def _run(x: DeviceArray, w: DeviceArray, y: DeviceArray, padding: int) -> None:
    one, same = (1, 1), (padding, padding)
    conv_data_grad(x, y, w, None, stride=one, padding=same, dilation=one, groups=1)


family(
    "conv_data",
    data_grad_kernel,
    _run,
    [(p, r, 64, p * r // 2048, s) for p in (64, 128, 256) for r in (64, 128) for s in (3, 4)]
    + [(128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (128, 128, 32, 8, 4), (64, 64, 32, 4, 4)],
)
