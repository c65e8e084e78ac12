"""The emitter's second dialect: a program as C loops.

One function walks rows row0 to row1 and columns col0 to col1. Scalar formulas are the ops' Triton
bodies, translated (``transpile.py``); the loops around them are plain ``for`` loops that the
compiler vectorises. Sums are collected in vector lanes over 4096 columns and added up in double.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..dtypes import dtype as DType
from .graph import Cast, Graph, Reduce, Ref
from .loops import Loops
from .transpile import C_TYPES, CModule

SPAN = 4096
"""Columns whose sum is kept in single precision, in as many lanes as the compiler uses."""

TYPES = {
    "bool": "i1", "uint8": "u8", "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "float32": "f32", "float64": "f64",
}  # fmt: skip

MEMORY = {
    "bool": "uint8_t", "uint8": "uint8_t", "int8": "int8_t", "int16": "int16_t",
    "int32": "int32_t", "int64": "int64_t", "float16": "_Float16", "bfloat16": "uint16_t",
    "float32": "float", "float64": "double",
}  # fmt: skip

BFLOAT16 = """\
static inline float from_bfloat16(uint16_t h) {
    union { uint32_t bits; float value; } u = { (uint32_t)h << 16 };
    return u.value;
}
static inline uint16_t to_bfloat16(float x) {  // to nearest even; NaN stays NaN
    union { float value; uint32_t bits; } u = { x };
    uint32_t rounded = (u.bits + 0x7FFF + (u.bits >> 16 & 1)) >> 16;
    return (uint16_t)(x != x ? u.bits >> 16 | 0x40 : rounded);
}
"""


@dataclass(frozen=True)
class Layout:
    """How operands lie: row axes, and per operand (inputs in use, then stores) the stride along the
    columns: 0, 1, or None for one that is passed."""

    row_axes: int
    steps: tuple[int | None, ...]
    keep: bool


class _Text:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 1

    def add(self, line: str) -> None:
        self.lines.append("    " * self.depth + line if line else "")


class Emitter:
    """Writes the C function of one program and layout."""

    def __init__(self, program: Any, layout: Layout) -> None:
        self.program = program
        self.layout = layout
        self.loops = Loops(program, layout.keep)
        self.graph: Graph = program.graph
        self.module = CModule()
        self.out = _Text()
        self.inputs = [i for i in self.loops.used_inputs() if i not in program.counts]
        self.counts = {i: k for k, i in enumerate(program.counts)}
        self.half = False

    # ---- names and types ------------------------------------------------------------------------

    def label(self, i: int) -> str:
        return self.graph.label(i)

    def c_type(self, d: DType) -> str:
        return C_TYPES[TYPES[d.compute.name]]

    def load(self, d: DType, text: str) -> str:
        if d.name == "bfloat16":
            self.half = True
            return f"from_bfloat16({text})"
        if d.name == "bool":
            return f"({text} != 0)"
        return f"(float){text}" if d.name == "float16" else text

    def store(self, has: DType, want: DType, text: str) -> str:
        if want.name == "bfloat16":
            self.half = True
            return f"to_bfloat16((float){text})"
        if want.name == "bool":
            return f"({text} != 0)"
        return text if has is want else f"({MEMORY[want.name]}){text}"

    def operand(self, a: Any, want: DType, untyped: bool) -> tuple[str | None, Any]:
        """(C text, type) of an argument; (None, number) of a literal."""
        if not isinstance(a, Ref):
            return None, bool(a) if untyped else a
        if a.index in self.counts:
            return f"({self.c_type(want)})numbers[{self.counts[a.index]}]", TYPES[want.name]
        has = self.loops.compute(a.index)
        label = self.label(a.index)
        if untyped:
            return (label if has.kind == "bool" else f"({label} != 0)"), "i1"
        if has is want:
            return label, TYPES[want.name]
        return f"({self.c_type(want)}){label}", TYPES[want.name]

    def value(self, i: int) -> None:
        """The line that computes value ``i``."""
        node = self.loops.node(i)
        result = self.loops.compute(i)
        head = f"const {self.c_type(result)} {self.label(i)} = "
        if isinstance(node.op, Cast):
            a = node.args[0]
            text = self.label(a.index)
            has = self.loops.compute(a.index)
            if not node.op.detach:
                stored = self.store(has, node.op.dtype, text)
                text = self.load(node.op.dtype, f"({MEMORY[node.op.dtype.name]})({stored})")
            self.out.add(f"{head}{text};")
            return
        want = self.loops.promoted[i - self.loops.n].compute
        texts, types = [], []
        for name, a in zip(node.op.operands, node.args):
            passed, kind = self.operand(a, want, name in node.op.untyped)
            types.append(kind)
            if passed is not None:
                texts.append(passed)
        name, kind = self.module.function(node.op.triton, tuple(types), node.attrs)
        call = f"{name}({', '.join(texts)})"
        if kind != TYPES[result.name]:
            call = f"({self.c_type(result)}){call}"
        self.out.add(f"{head}{call};")

    # ---- text -----------------------------------------------------------------------------------

    def text(self) -> str:
        """The whole file."""
        self.body()
        body = "\n".join(self.out.lines)
        name = self.graph.name
        parts = [
            "#include <stdint.h>",
            "#include <math.h>",
            self.module.text(),
            BFLOAT16 if self.half else "",
            f"void {name}_loops(const int64_t *sizes, void *const *memory, const double *numbers,\n"
            "    int64_t row0, int64_t row1, int64_t col0, int64_t col1)\n{",
            body,
            "}",
        ]
        return "\n".join(part for part in parts if part) + "\n"

    def body(self) -> None:
        add, loops, program = self.out.add, self.loops, self.program
        n_in, n_out = len(self.inputs), len(program.stores)
        for j, (d, along_cols) in enumerate(program.partials):
            if along_cols:
                add(f"{MEMORY[d.name]} *restrict part{j} = memory[{n_in + n_out + j}];")
            else:
                add(f"{_total(d)} part{j} = 0;")
        for j, i in enumerate(loops.kept):
            at = n_in + n_out + len(program.partials) + j
            add(f"{self.c_type(loops.dtypes[i])} *restrict kept{i} = memory[{at}];")
        add("for (int64_t row = row0; row < row1; row++) {")
        self.out.depth += 1
        self.row_start()
        for k, walk in enumerate(loops.passes):
            for i in walk.rows:
                self.value(i)
            for j in walk.partials:
                if not loops.in_loop(loops.sums[j]):
                    add(f"part{j} += {self.label(loops.sums[j])};")
            self.stores_of_row(walk)
            self.columns(k, walk)
        self.out.depth -= 1
        add("}")
        for j, (d, along_cols) in enumerate(program.partials):
            if not along_cols:
                add(f"*({_total(d)} *)memory[{n_in + n_out + j}] = part{j};")

    def row_start(self) -> None:
        """Where each operand's row begins."""
        add, axes = self.out.add, self.layout.row_axes
        if axes > 1:
            add("int64_t rest = row;")
            for a in range(axes - 1, 0, -1):
                add(f"const int64_t i{a} = rest % sizes[{a}];")
                add(f"rest /= sizes[{a}];")
        at = axes
        operands = [(f"{self.label(i)}_row", self.loops.dtypes[i]) for i in self.inputs]
        operands += [(f"out{j}", d) for j, (d, _) in enumerate(self.program.stores)]
        index = ["rest" if axes > 1 else "row", *(f"i{a}" for a in range(1, axes))]
        for k, (name, d) in enumerate(operands):
            const = "" if name.startswith("out") else "const "
            memory = MEMORY[d.name]
            offset = " + ".join(f"{index[a]} * sizes[{at + a}]" for a in range(axes)) or "0"
            add(f"{const}{memory} *restrict {name} = ({const}{memory} *)memory[{k}] + {offset};")
            at += axes
            if self.layout.steps[k] is None:
                add(f"const int64_t {name}_step = sizes[{at}];")
                at += 1
        for i in self.inputs:
            if not self.loops.in_loop(i):
                d = self.loops.dtypes[i]
                text = self.load(d, f"{self.label(i)}_row[0]")
                add(f"const {self.c_type(d)} {self.label(i)} = {text};")

    def at(self, name: str, k: int) -> str:
        step = self.layout.steps[k]
        index = {0: "0", 1: "col", None: f"col * {name}_step"}[step]
        return f"{name}[{index}]"

    def stores_of_row(self, walk: Any) -> None:
        for j in walk.stores:
            i = self.loops.stores[j]
            if not self.loops.stores_in_loop[j]:
                d = self.program.stores[j][0]
                self.out.add(f"out{j}[0] = {self.store(self.loops.compute(i), d, self.label(i))};")

    def columns(self, k: int, walk: Any) -> None:
        """One pass over the columns."""
        loops, add = self.loops, self.out.add
        stores = [j for j in walk.stores if loops.stores_in_loop[j]]
        sums = [j for j in walk.partials if loops.in_loop(loops.sums[j])]
        if not (stores or sums or walk.reductions):
            return
        lanes: list[tuple[str, str, str, str, str]] = []  # variable, type, total, type, value
        clauses: list[str] = []
        for i in walk.reductions:
            self.start_reduction(i, lanes, clauses)
        for j in sums:
            d, along_cols = self.program.partials[j]
            if not along_cols:
                value = self.label(loops.sums[j])
                lanes.append((f"lane{j}", MEMORY[d.name], f"part{j}", _total(d), value))
        spans = bool(lanes)
        clauses += [f"reduction(+:{name})" for name, *_ in lanes]
        first, last = "col0", "col1"
        if spans:
            add(f"for (int64_t start = col0; start < col1; start += {SPAN}) {{")
            self.out.depth += 1
            add(f"const int64_t end = start + {SPAN} < col1 ? start + {SPAN} : col1;")
            first, last = "start", "end"
            for name, kind, *_ in lanes:
                add(f"{kind} {name} = 0;")
        add(" ".join(["#pragma omp simd", *clauses]))
        add(f"for (int64_t col = {first}; col < {last}; col++) {{")
        self.out.depth += 1
        for i in walk.loads:
            d = loops.dtypes[i]
            where = self.at(f"{self.label(i)}_row", self.inputs.index(i))
            add(f"const {self.c_type(d)} {self.label(i)} = {self.load(d, where)};")
        for i in walk.reads:
            add(f"const {self.c_type(loops.dtypes[i])} {self.label(i)} = kept{i}[col];")
        for i in walk.values:
            self.value(i)
            if i in walk.kept:
                add(f"kept{i}[col] = {self.label(i)};")
        for i in walk.reductions:
            self.step_reduction(i)
        for name, _, _, _, value in lanes:
            add(f"{name} += {value};")
        for j in sums:
            if self.program.partials[j][1]:
                add(f"part{j}[col] += {self.label(loops.sums[j])};")
        for j in stores:
            i = loops.stores[j]
            d = self.program.stores[j][0]
            target = self.at(f"out{j}", len(self.inputs) + j)
            add(f"{target} = {self.store(loops.compute(i), d, self.label(i))};")
        self.out.depth -= 1
        add("}")
        if spans:
            for name, _, total, _, _ in lanes:
                add(f"{total} += {name};")
            self.out.depth -= 1
            add("}")
        for i in walk.reductions:
            self.end_reduction(i)

    def start_reduction(self, i: int, lanes: list, clauses: list[str]) -> None:
        op: Reduce = self.loops.node(i).op
        d = self.loops.compute(i)
        label = self.label(i)
        if op.kind == "sum":
            self.out.add(f"{_total(d)} total{i} = 0;")
            operand = self.label(self.loops.operands(i)[0])
            lanes.append((f"lane_{label}", MEMORY[d.name], f"total{i}", _total(d), operand))
            return
        self.out.add(f"{self.c_type(d)} best{i} = {_worst(op.kind, d)};")
        clauses.append(f"reduction({'max' if op.kind == 'amax' else 'min'}:best{i})")
        if d.kind == "float":  # a comparison with NaN is false, so NaN is looked for apart
            self.out.add(f"int nan{i} = 0;")
            clauses.append(f"reduction(|:nan{i})")

    def step_reduction(self, i: int) -> None:
        op: Reduce = self.loops.node(i).op
        if op.kind == "sum":
            return
        value = self.label(self.loops.operands(i)[0])
        sign = ">" if op.kind == "amax" else "<"
        self.out.add(f"best{i} = {value} {sign} best{i} ? {value} : best{i};")
        if self.loops.compute(i).kind == "float":
            self.out.add(f"nan{i} |= {value} != {value};")

    def end_reduction(self, i: int) -> None:
        op: Reduce = self.loops.node(i).op
        d = self.loops.compute(i)
        head = f"const {self.c_type(d)} {self.label(i)} = "
        if op.kind == "sum":
            self.out.add(f"{head}({self.c_type(d)})total{i};")
        elif d.kind == "float":
            self.out.add(f"{head}nan{i} ? ({self.c_type(d)})NAN : best{i};")
        else:
            self.out.add(f"{head}best{i};")


def _total(d: DType) -> str:
    return "double" if d.kind == "float" else "int64_t"


def _worst(kind: str, d: DType) -> str:
    if d.kind == "float":
        return "-INFINITY" if kind == "amax" else "INFINITY"
    if d.kind == "bool":
        return "0" if kind == "amax" else "1"
    if d.name == "uint8":
        return "0" if kind == "amax" else "UINT8_MAX"
    return f"INT{d.itemsize * 8}_{'MIN' if kind == 'amax' else 'MAX'}"
