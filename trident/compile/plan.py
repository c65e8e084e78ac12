"""What is made of a capture: the graph of the function, and per set of wanted gradients two
programs.

What backward reads is decided here: the arguments, values behind a reduction that have fewer axes
than its operand (kept in float32), and an output where that saves bytes or costly operations.
Everything else is computed again.
"""

from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING, Any

from ..backends.graph import Graph, GraphNode, Reduce, Ref
from ..backends.loops import costly
from ..backends.program import Dims, Program, Unfusable, Wanted, build
from ..dtypes import float32
from ..errors import FusionError
from ..ops.registry import REGISTRY
from ..tape.grad_mode import no_grad
from .capture import Trace, Traced
from .gradient import Backward

if TYPE_CHECKING:
    from .fuse import FusedFunction


class Plan:
    """Forward and backward programs for one set of wanted gradients."""

    def __init__(self, capture: Capture, mask: tuple[bool, ...]) -> None:
        self.capture = capture
        self.saved: list[Wanted] = []
        self.reads: list[
            tuple[str, int]
        ] = []  # backward inputs: ("arg" | "g" | "out" | "saved", i)
        self.backward: Program | None = None
        self.why = ""
        wanted: list[Wanted | None] = list(capture.outputs)
        if any(mask):
            try:
                self._make_backward(mask)
                wanted += self.saved
            except Unfusable as error:  # the gradient of the body is used
                self.why, self.saved, self.backward = str(error), [], None
        self.forward = build(capture.graph, capture.dims, wanted)
        self.uses_out = any(kind == "out" for kind, _ in self.reads)

    def _make_backward(self, mask: tuple[bool, ...]) -> None:
        c = self.capture
        inputs = [frozenset(d for d in dims if d is not None) for dims in c.dims]
        b = Backward(c.graph, inputs, c.outputs, list(mask))
        shift = len(c.outputs)
        n = len(c.graph.inputs)
        kept = _row_values(b)
        out_at = {
            _moved(o.ref, n, shift): k
            for k, o in enumerate(c.outputs)
            if o.dtype.compute is o.dtype and _moved(o.ref, n, shift) >= n + shift
        }
        choices = [_rebuild(b, kept, {})]
        if out_at:
            choices.append(_rebuild(b, kept, out_at))
        graph, sources = min(choices, key=lambda choice: _cost(choice, c.dims, c.outputs))
        dims: list[Dims] = []
        for kind, i in sources:
            if kind == "arg":
                dims.append(c.dims[i])
            elif kind in ("g", "out"):
                dims.append(c.outputs[i].dims)
            else:
                axes = tuple(a for a in c.order if a in b.axes[i])
                dims.append(axes)
                back = Ref(i - shift if i >= n + shift else i)
                self.saved.append(Wanted(back, graph.input_dtypes[len(dims) - 1], axes))  # type: ignore[arg-type]
        self.reads = []
        number = 0
        for kind, i in sources:
            self.reads.append((kind, number if kind == "saved" else i))
            number += kind == "saved"
        wanted: list[Wanted | None] = []
        found = iter(graph.outputs)
        for i, ref in enumerate(b.grads):
            if ref is None:
                wanted.append(None)
            else:
                dtype = c.graph.input_dtypes[i]
                assert dtype is not None
                wanted.append(Wanted(next(found), dtype, c.dims[i]))
        self.backward = build(graph, dims, wanted)


def _moved(ref: Ref, n: int, by: int) -> int:
    return ref.index + by if ref.index >= n else ref.index


def _row_values(b: Backward) -> dict[int, str]:
    """Forward values behind a reduction that have fewer axes than its operand: kept, not redone."""
    graph, n = b.graph, len(b.graph.inputs)
    # an extremum that backward compares with its operand is computed again beside it: elsewhere the
    # compiler might have fused the operand's product and sum, and nothing would equal it
    compared = {
        a.index
        for node in graph.nodes[b.n_forward - n :]
        if node.op is REGISTRY["eq"]
        for a in node.args
        if isinstance(a, Ref)
    }
    behind: dict[int, frozenset[int]] = {}  # value -> the axes that were reduced on its way
    found = {}
    for k in range(b.n_forward - n):
        node = graph.nodes[k]
        axes: frozenset[int] = node.op.axes if isinstance(node.op, Reduce) else frozenset()
        for a in node.args:
            if isinstance(a, Ref):
                axes |= behind.get(a.index, frozenset())
        if axes:
            behind[n + k] = axes
            computed = isinstance(node.op, Reduce) and node.args[0].index >= n
            if not b.axes[n + k] & axes and not (computed and n + k in compared):
                found[n + k] = f"saved{n + k}"
    return found


