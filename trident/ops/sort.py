"""Sorting and what follows from it: topk, unique, searchsorted. NaN is the largest value."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..errors import DTypeError, wrong
from ..kernels import sort as kernels
from .registry import Spec, composite, ops, primitive

Sorted = namedtuple("Sorted", ["values", "indices"])


def _has_nan(x: np.ndarray) -> bool:
    return x.dtype.kind == "f" and bool(np.isnan(x).any())


def _reversed(x: np.ndarray) -> np.ndarray:
    """What sorts ascending as x (without NaN) sorts descending, with equals in the same order."""
    return -x if x.dtype.kind == "f" else ~x


def _argsort(x: np.ndarray, dim: int, descending: bool) -> np.ndarray:
    if descending:
        if _has_nan(x):  # -inf must come behind NaN: two keys
            return np.lexsort((-x, ~np.isnan(x)), axis=dim)
        x = _reversed(x)
    return np.argsort(x, axis=dim, kind="stable")


@primitive(method=False)
class ordered:
    """The first ``k`` elements (None: all) along ``dim`` in order, and where they stood: two
    outputs.

    Equal elements keep their order.
    """

    def infer(x, *, dim=-1, descending=False, k=None):
        if x.ndim == 0:
            shapes.axis("sort", dim, 0)
            return Spec((), x.dtype), Spec((), dtypes.int64)
        d = shapes.axis("sort", dim, x.ndim)
        n = x.shape[d]
        if k is not None and not 0 <= k <= n:
            raise wrong("topk", f"k must lie in [0, {n}], the size of axis {d}", got=k)
        shape = (*x.shape[:d], n if k is None else k, *x.shape[d + 1 :])
        return Spec(shape, x.dtype), Spec(shape, dtypes.int64)

    def numpy(x, *, dim=-1, descending=False, k=None):
        if x.ndim == 0:
            return x.copy(), np.zeros((), np.int64)
        n = x.shape[dim]
        if k is not None:
            if not 0 <= k <= n:
                raise ValueError("k")
            if 0 < k * 8 < n and not _has_nan(x):
                return _top(x, dim, descending, k)
        order = _argsort(x, dim, descending)
        if k is not None and k < n:
            order = order[(slice(None),) * (dim % x.ndim) + (slice(0, k),)]
        return np.take_along_axis(x, order, dim), np.ascontiguousarray(order)

    def launch(out, x, *, dim=-1, descending=False, k=None):
        values, indices = out
        kernels.sort(
            values, indices, x, dim=shapes.axis("sort", dim, x.ndim), descending=descending
        )

    def vjp(g, x_spec, out, *, dim):
        if not x_spec.shape:
            return g[0]
        return ops.scatter_sum(g[0], out[1], dim=dim, shape=x_spec.shape)

    def samples(draw):
        n = draw.integer(1, 7)
        if draw.blocks == "gpu" and draw.boolean():  # tiles that are merged
            n = draw.integer(1100, 2100)
        x = draw.tensor((draw.integer(0, 3) if n < 8 else 1, n, draw.integer(1, 3 if n < 8 else 2)))
        return (x,), {"dim": 1, "descending": draw.boolean(), "k": draw.choice([None, 1, n])}


def _top(x: np.ndarray, dim: int, descending: bool, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A few of many: partition, then sort what was found. No NaN."""
    key = _reversed(x) if descending else x
    head = (slice(None),) * (dim % x.ndim) + (slice(0, k),)
    found = np.sort(np.argpartition(key, k - 1, axis=dim)[head], axis=dim)
    keys = np.take_along_axis(key, found, dim)
    edge = keys.max(dim, keepdims=True)
    if ((key == edge).sum(dim) != (keys == edge).sum(dim)).any():
        # more elements equal the last one taken than were taken: the first ones count
        order = np.argsort(key, axis=dim, kind="stable")[head]
        return np.take_along_axis(x, order, dim), np.ascontiguousarray(order)
    order = np.take_along_axis(found, np.argsort(keys, axis=dim, kind="stable"), dim)
    return np.take_along_axis(x, order, dim), order


