"""Slices by index, masks and tables: index_select, ``x[i, j]``, masked_fill, nonzero, embedding.

``take_slices`` and ``sum_slices`` are adjoint to each other: one picks slices along an axis, the
other adds slices up by index. ``put_slices`` overwrites: where an index repeats, the last one wins,
and only its source gets a gradient.

Negative indices count from the end. One that is out of range raises IndexBoundsError on both
devices.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..errors import DTypeError, IndexBoundsError, wrong
from ..kernels import index as kernels
from ..kernels import layout
from ..kernels import scatter as writes
from .registry import Spec, composite, ops, primitive
from .scatter import check_int, raise_bad, wrapped

# -- slices ----------------------------------------------------------------------------------------


@primitive(method=False)
class take_slices:
    """The slices of x along ``dim`` at ``index``, whose axes take that axis's place."""

    def infer(x, index, *, dim=0, op="index_select"):
        check_int(op, index)
        d = shapes.axis(op, dim, x.ndim)
        if x.ndim == 0:
            raise wrong(op, "x must have at least one axis", got=())
        return Spec((*x.shape[:d], *index.shape, *x.shape[d + 1 :]), x.dtype)

    def numpy(x, index, *, dim=0, op="index_select"):
        if index.dtype.kind not in "iu":
            raise TypeError("index dtype")
        try:
            if index.ndim and not x.flags.c_contiguous and -x.ndim <= dim < x.ndim:
                return x[(slice(None),) * (dim % x.ndim) + (index,)]  # take would copy all of x
            return np.take(x, index, dim)
        except IndexError:
            if -x.ndim <= dim < x.ndim:
                raise_bad(op, index, x.shape[dim], dim % x.ndim)
            raise

    def launch(out, x, index, *, dim=0, op="index_select"):
        d = shapes.axis(op, dim, x.ndim)
        flat = layout.contiguous(index).reshape((index.size,))
        slices = out.reshape((*x.shape[:d], index.size, *x.shape[d + 1 :]))
        kernels.index_select(slices, x, flat, dim=d, op=op)

    def vjp(g, x_spec, index, *, dim):
        size = x_spec.shape[shapes.axis("index_select", dim, x_spec.ndim)]
        return ops.sum_slices(g, index, dim=dim, size=size), None

    def samples(draw):
        n = draw.integer(1, 5)
        x = draw.tensor((draw.integer(0, 3), n, draw.choice([1, 3, 4, 8, 20])))  # wide ones: rows
        return (x, draw.ints(draw.shape(0, 3), -n, n)), {"dim": 1}


@primitive(method=False)
class sum_slices:
    """Zeros with ``size`` slices along ``dim``, to which the slices of x are added at ``index``.

    x (..., *index.shape, ...) -> (..., size, ...): the adjoint of ``take_slices``. Deterministic.
    """

    def infer(x, index, *, dim=0, size, op="index_add"):
        check_int(op, index)
        d = _first_axis(dim, x.ndim, index.ndim)
        if tuple(x.shape[d : d + index.ndim]) != tuple(index.shape):
            raise wrong(
                op, f"source must have the shape {tuple(index.shape)} of index from axis {d} on",
                got=tuple(x.shape),
            )  # fmt: skip
        return Spec((*x.shape[:d], size, *x.shape[d + index.ndim :]), x.dtype)

    def numpy(x, index, *, dim=0, size, op="index_add"):
        d = _first_axis(dim, x.ndim, index.ndim)
        if x.shape[d : d + index.ndim] != index.shape:
            raise ValueError("shapes")
        flat = wrapped(op, index, size, d).reshape(-1)
        lead, rest = x.shape[:d], x.shape[d + index.ndim :]
        if x.size == 0:
            return np.zeros((*lead, size, *rest), x.dtype)
        if d == 0:
            rows = x.reshape(flat.size, shapes.numel(rest))
            return _sum_rows(rows, flat, size).reshape(*lead, size, *rest)
        rows = np.moveaxis(x.reshape(shapes.numel(lead), flat.size, shapes.numel(rest)), 1, 0)
        total = _sum_rows(rows.reshape(flat.size, -1), flat, size)
        total = np.moveaxis(total.reshape(size, shapes.numel(lead), -1), 0, 1)
        return np.ascontiguousarray(total).reshape(*lead, size, *rest)

    def launch(out, x, index, *, dim=0, size, op="index_add"):
        d = _first_axis(dim, x.ndim, index.ndim)
        flat = layout.contiguous(index).reshape((index.size,))
        source = layout.contiguous(x).reshape(
            (*x.shape[:d], index.size, *x.shape[d + index.ndim :])
        )
        writes.index_write(out, None, flat, source, dim=d, add=True, op=op)

    def vjp(g, index, *, dim):
        return ops.take_slices(g, index, dim=_first_axis(dim, g.ndim, 1)), None

    def samples(draw):
        n = draw.integer(1, 5)
        index = draw.ints(draw.shape(1, 2), -n, n)
        if draw.boolean():  # runs of one destination that span pieces, full or not
            run = draw.blocks if isinstance(draw.blocks, int) else 128
            m = draw.choice([run + 1, 2 * run, 2 * run + 1]) if run < 128 else 129
            index = (np.arange(m) >= draw.choice([0, m - 1])).astype(np.int64)
            index = index[draw.values().permutation(m)]
            return (draw.tensor((1, m, 5)), index), {"dim": 1, "size": max(n, 2)}
        x = draw.tensor((draw.integer(1, 3), *index.shape, draw.integer(0, 3)))
        return (x, index), {"dim": 1, "size": n}


