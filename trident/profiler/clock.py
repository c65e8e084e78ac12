"""Time on a GPU: two CUDA events around what is queued, read when it is done.

The first event is reached when the GPU gets to it. Where the host is slower than the GPU, that is
before the launch arrives, and the stretch holds the wait for it too (some microseconds).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..runtime.libcuda import cu, driver

if TYPE_CHECKING:
    from ..runtime.cuda_device import CudaDevice
    from ..runtime.device import Device
    from .session import Event


class Mark:
    """An event in a device's current stream."""

    def __init__(self, device: CudaDevice) -> None:
        device.activate()
        self.handle = int(cu.cuEventCreate(0))
        cu.cuEventRecord(self.handle, device.current_stream.get())

    def until(self, later: Mark) -> float:
        """Seconds from here to ``later``, which is waited for."""
        cu.cuEventSynchronize(later.handle)
        return float(cu.cuEventElapsedTime(self.handle, later.handle)) * 1e-3

    def __del__(self) -> None:
        if hasattr(self, "handle") and not sys.is_finalizing():
            driver().cuEventDestroy(self.handle)


class Zero:
    """A moment that is known on the clock of the GPU and on the host's."""

    def __init__(self, device: CudaDevice) -> None:
        device.activate()
        cu.cuStreamSynchronize(device.current_stream.get())
        self.mark = Mark(device)
        cu.cuEventSynchronize(self.mark.handle)
        self.time = time.perf_counter()


zeros: dict[Any, Zero] = {}
"""By device; emptied when hooks are put in place."""


class Span:
    """The stretch of a stream between two marks."""

    def __init__(self, device: CudaDevice) -> None:
        zero = zeros.get(device)
        if zero is None:
            zero = zeros[device] = Zero(device)
        self.zero = zero
        self.first = Mark(device)
        self.last: Mark | None = None
        self._seconds: float | None = None

    @property
    def seconds(self) -> float:
        """How long the GPU took; waits for it."""
        if self._seconds is None:
            self._seconds = self.first.until(self.last) if self.last is not None else 0.0
        return self._seconds

    @property
    def began(self) -> float:
        """When, on ``time.perf_counter``."""
        return self.zero.time + self.zero.mark.until(self.first)


@contextmanager
def spanned(event: Event, device: Device) -> Iterator[None]:
    """Measure what the block queues on ``device``, where that is a GPU and no graph is captured."""
    stream = getattr(device, "current_stream", None)
    if stream is None or not hasattr(device, "own_stream"):
        yield
        return
    device.activate()  # type: ignore[attr-defined]
    if int(cu.cuStreamIsCapturing(stream.get())):
        yield
        return
    event.span = span = Span(device)  # type: ignore[arg-type]
    yield
    span.last = Mark(device)  # type: ignore[arg-type]
