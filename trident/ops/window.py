"""Reads and writes of a part of an array: the adjoints of views, and writes that have gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import layout
from .registry import Spec, ops, primitive
from .view import _strided, check_index, diagonal


@primitive(method=False)
class slice_backward:
    """Zeros of ``shape`` with g written at ``index``: the adjoint of ``x[index]``."""

    def infer(g, *, shape, index):
        return Spec(tuple(shape), g.dtype)

    def numpy(g, *, shape, index):
        out = np.zeros(shape, g.dtype)
        out[index] = g
        return out

    def launch(out, g, *, shape, index):
        if out.size:
            layout.fill(out, 0)
        if g.size:
            layout.copy(out[index], g)

    def vjp(g, *, index):
        return ops.slice_view(g, index=index)

    def samples(draw):
        return (draw.tensor((2, 3)),), {"shape": (4, 3), "index": (slice(0, 4, 2),)}


@primitive(method=False)
class slice_put:
    """A copy of x with ``value`` (of the selection's shape) at ``index``."""

    def infer(x, value, *, index):
        check_index(x.shape, index)
        return Spec(tuple(x.shape), x.dtype)

    def numpy(x, value, *, index):
        out = x.copy()
        out[index] = value
        return out

    def launch(out, x, value, *, index):
        if out.size:
            layout.copy(out, x)
        if value.size:
            layout.copy(out[index], value)

    def vjp(g, *, index):
        kept = ops.slice_view(g, index=index)
        return ops.slice_put(g, ops.full_like(kept, value=0), index=index), kept

    def samples(draw):
        return (draw.tensor((4, 3)), draw.tensor((2, 3))), {"index": (slice(0, 4, 2),)}


@primitive(method=False)
class window:
    """The elements that a window sees; ``shape``, ``strides`` and ``offset`` count in x's row-major
    order.

    No two indices of the window may name one element.
    """

    def infer(x, *, shape, strides, offset):
        return Spec(tuple(shape), x.dtype)

    def numpy(x, *, shape, strides, offset):
        flat = np.ascontiguousarray(x).reshape(-1)
        return np.array(_strided(flat[offset:], shape, strides), order="C")

    def launch(out, x, *, shape, strides, offset):
        if out.size:
            layout.copy(out, _row_major(x).as_strided(shape, strides, offset))

    def vjp(g, x_spec, *, shape, strides, offset):
        zeros = ops.full_like(g, value=0, shape=x_spec.shape)
        return ops.window_put(zeros, g, shape=shape, strides=strides, offset=offset)

    def samples(draw):
        return (draw.tensor((4, 5)),), {"shape": (3, 2), "strides": (1, 10), "offset": 2}


@primitive(method=False)
class window_put:
    """A copy of x with ``value`` written where the window (see ``window``) sees it."""

    def infer(x, value, *, shape, strides, offset):
        return Spec(tuple(x.shape), x.dtype)

    def numpy(x, value, *, shape, strides, offset):
        out = np.array(x, order="C")
        _strided(out.reshape(-1)[offset:], shape, strides)[...] = value
        return out

    def launch(out, x, value, *, shape, strides, offset):
        if out.size:
            layout.copy(out, x)
        if value.size:
            layout.copy(out.as_strided(shape, strides, offset), value)

    def vjp(g, *, shape, strides, offset):
        kept = ops.window(g, shape=shape, strides=strides, offset=offset)
        zeros = ops.full_like(kept, value=0)
        return ops.window_put(g, zeros, shape=shape, strides=strides, offset=offset), kept

    def samples(draw):
        given = {"shape": (3, 2), "strides": (1, 10), "offset": 2}
        return (draw.tensor((4, 5)), draw.tensor((3, 2))), given


def _row_major(x: Any) -> Any:
    """A DeviceArray as it is if contiguous, else a copy."""
    if x.is_contiguous():
        return x
    out = x.device.empty(x.shape, x.dtype)
    layout.copy(out, x)
    return out


@primitive(method=False)
class diagonal_backward:
    """Zeros of ``shape`` with g written on a diagonal: the adjoint of ``diagonal``."""

    def infer(g, *, shape, offset, dim1, dim2):
        return Spec(tuple(shape), g.dtype)

    def numpy(g, *, shape, offset, dim1, dim2):
        out = np.zeros(shape, g.dtype)
        diagonal.op.view(out, offset=offset, dim1=dim1, dim2=dim2)[...] = g
        return out

    def launch(out, g, *, shape, offset, dim1, dim2):
        if out.size:
            layout.fill(out, 0)
        if g.size:
            layout.copy(diagonal.op.view(out, offset=offset, dim1=dim1, dim2=dim2), g)

    def vjp(g, *, offset, dim1, dim2):
        return ops.diagonal(g, offset=offset, dim1=dim1, dim2=dim2)

    def samples(draw):
        return (draw.tensor((2, 3)),), {"shape": (3, 2, 4), "offset": 1, "dim1": 0, "dim2": 2}
