"""Reductions: sums, products, extrema, tests, moments and norms over any axes.

``dim`` is an axis, a tuple of axes, or None for all; ``keepdim`` keeps reduced axes with size 1.
Integers and bool are summed as int64; float16 and bfloat16 are accumulated in float32. NaN
propagates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import DTypeError, IndexBoundsError, wrong
from ..kernels import reduce as kernels
from ..kernels import softmax as softmax_kernels
from ..runtime import host_threads
from .registry import Spec, ops, primitive

Dims = int | Sequence[int] | None


# ---- shapes and dtypes --------------------------------------------------------------------------


def _reduced(op: str, x: Any, dim: Dims, keepdim: bool) -> tuple[int, ...]:
    return shapes.reduced(x.shape, shapes.axes(op, dim, x.ndim), keepdim)


def not_empty(op: str, x: Any, dim: Dims) -> None:
    """Raise if an axis that ``op`` reduces is empty: the largest of nothing is not defined."""
    for a in shapes.axes(op, dim, x.ndim):
        if x.shape[a] == 0:
            raise wrong(
                op,
                f"axis {a} of shape {tuple(x.shape)} is empty: {op} of nothing is undefined",
                error=IndexBoundsError,
            )


def _sum_dtype(x: Any, dtype: DType | None) -> DType:
    if dtype is not None:
        return dtypes.as_dtype(dtype)
    return x.dtype if x.dtype.is_floating_point else dtypes.int64


def float_only(op: str, x: Any) -> None:
    if not x.dtype.is_floating_point:
        raise wrong(
            op,
            "x must have a floating dtype",
            got=x.dtype.name,
            error=DTypeError,
            hint="convert with x.float()",
        )


def _kept(g: Any, shape: shapes.Shape, over: Sequence[int]) -> Any:
    """A reduced value with its axes back, as size 1."""
    wanted = shapes.reduced(shape, over, True)
    return g if tuple(g.shape) == wanted else ops.reshape(g, shape=wanted)


def _spread(g: Any, spec: Any, dim: Dims) -> Any:
    """A reduced gradient, repeated over the reduced axes."""
    shape = tuple(spec.shape)
    over = shapes.axes("expand", dim, len(shape))
    return ops.expand(_kept(g, shape, over), shape=shape)


def _spread_array(g: Any, shape: shapes.Shape, dim: Dims) -> np.ndarray:
    """``_spread`` of an ndarray: a read-only view."""
    if g.ndim and len(shape) != g.ndim:
        g = g.reshape(shapes.reduced(shape, shapes.axes("expand", dim, len(shape)), True))
    return np.broadcast_to(g, shape)


# ---- numpy --------------------------------------------------------------------------------------


def _axis(x: np.ndarray, dim: Dims) -> Any:
    """``dim`` as numpy's axis argument."""
    if dim.__class__ is int:
        return dim if x.ndim else shapes.axes("dim", dim, 0)
    if dim and not x.ndim:
        return shapes.axes("dim", dim, 0)
    return tuple(dim) if dim else None  # type: ignore[arg-type]


_LARGE = 1 << 20
_PART = 1 << 17


def _sum_in_parts(x: np.ndarray, dtype: Any) -> np.ndarray:
    """The sum of a long 1-D array on all threads; its parts depend on the length alone."""
    starts = range(0, x.size, _PART)
    sums = np.empty(len(starts), dtype or x.dtype)
    workers = host_threads.get_num_threads()

    def share(i: int) -> None:
        for k in range(i, len(starts), workers):
            sums[k] = np.add.reduce(x[starts[k] : starts[k] + _PART], dtype=dtype)

    host_threads.run(share, min(workers, len(starts)))
    return np.asarray(np.add.reduce(sums))


