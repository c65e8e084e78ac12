"""How long something takes on a device: median seconds of calls, with cold caches on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

FLUSH = 256 << 20
"""Bytes written between two timed calls on a GPU, more than any L2 holds."""


class Clock:
    """``clock(call)`` is the median of at least ``fewest`` calls, and of as many as fit ``budget``
    seconds. On a GPU by events, after a write that flushes the L2 cache; on the CPU by the wall
    clock. ``device`` is the runtime's device object, or None for the CPU."""

    def __init__(self, device: Any = None, fewest: int = 20, budget: float = 0.3) -> None:
        self.device = device
        self.fewest = fewest
        self.budget = budget
        self.scratch = device.allocate(FLUSH) if device is not None else None

    def __call__(self, call: Callable[[], Any]) -> float:
        call()  # compiles
        self.synchronize()
        sample = self._wall if self.device is None else self._events
        for _ in range(2):
            sample(call)
        times: list[float] = []
        end = time.perf_counter() + self.budget
        while len(times) < self.fewest or time.perf_counter() < end:
            times.append(sample(call))
        return statistics.median(times)

    def synchronize(self) -> None:
        if self.device is not None:
            self.device.synchronize()

    def _wall(self, call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    def _events(self, call: Callable[[], Any]) -> float:
        from ..runtime.libcuda import cu
        from ..runtime.stream import Event

        assert self.scratch is not None
        first, last = Event(enable_timing=True), Event(enable_timing=True)
        stream = self.device.current_stream.get()
        cu.cuMemsetD8Async(self.scratch.ptr, 0, FLUSH, stream)
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) * 1e-3

    def host(self, call: Callable[[], Any], calls: int = 1000) -> float:
        """Seconds that ``call`` takes of the host: the best of several batches, the work of the
        device not waited for inside of one."""
        best = float("inf")
        for _ in range(5):
            self.synchronize()
            started = time.perf_counter()
            for _ in range(calls):
                call()
            best = min(best, (time.perf_counter() - started) / calls)
        self.synchronize()
        return best


def clock_of(device: str) -> Clock:
    """The clock of ``"cpu"`` or ``"cuda"``."""
    if device == "cpu":
        return Clock()
    from .. import runtime

    return Clock(runtime.current())
