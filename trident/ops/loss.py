"""Losses, with torch's reductions: 'mean' (default), 'sum' or 'none'.

A loss raises where input and target differ in shape instead of broadcasting one against the other.
The old ``size_average`` and ``reduce`` are understood, with a DeprecationWarning.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from ..errors import wrong
from ..kernels.device_math import typed
from ..lang import jit, tl
from .registry import Interval, composite, elementwise, ops

# ---- what all losses share ----------------------------------------------------------------------


def reduction_of(op: str, reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction, with torch's old keywords taken into account."""
    if size_average is not None or reduce is not None:
        if reduce is False:
            reduction = "none"
        else:
            reduction = "sum" if size_average is False else "mean"
        warnings.warn(
            f"{op}: size_average and reduce are old; use reduction={reduction!r}",
            DeprecationWarning,
            stacklevel=3,
        )
    if reduction not in ("mean", "sum", "none"):
        raise wrong(
            op, "reduction must be 'mean', 'sum' or 'none'", got=repr(reduction), error=ValueError
        )
    return reduction


def same_shape(op: str, x: Any, y: Any, name: str = "target", first: str = "input") -> None:
    if tuple(x.shape) != tuple(y.shape):
        raise wrong(
            op,
            f"{name} must have the shape of {first}, {tuple(x.shape)}",
            got=tuple(y.shape),
            hint="losses do not broadcast; use reshape or expand where you mean it",
        )


def reduced(loss: Any, reduction: str) -> Any:
    if reduction == "mean":
        return ops.mean(loss)
    return ops.sum(loss) if reduction == "sum" else loss


# ---- differences --------------------------------------------------------------------------------


@elementwise(takes="number", method=False)
class squared_error:
    """(x - y)^2.

    >>> trident.squared_error(trident.tensor([1.0]), trident.tensor([4.0]))
    tensor([9.])
    """

    def numpy(x, y):
        away = np.subtract(x, y)
        return np.multiply(away, away)

    @jit
    def triton(x, y):
        return (x - y) * (x - y)

    def vjp(g, x, y):
        dx = g * (x - y) * 2
        return dx, -dx


@composite(method=False)
def mse_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """(input - target)^2, averaged.

    >>> trident.mse_loss(trident.tensor([1., 2.]), trident.tensor([1., 4.]))
    tensor(2.)
    """
    reduction = reduction_of("mse_loss", reduction, size_average, reduce)
    same_shape("mse_loss", input, target)
    return reduced(squared_error(input, target), reduction)


@composite(method=False)
def l1_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """|input - target|, averaged.

    >>> trident.l1_loss(trident.tensor([1., 2.]), trident.tensor([1., 4.]))
    tensor(1.)
    """
    reduction = reduction_of("l1_loss", reduction, size_average, reduce)
    same_shape("l1_loss", input, target)
    return reduced(ops.abs(input - target), reduction)


@elementwise(takes="float", kinks=(-1.0, 1.0), method=False)
class huber:
    """x^2 / 2 up to |x| = delta, from there on the straight line delta (|x| - delta / 2)."""

    def numpy(x, *, delta=1.0):
        size = np.abs(x)
        near = np.minimum(size, delta)
        return near * (size - 0.5 * near)

    @jit
    def triton(x, delta: tl.constexpr):
        size = tl.abs(x)
        near = tl.minimum(size, typed(delta, x), propagate_nan=tl.PropagateNan.ALL)
        return near * (size - 0.5 * near)

    def vjp(g, x, *, delta):
        return g * ops.maximum(ops.minimum(x, delta), -delta)


@composite(method=False)
def huber_loss(
    input: Any, target: Any, reduction: str = "mean", delta: float = 1.0, weight: Any = None
) -> Any:
    """d^2 / 2 for |d| <= delta, else delta (|d| - delta / 2), with d = input - target; averaged.

    >>> trident.huber_loss(trident.tensor([0., 3.]), trident.tensor([1., 0.]), reduction='none')
    tensor([0.5000, 2.5000])
    """
    reduction = reduction_of("huber_loss", reduction, None, None)
    same_shape("huber_loss", input, target)
    if delta <= 0:
        raise wrong("huber_loss", "delta must be positive", got=delta, error=ValueError)
    loss = huber(input - target, delta=float(delta))
    return reduced(loss if weight is None else loss * weight, reduction)


