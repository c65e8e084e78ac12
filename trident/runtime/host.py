"""The host device: ``cuda`` under TRITON_INTERPRET=1 or inside ``trident.interpret()``.

Memory is numpy's; kernels run through Triton's interpreter (``interpreter.py``). ``host_window``
lets a kernel work on the memory of a CPU array.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import config
from ..dtypes import from_numpy
from ..errors import DeviceError, wrong
from . import interpreter
from .array import Buffer, DeviceArray
from .device import Device, host_device

if TYPE_CHECKING:
    from ..lang import Jit


class HostDevice(Device):
    """Runs kernels through the interpreter on host memory, program by program."""

    interpreted = True

    def __init__(self) -> None:
        self.launches = 0
        self._buffers: weakref.WeakSet[Buffer] = weakref.WeakSet()

    def allocate(self, nbytes: int) -> Buffer:
        # 16 spare bytes before the aligned start keep small overruns of a broken kernel visible
        raw = np.empty(nbytes + 32, np.uint8)
        start = -raw.ctypes.data % 16
        memory = raw[start : start + nbytes]
        if config.poison.get():
            memory.fill(0xFF)
        buffer = Buffer(self, raw.ctypes.data + start, nbytes, memory)
        self._buffers.add(buffer)
        return buffer

    def _live(self) -> Iterator[tuple[int, int]]:
        return ((b.ptr, b.nbytes) for b in list(self._buffers))

    def launch(
        self, kernel: Jit, grid: tuple[int, ...], args: tuple, constexprs: dict, options: dict
    ) -> None:
        self.launches += 1
        lab = config.interpreting.get()
        if any(isinstance(a, np.ndarray) for a in args):
            if lab is None:
                raise DeviceError(
                    f"{kernel.name}: its arrays must be on one device; got cpu and {self}. Move "
                    "them with .to('cuda'), or launch inside `with trident.interpret():`"
                )
            args = tuple(host_window(a) if isinstance(a, np.ndarray) else a for a in args)
        if lab is None:
            interpreter.run(
                kernel, grid, args, constexprs, check=config.check_bounds.get(), live=self._live
            )
        else:
            done = interpreter.run(
                kernel, grid, args, constexprs, check=True, count=True, strict=True,
                stop=lab.stop, live=self._live,
            )  # fmt: skip
            lab.record(done)

    def window(self, array: DeviceArray) -> np.ndarray:
        """The memory of ``array`` as a numpy array (shared)."""
        item = array.dtype.itemsize
        return np.ndarray(
            array.shape,
            array.dtype.np,
            buffer=array.buffer.memory.data,
            offset=array.offset * item,
            strides=tuple(s * item for s in array.strides),
        )

    def copy_in(self, target: DeviceArray, source: np.ndarray) -> None:
        self.window(target)[...] = source

    def to_host(self, array: DeviceArray) -> np.ndarray:
        return np.array(self.window(array), order="C", copy=True)


class _Bytes:
    """The memory of an ndarray as numpy's array interface describes it."""

    def __init__(self, owner: np.ndarray, first: int, nbytes: int) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (first, not owner.flags.writeable),
            "shape": (nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


def host_window(array: np.ndarray) -> DeviceArray:
    """A DeviceArray on the memory of ``array``: what a kernel writes there is in the array.

    Kept alive by the result. Strides must be whole elements.

    >>> from trident.runtime import host_window
    >>> x = np.arange(6.0).reshape(2, 3)[:, ::-1]
    >>> w = host_window(x)
    >>> w.shape, w.strides
    ((2, 3), (3, -1))
    """
    item = array.itemsize
    if any(s % item for s, n in zip(array.strides, array.shape) if n > 1):
        raise wrong(
            "host_window", f"strides must be multiples of the item size, {item} bytes",
            got=array.strides, hint="copy the array with np.ascontiguousarray",
        )  # fmt: skip
    first = array.ctypes.data
    low = first + sum(min((n - 1) * s, 0) for n, s in zip(array.shape, array.strides) if n)
    high = first + sum(max((n - 1) * s, 0) for n, s in zip(array.shape, array.strides) if n) + item
    if not array.size:
        low = high = first
    memory: Any = np.asarray(_Bytes(array, low, high - low))
    buffer = Buffer(host_device(), low, high - low, memory)
    strides = tuple(s // item for s in array.strides)
    return DeviceArray(buffer, array.shape, strides, from_numpy(array.dtype), (first - low) // item)
