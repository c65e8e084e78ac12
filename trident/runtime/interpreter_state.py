"""The launch in progress: its errors, and its loads and stores, checked and counted."""

from __future__ import annotations

import linecache
import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import KernelError
from .interpreter_numerics import values
from .interpreter_source import Stop, codes
from .lanes import Bounds, Counts


@dataclass
class Run:
    """One launch in progress, and what it did when it is over."""

    kernel: str
    grid: tuple[int, int, int]
    bounds: Bounds | None
    counts: Counts | None
    stop: Stop | None
    strict: bool
    given_grid: tuple[int, ...]
    seconds: float = 0.0


current: list[Run | None] = [None]
"""The launch in progress, in a list so that other modules can set it."""


# ---- errors


def kernel_frame(frame: types.FrameType | None) -> types.FrameType | None:
    """The innermost frame that runs a line of a kernel."""
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back
    return frame


def _error(what: str, where: tuple[str, int] | None) -> KernelError:
    from triton.runtime import interpreter

    run = current[0]
    name = run.kernel if run is not None else "kernel"
    text = f"{name}: {what}\n  in program {interpreter.interpreter_builder.grid_idx}"
    if where is not None:
        line = linecache.getline(*where).strip()
        text += f", {where[0]}:{where[1]}: {line}"
    return KernelError(text)


def fail(what: str) -> KernelError:
    """The error of the kernel that is running: what, program, file, line and its text."""
    frame = kernel_frame(sys._getframe(1))
    return _error(what, (frame.f_code.co_filename, frame.f_lineno) if frame else None)


def translated(error: Exception) -> KernelError:
    """An error of Triton's front end, with the kernel's line."""
    where, tb = None, error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code in codes:
            where = (tb.tb_frame.f_code.co_filename, tb.tb_lineno)
        tb = tb.tb_next
    what = f"a GPU would not run this: {type(error).__name__}: {error}"
    if isinstance(error, AssertionError):
        what = f"an assertion of the kernel failed: {error}"
    elif not type(error).__module__.startswith("triton") and not isinstance(
        error, (ValueError, TypeError)
    ):
        what = f"{type(error).__name__}: {error}"
    return _error(what, where)


# ---- memory


def _access(kind: str, ptrs: Any, mask: Any, value: Any = None) -> None:
    """Check and count one load, store or atomic operation."""
    run = current[0]
    if run is None or (run.bounds is None and run.counts is None):
        return
    addresses = ptrs.data
    width = max(ptrs.get_element_ty().primitive_bitwidth // 8, 1)
    active = None
    if mask is not None:
        active = np.asarray(getattr(mask, "handle", mask).data).astype(bool, copy=False)
        if active.shape != addresses.shape:
            active = np.broadcast_to(active, addresses.shape)
    if run.bounds is not None:
        store = value is not None
        origin = ptrs.__dict__.get("origin")
        bad = run.bounds.check(addresses, active, width, origin, store)
        if bad is not None:
            raise _out_of_bounds(kind, bad, addresses.shape, value)
    if run.counts is not None:
        for part in ("load", "store") if kind == "atomic operation" else (kind,):
            run.counts.access(part, addresses, active, width)


def _out_of_bounds(kind: str, bad: Any, shape: tuple, value: Any) -> KernelError:
    w, lane, many = bad.near, int(bad.lanes[0]), bad.lanes.size
    element = (bad.address - w.base) // w.itemsize
    if bad.read_only:
        what = f"{kind} into {w.name}, whose memory is read-only: element {element}"
    else:
        what = f"{kind} outside of {w.name}: element {element}, its elements are {w.bound}"
    size = int(np.prod(shape, dtype=int))
    if size > 1:
        place = f" at {tuple(int(i) for i in np.unravel_index(lane, shape))}" * (len(shape) > 1)
        what += f"; lane {lane} of {size}{place}"
        what += f", the first of {many} such lanes" if many > 1 else ", the only such lane"
    if value is not None:
        data = np.broadcast_to(values(value), shape)
        what += f"; the value would have been {data.flat[lane]}"
    return fail(what + ". Mask the lanes that lie outside")


def mend_memory(builder: type) -> None:
    """Watch loads and stores, and let pointers carry the number of the argument they came from."""
    load, store = builder.create_masked_load, builder.create_masked_store  # type: ignore[attr-defined]
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas  # type: ignore[attr-defined]

    def create_masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        _access("load", ptrs, mask)
        return load(self, ptrs, mask, *rest, **named)

    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _access("store", ptrs, mask, value)
        return store(self, ptrs, value, mask, *rest)

    def create_atomic_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
        _access("atomic operation", ptr, mask, val)
        return rmw(self, op, ptr, val, mask, *rest)

    def create_atomic_cas(self: Any, ptr: Any, cmp: Any, val: Any, *rest: Any) -> Any:
        _access("atomic operation", ptr, None, val)
        return cas(self, ptr, cmp, val, *rest)

    def carry(name: str, which: int) -> None:
        plain = getattr(builder, name)

        def method(self: Any, *args: Any) -> Any:
            out = plain(self, *args)
            origin = args[which].__dict__.get("origin")
            if origin is not None:
                out.origin = origin
            return out

        setattr(builder, name, method)

    for method in (create_masked_load, create_masked_store, create_atomic_rmw, create_atomic_cas):
        setattr(builder, method.__name__, method)
    for name in ("addptr", "broadcast", "expand_dims", "reshape", "trans", "bitcast", "unsplat"):
        if hasattr(builder, f"create_{name}"):
            carry(f"create_{name}", 0)
    carry("create_splat", 1)


def mend_blocks(interpreter: Any) -> None:
    """Pointers made by block pointers (3.6) and descriptors belong to their base's argument."""
    for name in ("TensorDescHandle", "BlockPointerHandle"):
        block = getattr(interpreter, name, None)
        if block is None:
            continue

        def materialize_pointers(
            self: Any, *args: Any, plain: Any = block.materialize_pointers
        ) -> Any:
            ptrs, masks = plain(self, *args)
            if "origin" in self.base.__dict__:
                ptrs.origin = self.base.origin
            return ptrs, masks

        block.materialize_pointers = materialize_pointers