@composite(method=False)
def smooth_l1_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Any:
    """d^2 / (2 beta) for |d| < beta, else |d| - beta / 2, with d = input - target; averaged.

    >>> trident.smooth_l1_loss(trident.tensor([0., 3.]), trident.tensor([1., 0.]), reduction='none')
    tensor([0.5000, 2.5000])
    """
    reduction = reduction_of("smooth_l1_loss", reduction, size_average, reduce)
    same_shape("smooth_l1_loss", input, target)
    if beta < 0:
        raise wrong("smooth_l1_loss", "beta must not be negative", got=beta, error=ValueError)
    away = input - target
    if beta == 0:
        return reduced(ops.abs(away), reduction)
    loss = huber(away, delta=float(beta))
    return reduced(loss if beta == 1.0 else loss / beta, reduction)


# ---- probabilities ------------------------------------------------------------------------------

_PROBABILITY = Interval(0.05, 0.95)


@elementwise(takes="float", domain=_PROBABILITY, method=False)
class bernoulli_loss:
    """-(y log p + (1 - y) log(1 - p)), where a logarithm is at least -100."""

    def numpy(p, y):
        return (y - 1) * np.maximum(np.log1p(-p), -100) - y * np.maximum(np.log(p), -100)

    @jit
    def triton(p, y):
        far = tl.maximum(tl.log(1.0 - p), -100.0, propagate_nan=tl.PropagateNan.ALL)
        near = tl.maximum(tl.log(p), -100.0, propagate_nan=tl.PropagateNan.ALL)
        return (y - 1.0) * far - y * near

    def vjp(g, p, y):
        dp = g * (p - y) / ops.maximum(p * (1.0 - p), 1e-12)
        dy = g * (ops.maximum(ops.log(1.0 - p), -100.0) - ops.maximum(ops.log(p), -100.0))
        return dp, dy


@composite(method=False)
def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """-(y log p + (1 - y) log(1 - p)) for probabilities p = input and y = target in [0, 1],
    averaged. Logarithms are at least -100, so that p = 0 and p = 1 stay finite.

    >>> trident.binary_cross_entropy(trident.tensor([0.5]), trident.tensor([1.]))
    tensor(0.6931)
    """
    reduction = reduction_of("binary_cross_entropy", reduction, size_average, reduce)
    same_shape("binary_cross_entropy", input, target)
    loss = bernoulli_loss(input, target)
    return reduced(loss if weight is None else loss * weight, reduction)


@elementwise(takes="float", method=False)
class bernoulli_logit_loss:
    """(1 - y) x + (1 + (w - 1) y) log(1 + exp(-x)): the loss of the logit x, positives weighing
    w."""

    def numpy(x, y, w):
        softplus = np.log1p(np.exp(-np.abs(x))) - np.minimum(x, 0)
        return (1 - y) * x + (1 + (w - 1) * y) * softplus

    @jit
    def triton(x, y, w):
        # log(1 + e) for e in (0, 1]: the quotient makes up for what rounding 1 + e loses
        e = tl.exp(-tl.abs(x))
        u = 1.0 + e
        log1p = tl.where(u == 1.0, e, tl.log(u) * (e / (u - 1.0)))
        softplus = log1p - tl.minimum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return (1.0 - y) * x + (1.0 + (w - 1.0) * y) * softplus

    def vjp(g, x, y, w):
        softplus = ops.log1p(ops.exp(-ops.abs(x))) - ops.minimum(x, 0.0)
        chance = ops.sigmoid(-x)
        dx = g * ((1.0 - y) - (1.0 + (w - 1.0) * y) * chance)
        return dx, g * ((w - 1.0) * softplus - x), g * y * softplus


