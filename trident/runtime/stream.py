"""Streams and events of a GPU.

Work on one stream is done in order; different streams run side by side. Every context (thread,
task) has a current stream of each device, at first the device's own one. It is a non-blocking
stream: the legacy stream 0 waits for all others, and cannot be captured into a graph.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import wrong
from . import device as devices
from .libcuda import cu, ready

if TYPE_CHECKING:
    from .cuda_device import CudaDevice

_BLOCKING_SYNC, _DISABLE_TIMING, _INTERPROCESS = 1, 2, 4
_NON_BLOCKING = 1

_before: ContextVar[tuple] = ContextVar("trident_streams_before", default=())
"""What was current outside of the open ``with stream:`` blocks of this context."""


def handle_of(stream: Any) -> int:
    """The handle of a stream: ours, an int, or any object with ``__cuda_stream__`` (CuPy, Numba,
    cuda.core, torch) or ``cuda_stream``."""
    if isinstance(stream, Stream):
        return stream.handle
    if isinstance(stream, int):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        found = protocol() if callable(protocol) else protocol
        version, handle = found[0], found[1]
        if version != 0:
            raise wrong(
                "stream", "expected version 0 of the __cuda_stream__ protocol", got=version,
                error=TypeError,
            )  # fmt: skip
        return int(handle)
    if hasattr(stream, "cuda_stream"):
        return int(stream.cuda_stream)
    raise wrong(
        "stream", "expected a Stream, a handle (int) or an object with __cuda_stream__",
        got=type(stream).__name__, error=TypeError,
    )  # fmt: skip


class Stream:
    """A stream of a device: ``with stream:`` puts what follows onto it.

    device: a device, its number or name; None: the current one. priority: lower numbers go first;
    ``Stream.priority_range()`` says what there is. ``stream``: use this one (a handle or any object
    with ``__cuda_stream__``) instead of making one; it stays the property of its maker, who must
    keep it.
    """

    on_host: ClassVar[type[Stream] | None] = None
    """What this is where kernels are interpreted (``host_streams.py`` fills it in)."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stream:
        made = cls.on_host if cls is Stream and devices.interpreting() else None
        return object.__new__(made or cls)

    def __init__(self, device: Any = None, priority: int = 0, *, stream: Any = None) -> None:
        self.owned = stream is None
        self.device: CudaDevice = devices.cuda_of(device)
        if stream is None:
            self.device.activate()
            self.handle = int(cu.cuStreamCreateWithPriority(_NON_BLOCKING, int(priority)))
        else:
            self.handle = handle_of(stream)
            self.foreign = stream
        self.device.streams[self.handle] = self

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """(least, greatest) priority of streams: (0, -5)."""
        devices.current_cuda().activate()
        least, greatest = cu.cuCtxGetStreamPriorityRange()
        return int(least), int(greatest)

    @property
    def priority(self) -> int:
        """As the driver took it: cut to what there is."""
        return int(cu.cuStreamGetPriority(self.handle))

    @property
    def cuda_stream(self) -> int:
        """The handle, under torch's name."""
        return self.handle

    def __cuda_stream__(self) -> tuple[int, int]:
        """(version of the protocol, handle): other libraries take this object as their stream."""
        return (0, self.handle)

    def synchronize(self) -> None:
        """Wait until everything on this stream is done."""
        self.device.activate()
        cu.cuStreamSynchronize(self.handle)
        self.device.raise_reported()

    def query(self) -> bool:
        """Whether everything on this stream is done."""
        self.device.activate()
        return ready("cuStreamQuery", self.handle)

    def wait_stream(self, stream: Any) -> None:
        """Let what comes here wait for what is on ``stream`` now."""
        other = handle_of(stream)
        source = stream.device if isinstance(stream, Stream) else self.device
        if source is self.device:
            self.device.order(other, self.handle)
        else:
            Event().record(stream).wait(self)

    def wait_event(self, event: Event) -> None:
        """Let what comes here wait for ``event``."""
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        """An event (or ``event``) that is done when what is here now is."""
        return (event or Event()).record(self)

    def is_capturing(self) -> bool:
        """Whether a graph is being captured from this stream."""
        return bool(int(cu.cuStreamIsCapturing(self.handle)))

    def __enter__(self) -> Stream:
        outer = (devices.current_index(), self.device, self.device.current())
        _before.set((*_before.get(), outer))
        devices.select(self.device.index)
        self.device.set_current(self)
        return self

    def __exit__(self, *error: object) -> None:
        *rest, (index, device, stream) = _before.get()
        _before.set(tuple(rest))
        device.set_current(stream)
        devices.select(index)

    def __del__(self) -> None:
        if not getattr(self, "owned", False) or not hasattr(self, "handle") or sys.is_finalizing():
            return
        self.device.allocator.forget(self.handle)
        self.device.destroy("cuStreamDestroy", self.handle)  # what is on it is still done

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.handle == other.handle

    def __hash__(self) -> int:
        return hash(self.handle)

    def __repr__(self) -> str:
        return f"<Stream {self.handle:#x} on {self.device}>"


