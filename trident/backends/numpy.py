"""The CPU backend: every op's ``numpy`` body, with promotion and rounding done here.

float16 and bfloat16 operands are widened to float32 before the body and the result is rounded once,
as the kernels do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..dtypes import FROM_NUMPY
from ..dtypes import dtype as DType
from ..errors import DTypeError, wrong
from ..ops.registry import REGISTRY, Elementwise, Op, Primitive, Spec
from ..runtime import host_threads
from ..shapes import Shape
from .graph import Graph, python_function

_HALF = tuple(d.np for d in dtypes.HALVES)
_F32 = np.dtype(np.float32)

# np.errstate costs 1 us, as much as a small op. The context variable behind it costs 0.1 us; where
# a numpy release moves it, np.errstate itself does the same.
try:
    from numpy._core.umath import _extobj_contextvar, _make_extobj

    _QUIET = _make_extobj(all="ignore")
    quiet_set: Callable = functools.partial(_extobj_contextvar.set, _QUIET)
    quiet_reset: Callable = _extobj_contextvar.reset
except ImportError:  # pragma: no cover - depends on the numpy release

    def quiet_set() -> AbstractContextManager:
        state = np.errstate(all="ignore")
        state.__enter__()
        return state

    def quiet_reset(state: AbstractContextManager) -> None:
        state.__exit__(None, None, None)


def dtype_of(array: np.ndarray) -> DType:
    return FROM_NUMPY[array.dtype]


def widen(a: Any) -> Any:
    """float16 and bfloat16 arrays as float32; anything else as it is."""
    if isinstance(a, np.ndarray) and a.dtype in _HALF:
        return a.astype(_F32)
    return a


BIG = 1 << 20
"""From this many elements on, elementwise work is done in blocks, on all threads."""
_BLOCK = 1 << 16
_RULE_BLOCK = 1 << 17


def blocked(op: Elementwise, args: tuple, attrs: dict[str, Any]) -> np.ndarray:
    """``op.numpy`` on large float arrays: blocks stay in the cache between the passes of a body."""
    flat = _flatten(args)
    if flat is None:
        return op.numpy(*args, **attrs)
    like = next(a for a in args if a.__class__ is np.ndarray and a.size >= BIG)
    out = np.empty(like.shape, np.bool_ if op.result == "bool" else like.dtype)
    target = out.reshape(-1)

    def work(start: int, stop: int) -> None:
        part = [a[start:stop] if big else a for a, big in flat]
        target[start:stop] = op.numpy(*part, **attrs)

    _over_blocks(work, target.size, _BLOCK)
    return out


def _flatten(args: Sequence) -> list[tuple[Any, bool]] | None:
    """Operands as 1-D arrays (True) or single values (False); None if they do not walk as one."""
    shape = None
    flat: list[tuple[Any, bool]] = []
    for a in args:
        if a.__class__ is not np.ndarray or a.size == 1:
            flat.append((a.reshape(()) if a.__class__ is np.ndarray else a, False))
        elif not any(a.strides):  # one value, expanded
            flat.append((a[(0,) * a.ndim], False))
        elif a.flags.c_contiguous and shape in (None, a.shape):
            shape = a.shape
            flat.append((a.reshape(-1), True))
        else:
            return None
    return flat if shape is not None else None


def _over_blocks(work: Callable[[int, int], None], n: int, block: int) -> None:
    """Call ``work`` on blocks of range(n), an equal share of them in each thread."""
    blocks = -(-n // block)
    workers = min(host_threads.get_num_threads(), blocks)

    def share(i: int) -> None:
        for b in range(blocks * i // workers, blocks * (i + 1) // workers):
            work(b * block, min((b + 1) * block, n))

    host_threads.run(share, workers)


def check_takes(op: Elementwise, promoted: DType) -> None:
    """Raise where an elementwise op does not take the promoted dtype."""
    bad = (
        (op.takes == "number" and promoted.kind == "bool")
        or (op.takes == "int" and promoted.kind == "float")
        or (op.takes == "float" and promoted.kind != "float")
    )
    if bad:
        expected = {
            "number": "a number dtype (not bool)",
            "int": "an integer or bool dtype",
            "float": "a floating dtype",
        }[op.takes]
        raise wrong(
            op.name,
            f"expected {expected}",
            got=promoted.name,
            error=DTypeError,
            hint="convert with x.to(dtype)",
        )


def promote(op: Elementwise, args: tuple) -> DType:
    """The dtype that the operands of an elementwise op are promoted to (arrays of either
    device).
    """
    dims: list[DType] = []
    zero_dims: list[DType] = []
    scalars: list[DType] = []
    for name, a in zip(op.operands, args):
        if name in op.untyped:
            continue
        if hasattr(a, "shape"):
            d = FROM_NUMPY[a.dtype] if isinstance(a, np.ndarray) else a.dtype
            (dims if a.ndim else zero_dims).append(d)
        else:
            scalars.append(dtypes.scalar_dtype(a))
    promoted = dtypes.result_type(dims, zero_dims, scalars)
    check_takes(op, promoted)
    if op.result == "float" and promoted.kind != "float":
        promoted = dtypes.get_default_dtype()
    return promoted


def elementwise(op: Elementwise, args: tuple, attrs: dict[str, Any]) -> np.ndarray:
    """Run an elementwise op on arrays and Python numbers."""
    promoted = promote(op, args)
    compute = promoted.compute.np
    passed = []
    for name, a in zip(op.operands, args):
        if name in op.untyped:
            a = a if not isinstance(a, np.ndarray) or a.dtype == np.bool_ else a != 0
        elif isinstance(a, np.ndarray):
            a = a if a.dtype == compute else a.astype(compute)
        elif compute.kind == "f":
            a = float(a)
        elif compute.kind in "iu":
            a = int(a)
        passed.append(a)
    token = quiet_set()
    try:
        r = op.numpy(*passed, **attrs)
    except ValueError:
        broadcast_error(op, args)
        raise
    finally:
        quiet_reset(token)
    want = op.result_dtype(promoted).np
    if r.__class__ is not np.ndarray:
        r = np.asarray(r)
    return r if r.dtype == want else r.astype(want)


def broadcast_error(op: Op, args: tuple) -> None:
    """Raise the user's ShapeError if the array operands do not broadcast."""
    shapes.broadcast(op.name, *[a.shape for a in args if hasattr(a, "shape")])


