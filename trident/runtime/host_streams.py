"""Streams and events where kernels are interpreted: everything is done when the call returns.

Programs that use several streams, or take times with events, run there as written.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from itertools import count
from typing import Any

from ..errors import wrong
from . import device as devices
from .stream import Event, Stream

_numbers = count(1)


class HostStream(Stream):
    """A stream of the host device. The default one has handle 0."""

    def __init__(self, device: Any = None, priority: int = 0, *, stream: Any = None) -> None:
        self.owned = False
        self.device: Any = devices.host_device()
        self.handle = next(_numbers) if stream is None else int(stream)
        self._priority = priority

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, 0

    @property
    def priority(self) -> int:
        return self._priority

    def synchronize(self) -> None:
        self.device.synchronize()

    def query(self) -> bool:
        return True

    def wait_stream(self, stream: Any) -> None:
        pass  # it is done

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> Stream:
        _outer.set((*_outer.get(), current()))
        set_current(self)
        return self

    def __exit__(self, *error: object) -> None:
        *rest, before = _outer.get()
        _outer.set(tuple(rest))
        set_current(before)


class HostEvent(Event):
    """An event of the host device: the time at which it was recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.enable_timing = enable_timing
        self.handle = 0
        self.at: float | None = None

    def record(self, stream: Any = None) -> Event:
        self.at = time.perf_counter()
        return self

    def wait(self, stream: Any = None) -> None:
        pass  # it is done

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        assert isinstance(end, HostEvent)
        for which, event in (("the first", self), ("the second", end)):
            if not event.enable_timing:
                raise wrong(
                    "Event.elapsed_time", f"{which} event keeps no time", error=RuntimeError,
                    hint="make both with Event(enable_timing=True)",
                )  # fmt: skip
            if event.at is None:
                raise wrong(
                    "Event.elapsed_time", f"{which} event was not recorded", error=RuntimeError
                )
        assert self.at is not None and end.at is not None
        return (end.at - self.at) * 1e3

    def __repr__(self) -> str:
        return "<Event of the interpreter>" if self.at else "<Event, not recorded>"


_default: HostStream | None = None
_current: ContextVar[HostStream | None] = ContextVar("trident_host_stream", default=None)
_outer: ContextVar[tuple] = ContextVar("trident_host_streams_before", default=())


def default() -> HostStream:
    """The stream that is current unless another was made so."""
    global _default
    if _default is None:
        _default = HostStream(stream=0)
    return _default


def current() -> HostStream:
    """The current stream of this context."""
    return _current.get() or default()


def set_current(stream: HostStream) -> None:
    _current.set(stream)


Stream.on_host = HostStream
Event.on_host = HostEvent
