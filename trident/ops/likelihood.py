"""Cross entropy and the negative log likelihood of classes, given as indices or as
probabilities."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..errors import DTypeError, IndexBoundsError, wrong
from ..kernels import cross_entropy as kernels
from ..kernels.cross_entropy import class_axis
from .loss import reduced, reduction_of
from .registry import Spec, composite, fused, ops, primitive


def _check_classes(op: str, x: Any, target: Any, weight: Any) -> shapes.Shape:
    """The shape of the rows; raises where target or weight do not fit."""
    shape = tuple(x.shape)
    if not shape or not x.dtype.is_floating_point:
        raise wrong(
            op,
            "input must be floating, of shape (C,), (N, C) or (N, C, ...)",
            got=f"{x.dtype.name} of shape {shape}",
            error=DTypeError if shape else IndexError,
        )
    if target.dtype.kind != "int":
        raise wrong(
            op,
            "target must hold class indices (int64)",
            got=target.dtype.name,
            error=DTypeError,
            hint="convert with target.long(), or give probabilities in the shape of input",
        )
    axis = class_axis(len(shape))
    rows = shape[:axis] + shape[axis + 1 :]
    if tuple(target.shape) != rows:
        raise wrong(op, f"target must have shape {rows} for input {shape}", got=tuple(target.shape))
    if weight is not None and tuple(weight.shape) != (shape[axis],):
        raise wrong(
            op, f"weight must have shape ({shape[axis]},), one per class", got=tuple(weight.shape)
        )
    return rows


@functools.lru_cache(maxsize=64)
def _counting(n: int) -> np.ndarray:
    counted = np.arange(n)
    counted.flags.writeable = False
    return counted


def _chosen(target: np.ndarray, shape: shapes.Shape, ignore_index: int) -> tuple[Any, Any, Any]:
    """(index of every row's class in an array of ``shape``, target, rows that count or None for
    all)."""
    axis = class_axis(len(shape))
    classes = shape[axis]
    t = target if target.dtype == np.int64 else target.astype(np.int64)
    used = None
    # as unsigned numbers negative classes, the usual ignore_index among them, are huge: one test
    if t.size and (0 <= ignore_index < classes or int(t.view(np.uint64).max()) >= classes):
        used = t != ignore_index
        bad = used & ((t < 0) | (t >= classes))
        if bad.any():
            raise IndexBoundsError(
                f"cross_entropy: target must lie in [0, {classes}) or be "
                f"ignore_index={ignore_index}; got {int(t[bad].flat[0])}"
            )
        t = np.where(used, t, 0)
    if len(shape) == 1:
        return (t,), t, used
    lead = _counting(shape[0])
    if len(shape) == 2:
        return (lead, t), t, used
    rest = shape[2:]
    lead = lead.reshape(-1, *(1,) * len(rest))
    return (lead, t, *np.ogrid[tuple(slice(0, n) for n in rest)]), t, used


@primitive(method=False, constant=("weight",), grad_outputs=(0,))
class nll_reduced:
    """(loss, total) of log-probabilities x (N, C, ...) and class indices: -weight x[target],
    reduced; total is the sum of the rows' weights, the divisor of a mean."""

    def infer(x, target, weight=None, *, ignore_index=-100, reduction="mean"):
        rows = _check_classes("nll_loss", x, target, weight)
        return Spec(rows if reduction == "none" else (), x.dtype), Spec((), x.dtype.compute)

    def numpy(x, target, weight=None, *, ignore_index=-100, reduction="mean"):
        if (
            target.dtype.kind not in "iu"
            or target.ndim != max(x.ndim - 1, 0)
            or x.dtype.kind != "f"
        ):
            raise ValueError("target does not fit")
        axis = class_axis(x.ndim)
        if target.shape != x.shape[:axis] + x.shape[axis + 1 :]:
            raise ValueError("target does not fit")
        at, t, used = _chosen(target, x.shape, ignore_index)
        picked = x[at]
        if weight is None and used is None:
            total = x.dtype.type(target.size)
        else:
            w = np.ones(t.shape, x.dtype) if weight is None else weight[t]
            if used is not None:
                w = np.where(used, w, 0)
                picked = np.where(used, picked, 0)
            picked = picked * w
            total = np.add.reduce(w, axis=None)
        if reduction == "none":
            return np.negative(picked), total
        loss = -np.add.reduce(picked, axis=None)
        return (loss / total if reduction == "mean" else loss), total

    def launch(out, x, target, weight=None, *, ignore_index=-100, reduction="mean"):
        kernels.check_target("cross_entropy", target, x.shape[class_axis(x.ndim)], ignore_index)
        loss, total = out
        kernels.forward(
            loss, None, total, x, target, weight, ignore_index=ignore_index, reduction=reduction
        )

    def vjp(g, x_spec, target, weight, out, *, ignore_index, reduction):
        if g[0] is None:
            return None, None, None
        dx = ops.nll_backward(
            g[0],
            target,
            weight,
            out[1],
            shape=tuple(x_spec.shape),
            ignore_index=ignore_index,
            reduction=reduction,
        )
        return dx, None, None

    def samples(draw):
        shape, target, weight = _class_samples(draw)
        attrs = {"reduction": draw.choice(["mean", "sum", "none"])}
        return (draw.tensor(shape), target, weight), attrs


