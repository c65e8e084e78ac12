"""``save`` and ``load``: tensors in a safetensors file, the structure around them as JSON beside
them.

A ``{name: tensor}`` dict gives an ordinary safetensors file. Any other nest of dicts, lists, tuples
and plain values gives one too: its tensors are named by their place ("optimizer.state.0.exp_avg")
and the nest is JSON in the file's metadata. Nothing in a file is ever run.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

import trident

from . import dtypes, torch_checkpoint
from .errors import wrong
from .safetensors_file import CODES, read_safetensors, write_safetensors
from .shapes import Size
from .unpickle import FormatError

_WIDER = {  # dtypes that tensors do not have, and one that holds all their values
    np.dtype(np.uint16): np.int32,
    np.dtype(np.uint32): np.int64,
    np.dtype(ml_dtypes.float8_e4m3fn): np.float16,
    np.dtype(ml_dtypes.float8_e5m2): np.float16,
}
_STRUCTURE = "trident.structure"

Path = str | os.PathLike[str]


def save(obj: Any, f: Path | BinaryIO) -> None:
    """Write ``obj`` to a path or a binary file object, in the safetensors format.

    ``obj``: a tensor, ndarray, None, bool, int, float, str, dtype, device, or any nest of dicts,
    lists and tuples of them (dict keys: str, int, float, bool, None, tuples of these). A file
    appears whole or not at all: it is written beside its place, synced and renamed, so a failure
    leaves the old one. A tensor that occurs twice is stored once, and is one tensor again after
    ``load``; only a plain ``{name: tensor}`` dict stores every name in full, for other tools to
    read. Raises TypeError, with the place in the nest, for what it cannot store.

    >>> import io
    >>> f = io.BytesIO()
    >>> trident.save({"w": trident.ones(2), "step": 3}, f)
    >>> _ = f.seek(0)
    >>> trident.load(f)
    {'w': tensor([1., 1.]), 'step': 3}
    """
    plain = (
        isinstance(obj, dict)
        and len(obj) > 0
        and all(isinstance(k, str) and k != "__metadata__" for k in obj)
        and all(isinstance(v, trident.Tensor) for v in obj.values())
    )
    encoder = _Encoder(share=not plain)
    structure = encoder.encode(obj, ())
    # other tools ask for the framework whose names and layouts the tensors have: torch's
    metadata = {"format": "pt"}
    if not plain or any(v.requires_grad for v in obj.values()):
        metadata[_STRUCTURE] = json.dumps(structure, allow_nan=False, separators=(",", ":"))
    if hasattr(f, "write"):
        write_safetensors(f, encoder.arrays, metadata)  # type: ignore[arg-type]
    else:
        with _replacing(f) as file:
            write_safetensors(file, encoder.arrays, metadata)


def load(f: Path | BinaryIO, map_location: Any = None, weights_only: bool = True) -> Any:
    """Read what ``save`` wrote, any safetensors file, or a torch ``.pt`` file (without torch).

    ``map_location``: where the tensors go: a device or its name, a dict ``{"cpu": device}``, or a
    function ``(tensor, "cpu") -> tensor``; None leaves them on the CPU, whatever they were saved
    from. ``weights_only`` is accepted and changes nothing: no file can make ``load`` run code.
    dtypes that tensors do not have are widened without loss (float8 to float16, uint16 to int32,
    uint32 to int64). Raises FormatError (a RuntimeError) for damaged and unknown files, with what
    is wrong.
    """
    place = _placer(map_location)

    def make(array: np.ndarray, requires_grad: bool) -> Any:
        if array.dtype in _WIDER:
            array = array.astype(_WIDER[array.dtype])
        if array.dtype not in dtypes.FROM_NUMPY:
            raise FormatError(f"load: tensors of dtype {array.dtype} are not supported")
        t = place(trident.from_numpy(array))
        return t.requires_grad_() if requires_grad else t

    with _reading(f) as file:
        head = file.read(8)
        file.seek(-len(head), io.SEEK_CUR)
        if head[:4] == b"PK\x03\x04":
            return torch_checkpoint.read(file, make, dtypes.by_name, trident.device)
        _recognise(head)
        arrays, metadata = read_safetensors(file)
    if _STRUCTURE not in metadata:
        return {name: make(a, False) for name, a in arrays.items()}
    try:
        return _Decoder(arrays, make).decode(json.loads(metadata[_STRUCTURE]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"load: the structure in the file is damaged ({type(error).__name__}: {error})"
        ) from error


def _recognise(head: bytes) -> None:
    """Raise for well-known formats that are read elsewhere."""
    if not head:
        raise FormatError(
            "load: the file is empty, or a file object that was read to its end (use f.seek(0))"
        )
    if head[:6] == b"\x93NUMPY":
        raise FormatError("load: this is a .npy file; use trident.from_numpy(numpy.load(path))")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise FormatError(
            "load: this is a bare pickle or a torch file from before torch 1.6, which cannot be "
            "read "
            "without running code; save it again with a newer torch"
        )


@contextlib.contextmanager
def _reading(f: Path | BinaryIO) -> Iterator[BinaryIO]:
    if not hasattr(f, "read"):
        with open(f, "rb") as file:  # type: ignore[arg-type]
            yield file
    elif f.seekable():  # type: ignore[union-attr]
        yield f  # type: ignore[misc]
    else:
        yield io.BytesIO(f.read())  # type: ignore[union-attr]


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when all of it is on the disk, else
    vanishes.
    """
    target = os.path.realpath(os.fspath(path))  # through a link: the link stays
    folder, name = os.path.split(target)
    beside = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    with contextlib.suppress(OSError):  # not every file system can sync a folder
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


