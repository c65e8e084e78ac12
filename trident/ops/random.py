"""Random draws. Each primitive is a pure function of (seed, offset): the same on every device, and
the same again when backward or a replay asks for it.

Element i of a draw is made of the i-th word of the stream at ``offset`` (``runtime/random.py``).
Composites take their offset from a Generator; ``n`` elements use ``n`` words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dtypes, shapes
from ..errors import DTypeError, wrong
from ..kernels import random as kernels
from ..kernels import sort as sort_kernels
from ..runtime import random as stream
from ..runtime.random import Generator, default_generator
from .registry import Spec, composite, ops, primitive

_BITS = {"float16": 11, "bfloat16": 8}  # so that rounding cannot reach 1


def _affine(x: np.ndarray, shift: float, scale: float) -> np.ndarray:
    """``shift + scale * x``, in float64 and rounded once: what the kernels do."""
    if shift == 0 and scale == 1:
        return x
    wide = x.astype(np.float64)
    wide *= scale
    wide += shift
    return wide.astype(x.dtype, copy=False)


def _floats(
    kind: str, shape: tuple, seed: int, offset: int, d: dtypes.dtype, shift: float, scale: float
) -> np.ndarray:
    n = shapes.numel(shape)
    even = n + n % 2  # normals come in pairs
    wide = d is dtypes.float64
    words = (stream.words64 if wide else stream.philox)(
        seed, offset, even if kind == "normal" else n
    )
    if kind == "uniform":
        x = stream.to_uniform64(words) if wide else stream.to_uniform(words, _BITS.get(d.name, 24))
    elif kind == "normal":
        x = stream.to_normal(words)[:n]
    else:
        x = stream.to_positive(words)
        np.log(x, out=x)
        np.negative(x, out=x)
    return _affine(x, shift, scale).reshape(shape).astype(d.np, copy=False)


def _float_spec(op: str, shape: Sequence[int], dtype: dtypes.dtype) -> Spec:
    if not dtype.is_floating_point:
        raise wrong(op, "dtype must be a floating dtype", got=dtype.name, error=DTypeError)
    if any(n < 0 for n in shape):
        raise wrong(op, "sizes must not be negative", got=tuple(shape))
    return Spec(tuple(shape), dtype)


def _draw_samples(draw: Any, **attrs: Any) -> tuple:
    return (), {
        "shape": draw.shape(0, 3),
        "seed": draw.integer(0, 2**62),
        "offset": draw.integer(0, 2**34),
        "dtype": draw.dtype,
        **attrs,
    }


@primitive(method=False, dtypes=(dtypes.float32, dtypes.float64))
class random_uniform:
    """Numbers uniform in [low, high) of ``shape``, on ``device`` ("cpu" or a runtime device)."""

    def infer(*, shape, seed, offset, low=0.0, high=1.0, dtype=dtypes.float32, device="cpu"):
        return _float_spec("uniform", shape, dtype)

    def numpy(*, shape, seed, offset, low=0.0, high=1.0, dtype=dtypes.float32, device="cpu"):
        _float_spec("uniform", shape, dtype)
        return _floats("uniform", tuple(shape), seed, offset, dtype, low, high - low)

    def launch(out, *, shape, seed, offset, low=0.0, high=1.0, dtype=dtypes.float32, device="cpu"):
        kernels.floats(
            out, kind="uniform", seed=seed, offset=offset, shift=float(low), scale=float(high - low)
        )

    def samples(draw):
        return _draw_samples(draw, low=draw.choice([0.0, -1.5]), high=draw.choice([1.0, 3.25]))


@primitive(method=False, dtypes=(dtypes.float64,))
class random_normal:
    """Normal numbers of ``shape`` with this mean and standard deviation, on ``device``."""

    def infer(*, shape, seed, offset, mean=0.0, std=1.0, dtype=dtypes.float32, device="cpu"):
        return _float_spec("normal", shape, dtype)

    def numpy(*, shape, seed, offset, mean=0.0, std=1.0, dtype=dtypes.float32, device="cpu"):
        _float_spec("normal", shape, dtype)
        return _floats("normal", tuple(shape), seed, offset, dtype, mean, std)

    def launch(out, *, shape, seed, offset, mean=0.0, std=1.0, dtype=dtypes.float32, device="cpu"):
        kernels.floats(
            out, kind="normal", seed=seed, offset=offset, shift=float(mean), scale=float(std)
        )

    def samples(draw):
        return _draw_samples(draw, mean=draw.choice([0.0, 2.0]), std=draw.choice([1.0, 0.5]))


@primitive(method=False)
class random_int:
    """Integers uniform in [low, high) of ``shape``, on ``device``."""

    def infer(*, shape, seed, offset, low=0, high, dtype=dtypes.int64, device="cpu"):
        if high <= low:
            raise wrong("randint", "high must be above low", got=(low, high))
        return Spec(tuple(shape), dtype)

    def numpy(*, shape, seed, offset, low=0, high, dtype=dtypes.int64, device="cpu"):
        if high <= low:
            raise ValueError("range")
        n, span = shapes.numel(shape), high - low
        if span < 2**32:  # the high half of word * span: unbiased to span / 2**32
            wide = stream.philox(seed, offset, n).astype(np.uint64)
            wide *= np.uint64(span)
            wide >>= np.uint64(32)
        else:
            wide = stream.words64(seed, offset, n)
            if span < 2**64:
                wide %= np.uint64(span)
        values = wide.view(np.int64)
        values += low
        return values.reshape(shape).astype(dtype.np, copy=False)

    def launch(out, *, shape, seed, offset, low=0, high, dtype=dtypes.int64, device="cpu"):
        kernels.ints(out, seed=seed, offset=offset, low=low, high=high)

    def samples(draw):
        high = draw.choice([7, 100, 2**40])
        _, attrs = _draw_samples(draw, low=draw.choice([0, -5]), high=high)
        attrs["dtype"] = dtypes.int64
        return (), attrs


@primitive(method=False)
class random_permutation:
    """0 to n - 1 in random order (int64): the positions of random keys, sorted."""

    def infer(*, n, seed, offset, device="cpu"):
        if n < 0:
            raise wrong("randperm", "n must not be negative", got=n)
        return Spec((n,), dtypes.int64)

    def numpy(*, n, seed, offset, device="cpu"):
        keys = (stream.philox(seed, offset, n) >> np.uint32(1)).astype(np.int64)
        keys <<= 32
        keys |= np.arange(n)
        keys.sort()
        keys &= 0xFFFFFFFF
        return keys

    def launch(out, *, n, seed, offset, device="cpu"):
        if n:
            keys = out.device.empty((n,), dtypes.int64)
            kernels.shuffle_keys(keys, seed=seed, offset=offset)
            sort_kernels.positions(out, keys)

    def samples(draw):
        return (), {"n": draw.integer(0, 40), "seed": draw.integer(0, 99), "offset": 3}


@primitive(method=False, dtypes=(dtypes.float64,))
class random_like:
    """A draw with x's dtype and device, and its shape unless given: kind is "uniform" (in [0, 1)),
    "normal" or "exponential" (rate 1)."""

    def infer(x, *, kind, seed, offset, shape=None):
        return _float_spec(kind, x.shape if shape is None else shape, x.dtype)

    def numpy(x, *, kind, seed, offset, shape=None):
        shape = x.shape if shape is None else tuple(shape)
        return _floats(kind, shape, seed, offset, dtypes.from_numpy(x.dtype), 0.0, 1.0)

    def launch(out, x, *, kind, seed, offset, shape=None):
        kernels.floats(out, kind=kind, seed=seed, offset=offset)

    def samples(draw):
        return (draw.tensor(draw.shape(0, 2)),), {
            "kind": draw.choice([*kernels.KINDS]),
            "seed": 5,
            "offset": 7,
        }


@primitive(method=False)
class bernoulli_draw:
    """1 with probability p, element by element, else 0; p's shape and dtype."""

    def infer(p, *, seed, offset):
        return _float_spec("bernoulli", p.shape, p.dtype)

    def numpy(p, *, seed, offset):
        u = stream.to_uniform(stream.philox(seed, offset, p.size)).reshape(p.shape)
        return (u < p).astype(p.dtype)

    def launch(out, p, *, seed, offset):
        if out.size:
            kernels.bernoulli(out, p, seed=seed, offset=offset)

    def samples(draw):
        return (draw.tensor(draw.shape(0, 5), low=0.0, high=1.0),), {"seed": 5, "offset": 7}