class Event:
    """A mark in a stream: wait for it, ask whether it was reached, measure between two.

    enable_timing: whether ``elapsed_time`` can be asked. blocking: whether ``synchronize`` sleeps
    instead of spinning. It belongs to the device of the stream that it is first recorded on.
    """

    on_host: ClassVar[type[Event] | None] = None
    """What this is where kernels are interpreted (``host_streams.py`` fills it in)."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Event:
        made = cls.on_host if cls is Event and devices.interpreting() else None
        return object.__new__(made or cls)

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.enable_timing = enable_timing
        self.flags = (0 if enable_timing else _DISABLE_TIMING) | (_BLOCKING_SYNC if blocking else 0)
        self.handle = 0
        self.device: CudaDevice | None = None

    def _made(self, device: CudaDevice) -> int:
        device.activate()
        if self.device is None:
            self.handle = int(cu.cuEventCreate(self.flags))
            self.device = device
        elif self.device is not device:
            raise wrong(
                "Event.record", f"the event belongs to {self.device}", got=f"a stream of {device}",
                error=RuntimeError,
            )  # fmt: skip
        return self.handle

    def record(self, stream: Any = None) -> Event:
        """Put the mark after what is on ``stream`` (the current one) now; returns itself."""
        device = stream.device if isinstance(stream, Stream) else devices.current_cuda()
        handle = device.current_stream.get() if stream is None else handle_of(stream)
        cu.cuEventRecord(self._made(device), handle)
        return self

    def wait(self, stream: Any = None) -> None:
        """Let what comes on ``stream`` (the current one) wait for the mark."""
        if self.device is None:
            return  # never recorded: there is nothing to wait for
        device = stream.device if isinstance(stream, Stream) else devices.current_cuda()
        handle = device.current_stream.get() if stream is None else handle_of(stream)
        device.activate()
        cu.cuStreamWaitEvent(handle, self.handle, 0)

    def synchronize(self) -> None:
        """Wait until the mark is reached."""
        if self.device is not None:
            cu.cuEventSynchronize(self.handle)
            self.device.raise_reported()

    def query(self) -> bool:
        """Whether the mark is reached (or was never set)."""
        return self.device is None or ready("cuEventQuery", self.handle)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this mark to ``end``. Both must be reached."""
        for which, event in (("the first", self), ("the second", end)):
            if not event.enable_timing:
                raise wrong(
                    "Event.elapsed_time", f"{which} event keeps no time", error=RuntimeError,
                    hint="make both with Event(enable_timing=True)",
                )  # fmt: skip
            if event.device is None:
                raise wrong(
                    "Event.elapsed_time", f"{which} event was not recorded", error=RuntimeError
                )
            if not event.query():
                raise wrong(
                    "Event.elapsed_time", f"{which} event is not reached yet", error=RuntimeError,
                    hint="call synchronize() first",
                )  # fmt: skip
        return float(cu.cuEventElapsedTime(self.handle, end.handle))

    def __del__(self) -> None:
        device = getattr(self, "device", None)
        if device is not None and not sys.is_finalizing():
            device.destroy("cuEventDestroy", self.handle)

    def __repr__(self) -> str:
        return f"<Event {self.handle:#x}>" if self.handle else "<Event, not recorded>"
