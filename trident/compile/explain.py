"""What ``f.source`` and ``f.explain()`` of a fused function say."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from .. import shapes
from ..backends.graph import Cast, Reduce, Ref
from ..backends.loops import Loops
from ..backends.program import Program, value_axes
from ..errors import FusionError
from ..runtime import host_threads


def _last(f: Any) -> tuple[Any, dict[int, int], str]:
    if f.last is None:
        raise FusionError(
            f"fuse: {f.__name__} has no kernels yet: they are made for the dtypes and layouts of a "
            "call; call it once"
        )
    return f.last


def source(f: Any) -> str:
    """The text of the kernels of the last call's plan, forward and backward."""
    plan, _, _ = _last(f)
    parts = []
    for title, program in (("forward", plan.forward), ("backward", plan.backward)):
        if program is None:
            if plan.why:
                parts.append(f"# backward: the gradient of the body, since {plan.why}\n")
            continue
        for text in _texts(program):
            parts.append(f"{_comment(text)} {title}\n{text}")
        if program.tail is not None and "python" in program.tail.__dict__:
            parts.append(f"# {title}, after the loop\n{program.tail.__dict__['python'].source}\n")
    return "\n".join(parts) or "# nothing has run yet\n"


def _comment(text: str) -> str:
    return "#" if text.startswith("def ") else "//"


def _texts(program: Program) -> list[str]:
    """Every kernel made of a program so far."""
    known = program.__dict__
    found = [c.text for c in (known.get("compiled") or {}).values()]
    found += [text for _, text in known.get("triton", {}).values()]
    found += [f.source + "\n" for f in known.get("python", {}).values()]
    return found


class Explanation:
    """A report on the last call of a fused function: ``print(f.explain())``.

    ``bytes_forward`` and ``bytes_backward`` are what the kernels move, ``bytes_eager`` what the ops
    of the forward pass would move one by one, ``saved`` the bytes kept for backward besides the
    arguments.
    """

    def __init__(self, f: Any) -> None:
        plan, sizes, backend = _last(f)
        self.name = f.__name__
        self.device = "cpu" if backend.endswith("numpy") else "cuda"
        self.captures = f.made
        self._sizes = sizes
        self._plan = plan
        graph = plan.capture.graph
        self.operations = [
            node.op.name
            for node in graph.nodes
            if not (isinstance(node.op, Cast) and node.op.detach)
        ]
        self.bytes_eager = self._eager(plan.capture)
        self.bytes_forward = self._moved(plan.forward)
        self.bytes_backward = self._moved(plan.backward) if plan.backward is not None else 0
        self.saved = sum(self._bytes(tuple(w.dims), w.dtype) for w in plan.saved)

    def _extent(self, axes: Any) -> int:
        return shapes.numel(self._sizes[a] for a in axes if a is not None)

    def _bytes(self, axes: Any, dtype: Any) -> int:
        return self._extent(axes) * dtype.itemsize

    def _eager(self, capture: Any) -> int:
        graph = capture.graph
        axes = value_axes(
            graph, [frozenset(d for d in dims if d is not None) for dims in capture.dims]
        )
        from ..dtypes import float32

        dtypes, _ = graph.dtypes(graph.input_dtypes, float32)
        total = 0
        for k, node in enumerate(graph.nodes):
            at = len(graph.inputs) + k
            if isinstance(node.op, Cast) and node.op.detach:
                continue
            for i in [at, *(a.index for a in node.args if isinstance(a, Ref))]:
                total += self._bytes(axes[i], dtypes[i])
        return total

    def _reads(self, program: Program) -> list[tuple[str, int]]:
        graph = program.graph
        found = []
        for i in graph.live():
            if i < len(graph.inputs) and i not in program.counts:
                d = graph.input_dtypes[i]
                found.append((graph.inputs[i], self._bytes(program.dims[i], d)))
        return found

    def _writes(self, program: Program) -> int:
        return sum(self._bytes(axes, d) for d, axes in program.stores)

    def _moved(self, program: Program) -> int:
        return sum(b for _, b in self._reads(program)) + self._writes(program)

    def _form(self, program: Program) -> str:
        rows, cols = self._extent(program.rows), self._extent(program.cols)
        if not program.cols:
            form = f"one loop over {rows:,} elements"
        else:
            loops = Loops(program)
            walks = f", {loops.depth} passes a row" if loops.depth > 1 else ""
            form = f"{rows:,} rows of {cols:,}{walks}"
        if program.partials:
            form += (
                f", {len(program.partials)} sum{'s' * (len(program.partials) > 1)} over all rows"
            )
        return form

    def __str__(self) -> str:
        plan = self._plan
        reductions = [n.op for n in plan.capture.graph.nodes if isinstance(n.op, Reduce)]
        lines = [
            f"{self.name}: {len(self.operations)} operations ({len(reductions)} reductions) in one "
            f"kernel on {self.device}; captured {self.captures} time{'s' * (self.captures != 1)}",
            f"  fused: {', '.join(self.operations) or 'a copy'}",
            f"  forward: {self._form(plan.forward)}",
            f"    moves {_size(self.bytes_forward)}; one op at a time {_size(self.bytes_eager)} "
            f"({self.bytes_eager / max(self.bytes_forward, 1):.1f}x)",
        ]
        lines += self._backward_lines()
        rate = copy_rate() if self.device == "cpu" else None
        if rate:
            lines.append(
                f"  speed limit: {_time(self.bytes_forward / rate)} forward"
                + (f", {_time(self.bytes_backward / rate)} backward" if self.bytes_backward else "")
                + f", at the {rate / 1e9:.1f} GB/s of a copy on this machine"
            )
        else:
            lines.append("  speed limit: the bytes above over the memory rate of the device")
        return "\n".join(lines)

    def _backward_lines(self) -> list[str]:
        plan = self._plan
        if plan.why:
            return [f"  backward: the gradient of the body, since {plan.why}"]
        if plan.backward is None:
            return ["  backward: not asked for by the last call (no argument requires grad)"]
        kinds = {kind for kind, _ in plan.reads}
        kept = f"{len(plan.saved)} row value{'s' * (len(plan.saved) != 1)} ({_size(self.saved)})"
        what = ["the arguments", kept] + (["the output"] if "out" in kinds else [])
        names = ", ".join(f"{n} {_size(b)}" for n, b in self._reads(plan.backward))
        return [
            f"  saved for backward: {', '.join(what)}; everything else is computed again",
            f"  backward: {self._form(plan.backward)}; all gradients in one launch",
            f"    reads {names}; writes {_size(self._writes(plan.backward))}; "
            f"moves {_size(self.bytes_backward)}",
        ]

    __repr__ = __str__


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


@functools.cache
def copy_rate() -> float:
    """Bytes a second that a copy moves (read and written) on all threads; measured once."""
    n = 1 << 22
    source, target = np.ones(n, np.float32), np.empty(n, np.float32)
    workers = host_threads.get_num_threads()

    def share(k: int) -> None:
        part = slice(n * k // workers, n * (k + 1) // workers)
        np.copyto(target[part], source[part])

    best = float("inf")
    for _ in range(7):
        started = time.perf_counter()
        host_threads.run(share, workers)
        best = min(best, time.perf_counter() - started)
    return 2 * source.nbytes / best