def _rebuild(
    b: Backward, kept: dict[int, str], outs: dict[int, int]
) -> tuple[Graph, list[tuple[str, int]]]:
    """The backward graph with some forward values as inputs, without what is then dead."""
    graph, n = b.graph, len(b.graph.inputs)
    n_args = n - len(b.names)
    values, _ = graph.dtypes(graph.input_dtypes, float32)
    new = Graph(graph.name, [])
    where: dict[int, Ref] = {}
    sources: list[tuple[str, int]] = []
    order: list[int] = []
    inputs: list[int] = []
    seen: set[int] = set()
    stack = [(r.index, False) for r in reversed(b.grads) if r is not None]
    while stack:
        i, done = stack.pop()
        if done:
            order.append(i)
            continue
        if i in seen:
            continue
        seen.add(i)
        if i < n or i in kept or i in outs:
            inputs.append(i)
            continue
        stack.append((i, True))
        stack += [(a.index, False) for a in graph.nodes[i - n].args if isinstance(a, Ref)]
    for i in sorted(inputs):
        where[i] = Ref(len(new.inputs))
        if i < n_args:
            source, name = ("arg", i), graph.inputs[i]
        elif i < n:
            source, name = ("g", i - n_args), graph.inputs[i]
        elif i in outs:
            source, name = ("out", outs[i]), f"result{outs[i]}"
        else:
            source, name = ("saved", i), kept[i]
        new.inputs.append(name)
        sources.append(source)
        new.input_dtypes.append(
            graph.input_dtypes[i] if i < n else values[i] if i in outs else values[i].compute
        )
    for i in sorted(order):
        node = graph.nodes[i - n]
        args = tuple(where[a.index] if isinstance(a, Ref) else a for a in node.args)
        where[i] = new.add(node.op, args, node.attrs, node.promoted)
    new.outputs = [where[r.index] for r in b.grads if r is not None]
    return new, sources


def _cost(
    choice: tuple[Graph, list[tuple[str, int]]], dims: list[Dims], outputs: list[Wanted]
) -> float:
    """Bytes read an element, and costly operations at 4 bytes each."""
    graph, sources = choice
    total = 0.0
    most = max((len(d) for d in dims), default=0)
    for (kind, i), d in zip(sources, graph.input_dtypes):
        own = dims[i] if kind == "arg" else outputs[i].dims if kind in ("g", "out") else ()
        if d is not None and len(own) == most and None not in own:
            total += d.itemsize
    return total + sum(4 for node in graph.nodes if costly(node.op))


class Capture:
    """One capture of the function: its graph, and the programs made of it."""

    def __init__(self, fn: FusedFunction, arguments: dict[str, Any], names: list[str]) -> None:
        trace = Trace(_identifier(fn.__name__), [_identifier(n) for n in names])
        given = dict(arguments)
        for i, name in enumerate(names):
            t = arguments[name]
            given[name] = trace.input(i, tuple(t._data.shape), t.dtype)
            trace.graph.input_dtypes.append(t.dtype)
        with no_grad():
            result = fn.call_body(given)
        self.several = isinstance(result, (tuple, list))
        results = list(result) if self.several else [result]
        for r in results:
            if not isinstance(r, Traced):
                raise FusionError(
                    f"fuse: {fn.__name__} must return a tensor or a tuple of tensors; got "
                    f"{type(r).__name__}"
                )
        self.trace = trace
        self.graph = trace.graph
        self._canonical()
        self.dims = [self._dims(x) for x in trace.inputs]
        self.outputs = [Wanted(r.ref, r.dtype, self._dims(r)) for r in results]
        known = {d for dd in self.dims for d in dd if d is not None}
        axes = known | {d for o in self.outputs for d in o.dims if d is not None}
        self.order = sorted(axes)
        self.fixed = {a: trace.sizes[a] for a in axes - known}
        self.exact = trace.reads_sizes or bool(self.fixed)
        self.plans: dict[tuple[bool, ...], Plan] = {}

    def _dims(self, x: Traced) -> Dims:
        return tuple(None if d is None else self.trace.find(d) for d in x.dims)

    def _canonical(self) -> None:
        """Give every axis its one number, now that all merges are known."""
        t = self.trace

        def fixed(a: Any) -> Any:
            return type(a)(t.canonical(a.axes)) if hasattr(a, "axes") else a

        for k, node in enumerate(self.graph.nodes):
            op = node.op
            if isinstance(op, Reduce):
                op = Reduce(op.kind, t.canonical(op.axes))
            args = tuple(fixed(a) for a in node.args)
            self.graph.nodes[k] = GraphNode(op, args, node.attrs, node.promoted)

    def sizes(self, shapes: list[tuple[int, ...]]) -> dict[int, int] | None:
        """The size of each axis of the domain; None where the shapes do not go together."""
        found = dict(self.fixed)
        for dims, shape in zip(self.dims, shapes):
            for d, s in zip(dims, shape):
                if d is not None and found.setdefault(d, s) != s:
                    return None
        return found

    def plan(self, mask: tuple[bool, ...]) -> Plan:
        plan = self.plans.get(mask)
        if plan is None:
            plan = self.plans[mask] = Plan(self, mask)
        return plan


_RESERVED = frozenset(
    # what the emitters name themselves, and what means something in C
    """
    tl np n i inf nan mask inside rows cols row col row0 row1 col0 col1 n_rows n_cols
    start end first tile before rest sizes memory numbers fold combine MAX MIN INT64 BLOCK
    ROWS COLS NAN INFINITY INLINE auto break case char const continue default do double
    else enum extern float for goto if inline int long register restrict return short
    signed sizeof static struct switch typedef union unsigned void volatile while
    """.split()  # noqa: SIM905
)


_NUMBERED = r"(result|v|acc|count|saved|part|sum|out|i|g|t|f|lane|total|best|kept|nan)_?\d*(_.*)?"


def _identifier(name: str) -> str:
    """A name that generated code does not use itself."""
    plain = re.sub(r"\W", "_", name)
    own = plain in _RESERVED or keyword.iskeyword(plain) or plain in REGISTRY
    return plain + "_" if own or re.fullmatch(_NUMBERED, plain) else plain
