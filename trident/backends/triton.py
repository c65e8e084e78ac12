"""The cuda backend: elementwise graphs through the emitter, everything else through
``kernels/``.
"""

from __future__ import annotations

import functools
import inspect
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import DTypeError, wrong
from ..kernels import layout
from ..lang import cdiv, next_power_of_2
from ..ops.registry import REGISTRY, Elementwise, Fused, Primitive
from ..runtime import Device, DeviceArray, host_window, launch
from ..runtime.array import Layout
from ..runtime.plan import ElementwisePlan, Plan, Plans, planned, record
from ..shapes import Shape
from . import emitter
from .arrange import merged
from .emitter import FLAT, ONE, SCALAR, STRIDED, Input
from .graph import Graph, Ref
from .numpy import promote, specs


def dtype_of(array: DeviceArray) -> DType:
    return array.dtype


def _block(n: int, device: Device) -> int:
    """Elements a program: 1024 on a GPU; the interpreter pays per program, so fewer and larger."""
    if device.interpreted:
        return config.interpret_block.get() or min(max(next_power_of_2(n), 16), 65536)
    return 1024


def _number(value: Any, compute: DType) -> Any:
    """A Python number as the launch passes it (see ``emitter.scalar``)."""
    if compute.kind == "float":
        value = float(value)
        if compute.name == "float64":
            return struct.unpack("<q", struct.pack("<d", value))[0]
        return value
    return int(value)


def _layouts(arrays: list, shape: Shape) -> tuple[list[str], bool]:
    kinds = []
    for a in arrays:
        if not isinstance(a, DeviceArray):
            kinds.append(SCALAR)
        elif a.size == 1:
            kinds.append(ONE)
        elif a.shape == shape and a.is_contiguous():
            kinds.append(FLAT)
        else:
            kinds.append(STRIDED)
    return kinds, STRIDED in kinds


def _kept_order(arrays: list, kinds: list[str], shape: Shape) -> tuple[Shape, Shape]:
    """The strides of the results, which follow those of the operands, and the axes from the slowest
    to the fastest."""
    strides = shapes.out_strides(
        shape, [(a.shape, a.strides) for a, k in zip(arrays, kinds) if k not in (SCALAR, ONE)]
    )
    return strides, tuple(sorted(range(len(shape)), key=lambda a: -strides[a]))


def _along(a: Any, shape: Shape, order: Shape) -> Any:
    """An operand broadcast to ``shape``, with its axes in this order; numbers stay as they are."""
    if not isinstance(a, DeviceArray) or a.size == 1:
        return a
    return a.broadcast_to(shape).transpose(order)


