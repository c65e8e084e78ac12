"""What a kernel in the interpreter touches, lane by lane: bounds of the arrays, bytes, operations.

Numpy alone; ``interpreter.py`` feeds it. An address is checked against the window of the argument
that its pointer was made from. Pointers that were made otherwise (read from a table of addresses)
must lie in the memory of some array of the launch or of the device.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from .array import DeviceArray


class Window(NamedTuple):
    """The memory of one argument: ``size`` bytes from ``first``; ``base`` is its element 0."""

    name: str
    first: int
    size: int
    base: int
    itemsize: int
    writable: bool

    @property
    def bound(self) -> str:
        """The element indices that lie inside, as text."""
        below = (self.base - self.first) // self.itemsize
        return f"[{-below}, {self.size // self.itemsize - below})"


def window_of(name: str, array: DeviceArray) -> Window:
    """The span that shape and strides of ``array`` cover; empty where it has no element."""
    item = array.dtype.itemsize
    low = high = 0
    if array.size:
        for n, stride in zip(array.shape, array.strides):
            low += min((n - 1) * stride, 0)
            high += max((n - 1) * stride, 0)
        high += 1
    flags = getattr(array.buffer.memory, "flags", None)
    writable = flags is None or bool(flags.writeable)
    return Window(name, array.ptr + low * item, (high - low) * item, array.ptr, item, writable)


class BadLanes(NamedTuple):
    """The lanes of one access that leave the arrays: which, and where the first one points."""

    lanes: np.ndarray
    address: int
    near: Window
    read_only: bool


class Bounds:
    """The windows of one launch."""

    def __init__(
        self, windows: list[Window], others: Callable[[], Iterable[tuple[int, int]]]
    ) -> None:
        self.windows = windows
        self.others = others  # (address, bytes) of the device's live buffers, for table pointers

    def check(
        self,
        addresses: np.ndarray,
        active: np.ndarray | None,
        width: int,
        origin: int | None,
        store: bool,
    ) -> BadLanes | None:
        """The active lanes whose ``width`` bytes are not all inside. ``addresses`` uint64, any
        shape; ``active`` bool of the same shape or None for all; ``origin``: number of the window
        that the pointers were made from.
        """
        if not addresses.size:
            return None
        if origin is not None:
            w = self.windows[origin]
            if store and not w.writable:
                lanes = _lanes(np.ones(addresses.shape, bool), active)
                if lanes.size:
                    return BadLanes(lanes, int(addresses.flat[lanes[0]]), w, True)
                return None
            if w.size >= width:
                # unsigned: what lies below the window wraps to the top
                ahead = addresses - np.uint64(w.first)
                if ahead.max() <= w.size - width:
                    return None
                lanes = _lanes(ahead > np.uint64(w.size - width), active)
            else:
                lanes = _lanes(np.ones(addresses.shape, bool), active)
            if not lanes.size:
                return None
            return BadLanes(lanes, int(addresses.flat[lanes[0]]), w, False)
        bad = np.ones(addresses.shape, bool)
        for w in self.windows:
            if w.size >= width and (w.writable or not store):
                bad &= addresses - np.uint64(w.first) > np.uint64(w.size - width)
        lanes = _lanes(bad, active)
        if lanes.size:
            known = sorted(self.others())
            starts = [first for first, _ in known]
            flat = addresses.reshape(-1)
            lanes = np.array(
                [k for k in lanes if not _inside(int(flat[k]), width, known, starts)], np.intp
            )
        if not lanes.size:
            return None
        address = int(addresses.flat[lanes[0]])
        return BadLanes(lanes, address, self.nearest(address), False)

    def nearest(self, address: int) -> Window:
        """The window whose memory is nearest to an address."""

        def distance(w: Window) -> int:
            return max(w.first - address, address - (w.first + w.size - 1), 0)

        return min(self.windows, key=distance)


def _lanes(bad: np.ndarray, active: np.ndarray | None) -> np.ndarray:
    return np.flatnonzero(bad if active is None else bad & active)


def _inside(address: int, width: int, known: list[tuple[int, int]], starts: list[int]) -> bool:
    k = bisect.bisect_right(starts, address) - 1
    return k >= 0 and address + width <= known[k][0] + known[k][1]


class Counts:
    """What one launch did. Bytes and accesses of active lanes; operations of whole blocks."""

    def __init__(self, windows: list[Window]) -> None:
        self.windows = windows
        self.loads = self.stores = 0
        self.loaded = self.stored = 0
        self.flops = 0
        self._seen: dict[tuple[str, int], np.ndarray] = {}

    def access(
        self, kind: str, addresses: np.ndarray, active: np.ndarray | None, width: int
    ) -> None:
        """Count one load or store."""
        flat = addresses.reshape(-1) if active is None else addresses[active]
        if kind == "load":
            self.loads += 1
            self.loaded += flat.size * width
        else:
            self.stores += 1
            self.stored += flat.size * width
        if not flat.size:
            return
        for i, w in enumerate(self.windows):
            inside = flat - np.uint64(w.first) < np.uint64(w.size)
            if inside[0] or inside.any():
                seen = self._seen.get((kind, i))
                if seen is None:
                    seen = self._seen[kind, i] = np.zeros(w.size // w.itemsize + 1, bool)
                seen[(flat[inside] - np.uint64(w.first)) // np.uint64(w.itemsize)] = True
                if inside.all():
                    break
                flat = flat[~inside]

    def distinct(self, kind: str) -> int:
        """Bytes of the elements of the arguments that were touched at least once."""
        return sum(
            int(seen.sum()) * self.windows[i].itemsize
            for (k, i), seen in self._seen.items()
            if k == kind
        )
