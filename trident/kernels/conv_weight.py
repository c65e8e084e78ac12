"""The gradient of convolution for its weight, as an implicit matrix product.

dw[o, c, t] = sum over pixels of g[o, pixel] * x[c, where tap t of that pixel falls]. A program owns
a tile of dw and walks over pixels, by carries instead of divisions. Channels-last g and x are read
in vectors: both are tiles (pixels, consecutive channels).
"""

from __future__ import annotations

import math

from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from . import conv_depthwise
from .conv_geometry import (
    Sizes,
    Walk,
    geometry,
    inside,
    needs_int64,
    next_pixel,
    product_constants,
    split_pixel,
    staged,
    three,
    vector,
)
from .conv_parts import Parts, parts_of
from .conv_tiles import PACKED, family, tile_for


@jit
def weight_grad_kernel(
    g_ptr,  # (n, groups * o, out_d, out_h, out_w)
    x_ptr,  # (n, groups * c, in_d, in_h, in_w)
    dw_ptr,  # (parts, groups * o, taps, c)
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
    dw_part_stride,  # in units of DW_UNIT, as those of o and of the taps
    dw_o_stride,
    dw_tap_stride,
    dw_c_stride,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    BOUNDED: tl.constexpr,
    G_UNIT: tl.constexpr,
    X_UNIT: tl.constexpr,
    DW_UNIT: tl.constexpr,
    C_UNIT: tl.constexpr,
    O_UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,  # per group where they are packed with the taps, else None
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """A tile is (o, c) of one tap, so that bounds are tested once a pixel; with CHANNELS it is
    (o, (tap, c)), so that it is not mostly padding."""
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    item = tl.program_id(0)
    if CHANNELS is None:
        tiles_c = tl.cdiv(cg, BLOCK_K)
        c = item % tiles_c * BLOCK_K + tl.arange(0, BLOCK_K)
        tap = item // tiles_c % TAPS
        item = item // (tiles_c * TAPS)
        c_mask = c // C_UNIT < cg // C_UNIT
    else:
        tiles_k: tl.constexpr = (TAPS * CHANNELS + BLOCK_K - 1) // BLOCK_K
        k = item % tiles_k * BLOCK_K + tl.arange(0, BLOCK_K)
        item = item // tiles_k
        tap = k // CHANNELS
        c = k % CHANNELS
        c_mask = tap < TAPS
    tiles_o = tl.cdiv(og, BLOCK_R)
    o = item % tiles_o * BLOCK_R + tl.arange(0, BLOCK_R)
    group = item // tiles_o % groups
    part = item // (tiles_o * groups)
    o_mask = o // O_UNIT < og // O_UNIT
    dw_k = c * dw_c_stride + tap * dw_tap_stride * DW_UNIT
    td = tap // (KERNEL[1] * KERNEL[2]) * DILATION[0] - PADDING[0]
    th = tap // KERNEL[2] % KERNEL[1] * DILATION[1] - PADDING[1]
    tw = tap % KERNEL[2] * DILATION[2] - PADDING[2]
    if INT64:
        c = c.to(tl.int64)
        o = o.to(tl.int64)
        group = group.to(tl.int64)
        part = part.to(tl.int64)
        td = td.to(tl.int64)
        th = th.to(tl.int64)
        tw = tw.to(tl.int64)
    g_ptr += group * (og // G_UNIT) * G_UNIT * g_o_stride
    x_ptr += group * (cg // X_UNIT) * X_UNIT * x_c_stride
    x_k = c * x_c_stride + (td * x_d_stride + th * x_h_stride + tw * x_w_stride) * X_UNIT
    first = part * part_pixels
    stop = tl.minimum(first + part_pixels, pixels)
    n, d, h, w = split_pixel(first + tl.arange(0, BLOCK_P), out_d, out_h, out_w)
    acc = tl.zeros((BLOCK_R, BLOCK_K), dtype=ACC)
    for start in range(first, stop, BLOCK_P):
        live = start + tl.arange(0, BLOCK_P) < stop
        g_at = (n * g_n_stride + d * g_d_stride + h * g_h_stride + w * g_w_stride) * G_UNIT
        g_mask = o_mask[:, None] & live[None, :]
        g = tl.load(g_ptr + (o * g_o_stride)[:, None] + g_at[None, :], mask=g_mask, other=0.0)
        xd = d * STRIDE[0]
        xh = h * STRIDE[1]
        xw = w * STRIDE[2]
        x_at = (n * x_n_stride + xd * x_d_stride + xh * x_h_stride + xw * x_w_stride) * X_UNIT
        if CHANNELS is None:
            seen = live & inside(xd + td, xh + th, xw + tw, in_d, in_h, in_w, BOUNDED)
            mask = seen[:, None] & c_mask[None, :]
            x = tl.load(x_ptr + x_at[:, None] + x_k[None, :], mask=mask, other=0.0)
        else:
            seen = live[None, :] & inside(
                xd[None, :] + td[:, None], xh[None, :] + th[:, None], xw[None, :] + tw[:, None],
                in_d, in_h, in_w, BOUNDED,
            )  # fmt: skip
            mask = seen & c_mask[:, None]
            x = tl.trans(tl.load(x_ptr + x_k[:, None] + x_at[None, :], mask=mask, other=0.0))
        acc = tl.dot(g, x, acc, input_precision=PRECISION, out_dtype=ACC)
        n, d, h, w = next_pixel(n, d, h, w, BLOCK_P, out_d, out_h, out_w)
    rows = ((group * og + o) * dw_o_stride + part * dw_part_stride) * DW_UNIT
    value = acc.to(dw_ptr.dtype.element_ty)
    mask = o_mask[:, None] & c_mask[None, :]
    tl.store(dw_ptr + rows[:, None] + dw_k[None, :], value, mask=mask)


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
    """dw (groups*o, c, *kernel), g (n, groups*o, *out), x (n, groups*c, *in).

    ``dw`` is row-major or channels-last.
    """
    if dw.size == 0:
        return
    if dw.shape[1] == 1 and groups > 1:
        conv_depthwise.weight_grad(dw, g, x, stride=stride, padding=padding, dilation=dilation)
        return
    out = dw
    dw, g, x = three(dw), three(g), three(x)
    og, cg = dw.shape[0] // groups, dw.shape[1]
    taps = math.prod(dw.shape[2:])
    pixels = g.shape[0] * math.prod(g.shape[2:])
    packed = cg < PACKED
    if not packed:
        g, x = staged(pixels * og * groups * cg * taps, g, x)
    gs = Walk.of(g, og if groups > 1 else 0)
    xs = Walk.of(x, cg if groups > 1 else 0)
    sizes = (pixels, og, cg, taps, min(gs.unit, xs.unit))
    tile = tile_for("conv_weight", x, sizes, ("BLOCK_R", "BLOCK_K"))
    columns = cdiv(cg * taps, tile["BLOCK_K"]) if packed else cdiv(cg, tile["BLOCK_K"]) * taps
    programs = cdiv(og, tile["BLOCK_R"]) * columns * groups
    parts, part = parts_of(pixels, tile["BLOCK_P"], programs, x.device.interpreted)
    target = Parts(out.reshape((out.shape[0], cg, taps)).transpose((0, 2, 1)), parts)
    item = x.dtype.itemsize
    constants = geometry(dw.shape[2:], stride, padding, dilation)
    launch(
        weight_grad_kernel,
        (programs * parts,),
        *(g, x, target.array),
        *(pixels, part, groups, og, cg, *x.shape[2:], *g.shape[2:]),
        *gs[1:],
        *xs[1:],
        *target.strides,
        target.last_stride,
        **constants,
        **product_constants(x),
        BOUNDED=tuple(p > 0 for p in constants["PADDING"]),
        G_UNIT=gs.unit,
        X_UNIT=xs.unit,
        DW_UNIT=target.unit,
        C_UNIT=vector(item, cg),
        O_UNIT=vector(item, og),
        CHANNELS=cg if packed else None,
        INT64=needs_int64(g, x, target.array),
        **tile,
    )
    target.add()


def _run(x: DeviceArray, w: DeviceArray, y: DeviceArray, padding: int) -> None:
    one, same = (1, 1), (padding, padding)
    conv_weight_grad(w, y, x, stride=one, padding=same, dilation=one, groups=1)


family(
    "conv_weight",
    weight_grad_kernel,
    _run,
    [
        (p, r, k, max(r * k // 2048, 4), s)
        for p in (32, 64)
        for r, k in ((64, 64), (128, 64), (64, 128), (128, 128))
        for s in (3, 4)
    ],
)
