"""Single elements by position along an axis: gather, its adjoint scatter_add, and scatter.

``gather_along`` and ``scatter_sum`` are adjoint to each other. ``scatter_put`` overwrites: where an
index repeats, the last one wins, and only its source gets a gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..errors import DTypeError, wrong
from ..kernels import index as kernels
from ..kernels import scatter as writes
from .registry import Spec, composite, ops, primitive


def check_int(op: str, index: Any, name: str = "index") -> None:
    if index.dtype.kind != "int":
        raise wrong(
            op, f"{name} must have an integer dtype", got=index.dtype.name, error=DTypeError,
            hint="convert it with .long()",
        )  # fmt: skip


def raise_bad(op: str, index: np.ndarray, size: int, axis: int | None) -> None:
    """Name the first index outside of [-size, size), if there is one."""
    bad = (index >= size) | (index < -size)
    if bad.any():
        raise kernels.out_of_range(op, int(index[bad][0]), size, axis)


def wrapped(op: str, index: np.ndarray, size: int, axis: int | None) -> np.ndarray:
    """``index`` checked, with negative ones counted from the end."""
    if index.size == 0:
        return index
    if index.dtype.kind not in "iu":
        raise TypeError("index dtype")
    low = index.min()
    if low < -size or index.max() >= size:
        raise_bad(op, index, size, axis)
    return np.where(index < 0, index + size, index) if low < 0 else index


def _check_along(op: str, x: Any, index: Any, dim: int) -> int:
    """The axis of gather and scatter; raises unless index fits x in the other axes."""
    check_int(op, index)
    d = shapes.axis(op, dim, x.ndim)
    fits = x.ndim == index.ndim and all(
        i <= n for a, (i, n) in enumerate(zip(index.shape, x.shape)) if a != d
    )
    if not fits:
        raise wrong(
            op,
            f"index must have {x.ndim} axes, none (but axis {d}) longer than in x {tuple(x.shape)}",
            got=tuple(index.shape),
        )
    return d


def _grid(index: np.ndarray, d: int) -> tuple:
    """The index tuple that reads ``index`` along axis ``d`` and each other axis in step."""
    grid: list = [
        np.arange(n).reshape((-1,) + (1,) * (index.ndim - a - 1)) for a, n in enumerate(index.shape)
    ]
    grid[d] = index
    return tuple(grid)


def _fits(shape: tuple, index: np.ndarray, dim: int) -> int:
    """The axis, in a numpy body; ValueError sends the caller to ``infer`` for the message."""
    ndim = len(shape)
    if (
        index.ndim != ndim
        or not -max(ndim, 1) <= dim < max(ndim, 1)
        or index.dtype.kind not in "iu"
    ):
        raise ValueError("index")
    d = dim % max(ndim, 1)
    for a in range(ndim):
        if a != d and index.shape[a] > shape[a]:
            raise ValueError("index")
    return d


@primitive(method=False)
class gather_along:
    """``out[i][j][k] = x[index[i][j][k]][j][k]`` for dim 0: what ``gather`` is made of."""

    def infer(x, index, *, dim, op="gather"):
        _check_along(op, x, index, dim)
        return Spec(tuple(index.shape), x.dtype)

    def numpy(x, index, *, dim, op="gather"):
        d = _fits(x.shape, index, dim)
        if x.ndim == 0:
            raise_bad(op, index, 1, 0)
            return x.copy()
        try:
            return x[_grid(index, d)]
        except IndexError:
            raise_bad(op, index, x.shape[d], d)
            raise

    def launch(out, x, index, *, dim, op="gather"):
        kernels.gather(out, x, index, dim=shapes.axis(op, dim, x.ndim), op=op)

    def vjp(g, x_spec, index, *, dim):
        return ops.scatter_sum(g, index, dim=dim, shape=x_spec.shape), None

    def samples(draw):
        if draw.integer(0, 3) == 3:
            shape = draw.box(5)
            return (draw.tensor(shape), draw.ints(shape, -shape[1], shape[1])), {"dim": 1}
        n = draw.integer(1, 5)
        x = draw.tensor((draw.integer(2, 4), n, draw.integer(1, 3)))
        return (x, draw.ints((2, draw.size(0, 6, 70), x.shape[2]), -n, n)), {"dim": 1}


def _several(draw: Any) -> int:
    """How many times a sample writes along its axis, so that runs span pieces of a block each."""
    return 12 if isinstance(draw.blocks, int) else 70


@primitive(method=False)
class scatter_sum:
    """Zeros of ``shape``, to which the elements of x (of index's shape) are added at ``index``.

    The adjoint of ``gather_along``. Deterministic.
    """

    def infer(x, index, *, dim, shape, op="scatter_add"):
        _check_along(op, Spec(tuple(shape), x.dtype), index, dim)
        if tuple(x.shape) != tuple(index.shape):
            raise wrong(
                op, f"src must have the shape {tuple(index.shape)} of index", got=tuple(x.shape)
            )
        return Spec(tuple(shape), x.dtype)

    def numpy(x, index, *, dim, shape, op="scatter_add"):
        d = _fits(shape, index, dim)
        if x.shape != index.shape:
            raise ValueError("shapes")
        index = wrapped(op, index, shape[d] if shape else 1, d)
        if not shape:
            return x.copy()
        out = np.zeros(shape, x.dtype)
        if index.size:
            flat = np.ravel_multi_index(np.broadcast_arrays(*_grid(index, d)), shape).reshape(-1)
            np.add.at(out.reshape(-1), flat, x.reshape(-1))
        return out

    def launch(out, x, index, *, dim, shape, op="scatter_add"):
        d = shapes.axis(op, dim, out.ndim)
        writes.scatter(out, None, index, x, dim=d, add=True, op=op)

    def vjp(g, index, *, dim):
        return ops.gather_along(g, index, dim=dim), None

    def samples(draw):
        if draw.integer(0, 3) == 3:
            shape = draw.box(5)
            index = draw.ints(shape, -shape[1], shape[1])
            return (draw.tensor(shape), index), {"dim": 1, "shape": (*shape[:-1], shape[-1] + 1)}
        n = draw.integer(1, 5)
        index = draw.ints((2, draw.size(0, 6, _several(draw)), 3), -n, n)
        return (draw.tensor(index.shape), index), {"dim": 1, "shape": (3, n, 4)}


@primitive(method=False)
class scatter_put:
    """x with the elements of ``src`` (of index's shape) written at ``index``; the last one wins."""

    def infer(x, index, src, *, dim, op="scatter"):
        _check_along(op, x, index, dim)
        if tuple(src.shape) != tuple(index.shape):
            raise wrong(
                op, f"src must have the shape {tuple(index.shape)} of index", got=tuple(src.shape)
            )
        return Spec(tuple(x.shape), x.dtype)

    def numpy(x, index, src, *, dim, op="scatter"):
        d = _fits(x.shape, index, dim)
        if src.shape != index.shape:
            raise ValueError("shapes")
        index = wrapped(op, index, x.shape[d] if x.ndim else 1, d)
        out = np.array(x, order="C", copy=True)
        if x.ndim == 0:
            out[...] = src
        else:
            out[_grid(index, d)] = src
        return out

    def launch(out, x, index, src, *, dim, op="scatter"):
        writes.scatter(out, x, index, src, dim=shapes.axis(op, dim, x.ndim), add=False, op=op)

    def vjp(g, index, needs, *, dim):
        dx = dsrc = None
        if needs[0]:
            zeros = ops.full_like(g, value=0.0, shape=tuple(index.shape))
            dx = ops.scatter_put(g, index, zeros, dim=dim)
        if needs[2]:
            wins = ops.winners(index, dim=dim, shape=tuple(g.shape))
            dsrc = ops.where(wins, ops.gather_along(g, index, dim=dim), 0.0)
        return dx, None, dsrc

    def samples(draw):
        n = draw.integer(1, 5)
        index = draw.ints((2, draw.size(0, 6, _several(draw)), 3), -n, n)
        return (draw.tensor((3, n, 4)), index, draw.tensor(index.shape)), {"dim": 1}


@primitive(method=False)
class winners:
    """Which elements of ``index`` are the last to name their place in an array of ``shape``."""

    def infer(index, *, dim, shape):
        return Spec(tuple(index.shape), dtypes.bool_)

    def numpy(index, *, dim, shape):
        if not shape or not index.size:
            return np.ones(index.shape, np.bool_)
        d = dim % len(shape)
        at = _grid(np.where(index < 0, index + shape[d], index), d)
        position = np.arange(index.size).reshape(index.shape)
        last = np.zeros(shape, np.int64)
        last[at] = position
        return last[at] == position

    def launch(out, index, *, dim, shape):
        writes.scatter_winners(out, index, dim=shapes.axis("scatter", dim, len(shape)), shape=shape)

    def samples(draw):
        n = draw.integer(1, 4)
        index = draw.ints((2, draw.size(0, 6, 300)), -n, n)
        return (index,), {"dim": 1, "shape": (3, n)}


@composite
def gather(x: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> Any:
    """Elements of x by their position along ``dim``: ``out[i][j] = x[i][index[i][j]]`` for dim 1.

    index: integers with as many axes as x, none longer than x's but for ``dim``.

    >>> x = trident.tensor([[1, 2], [3, 4]])
    >>> trident.gather(x, 1, trident.tensor([[1], [0]]))
    tensor([[2],
            [3]])
    """
    return ops.gather_along(x, index, dim=dim)


def _within(op: str, src: Any, index: Any) -> Any:
    """``src`` cut to the shape of ``index``, which it must cover."""
    if tuple(src.shape) == tuple(index.shape):
        return src
    if src.ndim != index.ndim or any(s < i for s, i in zip(src.shape, index.shape)):
        raise wrong(
            op, f"src must cover the shape {tuple(index.shape)} of index", got=tuple(src.shape)
        )
    return ops.slice_view(src, index=tuple(slice(0, n) for n in index.shape))


@composite
def scatter(
    x: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Any:
    """x with ``src`` (a tensor or a number) written at ``index`` along ``dim``; the last one wins.

    ``out[i][index[i][j]] = src[i][j]`` for dim 1. reduce="add" adds instead.

    >>> trident.scatter(trident.zeros(3), 0, trident.tensor([2, 0]), trident.tensor([5.0, 7.0]))
    tensor([7., 0., 5.])
    """
    if src is None:
        src = value
    if not hasattr(src, "shape"):
        src = ops.full_like(x, value=src, shape=tuple(index.shape))
    if src.dtype is not x.dtype:
        raise wrong(
            "scatter",
            f"src must have the dtype {x.dtype.name} of x",
            got=src.dtype.name,
            error=DTypeError,
        )
    if reduce is not None:
        if reduce != "add":
            raise wrong("scatter", "reduce must be 'add' or None", got=repr(reduce))
        return scatter_add(x, dim, index, src)
    return ops.scatter_put(x, index, _within("scatter", src, index), dim=dim)


@composite
def scatter_add(x: Any, dim: int, index: Any, src: Any) -> Any:
    """x with ``src`` added at ``index`` along ``dim``; every repeated index counts.

    >>> trident.scatter_add(trident.zeros(2), 0, trident.tensor([1, 1]), trident.ones(2))
    tensor([0., 2.])
    """
    src = _within("scatter_add", src, index)
    return x + ops.scatter_sum(src, index, dim=dim, shape=tuple(x.shape))


@composite
def scatter_reduce(
    x: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> Any:
    """x with ``src`` combined at ``index`` along ``dim``: reduce is "sum", "mean", "amax" or
    "amin".

    Without ``include_self`` the values of x count only where nothing is written. For amax and amin
    the gradient goes to the one element that is kept.

    >>> index = trident.tensor([0, 0])
    >>> trident.scatter_reduce(trident.zeros(2), 0, index, trident.tensor([1.0, 2.0]), "amax")
    tensor([2., 0.])
    """
    src = _within("scatter_reduce", src, index)
    d = shapes.axis("scatter_reduce", dim, x.ndim)
    shape = tuple(x.shape)
    ones = ops.full_like(src, value=1, shape=tuple(index.shape))
    count = ops.scatter_sum(ones, index, dim=d, shape=shape, op="scatter_reduce")
    if reduce in ("sum", "mean"):
        kept = x if include_self else ops.where(count == 0, x, 0)
        total = kept + ops.scatter_sum(src, index, dim=d, shape=shape)
        if reduce == "sum":
            return total
        count = count + 1 if include_self else ops.maximum(count, 1)
        return total / count if x.dtype.is_floating_point else total // count
    if reduce not in ("amax", "amin"):
        raise wrong("scatter_reduce", "reduce must be sum, mean, amax or amin", got=repr(reduce))
    largest = _scatter_last(x, d, index, src, reduce == "amin")
    if include_self:
        largest = (ops.maximum if reduce == "amax" else ops.minimum)(x, largest)
    return ops.where(count == 0, x, largest)


def _scatter_last(x: Any, d: int, index: Any, src: Any, smallest: bool) -> Any:
    """x with the largest (or smallest) of the sources of each place: they are written in order, and
    the last one wins."""
    strides = shapes.contiguous_strides(tuple(x.shape))
    at = ops.where(index < 0, index + x.shape[d], index) * strides[d] if x.ndim else index
    for a, n in enumerate(index.shape):
        if a != d:
            line = ops.arange_like(index, n=n, dtype=dtypes.int64) * strides[a]
            at = at + ops.reshape(line, shape=(-1,) + (1,) * (index.ndim - a - 1))
    turned = smallest and src.dtype.is_floating_point  # so that a NaN is the last one here, too
    flat = ops.reshape(-src if turned else src, shape=(-1,))
    values, order = ops.ordered(flat, dim=0, descending=smallest and not turned)
    at = ops.take_slices(ops.reshape(at, shape=(-1,)), order, dim=0)
    done = ops.put_slices(ops.reshape(x, shape=(-1,)), -values if turned else values, at, dim=0)
    return ops.reshape(done, shape=tuple(x.shape))


@composite
def take_along_dim(x: Any, indices: Any, dim: int | None = None) -> Any:
    """Elements of x by position along ``dim``; x and indices broadcast in the other axes.

    Undoes ``argsort``: ``take_along_dim(x, argsort(x, d), d)`` is x sorted. Without ``dim``,
    flattened.
    """
    if dim is None:
        flat = ops.reshape(x, shape=(-1,))
        return ops.gather_along(flat, ops.reshape(indices, shape=(-1,)), dim=0, op="take_along_dim")
    d = shapes.axis("take_along_dim", dim, x.ndim)
    if indices.ndim != x.ndim:
        raise wrong("take_along_dim", f"indices must have {x.ndim} axes", got=tuple(indices.shape))
    others = [tuple(1 if a == d else n for a, n in enumerate(t.shape)) for t in (x, indices)]
    shape = shapes.broadcast("take_along_dim", *others)
    x = ops.expand(x, shape=(*shape[:d], x.shape[d], *shape[d + 1 :]))
    indices = ops.expand(indices, shape=(*shape[:d], indices.shape[d], *shape[d + 1 :]))
    return ops.gather_along(x, indices, dim=d, op="take_along_dim")
