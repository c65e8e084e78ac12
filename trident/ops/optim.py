"""Optimizer steps that update lists of arrays in place, on either backend.

The numpy bodies walk each tensor in blocks that stay in the cache, with ``out=`` everywhere and two
scratch blocks for the whole step. A tensor whose arrays are not all contiguous is done in one
piece; one in a half type is computed in float32 and rounded once, as the kernels do. Bias
corrections and other scalars are Python floats.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..kernels import optim as kernels
from ..runtime.blas import axpby
from .registry import inplace

BLOCK = 131072  # elements: what fits a core's L2 cache with two or three state arrays
_local = threading.local()


def _scratch(dtype: np.dtype, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of ``size`` elements that are kept between steps."""
    kept: dict[Any, Any] = _local.__dict__
    pair = kept.get(dtype)
    if pair is None or pair[0].size < size:
        pair = kept[dtype] = (np.empty(size, dtype), np.empty(size, dtype))
    return pair[0][:size], pair[1][:size]


def _each(update: Callable, rows: Sequence[list[np.ndarray]], *numbers: Any) -> None:
    """``update(param, grad, *state, scratch, scratch, *numbers)`` on each tensor, by blocks."""
    for arrays in zip(*rows):
        p = arrays[0]
        n = p.size
        if n == 0:
            continue
        if p.dtype.itemsize == 2:
            _half(update, arrays, numbers)
            continue
        g = arrays[1]
        if g.dtype != p.dtype:
            arrays = (p, g.astype(p.dtype), *arrays[2:])
        for a in arrays:
            if not a.flags.c_contiguous:
                s, t = np.empty(p.shape, p.dtype), np.empty(p.shape, p.dtype)
                update(*arrays, s, t, *numbers)
                break
        else:
            if p.ndim != 1:
                arrays = [a.reshape(-1) for a in arrays]
            if n <= BLOCK:
                update(*arrays, *_scratch(p.dtype, n), *numbers)
            else:
                _blocks(update, arrays, n, numbers)


def _blocks(update: Callable, arrays: Sequence[np.ndarray], n: int, numbers: tuple) -> None:
    """A large tensor in blocks. In one thread: with two, passes of 10 us wait for each other's GIL
    and Adam on 100,000 elements was measured 1.9 times slower."""
    for first in range(0, n, BLOCK):
        part = [a[first : first + BLOCK] for a in arrays]
        update(*part, *_scratch(part[0].dtype, part[0].size), *numbers)


def _half(update: Callable, arrays: Sequence[np.ndarray], numbers: tuple) -> None:
    wide = [a.astype(np.float32) for a in arrays]
    shape = wide[0].shape
    update(*wide, np.empty(shape, np.float32), np.empty(shape, np.float32), *numbers)
    for i, (a, w) in enumerate(zip(arrays, wide)):
        if i != 1:
            a[...] = w


def _gradient(
    p: np.ndarray, g: np.ndarray, s: np.ndarray, weight_decay: float, maximize: bool
) -> np.ndarray:
    """``g + weight_decay * p`` (``-g`` where maximizing): in ``s`` if it differs from ``g``."""
    if weight_decay:
        np.multiply(p, weight_decay, out=s)
        return np.subtract(s, g, out=s) if maximize else np.add(s, g, out=s)
    return np.negative(g, out=s) if maximize else g


def _blend(y: np.ndarray, b: float, x: np.ndarray, a: float, scratch: np.ndarray) -> None:
    """``y = b y + a x``, in place; ``scratch`` may be x itself."""
    if not axpby(a, x, b, y):
        np.multiply(x, a, out=scratch)
        if b != 1.0:
            np.multiply(y, b, out=y)
        np.add(y, scratch, out=y)


def _sgd_plain(p, g, s, t, lr, momentum, dampening, weight_decay, nesterov, maximize, first):
    g = _gradient(p, g, s, weight_decay, maximize)
    _blend(p, 1.0, g, -lr, s)


def _sgd_momentum(p, g, b, s, t, lr, momentum, dampening, weight_decay, nesterov, maximize, first):
    g = _gradient(p, g, s, weight_decay, maximize)
    if first:
        np.copyto(b, g)
    else:
        _blend(b, momentum, g, 1 - dampening, t)
    if nesterov:
        np.multiply(b, momentum, out=t)
        np.add(t, g, out=t)
        _blend(p, 1.0, t, -lr, t)
    else:
        _blend(p, 1.0, b, -lr, t)