def specs(args: Sequence) -> list:
    """Arrays as Specs, lists of arrays as lists of Specs, None and numbers as they are."""
    return [
        Spec(a.shape, FROM_NUMPY[a.dtype] if isinstance(a, np.ndarray) else a.dtype)
        if hasattr(a, "shape")
        else a
        for a in args
    ]


def primitive(op: Primitive, args: Sequence, attrs: dict[str, Any]) -> Any:
    """Run a primitive's ``numpy`` body; ``infer`` speaks where something is wrong."""
    half = False
    first = None
    for a in args:
        if a.__class__ is np.ndarray:
            d = a.dtype
            if d is first:
                continue
            if d.kind == "f" or d in _HALF:
                if first is not None:
                    op.infer(
                        *specs(args), **attrs
                    )  # floating dtypes differ: raises where that is wrong
                first = d
                half = half or d.itemsize == 2
    token = quiet_set()
    try:
        if not half:
            r = op.numpy(*args, **attrs)
            if r.__class__ is not np.ndarray:
                r = tuple(map(np.asarray, r)) if isinstance(r, tuple) else np.asarray(r)
            return r if op.layout is None else _laid_out(op, r, args, attrs)
        want = op.infer(*specs(args), **attrs)
        r = op.numpy(*[widen(a) for a in args], **attrs)
        if isinstance(r, tuple):
            r = tuple(_round(x, w.dtype) for x, w in zip(r, want))
        else:
            r = _round(r, want.dtype)
        return r if op.layout is None else _laid_out(op, r, args, attrs)
    except (ValueError, TypeError, IndexError):
        op.infer(*specs(args), **attrs)
        raise
    finally:
        quiet_reset(token)


