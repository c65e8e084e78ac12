"""``@trident.fuse``: a plain function of tensors as one kernel forward and one backward.

Each call is looked up by the shapes and dtypes of its tensors and the values of its other arguments. The
first of a kind is captured (``capture.py``), differentiated (``gradient.py``) and arranged as loops
(``backends/program.py``); the backends emit and keep the kernels. Derivatives of derivatives run the
function's own body on tensors.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ..backends import arrange
from ..backends import of as backend_of
from ..backends.graph import Graph, GraphNode, Reduce, Ref
from ..backends.loops import costly
from ..backends.program import Dims, Program, Unfusable, Wanted, build
from ..dispatch import DeviceArray
from ..dtypes import dtype as DType
from ..errors import DeviceError, FusionError
from ..ops.registry import REGISTRY, Fused
from ..tape.engine import grad
from ..tape.grad_mode import _enabled
from ..tape.node import Node, Slot, Version, alias, rule_edges, saved_versions, unwrap, wrap
from ..tape.storage import settle
from ..tensor import Tensor, tensor_of
from .capture import Trace, Traced
from .gradient import Backward

LIMIT = 64
"""Captures that a fused function keeps; beyond that the one used longest ago goes."""
NOISY = 16
"""Captures after which a warning says what keeps changing."""


class Plan:
    """Forward and backward programs for one set of wanted gradients."""

    def __init__(self, capture: Capture, mask: tuple[bool, ...]) -> None:
        self.capture = capture
        self.saved: list[Wanted] = []
        self.reads: list[tuple[str, int]] = []  # backward inputs: ("arg" | "g" | "out" | "saved", i)
        self.backward: Program | None = None
        self.why = ""
        wanted: list[Wanted | None] = list(capture.outputs)
        if any(mask):
            try:
                self._make_backward(mask)
                wanted += self.saved
            except Unfusable as error:  # the gradient of the body is used
                self.why, self.saved, self.backward = str(error), [], None
        self.forward = build(capture.graph, capture.dims, wanted)
        self.uses_out = any(kind == "out" for kind, _ in self.reads)

    def _make_backward(self, mask: tuple[bool, ...]) -> None:
        c = self.capture
        inputs = [frozenset(d for d in dims if d is not None) for dims in c.dims]
        b = Backward(c.graph, inputs, c.outputs, list(mask))
        shift = len(c.outputs)
        n = len(c.graph.inputs)
        kept = _row_values(b)
        out_at = {
            _moved(o.ref, n, shift): k
            for k, o in enumerate(c.outputs)
            if o.dtype.compute is o.dtype and _moved(o.ref, n, shift) >= n + shift
        }
        choices = [_rebuild(b, kept, {})]
        if out_at:
            choices.append(_rebuild(b, kept, out_at))
        graph, sources = min(choices, key=lambda choice: _cost(choice, c.dims, c.outputs))
        dims: list[Dims] = []
        for kind, i in sources:
            if kind == "arg":
                dims.append(c.dims[i])
            elif kind in ("g", "out"):
                dims.append(c.outputs[i].dims)
            else:
                axes = tuple(a for a in c.order if a in b.axes[i])
                dims.append(axes)
                back = Ref(i - shift if i >= n + shift else i)
                self.saved.append(Wanted(back, graph.input_dtypes[len(dims) - 1], axes))  # type: ignore[arg-type]
        self.reads = []
        number = 0
        for kind, i in sources:
            self.reads.append((kind, number if kind == "saved" else i))
            number += kind == "saved"
        wanted: list[Wanted | None] = []
        found = iter(graph.outputs)
        for i, ref in enumerate(b.grads):
            if ref is None:
                wanted.append(None)
            else:
                wanted.append(Wanted(next(found), c.graph.input_dtypes[i], c.dims[i]))  # type: ignore[arg-type]
        self.backward = build(graph, dims, wanted)


def _moved(ref: Ref, n: int, by: int) -> int:
    return ref.index + by if ref.index >= n else ref.index


def _row_values(b: Backward) -> dict[int, str]:
    """Forward values behind a reduction that have fewer axes than its operand: kept, not redone."""
    graph, n = b.graph, len(b.graph.inputs)
    behind: dict[int, frozenset[int]] = {}  # value -> the axes that were reduced on its way
    found = {}
    for k in range(b.n_forward - n):
        node = graph.nodes[k]
        axes: frozenset[int] = node.op.axes if isinstance(node.op, Reduce) else frozenset()
        for a in node.args:
            if isinstance(a, Ref):
                axes |= behind.get(a.index, frozenset())
        if axes:
            behind[n + k] = axes
            if not b.axes[n + k] & axes:
                found[n + k] = f"saved{n + k}"
    return found


def _rebuild(
    b: Backward, kept: dict[int, str], outs: dict[int, int]
) -> tuple[Graph, list[tuple[str, int]]]:
    """The backward graph with some forward values as inputs, without what is then dead."""
    graph, n = b.graph, len(b.graph.inputs)
    n_args = n - len(b.names)
    values, _ = graph.dtypes(graph.input_dtypes, _float())
    new = Graph(graph.name, [])
    where: dict[int, Ref] = {}
    sources: list[tuple[str, int]] = []
    order: list[int] = []
    inputs: list[int] = []
    seen: set[int] = set()
    stack = [(r.index, False) for r in reversed(b.grads) if r is not None]
    while stack:
        i, done = stack.pop()
        if done:
            order.append(i)
            continue
        if i in seen:
            continue
        seen.add(i)
        if i < n or i in kept or i in outs:
            inputs.append(i)
            continue
        stack.append((i, True))
        stack += [(a.index, False) for a in graph.nodes[i - n].args if isinstance(a, Ref)]
    for i in sorted(inputs):
        where[i] = Ref(len(new.inputs))
        if i < n_args:
            source, name = ("arg", i), graph.inputs[i]
        elif i < n:
            source, name = ("g", i - n_args), graph.inputs[i]
        elif i in outs:
            source, name = ("out", outs[i]), f"result{outs[i]}"
        else:
            source, name = ("saved", i), kept[i]
        new.inputs.append(name)
        sources.append(source)
        new.input_dtypes.append(
            graph.input_dtypes[i] if i < n else values[i] if i in outs else values[i].compute
        )
    for i in sorted(order):
        node = graph.nodes[i - n]
        args = tuple(where[a.index] if isinstance(a, Ref) else a for a in node.args)
        where[i] = new.add(node.op, args, node.attrs, node.promoted)
        # add() may find an equal node
    new.outputs = [where[r.index] for r in b.grads if r is not None]
    return new, sources


def _float() -> DType:
    from ..dtypes import float32

    return float32


def _cost(
    choice: tuple[Graph, list[tuple[str, int]]], dims: list[Dims], outputs: list[Wanted]
) -> float:
    """Bytes read an element, and costly operations at 4 bytes each."""
    graph, sources = choice
    total = 0.0
    most = max((len(d) for d in dims), default=0)
    for (kind, i), d in zip(sources, graph.input_dtypes):
        own = dims[i] if kind == "arg" else outputs[i].dims if kind in ("g", "out") else ()
        if d is not None and len(own) == most and None not in own:
            total += d.itemsize
    return total + sum(4 for node in graph.nodes if costly(node.op))


class Capture:
    """One capture of the function: its graph, and the programs made of it."""

    def __init__(self, fn: FusedFunction, arguments: dict[str, Any], names: list[str]) -> None:
        trace = Trace(_identifier(fn.__name__), [_identifier(n) for n in names])
        given = dict(arguments)
        for i, name in enumerate(names):
            t = arguments[name]
            given[name] = trace.input(i, tuple(t._data.shape), t.dtype)
            trace.graph.input_dtypes.append(t.dtype)
        with _inside():
            result = fn.call_body(given)
        self.several = isinstance(result, (tuple, list))
        results = list(result) if self.several else [result]
        for r in results:
            if not isinstance(r, Traced):
                raise FusionError(
                    f"fuse: {fn.__name__} must return a tensor or a tuple of tensors; got "
                    f"{type(r).__name__}"
                )
        self.trace = trace
        self.graph = trace.graph
        self._canonical()
        self.dims = [self._dims(x) for x in trace.inputs]
        self.outputs = [Wanted(r.ref, r.dtype, self._dims(r)) for r in results]
        known = {d for dd in self.dims for d in dd if d is not None}
        axes = known | {d for o in self.outputs for d in o.dims if d is not None}
        self.order = sorted(axes)
        self.fixed = {a: trace.sizes[a] for a in axes - known}
        self.exact = trace.reads_sizes or bool(self.fixed)
        self.plans: dict[tuple[bool, ...], Plan] = {}

    def _dims(self, x: Traced) -> Dims:
        return tuple(None if d is None else self.trace.find(d) for d in x.dims)

    def _canonical(self) -> None:
        """Give every axis its one number, now that all merges are known."""
        t = self.trace

        def fixed(a: Any) -> Any:
            return type(a)(t.canonical(a.axes)) if hasattr(a, "axes") else a

        for k, node in enumerate(self.graph.nodes):
            op = node.op
            if isinstance(op, Reduce):
                op = Reduce(op.kind, t.canonical(op.axes))
            args = tuple(fixed(a) for a in node.args)
            self.graph.nodes[k] = GraphNode(op, args, node.attrs, node.promoted)

    def sizes(self, shapes: list[tuple[int, ...]]) -> dict[int, int] | None:
        """The size of each axis of the domain; None where the shapes do not go together."""
        found = dict(self.fixed)
        for dims, shape in zip(self.dims, shapes):
            for d, s in zip(dims, shape):
                if d is not None and found.setdefault(d, s) != s:
                    return None
        return found

    def plan(self, mask: tuple[bool, ...]) -> Plan:
        plan = self.plans.get(mask)
        if plan is None:
            plan = self.plans[mask] = Plan(self, mask)
        return plan


_RESERVED = frozenset(
    # what the emitters name themselves, and what means something in Python's C
    "tl np n i inf nan mask inside rows cols row col row0 row1 col0 col1 n_rows n_cols start end first tile "
    "before rest sizes memory numbers fold combine MAX MIN INT64 BLOCK ROWS COLS NAN INFINITY INLINE "
    "auto break case char const continue default do double else enum extern float for goto if inline int "
    "long register restrict return short signed sizeof static struct switch typedef union unsigned void "
    "volatile while".split()
)


_NUMBERED = r"(result|v|acc|count|saved|part|sum|out|i|g|t|f|lane|total|best|kept|nan)_?\d*(_.*)?"


def _identifier(name: str) -> str:
    """A name that generated code does not use itself."""
    plain = re.sub(r"\W", "_", name)
    own = plain in _RESERVED or keyword.iskeyword(plain) or plain in REGISTRY
    return plain + "_" if own or re.fullmatch(_NUMBERED, plain) else plain


class _inside:
    """Traced values stand for the tensors: the tape is off."""

    def __enter__(self) -> None:
        self.token = _enabled.set(False)

    def __exit__(self, *_: object) -> None:
        _enabled.reset(self.token)


class FusedFunction:
    """What ``fuse`` returns: call it like the function it was made of."""

    def __init__(self, fn: Callable) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.signature = inspect.signature(fn)
        self.captures: OrderedDict[tuple, Any] = OrderedDict()
        self.made = 0
        self.last: tuple[Plan, dict[int, int], str] | None = None
        self.globals = _numbers_outside(fn)
        self.op = Fused(fn)
        """What ``check_op`` reads: the body is the meaning."""
        self.op.function = self

    def samples(self, draw: Callable) -> Callable:
        """Decorator: ``draw -> (operands, attributes)``, a random call for ``check_op``."""
        self.op.samples = draw
        return draw

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<fused function {self.__name__}>"

    # ---- calling --------------------------------------------------------------------------------

    def call_body(self, arguments: dict[str, Any]) -> Any:
        bound = self.signature.bind_partial()
        bound.arguments.update(arguments)
        return self.fn(*bound.args, **bound.kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        names = [n for n, a in arguments.items() if isinstance(a, Tensor)]
        tensors = [arguments[n] for n in names]
        if not tensors or any(t._data.size == 0 for t in tensors):
            return self.fn(*args, **kwargs)  # traced from outside, or nothing to compute
        capture = self._capture(arguments, names, tensors)
        sizes = capture.sizes([t._data.shape for t in tensors])
        if sizes is None:  # these shapes do not broadcast: the body says so
            return self.fn(*args, **kwargs)
        return self._run(capture, tensors, arguments, names, sizes)

    def _capture(self, arguments: dict[str, Any], names: list[str], tensors: list) -> Any:
        shapes = tuple([t._data.shape for t in tensors])
        others = tuple([
            (n, a.__class__, a) for n, a in arguments.items() if not isinstance(a, Tensor)
        ])  # fmt: skip
        key = (
            tuple(names), tuple([t._data.dtype for t in tensors]), others,
            tuple([read() for read in self.globals]),
        )  # fmt: skip
        loose = (*key, tuple([tuple([s == 1 for s in sh]) for sh in shapes]))
        try:
            capture = self.captures.get(loose)
        except TypeError:
            bad = next(n for n, _, a in others if a.__class__.__hash__ is None)
            raise FusionError(
                f"fuse: {self.__name__}: argument {bad} is a {type(arguments[bad]).__name__}; "
                "arguments that are not tensors must be hashable (numbers, strings, tuples)"
            ) from None
        if capture == "exact":
            loose = (*key, shapes)
            capture = self.captures.get(loose)
        if capture is not None:
            self.captures.move_to_end(loose)
            return capture
        try:
            capture = Capture(self, arguments, names)
            capture.plan((False,) * len(names))
        except Unfusable as error:
            raise FusionError(f"fuse: {self.__name__}: {error}") from None
        if capture.exact:
            self._remember((*key, tuple([tuple([s == 1 for s in sh]) for sh in shapes])), "exact")
            loose = (*key, shapes)
        self._remember(loose, capture)
        self._count(arguments)
        return capture

    def _remember(self, key: tuple, value: Any) -> None:
        self.captures[key] = value
        if len(self.captures) > 2 * LIMIT:
            self.captures.popitem(last=False)

    def _count(self, arguments: dict[str, Any]) -> None:
        self.made += 1
        if self.made == NOISY:
            varying = _varying(list(self.captures))
            warnings.warn(
                f"fuse: {self.__name__} has been captured {NOISY} times; what changes from call to "
                f"call is {varying}. Numbers that change can be passed as 0-d tensors",
                stacklevel=4,
            )

    def _run(
        self, capture: Capture, tensors: list[Tensor], arguments: dict[str, Any], names: list[str],
        sizes: dict[int, int],
    ) -> Any:  # fmt: skip
        recording = _enabled.get()
        for t in tensors:
            if t._version is not None and recording:
                settle(self.__name__, t)
        mask = tuple([recording and t._requires_grad for t in tensors])
        plan = capture.plan(mask)
        arrays = _one_device(self.__name__, tensors)
        backend: Any = backend_of(arrays[0])
        data = arrange.run(plan.forward, arrays, sizes, backend)
        n = len(capture.outputs)
        outs = [tensor_of(d) for d in data[:n]]
        if True in mask:
            node = FuseNode(self, plan, tensors, arguments, names, sizes, data)
            for i, o in enumerate(outs):
                if o.is_floating_point():
                    o._node = Slot(node, i, o._data) if n > 1 else node
                    o._requires_grad = True
                    if plan.uses_out:
                        o._version = Version()
            node.watch(outs)
        self.last = (plan, sizes, backend.__name__)
        return tuple(outs) if capture.several else outs[0]

    # ---- looking inside -------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """The text of the kernels made for the last call: forward, then backward."""
        from .explain import source

        return source(self)

    def explain(self) -> Any:
        """What was fused, what is saved for backward, the bytes moved, and the speed limit."""
        from .explain import Explanation

        return Explanation(self)


def _one_device(name: str, tensors: list[Tensor]) -> list[Any]:
    """Arrays on one device: 0-d tensors of the CPU go to where the others are."""
    arrays = [t._data for t in tensors]
    device = next((a.device for a in arrays if a.__class__ is DeviceArray), None)
    if device is None:
        return arrays
    for i, a in enumerate(arrays):
        if a.__class__ is not DeviceArray:
            if a.ndim:
                raise DeviceError(
                    f"{name}: tensors must be on one device; got cpu (shape {a.shape}) and {device}. "
                    "Move one with .to('cpu') or .to('cuda')"
                )
            arrays[i] = device.from_host(a)
    return arrays


class FuseNode(Node):
    """A call of a fused function on the tape."""

    def __init__(
        self, fn: FusedFunction, plan: Plan, tensors: list[Tensor], arguments: dict[str, Any],
        names: list[str], sizes: dict[int, int], data: list[Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.op = fn.op
        self.fn = fn
        self.plan = plan
        self.args = tuple(tensors)
        self.arguments = arguments
        self.names = names
        self.sizes = sizes
        self.edges = rule_edges(self.args)
        self.versions = saved_versions(self.args)
        n = len(plan.capture.outputs)
        self.n_outputs = n
        self.out = data[:n] if plan.uses_out else None
        self.saved = data[n:]
        self.like = [(d.shape, d.dtype) for d in data[:n]]
        if n == 1:
            self._shape, self._dtype = data[0].shape, data[0].dtype
        self.out_versions: list[Version | None] = []

    def watch(self, outs: list[Tensor]) -> None:
        """Notice when an output that backward reads is overwritten."""
        self.out_versions = [o._version for o in outs] if self.out is not None else []

    def pull(self, g: Any, graph: bool) -> tuple:
        for i, t in enumerate(self.args):
            if getattr(t, "_version", None) is not None:
                self.check_saved(
                    t, self.versions[i] if self.versions else 0, f"argument {self.names[i]}"
                )
        for v in self.out_versions:
            if v is not None and v.n:
                self.overwritten("an output", self._shape or (), v)
        gs = list(g) if isinstance(g, tuple) else [g]
        plan = self.plan
        if graph or plan.backward is None:
            return self._body_gradient(gs, graph)
        arrays = _one_device(self.fn.__name__, list(self.args))
        backend: Any = backend_of(arrays[0])
        for k, (shape, dtype) in enumerate(self.like):
            if gs[k] is None:
                like = arrays[0]
                gs[k] = backend.full(like, shape, 0, _trident_dtype(dtype))
        where = {"arg": arrays, "g": gs, "out": self.out, "saved": self.saved}
        operands = [where[kind][i] for kind, i in plan.reads]
        return tuple(arrange.run(plan.backward, operands, self.sizes, backend))

    def _body_gradient(self, gs: list, graph: bool) -> tuple:
        """The gradient of the function's own body, recorded when ``graph``."""
        mask = [e is not None for e in self.edges]
        token = _enabled.set(True)
        try:
            aliases = [alias(a) if m else a for a, m in zip(self.args, mask)]
            out = self.fn.call_body(self.arguments | dict(zip(self.names, aliases)))
            outs = list(out) if isinstance(out, (tuple, list)) else [out]
            pairs = [
                (o, wrap(x, graph))
                for o, x in zip(outs, gs)
                if x is not None and o._requires_grad
            ]
            wanted = [a for a, m in zip(aliases, mask) if m]
            found = iter(
                grad(
                    [o for o, _ in pairs], wanted, [x for _, x in pairs],
                    create_graph=graph, allow_unused=True,
                )
            )  # fmt: skip
        finally:
            _enabled.reset(token)
        return tuple(unwrap(next(found), graph) if m else None for m in mask)

    def release(self) -> None:
        super().release()
        self.saved = []
        self.arguments = {}


