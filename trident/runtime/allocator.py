"""The caching allocator: device memory in blocks that are used again without asking the driver.

Order is that of streams: a block that was freed may be taken again on its own stream at once, since
what is launched there later runs later. A block that other streams used as well
(``record_stream``) rests until what they had in hand when it was freed is done.

A request goes by its size in bytes to a bin of free addresses: two dict look-ups and ``list.pop``.
Freeing is ``list.append``. Only where a bin is empty does ``segments.py`` cut and join, under a
lock.

Threads: ``list.pop``, ``list.append`` and dict look-ups are single steps under the GIL, and the
figures are updated between two points where CPython 3.11 to 3.13 may switch threads (a call, a
backward jump, the start of a function), so the fast path holds no lock. Freeing takes none at all:
a finaliser may run anywhere, inside of a miss too. A build without the GIL would need a lock here.
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import OutOfMemoryError
from . import memory_report
from .array import Buffer
from .memory_report import TRACKED
from .origin import origin
from .segments import (
    SEGMENT_GRAIN,
    SMALL,
    STEP,
    Arena,
    Bin,
    Memory,
    OutOfMemory,
    Tally,
    segment_size,
    up,
)

if TYPE_CHECKING:
    from types import CodeType

_new = object.__new__

_KEPT = 1 << 16
"""Different request sizes that are remembered for a stream, and places where blocks were made."""


class Block(Buffer):
    """A buffer that goes back to its allocator when the last reference to it goes.

    ``memory`` is its bin, which takes the address back; ``ptr``, ``nbytes`` and ``device`` as in
    any buffer.
    """

    __slots__ = ()

    memory: Any

    def __del__(self) -> None:
        home = self.memory
        home.append(self.ptr)
        home.tally.allocated -= home.size


class CachingAllocator:
    """Blocks of ``memory`` for ``device`` (what blocks name as theirs)."""

    def __init__(self, memory: Memory, device: Any = None) -> None:
        self.memory = memory
        self.device = device
        self._grows = bool(getattr(memory, "granularity", 0))
        self.tally = Tally()
        self._shared = _Pool()
        self._lanes = self._shared.lanes  # an empty dict while a private pool is open
        self._open: dict[int, list[_Pool]] = {}  # by thread, the innermost last
        self._pools: weakref.WeakSet[PrivatePool] = weakref.WeakSet()
        self._retired: deque[list[Arena]] = deque()  # a finaliser may append
        self._old: list[Arena] = []  # of pools and streams that are gone
        self._waiting: dict[int, deque[tuple[Any, _Waiting]]] = {}
        self._deferred: deque[tuple[_Guest, int]] = deque()
        self._guests: weakref.WeakSet[_Guest] = weakref.WeakSet()
        self.origins: dict[int, tuple[CodeType, int] | None] = {}
        self._lock = threading.Lock()

    # ---- the fast path --------------------------------------------------------------------------

    def take(self, nbytes: int, stream: int) -> Block:
        """A block of at least ``nbytes`` for work on ``stream``; its address is a multiple of 512.

        Raises OutOfMemoryError after everything that is free was given back to the driver.
        """
        try:
            home = self._lanes[stream][nbytes]
            ptr = home.pop()
        except (KeyError, IndexError):
            home, ptr = self._miss(nbytes, stream)
        home.takes += 1
        size = home.size
        tally = self.tally
        tally.allocated = now = tally.allocated + size
        if now > tally.peak:
            tally.peak = now
        if size >= TRACKED:
            self.origins[ptr] = origin()
        block = _new(Block)
        block.device = self.device
        block.memory = home
        block.nbytes = nbytes
        block.ptr = ptr
        return block

    def record_stream(self, block: Buffer, stream: int) -> None:
        """Work on ``stream`` uses ``block``: once freed, it rests until that work is done.

        Memory that is not the allocator's (another library's) is not its business.
        """
        while not isinstance(block, Block):
            if not isinstance(block, Buffer):
                return
            block = block.memory
        home = block.memory
        if isinstance(home, _Guest):
            home.streams.add(stream)
        elif home.arena.stream != stream:
            self._guest(block).streams.add(stream)

    def hold(self, block: Block, event: Any) -> None:
        """Once freed, ``block`` rests until ``event`` is done."""
        guest = self._guest(block)
        guest.events = [e for e in guest.events if not self.memory.done(e)]
        guest.events.append(event)

    def _guest(self, block: Block) -> _Guest:
        home = block.memory
        if not isinstance(home, _Guest):
            block.memory = home = _Guest(self, home)
            self._guests.add(home)
        return home

    # ---- misses ---------------------------------------------------------------------------------

    def _miss(self, nbytes: int, stream: int) -> tuple[Bin, int]:
        try:
            return self.alone(self._find, nbytes, stream)
        except OutOfMemory:
            pass
        gc.collect()  # tensors in reference cycles
        try:
            return self.alone(self._find, nbytes, stream)
        except OutOfMemory:
            self.tally.ooms += 1
        raise OutOfMemoryError(memory_report.no_room(self, nbytes, capturing=bool(self._open)))

    def alone(self, fn: Callable[..., Any], *args: Any) -> Any:
        """``fn(*args)`` under the lock, and with the cyclic collector off: a finaliser of the
        user's that allocates would wait for the lock that its own thread holds."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            with self._lock:
                return fn(*args)
        finally:
            if collecting:
                gc.enable()

    def _find(self, nbytes: int, stream: int) -> tuple[Bin, int]:
        """A bin, and the address of a block of its size."""
        pool = self._pool()
        arena = pool.arena(stream, nbytes <= SMALL)
        lane = pool.lanes.setdefault(stream, {})
        if len(lane) >= _KEPT:
            lane.clear()
        if len(self.origins) >= _KEPT:
            self.origins = {p: o for p, o in self.origins.items() if p in arena.pieces}
        home = lane[nbytes] = arena.bin(nbytes, self.tally)
        if self._waiting or self._deferred:
            self._settle()
        if home:  # another request of this class, or another stream's end, put it there
            try:
                return home, home.pop()
            except IndexError:
                pass
        ptr = arena.fit(home.size, spare=True)
        if ptr is None:
            arena.flush()
            ptr = arena.fit(home.size)
        if ptr is None:
            ptr = self._grow(arena, home.size)
        return home, ptr

    def _pool(self) -> _Pool:
        """Where the allocations of this thread come from."""
        mine = self._open.get(threading.get_ident())
        return mine[-1] if mine else self._shared

    def _grow(self, arena: Arena, size: int) -> int:
        """A block of ``size`` where the arena had none."""
        if self._retired and not self._open:  # their memory is no use to anybody else
            self._release(self._dead())
        try:
            self._obtain(arena, size)
        except OutOfMemory:
            self.tally.retries += 1
            if not self._open:  # waiting and freeing would break the capture of a graph
                self._release([*self._shared.arenas.values(), *self._dead()])
            if (ptr := arena.fit(size)) is not None:  # what rested came back
                return ptr
            self._obtain(arena, size, tight=True)
        ptr = arena.fit(size)
        assert ptr is not None
        return ptr

    def _obtain(self, arena: Arena, size: int, tight: bool = False) -> None:
        """Memory of the driver for one more block; ``tight``: no more than that."""
        memory: Any = self.memory
        if arena.small or not self._grows:
            wanted = segment_size(size, tight)
            arena.add(memory.alloc(wanted), wanted)
            self._account(wanted)
            return
        wanted = segment_size(arena.missing(size), tight)
        if arena.end + wanted > arena.limit:
            wanted = segment_size(size, tight)
            span = up(max(memory.info()[1], wanted), SEGMENT_GRAIN)
            arena.start(memory.reserve(span), span)
        while wanted:
            step = min(wanted, STEP)
            memory.back(arena.end, step)
            arena.extend(step)
            self._account(step)
            wanted -= step

    def _account(self, size: int) -> None:
        tally = self.tally
        tally.segments += 1
        tally.reserved += size
        tally.obtained += size
        tally.peak_segments = max(tally.peak_segments, tally.segments)
        tally.peak_reserved = max(tally.peak_reserved, tally.reserved)

    # ---- giving back ----------------------------------------------------------------------------

    def empty_cache(self) -> None:
        """Return every segment that is free from end to end to the driver, those of private pools
        in use excepted. Waits for the device. Nothing happens while a private pool is open."""
        self.alone(self._empty)

    def _empty(self) -> None:
        if not self._open:
            self._release([*self._shared.arenas.values(), *self._dead()])

    def forget(self, stream: int) -> None:
        """The stream is about to be destroyed: what was cached for it is returned once nobody
        holds it, and no event is recorded on it from here on."""
        self.alone(self._forget, stream)

    def _forget(self, stream: int) -> None:
        for guest in self._guests:
            if stream in guest.streams:
                guest.events.append(self.memory.record(stream))
                guest.streams.discard(stream)
        pool = self._shared
        pool.lanes.pop(stream, None)
        found = [pool.arenas.pop((stream, small), None) for small in (True, False)]
        self._retired.append([a for a in found if a is not None])

    def _dead(self) -> list[Arena]:
        while self._retired:
            self._old += self._retired.popleft()
        return self._old

    def _release(self, arenas: list[Arena]) -> None:
        self.memory.synchronize()
        self._settle()
        tally = self.tally
        memory: Any = self.memory
        for arena in arenas:
            arena.flush()
            for ptr, size in arena.whole():
                inside = any(r <= ptr < r + n for r, n in arena.ranges.items())
                memory.unback(ptr, size) if inside else memory.free(ptr)
                tally.segments -= 1
                tally.freed_segments += 1
                tally.reserved -= size
            for ptr, size in arena.unused_ranges():
                memory.unreserve(ptr, size)
        for arena in self._old:
            if not arena.segments:
                tally.old_takes += sum(b.takes for b in arena.bins.values())
                tally.old_bytes += sum(b.takes * b.size for b in arena.bins.values())
        self._old = [a for a in self._old if a.segments]

    # ---- other streams --------------------------------------------------------------------------

    def _rest(self, guest: _Guest, ptr: int) -> None:
        """A block that other streams used was freed (in a finaliser: no lock)."""
        if sys.is_finalizing():
            return
        if self._open:  # events recorded in a capture belong to the graph
            self._deferred.append((guest, ptr))
            return
        marks = [(-1, event) for event in guest.events]
        marks += [(stream, self.memory.record(stream)) for stream in tuple(guest.streams)]
        entry = _Waiting(guest.home, ptr, len(marks))
        for stream, event in marks:
            self._waiting.setdefault(stream, deque()).append((event, entry))

    def _settle(self) -> None:
        """Put blocks into their bins whose other streams are done with them."""
        while self._deferred and not self._open:
            self._rest(*self._deferred.popleft())
        for queue in list(self._waiting.values()):
            while queue and self.memory.done(queue[0][0]):
                _, entry = queue.popleft()
                entry.left -= 1
                if not entry.left:
                    entry.home.append(entry.ptr)

    # ---- private pools --------------------------------------------------------------------------

    def private_pool(self) -> PrivatePool:
        """A pool of its own segments for what is allocated inside ``with``, by this thread.

        What is freed inside is used again inside; nobody else gets memory of the pool, and
        ``empty_cache`` leaves it alone, until the pool object is dropped. It may be entered again.
        """
        return PrivatePool(self)

    def _enter(self, pool: PrivatePool) -> None:
        self._open.setdefault(threading.get_ident(), []).append(pool)
        self._lanes = {}  # every request is a miss, and looks whose pool it should go to

    def _leave(self) -> None:
        me = threading.get_ident()
        self._open[me].pop()
        if not self._open[me]:
            del self._open[me]
        if not self._open:
            self._lanes = self._shared.lanes
            self._settle()

    # ---- figures --------------------------------------------------------------------------------

    @property
    def allocated(self) -> int:
        """Bytes in live blocks, sizes rounded up to their class."""
        return self.tally.allocated

    @property
    def reserved(self) -> int:
        """Bytes held of the driver."""
        return self.tally.reserved

    @property
    def peak_allocated(self) -> int:
        """The most ``allocated`` was since ``reset_peak``."""
        return self.tally.peak

    @property
    def peak_reserved(self) -> int:
        """The most ``reserved`` was since ``reset_peak``."""
        return self.tally.peak_reserved

    def reset_peak(self) -> None:
        """Let the peaks start from what there is now."""
        tally = self.tally
        tally.peak, tally.peak_reserved = tally.allocated, tally.reserved
        tally.peak_segments = tally.segments

    def stats(self) -> dict[str, int]:
        """The figures under the names that ``torch.cuda.memory_stats`` has for them."""
        return memory_report.stats(self)

    def arenas(self) -> list[Arena]:
        """All arenas (call it inside ``alone``): of everybody, of private pools, and what is left
        of those that are gone."""
        pools = [self._shared, *self._pools]
        found = [a for pool in pools for a in list(pool.arenas.values())]
        return found + self._old + [a for gone in list(self._retired) for a in gone]

    def resting(self) -> set[int]:
        """Addresses of freed blocks that other streams are not done with."""
        found = {ptr for _, ptr in list(self._deferred)}
        for queue in list(self._waiting.values()):
            found.update(entry.ptr for _, entry in list(queue))
        return found