def _first_axis(dim: int, ndim: int, count: int) -> int:
    """Where ``count`` neighbouring axes begin that stand in the place of axis ``dim``."""
    return dim if dim >= 0 else dim + ndim - count + 1


def _sum_rows(rows: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """``out[index[m]] += rows[m]`` for (M, D) rows; the indices are in range.

    A sparse 0/1 matrix times the rows is 10 to 20 times as fast as ``np.add.at``; for one column or
    little work that is faster (both measured), and it takes every dtype.
    """
    if rows.shape[1] == 1:
        out = np.zeros(size, rows.dtype)
        np.add.at(out, index, rows[:, 0])
        return out[:, None]
    if rows.size < 1024 or rows.dtype.kind != "f":
        out = np.zeros((size, rows.shape[1]), rows.dtype)
        np.add.at(out, index, rows)
        return out
    from scipy.sparse import csc_array

    m = index.size
    picks = csc_array((np.ones(m, rows.dtype), index, np.arange(m + 1)), shape=(size, m))
    return picks @ rows


@primitive(method=False)
class put_slices:
    """x with the slices of ``value`` written at ``index`` along ``dim``; the last one wins.

    x (..., N, ...), index (any shape), value (..., *index.shape, ...).
    """

    def infer(x, value, index, *, dim=0, op="index_copy"):
        check_int(op, index)
        d = shapes.axis(op, dim, x.ndim)
        wanted = (*x.shape[:d], *index.shape, *x.shape[d + 1 :])
        if tuple(value.shape) != wanted:
            raise wrong(op, f"source must have shape {wanted}", got=tuple(value.shape))
        return Spec(tuple(x.shape), x.dtype)

    def numpy(x, value, index, *, dim=0, op="index_copy"):
        d = shapes.axis(op, dim, x.ndim)
        if value.shape != (*x.shape[:d], *index.shape, *x.shape[d + 1 :]):
            raise ValueError("shapes")
        index = wrapped(op, index, x.shape[d], d)
        out = np.array(x, order="C", copy=True)
        out[(slice(None),) * d + (index,)] = value
        return out

    def launch(out, x, value, index, *, dim=0, op="index_copy"):
        d = shapes.axis(op, dim, x.ndim)
        flat = layout.contiguous(index).reshape((index.size,))
        source = layout.contiguous(value).reshape((*x.shape[:d], index.size, *x.shape[d + 1 :]))
        writes.index_write(out, x, flat, source, dim=d, add=False, op=op)

    def vjp(g, index, needs, *, dim):
        d = shapes.axis("index_copy", dim, g.ndim)
        dx = dvalue = None
        if needs[0]:
            shape = (*g.shape[:d], *index.shape, *g.shape[d + 1 :])
            dx = ops.put_slices(g, ops.full_like(g, value=0.0, shape=shape), index, dim=d)
        if needs[1]:
            flat = ops.reshape(index, shape=(-1,))
            wins = ops.winners(flat, dim=0, shape=(g.shape[d],))
            wins = ops.reshape(wins, shape=(*index.shape, *(1,) * (g.ndim - d - 1)))
            dvalue = ops.where(wins, ops.take_slices(g, index, dim=d), 0.0)
        return dx, dvalue, None

    def samples(draw):
        n = draw.integer(1, 5)
        index = draw.ints(draw.shape(0, 2), -n, n)
        lead, rest = draw.integer(1, 3), draw.integer(0, 3)
        if draw.blocks == "gpu" and draw.boolean():  # writers of one place in two programs
            index, rest = np.full(2, n - 1), 257
        value = draw.tensor((lead, *index.shape, rest))
        return (draw.tensor((lead, n, rest)), value, index), {"dim": 1}


@primitive(method=False)
class ravel_index:
    """The row-major position (int64) that indices into axes of ``sizes`` name; they broadcast."""

    def infer(*indices, sizes):
        for index in indices:
            check_int("getitem", index)
        shape = shapes.broadcast("getitem", *[tuple(i.shape) for i in indices])
        return Spec(shape, dtypes.int64)

    def numpy(*indices, sizes):
        flat: Any = 0
        for axis, (index, size) in enumerate(zip(indices, sizes)):
            flat = flat * size + wrapped("getitem", index, size, axis)
        return np.asarray(flat).astype(np.int64, copy=False)

    def launch(out, *indices, sizes):
        kernels.ravel_index(out, *indices, sizes=tuple(sizes))

    def samples(draw):
        n, m = draw.integer(1, 4), draw.integer(1, 4)
        first, second = (3, 1), (draw.integer(0, 4),)
        if draw.boolean():
            first = second = draw.box(5)
        elif draw.blocks == 4:  # more blocks than programs that look for a bad index
            first = second = (draw.integer(1030, 1100),)
        return (draw.ints(first, -n, n), draw.ints(second, -m, m)), {"sizes": (n, m)}


# -- torch's functions -----------------------------------------------------------------------------


def _vector(op: str, index: Any) -> Any:
    if index.ndim > 1:
        raise wrong(op, "index must have one axis", got=tuple(index.shape))
    return index if index.ndim else ops.reshape(index, shape=(1,))


@composite
def index_select(x: Any, dim: int, index: Any) -> Any:
    """The slices of x along ``dim`` that ``index`` (N,) names.

    >>> trident.index_select(trident.tensor([5, 6, 7]), 0, trident.tensor([2, 0]))
    tensor([7, 5])
    """
    return ops.take_slices(x, _vector("index_select", index), dim=dim)


@composite
def index_add(x: Any, dim: int, index: Any, source: Any, *, alpha: int | float = 1) -> Any:
    """x with ``alpha * source`` added to the slices along ``dim`` that ``index`` (N,) names.

    >>> trident.index_add(trident.zeros(2), 0, trident.tensor([1, 1]), trident.ones(2))
    tensor([0., 2.])
    """
    index = _vector("index_add", index)
    d = shapes.axis("index_add", dim, x.ndim)
    wanted = (*x.shape[:d], index.shape[0], *x.shape[d + 1 :])
    if tuple(source.shape) != wanted:
        raise wrong("index_add", f"source must have shape {wanted}", got=tuple(source.shape))
    if alpha != 1:
        source = source * alpha
    return x + ops.sum_slices(source, index, dim=d, size=x.shape[d])


@composite
def index_copy(x: Any, dim: int, index: Any, source: Any) -> Any:
    """x with ``source`` written to the slices along ``dim`` that ``index`` (N,) names."""
    return ops.put_slices(x, source, _vector("index_copy", index), dim=dim)


@composite
def index_fill(x: Any, dim: int, index: Any, value: Any) -> Any:
    """x with the slices along ``dim`` that ``index`` (N,) names set to ``value``."""
    index = _vector("index_fill", index)
    d = shapes.axis("index_fill", dim, x.ndim)
    shape = (*x.shape[:d], index.shape[0], *x.shape[d + 1 :])
    if hasattr(value, "shape"):
        source = ops.to_dtype(ops.expand(value, shape=shape), dtype=x.dtype)
    else:
        source = ops.full_like(x, value=value, shape=shape)
    return ops.put_slices(x, source, index, dim=d, op="index_fill")


@composite(method=False)
def index_get(x: Any, *indices: Any) -> Any:
    """``x[i0, i1, ...]`` for integer tensors on the first axes of x, broadcast together.

    Shape: the broadcast shape of the indices, then the axes of x that are left.
    """
    k = len(indices)
    if k == 1:
        return ops.take_slices(x, indices[0], dim=0, op="getitem")
    sizes, rest = tuple(x.shape[:k]), tuple(x.shape[k:])
    rows = ops.ravel_index(*indices, sizes=sizes)
    flat = ops.reshape(x, shape=(shapes.numel(sizes), *rest))
    return ops.take_slices(flat, rows, dim=0, op="getitem")


@composite(method=False)
def index_put(x: Any, value: Any, *indices: Any, accumulate: bool = False) -> Any:
    """A copy of x with ``x[i0, i1, ...] = value`` (or ``+=``, where every repeated index counts).

    ``value`` broadcasts to the shape of ``index_get(x, *indices)``.
    """
    k = len(indices)
    sizes, rest = tuple(x.shape[:k]), tuple(x.shape[k:])
    rows = indices[0] if k == 1 else ops.ravel_index(*indices, sizes=sizes)
    value = ops.expand(value, shape=(*rows.shape, *rest))
    if accumulate:
        total = ops.sum_slices(value, rows, dim=0, size=shapes.numel(sizes), op="setitem")
        return x + ops.reshape(total, shape=tuple(x.shape))
    flat = ops.reshape(x, shape=(shapes.numel(sizes), *rest))
    return ops.reshape(ops.put_slices(flat, value, rows, dim=0, op="setitem"), shape=tuple(x.shape))


@composite
def take(x: Any, index: Any) -> Any:
    """Elements of the flattened x.

    >>> trident.take(trident.tensor([[1, 2], [3, 4]]), trident.tensor([0, 3]))
    tensor([1, 4])
    """
    return ops.take_slices(ops.reshape(x, shape=(-1,)), index, dim=0, op="take")


# -- masks -----------------------------------------------------------------------------------------


def _check_mask(op: str, mask: Any) -> None:
    if mask.dtype is not dtypes.bool_:
        raise wrong(
            op,
            "mask must be bool",
            got=mask.dtype.name,
            error=DTypeError,
            hint="compare: mask != 0",
        )


@composite
def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    """x with ``value`` (a number or 0-d tensor) where ``mask`` is True; mask broadcasts with x.

    >>> trident.masked_fill(trident.zeros(2), trident.tensor([True, False]), 7.0)
    tensor([7., 0.])
    """
    _check_mask("masked_fill", mask)
    if hasattr(value, "shape"):
        if len(value.shape):
            raise wrong(
                "masked_fill", "value must be a number or a 0-d tensor", got=tuple(value.shape)
            )
        value = ops.to_dtype(value, dtype=x.dtype)
    elif x.dtype.kind == "int":
        value = int(value)
    elif x.dtype.kind == "bool":
        value = bool(value)
    return ops.where(mask, value, x)


@primitive(method=False)
class nonzero_places:
    """The coordinates (count, ndim) of the ``count`` elements that are not zero."""

    def infer(x, *, count):
        return Spec((count, x.ndim), dtypes.int64)

    def numpy(x, *, count):
        return np.argwhere(x).astype(np.int64, copy=False)

    def launch(out, x, *, count):
        kernels.nonzero(out, x)

    def samples(draw):
        x = np.asarray(draw.tensor(draw.shape(0, 4)) > 0)
        return (x,), {"count": int(x.sum())}


@composite
def nonzero(x: Any, *, as_tuple: bool = False) -> Any:
    """Where x is not zero: coordinates (N, ndim), or (as_tuple) an index tensor for each axis.

    The host reads N.

    >>> trident.nonzero(trident.tensor([0, 5, 6]))
    tensor([[1],
            [2]])
    """
    there = x if x.dtype is dtypes.bool_ else x != 0
    count = ops.sum(ops.to_dtype(there, dtype=dtypes.int64)).item()
    places = ops.nonzero_places(there, count=int(count))
    if not as_tuple:
        return places
    if x.ndim == 0:
        return (ops.full_like(places, value=0, shape=(int(count),)),)
    return tuple(ops.select(places, 1, a) for a in range(x.ndim))


@composite
def argwhere(x: Any) -> Any:
    """Coordinates (N, ndim) of the elements that are not zero."""
    return nonzero(x)


@composite
def masked_select(x: Any, mask: Any) -> Any:
    """The elements of x where ``mask`` is True, in order (N,); the two broadcast.

    >>> trident.masked_select(trident.tensor([1, 2, 3]), trident.tensor([True, False, True]))
    tensor([1, 3])
    """
    _check_mask("masked_select", mask)
    shape = shapes.broadcast("masked_select", tuple(x.shape), tuple(mask.shape))
    flat = ops.reshape(ops.expand(mask, shape=shape), shape=(-1,))
    (where,) = nonzero(flat, as_tuple=True)
    return ops.take_slices(ops.reshape(ops.expand(x, shape=shape), shape=(-1,)), where, dim=0)


@composite
def masked_scatter(x: Any, mask: Any, source: Any) -> Any:
    """x with the elements of ``source``, in order, where ``mask`` is True; mask broadcasts to x."""
    _check_mask("masked_scatter", mask)
    flat = ops.reshape(ops.expand(mask, shape=tuple(x.shape)), shape=(-1,))
    (where,) = nonzero(flat, as_tuple=True)
    n, m = where.shape[0], shapes.numel(source.shape)
    if m < n:
        raise wrong("masked_scatter", f"source must hold at least {n} elements", got=m)
    values = ops.narrow(ops.reshape(source, shape=(-1,)), 0, 0, n)
    done = ops.put_slices(ops.reshape(x, shape=(-1,)), values, where, dim=0, op="masked_scatter")
    return ops.reshape(done, shape=tuple(x.shape))


# -- tables ----------------------------------------------------------------------------------------


@composite(method=False)
def embedding(
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of a table: input (...) of integers, weight (V, D) -> (..., D).

    padding_idx: that row gets no gradient. max_norm: rows longer than this are scaled down on the
    way (the table itself is left alone). scale_grad_by_freq: gradients are divided by how often a
    row occurs.

    >>> trident.embedding(trident.tensor([1]), trident.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[3., 4.]])
    """
    if weight.ndim != 2:
        raise wrong("embedding", "weight must have shape (V, D)", got=tuple(weight.shape))
    rows = ops.take_slices(weight, input, dim=0, op="embedding")
    if max_norm is not None:
        size = ops.sum(ops.abs(rows) ** norm_type, dim=-1, keepdim=True) ** (1.0 / norm_type)
        rows = rows * ops.where(size > max_norm, max_norm / (size + 1e-7), 1.0)
    if scale_grad_by_freq:
        ones = ops.full_like(input, value=1.0, dtype=weight.dtype)
        times = ops.sum_slices(ones, input, dim=0, size=weight.shape[0])
        share = 1.0 / ops.take_slices(times, input, dim=0)
        value = rows.detach()
        rows = value + (rows - value) * ops.unsqueeze(share, -1)
    if padding_idx is not None:
        n = weight.shape[0]
        if not -n <= padding_idx < n:
            raise wrong(
                "embedding", f"padding_idx must lie in [{-n}, {n - 1}]", got=padding_idx,
                error=IndexBoundsError,
            )  # fmt: skip
        pad = padding_idx % n
        padding = ops.logical_or(input == pad, input == pad - n)
        rows = ops.where(ops.unsqueeze(padding, -1), rows.detach(), rows)
    return rows


@primitive(method=False)
class one_hot_of:
    """1 where a new last axis of ``num_classes`` equals the index, else 0."""

    def infer(index, *, num_classes):
        check_int("one_hot", index)
        return Spec((*index.shape, num_classes), dtypes.int64)

    def numpy(index, *, num_classes):
        if index.dtype.kind not in "iu":
            raise TypeError("index dtype")
        return (index[..., None] == np.arange(num_classes)).astype(np.int64)

    def launch(out, index, *, num_classes):
        kernels.one_hot(out, index)

    def samples(draw):
        n = draw.integer(1, 5)
        return (draw.ints(draw.shape(0, 2), 0, n),), {"num_classes": n}


@composite(method=False)
def one_hot(x: Any, num_classes: int = -1) -> Any:
    """Integers (...) as rows of zeros with a one: (..., num_classes), int64.

    num_classes -1: one more than the largest. Raises IndexBoundsError for an index outside of the
    classes.

    >>> trident.one_hot(trident.tensor([1, 0]), 3)
    tensor([[0, 1, 0],
            [1, 0, 0]])
    """
    if x.dtype.kind != "int":
        raise wrong("one_hot", "x must have an integer dtype", got=x.dtype.name, error=DTypeError)
    if shapes.numel(x.shape):
        low, high = ops.amin(x).item(), ops.amax(x).item()
        if num_classes == -1:
            num_classes = high + 1
        if low < 0 or high >= num_classes:
            bad = low if low < 0 else high
            raise wrong(
                "one_hot",
                f"classes must lie in [0, {num_classes - 1}]",
                got=bad,
                error=IndexBoundsError,
            )
    elif num_classes < 1:
        raise wrong("one_hot", "num_classes must be given for an empty tensor", got=num_classes)
    return ops.one_hot_of(x, num_classes=int(num_classes))
