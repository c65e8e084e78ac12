"""Views: the same memory with another shape, order or offset. One body serves both devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import shapes
from ..errors import IndexBoundsError, wrong
from ..kernels import layout
from ..shapes import Shape
from .registry import Spec, composite, ops, view


def _strided(a: Any, shape: Shape, strides: Shape) -> Any:
    """``a``'s memory from its first element on with this shape and these strides (in elements)."""
    if isinstance(a, np.ndarray):
        steps = tuple(s * a.itemsize for s in strides)
        return np.lib.stride_tricks.as_strided(a, shape, steps)
    return a.as_strided(shape, strides)


def element_strides(a: Any) -> Shape:
    """Strides in elements, of an ndarray or a DeviceArray."""
    if isinstance(a, np.ndarray):
        return tuple(s // a.itemsize for s in a.strides)
    return a.strides


def can_view(a: Any, shape: Shape) -> bool:
    """Whether ``a`` can be viewed as ``shape`` without a copy."""
    return shapes.reshape_strides(tuple(a.shape), element_strides(a), shape) is not None


@view(method=False)
class alias:
    """x itself, as another tensor on the same memory."""

    def infer(x):
        return Spec(x.shape, x.dtype)

    def view(x):
        return x[...]

    def vjp(g):
        return g

    def samples(draw):
        return (draw.tensor(draw.shape(1, 3)),), {}


@view(method=False, may_copy=True)
class reshape:
    """x with the same elements in row-major order and another shape; one size may be -1.

    A view where strides allow it, else a copy. Raises ShapeError where the numbers of elements
    differ.

    >>> trident.arange(6).reshape(2, -1)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """

    def infer(x, *, shape):
        return Spec(shapes.infer_reshape("reshape", tuple(x.shape), shape), x.dtype)

    def view(x, *, shape):
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        shape = shapes.infer_reshape("reshape", x.shape, shape)
        if x.can_reshape(shape):
            return x.reshape(shape)
        out = x.device.empty(x.shape, x.dtype)
        layout.copy(out, x)
        return out.reshape(shape)

    def vjp(g, x_spec):
        return ops.reshape(g, shape=x_spec.shape)

    def samples(draw):
        x = draw.tensor(draw.shape(1, 4))
        return (x,), {"shape": tuple(reversed(x.shape))}


@view(method=False)
class permute:
    """x with its axes in the order ``dims``: result axis i is axis dims[i] of x.

    >>> trident.zeros(2, 3, 4).permute(2, 0, 1).shape
    trident.Size([4, 2, 3])
    """

    def infer(x, *, dims):
        order = _order(tuple(dims), x.ndim)
        return Spec(tuple(x.shape[d] for d in order), x.dtype)

    def view(x, *, dims):
        return x.transpose(_order(tuple(dims), x.ndim))

    def vjp(g, *, dims):
        order = _order(tuple(dims), g.ndim)
        return ops.permute(g, dims=tuple(sorted(range(len(order)), key=order.__getitem__)))

    def samples(draw):
        x = draw.tensor(draw.shape(1, 4))
        order = list(range(x.ndim))
        shift = draw.integer(0, x.ndim - 1)
        return (x,), {"dims": tuple(order[shift:] + order[:shift])}


@view
class transpose:
    """x with the axes dim0 and dim1 exchanged.

    >>> trident.zeros(2, 3).transpose(0, 1).shape
    trident.Size([3, 2])
    """

    def infer(x, *, dim0, dim1):
        order = list(range(x.ndim))
        a, b = shapes.axis("transpose", dim0, x.ndim), shapes.axis("transpose", dim1, x.ndim)
        if order:
            order[a], order[b] = order[b], order[a]
        return Spec(tuple(x.shape[i] for i in order), x.dtype)

    def view(x, *, dim0, dim1):
        return x.swapaxes(dim0, dim1) if x.ndim else x[...]

    def vjp(g, *, dim0, dim1):
        return transpose(g, dim0, dim1)

    def samples(draw):
        x = draw.tensor(draw.shape(1, 4))
        return (x,), {"dim0": draw.integer(0, x.ndim - 1), "dim1": -1}


def _order(dims: Shape, ndim: int) -> Shape:
    order = tuple([d + ndim if d < 0 else d for d in dims])
    if len(order) != ndim or any(d not in order for d in range(ndim)):
        raise wrong("permute", f"dims must name each of the {ndim} axes once", got=dims)
    return order


@view(method=False)
class expand:
    """x stretched along axes of size 1 (and new leading axes) without a copy; -1 keeps a size.

    >>> trident.tensor([[1], [2]]).expand(2, 3)
    tensor([[1, 1, 1],
            [2, 2, 2]])
    """

    def infer(x, *, shape):
        wanted = _expanded(tuple(x.shape), shape)
        shapes.broadcast_strides("expand", tuple(x.shape), (1,) * x.ndim, wanted)
        return Spec(wanted, x.dtype)

    def view(x, *, shape):
        wanted = _expanded(x.shape, shape)
        if isinstance(x, np.ndarray):
            return np.broadcast_to(x, wanted)
        return x.broadcast_to(wanted)

    def vjp(g, x_spec):
        return ops.sum_to(g, shape=x_spec.shape)

    def samples(draw):
        x = draw.tensor((draw.integer(1, 3), 1, draw.integer(1, 3)))
        return (x,), {"shape": (2, x.shape[0], 4, x.shape[2])}


def _expanded(shape: Shape, wanted: Sequence[int]) -> Shape:
    wanted = tuple(wanted)
    pad = len(wanted) - len(shape)
    if -1 not in wanted:
        return wanted
    if pad < 0 or -1 in wanted[:pad]:
        raise wrong("expand", f"-1 keeps a size of {shape}; a new axis needs a size", got=wanted)
    return tuple(shape[i - pad] if s == -1 else s for i, s in enumerate(wanted))


def check_index(shape: Shape, index: tuple) -> None:
    """Raise for too many indices or an int outside of its axis (basic indexing)."""
    used = sum(i is not None and i is not Ellipsis for i in index)
    if used > len(shape):
        raise wrong(
            "getitem", f"{used} indices for the {len(shape)} axes of shape {tuple(shape)}",
            error=IndexBoundsError,
        )  # fmt: skip
    at = 0
    for i in index:
        if i is Ellipsis:
            at += len(shape) - used
        elif i is not None:
            if not isinstance(i, slice) and not -shape[at] <= i < shape[at]:
                raise wrong(
                    "getitem", f"index {i} is out of range for axis {at} of size {shape[at]}",
                    error=IndexBoundsError,
                )  # fmt: skip
            if isinstance(i, slice) and i.step is not None and i.step <= 0:
                raise wrong(
                    "getitem", "a slice step must be positive", got=i.step, error=IndexBoundsError,
                    hint="reverse with flip(x, dims)",
                )  # fmt: skip
            at += 1


@view(method=False)
class slice_view:
    """x[index] for ints, slices with positive steps, None and Ellipsis."""

    def infer(x, *, index):
        check_index(x.shape, index)
        probe = np.broadcast_to(np.empty((), np.bool_), x.shape)[index]
        return Spec(probe.shape, x.dtype)

    def view(x, *, index):
        check_index(x.shape, index)
        if isinstance(x, np.ndarray):
            return x[(*index, ...)] if Ellipsis not in index else x[index]
        return x[index]

    def vjp(g, x_spec, *, index):
        return ops.slice_backward(g, shape=x_spec.shape, index=index)

    def samples(draw):
        x = draw.tensor((draw.integer(1, 4), draw.integer(2, 5), 3))
        return (x,), {"index": (0, slice(1, None, 2), None)}


@view(method=False)
class diagonal:
    """The diagonal of the axes dim1 and dim2, ``offset`` above it; it becomes the last axis.

    >>> trident.arange(9).reshape(3, 3).diagonal()
    tensor([0, 4, 8])
    """

    def infer(x, *, offset=0, dim1=0, dim2=1):
        shape, _, _ = _diagonal(tuple(x.shape), (0,) * x.ndim, offset, dim1, dim2)
        return Spec(shape, x.dtype)

    def view(x, *, offset=0, dim1=0, dim2=1):
        shape, strides, start = _diagonal(tuple(x.shape), element_strides(x), offset, dim1, dim2)
        return _strided(x[start] if 0 not in shape else x, shape, strides)

    def vjp(g, x_spec, *, offset, dim1, dim2):
        return ops.diagonal_backward(g, shape=x_spec.shape, offset=offset, dim1=dim1, dim2=dim2)

    def samples(draw):
        x = draw.tensor((draw.integer(1, 4), 3, draw.integer(1, 4)))
        return (x,), {"offset": draw.integer(-1, 1), "dim1": 0, "dim2": 2}


def _diagonal(
    shape: Shape, strides: Shape, offset: int, dim1: int, dim2: int
) -> tuple[Shape, Shape, tuple]:
    """Shape and strides of the diagonal, and the index at which it starts."""
    a, b = shapes.axis("diagonal", dim1, len(shape)), shapes.axis("diagonal", dim2, len(shape))
    if a == b:
        raise wrong("diagonal", "dim1 and dim2 must differ", got=(dim1, dim2))
    skip_a, skip_b = max(-offset, 0), max(offset, 0)
    length = max(min(shape[a] - skip_a, shape[b] - skip_b), 0)
    rest = [i for i in range(len(shape)) if i not in (a, b)]
    start = [slice(None)] * len(shape)
    start[a], start[b] = slice(skip_a, None), slice(skip_b, None)
    return (
        (*[shape[i] for i in rest], length),
        (*[strides[i] for i in rest], strides[a] + strides[b]),
        tuple(start),
    )


# ---- in terms of the above -----------------------------------------------------------------------


@composite
def squeeze(x: Any, dim: int | Sequence[int] | None = None) -> Any:
    """x without its axes of size 1, or without those among ``dim``; a view.

    >>> trident.zeros(1, 3, 1).squeeze(0).shape
    trident.Size([3, 1])
    """
    over = shapes.axes("squeeze", dim, x.ndim)
    shape = tuple(s for i, s in enumerate(x.shape) if not (s == 1 and i in over))
    return ops.reshape(x, shape=shape)


@composite
def unsqueeze(x: Any, dim: int) -> Any:
    """x with an axis of size 1 put in at ``dim``; a view.

    >>> trident.zeros(3).unsqueeze(-1).shape
    trident.Size([3, 1])
    """
    at = shapes.axis("unsqueeze", dim, x.ndim + 1)
    return ops.reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:]))


