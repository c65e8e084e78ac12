"""A program: a captured graph arranged as one loop over rows and columns, for any backend.

The axes of the fused domain are divided into columns (the axes that the function reduces, so that
their results can be used again in the same row) and rows (all others). A reduction over the columns
is finished within its row. One that goes over the rows too (a loss, the gradient of a bias) is
accumulated on the way, and what is computed from its result is the ``tail``: a small elementwise
graph that runs afterwards.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from ..dtypes import dtype as DType
from ..dtypes import float32
from .graph import Count, Graph, GraphNode, Reduce, Ref

Axes = frozenset[int]
Dims = tuple[int | None, ...]
NONE: Axes = frozenset()


@dataclass
class Wanted:
    """A result that is asked for: a value and the axes of its dims (None: size 1)."""

    ref: Ref
    dtype: DType
    dims: Dims


@dataclass
class Output:
    """How a result comes out of the program.

    ``store``: output ``index`` of the loop, whose memory has the axes ``axes`` in that order.
    ``spill``: the same, with axes among them that are summed afterwards. ``tail``: output ``index``
    of the tail.
    """

    how: str
    index: int
    dtype: DType
    dims: Dims
    axes: tuple[int, ...] = ()


@dataclass(eq=False)
class Program:
    """``graph``: the loop; its outputs are stores first, then partial sums (``partials``)."""

    graph: Graph
    dims: list[Dims]  # per array input: the domain axis of each of its dims
    counts: dict[int, Axes]  # inputs that are numbers of elements
    cols: tuple[int, ...]
    rows: tuple[int, ...]
    varies: list[Axes]  # per value of the graph
    stores: list[tuple[DType, tuple[int, ...]]]  # per stored output: dtype and axes, in order
    partials: list[tuple[DType, bool]]  # per partial sum: dtype; whether it has the columns
    outputs: list[Output | None]
    tail: Graph | None = None
    tail_inputs: list[tuple[str, int]] = field(default_factory=list)  # ("input" | "partial", i)


class Unfusable(Exception):
    """Reductions that do not fit in one loop."""


def value_axes(graph: Graph, inputs: list[Axes]) -> list[Axes]:
    """Per value: the axes along which it differs."""
    found = list(inputs)
    for node in graph.nodes:
        axes: Axes = NONE
        for a in node.args:
            if isinstance(a, Ref):
                axes |= found[a.index]
        found.append(axes - node.op.axes if isinstance(node.op, Reduce) else axes)
    return found


def domain_order(sequences: list[list[int]]) -> list[int]:
    """Axes in an order that agrees with the order of the dims of every tensor."""
    after: dict[int, set[int]] = {a: set() for seq in sequences for a in seq}
    for seq in sequences:
        for a, b in itertools.pairwise(seq):
            after[b].add(a)
    order: list[int] = []
    while after:
        free = [a for a, before in after.items() if not before - set(order)]
        if not free:
            raise Unfusable("its tensors have the same axes in different orders")
        order.append(free[0])
        del after[free[0]]
    return order


def build(graph: Graph, dims: list[Dims], wanted: list[Wanted | None]) -> Program:
    """Arrange ``graph`` (whose ``dims`` describe its inputs) so that it gives what is
    ``wanted``.
    """
    graph, n_arrays, counts = _resolve_counts(graph, wanted)
    inputs = [frozenset(d for d in dd if d is not None) for dd in dims]
    inputs += [NONE] * len(counts)
    varies = value_axes(graph, inputs)
    known = [[d for d in dd if d is not None] for dd in dims]
    known += [[d for d in w.dims if d is not None] for w in wanted if w is not None]
    order = domain_order(known)
    moved = _shift(wanted, n_arrays, len(counts))
    cols = choose_columns(graph, varies, moved, order)
    return _arrange(graph, dims, counts, varies, moved, order, cols)


def _resolve_counts(
    graph: Graph, wanted: list[Wanted | None]
) -> tuple[Graph, int, dict[int, Axes]]:
    """The graph with an input in the place of each ``Count``."""
    n = len(graph.inputs)
    distinct: dict[Axes, int] = {}
    for node in graph.nodes:
        for a in node.args:
            if isinstance(a, Count):
                distinct.setdefault(a.axes, n + len(distinct))

    def moved(a: Any) -> Any:
        if isinstance(a, Count):
            return Ref(distinct[a.axes])
        return _up(a, n, len(distinct))

    out = Graph(graph.name, [*graph.inputs, *(f"count{i}" for i in range(len(distinct)))])
    out.input_dtypes = [*graph.input_dtypes, *[None] * len(distinct)]
    out.nodes = [
        GraphNode(m.op, tuple(moved(a) for a in m.args), m.attrs, m.promoted) for m in graph.nodes
    ]
    return out, n, {at: axes for axes, at in distinct.items()}


def _up(a: Any, n: int, by: int) -> Any:
    return Ref(a.index + by) if isinstance(a, Ref) and a.index >= n else a


def _shift(wanted: list[Wanted | None], n: int, by: int) -> list[Wanted | None]:
    return [w and Wanted(_up(w.ref, n, by), w.dtype, w.dims) for w in wanted]


def _live_reductions(graph: Graph, wanted: list[Wanted | None]) -> list[int]:
    graph.outputs = [w.ref for w in wanted if w is not None]
    n = len(graph.inputs)
    return [i for i in graph.live() if i >= n and isinstance(graph.nodes[i - n].op, Reduce)]


def choose_columns(
    graph: Graph, varies: list[Axes], wanted: list[Wanted | None], order: list[int]
) -> Axes:
    """The axes that become columns.

    A reduction whose result meets the reduced axes again must be over the columns. Among the
    others, the choice that serves most of them: their own axes, or the axes that they keep.
    """
    n = len(graph.inputs)
    reductions = _live_reductions(graph, wanted)
    needed: set[Axes] = set()
    for i in reductions:
        axes = graph.nodes[i - n].op.axes
        downstream = {i}
        for k in range(i - n + 1, len(graph.nodes)):
            if any(isinstance(a, Ref) and a.index in downstream for a in graph.nodes[k].args):
                downstream.add(n + k)
        if any(varies[d] & axes for d in downstream):
            needed.add(axes)
    if len(needed) > 1:
        raise Unfusable(
            "it reduces over different axes and uses the results again; split it into two functions"
        )
    if needed:
        return needed.pop()
    candidates: list[Axes] = []
    for i in reductions:
        node = graph.nodes[i - n]
        operand = varies[node.args[0].index]
        candidates += [node.op.axes] if operand - node.op.axes else []
        candidates += [operand - node.op.axes]
    best, best_score = NONE, 0.0
    for c in dict.fromkeys(c for c in candidates if c):
        score: float = sum(
            _fits(graph.nodes[i - n].op, varies[graph.nodes[i - n].args[0].index], c, order)
            for i in reductions
        )
        plain = sum(
            _fits(graph.nodes[i - n].op, varies[graph.nodes[i - n].args[0].index], NONE, order)
            for i in reductions
        )
        score += 0.5 * (c == frozenset(order[len(order) - len(c) :]))  # the last axes lie together
        if score > max(best_score, plain):
            best, best_score = c, score
    if best:
        return best
    for w in wanted:  # a result that lacks axes is one of whole rows
        missing = frozenset(order) - set(w.dims if w is not None else order)
        if w is not None and missing and not reductions:
            return missing
    return NONE


def _fits(op: Reduce, operand: Axes, cols: Axes, order: list[int]) -> bool:
    return _kind(op, operand, cols, frozenset(order) - cols) != "spill"


def _kind(op: Reduce, operand: Axes, cols: Axes, rows: Axes) -> str:
    """How a reduction is done: within a "row", across rows ("cross"), or outside ("spill")."""
    if cols and op.axes == cols and operand & cols == cols:
        return "row"
    whole_rows = operand & rows in (NONE, rows)
    whole_cols = operand & cols in (NONE, cols)
    kept = operand - op.axes
    over_rows = op.kind == "sum" and whole_rows and whole_cols and operand & rows <= op.axes
    fits = kept in (NONE, operand & cols) and (operand & rows or not kept)
    return "cross" if over_rows and fits else "spill"


def _arrange(
    graph: Graph, dims: list[Dims], counts: dict[int, Axes], varies: list[Axes],
    wanted: list[Wanted | None], order: list[int], cols: Axes,
) -> Program:  # fmt: skip
    n = len(graph.inputs)
    rows = frozenset(order) - cols
    live = set(_live_reductions(graph, wanted))
    late: set[int] = set()  # values that exist only after all rows
    partials: list[int] = []
    spilled: set[int] = set()
    for k, node in enumerate(graph.nodes):
        i = n + k
        refs = [a.index for a in node.args if isinstance(a, Ref)]
        if isinstance(node.op, Reduce) and i in live:
            kind = _kind(node.op, varies[refs[0]], cols, rows)
            if refs[0] in late:
                raise Unfusable("it reduces what was computed from a reduction over all rows")
            if kind == "cross":
                partials.append(i)
                late.add(i)
                continue
            if kind == "spill":
                spilled.add(i)
                continue
        if spilled & set(refs):
            raise Unfusable(
                "it goes on computing with a reduction over only some of the other axes; "
                "split it into two functions"
            )
        if late & set(refs):
            late.add(i)
            if varies[i] & rows:
                raise Unfusable("it uses a reduction over all rows in every row again")
    main = Graph(graph.name, graph.inputs, graph.nodes, input_dtypes=graph.input_dtypes)
    stores: list[tuple[DType, tuple[int, ...]]] = []
    outputs: list[Output | None] = []
    tail_refs: list[Ref] = []
    arranged = sorted(order, key=lambda a: a in cols)
    for w in wanted:
        if w is None:
            outputs.append(None)
            continue
        own = tuple(a for a in arranged if a in w.dims)
        if w.ref.index in late:
            outputs.append(Output("tail", len(tail_refs), w.dtype, w.dims))
            tail_refs.append(w.ref)
            continue
        outputs.append(Output("store", len(stores), w.dtype, w.dims, own))
        if w.ref.index in spilled:
            source = graph.nodes[w.ref.index - n].args[0]
            axes = tuple(a for a in arranged if a in varies[source.index])
            outputs[-1] = Output("spill", len(stores), w.dtype, w.dims, axes)
            main.outputs.append(source)
            stores.append((w.dtype.compute, axes))
            continue
        main.outputs.append(w.ref)
        stores.append((w.dtype, own))
    all_dtypes, _ = graph.dtypes(graph.input_dtypes, float32)
    used = _needed_partials(graph, tail_refs, late, partials)
    described = []
    for i in used:
        source = graph.nodes[i - n].args[0]
        main.outputs.append(source)
        described.append((all_dtypes[i].compute, bool(varies[i])))
    program = Program(
        main, dims, counts, tuple(a for a in order if a in cols),
        tuple(a for a in order if a in rows), varies, stores, described, outputs,
    )  # fmt: skip
    if tail_refs:
        _make_tail(program, graph, tail_refs, used)
    return program


def _needed_partials(graph: Graph, refs: list[Ref], late: set[int], partials: list[int]) -> list:
    graph.outputs = list(refs)
    live = set(graph.live())
    return [p for p in partials if p in live]


def _make_tail(program: Program, graph: Graph, refs: list[Ref], partials: list[int]) -> None:
    """The nodes behind the partial sums as a graph of its own: inputs are arrays, counts, sums."""
    n = len(graph.inputs)
    tail = Graph(graph.name + "_tail", [])
    numbers: dict[int, Ref] = {}

    def visit(i: int) -> Ref:
        if i in numbers:
            return numbers[i]
        if i < n or i in partials:
            numbers[i] = Ref(len(tail.inputs))
            tail.inputs.append(graph.inputs[i] if i < n else f"sum{partials.index(i)}")
            kind = ("input", i) if i < n else ("partial", partials.index(i))
            program.tail_inputs.append(kind)
        return numbers[i]

    graph.outputs = list(refs)
    needed = [i for i in graph.live() if i >= n]
    behind: set[int] = set()
    for i in reversed(needed):  # what the results need, down to inputs and partial sums
        if i in {r.index for r in refs} or i in behind:
            behind.add(i)
            if i not in partials:
                args = graph.nodes[i - n].args
                behind |= {a.index for a in args if isinstance(a, Ref)}
    for i in sorted(behind | {r.index for r in refs}):
        if i < n or i in partials:
            visit(i)
    for i in sorted(behind):
        if i >= n and i not in partials:
            node = graph.nodes[i - n]
            if isinstance(node.op, Reduce):
                raise Unfusable("it reduces what no row depends on; do that outside")
            args = tuple(numbers[a.index] if isinstance(a, Ref) else a for a in node.args)
            tail.nodes.append(GraphNode(node.op, args, node.attrs, node.promoted))
            numbers[i] = Ref(len(tail.inputs) + len(tail.nodes) - 1)
    tail.outputs = [numbers[r.index] for r in refs]
    tail.input_dtypes = [
        graph.input_dtypes[i] if how == "input" else program.partials[i][0]
        for how, i in program.tail_inputs
    ]
    program.tail = tail
