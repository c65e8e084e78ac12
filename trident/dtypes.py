"""Data types, their promotion (torch's rules), and nothing else.

``bfloat16`` is stored in numpy arrays as ``ml_dtypes.bfloat16``; float16 and bfloat16 are computed
in float32 and rounded once (see ``docs/numerics.md``).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from .errors import DTypeError

_KIND_RANK = {"bool": 0, "int": 1, "float": 2}


class dtype:
    """A data type. ``x.dtype is trident.float32``; compare with ``is`` or ``==``.

    Attributes: ``name`` ("float32"), ``np`` (the numpy dtype), ``triton`` (Triton's name, "fp32"),
    ``itemsize`` (bytes), ``kind`` ("bool", "int" or "float").
    """

    __slots__ = ("compute", "is_floating_point", "itemsize", "kind", "name", "np", "rank", "triton")

    def __init__(self, name: str, np_dtype: object, triton: str, kind: str, rank: int) -> None:
        self.name = name
        self.np = np.dtype(np_dtype)  # type: ignore[call-overload]
        self.triton = triton
        self.itemsize: int = self.np.itemsize
        self.kind = kind
        self.rank = rank
        self.is_floating_point = kind == "float"
        self.compute: dtype = self  # float16 and bfloat16: float32 (set below)

    @property
    def is_signed(self) -> bool:
        return self.kind == "float" or self.name.startswith("int")

    @property
    def is_complex(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"trident.{self.name}"

    def __reduce__(self) -> str | tuple:
        return (by_name, (self.name,))


bool_ = dtype("bool", np.bool_, "u8", "bool", 0)
uint8 = dtype("uint8", np.uint8, "u8", "int", 1)
int8 = dtype("int8", np.int8, "i8", "int", 2)
int16 = dtype("int16", np.int16, "i16", "int", 3)
int32 = dtype("int32", np.int32, "i32", "int", 4)
int64 = dtype("int64", np.int64, "i64", "int", 5)
float16 = dtype("float16", np.float16, "fp16", "float", 6)
bfloat16 = dtype("bfloat16", ml_dtypes.bfloat16, "bf16", "float", 7)
float32 = dtype("float32", np.float32, "fp32", "float", 8)
float64 = dtype("float64", np.float64, "fp64", "float", 9)

ALL = (bool_, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64)
FLOATS = (float16, bfloat16, float32, float64)
INTS = (uint8, int8, int16, int32, int64)
HALVES = (float16, bfloat16)
float16.compute = bfloat16.compute = float32

FROM_NUMPY: dict[np.dtype, dtype] = {d.np: d for d in ALL}
_BY_NAME = {d.name: d for d in ALL}
_default_float = float32


def by_name(name: str) -> dtype:
    """``by_name("float32") is float32``."""
    return _BY_NAME[name]


def from_numpy(np_dtype: np.dtype | type) -> dtype:
    """The trident dtype of a numpy dtype. Raises DTypeError for one that has no counterpart."""
    try:
        return FROM_NUMPY[np.dtype(np_dtype)]
    except (KeyError, TypeError):
        names = ", ".join(d.name for d in ALL)
        raise DTypeError(
            f"numpy dtype {np_dtype} has no trident counterpart; convert the array first "
            f"(array.astype) to one of: {names}"
        ) from None


def as_dtype(value: object) -> dtype:
    """A dtype from a dtype, a numpy dtype, a name, or Python's bool, int, float."""
    if isinstance(value, dtype):
        return value
    if value is bool:
        return bool_
    if value is int:
        return int64
    if value is float:
        return _default_float
    if isinstance(value, str) and value.removeprefix("trident.") in _BY_NAME:
        return _BY_NAME[value.removeprefix("trident.")]
    return from_numpy(value)  # type: ignore[arg-type]


def get_default_dtype() -> dtype:
    """The dtype of a tensor made from Python floats: float32 unless changed."""
    return _default_float


def set_default_dtype(d: dtype) -> None:
    """Set the dtype of tensors made from Python floats. ``d`` must be a floating dtype."""
    global _default_float
    if not (isinstance(d, dtype) and d.is_floating_point):
        raise DTypeError(f"set_default_dtype: d must be a floating dtype; got {d}")
    _default_float = d


def _promote(a: dtype, b: dtype) -> dtype:
    if a is b:
        return a
    if a.rank > b.rank:
        a, b = b, a
    if a is float16 and b is bfloat16:
        return float32
    if a is uint8 and b is int8:
        return int16
    return b


_TABLE = {(a, b): _promote(a, b) for a in ALL for b in ALL}


def promote_types(a: dtype, b: dtype) -> dtype:
    """The smallest dtype to which both convert, by torch's table: (int64, float16) -> float16."""
    return _TABLE[a, b]


def scalar_dtype(value: bool | int | float) -> dtype:
    """The dtype category of a Python number: bool, int64 or the default float."""
    if value is True or value is False:
        return bool_
    if isinstance(value, int):
        return int64
    return _default_float


def result_type(dims: list[dtype], zero_dims: list[dtype], scalars: list[dtype]) -> dtype:
    """Promotion over three classes of operand: tensors with axes, 0-d tensors, Python numbers.

    A weaker class only counts where its category (bool < int < float) is above that of the stronger
    ones; so ``int32_tensor * 2.0`` is float32 and ``float16_tensor * 2.0`` stays float16.
    """
    result: dtype | None = None
    for group in (dims, zero_dims, scalars):
        if not group:
            continue
        best = group[0]
        for d in group[1:]:
            best = _TABLE[best, d]
        if result is None:
            result = best
        elif _KIND_RANK[best.kind] > _KIND_RANK[result.kind]:
            result = best if group is not scalars or best.kind != "float" else _default_float
    assert result is not None
    return result


class finfo:
    """Limits of a floating dtype: ``bits, eps, max, min, tiny, smallest_normal, resolution,
    dtype``.
    """

    def __init__(self, type: dtype | None = None) -> None:
        d = type or _default_float
        info = ml_dtypes.finfo(d.np)
        self.bits: int = info.bits
        self.eps = float(info.eps)
        self.max = float(info.max)
        self.min = float(info.min)
        self.tiny = self.smallest_normal = float(info.smallest_normal)
        self.resolution = float(info.resolution)
        self.dtype = d.name

    def __repr__(self) -> str:
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, "
            f"eps={self.eps:g}, smallest_normal={self.tiny:g}, tiny={self.tiny:g}, "
            f"dtype={self.dtype})"
        )


class iinfo:
    """Limits of an integer dtype: ``bits, min, max, dtype``."""

    def __init__(self, type: dtype) -> None:
        info = np.iinfo(type.np)
        self.bits: int = info.bits
        self.min = int(info.min)
        self.max = int(info.max)
        self.dtype = type.name

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"
