"""Running kernels through Triton's interpreter: everything that touches its insides.

``run`` is one launch: it patches ``triton.language`` for as long as the launch lasts (so that the
same process can compile kernels before and after), turns arrays into pointers that remember their
argument, and calls the kernel's Python function for every program. Loads and stores are checked and
counted on the way (``lanes.py``); ``interpreter_numerics.py`` mends what is computed.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
import types
from bdb import BdbQuit
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import config
from ..errors import KernelError
from .array import DeviceArray
from .interpreter_numerics import mend, reductions, values
from .interpreter_source import Stop, codes, rewrite
from .interpreter_state import (
    Run,
    current,
    fail,
    kernel_frame,
    mend_blocks,
    mend_memory,
    translated,
)
from .interpreter_watch import Watched
from .lanes import Bounds, Counts, window_of

if TYPE_CHECKING:
    from ..lang import Jit

GRID_LIMITS = (2**31 - 1, 65535, 65535)
_lock = threading.RLock()  # the interpreter keeps the grid and the language in globals


# ---- the language


@functools.cache
def _interpreter() -> Any:
    """Triton's interpreter module, mended once."""
    import triton
    from triton.runtime import interpreter

    first, second = (int(part) for part in triton.__version__.split(".")[:2])
    mend(interpreter, (first, second))
    mend_memory(interpreter.InterpreterBuilder)
    mend_blocks(interpreter)
    builder = interpreter.interpreter_builder
    # without a debug flag the overflow arithmetic is computed and then thrown away
    builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    builder.codegen_fns["min_dot_size"] = _least_dot
    return interpreter


def _least_dot(lhs: Any, rhs: Any) -> tuple[int, int, int]:
    """The smallest (m, n, k) that NVIDIA's tensor cores take; the interpreter takes any."""
    return (1, 1, {8: 32, 16: 16, 32: 8}.get(lhs.scalar.primitive_bitwidth, 1))


class _Language:
    """``triton.language`` as the interpreter needs it, for as long as a launch lasts.

    ``tl.sum`` and its like are JITFunctions unless TRITON_INTERPRET was set before Triton was
    imported; a JITFunction that is called meanwhile runs interpreted.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.changes: list[tuple[Any, str, Any, Any]] = []

    def __enter__(self) -> None:
        if self.depth == 0:
            for owner, name, _, new in self.changes or self.collect():
                setattr(owner, name, new)
            self.depth = int(config.INTERPRET)  # then there is nothing else to come back to
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            for owner, name, old, _ in self.changes:
                if old is _MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, old)

    def collect(self) -> list[tuple[Any, str, Any, Any]]:
        """What Triton's own patch changes, and ours on top: (owner, name, old, new)."""
        interpreter = _interpreter()
        tl = interpreter.tl
        core = tl.core
        owners = [tl, core, tl.math, tl.tensor, tl.dtype, core.condition]
        owners.append(core.tensor_descriptor_base)
        before = [dict(vars(o)) for o in owners]
        everything = types.FunctionType((lambda: None).__code__, {"tl": tl, "core": core})
        scope = interpreter._patch_lang(everything)
        changes = {}
        for owner, old in zip(owners, before):
            for name, new in vars(owner).items():
                if old.get(name, _MISSING) is not new and name != "__doc__":
                    changes[id(owner), name] = (owner, name, old.get(name, _MISSING), new)
        scope.restore()
        for owner, name, new in _overrides(interpreter):
            key = (id(owner), name)
            known = changes.get(key)
            old = known[2] if known else vars(owner).get(name, _MISSING)
            changes[key] = (owner, name, old, new)
        self.changes = list(changes.values())
        return self.changes


_MISSING = object()
_language = _Language()


