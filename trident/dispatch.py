"""Applying an op to Tensors: the one seam between ops, backends and tape.

``Tensor._apply`` lands here. Every eager operation passes through exactly one of these functions,
so they are kept flat: collect arrays, run the backend, wrap, record.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import config, dtypes
from .backends import numpy as cpu
from .backends import of as backend_of
from .errors import AutogradError, DeviceError, TridentError
from .ops import operators, registry
from .ops.registry import Elementwise, Fused, Op, Spec
from .runtime import DeviceArray
from .symbol import ShapeSymbol
from .tape.grad_mode import _enabled, enable_grad, is_grad_enabled, no_grad
from .tape.node import (
    ElementwiseNode,
    FusedNode,
    Node,
    RuleNode,
    Slot,
    Version,
    find_rule,
    rule_edges,
)
from .tape.storage import keep_before, overlaps, rebase, settle
from .tensor import Tensor, install_methods

_ndarray = np.ndarray
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_quiet_set, _quiet_reset = cpu.quiet_set, cpu.quiet_reset
_BIG = cpu.BIG
_new = Tensor.__new__


def apply(self: Tensor, op: Op, args: tuple, attrs: dict[str, Any]) -> Any:
    """Run ``op`` on Tensors and numbers, and record it if anything requires grad."""
    return _HANDLERS[op.__class__](op, args, attrs)


def _elementwise(op: Elementwise, args: tuple, attrs: dict[str, Any]) -> Any:
    n = len(args)
    if n == 2:
        return binary(op, args[0], args[1], attrs)
    if n == 1 and isinstance(args[0], Tensor):
        x = args[0]
        a = x._data
        if a.__class__ is DeviceArray:
            plan = op.plans.get((a.layout, *attrs.values()) if attrs else a.layout)
            if plan is None:
                return _general(op, args, attrs)
            data = plan.one(a.ptr)
            rules = op.device_rules
        elif ((d := a.dtype) is _F32 or d is _F64) and op.fast:
            token = _quiet_set()
            try:
                data = op.numpy(a, **attrs) if a.size < _BIG else cpu.blocked(op, (a,), attrs)
            finally:
                _quiet_reset(token)
            if data.__class__ is not _ndarray:
                data = np.asarray(data)
            rules = op.rules
        else:
            return _general(op, args, attrs)
        out = _new(Tensor)
        out._data = data
        if x._base is not None:
            _late(x)
        if x._requires_grad and op.vjp is not None and _enabled.get():
            node = _record(op, args, (a,), attrs, (x._node or x,), out)
            if not attrs:
                node.rule = rules[0] or first_rule(op, 0, node, rules, data)
        return out
    return _general(op, args, attrs)


def binary(op: Elementwise, x: Any, y: Any, attrs: dict[str, Any]) -> Any:
    """An elementwise op of two operands: the path that most eager operations take, so it is
    flat.
    """
    if isinstance(x, Tensor):
        a = x._data
        d = a.dtype
        if isinstance(y, Tensor):
            b = y._data
            if b.dtype is not d:
                return _general(op, (x, y), attrs)
        elif y.__class__ is float or y.__class__ is int:
            b = y
        else:
            return _general(op, (x, y), attrs)
    elif isinstance(y, Tensor) and (x.__class__ is float or x.__class__ is int):
        a = x
        b = y._data
        d = b.dtype
    else:
        return _general(op, (x, y), attrs)
    if (d is _F32 or d is _F64) and op.fast:  # a DeviceArray's dtype is neither
        token = _quiet_set()
        try:
            if a.__class__ is _ndarray and a.size >= _BIG:
                data = cpu.blocked(op, (a, b), attrs)
            else:
                data = op.numpy(a, b, **attrs)
        except ValueError:
            cpu.broadcast_error(op, (a, b))
            raise
        finally:
            _quiet_reset(token)
        if data.__class__ is not _ndarray:
            data = np.asarray(data)
        rules = op.rules
    else:
        data = _planned(op, a, b, attrs)
        if data is None:
            return _general(op, (x, y), attrs)
        rules = op.device_rules
    out = _new(Tensor)
    out._data = data
    if a is not x and x._base is not None:
        _late(x)
    if b is not y and y._base is not None:
        _late(y)
    p = (x._node or x) if a is not x and x._requires_grad else None
    q = (y._node or y) if b is not y and y._requires_grad else None
    if (p is not None or q is not None) and op.vjp is not None and _enabled.get():
        node = _record(op, (x, y), (a, b), attrs, (p, q), out)
        if not attrs:
            which = 1 if q is None else 2 if p is None else 3
            node.rule = rules[which] or first_rule(op, which, node, rules, data)
    return out


def _planned(op: Elementwise, a: Any, b: Any, attrs: dict[str, Any]) -> Any:
    """The result of a binary op by its launch plan; None where there is none."""
    if a.__class__ is DeviceArray:
        if b.__class__ is DeviceArray:
            key = (a.layout, b.layout, *attrs.values()) if attrs else (a.layout, b.layout)
            plan = op.plans.get(key)
            return plan and plan.two(a.ptr, b.ptr)
        if b.__class__ is not _ndarray:
            plan = op.plans.get((a.layout, float, *attrs.values()))
            return plan and plan.two(a.ptr, float(b))
    elif b.__class__ is DeviceArray and a.__class__ is not _ndarray:
        plan = op.plans.get((float, b.layout, *attrs.values()))
        return plan and plan.two(float(a), b.ptr)
    return None


def first_rule(op: Elementwise, which: int, node: ElementwiseNode, rules: list, data: Any) -> Any:
    """Trace a rule and keep it in the short table ``rules`` of the op and the backend of ``data``
    (0: unary; 1, 2, 3: which gradients)."""
    rule = rules[which] = find_rule(op, node.edges, {}, backend_of(data))
    return rule


def _record(
    op: Elementwise, args: tuple, arrays: tuple, attrs: dict, edges: tuple, out: Tensor
) -> ElementwiseNode:
    """Put an elementwise operation on the tape."""
    for t in args:
        if isinstance(t, Tensor) and t._version is not None:
            _check_history(op, args)
            break
    data = out._data
    node = ElementwiseNode(op, args, arrays, attrs, edges, data)
    if op.saves_out:
        version = out._version = Version()
        node.save_out(data, version)
    out._node = node
    out._requires_grad = True
    return node


def _general(op: Elementwise, args: tuple, attrs: dict[str, Any]) -> Any:
    """Any operands: promotion, half types, numbers, devices, symbols."""
    arrays = [_operand(op, a) for a in args]
    for a in arrays:
        if hasattr(a, "_apply"):
            return a._apply(op, args, attrs)
    arrays = same_device(op, arrays)
    device_array = next((a for a in arrays if a.__class__ is DeviceArray), None)
    backend = cpu if device_array is None else backend_of(device_array)
    out = _wrap(backend.elementwise(op, tuple(arrays), attrs))
    if op.vjp is not None and _enabled.get():
        _check_history(op, args)
        edges = rule_edges(args)
        if edges.count(None) != len(edges):
            _record(op, args, tuple(arrays), attrs, edges, out)
    return out


def _operand(op: Op, a: Any) -> Any:
    """The array of a Tensor; numbers and arrays as they are; anything else is an error."""
    if isinstance(a, Tensor):
        return a._data
    if isinstance(a, np.generic):  # before float: np.float64 is one, with a dtype
        return a.item()
    if a is None or isinstance(a, (bool, int, float, _ndarray)) or hasattr(a, "_apply"):
        return a
    raise TypeError(
        f"{op.name}: expected Tensors or numbers; got {type(a).__name__}. "
        "Make a Tensor with trident.tensor(...)"
    )


def same_device(op: Op, arrays: list) -> list:
    """Move 0-d CPU operands to the device of the others; other mixtures are an error."""
    device = None
    mixed = False
    for a in arrays:
        if a.__class__ is DeviceArray:
            if device is not None and a.device is not device:
                raise DeviceError(
                    f"{op.name}: tensors must be on one device; got {device} and {a.device}. "
                    f"Move one with .to('{device}')"
                )
            device = a.device
        elif isinstance(a, _ndarray):
            mixed = True
    if device is None or not mixed:
        return arrays
    moved = []
    for a in arrays:
        if isinstance(a, _ndarray):
            if a.ndim:
                raise DeviceError(
                    f"{op.name}: tensors must be on one device; got cpu (shape {a.shape}) and "
                    f"{device}. Move one with .to('cpu') or .to('cuda')"
                )
            a = device.from_host(a)
        moved.append(a)
    return moved


def _check_history(op: Op, args: tuple) -> None:
    """Bring operands that were written through another tensor on their memory up to date."""
    for a in args:
        v = getattr(a, "_version", None)
        if v is not None and v.taped > a._seen and _enabled.get():
            settle(op.name, a)


def _late(x: Tensor) -> None:
    """A view may owe a history to a write through its base that it has not seen yet."""
    v = x._version
    if v is not None and v.taped > x._seen and _enabled.get():
        settle("operand", x)


def _finish(op: Op, args: tuple, attrs: dict[str, Any], data: Any) -> Any:
    """Wrap the result of a primitive and record it."""
    if data.__class__ is tuple:
        return _finish_several(op, args, attrs, data)
    out = _new(Tensor)
    out._data = data
    if op.vjp is not None:
        for a in args:
            if isinstance(a, Tensor) and (a._requires_grad or a._base is not None):
                if _enabled.get():
                    _check_history(op, args)
                    if not a._requires_grad:
                        continue
                    node = RuleNode(op, args, attrs, rule_edges(args), data)
                    _save_outputs(op, node, data, (out,))
                    out._node = node
                    out._requires_grad = True
                break
    return out


def _finish_several(op: Op, args: tuple, attrs: dict[str, Any], data: tuple) -> tuple:
    """As ``_finish``, for an op with several outputs: each floating one gets a slot."""
    outs = tuple(_wrap(d) for d in data)
    _check_history(op, args)
    edges = rule_edges(args)
    if op.vjp is not None and edges.count(None) != len(edges) and _enabled.get():
        node = RuleNode(op, args, attrs, edges, data)
        node.n_outputs = len(outs)
        _save_outputs(op, node, data, outs)
        wanted = op.grad_outputs  # type: ignore[attr-defined]
        for i, o in enumerate(outs):
            if o.is_floating_point() and (wanted is None or i in wanted):
                o._node = Slot(node, i, data[i])
                o._requires_grad = True
    return outs


def _save_outputs(op: Op, node: RuleNode, data: Any, outs: tuple) -> None:
    if op.saves_out:
        for o in outs:
            o._version = Version()
        node.save_out(data, tuple(o._version for o in outs))


def _wrap(data: Any) -> Tensor:
    out = _new(Tensor)
    out._data = data
    return out


def _primitive(op: Any, args: tuple, attrs: dict[str, Any]) -> Any:
    arrays = []
    on_host = on_device = True
    for a in args:
        if isinstance(a, Tensor):
            a = a._data
            if a.__class__ is _ndarray:
                on_device = False
            else:
                on_host = False
        elif a is not None:
            a = _operand(op, a)
            if hasattr(a, "_apply"):
                return a._apply(op, args, attrs)
        arrays.append(a)
    if on_host:
        return _finish(op, args, attrs, cpu.primitive(op, arrays, attrs))
    if not on_device:
        arrays = same_device(op, arrays)
    return _finish(op, args, attrs, _device_backend().primitive(op, arrays, attrs))


@functools.cache
def _device_backend() -> Any:
    from .backends import triton

    return triton


def _view(op: Any, args: tuple, attrs: dict[str, Any]) -> Tensor:
    x = args[0]
    source = x._data
    try:
        data = op.view(source, **attrs)
    except (ValueError, TypeError, IndexError) as error:
        if isinstance(error, TridentError):
            raise
        op.infer(Spec(source.shape, x.dtype), **attrs)
        raise
    out: Tensor = _finish(op, args, attrs, data)
    if not op.may_copy or shares(source, data):
        if x._version is None:
            x._version = Version()
            x._seen = 0
        out._version = x._version
        out._seen = x._version.n
        out._base = x if x._base is None else x._base
    return out


def shares(a: Any, b: Any) -> bool:
    """Whether two arrays of one device lie on the same memory."""
    if a.__class__ is DeviceArray:
        return a.buffer is b.buffer
    return b.base is not None and np.may_share_memory(a, b)


def _fused(op: Fused, args: tuple, attrs: dict[str, Any]) -> Any:
    if op.check is not None:
        op.check(*args, **attrs)
    on_device = any(isinstance(a, Tensor) and a._data.__class__ is DeviceArray for a in args)
    _check_history(op, args)
    tracked = _enabled.get() and any(isinstance(a, Tensor) and a._requires_grad for a in args)
    launched = op.backward is not None if tracked else op.forward is not None
    if not launched or (not on_device and config.interpreting.get() is None):
        return op.body(*args, **attrs)
    arrays = tuple(same_device(op, [_operand(op, a) for a in args]))
    if op.forward is None:  # the body forward, its own kernel backward
        with no_grad():
            result = op.body(*args, **attrs)
        residuals: dict = {}
        data = tuple(r._data for r in result) if isinstance(result, tuple) else result._data
    else:
        from .backends import triton as backend  # in interpret() kernels run on CPU arrays too

        spec = fused_spec(op, arrays, attrs)
        data, residuals = backend.fused_forward(op, arrays, attrs, spec)
    several = isinstance(data, tuple)
    outs = tuple(_wrap(d) for d in data) if several else (_wrap(data),)
    if tracked:
        node = FusedNode(op, args, attrs, rule_edges(args), data, residuals)
        node.n_outputs = len(outs)
        for i, o in enumerate(outs):
            if o.is_floating_point():
                o._node = Slot(node, i, o._data) if several else node
                o._requires_grad = True
        node.watch(outs)
    return outs if several else outs[0]


_SPECS = 1024
"""Signatures of a fused op whose result shapes are kept."""


def fused_spec(op: Fused, arrays: tuple, attrs: dict[str, Any]) -> Any:
    """Shapes and dtypes of a fused op's results: its body, run once on symbols per signature."""
    known = tuple(cpu.specs(arrays))
    key = (known, tuple(attrs.items()))
    spec = op.infer_cache.get(key)
    if spec is None:
        symbols = [ShapeSymbol(s) if isinstance(s, Spec) else s for s in known]
        result = op.body(*symbols, **attrs)
        spec = tuple(r.spec for r in result) if isinstance(result, tuple) else result.spec
        if len(op.infer_cache) >= _SPECS:  # attributes may change with every call (a seed)
            op.infer_cache.clear()
        op.infer_cache[key] = spec
    return spec