def _trident_dtype(dtype: Any) -> DType:
    from ..dtypes import FROM_NUMPY

    return dtype if isinstance(dtype, DType) else FROM_NUMPY[dtype]


def _numbers_outside(fn: Callable, depth: int = 3) -> list[Callable[[], Any]]:
    """Readers of the numbers, strings and flags that ``fn`` takes from outside: they are part of the
    key, so that a change of one is seen."""
    readers: list[Callable[[], Any]] = []
    code = getattr(fn, "__code__", None)
    if code is None:
        return readers
    space = fn.__globals__  # type: ignore[attr-defined]
    plain = (bool, int, float, str, tuple, type(None))

    def in_globals(name: str) -> Callable[[], Any]:
        def read() -> Any:
            value = space.get(name)
            return (value.__class__, value) if isinstance(value, plain) else id(value)

        return read

    def in_cell(cell: Any) -> Callable[[], Any]:
        def read() -> Any:
            value = cell.cell_contents
            return (value.__class__, value) if isinstance(value, plain) else id(value)

        return read

    for name in code.co_names:
        value = space.get(name)
        if isinstance(value, plain) and name in space:
            readers.append(in_globals(name))
        elif inspect.isfunction(value) and depth and not _ours(value):
            readers += _numbers_outside(value, depth - 1)
    readers += [in_cell(cell) for cell in fn.__closure__ or ()]  # type: ignore[attr-defined]
    return readers


