"""The emitter on whole programs: reductions, partial sums and several outputs in one Triton kernel.

Three forms of the same schedule (``loops.py``). ``flat``: no columns, a program owns a block of
elements. ``tile``: whole rows fit in a tile of ROWS x COLS, every input is read once. ``long``:
rows are longer than a tile; each pass walks them in steps of COLS and reads again what it needs.

Where there are partial sums, a fixed number of programs shares the tiles, and each writes one
partial sum that is added up afterwards: the same order every time, no atomics.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..kernels import reduce as reduce_kernels
from ..kernels import rows as row_kernels
from ..lang import Jit, cdiv, next_power_of_2
from ..runtime import DeviceArray, launch
from . import emitter
from .arrange import Work, merged, strides_along
from .emitter import Registers, tl_name
from .loops import Loops

FITS = 8192
"""Longest row that is held in registers."""
STEP = 4096
"""Elements of a tile of several rows, or of a step along a long one: 16 a thread at 8 warps."""


@dataclass(frozen=True)
class Form:
    """What a kernel's text depends on besides its program."""

    kind: str  # "flat", "tile" or "long"
    row_axes: int
    col_axes: int
    ones: tuple[bool, ...]  # per operand: a single value


class Text:
    """Writes the kernel of one program and form."""

    def __init__(self, program: Any, form: Form) -> None:
        self.program, self.form = program, form
        self.loops = Loops(program, keep=False)
        self.graph = program.graph
        lo = self.loops
        self.body = Registers(self.graph, lo.dtypes, lo.promoted, set(), tuple(program.counts))
        self.inputs = [i for i in lo.used_inputs() if i not in program.counts]
        self.counts = [i for i in lo.used_inputs() if i in program.counts]
        self.lines: list[str] = []
        self.depth = 1
        self.flat = form.kind == "flat"
        self.shared = bool(program.partials)  # a fixed number of programs shares the tiles

    def add(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def label(self, i: int) -> str:
        return self.graph.label(i)

    @property
    def operands(self) -> list[str]:
        names = [self.label(i) for i in self.inputs]
        return names + [f"out{j}" for j in range(len(self.program.stores))]

    def parameters(self) -> list[str]:
        names = [f"{name}_ptr" for name in self.operands]
        names += [f"part{j}_ptr" for j in range(len(self.program.partials))]
        names += [self.label(i) for i in self.counts]
        names += ["n"] if self.flat else ["n_rows", "n_cols"]
        names += [f"row_size{a}" for a in range(1, self.form.row_axes)]
        names += [f"col_size{a}" for a in range(1, self.form.col_axes)]
        for name, one in zip(self.operands, self.form.ones):
            if not one:
                names += [f"{name}_row{a}" for a in range(self.form.row_axes)]
                names += [f"{name}_col{a}" for a in range(self.form.col_axes)]
        return names

    def text(self) -> str:
        blocks = ["BLOCK"] if self.flat else ["ROWS", "COLS"]
        constants = [f"{name}: tl.constexpr" for name in ("INT64", "VEC", *blocks)]
        signature = ", ".join([*self.parameters(), *constants])
        self.lines = [f"def {self.graph.name}({signature}):"]
        last = "n" if self.flat else "n_cols"
        self.add(f"{last} = multiple({last}, VEC)  # so that {last} splits no vector")
        self.start_sums()
        if not self.flat and self.form.kind == "tile":
            self.columns("tl.arange(0, COLS)[None, :]")
        size, n = ("BLOCK", "n") if self.flat else ("ROWS", "n_rows")
        if self.shared:
            steps = f"tl.program_id(0), tl.cdiv({n}, {size}), tl.num_programs(0)"
            self.add(f"for tile in range({steps}):")
            self.depth += 1
            self.rows("tile")
        else:
            self.rows("tl.program_id(0)")
        self.walk()
        if self.shared:
            self.depth -= 1
        self.end_sums()
        return "\n".join(self.lines) + "\n"

    # ---- where a program is ---------------------------------------------------------------------

    def rows(self, tile: str) -> None:
        name, size = ("i", "BLOCK") if self.flat else ("rows", "ROWS")
        self.add(f"start = {tile}")
        self.add("if INT64:")
        self.add("    start = tl.cast(start, tl.int64)")
        spread = "" if self.flat else "[:, None]"
        self.add(f"{name} = start * {size} + tl.arange(0, {size}){spread}")
        self.add(f"inside = {name} < {'n' if self.flat else 'n_rows'}")
        self.decode(name, "row", self.form.row_axes)
        if self.flat:
            self.add("mask = inside")
        elif self.form.kind == "tile":
            self.add("mask = inside & col_inside")

    def columns(self, text: str) -> None:
        self.add(f"cols = {text}")
        self.add("if INT64:")
        self.add("    cols = cols.to(tl.int64)")
        self.add("col_inside = cols < n_cols")
        self.decode("cols", "col", self.form.col_axes)

    def decode(self, flat: str, name: str, axes: int) -> None:
        """The index along each axis from the running number of a row or column."""
        rest = flat
        for a in range(axes - 1, 0, -1):
            self.add(f"{name}_i{a} = {rest} % {name}_size{a}")
            self.add(f"{name}_rest{a} = {rest} // {name}_size{a}")
            rest = f"{name}_rest{a}"
        if axes:
            self.add(f"{name}_i0 = {rest}")

    def place(self, k: int, kind: str) -> tuple[str, str]:
        """(offsets, mask) of operand ``k``, whose value is of class ``kind``."""
        if self.form.ones[k]:
            return ("tl.zeros([1], tl.int32)" if self.flat else "tl.zeros([1, 1], tl.int32)"), ""
        name = self.operands[k]
        terms = []
        if self.flat or kind in ("full", "row"):
            terms += [f"row_i{a} * {name}_row{a}" for a in range(self.form.row_axes)]
        if not self.flat and kind in ("full", "col"):
            if terms:
                terms = [f"multiple({' + '.join(terms)}, VEC)"]
            terms += [f"col_i{a} * {name}_col{a}" for a in range(self.form.col_axes)]
        mask = "mask" if self.flat else {"full": "mask", "row": "inside", "col": "col_inside"}[kind]
        return " + ".join(terms) or "0", mask

    # ---- values ---------------------------------------------------------------------------------

    def load(self, i: int) -> None:
        k = self.inputs.index(i)
        name, d = self.label(i), self.loops.dtypes[i]
        offset, mask = self.place(k, self.loops.kinds[i])
        line = f"{name} = tl.load({name}_ptr + {offset}{f', mask={mask}, other=0' if mask else ''})"
        if d.kind == "bool":
            line += " != 0"
        elif d.compute is not d:
            line += ".to(tl.float32)"
        self.add(line)

    def store(self, j: int) -> None:
        i = self.loops.stores[j]
        d = self.program.stores[j][0]
        axes = self.program.stores[j][1]
        cols, rows = set(self.program.cols), set(self.program.rows)
        kind = (("full" if cols & set(axes) else "row") if rows & set(axes)
                else ("col" if cols & set(axes) else "one"))  # fmt: skip
        value = self.number(i)
        target = "tl.uint8" if d.kind == "bool" else tl_name(d)
        k = len(self.inputs) + j
        offset, mask = self.place(k, kind)
        # a value that lacks axes of its output is spread over them
        spread = {"full": "mask", "row": "inside", "col": "col_inside"}.get(kind, "")
        if self.flat:
            spread = "" if self.form.ones[k] else "mask"
        value = f"({value}).to({target})"
        if spread:
            value = f"tl.broadcast_to({value}, {spread}.shape)"
        mask = f", mask={mask}" if mask else ""
        self.add(f"tl.store(out{j}_ptr + {offset}, {value}{mask})")

    def number(self, i: int) -> str:
        d = self.loops.compute(i)
        if i in self.program.counts:
            return f"tl.full([1], {self.label(i)}, tl.int64).to({tl_name(d)})"
        return self.label(i)

    def start_sums(self) -> None:
        for j, (d, along_cols) in enumerate(self.program.partials):
            acc = tl_name(d)
            if self.flat:
                self.add(f"sum{j} = tl.zeros([BLOCK], {acc})")
            elif not along_cols or self.form.kind == "tile":
                self.add(f"sum{j} = tl.zeros([ROWS, COLS], {acc})")

    def end_sums(self) -> None:
        for j, (_, along_cols) in enumerate(self.program.partials):
            if self.flat:
                self.add(f"tl.store(part{j}_ptr + tl.program_id(0), tl.sum(sum{j}, 0))")
            elif not along_cols:
                total = f"tl.sum(tl.sum(sum{j}, 1), 0)"
                self.add(f"tl.store(part{j}_ptr + tl.program_id(0), {total})")
            elif self.form.kind == "tile":
                at = f"part{j}_ptr + tl.program_id(0).to(tl.int64) * n_cols + cols"
                self.add(f"tl.store({at}, tl.sum(sum{j}, 0)[None, :], mask=col_inside)")

    def sum_up(self, j: int) -> None:
        """Add value ``sums[j]`` of this tile to partial sum ``j``."""
        i = self.loops.sums[j]
        kind = self.loops.kinds[i]
        value, zero = self.number(i), "0"
        along_cols = self.program.partials[j][1]
        if self.flat:
            self.add(f"sum{j} += tl.where(mask, {value}, {zero})")
        elif kind == "row":  # once a row: in the first column of the tile
            first = "inside & (tl.arange(0, COLS)[None, :] == 0)"
            self.add(f"sum{j} += tl.where({first}, {value}, {zero})")
        elif along_cols and self.form.kind == "long":
            at = f"part{j}_ptr + tl.program_id(0).to(tl.int64) * n_cols + cols"
            self.add(f"before = tl.load({at}, mask=col_inside, other=0)")
            total = f"before + tl.sum(tl.where(mask, {value}, {zero}), 0)[None, :]"
            self.add(f"tl.store({at}, {total}, mask=col_inside)")
            self.add("tl.debug_barrier()  # the next tile of this program reads it back")
        else:
            self.add(f"sum{j} += tl.where(mask, {value}, {zero})")

    # ---- passes ---------------------------------------------------------------------------------

    def walk(self) -> None:
        lo = self.loops
        for i in self.inputs:  # what does not differ along the columns
            if not lo.in_loop(i):
                self.load(i)
        done: set[int] = set()
        for p in lo.passes:
            for i in p.rows:
                self.add(self.body.line(i - lo.n))
            for j in p.partials:
                if not lo.in_loop(lo.sums[j]):
                    self.sum_up(j)
            for j in p.stores:
                if not lo.stores_in_loop[j]:
                    self.store(j)
            if self.form.kind == "long":
                self.long_pass(p)
                continue
            for i in sorted({*p.loads, *p.values} - done):
                done.add(i)
                if i < lo.n:
                    self.load(i)
                else:
                    self.add(self.body.line(i - lo.n))
            for j in p.stores:
                if lo.stores_in_loop[j]:
                    self.store(j)
            for j in p.partials:
                if lo.in_loop(lo.sums[j]):
                    self.sum_up(j)
            for i in p.reductions:
                identity = _identity(lo.node(i).op.kind, lo.compute(i))
                value = self.label(lo.operands(i)[0])
                self.reduce(i, f"tl.where({self.tile_mask(i)}, {value}, {identity})")

    def tile_mask(self, i: int) -> str:
        return "mask" if self.loops.kinds[self.loops.operands(i)[0]] == "full" else "col_inside"

    def reduce(self, i: int, value: str) -> None:
        kind, d = self.loops.node(i).op.kind, self.loops.compute(i)
        text = f"tl.sum({value}, 1)"
        if kind != "sum":
            text = f"fold({value}, {_KINDS[kind]}, {_identity(kind, d)}, {d.kind == 'float'})"
        self.add(f"{self.label(i)} = {text}[:, None]")

    def long_pass(self, p: Any) -> None:
        """One walk over rows that are longer than a tile."""
        lo = self.loops
        stores = [j for j in p.stores if lo.stores_in_loop[j]]
        sums = [j for j in p.partials if lo.in_loop(lo.sums[j])]
        if not (stores or sums or p.reductions):
            return
        for i in p.reductions:
            d = lo.compute(i)
            rows = "ROWS" if self.tile_mask(i) == "mask" else "1"
            identity = _identity(lo.node(i).op.kind, d)
            self.add(f"acc{i} = tl.full([{rows}, COLS], {identity}, {tl_name(d)})")
        self.add("for first in range(0, n_cols, COLS):")
        self.depth += 1
        self.columns("first + tl.arange(0, COLS)[None, :]")
        self.add("mask = inside & col_inside")
        for i in [*p.loads, *p.values]:
            if i < lo.n:
                self.load(i)
            else:
                self.add(self.body.line(i - lo.n))
        for j in stores:
            self.store(j)
        for j in sums:
            self.sum_up(j)
        for i in p.reductions:
            kind, value = lo.node(i).op.kind, self.label(lo.operands(i)[0])
            mask = self.tile_mask(i)
            if kind == "sum":
                self.add(f"acc{i} += tl.where({mask}, {value}, 0)")
            else:
                value = f"combine(acc{i}, {value}, {_KINDS[kind]})"
                self.add(f"acc{i} = tl.where({mask}, {value}, acc{i})")
        self.depth -= 1
        for i in p.reductions:
            self.reduce(i, f"acc{i}")


def _identity(kind: str, d: DType) -> str:
    if kind == "sum":
        return "0"
    if d.kind == "float":
        return 'float("-inf")' if kind == "amax" else 'float("inf")'
    if d.kind == "bool":
        return "False" if kind == "amax" else "True"
    info = dtypes.iinfo(d)
    return str(info.min if kind == "amax" else info.max)


_KINDS = {"amax": "MAX", "amin": "MIN"}


def _scope() -> dict[str, Any]:
    """What the text names besides the ops' formulas."""
    names = {name: getattr(reduce_kernels, name) for name in ("fold", "combine", "MAX", "MIN")}
    return {**names, "multiple": row_kernels.multiple}


@functools.lru_cache(maxsize=1024)
def _build(source: str, name: str, program: _Same) -> Jit:
    return emitter.build(source, name, program.graph, _scope())


class _Same:
    """Carries a graph through the cache; equal text means an equal kernel where the formulas
    are."""

    __slots__ = ("graph", "ops")

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.ops = tuple([
            node.op for node in graph.nodes if getattr(node.op, "kind", "") == "elementwise"
        ])  # fmt: skip

    def __hash__(self) -> int:
        return hash(self.ops)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.ops == other.ops


def run_loops(work: Work) -> list[DeviceArray]:
    """Launch the kernel of ``work.program``; the partial sums, added up."""
    p = work.program
    used = [i for i in p.graph.live() if i < len(p.graph.inputs) and i not in p.counts]
    arrays = [work.arrays[i] for i in used]
    operands = [*arrays, *work.stores]
    dims = [*(p.dims[i] for i in used), *(axes for _, axes in p.stores)]
    row_sizes, rows = merged(
        work.shape(p.rows), [strides_along(p.rows, d, a.strides) for a, d in zip(operands, dims)]
    )
    col_sizes, cols = merged(
        work.shape(p.cols), [strides_along(p.cols, d, a.strides) for a, d in zip(operands, dims)]
    )
    n_rows, n_cols = shapes.numel(row_sizes), shapes.numel(col_sizes)
    device = (arrays or work.stores)[0].device
    kind = "flat" if not p.cols else "tile" if n_cols <= _fits(device) else "long"
    form = Form(kind, len(row_sizes), len(col_sizes), tuple([a.size == 1 for a in operands]))
    known = p.__dict__.setdefault("triton", {})
    if form not in known:
        source = Text(p, form).text()
        known[form] = (_build(source, p.graph.name, _Same(p.graph)), source)
    kernel = known[form][0]
    tile, constants = _tile(kind, n_rows, n_cols, device)
    tiles = cdiv(n_rows, tile)
    programs = min(tiles, _programs(device)) if p.partials else tiles
    partials = [_partial(device, d, along, programs, n_cols, kind) for d, along in p.partials]
    steps: list[int] = []
    for a, r, c in zip(operands, rows, cols):
        if a.size != 1:
            steps += [*r, *c]
    counts = [int(work.arrays[i]) for i in p.counts if i in set(p.graph.live())]
    wide = n_rows * n_cols > 2**31 - 65536 or shapes.needs_int64(*operands)
    elements = tile * constants.get("COLS", 1)
    launch(
        kernel, (programs,), *operands, *partials, *counts,
        *([n_rows] if kind == "flat" else [n_rows, n_cols]),
        *row_sizes[1:], *col_sizes[1:], *steps,
        INT64=wide, VEC=_vector(kind, n_rows, row_sizes, rows, col_sizes, cols, constants),
        num_warps=row_kernels.warps(elements), **constants,
    )  # fmt: skip
    return [_added(device, part, d, along, work) for part, (d, along) in zip(partials, p.partials)]


def _vector(
    kind: str, n_rows: int, row_sizes: Any, rows: Any, col_sizes: Any, cols: Any, tile: dict
) -> int:
    """How many neighbouring elements (``flat``) or columns begin at a multiple of themselves in
    every operand and are inside of it together: ``rows.tiled`` for the strides of a program."""
    if kind == "flat":
        return math.gcd(16, n_rows, tile["BLOCK"])
    found = math.gcd(16, shapes.numel(col_sizes), col_sizes[-1], tile["COLS"])
    for row_steps, col_steps in zip(rows, cols):
        if any(col_steps):
            found = math.gcd(found, *row_steps, *col_steps[:-1])
            found = found if col_steps[-1] in (0, 1) else 1
    return found


def _fits(device: Any) -> int:
    limit = config.interpret_block.get() if device.interpreted else None
    return limit or FITS


def _programs(device: Any) -> int:
    return 3 if device.interpreted else row_kernels.programs(device)


def _tile(kind: str, n_rows: int, n_cols: int, device: Any) -> tuple[int, dict[str, int]]:
    """Rows (or elements) of a tile, and the kernel's constants."""
    most = row_kernels.interpreted_block() if device.interpreted else STEP
    if kind == "flat":
        block = min(max(next_power_of_2(n_rows), 16), most) if device.interpreted else 1024
        return block, {"BLOCK": block}
    cols = next_power_of_2(n_cols) if kind == "tile" else min(most, STEP)
    rows = max(min(most // cols, next_power_of_2(n_rows)), 1)
    return rows, {"ROWS": rows, "COLS": cols}


def _partial(
    device: Any, d: DType, along_cols: bool, programs: int, n_cols: int, kind: str
) -> DeviceArray:
    out = device.empty((programs, n_cols) if along_cols else (programs,), d)
    if along_cols and kind == "long":  # these are added to, row by row
        from ..kernels import layout

        layout.fill(out, 0)
    return out


def _added(device: Any, part: DeviceArray, d: DType, along_cols: bool, work: Work) -> DeviceArray:
    out = device.empty(work.shape(work.program.cols) if along_cols else (), d)
    flat = out.reshape((part.shape[1],)) if along_cols else out
    reduce_kernels.reduce(flat, part, over=(0,), kind=reduce_kernels.SUM)
    return out
