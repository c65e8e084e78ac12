"""``autograd.Function``: an operation with a hand-written gradient, in Python."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..errors import AutogradError, ShapeError
from ..tape.grad_mode import _enabled, no_grad
from ..tape.node import Node, Slot, broadcastable, rule_edges, unwrap, version_of, wrap
from ..tape.storage import settle
from ..tensor import Tensor


class FunctionCtx:
    """What forward hands to backward: saved tensors and any attributes of yours."""

    def __init__(self) -> None:
        self._saved: list[tuple[Any, int]] = []
        self._outputs: tuple = ()
        self._non_differentiable: tuple = ()
        self._dirty: tuple = ()
        self._node: FunctionNode | None = None
        self._materialize = True
        self.needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors (inputs or outputs) for backward; writing to them in between is an error."""
        self._saved = [(t, version_of(t) if t is not None else 0) for t in tensors]

    @property
    def saved_tensors(self) -> tuple:
        """The tensors given to ``save_for_backward``."""
        node = self._node
        if node is not None and node.freed:
            raise AutogradError(
                f"{node.name()}: its saved tensors are freed after the first backward; call "
                "backward(retain_graph=True) the first time"
            )
        out = []
        for i, (t, version) in enumerate(self._saved):
            if t is not None and node is not None:
                node.check_saved(t, version, f"saved tensor {i}")
            out.append(t)
        return tuple(out)

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        """Say that these outputs have no gradient."""
        self._non_differentiable = outputs

    def mark_dirty(self, *inputs: Tensor) -> None:
        """Say that forward wrote to these inputs in place and returned them."""
        self._dirty = inputs

    def set_materialize_grads(self, value: bool) -> None:
        """Whether missing output gradients reach backward as zeros (the default) or None."""
        self._materialize = value


class FunctionNode(Node):
    """The node of a ``Function`` application; its rule is the user's ``backward``."""

    def __init__(self, cls: type[Function], ctx: FunctionCtx, args: tuple) -> None:
        super().__init__()
        self.cls = cls
        self.op = _Named(cls.__name__)
        self.ctx: Any = ctx
        self.edges = rule_edges(args)
        self.outputs: list = []

    def name(self) -> str:
        return f"{self.cls.__name__}Backward"

    def pull(self, g: Any, graph: bool) -> tuple:
        gs = g if isinstance(g, tuple) else (g,)
        gs = tuple(wrap(x, graph) for x in gs)
        if self.ctx._materialize:
            gs = tuple(
                template.zeros() if x is None and template is not None else x
                for x, template in zip(gs, self.outputs)
            )
        result = self.cls.backward(self.ctx, *gs)
        if not isinstance(result, tuple):
            result = (result,)
        n = len(self.edges)
        while len(result) > n and result[-1] is None:
            result = result[:-1]
        if len(result) != n:
            raise AutogradError(
                f"{self.cls.__name__}.backward: must return one gradient per input of forward, "
                f"{n}; got {len(result)}"
            )
        for i, (r, e) in enumerate(zip(result, self.edges)):
            if r is None or e is None:
                continue
            if not isinstance(r, Tensor):
                raise TypeError(
                    f"{self.cls.__name__}.backward: gradient {i} must be a Tensor or None; "
                    f"got {type(r).__name__}"
                )
            want = tuple(e._shape if isinstance(e, Node) else e._data.shape)
            if tuple(r.shape) != want and not broadcastable(r.shape, want):
                raise ShapeError(
                    f"{self.cls.__name__}.backward: gradient {i} must have the shape {want} of its "
                    f"input; got {tuple(r.shape)}"
                )
        return tuple(
            unwrap(r, graph) if e is not None else None for r, e in zip(result, self.edges)
        )

    def release(self) -> None:
        self.freed = bool(self.ctx._saved)
        self.ctx._saved = []


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


class _Template:
    """Shape, dtype and device of an output, for zeros in the place of a missing gradient."""

    def __init__(self, t: Tensor) -> None:
        self.shape, self.dtype, self.device = tuple(t.shape), t.dtype, t.device

    def zeros(self) -> Tensor:
        from ..creation import zeros

        return zeros(self.shape, dtype=self.dtype, device=self.device)


