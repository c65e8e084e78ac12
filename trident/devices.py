"""``trident.device``: the names of devices, and moving arrays between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import runtime, shapes
from .errors import DeviceError
from .ops.view import element_strides
from .runtime import DeviceArray


class device:
    """Where a tensor lives: ``device("cpu")``, ``device("cuda")``, ``device("cuda:0")``.

    >>> trident.device("cpu").type
    'cpu'
    """

    __slots__ = ("index", "type")

    type: str
    index: int | None

    def __init__(self, type: str | device, index: int | None = None) -> None:
        if isinstance(type, device):
            index, type = type.index, type.type
        name, _, number = type.partition(":")
        if name not in ("cpu", "cuda") or (number and not number.isdigit()):
            raise DeviceError(f"device: expected 'cpu', 'cuda' or 'cuda:N'; got {type!r}")
        self.type = name
        self.index = int(number) if number else index
        if name == "cuda" and self.index:
            n = runtime.device.count()
            if not 0 < self.index < n:
                there = f"cuda:0 to cuda:{n - 1} are here" if n > 1 else "only cuda:0 can be here"
                raise DeviceError(f"device: {there}; got 'cuda:{self.index}'")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            other = device(other)
        if not isinstance(other, device):
            return NotImplemented
        return self.type == other.type and (self.index or 0) == (other.index or 0)

    def __hash__(self) -> int:
        return hash((self.type, self.index or 0))

    def __repr__(self) -> str:
        tail = f", index={self.index}" if self.index is not None else ""
        return f"device(type={self.type!r}{tail})"

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


CPU = device("cpu")
_default = CPU


def get_default_device() -> device:
    """Where tensors are made when no device is given: the CPU unless changed."""
    return _default


def set_default_device(value: str | device | None) -> None:
    """Make new tensors on ``value`` (None: the CPU) unless a device is given."""
    global _default
    _default = device(value) if value is not None else CPU


def as_device(value: Any) -> device:
    """A device from a device, its name, or None (the default)."""
    if value is None:
        return _default
    if isinstance(value, device):
        return value
    if isinstance(value, int):
        return device("cuda", value)
    return device(value)


def of(array: Any) -> device:
    """The device of an ndarray or DeviceArray."""
    if isinstance(array, np.ndarray):
        return CPU
    return device(array.device.type, array.device.index)


def runtime_device(value: device) -> Any:
    """'cpu', or the runtime's device object: what creation ops take as ``device``."""
    return "cpu" if value.type == "cpu" else runtime.device.numbered(value.index)


def is_on(array: Any, target: device) -> bool:
    """Whether ``array`` lies on ``target`` already. ``cuda`` without a number is the current
    device."""
    if not isinstance(array, DeviceArray):
        return target.type == "cpu"
    return target.type != "cpu" and array.device is runtime.device.numbered(target.index)


def move(array: Any, target: device, wait: bool = True) -> Any:
    """``array`` on ``target``; the same object where it is there already.

    ``wait=False``: a copy between a GPU and page-locked memory is only started.
    """
    if is_on(array, target):
        return array
    order = shapes.turned_order(array.shape, element_strides(array))
    if order is not None:  # the copy lies in memory as the array does
        moved = move(array.transpose(order), target, wait)
        return moved.transpose(shapes.inverse(order))
    if target.type == "cpu":
        return array.device.to_host(array, wait)
    place = runtime.device.numbered(target.index)
    if isinstance(array, DeviceArray):
        return place.from_device(array)
    return place.from_host(array, wait)
