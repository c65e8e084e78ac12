"""Matrix products: ``matmul`` and ``linear`` are primitives, the rest is made of them.

Gradients of products are products of the transposed operands, so ``matmul`` closes on itself.
"""

from __future__ import annotations

import functools
import linecache
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import shapes
from ..errors import DTypeError, ShapeError, wrong
from ..kernels import matmul as kernels
from ..lang import Jit, jit
from ..runtime.blas import matmul as product
from .registry import FUNCTIONS, REGISTRY, Elementwise, Spec, composite, ops, primitive

if TYPE_CHECKING:
    from ..shapes import Shape
    from ..tensor import Tensor


def check_dtypes(op: str, **operands: Any) -> None:
    """Raise unless all operands have one dtype, and one that can be multiplied and added."""
    given = {name: x.dtype for name, x in operands.items() if x is not None}
    if len(set(given.values())) > 1:
        text = ", ".join(f"{name} {d.name}" for name, d in given.items())
        raise wrong(
            op, "operands must have one dtype", got=text, error=DTypeError,
            hint="convert one of them with x.to(dtype)",
        )  # fmt: skip
    if next(iter(given.values())).kind == "bool":
        raise wrong(
            op, "operands must be numbers", got="bool", error=DTypeError,
            hint="convert them with x.to(dtype)",
        )  # fmt: skip


def product_shape(op: str, a: Shape, b: Shape) -> Shape:
    """The shape of ``a @ b``; raises where they do not fit."""
    if not a or not b:
        raise wrong(op, "operands must have at least 1 axis", got=f"{tuple(a)} @ {tuple(b)}")
    k = b[0] if len(b) == 1 else b[-2]
    if a[-1] != k:
        raise wrong(op, f"inner sizes must agree; {tuple(a)} @ {tuple(b)}: {a[-1]} != {k}")
    try:
        batch = shapes.broadcast(op, a[:-2], b[:-2])
    except ShapeError:
        raise wrong(
            op,
            f"batch axes must be equal or 1; {tuple(a)} @ {tuple(b)}: {tuple(a[:-2])} and "
            f"{tuple(b[:-2])} do not broadcast",
        ) from None
    return batch + a[-2:-1] + (b[-1:] if len(b) > 1 else ())


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _swap(x: Tensor) -> Tensor:
    return ops.transpose(x, -1, -2)


