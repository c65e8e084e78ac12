"""Copies, casts and constants: ops that make an array of a given shape or dtype from another."""

from __future__ import annotations

import numpy as np

from ..dtypes import as_dtype
from ..kernels import layout
from ..memory_formats import contiguous_format, preserve_format
from .registry import Spec, primitive


@primitive(method=False)
class clone:
    """A copy of x; gradients pass through. It lies in memory as x does, or in ``memory_format``.

    >>> x = trident.ones(2)
    >>> y = trident.clone(x)
    >>> y[0] = 5.0
    >>> x
    tensor([1., 1.])
    """

    def infer(x, *, memory_format=None):
        return Spec(tuple(x.shape), x.dtype)

    def layout(shape, operands, *, memory_format=None):
        return (memory_format or preserve_format).strides("clone", shape, operands[0][1])

    def numpy(x, *, memory_format=None):
        return np.array(x, order="C" if memory_format else "K", copy=True)

    def launch(out, x, *, memory_format=None):
        if out.size:
            layout.copy(out, x)

    def vjp(g):
        return g

    def samples(draw):
        x = draw.tensor(draw.shape(0, 6 if draw.boolean() else 3))
        return (x,), {"memory_format": draw.choice([None, contiguous_format])}


@primitive(method=False)
class to_dtype:
    """x converted to ``dtype``. To bool: x != 0; to integers: truncated towards zero."""

    def infer(x, *, dtype):
        return Spec(tuple(x.shape), as_dtype(dtype))

    def layout(shape, operands, *, dtype):
        return preserve_format.strides("to", shape, operands[0][1])

    def numpy(x, *, dtype):
        return x.astype(dtype.np)

    def launch(out, x, *, dtype):
        if out.size:
            layout.copy(out, x)

    def vjp(g):  # the walker casts to the operand's dtype
        return g

    def samples(draw):
        from .. import dtypes

        return (draw.tensor(draw.shape(0, 5)),), {
            "dtype": draw.choice([dtypes.float64, draw.dtype])
        }


@primitive(method=False)
class full_like:
    """An array of x's shape and dtype (or those given), on x's device, filled with ``value``.

    >>> trident.full_like(trident.zeros(2), 3.5)
    tensor([3.5000, 3.5000])
    """

    def infer(x, *, value, shape=None, dtype=None):
        return Spec(tuple(x.shape if shape is None else shape), dtype or x.dtype)

    def numpy(x, *, value, shape=None, dtype=None):
        return np.full(x.shape if shape is None else shape, value, dtype.np if dtype else x.dtype)

    def launch(out, x, *, value, shape=None, dtype=None):
        if out.size:
            layout.fill(out, value)

    def samples(draw):
        return (draw.tensor(draw.shape(0, 3)),), {"value": 2.5}


@primitive(method=False)
class arange_like:
    """0, 1, ..., n-1 as ``dtype``, on x's device."""

    def infer(x, *, n, dtype):
        return Spec((n,), dtype)

    def numpy(x, *, n, dtype):
        return np.arange(n).astype(dtype.np)

    def launch(out, x, *, n, dtype):
        if out.size:
            layout.arange(out, 0, 1)

    def samples(draw):
        return (draw.tensor((2,)),), {"n": draw.integer(0, 9), "dtype": draw.dtype}
