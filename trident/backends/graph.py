"""A graph of elementwise nodes and reductions: what capture writes and the emitters read.

Values are numbered: the inputs first, then one per node. An argument is a value number (``Ref``) or
a Python number. Gradient rules are graphs of elementwise nodes alone; a fused function's graph may
hold reductions and casts as well, and its nodes know the dtypes they were captured with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import dtypes
from ..dtypes import dtype as DType


@dataclass(frozen=True)
class Ref:
    """The value with this number."""

    index: int


@dataclass(frozen=True)
class Count:
    """The number of elements along axes of the fused domain, as an argument of a node; capture
    makes inputs of them, whose values are known at the launch."""

    axes: frozenset[int]


@dataclass(frozen=True)
class Reduce:
    """Stands as the op of a node that reduces its operand over axes of the fused domain."""

    kind: str
    """"sum", "amax" or "amin"."""
    axes: frozenset[int]

    operands = ("x",)
    untyped = ()
    result = "same"

    @property
    def name(self) -> str:
        return self.kind

    def result_dtype(self, promoted: DType) -> DType:
        return promoted


@dataclass(frozen=True)
class Cast:
    """Stands as the op of a node that converts its operand; ``detach``: no gradient goes back."""

    dtype: DType
    detach: bool = False

    operands = ("x",)
    untyped = ()
    result = "same"

    @property
    def name(self) -> str:
        return "detach" if self.detach else f"to_{self.dtype.name}"

    def result_dtype(self, promoted: DType) -> DType:
        return self.dtype


@dataclass
class GraphNode:
    op: Any  # Elementwise, Reduce or Cast
    args: tuple[Any, ...]  # Ref or number
    attrs: dict[str, Any]
    promoted: DType | None = None
    """What the operands are converted to; None: it follows from their dtypes."""


@dataclass
class Graph:
    """Straight-line code. ``outputs`` are Refs, numbers, or None (not wanted)."""

    name: str
    inputs: list[str]
    nodes: list[GraphNode] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    input_dtypes: list[DType | None] = field(default_factory=list)
    """Where they are fixed: the dtype of each input, None for a number."""

    def add(
        self, op: Any, args: tuple, attrs: dict[str, Any], promoted: DType | None = None
    ) -> Ref:
        for i, node in enumerate(self.nodes):  # common subexpressions: graphs are short
            same = node.op == op and node.attrs == attrs and node.promoted is promoted
            if same and _same(node.args, args):
                return Ref(len(self.inputs) + i)
        self.nodes.append(GraphNode(op, args, attrs, promoted))
        return Ref(len(self.inputs) + len(self.nodes) - 1)

    def live(self) -> list[int]:
        """Numbers of the values that the outputs depend on, in order."""
        n = len(self.inputs)
        wanted = {o.index for o in self.outputs if isinstance(o, Ref)}
        for i in range(len(self.nodes) - 1, -1, -1):
            if n + i in wanted:
                wanted |= {a.index for a in self.nodes[i].args if isinstance(a, Ref)}
        return sorted(wanted)

    def label(self, index: int) -> str:
        n = len(self.inputs)
        return self.inputs[index] if index < n else f"v{index - n}"

    def dtypes(self, inputs: list[DType | None], weak: DType) -> tuple[list[DType], list[DType]]:
        """Per value: its dtype; per node: the dtype its operands are promoted to.

        ``inputs`` holds None for a Python number, which is weak: what is computed from such numbers
        alone has the dtype ``weak``.
        """
        values: list[DType | None] = list(inputs)
        promoted: list[DType] = []
        for node in self.nodes:
            if node.promoted is not None:
                promoted.append(node.promoted)
                values.append(node.op.result_dtype(node.promoted))
                continue
            found = [
                (values[a.index], dtypes.scalar_dtype(0.0)) if isinstance(a, Ref)
                else (None, dtypes.scalar_dtype(a))
                for a in _typed(node)
            ]  # fmt: skip
            strong = [d for d, _ in found if d is not None]
            loose = [w for d, w in found if d is None]
            p = dtypes.result_type(strong, [], loose) if strong else weak
            if node.op.result == "float" and p.kind != "float":
                p = dtypes.get_default_dtype()
            promoted.append(p)
            values.append(node.op.result_dtype(p))
        return [v or weak for v in values], promoted


def _same(a: tuple, b: tuple) -> bool:
    """Equal arguments; 1, 1.0 and True are different numbers, and so are 0.0 and -0.0."""
    return a == b and all(
        x.__class__ is y.__class__ and (x.__class__ is not float or repr(x) == repr(y))
        for x, y in zip(a, b)
    )


def _typed(node: GraphNode) -> list:
    """The arguments of a node that take part in promotion."""
    return [a for n, a in zip(node.op.operands, node.args) if n not in node.op.untyped]


_UFUNCS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "div": "true_divide", "neg": "negative",
    "exp": "exp", "tanh": "tanh", "sqrt": "sqrt", "square": "square", "sin": "sin", "cos": "cos",
    "maximum": "maximum", "minimum": "minimum", "abs": "absolute", "log": "log",
}  # fmt: skip
"""Ops that are one numpy ufunc on floats: these may write over an operand not used again."""


def python_function(
    graph: Graph, bindings: dict[str, str], blocks: tuple[bool, ...] | None = None
) -> Callable:
    """``graph`` as a Python function ``f(g, a, out)`` that calls one numpy body per node.

    ``bindings`` says how an input is had from the three parameters: {"x": "a[0]"}. With ``blocks``
    the inputs are known to be float blocks of one shape (True) or smaller (False), and intermediate
    blocks are reused instead of allocated. Where the graph knows the dtypes of its inputs, operands
    are converted and reductions go along axis 1 of blocks of rows.
    """
    live = set(graph.live())
    n = len(graph.inputs)
    scope: dict[str, Any] = {"inf": float("inf"), "nan": float("nan"), "np": np}
    lines = [f"def {graph.name}(g, a, out):"]
    values: list[DType] = []
    promoted: list[DType] = []
    if graph.input_dtypes:
        values, promoted = graph.dtypes(graph.input_dtypes, dtypes.float32)
    taken = [name for i, name in enumerate(graph.inputs) if i in live and bindings[name] != name]
    if taken:  # in one statement: an input may be called g, a or out
        lines.append(f"    {', '.join(taken)}, = {', '.join(bindings[n] for n in taken)},")

    def text(a: Any, k: int | None = None, untyped: bool = False) -> str:
        if not isinstance(a, Ref):
            return repr(a)
        label = graph.label(a.index)
        if k is None or not values or (a.index < n and graph.input_dtypes[a.index] is None):
            return label
        has, want = values[a.index].compute, promoted[k].compute
        if untyped:
            return label if has.kind == "bool" else f"({label} != 0)"
        return label if has is want else f"{label}.astype(np.{want.np.name})"

    last_use: dict[int, int] = {
        a.index: k
        for k, node in enumerate(graph.nodes)
        if n + k in live
        for a in node.args
        if isinstance(a, Ref)
    }
    last_use |= {o.index: len(graph.nodes) for o in graph.outputs if isinstance(o, Ref)}
    floats = set()  # numbers of the intermediate float blocks
    full = {i for i, big in enumerate(blocks or ()) if big}
    for i, node in enumerate(graph.nodes):
        if n + i not in live:
            continue
        used = [a.index for a in node.args if isinstance(a, Ref)]
        args = ", ".join(
            text(a, i, name in node.op.untyped) for name, a in zip(node.op.operands, node.args)
        )
        if isinstance(node.op, Reduce):
            reduce = {"sum": "np.add", "amax": "np.maximum", "amin": "np.minimum"}[node.op.kind]
            lines.append(f"    v{i} = {reduce}.reduce({args}, axis=1, keepdims=True)")
            continue
        if isinstance(node.op, Cast):
            lines.append(f"    v{i} = {_cast(node, args, scope)}")
            continue
        ufunc = _UFUNCS.get(node.op.name)
        same = not values or all(values[u].compute is values[n + i].compute for u in used)
        free = [u for u in used if u in floats and last_use[u] == i]
        if any(u in full for u in used):
            full.add(n + i)
            if node.op.result != "bool" and blocks is not None:
                floats.add(n + i)
        if ufunc and free and same and not node.attrs:
            lines.append(f"    v{i} = np.{ufunc}({args}, out={graph.label(free[0])})")
            continue
        body = f"np_{node.op.name}"
        scope[body] = node.op.numpy
        attrs = "".join(f", {k}={v!r}" for k, v in node.attrs.items())
        lines.append(f"    v{i} = {body}({args}{attrs})")
    lines.append(f"    return ({', '.join(text(o) for o in graph.outputs)},)")
    source = "\n".join(lines)
    exec(compile(source, f"<trident {graph.name}>", "exec"), scope)
    function = scope[graph.name]
    function.source = source
    function.nodes = sum(i >= n for i in live)
    return function


def _cast(node: GraphNode, operand: str, scope: dict[str, Any]) -> str:
    """A conversion; a half type is stored as float32 that has been rounded to it."""
    to = node.op.dtype
    if node.op.detach:
        return operand
    scope[f"np_{to.name}"] = to.np
    text = f"{operand}.astype(np_{to.name})"
    return text if to.compute is to else f"{text}.astype(np.float32)"
