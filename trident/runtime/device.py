"""What every device with kernels can do, and which one ``cuda`` is: a GPU, or the host through
Triton's interpreter."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
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
    from .cuda_device import CudaDevice
    from .host import HostDevice
    from .reports import Reports


class Device:
    """A place that holds buffers and runs Triton kernels. Subclasses: CudaDevice, HostDevice,
    AotDevice."""

    type = "cuda"
    index = 0
    interpreted = False
    capability: tuple[int, int] = (0, 0)
    """Compute capability, (9, 0) for sm_90; (0, 0) in the interpreter. Launchers choose by it."""
    allocator: Any
    """Where its memory comes from, with the figures (``allocator.py``; on the host a tally)."""
    plans = False
    """Whether what an op launches here can be recorded and repeated (``plan.py``)."""
    multiprocessors = 1
    """How many programs run side by side at least: what persistent kernels size their grid by."""

    @property
    def reports(self) -> Reports | None:
        """Where kernels report bad indices (``reports.py``); None: their launchers look at once."""
        return None

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

    def copy_in(self, target: DeviceArray, source: np.ndarray, wait: bool = True) -> None:
        """Write a numpy array into memory of the device. ``wait=False``: from page-locked memory
        (``pinned.py``) the copy is only started; the source must keep its values meanwhile."""
        raise TypeError(f"{type(self).__name__} does not copy")

    def to_host(self, array: DeviceArray, wait: bool = True) -> np.ndarray:
        """A copy on the host. ``wait=False``: it is page-locked, and has its values once the
        stream is done."""
        raise TypeError(f"{type(self).__name__} does not copy")

    def synchronize(self) -> None:
        """Wait until everything that was launched is done."""

    def empty(self, shape: Shape, dtype: DType) -> DeviceArray:
        """A contiguous, uninitialised array."""
        buffer = self.allocate(max(shapes.numel(shape), 1) * dtype.itemsize)
        return DeviceArray(buffer, shape, shapes.contiguous_strides(shape), dtype)

    def empty_strided(self, shape: Shape, strides: Shape, dtype: DType) -> DeviceArray:
        """An uninitialised array whose strides leave no gaps (``shapes.is_dense``)."""
        buffer = self.allocate(max(shapes.numel(shape), 1) * dtype.itemsize)
        return DeviceArray(buffer, shape, strides, dtype)

    def from_host(self, source: np.ndarray, wait: bool = True) -> DeviceArray:
        """A contiguous copy of a numpy array on this device; ``wait`` as in ``copy_in``."""
        target = self.empty(source.shape, from_numpy(source.dtype))
        self.copy_in(target, source, wait)
        return target

    def from_device(self, source: DeviceArray) -> DeviceArray:
        """A contiguous copy of an array of another device on this one."""
        return self.from_host(source.device.to_host(source))

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


_gpus: dict[int, CudaDevice] = {}
_making = threading.Lock()
_index: ContextVar[int] = ContextVar("trident_device", default=0)


def cuda_device(index: int) -> CudaDevice:
    """GPU number ``index``, started at first use. Raises DeviceError where there is none."""
    device = _gpus.get(index)
    if device is None:
        from .cuda_device import CudaDevice

        with _making:
            device = _gpus.get(index)
            if device is None:
                device = _gpus[index] = CudaDevice(index)
    return device


def started() -> list[CudaDevice]:
    """The GPUs that this process has used so far."""
    return list(_gpus.values())


def is_started() -> bool:
    """Whether what ``cuda`` means here was used in this process."""
    return _host is not None if interpreting() else bool(_gpus)


def allocators() -> list[Any]:
    """The allocators of the devices that were used so far."""
    if _current is not None or interpreting():
        return [_host.allocator] if _host is not None else []
    return [d.allocator for d in started()]


def allocator_of(index: int | None) -> Any:
    """The allocator of a device (None: the current), or None where it was not used so far."""
    if _current is not None or interpreting():
        return _host.allocator if _host is not None else None
    device = _gpus.get(_index.get() if index is None else index)
    return None if device is None else device.allocator


def current_index() -> int:
    """The number of the GPU that ``cuda`` means in this context."""
    return _index.get()


def current_cuda() -> CudaDevice:
    """The GPU that ``cuda`` means in this context."""
    return cuda_device(_index.get())


def select(index: int) -> None:
    """Let ``cuda`` mean GPU number ``index`` in this context (a thread starts with 0)."""
    if index:
        cuda_device(index)  # raises where there is none
    _index.set(index)


def cuda_of(device: Any) -> CudaDevice:
    """The GPU that a device, its number or its name means; None: the current one."""
    if device is None:
        return current_cuda()
    if isinstance(device, Device):
        return device  # type: ignore[return-value]
    if not isinstance(device, int):
        text = str(device)
        name, _, number = text.partition(":")
        if name != "cuda" or (number and not number.isdigit()):
            raise DeviceError(f"expected a cuda device, 'cuda' or 'cuda:N'; got {text!r}")
        device = int(number) if number else _index.get()
    return cuda_device(device)


def interpreting() -> bool:
    """Whether ``cuda`` is the host here: TRITON_INTERPRET=1, or inside ``trident.interpret()``."""
    return config.INTERPRET or config.interpreting.get() is not None


def current() -> Device:
    """What ``cuda`` means here: the current GPU, or the host where kernels are interpreted. Raises
    DeviceError, with the ways out, where there is neither.
    """
    if _current is not None:
        return _current
    return host_device() if interpreting() else current_cuda()


def numbered(index: int | None) -> Device:
    """``current()``, or the GPU of that number."""
    if index is None or _current is not None or interpreting():
        return current()
    return cuda_device(index)


def count() -> int:
    """How many cuda devices there are: GPUs, or the one interpreter."""
    if _current is not None or interpreting():
        return int(is_available())
    from .libcuda import device_count

    return device_count()


def is_available() -> bool:
    """Whether ``current()`` would give a device."""
    if _current is not None:
        return True
    from ..lang import has_triton

    if interpreting():
        return has_triton()
    from .libcuda import why_not

    return why_not() is None


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
