"""``unfold`` (every window as a column) and its adjoint ``fold``, one element of the result at a
time, on three spatial axes.
"""

from __future__ import annotations

from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .conv_geometry import Sizes, accumulator, geometry, needs_int64, split_pixel, three


@jit
def unfold_kernel(
    x_ptr,  # (n, channels, in_d, in_h, in_w)
    out_ptr,  # (n, channels, taps, out_d * out_h * out_w), contiguous
    size,
    channels,
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
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    if INT64:
        tile = tile.to(tl.int64)
    place = tile * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    row, d, h, w = split_pixel(place, out_d, out_h, out_w)
    plane, kd, kh, kw = split_pixel(row, KERNEL[0], KERNEL[1], KERNEL[2])
    d = d * STRIDE[0] - PADDING[0] + kd * DILATION[0]
    h = h * STRIDE[1] - PADDING[1] + kh * DILATION[1]
    w = w * STRIDE[2] - PADDING[2] + kw * DILATION[2]
    seen = mask & (d >= 0) & (d < in_d) & (h >= 0) & (h < in_h) & (w >= 0) & (w < in_w)
    base = plane // channels * x_n_stride + plane % channels * x_c_stride
    x_place = base + d * x_d_stride + h * x_h_stride + w * x_w_stride
    tl.store(out_ptr + place, tl.load(x_ptr + x_place, mask=seen, other=0.0), mask)


@jit
def fold_kernel(
    columns_ptr,  # (n, channels * taps, out_d * out_h * out_w)
    out_ptr,  # (n, channels, in_d, in_h, in_w), contiguous
    size,
    channels,
    in_d,
    in_h,
    in_w,
    out_d,
    out_h,
    out_w,
    n_stride,
    row_stride,
    pixel_stride,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ACC: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    if INT64:
        tile = tile.to(tl.int64)
    place = tile * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    plane, d, h, w = split_pixel(place, in_d, in_h, in_w)
    first = plane % channels * (KERNEL[0] * KERNEL[1] * KERNEL[2])
    base = plane // channels * n_stride + first * row_stride
    acc = tl.zeros((BLOCK,), dtype=ACC)
    for kd in range(0, KERNEL[0]):
        od = d + PADDING[0] - kd * DILATION[0]
        d_mask = mask & (od >= 0) & (od % STRIDE[0] == 0) & (od // STRIDE[0] < out_d)
        for kh in range(0, KERNEL[1]):
            oh = h + PADDING[1] - kh * DILATION[1]
            h_mask = d_mask & (oh >= 0) & (oh % STRIDE[1] == 0) & (oh // STRIDE[1] < out_h)
            for kw in range(0, KERNEL[2]):
                ow = w + PADDING[2] - kw * DILATION[2]
                seen = h_mask & (ow >= 0) & (ow % STRIDE[2] == 0) & (ow // STRIDE[2] < out_w)
                pixel = (od // STRIDE[0] * out_h + oh // STRIDE[1]) * out_w + ow // STRIDE[2]
                row = (kd * KERNEL[1] + kh) * KERNEL[2] + kw
                at = base + row * row_stride + pixel * pixel_stride
                acc += tl.load(columns_ptr + at, mask=seen, other=0.0).to(ACC)
    tl.store(out_ptr + place, acc.to(out_ptr.dtype.element_ty), mask)


def _block(x: DeviceArray) -> int:
    return 1 << 14 if x.device.interpreted else 256


def unfold(
    out: DeviceArray,
    x: DeviceArray,
    *,
    kernel: Sizes,
    size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> None:
    """out (n, c * taps, pixels) with pixels = product of ``size``, x (n, c, *in)."""
    x = three(x)
    block = _block(x)
    launch(
        unfold_kernel,
        (cdiv(out.size, block),),
        *(x, out, out.size, x.shape[1], *x.shape[2:], *(1,) * (3 - len(size)), *size, *x.strides),
        **geometry(kernel, stride, padding, dilation),
        INT64=needs_int64(x, out),
        BLOCK=block,
    )


def fold(
    out: DeviceArray,
    columns: DeviceArray,
    *,
    kernel: Sizes,
    size: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> None:
    """out (n, c, *in), columns (n, c * taps, pixels) with pixels = product of ``size``."""
    out = three(out)
    block = _block(columns)
    launch(
        fold_kernel,
        (cdiv(out.size, block),),
        *(columns, out, out.size, out.shape[1], *out.shape[2:]),
        *(*(1,) * (3 - len(size)), *size, *columns.strides),
        **geometry(kernel, stride, padding, dilation),
        ACC=accumulator(columns.dtype),
        INT64=needs_int64(columns, out),
        BLOCK=block,
    )
