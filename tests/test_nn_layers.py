"""Layers and losses against formulas written in numpy, and initial values, clipping, sequences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import trident
from trident import nn
from trident.nn import functional as F
from trident.nn import init


def put(a, device):
    return trident.tensor(np.asarray(a), device=device)


def get(t):
    return t.detach().cpu().numpy()


def close(t, expected, tol=1e-6):
    expected = np.asarray(expected)
    assert tuple(t.shape) == expected.shape
    np.testing.assert_allclose(get(t), expected, rtol=tol, atol=tol)


def ready(layer, device):
    """In float64 on the device, with its parameters as arrays by name."""
    layer.to(device).double()
    return layer, {n: get(p) for n, p in layer.named_parameters()}


# ---- linear, convolution, pooling ---------------------------------------------------------------


def test_linear_and_bilinear(device, rng):
    layer, w = ready(nn.Linear(3, 2), device)
    x = rng.standard_normal((4, 5, 3))
    close(layer(put(x, device)), x @ w["weight"].T + w["bias"])
    layer, w = ready(nn.Bilinear(3, 4, 2), device)
    a, b = rng.standard_normal((5, 3)), rng.standard_normal((5, 4))
    expected = np.einsum("ni,oij,nj->no", a, w["weight"], b) + w["bias"]
    close(layer(put(a, device), put(b, device)), expected)


def convolve(x, w, b, stride, dilation, groups):
    """conv2d of an already padded x, tap by tap."""
    n, _, height, width = x.shape
    o, c, kh, kw = w.shape
    oh = (height - dilation * (kh - 1) - 1) // stride + 1
    ow = (width - dilation * (kw - 1) - 1) // stride + 1
    out = np.zeros((n, o, oh, ow)) + (0 if b is None else b.reshape(1, -1, 1, 1))
    for i, y, z, j in itertools.product(range(o), range(oh), range(ow), range(c)):
        source = x[:, (i // (o // groups)) * c + j]
        rows = source[:, y * stride : y * stride + dilation * (kh - 1) + 1 : dilation]
        patch = rows[:, :, z * stride : z * stride + dilation * (kw - 1) + 1 : dilation]
        out[:, i, y, z] += (patch * w[i, j]).sum((1, 2))
    return out


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_conv2d_padding_modes(mode, device, rng):
    layer, w = ready(nn.Conv2d(4, 2, 3, 2, padding=(1, 2), groups=2, padding_mode=mode), device)
    x = rng.standard_normal((2, 4, 5, 6))
    names = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2)), mode=names[mode])
    close(layer(put(x, device)), convolve(padded, w["weight"], w["bias"], 2, 1, 2))


def test_conv_same_and_conv1d(device, rng):
    layer, w = ready(nn.Conv2d(2, 3, 2, padding="same", dilation=1, bias=False), device)
    x = rng.standard_normal((1, 2, 4, 5))
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
    close(layer(put(x, device)), convolve(padded, w["weight"], None, 1, 1, 1))
    layer, w = ready(nn.Conv1d(2, 3, 3, dilation=2), device)
    x = rng.standard_normal((2, 2, 9))
    expected = sum(
        np.einsum("oc,ncl->nol", w["weight"][:, :, k], x[:, :, 2 * k : 2 * k + 5]) for k in range(3)
    )
    close(layer(put(x, device)), expected + w["bias"][:, None])


def test_conv_transpose2d_spreads(device, rng):
    layer, w = ready(nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), device)
    x = rng.standard_normal((1, 3, 3, 2))
    full = np.zeros((1, 2, 2 * 3 + 2, 2 * 2 + 2))
    for y, z in itertools.product(range(3), range(2)):
        spread = np.einsum("nc,cokl->nokl", x[:, :, y, z], w["weight"])
        full[:, :, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3] += spread
    expected = full[:, :, 1:7, 1:5] + w["bias"].reshape(1, -1, 1, 1)
    close(layer(put(x, device)), expected)
    smaller = nn.ConvTranspose2d(3, 2, 3, stride=2)
    assert smaller(trident.zeros(1, 3, 4, 4), output_size=(10, 9)).shape == (1, 2, 10, 9)
    with pytest.raises(ValueError, match="output_size must lie between"):
        smaller(trident.zeros(1, 3, 4, 4), output_size=(12, 9))


def test_conv_arguments_are_checked():
    with pytest.raises(ValueError, match="in_channels=3 must be a multiple of groups=2"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="needs stride 1"):
        nn.Conv2d(3, 4, 3, stride=2, padding="same")
    with pytest.raises(ValueError, match="padding_mode must be"):
        nn.Conv2d(3, 4, 3, padding_mode="mirror")


def test_pooling(device, rng):
    x = rng.standard_normal((2, 3, 4, 6)).astype(np.float32)
    blocks = x.reshape(2, 3, 2, 2, 3, 2)
    close(nn.MaxPool2d(2)(put(x, device)), blocks.max((3, 5)))
    close(nn.AvgPool2d(2)(put(x, device)), blocks.mean((3, 5)))
    close(nn.AdaptiveAvgPool2d((2, 3))(put(x, device)), blocks.mean((3, 5)))
    close(nn.AdaptiveAvgPool2d(1)(put(x, device)), x.mean((2, 3), keepdims=True))
    close(nn.AdaptiveMaxPool2d(1)(put(x, device)), x.max((2, 3), keepdims=True))
    values, at = nn.MaxPool1d(6, return_indices=True)(put(x[0], device))
    np.testing.assert_array_equal(get(at)[..., 0], x[0].argmax(-1))
    close(values[..., 0], x[0].max(-1))
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1)))[:, :, 0]
    close(nn.AvgPool1d(2, padding=1)(put(x[:, :, 0], device)), padded.reshape(2, 3, 4, 2).mean(-1))


# ---- normalization ------------------------------------------------------------------------------


def normalized(x, axes, eps=1e-5):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def test_batch_norm_learns_running_statistics(device, rng):
    layer, _ = ready(nn.BatchNorm2d(3, momentum=0.2), device)
    with trident.no_grad():
        layer.weight.copy_(put([1.0, 2.0, 3.0], device))
        layer.bias.copy_(put([0.5, 0.0, -0.5], device))
    w, b = np.array([1.0, 2, 3]).reshape(1, 3, 1, 1), np.array([0.5, 0, -0.5]).reshape(1, 3, 1, 1)
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(2):
        x = rng.standard_normal((4, 3, 2, 5)) * 3 + 1
        close(layer(put(x, device)), normalized(x, (0, 2, 3)) * w + b)
        mean = 0.8 * mean + 0.2 * x.mean((0, 2, 3))
        var = 0.8 * var + 0.2 * x.var((0, 2, 3), ddof=1)
    close(layer.running_mean, mean)
    close(layer.running_var, var)
    assert int(layer.num_batches_tracked) == 2
    layer.eval()
    m, v = mean.reshape(1, 3, 1, 1), var.reshape(1, 3, 1, 1)
    close(layer(put(x, device)), (x - m) / np.sqrt(v + 1e-5) * w + b)
    with pytest.raises(ValueError, match="input must have 4 axes"):
        layer(trident.zeros(2, 3))


def test_batch_norm_average_of_all_batches(rng):
    layer = nn.BatchNorm1d(2, momentum=None)
    xs = [rng.standard_normal((5, 2)).astype(np.float32) for _ in range(3)]
    for x in xs:
        layer(trident.tensor(x))
    close(layer.running_mean, np.mean([x.mean(0) for x in xs], 0), 1e-5)


def test_other_norms(device, rng):
    x = rng.standard_normal((3, 4, 2, 5))
    t = put(x, device)
    close(nn.InstanceNorm2d(4)(t), normalized(x, (2, 3)))
    close(nn.GroupNorm(2, 4).to(device).double()(t).reshape(3, 2, 20),
          normalized(x.reshape(3, 2, 20), (2,)))  # fmt: skip
    close(nn.LayerNorm((2, 5)).to(device).double()(t), normalized(x, (2, 3)))
    close(nn.LayerNorm(5, elementwise_affine=False)(t), normalized(x, (3,)))
    layer = nn.RMSNorm(5, eps=1e-3).to(device).double()
    close(layer(t), x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3))


# ---- activations, dropout, padding --------------------------------------------------------------

_erf = np.vectorize(math.erf)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


ACTIVATIONS = {
    "ReLU": (nn.ReLU, lambda x: np.maximum(x, 0)),
    "ReLU6": (nn.ReLU6, lambda x: np.clip(x, 0, 6)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    "PReLU": (nn.PReLU, lambda x: np.where(x > 0, x, 0.25 * x)),
    "ELU": (lambda: nn.ELU(1.5), lambda x: _elu(x, 1.5)),
    "CELU": (
        lambda: nn.CELU(2.0),
        lambda x: np.where(x > 0, x, 2 * np.expm1(np.minimum(x, 0) / 2)),
    ),
    "SELU": (nn.SELU, lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772)),
    "GELU": (nn.GELU, lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2),
    "GELU tanh": (
        lambda: nn.GELU("tanh"),
        lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "SiLU": (nn.SiLU, lambda x: x * _sigmoid(x)),
    "Mish": (nn.Mish, lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "Softplus": (lambda: nn.Softplus(2.0), lambda x: np.log1p(np.exp(2 * x)) / 2),
    "Softsign": (nn.Softsign, lambda x: x / (1 + abs(x))),
    "Tanh": (nn.Tanh, np.tanh),
    "Sigmoid": (nn.Sigmoid, _sigmoid),
    "LogSigmoid": (nn.LogSigmoid, lambda x: np.log(_sigmoid(x))),
    "Hardtanh": (lambda: nn.Hardtanh(-2, 1), lambda x: np.clip(x, -2, 1)),
    "Hardsigmoid": (nn.Hardsigmoid, lambda x: np.clip(x + 3, 0, 6) / 6),
    "Hardswish": (nn.Hardswish, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "Tanhshrink": (nn.Tanhshrink, lambda x: x - np.tanh(x)),
    "Softshrink": (nn.Softshrink, lambda x: np.sign(x) * np.maximum(abs(x) - 0.5, 0)),
    "Hardshrink": (nn.Hardshrink, lambda x: np.where(abs(x) > 0.5, x, 0)),
    "Threshold": (lambda: nn.Threshold(0.3, 7.0), lambda x: np.where(x > 0.3, x, 7.0)),
    "Softmax": (lambda: nn.Softmax(0), lambda x: np.exp(x) / np.exp(x).sum(0)),
    "LogSoftmax": (lambda: nn.LogSoftmax(0), lambda x: x - np.log(np.exp(x).sum(0))),
    "Softmin": (lambda: nn.Softmin(0), lambda x: np.exp(-x) / np.exp(-x).sum(0)),
    "GLU": (lambda: nn.GLU(0), lambda x: x[:3] * _sigmoid(x[3:])),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name, device, rng):
    make, formula = ACTIVATIONS[name]
    x = 3 * rng.standard_normal((6, 5))
    close(make().to(device).double()(put(x, device)), formula(x), 1e-7)


@pytest.mark.parametrize(
    "make", [nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.ELU, nn.Hardtanh], ids=lambda c: c.__name__
)
def test_inplace_overwrites_and_keeps_the_gradient(make, device, rng):
    x = rng.standard_normal((4, 3))
    grads = []
    for inplace in (False, True):
        leaf = put(x, device).requires_grad_()
        hidden = leaf * 2.0
        out = make(inplace=inplace)(hidden)
        (out * out).sum().backward()
        grads.append(get(leaf.grad))
        if inplace:
            assert out is hidden
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-12)


def test_dropout_statistics(device):
    trident.manual_seed(0)
    x = trident.ones(100, 100, device=device)
    out = get(F.dropout(x, 0.25))
    assert set(np.unique(out)) <= {0.0, np.float32(1 / 0.75)}
    assert abs((out == 0).mean() - 0.25) < 0.03
    assert nn.Dropout(0.5).eval()(x) is x and F.dropout(x, 0.0) is x
    whole = get(nn.Dropout2d(0.5)(trident.ones(8, 16, 3, 3, device=device)))
    per_channel = whole.reshape(8 * 16, 9)
    assert (per_channel == per_channel[:, :1]).all() and 20 < (per_channel[:, 0] == 0).sum() < 108
    kept = get(F.alpha_dropout(trident.randn(100, 100, device=device), 0.3, training=True))
    assert abs(kept.mean()) < 0.05 and abs(kept.std() - 1) < 0.05
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]; got 1.5"):
        nn.Dropout(1.5)


def test_padding_layers(device, rng):
    x = rng.standard_normal((1, 2, 3, 4))
    around = ((0, 0), (0, 0), (2, 1), (1, 2))
    for layer, how in (
        (nn.ZeroPad2d((1, 2, 2, 1)), {"mode": "constant"}),
        (nn.ConstantPad2d((1, 2, 2, 1), 3.5), {"mode": "constant", "constant_values": 3.5}),
        (nn.ReflectionPad2d((1, 2, 2, 1)), {"mode": "reflect"}),
        (nn.ReplicationPad2d((1, 2, 2, 1)), {"mode": "edge"}),
        (nn.CircularPad2d((1, 2, 2, 1)), {"mode": "wrap"}),
    ):
        close(layer(put(x, device)), np.pad(x, around, **how))
    close(nn.ConstantPad1d(1, 2.0)(put(x[0], device)), np.pad(x[0], ((0, 0), (0, 0), (1, 1)),
          constant_values=2.0))  # fmt: skip


def test_pixel_shuffle(device, rng):
    x = rng.standard_normal((2, 8, 3, 2))
    out = nn.PixelShuffle(2)(put(x, device))
    expected = np.zeros((2, 2, 6, 4))
    for c, i, j in itertools.product(range(2), range(2), range(2)):
        expected[:, c, i::2, j::2] = x[:, 4 * c + 2 * i + j]
    close(out, expected)
    close(nn.PixelUnshuffle(2)(out), x)


def test_interpolate(device, rng):
    x = rng.standard_normal((1, 2, 3, 4))
    t = put(x, device)
    close(nn.Upsample(scale_factor=2)(t), x.repeat(2, 2).repeat(2, 3))

    def line(row, m):  # linear, corners aligned
        return np.interp(np.linspace(0, len(row) - 1, m), np.arange(len(row)), row)

    expected = np.apply_along_axis(line, 3, np.apply_along_axis(line, 2, x, 7), 5)
    close(F.interpolate(t, (7, 5), mode="bilinear", align_corners=True), expected)

    def half(row, m):  # linear between pixel centres
        at = (np.arange(m) + 0.5) * len(row) / m - 0.5
        return np.interp(at, np.arange(len(row)), row)

    expected = np.apply_along_axis(half, 3, np.apply_along_axis(half, 2, x, 6), 8)
    close(F.interpolate(t, scale_factor=2, mode="bilinear"), expected)

    def kernel(d):  # cubic convolution, Keys 1981, with its parameter at -0.75
        d = abs(d)
        near = 1.25 * d**3 - 2.25 * d**2 + 1
        return np.where(d <= 1, near, np.where(d < 2, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4), 0))

    def cubic(row, m):
        at = (np.arange(m) + 0.5) * len(row) / m - 0.5
        taps = np.arange(-3, len(row) + 3)
        return kernel(at[:, None] - taps) @ row[np.clip(taps, 0, len(row) - 1)]

    expected = np.apply_along_axis(cubic, 3, np.apply_along_axis(cubic, 2, x, 5), 9)
    close(F.interpolate(t, (5, 9), mode="bicubic"), expected)
    with pytest.raises(ValueError, match="either size or scale_factor"):
        F.interpolate(t)


def test_embedding(device, rng):
    table = nn.Embedding(6, 3, padding_idx=-2).to(device)
    assert table.padding_idx == 4 and not get(table.weight)[4].any()
    index = rng.integers(0, 6, (2, 5))
    index[0, 0] = 4
    out = table(put(index, device))
    close(out, get(table.weight)[index])
    out.sum().backward()
    counts = np.bincount(index.ravel(), minlength=6).astype(np.float32)
    counts[4] = 0
    close(table.weight.grad, np.repeat(counts[:, None], 3, 1))
    given = nn.Embedding.from_pretrained(trident.ones(2, 3))
    assert not given.weight.requires_grad
    short = nn.Embedding(6, 3, max_norm=0.5).to(device)
    before = get(short.weight).copy()
    short(put([1, 1, 2], device))
    norms = np.linalg.norm(before, axis=1)
    after = np.linalg.norm(get(short.weight), axis=1)
    expected = norms.copy()
    expected[[1, 2]] = np.minimum(norms[[1, 2]], 0.5)
    np.testing.assert_allclose(after, expected, rtol=1e-5)


# ---- losses -------------------------------------------------------------------------------------


def _logp(x):
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_difference_losses(reduction, device, rng):
    x, y = rng.standard_normal((2, 4, 5)) * 2
    end = {"mean": np.mean, "sum": np.sum, "none": lambda a: a}[reduction]
    d = x - y
    a = abs(d)
    for layer, loss in (
        (nn.MSELoss(reduction=reduction), d * d),
        (nn.L1Loss(reduction=reduction), a),
        (nn.SmoothL1Loss(reduction=reduction, beta=0.5), np.where(a < 0.5, d * d, a - 0.25)),
        (nn.HuberLoss(reduction=reduction, delta=2.0), np.where(a < 2, d * d / 2, 2 * (a - 1))),
    ):
        close(layer(put(x, device), put(y, device)), end(loss))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_losses(reduction, device, rng):
    x, t = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    t[2] = -100
    w = np.array([0.5, 1.0, 2.0, 3.0])
    used = t != -100
    at = np.where(used, t, 0)
    weights = np.where(used, w[at], 0)
    rows = -_logp(x)[np.arange(6), at] * weights
    expected = {"mean": rows.sum() / weights.sum(), "sum": rows.sum(), "none": rows}[reduction]
    layer = nn.CrossEntropyLoss(weight=put(w, device), reduction=reduction)
    close(layer(put(x, device), put(t, device)), expected)
    layer = nn.NLLLoss(weight=put(w, device), reduction=reduction)
    close(layer(put(_logp(x), device), put(t, device)), expected)


def test_cross_entropy_smoothing_and_probabilities(device, rng):
    x, t = rng.standard_normal((5, 4)), rng.integers(0, 4, 5)
    soft = 0.1 / 4 + 0.9 * np.eye(4)[t]
    expected = -(soft * _logp(x)).sum(1).mean()
    close(nn.CrossEntropyLoss(label_smoothing=0.1)(put(x, device), put(t, device)), expected)
    close(nn.CrossEntropyLoss()(put(x, device), put(soft, device)), expected)
    image = rng.standard_normal((2, 4, 3, 3))
    where = rng.integers(0, 4, (2, 3, 3))
    logp = _logp(image)
    picked = np.take_along_axis(logp, where[:, None], 1)
    close(nn.CrossEntropyLoss()(put(image, device), put(where, device)), -picked.mean())


def test_probability_losses(device, rng):
    p, y = rng.uniform(0.05, 0.95, (2, 4, 5))
    bce = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    close(nn.BCELoss()(put(p, device), put(y, device)), bce.mean())
    logits = np.log(p / (1 - p))
    close(nn.BCEWithLogitsLoss()(put(logits, device), put(y, device)), bce.mean())
    positive = np.array([1.0, 2, 3, 4, 5])
    weighted = -(positive * y * np.log(p) + (1 - y) * np.log(1 - p))
    layer = nn.BCEWithLogitsLoss(pos_weight=put(positive, device))
    close(layer(put(logits, device), put(y, device)), weighted.mean())
    kl = (y * (np.log(y) - np.log(p))).sum() / 4
    close(nn.KLDivLoss(reduction="batchmean")(put(np.log(p), device), put(y, device)), kl)


def test_distance_losses(device, rng):
    a, b, c = rng.standard_normal((3, 6, 4))
    s = np.array([1, -1, 1, -1, 1, -1])
    cos = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    A, B, C, S = (put(v, device) for v in (a, b, c, s))
    close(nn.CosineSimilarity()(A, B), cos)
    expected = np.where(s == 1, 1 - cos, np.maximum(cos - 0.1, 0)).mean()
    close(nn.CosineEmbeddingLoss(margin=0.1)(A, B, S), expected)

    def far(u, v):
        return np.linalg.norm(u - v + 1e-6, axis=1)

    close(nn.PairwiseDistance()(A, B), far(a, b))
    expected = np.maximum(far(a, b) - np.minimum(far(a, c), far(b, c)) + 1, 0).mean()
    close(nn.TripletMarginLoss(swap=True)(A, B, C), expected)
    x, y = a[:, 0], b[:, 0]
    expected = np.maximum(-s * (x - y) + 0.2, 0).mean()
    close(nn.MarginRankingLoss(0.2)(put(x, device), put(y, device), S), expected)
    close(
        nn.SoftMarginLoss()(put(x, device), put(s * 1.0, device)), np.log1p(np.exp(-s * x)).mean()
    )
    expected = np.where(s == 1, x, np.maximum(1 - x, 0)).mean()
    close(nn.HingeEmbeddingLoss()(put(x, device), S), expected)


def test_losses_do_not_broadcast_and_know_old_keywords():
    with pytest.raises(ValueError, match="Losses do not broadcast"):
        nn.MSELoss()(trident.zeros(4, 1), trident.zeros(4))
    with pytest.warns(DeprecationWarning, match="reduction='sum'"):
        layer = nn.MSELoss(size_average=False)
    assert layer.reduction == "sum"
    with pytest.warns(DeprecationWarning, match="reduction='none'"):
        assert nn.L1Loss(reduce=False).reduction == "none"


# ---- recurrence and attention -------------------------------------------------------------------


def _lstm(x, h, c, w, end):
    gates = x @ w[f"weight_ih_{end}"].T + w[f"bias_ih_{end}"]
    gates = gates + h @ w[f"weight_hh_{end}"].T + w[f"bias_hh_{end}"]
    i, f, g, o = np.split(gates, 4, -1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def test_lstm_two_layers_both_directions(device, rng):
    layer, w = ready(nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True), device)
    x = rng.standard_normal((2, 5, 3))
    out, (hn, cn) = layer(put(x, device))
    y, last_h, last_c = x, [], []
    for k in range(2):
        sides = []
        for suffix, order in (("", range(5)), ("_reverse", reversed(range(5)))):
            h, c, steps = np.zeros((2, 4)), np.zeros((2, 4)), {}
            for t in order:
                h, c = _lstm(y[:, t], h, c, w, f"l{k}{suffix}")
                steps[t] = h
            sides.append(np.stack([steps[t] for t in range(5)], 1))
            last_h.append(h)
            last_c.append(c)
        y = np.concatenate(sides, -1)
    close(out, y)
    close(hn, np.stack(last_h))
    close(cn, np.stack(last_c))


def test_gru_and_rnn(device, rng):
    x, h0 = rng.standard_normal((5, 2, 3)), rng.standard_normal((1, 2, 4))
    layer, w = ready(nn.GRU(3, 4), device)
    out, hn = layer(put(x, device), put(h0, device))
    h = h0[0]
    for t in range(5):
        ir, iz, inew = np.split(x[t] @ w["weight_ih_l0"].T + w["bias_ih_l0"], 3, -1)
        hr, hz, hnew = np.split(h @ w["weight_hh_l0"].T + w["bias_hh_l0"], 3, -1)
        z = _sigmoid(iz + hz)
        h = (1 - z) * np.tanh(inew + _sigmoid(ir + hr) * hnew) + z * h
        close(out[t], h)
    close(hn, h[None])
    cell = nn.GRUCell(3, 4).to(device).double()
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    close(cell(put(x[0], device), put(h0[0], device)), get(out)[0])
    layer, w = ready(nn.RNN(3, 4, nonlinearity="relu"), device)
    out, _ = layer(put(x[:, 0], device))  # unbatched
    h = np.zeros(4)
    for t in range(5):
        h = x[t, 0] @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T
        h = np.maximum(h + w["bias_hh_l0"], 0)
    close(out[-1], h)


def test_packed_sequences_run_as_each_alone(rng):
    layer = nn.LSTM(3, 4, bidirectional=True).double()
    rows = [trident.tensor(rng.standard_normal((n, 3))) for n in (2, 5, 3)]
    packed = nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [3, 3, 2, 1, 1]
    out, (h, _) = layer(packed)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(out)
    assert lengths.tolist() == [2, 5, 3]
    for i, row in enumerate(rows):
        alone, (h1, _) = layer(row)
        close(padded[: len(row), i], get(alone))
        close(h[:, i], get(h1))
    assert not get(padded)[2:, 0].any()
    back = nn.utils.rnn.unpad_sequence(padded, lengths)
    assert [tuple(b.shape) for b in back] == [(2, 8), (5, 8), (3, 8)]


def _attention(q, k, v, mask):
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1]) + mask
    e = np.exp(scores - scores.max(-1, keepdims=True))
    weights = e / e.sum(-1, keepdims=True)
    return weights @ v, weights


def test_scaled_dot_product_attention(device, rng):
    q, k, v = rng.standard_normal((3, 2, 4, 5, 6))
    Q, K, V = (put(a, device) for a in (q, k, v))
    close(F.scaled_dot_product_attention(Q, K, V), _attention(q, k, v, 0)[0])
    causal = np.where(np.tri(5, dtype=bool), 0, -np.inf)
    close(F.scaled_dot_product_attention(Q, K, V, is_causal=True), _attention(q, k, v, causal)[0])
    keep = rng.random((5, 5)) < 0.6
    keep[:, 0] = True
    mask = np.where(keep, 0, -np.inf)
    expected = _attention(q, k, v, mask)[0]
    close(F.scaled_dot_product_attention(Q, K, V, attn_mask=put(keep, device)), expected)
    close(F.scaled_dot_product_attention(Q, K, V, attn_mask=put(mask, device)), expected)
    few = F.scaled_dot_product_attention(Q, K[:, :2], V[:, :2], enable_gqa=True)
    close(few, _attention(q, k[:, :2].repeat(2, 1), v[:, :2].repeat(2, 1), 0)[0])
    keep[1] = False
    blind = get(F.scaled_dot_product_attention(Q, K, V, attn_mask=put(keep, device)))
    assert not blind[:, :, 1].any() and np.isfinite(blind).all()


def test_multihead_attention(device, rng):
    layer, w = ready(nn.MultiheadAttention(6, 2, batch_first=True), device)
    with trident.no_grad():
        layer.in_proj_bias.copy_(put(rng.standard_normal(18), device))
    w["in_proj_bias"] = get(layer.in_proj_bias)
    x = rng.standard_normal((2, 4, 6))
    hidden = rng.random((2, 4)) < 0.3
    hidden[:, 0] = False
    t = put(x, device)
    out, weights = layer(t, t, t, key_padding_mask=put(hidden, device))
    q, k, v = np.split(x @ w["in_proj_weight"].T + w["in_proj_bias"], 3, -1)
    q, k, v = (a.reshape(2, 4, 2, 3).swapaxes(1, 2) for a in (q, k, v))
    mask = np.where(hidden, -np.inf, 0)[:, None, None]
    y, expected = _attention(q, k, v, mask)
    y = y.swapaxes(1, 2).reshape(2, 4, 6) @ w["out_proj.weight"].T + w["out_proj.bias"]
    close(out, y)
    close(weights, expected.mean(1))
    fast, none = layer(t, t, t, key_padding_mask=put(hidden, device), need_weights=False)
    close(fast, y)
    assert none is None


def test_transformer_encoder_layer(rng):
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    x = trident.tensor(rng.standard_normal((2, 3, 4)))
    y = layer.norm1(x + layer.self_attn(x, x, x)[0])
    y = layer.norm2(y + layer.linear2(F.relu(layer.linear1(y))))
    close(layer(x), get(y))
    mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=trident.float64)
    first = layer(x, src_mask=mask)[:, :1]
    close(first, get(layer(x[:, :1])))  # the first step sees only itself
    model = nn.Transformer(4, 2, 1, 1, 8, dropout=0.0, batch_first=True).double()
    assert model(x, x[:, :2]).shape == (2, 2, 4)


# ---- initial values -----------------------------------------------------------------------------


def test_default_initial_values_have_torchs_bounds():
    trident.manual_seed(0)
    layer = nn.Linear(100, 50)
    for p in (layer.weight, layer.bias):
        a = get(p)
        assert 0.09 < np.abs(a).max() <= 0.1
    assert abs(get(layer.weight).std() - 0.1 / math.sqrt(3)) < 0.003
    conv = nn.Conv2d(4, 8, 5)
    assert 0.095 < np.abs(get(conv.weight)).max() <= 0.1
    table = get(nn.Embedding(100, 50).weight)
    assert abs(table.std() - 1) < 0.05 and abs(table.mean()) < 0.05
    assert 0.4 < np.abs(get(nn.LSTM(3, 4).weight_ih_l0)).max() <= 0.5


def test_init_scales(device):
    trident.manual_seed(0)
    w = trident.empty(64, 32, 3, device=device)
    fan_in, fan_out = 96, 192
    for fill, std in (
        (lambda t: init.xavier_uniform_(t, gain=2.0), 2 * math.sqrt(2 / (fan_in + fan_out))),
        (init.xavier_normal_, math.sqrt(2 / (fan_in + fan_out))),
        (lambda t: init.kaiming_uniform_(t, nonlinearity="relu"), math.sqrt(2 / fan_in)),
        (lambda t: init.kaiming_normal_(t, mode="fan_out"), math.sqrt(2 / fan_out)),
        (lambda t: init.normal_(t, 0.0, 0.3), 0.3),
        (lambda t: init.uniform_(t, -1.0, 1.0), 1 / math.sqrt(3)),
    ):
        assert fill(w) is w
        assert abs(get(w).std() / std - 1) < 0.05 and abs(get(w).mean()) < 0.1 * std
    a = get(init.trunc_normal_(w, 0.5, 1.0, -0.5, 1.0))
    assert a.min() >= -0.5 and a.max() <= 1.0 and a.min() < -0.45 and a.max() > 0.95
    assert (get(init.constant_(w, 7.0)) == 7).all() and not get(init.zeros_(w)).any()
    with pytest.raises(ValueError, match="at least 2 axes"):
        init.kaiming_normal_(trident.empty(3))
    assert init.calculate_gain("leaky_relu", 1.0) == 1.0
    with pytest.raises(ValueError, match="got 'swish'"):
        init.calculate_gain("swish")


def test_init_structure(rng):
    for shape in ((5, 3), (3, 5), (4, 2, 3)):
        w = get(init.orthogonal_(trident.empty(*shape), gain=2.0)).reshape(shape[0], -1)
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-5)
    np.testing.assert_array_equal(get(init.eye_(trident.empty(2, 3))), np.eye(2, 3))
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
    init.dirac_(conv.weight, groups=2)
    x = rng.standard_normal((1, 4, 3, 3)).astype(np.float32)
    close(conv(trident.tensor(x)), x)
    p = nn.Parameter(trident.empty(3))
    init.ones_(p)
    assert p.requires_grad and p.is_leaf


# ---- utils --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_clip_grad_norm(norm_type, device, rng):
    grads = [rng.standard_normal(s) for s in ((3, 2), (4,))]
    params = [trident.zeros(*g.shape, dtype=trident.float64, device=device) for g in grads]
    for p, g in zip(params, grads):
        p.grad = put(g, device)
    flat = np.concatenate([g.ravel() for g in grads])
    total = np.linalg.norm(flat, norm_type)
    close(nn.utils.clip_grad_norm_(params, 0.5, norm_type), total)
    for p, g in zip(params, grads):
        close(p.grad, g * 0.5 / (total + 1e-6))
    nn.utils.clip_grad_norm_(params, 100.0, norm_type)
    close(params[1].grad, grads[1] * 0.5 / (total + 1e-6))
    nn.utils.clip_grad_value_(params, 0.01)
    assert max(np.abs(get(p.grad)).max() for p in params) <= 0.01


def test_clip_grad_norm_of_nan_and_of_nothing():
    p = trident.zeros(2)
    assert nn.utils.clip_grad_norm_([p], 1.0).item() == 0.0
    p.grad = trident.tensor([math.nan, 1.0])
    with pytest.raises(RuntimeError, match=r"total norm of order 2\.0 is nan"):
        nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)


def test_parameters_to_vector_and_back():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    vector = nn.utils.parameters_to_vector(net.parameters())
    expected = np.concatenate([get(p).ravel() for p in net.parameters()])
    close(vector, expected)
    params = list(net.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 2, params)
    assert all(p is q for p, q in zip(net.parameters(), params))
    close(nn.utils.parameters_to_vector(params), 2 * expected)
    with pytest.raises(ValueError, match="the parameters hold 13 elements; vec holds 3"):
        nn.utils.vector_to_parameters(trident.zeros(3), params)


def test_pad_sequence():
    rows = [trident.tensor([1.0, 2.0]), trident.tensor([3.0])]
    pad = nn.utils.rnn.pad_sequence
    assert pad(rows, batch_first=True).tolist() == [[1, 2], [3, 0]]
    assert pad(rows, padding_value=-1.0, padding_side="left").tolist() == [[1, -1], [2, 3]]


def test_a_network_learns(device):
    trident.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).to(device)
    x = trident.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], device=device)
    y = trident.tensor([0, 1, 1, 0], device=device)
    opt = trident.optim.Adam(net.parameters(), lr=0.2)
    loss = nn.CrossEntropyLoss()
    for _ in range(20):
        opt.zero_grad()
        value = loss(net(x), y)
        value.backward()
        opt.step()
    assert value.item() < 0.2
    assert get(net(x).argmax(1)).tolist() == [0, 1, 1, 0]
