"""The back of the allocator: memory of the driver in segments, cut into pieces and joined again.

An ``Arena`` holds the segments of one stream, for small or for large blocks. A free piece is found
by best fit, cut where enough is left over, and joined with free neighbours when it comes back.
Nothing here is thread-safe: ``CachingAllocator`` calls it under its lock. ``Bin`` is what the fast
path works on: pieces of one size class that are handed out and come back whole.

Source: best fit with boundary tags and deferred joining is Doug Lea's malloc; segments by size and
streams are what all caching allocators for GPUs do (cub, PyTorch, RMM).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

KIB, MIB = 1 << 10, 1 << 20
GRAIN = 512
"""Every block starts and ends at a multiple of this."""
SMALL = MIB
"""Blocks up to this size share segments of SMALL_SEGMENT, so that they cannot break up large
ones."""
SMALL_SEGMENT = 2 * MIB
MEDIUM = 10 * MIB
"""Larger blocks up to this size share segments of MEDIUM_SEGMENT; above it, a block that finds no
free piece gets a segment of its own size."""
MEDIUM_SEGMENT = 20 * MIB
SEGMENT_GRAIN = 2 * MIB
"""The driver maps memory in pages of 2 MiB."""
COARSE = 4
"""Bins are joined before a piece is cut that is so many times larger than the block. Between 2 and
6 both the memory held and the misses hardly change; without the rule, steps of changing shapes hold
a quarter more (``python -m bench memory``)."""
STEP = 64 * MIB
"""A range of addresses grows in segments of at most this, the unit in which memory goes back."""
WORTH_KEEPING = {True: GRAIN, False: MIB}
"""What must be left over of a piece for it to be cut, in arenas of small and of large blocks."""


class OutOfMemory(Exception):
    """``Memory.alloc`` found no room. The allocator frees what it can and tries again."""


class Memory(Protocol):
    """What the allocator needs of a device. Streams are handles (ints); events are anything."""

    def alloc(self, nbytes: int) -> int:
        """The address of ``nbytes`` fresh bytes, a multiple of 512. Raises ``OutOfMemory``."""

    def free(self, ptr: int) -> None:
        """Give back what ``alloc`` gave. The device is done with it: ``synchronize`` came first."""

    def info(self) -> tuple[int, int]:
        """(free, total) bytes of the device."""

    def synchronize(self) -> None:
        """Wait for all work on all streams."""

    def record(self, stream: int) -> Any:
        """An event that is done when everything now on ``stream`` is done."""

    def done(self, event: Any) -> bool:
        """Whether an event of ``record`` is done (does not wait)."""


class VirtualMemory(Memory, Protocol):
    """Memory whose addresses are reserved first, so that an arena can grow at its end and no gap
    stays between its segments."""

    granularity: int
    """Sizes and addresses of ``back`` are multiples of this. 0: this device cannot do it after
    all."""

    def reserve(self, nbytes: int) -> int:
        """The address of ``nbytes`` addresses that nobody else gets."""

    def unreserve(self, ptr: int, nbytes: int) -> None:
        """Give back a range of ``reserve`` in which nothing has memory."""

    def back(self, ptr: int, nbytes: int) -> None:
        """Put fresh memory behind reserved addresses. Raises ``OutOfMemory``."""

    def unback(self, ptr: int, nbytes: int) -> None:
        """Take back what one call of ``back`` put there."""


class Tally:
    """The running figures of an allocator, in bytes and times."""

    __slots__ = ("allocated", "freed_segments", "obtained", "old_bytes", "old_takes", "ooms",
                 "peak", "peak_reserved", "peak_segments", "reserved", "retries",
                 "segments")  # fmt: skip

    def __init__(self) -> None:
        self.allocated = self.peak = 0
        self.reserved = self.peak_reserved = self.obtained = 0
        self.segments = self.peak_segments = self.freed_segments = 0
        self.old_takes = self.old_bytes = 0  # of arenas that are gone
        self.retries = self.ooms = 0


class Bin(list):
    """Addresses of free pieces of one size class. A block out on loan knows its bin."""

    __slots__ = ("arena", "size", "takes", "tally")

    def __init__(self, arena: Arena, size: int, tally: Tally) -> None:
        super().__init__()
        self.arena = arena
        self.size = size
        self.tally = tally
        self.takes = 0


class Piece:
    """A stretch of memory: free in its arena, or cut out for a bin. ``before`` and ``after`` are
    its neighbours without a gap, free or not."""

    __slots__ = ("after", "before", "free", "ptr", "size")

    def __init__(self, ptr: int, size: int) -> None:
        self.ptr = ptr
        self.size = size
        self.before: Piece | None = None
        self.after: Piece | None = None
        self.free = False


def class_size(nbytes: int) -> int:
    """The size of the block that serves a request: at most 511 bytes or a sixteenth more.

    >>> from trident.runtime.segments import class_size
    >>> class_size(1), class_size(513), class_size((1 << 20) + 1) - (1 << 20)
    (512, 1024, 65536)
    """
    if nbytes <= SMALL:
        return up(max(nbytes, 1), GRAIN)
    step = 1 << max((nbytes - 1).bit_length() - 5, 9)
    return up(nbytes, step)


def segment_size(size: int, tight: bool = False) -> int:
    """How much to ask of the driver for a block of ``size``; ``tight``: as little as it takes."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return up(size, SEGMENT_GRAIN if tight or size >= MEDIUM else MEDIUM_SEGMENT)


