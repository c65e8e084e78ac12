"""The caching allocator over a device of counters: who gets which addresses, and when."""

from __future__ import annotations

import gc
import itertools
import random
import subprocess
import sys
import threading
import time
import weakref
from bisect import bisect_right
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from trident.errors import OutOfMemoryError
from trident.runtime import memory_report
from trident.runtime.allocator import Block, CachingAllocator
from trident.runtime.array import Buffer
from trident.runtime.segments import GRAIN, MIB, SMALL, OutOfMemory, class_size, up

ROOT = Path(__file__).resolve().parent.parent


class Plain:
    """Memory that is counted and never touched. ``now[stream]`` numbers the work on a stream."""

    granularity = 0

    def __init__(self, total: int = 1 << 40) -> None:
        self.total = total
        self.given: dict[int, int] = {}  # address -> size: what the driver gave
        self.calls = 0
        self.next = 1 << 30
        self.now: dict[int, int] = {}
        self.completed: dict[int, int] = {}
        self.busy: list[tuple[int, int, int, int]] = []  # start, stop, stream, number of its work
        self.syncs = 0
        self.capturing = False

    def used(self) -> int:
        return sum(self.given.values())

    def _take(self, ptr: int, nbytes: int) -> None:
        self.calls += 1
        if self.used() + nbytes > self.total:
            raise OutOfMemory
        self.given[ptr] = nbytes

    def _drop(self, ptr: int, nbytes: int) -> None:
        assert self.given.pop(ptr) == nbytes
        hit = [b for b in self.busy if b[0] < ptr + nbytes and b[1] > ptr]
        assert not hit, "memory was given back while a stream is at it"

    def alloc(self, nbytes: int) -> int:
        self._take(self.next, nbytes)
        self.next += up(nbytes, 2 * MIB) + 2 * MIB
        return self.next - up(nbytes, 2 * MIB) - 2 * MIB

    def free(self, ptr: int) -> None:
        self._drop(ptr, self.given[ptr])

    def info(self) -> tuple[int, int]:
        return self.total - self.used(), self.total

    def synchronize(self) -> None:
        assert not self.capturing, "waiting breaks a capture"
        self.syncs += 1
        self.completed.update(self.now)
        self.busy.clear()

    def record(self, stream: int) -> tuple[int, int]:
        assert not self.capturing, "an event of a capture cannot be asked"
        return stream, self.work(stream)

    def done(self, event: tuple[int, int]) -> bool:
        stream, number = event
        return self.completed.get(stream, 0) >= number

    def work(self, stream: int) -> int:
        """Something new on a stream; its number."""
        self.now[stream] = self.now.get(stream, 0) + 1
        return self.now[stream]

    def advance(self, stream: int) -> None:
        """Everything on a stream is done."""
        self.completed[stream] = self.now.get(stream, 0)
        self.busy = [b for b in self.busy if b[2] != stream]


class Virtual(Plain):
    """The same with reserved addresses."""

    granularity = 2 * MIB

    def __init__(self, total: int = 1 << 40) -> None:
        super().__init__(total)
        self.reserved: dict[int, int] = {}

    def reserve(self, nbytes: int) -> int:
        assert nbytes % self.granularity == 0
        ptr = self.next
        self.reserved[ptr] = nbytes
        self.next += nbytes + 2 * MIB
        return ptr

    def unreserve(self, ptr: int, nbytes: int) -> None:
        assert self.reserved.pop(ptr) == nbytes
        assert not any(ptr <= p < ptr + nbytes for p in self.given)

    def back(self, ptr: int, nbytes: int) -> None:
        assert ptr % self.granularity == nbytes % self.granularity == 0
        assert any(p <= ptr and ptr + nbytes <= p + n for p, n in self.reserved.items())
        assert not any(p < ptr + nbytes and p + n > ptr for p, n in self.given.items())
        self._take(ptr, nbytes)

    def unback(self, ptr: int, nbytes: int) -> None:
        self._drop(ptr, nbytes)


