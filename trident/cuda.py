"""The ``cuda`` device under the names of ``torch.cuda``: which GPUs there are, their memory, their
streams and events.

Where kernels are interpreted (TRITON_INTERPRET=1, or inside ``trident.interpret()``) the one device
is the host: its memory is what the figures are about, and streams are done at once. Functions that
only report (``is_available``, ``device_count``, ``memory_allocated``) do not start a GPU; the
others raise DeviceError where there is none, with the way out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import devices, runtime
from .creation import initial_seed as initial_seed
from .creation import manual_seed as _manual_seed
from .creation import seed as seed
from .errors import DeviceError, missing_name, wrong
from .errors import OutOfMemoryError as OutOfMemoryError
from .legacy import CUDA_TYPES
from .runtime import device as _gpus
from .runtime import host_streams, memory_report
from .runtime.stream import Event as Event
from .runtime.stream import Stream

if TYPE_CHECKING:
    from .runtime import Device

# ---- which devices there are --------------------------------------------------------------------


def is_available() -> bool:
    """Whether tensors can be made on 'cuda': on a GPU, or in Triton's interpreter."""
    return runtime.is_available()


def device_count() -> int:
    """How many GPUs there are (1 in the interpreter)."""
    return _gpus.count()


def is_initialized() -> bool:
    """Whether the device was used in this process."""
    return _gpus.is_started()


def init() -> None:
    """Start the current device now instead of at first use."""
    runtime.current()


def _device(name: str, device: Any) -> Device:
    """The runtime's device for what ``torch.cuda`` takes as one: None (the current), a number, a
    name, a ``trident.device``."""
    index = _index(name, device)
    return runtime.current() if index is None else _gpus.numbered(index)


def _index(name: str, device: Any) -> int | None:
    if device is None:
        return None
    if isinstance(device, runtime.Device):
        return device.index
    if isinstance(device, int):
        index: int | None = int(device)
    else:
        place = devices.as_device(device)
        if place.type != "cuda":
            raise wrong(
                f"cuda.{name}", "expected a cuda device, its number or None", got=str(device),
                error=DeviceError,
            )  # fmt: skip
        index = place.index
    if index is not None and not 0 <= index < max(_gpus.count(), 1):
        raise wrong(
            f"cuda.{name}", f"expected the number of a device, below {_gpus.count()}", got=index,
            error=DeviceError,
        )  # fmt: skip
    return index


def current_device() -> int:
    """The number of the device that 'cuda' means here."""
    return runtime.current().index


def set_device(device: Any) -> None:
    """Let 'cuda' mean ``device`` from here on (in this thread). A negative number does nothing."""
    if isinstance(device, int) and device < 0:
        return
    index = _index("set_device", device)
    if index is not None:
        _device("set_device", index)  # raises where there is none
        _gpus.select(index)


class device:
    """``with device(1):`` lets 'cuda' mean that device inside. None and -1 change nothing.

    >>> with trident.cuda.device(None):
    ...     x = trident.ones(2)
    """

    def __init__(self, device: Any) -> None:
        keeps = isinstance(device, int) and device < 0
        self.idx = -1 if keeps or device is None else _index("device", device)
        self.prev_idx = -1

    def __enter__(self) -> None:
        self.prev_idx = _gpus.current_index()
        if self.idx is not None:
            set_device(self.idx)

    def __exit__(self, *error: object) -> None:
        _gpus.select(self.prev_idx)


class device_of(device):
    """``with device_of(x):`` lets 'cuda' mean the device of the tensor ``x`` inside; nothing for a
    CPU tensor."""

    def __init__(self, obj: Any) -> None:
        super().__init__(obj.get_device() if obj.is_cuda else -1)


@dataclass(frozen=True)
class DeviceProperties:
    """What a GPU is: its name, compute capability, bytes of memory, and sizes that kernels are
    chosen by."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    warp_size: int
    max_threads_per_multi_processor: int
    regs_per_multiprocessor: int
    shared_memory_per_block: int
    shared_memory_per_block_optin: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int
    is_integrated: int


def get_device_properties(device: Any = None) -> DeviceProperties:
    """Name, compute capability, memory and sizes of a device. In the interpreter, those of the
    host, and 0 where a host has no such thing."""
    d: Any = _device("get_device_properties", device)
    if d.interpreted:
        return DeviceProperties(_INTERPRETER, 0, 0, _host_memory()[1], 1, 1, 0, 0, 0, 0, 0, 0, 1)
    from .runtime.libcuda import attribute

    def read(name: str) -> int:
        return attribute(d.ordinal, name)

    major, minor = d.capability
    return DeviceProperties(
        d.name,
        major,
        minor,
        d.total_memory,
        d.multiprocessors,
        read("WARP_SIZE"),
        read("MAX_THREADS_PER_MULTIPROCESSOR"),
        read("MAX_REGISTERS_PER_MULTIPROCESSOR"),
        read("MAX_SHARED_MEMORY_PER_BLOCK"),
        d.shared_memory,
        read("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR"),
        read("L2_CACHE_SIZE"),
        read("INTEGRATED"),
    )


_INTERPRETER = "Triton interpreter on host memory"


def get_device_name(device: Any = None) -> str:
    """'NVIDIA H100 80GB HBM3'."""
    d: Any = _device("get_device_name", device)
    return _INTERPRETER if d.interpreted else getattr(d, "name", str(d))


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """(9, 0) for an H100; (0, 0) in the interpreter."""
    return _device("get_device_capability", device).capability


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether bfloat16 can be computed with: in hardware from compute capability 8.0 on."""
    if not is_available():
        return False
    d = runtime.current()
    return d.capability >= (8, 0) or (including_emulation and d.interpreted)