def _inplace(op: Any, args: tuple, attrs: dict[str, Any]) -> None:
    """Run an update on lists of Tensors (not recorded)."""
    first = next((t for a in args if isinstance(a, list) for t in a if t is not None), None)
    if first is None:
        return
    arrays = [
        [t._data if isinstance(t, Tensor) else t for t in a] if isinstance(a, list) else a
        for a in args
    ]
    if first._data.__class__ is DeviceArray:
        op.launch(*arrays, **attrs)
    else:
        token = _quiet_set()
        try:
            op.numpy(*arrays, **attrs)
        finally:
            _quiet_reset(token)
    for name, a in zip(op.operands, args):
        if isinstance(a, list) and name != "grads":
            for t in a:
                if t._version is None:
                    t._version = Version()
                t._version.bump(op.name)
                t._seen = t._version.n


def _create(op: Any, args: tuple, attrs: dict[str, Any]) -> Tensor:
    """Run a primitive without operands; its attribute ``device`` says where."""
    device = attrs.get("device", "cpu")
    if device == "cpu" or device is None:
        return _wrap(cpu.primitive(op, (), attrs))
    from .backends import triton

    return _wrap(triton.primitive(op, (), attrs))


_HANDLERS = {
    Elementwise: _elementwise,
    registry.Primitive: _primitive,
    registry.View: _view,
    registry.Fused: _fused,
    registry.InPlace: _inplace,
}
registry._CREATE[:] = [_create]
Tensor._apply = apply  # type: ignore[method-assign]


