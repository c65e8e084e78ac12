"""Reading pickles without running what is in them: only the globals of a fixed table exist."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from .errors import TridentError


class FormatError(TridentError, RuntimeError, ValueError):
    """A file that is damaged, or holds what trident does not read."""


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler whose globals are the keys of ``known``, as "module.name"; others raise FormatError.

    A pickle is a program, and its power lies in the globals it may call. Here it can only call the
    functions given in ``known``.
    """

    def __init__(
        self, file: BinaryIO, known: Mapping[str, Any], what: str, *, encoding: str = "ASCII"
    ) -> None:
        super().__init__(file, encoding=encoding)
        self.known = known
        self.what = what

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.known:
            raise FormatError(
                f"{self.what} needs the Python global {full!r}, which is not among the data types that "
                "trident reads. It never runs code from a file: save plain tensors, numbers, strings, "
                "lists and dicts (of a module, its state_dict())"
            )
        return self.known[full]

    def persistent_load(self, pid: Any) -> Any:
        raise FormatError(f"{self.what} refers to the outside object {pid!r}")


def _dtype(code: str, *flags: Any) -> np.dtype:
    dtype = np.dtype(code)
    if dtype.hasobject or dtype.fields is not None:
        raise FormatError(f"numpy dtype {code!r} can hold objects; only plain numbers are read")
    return dtype


def _scalar(dtype: np.dtype, data: bytes | str = b"") -> np.generic:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype, 1)[0]


def _reconstruct(kind: type, shape: tuple, code: Any) -> np.ndarray:
    return np.empty((0,), np.int8)  # its values, shape and dtype follow as pickled state


def _encode(text: str, encoding: str = "latin1", errors: str = "strict") -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes into protocol 2


NUMPY: dict[str, Any] = {
    "numpy.dtype": _dtype,
    "numpy.ndarray": np.ndarray,
    "_codecs.encode": _encode,
    **{f"numpy.{m}.multiarray._reconstruct": _reconstruct for m in ("core", "_core")},
    **{f"numpy.{m}.multiarray.scalar": _scalar for m in ("core", "_core")},
}
"""What pickled numpy arrays and numbers are made of, from numpy 1 and 2, Python 2 and 3."""
