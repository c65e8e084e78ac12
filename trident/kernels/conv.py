"""Convolution, as a matrix product of the gathered input with the weight (``conv_gather``).

Channels-last inputs are read in vectors, and results are written in the layout of ``out``, which
the caller chose. Large inputs in another layout are copied first. A window of one element is no
window: without a bias that is a matrix product, and ``matmul`` does it.
"""

from __future__ import annotations

import math

from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from . import conv_depthwise
from .conv_gather import PLAIN, Epilogue, gather_dot, packed_dot, store_tile
from .conv_geometry import (
    Sizes,
    Walk,
    geometry,
    laid_out_like,
    needs_int64,
    output_strides,
    product_constants,
    split_pixel,
    staged,
    three,
    vector,
)
from .conv_tiles import PACKED, family, tile_for
from .matmul import matmul


@jit
def forward_kernel(
    x_ptr,  # (n, groups * c, in_d, in_h, in_w)
    w_ptr,  # (groups * o, c, *KERNEL)
    bias_ptr,  # (groups * o,) or None
    scale_ptr,  # (groups * o,) or None, with shift_ptr
    shift_ptr,
    residual_ptr,  # laid out like out, or None
    out_ptr,  # (n, groups * o, pixels of a sample)
    pixels,
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
    x_n_stride,  # in units of X_UNIT, as those of d, h and w
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    w_o_stride,  # in units of W_UNIT, as those of d, h and w
    w_c_stride,
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
    W_UNIT: tl.constexpr,
    OUT_UNIT: tl.constexpr,
    C_UNIT: tl.constexpr,
    O_UNIT: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS: tl.constexpr,  # per group where they are packed, else None
    CHANNELS_LAST: tl.constexpr,  # out is
    ACT: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # neighbouring programs share their pixels: x is then read from memory once, w stays in L2
    tiles = tl.cdiv(og, BLOCK_R)
    o = tl.program_id(0) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    group = tl.program_id(0) // tiles % groups
    tile = tl.program_id(0) // (tiles * groups)
    if INT64:
        o = o.to(tl.int64)
        group = group.to(tl.int64)
        tile = tile.to(tl.int64)
    place = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    o_mask = o // O_UNIT < og // O_UNIT
    # beyond the last pixel it is read again and not stored
    n, d, h, w = split_pixel(tl.minimum(place, pixels - 1), out_d, out_h, out_w)
    d = d * STRIDE[0] - PADDING[0]
    h = h * STRIDE[1] - PADDING[1]
    w = w * STRIDE[2] - PADDING[2]
    first = (n * x_n_stride + d * x_d_stride + h * x_h_stride + w * x_w_stride) * X_UNIT
    x_ptr += group * (cg // X_UNIT) * X_UNIT * x_c_stride
    w_ptr += group * og * w_o_stride * W_UNIT
    rows = o * w_o_stride * W_UNIT
    if CHANNELS is None:
        acc = gather_dot(
            x_ptr, w_ptr, first, d, h, w, rows, o_mask, in_d, in_h, in_w, cg,
            KERNEL[1], KERNEL[2], KERNEL[0] * KERNEL[1] * KERNEL[2],
            x_c_stride, x_d_stride * X_UNIT, x_h_stride * X_UNIT, x_w_stride * X_UNIT,
            w_c_stride, w_d_stride * W_UNIT, w_h_stride * W_UNIT, w_w_stride * W_UNIT,
            DILATION, BOUNDED, C_UNIT, EVEN, ACC, PRECISION, INT64, BLOCK_P, BLOCK_R, BLOCK_K,
        )  # fmt: skip
    else:
        acc = packed_dot(
            x_ptr, w_ptr, first, d, h, w, rows, o_mask, in_d, in_h, in_w,
            KERNEL[1], KERNEL[2], KERNEL[0] * KERNEL[1] * KERNEL[2],
            x_c_stride, x_d_stride * X_UNIT, x_h_stride * X_UNIT, x_w_stride * X_UNIT,
            w_c_stride, w_d_stride * W_UNIT, w_h_stride * W_UNIT, w_w_stride * W_UNIT,
            CHANNELS, DILATION, BOUNDED, ACC, PRECISION, INT64, BLOCK_P, BLOCK_R, BLOCK_K,
        )  # fmt: skip
    out_ptr += group * (og // OUT_UNIT) * OUT_UNIT * out_c_stride
    if bias_ptr is not None:
        bias_ptr += group * og * bias_stride
    if scale_ptr is not None:
        scale_ptr += group * og * scale_stride
        shift_ptr += group * og * shift_stride
    if residual_ptr is not None:
        residual_ptr += group * (og // OUT_UNIT) * OUT_UNIT * out_c_stride
    at = (place // area * out_n_stride + place % area * out_pixel_stride) * OUT_UNIT
    store_tile(
        acc, out_ptr, at, place < pixels, o, o_mask, out_c_stride, bias_ptr, bias_stride,
        scale_ptr, scale_stride, shift_ptr, shift_stride, residual_ptr, ACT,
        CHANNELS_LAST,
    )  # fmt: skip


def as_matmul(
    out: DeviceArray, x: DeviceArray, w: DeviceArray, stride: Sizes, padding: Sizes
) -> bool:
    """Do out (n, o, *size) = w x for x (n, c, *size) and w (o, c, 1, ...) by ``matmul`` where a
    window is one element and pixels can be walked as one axis; says whether it was done."""
    window = (*(k - 1 for k in w.shape[2:]), *(s - 1 for s in stride), *padding)
    flat = (*x.shape[:2], math.prod(x.shape[2:]))
    if any(window) or not x.can_reshape(flat):
        return False
    columns, rows = x.reshape(flat), w.reshape(w.shape[:2])
    target = out.reshape((*out.shape[:2], flat[2]))
    if target.strides[1] == 1:  # a row of the product is a pixel, as it lies in memory
        matmul(target.swapaxes(1, 2), columns.swapaxes(1, 2), rows.swapaxes(0, 1))
    else:
        matmul(target, rows, columns)
    return True


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
    epilogue: Epilogue = PLAIN,
) -> None:
    """out (n, groups*o, *out), x (n, groups*c, *in), w (groups*o, c, *kernel), bias (groups*o,).

    ``out`` is row-major or channels-last. The sum and the bias are rounded once, and once more
    after each step of the epilogue.
    """
    if out.size == 0:
        return
    plain = bias is None and groups == 1 and epilogue == PLAIN
    if plain and as_matmul(out, x, w, stride, padding):
        return
    if w.shape[1] == 1 and groups > 1:
        conv_depthwise.forward(
            out, x, w, bias, stride=stride, padding=padding, dilation=dilation, epilogue=epilogue
        )
        return
    out, x, w = three(out), three(x), three(w)
    residual = laid_out_like(epilogue.residual, out)
    og, cg = out.shape[1] // groups, w.shape[1]
    taps = math.prod(w.shape[2:])
    area = math.prod(out.shape[2:])
    pixels = out.shape[0] * area
    if cg >= PACKED:
        x, w = staged(pixels * og * groups * cg * taps, x, w)
    xs = Walk.of(x, cg if groups > 1 else 0)
    ws = Walk.of(w)
    sizes = (pixels, og, cg, taps, min(xs.unit, ws.unit))
    tile = tile_for("conv", x, sizes, ("BLOCK_P", "BLOCK_R"))
    unit, out_n, out_c, out_pixel = output_strides(out, og if groups > 1 else 0)
    scale, shift = epilogue.scale, epilogue.shift
    constants = geometry(w.shape[2:], stride, padding, dilation)
    item = x.dtype.itemsize
    launch(
        forward_kernel,
        (cdiv(pixels, tile["BLOCK_P"]) * groups * cdiv(og, tile["BLOCK_R"]),),
        *(x, w, bias, scale, shift, residual, out),
        *(pixels, area, groups, og, cg, *x.shape[2:], *out.shape[2:]),
        *xs[1:],
        *ws[1:],
        *(out_n, out_c, out_pixel),
        *(v.strides[0] if v is not None else 0 for v in (bias, scale, shift)),
        **constants,
        **product_constants(x),
        BOUNDED=tuple(p > 0 for p in constants["PADDING"]),
        X_UNIT=xs.unit,
        W_UNIT=ws.unit,
        OUT_UNIT=unit,
        C_UNIT=vector(item, cg),
        O_UNIT=vector(item, og),
        EVEN=cg % tile["BLOCK_K"] == 0,
        CHANNELS=cg if cg < PACKED else None,
        CHANNELS_LAST=out_c == 1,
        ACT=epilogue.function(),
        INT64=needs_int64(x, w, out),
        **tile,
    )


def _run(x: DeviceArray, w: DeviceArray, y: DeviceArray, padding: int) -> None:
    one, same = (1, 1), (padding, padding)
    convolution(y, x, w, None, stride=one, padding=same, dilation=one, groups=1)


family(
    "conv",
    forward_kernel,
    _run,
    [(p, r, 64, p * r // 2048, s) for p in (64, 128, 256) for r in (64, 128) for s in (3, 4)]
    + [(128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (128, 128, 32, 8, 4), (64, 64, 32, 4, 4)],
)