def _overrides(interpreter: Any) -> list[tuple[Any, str, Any]]:
    """Our own changes: (owner, name, value)."""
    from triton.runtime.jit import JITFunction

    tl = interpreter.tl
    tensor = tl.tensor
    reduce_class, scan_class = reductions(interpreter, fail)

    def named_directly(combine: Any, what: str) -> None:
        frame = kernel_frame(sys._getframe(2))
        if frame is not None and any(v is combine for v in frame.f_locals.values()):
            raise fail(
                f"the combine function of {what} is a parameter of the kernel: that does not "
                "compile for a GPU. Name the @jit function itself in the call"
            )

    def axis_of(x: Any, axis: Any) -> Any:
        axis = getattr(axis, "value", axis)
        rank = len((x[0] if isinstance(x, tuple) else x).shape)
        return axis + rank if axis is not None and axis < 0 else axis

    def reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: Any = False, **_: Any) -> Any:
        named_directly(combine_fn, "tl.reduce")
        keep = getattr(keep_dims, "value", keep_dims)
        return reduce_class(axis_of(input, axis), combine_fn, keep).apply(input)  # type: ignore[call-arg]

    def associative_scan(
        input: Any, axis: Any, combine_fn: Any, reverse: Any = False, **_: Any
    ) -> Any:
        named_directly(combine_fn, "tl.associative_scan")
        back = getattr(reverse, "value", reverse)
        return scan_class(axis_of(input, axis), combine_fn, back).apply(input)  # type: ignore[call-arg]

    plain_dot = interpreter.tl.core.dot

    def dot(
        input: Any, other: Any, acc: Any = None, input_precision: Any = None,
        allow_tf32: Any = None, *rest: Any, **named: Any,
    ) -> Any:  # fmt: skip
        named.pop("_semantic", None)
        unsaid = input_precision is None and allow_tf32 is None
        run = current[0]
        if run is not None and run.strict and unsaid and input.dtype.is_fp32():
            raise fail(
                "tl.dot of float32 without input_precision: on a GPU that is TF32, with 10 bits of "
                "mantissa. Say input_precision='ieee' (or 'tf32', where that is meant)"
            )
        return plain_dot(
            input, other, acc, input_precision, allow_tf32, *rest, **named,
            _semantic=interpreter.interpreter_semantic,
        )  # fmt: skip

    def truth(self: Any) -> bool:
        if self.handle.data.size != 1:
            if sys._getframe(1).f_code not in codes:  # Triton asks `other is given` this way
                return True
            raise fail(
                f"a block of shape {tuple(self.handle.data.shape)} is used as one truth value "
                "(if, and, or, not). Combine blocks with &, | and ~, and choose with tl.where"
            )
        return bool(self.handle.data.item())

    def call(self: Any, *args: Any, **named: Any) -> Any:
        return _python(self)(*args, **named)

    ours: list[tuple[Any, str, Any]] = [
        (tensor, "__bool__", truth),
        (tensor, "__index__", lambda self: int(self.handle.data.item())),
        (tensor, "__repr__", lambda self: repr(_shown(self))),
        (tensor, "__str__", lambda self: str(_shown(self))),
        (tensor, "reduce", reduce),
        (tensor, "associative_scan", associative_scan),
        (JITFunction, "__call__", call),
        (interpreter.InterpretedFunction, "__call__", call),
    ]
    for name, member in vars(tensor).items():
        if isinstance(member, JITFunction):  # 3.9: x.sum() finds it unbound
            ours.append((tensor, name, _method(member)))
    for module in (tl, tl.core):
        ours += [(module, "reduce", reduce), (module, "associative_scan", associative_scan)]
        ours.append((module, "dot", dot))
    return ours


def _method(fn: Any) -> Callable:
    return lambda self, *args, **named: fn(self, *args, **named)


def _shown(tensor: Any) -> Any:
    """What a debugger prints: numbers; pointers as argument and element index."""
    handle = tensor.handle
    if not hasattr(handle, "data"):
        return handle
    if handle.dtype.scalar.is_ptr():
        origin = handle.__dict__.get("origin")
        run = current[0]
        if origin is not None and run is not None and run.bounds is not None:
            w = run.bounds.windows[origin]
            steps = (handle.data.astype(np.int64) - w.base) // w.itemsize
            return _Text(f"{w.name} + {steps.item() if steps.size == 1 else steps}")
    data = values(handle)
    return data.item() if data.shape == (1,) and not tensor.type.is_block() else data


class _Text(str):
    __repr__ = str.__str__


# ---- kernels as Python functions


def _interpreted(fn: Any) -> Any:
    """The interpreter's form of a JITFunction: that of its ``Jit``, or of Triton's own helper."""
    if fn.__class__.__name__ == "InterpretedFunction":
        return fn
    built = fn.__dict__.get("_trident_interpreted")
    if built is None:
        owner = fn.__dict__.get("_trident_jit")
        if owner is not None:
            built = owner.interpreted()
        else:
            plain = fn.fn  # its globals are copied: the interpreter writes its own names there
            scope = dict(plain.__globals__)
            clone = types.FunctionType(
                plain.__code__, scope, plain.__name__, plain.__defaults__, plain.__closure__
            )
            clone.__kwdefaults__ = plain.__kwdefaults__
            clone.__annotations__ = dict(plain.__annotations__)
            clone.__module__, clone.__qualname__ = plain.__module__, plain.__qualname__
            built = _interpreter().InterpretedFunction(clone)
        fn.__dict__["_trident_interpreted"] = built
    return built


