"""DLPack capsules: one memory under an array of ours and one of another library.

A capsule points to a C struct that describes the array and says how to let it go. Both forms are
spoken: ``dltensor`` (before 1.0) and ``dltensor_versioned`` (1.x), which also knows of read-only
memory. numpy makes the capsules that we hand out, and this file writes into their structs what
numpy does not know: bfloat16, and memory of a GPU. A destructor and a deleter must be C code: they
are called while an exception is pending, without the GIL and after Python has ended, none of which
a ctypes callback survives.

Source: dlpack.h of dmlc/dlpack, and the data interchange protocol of the Python array API.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import DTypeError, wrong
from .array import Buffer, DeviceArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from .device import Device

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""Kinds of device (``DLDeviceType``)."""

VERSION = (1, 1)
"""The newest version whose fields are all understood here."""

_READ_ONLY, _COPIED = 1, 2  # flags of the versioned struct


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),  # in elements; null: contiguous
        ("byte_offset", c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("manager", c_void_p), ("deleter", c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _DLTensor),
    ]


_FORMS: dict[bytes, Any] = {b"dltensor": _Managed, b"dltensor_versioned": _ManagedVersioned}
_USED = {b"dltensor": b"used_dltensor", b"dltensor_versioned": b"used_dltensor_versioned"}

_KINDS = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}


def _code(d: DType) -> tuple[int, int]:
    return _KINDS[d.name.rstrip("0123456789")], d.itemsize * 8


_CODES = {d: _code(d) for d in dtypes.ALL}
_DTYPES = {code: d for d, code in _CODES.items()}


def _api(name: str, result: Any, *arguments: Any) -> Callable:
    """A function of Python's C API, with prototypes that no one else can change."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_name_of = _api("PyCapsule_GetName", c_char_p, ctypes.py_object)
_pointer_of = _api("PyCapsule_GetPointer", c_void_p, ctypes.py_object, c_char_p)
_rename = _api("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, c_char_p)
_Deleter = ctypes.CFUNCTYPE(None, c_void_p)

_forever = _api("Py_IncRef", None, ctypes.py_object)
for _text in _USED.values():  # a capsule keeps the address of its name
    _forever(_text)


# ---- out -----------------------------------------------------------------------------------------


class _Window:
    """Memory as numpy's array interface describes it; ``owner`` keeps it alive."""

    def __init__(
        self, ptr: int, shape: tuple, strides: tuple, typestr: str, readonly: bool, owner: Any
    ) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (ptr, readonly),
            "shape": shape,
            "strides": strides,
            "typestr": typestr,
            "version": 3,
        }


def _typestr(d: DType) -> str:
    """As numpy writes it, bfloat16 as the integer of its bits."""
    return "<u2" if d is dtypes.bfloat16 else d.np.str


def export(array: Any, versioned: bool, device: tuple[int, int], *, copied: bool = False) -> Any:
    """A capsule on the memory of ``array``, which it keeps alive.

    array: ndarray or DeviceArray; ``device``: what the capsule says it lies on. ``copied`` says
    that no one else has it. Raises BufferError for read-only memory in the old form, which cannot
    say so, and for strides that are no whole elements.
    """
    d = dtypes.from_numpy(array.dtype) if isinstance(array, np.ndarray) else array.dtype
    if isinstance(array, np.ndarray):
        host = array.view(np.uint16) if d is dtypes.bfloat16 else array
    elif array.size:
        strides = tuple(s * d.itemsize for s in array.strides)
        readonly = getattr(array.buffer.memory, "readonly", False)
        window = _Window(array.ptr, array.shape, strides, _typestr(d), readonly, array)
        host = np.asarray(window)
    else:
        host = np.empty(array.shape, d.np if d is not dtypes.bfloat16 else np.uint16)
    capsule = _exported(host, versioned)
    form = _FORMS[_name_of(capsule)]
    managed = form.from_address(_pointer_of(capsule, _name_of(capsule)))
    tensor = managed.tensor
    tensor.code, tensor.bits = _CODES[d]
    tensor.device_type, tensor.device_id = device
    if not array.size:
        tensor.data = None
    if copied and form is _ManagedVersioned:
        managed.flags |= _COPIED
    return capsule


def _exported(host: np.ndarray, versioned: bool) -> Any:
    """numpy's own capsule; it knows the versioned form from numpy 2.1 on."""
    try:
        if versioned:
            try:
                return host.__dlpack__(max_version=VERSION)
            except TypeError:
                pass
        return host.__dlpack__()
    except BufferError:
        if not host.flags.writeable:
            raise wrong(
                "__dlpack__", "the tensor's memory is read-only, which the old form of DLPack "
                "cannot say", error=BufferError, hint="ask for version 1: "
                "__dlpack__(max_version=(1, 0)), or export x.clone()",
            ) from None  # fmt: skip
        raise wrong(
            "__dlpack__", "strides must be whole elements", error=BufferError,
            got=f"{host.strides} bytes with items of {host.itemsize}", hint="export x.clone()",
        ) from None  # fmt: skip


