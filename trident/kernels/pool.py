"""Pooling over one to three axes: maximum and average, forward and backward, fixed and adaptive.

All kernels see five axes (batch, channel, depth, height, width); a missing one has size 1 and a
window of 1. Every kernel gathers: a program owns the elements that it writes and reads the windows
or positions that belong to them, in a fixed order, so gradients need no atomics.

What is pooled along an axis is a ``Window``; the kernels and the numpy bodies both read it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import dtypes, shapes
from ..lang import Jit, cdiv, jit, next_power_of_2, tl
from ..runtime import DeviceArray, launch


class Window(NamedTuple):
    """The windows along one axis of ``size`` elements, of which there are ``out``.

    Window o takes the positions ``o * stride - padding + k * dilation`` for k < ``kernel``. An
    ``adaptive`` axis has windows of uneven length, at most ``kernel``: from ``o * size // out`` up
    to ``ceil((o + 1) * size / out)``.
    """

    size: int
    out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    adaptive: bool = False

    def bounds(self, o: int) -> tuple[int, int]:
        """First and last + 1 position of an adaptive window."""
        return o * self.size // self.out, cdiv((o + 1) * self.size, self.out)

    @property
    def overlap(self) -> int:
        """How many windows at most hold one position."""
        if not self.adaptive:
            return cdiv((self.kernel - 1) * self.dilation + 1, self.stride)
        n, out = self.size, self.out
        return max(cdiv((p + 1) * out, n) - p * out // n for p in range(n))


@jit
def tap(o, k, size, out, S: tl.constexpr, P: tl.constexpr, L: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Position of element k of window o, and whether the window has it (S stride, L dilation)."""
    if ADAPTIVE:
        position = o * size // out + k
        return position, position < ((o + 1) * size + out - 1) // out
    else:
        position = o * S - P + k * L
        return position, (position >= 0) & (position < size)


@jit
def holder(
    position,
    j,
    size,
    out,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    L: tl.constexpr,
    ADAPTIVE: tl.constexpr,
):
    """The j-th window that may hold ``position``: (window, element of the window, does hold)."""
    if ADAPTIVE:
        o = position * out // size + j
        # no such window ends before ``position``, and those past the last one start behind it
        k = position - o * size // out
        return o, k, k >= 0
    else:
        o = (position + P) // S - j
        rest = position + P - o * S
        k = rest // L
        return o, k, (o >= 0) & (o < out) & (k * L == rest) & (k < K)


@jit
def length(
    o,
    size,
    out,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    WITH_PADDING: tl.constexpr,
):
    """How many positions window o counts for an average."""
    if ADAPTIVE:
        return ((o + 1) * size + out - 1) // out - o * size // out
    else:
        start = o * S - P
        if WITH_PADDING:
            return tl.minimum(start + K, size + P) - start
        else:
            return tl.minimum(start + K, size) - tl.maximum(start, 0)


@jit
def flat_index(total, BLOCK: tl.constexpr, INT64: tl.constexpr):
    """The elements of this program and which of them exist."""
    if INT64:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    else:
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return i, i < total


@jit
def element(i, channels, size_d, size_h, size_w, CHANNELS_LAST: tl.constexpr):
    """(n, c, d, h, w) of the i-th element in memory of a row-major or channels-last array."""
    if CHANNELS_LAST:
        c = i % channels
        i = i // channels
    n = i // (size_w * size_h * size_d)
    if not CHANNELS_LAST:
        c = n % channels
        n = n // channels
    return n, c, i // (size_w * size_h) % size_d, i // size_w % size_h, i % size_w


