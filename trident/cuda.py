"""The ``cuda`` device: what is there and the spellings scripts ask for."""

from __future__ import annotations

from typing import Any

from . import runtime
from .creation import manual_seed as _manual_seed
from .errors import DeviceError, missing_name
from .legacy import CUDA_TYPES


def is_available() -> bool:
    """Whether tensors can be made on 'cuda': here, whether TRITON_INTERPRET=1 and Triton is
    installed.
    """
    return runtime.is_available()


def device_count() -> int:
    return int(runtime.is_available())


def current_device() -> int:
    """Index of the device in use."""
    runtime.current()
    return 0


def set_device(device: Any) -> None:
    """Select a device; there is one."""
    from .devices import as_device

    if (as_device(device).index or 0) != 0:
        raise DeviceError(f"cuda.set_device: this process has one cuda device, 0; got {device}")


def synchronize(device: Any = None) -> None:
    """Wait for everything launched so far."""
    if runtime.is_available():
        runtime.current().synchronize()


def get_device_name(device: Any = None) -> str:
    return "Triton interpreter on host memory" if runtime.current().interpreted else "cuda:0"


def manual_seed(seed: int) -> None:
    """As ``trident.manual_seed``: there is one generator for all devices."""
    _manual_seed(seed)


manual_seed_all = manual_seed


def __getattr__(name: str) -> Any:
    if name in CUDA_TYPES:
        return CUDA_TYPES[name]
    raise missing_name("trident.cuda", name, [*globals(), *CUDA_TYPES])
