"""The gradient of a captured graph, as more nodes of it: reverse mode on symbols.

Elementwise nodes have their ``vjp`` from the registry. Where an operand lacks an axis that its node
has, its gradient is summed over that axis: broadcasting is undone here, once, for all of them.
"""

from __future__ import annotations

from typing import Any

from ..backends.graph import Cast, Count, Graph, GraphNode, Reduce, Ref
from ..backends.program import NONE, Axes, Wanted, value_axes
from ..ops.registry import REGISTRY, ops
from ..symbol import Symbol


class Backward:
    """The forward graph with gradients behind it.

    graph: inputs are those of the forward graph, then one incoming gradient per output. ``grads``:
    per forward input the value of its gradient, or None.
    """

    def __init__(
        self, forward: Graph, inputs: list[Axes], outputs: list[Wanted], wanted: list[bool]
    ) -> None:
        n, m = len(forward.inputs), len(outputs)
        self.names = [f"g{k}" if m > 1 else "g" for k in range(m)]
        graph = self.graph = Graph(forward.name + "_backward", [*forward.inputs, *self.names])
        graph.input_dtypes = [*forward.input_dtypes, *(o.dtype for o in outputs)]

        def moved(a: Any) -> Any:
            return Ref(a.index + m) if isinstance(a, Ref) and a.index >= n else a

        graph.nodes = [
            GraphNode(f.op, tuple(moved(a) for a in f.args), f.attrs, f.promoted)
            for f in forward.nodes
        ]
        self.n_forward = n + m + len(graph.nodes)
        self.axes = value_axes(
            graph, [*inputs, *(frozenset(d for d in o.dims if d is not None) for o in outputs)]
        )
        self.needs = [i < n and wanted[i] for i in range(n + m)]
        for node in graph.nodes:
            operands = self._operands(node)
            flows = not (isinstance(node.op, Cast) and node.op.detach)
            self.needs.append(flows and any(self.needs[a.index] for a in operands))
        self.cotangents: dict[int, Symbol] = {}
        for k, o in enumerate(outputs):
            at = moved(o.ref).index
            if self.needs[at]:
                self._give(at, self._undo(Symbol(graph, Ref(n + k)), self._varies(n + k), at))
        for k in range(len(forward.nodes) - 1, -1, -1):
            self._pull(n + m + k, graph.nodes[k])
        self.grads = [self.cotangents[i].ref if i in self.cotangents else None for i in range(n)]

    def _operands(self, node: GraphNode) -> list[Ref]:
        return [a for a in node.args if isinstance(a, Ref)]

    def _varies(self, index: int) -> Axes:
        for k in range(len(self.axes) - len(self.graph.inputs), len(self.graph.nodes)):
            node = self.graph.nodes[k]  # values that were added since
            axes: Axes = NONE
            for a in self._operands(node):
                axes |= self.axes[a.index]
            self.axes.append(axes - node.op.axes if isinstance(node.op, Reduce) else axes)
        return self.axes[index]

    def _give(self, at: int, g: Any) -> None:
        known = self.cotangents.get(at)
        self.cotangents[at] = g if known is None else known + g

    def _undo(self, g: Any, given: Axes, at: int) -> Any:
        """``g``, a gradient for every point of ``given``, summed to the axes of value ``at``."""
        over = given - self._varies(at)
        here = self._varies(g.ref.index)
        graph = self.graph
        if over - here:
            g = Symbol(graph, graph.add(REGISTRY["mul"], (g.ref, Count(over - here)), {}))
        if over & here:
            g = Symbol(graph, graph.add(Reduce("sum", over & here), (g.ref,), {}))
        return g

    def _pull(self, at: int, node: GraphNode) -> None:
        g = self.cotangents.pop(at, None)
        if g is None or not self.needs[at]:
            return
        graph = self.graph
        if isinstance(node.op, Cast):
            self._give(node.args[0].index, g)
            return
        if isinstance(node.op, Reduce):
            source = node.args[0].index
            if node.op.kind != "sum":  # shared by the elements that equal the extremum
                x, out = Symbol(graph, node.args[0]), Symbol(graph, Ref(at))
                hits = ops.where(ops.eq(x, out), 1.0, ops.zero(x))
                total = Symbol(graph, graph.add(Reduce("sum", node.op.axes), (hits.ref,), {}))
                g = hits * (g / total)
            self._give(source, g)
            return
        if node.op.vjp is None:
            return
        values: dict[str, Any] = {"g": g, "out": Symbol(graph, Ref(at))}
        for name, a in zip(node.op.operands, node.args):
            known: Any = a  # a count may stand in a symbol as a value does
            values[name] = Symbol(graph, known) if isinstance(a, (Ref, Count)) else a
        values |= node.attrs
        result = node.op.vjp(**{k: v for k, v in values.items() if k in node.op.vjp_names})
        given = self._varies(at)
        for a, da in zip(node.args, result if isinstance(result, tuple) else (result,)):
            if not isinstance(a, Ref) or da is None or not self.needs[a.index]:
                continue
            if not isinstance(da, Symbol):  # a number: spread over the node by adding it to nothing
                da = ops.zero(g) + da
            self._give(a.index, self._undo(da, given, a.index))
