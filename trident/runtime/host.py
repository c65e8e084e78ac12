"""The host device: ``cuda`` under TRITON_INTERPRET=1. Kernels run through Triton's interpreter.

The interpreter wants argument objects with the storage methods of a torch tensor; ``_Pointer`` is
the smallest thing it accepts. Memory is numpy's.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import config
from .array import Buffer, DeviceArray
from .device import Device

if TYPE_CHECKING:
    from ..lang import Jit


class _Storage:
    """The interpreter copies storages to the host and back; this one is there already."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address

    def cpu(self) -> _Storage:
        return self

    def copy_(self, other: _Storage) -> None:
        pass


class _Pointer:
    """A DeviceArray as the interpreter sees it."""

    __slots__ = ("array", "dtype", "storage")

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.dtype = "uint8" if array.dtype.name == "bool" else array.dtype.name
        self.storage = _Storage(array.ptr)

    def data_ptr(self) -> int:
        return self.storage.address

    def untyped_storage(self) -> _Storage:
        return self.storage

    def new_empty(self, *_: object, **__: object) -> _Pointer:
        return _Pointer(self.array)

    def set_(self, *_: object) -> None:
        pass

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides


def _bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, to nearest even; NaN stays NaN."""
    bits = np.asarray(x).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(x != x, bits >> 16 | 0x40, rounded).astype(np.uint16)


@functools.cache
def _mend_interpreter() -> None:
    """Make Triton's interpreter do what compiled kernels do.

    It cuts float32 to bfloat16 off instead of rounding. That of 3.6, but not that of 3.9, also
    fails on a loop bound in a block of one with numpy >= 2.4, keeps in maximum and minimum a NaN
    that compiled ones drop, and forgets the sign of the number -0.0.
    """
    import triton
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    cast = builder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        to = dst_type.scalar
        if src.dtype.scalar.is_fp32() and to.is_bf16():
            return interpreter.TensorHandle(_bfloat16_bits(src.data), to)
        return cast(self, src, dst_type)

    builder.cast_impl = cast_impl
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9):
        return
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    builder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)
    builder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)
    constant = interpreter.TritonSemantic.scalar_constant

    def scalar_constant(self: Any, value: Any, dtype: Any) -> Any:
        if value == 0 and np.signbit(value) and dtype is not None and dtype.is_floating():
            return self.tensor(getattr(self.builder, f"get_{dtype.name}")(value), dtype)
        return constant(self, value, dtype)

    interpreter.TritonSemantic.scalar_constant = scalar_constant


class HostDevice(Device):
    """Runs kernels through the interpreter on host memory, program by program."""

    interpreted = True

    def __init__(self) -> None:
        self.launches = 0

    def allocate(self, nbytes: int) -> Buffer:
        # 16 spare bytes before the aligned start keep small overruns of a broken kernel visible
        raw = np.empty(nbytes + 32, np.uint8)
        start = -raw.ctypes.data % 16
        memory = raw[start : start + nbytes]
        if config.poison.get():
            memory.fill(0xFF)
        return Buffer(self, raw.ctypes.data + start, nbytes, memory)

    def launch(
        self, kernel: Jit, grid: tuple[int, ...], args: tuple, constexprs: dict, options: dict
    ) -> None:
        self.launches += 1
        _mend_interpreter()
        passed = [_Pointer(a) if isinstance(a, DeviceArray) else a for a in args]
        fn: Any = kernel.triton()
        with np.errstate(all="ignore"):
            fn[grid](*passed, **constexprs)

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