@primitive(method=False)
class dropout_mask_apply:
    """x / (1 - p) where the element's word is at least ``p * 2**32``, else 0.

    Linear in x, so its gradient is itself: no mask is stored.
    """

    def infer(x, *, p, seed, offset):
        return _float_spec("dropout", x.shape, x.dtype)

    def numpy(x, *, p, seed, offset):
        if x.dtype.kind != "f":
            raise TypeError("dtype")
        kept = stream.philox(seed, offset, x.size) >= kernels.dropout_threshold(p)
        scale = x.dtype.type(1.0 / (1.0 - p) if p < 1 else 0.0)
        return np.where(kept.reshape(x.shape), x * scale, x.dtype.type(0))

    def launch(out, x, *, p, seed, offset):
        if out.size:
            kernels.dropout(out, x, p=p, seed=seed, offset=offset)

    def vjp(g, *, p, seed, offset):
        return ops.dropout_mask_apply(g, p=p, seed=seed, offset=offset)

    def samples(draw):
        attrs = {"p": draw.choice([0.0, 0.35, 0.8]), "seed": draw.integer(0, 2**40), "offset": 11}
        return (draw.tensor(draw.shape(0, 5)),), attrs


# -- what users call -------------------------------------------------------------------------------


def _take(generator: Generator | None, n: int) -> dict[str, int]:
    seed, offset = (generator or default_generator).take(n)
    return {"seed": seed, "offset": offset}