@composite
def sort(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Sorted:
    """(values, indices) of x in order along ``dim``; always stable. NaN is the largest value.

    >>> trident.sort(trident.tensor([3, 1, 2])).indices
    tensor([1, 2, 0])
    """
    return Sorted(*ops.ordered(x, dim=dim, descending=bool(descending)))


@composite
def argsort(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """The positions that put x in order along ``dim``.

    >>> trident.argsort(trident.tensor([3, 1, 2]), descending=True)
    tensor([0, 2, 1])
    """
    return ops.ordered(x, dim=dim, descending=bool(descending))[1]


@composite
def topk(x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Sorted:
    """(values, indices) of the ``k`` largest (or smallest) elements along ``dim``, in order.

    >>> trident.topk(trident.tensor([3, 1, 2]), 2).values
    tensor([3, 2])
    """
    return Sorted(*ops.ordered(x, dim=dim, descending=bool(largest), k=int(k)))


@composite
def kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Sorted:
    """(value, index) of the ``k``-th smallest element (from 1) along ``dim``."""
    n = x.shape[shapes.axis("kthvalue", dim, x.ndim)] if x.ndim else 1
    if not 1 <= k <= n:
        raise wrong("kthvalue", f"k must lie in [1, {n}]", got=k)
    if x.ndim == 0:
        return sort(x)
    values, indices = ops.ordered(x, dim=dim, descending=False, k=int(k))
    found = [ops.narrow(t, dim, k - 1, 1) for t in (values, indices)]
    return Sorted(*(found if keepdim else [ops.squeeze(t, dim) for t in found]))


@composite
def msort(x: Any) -> Any:
    """x sorted along its first axis."""
    return sort(x, 0).values


@composite
def unique(
    x: Any,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The different values of x in ascending order; with them, on request, where in the result each
    element of x is, and how often each value occurs. The size is read by the host.

    >>> trident.unique(trident.tensor([2, 1, 2]), return_counts=True)
    (tensor([1, 2]), tensor([1, 2]))
    """
    if dim is not None and x.ndim != 1:
        raise wrong("unique", "dim is only taken for tensors of one axis", got=dim)
    flat = ops.reshape(x, shape=(-1,))
    values, order = ops.ordered(flat, dim=0)
    return _runs(x, values, order, return_inverse, return_counts)


@composite
def unique_consecutive(
    x: Any, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The values of the flattened x with runs of equal ones shortened to one."""
    if dim is not None and x.ndim != 1:
        raise wrong("unique_consecutive", "dim is only taken for tensors of one axis", got=dim)
    return _runs(x, ops.reshape(x, shape=(-1,)), None, return_inverse, return_counts)


def _runs(x: Any, values: Any, order: Any, return_inverse: bool, return_counts: bool) -> Any:
    """First of each run of equal ``values``; inverse and counts for x, which ``order`` sorted."""
    n = values.shape[0]
    if n == 0:
        starts = ops.arange_like(x, n=0, dtype=dtypes.int64)
        inverse = ops.full_like(x, value=0, dtype=dtypes.int64)
    else:
        changed = ops.narrow(values, 0, 1, n - 1) != ops.narrow(values, 0, 0, n - 1)
        first = ops.full_like(values, value=True, shape=(1,), dtype=dtypes.bool_)
        new = ops.joined(first, changed, dim=0)
        starts = ops.nonzero(new, as_tuple=True)[0]
    results = [ops.take_slices(values, starts, dim=0)]
    if return_inverse:
        if n:
            run = ops.cumsum(ops.to_dtype(new, dtype=dtypes.int64), dim=0) - 1
            inverse = run if order is None else ops.scatter_put(run, order, run, dim=0)
            inverse = ops.reshape(inverse, shape=tuple(x.shape))
        results.append(inverse)
    if return_counts:
        end = ops.full_like(starts, value=n, shape=(1,))
        bounds = ops.joined(starts, end, dim=0)
        k = starts.shape[0]
        results.append(ops.narrow(bounds, 0, 1, k) - ops.narrow(bounds, 0, 0, k))
    return results[0] if len(results) == 1 else tuple(results)


@primitive(method=False)
class search:
    """Positions of x (..., M) in ascending edges (N,) or (..., N): the core of searchsorted."""

    def infer(edges, x, *, right=False, dtype=dtypes.int64):
        if edges.ndim == 0:
            raise wrong("searchsorted", "sorted_sequence must have at least one axis")
        if edges.ndim > 1 and (x.ndim == 0 or edges.shape[:-1] != x.shape[:-1]):
            raise wrong(
                "searchsorted", f"values must have the leading axes of {tuple(edges.shape)}",
                got=tuple(x.shape),
            )  # fmt: skip
        if edges.dtype is not x.dtype:
            raise wrong(
                "searchsorted", f"values must have the dtype {edges.dtype.name} of the sequence",
                got=x.dtype.name, error=DTypeError,
            )  # fmt: skip
        return Spec(tuple(x.shape), dtype)

    def numpy(edges, x, *, right=False, dtype=dtypes.int64):
        side = "right" if right else "left"
        if edges.ndim == 1:
            return np.searchsorted(edges, x, side).astype(dtype.np)
        if edges.shape[:-1] != x.shape[:-1]:
            raise ValueError("shapes")
        out = np.empty(x.shape, dtype.np)
        for at in np.ndindex(*x.shape[:-1]):
            out[at] = np.searchsorted(edges[at], x[at], side)
        return out

    def launch(out, edges, x, *, right=False, dtype=dtypes.int64):
        kernels.searchsorted(out, edges, x, right=right)

    def samples(draw):
        n, m, rows = draw.integer(1, 6), draw.size(0, 4, 19), draw.integer(1, 3)
        edges = np.sort(np.asarray(draw.tensor((rows, n))).astype(np.float64), 1)
        edges = edges.astype(draw.dtype.np)
        return (edges, draw.tensor((rows, m))), {"right": draw.boolean()}


@composite(method=False)
def searchsorted(
    sorted_sequence: Any,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
) -> Any:
    """Where the values of ``input`` would go into an ascending sequence to keep it in order.

    sorted_sequence (N,), or (..., N) with input (..., M). ``right`` (or side="right"): behind
    equals.

    >>> trident.searchsorted(trident.tensor([1, 3, 5]), trident.tensor([3, 6]))
    tensor([1, 3])
    """
    if side not in (None, "left", "right"):
        raise wrong("searchsorted", "side must be 'left' or 'right'", got=repr(side))
    if isinstance(input, (int, float)):
        input = ops.full_like(sorted_sequence, value=input, shape=())
    d = dtypes.int32 if out_int32 else dtypes.int64
    return ops.search(sorted_sequence, input, right=right or side == "right", dtype=d)


@composite
def bucketize(x: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Any:
    """The number of the interval between ascending ``boundaries`` (N,) that each element of x is
    in.
    """
    return searchsorted(boundaries, x, out_int32=out_int32, right=right)
