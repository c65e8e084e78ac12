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
    """An unpickler whose globals are the keys of ``known``, as "module.name"; others raise
    FormatError.

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
                f"{self.what} needs the Python global {full!r}, which is not among the data "
                "types that "
                "trident reads. It never runs code from a file: save plain tensors, numbers, "
                "strings, "
                "lists and dicts (of a module, its state_dict())"
            )
        return self.known[full]

    def persistent_load(self, pid: Any) -> Any:
        raise FormatError(f"{self.what} refers to the outside object {pid!r}")


class _DType:
    """What a pickled numpy dtype becomes: the state that follows it may only set the byte order."""

    def __init__(self, code: str, *flags: Any) -> None:
        if str(code).lstrip("<>=|")[:1] not in tuple("?biufc"):
            raise FormatError(f"numpy dtype {code!r} is read nowhere: only plain numbers are")
        self.np = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.np = self.np.newbyteorder(state[1])


class _Array(np.ndarray):
    """What a pickled numpy array becomes; its dtype is one of ``_DType``."""

    def __setstate__(self, state: tuple) -> None:  # type: ignore[override]
        _, shape, dtype, fortran, data = state
        raw = data.encode("latin1") if isinstance(data, str) else data
        super().__setstate__((1, shape, dtype.np, fortran, raw))


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    return np.empty(0, np.int8).view(_Array)  # the rest follows as pickled state


def _frombuffer(
    data: bytes, dtype: _DType, shape: tuple, order: str, axes: tuple | None = None
) -> np.ndarray:
    flat = np.frombuffer(data, dtype.np)
    if order == "K" and axes is not None:
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, data: bytes | str) -> np.generic:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype.np, 1)[0]


def _encode(text: str, encoding: str = "latin1", errors: str = "strict") -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes into protocol 2


NUMPY: dict[str, Any] = {
    "numpy.dtype": _DType,
    "numpy.ndarray": "ndarray",  # only ever an argument of _reconstruct
    "_codecs.encode": _encode,
    **{f"numpy.{m}.multiarray._reconstruct": _reconstruct for m in ("core", "_core")},
    **{f"numpy.{m}.numeric._frombuffer": _frombuffer for m in ("core", "_core")},
    **{f"numpy.{m}.multiarray.scalar": _scalar for m in ("core", "_core")},
}
"""What pickled numpy arrays and numbers are made of, from numpy 1 and 2, Python 2 and 3."""
