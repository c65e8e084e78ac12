"""The emitter: a graph of elementwise nodes as one readable Triton kernel.

An eager elementwise op is the emitter on a one-node graph; a gradient rule is the emitter on the
graph its capture wrote. Operands that all have the output's contiguous layout (or one element) give
a flat kernel; anything else gives one with an index per collapsed axis.
"""

from __future__ import annotations
import __future__

import functools
import linecache
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dtypes import dtype as DType
from ..lang import Jit, tl
from .graph import Cast, Graph, Reduce, Ref

FLAT, ONE, STRIDED, SCALAR = "flat", "one", "strided", "scalar"


@dataclass(frozen=True)
class Input:
    """How a kernel reads one input: its dtype (None for a Python float) and its layout."""

    dtype: DType | None
    layout: str


def _literal(value: Any, compute: DType) -> str:
    if compute.kind == "float":
        value = float(value)
        if value != value or value in (float("inf"), float("-inf")):
            return f'float("{value}")'
    elif compute.kind == "int":
        value = int(value)
    return repr(value)


def _number(value: Any, compute: DType) -> str:
    """A number as an operand; Triton 3.6 rounds a bare one to float32 in maximum and minimum."""
    text = _literal(value, compute)
    if compute.name != "float64":
        return text
    with np.errstate(over="ignore"):
        exact = value != value or float(np.float32(value)) == value
    return text if exact else f"tl.full([1], {text}, tl.float64)"


def _constant(value: Any) -> str:
    """An attribute as source text."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    return repr(value)


def _read(name: str, spec: Input, ndim: int, mask: str) -> list[str]:
    """Lines that give ``name`` its value in registers."""
    if spec.layout == SCALAR:
        return []
    at = {
        FLAT: f"{name}_ptr + i{mask}",
        ONE: f"{name}_ptr + tl.zeros([1], tl.int32)",
        STRIDED: f"{name}_ptr + "
        + " + ".join(f"i{d} * {name}_stride{d}" for d in range(ndim))
        + mask,
    }[spec.layout]
    line = f"{name} = tl.load({at})"
    assert spec.dtype is not None
    if spec.dtype.kind == "bool":
        line += " != 0"
    elif spec.dtype.compute is not spec.dtype:
        line += ".to(tl.float32)"
    return [line]


def emit(
    graph: Graph,
    inputs: tuple[Input, ...],
    outputs: tuple[DType, ...],
    ndim: int,
    weak: DType,
    ragged: bool = False,
) -> str:
    """The kernel's source. ``ndim`` 0 means flat; else the number of collapsed axes. ``weak`` is
    the dtype of a value computed from Python numbers alone. ``ragged``: the number of elements does
    not divide by 16, so the compiler cannot take masked elements together in one access of 16
    bytes; blocks that are full go without a mask."""
    live = graph.live()
    n = len(graph.inputs)
    used = [i for i in live if i < n]
    params = [
        graph.inputs[i] if inputs[i].layout == SCALAR else f"{graph.inputs[i]}_ptr" for i in used
    ]
    params += [f"out{i}_ptr" for i in range(len(outputs))] + ["n"]
    params += [f"size{d}" for d in range(1, ndim)]
    for i in used:
        if inputs[i].layout == STRIDED:
            params += [f"{graph.inputs[i]}_stride{d}" for d in range(ndim)]
    lines = [
        f"def {graph.name}({', '.join(params)}, INT64: tl.constexpr, BLOCK: tl.constexpr):",
        "    start = tl.program_id(0)",
        "    if INT64:",
        "        start = start.to(tl.int64)",
        "    i = start * BLOCK + tl.arange(0, BLOCK)",
    ]
    if ndim:
        rest = "i"
        for d in range(ndim - 1, 0, -1):
            lines.append(f"    i{d} = {rest} % size{d}")
            lines.append(f"    rest{d} = {rest} // size{d}")
            rest = f"rest{d}"
        lines.append(f"    i0 = {rest}")
    masked = ["mask = i < n", *_body(graph, inputs, outputs, ndim, weak, ", mask=mask")]
    if ragged:
        lines.append("    if start * BLOCK + BLOCK <= n:")
        lines += [f"        {line}" for line in _body(graph, inputs, outputs, ndim, weak, "")]
        lines.append("    else:")
        masked = [f"    {line}" for line in masked]
    lines += [f"    {line}" for line in masked]
    return "\n".join(lines) + "\n"


def _body(
    graph: Graph,
    inputs: tuple[Input, ...],
    outputs: tuple[DType, ...],
    ndim: int,
    weak: DType,
    mask: str,
) -> list[str]:
    """Loads, values and stores; ``mask`` is the argument that loads and stores get."""
    live = graph.live()
    n = len(graph.inputs)
    values, promoted = graph.dtypes([i.dtype for i in inputs], weak)
    used = [i for i in live if i < n]
    lines = []
    for i in used:
        lines += _read(graph.inputs[i], inputs[i], ndim, mask)
    body = Registers(graph, values, promoted, {i for i in used if inputs[i].layout == SCALAR})
    for k in range(len(graph.nodes)):
        if n + k in live:
            lines.append(body.line(k))
    position = 0
    for ref in graph.outputs:
        if ref is None:
            continue
        want = outputs[position]
        target = "tl.uint8" if want.kind == "bool" else tl_name(want)
        if isinstance(ref, Ref):
            is_scalar = ref.index < n and inputs[ref.index].layout == SCALAR
            value = scalar(graph.label(ref.index), want) if is_scalar else graph.label(ref.index)
            value = f"{value}.to({target})"
        else:
            value = f"tl.full([BLOCK], {_literal(ref, want)}, {target})"
        lines.append(f"tl.store(out{position}_ptr + i, {value}{mask})")
        position += 1
    return lines


class Registers:
    """The lines that compute a graph's nodes on values in registers."""

    def __init__(
        self,
        graph: Graph,
        values: list[DType],
        promoted: list[DType],
        numbers: set[int],
        counts: Collection[int] = (),
    ) -> None:
        self.graph = graph
        self.kinds = [v.compute for v in values]
        self.promoted = promoted
        self.numbers = numbers  # inputs that are Python numbers, passed at the launch
        self.counts = counts  # inputs that are integers, of any use

    def operand(self, a: Any, compute: DType, untyped: bool) -> str:
        if not isinstance(a, Ref):
            return repr(bool(a)) if untyped else _number(a, compute)
        label = self.graph.label(a.index)
        if untyped:
            return label if self.kinds[a.index].kind == "bool" else f"({label} != 0)"
        if a.index in self.numbers:
            return scalar(label, compute)
        if a.index in self.counts:
            return f"tl.full([1], {label}, tl.int64).to({tl_name(compute)})"
        if self.kinds[a.index] is compute:
            return label
        return f"{label}.to({tl_name(compute)})"

    def line(self, k: int) -> str:
        """``v3 = mul(x, v2)`` for node ``k``, which is not a reduction."""
        node = self.graph.nodes[k]
        if isinstance(node.op, Cast):
            label = self.graph.label(node.args[0].index)
            to = node.op.dtype
            if node.op.detach:
                return f"v{k} = {label}"
            text = f"{label} != 0" if to.kind == "bool" else f"{label}.to({tl_name(to)})"
            return f"v{k} = {text}" if to.compute is to else f"v{k} = {text}.to(tl.float32)"
        compute = self.promoted[k].compute
        args = [
            self.operand(a, compute, name in node.op.untyped)
            for name, a in zip(node.op.operands, node.args)
        ]
        args += [f"{key}={_constant(value)}" for key, value in node.attrs.items()]
        return f"v{k} = {node.op.name}({', '.join(args)})"


