"""The tape walker.

Nodes are visited by descending sequence number: a node's consumers were all recorded after it, so
when it is the highest one left, its gradient is complete. One heap, no recursion: depth does not
matter. Un-broadcasting and casts to the operand's dtype are done here, once for all rules. Without
``create_graph`` the walk runs on bare arrays; with it, on recorded Tensors.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import backends, shapes
from ..backends.numpy import quiet_reset, quiet_set
from ..errors import AutogradError, DeviceError, ShapeError
from . import anomaly, node
from .grad_mode import _enabled
from .node import ElementwiseNode, Node, Slot, fit
from .storage import settle

_FREED = (
    "backward: the graph was walked before and its saved tensors are freed; call "
    "backward(retain_graph=True) (or grad(..., retain_graph=True)) the first time"
)


def walk(
    roots: Sequence[tuple[Any, Any]], graph: bool, keep: bool, wanted: Sequence[Any] | None = None
) -> dict[int, Any]:
    """Send gradients from ``roots`` (edge, gradient) down to the leaves.

    Returns id(leaf or wanted node) -> gradient. With ``wanted`` only paths that lead there are
    walked.
    """
    reach = _reaching(roots, wanted) if wanted is not None else None
    stops = {id(w) for w in wanted} if wanted is not None else set()
    heap: list[tuple[int, Node]] = []
    pending: dict[int, Any] = {}
    leaves: dict[int, Any] = {}
    result: dict[int, Any] = {}
    grad_token, quiet_token = _enabled.set(graph), quiet_set()
    push, pop = heapq.heappush, heapq.heappop
    watch = anomaly._mode.get()
    try:
        for edge, g in roots:
            _deposit(edge, g, heap, pending, leaves, graph)
        while heap:
            current = pop(heap)[1]
            g = pending.pop(current.seq)
            if current.prehooks is not None or current.retain is not None:
                g = _before(current, g, graph)
            if reach is not None:
                if id(current) in stops:
                    result[id(current)] = g
                if id(current) not in reach:
                    continue
            if current.__class__ is Slot:
                parent: Any = current.parent  # type: ignore[attr-defined]
                if parent.seq not in pending:
                    pending[parent.seq] = [None] * parent.n_outputs
                    push(heap, (-parent.seq, parent))
                slots, i = pending[parent.seq], current.index  # type: ignore[attr-defined]
                slots[i] = g if slots[i] is None else _sum(slots[i], g, graph)
                continue
            if g.__class__ is list:
                g = tuple(g)
            if current.freed:
                raise AutogradError(_FREED)
            try:
                grads = current.pull(g, graph)
            except Exception as error:
                if current.line:
                    error.add_note(f"forward call of {current.name()}:\n{current.line}")
                raise
            if current.hooks is not None:
                grads = _after(current, grads, g, graph)
            if watch:
                _check_nan(current, grads, graph)
            edges = current.edges
            edge = gi = None
            if not keep:
                current.release()
            for edge, gi in zip(edges, grads):
                if edge is None or gi is None:
                    continue
                if edge.__class__ is ElementwiseNode or isinstance(edge, Node):
                    if reach is not None and id(edge) not in reach and id(edge) not in stops:
                        continue
                    if (
                        gi.shape != edge._shape or graph or gi.dtype is not edge._dtype
                    ) and edge._shape is not None:
                        gi = fit(gi, edge._shape, edge._dtype, graph)
                    seq = edge.seq
                    if seq in pending:
                        pending[seq] = _sum(pending[seq], gi, graph)
                    else:
                        pending[seq] = gi
                        push(heap, (-seq, edge))
                    continue
                data = edge._data
                if gi.shape != data.shape or graph or gi.dtype is not data.dtype:
                    gi = fit(gi, data.shape, data.dtype, graph)
                leaf = leaves.get(id(edge))
                if leaf is None:
                    leaves[id(edge)] = [edge, gi]
                else:
                    leaf[1] = _sum(leaf[1], gi, graph)
            # drop the references of this step, so that memory is freed as the walk goes
            del grads, g, edges, edge, gi
    finally:
        quiet_reset(quiet_token)
        _enabled.reset(grad_token)
    while leaves:
        key, entry = leaves.popitem()
        leaf, g = entry
        del entry  # so that _owned can see whether anyone else holds g
        if leaf._hooks:
            g = _run_hooks(leaf._hooks, g, graph)
        if wanted is None:
            owned = g if graph else _owned(g, sys.getrefcount(g), leaf._data)
            _accumulate(leaf, owned, graph)
            del owned
        elif key in stops:
            result[key] = g
    return result


def _deposit(edge: Any, g: Any, heap: list, pending: dict, leaves: dict, graph: bool) -> None:
    if isinstance(edge, Node):
        if edge.seq in pending:
            pending[edge.seq] = _sum(pending[edge.seq], g, graph)
        else:
            pending[edge.seq] = g
            heapq.heappush(heap, (-edge.seq, edge))
    elif id(edge) in leaves:
        leaves[id(edge)][1] = _sum(leaves[id(edge)][1], g, graph)
    else:
        leaves[id(edge)] = [edge, g]


def _sum(a: Any, b: Any, graph: bool) -> Any:
    if graph:
        return a + b
    if a.__class__ is np.ndarray:
        total = a + b
        return total if total.__class__ is np.ndarray else np.asarray(total)
    return backends.of(a).add(a, b)


def _reaching(roots: Sequence[tuple[Any, Any]], wanted: Sequence[Any]) -> set[int]:
    """ids of the nodes from which a wanted leaf or node can be reached (iterative post-order)."""
    goal = {id(w) for w in wanted}
    state: dict[int, bool] = {}
    for root, _ in roots:
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            at, done = stack.pop()
            key = id(at)
            if not isinstance(at, Node):
                state[key] = key in goal
            elif done:
                state[key] = any(
                    state.get(id(e), False) or id(e) in goal for e in at.edges if e is not None
                )
            elif key not in state:
                state[key] = False
                stack.append((at, True))
                stack.extend((e, False) for e in at.edges if e is not None and id(e) not in state)
    return {key for key, yes in state.items() if yes}


def _before(current: Node, g: Any, graph: bool) -> Any:
    if current.prehooks:
        g = _run_hooks(current.prehooks, g, graph)
    tensor = current.retain() if current.retain else None
    if tensor is not None:
        if tensor.grad is not None:
            g_all = _sum(tensor.grad, g, True) if graph else _sum(tensor.grad._data, g, False)
        else:
            g_all = g if graph else backends.of(g).copy(g)
        tensor.grad = g_all if graph else node.tensor_of(g_all)
    return g


def _run_hooks(hooks: list[Callable], g: Any, graph: bool) -> Any:
    for hook in list(hooks):
        t = node.wrap(g, graph)
        new = hook(t)
        if new is not None:
            if tuple(new.shape) != tuple(t.shape):
                raise ShapeError(
                    f"hook: a gradient hook must return shape {tuple(t.shape)}; "
                    f"got {tuple(new.shape)}"
                )
            g = node.unwrap(new, graph)
    return g


def _after(current: Node, grads: tuple, g: Any, graph: bool) -> tuple:
    for hook in list(current.hooks or ()):
        outputs = node.wrap(g, graph)
        new = hook(
            tuple(node.wrap(x, graph) for x in grads),
            outputs if isinstance(outputs, tuple) else (outputs,),
        )
        if new is not None:
            grads = tuple(
                node.unwrap(x, graph) for x in (new if isinstance(new, tuple) else (new,))
            )
    return grads


def _check_nan(current: Node, grads: tuple, graph: bool) -> None:
    if not anomaly.checks_nan():
        return
    for i, x in enumerate(grads):
        if x is None:
            continue
        data = x._data if graph else x
        host = backends.of(data).to_host(data)
        if host.dtype.kind == "f" and np.isnan(host).any():
            raise AutogradError(
                f"backward of {current.op.name if current.op else current.name()}: the gradient of "
                f"operand {i} holds NaN. "
                f"Forward call:\n{current.line or '  (made before anomaly mode was on)'}"
            )


def _accumulate(leaf: Any, g: Any, graph: bool) -> None:
    if leaf.grad is None:
        leaf.grad = g if graph else node.tensor_of(g)
    elif graph:
        leaf.grad = leaf.grad + g
    else:
        data = leaf.grad._data
        if data.__class__ is np.ndarray:
            data += g
        else:
            backend = backends.of(data)
            backend.assign(data, backend.add(data, g))
        if leaf.grad._version is None:  # a graph may have saved this gradient
            leaf.grad._version = node.Version()
        leaf.grad._version.bump("gradient accumulation")
        leaf.grad._seen = leaf.grad._version.n
    for hook in leaf._accumulate_hooks or ():
        hook(leaf)


def _owned(g: Any, references: int, like: Any) -> Any:
    """A gradient array that nothing else refers to, laid out like ``like``: rules may hand the same
    array to two operands, and optimizers walk a parameter and its gradient side by side.

    ``references`` is ``sys.getrefcount`` in the caller, which counts its variable, the argument
    here and its own argument.
    """
    if like.shape != g.shape:
        like = g
    if references <= 3:
        if g.__class__ is np.ndarray:
            fits = g.flags.c_contiguous and like.flags.c_contiguous
            if g.base is None and (fits or g.strides == like.strides):
                return g
        elif sys.getrefcount(g.buffer) <= 2:
            fits = g.is_contiguous() and like.is_contiguous()
            if fits or (g.strides == like.strides and shapes.is_dense(g.shape, g.strides)):
                return g
    return backends.of(g).copied_like(g, like)


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Add the gradient of the sum of ``tensors`` (weighted by ``grad_tensors``) to the leaves'
    ``grad``.

    >>> x = trident.tensor([1.0, 2.0], requires_grad=True)
    >>> trident.autograd.backward((x * x).sum())
    >>> x.grad
    tensor([2., 4.])
    """
    outputs = _sequence(tensors)
    roots = _roots("backward", outputs, _sequence(grad_tensors, len(outputs)), create_graph)
    keep = create_graph if retain_graph is None else retain_graph
    if inputs is None:
        walk(roots, create_graph, keep)
        return
    targets = _sequence(inputs)
    found = walk(roots, create_graph, keep, [t._node or t for t in targets])
    for t in targets:
        g = found.get(id(t._node or t))
        if g is not None:
            _accumulate(t, g if create_graph else _owned(g, 9, t._data), create_graph)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    materialize_grads: bool = False,
) -> tuple:
    """Gradients of ``outputs`` with respect to ``inputs``, returned and not accumulated.

    Raises AutogradError where an input does not require grad or is not part of the graph (unless
    ``allow_unused``: then its gradient is None, or zeros with ``materialize_grads``).

    >>> x = trident.tensor(3.0, requires_grad=True)
    >>> trident.autograd.grad(x**3, x)
    (tensor(27.),)
    """
    outs, targets = _sequence(outputs), _sequence(inputs)
    for i, t in enumerate(targets):
        if not t.requires_grad:
            raise AutogradError(
                f"grad: inputs[{i}], shape {tuple(t.shape)}, does not require grad; make it with "
                "requires_grad=True or call requires_grad_() before the forward pass"
            )
    roots = _roots("grad", outs, _sequence(grad_outputs, len(outs)), create_graph)
    keep = create_graph if retain_graph is None else retain_graph
    found = walk(roots, create_graph, keep, [t._node or t for t in targets])
    grads = []
    for i, t in enumerate(targets):
        g = found.get(id(t._node or t))
        if g is None:
            if materialize_grads:
                data = t._data
                g = node.tensor_of(
                    backends.of(data).full(data, data.shape, 0, backends.of(data).dtype_of(data))
                )
                grads.append(g)
                continue
            if not allow_unused:
                raise AutogradError(
                    f"grad: inputs[{i}], shape {tuple(t.shape)}, was not used to compute the "
                    "outputs; pass allow_unused=True to get None for it"
                )
            grads.append(None)
            continue
        # one reference more than _owned counts: the dict's
        data = t._data
        owned = g if create_graph else node.tensor_of(_owned(g, sys.getrefcount(g) - 1, data))
        grads.append(owned)
    return tuple(grads)