@pytest.fixture(params=[Plain, Virtual])
def memory(request):
    return request.param()


@pytest.fixture
def allocator(memory):
    return CachingAllocator(memory, "cuda:0")


def sizes():
    """Requests of all kinds: tiny, around the limits, medium, large."""
    limits = [GRAIN, SMALL, 2 * MIB, 10 * MIB, 20 * MIB, 64 * MIB]
    near = st.builds(lambda n, d: max(n + d, 1), st.sampled_from(limits), st.integers(-600, 600))
    return st.one_of(st.integers(1, 5000), near, st.integers(1, 80 * MIB))


# ---- size classes -------------------------------------------------------------------------------


@given(n=st.one_of(st.integers(1, 1 << 36), sizes()))
@settings(max_examples=300)
def test_size_classes(n):
    size = class_size(n)
    assert size % GRAIN == 0 and n <= size <= n + max(GRAIN - 1, n // 16)
    assert class_size(size) == size  # a block serves what it was made for
    assert class_size(n + 1) >= size


def test_there_are_few_size_classes():
    """Requests of every size leave few bins behind."""
    small = {class_size(n) for n in range(1, SMALL + 1, 7)}
    large = {class_size(n) for n in range(SMALL + 1, 1 << 30, 300_001)}
    assert len(small) == SMALL // GRAIN and len(large) <= 16 * 10


# ---- taking and giving back ---------------------------------------------------------------------


def test_a_freed_block_is_taken_again_on_its_stream(allocator, memory):
    a = allocator.take(5000, 1)
    address, calls = a.ptr, memory.calls
    assert isinstance(a, Block) and isinstance(a, Buffer)
    assert a.nbytes == 5000 and a.device == "cuda:0" and address % 512 == 0
    del a
    b = allocator.take(5000, 1)
    assert b.ptr == address and memory.calls == calls and not memory.syncs
    c = allocator.take(5000, 1)
    assert c.ptr != address
    del b
    assert allocator.take(4990, 1).ptr == address  # another request of the same class


def test_the_last_freed_block_comes_first(allocator):
    blocks = [allocator.take(1 << 16, 1) for _ in range(4)]
    order = [b.ptr for b in blocks]
    while blocks:
        blocks.pop(0)
    assert [allocator.take(1 << 16, 1).ptr for _ in range(1)] == [order[-1]]


def test_another_stream_does_not_get_it(allocator):
    a = allocator.take(5000, 1)
    address = a.ptr
    del a
    b = allocator.take(5000, 2)
    assert b.ptr != address
    assert allocator.take(5000, 1).ptr == address


def test_small_blocks_share_a_segment_and_neighbours_join(memory, allocator):
    blocks = [allocator.take(256 * 1024, 1) for _ in range(8)]
    assert allocator.reserved == 2 * MIB and memory.calls == 1
    addresses = sorted(b.ptr for b in blocks)
    assert addresses == list(range(addresses[0], addresses[0] + 2 * MIB, 256 * 1024))
    blocks.clear()
    whole = [allocator.take(MIB, 1), allocator.take(MIB, 1)]
    assert memory.calls == 1 and {b.ptr for b in whole} == {addresses[0], addresses[0] + MIB}


def test_large_blocks_join(memory, allocator):
    blocks = [allocator.take(5 * MIB, 1) for _ in range(4)]
    assert allocator.reserved == 20 * MIB
    first = min(b.ptr for b in blocks)
    del blocks[1], blocks[1]
    assert allocator.take(10 * MIB, 1).ptr == first + 5 * MIB  # the two in the middle
    blocks.clear()
    assert allocator.take(20 * MIB, 1).ptr == first
    assert memory.calls == 1


def test_a_range_grows_where_segments_would_leave_gaps():
    """Blocks of three sizes, each larger than all before it: with addresses in a row, freed ones
    together make room for the next."""
    peaks = {}
    for kind in (Plain, Virtual):
        allocator = CachingAllocator(kind())
        for size in (30 * MIB, 40 * MIB, 60 * MIB, 120 * MIB, 200 * MIB):
            held = [allocator.take(size, 1) for _ in range(2)]
            assert len({b.ptr for b in held}) == 2
            del held
        peaks[kind] = allocator.peak_reserved
    assert peaks[Virtual] == 400 * MIB
    assert peaks[Plain] == 900 * MIB


def test_a_range_grows_by_what_is_missing_at_its_end():
    allocator = CachingAllocator(Virtual())
    allocator.take(8 * MIB, 1)  # 12 MiB more behind it, and all 20 free again
    allocator.take(30 * MIB, 1)
    assert allocator.reserved == 30 * MIB


def test_a_hole_in_a_range():
    """Segments in the middle go back; what lies behind them forgets that they were there."""
    allocator = CachingAllocator(Virtual())
    blocks = [allocator.take(64 * MIB, 1) for _ in range(4)]
    addresses = [b.ptr for b in blocks]
    del blocks[1]
    allocator.empty_cache()
    assert allocator.reserved == 3 * 64 * MIB
    (arena,) = allocator.arenas()
    check(arena)
    del blocks[1]
    allocator.empty_cache()
    check(arena)
    assert allocator.reserved == 2 * 64 * MIB
    assert allocator.take(64 * MIB, 1).ptr == addresses[3] + 64 * MIB  # holes stay holes
    check(arena)
    blocks.clear()
    allocator.empty_cache()
    assert allocator.reserved == 0 and not allocator.memory.reserved


def test_freed_places_are_looked_at_before_the_open_end_is_cut():
    """A block goes into a freed place before it eats into memory that can still grow."""
    allocator = CachingAllocator(Virtual())
    a, b = allocator.take(8 * MIB, 1), allocator.take(2 * MIB, 1)  # 10 MiB more at the end
    start = a.ptr
    del a
    assert allocator.take(7 * MIB, 1).ptr == start
    assert b.ptr == start + 8 * MIB and allocator.reserved == 20 * MIB


def test_freed_places_are_looked_at_before_a_large_piece_is_cut(memory, allocator):
    big, fence = allocator.take(50 * MIB, 1), allocator.take(8 * MIB, 1)
    small, end = allocator.take(6 * MIB, 1), allocator.take(2 * MIB, 1)
    address = small.ptr
    del big
    allocator.take(60 * MIB, 1)  # joins the 50 MiB: they are a piece now, and in no bin
    del small
    assert allocator.take(5 * MIB, 1).ptr == address
    assert fence.nbytes + end.nbytes == 10 * MIB


def test_figures(allocator, memory):
    a, b = allocator.take(1000, 1), allocator.take(3 * MIB, 1)
    assert allocator.allocated == allocator.peak_allocated == 1024 + 3 * MIB
    assert allocator.reserved == allocator.peak_reserved == memory.used() == 22 * MIB
    del b
    assert allocator.allocated == 1024 and allocator.peak_allocated == 1024 + 3 * MIB
    allocator.empty_cache()
    assert allocator.reserved == memory.used() == 2 * MIB
    assert allocator.peak_reserved == 22 * MIB
    allocator.reset_peak()
    assert allocator.peak_allocated == 1024 and allocator.peak_reserved == 2 * MIB
    stats = memory_report.stats(allocator)
    assert stats["allocation.all.allocated"] == 2 and stats["allocation.all.current"] == 1
    assert stats["allocated_bytes.all.allocated"] == 1024 + 3 * MIB
    assert stats["allocated_bytes.all.freed"] == 3 * MIB
    assert stats["segment.all.current"] == 1 and stats["segment.all.freed"] == 1
    assert stats["inactive_split_bytes.all.current"] == 2 * MIB - 1024
    assert a.nbytes == 1000


def test_the_cost_of_a_hit(allocator):
    """Taking and freeing is a few list operations (a figure is in docs/architecture.md)."""
    take = allocator.take
    take(4096, 7)
    best = min(_timed(take) for _ in range(30))
    assert best < 3e-6, f"{best * 1e6:.2f} us"


def _timed(take) -> float:
    start = time.perf_counter()
    for _ in range(2000):
        take(4096, 7)
    return (time.perf_counter() - start) / 2000


# ---- other streams ------------------------------------------------------------------------------


def test_a_block_that_another_stream_used_rests(allocator, memory):
    a = allocator.take(5000, 1)
    address = a.ptr
    allocator.record_stream(a, 2)
    allocator.record_stream(a, 3)
    del a
    assert allocator.allocated == 0
    assert memory_report.stats(allocator)["active.all.current"] == 1
    assert memory_report.live(allocator) == []
    assert allocator.take(5000, 1).ptr != address
    memory.advance(2)
    assert allocator.take(5001, 1).ptr != address
    memory.advance(3)
    blocks = [allocator.take(n, 1) for n in (5000, 5001, 5002)]
    assert address in {b.ptr for b in blocks}
    assert memory_report.stats(allocator)["active.all.current"] == 3


def test_a_block_that_is_held_for_events(allocator, memory):
    """A buffer that is copied from again and again keeps the marks that are still to come."""
    a = allocator.take(5000, 1)
    address, done = a.ptr, []
    memory.done = lambda event: done.append(event) or event != "late"
    for n in range(100):
        allocator.hold(a, n)
        assert len(a.memory.events) == 1
    allocator.hold(a, "late")
    allocator.hold(a, 101)
    assert sorted(done[:100]) == list(range(100))
    del a
    assert allocator.allocated == 0
    assert allocator.take(5000, 1).ptr != address
    memory.done = lambda event: True
    assert allocator.take(5001, 1).ptr == address


def test_its_own_stream_costs_nothing(allocator, memory):
    a = allocator.take(5000, 1)
    address = a.ptr
    allocator.record_stream(a, 1)
    del a
    assert allocator.take(5000, 1).ptr == address and not memory.now


def test_record_stream_reaches_through_windows_and_leaves_strangers_alone(allocator, memory):
    a = allocator.take(5000, 1)
    address = a.ptr
    window = Buffer(None, a.ptr + 512, 100, a)
    allocator.record_stream(window, 2)
    allocator.record_stream(Buffer(None, 4096, 100, object()), 2)
    del a, window
    assert allocator.take(5000, 1).ptr != address and memory.now == {2: 1}


def test_a_stream_that_is_forgotten(allocator, memory):
    kept, a, b = (allocator.take(5000, s) for s in (1, 2, 1))
    allocator.record_stream(b, 2)
    address = b.ptr
    allocator.forget(2)
    assert memory.now == {2: 1}
    del b
    assert memory.now == {2: 1}  # no event on a stream that is gone
    assert allocator.take(5000, 1).ptr != address
    memory.advance(2)
    assert allocator.take(5001, 1).ptr == address
    again = allocator.take(5000, 2)  # a new stream of the same handle
    assert again.ptr != a.ptr and allocator.reserved == 6 * MIB
    del a
    allocator.empty_cache()
    assert allocator.reserved == 4 * MIB and kept.nbytes == 5000


# ---- no room ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Plain, Virtual])
def test_cached_memory_is_returned_before_an_error(kind):
    memory = kind(total=100 * MIB)
    allocator = CachingAllocator(memory, "cuda:0")
    allocator.take(60 * MIB, 1)
    kept = allocator.take(1000, 3)
    big = allocator.take(90 * MIB, 2)
    assert memory.used() <= 100 * MIB and memory_report.stats(allocator)["num_alloc_retries"] == 1
    assert memory_report.stats(allocator)["num_ooms"] == 0
    assert kept.nbytes + big.nbytes == 1000 + 90 * MIB


def test_a_block_gets_less_than_its_usual_segment_where_no_more_is_there():
    memory = Plain(total=8 * MIB)
    allocator = CachingAllocator(memory)
    assert allocator.take(5 * MIB, 1).nbytes == 5 * MIB  # 20 MiB is what it would take elsewhere
    assert memory.used() == 6 * MIB


def test_the_error_says_what_lies_where_and_training_goes_on(allocator, memory):
    memory.total = 100 * MIB
    held = [allocator.take(20 * MIB, 1) for _ in range(3)]
    (line,) = (sys._getframe().f_lineno - 1,)
    small = [allocator.take(1000, 1) for _ in range(5)]
    with pytest.raises(OutOfMemoryError) as caught:
        allocator.take(50 * MIB, 1)
    text = str(caught.value)
    assert "CUDA out of memory: wanted 50.00 MiB on cuda:0" in text
    assert "38.00 MiB of 100.00 MiB are free" in text
    assert "holds 62.00 MiB, 60.00 MiB of them in live tensors and 2.00 MiB cached" in text
    assert f"\n  3 x 20.00 MiB  {__file__}:{line} in test_the_error" in text
    assert isinstance(caught.value, RuntimeError)
    assert memory_report.stats(allocator)["num_ooms"] == 1
    del held[1:]
    again = allocator.take(50 * MIB, 1)  # less is live now
    assert again.nbytes == 50 * MIB and len(small) == 5


def test_garbage_is_collected_before_an_error(allocator, memory):
    memory.total = 100 * MIB
    cycle: list = [allocator.take(90 * MIB, 1)]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        assert allocator.take(80 * MIB, 1).nbytes == 80 * MIB
    finally:
        gc.enable()


def test_resting_blocks_are_waited_for_before_an_error(allocator, memory):
    memory.total = 100 * MIB
    a = allocator.take(90 * MIB, 1)
    allocator.record_stream(a, 2)
    del a
    assert allocator.take(90 * MIB, 1).nbytes == 90 * MIB and memory.syncs


def test_what_rested_is_used_where_its_segment_cannot_go(allocator, memory):
    memory.total = 20 * MIB
    a, b = allocator.take(8 * MIB, 1), allocator.take(8 * MIB, 1)
    address = a.ptr
    allocator.record_stream(a, 2)
    del a
    assert allocator.take(8 * MIB, 1).ptr == address and b.nbytes == 8 * MIB
    assert memory.calls == 2  # the segment, and the one that was refused
    assert memory_report.stats(allocator)["num_alloc_retries"] == 1


def test_where_a_block_was_made_leaves_no_frame_behind(allocator):
    class Marker:
        pass

    def make():
        marker = Marker()
        seen.append(weakref.ref(marker))
        return allocator.take(2 * MIB, 1)

    seen: list = []
    block = make()
    assert seen[0]() is None
    ((_, size, place),) = memory_report.live(allocator)
    assert size == block.nbytes and place.endswith("make") and __file__ in place


def test_a_place_belongs_to_the_block_that_is_there_now(allocator):
    a = allocator.take(MIB, 1)
    address, line = a.ptr, sys._getframe().f_lineno - 1
    assert memory_report.live(allocator)[0][2].endswith(f":{line} in {_here()}")
    del a
    b = allocator.take(MIB - 100, 1)  # of the same class
    line = sys._getframe().f_lineno - 1
    ((ptr, _, place),) = memory_report.live(allocator)
    assert ptr == b.ptr == address and place.endswith(f":{line} in {_here()}")


def _here() -> str:
    return sys._getframe(1).f_code.co_qualname


# ---- private pools ------------------------------------------------------------------------------


def segments(memory):
    return sorted((p, p + n) for p, n in memory.given.items())


def segment_of(memory, block):
    starts = segments(memory)
    return starts[bisect_right(starts, (block.ptr, 1 << 62)) - 1][0]


def test_a_private_pool(allocator, memory):
    outside = allocator.take(5000, 1)
    other = allocator.take(5000, 1)
    other_address = other.ptr
    del other
    with allocator.private_pool() as pool:
        inside = [allocator.take(5000, 1), allocator.take(3 * MIB, 1)]
        address = inside[0].ptr
        first = inside.pop(0)
        del first
        again = allocator.take(5000, 1)
        assert again.ptr == address  # freed inside, taken inside
    assert segment_of(memory, again) != segment_of(memory, outside)
    assert address != other_address
    assert allocator.take(5000, 1).ptr == other_address  # nobody outside gets the pool's memory
    del again, inside
    after = [allocator.take(5000, 1) for _ in range(20)]
    assert address not in {b.ptr for b in after}
    held = allocator.reserved
    allocator.empty_cache()
    assert allocator.reserved == held  # stays for the graph
    with pool:
        assert allocator.take(5000, 1).ptr == address
    del pool
    allocator.empty_cache()
    assert allocator.reserved == 2 * MIB  # that of `outside` and `after`


def test_a_dropped_pool_waits_for_its_blocks(allocator, memory):
    with allocator.private_pool() as pool:
        a = allocator.take(3 * MIB, 1)
    del pool
    allocator.empty_cache()
    assert allocator.reserved == 20 * MIB and a.nbytes
    del a
    allocator.take(100, 1)  # before it asks for more, what is left of the pool goes back
    assert allocator.reserved == 20 * MIB + 2 * MIB
    allocator.empty_cache()
    assert allocator.reserved == 0


def test_memory_of_a_dropped_pool_goes_before_more_is_asked_for(allocator, memory):
    with allocator.private_pool() as pool:
        allocator.take(30 * MIB, 1)
    del pool
    assert allocator.reserved == 30 * MIB
    block = allocator.take(40 * MIB, 1)
    assert allocator.reserved == 40 * MIB == block.nbytes


def test_a_pool_is_of_one_thread(allocator, memory):
    shared = allocator.take(5000, 1)
    address = shared.ptr
    del shared
    with allocator.private_pool():
        got = []
        thread = threading.Thread(target=lambda: got.append(allocator.take(5000, 1)))
        thread.start()
        thread.join()
        assert got[0].ptr == address
        assert allocator.take(5000, 1).ptr != address
    assert allocator._lanes is allocator._shared.lanes


def test_pools_nest(allocator, memory):
    with allocator.private_pool() as outer:
        a = allocator.take(5000, 1)
        with allocator.private_pool() as inner:
            b = allocator.take(5000, 1)
        c = allocator.take(5000, 1)
    assert segment_of(memory, a) == segment_of(memory, c) != segment_of(memory, b)
    assert outer is not inner


def test_nothing_is_waited_for_or_recorded_in_a_pool(allocator, memory):
    """Both would break the capture of a graph."""
    a = allocator.take(5000, 1)
    address = a.ptr
    allocator.record_stream(a, 2)
    with allocator.private_pool():
        memory.capturing = True
        del a
        allocator.empty_cache()
        assert allocator.take(5000, 1).ptr != address
        memory.total = memory.used()
        with pytest.raises(OutOfMemoryError, match=r"empty_cache\(\) before it is"):
            allocator.take(100 * MIB, 1)
        memory.capturing = False
    assert memory.now == {2: 1}
    assert memory_report.stats(allocator)["active.all.current"] == 1
    memory.advance(2)
    memory.total = 1 << 40
    assert allocator.take(5001, 1).ptr == address


# ---- threads, the collector, the end of the process ---------------------------------------------


def test_threads_never_share_a_block(allocator):
    """Each thread marks what it holds; a block given out twice would show two marks."""
    held: dict[int, int] = {}
    wrong = []
    interval = sys.getswitchinterval()

    def work(me: int) -> None:
        draw = random.Random(me)
        mine = []
        for _ in range(4000):
            if mine and draw.random() < 0.5:
                block = mine.pop(draw.randrange(len(mine)))
                if held.pop(block.ptr, None) != me:
                    wrong.append(block.ptr)
                del block
            else:
                block = allocator.take(
                    draw.choice([300, 700, 5000, 70_000, 2 * MIB]), draw.choice([1, 2])
                )
                if held.setdefault(block.ptr, me) != me:
                    wrong.append(block.ptr)
                mine.append(block)
                if draw.random() < 0.05:
                    allocator.record_stream(block, 3)
            if draw.random() < 0.003:
                allocator.empty_cache()
        for block in mine:
            held.pop(block.ptr)

    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong and not held
    assert allocator.allocated == 0
    allocator.empty_cache()
    assert allocator.reserved == 0


def test_finalisers_may_free_and_allocate_anywhere(allocator):
    """The cyclic collector runs whatever it likes, in the middle of a miss too."""

    class Greedy:
        def __init__(self) -> None:
            self.block = allocator.take(3000, 1)
            self.me = self

        def __del__(self) -> None:
            kept.append(allocator.take(900, 1))

    kept: list = []
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for n in range(300):
            Greedy()
            allocator.take(1000 + 512 * n, 1)
            allocator.take(2 * MIB + n * MIB, 1)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert len(kept) == 300
    del kept[:]
    assert allocator.allocated == 0


def test_the_end_of_the_process_is_quiet():
    code = (
        "import os, sys\n"
        "from tests.test_allocator import Virtual\n"
        "from trident.runtime.allocator import CachingAllocator\n"
        "class Memory(Virtual):\n"
        "    def record(self, stream, write=os.write): write(2, b'the driver may be gone')\n"
        "a = CachingAllocator(Memory())\n"
        "x, y = a.take(100, 1), a.take(1 << 22, 1)\n"
        "a.record_stream(x, 2)\n"
        "cycle = [x, y]; cycle.append(cycle); sys.kept = cycle, a.take(10, 1)\n"
        "sys.alone = a.take(10, 1)\n"
        "a.record_stream(sys.alone, 2)\n"
        "pool = a.private_pool()\n"
        "with pool: z = a.take(100, 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


# ---- against a model ----------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """Random programs. The fake device knows which addresses which stream is still at."""

    kind: type[Plain] = Plain
    live = Bundle("live")
    pools = Bundle("pools")
    streams = st.sampled_from([1, 2, 3])

    @initialize()
    def start(self):
        self.memory = self.kind(total=400 * MIB)
        self.allocator = CachingAllocator(self.memory)
        self.blocks: dict[int, Block] = {}  # by number
        self.used: dict[int, set[int]] = {}  # block -> streams
        self.home: dict[int, object] = {}  # segment -> pool that it serves
        self.open: list = []
        self.kept_pools: dict[int, object] = {}
        self.number = itertools.count()
        self.peak = 0
        self.ooms = 0

    def owner(self):
        return self.open[-1] if self.open else None

    @rule(target=live, nbytes=sizes(), stream=streams)
    def take(self, nbytes, stream):
        try:
            block = self.allocator.take(nbytes, stream)
        except OutOfMemoryError:
            self.ooms += 1
            return -1
        n = next(self.number)
        start, stop = block.ptr, block.ptr + nbytes
        for other in self.blocks.values():
            assert stop <= other.ptr or other.ptr + other.nbytes <= start, "two blocks overlap"
        for a, b, busy, _ in self.memory.busy:
            assert busy == stream or b <= start or stop <= a, f"stream {busy} is still at it"
        at = start
        for a, b in segments(self.memory):  # all of it is memory, of one pool
            if a <= at < b:
                assert self.home.setdefault(a, self.owner()) is self.owner()
                at = b
        assert at >= stop
        self.blocks[n] = block
        self.used[n] = {stream}
        self.peak = max(self.peak, self.expected())
        return n

    def expected(self):
        return sum(class_size(b.nbytes) for b in self.blocks.values())

    @rule(n=live, stream=streams)
    def use_elsewhere(self, n, stream):
        if n in self.blocks:
            self.allocator.record_stream(self.blocks[n], stream)
            self.used[n].add(stream)

    @rule(n=consumes(live))
    def drop(self, n):
        if n in self.blocks:
            block = self.blocks.pop(n)
            for stream in self.used.pop(n):
                number = self.memory.work(stream)
                entry = (block.ptr, block.ptr + block.nbytes, stream, number)
                self.memory.busy.append(entry)
            del block

    @rule(stream=streams)
    def advance(self, stream):
        self.memory.advance(stream)

    @precondition(lambda self: not self.open)
    @rule(stream=streams)
    def forget(self, stream):
        """The stream is destroyed, its work goes on, and its handle is used again."""
        self.allocator.forget(stream)

    @rule()
    def empty_cache(self):
        self.allocator.empty_cache()
        self.forget_segments()

    def forget_segments(self):
        self.home = {a: pool for a, pool in self.home.items() if a in self.memory.given}

    @rule()
    def reset_peak(self):
        self.allocator.reset_peak()
        self.peak = self.expected()

    @rule(target=pools)
    def new_pool(self):
        n = next(self.number)
        self.kept_pools[n] = self.allocator.private_pool()
        return n

    @precondition(lambda self: len(self.open) < 2)
    @rule(n=pools)
    def enter(self, n):
        if n in self.kept_pools and n not in self.open:
            self.kept_pools[n].__enter__()
            self.open.append(n)
            self.memory.capturing = True

    @precondition(lambda self: self.open)
    @rule()
    def leave(self):
        n = self.open.pop()
        self.memory.capturing = bool(self.open)
        self.kept_pools[n].__exit__()

    @rule(n=consumes(pools))
    def drop_pool(self, n):
        if n in self.kept_pools and n not in self.open:
            del self.kept_pools[n]

    @invariant()
    def figures(self):
        if not hasattr(self, "memory"):
            return
        self.forget_segments()
        a = self.allocator
        assert a.allocated == self.expected() and a.peak_allocated == self.peak
        assert a.reserved == self.memory.used() <= self.memory.total
        assert a.reserved >= a.allocated
        stats = memory_report.stats(a)
        assert stats["allocation.all.current"] == len(self.blocks)
        assert stats["segment.all.current"] == len(self.memory.given)
        assert stats["num_ooms"] == self.ooms
        for arena in a.arenas():
            check(arena)

    def teardown(self):
        if not hasattr(self, "memory"):
            return
        while self.open:
            self.leave()
        self.blocks.clear()
        self.kept_pools.clear()
        self.allocator.empty_cache()
        assert self.allocator.allocated == self.allocator.reserved == 0
        assert not self.memory.given and not getattr(self.memory, "reserved", None)


def check(arena):
    """The pieces of an arena tile its segments."""
    free = [p for _, _, p in arena.free]
    assert [(s, a) for s, a, _ in arena.free] == sorted((p.size, p.ptr) for p in free)
    assert all(p.free for p in free) and not any(p.free for p in arena.pieces.values())
    pieces = sorted([*free, *arena.pieces.values()], key=lambda p: p.ptr)
    covered = merged((p.ptr, p.ptr + p.size) for p in pieces)
    assert covered == merged((a, a + n) for a, n in arena.segments.items())
    known = {id(p) for p in pieces}
    for p in pieces:
        assert p.after is None or (id(p.after) in known and p.after.before is p)
        assert p.before is None or (id(p.before) in known and p.before.after is p)
    if arena.last is not None:
        assert id(arena.last) in known and arena.last.ptr + arena.last.size == arena.end
    ends = {p.ptr + p.size for p in pieces}
    assert arena.last is not None or arena.end not in ends or arena.end in arena.ranges
    for left, right in itertools.pairwise(pieces):
        assert left.ptr + left.size <= right.ptr
        linked = left.after is right
        assert linked == (right.before is left)
        assert not (linked and left.ptr + left.size != right.ptr)
        assert not (linked and left.free and right.free), "neighbours that were not joined"


def merged(spans):
    out: list[list[int]] = []
    for a, b in spans if isinstance(spans, list) else sorted(spans):
        if out and out[-1][1] == a:
            out[-1][1] = b
        else:
            out.append([a, b])
    return out


class VirtualModel(Model):
    kind = Virtual


TestPlain = Model.TestCase
TestVirtual = VirtualModel.TestCase
TestPlain.settings = TestVirtual.settings = settings(stateful_step_count=40, max_examples=60)
