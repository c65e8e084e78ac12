"""Scaled dot-product attention: a fused op on heads, and torch's function of any leading axes."""

from __future__ import annotations

import math
from typing import Any

from .. import dtypes, shapes
from ..errors import DTypeError, ShapeError, wrong
from ..kernels import attention as kernels
from ..kernels import attention_backward as backward_kernels
from ..runtime.random import default_generator
from .registry import composite, fused, ops

OP = "scaled_dot_product_attention"


def _forward(out, lse, query, key, value, mask, *, causal, scale, dropout, seed, offset):
    kernels.attention(
        out, lse, query, key, value, mask, causal=causal, scale=scale_of(query, scale),
        dropout=dropout, seed=seed, offset=offset,
    )  # fmt: skip


def _backward(
    dquery, dkey, dvalue, g, query, key, value, mask, out, lse, *, causal, scale, dropout, seed,
    offset,
):  # fmt: skip
    backward_kernels.attention_backward(
        dquery, dkey, dvalue, g, query, key, value, mask, out, lse, causal=causal,
        scale=scale_of(query, scale), dropout=dropout, seed=seed, offset=offset,
    )  # fmt: skip


def scale_of(query: Any, scale: float | None) -> float:
    """``scale``, or 1 / sqrt(D) where it is None."""
    return 1.0 / math.sqrt(max(query.shape[-1], 1)) if scale is None else float(scale)