@composite(method=False)
def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Any = None,
) -> Any:
    """Binary cross entropy of sigmoid(input), without overflow. ``pos_weight`` (broadcast)
    multiplies the share of the positives.

    >>> trident.binary_cross_entropy_with_logits(trident.tensor([0.]), trident.tensor([1.]))
    tensor(0.6931)
    """
    op = "binary_cross_entropy_with_logits"
    reduction = reduction_of(op, reduction, size_average, reduce)
    same_shape(op, input, target)
    loss = bernoulli_logit_loss(input, target, 1.0 if pos_weight is None else pos_weight)
    return reduced(loss if weight is None else loss * weight, reduction)


@composite(method=False)
def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Any:
    """target (log target - input), where ``input`` holds log-probabilities. 'batchmean' divides the
    sum by the size of axis 0, which is the divergence; ``log_target``: target is a logarithm as
    well.

    >>> p = trident.tensor([[0.5, 0.5]])
    >>> trident.kl_div(trident.log(p), p, reduction='batchmean')
    tensor(0.)
    """
    batch = reduction == "batchmean" and size_average is None and reduce is None
    how = "sum" if batch else reduction_of("kl_div", reduction, size_average, reduce)
    same_shape("kl_div", input, target)
    if log_target:
        loss = ops.exp(target) * (target - input)
    else:
        positive = ops.gt(target, 0.0)
        safe = ops.where(positive, target, 1.0)
        loss = ops.where(positive, target * ops.log(safe), 0.0) - target * input
    total = reduced(loss, how)
    return total / float(input.shape[0]) if batch else total


