"""What a profile says: rows of a table, and a trace for Chrome's viewer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import wrong
from ..serialization import _replacing
from . import limits
from .session import WORK, Event, Session

SORTS = ("time", "mean", "host", "calls", "launches", "bytes", "flops", "roofline", "name")


@dataclass
class Row:
    """Events of one name, phase and device together.

    ``seconds`` is GPU time on a GPU, else host time. ``bytes`` and ``flops`` (None: not known) are
    sums over the calls. ``roofline``: the least time that the device's limits allow for them, over
    ``seconds``; None where there is nothing to go by. It is above 1 where the data came from a
    cache that is faster than the memory. ``bound``: which limit that is, "memory" or "compute".
    """

    name: str
    kind: str
    phase: str
    device: str
    calls: int = 0
    seconds: float = 0.0
    host_seconds: float = 0.0
    launches: int = 0
    bytes: int = 0
    flops: int | None = 0
    shapes: str = ""
    least: float = 0.0
    """Sum of the calls' least times."""
    least_to_move: float = 0.0
    """The same, for the bytes alone."""

    @property
    def mean(self) -> float:
        return self.seconds / self.calls

    @property
    def roofline(self) -> float | None:
        return self.least / self.seconds if self.least and self.seconds else None

    @property
    def bound(self) -> str | None:
        if not self.least:
            return None
        return "memory" if self.least_to_move >= 0.5 * self.least else "compute"

    def add(self, e: Event) -> None:
        self.calls += 1
        self.host_seconds += e.seconds
        self.seconds += e.seconds if not e.on_gpu else e.device_seconds or 0.0
        self.launches += e.launches
        self.bytes += e.bytes
        self.flops = None if self.flops is None or e.flops is None else self.flops + e.flops
        limit = limits.of(e.device)
        if limit is not None:
            to_move = limit.seconds(e.bytes, 0, e.dtype)
            least = limit.seconds(e.bytes, e.flops, e.dtype)
            self.least += least
            self.least_to_move += to_move if to_move == least else 0.0


def outermost(session: Session, events: Iterable[Event]) -> list[Event]:
    """Ops, gradients and launches that are inside of none: what a table adds up."""
    return [
        e for e in events
        if e.kind in (*WORK, "kernel") and not e.failed and not _inside_work(session, e)
    ]  # fmt: skip


def _inside_work(session: Session, e: Event) -> bool:
    at = e.parent
    while at is not None and at is not session.base:
        if at.kind in WORK:
            return True
        at = at.parent
    return False


def rows(events: Iterable[Event], by_shape: bool = False) -> list[Row]:
    """Events added up by name, phase and device (and operands' shapes)."""
    found: dict[tuple, Row] = {}
    for e in events:
        text = "" if not by_shape or e.shapes is None else _shape_text(e.shapes)
        key = (e.name, e.kind, e.phase, e.device, text)
        row = found.get(key)
        if row is None:
            row = found[key] = Row(e.name, e.kind, e.phase, e.device, shapes=text)
        row.add(e)
    return list(found.values())


def _shape_text(shapes: dict[str, Any]) -> str:
    return ", ".join(f"{n} {s}" for n, s in shapes.items())


def ordered(found: list[Row], sort_by: str) -> list[Row]:
    if sort_by not in SORTS:
        raise wrong("table", "sort_by must be one of " + ", ".join(map(repr, SORTS)),
                    got=repr(sort_by), error=ValueError)  # fmt: skip
    if sort_by == "name":
        return sorted(found, key=lambda r: r.name)
    field = {"time": "seconds", "host": "host_seconds"}.get(sort_by, sort_by)
    return sorted(found, key=lambda r: getattr(r, field) or 0, reverse=True)


# ---- the table -----------------------------------------------------------------------------------

_HEAD = ("op", "phase", "device", "calls", "time", "mean", "%", "host", "launches", "bytes",
         "flops", "GB/s", "GF/s", "roofline")  # fmt: skip


def table(session: Session, sort_by: str, limit: int | None, by_shape: bool) -> str:
    top = outermost(session, session.events)
    found = ordered(rows(top, by_shape), sort_by)
    total = sum(r.seconds for r in found)
    shown = found if limit is None else found[:limit]
    lines = [_HEAD, *(_line(r, total) for r in shown)]
    if len(shown) < len(found):
        rest = found[len(shown) :]
        lines.append((f"({len(rest)} more)", "", "", str(sum(r.calls for r in rest)),
                      _time(sum(r.seconds for r in rest)), *[""] * 9))  # fmt: skip
    lines.append(_total(found, total))
    text = aligned(lines)
    for title, kind in (("copies between devices", "copy"), ("ranges", "range")):
        part = ordered(rows(e for e in session.events if e.kind == kind), sort_by)
        if part:
            text += f"\n\n{title}\n" + _short_table(part, kind)
    return "\n".join([text, "", *_notes(top)])


def _short_table(part: list[Row], kind: str) -> str:
    on_gpu = any(r.device.startswith("cuda") for r in part)
    head = ["", "calls", "host", *(["gpu"] if on_gpu else []), *(["bytes"] * (kind == "copy"))]
    lines = []
    for r in part:
        gpu = _time(r.seconds) if r.device.startswith("cuda") else ""
        moved = [short(r.bytes, "B")] if kind == "copy" else []
        lines.append((r.name, str(r.calls), _time(r.host_seconds), *([gpu] * on_gpu), *moved))
    return aligned([tuple(head), *lines])


