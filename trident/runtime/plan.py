"""Launch plans: what an op did on a GPU, done again without asking anybody.

The first call of an op with operands of some layouts runs its launcher, and a ``Recording`` writes
down what that allocates and launches. A ``Plan`` made from it repeats this for other addresses: no
shapes are computed, no kernel is chosen, looked up or specialised, no argument is classified. Only
what does not look at values on the host can be repeated; a recording that copies to or from the
host, or waits, gives no plan.

A plan is kept by the layouts of its operands (``array.Layout``: device, dtype, shape, strides and
alignment of the address) and by whatever else the launcher reads: attributes and switches.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .array import Buffer, DeviceArray, LastingBuffer, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .device import Device

_new = object.__new__


class Recording:
    """The allocations and launches of one op. ``CudaDevice`` reports to the open one."""

    def __init__(self) -> None:
        self.complete = True
        """Whether repeating the launches repeats the op."""
        self.allocated: list[Buffer] = []
        self.launches: list[tuple[Any, tuple[int, int, int], tuple]] = []

    def allocate(self, buffer: Buffer) -> None:
        self.allocated.append(buffer)

    def launch(self, bound: Any, grid: tuple[int, int, int], args: tuple) -> None:
        """``args``: DeviceArrays and numbers, one per parameter of the kernel."""
        self.launches.append((bound, grid, args))

    def leave(self) -> None:
        """The op did something that cannot be repeated."""
        self.complete = False


recording: ContextVar[Recording | None] = ContextVar("trident_recording", default=None)
"""The recording of this context."""


@contextmanager
def record() -> Iterator[Recording]:
    """Write down what is allocated and launched inside. Recordings do not nest: what is inside of
    another one belongs to the outer."""
    new = Recording()
    outer = recording.get()
    token = recording.set(new if outer is None else outer)
    if outer is not None:
        new.leave()
    try:
        yield new
    finally:
        recording.reset(token)


def shadow(array: DeviceArray) -> DeviceArray:
    """The same window on a buffer object of its own, so that a recording can tell operands apart
    that lie on one buffer."""
    b = array.buffer
    return DeviceArray(
        Buffer(b.device, b.ptr, b.nbytes, b.memory),
        array.shape,
        array.strides,
        array.dtype,
        array.offset,
    )


class Plan:
    """Allocations, launches and results of an op, for operands of recorded layouts."""

    __slots__ = ("allocate", "form", "launches", "outs", "short", "sizes", "stream")

    def __init__(
        self,
        rec: Recording,
        device: Any,
        operands: Sequence[DeviceArray | None],
        results: Sequence[DeviceArray | None],
        form: Any,
    ) -> None:
        """``operands`` are the shadows that the op was run on; ``form`` is whatever the caller
        needs to give the results their shape. Raises LookupError where an argument lies on memory
        that is neither theirs nor the recording's."""
        place: dict[int, tuple[int, int]] = {}
        for i, a in enumerate(operands):
            if a is not None:
                place[id(a.buffer)] = (i, a.ptr)
        first = len(operands)
        for k, buffer in enumerate(rec.allocated):
            place[id(buffer)] = (first + k, buffer.ptr)
        self.allocate = device.allocate
        self.stream = device.current_stream.get
        self.sizes = tuple(b.nbytes for b in rec.allocated)
        self.launches = [
            (bound.start, x, y, z, *_arguments(args, place))
            for bound, (x, y, z), args in rec.launches
        ]
        self.form = form
        self.outs: list[tuple[int, Layout, int] | None] = []
        for r in results:
            if r is None:
                self.outs.append(None)
                continue
            k, _ = place[id(r.buffer)]
            if k < first:
                raise LookupError("a result lies on an operand")
            self.outs.append((k - first, Layout.of(r), r.offset))
        self.short: tuple | None = None
        """One launch, one allocation, one result at its start, as most ops have it."""
        if (
            len(self.launches) == len(self.sizes) == len(self.outs) == 1
            and self.outs[0] is not None
        ):
            _, layout, offset = self.outs[0]
            if not offset:
                parts = (layout.shape, layout.strides, layout.dtype)
                self.short = (*self.launches[0], self.sizes[0], layout, *parts)

    def run(self, addresses: list[int]) -> list[Any]:
        """The results (arrays, None where the op gave None) for operands at ``addresses`` (0 where
        one is absent)."""
        if self.short is not None:
            return [self.one(addresses)]
        allocate = self.allocate
        buffers = [allocate(n) for n in self.sizes]
        where = addresses + [b.ptr for b in buffers]
        stream = self.stream()
        for start, x, y, z, build, fixed in self.launches:
            start(x, y, z, stream, build(where, fixed))
        return [o and o[1].array(buffers[o[0]], o[2]) for o in self.outs]

    def one(self, addresses: list[int]) -> DeviceArray:
        """The result of a plan that has ``short``."""
        start, x, y, z, build, fixed, nbytes, layout, shape, strides, dtype = self.short  # type: ignore[misc]
        out = _new(DeviceArray)
        out.buffer = buffer = self.allocate(nbytes)
        out.ptr = p = buffer.ptr
        out.offset = 0
        out.shape = shape
        out.strides = strides
        out.dtype = dtype
        out.layout = layout
        addresses.append(p)
        start(x, y, z, self.stream(), build(addresses, fixed))
        return out