@composite
def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """x with the axes start_dim to end_dim (inclusive) made one.

    >>> trident.zeros(2, 3, 4).flatten(1).shape
    trident.Size([2, 12])
    """
    if x.ndim == 0:
        return ops.reshape(x, shape=(1,))
    a, b = shapes.axis("flatten", start_dim, x.ndim), shapes.axis("flatten", end_dim, x.ndim)
    if a > b:
        raise wrong("flatten", "start_dim must not come after end_dim", got=(start_dim, end_dim))
    middle = shapes.numel(x.shape[a : b + 1])
    return ops.reshape(x, shape=(*x.shape[:a], middle, *x.shape[b + 1 :]))


@composite
def unflatten(x: Any, dim: int, sizes: Sequence[int]) -> Any:
    """x with axis ``dim`` split into ``sizes`` (one may be -1).

    >>> trident.zeros(6, 2).unflatten(0, (2, -1)).shape
    trident.Size([2, 3, 2])
    """
    at = shapes.axis("unflatten", dim, x.ndim)
    parts = shapes.infer_reshape("unflatten", (x.shape[at],), sizes)
    return ops.reshape(x, shape=(*x.shape[:at], *parts, *x.shape[at + 1 :]))


@composite
def narrow(x: Any, dim: int, start: int, length: int) -> Any:
    """``length`` positions of axis ``dim`` from ``start`` on; a view.

    >>> trident.arange(5).narrow(0, 1, 3)
    tensor([1, 2, 3])
    """
    at = shapes.axis("narrow", dim, x.ndim)
    size = x.shape[at]
    first = start + size if start < 0 else start
    if not 0 <= first <= size or length < 0 or first + length > size:
        raise wrong(
            "narrow", f"start {start} and length {length} exceed axis {at} of size {size}",
            error=IndexBoundsError,
        )  # fmt: skip
    index = (slice(None),) * at + (slice(first, first + length),)
    return ops.slice_view(x, index=index)


