"""A graph of elementwise nodes: what capture writes and the emitters read.

Values are numbered: the inputs first, then one per node. An argument is a value number (``Ref``) or
a Python number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import dtypes
from ..dtypes import dtype as DType
from ..ops.registry import Elementwise


@dataclass(frozen=True)
class Ref:
    """The value with this number."""

    index: int


@dataclass
class GraphNode:
    op: Elementwise
    args: tuple[Any, ...]  # Ref or number
    attrs: dict[str, Any]


@dataclass
class Graph:
    """Straight-line elementwise code. ``outputs`` are Refs, numbers, or None (not wanted)."""

    name: str
    inputs: list[str]
    nodes: list[GraphNode] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def add(self, op: Elementwise, args: tuple, attrs: dict[str, Any]) -> Ref:
        for i, node in enumerate(self.nodes):  # common subexpressions: rules are short
            if node.op is op and node.args == args and node.attrs == attrs:
                return Ref(len(self.inputs) + i)
        self.nodes.append(GraphNode(op, args, attrs))
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
    the inputs are known to be float blocks of one length (True) or single values (False), and
    intermediate blocks are reused instead of allocated.
    """
    live = set(graph.live())
    n = len(graph.inputs)
    scope: dict[str, Any] = {"inf": float("inf"), "nan": float("nan"), "np": np}
    lines = [f"def {graph.name}(g, a, out):"]
    for i, name in enumerate(graph.inputs):
        if i in live and bindings[name] != name:
            lines.append(f"    {name} = {bindings[name]}")

    def text(a: Any) -> str:
        return graph.label(a.index) if isinstance(a, Ref) else repr(a)

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
        args = ", ".join(text(a) for a in node.args)
        ufunc = _UFUNCS.get(node.op.name)
        free = [u for u in used if u in floats and last_use[u] == i]
        if any(u in full for u in used):
            full.add(n + i)
            if node.op.result != "bool" and blocks is not None:
                floats.add(n + i)
        if ufunc and free and not node.attrs:
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
