"""Attention: the fused op, torch's function of any leading axes, and the layers that use it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import trident
from trident import config, nn, runtime
from trident.errors import DTypeError, ShapeError
from trident.kernels import attention as kernels
from trident.kernels import configs
from trident.kernels.attention_blocks import TRIALS
from trident.lang import has_triton
from trident.nn import functional as F
from trident.runtime.aot import AotDevice

FAMILIES = ("attention", "attention_dq", "attention_dkdv")


def put(a, device, grad=False):
    t = trident.tensor(np.asarray(a), device=device)
    t.requires_grad = grad
    return t


def get(t):
    return t.detach().cpu().numpy()


def reference(q, k, v, mask=None, causal=False, scale=None):
    """numpy, in float64: heads of k and v are repeated; a row that sees nothing is 0."""
    k, v = (np.repeat(a, q.shape[-3] // a.shape[-3], -3) for a in (k, v))
    scores = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(top == -np.inf, 0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v


def heads(rng, b=2, h=4, hkv=2, m=37, n=21, d=16, e=16):
    shapes = (b, h, m, d), (b, hkv, n, d), (b, hkv, n, e)
    return [rng.standard_normal(s) for s in shapes]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"m": 5, "n": 64}, {"d": 20, "e": 3}, {"hkv": 4, "n": 1}])
def test_heads(device, rng, sizes, causal):
    q, k, v = heads(rng, **sizes)
    args = [put(a, device) for a in (q, k, v)]
    out = F.scaled_dot_product_attention(*args, is_causal=causal, enable_gqa=True)
    np.testing.assert_allclose(get(out), reference(q, k, v, causal=causal), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("shape", "kind"), [((37, 21), bool), ((2, 1, 1, 21), bool), ((1, 4, 37, 1), float)]
)
def test_masks(device, rng, shape, kind):
    q, k, v = heads(rng)
    mask = rng.random(shape) < 0.5 if kind is bool else rng.standard_normal(shape)
    args = [put(a, device, grad=True) for a in (q, k, v)]
    out = F.scaled_dot_product_attention(*args, put(mask, device), enable_gqa=True, scale=-0.3)
    expected = reference(q, k, v, mask, scale=-0.3)
    np.testing.assert_allclose(get(out), expected, rtol=1e-9, atol=1e-11)
    leaves = [put(a, "cpu", grad=True) for a in (q, k, v)]
    same = F.scaled_dot_product_attention(*leaves, put(mask, "cpu"), enable_gqa=True, scale=-0.3)
    g = rng.standard_normal(out.shape)
    out.backward(put(g, device))
    same.backward(put(g, "cpu"))
    for a, b in zip(args, leaves):
        np.testing.assert_allclose(get(a.grad), get(b.grad), rtol=1e-8, atol=1e-10)


def test_rows_that_see_no_key_are_zero_and_pass_no_gradient(device, rng):
    q, k, v = heads(rng, m=6, n=6)
    for mask in (np.tri(6, dtype=bool), np.where(np.tri(6), 0.0, -np.inf)):
        mask = np.roll(mask, 1, axis=0)
        mask[0] = False if mask.dtype == bool else -np.inf
        args = [put(a, device, grad=True) for a in (q, k, v)]
        out = F.scaled_dot_product_attention(*args, put(mask, device), enable_gqa=True)
        out.sum().backward()
        assert not get(out)[:, :, 0].any()
        assert not get(args[0].grad)[:, :, 0].any()
        assert all(np.isfinite(get(a.grad)).all() for a in args)
    empty = [put(a, device) for a in heads(rng, n=0)]
    assert not get(F.scaled_dot_product_attention(*empty, enable_gqa=True)).any()


def test_leading_axes(device, rng):
    q, k, v = (rng.standard_normal((5, 8)) for _ in range(3))
    expected = reference(q[None], k[None], v[None], causal=True)
    args = [put(a, device) for a in (q, k, v)]
    flat = F.scaled_dot_product_attention(*args, is_causal=True)
    np.testing.assert_allclose(get(flat), expected[0], rtol=1e-9)
    three = F.scaled_dot_product_attention(*(a.unsqueeze(0) for a in args), is_causal=True)
    np.testing.assert_allclose(get(three), expected, rtol=1e-9)

    q, k, v = (rng.standard_normal((3, 1, 2, 5, 8)), *rng.standard_normal((2, 1, 4, 2, 7, 8)))
    mask = rng.random((4, 1, 5, 7)) < 0.7
    mask[..., 0] = True
    out = F.scaled_dot_product_attention(*(put(a, device) for a in (q, k, v)), put(mask, device))
    assert out.shape == (3, 4, 2, 5, 8)
    full = [np.broadcast_to(a, (3, 4, *a.shape[2:])) for a in (q, k, v)]
    np.testing.assert_allclose(get(out), reference(*full, mask), rtol=1e-9)


def test_dropout_draws_the_same_weights_on_every_device(device, rng):
    q, k, v = heads(rng, n=21)
    for n in (21, 20):  # words shared by four elements, and one for each
        results = []
        for place in ("cpu", device):
            trident.manual_seed(5)
            args = [put(a, place, grad=True) for a in (q, k[:, :, :n], v[:, :, :n])]
            out = F.scaled_dot_product_attention(*args, dropout_p=0.4, enable_gqa=True)
            out.sum().backward()
            results.append([get(out), *(get(a.grad) for a in args)])
        for a, b in zip(*results):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    # the weights that are kept are scaled up: the mean over many draws is that without dropout
    q, k, v = (put(a, device) for a in heads(rng, b=1, h=1, hkv=1, m=400, n=16, d=1, e=1))
    out = F.scaled_dot_product_attention(q * 0, k, v, dropout_p=0.5)
    assert abs(float((out - v.mean(2, True)).mean())) < 0.05
    assert not get(F.scaled_dot_product_attention(q, k, v, dropout_p=1.0)).any()


def test_dropout_takes_its_words_from_the_generator(device):
    q = trident.ones(1, 1, 8, 4, device=device)
    trident.manual_seed(0)
    first = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    second = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    trident.manual_seed(0)
    again = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    assert not np.array_equal(get(first), get(second))
    assert np.array_equal(get(first), get(again))


def test_wide_heads_go_through_plain_ops(device, rng):
    q, k, v = heads(rng, m=3, n=4, d=300, e=2)
    args = [put(a, device) for a in (q, k, v)]
    assert not kernels.supports(args[0], args[2])
    out = F.scaled_dot_product_attention(*args, enable_gqa=True, is_causal=True)
    np.testing.assert_allclose(get(out), reference(q, k, v, causal=True), rtol=1e-9, atol=1e-11)


def test_gradient_of_the_mask_and_second_derivatives(device, rng):
    q, k, v = (put(a, device, grad=True) for a in heads(rng, b=1, h=2, hkv=1, m=3, n=4, d=2, e=2))
    bias = put(rng.standard_normal((3, 4)), device, grad=True)

    def f(q, k, v, bias):
        return F.scaled_dot_product_attention(q, k, v, bias, enable_gqa=True)

    assert trident.autograd.gradcheck(f, (q, k, v, bias))
    assert trident.autograd.gradgradcheck(f, (q, k, v, bias))


@pytest.mark.parametrize("trial", range(len(TRIALS)))
@pytest.mark.parametrize("causal", [False, True])
def test_every_schedule(device, rng, trial, causal):
    if device != "cuda":
        pytest.skip("configurations are those of the kernels")
    q, k, v = (a.astype(np.float32) for a in heads(rng, m=50, n=70))
    args = [put(a, device, grad=True) for a in (q, k, v)]
    g = put(rng.standard_normal(q.shape).astype(np.float32), device)
    results = []
    for choice in ({}, dict.fromkeys(FAMILIES, TRIALS[trial])):
        with configs.using(choice):
            out = F.scaled_dot_product_attention(*args, is_causal=causal, enable_gqa=True)
            results.append([out, *trident.autograd.grad(out, args, g)])
    for a, b in zip(*results):
        np.testing.assert_allclose(get(a), get(b), rtol=1e-4, atol=1e-5)
    with configs.using(dict.fromkeys(FAMILIES, TRIALS[trial])):
        again = trident.autograd.grad(
            F.scaled_dot_product_attention(*args, is_causal=causal, enable_gqa=True), args, g
        )
    assert all(np.array_equal(get(a), get(b)) for a, b in zip(results[1][1:], again))


def test_errors():
    q, k = trident.zeros(2, 4, 5, 8), trident.zeros(2, 2, 5, 8)
    attend = F.scaled_dot_product_attention
    with pytest.raises(ShapeError, match="enable_gqa=True"):
        attend(q, k, k)
    with pytest.raises(ShapeError, match=r"the heads of query, 4, must be a multiple of key's 3"):
        attend(q, trident.zeros(2, 3, 5, 8), trident.zeros(2, 3, 5, 8), enable_gqa=True)
    with pytest.raises(ShapeError, match=r"key \(B, Hkv, S, E\)"):
        attend(q, q[..., :4], q)
    with pytest.raises(ShapeError, match="rows, width"):
        attend(q[0, 0, 0], q, q)
    with pytest.raises(ShapeError, match=r"attn_mask|do not broadcast"):
        attend(q, q, q, trident.zeros(6, 5))
    with pytest.raises(DTypeError, match="one floating dtype"):
        attend(q, q.double(), q)
    with pytest.raises(DTypeError, match="attn_mask must be bool or float32"):
        attend(q, q, q, trident.zeros(5, 5, dtype=trident.int64))
    with pytest.raises(ValueError, match="not both"):
        attend(q, q, q, trident.zeros(5, 5), is_causal=True)
    with pytest.raises(ShapeError, match=r"dropout_p must lie in \[0, 1\]"):
        attend(q, q, q, dropout_p=1.5)


# ---- layers -------------------------------------------------------------------------------------


def test_multihead_attention_without_weights(device, rng):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).to(device).double()
    x = put(rng.standard_normal((2, 6, 8)), device)
    hidden = put(np.arange(6) >= np.array([[6], [4]]), device)
    causal = ~np.tri(6, dtype=bool)
    for mask, padding in ((None, None), (causal, None), (None, hidden), (causal, hidden)):
        mask = mask if mask is None else put(mask, device)
        expected, _ = layer(x, x, x, padding, attn_mask=mask)
        out, weights = layer(x, x, x, padding, need_weights=False, attn_mask=mask)
        assert weights is None
        np.testing.assert_allclose(get(out), get(expected), rtol=1e-9, atol=1e-12)
        if mask is not None:
            hinted, _ = layer(x, x, x, padding, False, mask, is_causal=True)
            np.testing.assert_allclose(get(hinted), get(expected), rtol=1e-9, atol=1e-12)


def test_encoder_passes_the_causal_hint_on(device, rng):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).to(device).double()
    x = put(rng.standard_normal((2, 6, 8)), device)
    mask = nn.Transformer.generate_square_subsequent_mask(6).to(device).double()
    expected = encoder(x, mask=mask)
    np.testing.assert_allclose(get(encoder(x, mask=mask, is_causal=True)), get(expected), 1e-9)
    # with the hint the mask is not read: one that hides everything changes nothing
    nothing = trident.full_like(mask, -math.inf)
    np.testing.assert_allclose(get(encoder(x, mask=nothing, is_causal=True)), get(expected), 1e-9)


# ---- what is compiled ---------------------------------------------------------------------------


def specializations(architecture, width, **options):
    device = AotDevice(architecture)
    with runtime.use(device):
        shape = (2, 8, 1024, width)
        q, k, v = (
            trident.empty(shape, dtype=trident.bfloat16, device="cuda", requires_grad=True)
            for _ in range(3)
        )
        out = F.scaled_dot_product_attention(q, k, v, **options)
        out.backward(trident.empty(shape, dtype=trident.bfloat16, device="cuda"))
    return {s.kernel.name: s for s in device.seen}


def constants(spec):
    return {spec.signature[i][0]: value for (i,), value in spec.constants}


compiles = pytest.mark.skipif(
    config.INTERPRET or not has_triton(), reason="compiles, which the interpreter's process cannot"
)


@compiles
@pytest.mark.parametrize("width", [64, 128])
def test_masks_and_tails_are_compiled_only_where_they_are_needed(width):
    for architecture, described in (("sm_80", False), ("sm_90", True), ("sm_100", True)):
        found = specializations(architecture, width)
        for name in ("forward_kernel", "dq_kernel", "dkdv_kernel"):
            c = constants(found[name])
            assert c["TMA"] is described, (architecture, name)
            assert not (c["TAIL"] or c["NARROW_D"] or c["NARROW_E"] or c["CAUSAL"])
            assert c["VEC"] == 8 and c["KEPT"] is None and c["mask_ptr"] is None
    odd = constants(specializations("sm_90", 36)["forward_kernel"])
    assert odd["NARROW_D"] and odd["VEC"] == 4 and not odd["TMA"]


@compiles
def test_hopper_uses_its_tensor_cores():
    spec = specializations("sm_90", 64, is_causal=True)["forward_kernel"]
    ptx = spec.compile("sm_90").asm["ptx"]
    assert "wgmma.mma_async" in ptx
    assert "cp.async.bulk.tensor" in ptx
    assert "st.global.v4.b32" in ptx


def test_families_have_a_rule_for_every_kind():
    for name in FAMILIES:
        family = configs.tunable()[name]
        for architecture in ("sm_80", "sm_90", "sm_100", "host"):
            for kind in family.kinds:
                for d in (16, 64, 128, 256):
                    for extra in (0, 1, 2):
                        place = configs.Place(
                            architecture, kind, {"d": d, "m": 64, "n": 64, "extra": extra}
                        )
                        found = configs.default(name, place)
                        assert {"BLOCK_M", "BLOCK_N"} <= set(found.constants)