def can_device_access_peer(device: Any, peer_device: Any) -> bool:
    """Whether copies between two devices need not go through the host."""
    a, b = (_device("can_device_access_peer", d) for d in (device, peer_device))
    if a is b or a.interpreted:
        return False
    reaches: bool = a.reaches(b)  # type: ignore[attr-defined]
    return reaches


# ---- memory -------------------------------------------------------------------------------------


def _allocator(name: str, device: Any) -> Any:
    """The allocator of a device, or None where the device was not used yet."""
    index = _index(name, device)
    return _gpus.allocator_of(index)


def memory_allocated(device: Any = None) -> int:
    """Bytes in live tensors, each rounded up to its block."""
    found = _allocator("memory_allocated", device)
    return found.allocated if found else 0


def max_memory_allocated(device: Any = None) -> int:
    """The most ``memory_allocated`` was since the start or ``reset_peak_memory_stats``."""
    found = _allocator("max_memory_allocated", device)
    return found.peak_allocated if found else 0


def memory_reserved(device: Any = None) -> int:
    """Bytes held of the driver: live tensors and what is cached for the next ones."""
    found = _allocator("memory_reserved", device)
    return found.reserved if found else 0


def max_memory_reserved(device: Any = None) -> int:
    """The most ``memory_reserved`` was since the start or ``reset_peak_memory_stats``."""
    found = _allocator("max_memory_reserved", device)
    return found.peak_reserved if found else 0


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let the peaks start from what there is now."""
    found = _allocator("reset_peak_memory_stats", device)
    if found:
        found.reset_peak()


_since: dict[int, dict[str, int]] = {}  # by allocator: what the totals were at their last reset


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Let the totals of ``memory_stats`` (allocated, freed, retries) start from 0."""
    found = _allocator("reset_accumulated_memory_stats", device)
    if found:
        _since[id(found)] = {k: v for k, v in found.stats().items() if _accumulates(k)}


def _accumulates(name: str) -> bool:
    return name.endswith((".allocated", ".freed")) or name.startswith("num_")


def memory_stats(device: Any = None) -> dict[str, int]:
    """The figures of the allocator, under torch's names: ``allocated_bytes.all.current``, ``peak``,
    ``allocated`` (in total) and ``freed``, the same of ``reserved_bytes``, of ``allocation`` and
    ``segment`` (in numbers), ``num_alloc_retries``, ``num_ooms``. Empty before first use.
    """
    found = _allocator("memory_stats", device)
    if not found:
        return {}
    since = _since.get(id(found), {})
    return {k: v - since.get(k, 0) for k, v in sorted(found.stats().items())}


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """``memory_stats`` as a table, and the largest live blocks with the lines that made them
    (``abbreviated``: without them)."""
    d = _device("memory_summary", device)
    name = f"{d}, {get_device_name(device)}"
    blocks = [] if abbreviated or d.interpreted else memory_report.live(d.allocator)
    return memory_report.summary(name, memory_stats(device), blocks)


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of the device, whoever uses them. In the interpreter, of the host."""
    d: Any = _device("mem_get_info", device)
    return _host_memory() if d.interpreted else d.memory.info()


def _host_memory() -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")


def empty_cache() -> None:
    """Return cached memory to the driver, for other programs (ours needs no call of it). Waits for
    the device."""
    for found in _gpus.allocators():
        found.empty_cache()


# ---- streams ------------------------------------------------------------------------------------


def synchronize(device: Any = None) -> None:
    """Wait for everything launched so far, on all streams. Returns at once where there is no
    device."""
    if runtime.is_available():
        _device("synchronize", device).synchronize()


def current_stream(device: Any = None) -> Stream:
    """The stream that work on ``device`` is put on here."""
    d: Any = _device("current_stream", device)
    return host_streams.current() if d.interpreted else d.current()


def default_stream(device: Any = None) -> Stream:
    """The stream that is current where no other was chosen: the device's own. It is not the
    driver's stream 0, which waits for all others."""
    d: Any = _device("default_stream", device)
    if d.interpreted:
        return host_streams.default()
    return d.streams.get(d.own_stream) or Stream(d, stream=d.own_stream)


def set_stream(stream: Stream | None) -> None:
    """Let ``stream`` be the current one of its device from here on, and its device the current."""
    if stream is None:
        return
    if isinstance(stream, host_streams.HostStream):
        host_streams.set_current(stream)
        return
    _gpus.select(stream.device.index)
    stream.device.set_current(stream)


@contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    """``with stream(s):`` puts what is launched inside on ``s``. None changes nothing."""
    if stream is None:
        yield
        return
    with stream:
        yield


def ExternalStream(stream_ptr: Any, device: Any = None) -> Stream:
    """A stream of another library, by its handle or an object with ``__cuda_stream__``."""
    return Stream(device, stream=stream_ptr)


def is_current_stream_capturing() -> bool:
    """Whether a graph is being captured from the current stream."""
    return is_initialized() and current_stream().is_capturing()


# ---- random numbers -----------------------------------------------------------------------------


def manual_seed(seed: int) -> None:
    """As ``trident.manual_seed``: there is one generator for all devices."""
    _manual_seed(seed)


manual_seed_all = manual_seed


def __getattr__(name: str) -> Any:
    if name in CUDA_TYPES:
        return CUDA_TYPES[name]
    own = [n for n, v in globals().items() if getattr(v, "__module__", "").startswith("trident")]
    raise missing_name("trident.cuda", name, [*own, *CUDA_TYPES])