@inplace
class sgd_:
    """One step of SGD on lists of arrays: ``b = momentum b + (1 - dampening) g``; ``p -= lr b``.

    ``momentum_buffers`` is an empty list without momentum. ``first``: the buffers are new, and
    become the gradients. ``nesterov`` steps along ``g + momentum b``; ``maximize`` turns the
    gradient round.
    """

    def numpy(
        params,
        grads,
        momentum_buffers,
        *,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        maximize=False,
        first=False,
    ):
        numbers = (lr, momentum, dampening, weight_decay, nesterov, maximize, first)
        if momentum_buffers:
            _each(_sgd_momentum, (params, grads, momentum_buffers), *numbers)
        else:
            _each(_sgd_plain, (params, grads), *numbers)

    def launch(
        params,
        grads,
        momentum_buffers,
        *,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        maximize=False,
        first=False,
    ):
        kernels.sgd(
            params, grads, momentum_buffers, lr=lr, momentum=momentum, dampening=dampening,
            weight_decay=weight_decay, nesterov=nesterov, maximize=maximize, first=first,
        )  # fmt: skip

    def samples(draw):
        lists = _lists(draw, 3)
        if draw.boolean():
            return (*lists[:2], []), {"lr": 0.1, "weight_decay": 0.01}
        return tuple(lists), {
            "lr": 0.1,
            "momentum": 0.9,
            "nesterov": draw.boolean(),
            "maximize": draw.boolean(),
            "first": draw.boolean(),
        }


def _adam(p, g, m, v, s, t, step_size, b1, b2, eps, weight_decay, shrink, maximize):
    if shrink is not None:
        np.multiply(p, shrink, out=p)
    g = _gradient(p, g, s, weight_decay, maximize)
    np.multiply(g, g, out=t)
    _blend(v, b2, t, 1 - b2, t)
    _blend(m, b1, g, 1 - b1, t)
    np.sqrt(v, out=t)
    np.add(t, eps, out=t)
    np.divide(m, t, out=t)
    _blend(p, 1.0, t, -step_size, t)


def _amsgrad(p, g, m, v, top, s, t, step_size, b1, b2, eps, weight_decay, shrink, maximize):
    if shrink is not None:
        np.multiply(p, shrink, out=p)
    g = _gradient(p, g, s, weight_decay, maximize)
    np.multiply(g, g, out=t)
    _blend(v, b2, t, 1 - b2, t)
    _blend(m, b1, g, 1 - b1, t)
    np.maximum(top, v, out=top)
    np.sqrt(top, out=t)
    np.add(t, eps, out=t)
    np.divide(m, t, out=t)
    _blend(p, 1.0, t, -step_size, t)


@inplace
class adam_:
    """Step number ``step`` (from 1) of Adam on lists of arrays; AdamW where ``decoupled``.

    ``m = b1 m + (1 - b1) g``; ``v = b2 v + (1 - b2) g^2``;
    ``p -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)``.
    ``max_exp_avg_sqs`` is an empty list without amsgrad. ``weight_decay`` is added to the gradient,
    or (decoupled) shrinks the parameter by ``lr * weight_decay`` first. Source: Kingma and Ba,
    arXiv:1412.6980; Loshchilov and Hutter, arXiv:1711.05101.
    """

    def numpy(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        *,
        step,
        lr=1e-3,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        decoupled=False,
        maximize=False,
    ):
        # m / (sqrt(v / c) + eps) = sqrt(c) m / (sqrt(v) + sqrt(c) eps): one pass less
        root = (1 - beta2**step) ** 0.5
        shrink = 1 - lr * weight_decay if decoupled and weight_decay else None
        numbers = (
            lr / (1 - beta1**step) * root, beta1, beta2, eps * root,
            0.0 if decoupled else weight_decay, shrink, maximize,
        )  # fmt: skip
        if max_exp_avg_sqs:
            _each(_amsgrad, (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs), *numbers)
        else:
            _each(_adam, (params, grads, exp_avgs, exp_avg_sqs), *numbers)

    def launch(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        *,
        step,
        lr=1e-3,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        decoupled=False,
        maximize=False,
    ):
        kernels.adam(
            params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, step=step, lr=lr, beta1=beta1,
            beta2=beta2, eps=eps, weight_decay=weight_decay, decoupled=decoupled, maximize=maximize,
        )  # fmt: skip

    def samples(draw):
        lists = _lists(draw, 5, positive=(3, 4))
        if draw.boolean():
            lists[4] = []
        return tuple(lists), {
            "step": draw.integer(1, 9),
            "lr": 0.01,
            "weight_decay": 0.1 if draw.boolean() else 0.0,
            "decoupled": draw.boolean(),
            "maximize": draw.boolean(),
        }


