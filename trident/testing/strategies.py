"""Hypothesis strategies: shapes, shapes that broadcast, and tensors with strides of every kind.

They need hypothesis (``pip install hypothesis``); ``import trident.testing`` does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise ImportError(
        "trident.testing.tensors, shapes and broadcastable need hypothesis: pip install hypothesis"
    ) from error

from .. import dtypes, runtime
from ..dtypes import dtype as DType
from ..errors import wrong
from ..ops.registry import Interval
from ..tensor import Tensor, tensor_of

LAYOUTS = ("contiguous", "permuted", "sliced", "expanded")


def shapes(
    min_dims: int = 0, max_dims: int = 4, min_side: int = 0, max_side: int = 6
) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of ``min_dims`` to ``max_dims`` axes of ``min_side`` to ``max_side`` elements. Axes of
    size 0 and 1 are frequent. Shrinks to few short axes.

    >>> from hypothesis import find
    >>> find(trident.testing.shapes(min_dims=2, min_side=1), lambda s: True)
    (1, 1)
    """
    if not 0 <= min_dims <= max_dims or not 0 <= min_side <= max_side:
        raise wrong(
            "shapes",
            "expected 0 <= min_dims <= max_dims and 0 <= min_side <= max_side",
            got=f"dims {min_dims} to {max_dims}, sides {min_side} to {max_side}",
        )
    return hnp.array_shapes(
        min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side
    )


def broadcastable(
    n: int, min_dims: int = 0, max_dims: int = 4, min_side: int = 0, max_side: int = 6
) -> st.SearchStrategy[tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]]:
    """``n`` shapes that broadcast, and the shape they broadcast to: ``((shape, ...), result)``.

    >>> from hypothesis import find
    >>> given, result = find(trident.testing.broadcastable(2), lambda b: b[0][0] != b[0][1])
    >>> np.broadcast_shapes(*given) == result
    True
    """
    if n < 1:
        raise wrong("broadcastable", "expected n, the number of shapes, to be at least 1", got=n)

    return _broadcastable(n, shapes(min_dims, max_dims, min_side, max_side), min_dims)


@st.composite
def _broadcastable(draw: Any, n: int, results: Any, min_dims: int) -> Any:
    result = draw(results)
    found = []
    for _ in range(n):
        lead = draw(st.integers(0, len(result) - min_dims)) if len(result) > min_dims else 0
        sides = [1 if draw(st.booleans()) else s for s in result[lead:]]
        found.append(tuple(sides))
    # an axis that all shrank to 1, or left out, is not in the result
    return tuple(found), tuple(np.broadcast_shapes(*found))


def tensors(
    dtype: DType | Sequence[DType] | st.SearchStrategy = dtypes.float32,
    shape: Sequence[int] | st.SearchStrategy | None = None,
    strides: str = "any",
    values: Interval | tuple[float, float] | None = None,
    *,
    requires_grad: bool = False,
    device: str = "cpu",
) -> st.SearchStrategy[Tensor]:
    """Tensors with values in an interval and strides of some kind.

    dtype: a dtype, several to choose from, or a strategy of them. shape: a shape, or a strategy
    (``shapes()`` if left out). strides: "contiguous", "permuted", "sliced" (every second element of
    a wider array), "expanded" (an axis of stride 0), or "any" of these. values: an ``Interval`` or
    (low, high); (-8, 8) if left out. requires_grad: for floating dtypes. Values are rounded to the
    dtype and shrink to the bound of the interval nearest to 0, strides to contiguous.

    >>> from hypothesis import find
    >>> x = find(trident.testing.tensors(shape=(2, 2), values=(1, 3)), lambda t: True)
    >>> x.shape, bool((x >= 1).all() & (x <= 3).all())
    (trident.Size([2, 2]), True)
    """
    if strides != "any" and strides not in LAYOUTS:
        raise wrong(
            "tensors", f"strides must be 'any' or one of {', '.join(LAYOUTS)}", got=repr(strides)
        )
    interval = _interval(values)
    return _tensors(_dtypes(dtype), _shapes(shape), strides, interval, requires_grad, device)


def _interval(values: Interval | tuple[float, float] | None) -> Interval:
    if values is None:
        return Interval(-8.0, 8.0)
    if not isinstance(values, Interval):
        low, high = values
        values = Interval(float(low), float(high), whole_low=math.ceil(low))
    if not values.low <= values.high:
        raise wrong("tensors", "values must be (low, high) with low <= high", got=values)
    return values