def _ours(fn: Any) -> bool:
    return (fn.__module__ or "").partition(".")[0] == "trident"


def _varying(keys: list[tuple]) -> str:
    """Which part of the keys differs, in words."""
    parts = ("the set of tensor arguments", "a dtype", "an argument that is not a tensor",
             "a global or enclosing variable", "a shape")  # fmt: skip
    for i, text in enumerate(parts):
        if len({k[i] for k in keys if len(k) > i}) > 1:
            if i == 2:
                values = [dict((n, v) for n, _, v in k[2]) for k in keys]
                names = [n for n in values[0] if len({repr(v.get(n)) for v in values}) > 1]
                return f"the argument {', '.join(names)}" if names else text
            return text
    return "nothing"


def fuse(fn: Callable | None = None) -> Any:
    """Make ``fn``, a function of tensors in elementwise ops and reductions, one kernel forward and one
    backward.

    The function is captured once per dtypes and layouts of its arguments: as a Triton kernel on
    ``cuda``, as compiled C on the CPU (numpy on blocks where there is no compiler). Reductions are
    fused too, before, between and after elementwise parts: softmax-, norm- and loss-like functions are
    one kernel. Intermediate values stay in registers, in float32 for half types, and are rounded once
    at the end. ``f.source`` is the text of the kernels, ``f.explain()`` what was done.

    Arguments that are not tensors are part of what is captured. Raises FusionError, with the line of
    ``fn``, for what is not one loop: a matmul, a branch on values, a tensor from outside.

    >>> @trident.fuse
    ... def scaled_relu(x, w):
    ...     return trident.relu(x * w)
    >>> scaled_relu(trident.tensor([-1.0, 2.0]), trident.tensor(3.0))
    tensor([0., 6.])
    """
    return FusedFunction(fn) if fn is not None else fuse


__all__ = ["FusedFunction", "fuse"]
