"""What a program computes where: the passes over a row, and what is known between them.

Every value is of one class: ``full`` (differs along rows and columns), ``col``, ``row`` or ``one``.
The level of a value is the number of reductions over the columns that must be finished before it is
known. Pass p walks the columns once and computes the full and col values that its reductions,
stores and partial sums need; values of an earlier pass are computed again, unless they are costly
and were kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..dtypes import dtype as DType
from ..dtypes import float32
from .graph import Cast, Graph, Reduce, Ref

CHEAP = frozenset(
    """
    add sub mul neg abs positive where maximum minimum relu square eq ne lt le gt ge zero
    squared_error clamp_min clamp_max clamp_both logical_and logical_or logical_not
    addcmul lerp relu6 leaky_relu hardtanh hardsigmoid bitwise_and bitwise_or bitwise_not
    sign isnan isinf div reciprocal sqrt rsqrt threshold floor ceil
    """.split()  # noqa: SIM905
)
"""Ops that are cheaper to compute again than to write down and read back."""


def costly(op: Any) -> bool:
    return not isinstance(op, (Reduce, Cast)) and op.name not in CHEAP


@dataclass
class Pass:
    """One walk over the columns of a row."""

    values: list[int] = field(default_factory=list)  # full and col values to compute, in order
    loads: list[int] = field(default_factory=list)  # inputs to read
    kept: list[int] = field(default_factory=list)  # values to keep for later passes
    reads: list[int] = field(default_factory=list)  # kept values to read back
    reductions: list[int] = field(default_factory=list)
    stores: list[int] = field(default_factory=list)  # numbers of outputs
    partials: list[int] = field(default_factory=list)  # numbers of partial sums
    rows: list[int] = field(default_factory=list)  # row and one values known after it, in order


class Loops:
    """The schedule of a program's graph."""

    def __init__(self, program: Any, keep: bool = True) -> None:
        self.program = program
        graph: Graph = program.graph
        self.graph = graph
        self.n = len(graph.inputs)
        self.dtypes, self.promoted = graph.dtypes(graph.input_dtypes, float32)
        cols, rows = frozenset(program.cols), frozenset(program.rows)
        if not cols:  # flat: all that differs does so along the one loop
            cols, rows = rows, cols
        self.kinds = [_class(bool(v & rows), bool(v & cols)) for v in program.varies]
        self.live = graph.live()
        self._levels()
        self.depth = max(self.level[i] for i in self.live) + 1 if self.live else 1
        targets = [o.index for o in graph.outputs if isinstance(o, Ref)]
        self.stores = targets[: len(program.stores)]
        self.stores_in_loop = [bool(cols & set(axes)) for _, axes in program.stores]
        self.sums = targets[len(program.stores) :]
        self.passes = [Pass() for _ in range(self.depth)]
        self._place(keep)

    def node(self, i: int) -> Any:
        return self.graph.nodes[i - self.n]

    def operands(self, i: int) -> list[int]:
        if i < self.n:
            return []
        return [a.index for a in self.node(i).args if isinstance(a, Ref)]

    def in_loop(self, i: int) -> bool:
        """Whether value ``i`` differs along the columns."""
        return self.kinds[i] in ("full", "col")

    def _levels(self) -> None:
        self.level = [0] * self.n
        for k, node in enumerate(self.graph.nodes):
            before = max((self.level[i] for i in self.operands(self.n + k)), default=0)
            self.level.append(before + isinstance(node.op, Reduce))

    def _place(self, keep: bool) -> None:
        wanted: list[set[int]] = [set() for _ in range(self.depth)]
        for i in self.live:
            if i < self.n:
                continue
            if isinstance(self.node(i).op, Reduce):
                p = self.passes[self.level[i] - 1]
                p.reductions.append(i)
                wanted[self.level[i] - 1].add(self.operands(i)[0])
            elif not self.in_loop(i):
                self.passes[self.level[i]].rows.append(i)
        for group, name in ((self.stores, "stores"), (self.sums, "partials")):
            for k, i in enumerate(group):
                getattr(self.passes[self.level[i]], name).append(k)
                wanted[self.level[i]].add(i)
        kept: set[int] = set()
        for p, need in zip(self.passes, wanted):
            seen: set[int] = set()
            self._closure(need, seen, kept, p)
            p.values = sorted(i for i in seen if i >= self.n)
            p.loads = sorted(i for i in seen if i < self.n)
        if keep and self.depth > 1:
            self._keep(wanted)

    def _closure(self, need: set[int], seen: set[int], kept: set[int], p: Pass) -> None:
        stack = [i for i in need if self.in_loop(i)]
        while stack:
            i = stack.pop()
            if i in seen or i in p.reads:
                continue
            if i in kept:
                p.reads.append(i)
                continue
            seen.add(i)
            stack += [a for a in self.operands(i) if self.in_loop(a)]

    def _keep(self, wanted: list[set[int]]) -> None:
        """Keep costly full values that a later pass needs again."""
        kept: set[int] = set()
        for at, p in enumerate(self.passes):
            p.reads = []
            seen: set[int] = set()
            self._closure(wanted[at], seen, kept, p)
            p.values = sorted(i for i in seen if i >= self.n)
            p.loads = sorted(i for i in seen if i < self.n)
            later = {i for q in self.passes[at + 1 :] for i in q.values}
            p.kept = [
                i for i in p.values
                if i in later and self.kinds[i] == "full" and costly(self.node(i).op)
            ]  # fmt: skip
            kept |= set(p.kept)

    @property
    def kept(self) -> list[int]:
        return [i for p in self.passes for i in p.kept]

    def compute(self, i: int) -> DType:
        """What value ``i`` is in registers."""
        return self.dtypes[i].compute

    def used_inputs(self) -> list[int]:
        return [i for i in self.live if i < self.n]


def _class(rows: bool, cols: bool) -> str:
    return ("full" if cols else "row") if rows else ("col" if cols else "one")