def tl_name(d: DType) -> str:
    return "tl.int1" if d.kind == "bool" else f"tl.{d.name}"


def scalar(label: str, compute: DType) -> str:
    """A Python number passed at launch. float64 arrives as its bits: launch floats are float32.

    It becomes a block of one: the interpreter loses int1 when it spreads a comparison of scalars.
    """
    if compute.name == "float64":
        return f"tl.full([1], {label}, tl.int64).to(tl.float64, bitcast=True)"
    return f"tl.full([1], {label}, {tl_name(compute)})"


def build(source: str, name: str, graph: Graph, scope: dict[str, Any] | None = None) -> Jit:
    """Compile the text of a kernel; tracebacks and ``inspect`` find it through linecache.

    ``scope`` holds further names that the text uses.
    """
    filename = f"<trident {name} {abs(hash(source)):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    scope = {"tl": tl, "__name__": "trident.generated", **(scope or {})}
    for node in graph.nodes:
        if not isinstance(node.op, (Cast, Reduce)):
            scope[node.op.name] = node.op.triton
    # annotations stay text (BLOCK: tl.constexpr must not load Triton); the flag keeps line numbers
    code = compile(source, filename, "exec", flags=__future__.annotations.compiler_flag)
    exec(code, scope)
    return Jit(scope[name])


@functools.lru_cache(maxsize=4096)
def _kernel(
    key: tuple, inputs: tuple[Input, ...], outputs: tuple[DType, ...], ndim: int, weak: DType,
    ragged: bool, holder: _Held,
) -> Jit:  # fmt: skip
    source = emit(holder.graph, inputs, outputs, ndim, weak, ragged)
    return build(source, holder.graph.name, holder.graph)


class _Held:
    """Carries a graph through the cache without being part of its key."""

    __slots__ = ("graph",)

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)


def kernel(
    key: tuple, graph: Graph, inputs: tuple[Input, ...], outputs: tuple[DType, ...], ndim: int,
    weak: DType, ragged: bool = False,
) -> Jit:  # fmt: skip
    """The kernel of ``graph`` (identified by ``key``) for these dtypes and layouts, built once."""
    return _kernel(key, inputs, outputs, ndim, weak, ragged, _Held(graph))
