"""What primitives and views mean inside a fused function, in elementwise ops and reductions.

A primitive that is not here (a matmul, a sort, a gather) cannot be part of one loop over the
elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import dtypes, shapes
from ..backends.graph import Count
from ..errors import DTypeError, wrong
from ..ops.registry import REGISTRY, ops

HANDLERS: dict[str, Callable] = {}


def _handler(function: Callable) -> Callable:
    HANDLERS[function.__name__.rstrip("_")] = function
    return function


# ---- reductions ---------------------------------------------------------------------------------


@_handler
def sum(x: Any, *, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    over = shapes.axes("sum", dim, x.ndim)
    if dtype is not None:
        x = x.cast(dtypes.as_dtype(dtype))
    elif not x.dtype.is_floating_point:
        x = x.cast(dtypes.int64)
    return x.reduce("sum", over, keepdim)


@_handler
def mean(x: Any, *, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    if dtype is None and not x.dtype.is_floating_point:
        raise wrong(
            "mean", "x must have a floating dtype", got=x.dtype.name, error=DTypeError,
            hint="convert with x.float()",
        )  # fmt: skip
    total = sum(x, dim=dim, keepdim=keepdim, dtype=dtype)
    over = shapes.axes("mean", dim, x.ndim)
    t = x.trace
    axes = t.canonical([x.dims[a] for a in over])
    if not axes:
        return total
    ref = t.node(REGISTRY["div"], (total.ref, Count(axes)), {}, total.dtype, t.axes_of(total.ref))
    return type(x)(t, ref, total._shape, total.dtype, total.dims)


@_handler
def amax(x: Any, *, dim: Any = None, keepdim: bool = False) -> Any:
    return x.reduce("amax", shapes.axes("amax", dim, x.ndim), keepdim)


@_handler
def amin(x: Any, *, dim: Any = None, keepdim: bool = False) -> Any:
    return x.reduce("amin", shapes.axes("amin", dim, x.ndim), keepdim)


@_handler
def logsumexp(x: Any, *, dim: Any = None, keepdim: bool = False) -> Any:
    over = shapes.axes("logsumexp", dim, x.ndim)
    top = x.detach().reduce("amax", over, True)
    top = ops.where(ops.eq(ops.abs(top), float("inf")), 0.0, top)
    total = ops.log(ops.exp(x - top).reduce("sum", over, True)) + top
    if keepdim:
        return total
    return reshape(total, shape=shapes.reduced(x._shape, over, False))


def _shifted(op: str, x: Any, dim: Any, dtype: Any) -> tuple[Any, tuple[int, ...]]:
    if dtype is not None:
        x = x.cast(dtypes.as_dtype(dtype))
    if dim is None:
        raise wrong(op, "dim must be given inside a fused function", error=TypeError)
    over = (shapes.axis(op, dim, x.ndim),) if x.ndim else ()
    return x - x.detach().reduce("amax", over, True), over


@_handler
def softmax(x: Any, *, dim: Any = None, dtype: Any = None) -> Any:
    away, over = _shifted("softmax", x, dim, dtype)
    e = ops.exp(away)
    return e / e.reduce("sum", over, True)


@_handler
def log_softmax(x: Any, *, dim: Any = None, dtype: Any = None) -> Any:
    away, over = _shifted("log_softmax", x, dim, dtype)
    return away - ops.log(ops.exp(away).reduce("sum", over, True))


@_handler
def standardize(x: Any, *, axes: int = 1, eps: float = 1e-5, centred: bool = True) -> Any:
    over = tuple(range(x.ndim - axes, x.ndim))
    dtype = x.dtype
    x = x.cast(x.dtype.compute) if x.dtype.compute is not x.dtype else x
    if centred:
        x = x - mean(x, dim=over, keepdim=True)
    rstd = ops.rsqrt(mean(x * x, dim=over, keepdim=True) + eps)
    return (x * rstd).cast(dtype), reshape(rstd, shape=x._shape[: x.ndim - axes])


# ---- shapes and dtypes --------------------------------------------------------------------------


@_handler
def to_dtype(x: Any, *, dtype: Any) -> Any:
    return x.cast(dtypes.as_dtype(dtype))


@_handler
def clone(x: Any) -> Any:
    return x


@_handler
def alias(x: Any) -> Any:
    return x


@_handler
def reshape(x: Any, *, shape: Any) -> Any:
    """Only axes of size 1 come and go."""
    wanted = shapes.infer_reshape("reshape", x._shape, shape)
    if [s for s in wanted if s != 1] != [s for s in x._shape if s != 1]:
        raise x.trace.fail(
            f"reshape from {tuple(x._shape)} to {tuple(wanted)} moves elements between axes",
            "Inside, only axes of size 1 come and go; reshape before the call",
        )
    real = iter([d for d in x.dims if d is not None])
    dims = tuple(None if s == 1 else next(real) for s in wanted)
    return type(x)(x.trace, x.ref, wanted, x.dtype, dims)


@_handler
def expand(x: Any, *, shape: Any) -> Any:
    pad = len(shape) - x.ndim
    wanted = tuple(x._shape[i - pad] if s == -1 else int(s) for i, s in enumerate(shape))
    shapes.broadcast_strides("expand", x._shape, (1,) * x.ndim, wanted)
    t = x.trace
    dims: list[int | None] = []
    for i, s in enumerate(wanted):
        known = x.dims[i - pad] if i >= pad else None
        if s != 1 and known is None:
            t.reads_sizes = True  # the size of a new axis comes from the function itself
            known = t.axis(s)
        dims.append(known)
    return type(x)(t, x.ref, wanted, x.dtype, tuple(dims))


@_handler
def full_like(x: Any, *, value: Any, shape: Any = None, dtype: Any = None) -> Any:
    wanted = x._shape if shape is None else tuple(shape)
    t = x.trace
    if wanted != x._shape:
        raise t.fail(
            f"full_like with the shape {wanted} makes a new tensor", "Make it before the call"
        )
    return ops.zero(x if dtype is None else x.cast(dtype)) + value
