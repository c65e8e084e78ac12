"""The tape: one node per recorded operation.

A node keeps its edges (where the gradients of its operands go: another node, or a leaf tensor),
what its rule declared it needs, and the storage versions of that at record time. Every node has one
output gradient; an op with several outputs has one ``Slot`` per output in front of its node.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import backends, shapes
from ..backends.graph import Graph, Ref
from ..errors import AutogradError
from ..ops.registry import Elementwise, Fused, Op, Spec
from ..symbol import Symbol
from . import anomaly
from .grad_mode import _enabled

_next = itertools.count().__next__
_next_write = itertools.count(1).__next__
_anomaly = anomaly._mode.get


class Version:
    """The last write to a storage, shared by all tensors on it. Absent means never written.

    Writes are numbered through the whole program, so that a number names one write of one storage.
    """

    n = 0
    writer = ""
    taped = 0  # the last recorded write: histories from before it are stale
    taped_before = 0  # the recorded write before that

    def bump(self, writer: str) -> None:
        self.n = _next_write()
        self.writer = writer

    def record(self) -> None:
        """The last write was recorded."""
        self.taped_before, self.taped = self.taped, self.n


def version_of(tensor: Any) -> int:
    v = tensor._version
    return v.n if v is not None else 0


class Node:
    """A recorded operation; ``tensor.grad_fn``."""

    hooks: list[Callable] | None = None
    prehooks: list[Callable] | None = None
    retain: weakref.ref | None = None
    line: str = ""
    freed = False
    op: Any = None
    args: Any = None
    out: Any = None
    edges: tuple = ()
    n_outputs: int  # set where an op has several
    _shape: Any = None
    _dtype: Any = None

    def __init__(self) -> None:
        self.seq = _next()
        if _anomaly():
            self.line = anomaly.user_line()

    def name(self) -> str:
        """ "MulBackward" for an op named mul."""
        text = "".join(part[:1].upper() + part[1:] for part in self.op.name.split("_"))
        return text + "Backward"

    @property
    def next_functions(self) -> tuple:
        """Per operand: (the node its gradient goes to, 0), or (None, 0)."""
        return tuple(
            (e if isinstance(e, Node) else AccumulateGrad(e) if e is not None else None, 0)
            for e in self.edges
        )

    def register_hook(self, hook: Callable) -> RemovableHandle:
        """``hook(grad_inputs, grad_outputs)`` after the rule ran; may return new grad_inputs."""
        if self.hooks is None:
            self.hooks = []
        return RemovableHandle(self.hooks, hook)

    def register_prehook(self, hook: Callable) -> RemovableHandle:
        """``hook(grad_output)`` before the rule runs; may return a new gradient."""
        if self.prehooks is None:
            self.prehooks = []
        return RemovableHandle(self.prehooks, hook)

    def pull(self, g: Any, graph: bool) -> tuple:
        """Gradients for the edges, given that of the output (arrays, or Tensors if ``graph``)."""
        raise TypeError(f"{type(self).__name__} has no rule")

    def release(self) -> None:
        """Drop what was saved: the graph was walked and is not kept. A node that had saved nothing
        can be walked again."""
        self.freed = self.args is not None or self.out is not None
        self.args = self.out = None

    def check_saved(self, tensor: Any, saved: int, what: str) -> None:
        """Raise if ``tensor`` was written since it was saved."""
        now = tensor._version
        if now is not None and now.n != saved:
            self.overwritten(what, tensor._data.shape, now)

    def overwritten(self, what: str, shape: Any, version: Version) -> None:
        text = (
            f"backward of {self.op.name}: {what}, shape {tuple(shape)}, which {self.op.name} "
            f"saved, was overwritten by {version.writer} before the gradient was computed. Use the "
            f"out-of-place form there, or clone() the tensor first"
        )
        if self.line:
            text += f". {self.op.name} was called at\n{self.line}"
        else:
            text += "; trident.autograd.detect_anomaly() shows the forward line"
        raise AutogradError(text)

    def __repr__(self) -> str:
        return f"<{self.name()} object at {id(self):#x}>"


class RemovableHandle:
    """Returned by ``register_*hook``; ``remove()`` takes the hook out again."""

    def __init__(self, hooks: list[Callable], hook: Callable) -> None:
        self.hooks = hooks
        self.hook = hook
        hooks.append(hook)

    def remove(self) -> None:
        """Take the hook out; a second call does nothing."""
        for i, hook in enumerate(self.hooks):
            if hook is self.hook:
                del self.hooks[i]  # one registration, should the same hook be there twice
                break
        self.hooks = []

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class AccumulateGrad:
    """The end of an edge at a leaf: its gradient is added to ``variable.grad``."""

    def __init__(self, variable: Any) -> None:
        self.variable = variable

    def name(self) -> str:
        return "AccumulateGrad"

    next_functions: tuple = ()

    def __repr__(self) -> str:
        return f"<AccumulateGrad object at {id(self):#x}>"


class Slot(Node):
    """One of several outputs of ``parent``."""

    def __init__(self, parent: Node, index: int, data: Any) -> None:
        self.seq = _next()
        self.parent = parent
        self.index = index
        self._shape = data.shape
        self._dtype = data.dtype
        self.edges = (parent,)

    def name(self) -> str:
        return self.parent.name()


class Rule:
    """A gradient rule of an elementwise op, traced once per set of wanted gradients."""

    __slots__ = ("function", "run", "uses", "uses_out")

    def __init__(self, op: Elementwise, mask: tuple, attrs: dict[str, Any], backend: Any) -> None:
        graph = trace_rule(op, mask, attrs)
        live = {graph.inputs[i] for i in graph.live() if i < len(graph.inputs)}
        bindings = {name: f"a[{i}]" for i, name in enumerate(op.operands)}
        bindings |= {"g": "g", "out": "out"}
        self.function = backend.rule_function(graph, bindings)
        self.run = backend.run_rule
        self.uses = tuple(i for i, name in enumerate(op.operands) if name in live)
        self.uses_out = "out" in live


def trace_rule(op: Elementwise, mask: tuple, attrs: dict[str, Any]) -> Graph:
    """The graph that ``op.vjp`` writes, with the gradients nobody wants taken out."""
    assert op.vjp is not None
    wanted = "".join("x" if m else "_" for m in mask)
    graph = Graph(f"{op.name}_vjp_{wanted}" if op.arity > 1 else f"{op.name}_vjp", [])
    graph.inputs = [n for n in op.vjp_names if n in ("g", "out") or n in op.operands]
    symbols = {n: Symbol(graph, Ref(i)) for i, n in enumerate(graph.inputs)}
    result = op.vjp(**symbols, **{k: v for k, v in attrs.items() if k in op.vjp_names})
    if not isinstance(result, tuple):
        result = (result,)
    graph.outputs = [
        None if not m or r is None else r.ref if isinstance(r, Symbol) else r
        for r, m in zip(result, mask)
    ]
    return graph


def find_rule(op: Elementwise, edges: tuple, attrs: dict[str, Any], backend: Any) -> Rule:
    """The rule for the gradients that ``edges`` want, traced at first use."""
    mask = tuple([e is not None for e in edges])
    key = (backend, mask, *attrs.values()) if attrs else (backend, mask)
    rule = op.trace_cache.get(key)
    if rule is None:
        rule = op.trace_cache[key] = Rule(op, mask, attrs, backend)
    return rule


class ElementwiseNode(Node):
    """An elementwise op: its rule runs as one Python function (CPU) or one kernel (cuda)."""

    def __init__(
        self, op: Elementwise, args: tuple, arrays: Any, attrs: dict, edges: tuple, data: Any
    ) -> None:
        self.seq = _next()
        self.op = op
        self.attrs = attrs
        self.edges = edges
        self._shape = data.shape
        self._dtype = data.dtype
        if op.saves_operands:
            self.args = args
            self.arrays = arrays
            for t in args:
                if getattr(t, "_version", None) is not None:
                    self.versions = saved_versions(args)
                    break
        if _anomaly():
            self.line = anomaly.user_line()

    arrays: Any = None
    rule: Rule | None = None
    versions: tuple | None = None
    out_version: Version | None = None
    out_n = 0

    def save_out(self, data: Any, version: Version) -> None:
        self.out = data
        self.out_version = version
        self.out_n = version.n

    def pull(self, g: Any, graph: bool) -> tuple:
        op = self.op
        rule = self.rule
        if rule is None or graph:
            backend = backends.of(g._data if graph else g)
            rule = find_rule(op, self.edges, self.attrs, backend)
        if rule.uses:
            args, versions = self.args, self.versions
            for i in rule.uses:
                t = args[i]
                v = getattr(t, "_version", None)
                if v is not None and v.n != (versions[i] if versions else 0):
                    self.overwritten(f"operand {op.operands[i]}", t._data.shape, v)
        if rule.uses_out and self.out_version is not None and self.out_version.n != self.out_n:
            self.overwritten("the output", self._shape, self.out_version)
        if not graph:
            return rule.run(rule.function, g, self.arrays, self.out)
        values: dict[str, Any] = {"g": g}
        for name in op.vjp_names:
            if name in op.operands:
                values[name] = self.args[op.operands.index(name)]
            elif name == "out":
                values[name] = tensor_of(self.out, node=self)
            elif name != "g":
                values[name] = self.attrs[name]
        result = op.vjp(**values)
        return result if isinstance(result, tuple) else (result,)

    def release(self) -> None:
        self.freed = self.args is not None or self.out is not None
        self.args = self.out = self.arrays = None


def saved_versions(args: tuple) -> tuple | None:
    """Storage versions of the tensors among ``args``, or None while none was ever written."""
    for t in args:
        v = getattr(t, "_version", None)
        if v is not None and v.n:
            return tuple(version_of(a) if hasattr(a, "_data") else 0 for a in args)
    return None


class RuleNode(Node):
    """A primitive or view: its rule is written in ops and runs on Tensors."""

    def __init__(
        self, op: Op, args: tuple, attrs: dict, edges: tuple, data: Any, out: Any = None
    ) -> None:
        super().__init__()
        self.op = op
        self.attrs = attrs
        self.edges = edges
        if op.variadic:
            self.args = args if op.saves[0] else None
            self.specs = [_spec(a) for a in args] if op.spec_names else None
        else:
            if op.saves_operands:
                self.args = tuple([a if keep else None for keep, a in zip(op.saves, args)])
            if op.spec_names:
                self.specs = {name: _spec(args[i]) for i, name in op.spec_names}
        if self.args is not None:
            self.versions = saved_versions(self.args)
        if data.__class__ is not tuple:
            self._shape = data.shape
            self._dtype = data.dtype

    specs: Any = None
    versions: tuple | None = None
    out_versions: tuple = ()

    def save_out(self, data: Any, versions: tuple) -> None:
        self.out = data
        self.out_versions = tuple((v, v.n) for v in versions)

    def on_host(self, g: Any) -> bool:
        """Whether ``numpy_vjp`` may run: CPU arrays, none of a half type."""
        return g.__class__ is np.ndarray and g.itemsize != 2

    def values(self, g: Any) -> dict[str, Any]:
        """What the rule asked for, by name."""
        op = self.op
        values: dict[str, Any] = {}
        for name in op.vjp_names:
            if name == "g":
                values[name] = g
            elif name == "out":
                for v, n in self.out_versions:
                    if v.n != n:
                        self.overwritten("the output", self._shape or (), v)
                values[name] = (
                    tuple(tensor_of(d, node=Slot(self, i, d)) for i, d in enumerate(self.out))
                    if isinstance(self.out, tuple)
                    else tensor_of(self.out, node=self)
                )
            elif name == "needs":
                values[name] = tuple(e is not None for e in self.edges)
            elif name.endswith("_spec") and name not in op.operands:
                values[name] = self.specs if op.variadic else self.specs[name]
            elif name in self.attrs:
                values[name] = self.attrs[name]
            else:
                i = op.operands.index(name)
                saved = self.args if op.variadic else (self.args[i],)
                for k, t in enumerate(saved):
                    if getattr(t, "_version", None) is not None:
                        at = k if op.variadic else i
                        self.check_saved(
                            t, self.versions[at] if self.versions else 0, f"operand {name}"
                        )
                values[name] = saved if op.variadic else saved[0]
        return values

    def pull(self, g: Any, graph: bool) -> tuple:
        if self.op.numpy_vjp is not None and not graph and self.on_host(g):
            values = self.values(g)
            values = {k: getattr(v, "_data", v) for k, v in values.items()}
            grads = self.op.numpy_vjp(**values)
            if grads is not None:
                return grads
        values = self.values(wrap(g, graph))
        if self.op.variadic and self.op.operands[0] in values:
            operands = values.pop(self.op.operands[0])
            g = values.pop("g")
            result = self.op.vjp(g, *operands, **values)
        else:
            result = self.op.vjp(**values)
        if not isinstance(result, (tuple, list)):
            result = (result,)
        return tuple(unwrap(r, graph) for r in result)


def _spec(a: Any) -> Any:
    """Shape and dtype of a Tensor operand; numbers and None as they are."""
    return Spec(a._data.shape, a.dtype) if hasattr(a, "_data") else a


class FusedNode(Node):
    """A fused op whose forward kernel ran: backward is its kernel, then (again) its body."""

    def __init__(
        self, op: Fused, args: tuple, attrs: dict, edges: tuple, out: Any, residuals: dict
    ) -> None:
        super().__init__()
        self.op = op
        self.args = args
        self.attrs = attrs
        self.edges = edges
        self.residuals = residuals
        self.versions = saved_versions(args)
        self.out = out
        self._shape = getattr(out, "shape", None)
        self._dtype = getattr(out, "dtype", None)

    out_versions: tuple[tuple[Version, int], ...] = ()

    def watch(self, outs: tuple) -> None:
        """Notice when a result that the backward launcher reads is overwritten."""
        if self.op.reads_out:
            for o in outs:
                o._version = o._version or Version()
            self.out_versions = tuple((o._version, o._version.n) for o in outs)

    def pull(self, g: Any, graph: bool) -> tuple:
        for i, t in enumerate(self.args):
            if getattr(t, "_version", None) is not None:
                self.check_saved(
                    t, self.versions[i] if self.versions else 0, f"operand {self.op.operands[i]}"
                )
        mask = tuple(e is not None for e in self.edges)
        if graph or not self.op.gives(mask):
            return self._body_gradient(wrap(g, graph), mask, graph)
        for v, n in self.out_versions:
            if v.n != n:
                self.overwritten("a result", self._shape or (), v)
        arrays = tuple(getattr(a, "_data", a) for a in self.args)
        backend: Any = backends.of(
            g if not isinstance(g, tuple) else next(x for x in g if x is not None)
        )
        if isinstance(g, tuple):
            g = tuple(
                backend.full(o, o.shape, 0, o.dtype) if x is None else x
                for x, o in zip(g, self.out)
            )
        from ..backends import triton  # its kernels may have run on CPU arrays, in interpret()

        return triton.fused_backward(self.op, g, arrays, self.attrs, self.out, self.residuals, mask)

    def _body_gradient(self, g: Any, mask: tuple, graph: bool) -> tuple:
        """The gradient of the body in plain ops, recorded when ``graph``."""
        from .engine import grad

        token = _enabled.set(True)
        try:
            aliases = [alias(a) if m else a for a, m in zip(self.args, mask)]
            out = self.op.body(*aliases, **self.attrs)
            wanted = [a for a, m in zip(aliases, mask) if m]
            outs, gs = ([out], [g])
            if isinstance(out, tuple):
                pairs = [(o, x) for o, x in zip(out, g) if x is not None and o._requires_grad]
                outs, gs = [o for o, _ in pairs], [x for _, x in pairs]
            found = iter(grad(outs, wanted, gs, create_graph=graph, allow_unused=True))
        finally:
            _enabled.reset(token)
        return tuple(unwrap(next(found), graph) if m else None for m in mask)

    def release(self) -> None:
        super().release()
        self.residuals = {}


def rule_edges(args: tuple) -> tuple:
    """Per operand: the node or leaf that its gradient goes to, or None."""
    return tuple([(a._node or a) if getattr(a, "_requires_grad", False) else None for a in args])


# ---- between arrays and Tensors; tensor.py fills these in, so that this file need not import it
tensor_of: Callable[..., Any] = None  # type: ignore[assignment]
alias: Callable[[Any], Any] = None  # type: ignore[assignment]


def wrap(g: Any, graph: bool) -> Any:
    """Arrays as Tensors for rules written in ops (already Tensors if ``graph``)."""
    if graph or g is None:
        return g
    if isinstance(g, tuple):
        return tuple(None if x is None else tensor_of(x) for x in g)
    return tensor_of(g)


def unwrap(r: Any, graph: bool) -> Any:
    return r if graph or r is None else r._data


def fit(g: Any, shape: Any, dtype: Any, graph: bool) -> Any:
    """``g`` summed to ``shape`` where broadcasting stretched it, in the dtype of its target."""
    if graph:
        from ..ops.registry import ops

        if tuple(g.shape) != shape:
            g = ops.sum_to(g, shape=shape)
        if g._data.dtype != dtype:
            g = ops.to_dtype(g, dtype=backends.of(g._data).dtype_of(_Like(dtype)))
        return g
    backend = backends.of(g)
    if g.shape != shape:
        g = backend.sum_to(g, shape)
    if g.dtype != dtype:
        g = backend.cast(g, backend.dtype_of(_Like(dtype)))
    return g


class _Like:
    """Just a dtype, in the place of an array."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype


def broadcastable(shape: Any, target: Any) -> bool:
    """Whether an array of ``target`` broadcasts to ``shape`` (so that a gradient can be summed
    back).
    """
    try:
        shapes.broadcast_strides("", tuple(target), (1,) * len(target), tuple(shape))
    except ValueError:
        return False
    return True
