"""Capture: a Python function is run once on traced values, and what it does becomes a graph.

A traced value knows its shape and dtype, as a tensor would, and for each of its axes which axis of
the fused domain that is. Axes get their identity from use: broadcasting two values against each
other makes their axes the same one. So ``x.sum(-1) * w`` is understood for a ``w`` of shape (M,),
and a value that lacks an axis (a weight, a mean) is known to be the same along it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..backends.graph import Cast, Count, Graph, Reduce, Ref
from ..backends.numpy import promote
from ..dtypes import dtype as DType
from ..errors import FusionError, missing_name
from ..ops.operators import Operators
from ..ops.registry import FUNCTIONS, REGISTRY, Op
from ..shapes import Shape, Size
from ..tape.anomaly import user_line
from ..tensor import Tensor
from .decompose import HANDLERS

_VALUES = (
    "while a function is captured its values are not known, so Python cannot branch on them or "
    "read them; use where(condition, a, b), or keep that part outside of the fused function"
)


class Trace:
    """A capture under way: the graph so far, and what is known of its axes."""

    def __init__(self, name: str, inputs: list[str]) -> None:
        self.name = name
        self.graph = Graph(name, list(inputs))
        self.parent: list[int] = []  # union-find over axes
        self.sizes: list[int] = []
        self.varies: list[frozenset[int]] = []  # per value: the axes along which it differs
        self.reads_sizes = False
        self.inputs: list[Traced] = []

    # ---- axes -----------------------------------------------------------------------------------

    def axis(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.sizes.append(size)
        return len(self.parent) - 1

    def find(self, axis: int) -> int:
        while self.parent[axis] != axis:
            axis = self.parent[axis]
        return axis

    def merge(self, a: int, b: int) -> int:
        a, b = self.find(a), self.find(b)
        if a == b:
            return a
        self.parent[max(a, b)] = min(a, b)
        for x in self.inputs:
            real = [self.find(d) for d in x.dims if d is not None]
            if len(set(real)) != len(real):
                raise self.fail(
                    f"two axes of {self.graph.inputs[x.ref.index]}, shape {x._shape}, would have "
                    "to be the same one",
                    "A reduced value met the wrong axis: use keepdim=True",
                )
        return min(a, b)

    def canonical(self, axes: Sequence[int | None] | frozenset[int]) -> frozenset[int]:
        return frozenset(self.find(a) for a in axes if a is not None)

    # ---- values ---------------------------------------------------------------------------------

    def input(self, i: int, shape: Shape, dtype: DType) -> Traced:
        dims = tuple(None if s == 1 else self.axis(s) for s in shape)
        self.varies.append(frozenset(d for d in dims if d is not None))
        self.inputs.append(Traced(self, Ref(i), shape, dtype, dims))
        return self.inputs[-1]

    def node(
        self, op: Any, args: tuple, attrs: dict[str, Any], promoted: DType, axes: frozenset[int]
    ) -> Ref:
        ref = self.graph.add(op, args, attrs, promoted)
        if ref.index == len(self.varies):
            self.varies.append(axes)
        return ref

    def axes_of(self, ref: Any) -> frozenset[int]:
        """The axes along which a value differs."""
        return self.canonical(self.varies[ref.index]) if isinstance(ref, Ref) else frozenset()

    def fail(self, what: str, hint: str) -> FusionError:
        return FusionError(f"fuse: {self.name}: {what}. {hint}, at\n{user_line()}")


class Traced(Operators):
    """A value of a function under capture: ops applied to it become nodes."""

    __slots__ = ("_shape", "dims", "dtype", "ref", "trace")
    requires_grad = False

    def __init__(
        self, trace: Trace, ref: Ref, shape: Shape, dtype: DType, dims: tuple[int | None, ...]
    ) -> None:
        self.trace = trace
        self.ref = ref
        self._shape = tuple(shape)
        self.dtype = dtype
        self.dims = dims

    # ---- what a tensor answers too --------------------------------------------------------------

    @property
    def shape(self) -> Size:
        self.trace.reads_sizes = True
        return Size(self._shape)

    @property
    def ndim(self) -> int:
        return len(self._shape)

    def dim(self) -> int:
        return len(self._shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return shapes.numel(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def detach(self) -> Traced:
        return self.cast(self.dtype, detach=True)

    def to(self, dtype: Any) -> Traced:
        if not isinstance(dtype, (DType, type, np.dtype)):
            raise self.trace.fail(
                f"to({dtype!r}) of a traced value", "only a dtype can be converted to inside"
            )
        return self.cast(dtypes.as_dtype(dtype))

    def float(self) -> Traced:
        return self.cast(dtypes.float32)

    def double(self) -> Traced:
        return self.cast(dtypes.float64)

    def type_as(self, other: Any) -> Traced:
        return self.cast(other.dtype)

    def view(self, *shape: Any) -> Traced:
        return FUNCTIONS["reshape"](self, shape=_sizes(shape))

    def reshape(self, *shape: Any) -> Traced:
        return FUNCTIONS["reshape"](self, shape=_sizes(shape))

    def expand(self, *shape: Any) -> Traced:
        return FUNCTIONS["expand"](self, shape=_sizes(shape))

    def contiguous(self) -> Traced:
        return self

    clone = contiguous

    def __getitem__(self, index: Any) -> Traced:
        parts = index if isinstance(index, tuple) else (index,)
        rest = len(self._shape) - sum(p == slice(None) for p in parts if isinstance(p, slice))
        shape: list[int] = []
        at = 0
        for p in parts:
            if p is None:
                shape.append(1)
            elif p is Ellipsis:
                shape.extend(self._shape[at : at + rest])
                at += rest
            elif isinstance(p, slice) and p == slice(None):
                shape.append(self._shape[at])
                at += 1
            else:
                raise self.trace.fail(
                    f"x[{p!r}] takes a part of a tensor",
                    "Inside a fused function only x[..., None] and x[:, None] are understood; "
                    "index before the call",
                )
        shape.extend(self._shape[at:])
        return HANDLERS["reshape"](self, shape=tuple(shape))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        function = FUNCTIONS.get(name)
        if function is not None:
            return lambda *args, **kwargs: function(self, *args, **kwargs)
        if name in ("item", "tolist", "numpy", "cpu", "cuda"):
            raise self.trace.fail(f".{name} of a traced value", _VALUES[0].upper() + _VALUES[1:])
        if name.endswith("_") and name[:-1] in FUNCTIONS:
            raise self._written(f".{name}()")
        if hasattr(Tensor, name):
            raise self.trace.fail(
                f".{name} of a traced value",
                "It is no elementwise op or reduction; use it before or after the call",
            )
        raise missing_name("a tensor inside a fused function", name, [*FUNCTIONS, *dir(Tensor)])

    # ---- what it cannot do ----------------------------------------------------------------------

    def _unknown(self, what: str) -> FusionError:
        return self.trace.fail(f"{what} of a traced value", _VALUES[0].upper() + _VALUES[1:])

    def __bool__(self) -> bool:
        raise self._unknown("bool()")

    def __float__(self) -> Any:
        raise self._unknown("float()")

    def __int__(self) -> int:
        raise self._unknown("int()")

    __index__ = __int__

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Any:
        raise self._unknown("iteration")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self._unknown("a numpy array")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise self._written("x[...] = y")

    def _written(self, what: str) -> FusionError:
        return self.trace.fail(
            f"{what} writes in place",
            "Use the out-of-place form (x = x + y): a kernel's inputs stay",
        )

    def _in_place(self, _: Any) -> Any:
        raise self._written("an augmented assignment (+=, *=, ...)")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _in_place

    # ---- ops ------------------------------------------------------------------------------------

    def cast(self, dtype: DType, detach: bool = False) -> Traced:
        if dtype is self.dtype and not detach:
            return self
        t = self.trace
        ref = t.node(Cast(dtype, detach), (self.ref,), {}, self.dtype, t.axes_of(self.ref))
        return Traced(t, ref, self._shape, dtype, self.dims)

    def reduce(self, kind: str, over: Sequence[int], keepdim: bool) -> Traced:
        """The reduction over axes of this value (numbers of its dims)."""
        t = self.trace
        over_axes = t.canonical([self.dims[a] for a in over])
        ref = self.ref
        here = t.axes_of(ref)
        if kind == "sum" and over_axes - here:  # the same value, several times
            many = Count(over_axes - here)
            ref = t.node(REGISTRY["mul"], (ref, many), {}, self.dtype, here)
        if over_axes & here:
            op = Reduce(kind, over_axes & here)
            ref = t.node(op, (ref,), {}, self.dtype, here - over_axes)
        shape = shapes.reduced(self._shape, over, keepdim)
        dims: tuple[int | None, ...] = tuple(
            None if i in over else d for i, d in enumerate(self.dims) if keepdim or i not in over
        )
        return Traced(t, ref, shape, self.dtype, dims)

    def _apply(self, op: Op, args: tuple, attrs: dict[str, Any]) -> Any:
        t = self.trace
        for a in args:
            if hasattr(a, "_data") or isinstance(a, np.ndarray):
                what = "tensor" if hasattr(a, "_data") else "numpy array"
                raise t.fail(
                    f"{op.name} uses a {what} of shape {tuple(a.shape)} that is not an argument",
                    "Pass it as an argument, so that later calls see its values then",
                )
        if op.kind == "elementwise":
            return _elementwise(t, op, args, attrs)
        if op.kind == "fused":
            return op.body(*args, **attrs)  # type: ignore[attr-defined]
        handler: Callable | None = HANDLERS.get(op.name)
        if handler is None:
            raise t.fail(
                f"{op.name} cannot be part of one loop over the elements",
                "Fused functions hold elementwise ops and reductions (sum, mean, amax, amin, var, "
                f"softmax, norms); call {op.name} before or after them",
            )
        return handler(*args, **attrs)


def _sizes(shape: tuple) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape


def _elementwise(t: Trace, op: Any, args: tuple, attrs: dict[str, Any]) -> Traced:
    args = tuple(a.item() if isinstance(a, np.generic) else a for a in args)
    shape = shapes.broadcast(op.name, *[a._shape for a in args if isinstance(a, Traced)])
    dims: list[int | None] = [None] * len(shape)
    axes: frozenset[int] = frozenset()
    for a in args:
        if not isinstance(a, Traced):
            continue
        for i, d in enumerate(a.dims, len(shape) - len(a.dims)):
            if d is not None:
                known = dims[i]
                dims[i] = t.find(d) if known is None else t.merge(known, d)
    for a in args:
        if isinstance(a, Traced):
            axes |= t.axes_of(a.ref)
    promoted = promote(op, tuple(_Untracked(a) if isinstance(a, Traced) else a for a in args))
    refs = tuple(a.ref if isinstance(a, Traced) else a for a in args)
    ref = t.node(op, refs, attrs, promoted, axes)
    return Traced(t, ref, shape, op.result_dtype(promoted), tuple(dims))


class _Untracked:
    """A traced value as promotion sees it: asking for its shape is not the user's doing."""

    __slots__ = ("dtype", "ndim", "shape")

    def __init__(self, x: Traced) -> None:
        self.shape = x._shape
        self.ndim = len(x._shape)
        self.dtype = x.dtype