def install_operators() -> None:
    """Let Tensor's binary operators go to ``binary`` without the hops between."""
    for dunder, name in operators.BINARY.items():
        op: Any = registry.REGISTRY[name]
        setattr(Tensor, dunder, _operator(op, op.defaults, getattr(Tensor, dunder)))


def _operator(op: Elementwise, attrs: dict[str, Any], general: Any) -> Any:
    def method(self: Tensor, other: Any) -> Any:
        if isinstance(other, Tensor) or other.__class__ is float or other.__class__ is int:
            return binary(op, self, other, attrs)
        return general(self, other)

    method.__name__ = general.__name__
    return method


# ---- in place -----------------------------------------------------------------------------------


def update(name: str, target: Tensor, op_function: Any, args: tuple, kwargs: dict) -> Tensor:
    """``target.add_(other)``: compute out of place, write into ``target``'s memory, move its
    history.

    ``args`` are the operands after ``target``.
    """
    check_writable(name, target, args)
    ufunc = _UFUNCS.get(name)
    if ufunc is not None and len(args) == 1 and not kwargs and _updated(ufunc, target, args[0]):
        return rebind(name, target, target)
    if target._version is None:  # what the op saves of `before` must see the write
        target._version = Version()
        target._seen = 0
    before = shallow(target)
    since = Node().seq
    result = op_function(before, *args, **kwargs)
    write_fits(name, target, result)
    if result._node is not None:
        keep_before(before, result._node, since)
    backend_of(target._data).assign(target._data, result._data)
    return rebind(name, target, result)


