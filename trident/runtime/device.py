"""What every device with kernels can do, and which one ``cuda`` is in this process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import config, shapes
from ..dtypes import dtype as DType
from ..dtypes import from_numpy
from ..errors import DeviceError
from ..shapes import Shape
from .array import Buffer, DeviceArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..lang import Jit
    from .host import HostDevice


class Device:
    """A place that holds buffers and runs Triton kernels. Subclasses: HostDevice, AotDevice."""

    type = "cuda"
    index = 0
    interpreted = False
    capability: tuple[int, int] = (0, 0)
    """Compute capability, (9, 0) for sm_90; (0, 0) in the interpreter. Launchers choose by it."""
    plans = False
    """Whether what an op launches here can be recorded and repeated (``plan.py``)."""
    multiprocessors = 1
    """How many programs run side by side at least: what persistent kernels size their grid by."""

    @property
    def architecture(self) -> str:
        """``sm_90``, or ``host`` for the interpreter: what tuned configurations are kept by."""
        return f"sm_{self.capability[0]}{self.capability[1]}" if any(self.capability) else "host"

    def allocate(self, nbytes: int) -> Buffer:
        raise TypeError(f"{type(self).__name__} does not allocate")

    def launch(
        self, kernel: Jit, grid: tuple[int, ...], args: tuple, constexprs: dict, options: dict
    ) -> None:
        raise TypeError(f"{type(self).__name__} does not launch")

    def copy_in(self, target: DeviceArray, source: np.ndarray) -> None:
        raise TypeError(f"{type(self).__name__} does not copy")

    def to_host(self, array: DeviceArray) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} does not copy")

    def synchronize(self) -> None:
        """Wait until everything that was launched is done."""

    def empty(self, shape: Shape, dtype: DType) -> DeviceArray:
        """A contiguous, uninitialised array."""
        buffer = self.allocate(max(shapes.numel(shape), 1) * dtype.itemsize)
        return DeviceArray(buffer, shape, shapes.contiguous_strides(shape), dtype)

    def from_host(self, source: np.ndarray) -> DeviceArray:
        """A contiguous copy of a numpy array on this device."""
        target = self.empty(source.shape, from_numpy(source.dtype))
        self.copy_in(target, source)
        return target

    def __repr__(self) -> str:
        return f"{self.type}:{self.index}"


_current: Device | None = None
_host: HostDevice | None = None


def host_device() -> HostDevice:
    """The host device of this process, made at first use."""
    global _host
    if _host is None:
        from .host import HostDevice

        _host = HostDevice()
    return _host


def current() -> Device:
    """The ``cuda`` device of this process. Raises DeviceError, with the way out, where there is
    none.
    """
    if _current is not None:
        return _current
    if not config.INTERPRET and config.interpreting.get() is None:
        raise DeviceError(
            "device 'cuda': this version of trident runs its kernels through Triton's interpreter "
            "only; use it inside `with trident.interpret():`, set TRITON_INTERPRET=1 before Python "
            "starts, or use device='cpu'"
        )
    return host_device()


def is_available() -> bool:
    """Whether ``current()`` would give a device."""
    if _current is not None:
        return True
    from ..lang import has_triton

    return (config.INTERPRET or config.interpreting.get() is not None) and has_triton()


@contextmanager
def use(device: Device) -> Iterator[Device]:
    """Let ``device`` be the ``cuda`` device inside the block (ahead-of-time compilation, tests)."""
    global _current
    before, _current = _current, device
    try:
        yield device
    finally:
        _current = before


def launch(
    kernel: Jit,
    grid: tuple[int, ...],
    *args: Any,
    num_warps: int = 4,
    num_stages: int = 3,
    **constexprs: Any,
) -> None:
    """Start ``kernel`` on the device of its first array argument.

    ``args`` are the kernel's leading parameters in order: DeviceArray (passed as pointer to its
    first element), int, float, or None for an absent pointer. ``constexprs`` are its
    ``tl.constexpr`` parameters by name. A grid with a zero never launches. Inside
    ``trident.interpret()`` numpy arrays are passed too: the kernel runs on their memory.
    """
    if 0 in grid:
        return
    for a in args:
        if isinstance(a, DeviceArray):
            options = {"num_warps": num_warps, "num_stages": num_stages}
            a.buffer.device.launch(kernel, grid, args, constexprs, options)
            return
    if not any(isinstance(a, np.ndarray) for a in args):
        raise TypeError(f"launch: {kernel.name} got no DeviceArray among its arguments")
    if config.interpreting.get() is None:
        raise DeviceError(
            f"{kernel.name}: kernels do not run on CPU memory; got arrays of the cpu. To run it "
            "through Triton's interpreter, launch it inside `with trident.interpret():`, or set "
            "TRITON_INTERPRET=1 before Python starts and move the tensors with .to('cuda')"
        )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    host_device().launch(kernel, grid, args, constexprs, options)
