"""Memory of a GPU behind addresses that were reserved first, so that a pool grows without gaps.

The allocator's segments then lie in a row, and freed neighbours of two segments make one block:
measured on training steps, this saves up to a quarter of the memory (``docs/architecture.md``).

Source: CUDA driver API, "Virtual Memory Management"; PyTorch's expandable segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .. import config
from ..errors import CudaError, OutOfMemoryError
from . import libcuda
from .libcuda import cu
from .segments import SEGMENT_GRAIN, OutOfMemory

if TYPE_CHECKING:
    from .cuda_device import CudaDevice


@contextmanager
def beside_capture() -> Iterator[None]:
    """Fresh memory is not part of a graph that is being captured, and may be had meanwhile."""
    modes = libcuda.driver().CUstreamCaptureMode
    before = cu.cuThreadExchangeStreamCaptureMode(modes.CU_STREAM_CAPTURE_MODE_RELAXED)
    try:
        yield
    finally:
        cu.cuThreadExchangeStreamCaptureMode(before)


class VirtualRanges:
    """The ``VirtualMemory`` half of a GPU's memory. ``granularity`` is 0 where the device cannot
    do it, or TRIDENT_VIRTUAL_MEMORY=0 says not to."""

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        driver = libcuda.driver()
        self._property = driver.CUmemAllocationProp()
        self._property.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        place = self._property.location
        place.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        place.id = device.ordinal
        self._access = driver.CUmemAccessDesc()
        self._access.location = place
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self.granularity = self._works() if config.VIRTUAL_MEMORY else 0

    def _works(self) -> int:
        """The granularity, after one page was had and given back; 0 where anything is refused."""
        supported = "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"
        if not libcuda.attribute(self.device.ordinal, supported):
            return 0
        smallest = libcuda.driver().CUmemAllocationGranularity_flags
        try:
            found = int(
                cu.cuMemGetAllocationGranularity(
                    self._property, smallest.CU_MEM_ALLOC_GRANULARITY_MINIMUM
                )
            )
            if SEGMENT_GRAIN % found:
                return 0
            ptr = self.reserve(SEGMENT_GRAIN)
            try:
                self.back(ptr, SEGMENT_GRAIN)
                self.unback(ptr, SEGMENT_GRAIN)
            finally:
                self.unreserve(ptr, SEGMENT_GRAIN)
        except (CudaError, OutOfMemory, OutOfMemoryError):
            return 0
        return found

    def reserve(self, nbytes: int) -> int:
        self.device.activate()
        return int(cu.cuMemAddressReserve(nbytes, SEGMENT_GRAIN, 0, 0))

    def unreserve(self, ptr: int, nbytes: int) -> None:
        self.device.activate()
        cu.cuMemAddressFree(ptr, nbytes)

    def back(self, ptr: int, nbytes: int) -> None:
        self.device.activate()
        with beside_capture():
            try:
                memory = cu.cuMemCreate(nbytes, self._property, 0)
            except OutOfMemoryError as error:
                raise OutOfMemory(str(error)) from None
            try:
                cu.cuMemMap(ptr, nbytes, 0, memory, 0)
            finally:
                cu.cuMemRelease(memory)  # the mapping holds it from here on
            try:
                cu.cuMemSetAccess(ptr, nbytes, [self._access], 1)
            except BaseException:
                cu.cuMemUnmap(ptr, nbytes)
                raise

    def unback(self, ptr: int, nbytes: int) -> None:
        self.device.activate()
        cu.cuMemUnmap(ptr, nbytes)