# ---- the structure around the tensors -----------------------------------------------------------
# JSON has null, booleans, numbers, strings and arrays (lists); all else is an object with one tag.


class _Encoder:
    """Turns a nest into JSON values and collects its arrays by name."""

    def __init__(self, share: bool) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.share = share
        self._names: dict[tuple, str] = {}
        self._alive: list = []  # objects whose id or memory is in _names
        self._open: set[int] = set()  # containers being encoded

    def encode(self, x: Any, path: tuple) -> Any:
        if x is None or isinstance(x, bool):
            return x
        if isinstance(x, str):
            return str(x)
        if isinstance(x, np.generic):
            return {"scalar": self._add(np.asarray(x), path)}
        if isinstance(x, int):
            return int(x)
        if isinstance(x, float):
            return float(x) if math.isfinite(x) else {"float": str(float(x))}
        if isinstance(x, trident.Tensor):
            name = self._add(x.detach().cpu().numpy(), path, x)
            return {"tensor": name, "grad": True} if x.requires_grad else {"tensor": name}
        if isinstance(x, np.ndarray):
            return {"array": self._add(x, path)}
        if isinstance(x, dtypes.dtype):
            return {"dtype": x.name}
        if isinstance(x, trident.device):
            return {"device": str(x)}
        if isinstance(x, Size):
            return {"size": list(x)}
        if isinstance(x, dict | list) or type(x) is tuple:
            return self._container(x, path)
        raise self._unsupported(x, path)

    def _container(self, x: Any, path: tuple) -> Any:
        if id(x) in self._open:
            raise wrong("save", f"{_place(path)} contains itself", error=TypeError)
        self._open.add(id(x))
        if isinstance(x, dict):
            pairs = [[self._key(k, path), self.encode(v, (*path, k))] for k, v in x.items()]
            result: Any = {"dict": pairs}
        else:
            items = [self.encode(v, (*path, i)) for i, v in enumerate(x)]
            result = items if isinstance(x, list) else {"tuple": items}
        self._open.remove(id(x))
        return result

    def _key(self, key: Any, path: tuple) -> Any:
        if key is None or isinstance(key, str | bool | int | float) or type(key) is tuple:
            return self.encode(key, (*path, key))
        raise self._unsupported(key, path, "a dict key")

    def _add(self, a: np.ndarray, path: tuple, tensor: Any = None) -> str:
        if a.dtype.newbyteorder("=") not in CODES:
            raise wrong(
                "save",
                f"{_place(path)} has dtype {a.dtype}, which a file cannot hold",
                error=TypeError,
            )
        identity: tuple = (a.__array_interface__["data"][0], a.shape, a.strides, a.dtype)
        if tensor is not None and tensor.device.type != "cpu":
            identity = (id(tensor),)
        shared = self.share and a.size > 0
        if shared and identity in self._names:
            return self._names[identity]
        name = ".".join(map(str, path)) or "data"
        while name in self.arrays or name == "__metadata__":
            name += "_"
        self.arrays[name] = a
        self._alive.append((a, tensor))
        if shared:
            self._names[identity] = name
        return name

    def _unsupported(self, x: Any, path: tuple, what: str = "") -> Exception:
        kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
        hint = "a file holds tensors, arrays, numbers, strings, None, dicts, lists and tuples"
        if hasattr(x, "state_dict"):
            hint = "save its state_dict()"
        elif hasattr(x, "_asdict"):
            hint = "save its _asdict()"
        elif hasattr(x, "__dict__") and not callable(x):
            hint = "save vars() of it, if that is plain data"
        where = f"{what} of {_place(path)}".strip() if what else _place(path)
        return wrong(
            "save",
            f"{where} is of a type that cannot be stored",
            got=kind,
            hint=hint,
            error=TypeError,
        )


