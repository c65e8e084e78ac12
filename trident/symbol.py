"""Symbols: what capture passes in place of tensors. A symbol has a name or a shape, and no data."""

from __future__ import annotations

import types
from typing import Any

from . import dtypes, shapes
from .backends.graph import Graph, Ref
from .errors import AutogradError
from .ops.operators import Operators
from .ops.registry import Op, Spec

_NO_VALUE = (
    "{what} of a symbol: while an op is captured its values are not known, so Python cannot branch "
    "on them or convert them; use where(condition, a, b)"
)


class Symbol(Operators):
    """A value of a graph under construction: applying an elementwise op adds a node."""

    __slots__ = ("graph", "ref")

    def __init__(self, graph: Graph, ref: Ref) -> None:
        self.graph = graph
        self.ref = ref

    def _apply(self, op: Op, args: tuple, attrs: dict[str, Any]) -> Symbol:
        if op.kind != "elementwise":
            raise AutogradError(
                f"{self.graph.name}: {op.name} is not elementwise; a rule of an elementwise op is "
                "a scalar formula in operators and elementwise ops"
            )
        refs = tuple(a.ref if isinstance(a, Symbol) else a for a in args)
        return Symbol(self.graph, self.graph.add(op, refs, attrs))  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        raise AutogradError(_NO_VALUE.format(what="bool()"))

    def __float__(self) -> float:
        raise AutogradError(_NO_VALUE.format(what="float()"))


class ShapeSymbol(Operators):
    """A value of which only shape and dtype are known: runs a fused op's body to infer its
    result."""

    __slots__ = ("spec",)

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> dtypes.dtype:
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        return len(self.spec.shape)

    _requires_grad = False

    def __getattr__(self, name: str) -> Any:
        """Tensor's methods and properties: they are made of ops, so they work on a symbol too."""
        from .tensor import Tensor

        found = None if name.startswith("_") else getattr(Tensor, name, None)
        if isinstance(found, property):
            assert found.fget is not None
            return found.fget(self)
        if not callable(found):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return types.MethodType(found, self)

    @property
    def _data(self) -> Spec:  # what size(), numel() and their like read
        return self.spec

    def __getitem__(self, index: Any) -> Any:
        from . import indexing

        return indexing.get(self, index)  # type: ignore[arg-type]

    def view(self, *shape: Any) -> Any:
        return self.reshape(*shape)  # whether it is a copy says nothing of the shape

    def _host(self) -> Any:
        raise AutogradError(_NO_VALUE.format(what="the values"))

    def __bool__(self) -> bool:
        raise AutogradError(_NO_VALUE.format(what="bool()"))

    def __float__(self) -> float:
        raise AutogradError(_NO_VALUE.format(what="float()"))

    def _apply(self, op: Any, args: tuple, attrs: dict[str, Any]) -> Any:
        specs = tuple(_spec(a) for a in args)
        if op.kind == "elementwise":
            dims: list[dtypes.dtype] = []
            zero_dims: list[dtypes.dtype] = []
            scalars: list[dtypes.dtype] = []
            for name, s in zip(op.operands, specs):
                if name in op.untyped:
                    continue
                if isinstance(s, Spec):
                    (dims if s.shape else zero_dims).append(s.dtype)
                else:
                    scalars.append(dtypes.scalar_dtype(s))
            promoted = dtypes.result_type(dims, zero_dims, scalars)
            shape = shapes.broadcast(op.name, *[s.shape for s in specs if isinstance(s, Spec)])
            result: Any = Spec(shape, op.result_dtype(promoted))
        elif op.kind == "fused":
            return op.body(*args, **attrs)
        else:
            result = op.infer(*specs, **attrs)
        if isinstance(result, tuple):
            return tuple(ShapeSymbol(r) for r in result)
        return ShapeSymbol(result)


def _spec(a: Any) -> Any:
    if isinstance(a, ShapeSymbol):
        return a.spec
    if isinstance(a, (list, tuple)):
        return type(a)(_spec(x) for x in a)
    return a