@composite
def select(x: Any, dim: int, index: int) -> Any:
    """Position ``index`` of axis ``dim``, without that axis; a view.

    >>> trident.arange(6).reshape(2, 3).select(1, 2)
    tensor([2, 5])
    """
    at = shapes.axis("select", dim, x.ndim)
    return ops.slice_view(x, index=(slice(None),) * at + (index,))


@composite
def split(x: Any, split_size: int | Sequence[int], dim: int = 0) -> tuple:
    """Views of x along ``dim``, each ``split_size`` long (the last may be shorter) or as listed.

    >>> [p.tolist() for p in trident.arange(5).split(2)]
    [[0, 1], [2, 3], [4]]
    """
    at = shapes.axis("split", dim, x.ndim)
    size = x.shape[at]
    if isinstance(split_size, int):
        if split_size <= 0:
            raise wrong("split", "split_size must be positive", got=split_size)
        sizes = [min(split_size, size - s) for s in range(0, max(size, 1), split_size)]
    else:
        sizes = list(split_size)
        if sum(sizes) != size:
            raise wrong("split", f"sizes must sum to {size}, the size of axis {at}", got=sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(narrow(x, at, s, n) for s, n in zip(starts, sizes))


@composite
def chunk(x: Any, chunks: int, dim: int = 0) -> tuple:
    """At most ``chunks`` views of equal size along ``dim`` (the last may be smaller).

    >>> [p.tolist() for p in trident.arange(5).chunk(2)]
    [[0, 1, 2], [3, 4]]
    """
    if chunks <= 0:
        raise wrong("chunk", "chunks must be positive", got=chunks)
    size = x.shape[shapes.axis("chunk", dim, x.ndim)]
    return split(x, max(-(-size // chunks), 1), dim)


@composite
def unbind(x: Any, dim: int = 0) -> tuple:
    """Views of x at each position of ``dim``, without that axis.

    >>> [p.item() for p in trident.arange(3).unbind()]
    [0, 1, 2]
    """
    at = shapes.axis("unbind", dim, x.ndim)
    return tuple(select(x, at, i) for i in range(x.shape[at]))


@composite
def t(x: Any) -> Any:
    """The transpose of a matrix (at most two axes); a view."""
    if x.ndim > 2:
        raise wrong(
            "t", "x must have at most 2 axes", got=tuple(x.shape), hint="use mT or transpose"
        )
    return x if x.ndim < 2 else transpose(x, 0, 1)


@composite(method=False)
def sum_to(x: Any, shape: Shape) -> Any:
    """Sum x over the axes along which ``shape`` was broadcast to x's shape: the adjoint of
    expand.
    """
    shape = tuple(shape)
    if tuple(x.shape) == shape:
        return x
    over = shapes.stretched(shape, x.shape)
    return ops.reshape(ops.sum(x, dim=over, keepdim=True), shape=shape)