def _dtypes(dtype: Any) -> st.SearchStrategy:
    if isinstance(dtype, st.SearchStrategy):
        return dtype
    return st.sampled_from([dtype] if isinstance(dtype, DType) else list(dtype))


def _shapes(shape: Any) -> st.SearchStrategy:
    if isinstance(shape, st.SearchStrategy):
        return shape
    return shapes() if shape is None else st.just(tuple(shape))


def _elements(d: DType, interval: Interval) -> st.SearchStrategy:
    """Numbers of ``d`` in ``interval``; those that do not fit the dtype's bounds are left out."""
    if d.kind == "bool":
        return st.booleans()
    low, high = interval.low, interval.high
    if d.kind == "int":
        limits = np.iinfo(d.np)
        low = max(math.ceil(low), interval.whole_low, int(limits.min))
        if interval.hole:
            low = max(low, 1)
        return st.integers(low, max(min(math.floor(high), int(limits.max)), low))
    width: Literal[32, 64] = 64 if d is dtypes.float64 else 32
    small = np.finfo(np.float32).tiny if width == 32 else np.finfo(np.float64).tiny
    edges = [np.float32(v) if width == 32 else np.float64(v) for v in (low, high)]
    if width == 32:  # hypothesis wants bounds that the width holds: move them inwards
        edges[0] = edges[0] if edges[0] >= low else np.nextafter(edges[0], np.float32(np.inf))
        edges[1] = edges[1] if edges[1] <= high else np.nextafter(edges[1], -np.float32(np.inf))
    numbers = st.floats(float(edges[0]), float(edges[1]), width=width, allow_subnormal=False)
    hole = interval.hole
    if hole:
        return numbers.filter(lambda v: abs(v) >= hole)
    return numbers.map(lambda v: 0.0 if abs(v) < small else v)


@st.composite
def _tensors(
    draw: Any, kinds: Any, sizes: Any, strides: str, interval: Interval, grad: bool, device: str
) -> Tensor:
    d = draw(kinds)
    shape = tuple(draw(sizes))
    layout = draw(st.sampled_from(LAYOUTS)) if strides == "any" else strides
    expanded = None
    memory = shape
    if layout == "expanded" and any(s > 1 for s in shape):
        expanded = draw(st.sampled_from([a for a, s in enumerate(shape) if s > 1]))
        memory = tuple(1 if a == expanded else s for a, s in enumerate(shape))
    wide = np.float64 if d is dtypes.float64 else np.float32 if d.kind == "float" else d.np
    # every element on its own where they are few: a shared fill value does not shrink well
    fill = st.nothing() if math.prod(memory) <= 64 else None
    elements = _elements(d, interval)
    array = draw(hnp.arrays(wide, memory, elements=elements, fill=fill)).astype(d.np)
    if d in dtypes.HALVES:  # rounding may have left the interval
        lowest, highest = (np.asarray(v, d.np) for v in (interval.low, interval.high))
        array = np.clip(array, lowest, highest).astype(d.np)
    x = _place(array, layout, draw, device)
    if expanded is not None:
        x = x.expand(shape)
    if grad and d.is_floating_point:
        x = x.detach()
        x.requires_grad = True
    return x


def _place(array: np.ndarray, layout: str, draw: Any, device: str) -> Tensor:
    """``array`` as a tensor of the device with the strides of ``layout``."""
    axes = list(range(array.ndim))
    if layout == "permuted" and array.ndim > 1:
        order = draw(st.permutations(axes))
        if order == axes:
            order = axes[::-1]
        there = _upload(np.ascontiguousarray(array.transpose(order)), device)
        return there.permute(*[int(i) for i in np.argsort(order)])
    if layout == "sliced" and array.ndim:
        wider = np.full((*array.shape[:-1], array.shape[-1] * 2 + 1), 77).astype(array.dtype)
        wider[..., 1::2] = array
        return _upload(wider, device)[..., 1::2]
    return _upload(np.array(array, order="C"), device)


def _upload(array: np.ndarray, device: str) -> Tensor:
    return tensor_of(array if device == "cpu" else runtime.current().from_host(array))