def _sum(x: np.ndarray, dim: Dims, keepdim: bool, dtype: Any) -> np.ndarray:
    """x.sum over ``dim``. Large sums over leading axes go through BLAS: numpy adds whole rows one
    after the other there, which is nine times slower and less accurate than its pairwise sum."""
    axis = _axis(x, dim)
    if x.size >= _LARGE and axis is None and x.dtype.kind == "f" and x.flags.c_contiguous:
        return _sum_in_parts(x.reshape(-1), dtype).reshape((1,) * x.ndim if keepdim else ())
    if x.size > 4096 and x.dtype.kind == "f" and dtype in (None, x.dtype) and x.flags.c_contiguous:
        over = shapes.axes("sum", dim, x.ndim)
        if over and over != tuple(range(x.ndim)):
            lead = 0
            while lead < len(over) and over[lead] == lead:
                lead += 1
            tail = 0
            while tail < len(over) - lead and over[-1 - tail] == x.ndim - 1 - tail:
                tail += 1
            if lead + tail == len(over) and lead:
                shape = shapes.reduced(x.shape, over, keepdim)
                rows = math.prod(x.shape[:lead])
                if tail:
                    inner = math.prod(x.shape[x.ndim - tail :])
                    x = np.add.reduce(x.reshape(-1, inner), axis=1)
                x = x.reshape(rows, -1)
                return (np.ones(rows, x.dtype) @ x).reshape(shape)
    return np.add.reduce(x, axis=axis, dtype=dtype, keepdims=keepdim)  # type: ignore[call-overload]


def _accumulate_in(x: np.ndarray, dtype: DType | None) -> np.dtype | None:
    if dtype is not None:
        return dtypes.as_dtype(dtype).compute.np
    return None if x.dtype.kind == "f" else np.dtype(np.int64)


def _rounded(r: Any, dtype: DType | None) -> Any:
    return r if dtype is None or not dtype.is_floating_point else np.asarray(r).astype(dtype.np)


# ---- primitives ---------------------------------------------------------------------------------


@primitive
class sum:
    """Sum of x over ``dim``. Integers and bool give int64, unless ``dtype`` says otherwise.

    >>> trident.sum(trident.tensor([[1., 2.], [3., 4.]]), dim=0)
    tensor([4., 6.])
    """

    def infer(x, *, dim=None, keepdim=False, dtype=None):
        return Spec(_reduced("sum", x, dim, keepdim), _sum_dtype(x, dtype))

    def numpy(x, *, dim=None, keepdim=False, dtype=None):
        return _rounded(_sum(x, dim, keepdim, _accumulate_in(x, dtype)), dtype)

    def launch(out, x, *, dim=None, keepdim=False, dtype=None):
        over = shapes.axes("sum", dim, x.ndim)
        kernels.reduce(out, x, over=over, kind=kernels.SUM)

    def numpy_vjp(g, x_spec, *, dim):
        return (_spread_array(g, x_spec.shape, dim),)

    def vjp(g, x_spec, *, dim):
        return _spread(g, x_spec, dim)

    def samples(draw):
        return _draw(draw)


@primitive
class mean:
    """Mean of x over ``dim``; NaN over an empty axis. x must be floating, or ``dtype`` given.

    >>> trident.mean(trident.tensor([[1., 2.], [3., 4.]]), dim=1)
    tensor([1.5000, 3.5000])
    """

    def infer(x, *, dim=None, keepdim=False, dtype=None):
        if dtype is None:
            float_only("mean", x)
        return Spec(_reduced("mean", x, dim, keepdim), _sum_dtype(x, dtype))

    def numpy(x, *, dim=None, keepdim=False, dtype=None):
        if dtype is None and x.dtype.kind != "f":
            raise TypeError("mean of integers")
        total = _sum(x, dim, keepdim, _accumulate_in(x, dtype))
        n = x.size // total.size if total.size else 1
        return _rounded(total / total.dtype.type(n), dtype)

    def launch(out, x, *, dim=None, keepdim=False, dtype=None):
        over = shapes.axes("mean", dim, x.ndim)
        kernels.reduce(out, x, over=over, kind=kernels.SUM, mean=True)

    def numpy_vjp(g, x_spec, *, dim):
        n = shapes.numel(x_spec.shape) // (g.size or 1)
        return (_spread_array(g * g.dtype.type(1.0 / (n or 1)), x_spec.shape, dim),)

    def vjp(g, x_spec, *, dim):
        n = shapes.numel(x_spec.shape) // (shapes.numel(g.shape) or 1)
        return _spread(g * (1.0 / (n or 1)), x_spec, dim)

    def samples(draw):
        return _draw(draw)


