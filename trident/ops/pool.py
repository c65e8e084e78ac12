"""Pooling: maximum and average over windows, over one to three axes, fixed and adaptive.

Two adjoint pairs carry the family: ``avg_pool`` and ``avg_pool_backward``; ``max_pool_take`` (the
elements that a choice names) and ``max_pool_backward``. Each is the other's gradient. A choice is
kept as one small integer per window, the element of the window that won; torch's flat indices are
computed from it when they are asked for.

The numpy bodies work by whole slices, one axis after the other where the arithmetic allows: a
``tap`` is element k of many windows at once, which is one strided slice of the input.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import dtypes
from ..errors import DTypeError, wrong
from ..kernels import pool as kernels
from ..kernels.pool import Window, Windows
from ..lang import cdiv
from .registry import Spec, composite, ops, primitive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..shapes import Shape
    from ..tensor import Tensor

    Sizes = int | Sequence[int]

Tap = tuple[int, slice, slice, bool]
"""(element of the window, windows that have it, where it lies, first element they have)."""


@functools.lru_cache(maxsize=1024)
def taps(w: Window) -> tuple[tuple[Tap, ...], bool]:
    """The taps of ``w``, and whether every window has at least one."""
    found: list[Tap] = []
    if w.adaptive:
        for o in range(w.out):
            start, stop = w.bounds(o)
            for k in range(stop - start):
                found.append((k, slice(o, o + 1), slice(start + k, start + k + 1), k == 0))
        return tuple(found), True
    begun = None  # the windows from this one on have had a tap
    for k in range(w.kernel):
        offset = k * w.dilation - w.padding
        low = max(0, cdiv(-offset, w.stride))
        high = min(w.out, (w.size - 1 - offset) // w.stride + 1)
        edge = high if begun is None else min(max(begun, low), high)
        for start, stop, first in ((low, edge, True), (edge, high, False)):
            if start < stop:
                source = slice(
                    start * w.stride + offset, (stop - 1) * w.stride + offset + 1, w.stride
                )
                found.append((k, slice(start, stop), source, first))
        if low < high:
            begun = low
    covered = sum(t[1].stop - t[1].start for t in found if t[3]) == w.out
    return tuple(found), covered


def _at(axis: int, ndim: int, index: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (index,) + (slice(None),) * (ndim - axis - 1)


def _lowest(dtype: Any) -> float:
    return -math.inf if dtype.kind == "f" else int(np.iinfo(dtype).min)


def _choice_dtype(windows: Windows) -> dtypes.dtype:
    """The smallest of our integer types that counts the elements of a window."""
    return dtypes.uint8 if math.prod(w.kernel for w in windows) <= 256 else dtypes.int32


def _max_along(
    x: np.ndarray, which: np.ndarray | None, axis: int, w: Window, inner: int, nan: bool, code: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum of the windows along one axis, and the code of the element that won.

    ``which`` holds the codes for the axes done so far, whose windows have ``inner`` elements. A
    later element has a larger code, so codes combine by maximum.
    """
    shape = x.shape[:axis] + (w.out,) + x.shape[axis + 1 :]
    found, covered = taps(w)

    def tap(k: int, source: slice) -> tuple[np.ndarray, Any]:
        at, number = _at(axis, x.ndim, source), code(k * inner)
        return x[at], number if which is None else which[at] + number

    def beats(value: np.ndarray, best: np.ndarray, number: Any) -> np.ndarray:
        better = np.greater(value, best)
        if nan:
            better |= value != value
        return np.multiply(better.view(np.uint8), number, dtype=code)

    if len(found) > 1 and found[0][1] == found[1][1] == slice(0, w.out):  # the usual case, no copy
        (first, number), (value, later) = (tap(k, source) for k, _, source, _ in found[:2])
        out, chosen = np.maximum(first, value), beats(value, first, later)
        if which is not None or number:
            np.maximum(chosen, number, out=chosen)
        found = found[2:]
    elif covered:
        out, chosen = np.empty(shape, x.dtype), np.empty(shape, code)
    else:
        out, chosen = np.full(shape, _lowest(x.dtype), x.dtype), np.zeros(shape, code)
    for k, windows, source, begins in found:
        at = _at(axis, x.ndim, windows)
        value, number = tap(k, source)
        best, codes = out[at], chosen[at]
        if begins:
            best[...] = value
            codes[...] = number
        else:
            np.maximum(codes, beats(value, best, number), out=codes)
            np.maximum(best, value, out=best)
    return out, chosen


