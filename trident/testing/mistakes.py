"""Wrong calls: each must raise an error of trident's that names the op, on every device."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes, runtime
from ..dtypes import dtype as DType
from ..errors import DeviceError, DTypeError, IndexBoundsError, ShapeError, TridentError
from ..ops.registry import Elementwise, Fused, Op
from .cases import function_of, plain_cpu, run, sample, strict, tensors, tiles
from .draw import Draw


def check_errors(op: Op, draw: Draw, dtype: DType, device: str) -> None:
    """Every wrong call that can be derived from the entry, once."""
    if isinstance(op, Elementwise):
        _shapes(op, dtype, device)
        _dtype_kind(op, device)
        _devices(op, dtype, device)
    elif isinstance(op, Fused):
        if device != "cpu":
            _indices(op, draw, dtype, device)
    elif hasattr(op, "infer"):
        if _called_by_users(op):
            _ranks(op, draw, dtype, device)
        if device != "cpu" and not op.name.endswith("_backward"):  # rules pass what was checked
            _indices(op, draw, dtype, device)


def _called_by_users(op: Op) -> bool:
    """Not the ops behind others (adjoints, `nll_reduced`): only rules and composites, which made or
    checked the shapes themselves, call those."""
    return bool(op.method) or not function_of(op).__module__.startswith("trident.")


def _raises(op: Op, args: tuple, error: type[Exception], what: str, *words: str) -> None:
    """``op(*args)`` raises ``error``, and its text holds ``words``."""
    try:
        run(op, args, dict(op.defaults))
    except error as raised:
        missing = [w for w in words if w not in str(raised)]
        assert not missing, f"{op.name}: the error for {what} does not say {missing[0]!r}: {raised}"
        return
    except Exception as raised:
        raise AssertionError(
            f"{op.name}: {what} raised {type(raised).__name__} instead of {error.__name__}: "
            f"{raised}"
        ) from raised
    raise AssertionError(f"{op.name}: {what} raised nothing; expected {error.__name__}")


def _ones(op: Elementwise, shape: tuple, dtype: DType, i: int) -> np.ndarray:
    return np.ones(shape, bool if op.operands[i] in op.untyped else dtype.np)


def _shapes(op: Elementwise, dtype: DType, device: str) -> None:
    if op.arity < 2:
        return
    args = [_ones(op, (2, 3) if i == 0 else (4, 3), dtype, i) for i in range(op.arity)]
    words = (op.name, "(2, 3)", "(4, 3)")
    _raises(op, tensors(tuple(args), device), ShapeError, "shapes (2, 3) and (4, 3)", *words)


def _dtype_kind(op: Elementwise, device: str) -> None:
    bad = {"number": dtypes.bool_, "float": dtypes.int64, "int": dtypes.float32}.get(op.takes)
    if bad is None:
        return
    args = tuple(_ones(op, (2,), bad, i) for i in range(op.arity))
    _raises(op, tensors(args, device), DTypeError, f"dtype {bad.name}", op.name)


def _devices(op: Elementwise, dtype: DType, device: str) -> None:
    if op.arity < 2 or device == "cpu" or not runtime.is_available():
        return
    args = tuple(
        tensors((_ones(op, (2,), dtype, i),), "cpu" if i else device)[0] for i in range(op.arity)
    )
    _raises(op, args, DeviceError, "tensors on two devices", op.name)


def _indices(op: Op, draw: Draw, dtype: DType, device: str) -> None:
    """An index out of range that the CPU refuses is refused on the device, wherever it stands, or
    gives NaN where looking would make a GPU wait (the losses); nothing outside is read. Every
    other time as a GPU does it: launchers look at indices beforehand where that costs nothing."""
    with tiles(draw, device, dtype, gpu_often=True), strict():
        args, attrs = sample(op, draw, dtype)
        sides = sorted({n for a in args if isinstance(a, np.ndarray) for n in a.shape})
        for i, a in enumerate(args):
            if not isinstance(a, np.ndarray) or a.dtype != np.int64 or not a.size:
                continue
            at = draw.choice([0, a.size - 1, draw.integer(0, a.size - 1)])
            for value in (10**6, -1, *sides):  # far outside, and just outside of some axis
                bad = np.array(a)
                bad.flat[at] = value
                _one_index(op, (*args[:i], bad, *args[i + 1 :]), attrs, device, i, value)


def _one_index(op: Op, args: tuple, attrs: dict, device: str, i: int, value: int) -> None:
    try:
        with plain_cpu():
            run(op, tensors(args, "cpu"), attrs)
        return
    except IndexBoundsError:
        pass
    except Exception:  # it is no index, or checked elsewhere
        return
    try:
        results = [r._host() for r in run(op, tensors(args, device), attrs)]
    except IndexBoundsError:
        return
    if not any(np.isnan(r.astype(np.float64)).any() for r in results):
        raise AssertionError(
            f"{op.name}: {op.operands[min(i, len(op.operands) - 1)]} holds {value}, which the CPU "
            f"refuses; {device} neither refuses it nor gives NaN"
        )


def _ranks(op: Op, draw: Draw, dtype: DType, device: str) -> None:
    """An operand with three axes more, or with none: taken, or a TridentError; no raw error of
    numpy's."""
    args, attrs = sample(op, draw, dtype)
    for i, a in enumerate(args):
        if not isinstance(a, np.ndarray):
            continue
        strange: list[Any] = [a[None, None, None]]
        if a.ndim and a.size:
            strange.append(np.full((), a.reshape(-1)[0], a.dtype))
        for other in strange:
            given = tensors((*args[:i], other, *args[i + 1 :]), device)
            try:
                function_of(op)(*given, **attrs)
            except TridentError:
                continue
            except Exception as raised:
                name = op.operands[min(i, len(op.operands) - 1)]
                raise AssertionError(
                    f"{op.name}: {name} of shape {other.shape} instead of {a.shape} raised "
                    f"{type(raised).__name__}, not a TridentError: {raised}"
                ) from raised
