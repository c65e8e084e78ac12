"""Gradients against finite differences, along random directions.

A direction per input instead of one difference per element: the cost does not grow with the size,
and an error in any element shows with probability one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import dtypes
from ..errors import AutogradError
from ..tape.engine import grad
from ..tape.grad_mode import enable_grad, no_grad
from ..tensor import Tensor, tensor_of


class GradcheckError(AutogradError):
    """An analytic gradient that differs from the numerical one."""


def _inputs(inputs: Any) -> tuple:
    return tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs,)


def _outputs(value: Any) -> list[Tensor]:
    items = value if isinstance(value, (list, tuple)) else (value,)
    return [o for o in items if isinstance(o, Tensor) and o.is_floating_point()]


def _directions(rng: np.random.Generator, like: Tensor) -> Tensor:
    return tensor_of(rng.standard_normal(tuple(like.shape))).to(like.device).to(like.dtype)


def gradcheck(
    func: Callable,
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    directions: int = 3,
    seed: int = 0,
) -> bool:
    """Whether the gradients of ``func(*inputs)`` agree with central differences.

    inputs: float64 tensors with requires_grad (others are constants). Each of ``directions`` rounds
    compares ``<v, J u>`` for random u and v. Raises GradcheckError (or returns False) where they
    differ by more than ``atol + rtol * |numerical|``.

    >>> x = trident.tensor([0.3, -1.2], dtype=trident.float64, requires_grad=True)
    >>> trident.autograd.gradcheck(lambda x: x.sin() * x, x)
    True
    """
    args = _inputs(inputs)
    checked = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    if not checked:
        raise AutogradError("gradcheck: no input requires grad, so there is nothing to check")
    for i in checked:
        if args[i].dtype is not dtypes.float64:
            raise AutogradError(
                f"gradcheck: inputs[{i}] must be float64 for differences to be exact enough; got "
                f"{args[i].dtype.name}"
            )
    rng = np.random.default_rng(seed)
    with enable_grad():
        outs = _outputs(func(*args))
    if not any(o.requires_grad for o in outs):
        raise AutogradError("gradcheck: no output of func depends on an input that requires grad")
    for _ in range(directions):
        v = [_directions(rng, o) for o in outs]
        pairs = [(o, w) for o, w in zip(outs, v) if o.requires_grad]
        analytic = grad(
            [o for o, _ in pairs], [args[i] for i in checked], [w for _, w in pairs],
            retain_graph=True, allow_unused=True,
        )  # fmt: skip
        for i, g in zip(checked, analytic):
            u = _directions(rng, args[i])
            got = 0.0 if g is None else float((g * u).sum())
            want = _difference(func, args, i, u, v, eps)
            if not abs(got - want) <= atol + rtol * abs(want):
                if not raise_exception:
                    return False
                raise GradcheckError(
                    f"gradcheck: the gradient of inputs[{i}], shape {tuple(args[i].shape)}, along "
                    f"a random direction is {got:.10g}; finite differences give {want:.10g}"
                )
    return True


def _difference(
    func: Callable, args: tuple, i: int, u: Tensor, v: list[Tensor], eps: float
) -> float:
    sums = []
    with no_grad():
        for sign in (1.0, -1.0):
            moved = list(args)
            moved[i] = args[i].detach() + u * (sign * eps)
            with enable_grad():
                moved = [
                    m.detach().requires_grad_() if isinstance(a, Tensor) and a.requires_grad else m
                    for m, a in zip(moved, args)
                ]
                outs = _outputs(func(*moved))
            sums.append(sum(float((o.detach() * w).sum()) for o, w in zip(outs, v)))
    return (sums[0] - sums[1]) / (2 * eps)


def gradgradcheck(
    func: Callable,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    seed: int = 1,
) -> bool:
    """Whether second derivatives agree with differences of the first.

    >>> x = trident.tensor([0.3, -1.2], dtype=trident.float64, requires_grad=True)
    >>> trident.autograd.gradgradcheck(lambda x: x**3, x)
    True
    """
    args = _inputs(inputs)
    rng = np.random.default_rng(seed)
    with no_grad():
        outs = _outputs(func(*args))
    if grad_outputs is None:
        gs = [_directions(rng, o).requires_grad_() for o in outs]
    else:
        gs = list(_inputs(grad_outputs))
    n = len(args)

    def first(*both: Any) -> tuple:
        xs, weights = both[:n], both[n:]
        ys = _outputs(func(*xs))
        live = [(y, w) for y, w in zip(ys, weights) if y.requires_grad]
        wanted = [x for x in xs if isinstance(x, Tensor) and x.requires_grad]
        found = grad(
            [y for y, _ in live], wanted, [w for _, w in live], create_graph=True,
            allow_unused=True,
        )  # fmt: skip
        return tuple(f for f in found if f is not None and f.requires_grad)

    with enable_grad():
        if not first(*args, *gs):
            return True  # piecewise linear in everything: the second derivative is zero
    return gradcheck(
        first, (*args, *gs), eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception,
        seed=seed,
    )  # fmt: skip
