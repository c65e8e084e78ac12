"""Memory and devices: owned buffers, device arrays, kernel launches, random-number state."""

from .array import Buffer, DeviceArray
from .device import Device, current, is_available, launch, use
from .host import host_window

__all__ = [
    "Buffer",
    "Device",
    "DeviceArray",
    "current",
    "host_window",
    "is_available",
    "launch",
    "use",
]