def _max_pool(x: np.ndarray, windows: Windows, nan: bool) -> tuple[np.ndarray, np.ndarray]:
    code = _choice_dtype(windows).np.type
    values, which, inner = x, None, 1
    for axis in reversed(range(len(windows))):
        w = windows[axis]
        at = x.ndim - len(windows) + axis
        values, which = _max_along(values, which, at, w, inner, nan, code)
        inner *= w.kernel
    return values, which  # type: ignore[return-value]


def _combined(windows: Windows, ndim: int) -> Any:
    """(element of the window, windows that have it, where it lies) over all axes together."""
    lead = (slice(None),) * (ndim - len(windows))
    for parts in itertools.product(*(taps(w)[0] for w in windows)):
        code = 0
        for w, part in zip(windows, parts):
            code = code * w.kernel + part[0]
        yield code, lead + tuple(p[1] for p in parts), lead + tuple(p[2] for p in parts)


def _lead(x: Any, windows: Windows) -> Shape:
    return tuple(x.shape[: x.ndim - len(windows)])


def _sizes(windows: Windows) -> Shape:
    return tuple(w.size for w in windows)


def _outs(windows: Windows) -> Shape:
    return tuple(w.out for w in windows)


def _check_planes(op: str, x: Any, shape: Shape) -> None:
    lead = x.ndim - len(shape)
    if lead not in (0, 1, 2) or tuple(x.shape[lead:]) != shape:
        raise wrong(op, f"the windows are for planes of shape {shape}", got=tuple(x.shape))