def _arguments(args: tuple, place: dict[int, tuple[int, int]]) -> tuple[Callable, tuple]:
    """How a launch's arguments are made: ``build(addresses, fixed)`` and ``fixed``.

    Runs of arguments that are the same each time are tuples in ``fixed``; the text of ``build``
    says what stands between them: ``(w[0], w[2] + f[0], *f[1], w[1])``. Few texts serve all ops.
    """
    parts: list[str] = []
    fixed: list[Any] = []
    run: list[Any] = []

    def close() -> None:
        if run:
            parts.append(f"*f[{len(fixed)}]")
            fixed.append(tuple(run))
            run.clear()

    for a in args:
        if not isinstance(a, DeviceArray):
            run.append(a)
            continue
        if isinstance(a.buffer, LastingBuffer):
            run.append(a.ptr)
            continue
        close()
        source, start = place[id(a.buffer)]
        offset = a.ptr - start
        parts.append(f"w[{source}] + f[{len(fixed)}]" if offset else f"w[{source}]")
        if offset:
            fixed.append(offset)
    close()
    return _builder(f"lambda w, f: ({', '.join(parts)},)"), tuple(fixed)


@functools.lru_cache(maxsize=4096)
def _builder(text: str) -> Callable:
    return eval(text)


class ElementwisePlan:
    """One launch that reads operands of fixed layouts and fills one fresh result."""

    __slots__ = ("allocate", "dtype", "grid", "layout", "live", "nbytes", "shape", "start",
                 "stream", "strides", "tail")  # fmt: skip

    def __init__(self, rec: Recording, device: Any, operands: int, live: Sequence[int]) -> None:
        """``live`` numbers the operands that the kernel takes, its first arguments."""
        ((bound, grid, args),) = rec.launches
        out = args[len(live)]
        self.live = None if list(live) == list(range(operands)) else tuple(live)
        self.start = bound.start
        self.grid = grid[0]
        self.tail = args[len(live) + 1 :]
        self.layout = layout = Layout.of(out)
        self.shape, self.strides, self.dtype = layout.shape, layout.strides, layout.dtype
        self.nbytes = out.buffer.nbytes
        self.allocate = device.allocate
        self.stream = device.current_stream.get

    def one(self, a: int) -> DeviceArray:
        """The result for one operand at address ``a``."""
        buffer = self.allocate(self.nbytes)
        out = _new(DeviceArray)
        out.buffer = buffer
        out.ptr = p = buffer.ptr
        out.offset = 0
        out.shape = self.shape
        out.strides = self.strides
        out.dtype = self.dtype
        out.layout = self.layout
        self.start(self.grid, 1, 1, self.stream(), (a, p, *self.tail))
        return out

    def two(self, a: Any, b: Any) -> DeviceArray:
        """The result for two operands: addresses, or a float in place of one."""
        buffer = self.allocate(self.nbytes)
        out = _new(DeviceArray)
        out.buffer = buffer
        out.ptr = p = buffer.ptr
        out.offset = 0
        out.shape = self.shape
        out.strides = self.strides
        out.dtype = self.dtype
        out.layout = self.layout
        self.start(self.grid, 1, 1, self.stream(), (a, b, p, *self.tail))
        return out

    def several(self, values: Sequence[Any]) -> DeviceArray:
        """The result for operands at addresses, or floats, in order."""
        if self.live is not None:
            values = [values[i] for i in self.live]
        buffer = self.allocate(self.nbytes)
        self.start(self.grid, 1, 1, self.stream(), (*values, buffer.ptr, *self.tail))
        return self.layout.array(buffer, 0)


class Plans(dict):
    """The plans of one op: at most ``MOST``, and none while every call asks for a new one.

    An op whose attributes change with each call (a seed) would record for nothing: after ``TRIES``
    recordings without a plan that was used, ``PAUSE`` calls go by without.
    """

    MOST, TRIES, PAUSE = 512, 64, 1024
    __slots__ = ("used", "wait")

    def __init__(self) -> None:
        self.used = 0
        self.wait = 0

    def wanted(self) -> bool:
        """Whether to record this call, which found no plan."""
        if self.wait:
            self.wait -= 1
            return False
        return True

    def keep(self, key: object, plan: Any) -> None:
        self.used += 1
        if self.used >= self.TRIES:
            self.used = 0
            self.wait = self.PAUSE
        if len(self) >= self.MOST:
            self.clear()
        self[key] = plan

    def hit(self) -> None:
        """A plan was used: the keys do come back."""
        self.used = 0


def planned(
    plans: Plans,
    key: tuple,
    device: Device,
    operands: Sequence[DeviceArray | None],
    run: Callable[[list[Any]], Any],
    parts: Callable[[Any], tuple[Sequence[DeviceArray | None], Any]],
) -> Any:
    """``run(operands)``, recorded under ``key`` where it can be repeated.

    ``parts`` takes what ``run`` returned apart: a flat list of arrays, and the form they have in
    it, which the plan keeps. What cannot be repeated is kept as None, so that it is not tried
    again.
    """
    if not plans.wanted() or recording.get() is not None:
        return run(list(operands))
    shadows = [None if a is None else shadow(a) for a in operands]
    with record() as rec:
        done = run(shadows)
    plan = None
    if rec.complete:
        try:
            plan = Plan(rec, device, shadows, *parts(done))
        except LookupError:
            plan = None
    plans.keep(key, plan)
    return done