def _check_probability(op: str, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise wrong(op, "p must lie in [0, 1]", got=p)


@composite
def bernoulli(x: Any, *, generator: Generator | None = None) -> Any:
    """1 with probability x, element by element, else 0.

    >>> trident.bernoulli(trident.tensor([0.0, 1.0]))
    tensor([0., 1.])
    """
    return ops.bernoulli_draw(x, **_take(generator, shapes.numel(x.shape)))


@composite
def multinomial(
    x: Any, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Any:
    """Indices drawn in proportion to the weights x (N,) or (R, N), which need not sum to 1: int64
    (num_samples,) or (R, num_samples).

    With replacement by inverting the running sum; without, by an exponential race: the smallest of
    E_i / x_i are the first draws. Source: Efraimidis and Spirakis 2006,
    doi:10.1016/j.ipl.2005.11.003.

    >>> trident.multinomial(trident.tensor([0.0, 1.0, 0.0]), 2, replacement=True)
    tensor([1, 1])
    """
    if x.ndim not in (1, 2) or not x.dtype.is_floating_point:
        raise wrong(
            "multinomial", "x must be floating, (N,) or (R, N)", got=(tuple(x.shape), x.dtype.name)
        )
    n = x.shape[-1]
    if num_samples < 1 or (not replacement and num_samples > n):
        raise wrong(
            "multinomial", f"num_samples must lie in [1, {n}] without replacement", got=num_samples
        )
    if bool(ops.logical_or(ops.logical_not(ops.isfinite(x)), x < 0).any().item()):
        raise wrong("multinomial", "weights must be finite and not negative")
    if x.dtype in dtypes.HALVES:
        x = ops.to_dtype(x, dtype=dtypes.float32)
    if not replacement:
        if bool(
            (ops.sum(ops.to_dtype(x > 0, dtype=dtypes.int64), dim=-1) < num_samples).any().item()
        ):
            raise wrong(
                "multinomial", f"each row needs {num_samples} weights above 0 without replacement"
            )
        race = ops.random_like(x, kind="exponential", **_take(generator, shapes.numel(x.shape)))
        # an E of 0 would win against any weight; weights of 0 must never win
        speed = ops.where(x > 0, x / ops.maximum(race, 1e-30), -1.0)
        return ops.topk(speed, num_samples, -1).indices
    edges = ops.cumsum(x, dim=-1)
    total = ops.narrow(edges, -1, n - 1, 1)
    if bool((total <= 0).any().item()):
        raise wrong("multinomial", "each row needs a weight above 0")
    shape = (*x.shape[:-1], num_samples)
    u = ops.random_like(x, kind="uniform", shape=shape, **_take(generator, shapes.numel(shape)))
    # u * total may round up to total; the last index with a weight is the last with a smaller edge
    last = ops.sum(ops.to_dtype(edges < total, dtype=dtypes.int64), dim=-1, keepdim=True)
    return ops.minimum(ops.searchsorted(edges, u * total, right=True), last)


@composite
def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """x with elements set to 0 with probability p and the others divided by 1 - p; x unless
    training.

    ``inplace`` is accepted for torch's sake; the result is always a new tensor.

    >>> trident.dropout(trident.ones(3), p=0.0)
    tensor([1., 1., 1.])
    """
    _check_probability("dropout", p)
    if not training or p == 0:
        return x
    return ops.dropout_mask_apply(x, p=float(p), **_take(None, shapes.numel(x.shape)))


def _channel_dropout(op: str, x: Any, p: float, training: bool, ndim: int) -> Any:
    _check_probability(op, p)
    if x.ndim not in (ndim + 1, ndim + 2):
        raise wrong(
            op, f"x must have {ndim + 1} or {ndim + 2} axes: ([N,] C, ...)", got=tuple(x.shape)
        )
    if not training or p == 0:
        return x
    shape = (*x.shape[:-ndim], *(1,) * ndim)
    ones = ops.full_like(x, value=1.0, shape=shape)
    return x * ops.dropout_mask_apply(ones, p=float(p), **_take(None, shapes.numel(shape)))


@composite(method=False)
def dropout1d(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Dropout of whole channels: x (N, C, L) or (C, L)."""
    return _channel_dropout("dropout1d", x, p, training, 1)


@composite(method=False)
def dropout2d(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Dropout of whole channels: x (N, C, H, W) or (C, H, W)."""
    return _channel_dropout("dropout2d", x, p, training, 2)


@composite(method=False)
def dropout3d(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Dropout of whole channels: x (N, C, D, H, W) or (C, D, H, W)."""
    return _channel_dropout("dropout3d", x, p, training, 3)


_SELU_FLOOR = -1.7580993408473766  # -scale * alpha of selu, its value at minus infinity


@composite(method=False)
def alpha_dropout(x: Any, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    """Dropout to selu's floor instead of 0, then scaled and shifted so that mean 0 and variance 1
    stay.

    Source: Klambauer et al., arXiv:1706.02515.
    """
    _check_probability("alpha_dropout", p)
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0.0
    ones = ops.full_like(x, value=1.0 - p)
    kept = ops.dropout_mask_apply(ones, p=float(p), **_take(None, shapes.numel(x.shape)))  # 0 or 1
    a = 1.0 / math.sqrt((1 - p) * (1 + p * _SELU_FLOOR**2))
    b = -a * p * _SELU_FLOOR
    return ops.where(kept > 0, x, _SELU_FLOOR) * a + b


@composite(method=False)
def gumbel_softmax(
    logits: Any, tau: float = 1.0, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Any:
    """A sample of the relaxed categorical distribution: softmax((logits + Gumbel noise) / tau).

    hard: one-hot values with the gradient of the soft sample. Source: Jang et al.,
    arXiv:1611.01144.
    """
    if tau <= 0:
        raise wrong("gumbel_softmax", "tau must be positive", got=tau)
    race = ops.random_like(logits, kind="exponential", **_take(None, shapes.numel(logits.shape)))
    noise = -ops.log(ops.maximum(race, 1e-30 if logits.dtype not in dtypes.HALVES else 1e-6))
    soft = ops.softmax((logits + noise) / tau, dim=dim)
    if not hard:
        return soft
    d = shapes.axis("gumbel_softmax", dim, logits.ndim)
    best = ops.argmax(soft, dim=d, keepdim=True)
    zeros = ops.full_like(soft, value=0.0)
    one = ops.full_like(soft, value=1.0, shape=tuple(best.shape))
    picked = ops.scatter_put(zeros, best, one, dim=d)
    return picked + (soft - soft.detach())  # the difference is exactly 0
