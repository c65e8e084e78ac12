"""The host device: ``cuda`` under TRITON_INTERPRET=1 or inside ``trident.interpret()``.

Memory is numpy's; kernels run through Triton's interpreter (``interpreter.py``). ``host_window``
lets a kernel work on the memory of a CPU array.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import config
from ..dtypes import from_numpy
from ..errors import DeviceError, wrong
from . import interpreter
from .array import Buffer, DeviceArray
from .device import Device, host_device
from .reports import WORDS, Reports

if TYPE_CHECKING:
    from ..lang import Jit


class HostBuffer(Buffer):
    """Memory of the host device, counted while it is alive."""

    __slots__ = ()

    def __del__(self) -> None:
        self.device.allocator.give(self.nbytes)


class HostTally:
    """What is alive on the host device, with the names of ``CachingAllocator``'s figures. Nothing
    is cached: numpy frees."""

    def __init__(self) -> None:
        self.allocated = self.peak_allocated = 0
        self.takes = self.taken = self.live = 0

    def take(self, nbytes: int) -> None:
        self.takes += 1
        self.taken += nbytes
        self.live += 1
        self.allocated += nbytes
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def give(self, nbytes: int) -> None:
        self.live -= 1
        self.allocated -= nbytes

    @property
    def reserved(self) -> int:
        return self.allocated

    @property
    def peak_reserved(self) -> int:
        return self.peak_allocated

    def reset_peak(self) -> None:
        self.peak_allocated = self.allocated

    def empty_cache(self) -> None:
        """There is none."""

    def record_stream(self, block: Buffer, stream: int) -> None:
        """Everything is done at once here: nothing to wait for."""

    def stats(self) -> dict[str, int]:
        """The figures under the names that ``torch.cuda.memory_stats`` has for them."""
        found = {"allocation.all.current": self.live, "allocation.all.allocated": self.takes}
        found["allocation.all.freed"] = self.takes - self.live
        for kind in ("allocated_bytes", "reserved_bytes"):
            found[f"{kind}.all.current"] = self.allocated
            found[f"{kind}.all.peak"] = self.peak_allocated
            found[f"{kind}.all.allocated"] = self.taken
            found[f"{kind}.all.freed"] = self.taken - self.allocated
        return found


class HostDevice(Device):
    """Runs kernels through the interpreter on host memory, program by program."""

    interpreted = True
    multiprocessors = 2  # so that persistent kernels have programs beside each other

    def __init__(self) -> None:
        self.launches = 0
        self.allocator = HostTally()
        self._buffers: weakref.WeakSet[Buffer] = weakref.WeakSet()
        self._reports: Reports | None = None

    @property
    def reports(self) -> Reports | None:
        """None: launchers look at once. Reports where they work as on a GPU (in tests)."""
        if self.interpreted:
            return None
        if self._reports is None:
            words = np.empty(WORDS, np.int64)
            self._reports = Reports(self, words, words.ctypes.data)
            self._buffers.add(self._reports.array.buffer)
        return self._reports

    def allocate(self, nbytes: int) -> Buffer:
        # 16 spare bytes before the aligned start keep small overruns of a broken kernel visible
        raw = np.empty(nbytes + 32, np.uint8)
        start = -raw.ctypes.data % 16
        memory = raw[start : start + nbytes]
        if config.poison.get():
            memory.fill(0xFF)
        buffer = HostBuffer(self, raw.ctypes.data + start, nbytes, memory)
        self.allocator.take(nbytes)
        self._buffers.add(buffer)
        return buffer

    def _live(self) -> Iterator[tuple[int, int]]:
        return ((b.ptr, b.nbytes) for b in list(self._buffers))

    def launch(
        self, kernel: Jit, grid: tuple[int, ...], args: tuple, constexprs: dict, options: dict
    ) -> None:
        self.launches += 1
        lab = config.interpreting.get()
        if any(isinstance(a, np.ndarray) for a in args):
            if lab is None:
                raise DeviceError(
                    f"{kernel.name}: its arrays must be on one device; got cpu and {self}. Move "
                    "them with .to('cuda'), or launch inside `with trident.interpret():`"
                )
            args = tuple(host_window(a) if isinstance(a, np.ndarray) else a for a in args)
        if lab is None:
            interpreter.run(
                kernel, grid, args, constexprs, check=config.check_bounds.get(), live=self._live
            )
        else:
            done = interpreter.run(
                kernel, grid, args, constexprs, check=True, count=True, strict=True,
                stop=lab.stop, live=self._live,
            )  # fmt: skip
            lab.record(done)

    def window(self, array: DeviceArray) -> np.ndarray:
        """The memory of ``array`` as a numpy array (shared)."""
        item = array.dtype.itemsize
        return np.ndarray(
            array.shape,
            array.dtype.np,
            buffer=array.buffer.memory.data,
            offset=array.offset * item,
            strides=tuple(s * item for s in array.strides),
        )

    def copy_in(self, target: DeviceArray, source: np.ndarray, wait: bool = True) -> None:
        self.window(target)[...] = source

    def to_host(self, array: DeviceArray, wait: bool = True) -> np.ndarray:
        self.synchronize()
        return np.array(self.window(array), order="C", copy=True)

    def synchronize(self) -> None:
        if self._reports is not None:
            self._reports.raise_found()


class _Bytes:
    """The memory of an ndarray as numpy's array interface describes it."""

    def __init__(self, owner: np.ndarray, first: int, nbytes: int) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (first, not owner.flags.writeable),
            "shape": (nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


def host_window(array: np.ndarray) -> DeviceArray:
    """A DeviceArray on the memory of ``array``: what a kernel writes there is in the array.

    Kept alive by the result. Strides must be whole elements.

    >>> from trident.runtime import host_window
    >>> x = np.arange(6.0).reshape(2, 3)[:, ::-1]
    >>> w = host_window(x)
    >>> w.shape, w.strides
    ((2, 3), (3, -1))
    """
    item = array.itemsize
    if any(s % item for s, n in zip(array.strides, array.shape) if n > 1):
        raise wrong(
            "host_window", f"strides must be multiples of the item size, {item} bytes",
            got=array.strides, hint="copy the array with np.ascontiguousarray",
        )  # fmt: skip
    first = array.ctypes.data
    low = first + sum(min((n - 1) * s, 0) for n, s in zip(array.shape, array.strides) if n)
    high = first + sum(max((n - 1) * s, 0) for n, s in zip(array.shape, array.strides) if n) + item
    if not array.size:
        low = high = first
    memory: Any = np.asarray(_Bytes(array, low, high - low))
    buffer = Buffer(host_device(), low, high - low, memory)
    strides = tuple(s // item for s in array.strides)
    return DeviceArray(buffer, array.shape, strides, from_numpy(array.dtype), (first - low) // item)