def _flat(x: Tensor) -> Tensor:
    """All axes but the last as one."""
    if x.ndim == 2:
        return x
    return ops.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def operand_sample(draw: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Random values with strides of some kind; where kernels are tried that read by tensor
    descriptors, mostly contiguous or transposed."""
    if draw.blocks != "trial" or not draw.integer(0, 3):
        return draw.tensor(shape)
    turn = draw.boolean()
    x = np.array(draw.tensor((*shape[:-2], shape[-1], shape[-2]) if turn else shape), order="C")
    return x.swapaxes(-1, -2) if turn else x


@primitive
class matmul:
    """Matrix product a @ b, as in torch: a (..., m, k), b (..., k, n) -> (..., m, n).

    Batch axes broadcast. A 1-d ``a`` is one row and a 1-d ``b`` one column, and that axis is not in
    the result. Both operands must have the same dtype, any but bool; half types accumulate in
    float32. Raises ShapeError where the inner sizes differ, DTypeError where the dtypes do.

    >>> trident.matmul(trident.ones(2, 3), trident.ones(3, 4)).shape
    trident.Size([2, 4])
    """

    def infer(a, b):
        check_dtypes("matmul", a=a, b=b)
        return Spec(product_shape("matmul", a.shape, b.shape), a.dtype)

    def numpy(a, b):
        if a.dtype != b.dtype or a.dtype.kind == "b":
            raise TypeError
        if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:
            return product(_rows(a), b).reshape(*a.shape[:-1], b.shape[-1])  # one GEMM
        return product(a, b)

    def launch(out, a, b):
        rows, columns = a.ndim > 1, b.ndim > 1
        batch = out.shape[: out.ndim - rows - columns]
        a = a if rows else a[None]
        b = b if columns else b[..., None]
        kernels.matmul(out.reshape((*batch, a.shape[-2], b.shape[-1])), a, b)

    def numpy_vjp(g, a, b, needs):
        if a.ndim == b.ndim == 2:
            da = product(g, b.T) if needs[0] else None
            return da, product(a.T, g) if needs[1] else None
        return None

    def vjp(g, a, b, needs):
        if a.ndim == 1 and b.ndim == 1:
            return g * b if needs[0] else None, g * a if needs[1] else None
        rows = a if a.ndim > 1 else ops.unsqueeze(a, 0)
        columns = b if b.ndim > 1 else ops.unsqueeze(b, 1)
        if a.ndim == 1:
            g = ops.unsqueeze(g, -2)
        if b.ndim == 1:
            g = ops.unsqueeze(g, -1)
        da = db = None
        if needs[0]:
            da = ops.matmul(g, _swap(columns))
            if da.shape != a.shape:
                da = ops.reshape(ops.sum_to(da, rows.shape), a.shape)
        if needs[1]:
            if columns.ndim == 2:  # one b for all batches: sum over them inside one product
                db = ops.matmul(_swap(_flat(rows)), _flat(g))
            else:
                db = ops.sum_to(ops.matmul(_swap(rows), g), columns.shape)
            if db.shape != b.shape:
                db = ops.reshape(db, b.shape)
        return da, db

    def samples(draw):
        m, k, n = draw.size(0, 5, 37), draw.size(0, 5, 300), draw.size(0, 5, 41)
        tiles = (1, 2, 3) if draw.blocks == "trial" else (3,)
        if draw.integer(0, 3) in tiles:  # several along each axis
            m, k, n = draw.integer(17, 40), draw.integer(15, 40), draw.integer(17, 40)
            if draw.integer(0, 2):  # what a tensor descriptor can describe
                m, k, n = (-(-size // 8) * 8 for size in (m, k, n))
            if draw.boolean():
                batch = draw.choice([(2, 3), (1, 3), (2, 1)])
                a, b = operand_sample(draw, (2, 3, m, k)), operand_sample(draw, (*batch, k, n))
                return (a, b), {}
            return (operand_sample(draw, (m, k)), operand_sample(draw, (k, n))), {}
        batch = draw.choice([(), (), (2,), (3, 1, 2)])
        a = draw.choice([(k,), (m, k), (*batch, m, k), (1, *batch[1:], m, k)])
        b = draw.choice([(k,), (k, n), (*batch, k, n), (*batch[1:], k, n)])
        return (draw.tensor(a), draw.tensor(b)), {}


def _activation(name: str, caller: str = "linear") -> Elementwise:
    """The elementwise op of one operand that ``linear(activation=name)`` applies."""
    op = REGISTRY.get(name)
    if not isinstance(op, Elementwise) or op.arity != 1 or op.vjp is None or op.result == "bool":
        known = [
            n for n, o in REGISTRY.items()
            if isinstance(o, Elementwise) and o.arity == 1 and o.vjp and o.result != "bool"
        ]  # fmt: skip
        raise wrong(
            caller, "activation must be None or a differentiable elementwise op of one operand",
            got=repr(name), hint=f"they are {', '.join(sorted(known))}",
        )  # fmt: skip
    return op


@functools.cache
def _device_function(name: str) -> Jit:
    """The activation as a Triton function of one value, its attributes at their defaults."""
    op = _activation(name)
    if not op.attributes:
        return op.triton
    values = ", ".join(f"{key}={value!r}" for key, value in op.defaults.items())
    text = f"def {name}_default(x):\n    return {name}(x, {values})\n"
    filename = f"<trident linear {name}>"  # Triton reads the source of a function through linecache
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    scope: dict[str, Any] = {name: op.triton, "__name__": "trident.generated"}
    exec(compile(text, filename, "exec"), scope)
    return jit(scope[f"{name}_default"])


def _activation_gradient(name: str, g: Tensor, z: Tensor) -> Tensor:
    """``g`` times the derivative of the activation at ``z``, by the op's own rule."""
    op = _activation(name)
    values = {"g": g, op.operands[0]: z, **op.defaults}
    if "out" in op.vjp_names:
        values["out"] = FUNCTIONS[name](z)
    assert op.vjp is not None
    dz = op.vjp(*(values[n] for n in op.vjp_names))
    return dz[0] if isinstance(dz, tuple) else dz


@primitive(method=False)
class linear:
    """x @ weight.T + bias, then ``activation``: x (..., in), weight (out, in), bias (out,) or None.

    ``activation`` names an elementwise op of one operand ("relu", "tanh") that the kernel applies
    before it stores; the gradient recomputes what goes into it. All operands have the same dtype.

    >>> trident.linear(trident.ones(2, 3), trident.ones(4, 3), trident.ones(4))[0].tolist()
    [4.0, 4.0, 4.0, 4.0]
    """

    def infer(x, weight, bias=None, *, activation=None):
        check_dtypes("linear", x=x, weight=weight, bias=bias)
        if weight.ndim != 2:
            raise wrong("linear", "weight must have shape (out, in)", got=tuple(weight.shape))
        if not x.ndim or x.shape[-1] != weight.shape[1]:
            raise wrong(
                "linear",
                f"x must have {weight.shape[1]} features in its last axis, as weight "
                f"{tuple(weight.shape)} has",
                got=f"x {tuple(x.shape)}",
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise wrong(
                "linear",
                f"bias must have shape {tuple(weight.shape[:1])}, the first axis of weight "
                f"{tuple(weight.shape)}",
                got=tuple(bias.shape),
            )
        if activation is not None:
            _activation(activation)
        return Spec(x.shape[:-1] + weight.shape[:1], x.dtype)

    def numpy(x, weight, bias=None, *, activation=None):
        if x.dtype != weight.dtype or weight.ndim != 2 or x.dtype.kind == "b":
            raise TypeError
        if x.ndim > 2 and x.flags.c_contiguous:
            y = product(_rows(x), weight.T).reshape(*x.shape[:-1], weight.shape[0])
        elif x.ndim == 2 and len(x) <= 64 and len(x) < len(weight):
            # few rows: OpenBLAS is 1.1 to 1.9 times as fast on the transposed product
            y = np.ascontiguousarray(product(weight, x.T).T)
        else:
            y = product(x, weight.T)
        if bias is not None:
            if bias.shape != weight.shape[:1] or bias.dtype != x.dtype:
                raise ValueError
            y += bias
        if activation is not None:
            op = _activation(activation)
            y = op.numpy(y, **op.defaults)
        return y

    def launch(out, x, weight, bias=None, *, activation=None):
        if x.ndim == 1:
            x, out = x[None], out[None]
        act = _device_function(activation) if activation is not None else None
        kernels.matmul(out, x, weight.transpose((1, 0)), bias=bias, act=act)

    def numpy_vjp(g, x, weight, bias, activation, needs):
        if activation is not None or x.ndim == 1:
            return None
        count = math.prod(x.shape[:-1])  # not -1: an axis of features may be empty
        rows = g if g.ndim == 2 else g.reshape(count, weight.shape[0])
        dx = product(g, weight) if needs[0] else None
        dw = db = None
        if needs[1]:
            dw = product(rows.T, x if x.ndim == 2 else x.reshape(count, weight.shape[1]))
        if bias is not None and needs[2]:
            db = product(np.ones(len(rows), g.dtype), rows)  # BLAS is quicker than a sum
        return dx, dw, db

    def vjp(g, x, weight, bias, activation, needs):
        if activation is not None:
            g = _activation_gradient(activation, g, ops.linear(x, weight, bias))
        dx = ops.matmul(g, weight) if needs[0] else None
        dw = db = None
        if needs[1] and x.ndim == 1:
            dw = ops.outer(g, x)
        elif needs[1]:
            dw = ops.matmul(_swap(_flat(g)), _flat(x))
        if bias is not None and needs[2]:
            db = g if x.ndim == 1 else ops.sum(_flat(g), 0)
        return dx, dw, db

    def samples(draw):
        features, outputs = draw.size(0, 5, 40), draw.size(0, 5, 41)
        rows = draw.shape(0, 3, 4)
        if draw.blocks == "trial":  # several tiles along each axis, rows of 16 bytes or not
            rows, features = (draw.integer(17, 40),), draw.choice([40, 64, 35])
            outputs = draw.choice([40, 64, 37])
        x = operand_sample(draw, (*rows, features))
        bias = draw.tensor((outputs,)) if draw.boolean() else None
        activation = draw.choice([None, None, "tanh", "sigmoid"])
        weight = operand_sample(draw, (outputs, features))
        return (x, weight, bias), {"activation": activation}


def _need_ndim(op: str, **operands: tuple[Tensor, int]) -> None:
    for name, (x, ndim) in operands.items():
        if x.ndim != ndim:
            raise wrong(
                op, f"{name} must have {ndim} ax{'is' if ndim == 1 else 'es'}", got=tuple(x.shape),
                hint="use matmul for any number of axes",
            )  # fmt: skip


@composite
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """Product of two matrices: (m, k), (k, n) -> (m, n). Nothing broadcasts.

    >>> trident.mm(trident.ones(2, 3), trident.ones(3, 1)).tolist()
    [[3.0], [3.0]]
    """
    _need_ndim("mm", input=(input, 2), mat2=(mat2, 2))
    return ops.matmul(input, mat2)


@composite
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """Products of two batches of matrices: (b, m, k), (b, k, n) -> (b, m, n). Nothing broadcasts.

    >>> trident.bmm(trident.ones(5, 2, 3), trident.ones(5, 3, 4)).shape
    trident.Size([5, 2, 4])
    """
    _need_ndim("bmm", input=(input, 3), mat2=(mat2, 3))
    if input.shape[0] != mat2.shape[0]:
        raise wrong(
            "bmm", "both operands must have one batch size",
            got=f"{tuple(input.shape)} and {tuple(mat2.shape)}", hint="use matmul to broadcast it",
        )  # fmt: skip
    return ops.matmul(input, mat2)


@composite
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """Matrix times vector: (m, k), (k,) -> (m,).

    >>> trident.mv(trident.ones(2, 3), trident.ones(3)).tolist()
    [3.0, 3.0]
    """
    _need_ndim("mv", input=(input, 2), vec=(vec, 1))
    return ops.matmul(input, vec)


@composite
def dot(input: Tensor, other: Tensor) -> Tensor:
    """Inner product of two vectors of one length: (k,), (k,) -> ().

    >>> trident.dot(trident.ones(3), trident.ones(3)).item()
    3.0
    """
    _need_ndim("dot", input=(input, 1), other=(other, 1))
    return ops.matmul(input, other)


@composite
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """All products of the elements of two vectors: (m,), (n,) -> (m, n).

    >>> trident.outer(trident.ones(2), trident.ones(3)).shape
    trident.Size([2, 3])
    """
    _need_ndim("outer", input=(input, 1), vec2=(vec2, 1))
    return ops.mul(ops.unsqueeze(input, 1), vec2)


@composite(method=False)
def bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x1 @ weight[o] @ x2 + bias[o]: x1 (..., p), x2 (..., q), weight (out, p, q), bias (out,).

    >>> trident.bilinear(trident.ones(4, 2), trident.ones(4, 3), trident.ones(5, 2, 3)).shape
    trident.Size([4, 5])
    """
    if weight.ndim != 3 or (x1.shape[-1:], x2.shape[-1:]) != (weight.shape[1:2], weight.shape[2:]):
        raise wrong(
            "bilinear", "weight must have shape (out, last axis of x1, last axis of x2)",
            got=f"x1 {tuple(x1.shape)}, x2 {tuple(x2.shape)}, weight {tuple(weight.shape)}",
        )  # fmt: skip
    outputs, p, q = weight.shape
    columns = ops.reshape(ops.permute(weight, (1, 0, 2)), (p, outputs * q))
    left = ops.reshape(ops.matmul(x1, columns), (*x1.shape[:-1], outputs, q))
    y = ops.squeeze(ops.matmul(left, ops.unsqueeze(x2, -1)), -1)
    return y if bias is None else y + bias
