"""Open profiles and what they record: one ``Event`` per op, gradient, kernel, copy and range.

Which profile is open, and inside of which event this is, are context variables: another thread (or
asyncio task) records nothing, also while the hooks are in place for this one.
"""

from __future__ import annotations

import threading
import time
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import config
from ..dtypes import FROM_NUMPY, bool_
from .clock import spanned
from .costs import Cost
from .sizes import arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..runtime.device import Device
    from .clock import Span

now = time.perf_counter

WORK = frozenset({"op", "node"})
"""Kinds of event that compute: one of them inside another says what that one does."""


class Event:
    """Something that ran while a profile was open.

    ``kind``: "op" (an op called by the program), "node" (a gradient), "kernel" (a launch, or
    several by one plan), "copy" (between devices), "range" (``record_function``, a backward walk,
    an optimizer's step). ``phase``: "forward", "backward" or "optimizer". ``start`` and ``seconds``
    are host time, on ``time.perf_counter``. ``launches``, ``bytes`` and ``flops`` include what is
    inside; flops are None where they are not known. ``device`` is "cpu", "cuda:0", or "interpreter"
    for kernels that ran in Python. ``parent`` is the event that this one is inside of. ``shapes``:
    operands' shapes by name, with ``record_shapes``. ``allocated``: bytes of new results;
    ``live``: of all results of the block that were still there when the event ended.
    """

    __slots__ = (
        "allocated", "bytes", "device", "dtype", "failed", "flops", "inner", "kind", "launches",
        "live", "name", "parent", "pending", "phase", "seconds", "shapes", "span", "start",
        "thread", "works",
    )  # fmt: skip

    def __init__(self, name: str, kind: str, phase: str, parent: Event | None) -> None:
        self.name = name
        self.kind = kind
        self.phase = phase
        self.parent = parent
        self.thread = threading.get_ident()
        self.device = "cpu"
        self.dtype: str | None = None
        self.seconds = 0.0
        self.launches = 0
        self.bytes = 0
        self.flops: int | None = 0
        self.allocated = 0
        self.live = 0
        self.shapes: dict[str, Any] | None = None
        self.failed = False
        self.span: Span | None = None  # of a kernel or copy on a GPU: its two CUDA events
        self.works = 0  # ops and gradients inside
        self.inner: list[Event] = []  # events directly inside
        self.pending: Any = None  # the op whose own seam has yet to be passed
        self.start = now()

    @property
    def device_seconds(self) -> float | None:
        """Time on the GPU: its kernels and copies, and those of what is inside. None on a host."""
        own = [self.span.seconds] if self.span is not None else []
        own += [s for e in self.inner if (s := e.device_seconds) is not None]
        return sum(own) if own else None

    @property
    def on_gpu(self) -> bool:
        """Whether ``device_seconds`` is what it took."""
        return self.device.startswith("cuda")

    @property
    def depth(self) -> int:
        """How many events this one is inside of."""
        n, at = 0, self.parent
        while at is not None:
            n, at = n + 1, at.parent
        return n

    def __repr__(self) -> str:
        return f"<{self.phase} {self.kind} {self.name}: {self.seconds * 1e6:.1f} us>"


class Session:
    """The recording side of a profile."""

    def __init__(self, record_shapes: bool, outer: Session | None) -> None:
        self.record_shapes = record_shapes
        self.outer = outer
        self.base = current.get()  # what the block itself is inside of
        self.events: list[Event] = []
        self.open = True
        self.started = now()
        self.live: dict[int, tuple[weakref.ref, int]] = {}
        self.in_use = 0
        self.peak = 0
        self.left = 0

    def close(self) -> None:
        """Record no more."""
        self.open = False
        self.left = self.in_use
        self.live.clear()

    # ---- memory ----------------------------------------------------------------------------------

    def hold(self, owner: Any, nbytes: int) -> int:
        """Count new memory until it goes; 0 where it is counted already."""
        key = id(owner)
        known = self.live.get(key)
        if known is not None and known[0]() is owner:
            return 0
        self.live[key] = (weakref.ref(owner, self._let_go(key)), nbytes)
        self.in_use += nbytes
        self.peak = max(self.peak, self.in_use)
        return nbytes

    def _let_go(self, key: int) -> Callable[[Any], None]:
        this = weakref.ref(self)

        def gone(ref: weakref.ref) -> None:
            session = this()
            entry = session.live.get(key) if session is not None else None
            if session is not None and entry is not None and entry[0] is ref:
                del session.live[key]
                session.in_use -= entry[1]

        return gone


open_session: ContextVar[Session | None] = ContextVar("trident_profile", default=None)
"""The innermost open profile of this context."""

current: ContextVar[Event | None] = ContextVar("trident_profile_event", default=None)
"""The event that is running in this context."""


