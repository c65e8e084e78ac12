"""Window kernels without a matrix product, one element of the result at a time.

Depthwise convolution (one input channel per group: nothing to multiply as a matrix) and its data
gradient; ``unfold`` (every window as a column) and its adjoint ``fold``. All on three spatial axes.
"""

from __future__ import annotations

from typing import Any

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch

Sizes = tuple[int, ...]


@jit
def split_pixel(pixel, size_d, size_h, size_w):
    """A flat pixel as (sample, d, h, w)."""
    row = pixel // size_w
    plane = row // size_h
    return plane // size_d, plane % size_d, row % size_h, pixel % size_w


@jit
def depthwise_forward_kernel(
    x_ptr,  # (n, channels, in_d, in_h, in_w)
    w_ptr,  # (channels * og, 1, *KERNEL)
    bias_ptr,  # (channels * og,) or None
    out_ptr,  # (n, channels * og, out_d, out_h, out_w), contiguous
    size,
    channels,
    og,
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
    w_d_stride,
    w_h_stride,
    w_w_stride,
    bias_stride,
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
    plane, d, h, w = split_pixel(place, out_d, out_h, out_w)
    n = plane // (channels * og)
    o = plane % (channels * og)
    base = n * x_n_stride + o // og * x_c_stride
    d = d * STRIDE[0] - PADDING[0]
    h = h * STRIDE[1] - PADDING[1]
    w = w * STRIDE[2] - PADDING[2]
    acc = tl.zeros((BLOCK,), dtype=ACC)
    for kd in range(0, KERNEL[0]):
        xd = d + kd * DILATION[0]
        d_mask = mask & (xd >= 0) & (xd < in_d)
        for kh in range(0, KERNEL[1]):
            xh = h + kh * DILATION[1]
            h_mask = d_mask & (xh >= 0) & (xh < in_h)
            for kw in range(0, KERNEL[2]):
                xw = w + kw * DILATION[2]
                seen = h_mask & (xw >= 0) & (xw < in_w)
                x_place = base + xd * x_d_stride + xh * x_h_stride + xw * x_w_stride
                x = tl.load(x_ptr + x_place, mask=seen, other=0.0).to(ACC)
                tap = kd * w_d_stride + kh * w_h_stride + kw * w_w_stride
                weight = tl.load(w_ptr + o * w_o_stride + tap, mask=mask, other=0.0).to(ACC)
                acc += x * weight
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + o * bias_stride, mask=mask, other=0.0).to(ACC)
    tl.store(out_ptr + place, acc.to(out_ptr.dtype.element_ty), mask)


@jit
def depthwise_data_grad_kernel(
    g_ptr,  # (n, channels * og, out_d, out_h, out_w)
    w_ptr,  # (channels * og, 1, *KERNEL)
    bias_ptr,  # (channels,) or None
    dx_ptr,  # (n, channels, in_d, in_h, in_w), contiguous
    size,
    channels,
    og,
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
    w_d_stride,
    w_h_stride,
    w_w_stride,
    bias_stride,
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
    n = plane // channels
    c = plane % channels
    acc = tl.zeros((BLOCK,), dtype=ACC)
    for m in range(0, og):
        base = n * g_n_stride + (c * og + m) * g_o_stride
        for kd in range(0, KERNEL[0]):
            gd = d + PADDING[0] - kd * DILATION[0]
            d_mask = mask & (gd >= 0) & (gd % STRIDE[0] == 0) & (gd // STRIDE[0] < out_d)
            for kh in range(0, KERNEL[1]):
                gh = h + PADDING[1] - kh * DILATION[1]
                h_mask = d_mask & (gh >= 0) & (gh % STRIDE[1] == 0) & (gh // STRIDE[1] < out_h)
                for kw in range(0, KERNEL[2]):
                    gw = w + PADDING[2] - kw * DILATION[2]
                    seen = h_mask & (gw >= 0) & (gw % STRIDE[2] == 0) & (gw // STRIDE[2] < out_w)
                    g_place = (
                        base
                        + gd // STRIDE[0] * g_d_stride
                        + gh // STRIDE[1] * g_h_stride
                        + gw // STRIDE[2] * g_w_stride
                    )
                    g = tl.load(g_ptr + g_place, mask=seen, other=0.0).to(ACC)
                    w_place = (c * og + m) * w_o_stride + (
                        kd * w_d_stride + kh * w_h_stride + kw * w_w_stride
                    )
                    weight = tl.load(w_ptr + w_place, mask=mask, other=0.0).to(ACC)
                    acc += tl.where(seen, g * weight, 0.0)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c * bias_stride, mask=mask, other=0.0).to(ACC)
    tl.store(dx_ptr + place, acc.to(dx_ptr.dtype.element_ty), mask)


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


def accumulator(dtype: DType) -> Any:
    """float32 for the half types and float32, float64 for itself."""
    return tl.float64 if dtype is dtypes.float64 else tl.float32


def needs_int64(*arrays: DeviceArray | None) -> bool:
    """Whether offsets (or the last tile's pixel numbers, which overshoot) can pass 2**31 - 1."""
    return shapes.needs_int64(*arrays) or any(a.size > 2**31 - 2**16 for a in arrays if a)


def three(x: DeviceArray) -> DeviceArray:
    """x (n, c, *size) with leading axes of size 1 up to three spatial axes."""
    lead = 5 - x.ndim
    return x.as_strided(
        (*x.shape[:2], *(1,) * lead, *x.shape[2:]), (*x.strides[:2], *(0,) * lead, *x.strides[2:])
    )


def geometry(kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes) -> dict[str, Any]:
    """The constants of a window as three-axis tuples."""
    lead = 3 - len(stride)
    return {
        "KERNEL": (1,) * (3 - len(kernel)) + tuple(kernel),
        "STRIDE": (1,) * lead + tuple(stride),
        "PADDING": (0,) * lead + tuple(padding),
        "DILATION": (1,) * lead + tuple(dilation),
    }


def _block(x: DeviceArray) -> int:
    return 1 << 14 if x.device.interpreted else 256


def depthwise_forward(
    out: DeviceArray,
    x: DeviceArray,
    w: DeviceArray,
    bias: DeviceArray | None,
    *,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
) -> None:
    """out (n, c*m, *out), x (n, c, *in), w (c*m, 1, *kernel), bias (c*m,)."""
    out, x, w = three(out), three(x), three(w)
    block = _block(x)
    launch(
        depthwise_forward_kernel,
        (cdiv(out.size, block),),
        *(x, w, bias, out, out.size, x.shape[1], out.shape[1] // x.shape[1]),
        *(*x.shape[2:], *out.shape[2:], *x.strides, w.strides[0], *w.strides[2:]),
        bias.strides[0] if bias is not None else 0,
        **geometry(w.shape[2:], stride, padding, dilation),
        ACC=accumulator(x.dtype),
        INT64=needs_int64(x, w, out),
        BLOCK=block,
    )


def depthwise_data_grad(
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
    block = _block(g)
    launch(
        depthwise_data_grad_kernel,
        (cdiv(dx.size, block),),
        *(g, w, bias, dx, dx.size, dx.shape[1], g.shape[1] // dx.shape[1]),
        *(*dx.shape[2:], *g.shape[2:], *g.strides, w.strides[0], *w.strides[2:]),
        bias.strides[0] if bias is not None else 0,
        **geometry(w.shape[2:], stride, padding, dilation),
        ACC=accumulator(g.dtype),
        INT64=needs_int64(dx, g, w),
        BLOCK=block,
    )


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
