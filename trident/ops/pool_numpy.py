"""The numpy bodies of pooling.

They work by whole slices, one axis after the other where the arithmetic allows: a ``tap`` is
element k of many windows at once, which is one strided slice of the input.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import dtypes
from ..kernels.pool import Window, Windows
from ..lang import cdiv

if TYPE_CHECKING:
    from ..shapes import Shape

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


def max_pool(x: np.ndarray, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    if x.shape[x.ndim - len(windows) :] != _sizes(windows) or x.dtype.kind == "b":
        raise ValueError
    values, which = _max_pool(x, windows, False)
    if x.dtype.kind == "f" and values.size and np.isnan(values.max()):
        return _max_pool(x, windows, True)  # the general rule costs a pass more for each tap
    return values, which


def max_pool_take(x: np.ndarray, which: np.ndarray, windows: Windows) -> np.ndarray:
    out = np.zeros(which.shape, x.dtype)
    for code, at, source in _combined(windows, x.ndim):
        np.copyto(out[at], x[source], where=which[at] == code)
    return out


def max_pool_backward(g: np.ndarray, which: np.ndarray, windows: Windows) -> np.ndarray:
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


def _tiled(windows: Windows) -> bool:
    """Whether the windows lie side by side and every element is in one of them."""
    return all(
        w.stride == w.kernel and w.dilation == 1 and not w.padding and w.out * w.kernel == w.size
        for w in windows
    )


def max_pool_indices(which: np.ndarray, windows: Windows) -> np.ndarray:
    index = np.zeros(which.shape, np.int64)
    inner = math.prod(w.kernel for w in windows)
    for axis, w in enumerate(windows):
        inner //= w.kernel
        o = np.arange(w.out)
        start = o * w.size // w.out if w.adaptive else o * w.stride - w.padding
        start = start.reshape((w.out,) + (1,) * (len(windows) - axis - 1))
        index = index * w.size + start + (which // inner % w.kernel).astype(np.int64) * w.dilation
    return index


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


def avg_pool(
    x: np.ndarray, windows: Windows, with_padding: bool, divisor: int | None
) -> np.ndarray:
    if x.shape[x.ndim - len(windows) :] != _sizes(windows) or x.dtype.kind != "f":
        raise ValueError
    total = x
    for axis, w in enumerate(windows, x.ndim - len(windows)):
        total = _sum_along(total, axis, w)
    d = _divisor(windows, with_padding, divisor, x.dtype)
    return np.divide(total, d, out=total if total is not x else None)


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


def avg_pool_backward(
    g: np.ndarray, windows: Windows, with_padding: bool, divisor: int | None
) -> np.ndarray:
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
