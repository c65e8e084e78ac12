"""Page-locked memory of the host: what a GPU reads and writes by itself, while Python goes on.

Arrays on it are ordinary numpy arrays. Their memory comes from an allocator of its own (locking
pages takes the driver long) and is used again after the copies that were started from or to it.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DeviceError, OutOfMemoryError
from . import libcuda
from .allocator import Block, CachingAllocator
from .device import current_cuda, interpreting, started
from .libcuda import cu
from .segments import OutOfMemory
from .virtual_memory import beside_capture

if TYPE_CHECKING:
    from ..shapes import Shape
    from .cuda_device import CudaDevice

_PORTABLE = 1
"""CU_MEMHOSTALLOC_PORTABLE: locked for the contexts of all devices."""


class HostMemory:
    """Page-locked memory as the allocator asks for it."""

    def alloc(self, nbytes: int) -> int:
        current_cuda().activate()
        with beside_capture():
            try:
                return int(cu.cuMemHostAlloc(nbytes, _PORTABLE))
            except OutOfMemoryError as error:
                raise OutOfMemory(str(error)) from None

    def free(self, ptr: int) -> None:
        current_cuda().activate()
        cu.cuMemFreeHost(ptr)

    def info(self) -> tuple[int, int]:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")

    def synchronize(self) -> None:
        for device in started():
            device.memory.synchronize()

    def record(self, stream: int) -> tuple[CudaDevice, int]:
        device = current_cuda()
        return device, device.memory.record(stream)

    def done(self, event: tuple[CudaDevice, int]) -> bool:
        device, mark = event
        return device.memory.done(mark)


allocator = CachingAllocator(HostMemory(), "the host's page-locked memory")
_HOST = -1
"""What stands for a stream: the host uses blocks in its own order."""


class _Bytes:
    """A block as numpy's array interface describes it; alive as long as an array is on it."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.__array_interface__ = {
            "data": (block.ptr, False), "shape": (block.nbytes,), "typestr": "|u1", "version": 3,
        }  # fmt: skip


def available() -> bool:
    """Whether there is a GPU that page-locked memory would be for."""
    return not interpreting() and libcuda.why_not() is None


def empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An uninitialised array on page-locked memory. Raises DeviceError where there is no GPU."""
    if not available():
        reason = libcuda.why_not() or "cuda is Triton's interpreter, which reads any memory"
        raise DeviceError(
            f"pin_memory: page-locked memory is for copies to a GPU, and there is none: {reason}. "
            "Leave pin_memory out"
        )
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory: Any = np.asarray(_Bytes(allocator.take(max(nbytes, 1), _HOST)))
    return np.ndarray(shape, dtype, buffer=memory)


def copy(array: np.ndarray) -> np.ndarray:
    """``array`` on page-locked memory."""
    target = empty(array.shape, array.dtype)
    target[...] = array
    return target


def _block(array: Any) -> Block | None:
    while isinstance(array, np.ndarray):
        array = array.base
    return array.block if isinstance(array, _Bytes) else None


def is_pinned(array: np.ndarray) -> bool:
    """Whether the memory of ``array`` is page-locked, by us or by another library."""
    if not started():  # nothing of ours can be, and asking would start the driver
        return False
    return _block(array) is not None or libcuda.pinned(array.ctypes.data)


def keep(array: np.ndarray, device: CudaDevice, stream: int) -> None:
    """A copy from or to ``array`` was put onto ``stream``: its memory stays until that is done.

    For ever, where the copy went into a graph: every replay does it again.
    """
    block = _block(array)
    if device.is_capturing():
        _of_graphs.append(array)
        return
    event = device, device.memory.record(stream)
    if block is not None:
        allocator.hold(block, event)
        return
    while _foreign and allocator.memory.done(_foreign[0][0]):
        _foreign.popleft()
    _foreign.append((event, array))


_foreign: deque[tuple[tuple[CudaDevice, int], np.ndarray]] = deque()  # of other libraries
_of_graphs: list[np.ndarray] = []
