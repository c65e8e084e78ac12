"""An NVIDIA GPU as a device: memory, copies, launches. No torch anywhere.

Everything is queued on the current stream of the context (``current_stream``), and only what needs
values on the host waits, for that stream alone.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import config
from ..errors import DeviceError, OutOfMemoryError, wrong
from . import aot, bound, libcuda, pinned
from .allocator import CachingAllocator
from .array import Buffer, DeviceArray
from .device import Device
from .libcuda import cu
from .plan import recording
from .reports import WORDS, Reports
from .segments import OutOfMemory
from .virtual_memory import VirtualRanges, beside_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..lang import Jit
    from .stream import Stream

_local = threading.local()
"""``device``: whose context was last made current in this thread by us."""

_INT32 = 2**31


class DriverMemory(VirtualRanges):
    """Memory of a GPU as the allocator asks for it."""

    def __init__(self, device: CudaDevice) -> None:
        super().__init__(device)
        self.events: list[int] = []

    def alloc(self, nbytes: int) -> int:
        self.device.activate()
        with beside_capture():
            try:
                return int(cu.cuMemAlloc(nbytes))
            except OutOfMemoryError as error:
                raise OutOfMemory(str(error)) from None

    def free(self, ptr: int) -> None:
        self.device.activate()
        cu.cuMemFree(ptr)

    def info(self) -> tuple[int, int]:
        self.device.activate()
        free, total = cu.cuMemGetInfo()
        return int(free), int(total)

    def synchronize(self) -> None:
        self.device.activate()
        cu.cuCtxSynchronize()

    def record(self, stream: int) -> int:
        with self.device.briefly():  # finalisers come here, between any two calls of others
            event = self.event()
            cu.cuEventRecord(event, stream)
        return event

    def done(self, event: int) -> bool:
        if not libcuda.ready("cuEventQuery", event):
            return False
        self.events.append(event)
        return True

    def event(self) -> int:
        """An event of this device without a time; ``events`` takes it back."""
        try:
            return self.events.pop()
        except IndexError:
            return int(cu.cuEventCreate(2))  # CU_EVENT_DISABLE_TIMING


class CudaDevice(Device):
    """GPU number ``index``. Made by ``device.cuda_device``, once each, which starts CUDA there.

    ``current_stream`` holds the handle of the context's stream; ``take(nbytes, stream)`` gives a
    buffer for work on a stream; ``name``, ``total_memory`` and ``shared_memory`` (the most that one
    program can have) are in bytes.
    """

    plans = True

    def __init__(self, index: int) -> None:
        count = libcuda.device_count()
        if not 0 <= index < count:
            libcuda.driver()  # raises where there is none at all
            raise DeviceError(
                f"device: there is no cuda:{index}; this machine has {count} GPU(s), "
                f"cuda:0{f' to cuda:{count - 1}' if count > 1 else ''}"
            )
        self.index = index
        self.local = _local
        self.ordinal = int(cu.cuDeviceGet(index))
        self.context = int(cu.cuDevicePrimaryCtxRetain(self.ordinal))
        self.activate()
        read = lambda name: libcuda.attribute(self.ordinal, name)  # noqa: E731
        self.capability = (read("COMPUTE_CAPABILITY_MAJOR"), read("COMPUTE_CAPABILITY_MINOR"))
        self.multiprocessors = read("MULTIPROCESSOR_COUNT")
        self.shared_memory = read("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self.name: str = cu.cuDeviceGetName(256, self.ordinal).split(b"\0")[0].decode().strip()
        self.total_memory = int(cu.cuDeviceTotalMem(self.ordinal))
        self.own_stream = int(cu.cuStreamCreate(1))  # CU_STREAM_NON_BLOCKING
        self.current_stream: ContextVar[int] = ContextVar(
            f"trident_stream_{index}", default=self.own_stream
        )
        self._stream: ContextVar[Stream | None] = ContextVar(
            f"trident_stream_object_{index}", default=None
        )
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.memory = DriverMemory(self)
        self.allocator = CachingAllocator(self.memory, self)
        self.take = self.allocator.take
        self._retired: list[int] = []
        self._peers: dict[int, bool] = {}
        self._reports: Reports | None = None

    # ---- contexts and streams -------------------------------------------------------------------

    def activate(self) -> None:
        """Make this device's context current in this thread."""
        cu.cuCtxSetCurrent(self.context)
        _local.device = self

    @contextmanager
    def briefly(self) -> Iterator[None]:
        """With this device's context current, and what was current before afterwards."""
        cu.cuCtxPushCurrent(self.context)
        try:
            yield
        finally:
            cu.cuCtxPopCurrent()

    def destroy(self, call: str, handle: int) -> None:
        """Give a handle back from a finaliser: nothing is raised, in a forked process or at the end
        of this one."""
        d = libcuda.driver()
        if not int(d.cuCtxPushCurrent(self.context)[0]):
            getattr(d, call)(handle)
            d.cuCtxPopCurrent()

    def is_current(self) -> bool:
        """Whether this device's context is current in this thread."""
        return int(cu.cuCtxGetCurrent()) == self.context

    def current(self) -> Stream:
        """The current stream of this context as an object."""
        from .stream import Stream

        handle = self.current_stream.get()
        stream = self._stream.get()
        if stream is None or stream.handle != handle:
            stream = self.streams.get(handle) or Stream(self, stream=handle)
        return stream

    def set_current(self, stream: Stream) -> None:
        """Let ``stream`` be the current one in this context."""
        self.current_stream.set(stream.handle)
        self._stream.set(stream)  # keeps it alive

    def is_capturing(self) -> bool:
        """Whether a graph is being captured from the current stream."""
        return bool(int(cu.cuStreamIsCapturing(self.current_stream.get())))

    def order(self, before: int, after: int) -> None:
        """Let what comes on the stream ``after`` wait for what is on ``before`` now."""
        if before == after:
            return
        self.activate()
        event = self.memory.event()
        cu.cuEventRecord(event, before)
        cu.cuStreamWaitEvent(after, event, 0)
        self.memory.events.append(event)

    def synchronize(self) -> None:
        """Wait for everything on all streams of the device."""
        self._leave_recording()
        self.activate()
        cu.cuCtxSynchronize()
        while self._retired:
            cu.cuModuleUnload(self._retired.pop())
        self.raise_reported()

    def retire(self, module: int) -> None:
        """Unload a module when nothing can be running from it: at the next ``synchronize``. Called
        by finalisers, which may run at any time, inside of a capture too."""
        self._retired.append(module)

    # ---- memory ---------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> Buffer:
        stream = self.current_stream.get()
        block = self.take(nbytes, stream)
        if config.poison.get():
            self.activate()
            cu.cuMemsetD8Async(block.ptr, 0xFF, nbytes, stream)
        rec = recording.get()
        if rec is not None:
            rec.allocate(block)
        return block

    def copy_in(self, target: DeviceArray, source: np.ndarray, wait: bool = True) -> None:
        self._leave_recording()
        host = np.broadcast_to(np.asarray(source, target.dtype.np), target.shape)
        if not host.size:
            return
        axes = _dense(target)
        if axes is None:  # strided: a contiguous copy, then a kernel
            whole = self.empty(target.shape, target.dtype)
            self.copy_in(whole, host, wait)
            target.assign(whole)
            return
        host = np.ascontiguousarray(host.transpose(axes))
        stream = self.current_stream.get()
        self.activate()
        at = host.ctypes.data
        locked = libcuda.pinned(at)
        if not locked and self.is_capturing():
            raise DeviceError(
                f"{self}: values of the host cannot be copied while a graph is captured, as every "
                "replay would read that memory again. Make the tensor before the capture, or copy "
                "from pinned memory (x.pin_memory())"
            )
        cu.cuMemcpyHtoDAsync(target.ptr, at, host.nbytes, stream)
        if locked:  # other memory was read when the call returned
            if wait:
                cu.cuStreamSynchronize(stream)
            else:
                pinned.keep(host, self, stream)

    def to_host(self, array: DeviceArray, wait: bool = True) -> np.ndarray:
        self._leave_recording()
        axes = _dense(array)
        if axes is None:
            array = array.contiguous()
            axes = tuple(range(array.ndim))
        shape = tuple(array.shape[a] for a in axes)
        host = np.empty(shape, array.dtype.np) if wait else pinned.empty(shape, array.dtype.np)
        self.read_into(host, array, wait)
        if axes != tuple(range(array.ndim)):
            host = host.transpose(np.argsort(axes))
            return np.ascontiguousarray(host) if wait else host
        return host

    def read_into(self, host: np.ndarray, array: DeviceArray, wait: bool) -> None:
        """Copy an array's dense memory into the contiguous ``host``, which is page-locked where
        ``wait`` is False."""
        if not host.size:
            return
        stream = self.current_stream.get()
        self.activate()
        cu.cuMemcpyDtoHAsync(host.ctypes.data, array.ptr, host.nbytes, stream)
        if wait:
            cu.cuStreamSynchronize(stream)
            self.raise_reported()
        else:
            pinned.keep(host, self, stream)

    def from_device(self, source: DeviceArray) -> DeviceArray:
        """A contiguous copy on this device of an array on any other."""
        other = source.device
        if not isinstance(other, CudaDevice):
            return self.from_host(other.to_host(source))
        self._leave_recording()
        source = source.contiguous()
        target = self.empty(source.shape, source.dtype)
        if source.size:
            here, there = self.current().record_event, other.current()
            there.wait_event(here())  # the target's memory may still be in use here
            other.activate()
            cu.cuMemcpyPeerAsync(
                target.ptr, self.context, source.ptr, other.context, source.nbytes, there.handle
            )
            self.current().wait_event(there.record_event())
            self.activate()
        return target

    def reaches(self, other: CudaDevice) -> bool:
        """Whether copies go from ``other`` to here without the host."""
        if other is self:
            return True
        known = self._peers.get(other.index)
        if known is None:
            known = bool(int(cu.cuDeviceCanAccessPeer(self.ordinal, other.ordinal)))
            self._peers[other.index] = known
        return known

    @property
    def reports(self) -> Reports:
        """Memory of the host that kernels write to when they find a bad index."""
        if self._reports is None:
            self.activate()
            with beside_capture():
                at = int(cu.cuMemHostAlloc(8 * WORDS, 3))  # portable, and mapped for kernels
            address = int(cu.cuMemHostGetDevicePointer(at, 0))
            words = np.ctypeslib.as_array((ctypes.c_int64 * WORDS).from_address(at))
            self._reports = Reports(self, words, address)
        return self._reports

    def raise_reported(self) -> None:
        """Raise what kernels reported. The caller has waited for them."""
        if self._reports is not None:
            self._reports.raise_found()

    def _leave_recording(self) -> None:
        rec = recording.get()
        if rec is not None:
            rec.leave()

    # ---- kernels --------------------------------------------------------------------------------

    def bind(self, specialization: aot.Specialization) -> bound.Bound:
        """The kernel compiled, loaded and checked for this device."""
        return bound.bind(self, specialization)

    def launch(
        self, kernel: Jit, grid: tuple[int, ...], args: tuple, constexprs: dict, options: dict
    ) -> None:
        kinds: list[Any] = [self.index]
        values: list[Any] = []
        for a in args:
            if isinstance(a, DeviceArray):
                if a.buffer.device is not self:
                    raise DeviceError(
                        f"{kernel.name}: its arrays must be on one device; got {self} and "
                        f"{a.buffer.device}. Move one with .to('{self}')"
                    )
                ptr = a.ptr
                kinds.append(a.dtype)
                kinds.append(ptr % 16 == 0)
                values.append(ptr)
            elif a is None:
                kinds.append(None)
                values.append(None)
            elif isinstance(a, np.ndarray):
                raise DeviceError(
                    f"{kernel.name}: its arrays must be on one device; got cpu and {self}. Move "
                    f"them with .to('{self}')"
                )
            elif isinstance(a, float):
                kinds.append(float)
                values.append(a)
            elif isinstance(a, (int, np.integer)):
                kinds.append(a if a == 1 else (a % 16 == 0, -_INT32 <= a < _INT32))
                values.append(a)
            else:
                raise wrong(
                    kernel.name, f"argument {len(values)} must be an array, an int, a float or "
                    "None", got=type(a).__name__, error=TypeError,
                )  # fmt: skip
        key = (*kinds, *map(_constant, constexprs.items()), *options.items())
        x, y, z = (*grid, 1, 1)[:3]
        found = kernel.bound.get(key)
        fresh = found is None
        if found is None:
            found = self.bind(aot.specialize(kernel, args, constexprs, options))
        constants = (None,) * (len(found.signature) - len(values))
        full = (*values, *constants)
        if fresh:
            found.check((x, y, z), full)
            kernel.bound[key] = found
        found.start(x, y, z, self.current_stream.get(), full)
        rec = recording.get()
        if rec is not None:
            rec.launch(found, (x, y, z), (*args, *constants))


def _constant(item: tuple[str, Any]) -> tuple:
    """A constexpr as a key: 1, 1.0 and True are three, and so are 0.0 and -0.0."""
    name, value = item
    return (name, value.hex() if isinstance(value, float) else value, type(value))


def _dense(array: DeviceArray) -> tuple[int, ...] | None:
    """The order of axes in which ``array`` is contiguous; None where it is in none."""
    if array.is_contiguous():
        return tuple(range(array.ndim))
    axes = tuple(sorted(range(array.ndim), key=lambda a: (-array.strides[a], a)))
    return axes if array.transpose(axes).is_contiguous() else None