@primitive
class prod:
    """Product of x over ``dim``; 1 over an empty axis. Gradients hold where x has zeros.

    >>> trident.prod(trident.tensor([[1., 2.], [3., 4.]]), dim=1)
    tensor([ 2., 12.])
    """

    def infer(x, *, dim=None, keepdim=False, dtype=None):
        return Spec(_reduced("prod", x, dim, keepdim), _sum_dtype(x, dtype))

    def numpy(x, *, dim=None, keepdim=False, dtype=None):
        acc = _accumulate_in(x, dtype)
        r = np.multiply.reduce(x, axis=_axis(x, dim), dtype=acc, keepdims=keepdim)
        return _rounded(r, dtype)

    def launch(out, x, *, dim=None, keepdim=False, dtype=None):
        over = shapes.axes("prod", dim, x.ndim)
        kernels.reduce(out, x, over=over, kind=kernels.PROD)

    def vjp(g, x, *, dim):
        # the product of the others, without a division: what comes before times what comes after
        shape = tuple(x.shape)
        over = shapes.axes("prod", dim, x.ndim)
        if not over:
            return ops.reshape(g, shape=shape)
        if x.dtype is not g.dtype:
            x = ops.to_dtype(x, dtype=g.dtype)
        kept = [a for a in range(x.ndim) if a not in over]
        order = (*kept, *over)
        sizes = tuple(shape[a] for a in order)
        rows = (*(shape[a] for a in kept), shapes.numel(shape[a] for a in over))
        flat = ops.reshape(ops.permute(x, dims=order), shape=rows)
        others = _before(flat) * ops.flip(_before(ops.flip(flat, (-1,))), (-1,))
        others = others * ops.reshape(g, shape=(*rows[:-1], 1))
        back = [0] * len(order)
        for at, a in enumerate(order):
            back[a] = at
        return ops.permute(ops.reshape(others, shape=sizes), dims=tuple(back))

    def samples(draw):
        return _draw(draw)


def _before(x: Any) -> Any:
    """Along the last axis: the product of the elements before each."""
    n = x.shape[-1]
    if n == 0:
        return x
    one = ops.full_like(x, value=1.0, shape=(*x.shape[:-1], 1))
    if n == 1:
        return one
    return ops.cat([one, ops.cumprod(ops.narrow(x, -1, 0, n - 1), dim=-1)], -1)


def _tied(g: Any, x: Any, out: Any, dim: Dims) -> Any:
    """The gradient of an extremum, shared evenly by the elements that equal it."""
    over = shapes.axes("amax", dim, x.ndim)
    shape = tuple(x.shape)
    hits = ops.to_dtype(ops.eq(x, _kept(out, shape, over)), dtype=g.dtype)
    if not over:
        return g * hits
    return hits * (_kept(g, shape, over) / ops.sum(hits, over, True))


@primitive
class amax:
    """Maximum of x over ``dim``; the gradient is shared evenly among equals. Raises on an empty
    axis.

    >>> trident.amax(trident.tensor([[1., 5.], [3., 4.]]), dim=1)
    tensor([5., 4.])
    """

    def infer(x, *, dim=None, keepdim=False):
        not_empty("amax", x, dim)
        return Spec(_reduced("amax", x, dim, keepdim), x.dtype)

    def numpy(x, *, dim=None, keepdim=False):
        return np.maximum.reduce(x, axis=_axis(x, dim), keepdims=keepdim)

    def launch(out, x, *, dim=None, keepdim=False):
        over = shapes.axes("amax", dim, x.ndim)
        kernels.reduce(out, x, over=over, kind=kernels.MAX)

    def vjp(g, x, out, *, dim):
        return _tied(g, x, out, dim)

    def samples(draw):
        return _draw(draw, empty=False)