_TAGS = frozenset(
    ["tensor", "array", "scalar", "dict", "tuple", "float", "dtype", "device", "size"]
)


class _Decoder:
    """Builds the nest again from JSON values and arrays."""

    def __init__(self, arrays: dict[str, np.ndarray], make: Callable) -> None:
        self.arrays = arrays
        self.make = make
        self._made: dict[tuple, Any] = {}

    def decode(self, x: Any) -> Any:
        if isinstance(x, list):
            return [self.decode(v) for v in x]
        if not isinstance(x, dict):
            return x
        tag, value = next(iter(x.items()), ("", None))
        if tag not in _TAGS:
            raise FormatError(f"load: the structure in the file has the unknown tag {tag!r}")
        return getattr(self, f"_{tag}")(value, **{k: v for k, v in x.items() if k != tag})

    def _tensor(self, name: str, grad: bool = False) -> Any:
        if (name, grad) not in self._made:
            self._made[name, grad] = self.make(self.arrays[name], grad)
        return self._made[name, grad]

    def _array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def _scalar(self, name: str) -> Any:
        return self.arrays[name][()]

    def _dict(self, pairs: list) -> dict:
        return {self.decode(k): self.decode(v) for k, v in pairs}

    def _tuple(self, items: list) -> tuple:
        return tuple(map(self.decode, items))

    def _float(self, text: str) -> float:
        return float(text)

    def _dtype(self, name: str) -> dtypes.dtype:
        return dtypes.by_name(name)

    def _device(self, name: str) -> Any:
        return trident.device(name)

    def _size(self, sizes: list) -> Size:
        return Size(sizes)


def _place(path: tuple) -> str:
    return "obj" + "".join(f"[{k!r}]" for k in path)


def _placer(map_location: Any) -> Callable[[Any], Any]:
    """What ``map_location`` does to a tensor that was read."""
    if isinstance(map_location, dict):
        map_location = next((v for k, v in map_location.items() if str(k) == "cpu"), None)
    if map_location is None:
        return lambda t: t
    if callable(map_location) and not isinstance(map_location, trident.device):

        def placed(t: Any) -> Any:
            result = map_location(t, "cpu")
            return t if result is None else result

        return placed
    return lambda t: t.to(map_location)
