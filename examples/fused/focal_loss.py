"""Sigmoid focal loss: cross entropy that looks away from what is easy.

Of a logit x and a target t in [0, 1], with p = sigmoid(x) and one number per element,

    loss = weight q^gamma ce          weight = alpha t + (1 - alpha)(1 - t)
                                           q = p (1 - t) + (1 - p) t, the probability of a mistake
                                          ce = -t log p - (1 - t) log(1 - p)

An easy example has a small q: with gamma = 2, one that is 99 % right counts 10,000 times less.
In plain ops that is a dozen passes over memory each way, most of them for intermediate results;
the kernels read logit and target once and write once.

Written as above the formula breaks down where it matters: log p is -inf for a logit of -200, and
1 - p loses its digits for one of 20. The kernels see the logit as its size a = |x|, which way it
points, and m, how far the target is from there (1 - t for x >= 0, else t). With e = exp(-a), which
is never above 1,

    q = (m + (1 - m) e) / (1 + e)          ce = log(1 + e) + m a

so that no two near numbers are subtracted and no logit, however large, gives an infinite loss.

The gradient, with s the sign of x and l = e / (1 + e) the smaller of p and 1 - p:

    ce' = p - t = s (m - l)                q' / q = s (2 m - 1) l / (m + (1 - m) e)
    dlogits = g weight q^gamma (gamma ce q' / q + ce')

q^(gamma - 1), which is infinite at q = 0 for gamma < 1, does not appear: the bounded q' / q does.

Source: Lin, Goyal, Girshick, He and Dollar, "Focal loss for dense object detection", ICCV 2017.
"""

from __future__ import annotations

from _bench import bench, main

import trident
from trident.errors import DTypeError, wrong
from trident.kernels.device_math import log1p
from trident.kernels.layout import contiguous
from trident.lang import cdiv, tl

BLOCK = 1024
TINY = 1e-37  # stands for a probability of 0, so that its logarithm and its inverse are finite


@trident.jit
def read(ptr, i, n):
    """Half types are computed in float32."""
    x = tl.load(ptr + i, mask=i < n, other=0.0)
    return x.to(tl.float32) if x.dtype.primitive_bitwidth == 16 else x


@trident.jit
def parts(x, t, ALPHA: tl.constexpr, GAMMA: tl.constexpr):
    """What both kernels need: e, m, m + (1 - m) e, ce, q^gamma and the weight."""
    e = tl.exp(-tl.abs(x))
    m = tl.where(x >= 0, 1 - t, t)
    odds = m + (1 - m) * e
    odds = tl.where(odds < TINY, TINY, odds)
    ce = log1p(e) + m * tl.abs(x)
    focus = tl.exp(GAMMA * (tl.log(odds) - log1p(e)))
    return e, m, odds, ce, focus, ALPHA * t + (1 - ALPHA) * (1 - t)