@fused(
    forward=_forward,
    backward=_backward,
    residuals={"lse": lambda query, *_, **__: tuple(query.shape)[:3]},
    method=False,
)
def attention_heads(
    query, key, value, mask=None, *, causal=False, scale=None, dropout=0.0, seed=0, offset=0
):
    """softmax(scale query key^T + mask) value for every head; the kernels keep no scores.

    query (B, H, M, D), key (B, Hkv, N, D), value (B, Hkv, N, E) -> (B, H, M, E); H is a multiple of
    Hkv. ``mask`` broadcasts to (B, H, M, N): boolean (True is seen) or of query's dtype, added to
    the scores. ``causal``: query i sees the keys j <= i. A query that sees no key gives 0.
    ``dropout`` drops weights with the words of the stream (``seed``, ``offset``).
    ``scaled_dot_product_attention`` is the public form.

    >>> q = trident.zeros(1, 4, 3, 8)
    >>> k = v = trident.ones(1, 2, 5, 8)
    >>> trident.ops.attention_heads(q, k, v, causal=True).shape
    trident.Size([1, 4, 3, 8])
    """
    (b, h, m, d), (_, hkv, n, e) = query.shape, value.shape
    query = query * scale_of(query, scale)
    if h != hkv:
        query = ops.reshape(query, shape=(b, hkv, h // hkv, m, d))
        key, value = ops.unsqueeze(key, 2), ops.unsqueeze(value, 2)
    scores = ops.matmul(query, ops.transpose(key, -1, -2))
    scores = ops.reshape(scores, shape=(b, h, m, n))
    if causal:
        row = ops.unsqueeze(ops.arange_like(query, n=m, dtype=dtypes.int64), 1)
        col = ops.arange_like(query, n=n, dtype=dtypes.int64)
        scores = ops.where(col <= row, scores, -math.inf)
    blind = None
    if mask is not None:
        scores = ops.where(mask, scores, -math.inf) if mask.dtype is dtypes.bool_ else scores + mask
        if n:
            blind = ops.amax(scores, -1, True) == -math.inf
            scores = ops.where(blind, 0.0, scores)
    weights = ops.softmax(scores, -1)
    if blind is not None:
        weights = ops.where(blind, 0.0, weights)
    if dropout:
        weights = ops.dropout_mask_apply(weights, p=dropout, seed=seed, offset=offset)
    if h != hkv:
        weights = ops.reshape(weights, shape=(b, hkv, h // hkv, m, n))
    return ops.reshape(ops.matmul(weights, value), shape=(b, h, m, e))


@attention_heads.check
def _(query, key, value, mask=None, *, causal, scale, dropout, seed, offset):
    got = f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise wrong(OP, "query, key and value must have 4 axes", got=got)
    (b, h, m, d), (_, hkv, n, _) = query.shape, key.shape
    if tuple(key.shape) != (b, hkv, n, d) or tuple(value.shape[:3]) != (b, hkv, n):
        expected = "query (B, H, L, E), key (B, Hkv, S, E) and value (B, Hkv, S, Ev) are needed"
        raise wrong(OP, expected, got=got)
    if hkv == 0 or h % hkv:
        raise wrong(OP, f"the heads of query, {h}, must be a multiple of key's {hkv}", got=got)
    found = (query.dtype, key.dtype, value.dtype)
    if not query.dtype.is_floating_point or any(x is not query.dtype for x in found):
        raise wrong(
            OP, "query, key and value must have one floating dtype",
            got=", ".join(x.name for x in found), error=DTypeError,
            hint="convert with x.to(dtype)",
        )  # fmt: skip
    if mask is not None:
        if mask.dtype not in (dtypes.bool_, query.dtype):
            raise wrong(
                OP, f"attn_mask must be bool or {query.dtype.name}, as query is",
                got=mask.dtype.name, error=DTypeError, hint="convert with mask.to(query.dtype)",
            )  # fmt: skip
        if shapes.broadcast(OP, tuple(mask.shape), (b, h, m, n)) != (b, h, m, n):
            raise wrong(OP, f"attn_mask must broadcast to {(b, h, m, n)}", got=tuple(mask.shape))
    if not 0.0 <= dropout <= 1.0:
        raise wrong(OP, "dropout_p must lie in [0, 1]", got=dropout)


@attention_heads.samples
def _(draw):
    b, hkv, group = draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 3)
    sizes = [1, 5, 16, 33] if draw.blocks != "gpu" else [5, 70]
    m, n = draw.choice(sizes), draw.choice(sizes)
    d = draw.choice([1, 8, 16, 20])
    e = draw.choice([d, d, 5])

    def heads(count, rows, width):
        if draw.boolean():  # heads last, as a projection of (B, M, H * D) leaves them
            return draw.tensor((b, rows, count, width)).transpose(0, 2, 1, 3)
        return draw.tensor((b, count, rows, width))

    kind = draw.choice([None, None, "bool", "float"])
    mask = None
    if kind is not None:
        shape = (draw.choice([1, b]), draw.choice([1, hkv * group]), draw.choice([1, m]), n)
        mask = draw.tensor(shape) if kind == "float" else draw.tensor(shape, low=-1, high=2) > 0
    attrs = {
        "causal": draw.boolean(), "scale": draw.choice([None, 0.3, -0.2]),
        "dropout": draw.choice([0.0, 0.0, 0.4]), "seed": draw.integer(0, 2**40),
        "offset": draw.integer(0, 2**34),
    }  # fmt: skip
    return (
        (heads(hkv * group, m, d), heads(hkv, n, d), heads(hkv, n, e), mask), attrs,
    )  # fmt: skip


@composite(method=False)
def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(query key^T scale + mask) value.

    query (..., heads, L, E), key (..., heads, S, E), value (..., heads, S, Ev) -> (..., heads, L,
    Ev), all of one floating dtype; leading axes broadcast. ``attn_mask`` broadcasts to (..., L, S):
    bool (True takes part) or added to the scores. ``is_causal``: query i sees the keys j <= i. A
    query that sees no key gives 0. ``dropout_p`` drops weights whenever it is not 0: pass 0 in
    evaluation. ``scale`` defaults to 1 / sqrt(E). With ``enable_gqa`` key and value may have fewer
    heads, each of which serves the same number of neighbouring heads of query.

    On a GPU one kernel does forward and two do backward, without an (L, S) array. Heads wider than
    256 (128 in float64) and gradients of the mask go through plain ops, which make one. Raises
    ShapeError and DTypeError.

    >>> q = trident.zeros(1, 2, 3, 4)
    >>> trident.nn.functional.scaled_dot_product_attention(q, q, q).shape
    trident.Size([1, 2, 3, 4])

    Source: Vaswani et al. 2017, arXiv:1706.03762; the kernels: Dao, arXiv:2307.08691.
    """
    if is_causal and attn_mask is not None:
        raise wrong(OP, "give attn_mask or is_causal, not both", error=ValueError)
    if min(query.ndim, key.ndim, value.ndim) < (3 if enable_gqa else 2):
        axes = "(..., heads, rows, width)" if enable_gqa else "(..., rows, width)"
        got = f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        raise wrong(OP, f"query, key and value must be {axes}", got=got)
    if attn_mask is not None and attn_mask.dtype.is_floating_point:
        attn_mask = attn_mask.to(query.dtype)
    lead, (query, key, value), mask = _four_axes(query, key, value, attn_mask, enable_gqa)
    attrs: dict[str, Any] = {**attention_heads.op.defaults, "causal": bool(is_causal)}
    attrs["scale"] = scale
    if dropout_p:
        words = shapes.numel(query.shape[:3]) * key.shape[2]
        attrs["seed"], attrs["offset"] = default_generator.take(words)
        attrs["dropout"] = float(dropout_p)
    if kernels.supports(query, value):
        out = attention_heads(query, key, value, mask, **attrs)
    else:
        attention_heads.op.check(query, key, value, mask, **attrs)
        out = attention_heads.op.body(query, key, value, mask, **attrs)
    return out if len(lead) == 2 else ops.reshape(out, shape=(*lead, *out.shape[2:]))


def _four_axes(query: Any, key: Any, value: Any, mask: Any, gqa: bool) -> tuple:
    """(leading axes of the result, operands (B, H, rows, width), mask of 4 axes)."""
    shared = 1 if gqa else 0  # axes before the rows that need not broadcast: the heads
    operands = (query, key, value)
    leads = [tuple(x.shape[: x.ndim - 2 - shared]) for x in operands]
    try:
        batch = shapes.broadcast(OP, *leads)
    except ShapeError:
        got = f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        hint = None if gqa else "with enable_gqa=True heads of query share those of key and value"
        expected = "the leading axes of query, key and value must broadcast"
        raise wrong(OP, expected, got=got, hint=hint) from None
    lead = (*batch, query.shape[-3]) if gqa else batch
    if any(x.ndim != 4 or known != batch for x, known in zip(operands, leads)):
        operands = tuple(_heads(x, batch, shared) for x in operands)
    if mask is not None:
        if len(lead) > 2:
            mask = ops.expand(mask, shape=(*lead, query.shape[-2], key.shape[-2]))
            mask = ops.reshape(mask, shape=(-1, *mask.shape[-3:]))
        elif mask.ndim < 4:
            mask = ops.reshape(mask, shape=(*(1,) * (4 - mask.ndim), *mask.shape))
    return lead, operands, mask


def _heads(x: Any, batch: shapes.Shape, shared: int) -> Any:
    """``x`` with leading axes ``batch`` (and, if ``shared``, its own heads) as four axes."""
    full = (*batch, *x.shape[x.ndim - 2 - shared :])
    outer = shapes.numel(full[:-3])
    return ops.reshape(ops.expand(x, shape=full), shape=(outer, *(1, *full)[-3:]))
