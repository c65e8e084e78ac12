"""Gradients of ops: against differences, at kinks, and the kernels against the tape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import dtypes
from ..autograd import grad, gradcheck, gradgradcheck
from ..creation import tensor
from ..dtypes import dtype as DType
from ..ops.registry import Op
from ..tensor import Tensor
from .cases import (
    Sample,
    function_of,
    leaves_of,
    length_of,
    on,
    plain_cpu,
    run,
    sample,
    strict,
    tensors,
    tiles,
)
from .closeness import assert_close
from .draw import Draw


def smooth_sample(op: Op, draw: Draw) -> Sample:
    """A float64 sample, away from the op's kinks."""
    args, attrs = sample(op, draw, dtypes.float64)
    kinks = getattr(op, "kinks", ())
    if kinks:
        args = tuple(_away(a, kinks) for a in args)
    return args, attrs


def _away(a: Any, kinks: Iterable[float]) -> Any:
    if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
        return a
    a = a.copy()
    for k in kinks:
        near = np.abs(a - k) < 0.05
        a[near] = k + 0.1
    return a


def check_gradient(op: Op, draw: Draw, dtype: DType = dtypes.float64, device: str = "cpu") -> None:
    """First and second derivatives against differences along random directions, in float64."""
    args, attrs = smooth_sample(op, draw)
    given = leaves_of(op, args, device)
    if not any(isinstance(a, Tensor) and a.requires_grad and a.numel() for a in given):
        return
    function = function_of(op)

    def call(*xs: Any) -> Any:
        return function(*xs, **attrs)

    if not any(o.requires_grad for o in run(op, given, attrs)):
        return
    _check_numpy_vjp(op, call, given)
    gradcheck(call, given, eps=1e-6, atol=1e-5, rtol=1e-4, directions=2)
    gradgradcheck(call, given, eps=1e-6, atol=1e-4, rtol=1e-2)


def _check_numpy_vjp(op: Op, call: Callable, given: tuple) -> None:
    """``numpy_vjp`` (what an ordinary backward runs) against ``vjp`` (what create_graph runs)."""
    if op.numpy_vjp is None:
        return
    leaves = [a for a in given if isinstance(a, Tensor) and a.requires_grad]
    out = call(*given)
    g = tensor(np.random.default_rng(1).standard_normal(tuple(out.shape)))
    plain = grad(out, leaves, g, retain_graph=True, allow_unused=True)
    recorded = grad(out, leaves, g, create_graph=True, allow_unused=True)
    for i, (a, b) in enumerate(zip(plain, recorded)):
        if b is not None:
            assert_close(a, b.detach(), length=b.numel(), msg=f"{op.name}: numpy_vjp, gradient {i}")


def check_gradient_kernel(op: Op, draw: Draw, dtype: DType, device: str) -> None:
    """The backward kernels against the CPU's tape, on the same random cotangents."""
    with tiles(draw, device, dtype), strict():
        args, attrs = sample(op, draw, dtype)
        kinks = getattr(op, "kinks", ())
        args = tuple(_away(a, kinks) if kinks else a for a in args)
        results = []
        seed = draw.integer(0, 99)
        for where in ("cpu", device):
            with on(where):
                found = _gradients(op, args, attrs, where, seed)
            if found is None:
                return
            results.append(found)
    for i, (want, got) in enumerate(zip(*results)):
        assert (want is None) == (got is None), f"{op.name}: gradient {i} is missing on one device"
        if want is not None:
            assert_close(
                got, want, length=4 * length_of(args), msg=f"{op.name}[{dtype.name}] gradient {i}"
            )


def _gradients(
    op: Op, args: tuple, attrs: dict, where: str, seed: int
) -> list[np.ndarray | None] | None:
    """The gradients of a sample's operands for random cotangents; None where nothing needs one."""
    given = leaves_of(op, args, where)
    leaves = [a for a in given if isinstance(a, Tensor) and a.requires_grad]
    outs = [o for o in run(op, given, attrs) if o.requires_grad]
    if not outs:
        return None
    rng = np.random.default_rng(seed)
    # a gradient arrives with whatever strides the next rule gave it
    draw = Draw(seed)
    values = [rng.standard_normal(tuple(o.shape)).astype(o.dtype.np) for o in outs]
    gs = [tensors((draw.layout(v),), where)[0] for v in values]
    return [None if g is None else g._host() for g in grad(outs, leaves, gs, allow_unused=True)]


def check_kinks(op: Op, draw: Draw, dtype: DType = dtypes.float64, device: str = "cpu") -> None:
    """At the points where the op is not smooth: a finite gradient that lies between the slopes on
    both sides, and is the same number on every device."""
    kinks = tuple(op.kinks)  # type: ignore[attr-defined]
    attrs = dict(op.defaults)
    if op.samples is not None:
        attrs |= {k: v for k, v in op.samples(draw)[1].items() if k in op.attributes}
    rng = draw.values()
    n = len(kinks)
    for i in range(op.arity):
        args = [rng.uniform(0.5, 2.0, n) for _ in range(op.arity)]
        args[i] = np.array(kinks, np.float64)
        with plain_cpu():
            found = _slopes(op, tuple(args), attrs, i, "cpu")
        if found is None:
            continue
        here = f"{op.name} at {dict(zip(('kink',) * 1, [kinks]))['kink']}, operand {i}"
        assert np.isfinite(found).all(), f"{here}: the gradient is {found}"
        if device != "cpu":
            with strict():
                on_device = _slopes(op, tuple(args), attrs, i, device)
            assert_close(on_device, found, msg=f"{here}: gradient on {device}")
            continue
        left, right = (_side(op, args, attrs, i, s) for s in (-1.0, 1.0))
        jumps = np.maximum(np.abs(left), np.abs(right)) > 1e3  # a step, not a kink: no slope there
        low, high = np.minimum(left, right), np.maximum(left, right)
        between = (found >= low - 1e-4) & (found <= high + 1e-4)
        assert (between | jumps).all(), (
            f"{here}: the gradient {found} is not between the slopes {left} and {right}"
        )


def _slopes(op: Op, args: tuple, attrs: dict, i: int, where: str) -> np.ndarray | None:
    given = leaves_of(op, args, where)
    (out,) = run(op, given, attrs)
    if not out.requires_grad:
        return None
    (g,) = grad([out], [given[i]], [tensor(np.ones(out.shape), device=where)], allow_unused=True)
    return None if g is None else g._host()


def _side(op: Op, args: list, attrs: dict, i: int, sign: float) -> np.ndarray:
    moved = list(args)
    moved[i] = args[i] + sign * 1e-6
    (near,) = run(op, tensors(tuple(moved), "cpu"), attrs)
    (at,) = run(op, tensors(tuple(args), "cpu"), attrs)
    return (near._host() - at._host()) / (sign * 1e-6)