def _draw_windows(draw: Any) -> tuple[Windows, Shape]:
    """Random windows over one or two axes and the planes they are for (for ``samples``)."""
    size = tuple(draw.integer(3, 6) for _ in range(draw.integer(1, 2)))
    if draw.boolean():
        return adaptive_windows("pool", size, tuple(draw.integer(1, s) for s in size)), size
    kernel = tuple(draw.integer(1, 3) for _ in size)
    stride = tuple(draw.integer(1, 3) for _ in size)
    padding = tuple(draw.integer(0, k // 2) for k in kernel)
    dilation = (1,) * len(size)
    return fixed_windows("pool", size, kernel, stride, padding, dilation, draw.boolean()), size


@primitive(method=False)
class max_pool:
    """Largest element of every window of the last axes, and which one it was: x (..., *sizes).

    Returns (values, which): ``which`` (uint8, or int32 for windows of over 256) counts the elements
    of the window in row-major order; the first of equal ones wins, a NaN wins over everything.
    """

    def infer(x, *, windows):
        _check_planes("max_pool", x, _sizes(windows))
        if x.dtype.kind == "bool":
            raise wrong("max_pool", "x must hold numbers", got="bool", error=DTypeError)
        shape = _lead(x, windows) + _outs(windows)
        return Spec(shape, x.dtype), Spec(shape, _choice_dtype(windows))

    def numpy(x, *, windows):
        if x.shape[x.ndim - len(windows) :] != _sizes(windows) or x.dtype.kind == "b":
            raise ValueError
        values, which = _max_pool(x, windows, False)
        if x.dtype.kind == "f" and values.size and np.isnan(values.max()):
            return _max_pool(x, windows, True)  # the general rule costs a pass more for each tap
        return values, which

    def launch(outs, x, *, windows):
        lowest = _lowest(x.dtype.np if x.dtype.kind == "int" else np.dtype(np.float32))
        kernels.max_pool(*outs, x, windows=windows, lowest=lowest)

    def vjp(g, out, windows):
        return None if g[0] is None else ops.max_pool_backward(g[0], out[1], windows=windows)

    def samples(draw):
        windows, size = _draw_windows(draw)
        return (draw.tensor((*draw.shape(0, 2, 3), *size)),), {"windows": windows}


@primitive(method=False)
class max_pool_take:
    """The elements of x (..., *sizes) that ``which`` (..., *outs) names, one for each window."""

    def infer(x, which, *, windows):
        _check_planes("max_pool_take", x, _sizes(windows))
        _check_planes("max_pool_take", which, _outs(windows))
        return Spec(which.shape, x.dtype)

    def numpy(x, which, *, windows):
        out = np.zeros(which.shape, x.dtype)
        for code, at, source in _combined(windows, x.ndim):
            np.copyto(out[at], x[source], where=which[at] == code)
        return out

    def launch(out, x, which, *, windows):
        kernels.max_pool_take(out, x, which, windows=windows)

    def vjp(g, which, windows):
        return ops.max_pool_backward(g, which, windows=windows), None

    def samples(draw):
        windows, size = _draw_windows(draw)
        lead = draw.shape(0, 2, 3)
        which = draw.ints((*lead, *_outs(windows)), 0, _least(windows), dtype=dtypes.uint8)
        return (draw.tensor((*lead, *size)), which), {"windows": windows}


@primitive(method=False)
class max_pool_backward:
    """Transpose of ``max_pool_take``: an element adds the g (..., *outs) of the windows it won."""

    def infer(g, which, *, windows):
        _check_planes("max_pool_backward", g, _outs(windows))
        return Spec(_lead(g, windows) + _sizes(windows), g.dtype)

    def numpy(g, which, *, windows):
        shape = _lead(g, windows) + _sizes(windows)
        # a product of bits with a bool keeps inf and NaN out of the elements that were not chosen
        bits = np.int64 if g.dtype.itemsize == 8 else np.int32
        single = all(not w.adaptive and w.overlap == 1 for w in windows)
        dx = (np.empty if single and _tiled(windows) else np.zeros)(shape, g.dtype)
        dx_bits, g_bits = dx.view(bits), np.ascontiguousarray(g).view(bits)
        for code, at, source in _combined(windows, g.ndim):
            if single:
                np.multiply(g_bits[at], which[at] == code, out=dx_bits[source])
            else:
                dx[source] += (g_bits[at] * (which[at] == code)).view(g.dtype)
        return dx

    def launch(out, g, which, *, windows):
        kernels.max_pool_backward(out, g, which, windows=windows)

    def vjp(g, which, windows):
        return ops.max_pool_take(g, which, windows=windows), None

    def samples(draw):
        windows, _ = _draw_windows(draw)
        shape = (*draw.shape(0, 2, 3), *_outs(windows))
        which = draw.ints(shape, 0, _least(windows), dtype=dtypes.uint8)
        return (draw.tensor(shape), which), {"windows": windows}


def _least(windows: Windows) -> int:
    return math.prod(w.kernel for w in windows) - 1


def _tiled(windows: Windows) -> bool:
    """Whether the windows lie side by side and every element is in one of them."""
    return all(
        w.stride == w.kernel and w.dilation == 1 and not w.padding and w.out * w.kernel == w.size
        for w in windows
    )


@primitive(method=False, differentiable=False)
class max_pool_indices:
    """Flat positions, within a plane of the input, of the elements that ``which`` names: int64."""

    def infer(which, *, windows):
        _check_planes("max_pool_indices", which, _outs(windows))
        return Spec(which.shape, dtypes.int64)

    def numpy(which, *, windows):
        index = np.zeros(which.shape, np.int64)
        inner = math.prod(w.kernel for w in windows)
        for axis, w in enumerate(windows):
            inner //= w.kernel
            o = np.arange(w.out)
            start = o * w.size // w.out if w.adaptive else o * w.stride - w.padding
            start = start.reshape((w.out,) + (1,) * (len(windows) - axis - 1))
            index = (
                index * w.size + start + (which // inner % w.kernel).astype(np.int64) * w.dilation
            )
        return index

    def launch(out, which, *, windows):
        kernels.max_pool_indices(out, which, windows=windows)

    def samples(draw):
        windows, _ = _draw_windows(draw)
        shape = (*draw.shape(0, 2, 3), *_outs(windows))
        which = draw.ints(shape, 0, _least(windows), dtype=dtypes.uint8)
        return (which,), {"windows": windows}


@functools.lru_cache(maxsize=256)
def _divisor(windows: Windows, with_padding: bool, divisor: int | None, dtype: np.dtype) -> Any:
    """What the sums are divided by: a number, or an array (*outs) where the edges count less."""
    if divisor:
        return dtype.type(divisor)
    total = np.ones((), np.int64)
    for w in windows:
        o = np.arange(w.out)
        if w.adaptive:
            count = -(-(o + 1) * w.size // w.out) - o * w.size // w.out
        else:
            start = o * w.stride - w.padding
            stop = np.minimum(start + w.kernel, w.size + (w.padding if with_padding else 0))
            count = stop - (start if with_padding else np.maximum(start, 0))
        total = total[..., None] * count
    return dtype.type(total.flat[0]) if (total == total.flat[0]).all() else total.astype(dtype)


@primitive(method=False)
class avg_pool:
    """Average of every window of the last axes: x (..., *sizes), a floating dtype.

    A sum is divided by ``divisor`` where given, else by the length of the window, which counts its
    padding where ``with_padding``.
    """

    def infer(x, *, windows, with_padding=True, divisor=None):
        _check_planes("avg_pool", x, _sizes(windows))
        if not x.dtype.is_floating_point:
            raise wrong(
                "avg_pool", "x must have a floating dtype", got=x.dtype.name, error=DTypeError,
                hint="convert it with x.float()",
            )  # fmt: skip
        return Spec(_lead(x, windows) + _outs(windows), x.dtype)

    def numpy(x, *, windows, with_padding=True, divisor=None):
        if x.shape[x.ndim - len(windows) :] != _sizes(windows) or x.dtype.kind != "f":
            raise ValueError
        total = x
        for axis, w in enumerate(windows, x.ndim - len(windows)):
            total = _sum_along(total, axis, w)
        d = _divisor(windows, with_padding, divisor, x.dtype)
        return np.divide(total, d, out=total if total is not x else None)

    def launch(out, x, *, windows, with_padding=True, divisor=None):
        kernels.avg_pool(out, x, windows=windows, with_padding=with_padding, divisor=divisor)

    def vjp(g, windows, with_padding, divisor):
        return ops.avg_pool_backward(g, windows=windows, with_padding=with_padding, divisor=divisor)

    def samples(draw):
        windows, size = _draw_windows(draw)
        attrs = {"windows": windows, "with_padding": draw.boolean()}
        return (draw.tensor((*draw.shape(0, 2, 3), *size)),), attrs


def _sum_along(x: np.ndarray, axis: int, w: Window) -> np.ndarray:
    """Sums of the windows along one axis; ``x`` itself where a window is one element."""
    if w == Window(w.size, w.size, 1):
        return x
    if w.out == 1 and not w.padding and w.dilation == 1:
        return np.add.reduce(x[_at(axis, x.ndim, slice(w.kernel))], axis, keepdims=True)
    found, covered = taps(w)
    out = (np.empty if covered else np.zeros)(
        x.shape[:axis] + (w.out,) + x.shape[axis + 1 :], x.dtype
    )
    for _, windows, source, first in found:
        target, value = out[_at(axis, x.ndim, windows)], x[_at(axis, x.ndim, source)]
        if first:
            target[...] = value
        else:
            target += value
    return out


@primitive(method=False)
class avg_pool_backward:
    """Transpose of ``avg_pool``: an element adds its share of the g (..., *outs) of its windows."""

    def infer(g, *, windows, with_padding=True, divisor=None):
        _check_planes("avg_pool_backward", g, _outs(windows))
        return Spec(_lead(g, windows) + _sizes(windows), g.dtype)

    def numpy(g, *, windows, with_padding=True, divisor=None):
        dx = g / _divisor(windows, with_padding, divisor, g.dtype)
        for axis, w in enumerate(windows, g.ndim - len(windows)):
            if w == Window(w.size, w.size, 1):
                continue
            single = not w.adaptive and w.overlap == 1
            fresh = np.empty if single and _tiled((w,)) else np.zeros
            total = fresh(dx.shape[:axis] + (w.size,) + dx.shape[axis + 1 :], g.dtype)
            for _, window, source, _ in taps(w)[0]:
                target, value = total[_at(axis, g.ndim, source)], dx[_at(axis, g.ndim, window)]
                if single:
                    target[...] = value
                else:
                    target += value
            dx = total
        return dx

    def launch(out, g, *, windows, with_padding=True, divisor=None):
        kernels.avg_pool_backward(
            out, g, windows=windows, with_padding=with_padding, divisor=divisor
        )

    def vjp(g, windows, with_padding, divisor):
        return ops.avg_pool(g, windows=windows, with_padding=with_padding, divisor=divisor)

    def samples(draw):
        windows, _ = _draw_windows(draw)
        attrs = {"windows": windows, "with_padding": draw.boolean()}
        return (draw.tensor((*draw.shape(0, 2, 3), *_outs(windows))),), attrs


def _tuple(op: str, name: str, value: Any, n: int, least: int) -> Shape:
    """``value`` once for each of ``n`` axes."""
    many = (value,) * n if isinstance(value, int) else tuple(int(v) for v in value)
    if len(many) == 1:
        many *= n
    if len(many) != n or any(v < least for v in many):
        text = f"an int or {n} ints, none below {least}" if n > 1 else f"an int of at least {least}"
        raise wrong(op, f"{name} must be {text}", got=value)
    return many


@functools.lru_cache(maxsize=1024)
def fixed_windows(
    op: str,
    sizes: Shape,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    ceil_mode: bool,
) -> Windows:
    """The windows of a plane of shape ``sizes``; raises where a kernel does not fit."""
    found = []
    for axis, (n, k, s, p, d) in enumerate(
        zip(sizes, kernel, stride, padding, dilation), -len(sizes)
    ):
        span = (k - 1) * d + 1
        if p > span // 2:
            raise wrong(
                op, f"padding must be at most half of the {span} positions that kernel_size {k} "
                f"with dilation {d} spans, {span // 2}, along axis {axis}", got=p,
                hint="pad the input itself with trident.nn.functional.pad",
            )  # fmt: skip
        out = (n + 2 * p - span + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (out - 1) * s >= n + p:  # the last window must begin within the input
            out -= 1
        if out < 1:
            raise wrong(
                op, f"the window spans {span} positions along axis {axis}, the input has "
                f"{n} + 2 * {p} of padding", hint="use a smaller kernel_size or more padding",
            )  # fmt: skip
        found.append(Window(n, out, k, s, p, d))
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def adaptive_windows(op: str, sizes: Shape, outs: Shape) -> Windows:
    """Windows that split a plane of shape ``sizes`` into ``outs`` parts, as equal as can be."""
    if 0 in sizes:
        raise wrong(op, "the pooled axes must not be empty", got=sizes)
    if all(n % out == 0 for n, out in zip(sizes, outs)):
        return tuple(Window(n, out, n // out, n // out) for n, out in zip(sizes, outs))
    found = []
    for n, out in zip(sizes, outs):
        w = Window(n, out, 1, adaptive=True)
        longest = max(stop - start for start, stop in map(w.bounds, range(out)))
        found.append(w._replace(kernel=longest))
    return tuple(found)


def _planes(op: str, x: Tensor, n: int) -> Shape:
    """The sizes of the last n axes of x (C, *sizes) or (N, C, *sizes)."""
    if x.ndim not in (n + 1, n + 2):
        axes = ", ".join("DHW"[3 - n :]) if n > 1 else "L"
        raise wrong(
            op, f"input must have shape (N, C, {axes}) or (C, {axes})", got=tuple(x.shape),
            hint="add the missing axis with unsqueeze(0)" if x.ndim == n else None,
        )  # fmt: skip
    return tuple(x.shape[-n:])


def _max(
    op: str, x: Tensor, n: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes,
    dilation: Sizes, ceil_mode: bool, return_indices: bool,
) -> Any:  # fmt: skip
    kernel = _tuple(op, "kernel_size", kernel_size, n, 1)
    step = kernel if stride is None or stride == () else _tuple(op, "stride", stride, n, 1)
    pad = _tuple(op, "padding", padding, n, 0)
    spread = _tuple(op, "dilation", dilation, n, 1)
    windows = fixed_windows(op, _planes(op, x, n), kernel, step, pad, spread, ceil_mode)
    return _max_result(x, windows, return_indices)


def _max_result(x: Tensor, windows: Windows, return_indices: bool) -> Any:
    values, which = ops.max_pool(x, windows=windows)
    return (values, ops.max_pool_indices(which, windows=windows)) if return_indices else values


@composite(method=False)
def max_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Largest element of every window: (N, C, L) or (C, L). See ``max_pool2d``.

    >>> trident.max_pool1d(trident.tensor([[1.0, 3.0, 2.0, 0.0]]), 2).tolist()
    [[3.0, 2.0]]
    """
    return _max(
        "max_pool1d", input, 1, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


@composite(method=False)
def max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Largest element of every window: (N, C, H, W) or (C, H, W). NaN wins, padding never does.

    ``stride`` is ``kernel_size`` unless given; ``ceil_mode`` keeps a last window that begins within
    the input. With ``return_indices`` also where the elements lie in their plane, as int64. Raises
    ShapeError where the window does not fit or the padding is over half of it.

    >>> x = trident.tensor([[[1.0, 2.0], [4.0, 3.0]]])
    >>> trident.max_pool2d(x, 2, return_indices=True)[1].item()
    2
    """
    return _max(
        "max_pool2d", input, 2, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


@composite(method=False)
def max_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Largest element of every window: (N, C, D, H, W) or (C, D, H, W). See ``max_pool2d``.

    >>> trident.max_pool3d(trident.ones(1, 2, 4, 4, 4), 2).shape
    trident.Size([1, 2, 2, 2, 2])
    """
    return _max(
        "max_pool3d", input, 3, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def _avg(
    op: str, x: Tensor, n: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes,
    ceil_mode: bool, count_include_pad: bool, divisor_override: int | None,
) -> Tensor:  # fmt: skip
    kernel = _tuple(op, "kernel_size", kernel_size, n, 1)
    step = kernel if stride is None or stride == () else _tuple(op, "stride", stride, n, 1)
    pad = _tuple(op, "padding", padding, n, 0)
    if divisor_override == 0:
        raise wrong(op, "divisor_override must not be 0")
    windows = fixed_windows(op, _planes(op, x, n), kernel, step, pad, (1,) * n, ceil_mode)
    return ops.avg_pool(
        x, windows=windows, with_padding=count_include_pad, divisor=divisor_override
    )


@composite(method=False)
def avg_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Average of every window: (N, C, L) or (C, L). See ``avg_pool2d``.

    >>> trident.avg_pool1d(trident.tensor([[1.0, 3.0, 2.0, 0.0]]), 2).tolist()
    [[2.0, 1.0]]
    """
    return _avg(
        "avg_pool1d", input, 1, kernel_size, stride, padding, ceil_mode, count_include_pad, None
    )


@composite(method=False)
def avg_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average of every window: (N, C, H, W) or (C, H, W), a floating dtype. The sum is divided by
    ``divisor_override`` where given, else by the length of the window, padding counted or not.

    >>> trident.avg_pool2d(trident.tensor([[[1.0, 2.0], [4.0, 3.0]]]), 2).item()
    2.5
    """
    return _avg(
        "avg_pool2d", input, 2, kernel_size, stride, padding, ceil_mode, count_include_pad,
        divisor_override,
    )  # fmt: skip


@composite(method=False)
def avg_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average of every window: (N, C, D, H, W) or (C, D, H, W). See ``avg_pool2d``.

    >>> trident.avg_pool3d(trident.ones(1, 2, 4, 4, 4), 4).shape
    trident.Size([1, 2, 1, 1, 1])
    """
    return _avg(
        "avg_pool3d", input, 3, kernel_size, stride, padding, ceil_mode, count_include_pad,
        divisor_override,
    )  # fmt: skip


def _adaptive(op: str, x: Tensor, n: int, output_size: Any) -> Windows:
    """The windows of an adaptive pool; None in ``output_size`` keeps the size of that axis."""
    sizes = _planes(op, x, n)
    wanted = tuple(output_size) if isinstance(output_size, (list, tuple)) else (output_size,) * n
    if len(wanted) == n:
        wanted = tuple(s if o is None else o for s, o in zip(sizes, wanted))
    return adaptive_windows(op, sizes, _tuple(op, "output_size", wanted, n, 1))


def _adaptive_avg(op: str, x: Tensor, n: int, output_size: Any) -> Tensor:
    windows = _adaptive(op, x, n, output_size)
    if all(w.out == 1 for w in windows):
        return ops.mean(x, tuple(range(-n, 0)), keepdim=True)  # the reduction kernels are wider
    return ops.avg_pool(x, windows=windows)


@composite(method=False)
def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Averages of ``output_size`` parts of the last axis: (N, C, L) or (C, L).

    >>> trident.adaptive_avg_pool1d(trident.tensor([[1.0, 2.0, 3.0]]), 2).tolist()
    [[1.5, 2.5]]
    """
    return _adaptive_avg("adaptive_avg_pool1d", input, 1, output_size)


@composite(method=False)
def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Averages of ``output_size`` parts of a plane, an int or two: (N, C, H, W) or (C, H, W).

    None keeps the size of its axis. Parts overlap by one where the sizes do not divide.

    >>> trident.adaptive_avg_pool2d(trident.ones(1, 2, 5, 7), (3, None)).shape
    trident.Size([1, 2, 3, 7])
    """
    return _adaptive_avg("adaptive_avg_pool2d", input, 2, output_size)


@composite(method=False)
def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Averages of ``output_size`` parts of a volume: (N, C, D, H, W) or (C, D, H, W).

    >>> trident.adaptive_avg_pool3d(trident.ones(1, 2, 4, 5, 6), 2).shape
    trident.Size([1, 2, 2, 2, 2])
    """
    return _adaptive_avg("adaptive_avg_pool3d", input, 3, output_size)


@composite(method=False)
def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Largest elements of ``output_size`` parts of the last axis: (N, C, L) or (C, L).

    >>> trident.adaptive_max_pool1d(trident.tensor([[1.0, 3.0, 2.0]]), 1).tolist()
    [[3.0]]
    """
    windows = _adaptive("adaptive_max_pool1d", input, 1, output_size)
    return _max_result(input, windows, return_indices)


@composite(method=False)
def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Largest elements of ``output_size`` parts of a plane: (N, C, H, W) or (C, H, W).

    >>> trident.adaptive_max_pool2d(trident.ones(1, 2, 5, 7), 3).shape
    trident.Size([1, 2, 3, 3])
    """
    windows = _adaptive("adaptive_max_pool2d", input, 2, output_size)
    return _max_result(input, windows, return_indices)


@composite(method=False)
def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Largest elements of ``output_size`` parts of a volume: (N, C, D, H, W) or (C, D, H, W).

    >>> trident.adaptive_max_pool3d(trident.ones(1, 2, 4, 5, 6), 2).shape
    trident.Size([1, 2, 2, 2, 2])
    """
    windows = _adaptive("adaptive_max_pool3d", input, 3, output_size)
    return _max_result(input, windows, return_indices)
