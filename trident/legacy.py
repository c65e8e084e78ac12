"""The spellings of 2018: ``FloatTensor``, ``cuda.FloatTensor``, ``x.type("torch.FloatTensor")``.

They run as written then, with a DeprecationWarning that names today's spelling.
"""

from __future__ import annotations

import warnings
from typing import Any

from . import devices, dtypes
from .creation import empty, tensor
from .dtypes import dtype as DType
from .tensor import Tensor, _spread

_NAMES = {
    "FloatTensor": dtypes.float32,
    "DoubleTensor": dtypes.float64,
    "HalfTensor": dtypes.float16,
    "BFloat16Tensor": dtypes.bfloat16,
    "ByteTensor": dtypes.uint8,
    "CharTensor": dtypes.int8,
    "ShortTensor": dtypes.int16,
    "IntTensor": dtypes.int32,
    "LongTensor": dtypes.int64,
    "BoolTensor": dtypes.bool_,
}


class TensorType:
    """A constructor of 2018: ``FloatTensor(2, 3)`` is uninitialised, ``FloatTensor([1, 2])`` holds
    data."""

    def __init__(self, name: str, dtype: DType, device: str) -> None:
        self.name = name
        self.dtype = dtype
        self.device = device

    def __call__(self, *args: Any) -> Tensor:
        new = f"trident.tensor(data, dtype=trident.{self.dtype.name}"
        new += ', device="cuda")' if self.device == "cuda" else ")"
        text = f"{self} is the spelling of 2018; use {new}"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        if len(args) == 1 and not isinstance(args[0], int):
            return tensor(args[0], dtype=self.dtype, device=self.device)
        return empty(_spread(args) if args else (0,), dtype=self.dtype, device=self.device)

    def __instancecheck__(self, x: object) -> bool:
        return isinstance(x, Tensor) and x.dtype is self.dtype and x.device.type == self.device

    def __repr__(self) -> str:
        return f"trident.{'cuda.' if self.device == 'cuda' else ''}{self.name}"


CPU_TYPES = {name: TensorType(name, d, "cpu") for name, d in _NAMES.items()}
CUDA_TYPES = {name: TensorType(name, d, "cuda") for name, d in _NAMES.items()}


def type_name(x: Tensor) -> str:
    """'trident.FloatTensor' or 'trident.cuda.FloatTensor'."""
    name = next(n for n, d in _NAMES.items() if d is x.dtype)
    return f"trident.{'cuda.' if x.device.type == 'cuda' else ''}{name}"


def type_arguments(kind: Any) -> tuple:
    """What ``x.type(kind)`` passes to ``x.to``: a dtype, or a device and a dtype."""
    if isinstance(kind, str):
        text = kind.removeprefix("torch.").removeprefix("trident.")
        table = CUDA_TYPES if text.startswith("cuda.") else CPU_TYPES
        if text.removeprefix("cuda.") in table:
            kind = table[text.removeprefix("cuda.")]
    if isinstance(kind, TensorType):
        warnings.warn(
            f"type({kind}) is the spelling of 2018; use x.to(trident.{kind.dtype.name})",
            DeprecationWarning, stacklevel=3,
        )  # fmt: skip
        return (devices.device(kind.device), kind.dtype)
    return (dtypes.as_dtype(kind),)
