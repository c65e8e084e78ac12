"""``trident.profile()``: what ran, how long it took, and how far from the machine's limits.

``session`` keeps the open profile and its events, ``seam`` puts the hooks in place, ``costs`` says
what an op must move and compute, ``limits`` what the device can do, ``clock`` times a GPU, and
``report`` writes the table and the trace.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

from . import report, seam
from .report import Row
from .session import Event, Session, begin, finish, open_session, recording


@dataclass(frozen=True)
class Memory:
    """Memory of results made in the block: ``peak`` and what is ``left`` at its end, in bytes, and
    per op (name, phase): bytes allocated, and the most that was in use when it ended.

    Counted are the results of ops and gradients, until nothing refers to them; not the temporaries
    inside an op, nor tensors from outside of the block.
    """

    peak: int
    left: int
    ops: dict[tuple[str, str], tuple[int, int]]

    def __str__(self) -> str:
        short = report.short
        lines = [("op", "phase", "allocated", "peak")]
        for (name, phase), (allocated, peak) in sorted(self.ops.items(), key=lambda i: -i[1][1]):
            lines.append((name, phase, short(allocated, "B"), short(peak, "B")))
        head = f"peak {short(self.peak, 'B')}, left at the end {short(self.left, 'B')}"
        return head + "\n" + report.aligned(lines)


class profile:
    """``with trident.profile() as p:`` records every op of the block; ``print(p)`` is a table.

    Per op: calls, time, kernel launches, bytes, flops, and how near it came to what the device's
    memory and matrix units allow (``roofline``). Gradients have rows of their own, under the names
    of their tape nodes (``MulBackward``); a fused function is one op. Time on a GPU is measured by
    CUDA events around each launch, and waited for when it is read; kernels in the interpreter show
    host time. What bytes and flops count is in ``trident/profiler/costs.py``.

    record_shapes: keep the shapes of operands, for ``table(by_shape=True)`` and the trace.

    Blocks may be nested: each records what is inside of it. Only the context that opened a block
    records, not other threads. Outside of all blocks nothing is checked or slower.

    >>> x = trident.ones(64, 32, requires_grad=True)
    >>> with trident.profile() as p:
    ...     y = (x * 2.0).sum()
    ...     y.backward()
    >>> [(r.name, r.calls, r.bytes, r.flops) for r in p.rows() if r.phase == "forward"]
    [('mul', 1, 16384, 2048), ('sum', 1, 8196, 2048)]
    >>> [r.name for r in p.rows() if r.phase == "backward"]
    ['SumBackward', 'MulBackward', 'AccumulateGrad']
    """

    def __init__(self, record_shapes: bool = False) -> None:
        self.record_shapes = record_shapes
        self._session: Session | None = None
        self._token: Any = None

    def __enter__(self) -> profile:
        if self._token is not None:
            raise RuntimeError(
                "profile: this block is open already; make another trident.profile()"
            )
        seam.install()
        self._session = Session(self.record_shapes, open_session.get())
        self._token = open_session.set(self._session)
        return self

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        seam.remove()
        assert self._session is not None
        self._session.close()
        open_session.reset(token)

    def _recorded(self) -> Session:
        if self._session is None:
            raise RuntimeError(
                "profile: nothing was recorded; run what is to be measured inside of "
                "`with trident.profile() as p:`"
            )
        return self._session

    @property
    def events(self) -> list[Event]:
        """Everything recorded, in the order in which it ended; see ``Event``."""
        return self._recorded().events

    @property
    def memory(self) -> Memory:
        """Memory of the results made in the block; see ``Memory``."""
        session = self._recorded()
        ops: dict[tuple[str, str], tuple[int, int]] = {}
        for e in report.outermost(session, session.events):
            allocated, peak = ops.get((e.name, e.phase), (0, 0))
            ops[e.name, e.phase] = (allocated + e.allocated, max(peak, e.live))
        return Memory(session.peak, session.left, ops)

    def rows(self, by_shape: bool = False) -> list[Row]:
        """The table's rows as objects, in the order of the first calls.

        Only ops that are inside of no other op have a row; what is inside of one counts for it.
        """
        session = self._recorded()
        return report.rows(report.outermost(session, session.events), by_shape)

    def table(self, sort_by: str = "time", limit: int | None = None, by_shape: bool = False) -> str:
        """The rows as text, with copies between devices and ranges below.

        sort_by: "time", "mean", "host", "calls", "launches", "bytes", "flops", "roofline" or
        "name". limit: how many rows to show. by_shape: a row per operands' shapes (with
        ``record_shapes``).

        >>> with trident.profile() as p:
        ...     y = trident.ones(3) + 1.0
        >>> p.table(sort_by="calls").splitlines()[1].split()[:4]
        ['add', 'forward', 'cpu', '1']
        """
        return report.table(self._recorded(), sort_by, limit, by_shape)

    __str__ = table

    def export_chrome_trace(self, path: str | os.PathLike[str]) -> None:
        """Write a trace for chrome://tracing or ui.perfetto.dev. The file appears whole: it is
        written beside its place and renamed.

        >>> import json, pathlib, tempfile
        >>> with trident.profile() as p:
        ...     y = trident.ones(3).exp()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     p.export_chrome_trace(f"{folder}/trace.json")
        ...     text = pathlib.Path(folder, "trace.json").read_text()
        >>> [e["name"] for e in json.loads(text)["traceEvents"] if e["ph"] == "X"]
        ['exp']
        """
        report.write_trace(self._recorded(), path)


class record_function(contextlib.ContextDecorator):
    """``with trident.record_function("epoch"):`` names a stretch of a profile: a range in the trace
    and below the table. Also a decorator. Does nothing where no profile is open.

    >>> with trident.profile() as p:
    ...     with trident.record_function("square"):
    ...         y = trident.ones(3) * 3.0
    >>> [(e.name, e.kind, e.depth) for e in p.events]
    [('mul', 'op', 1), ('square', 'range', 0)]
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._begun: list[Any] = []

    def __enter__(self) -> record_function:
        self._begun.append(begin(self.name, "range") if recording() else None)
        return self

    def __exit__(self, *_: object) -> None:
        begun = self._begun.pop()
        if begun is not None:
            finish(begun)


__all__ = ["Event", "Memory", "Row", "profile", "record_function"]
