"""Products that are scaled and added to something: the kernel does it before it stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import shapes
from ..errors import DTypeError, ShapeError, wrong
from ..kernels import matmul as kernels
from ..runtime.blas import matmul as product
from .matmul import _need_ndim, _swap, check_dtypes, operand_sample, product_shape
from .registry import Spec, ops, primitive

if TYPE_CHECKING:
    from ..tensor import Tensor


def _infer(op: str, ndim: int, names: tuple[str, ...], given: tuple, beta: Any, alpha: Any) -> Spec:
    """The result of ``beta * input + alpha * a @ b``; raises where it has none."""
    operands = dict(zip(names, given))
    check_dtypes(op, **operands)
    _need_ndim(op, **{name: (operands[name], ndim) for name in names[1:]})
    c, a, b = given
    if not a.dtype.is_floating_point:
        for name, value in (("beta", beta), ("alpha", alpha)):
            if isinstance(value, float):
                raise wrong(
                    op, f"{name} must be an int for {a.dtype.name} operands", got=value,
                    hint="convert the operands with x.float()", error=DTypeError,
                )  # fmt: skip
    if a.shape[:-2] != b.shape[:-2]:
        raise wrong(
            op, f"{names[1]} and {names[2]} must have one batch size",
            got=f"{tuple(a.shape)} and {tuple(b.shape)}", hint="use matmul to broadcast it",
        )  # fmt: skip
    shape = product_shape(op, a.shape, b.shape)
    try:
        fits = shapes.broadcast(op, shape, c.shape) == shape
    except ShapeError:
        fits = False
    if not fits:
        raise wrong(op, f"input must broadcast to {tuple(shape)}, the shape of the product",
                    got=tuple(c.shape))  # fmt: skip
    return Spec(shape, a.dtype)


def _numpy(ndim: int, c: np.ndarray, a: np.ndarray, b: np.ndarray, beta: Any, alpha: Any) -> Any:
    if not (c.dtype == a.dtype == b.dtype and a.ndim == b.ndim == ndim) or a.dtype.kind == "b":
        raise TypeError
    if a.shape[:-2] != b.shape[:-2]:
        raise ValueError
    if a.dtype.kind != "f" and (isinstance(beta, float) or isinstance(alpha, float)):
        raise TypeError
    y = product(a, b)
    if alpha != 1:
        y *= alpha
    if beta == 0:
        np.broadcast_to(c, y.shape)  # it has to fit all the same
    else:
        y += c if beta == 1 else c * beta
    return y


def _launch(out: Any, c: Any, a: Any, b: Any, beta: Any, alpha: Any) -> None:
    floating = a.dtype.is_floating_point
    scale, weight = (None if x == 1 else float(x) if floating else int(x) for x in (alpha, beta))
    vector = beta == 1 and c.ndim <= 2 and 1 in (c.shape or (1,)) + (1,) * (2 - c.ndim)
    if beta == 0:
        kernels.matmul(out, a, b, alpha=scale)
    elif vector:
        kernels.matmul(out, a, b, bias=c if c.ndim else c[None], alpha=scale)
    else:
        kernels.matmul(out, a, b, c=c, alpha=scale, beta=weight)


def _vjp(g: Tensor, c_spec: Spec, a: Tensor, b: Tensor, beta: Any, alpha: Any, needs: Any) -> tuple:
    scaled = g if alpha == 1 else g * alpha
    dc = da = db = None
    if needs[0]:
        dc = ops.sum_to(g if beta == 1 else g * beta, c_spec.shape)
    if needs[1]:
        da = ops.matmul(scaled, _swap(b))
    if needs[2]:
        db = ops.matmul(_swap(a), scaled)
    return dc, da, db


def _samples(draw: Any, batch: tuple[int, ...]) -> tuple[tuple, dict]:
    m, k, n = draw.size(0, 5, 37), draw.size(0, 5, 40), draw.size(0, 5, 41)
    if draw.blocks == "trial" or draw.boolean():  # several tiles along each axis
        m, k, n = draw.integer(17, 40), draw.integer(15, 40), draw.integer(17, 40)
        if draw.integer(0, 2):  # what a tensor descriptor can describe
            m, k, n = (-(-size // 8) * 8 for size in (m, k, n))
    full = (*batch, m, n)
    added = draw.choice([full, full, (n,), (m, 1), (1, n), (), full[-2:]])
    attrs = {"beta": draw.choice([1, 0, 0.5]), "alpha": draw.choice([1, 1, -1.25])}
    a, b = operand_sample(draw, (*batch, m, k)), operand_sample(draw, (*batch, k, n))
    return (draw.tensor(added), a, b), attrs


@primitive
class addmm:
    """beta * input + alpha * (mat1 @ mat2): mat1 (m, k), mat2 (k, n), input broadcasts to (m, n).

    Rounded once, at the end. With beta 0 the values of input do not matter, not even NaN. All
    operands have the same dtype; for integers beta and alpha are ints.

    >>> trident.addmm(trident.ones(2), trident.ones(3, 4), trident.ones(4, 2))[0].tolist()
    [5.0, 5.0]
    """

    def infer(input, mat1, mat2, *, beta=1, alpha=1):
        return _infer("addmm", 2, ("input", "mat1", "mat2"), (input, mat1, mat2), beta, alpha)

    def numpy(input, mat1, mat2, *, beta=1, alpha=1):
        return _numpy(2, input, mat1, mat2, beta, alpha)

    def launch(out, input, mat1, mat2, *, beta=1, alpha=1):
        _launch(out, input, mat1, mat2, beta, alpha)

    def vjp(g, input_spec, mat1, mat2, beta, alpha, needs):
        return _vjp(g, input_spec, mat1, mat2, beta, alpha, needs)

    def samples(draw):
        return _samples(draw, ())


@primitive
class baddbmm:
    """beta * input + alpha * (batch1 @ batch2): (b, m, k), (b, k, n); input to (b, m, n).

    As ``addmm``, for a batch of matrices.

    >>> trident.baddbmm(trident.ones(1), trident.ones(5, 3, 4), trident.ones(5, 4, 2)).shape
    trident.Size([5, 3, 2])
    """

    def infer(input, batch1, batch2, *, beta=1, alpha=1):
        names = ("input", "batch1", "batch2")
        return _infer("baddbmm", 3, names, (input, batch1, batch2), beta, alpha)

    def numpy(input, batch1, batch2, *, beta=1, alpha=1):
        return _numpy(3, input, batch1, batch2, beta, alpha)

    def launch(out, input, batch1, batch2, *, beta=1, alpha=1):
        _launch(out, input, batch1, batch2, beta, alpha)

    def vjp(g, input_spec, batch1, batch2, beta, alpha, needs):
        return _vjp(g, input_spec, batch1, batch2, beta, alpha, needs)

    def samples(draw):
        return _samples(draw, (draw.integer(1, 3),))