def up(n: int, step: int) -> int:
    """``n`` rounded up to a multiple of ``step``."""
    return -(-n // step) * step


class Arena:
    """The memory of one stream, for small or for large blocks, and what is free in it."""

    __slots__ = ("bins", "end", "free", "last", "limit", "pieces", "ranges", "segments", "small",
                 "stream")  # fmt: skip

    def __init__(self, stream: int, small: bool) -> None:
        self.stream = stream
        self.small = small
        self.segments: dict[int, int] = {}  # address -> size: what the driver gave in one call
        self.free: list[tuple[int, int, Piece]] = []  # by size, then by address
        self.pieces: dict[int, Piece] = {}  # what is on loan or in a bin
        self.bins: dict[int, Bin] = {}
        self.ranges: dict[int, int] = {}  # reserved addresses
        self.end = self.limit = 0  # of the part of the newest range that has memory; of the range
        self.last: Piece | None = None  # the piece that stops at ``end``

    def bin(self, nbytes: int, tally: Tally) -> Bin:
        """The bin that serves requests of ``nbytes``."""
        size = class_size(nbytes)
        found = self.bins.get(size)
        if found is None:
            found = self.bins[size] = Bin(self, size, tally)
        return found

    def fit(self, size: int, spare: bool = False) -> int | None:
        """Cut a piece of ``size`` out of the smallest free piece that has room; its address.

        ``spare``: not out of memory that is worth more whole, the end of a range (which can grow)
        and pieces of ``COARSE`` times the size; the caller joins the bins and asks again. The
        piece leaves the free list first: an interrupt in between loses one and never hands one
        out twice.
        """
        at = bisect_left(self.free, (size,))
        if at == len(self.free):
            return None
        if spare and not self.small:
            found, _, piece = self.free[at]
            if found > COARSE * size or piece is self.last:
                return None
        _, _, piece = self.free.pop(at)
        piece.free = False
        rest = piece.size - size
        if rest >= WORTH_KEEPING[self.small]:
            tail = Piece(piece.ptr + size, rest)
            piece.size = size
            _link(tail, piece.after)
            _link(piece, tail)
            if piece is self.last:
                self.last = tail
            self._list(tail)
        self.pieces[piece.ptr] = piece
        return piece.ptr

    def flush(self) -> bool:
        """Take everything out of the bins and join it; whether there was anything."""
        found = False
        for held in self.bins.values():
            while held:
                try:
                    ptr = held.pop()
                except IndexError:  # another thread took the last one
                    break
                self._join(self.pieces.pop(ptr))
                found = True
        return found

    def _join(self, piece: Piece) -> None:
        """Free ``piece`` together with its free neighbours."""
        before, after = piece.before, piece.after
        if after is not None and after.free:
            self._unlist(after)
            piece.size += after.size
            _link(piece, after.after)
            if after is self.last:
                self.last = piece
        if before is not None and before.free:
            self._unlist(before)
            before.size += piece.size
            _link(before, piece.after)
            if piece is self.last:
                self.last = before
            piece = before
        self._list(piece)

    def _list(self, piece: Piece) -> None:
        piece.free = True
        insort(self.free, (piece.size, piece.ptr, piece))

    def _unlist(self, piece: Piece) -> None:
        del self.free[bisect_left(self.free, (piece.size, piece.ptr))]
        piece.free = False

    def on_loan(self) -> dict[int, Piece]:
        """The pieces that somebody holds, by address."""
        resting = {ptr for held in self.bins.values() for ptr in list(held)}
        return {ptr: piece for ptr, piece in self.pieces.items() if ptr not in resting}

    # ---- memory of the driver -------------------------------------------------------------------

    def add(self, ptr: int, size: int) -> None:
        """A segment that lies by itself."""
        self.segments[ptr] = size
        self._list(Piece(ptr, size))

    def start(self, ptr: int, size: int) -> None:
        """Grow in this range of addresses from now on."""
        self.ranges[ptr] = size
        self.end, self.limit, self.last = ptr, ptr + size, None

    def missing(self, size: int) -> int:
        """Bytes by which the range must grow for a block of ``size`` to fit at its end."""
        last = self.last
        return size - (last.size if last is not None and last.free else 0)

    def extend(self, size: int) -> None:
        """There is memory behind ``end`` now, ``size`` bytes: a segment that joins the others."""
        piece = Piece(self.end, size)
        self.segments[self.end] = size
        self.end += size
        if self.last is not None:
            _link(self.last, piece)
        self.last = piece
        self._join(piece)

    def whole(self) -> Iterator[tuple[int, int]]:
        """Take the segments out that are free from end to end: (address, size) of each."""
        starts = sorted(self.segments)
        for size, ptr, piece in list(self.free):
            # from the end, so that a range that becomes empty starts anew where it started
            at = bisect_right(starts, ptr + size) - 1
            while at >= 0 and starts[at] >= ptr:
                start = starts[at]
                if start + self.segments[start] <= piece.ptr + piece.size:
                    self._cut_out(piece, start)
                    yield start, self.segments.pop(start)
                at -= 1

    def _cut_out(self, piece: Piece, start: int) -> None:
        """Remove the segment at ``start`` from a free piece, which becomes what lies before it."""
        self._unlist(piece)
        stop, end = start + self.segments[start], piece.ptr + piece.size
        after, was_last = piece.after, piece is self.last
        piece.size = start - piece.ptr
        left = piece if piece.size else piece.before
        if piece.size:
            self._list(piece)
        if left is not None:
            left.after = None
        if stop < end:
            right = Piece(stop, end - stop)
            _link(right, after)
            self._list(right)
            return  # it does not stop at ``end``: the segment there would have gone first
        if after is not None:
            after.before = None
        if was_last:
            self.end, self.last = start, left

    def unused_ranges(self) -> Iterator[tuple[int, int]]:
        """Take the ranges out of which nothing has memory: (address, size) of each."""
        for ptr, size in list(self.ranges.items()):
            if not any(ptr <= start < ptr + size for start in self.segments):
                del self.ranges[ptr]
                if self.limit == ptr + size:
                    self.end, self.limit, self.last = 0, 0, None
                yield ptr, size

    def split(self) -> int:
        """Bytes that are free in segments of which something is on loan or in a bin."""
        starts, found = sorted(self.segments), 0
        for size, ptr, _ in self.free:
            at = bisect_left(starts, ptr)
            whole = 0
            while at < len(starts) and starts[at] + self.segments[starts[at]] <= ptr + size:
                whole += self.segments[starts[at]]
                at += 1
            found += size - whole
        return found


def _link(piece: Piece, after: Piece | None) -> None:
    piece.after = after
    if after is not None:
        after.before = piece
