"""The safetensors file format on numpy arrays, bfloat16 and float8 included.

Source: the format (u64 header length, JSON header, bytes) is specified at
github.com/huggingface/safetensors.
"""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from .errors import wrong
from .shapes import numel
from .unpickle import FormatError

_NAMES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}
CODES = {np.dtype(d): name for name, d in _NAMES.items()}
_MAX_HEADER = 100_000_000  # bytes; the limit of the specification


def write_safetensors(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays of any strides in the safetensors format."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, a in arrays.items():
        if a.dtype.newbyteorder("=") not in CODES:
            raise wrong(
                "save", f"{name!r} has dtype {a.dtype}, which a file cannot hold", error=TypeError
            )
        code = CODES[a.dtype.newbyteorder("=")]
        header[name] = {"dtype": code, "shape": list(a.shape), "data_offsets": [0, 0]}
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)  # keeps every array aligned
    offset = 0
    for name in order:
        header[name]["data_offsets"] = [offset, offset + arrays[name].nbytes]
        offset += arrays[name].nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        a = arrays[name]
        if a.size:
            if a.dtype.byteorder == ">" or (sys.byteorder == "big" and a.dtype.byteorder == "="):
                a = a.byteswap()
            file.write(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data)


def read_safetensors(file: BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays, in the header's order, and the metadata of a safetensors file. Raises
    FormatError.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    if size < 8:
        raise FormatError(f"load: the file is cut off: it has {size} bytes, less than a header")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MAX_HEADER):
        raise FormatError(
            f"load: the file is cut off or no safetensors file: its header should have {length} "
            "bytes, "
            f"{size - 8} are there"
        )
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("it is no JSON object")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no JSON object")
        entries = {name: _entry(name, e, size - 8 - length) for name, e in header.items()}
    except ValueError as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"load: the header of the safetensors file is damaged ({error})"
        ) from error
    arrays, end = {}, 0
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda e: e[1][2:]):
        if begin != end:
            raise FormatError(
                f"load: tensor {name!r} overlaps another or leaves a gap; the file is damaged"
            )
        arrays[name] = _read_array(file, name, dtype, shape, stop - begin)
        end = stop
    return {name: arrays[name] for name in entries}, metadata


def _entry(name: str, entry: Any, available: int) -> tuple[np.dtype, tuple, int, int]:
    """The checked (dtype, shape, begin, end) of a header entry."""
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError("sizes must be integers >= 0")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"load: the header entry of tensor {name!r} is damaged ({error})"
        ) from error
    if code not in _NAMES:
        raise FormatError(f"load: tensor {name!r} has the unknown dtype {code!r}")
    dtype = np.dtype(_NAMES[code])
    if end - begin != numel(shape) * dtype.itemsize:
        raise FormatError(
            f"load: tensor {name!r} of shape {shape} and dtype {code} must have "
            f"{numel(shape) * dtype.itemsize} bytes; got {end - begin}"
        )
    if end > available:
        raise FormatError(
            f"load: the file is cut off: tensor {name!r} ends at byte {end} of the values, "
            f"{available} are there"
        )
    return dtype, shape, begin, end


def _read_array(file: BinaryIO, name: str, dtype: np.dtype, shape: tuple, n: int) -> np.ndarray:
    raw = np.empty(n, np.uint8)
    if hasattr(file, "readinto"):
        got = file.readinto(raw.data) if n else 0
    else:
        part = file.read(n)
        got = len(part)
        raw[:got] = np.frombuffer(part, np.uint8)
    if got != n:
        raise FormatError(f"load: the file is cut off within tensor {name!r}")
    if dtype == np.bool_:
        return (raw != 0).reshape(shape)
    a = raw.view(dtype).reshape(shape)
    return a.byteswap(inplace=True) if sys.byteorder == "big" else a


def _unique(pairs: list) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FormatError("load: the header of the safetensors file names a tensor twice")
    return result
