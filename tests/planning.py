"""The interpreted device, with launch plans: what is repeated on a GPU, with values to compare."""

from __future__ import annotations

import weakref
from contextvars import ContextVar

import numpy as np

from trident import config, shapes
from trident.runtime.array import DeviceArray
from trident.runtime.host import HostDevice
from trident.runtime.plan import recording


class Bound:
    """A kernel with everything but addresses and numbers fixed, as ``CudaDevice`` binds it."""

    def __init__(self, device, kernel, args, constexprs, options):
        self.device = weakref.ref(device)
        self.kernel = kernel
        self.dtypes = [a.dtype if isinstance(a, DeviceArray) else None for a in args]
        self.constexprs, self.options = constexprs, options

    def start(self, x, y, z, stream, args):
        device = self.device()
        device.repeated += 1
        given = tuple(a if d is None else device.at(a, d) for a, d in zip(args, self.dtypes))
        token = config.check_bounds.set(False)  # `given` begins at the address: strides may be < 0
        try:
            HostDevice.launch(device, self.kernel, (x, y, z), given, self.constexprs, self.options)
        finally:
            config.check_bounds.reset(token)


class PlanningHost(HostDevice):
    """HostDevice with launch plans. ``repeated`` counts the launches that came from plans."""

    plans = True

    def __init__(self):
        super().__init__()
        self.current_stream = ContextVar("stream", default=0)
        self.repeated = 0

    def at(self, address, dtype):
        """The rest of the buffer from ``address`` on, as an array of ``dtype``."""
        for b in list(self._buffers):
            if b.ptr <= address < b.ptr + max(b.nbytes, 1):
                n = (b.ptr + b.nbytes - address) // dtype.itemsize
                first = (address - b.ptr) // dtype.itemsize
                return DeviceArray(b, (n,), shapes.contiguous_strides((n,)), dtype, first)
        raise AssertionError(f"a plan passed {address:#x}, which lies in no live buffer")

    def allocate(self, nbytes):
        buffer = super().allocate(nbytes)
        if (rec := recording.get()) is not None:
            rec.allocate(buffer)
        return buffer

    def launch(self, kernel, grid, args, constexprs, options):
        super().launch(kernel, grid, args, constexprs, options)
        if (rec := recording.get()) is not None:
            x, y, z = (*grid, 1, 1)[:3]
            rec.launch(Bound(self, kernel, args, constexprs, options), (x, y, z), args)

    def copy_in(self, target, source, wait=True):
        if (rec := recording.get()) is not None:
            rec.leave()
        super().copy_in(target, source, wait)

    def to_host(self, array, wait=True) -> np.ndarray:
        if (rec := recording.get()) is not None:
            rec.leave()
        return super().to_host(array, wait)