# ---- in ------------------------------------------------------------------------------------------


class _Borrowed:
    """Memory of another library. Dropping it calls the deleter that came with it, once."""

    before: Callable[[], None] | None = None
    """What has to be done first, where work on the memory may be under way."""
    readonly = False

    def __init__(self, managed: int, deleter: int | None) -> None:
        self._managed = managed
        self._deleter = _Deleter(deleter) if deleter else None

    def __del__(self) -> None:
        if self.before is not None:
            self.before()
        if self._deleter is not None:
            self._deleter(self._managed)


class Foreign:
    """What a capsule says: ``owner`` keeps the memory; strides count elements."""

    def __init__(self, tensor: Any, d: DType, readonly: bool, owner: _Borrowed) -> None:
        n = tensor.ndim
        self.shape: tuple[int, ...] = tuple(tensor.shape[i] for i in range(n))
        if tensor.strides:
            self.strides: tuple[int, ...] = tuple(tensor.strides[i] for i in range(n))
        else:
            self.strides = shapes.contiguous_strides(self.shape)
        self.ptr = (tensor.data or 0) + tensor.byte_offset
        self.dtype = d
        self.device = (tensor.device_type, tensor.device_id)
        self.readonly = owner.readonly = readonly
        self.owner = owner

    def ndarray(self) -> np.ndarray:
        """The memory as an ndarray, which keeps it alive."""
        d = self.dtype
        if 0 in self.shape:
            return np.empty(self.shape, d.np)
        strides = tuple(s * d.itemsize for s in self.strides)
        window = _Window(self.ptr, self.shape, strides, _typestr(d), self.readonly, self.owner)
        array = np.asarray(window)
        return array.view(d.np) if d is dtypes.bfloat16 else array

    def device_array(self, device: Device) -> DeviceArray:
        """The memory as an array of ``device``, which keeps it alive."""
        return foreign_array(device, self.ptr, self.shape, self.strides, self.dtype, self.owner)


def foreign_array(
    device: Device,
    ptr: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    d: DType,
    owner: Any,
) -> DeviceArray:
    """Memory at ``ptr`` as an array of ``device``; strides count elements, and may be negative."""
    if 0 in shape:
        return device.empty(shape, d)
    below = -sum(min((n - 1) * s, 0) for n, s in zip(shape, strides))
    above = sum(max((n - 1) * s, 0) for n, s in zip(shape, strides))
    first = ptr - below * d.itemsize
    buffer = Buffer(device, first, (below + above + 1) * d.itemsize, owner)
    return DeviceArray(buffer, shape, strides, d, below)


def consume(capsule: Any) -> Foreign:
    """Take the memory of a capsule over.

    Raises TypeError for what is no DLPack capsule, BufferError for one that was taken already or is
    of another major version, DTypeError for a dtype without a counterpart. Where it raises, the
    capsule stays as it was, and lets its memory go itself.
    """
    if type(capsule).__name__ != "PyCapsule":
        raise wrong(
            "from_dlpack", "expected an object with __dlpack__, or a DLPack capsule",
            got=type(capsule).__name__, error=TypeError,
        )  # fmt: skip
    name = _name_of(capsule) or b""
    form = _FORMS.get(name)
    if form is None:
        taken = name in _USED.values()
        raise wrong(
            "from_dlpack",
            "the capsule was consumed already; each is good for one array"
            if taken
            else "the capsule must hold a DLPack tensor",
            got=None if taken else repr(name.decode(errors="replace")),
            hint="ask the array for a new one" if taken else None,
            error=BufferError,
        )
    address = _pointer_of(capsule, name)
    managed = form.from_address(address)
    readonly = False
    if form is _ManagedVersioned:
        if managed.major != VERSION[0]:
            raise wrong(
                "from_dlpack", f"DLPack of version {VERSION[0]} is understood",
                got=f"version {managed.major}.{managed.minor}", error=BufferError,
                hint="hand over a capsule made with max_version=(1, 0)",
            )  # fmt: skip
        readonly = bool(managed.flags & _READ_ONLY)
    tensor = managed.tensor
    d = _DTYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if d is None:
        known = ", ".join(x.name for x in dtypes.ALL)
        raise wrong(
            "from_dlpack", f"expected one of {known}", error=DTypeError,
            got=f"type code {tensor.code} of {tensor.bits} bits in {tensor.lanes} lanes",
            hint="convert the array first",
        )  # fmt: skip
    foreign = Foreign(tensor, d, readonly, _Borrowed(address, managed.deleter))
    _rename(capsule, _USED[name])
    return foreign


__all__ = ["CPU", "CUDA", "CUDA_HOST", "CUDA_MANAGED", "VERSION", "Foreign", "consume", "export"]
