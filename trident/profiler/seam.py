"""Where ops pass by: the functions that a profile stands in front of while it is open.

Nothing in the hot paths asks whether a profile is open. While at least one is, in any thread, the
functions listed in ``points`` are replaced by ones that record; when the last one closes, the very
objects that were there are put back. So without a profile there is nothing to pay.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .. import dispatch
from ..backends import numpy as numpy_backend
from ..backends import triton as triton_backend
from ..compile.fuse import FusedFunction
from ..compile.node import FuseNode
from ..ops import operators, registry
from ..optim.optimizer import Optimizer
from ..runtime import cuda_device  # noqa: F401 - so that its seams are there
from ..runtime.device import Device
from ..runtime.plan import ElementwisePlan, Plan
from ..tape import engine
from ..tape.node import Node
from ..tensor import Tensor
from . import costs, device_seam
from .clock import zeros
from .session import current, recorded, recording
from .sizes import arrays, moved, touched

Point = tuple[Any, str, Callable[[Callable], Callable]]
"""An owner, the name of its function, and what makes a recording one of it."""


def points() -> Iterator[Point]:
    """Every seam: ops, operators, writes in place, gradients, launches, copies, steps."""
    yield Tensor, "_apply", _apply
    for dunder, name in operators.BINARY.items():
        yield Tensor, dunder, functools.partial(_operator, registry.REGISTRY[name])
    yield dispatch, "update", _update
    for cls in _tree(FusedFunction):
        if "_run" in vars(cls):
            yield cls, "_run", _fused_function
    for module in (numpy_backend, triton_backend):
        yield module, "assign", _assign
    yield triton_backend, "add", _sum_of_arrays
    yield Tensor, "copy_", functools.partial(_written, "copy_")
    yield Tensor, "__setitem__", functools.partial(_written, "setitem")
    yield Tensor, "_overwrite", _overwritten
    for cls in _tree(Node):
        if "pull" in vars(cls) and cls is not Node:
            yield cls, "pull", _pull
    yield engine, "walk", _walk
    yield engine, "_sum", functools.partial(_gradient, "AddGradients")
    yield engine, "fit", functools.partial(_gradient, "FitGradient")
    yield engine, "_owned", functools.partial(_gradient, "CopyGradient")
    yield engine, "_accumulate", _accumulate
    for cls in _tree(Device):
        for name, make in (
            ("launch", device_seam.launch),
            ("copy_in", functools.partial(device_seam.copy, "copy to device", 1)),
            ("to_host", functools.partial(device_seam.copy, "copy to host", 0)),
            ("read_into", functools.partial(device_seam.copy, "copy to host", 1)),
            ("from_device", functools.partial(device_seam.copy, "copy between devices", 0)),
        ):
            if name in vars(cls) and cls is not Device:
                yield cls, name, make
    for cls, names in ((Plan, ("run", "one")), (ElementwisePlan, ("one", "two", "several"))):
        for name in names:
            yield cls, name, device_seam.plan
    for cls in _tree(Optimizer):
        if "step" in vars(cls):
            yield cls, "step", _step


def _tree(cls: type) -> list[type]:
    """A class and all that derive from it."""
    found, queue = [], [cls]
    while queue:
        c = queue.pop()
        if c not in found:
            found.append(c)
            queue += c.__subclasses__()
    return found


_lock = threading.Lock()
_open = 0
_replaced: list[tuple[Any, str, Any]] = []
_create: list[Callable] = []


def install() -> None:
    """Stand in front of the seams; counted, so that profiles may overlap."""
    global _open
    with _lock:
        _open += 1
        if _open > 1:
            return
        zeros.clear()
        for holder, name, make in list(points()):
            original = vars(holder)[name]
            recorder = functools.wraps(original)(make(original))
            _replaced.append((holder, name, original))
            setattr(holder, name, recorder)
        _create[:] = registry._CREATE
        registry._CREATE[:] = [_creation(_create[0])]


def remove() -> None:
    """Put everything back when the last profile closes."""
    global _open
    with _lock:
        _open -= 1
        if _open:
            return
        while _replaced:
            setattr(*_replaced.pop())
        registry._CREATE[:] = _create


# ---- ops -----------------------------------------------------------------------------------------


def _apply(original: Callable) -> Callable:
    def apply(self: Tensor, op: Any, args: tuple, attrs: dict[str, Any]) -> Any:
        if not recording():
            return original(self, op, args, attrs)
        outer = current.get()
        if outer is not None and outer.pending is op:  # an operator has begun the event
            outer.pending = None
            return original(self, op, args, attrs)
        return recorded(
            original, (self, op, args, attrs), op.name, "op", operands=args, names=op.operands,
            cost=lambda result: costs.of_op(op, args, attrs, result),
        )  # fmt: skip

    return apply


def _creation(original: Callable) -> Callable:
    def create(op: Any, args: tuple, attrs: dict[str, Any]) -> Any:
        if not recording():
            return original(op, args, attrs)
        return recorded(
            original, (op, args, attrs), op.name, "op",
            cost=lambda result: costs.of_op(op, args, attrs, result),
        )  # fmt: skip

    return create


def _operator(op: Any, original: Callable) -> Callable:
    attrs = op.defaults

    def method(self: Tensor, other: Any) -> Any:
        if not recording():
            return original(self, other)
        args = (self, other)
        return recorded(
            original, args, op.name, "op", operands=args, names=op.operands, pending=op,
            cost=lambda result: costs.of_op(op, args, attrs, result),
            nothing=lambda result: result is NotImplemented,
        )  # fmt: skip

    return method


def _fused_function(original: Callable) -> Callable:
    def run(
        self: FusedFunction, capture: Any, tensors: list, arguments: dict, names: list, sizes: dict
    ) -> Any:
        args = (self, capture, tensors, arguments, names, sizes)
        if not recording():
            return original(*args)

        def cost(result: Any) -> costs.Cost:
            assert self.last is not None
            return costs.of_program(self.last[0].forward, sizes)

        return recorded(
            original, args, self.__name__, "op", operands=tensors, names=names, cost=cost
        )

    return run


# ---- writes --------------------------------------------------------------------------------------


def _update(original: Callable) -> Callable:
    def update(name: str, target: Tensor, op_function: Any, args: tuple, kwargs: dict) -> Tensor:
        given = (name, target, op_function, args, kwargs)
        if not recording():
            return original(*given)
        operands = (target, *args)
        return recorded(
            original, given, name, "op", operands=operands,
            cost=lambda result: (moved(operands) + touched(target._data), target._data.size),
        )  # fmt: skip

    return update


def _assign(original: Callable) -> Callable:
    def assign(target: Any, value: Any) -> None:
        if not recording():
            return original(target, value)
        return recorded(
            original, (target, value), "assign", "op", operands=(target, value),
            cost=lambda result: (moved((value,)) + touched(target), 0),
        )  # fmt: skip

    return assign


def _sum_of_arrays(original: Callable) -> Callable:
    """How gradients are added on a device; on the CPU numpy does it, inside of the event."""

    def add(a: Any, b: Any) -> Any:
        if not recording():
            return original(a, b)
        return recorded(
            original, (a, b), "add", "op", operands=(a, b),
            cost=lambda result: (moved((a, b), result), result.size),
        )  # fmt: skip

    return add


def _written(name: str, original: Callable) -> Callable:
    def write(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not recording():
            return original(self, *args, **kwargs)
        return recorded(original, (self, *args), name, "op", kwargs, operands=(self,))

    return write


def _overwritten(original: Callable) -> Callable:
    def overwrite(self: Tensor, name: str, value: Any) -> Tensor:
        if not recording():
            return original(self, name, value)
        return recorded(original, (self, name, value), name, "op", operands=(self,))

    return overwrite


# ---- gradients -----------------------------------------------------------------------------------


def _pull(original: Callable) -> Callable:
    def pull(self: Node, g: Any, graph: bool) -> tuple:
        if not recording():
            return original(self, g, graph)

        def cost(grads: tuple) -> costs.Cost:
            if isinstance(self, FuseNode) and self.plan.backward is not None:
                return costs.of_program(self.plan.backward, self.sizes)
            return costs.of_node(self, g, grads)

        return recorded(
            original, (self, g, graph), self.name(), "node", phase="backward", operands=(g,),
            cost=cost,
        )  # fmt: skip

    return pull


def _walk(original: Callable) -> Callable:
    def walk(*args: Any, **kwargs: Any) -> Any:
        if not recording():
            return original(*args, **kwargs)
        return recorded(original, args, "backward", "range", kwargs, phase="backward")

    return walk


def _gradient(name: str, original: Callable) -> Callable:
    """Work of the walker itself, which is no op: sums of gradients, un-broadcasting, copies."""

    def work(g: Any, other: Any, *rest: Any) -> Any:
        if not recording():
            return original(g, other, *rest)
        reads = (g, other) if name == "AddGradients" else (g,)
        n = 0 if name == "CopyGradient" else max(a.size for a in arrays(reads))
        return recorded(
            original, (g, other, *rest), name, "node", phase="backward", operands=reads,
            cost=lambda result: (moved(reads, result), n),
            nothing=lambda result: result is g,
        )  # fmt: skip

    return work


def _accumulate(original: Callable) -> Callable:
    def accumulate(leaf: Any, g: Any, graph: bool) -> None:
        if not recording():
            return original(leaf, g, graph)
        adds = leaf.grad is not None

        def cost(result: None) -> costs.Cost:
            if not adds:
                return 0, 0
            return moved((g, leaf.grad)) + touched(leaf.grad._data), leaf._data.size

        return recorded(
            original, (leaf, g, graph), "AccumulateGrad", "node", phase="backward", operands=(g,),
            cost=cost,
        )  # fmt: skip

    return accumulate


def _step(original: Callable) -> Callable:
    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if not recording():
            return original(self, *args, **kwargs)
        name = f"{type(self).__name__}.step"
        return recorded(original, (self, *args), name, "range", kwargs, phase="optimizer")

    return step


__all__ = ["install", "points", "remove"]
