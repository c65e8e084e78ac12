"""The arrays of a call, and the bytes that must move for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import shapes
from ..ops.view import element_strides
from ..runtime import DeviceArray


def arrays(value: Any) -> list[Any]:
    """The arrays in an operand or result: of a Tensor, of lists and tuples of them."""
    if value.__class__ in (list, tuple):
        found = []
        for v in value:
            if v.__class__ in (list, tuple):
                found += arrays(v)
            else:
                data = getattr(v, "_data", v)
                if isinstance(data, (np.ndarray, DeviceArray)):
                    found.append(data)
        return found
    data = getattr(value, "_data", value)
    return [data] if isinstance(data, (np.ndarray, DeviceArray)) else []


def touched(array: Any) -> int:
    """Bytes of the distinct elements of an array."""
    if array.__class__ is np.ndarray and array.flags.c_contiguous:
        return array.nbytes
    steps = element_strides(array)
    # an axis of stride 0 is one element
    return (
        shapes.numel([n for n, s in zip(array.shape, steps) if s or not n]) * array.dtype.itemsize
    )


def moved(reads: Any, writes: Any = ()) -> int:
    """Bytes of the arrays read and written, each array once; what was only handed on is free."""
    seen = {id(a): a for a in arrays(reads)}
    results = [(id(a), a) for a in arrays(writes)]
    if results and all(i in seen for i, _ in results):
        return 0
    seen.update(results)
    return sum([touched(a) for a in seen.values()])