def recording() -> bool:
    """Whether an op of this context is to be recorded."""
    session = open_session.get()
    return session is not None and session.open


def begin(name: str, kind: str, phase: str | None = None) -> tuple[Event, Any]:
    """Start an event; ``finish`` takes what this returns."""
    parent = current.get()
    if phase is None:
        phase = parent.phase if parent is not None else "forward"
    event = Event(name, kind, phase, parent)
    return event, current.set(event)


def finish(
    begun: tuple[Event, Any],
    cost: Callable[[], Cost] | None = None,
    operands: Sequence[Any] = (),
    result: Any = None,
    names: Sequence[str] = (),
) -> None:
    """End an event. ``cost`` is asked for bytes and flops where nothing inside says them."""
    event, token = begun
    event.seconds = now() - event.start
    current.reset(token)
    session = open_session.get()
    if session is None:
        return
    if event.works:
        inside = [e for e in event.inner if e.kind in WORK or e.works]
        event.bytes = sum(e.bytes for e in inside)
        event.flops = _sum(e.flops for e in inside)
    elif cost is not None:
        event.bytes, event.flops = cost()
    _describe(event, operands, result)
    if event.kind == "range":
        event.device = next((e.device for e in event.inner if e.on_gpu), "cpu")
    event.launches += sum([e.launches for e in event.inner])
    event.allocated += sum([e.allocated for e in event.inner])
    if session.record_shapes and operands:
        event.shapes = _shapes(operands, names)
    parent = event.parent
    if parent is not None:
        parent.inner.append(event)
        parent.works += (event.kind in WORK) + (event.works if event.kind == "range" else 0)
    at: Session | None = session
    while at is not None:
        if at.open:
            at.events.append(event)
        at = at.outer


def recorded(
    original: Callable,
    args: Sequence[Any],
    name: str,
    kind: str,
    kwargs: dict[str, Any] | None = None,
    *,
    phase: str | None = None,
    cost: Callable[[Any], Cost] | None = None,
    operands: Sequence[Any] = (),
    names: Sequence[str] = (),
    on: Device | None = None,
    launches: int = 0,
    pending: Any = None,
    nothing: Callable[[Any], bool] | None = None,
) -> Any:
    """Call ``original`` as one event.

    ``cost`` is a function of the result. ``on``: a device to measure time on; ``launches``: how
    many kernels the call itself starts. ``nothing`` says of a result that there was no event.
    """
    begun = begin(name, kind, phase)
    event, token = begun
    event.pending = pending
    try:
        if on is None:
            result = original(*args, **(kwargs or {}))
        else:
            event.device, event.launches = place(on), launches
            with spanned(event, on):
                result = original(*args, **(kwargs or {}))
    except BaseException:
        event.failed = True
        finish(begun)
        raise
    if nothing is not None and nothing(result):
        current.reset(token)
        return result
    finish(begun, None if cost is None else lambda: cost(result), operands, result, names)
    return result


def _sum(parts: Any) -> int | None:
    total = 0
    for p in parts:
        if p is None:
            return None
        total += p
    return total


def _describe(event: Event, operands: Sequence[Any], result: Any) -> None:
    """Device and dtype of an event, and the memory of its results."""
    given, outs = arrays(operands), arrays(result)
    found = None
    for a in (*outs, *given):
        if a.__class__ is np.ndarray:
            d = FROM_NUMPY.get(a.dtype, bool_)
        else:
            d = a.dtype
            event.device = place(a.device)
        if found is None and d.is_floating_point:
            found = d.name
            tf32 = found == "float32" and config.matmul_precision.get() == "high"
            event.dtype = "tf32" if tf32 else found
    if event.kind not in WORK or not outs:
        return
    theirs = [id(owner(a)) for a in given]
    fresh = [o for a in outs if id(o := owner(a)) not in theirs]
    inner = session = open_session.get()
    while session is not None:
        if session.open:
            held = sum([session.hold(o, o.nbytes) for o in fresh])
            if session is inner:
                event.allocated, event.live = event.allocated + held, session.in_use
        session = session.outer


def owner(array: Any) -> Any:
    """The object whose end frees the memory of an array."""
    if not isinstance(array, np.ndarray):
        return array.buffer
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def place(device: Any) -> str:
    """How an event names a device."""
    return "interpreter" if device.interpreted else str(device)


def _shapes(operands: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i, a in enumerate(operands):
        name = names[i] if i < len(names) else str(i)
        if isinstance(a, (list, tuple)):
            found[name] = [tuple(x.shape) for x in arrays(a)]
        else:
            known = arrays(a)
            found[name] = tuple(known[0].shape) if known else a
    return found


__all__ = [
    "WORK", "Event", "Session", "begin", "current", "finish", "open_session", "place", "recorded",
    "recording",
]  # fmt: skip