@jit
def max_pool_kernel(
    out_ptr,  # (N, C, OD, OH, OW) row-major or channels-last
    which_ptr,  # (N, C, OD, OH, OW) row-major or channels-last: element of the window, row-major
    x_ptr,  # (N, C, ID, IH, IW)
    total,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    x_n_stride,
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LD: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    LOWEST: tl.constexpr,
    ACC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, mask = flat_index(total, BLOCK, INT64)
    n, c, d, h, w = element(i, C, OD, OH, OW, CHANNELS_LAST)
    x_ptrs = x_ptr + n * x_n_stride + c * x_c_stride
    best = tl.full((BLOCK,), LOWEST, ACC)
    which = tl.full((BLOCK,), -1, tl.int32)
    for kd in range(KD):
        pd, in_d = tap(d, kd, ID, OD, SD, PD, LD, ADAPTIVE)
        for kh in range(KH):
            ph, in_h = tap(h, kh, IH, OH, SH, PH, LH, ADAPTIVE)
            for kw in range(KW):
                pw, in_w = tap(w, kw, IW, OW, SW, PW, LW, ADAPTIVE)
                inside = mask & in_d & in_h & in_w
                at = x_ptrs + pd * x_d_stride + ph * x_h_stride + pw * x_w_stride
                value = tl.load(at, mask=inside, other=0).to(ACC)
                # the first of equal values wins, and a NaN wins over everything
                better = inside & ((which < 0) | (value > best) | (value != value))
                best = tl.where(better, value, best)
                which = tl.where(better, (kd * KH + kh) * KW + kw, which)
    tl.store(out_ptr + i, best.to(out_ptr.dtype.element_ty), mask=mask)
    which = tl.maximum(which, 0)  # a window of padding alone
    tl.store(which_ptr + i, which.to(which_ptr.dtype.element_ty), mask=mask)


@jit
def max_pool_take_kernel(
    out_ptr,  # (N, C, OD, OH, OW) row-major or channels-last
    x_ptr,  # (N, C, ID, IH, IW)
    which_ptr,  # (N, C, OD, OH, OW)
    total,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    x_n_stride,
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    which_n_stride,
    which_c_stride,
    which_d_stride,
    which_h_stride,
    which_w_stride,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LD: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    INDICES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # INDICES: store where the chosen element lies in its (ID, IH, IW) plane, instead of its value
    i, mask = flat_index(total, BLOCK, INT64)
    n, c, d, h, w = element(i, C, OD, OH, OW, CHANNELS_LAST)
    which_ptrs = which_ptr + n * which_n_stride + c * which_c_stride
    which_ptrs += d * which_d_stride + h * which_h_stride + w * which_w_stride
    which = tl.load(which_ptrs, mask=mask, other=0).to(tl.int32)
    pd, in_d = tap(d, which // (KH * KW), ID, OD, SD, PD, LD, ADAPTIVE)
    ph, in_h = tap(h, which // KW % KH, IH, OH, SH, PH, LH, ADAPTIVE)
    pw, in_w = tap(w, which % KW, IW, OW, SW, PW, LW, ADAPTIVE)
    if INDICES:
        value = (pd * IH + ph) * IW + pw
    else:
        x_ptrs = x_ptr + n * x_n_stride + c * x_c_stride
        at = x_ptrs + pd * x_d_stride + ph * x_h_stride + pw * x_w_stride
        value = tl.load(at, mask=mask & in_d & in_h & in_w, other=0)
    tl.store(out_ptr + i, value.to(out_ptr.dtype.element_ty), mask=mask)


@jit
def max_pool_backward_kernel(
    dx_ptr,  # (N, C, ID, IH, IW) row-major or channels-last
    g_ptr,  # (N, C, OD, OH, OW)
    which_ptr,  # (N, C, OD, OH, OW)
    total,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    g_n_stride,
    g_c_stride,
    g_d_stride,
    g_h_stride,
    g_w_stride,
    which_n_stride,
    which_c_stride,
    which_d_stride,
    which_h_stride,
    which_w_stride,
    JD: tl.constexpr,
    JH: tl.constexpr,
    JW: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LD: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    ACC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # each input element adds the gradients of the windows that chose it
    i, mask = flat_index(total, BLOCK, INT64)
    n, c, d, h, w = element(i, C, ID, IH, IW, CHANNELS_LAST)
    g_ptrs = g_ptr + n * g_n_stride + c * g_c_stride
    which_ptrs = which_ptr + n * which_n_stride + c * which_c_stride
    acc = tl.zeros((BLOCK,), ACC)
    for jd in range(JD):
        od, kd, in_d = holder(d, jd, ID, OD, KD, SD, PD, LD, ADAPTIVE)
        for jh in range(JH):
            oh, kh, in_h = holder(h, jh, IH, OH, KH, SH, PH, LH, ADAPTIVE)
            for jw in range(JW):
                ow, kw, in_w = holder(w, jw, IW, OW, KW, SW, PW, LW, ADAPTIVE)
                inside = mask & in_d & in_h & in_w
                at = od * which_d_stride + oh * which_h_stride + ow * which_w_stride
                which = tl.load(which_ptrs + at, mask=inside, other=0).to(tl.int32)
                chosen = inside & (which == (kd * KH + kh) * KW + kw)
                at = od * g_d_stride + oh * g_h_stride + ow * g_w_stride
                acc += tl.load(g_ptrs + at, mask=chosen, other=0.0).to(ACC)
    tl.store(dx_ptr + i, acc.to(dx_ptr.dtype.element_ty), mask=mask)


@jit
def avg_pool_kernel(
    out_ptr,  # (N, C, OD, OH, OW) row-major or channels-last
    x_ptr,  # (N, C, ID, IH, IW)
    total,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    x_n_stride,
    x_c_stride,
    x_d_stride,
    x_h_stride,
    x_w_stride,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LD: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    WITH_PADDING: tl.constexpr,
    DIVISOR: tl.constexpr,
    ACC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, mask = flat_index(total, BLOCK, INT64)
    n, c, d, h, w = element(i, C, OD, OH, OW, CHANNELS_LAST)
    x_ptrs = x_ptr + n * x_n_stride + c * x_c_stride
    acc = tl.zeros((BLOCK,), ACC)
    for kd in range(KD):
        pd, in_d = tap(d, kd, ID, OD, SD, PD, LD, ADAPTIVE)
        for kh in range(KH):
            ph, in_h = tap(h, kh, IH, OH, SH, PH, LH, ADAPTIVE)
            for kw in range(KW):
                pw, in_w = tap(w, kw, IW, OW, SW, PW, LW, ADAPTIVE)
                at = x_ptrs + pd * x_d_stride + ph * x_h_stride + pw * x_w_stride
                acc += tl.load(at, mask=mask & in_d & in_h & in_w, other=0.0).to(ACC)
    if DIVISOR:
        count = tl.full((BLOCK,), DIVISOR, ACC)
    else:
        count = length(d, ID, OD, KD, SD, PD, ADAPTIVE, WITH_PADDING)
        count *= length(h, IH, OH, KH, SH, PH, ADAPTIVE, WITH_PADDING)
        count *= length(w, IW, OW, KW, SW, PW, ADAPTIVE, WITH_PADDING)
    tl.store(out_ptr + i, (acc / count.to(ACC)).to(out_ptr.dtype.element_ty), mask=mask)


@jit
def avg_pool_backward_kernel(
    dx_ptr,  # (N, C, ID, IH, IW) row-major or channels-last
    g_ptr,  # (N, C, OD, OH, OW)
    total,
    C,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    g_n_stride,
    g_c_stride,
    g_d_stride,
    g_h_stride,
    g_w_stride,
    JD: tl.constexpr,
    JH: tl.constexpr,
    JW: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LD: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    WITH_PADDING: tl.constexpr,
    DIVISOR: tl.constexpr,
    ACC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, mask = flat_index(total, BLOCK, INT64)
    n, c, d, h, w = element(i, C, ID, IH, IW, CHANNELS_LAST)
    g_ptrs = g_ptr + n * g_n_stride + c * g_c_stride
    acc = tl.zeros((BLOCK,), ACC)
    for jd in range(JD):
        od, _, in_d = holder(d, jd, ID, OD, KD, SD, PD, LD, ADAPTIVE)
        for jh in range(JH):
            oh, _, in_h = holder(h, jh, IH, OH, KH, SH, PH, LH, ADAPTIVE)
            for jw in range(JW):
                ow, _, in_w = holder(w, jw, IW, OW, KW, SW, PW, LW, ADAPTIVE)
                inside = mask & in_d & in_h & in_w
                at = g_ptrs + od * g_d_stride + oh * g_h_stride + ow * g_w_stride
                value = tl.load(at, mask=inside, other=0.0).to(ACC)
                if DIVISOR:
                    acc += value / DIVISOR
                else:
                    count = length(od, ID, OD, KD, SD, PD, ADAPTIVE, WITH_PADDING)
                    count *= length(oh, IH, OH, KH, SH, PH, ADAPTIVE, WITH_PADDING)
                    count *= length(ow, IW, OW, KW, SW, PW, ADAPTIVE, WITH_PADDING)
                    acc += value / tl.where(inside, count, 1).to(ACC)
    tl.store(dx_ptr + i, acc.to(dx_ptr.dtype.element_ty), mask=mask)


Windows = tuple[Window, ...]


def _five_axes(x: DeviceArray, spatial: int) -> DeviceArray:
    """(batch, channel, depth, height, width), with axes of size 1 for what ``x`` lacks."""
    lead = x.ndim - spatial
    return x[(None,) * (2 - lead) + (slice(None),) * lead + (None,) * (3 - spatial)]


def _constants(windows: Windows, dtype: dtypes.dtype) -> dict[str, Any]:
    """The window constants of every kernel, and the type to compute in."""
    adaptive = any(w.adaptive for w in windows)
    axes = (Window(1, 1, 1, adaptive=adaptive),) * (3 - len(windows)) + windows
    constants: dict[str, Any] = {"ADAPTIVE": adaptive}
    for axis, w in zip("DHW", axes):
        constants |= {
            f"K{axis}": w.kernel,
            f"S{axis}": w.stride,
            f"P{axis}": w.padding,
            f"L{axis}": w.dilation,
        }
    if dtype.is_floating_point:
        constants["ACC"] = tl.float64 if dtype is dtypes.float64 else tl.float32
    else:
        constants["ACC"] = tl.int64 if dtype is dtypes.int64 else tl.int32
    return constants


def _overlaps(windows: Windows) -> dict[str, int]:
    """How many windows the backward kernels look at, along each axis."""
    counts = (1,) * (3 - len(windows)) + tuple(w.overlap for w in windows)
    return dict(zip(("JD", "JH", "JW"), counts))


def _run(
    kernel: Jit,
    written: tuple[DeviceArray, ...],
    read: tuple[DeviceArray, ...],
    windows: Windows,
    **constants: Any,
) -> None:
    """Launch ``kernel``, one lane for each element of ``written``, which are all row-major or all
    channels-last; ``read`` pass their strides."""
    if written[0].size == 0:
        return
    total = written[0].size
    arrays = [_five_axes(x, len(windows)) for x in read]
    sizes = (1,) * (3 - len(windows)) + tuple(w.size for w in windows)
    outs = (1,) * (3 - len(windows)) + tuple(w.out for w in windows)
    channels_last = not written[0].is_contiguous()
    # eight channels a lane are 16-byte accesses; along a row neighbouring windows do not line up
    block = 1024 if channels_last and total >= 1 << 18 else 256
    if written[0].device.interpreted:
        block = min(next_power_of_2(total), 1 << 15)
    launch(
        kernel,
        (cdiv(total, block),),
        *written,
        *arrays,
        total,
        arrays[0].shape[1],
        *sizes,
        *outs,
        *(s for x in arrays for s in x.strides),
        CHANNELS_LAST=channels_last,
        INT64=total > 2**31 - 65536 or shapes.needs_int64(*read),
        BLOCK=block,
        num_warps=4,
        **constants,
    )


def max_pool(
    out: DeviceArray, which: DeviceArray, x: DeviceArray, *, windows: Windows, lowest: float
) -> None:
    """Largest element of every window, and which element of it (uint8 or int32) that was.

    ``lowest`` is the smallest value of the dtype.
    """
    constants = _constants(windows, x.dtype)
    _run(max_pool_kernel, (out, which), (x,), windows, LOWEST=lowest, **constants)


def _take(
    out: DeviceArray, x: DeviceArray, which: DeviceArray, windows: Windows, indices: bool
) -> None:
    constants = _constants(windows, x.dtype)
    del constants["ACC"]
    _run(max_pool_take_kernel, (out,), (x, which), windows, INDICES=indices, **constants)


def max_pool_take(
    out: DeviceArray, x: DeviceArray, which: DeviceArray, *, windows: Windows
) -> None:
    """The elements of ``x`` that ``which`` names; 0 for a window of padding alone."""
    _take(out, x, which, windows, False)


def max_pool_indices(out: DeviceArray, which: DeviceArray, *, windows: Windows) -> None:
    """Flat positions in the plane of the elements that ``which`` names; out is int64."""
    _take(out, which, which, windows, True)


def max_pool_backward(
    dx: DeviceArray, g: DeviceArray, which: DeviceArray, *, windows: Windows
) -> None:
    """Transpose of ``max_pool_take``: every element adds the ``g`` of the windows that chose it."""
    constants = _constants(windows, g.dtype) | _overlaps(windows)
    _run(max_pool_backward_kernel, (dx,), (g, which), windows, **constants)


def avg_pool(
    out: DeviceArray, x: DeviceArray, *, windows: Windows, with_padding: bool, divisor: int | None
) -> None:
    """Sum of every window divided by ``divisor``, or by its length with or without the padding."""
    constants = _constants(windows, x.dtype)
    _run(
        avg_pool_kernel, (out,), (x,), windows,
        WITH_PADDING=with_padding, DIVISOR=divisor or 0, **constants,
    )  # fmt: skip


def avg_pool_backward(
    dx: DeviceArray, g: DeviceArray, *, windows: Windows, with_padding: bool, divisor: int | None
) -> None:
    """Transpose of ``avg_pool``."""
    constants = _constants(windows, g.dtype) | _overlaps(windows)
    _run(
        avg_pool_backward_kernel, (dx,), (g,), windows,
        WITH_PADDING=with_padding, DIVISOR=divisor or 0, **constants,
    )  # fmt: skip
