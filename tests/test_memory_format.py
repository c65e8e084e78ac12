"""Memory formats: torch's names and strides, and ops that hand a channels-last layout on."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import trident
import trident.nn.functional as F
from trident import nn, shapes
from trident.errors import ShapeError

LAST = trident.channels_last


def images(device: str, *shape: int) -> trident.Tensor:
    trident.manual_seed(0)
    return trident.randn(*shape).to(device)


def last(device: str, *shape: int) -> trident.Tensor:
    return images(device, *shape).to(memory_format=LAST)


def same(a: trident.Tensor, b: trident.Tensor) -> None:
    np.testing.assert_array_equal(a.detach().cpu().numpy(), b.detach().cpu().numpy())


# ---- strides: pure arithmetic -------------------------------------------------------------------


def test_channels_last_strides():
    assert shapes.channels_last_strides((2, 3, 4, 5)) == (60, 1, 15, 3)
    assert shapes.channels_last_strides((2, 3, 4, 5, 6)) == (360, 1, 90, 18, 3)
    assert shapes.is_channels_last((2, 3, 4, 5), (60, 1, 15, 3))
    assert not shapes.is_channels_last((2, 3, 4, 5), (60, 20, 5, 1))
    assert shapes.is_channels_last((2, 1, 4, 5), (20, 20, 5, 1))  # both orders
    assert not shapes.is_channels_last((3, 4), (1, 3))


@pytest.mark.parametrize(
    "shape, strides, prefers",
    [
        ((2, 3, 4, 5), (60, 1, 15, 3), True),
        ((2, 3, 4, 5), (60, 20, 5, 1), False),
        ((2, 3, 4, 5), (240, 1, 30, 3), True),  # every other row
        ((2, 3, 4, 5), (3, 1, 30, 6), False),
        ((2, 3, 1, 1), (3, 1, 1, 1), False),
        ((2, 3, 1, 1), (3, 1, 3, 3), True),
        ((2, 1, 4, 5), (20, 20, 5, 1), False),
        ((2, 1, 4, 5), (20, 1, 5, 1), True),
        ((2, 1, 1, 1), (1, 1, 1, 1), False),
        ((2, 3, 4, 5), (0, 0, 0, 0), False),
        ((2, 0, 4, 5), (0, 1, 0, 0), False),
        ((2, 3), (1, 2), False),
    ],
)  # fmt: skip
def test_what_prefers_channels_last(shape, strides, prefers):
    assert shapes.prefers_channels_last(shape, strides) is prefers


# what torch 2.13 answered for out = f(operands)
TORCH = [
    ((2, 3, 4, 5), [((2, 3, 4, 5), (60, 1, 15, 3))], (60, 1, 15, 3)),
    ((2, 3, 4, 5), [((2, 3, 4, 5), (60, 1, 15, 3)), ((2, 3, 4, 5), (60, 20, 5, 1))],
     (60, 1, 15, 3)),
    ((2, 3, 4, 5), [((2, 3, 4, 5), (60, 20, 5, 1)), ((2, 3, 4, 5), (60, 1, 15, 3))],
     (60, 20, 5, 1)),
    ((2, 3, 4, 5), [((3, 1, 1), (1, 1, 1)), ((2, 3, 4, 5), (60, 1, 15, 3))], (60, 1, 15, 3)),
    ((2, 3, 4), [((2, 3, 4), (96, 1, 6))], (12, 1, 3)),
    ((3, 4), [((3, 4), (1, 3)), ((4,), (1,))], (1, 3)),
    ((1, 3, 1, 3), [((1, 3, 1, 3), (9, 1, 1, 3))], (9, 1, 9, 3)),
    ((3, 4, 2, 2, 1), [((1, 2, 1), (1, 1, 2)), ((3, 4, 2, 2, 1), (4, 1, 24, 12, 1))],
     (4, 1, 24, 12, 4)),
    ((2, 1, 3, 1), [((1, 1, 3, 1), (3, 3, 1, 1)), ((2, 1, 3, 1), (3, 6, 1, 6))], (3, 6, 1, 6)),
    ((1, 1, 2, 4, 2), [((1, 1, 4, 2), (8, 8, 2, 1)), ((1, 1, 2, 4, 2), (1, 1, 8, 2, 1))],
     (1, 2, 8, 2, 1)),
    ((2, 3), [((2, 3), (0, 0))], (3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("shape, operands, strides", TORCH)
def test_the_strides_of_an_elementwise_result(shape, operands, strides):
    assert shapes.out_strides(shape, operands) == strides


def test_turned_orders():
    assert shapes.turned_order((2, 3, 4), (12, 1, 3)) == (0, 2, 1)
    assert shapes.turned_order((2, 3, 4), (12, 4, 1)) is None
    assert shapes.turned_order((2, 3, 4), (24, 2, 6)) is None  # with gaps
    assert shapes.inverse((2, 0, 1)) == (1, 2, 0)


# ---- the names ----------------------------------------------------------------------------------


def test_to_and_contiguous(device):
    x = images(device, 2, 3, 4, 5)
    y = x.to(memory_format=LAST)
    assert y.shape == (2, 3, 4, 5) and y.stride() == (60, 1, 15, 3) and y.dtype is x.dtype
    same(x, y)
    assert x.is_contiguous() and not x.is_contiguous(memory_format=LAST)
    assert y.is_contiguous(memory_format=LAST) and not y.is_contiguous()
    assert y.to(memory_format=LAST) is y and y.contiguous(memory_format=LAST) is y
    assert y.to(memory_format=trident.preserve_format) is y
    back = y.contiguous()
    assert back.stride() == (60, 20, 5, 1)
    same(x, back)
    assert y.to(trident.float64).stride() == (60, 1, 15, 3)
    assert y.to(trident.float64, memory_format=trident.contiguous_format).stride() == (60, 20, 5, 1)


def test_three_axes_of_space(device):
    x = images(device, 2, 3, 2, 2, 2)
    y = x.contiguous(memory_format=trident.channels_last_3d)
    assert y.stride() == (24, 1, 12, 6, 3)
    assert y.is_contiguous(memory_format=trident.channels_last_3d)
    assert not y.is_contiguous(memory_format=LAST)
    same(x, y)


def test_clone_keeps_the_layout(device):
    y = last(device, 2, 3, 4, 5)
    assert y.clone().stride() == y.stride()
    assert y.clone(memory_format=trident.contiguous_format).is_contiguous()
    assert images(device, 2, 3, 4, 5).clone(memory_format=LAST).stride() == y.stride()
    same(y, y.clone())
    assert y[:, :, ::2].clone().stride() == (30, 1, 15, 3)  # gaps are not copied
    assert copy.deepcopy(y).stride() == y.stride()
    z = images(device, 3, 4).T
    assert z.clone().stride() == (1, 4)


def test_gradients_pass_through(device):
    x = images(device, 2, 3, 4, 5).requires_grad_()
    (x.to(memory_format=LAST) * 2.0).sum().backward()
    assert x.grad.is_contiguous()
    np.testing.assert_array_equal(x.grad.cpu().numpy(), np.full((2, 3, 4, 5), 2.0, np.float32))


def test_likenesses(device):
    y = last(device, 2, 3, 4, 5)
    for make in (trident.empty_like, trident.zeros_like, trident.ones_like, trident.rand_like,
                 trident.randn_like):  # fmt: skip
        assert make(y).stride() == y.stride(), make.__name__
        assert make(y, memory_format=trident.contiguous_format).is_contiguous()
        assert make(y.contiguous(), memory_format=LAST).stride() == y.stride()
    same(trident.ones_like(y), trident.ones(2, 3, 4, 5))
    same(trident.full_like(y, 2.5), trident.full((2, 3, 4, 5), 2.5))
    trident.manual_seed(3)
    a = trident.randn_like(y)
    trident.manual_seed(3)
    same(a, trident.randn(2, 3, 4, 5))  # the numbers do not depend on the layout
    assert trident.zeros_like(y, requires_grad=True).requires_grad


def test_moving_between_devices_keeps_the_layout(device):
    y = last("cpu", 2, 3, 4, 5)
    there = y.to(device)
    assert there.stride() == y.stride()
    same(there, y)
    assert there.cpu().stride() == y.stride()


def test_errors():
    x = trident.zeros(2, 3)
    with pytest.raises(ShapeError, match=r"channels_last is for tensors of 4 axes; got shape"):
        x.to(memory_format=LAST)
    with pytest.raises(TypeError, match="memory_format must be a memory format"):
        x.contiguous(memory_format="channels_last")
    with pytest.raises(ValueError, match="contiguous_format, channels_last or"):
        x.is_contiguous(memory_format=trident.preserve_format)
    assert not x.is_contiguous(memory_format=LAST)


def test_formats_are_singletons():
    assert repr(LAST) == "trident.channels_last"
    assert isinstance(LAST, trident.memory_format)
    assert pickle.loads(pickle.dumps(LAST)) is LAST
    assert copy.deepcopy(trident.preserve_format) is trident.preserve_format


def test_modules(device):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    weight = net[0].weight
    net.to(device, memory_format=LAST)
    assert net[0].weight is weight and weight.stride() == (27, 1, 9, 3)
    assert net[3].weight.is_contiguous()
    net.to(memory_format=trident.contiguous_format)
    assert weight.is_contiguous()
    with pytest.raises(TypeError, match="memory_format must be"):
        net.to(memory_format="channels_last")


# ---- the layout is handed on --------------------------------------------------------------------


def test_elementwise_ops(device):
    x, y = last(device, 2, 3, 4, 5), images(device, 2, 3, 4, 5)
    scale = images(device, 3, 1, 1)
    for out in (F.relu(x), x + x, x * 2.0, x * scale, scale * x, x > 0, -x[:, :, ::2]):
        assert out.is_contiguous(memory_format=LAST)
    if device == "cuda":  # the first operand decides; numpy takes row-major where orders differ
        assert (x + y).is_contiguous(memory_format=LAST)
        assert (y + x).is_contiguous()
        assert trident.where(x > 0, x, y).is_contiguous(memory_format=LAST)
    same(x * scale + y, x.contiguous() * scale + y)
    same(trident.where(x > 0, x, y), trident.where(x.contiguous() > 0, x.contiguous(), y))
    z = images(device, 3, 4).T
    assert (z + 1.0).stride() == z.stride()
    same(z + 1.0, z.contiguous() + 1.0)


@pytest.mark.parametrize(
    "op",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
        lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
        lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.pad(x, (1, 2, 0, 1)),
        lambda x: trident.cat([x, x], 1),
        lambda x: F.conv2d(x, trident.ones(4, x.shape[1], 3, 3, device=x.device)),
        lambda x: F.conv2d(x, trident.ones(4, x.shape[1], 1, 1, device=x.device)),
        lambda x: F.conv2d(x, trident.ones(x.shape[1], 1, 3, 3, device=x.device), groups=3),
        lambda x: F.conv_transpose2d(x, trident.ones(3, 4, 2, 2, device=x.device), None, 2),
    ],
)  # fmt: skip
def test_ops_over_images(device, op):
    x = last(device, 2, 3, 6, 6)
    out = op(x)
    plain = op(x.contiguous())
    assert out.is_contiguous(memory_format=LAST) and plain.is_contiguous()
    assert out.dtype is plain.dtype
    np.testing.assert_allclose(out.cpu().numpy(), plain.cpu().numpy(), rtol=1e-5, atol=1e-5)


def test_unbatched_images_stay_row_major(device):
    x = images(device, 6, 3, 6).permute(1, 0, 2)  # the second axis is the fastest of the first two
    assert F.max_pool2d(x, 2).is_contiguous()
    same(F.max_pool2d(x, 2), F.max_pool2d(x.contiguous(), 2))


def test_a_network_keeps_the_layout_there_and_back(device):
    def net() -> nn.Sequential:
        trident.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ).to(device)  # fmt: skip

    plain, turned = net(), net().to(memory_format=LAST)
    x = images(device, 4, 3, 8, 8)
    seen: list[trident.Tensor] = []
    for layer in turned:
        layer.register_forward_hook(lambda m, i, out: seen.append(out))
    inputs = [x.clone().requires_grad_(), x.to(memory_format=LAST).requires_grad_()]
    for n, i in zip((plain, turned), inputs):
        out = n(i)
        (out * out).sum().backward()
    assert all(o.is_contiguous(memory_format=LAST) for o in seen[:8])
    assert inputs[1].grad.is_contiguous(memory_format=LAST)
    np.testing.assert_allclose(
        inputs[0].grad.cpu().numpy(), inputs[1].grad.cpu().numpy(), rtol=1e-4, atol=1e-5
    )
    for p, q in zip(plain.parameters(), turned.parameters()):
        order = LAST if q.ndim == 4 else trident.contiguous_format
        assert q.grad.is_contiguous(memory_format=order)
        np.testing.assert_allclose(p.grad.cpu().numpy(), q.grad.cpu().numpy(), rtol=1e-3, atol=1e-4)


def test_a_gradient_lies_as_its_parameter_does(device):
    x = last(device, 2, 3, 6, 6)
    w = images(device, 4, 3, 3, 3).requires_grad_()
    F.conv2d(x, w).sum().backward()
    assert w.grad.stride() == w.stride()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
def test_optimizers_step_channels_last_weights(device, optimizer):
    def trained(memory_format) -> trident.Tensor:
        trident.manual_seed(2)
        conv = nn.Conv2d(3, 5, 3).to(device).to(memory_format=memory_format)
        kind = getattr(trident.optim, optimizer)
        steps = kind(conv.parameters(), lr=0.1, **({"momentum": 0.9} if optimizer == "SGD" else {}))
        x = images(device, 2, 3, 6, 6)
        for _ in range(3):
            steps.zero_grad()
            conv(x).square().mean().backward()
            steps.step()
        assert conv.weight.is_contiguous(memory_format=memory_format)
        return conv.weight

    a, b = trained(trident.contiguous_format), trained(LAST)
    np.testing.assert_allclose(
        a.detach().cpu().numpy(), b.detach().cpu().numpy(), rtol=1e-4, atol=1e-6
    )


def test_a_state_dict_is_loaded_into_any_layout(device):
    a, b = nn.Conv2d(3, 5, 3).to(device), nn.Conv2d(3, 5, 3).to(device).to(memory_format=LAST)
    b.load_state_dict(a.state_dict())
    assert b.weight.is_contiguous(memory_format=LAST)
    same(a.weight, b.weight)