_UFUNCS = {"add_": np.add, "sub_": np.subtract, "mul_": np.multiply, "div_": np.true_divide}


def _updated(ufunc: np.ufunc, target: Tensor, other: Any) -> bool:
    """Do ``target op= other`` in one pass where nothing is recorded and no promotion is needed."""
    a = target._data
    b = other._data if isinstance(other, Tensor) else other
    if a.__class__ is not _ndarray or not (a.dtype is _F32 or a.dtype is _F64):
        return False
    if b.__class__ is _ndarray:
        if b.dtype is not a.dtype or (b.ndim and b.shape != a.shape):
            return False
    elif b.__class__ is not float and b.__class__ is not int:
        return False
    if _enabled.get() and (
        target._requires_grad or (isinstance(other, Tensor) and other._requires_grad)
    ):
        return False
    token = _quiet_set()
    try:
        ufunc(a, b, out=a)
    finally:
        _quiet_reset(token)
    return True


def shallow(t: Tensor) -> Tensor:
    """The same array with the same history, as another object."""
    out = _wrap(t._data)
    out._node = t._node
    out._requires_grad = t._requires_grad
    out._version = t._version
    out._seen = t._seen
    return out


def check_writable(name: str, target: Tensor, sources: tuple) -> None:
    """Raise where ``target`` cannot be written, or the write could not be recorded truthfully."""
    data = target._data
    if not writeable(data) or overlaps(data):
        what = "elements share memory (it is expanded)" if overlaps(data) else "memory is read-only"
        raise AutogradError(f"{name}: the tensor's {what}; clone() it before writing")
    if not _enabled.get():
        return
    settle(name, target)
    if target._requires_grad and target._node is None:
        raise AutogradError(
            f"{name}: a leaf tensor that requires grad is overwritten in place; do it under "
            "trident.no_grad(), or use the out-of-place form"
        )
    incoming = any(isinstance(s, Tensor) and s._requires_grad for s in sources)
    base = target._base
    view_of_leaf = base is not None and base._requires_grad and base._node is None
    if view_of_leaf and (incoming or target._requires_grad):
        raise AutogradError(
            f"{name}: a view of a leaf tensor that requires grad is overwritten in place; do it "
            "under trident.no_grad(), or clone() the leaf first"
        )
    if base is not None and base._requires_grad and not target._requires_grad:
        what = "a leaf" if base._node is None else "a tensor"
        raise AutogradError(
            f"{name}: a view of {what} that requires grad, made under no_grad(), is overwritten "
            "where recording is on; write under no_grad() too, or make the view outside of it"
        )