@primitive
class amin:
    """Minimum of x over ``dim``; the gradient is shared evenly among equals. Raises on an empty
    axis.

    >>> trident.amin(trident.tensor([[1., 5.], [3., 4.]]), dim=1)
    tensor([1., 3.])
    """

    def infer(x, *, dim=None, keepdim=False):
        not_empty("amin", x, dim)
        return Spec(_reduced("amin", x, dim, keepdim), x.dtype)

    def numpy(x, *, dim=None, keepdim=False):
        return np.minimum.reduce(x, axis=_axis(x, dim), keepdims=keepdim)

    def launch(out, x, *, dim=None, keepdim=False):
        over = shapes.axes("amin", dim, x.ndim)
        kernels.reduce(out, x, over=over, kind=kernels.MIN)

    def vjp(g, x, out, *, dim):
        return _tied(g, x, out, dim)

    def samples(draw):
        return _draw(draw, empty=False)


def _arg_infer(op: str, x: Any, dim: int | None, keepdim: bool) -> Spec:
    if dim is not None:
        shapes.axis(op, dim, x.ndim)
    not_empty(op, x, dim)
    return Spec(_reduced(op, x, dim, keepdim), dtypes.int64)


@primitive
class argmax:
    """Index (int64) of the maximum along ``dim``, or in the flattened x; the first of equals.

    A NaN counts as the maximum. Raises on an empty axis.

    >>> trident.argmax(trident.tensor([[1., 5.], [3., 3.]]), dim=1)
    tensor([1, 0])
    """

    def infer(x, *, dim=None, keepdim=False):
        return _arg_infer("argmax", x, dim, keepdim)

    def numpy(x, *, dim=None, keepdim=False):
        return np.argmax(x, axis=dim if x.ndim else None, keepdims=keepdim)

    def launch(out, x, *, dim=None, keepdim=False):
        over = shapes.axes("argmax", dim, x.ndim)
        kernels.arg_reduce(out, x, over=over, largest=True)

    def samples(draw):
        return _arg_draw(draw)


@primitive
class argmin:
    """Index (int64) of the minimum along ``dim``, or in the flattened x; the first of equals.

    A NaN counts as the minimum. Raises on an empty axis.

    >>> trident.argmin(trident.tensor([[1., 5.], [3., 3.]]), dim=1)
    tensor([0, 0])
    """

    def infer(x, *, dim=None, keepdim=False):
        return _arg_infer("argmin", x, dim, keepdim)

    def numpy(x, *, dim=None, keepdim=False):
        return np.argmin(x, axis=dim if x.ndim else None, keepdims=keepdim)

    def launch(out, x, *, dim=None, keepdim=False):
        over = shapes.axes("argmin", dim, x.ndim)
        kernels.arg_reduce(out, x, over=over, largest=False)

    def samples(draw):
        return _arg_draw(draw)


def _arg_draw(draw: Any) -> tuple[tuple, dict]:
    """One array in four is all infinite: no element beats what a search for an extremum begins
    with."""
    (x,), attrs = _draw(draw, empty=False, one=True)
    if draw.integer(0, 3) == 3:
        x = np.full(x.shape, draw.choice([-np.inf, np.inf]), x.dtype)
    return (x,), attrs


def _along_infer(op: str, x: Any, dim: int, keepdim: bool) -> tuple[Spec, Spec]:
    shapes.axis(op, dim, x.ndim)
    not_empty(op, x, dim)
    shape = _reduced(op, x, dim, keepdim)
    return Spec(shape, x.dtype), Spec(shape, dtypes.int64)


def _along_numpy(x: np.ndarray, at: Any, dim: int, keepdim: bool) -> tuple[Any, Any]:
    if x.ndim == 0:
        return x, np.zeros((), np.int64)
    values = np.take_along_axis(x, at, dim)
    return (values, at) if keepdim else (values.squeeze(dim), at.squeeze(dim))


