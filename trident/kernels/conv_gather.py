"""The two products that convolution and its data gradient are: sums over (tap, channel).

A program owns a tile (pixels, rows of the result). No window is ever written to memory: for each
step of the sum the input that its pixels see is gathered. Channels are the second axis of that
tile: channels-last inputs give 16-byte loads that go straight to shared memory.

Source: implicit GEMM is the method of cuDNN (Chetlur et al., arXiv:1410.0759).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..lang import Jit, jit, tl
from ..runtime import DeviceArray
from .conv_geometry import inside


class Epilogue(NamedTuple):
    """What is done to a convolution before it is stored: ``act(conv * scale + shift + residual)``.

    scale and shift (channels,) in the dtype that x is computed in, both or neither; residual of
    out's shape and dtype; act a ``@jit`` function of one value.
    """

    scale: DeviceArray | None = None
    shift: DeviceArray | None = None
    residual: DeviceArray | None = None
    act: Jit | None = None

    def function(self) -> Any:
        """``act`` as kernels take it."""
        return self.act.triton() if self.act is not None else None


PLAIN = Epilogue()


@jit
def gather_dot(
    x_ptr,  # at (0, first channel of the group, 0, 0, 0)
    w_ptr,  # at the group's first row, channel and tap
    first,  # (P,) offsets in x of where the first tap falls; it may lie outside
    d0,  # (P,) the same place, per axis
    h0,
    w0,
    row_offsets,  # (R,) offsets in w of the rows of the result
    row_mask,  # (R,)
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
    BOUNDED: tl.constexpr,
    C_UNIT: tl.constexpr,
    EVEN: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(P, R) sums over (tap, channel) of x * w; tap t of an axis reads x at first + t * STEP.

    A step lies within one tap, so that the tap is a scalar and bounds are tested once a pixel.
    Neighbouring steps are neighbouring taps of the same channels: they read nearly the same memory.
    C_UNIT divides the number of channels; EVEN: BLOCK_K does.
    """
    acc = tl.zeros((BLOCK_P, BLOCK_R), dtype=ACC)
    some = tl.maximum(taps, 1)  # the loop does not run where there are none, but may be unrolled
    for step in range(0, tl.cdiv(depth, BLOCK_K) * taps):
        tap = step % some
        c = step // some * BLOCK_K + tl.arange(0, BLOCK_K)
        td = tap // (taps_h * taps_w)
        th = tap // taps_w % taps_h
        tw = tap % taps_w
        seen = inside(
            d0 + td * STEP[0], h0 + th * STEP[1], w0 + tw * STEP[2], x_d, x_h, x_w, BOUNDED
        )[:, None]
        if INT64:
            c = c.to(tl.int64)
            td = td.to(tl.int64)
            th = th.to(tl.int64)
            tw = tw.to(tl.int64)
        w_mask = row_mask[None, :]
        if not EVEN:
            c_mask = c // C_UNIT < depth // C_UNIT
            seen = seen & c_mask[None, :]
            w_mask = w_mask & c_mask[:, None]
        x_tap = td * STEP[0] * x_d_stride + th * STEP[1] * x_h_stride + tw * STEP[2] * x_w_stride
        x_at = first[:, None] + (x_tap + c * x_c_stride)[None, :]
        w_tap = td * w_d_stride + th * w_h_stride + tw * w_w_stride
        w_at = row_offsets[None, :] + (w_tap + c * w_c_stride)[:, None]
        x = tl.load(x_ptr + x_at, mask=seen, other=0.0)
        w = tl.load(w_ptr + w_at, mask=w_mask, other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc


@jit
def packed_dot(
    x_ptr,  # as in gather_dot
    w_ptr,
    first,
    d0,
    h0,
    w0,
    row_offsets,
    row_mask,
    x_d,
    x_h,
    x_w,
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
    CHANNELS: tl.constexpr,
    STEP: tl.constexpr,
    BOUNDED: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``gather_dot`` for few CHANNELS: (tap, channel) pairs are numbered without gaps, so that a
    step of the sum is not mostly padding. Bounds are tested for each element.

    The gathered tile has the pixels along its second axis: what is loaded together is then
    consecutive in row-major images too, which is what first layers get.
    """
    acc = tl.zeros((BLOCK_P, BLOCK_R), dtype=ACC)
    for step in range(0, tl.cdiv(taps * CHANNELS, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        tap = k // CHANNELS
        c = k % CHANNELS
        k_mask = (tap < taps)[:, None]
        td = tap // (taps_h * taps_w)
        th = tap // taps_w % taps_h
        tw = tap % taps_w
        seen = k_mask & inside(
            d0[None, :] + (td * STEP[0])[:, None],
            h0[None, :] + (th * STEP[1])[:, None],
            w0[None, :] + (tw * STEP[2])[:, None],
            x_d,
            x_h,
            x_w,
            BOUNDED,
        )
        if INT64:
            c = c.to(tl.int64)
            td = td.to(tl.int64)
            th = th.to(tl.int64)
            tw = tw.to(tl.int64)
        x_tap = td * STEP[0] * x_d_stride + th * STEP[1] * x_h_stride + tw * STEP[2] * x_w_stride
        x_at = first[None, :] + (x_tap + c * x_c_stride)[:, None]
        w_tap = td * w_d_stride + th * w_h_stride + tw * w_w_stride
        w_at = row_offsets[None, :] + (w_tap + c * w_c_stride)[:, None]
        x = tl.load(x_ptr + x_at, mask=seen, other=0.0)
        w = tl.load(w_ptr + w_at, mask=k_mask & row_mask[None, :], other=0.0)
        acc = tl.dot(tl.trans(x), w, acc, input_precision=PRECISION, out_dtype=ACC)
    return acc


@jit
def store_tile(
    acc,  # (P, R)
    out_ptr,
    offsets,  # (P,) of the pixels in out, without the channel
    pixel_mask,  # (P,)
    channels,  # (R,)
    channel_mask,  # (R,)
    out_c_stride,
    bias_ptr,  # (channels,) or None
    bias_stride,
    scale_ptr,  # (channels,) in the type of acc, with shift_ptr; or None
    scale_stride,
    shift_ptr,
    shift_stride,
    residual_ptr,  # laid out like out, or None
    ACT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Store ``ACT((acc + bias) * scale + shift + residual)``.

    The value is rounded to out's type where separate ops would round it: after the convolution with
    its bias, the affine map, the sum and the activation.
    """
    out_type = out_ptr.dtype.element_ty
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channels * bias_stride, mask=channel_mask, other=0.0)
        acc += bias.to(acc.dtype)[None, :]
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + channels * scale_stride, mask=channel_mask, other=0.0)
        shift = tl.load(shift_ptr + channels * shift_stride, mask=channel_mask, other=0.0)
        acc = acc.to(out_type).to(acc.dtype) * scale[None, :] + shift[None, :]
    if CHANNELS_LAST:
        mask = pixel_mask[:, None] & channel_mask[None, :]
        at = offsets[:, None] + (channels * out_c_stride)[None, :]
    else:  # the second axis is the one that threads are laid along
        acc = tl.trans(acc)
        mask = channel_mask[:, None] & pixel_mask[None, :]
        at = (channels * out_c_stride)[:, None] + offsets[None, :]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + at, mask=mask, other=0.0)
        acc = acc.to(out_type).to(acc.dtype) + residual.to(acc.dtype)
    if ACT is not None:
        acc = ACT(acc.to(out_type).to(acc.dtype))
    tl.store(out_ptr + at, acc.to(out_type), mask=mask)