class Function:
    """An operation with its own gradient: subclass with static ``forward(ctx, *inputs)`` and
    ``backward(ctx, *grad_outputs)``, and call ``apply``.

    ``forward(*inputs)`` with a separate ``setup_context(ctx, inputs, output)`` works too.
    Operations inside ``forward`` are not recorded; those inside ``backward`` are, under
    ``create_graph``.

    >>> class Cube(trident.autograd.Function):
    ...     @staticmethod
    ...     def forward(ctx, x):
    ...         ctx.save_for_backward(x)
    ...         return x**3
    ...     @staticmethod
    ...     def backward(ctx, g):
    ...         (x,) = ctx.saved_tensors
    ...         return 3 * x**2 * g
    >>> x = trident.tensor(2.0, requires_grad=True)
    >>> Cube.apply(x).backward()
    >>> x.grad
    tensor(12.)
    """

    @staticmethod
    def forward(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("Function: define a static forward(ctx, *inputs) in your subclass")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise TypeError("Function: define a static backward(ctx, *grad_outputs) in your subclass")

    def __init__(self) -> None:
        raise TypeError(
            f"{type(self).__name__}: Functions are not instantiated; call "
            f"{type(self).__name__}.apply(...)"
        )

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run forward and record this Function as one node."""
        ctx = FunctionCtx()
        for a in args:
            if isinstance(a, Tensor) and _enabled.get():
                settle(cls.__name__, a)
        tracked = _enabled.get() and any(isinstance(a, Tensor) and a._requires_grad for a in args)
        ctx.needs_input_grad = tuple(isinstance(a, Tensor) and a._requires_grad for a in args)
        node = FunctionNode(cls, ctx, args) if tracked else None
        with no_grad():
            if "setup_context" in {k for c in cls.__mro__ for k in vars(c)}:
                result = cls.forward(*args)
                cls.setup_context(ctx, args, result)  # type: ignore[attr-defined]
            else:
                result = cls.forward(ctx, *args)
        if node is None:
            return result
        ctx._node = node
        for d in ctx._dirty:
            if d._requires_grad and d._node is None:
                raise AutogradError(
                    f"{cls.__name__}.forward: a leaf tensor that requires grad is overwritten in "
                    "place (mark_dirty); clone() it first"
                )
        several = isinstance(result, tuple)
        given = result if several else (result,)
        outs = []
        for out in given:  # what is no Tensor is handed through
            if any(out is a for a in args) and not any(out is d for d in ctx._dirty):
                out = out.detach() if isinstance(out, Tensor) else out
            outs.append(out)
        node.outputs = [_Template(o) if isinstance(o, Tensor) else None for o in outs]
        node.n_outputs = len(outs)  # type: ignore[attr-defined]
        for i, o in enumerate(outs):
            plain = any(given[i] is n for n in ctx._non_differentiable)
            if plain or not isinstance(o, Tensor) or not o.is_floating_point():
                continue
            o._node = Slot(node, i, o._data)
            o._requires_grad = True
            if o._version is not None:
                o._seen = o._version.n
        # an output that was saved must be read with its history: saved and returned are one object
        return tuple(outs) if several else outs[0]


def once_differentiable(backward: Callable) -> Callable:
    """Decorate ``backward``: its result cannot be differentiated again (an attempt raises)."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        recorded = _enabled.get() and any(isinstance(g, Tensor) and g._requires_grad for g in grads)
        with no_grad():
            result = backward(ctx, *grads)
        if not recorded:
            return result
        items = result if isinstance(result, tuple) else (result,)
        blocked = tuple(
            _Blocked.apply(r.detach().requires_grad_()) if isinstance(r, Tensor) else r
            for r in items
        )
        return blocked if isinstance(result, tuple) else blocked[0]

    return wrapped


class _Blocked(Function):
    """Passes values on; differentiating through it is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise AutogradError(
            "once_differentiable: this gradient was computed outside of the tape and cannot be "
            "differentiated again; write backward in trident ops and drop the decorator"
        )