def _along_vjp(g: tuple, out: tuple, spec: Any, dim: int) -> Any:
    shape = tuple(spec.shape)
    over = shapes.axes("max", dim, len(shape))
    if not shape:
        return g[0]
    zeros = ops.full_like(g[0], value=0.0, shape=shape)
    return ops.scatter_add(zeros, dim, _kept(out[1], shape, over), _kept(g[0], shape, over))


@primitive(method=False)
class max_along:
    """(values, indices) of the maxima along ``dim``; the first of equals, and NaN is the
    maximum."""

    def infer(x, *, dim, keepdim=False):
        return _along_infer("max", x, dim, keepdim)

    def numpy(x, *, dim, keepdim=False):
        return _along_numpy(x, np.argmax(x, axis=dim, keepdims=True) if x.ndim else 0, dim, keepdim)

    def launch(out, x, *, dim, keepdim=False):
        over = shapes.axes("max", dim, x.ndim)
        kernels.arg_reduce(out[1], x, over=over, largest=True, values=out[0])

    def vjp(g, x_spec, out, *, dim):
        return _along_vjp(g, out, x_spec, dim)

    def samples(draw):
        return _draw(draw, empty=False, one=True, all_axes=False)


@primitive(method=False)
class min_along:
    """(values, indices) of the minima along ``dim``; the first of equals, and NaN is the
    minimum."""

    def infer(x, *, dim, keepdim=False):
        return _along_infer("min", x, dim, keepdim)

    def numpy(x, *, dim, keepdim=False):
        return _along_numpy(x, np.argmin(x, axis=dim, keepdims=True) if x.ndim else 0, dim, keepdim)

    def launch(out, x, *, dim, keepdim=False):
        over = shapes.axes("min", dim, x.ndim)
        kernels.arg_reduce(out[1], x, over=over, largest=False, values=out[0])

    def vjp(g, x_spec, out, *, dim):
        return _along_vjp(g, out, x_spec, dim)

    def samples(draw):
        return _draw(draw, empty=False, one=True, all_axes=False)


@primitive
class any:
    """Whether any element over ``dim`` is not zero (NaN is not zero); False over an empty axis.

    >>> trident.any(trident.tensor([[0., 5.], [0., 0.]]), dim=1)
    tensor([ True, False])
    """

    def infer(x, *, dim=None, keepdim=False):
        return Spec(_reduced("any", x, dim, keepdim), dtypes.bool_)

    def numpy(x, *, dim=None, keepdim=False):
        return np.logical_or.reduce(x, axis=_axis(x, dim), keepdims=keepdim)

    def launch(out, x, *, dim=None, keepdim=False):
        over = shapes.axes("any", dim, x.ndim)
        kernels.reduce(out, x, over=over, kind=kernels.MAX, nonzero=True, acc=dtypes.int32)

    def samples(draw):
        return _draw(draw, low=-0.4, high=0.4)


@primitive
class all:
    """Whether every element over ``dim`` is not zero (NaN is not zero); True over an empty axis.

    >>> trident.all(trident.tensor([[1., 5.], [0., 2.]]), dim=1)
    tensor([ True, False])
    """

    def infer(x, *, dim=None, keepdim=False):
        return Spec(_reduced("all", x, dim, keepdim), dtypes.bool_)

    def numpy(x, *, dim=None, keepdim=False):
        return np.logical_and.reduce(x, axis=_axis(x, dim), keepdims=keepdim)

    def launch(out, x, *, dim=None, keepdim=False):
        over = shapes.axes("all", dim, x.ndim)
        kernels.reduce(out, x, over=over, kind=kernels.MIN, nonzero=True, acc=dtypes.int32)

    def samples(draw):
        return _draw(draw, low=-0.4, high=0.4)