class _Pool:
    """Arenas by stream and kind, and the bins of each stream by request."""

    def __init__(self) -> None:
        self.lanes: dict[int, dict[int, Bin]] = {}
        self.arenas: dict[tuple[int, bool], Arena] = {}

    def arena(self, stream: int, small: bool) -> Arena:
        found = self.arenas.get((stream, small))
        if found is None:
            found = self.arenas[stream, small] = Arena(stream, small)
        return found


class PrivatePool(_Pool):
    """See ``CachingAllocator.private_pool``."""

    def __init__(self, allocator: CachingAllocator) -> None:
        super().__init__()
        self._allocator = allocator
        allocator._pools.add(self)

    def __enter__(self) -> PrivatePool:
        self._allocator.alone(self._allocator._enter, self)
        return self

    def __exit__(self, *error: object) -> None:
        self._allocator.alone(self._allocator._leave)

    def __del__(self) -> None:
        self._allocator._retired.append(list(self.arenas.values()))


class _Guest:
    """Stands in for the bin of a block that others than its stream use, until it is freed."""

    __slots__ = ("__weakref__", "allocator", "events", "home", "size", "streams", "tally")

    def __init__(self, allocator: CachingAllocator, home: Bin) -> None:
        self.allocator = allocator
        self.home = home
        self.size = home.size
        self.tally = home.tally
        self.streams: set[int] = set()
        self.events: list[Any] = []

    def append(self, ptr: int) -> None:
        self.allocator._rest(self, ptr)


class _Waiting:
    """A freed block and how many streams are still at it."""

    __slots__ = ("home", "left", "ptr")

    def __init__(self, home: Bin, ptr: int, left: int) -> None:
        self.home = home
        self.ptr = ptr
        self.left = left