def run_graph(
    key: tuple, graph: Graph, arrays: list, shape: Shape, out_dtypes: list[DType], scalar_as: DType
) -> list[DeviceArray]:
    """Run ``graph`` over ``arrays`` (DeviceArrays and numbers) broadcast to ``shape``."""
    live = [i for i in graph.live() if i < len(graph.inputs)]
    used = [arrays[i] for i in live]
    device = next(a.device for a in arrays if isinstance(a, DeviceArray))
    kinds, strided = _layouts(used, shape)
    strides = shapes.contiguous_strides(shape)
    if strided:
        strides, order = _kept_order(used, kinds, shape)
        used = [_along(a, shape, order) for a in used]
    outs = [device.empty_strided(shape, strides, d) for d in out_dtypes]
    n = shapes.numel(shape)
    if n == 0:
        return outs
    if strided:  # the kernel walks the results as they lie in memory
        shape = tuple(shape[a] for a in order)
        kinds, strided = _layouts(used, shape)
    sizes: Shape = ()
    steps: list[Shape] = []
    if strided:
        tensors = [a for a, k in zip(used, kinds) if k not in (SCALAR, ONE)]
        expanded = [
            shapes.broadcast_strides(graph.name, a.shape, a.strides, shape) for a in tensors
        ]
        sizes, steps = merged(shape, expanded)
        kinds = [STRIDED if k == FLAT else k for k in kinds]
    by_index = dict(zip(live, kinds))
    inputs = tuple(
        Input(a.dtype, by_index.get(i, FLAT)) if isinstance(a, DeviceArray) else Input(None, SCALAR)
        for i, a in enumerate(arrays)
    )
    block = _block(n, device)
    ragged = not strided and n % 16 != 0 and n >= block
    kernel = emitter.kernel(key, graph, inputs, tuple(out_dtypes), len(sizes), scalar_as, ragged)
    passed = [a if isinstance(a, DeviceArray) else _number(a, scalar_as) for a in used]
    wide = n > 2**31 - 65536 or shapes.needs_int64(*[a for a in used if isinstance(a, DeviceArray)])
    launch(
        kernel, (cdiv(n, block),), *passed, *outs, n, *sizes[1:], *[s for st in steps for s in st],
        INT64=wide, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return outs


def elementwise(op: Elementwise, args: tuple, attrs: dict[str, Any]) -> DeviceArray:
    """Run an elementwise op on DeviceArrays and Python numbers, in one launch."""
    device = next(a.buffer.device for a in args if a.__class__ is DeviceArray)
    key = _elementwise_key(op, args, attrs) if device.plans else None
    if key is None:
        return _elementwise(op, args, attrs)
    plan = op.plans.get(key)
    if plan is not None:
        return plan.several([a.ptr if a.__class__ is DeviceArray else float(a) for a in args])
    if not op.plans.wanted():
        return _elementwise(op, args, attrs)
    with record() as rec:
        out = _elementwise(op, args, attrs)
    if rec.complete and len(rec.launches) == 1:
        live = range(len(args))
        op.plans.keep(key, ElementwisePlan(rec, device, len(args), live))
    return out


def _elementwise_key(op: Elementwise, args: tuple, attrs: dict[str, Any]) -> Any:
    """What an elementwise launch depends on; None where that is more than layouts and attributes.

    ``dispatch`` looks plans up by the same keys: one layout, or a tuple of layouts (``float``
    for a number, which float32 kernels take as an argument) and attributes.
    """
    parts: list[Any] = []
    numbers = False
    narrow = True
    for a in args:
        if a.__class__ is DeviceArray:
            layout = Layout.of(a)
            parts.append(layout)
            d = layout.dtype
            if d.kind != "float":
                if op.result == "float":  # the default dtype decides
                    return None
                narrow = narrow and d.kind == "bool"
            elif d is dtypes.float64:
                narrow = False
        elif a.__class__ is float or a.__class__ is int:
            numbers = True
            parts.append(float)
        else:
            return None
    if numbers and not narrow:  # numbers of these types select the kernel
        return None
    if not attrs:
        return parts[0] if len(parts) == 1 else tuple(parts)
    try:
        hash(key := (*parts, *attrs.values()))
    except TypeError:
        return None
    return key


def _elementwise(op: Elementwise, args: tuple, attrs: dict[str, Any]) -> DeviceArray:
    promoted = promote(op, args)
    shape = shapes.broadcast(op.name, *[a.shape for a in args if hasattr(a, "shape")])
    key = (op, promoted.name, tuple(attrs.items()))  # a name may be defined again
    graph = _promoted_graph(op, tuple(attrs.items()), promoted)
    return run_graph(key, graph, list(args), shape, [op.result_dtype(promoted)], promoted.compute)[
        0
    ]


@functools.lru_cache(maxsize=4096)
def _promoted_graph(op: Elementwise, attrs: tuple, promoted: DType) -> Graph:
    """The one-node graph with its promotion fixed: 0-d operands and numbers are weaker than
    ``Graph.dtypes`` knows."""
    graph = _PromotedGraph(op.name + "_kernel", list(op.operands))
    graph.promoted = promoted
    graph.outputs = [graph.add(op, tuple(Ref(i) for i in range(op.arity)), dict(attrs))]
    return graph


class _PromotedGraph(Graph):
    promoted: DType

    def dtypes(self, inputs: list[DType | None], weak: DType) -> tuple[list[DType], list[DType]]:
        values = [d or self.promoted for d in inputs]
        return [*values, self.nodes[0].op.result_dtype(self.promoted)], [self.promoted]


def rule_function(graph: Graph, bindings: dict[str, str]) -> Callable:
    """A gradient rule as a function of (g, a, out) that launches one kernel."""
    order: dict[str, Any] = {
        n: int(e[2:-1]) if e.startswith("a[") else e for n, e in bindings.items()
    }
    wanted = [o for o in graph.outputs if o is not None]
    key = ("rule", graph.name, id(graph))
    sources = [order[name] for name in graph.inputs]
    read = [i for i in graph.live() if i < len(graph.inputs)]
    at_g = sources.index("g")
    plans = Plans()

    def compute(values: list) -> tuple:
        g = values[at_g]
        dtypes_out = [g.dtype] * len(wanted)
        results = iter(run_graph(key, graph, values, g.shape, dtypes_out, g.dtype.compute))
        return tuple(None if o is None else next(results) for o in graph.outputs)

    def run(g: DeviceArray, a: tuple | None, out: Any) -> tuple:
        values = [
            g if e == "g" else out if e == "out" else a[e] if a is not None else None
            for e in sources
        ]
        if not g.buffer.device.plans:
            return compute(values)
        used = [g, *(values[i] for i in read if i != at_g)]

        def again(operands: Sequence[Any]) -> tuple:
            given = list(values)
            given[at_g] = operands[0]
            for i, v in zip((i for i in read if i != at_g), operands[1:]):
                given[i] = v
            return compute(given)

        return run_planned(plans, used, (), again)

    run.graph = graph  # type: ignore[attr-defined]
    return run


def run_rule(function: Callable, g: DeviceArray, args: tuple | None, out: Any) -> tuple:
    return function(g, args, out)


_precision, _tuning = config.matmul_precision.get, config.autotune.get
_deterministic, _forced = config.deterministic.get, config.forced_configs.get


def run_planned(
    plans: Plans, operands: Sequence[Any], more: tuple, run: Callable[[Sequence[Any]], Any]
) -> Any:
    """``run(operands)``, by a launch plan where there is one; recorded into one where there can be.

    ``more`` is what ``run`` depends on beside the layouts of ``operands`` and the switches. Numbers
    among the operands are not kept. ``run`` returns an array or a tuple of arrays and None.
    """
    layouts: list[Any] = []
    addresses: list[int] = []
    for a in operands:
        if a.__class__ is DeviceArray:
            layouts.append(a.layout or Layout.of(a))
            addresses.append(a.ptr)
        elif a is None:
            layouts.append(None)
            addresses.append(0)
        else:
            return run(operands)
    if _forced():  # a trial of other configurations
        return run(operands)
    key = (*layouts, *more, _precision(), _tuning(), _deterministic())
    try:
        plan = plans.get(key, plans)
    except TypeError:  # an attribute that does not hash
        return run(operands)
    if plan.__class__ is Plan:
        plans.used = 0
        if plan.form is tuple:
            return tuple(plan.run(addresses))
        return plan.one(addresses) if plan.short is not None else plan.run(addresses)[0]
    device = next((x.device for x in layouts if x is not None), None)
    if plan is None or device is None or not device.plans:
        return run(operands)
    return planned(plans, key, device, operands, run, _parts)


def _plans(args: Sequence[Any]) -> bool:
    """Whether the operands lie on a device whose launches can be repeated."""
    return any(a.__class__ is DeviceArray and a.buffer.device.plans for a in args)


def _parts(done: Any) -> tuple[Sequence[DeviceArray | None], Any]:
    return (done, tuple) if isinstance(done, tuple) else ((done,), None)


def primitive(op: Primitive, args: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Allocate what ``infer`` says and let the op's launcher fill it."""
    layouts = []
    addresses = []
    for a in args:  # as in run_planned, for the most frequent case
        if a.__class__ is not DeviceArray:
            break
        layouts.append(a.layout)
        addresses.append(a.ptr)
    else:
        try:
            plan = op.plans.get(
                (*layouts, *attrs.values(), _precision(), _tuning(), _deterministic())
            )
        except TypeError:
            plan = None
        if plan is not None and plan.short is not None and plan.form is None and not _forced():
            op.plans.used = 0
            return plan.one(addresses)
    more = tuple(attrs.values())
    return run_planned(op.plans, args, more, lambda a: _primitive(op, tuple(a), attrs))


def _primitive(op: Primitive, args: tuple, attrs: dict[str, Any]) -> Any:
    want = op.infer(*specs(args), **attrs)
    device = _device_of(args, attrs)
    args = tuple(_to_device(a, device) for a in args)
    if isinstance(want, tuple):
        outs = tuple(_result(op, w, device, args, attrs) for w in want)
        op.launch(outs, *args, **attrs)
        return outs
    out = _result(op, want, device, args, attrs)
    op.launch(out, *args, **attrs)
    return out


def _result(
    op: Primitive, spec: Any, device: Device, args: tuple, attrs: dict[str, Any]
) -> DeviceArray:
    """A fresh array for one result of ``op``, in the layout that the entry wants."""
    if op.layout is None:
        return device.empty(spec.shape, spec.dtype)
    operands = [(a.shape, a.strides) for a in args if isinstance(a, DeviceArray)]
    return device.empty_strided(spec.shape, op.layout(spec.shape, operands, **attrs), spec.dtype)


def _device_of(args: tuple, attrs: dict[str, Any]) -> Device:
    for a in args:
        if isinstance(a, DeviceArray):
            return a.device
    return attrs["device"]


def _to_device(a: Any, device: Device) -> Any:
    """Primitives take arrays: a number operand becomes a 0-d array of its own dtype."""
    if isinstance(a, (bool, int, float)):
        return device.from_host(np.asarray(a, dtypes.scalar_dtype(a).np))
    return a


def fused_forward(
    op: Fused, args: tuple, attrs: dict[str, Any], out: Any
) -> tuple[Any, dict[str, DeviceArray]]:
    """Run a fused op's forward launcher; ``out`` is its Spec (or tuple of Specs).

    CPU arrays (inside ``interpret``) are passed as windows on their memory; CPU arrays come out.
    """
    if _plans(args):
        several = isinstance(out, tuple)

        def run(a: Sequence[Any]) -> tuple:
            data, saved = _fused_forward(op, tuple(a), attrs, out)
            return (*(data if several else (data,)), *saved.values())

        results = run_planned(op.plans, args, tuple(attrs.values()), run)
        n = len(out) if several else 1
        data = results[:n] if several else results[0]
        return data, dict(zip(op.residuals, results[n:]))
    return _fused_forward(op, args, attrs, out)


def _fused_forward(
    op: Fused, args: tuple, attrs: dict[str, Any], out: Any
) -> tuple[Any, dict[str, DeviceArray]]:
    on_host = not any(isinstance(a, DeviceArray) for a in args)
    args = _windows(args)
    device = _device_of(args, attrs)
    operand_specs = specs(args)
    wide = any(s.dtype is dtypes.float64 for s in operand_specs if hasattr(s, "dtype"))
    precision = dtypes.float64 if wide else dtypes.float32
    values: dict[str, Any] = {**dict(zip(op.operands, args)), **attrs}
    saved = {
        name: device.empty(tuple(shape(*operand_specs, **attrs)), precision)
        for name, shape in op.residuals.items()
    }
    if isinstance(out, tuple):
        values["out"] = tuple(device.empty(o.shape, o.dtype) for o in out)
    else:
        values["out"] = device.empty(out.shape, out.dtype)
    values.update(saved)
    assert op.forward is not None
    op.forward(**{n: values[n] for n in inspect.signature(op.forward).parameters})
    return _as_given(values["out"], on_host), saved


def _windows(args: Any) -> Any:
    if isinstance(args, tuple):
        return tuple(_windows(a) for a in args)
    return host_window(args) if isinstance(args, np.ndarray) else args


def _as_given(data: Any, on_host: bool) -> Any:
    """What launchers wrote, as CPU arrays where the operands were some."""
    if not on_host or data is None:
        return data
    if isinstance(data, (tuple, list)):
        return tuple(_as_given(d, on_host) for d in data)
    return data.device.window(data)


def fused_backward(
    op: Fused, g: Any, args: tuple, attrs: dict[str, Any], out: Any, saved: dict, mask: tuple
) -> tuple:
    """Run a fused op's backward launcher; one gradient per operand, None where not wanted."""
    if _plans(args):
        # what the launcher reads, flat: g and out may be tuples
        gs = g if isinstance(g, tuple) else (g,)
        outs = out if isinstance(out, tuple) else (out,)
        n, m = len(args), len(args) + len(gs)

        def run(a: Sequence[Any]) -> tuple:
            given_g = tuple(a[n:m]) if isinstance(g, tuple) else a[n]
            given_out = tuple(a[m : m + len(outs)]) if isinstance(out, tuple) else a[m]
            residuals = dict(zip(saved, a[m + len(outs) :]))
            return _fused_backward(
                op, given_g, tuple(a[:n]), attrs, given_out, residuals, mask
            )  # fmt: skip

        operands = (*args, *gs, *outs, *saved.values())
        return run_planned(op.backward_plans, operands, (mask, *attrs.values()), run)
    return _fused_backward(op, g, args, attrs, out, saved, mask)


def _fused_backward(
    op: Fused, g: Any, args: tuple, attrs: dict[str, Any], out: Any, saved: dict, mask: tuple
) -> tuple:
    on_host = not any(isinstance(a, DeviceArray) for a in args)
    g, args, out = _windows(g), _windows(args), _windows(out)
    values: dict[str, Any] = {**dict(zip(op.operands, args)), **attrs, **saved, "g": g, "out": out}
    grads: list = []
    for name, a, wanted in zip(op.operands, args, mask):
        grad = a.device.empty(a.shape, a.dtype) if wanted else None
        values[f"d{name}"] = grad
        grads.append(grad)
    assert op.backward is not None
    op.backward(**{n: values[n] for n in inspect.signature(op.backward).parameters})
    return _as_given(tuple(grads), on_host)


def add(a: DeviceArray, b: DeviceArray) -> DeviceArray:
    op: Any = REGISTRY["add"]
    return elementwise(op, (a, b), dict(op.defaults))


def copy(a: DeviceArray) -> DeviceArray:
    """A copy in the order of ``a``."""
    return copied_like(a, a)


def contiguous(a: DeviceArray) -> DeviceArray:
    """A row-major copy."""
    out = a.device.empty(a.shape, a.dtype)
    layout.copy(out, a)
    return out


def copied_like(a: DeviceArray, like: DeviceArray) -> DeviceArray:
    """A copy in the order of ``like``, which has the same shape."""
    strides = shapes.out_strides(like.shape, [(like.shape, like.strides)])
    out = a.device.empty_strided(a.shape, strides, a.dtype)
    layout.copy(out, a)
    return out


def cast(a: DeviceArray, dtype: DType) -> DeviceArray:
    out = a.device.empty(a.shape, dtype)
    layout.copy(out, a)
    return out


def sum_to(a: DeviceArray, shape: Shape) -> DeviceArray:
    """Sum ``a`` over the axes along which ``shape`` was broadcast to it."""
    over = shapes.stretched(shape, a.shape)
    if over:
        op: Any = REGISTRY["sum"]
        a = primitive(op, (a,), {"dim": over, "keepdim": True, "dtype": None})
    return a.reshape(shape)


def assign(target: DeviceArray, value: Any) -> None:
    """Write ``value`` (an array or number, broadcast) into the memory of ``target``."""
    if target.size == 0:
        return
    if isinstance(value, np.ndarray):
        value = target.device.from_host(np.array(value, order="C"))
    if isinstance(value, DeviceArray):
        if value.buffer is target.buffer:  # they may overlap, and programs run in any order
            value = copy(value)
        layout.copy(target, value.broadcast_to(target.shape))
        return
    if target.dtype.kind == "int" and isinstance(value, float) and value != value:
        raise wrong("fill", "NaN has no integer value", got=value, error=DTypeError)
    if target.is_contiguous():
        layout.fill(target, value)
        return
    layout.copy(target, full(target, (), value, target.dtype).broadcast_to(target.shape))


def full(like: Any, shape: Shape, value: Any, dtype: DType) -> DeviceArray:
    out = like.device.empty(shape, dtype)
    if out.size:
        layout.fill(out, value)
    return out


def from_host(array: np.ndarray, like: DeviceArray) -> DeviceArray:
    return like.device.from_host(array)


def to_host(array: DeviceArray) -> np.ndarray:
    return array.numpy()


# ---- fused programs -----------------------------------------------------------------------------


def empty_like_device(like: DeviceArray, shape: Shape, dtype: DType) -> DeviceArray:
    return like.device.empty(shape, dtype)


def repeated(
    program: Any, arrays: Sequence[Any], sizes: dict[int, int],
    run: Callable[[Sequence[Any]], Any],
) -> Any:  # fmt: skip
    """``run(arrays)``: all launches of a fused program, by a launch plan where there can be one."""
    if not arrays[0].buffer.device.plans:
        return run(arrays)
    plans = program.__dict__.setdefault("plans", Plans())
    return run_planned(plans, arrays, tuple(sizes.items()), run)


def run_loops(work: Any) -> list[DeviceArray]:
    """The loops of a fused program, in one launch (and one for each partial sum)."""
    from . import tile_loops

    return tile_loops.run_loops(work)


def run_small(
    graph: Graph, operands: list, results: list[tuple[Shape, DType]]
) -> list[DeviceArray]:
    """The tail of a fused program: one launch for all results of a shape."""
    wide = any(d is dtypes.float64 for d in graph.input_dtypes)
    number = dtypes.float64 if wide else dtypes.float32
    like = next(a for a in operands if isinstance(a, DeviceArray))
    arrays = [a if isinstance(a, DeviceArray) else full(like, (), a, number) for a in operands]
    found: list[Any] = [None] * len(results)
    for shape in dict.fromkeys(s for s, _ in results):
        at = [i for i, (s, _) in enumerate(results) if s == shape]
        part = Graph(graph.name, graph.inputs, graph.nodes, [graph.outputs[i] for i in at])
        outs = run_graph(
            ("tail", id(graph), tuple(at)), part, arrays, shape, [results[i][1] for i in at],
            dtypes.float64 if wide else dtypes.float32,
        )  # fmt: skip
        for i, out in zip(at, outs):
            found[i] = out
    return found