@primitive(method=False, constant=("weight", "total"))
class nll_backward:
    """The gradient of ``nll_reduced``: -g weight / total at every row's class, 0 elsewhere."""

    def infer(grad, target, weight, total, *, shape, ignore_index=-100, reduction="mean"):
        return Spec(tuple(shape), grad.dtype)

    def numpy(grad, target, weight, total, *, shape, ignore_index=-100, reduction="mean"):
        at, t, used = _chosen(target, shape, ignore_index)
        value = -grad / total if reduction == "mean" else -grad
        if weight is not None:
            value = value * weight[t]
        if used is not None:
            value = np.where(used, value, 0)
        dx = np.zeros(shape, grad.dtype)
        dx[at] = value
        return dx

    def launch(out, grad, target, weight, total, *, shape, ignore_index=-100, reduction="mean"):
        kernels.backward(
            out, grad, None, target, weight, None, total,
            ignore_index=ignore_index, reduction=reduction,
        )  # fmt: skip

    def vjp(g, target, weight, *, ignore_index, reduction):
        # linear in grad, and the adjoint of the forward pass
        dgrad = ops.nll_reduced(g, target, weight, ignore_index=ignore_index, reduction=reduction)[
            0
        ]
        return dgrad, None, None, None

    def samples(draw):
        shape, target, weight = _class_samples(draw)
        reduction = draw.choice(["mean", "sum", "none"])
        rows = np.asarray(target).shape
        grad = draw.tensor(rows) if reduction == "none" else draw.tensor((1,)).reshape(())
        used = np.asarray(target) != -100
        w = np.ones(shape[class_axis(len(shape))]) if weight is None else np.asarray(weight, float)
        total = np.where(used, w[np.where(used, target, 0)], 0).sum()
        total = np.asarray(total, draw.dtype.compute.np)
        return (grad, target, weight, total), {"shape": shape, "reduction": reduction}


def _class_samples(draw: Any) -> tuple[tuple[int, ...], Any, Any]:
    """(shape of the input, targets with a row ignored, class weights or None)."""
    classes = draw.size(1, 5, 37)
    n = draw.integer(2, 4)
    rest = tuple(s or 1 for s in draw.shape(0, 3))
    target = np.array(draw.ints((n, *rest), 0, classes))
    target[0] = np.where(draw.boolean(), -100, target[0])
    weight = draw.tensor((classes,), low=0.5, high=2.0) if draw.boolean() else None
    return (n, classes, *rest), target, weight


def _lse_shape(x: Any, *_: Any, **__: Any) -> shapes.Shape:
    axis = class_axis(len(x.shape))
    return tuple(x.shape[:axis]) + tuple(x.shape[axis + 1 :])


def _no_axes(*_: Any, **__: Any) -> shapes.Shape:
    return ()