def writeable(data: Any) -> bool:
    """Whether memory may be written: some is lent by other libraries to be read."""
    if data.__class__ is _ndarray:
        return data.flags.writeable
    return not getattr(data.buffer.memory, "readonly", False)


def write_fits(name: str, target: Tensor, result: Tensor) -> None:
    """Raise where ``result`` has not the shape of ``target``, or a dtype of a higher kind."""
    data = result._data
    if tuple(data.shape) != tuple(target._data.shape):
        from .errors import wrong

        raise wrong(
            name,
            f"the result has shape {tuple(data.shape)}, which does not fit in place into "
            f"{tuple(target._data.shape)}",
            hint="use the out-of-place form",
        )
    if result.dtype is not target.dtype and _rank(result.dtype) > _rank(target.dtype):
        from .errors import DTypeError, wrong

        raise wrong(
            name,
            f"a {result.dtype.name} result cannot be written into a {target.dtype.name} tensor",
            error=DTypeError,
            hint="use the out-of-place form, or convert with .to(dtype)",
        )


def _rank(d: dtypes.dtype) -> int:
    return {"bool": 0, "int": 1, "float": 2}[d.kind]


def rebind(name: str, target: Tensor, result: Tensor) -> Tensor:
    """Count the write; let ``target`` carry the history of ``result``."""
    if target._version is None:
        target._version = Version()
    version = target._version
    stale = (
        version.taped > target._seen
    )  # only under no_grad: elsewhere the target was settled first
    version.bump(name)
    if not stale:
        target._seen = version.n
    if result is not target and _enabled.get() and (result._requires_grad or target._requires_grad):
        node: Node | None = result._node
        if isinstance(node, ElementwiseNode) and node.out is not None:
            node.save_out(target._data, version)
        elif isinstance(node, RuleNode) and node.out is not None:
            node.save_out(target._data, (version,))
        if node is not None and result.dtype is not target.dtype:
            result = result.to(target.dtype)
            node = result._node
        target._node = node
        target._requires_grad = result._requires_grad
        version.record()
        if target._base is not None:
            rebase(target, shallow)
            if node is None and target._base._requires_grad:  # a constant part of a recorded whole
                target._seen = 0
                settle(name, target)
    return target


def recording(on: bool) -> Any:
    """A block whose operations are recorded, or not."""
    return enable_grad() if on else no_grad()


install_methods()
install_operators()

__all__ = ["apply", "check_writable", "is_grad_enabled", "rebind", "recording", "shallow", "update"]