@primitive
class count_nonzero:
    """How many elements over ``dim`` are not zero, int64.

    >>> trident.count_nonzero(trident.tensor([[1., 5.], [0., 2.]]), dim=1)
    tensor([2, 1])
    """

    def infer(x, *, dim=None):
        return Spec(_reduced("count_nonzero", x, dim, False), dtypes.int64)

    def numpy(x, *, dim=None):
        return np.asarray(np.count_nonzero(x, axis=_axis(x, dim)), np.int64)

    def launch(out, x, *, dim=None):
        over = shapes.axes("count_nonzero", dim, x.ndim)
        kernels.reduce(out, x, over=over, kind=kernels.SUM, nonzero=True)

    def samples(draw):
        args, attrs = _draw(draw)
        return args, {"dim": attrs["dim"]}


@primitive
class logsumexp:
    """log(sum(exp(x))) over ``dim``, without overflow; -inf where all are -inf or none are there.

    >>> trident.logsumexp(trident.tensor([1000., 1000.]), dim=0)
    tensor(1000.6932)
    """

    def infer(x, *, dim, keepdim=False):
        float_only("logsumexp", x)
        return Spec(_reduced("logsumexp", x, dim, keepdim), x.dtype)

    def numpy(x, *, dim, keepdim=False):
        axis = _axis(x, dim)
        top = np.maximum.reduce(x, axis=axis, keepdims=True, initial=-np.inf)
        top = np.where(np.isinf(top), 0, top)  # inf - inf would be NaN
        total = np.add.reduce(np.exp(x - top), axis=axis, keepdims=keepdim)
        return np.log(total) + top.reshape(total.shape)

    def launch(out, x, *, dim, keepdim=False):
        softmax_kernels.logsumexp(out, x, over=shapes.axes("logsumexp", dim, x.ndim))

    def vjp(g, x, out, *, dim):
        shape = tuple(x.shape)
        over = shapes.axes("logsumexp", dim, x.ndim)
        top = _kept(out, shape, over)
        finite = ops.where(ops.eq(ops.abs(top), math.inf), 0.0, top)
        return _kept(g, shape, over) * ops.exp(x - finite)

    def samples(draw):
        low = draw.choice([-2.0, -602.0])  # far below 0, where exp(x) is 0
        return _draw(draw, low=low, high=low + 4.0)


def distinct(draw: Any, x: np.ndarray) -> np.ndarray:
    """x with no two elements equal: an extremum has no derivative at a tie."""
    steps = np.linspace(0, 1, x.size).reshape(x.shape)
    return np.asarray(x + steps, x.dtype, order=draw.choice(["C", "F"]))


def _draw(
    draw: Any,
    *,
    empty: bool = True,
    one: bool = False,
    all_axes: bool = True,
    low: float = -2.0,
    high: float = 2.0,
) -> tuple[tuple, dict]:
    """A random array, and axes of it: one, several or all."""
    if draw.integer(0, 5) == 5 and not one:  # three kept and three reduced axes, in turn
        x = draw.tensor(draw.box(6), low=low, high=high)
        dim = draw.choice([(0, 2, 4), (1, 3, 5)])
        return (x if empty else distinct(draw, x),), {"dim": dim, "keepdim": draw.boolean()}
    shape = draw.shape(1, 4)
    if draw.integer(0, 7) == 7:
        shape = (draw.integer(1, 3), draw.integer(60, 90))
    if not empty:
        shape = tuple(s or 1 for s in shape)
    ndim = len(shape)
    choice = draw.integer(0, 2)
    dim: Any = draw.integer(-ndim, ndim - 1)
    if choice == 0 and all_axes:
        dim = None
    elif choice == 1 and not one:
        first = draw.integer(0, ndim - 1)
        dim = tuple(sorted({first, draw.integer(0, ndim - 1)}))
    x = draw.tensor(shape, low=low, high=high)
    if not empty:
        x = distinct(draw, x)
    if one and dim is None:
        return (x,), {"dim": None}
    return (x,), {"dim": dim if dim is not None else tuple(range(ndim)), "keepdim": draw.boolean()}
