"""Reads torch's ``.pt`` files without torch and without running code.

Such a file is a zip of ``data.pkl`` (a pickle of the object, where a tensor is a call to
``_rebuild_tensor_v2`` with a persistent reference to a storage) and one member ``data/KEY`` a
storage. Only the globals below exist for the pickle, so that it can build data and nothing else.

Source: the file layout is described in torch's "Serialization semantics" notes.
"""

from __future__ import annotations

import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from . import shapes
from .unpickle import NUMPY, FormatError, RestrictedUnpickler

Make = Callable[[np.ndarray, bool], Any]

_STORAGES = {
    "Bool": np.bool_,
    "Byte": np.uint8,
    "Char": np.int8,
    "Short": np.int16,
    "Int": np.int32,
    "Long": np.int64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Float": np.float32,
    "Double": np.float64,
}
_DTYPES = {
    "bool": np.bool_,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


class _DType:
    """Stands for torch.float32 and its kind, and for the typed storage classes."""

    def __init__(self, name: str, np_dtype: Any) -> None:
        self.name = name
        self.np = np.dtype(np_dtype)


_UNTYPED = _DType("uint8", np.uint8)


def read(file: BinaryIO, make: Make, as_dtype: Callable[[str], Any], as_device: Callable) -> Any:
    """The object in a zip ``.pt`` file. ``make(array, requires_grad)`` makes each of its tensors.

    Tensors that share a storage in the file share memory here. ``as_dtype(name)`` and
    ``as_device(text)`` make the dtypes and devices the object holds. Raises FormatError.
    """
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise FormatError(f"load: the zip file is damaged or cut off ({error})") from error
    with archive:
        pickles = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            names = ", ".join(archive.namelist()[:4])
            hint = "numpy.load reads .npz files" if ".npy" in names else f"it holds {names}"
            raise FormatError(f"load: this zip file is no torch checkpoint (no data.pkl); {hint}")
        root = pickles[0].removesuffix("data.pkl")
        try:
            with archive.open(pickles[0]) as stream:
                reader = _Reader(stream, archive, root, make, as_dtype, as_device)
                return reader.finish(reader.load())
        except FormatError:
            raise
        except Exception as error:
            raise FormatError(
                f"load: the torch checkpoint is damaged ({type(error).__name__}: {error})"
            ) from error


class _Reader(RestrictedUnpickler):
    def __init__(
        self,
        stream: Any,
        archive: zipfile.ZipFile,
        root: str,
        make: Make,
        as_dtype: Callable[[str], Any],
        as_device: Callable,
    ) -> None:
        rebuild = "torch._utils._rebuild_"
        known = {
            **NUMPY,
            "collections.OrderedDict": OrderedDict,
            "collections.Counter": Counter,
            "builtins.set": set,
            "__builtin__.set": set,
            "builtins.bytearray": bytearray,
            "builtins.complex": complex,
            "torch.Size": _size,
            "torch.device": lambda *parts: as_device(":".join(map(str, parts))),
            "torch.storage.UntypedStorage": _UNTYPED,
            "torch.UntypedStorage": _UNTYPED,
            rebuild + "tensor": self._tensor,
            rebuild + "tensor_v2": self._tensor,
            rebuild + "tensor_v3": self._tensor_v3,
            rebuild + "parameter": self._parameter,
            rebuild + "parameter_with_state": self._parameter,
            **{f"torch.{n}": _DType(n, d) for n, d in _DTYPES.items()},
            **{f"torch.{n}Storage": _DType(n, d) for n, d in _STORAGES.items()},
        }
        super().__init__(stream, known, "load: the torch checkpoint", encoding="utf-8")
        self.archive, self.root = archive, root
        self.make, self.as_dtype = make, as_dtype
        self.storages: dict[str, np.ndarray] = {}
        self.tensors: dict[tuple, Any] = {}
        marker = f"{root}byteorder"
        self.swap = marker in archive.namelist() and archive.read(marker) == b"big"

    def persistent_load(self, pid: Any) -> tuple[np.ndarray, str]:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            return super().persistent_load(pid)
        _, kind, key, _, numel = pid
        if not isinstance(kind, _DType):
            raise FormatError(f"load: unknown kind of storage {kind!r} in the torch checkpoint")
        if key not in self.storages:
            try:
                info = self.archive.getinfo(f"{self.root}data/{key}")
            except KeyError:
                raise FormatError(
                    f"load: the torch checkpoint lacks the values of storage {key!r}"
                ) from None
            raw = np.empty(info.file_size, np.uint8)
            with self.archive.open(info) as member:
                got = member.readinto(raw.data) if raw.size else 0  # type: ignore[attr-defined]
                while got < raw.size and (part := member.read(raw.size - got)):
                    raw[got : got + len(part)] = np.frombuffer(part, np.uint8)
                    got += len(part)
            self.storages[key] = raw
        raw = self.storages[key]
        if numel * kind.np.itemsize > raw.size:
            raise FormatError(
                f"load: storage {key!r} of the torch checkpoint must have {numel} elements of "
                f"{kind.np.itemsize} bytes; got {raw.size} bytes"
            )
        array = raw[: raw.size // kind.np.itemsize * kind.np.itemsize].view(kind.np)
        return (array.byteswap() if self.swap else array), key

    def _tensor(
        self,
        storage: tuple[np.ndarray, str],
        offset: int,
        size: tuple,
        stride: tuple,
        requires_grad: bool = False,
        *ignored: Any,
    ) -> Any:
        values, key = storage
        size, stride = tuple(size), tuple(stride)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride)) if 0 not in size else offset
        if (
            min((offset, *size, *stride)) < 0
            or len(size) != len(stride)
            or (last >= values.size and 0 not in size)
        ):
            raise FormatError(
                f"load: a tensor of shape {size}, strides {stride} and offset {offset} reaches "
                "beyond "
                f"its storage of {values.size} elements"
            )
        identity = (key, values.dtype.str, values.dtype.name, offset, size, stride, requires_grad)
        if identity not in self.tensors:
            if 0 in size:
                array = np.empty(size, values.dtype)
            else:
                step = values.itemsize
                array = np.lib.stride_tricks.as_strided(
                    values[offset:], size, [s * step for s in stride]
                )
            self.tensors[identity] = self.make(array, bool(requires_grad))
        return self.tensors[identity]

    def _tensor_v3(
        self,
        storage: tuple[np.ndarray, str],
        offset: int,
        size: tuple,
        stride: tuple,
        requires_grad: bool,
        hooks: Any,
        dtype: _DType,
        *ignored: Any,
    ) -> Any:
        values, key = storage
        usable = values.size // dtype.np.itemsize * dtype.np.itemsize
        typed = values[:usable].view(dtype.np)
        return self._tensor((typed, key), offset, size, stride, requires_grad)

    def _parameter(self, tensor: Any, requires_grad: bool, *ignored: Any) -> Any:
        if requires_grad and hasattr(tensor, "requires_grad_"):
            tensor.requires_grad_(True)
        return tensor

    def finish(self, value: Any) -> Any:
        """``value`` with trident's own dtypes in place of torch's, and plain arrays."""
        if isinstance(value, _DType):
            return self.as_dtype(value.name)
        if isinstance(value, np.ndarray):
            return value.view(np.ndarray)
        if type(value) in (list, tuple):
            return type(value)(map(self.finish, value))
        if isinstance(value, dict):
            for k, v in value.items():
                value[k] = self.finish(v)
        return value


def _size(sizes: Any = ()) -> shapes.Size:
    return shapes.Size(sizes)