def _rmsprop(*arrays_and_numbers):
    """Called with p, g, v, [mean], [buffer], s, t and the numbers."""
    lr, alpha, eps, weight_decay, momentum, maximize, centered = arrays_and_numbers[-7:]
    p, g, v, *rest, s, t = arrays_and_numbers[:-7]
    g = _gradient(p, g, s, weight_decay, maximize)
    np.multiply(g, g, out=t)
    np.multiply(t, 1 - alpha, out=t)
    np.multiply(v, alpha, out=v)
    np.add(v, t, out=v)
    spread = v
    if centered:
        mean = rest.pop(0)
        np.multiply(g, 1 - alpha, out=t)
        np.multiply(mean, alpha, out=mean)
        np.add(mean, t, out=mean)
        np.multiply(mean, mean, out=t)
        np.subtract(v, t, out=t)
        spread = np.maximum(t, 0, out=t)  # rounding may leave a variance just below 0
    np.sqrt(spread, out=t)
    np.add(t, eps, out=t)
    np.divide(g, t, out=t)
    if momentum:
        buffer = rest[0]
        np.multiply(buffer, momentum, out=buffer)
        np.add(buffer, t, out=buffer)
        np.multiply(buffer, lr, out=t)
    else:
        np.multiply(t, lr, out=t)
    np.subtract(p, t, out=p)


@inplace
class rmsprop_:
    """One step of RMSprop on lists of arrays: ``v = alpha v + (1 - alpha) g^2``;
    ``p -= lr g / (sqrt(v) + eps)``.

    ``grad_avgs`` is an empty list unless centered (then the variance replaces ``v``);
    ``momentum_buffers`` is one without momentum.
    """

    def numpy(
        params,
        grads,
        square_avgs,
        grad_avgs,
        momentum_buffers,
        *,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0.0,
        momentum=0.0,
        maximize=False,
    ):
        rows = [params, grads, square_avgs]
        rows += [state for state in (grad_avgs, momentum_buffers) if state]
        share = momentum if momentum_buffers else 0.0
        _each(_rmsprop, rows, lr, alpha, eps, weight_decay, share, maximize, bool(grad_avgs))

    def launch(
        params,
        grads,
        square_avgs,
        grad_avgs,
        momentum_buffers,
        *,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0.0,
        momentum=0.0,
        maximize=False,
    ):
        kernels.rmsprop(
            params, grads, square_avgs, grad_avgs, momentum_buffers, lr=lr, alpha=alpha, eps=eps,
            weight_decay=weight_decay, momentum=momentum, maximize=maximize,
        )  # fmt: skip

    def samples(draw):
        lists = _lists(draw, 5, positive=(2,))
        lists[2] = [v + 5 for v in lists[2]]  # above the square of the mean, so that eps is not all
        if draw.boolean():
            lists[3] = []
        attrs = {"lr": 0.01, "alpha": 0.9, "maximize": draw.boolean()}
        if draw.boolean():
            lists[4] = []
            return tuple(lists), attrs
        return tuple(lists), {**attrs, "momentum": 0.9}


def _adagrad(p, g, total, s, t, lr, eps, weight_decay, maximize):
    g = _gradient(p, g, s, weight_decay, maximize)
    np.multiply(g, g, out=t)
    np.add(total, t, out=total)
    np.sqrt(total, out=t)
    np.add(t, eps, out=t)
    np.divide(g, t, out=t)
    np.multiply(t, lr, out=t)
    np.subtract(p, t, out=p)


@inplace
class adagrad_:
    """One step of Adagrad on lists of arrays: ``s += g^2``; ``p -= lr g / (sqrt(s) + eps)``.

    ``lr`` is the rate of this step, already decayed.
    """

    def numpy(params, grads, state_sums, *, lr=1e-2, eps=1e-10, weight_decay=0.0, maximize=False):
        _each(_adagrad, (params, grads, state_sums), lr, eps, weight_decay, maximize)

    def launch(params, grads, state_sums, *, lr=1e-2, eps=1e-10, weight_decay=0.0, maximize=False):
        kernels.adagrad(
            params, grads, state_sums, lr=lr, eps=eps, weight_decay=weight_decay, maximize=maximize
        )

    def samples(draw):
        lists = _lists(draw, 3, positive=(2,))
        return tuple(lists), {"lr": 0.1, "weight_decay": 0.01, "maximize": draw.boolean()}


def _lists(draw: Any, rows: int, positive: tuple[int, ...] = ()) -> list[list[np.ndarray]]:
    """``rows`` lists of arrays of equal shapes for a test; writable, so without stride 0."""
    spans = [
        (draw.integer(2049, 2300),) if draw.blocks == "gpu" and draw.boolean() else draw.shape(0, 2)
        for _ in range(draw.integer(1, 3))
    ]
    return [
        [np.array(draw.tensor(s, low=0.1 if r in positive else -2.0, high=2.0)) for s in spans]
        for r in range(rows)
    ]