def _line(r: Row, total: float) -> tuple[str, ...]:
    name = r.name + (f" [{r.shapes}]" if r.shapes else "")
    timed = r.device != "interpreter"
    share = 100 * r.seconds / total if total else 0.0
    rate = r.flops / r.seconds if timed and r.flops and r.seconds else 0.0
    return (
        name, r.phase, r.device, str(r.calls), _time(r.seconds), _time(r.mean), f"{share:.1f}",
        _time(r.host_seconds) if r.device.startswith("cuda") else "",
        str(r.launches or ""), short(r.bytes, "B"), "?" if r.flops is None else short(r.flops),
        f"{r.bytes / r.seconds / 1e9:.3g}" if timed and r.bytes and r.seconds else "",
        f"{rate / 1e9:.3g}" if rate else "",
        f"{100 * r.roofline:.0f}% {r.bound}" if r.roofline is not None else "",
    )  # fmt: skip


def _total(found: list[Row], total: float) -> tuple[str, ...]:
    known = [r.flops for r in found if r.flops is not None]
    return (
        "total", "", "", str(sum(r.calls for r in found)), _time(total), "", "",
        _time(sum(r.host_seconds for r in found)), str(sum(r.launches for r in found) or ""),
        short(sum(r.bytes for r in found), "B"), short(sum(known)), "", "", "",
    )  # fmt: skip


def _notes(events: list[Event]) -> list[str]:
    """What the numbers rest on."""
    notes = []
    for device in dict.fromkeys(e.device for e in events):
        limit = limits.of(device)
        if limit is not None:
            notes.append(
                f"roofline of {device}: {limit.bandwidth / 1e9:.1f} GB/s, "
                f"{limit.flops['float32'] / 1e9:.1f} GFLOP/s in float32 ({limit.source})"
            )
        elif device == "interpreter":
            notes.append("interpreter: host time of kernels that run in Python; it says nothing "
                         "of a GPU")  # fmt: skip
    if any(e.flops is None for e in events):
        notes.append("?: flops of an op or kernel of one's own are not known")
    return notes


def aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[k]) for row in lines) for k in range(len(lines[0]))]
    left = {k for k, name in enumerate(lines[0]) if name in ("op", "phase", "device", "")}
    return "\n".join(
        "  ".join(
            t.ljust(w) if k in left else t.rjust(w) for k, (t, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in lines
    )


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def short(n: float, unit: str = "") -> str:
    """1234567 as '1.23 M'."""
    for prefix in ("", "k", "M", "G", "T"):
        if n < 999.5 or prefix == "T":
            break
        n /= 1000
    return f"{n:.3g} {prefix}{unit}".rstrip()


# ---- the trace -----------------------------------------------------------------------------------


def chrome_trace(session: Session) -> dict[str, Any]:
    """The events in the Trace Event Format: complete events (ph X), times in microseconds.

    Source: "Trace Event Format" of the Chromium project.
    """
    pid = os.getpid()
    threads = {t: i for i, t in enumerate(dict.fromkeys(e.thread for e in session.events))}
    out: list[dict[str, Any]] = [_meta("process_name", pid, 0, "host")]
    out += [_meta("thread_name", pid, i, f"thread {i}") for i in threads.values()]
    lanes: dict[str, int] = {}
    for e in session.events:
        common = {"name": e.name, "cat": e.kind, "ph": "X", "args": _arguments(e)}
        out.append(
            {**common, "ts": (e.start - session.started) * 1e6, "dur": e.seconds * 1e6,
             "pid": pid, "tid": threads[e.thread]}
        )  # fmt: skip
        if e.span is not None:  # once more, on the GPU
            lane = lanes.setdefault(e.device, pid + 1 + len(lanes))
            began = e.span.began - session.started
            name = e.name if e.parent is None else f"{e.parent.name}: {e.name}"
            out.append({**common, "name": name, "ts": began * 1e6, "dur": e.span.seconds * 1e6,
                        "pid": lane, "tid": 0})  # fmt: skip
    out += [_meta("process_name", lane, 0, device) for device, lane in lanes.items()]
    return {"traceEvents": out, "displayTimeUnit": "ms"}


def _meta(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}


def _arguments(e: Event) -> dict[str, Any]:
    facts: dict[str, Any] = {"phase": e.phase, "device": e.device}
    if e.kind != "range":
        facts |= {"launches": e.launches, "bytes": e.bytes, "flops": e.flops}
    if e.allocated:
        facts |= {"allocated": e.allocated, "live": e.live}
    if e.shapes is not None:
        facts["shapes"] = {n: repr(s) for n, s in e.shapes.items()}
    if e.failed:
        facts["failed"] = True
    return facts


def write_trace(session: Session, path: str | os.PathLike[str]) -> None:
    """Write the trace beside its place and rename it there."""
    text = json.dumps(chrome_trace(session), separators=(",", ":"), allow_nan=False)
    with _replacing(path) as file:
        file.write(text.encode())