def _sequence(value: Any, n: int | None = None) -> list:
    if value is None:
        return [None] * (n or 0)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _roots(name: str, outputs: list, gradients: list, graph: bool) -> list[tuple[Any, Any]]:
    if len(outputs) != len(gradients):
        raise AutogradError(
            f"{name}: {len(outputs)} tensors need {len(outputs)} gradients; got {len(gradients)}"
        )
    roots = []
    for t, g in zip(outputs, gradients):
        settle(name, t)
        if not t.requires_grad:
            raise AutogradError(
                f"{name}: the tensor, shape {tuple(t.shape)}, does not require grad and has no "
                "grad_fn; set requires_grad=True on an input and do not compute under no_grad()"
            )
        data = t._data
        backend = backends.of(data)
        if g is None:
            if data.size != 1:
                raise AutogradError(
                    f"{name}: a gradient is implied only for a tensor of one element; this one has "
                    f"shape {tuple(t.shape)}. Reduce it (.sum()) or pass a gradient of that shape"
                )
            g = node.tensor_of(backend.full(data, data.shape, 1, backend.dtype_of(data)))
        elif not hasattr(g, "_data"):
            raise TypeError(f"{name}: a gradient must be a Tensor; got {type(g).__name__}")
        elif backends.of(g._data) is not backend:
            raise DeviceError(
                f"{name}: the gradient is on {g.device}, its tensor on {t.device}; move it with "
                f".to({str(t.device)!r})"
            )
        elif tuple(g.shape) != tuple(t.shape):
            raise ShapeError(
                f"{name}: the gradient must have the tensor's shape {tuple(t.shape)}; "
                f"got {tuple(g.shape)}"
            )
        elif g._data.dtype != data.dtype:
            g = g.to(t.dtype)
        roots.append((t._node or t, g if graph else g._data))
    return roots