@composite(method=False)
def poisson_nll_loss(
    input: Any,
    target: Any,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """exp(input) - target input, the Poisson likelihood where ``input`` is the log of the rate;
    ``log_input=False``: input - target log(input + eps). ``full`` adds Stirling's approximation of
    log(target!) where target > 1.

    >>> trident.poisson_nll_loss(trident.tensor([0.]), trident.tensor([2.]))
    tensor(1.)
    """
    reduction = reduction_of("poisson_nll_loss", reduction, size_average, reduce)
    same_shape("poisson_nll_loss", input, target)
    if log_input:
        loss = ops.exp(input) - target * input
    else:
        loss = input - target * ops.log(input + eps)
    if full:
        large = ops.gt(target, 1.0)
        safe = ops.where(large, target, 1.0)
        stirling = safe * ops.log(safe) - safe + ops.log(safe * (2.0 * math.pi)) * 0.5
        loss = loss + ops.where(large, stirling, 0.0)
    return reduced(loss, reduction)


@composite(method=False)
def gaussian_nll_loss(
    input: Any,
    target: Any,
    var: Any,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Any:
    """(log var + (input - target)^2 / var) / 2, var at least ``eps``; ``var`` has the shape of
    input, or 1 as (or without) its last axis. ``full`` adds log(2 pi) / 2.

    >>> one = trident.ones(1)
    >>> trident.gaussian_nll_loss(one, 3 * one, one)
    tensor(2.)
    """
    reduction = reduction_of("gaussian_nll_loss", reduction, None, None)
    same_shape("gaussian_nll_loss", input, target)
    shape = tuple(input.shape)
    if not isinstance(var, (int, float)) and tuple(var.shape) != shape:
        if tuple(var.shape) == shape[:-1]:
            var = ops.unsqueeze(var, -1)
        elif tuple(var.shape) != (*shape[:-1], 1):
            raise wrong(
                "gaussian_nll_loss", f"var must have the shape of input, {shape}", got=var.shape
            )
    # the bound holds the value, not the gradient, as in torch
    safe = ops.maximum(var, eps) if not isinstance(var, (int, float)) else max(var, eps)
    log = ops.log(safe) if not isinstance(safe, (int, float)) else math.log(safe)
    away = input - target
    loss = (away * away / safe + log) * 0.5
    return reduced(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


# ---- similarity and ranking ---------------------------------------------------------------------


@composite(method=False)
def cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """x1 . x2 / (max(|x1|, eps) max(|x2|, eps)) along ``dim``; x1 and x2 broadcast.

    >>> trident.cosine_similarity(trident.tensor([[1., 0.]]), trident.tensor([[1., 1.]]))
    tensor([0.7071])
    """
    dot = ops.sum(x1 * x2, dim)
    lengths = [ops.maximum(ops.vector_norm(x, 2, dim), eps) for x in (x1, x2)]
    return dot / (lengths[0] * lengths[1])


@composite(method=False)
def pairwise_distance(
    x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Any:
    """The p-norm of x1 - x2 + eps along the last axis.

    >>> x, y = trident.tensor([[3., 4.]]), trident.tensor([[0., 0.]])
    >>> trident.pairwise_distance(x, y, eps=0.0)
    tensor([5.])
    """
    return ops.vector_norm(x1 - x2 + eps, p, -1, keepdim)


@composite(method=False)
def cosine_embedding_loss(
    input1: Any,
    input2: Any,
    target: Any,
    margin: float = 0.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """1 - cos for rows whose target is 1, max(0, cos - margin) where it is -1. Inputs (N, D) or
    (D,).

    >>> x = trident.tensor([[1., 0.]])
    >>> trident.cosine_embedding_loss(x, x, trident.tensor([1.]))
    tensor(0.)
    """
    op = "cosine_embedding_loss"
    reduction = reduction_of(op, reduction, size_average, reduce)
    same_shape(op, input1, input2, "input2", "input1")
    rows = tuple(input1.shape)[:-1]
    if tuple(target.shape) != rows:
        raise wrong(op, f"target must have shape {rows}, one per row", got=tuple(target.shape))
    dot = ops.sum(input1 * input2, -1)
    squares = [ops.sum(x * x, -1) + 1e-12 for x in (input1, input2)]
    cos = dot / ops.sqrt(squares[0] * squares[1])
    other = ops.where(ops.eq(target, -1), ops.relu(cos - margin), 0.0)
    return reduced(ops.where(ops.eq(target, 1), 1.0 - cos, other), reduction)


@composite(method=False)
def triplet_margin_loss(
    anchor: Any,
    positive: Any,
    negative: Any,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin); with ``swap`` the negative may be
    nearer to the positive than to the anchor. Inputs (N, D) or (D,).

    >>> a, b = trident.tensor([[0., 0.]]), trident.tensor([[3., 4.]])
    >>> trident.triplet_margin_loss(a, b, a, margin=1.0, eps=0.0)
    tensor(6.)
    """
    reduction = reduction_of("triplet_margin_loss", reduction, size_average, reduce)
    same_shape("triplet_margin_loss", anchor, positive, "positive", "anchor")
    same_shape("triplet_margin_loss", anchor, negative, "negative", "anchor")
    near = pairwise_distance(anchor, positive, p, eps)
    far = pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = ops.minimum(far, pairwise_distance(positive, negative, p, eps))
    return reduced(ops.relu(near - far + margin), reduction)


@composite(method=False)
def margin_ranking_loss(
    input1: Any,
    input2: Any,
    target: Any,
    margin: float = 0.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """max(0, -target (input1 - input2) + margin), target 1 or -1.

    >>> one = trident.ones(1)
    >>> trident.margin_ranking_loss(one, 3 * one, one)
    tensor(2.)
    """
    reduction = reduction_of("margin_ranking_loss", reduction, size_average, reduce)
    same_shape("margin_ranking_loss", input1, input2, "input2", "input1")
    same_shape("margin_ranking_loss", input1, target, "target", "input1")
    return reduced(ops.relu(-target * (input1 - input2) + margin), reduction)


@composite(method=False)
def hinge_embedding_loss(
    input: Any,
    target: Any,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """input where target is 1, max(0, margin - input) where it is -1.

    >>> trident.hinge_embedding_loss(trident.tensor([2., 0.5]), trident.tensor([1., -1.]))
    tensor(1.2500)
    """
    reduction = reduction_of("hinge_embedding_loss", reduction, size_average, reduce)
    same_shape("hinge_embedding_loss", input, target)
    near = ops.where(ops.eq(target, -1), 0.0, input)
    far = ops.where(ops.eq(target, 1), 0.0, ops.relu(margin - input))
    return reduced(near + far, reduction)