def _python(fn: Any) -> Callable:
    """The Python function that computes what ``fn`` says, with a stop in it where one is wanted."""
    fn = _interpreted(fn)
    run = current[0]
    stop = run.stop if run is not None else None
    if stop is not None:
        return stop.rewritten(fn)
    plain = fn.__dict__.get("_trident_python")
    if plain is None:
        plain = fn.__dict__["_trident_python"] = rewrite(fn.fn, None)
    return plain


# ---- a launch


def _checked_grid(name: str, grid: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*(int(n) for n in grid), 1, 1, 1)[:3]
    if not 1 <= len(grid) <= 3 or min(x, y, z) < 1:
        raise KernelError(f"{name}: a grid has one to three positive sizes; got {tuple(grid)}")
    for axis, (n, most) in enumerate(zip((x, y, z), GRID_LIMITS)):
        if n > most:
            raise KernelError(
                f"{name}: grid axis {axis} must be at most {most} on a GPU; got {tuple(grid)}. "
                "Put the axis that may be long first"
            )
    return x, y, z


def _passed(interpreter: Any, value: Any, windows: list, name: str) -> Any:
    """A launch argument as the kernel sees it."""
    tl, handle = interpreter.tl, interpreter.TensorHandle
    if isinstance(value, DeviceArray):
        kind = tl.str_to_ty("*" + value.dtype.triton, None)
        pointer = handle(np.array([value.ptr], np.uint64), kind)
        pointer.origin = len(windows)
        windows.append(window_of(name, value))
        return tl.tensor(pointer, kind)
    if isinstance(value, tuple):
        return tuple(_passed(interpreter, v, windows, f"{name}[{i}]") for i, v in enumerate(value))
    if isinstance(value, float):  # a GPU receives float32
        return tl.tensor(handle(np.array([value], np.float32), tl.float32), tl.float32)
    return interpreter._implicit_cvt(value)


def _constant(value: Any) -> Any:
    """A constexpr argument: functions in their interpreted form."""
    if hasattr(value, "interpreted") and hasattr(value, "triton"):
        return value.interpreted()
    return value


def run(
    kernel: Jit,
    grid: tuple[int, ...],
    args: tuple,
    constexprs: dict[str, Any],
    *,
    check: bool,
    count: bool = False,
    strict: bool = False,
    stop: Stop | None = None,
    live: Callable[[], Iterable[tuple[int, int]]] = tuple,
) -> Run:
    """Run every program of one launch. ``strict``: refuse what a GPU would do differently by
    design (TF32, int32 wrapping). ``live``: memory that pointers read from tables may point to.
    """
    sizes = _checked_grid(kernel.name, grid)
    with _lock:
        interpreter = _interpreter()
        builder = interpreter.interpreter_builder
        before = current[0], getattr(builder, "grid_idx", None), getattr(builder, "grid_dim", None)
        windows: list = []
        new = Run(kernel.name, sizes, None, None, stop, strict, tuple(grid))
        current[0] = new
        builder.grid_idx = (0, 0, 0)
        with _language:
            try:
                fn = kernel.interpreted()
                bound = inspect.signature(fn.fn).bind(*args, **constexprs)
                bound.apply_defaults()
                notes = {n: str(t) for n, t in fn.fn.__annotations__.items()}
                given = {
                    name: _constant(value)
                    if "constexpr" in notes.get(name, "")
                    else _passed(interpreter, value, windows, name)
                    for name, value in bound.arguments.items()
                }
                new.bounds = Bounds(windows, live) if check and windows else None
                new.counts = Counts(windows) if count else None
                if stop is not None:
                    stop.done = False
                plain = _python(fn)
                with Watched(interpreter, new.counts, strict, fail):
                    _every_program(builder, plain, given, sizes, new)
            finally:
                current[0], builder.grid_idx, builder.grid_dim = before
    return new


def _every_program(
    builder: Any, plain: Callable, given: dict, grid: tuple[int, int, int], run: Run
) -> None:
    builder.set_grid_dim(*grid)
    start = time.perf_counter()
    with np.errstate(all="ignore"):
        try:
            for x in range(grid[0]):
                for y in range(grid[1]):
                    for z in range(grid[2]):
                        builder.set_grid_idx(x, y, z)
                        plain(**given)
        except (KernelError, BdbQuit):
            raise
        except Exception as error:
            raise translated(error) from error
    run.seconds = time.perf_counter() - start