def _forward(
    out: Any,
    lse: Any,
    total: Any,
    x: Any,
    target: Any,
    weight: Any,
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> None:
    kernels.check_target("cross_entropy", target, x.shape[class_axis(x.ndim)], ignore_index)
    kernels.forward(
        out, lse, None if reduction == "none" else total, x, target, weight,
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
    )  # fmt: skip


def _backward(
    dx: Any,
    g: Any,
    x: Any,
    target: Any,
    weight: Any,
    lse: Any,
    total: Any,
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> None:
    kernels.backward(
        dx, g, x, target, weight, lse, total,
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
    )  # fmt: skip


@fused(
    forward=_forward,
    backward=_backward,
    residuals={"lse": _lse_shape, "total": _no_axes},
    method=False,
)
def cross_entropy_index(
    x, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """-weight[target] log_softmax(x)[target], reduced; with smoothing every class gets a share."""
    axis = class_axis(x.ndim)
    # half types are widened here and rounded once at the end, as in the kernel
    logp = ops.log_softmax(x, dim=axis, dtype=x.dtype.compute)
    loss, total = nll_reduced(logp, target, weight, ignore_index=ignore_index, reduction=reduction)
    if label_smoothing > 0:
        loss = _smoothed(
            loss, total, logp, target, weight, ignore_index, reduction, label_smoothing
        )
    return loss if loss.dtype is x.dtype else ops.to_dtype(loss, dtype=x.dtype)


def _smoothed(loss, total, logp, target, weight, ignore_index, reduction, label_smoothing):
    """The loss with the share ``label_smoothing`` of its target spread over all classes."""
    axis = class_axis(logp.ndim)
    w = weight
    if w is not None and logp.ndim > 2:
        w = ops.reshape(w, shape=(-1,) + (1,) * (logp.ndim - 2))
    spread = -ops.sum(logp if w is None else logp * w, axis)
    spread = ops.where(ops.eq(target, ignore_index), 0.0, spread)
    if reduction != "none":
        spread = ops.sum(spread)
    if reduction == "mean":
        spread = spread / total
    return loss * (1.0 - label_smoothing) + spread * (label_smoothing / logp.shape[axis])


cross_entropy_index.op.constant = ("weight",)


@cross_entropy_index.samples
def _(draw):
    if draw.blocks == "gpu" and draw.boolean():  # long rows side by side in memory
        x = np.ascontiguousarray(draw.tensor((draw.integer(257, 300), 3))).T
        return (x, draw.ints((3,), 0, 257), None), {"label_smoothing": draw.choice([0.0, 0.1])}
    if draw.blocks in (4, 16) and draw.boolean():
        # several blocks of classes, all with a share; float16 cannot hold the sums of their weights
        x, target = draw.tensor((draw.integer(1, 2), 37)), draw.ints((1,), 0, 37)
        weight = draw.tensor((37,), low=1e4, high=3e4)
        return (x, target.repeat(len(x)), weight), {"label_smoothing": draw.choice([0.1, 0.9])}
    shape, target, weight = _class_samples(draw)
    attrs = {
        "reduction": draw.choice(["mean", "sum", "none"]),
        "label_smoothing": draw.choice([0.0, 0.1, 0.9]),
    }
    # far below 0 exp(x) is 0; only float64 has digits left for the loss there
    low = draw.choice([-2.0, -2.0, -802.0 if draw.dtype is dtypes.float64 else -2.0])
    x = draw.tensor(shape, low=low, high=low + 4.0)
    if x.size <= 4096 and draw.integer(0, 2) == 2:  # rows on axes that cannot be walked as one
        x = np.ascontiguousarray(x.T).T
    return (x, target, weight), attrs


@composite(method=False)
def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """-log softmax(input)[target], averaged over the rows. input (C,), (N, C) or (N, C, ...).

    ``target`` holds class indices (input's shape without C), of which ``ignore_index`` is left out,
    or probabilities in the shape of input. ``weight`` (C,) weighs classes, and a mean divides by
    the rows' weights. A class outside of [0, C) raises IndexBoundsError.

    >>> trident.cross_entropy(trident.zeros(2, 4), trident.tensor([0, 3]))
    tensor(1.3863)
    """
    if size_average is not None or reduce is not None or reduction not in kernels.REDUCTIONS:
        reduction = reduction_of("cross_entropy", reduction, size_average, reduce)
    if not 0.0 <= label_smoothing <= 1.0:
        raise wrong(
            "cross_entropy",
            "label_smoothing must lie in [0, 1]",
            got=label_smoothing,
            error=ValueError,
        )
    if target.dtype.is_floating_point:
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    _check_classes("cross_entropy", input, target, weight)
    if getattr(weight, "requires_grad", False):
        weight = weight.detach()  # a given number, as in torch
    return cross_entropy_index(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _soft_cross_entropy(
    x: Any, target: Any, weight: Any, reduction: str, label_smoothing: float
) -> Any:
    if tuple(x.shape) != tuple(target.shape):
        raise wrong(
            "cross_entropy",
            f"target must hold class indices (int64) or probabilities of shape {tuple(x.shape)}",
            got=f"{target.dtype.name} of shape {tuple(target.shape)}",
        )
    axis = class_axis(x.ndim)
    classes = x.shape[axis]
    if label_smoothing > 0:
        target = target * (1.0 - label_smoothing) + label_smoothing / classes
    logp = ops.log_softmax(x, dim=axis)
    if weight is not None:
        if tuple(weight.shape) != (classes,):
            raise wrong(
                "cross_entropy", f"weight must have shape ({classes},)", got=tuple(weight.shape)
            )
        ones = (1,) * (x.ndim - axis - 1)
        logp = logp * ops.reshape(weight, shape=(classes, *ones))
    loss = -ops.sum(logp * target, axis)
    if reduction == "mean":
        return ops.sum(loss) / float(shapes.numel(loss.shape))
    return reduced(loss, reduction)


@composite(method=False)
def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """-input[target], averaged over the rows: cross entropy of log-probabilities (see there).

    >>> trident.nll_loss(trident.tensor([[-1., -2.], [-3., -4.]]), trident.tensor([0, 1]))
    tensor(2.5000)
    """
    reduction = reduction_of("nll_loss", reduction, size_average, reduce)
    _check_classes("nll_loss", input, target, weight)
    return nll_reduced(input, target, weight, ignore_index=ignore_index, reduction=reduction)[0]