@trident.kernel
def forward_kernel(
    x_ptr,  # (n,) logits
    target_ptr,  # (n,)
    out_ptr,  # (n,)
    n,
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x, t = read(x_ptr, i, n), read(target_ptr, i, n)
    _, _, _, ce, focus, weight = parts(x, t, ALPHA, GAMMA)
    tl.store(out_ptr + i, (weight * focus * ce).to(out_ptr.dtype.element_ty), mask=i < n)


@trident.kernel
def backward_kernel(
    g_ptr,  # (n,)
    x_ptr,  # (n,) logits
    target_ptr,  # (n,)
    dx_ptr,  # (n,), or None
    dtarget_ptr,  # (n,), or None
    n,
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g, x, t = read(g_ptr, i, n), read(x_ptr, i, n), read(target_ptr, i, n)
    e, m, odds, ce, focus, weight = parts(x, t, ALPHA, GAMMA)
    sign = tl.where(x >= 0, 1.0, -1.0).to(x.dtype)
    low = e / (1 + e)
    if dx_ptr is not None:
        slope = sign * (GAMMA * ce * (2 * m - 1) * (low / odds) + m - low)
        dx = g * weight * focus * slope
        tl.store(dx_ptr + i, dx.to(dx_ptr.dtype.element_ty), mask=i < n)
    if dtarget_ptr is not None:  # d ce / d t = -x and d q / d t = 1 - 2 p
        slope = -sign * (GAMMA * ce * ((1 - e) / odds) + tl.abs(x))
        dtarget = g * focus * (weight * slope + (2 * ALPHA - 1) * ce)
        tl.store(dtarget_ptr + i, dtarget.to(dtarget_ptr.dtype.element_ty), mask=i < n)


def forward(out, logits, target, *, alpha, gamma):
    n = out.size
    forward_kernel[(cdiv(n, BLOCK),)](
        contiguous(logits), contiguous(target), out, n, ALPHA=alpha, GAMMA=gamma, BLOCK=BLOCK
    )


def backward(dlogits, dtarget, g, logits, target, *, alpha, gamma):
    n = g.size
    backward_kernel[(cdiv(n, BLOCK),)](
        contiguous(g), contiguous(logits), contiguous(target), dlogits, dtarget, n,
        ALPHA=alpha, GAMMA=gamma, BLOCK=BLOCK,
    )  # fmt: skip


@trident.fused(forward=forward, backward=backward, method=False)
def focal_loss(logits, target, *, alpha=0.25, gamma=2.0):
    """Focal loss of every element (not reduced): see the formula at the top of this file.

    logits and target have one shape and one floating dtype, which are those of the result. alpha in
    [0, 1] weighs targets of 1, 1 - alpha those of 0; gamma >= 0, and 0 is weighted cross entropy.
    Half types are computed in float32 and rounded once. Raises where shapes or dtypes differ.

    >>> focal_loss(trident.tensor([-1.0, 0.0, 1.0]), trident.ones(3))
    tensor([0.1755, 0.0433, 0.0057])
    """
    wide = logits.dtype.compute
    x, t = trident.to_dtype(logits, dtype=wide), trident.to_dtype(target, dtype=wide)
    q = t * trident.sigmoid(-x) + (1 - t) * trident.sigmoid(x)
    ce = -t * trident.logsigmoid(x) - (1 - t) * trident.logsigmoid(-x)
    loss = (alpha * t + (1 - alpha) * (1 - t)) * trident.maximum(q, TINY) ** gamma * ce
    return trident.to_dtype(loss, dtype=logits.dtype)


@focal_loss.check
def _(logits, target, *, alpha, gamma):
    if tuple(logits.shape) != tuple(target.shape):
        raise wrong(
            "focal_loss", f"target must have the shape of logits, {tuple(logits.shape)}",
            got=tuple(target.shape), hint="use reshape or expand where you mean to broadcast",
        )  # fmt: skip
    if logits.dtype is not target.dtype or not logits.dtype.is_floating_point:
        raise wrong(
            "focal_loss", "logits and target must have one floating dtype",
            got=f"{logits.dtype.name} and {target.dtype.name}",
            hint="convert with target.to(logits.dtype)", error=DTypeError,
        )  # fmt: skip
    if not 0 <= alpha <= 1:
        raise wrong("focal_loss", "alpha must lie in [0, 1]", got=alpha, error=ValueError)
    if not 0 <= gamma < float("inf"):
        raise wrong("focal_loss", "gamma must be 0 or more", got=gamma, error=ValueError)


@focal_loss.samples
def _(draw):
    shape = draw.choice([draw.shape(0, 3), (draw.integer(1, 3), 700), (2049,)])
    target = draw.tensor(shape, low=0.0, high=1.0)
    if draw.boolean():
        target = draw.layout((target > 0.5).astype(target.dtype))
    attrs = {"alpha": draw.choice([0.0, 0.25, 0.9]), "gamma": draw.choice([0.0, 0.5, 1, 2.0, 3.3])}
    return (draw.tensor(shape, low=-8.0, high=8.0), target), attrs


def example():
    """What the formula as it is written, and the op, make of large logits."""
    x = trident.tensor([-1e4, -200.0, 0.0, 200.0, 1e4], requires_grad=True)
    t = trident.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    loss = focal_loss(x, t)
    loss.sum().backward()
    p = trident.sigmoid(x.detach())
    print("as written  ", -0.25 * (1 - p) ** 2 * trident.log(p))
    print("focal_loss  ", loss.detach())
    print("its gradient", x.grad)


def bench_variants(device):
    x = trident.randn(1 << 20, device=device, requires_grad=True)
    t = (trident.rand(1 << 20, device=device) < 0.1).float()

    def as_written():
        p = trident.sigmoid(x)
        right = p * t + (1 - p) * (1 - t)
        loss = -(0.25 * t + 0.75 * (1 - t)) * (1 - right) ** 2.0 * trident.log(right)
        trident.autograd.grad(loss.sum(), x)

    bench(
        f"focal loss of 1,048,576 logits, forward and backward, {device}",
        {
            "focal_loss": lambda: trident.autograd.grad(focal_loss(x, t).sum(), x),
            "body in plain ops": lambda: trident.autograd.grad(focal_loss.op.body(x, t).sum(), x),
            "unstable formula": as_written,
        },
        bytes=(1 << 20) * 4 * 7,  # read x and t, write loss; read g, x and t, write dx
    )


if __name__ == "__main__":
    main(focal_loss, bench_variants, example)
