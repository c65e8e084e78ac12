"""Random test inputs: shapes with empty and single axes, strides of every kind, values in a domain.

``Draw`` decides through three primitives (``integer``, ``choice``, ``boolean``), so the same
samples run under hypothesis (which shrinks them) and from a plain seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes
from ..dtypes import dtype as DType
from ..ops.registry import Interval


class Draw:
    """Draws samples from a seed. ``dtype`` is the floating dtype under test; ``blocks`` says how
    large the blocks of kernels are in this check: 4 or 16 elements, "gpu", or None (as the device
    has it, or no kernel at all)."""

    blocks: int | str | None = None

    def __init__(
        self, seed: int | list[int], dtype: DType = dtypes.float32, strided: bool = True
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.strided = strided

    def integer(self, low: int, high: int) -> int:
        """An int in [low, high], both included."""
        return int(self.rng.integers(low, high + 1))

    def choice(self, options: Sequence) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def boolean(self) -> bool:
        return self.integer(0, 1) == 1

    def values(self) -> np.random.Generator:
        """Where array values come from."""
        return self.rng

    def size(self, low: int, high: int, large: int) -> int:
        """An int in [low, high], or one time in six ``large``: where a kernel cuts an axis into
        blocks, a size that takes several and fills the last one in part."""
        return large if self.integer(0, 5) == 5 else self.integer(low, high)

    def box(self, ndim: int) -> tuple[int, ...]:
        """A shape of ``ndim`` axes of 2 or 3 elements each (few of 3 where there are many axes)."""
        return tuple(2 + (self.integer(0, 3) == 3) for _ in range(ndim))

    def shape(self, min_ndim: int = 0, max_ndim: int = 3, max_side: int = 5) -> tuple[int, ...]:
        """A shape; one axis in eight is empty and one in four has size 1. One shape in four has
        ``max_ndim`` axes (three or more), none of them short: a kernel needs all its strides."""
        if max_ndim >= 3 and self.integer(0, 3) == 3:
            return self.box(max_ndim)
        sides = [1, 1, 0, *range(2, max_side + 1), *range(2, max_side + 1)]
        return tuple(self.choice(sides) for _ in range(self.integer(min_ndim, max_ndim)))

    def tensor(
        self, shape: Sequence[int], dtype: DType | None = None, low: float = -2.0, high: float = 2.0
    ) -> np.ndarray:
        """Random values of ``dtype`` (the one under test), with strides of some kind."""
        return self.layout(self._values(tuple(shape), dtype or self.dtype, Interval(low, high)))

    def inside(self, shape: Sequence[int], dtype: DType, domain: Interval) -> np.ndarray:
        """Random values in ``domain``."""
        return self.layout(self._values(tuple(shape), dtype, domain))

    def ints(
        self, shape: Sequence[int], low: int, high: int, dtype: DType = dtypes.int64
    ) -> np.ndarray:
        """Random integers in [low, high), with strides of some kind."""
        high = max(high, low + 1)  # an empty range only goes with an empty shape
        return self.layout(self.values().integers(low, high, tuple(shape)).astype(dtype.np))

    def _values(self, shape: tuple[int, ...], dtype: DType, domain: Interval) -> np.ndarray:
        rng = self.values()
        if dtype.kind == "bool":
            return rng.random(shape) < 0.5
        low, high = domain.low, domain.high
        if dtype.kind == "int":
            low = max(low, 0 if dtype is dtypes.uint8 else domain.whole_low)
            if domain.hole or domain.low > 0:
                low = max(low, 1)
            return rng.integers(int(np.ceil(low)), max(int(high), int(low)) + 1, shape).astype(
                dtype.np
            )
        x = rng.uniform(low, high, shape)
        if domain.hole:
            x = np.where(np.abs(x) < domain.hole, np.copysign(domain.hole + np.abs(x), x), x)
        return x.astype(dtype.np)

    def layout(self, a: np.ndarray) -> np.ndarray:
        """``a`` with the same values and shape, laid out contiguously, permuted, sliced along one
        axis or all, expanded, or channels-last.
        """
        kind = self.integer(0, 5) if self.strided and a.ndim else 0
        if kind == 1:
            order = list(range(a.ndim))[::-1]
            return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
        if kind == 2:
            wide = np.full((*a.shape[:-1], a.shape[-1] * 2 + 1), 77, a.dtype)
            window = wide[..., 1::2]
            window[...] = a
            return window
        if kind == 3 and a.ndim and a.shape[0] > 1:
            return np.broadcast_to(a[:1], a.shape)
        if kind == 4 and a.size <= 4096:  # no two axes can be walked as one
            wide = np.full(tuple(2 * s + 1 for s in a.shape[::-1]), 77, a.dtype)
            window = wide.transpose()[(slice(1, None, 2),) * a.ndim]
            window[...] = a
            return window
        if kind == 5 and a.ndim > 2:
            return np.moveaxis(np.array(np.moveaxis(a, 1, -1), order="C"), -1, 1)
        return np.array(a, order="C")


class HypothesisDraw(Draw):
    """Draws through hypothesis' ``data()``: structure shrinks, values come from a drawn seed."""

    def __init__(self, data: Any, dtype: DType = dtypes.float32, strided: bool = True) -> None:
        self.data = data
        self.dtype = dtype
        self.strided = strided
        self.arrays = 0

    def integer(self, low: int, high: int) -> int:
        from hypothesis import strategies as st

        return self.data.draw(st.integers(low, high))

    def values(self) -> np.random.Generator:
        self.arrays += 1  # two arrays must differ, also where both seeds shrink to 0
        return np.random.default_rng([self.integer(0, 2**16), self.arrays])