def _laid_out(op: Primitive, r: Any, args: Sequence, attrs: dict[str, Any]) -> Any:
    """The results in the layout that the entry wants: bodies write row-major arrays, which are
    copied where an operand asks for another order."""
    arrays = [a for a in args if a.__class__ is np.ndarray]
    if all(a.flags.c_contiguous for a in arrays) and not attrs.get("memory_format"):
        return r
    if isinstance(r, tuple):
        return tuple(_laid_out(op, x, args, attrs) for x in r)
    assert op.layout is not None
    operands = [(a.shape, tuple([s // a.itemsize for s in a.strides])) for a in arrays]
    wanted = op.layout(r.shape, operands, **attrs)
    template = np.lib.stride_tricks.as_strided(r, r.shape, [s * r.itemsize for s in wanted])
    if template.strides == r.strides:
        return r
    out = np.empty_like(template)  # owns its memory, as a transposed copy would not
    out[...] = r
    return out


def _round(a: Any, want: DType) -> np.ndarray:
    a = np.asarray(a)
    return a if a.dtype == want.np else a.astype(want.np)


class _RuleFunction:
    """A gradient rule as Python: plain, and per layout of large operands one on blocks."""

    def __init__(self, graph: Graph, bindings: dict[str, str]) -> None:
        self.graph = graph
        self.bindings = bindings
        self.plain = python_function(graph, bindings)
        self.source: str = self.plain.source  # type: ignore[attr-defined]
        self.trivial = not self.plain.nodes  # type: ignore[attr-defined]
        self.variants: dict[tuple, Callable] = {}

    def on_blocks(self, present: dict[str, bool]) -> Callable:
        """The form for inputs that are blocks (True) or single values (False)."""
        key = tuple([present.get(self.bindings[n], False) for n in self.graph.inputs])
        if key not in self.variants:
            self.variants[key] = python_function(self.graph, self.bindings, key)
        return self.variants[key]


def rule_function(graph: Graph, bindings: dict[str, str]) -> _RuleFunction:
    """A gradient rule as a Python function of (g, a, out)."""
    return _RuleFunction(graph, bindings)


def run_rule(rule: _RuleFunction, g: np.ndarray, args: tuple | None, out: Any) -> tuple:
    """Evaluate a rule made by ``rule_function``; half types are computed in float32."""
    if g.itemsize == 2:  # float16, bfloat16
        g = g.astype(_F32)
        args = tuple(map(widen, args)) if args is not None else None
        out = widen(out)
    if not g.ndim:  # numpy gives scalars for 0-d arithmetic
        return tuple([None if r is None else np.asarray(r) for r in rule.plain(g, args, out)])
    if g.size >= BIG and not rule.trivial:
        grads = _blocked_rule(rule, g, args, out)
        if grads is not None:
            return grads
    return rule.plain(g, args, out)


def _blocked_rule(rule: _RuleFunction, g: np.ndarray, args: tuple | None, out: Any) -> tuple | None:
    """A rule on large arrays, in blocks; None where the operands do not walk as one."""
    operands = args or ()
    named = {"g": g, **{f"a[{i}]": a for i, a in enumerate(operands)}, "out": out}
    present = {k: a for k, a in named.items() if a is not None}
    flat = _flatten(list(present.values()))
    if flat is None or any(np.size(a) > 1 and a.shape != g.shape for a in present.values()):
        return None
    taken = dict(zip(present, flat))
    if any(big and a.dtype != g.dtype for a, big in flat):
        return None
    function = rule.on_blocks({k: big for k, (_, big) in taken.items()})
    take = [taken.get(k) for k in named]
    probe = rule.plain(*_slice(take, len(operands), 0, 1))
    results = [None if r is None else np.empty(g.shape, g.dtype) for r in probe]
    targets = [None if r is None else r.reshape(-1) for r in results]

    def work(start: int, stop: int) -> None:
        grads = function(*_slice(take, len(operands), start, stop))
        for target, r in zip(targets, grads):
            if target is not None:
                target[start:stop] = r

    _over_blocks(work, g.size, _RULE_BLOCK)
    return tuple(results)


def _slice(take: list, n: int, start: int, stop: int) -> tuple:
    part = [None if t is None else t[0][start:stop] if t[1] else t[0] for t in take]
    return part[0], tuple(part[1 : n + 1]), part[n + 1]


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(a + b)


def cast(a: np.ndarray, dtype: DType) -> np.ndarray:
    token = quiet_set()
    try:
        return a.astype(dtype.np)
    finally:
        quiet_reset(token)


def copy(a: np.ndarray) -> np.ndarray:
    """A copy in the order of ``a``."""
    return np.array(a, order="K", copy=True)


def contiguous(a: np.ndarray) -> np.ndarray:
    """A row-major copy."""
    return np.array(a, order="C", copy=True)


def copied_like(a: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A copy in the order of ``like``, which has the same shape."""
    out = np.empty_like(like, dtype=a.dtype)
    out[...] = a
    return out


def sum_to(a: np.ndarray, shape: Shape) -> np.ndarray:
    """Sum ``a`` over the axes along which ``shape`` was broadcast to it."""
    over = shapes.stretched(shape, a.shape)
    if not over:
        return a.reshape(shape)
    total = primitive(REGISTRY["sum"], (a,), {"dim": over, "keepdim": False, "dtype": None})  # type: ignore[arg-type]
    return total.reshape(shape)


def assign(target: np.ndarray, value: Any) -> None:
    """Write ``value`` (broadcast) into the memory of ``target``."""
    token = quiet_set()
    try:
        np.copyto(target, value, casting="unsafe")
    finally:
        quiet_reset(token)


def full(like: Any, shape: Shape, value: Any, dtype: DType) -> np.ndarray:
    if value == 0:
        return np.zeros(shape, dtype.np)
    return np.full(shape, value, dtype.np)


def from_host(array: np.ndarray, like: Any) -> np.ndarray:
    return np.array(array)


def to_host(array: np.ndarray) -> np.ndarray:
    return array


# ---- fused programs -----------------------------------------------------------------------------


def empty_like_device(like: np.ndarray, shape: Shape, dtype: DType) -> np.ndarray:
    return np.empty(shape, dtype.np)


def repeated(
    program: Any, arrays: Sequence[Any], sizes: dict[int, int],
    run: Callable[[Sequence[Any]], Any],
) -> Any:  # fmt: skip
    """``run(arrays)``: there is nothing to keep on the CPU."""
    return run(arrays)


def run_loops(work: Any) -> list[np.ndarray]:
    """The loops of a fused program: compiled C where there is a compiler, else numpy on blocks."""
    from . import blocks, compiled

    if compiled.available():
        sums = compiled.run_loops(work)
        if sums is not None:
            return sums
    token = quiet_set()
    try:
        return blocks.run_loops(work)
    finally:
        quiet_reset(token)


def run_small(graph: Graph, operands: list, results: list[tuple[Shape, DType]]) -> list[np.ndarray]:
    """The tail of a fused program, on the few numbers that are left."""
    function = graph.__dict__.get("python")
    if function is None:
        bindings = {name: f"a[{i}]" for i, name in enumerate(graph.inputs)}
        function = graph.__dict__["python"] = python_function(graph, bindings)
    token = quiet_set()
    try:
        found = function(None, [widen(a) for a in operands], None)
    finally:
        quiet_reset(token)
    return [np.array(np.broadcast_to(_round(r, d), shape)) for r, (shape, d) in zip(found, results)]
