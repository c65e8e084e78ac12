"""The device beside the CPU under the names of ``torch.accelerator``: 'cuda', where there is one.

>>> trident.accelerator.current_accelerator() is None or trident.accelerator.is_available()
True
"""

from __future__ import annotations

from typing import Any

from . import cuda
from .cuda import (
    device_count,
    empty_cache,
    is_available,
    max_memory_allocated,
    max_memory_reserved,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
    set_stream,
)
from .devices import device as Device
from .errors import DeviceError, missing_name


def _there_is_one(name: str) -> None:
    if not cuda.is_available():
        raise DeviceError(
            f"accelerator.{name}: there is none here (trident.accelerator.is_available() is False)"
        )


def current_accelerator(check_available: bool = False) -> Device | None:
    """The device 'cuda' (without a number), or None where there is none. It is always checked;
    ``check_available`` changes nothing."""
    return Device("cuda") if cuda.is_available() else None


def current_device_index() -> int:
    """The number of the current device."""
    _there_is_one("current_device_index")
    return cuda.current_device()


def set_device_index(device: Any) -> None:
    """Let 'cuda' mean ``device`` from here on."""
    _there_is_one("set_device_index")
    cuda.set_device(device)


class device_index(cuda.device):
    """``with device_index(1):`` as ``cuda.device``; None changes nothing."""


def synchronize(device: Any = None) -> None:
    """Wait for everything launched so far on ``device``."""
    _there_is_one("synchronize")
    cuda.synchronize(device)


def current_stream(device: Any = None) -> cuda.Stream:
    """The stream that work on ``device`` is put on here."""
    _there_is_one("current_stream")
    return cuda.current_stream(device)


def get_memory_info(device: Any = None) -> tuple[int, int]:
    """(free, total) bytes of the device."""
    _there_is_one("get_memory_info")
    return cuda.mem_get_info(device)


def get_device_capability(device: Any = None) -> dict[str, Any]:
    """``{"supported_dtypes": {...}}``: the dtypes that tensors on the device may have."""
    from .dtypes import FROM_NUMPY

    _there_is_one("get_device_capability")
    return {"supported_dtypes": set(FROM_NUMPY.values())}


current_device_idx = current_device_index
set_device_idx = set_device_index

__all__ = [
    "current_accelerator",
    "current_device_idx",
    "current_device_index",
    "current_stream",
    "device_count",
    "device_index",
    "empty_cache",
    "get_device_capability",
    "get_memory_info",
    "is_available",
    "max_memory_allocated",
    "max_memory_reserved",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "set_device_idx",
    "set_device_index",
    "set_stream",
    "synchronize",
]


def __getattr__(name: str) -> Any:
    raise missing_name("trident.accelerator", name, __all__)
