"""Modules: bookkeeping, hooks, state, repr; layers and losses against formulas written in numpy."""

from __future__ import annotations

import copy
import math
import pickle
from collections import OrderedDict

import numpy as np
import pytest

import trident
from trident import nn
from trident.nn import functional as F


def put(a, device, grad=False):
    t = trident.tensor(np.asarray(a), device=device)
    return t.requires_grad_() if grad else t


def get(t):
    return t.detach().cpu().numpy()


def close(t, expected, tol=1e-6):
    expected = np.asarray(expected)
    assert tuple(t.shape) == expected.shape
    np.testing.assert_allclose(get(t), expected, rtol=tol, atol=tol)


class Block(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.qkv = nn.Linear(n, 3 * n)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.qkv(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(trident.tensor([2.0, 3.0]))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.register_buffer("mean", trident.tensor([1.0]))
        self.register_buffer("cache", trident.tensor([5.0]), persistent=False)
        self.head = None

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x)[..., :4]).sum(-1) * self.scale[0]


NAMES = [
    "scale",
    "blocks.0.qkv.weight",
    "blocks.0.qkv.bias",
    "blocks.1.qkv.weight",
    "blocks.1.qkv.bias",
]


# ---- bookkeeping --------------------------------------------------------------------------------


def test_names_in_order_of_registration():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == NAMES
    assert [n for n, _ in net.named_parameters(recurse=False)] == ["scale"]
    assert [n for n, _ in net.named_parameters(prefix="m")] == [f"m.{n}" for n in NAMES]
    assert [n for n, _ in net.named_buffers()] == ["mean", "cache"]
    assert [n for n, _ in net.named_children()] == ["blocks"]
    modules = ["", "blocks", "blocks.0", "blocks.0.qkv", "blocks.0.act", "blocks.1"]
    assert [n for n, _ in net.named_modules()] == [*modules, "blocks.1.qkv", "blocks.1.act"]
    assert sum(1 for _ in net.parameters()) == 5 and sum(1 for _ in net.modules()) == 8


def test_assignment_registers_moves_and_removes():
    m = nn.Module()
    p = nn.Parameter(trident.zeros(2))
    m.x = p
    assert m._parameters == {"x": p} and m.x is p
    m.x = nn.Linear(1, 1)  # from parameter to module
    assert not m._parameters and list(m._modules) == ["x"]
    m.x = None
    assert m.x is None and list(m._modules) == ["x"] and list(m.children()) == []
    del m.x
    assert not m._modules and not hasattr(m, "x")
    m.b = nn.Buffer(trident.ones(1), persistent=False)
    assert list(m._buffers) == ["b"] and not m.state_dict()
    m.b = trident.zeros(3)
    assert get(m._buffers["b"]).tolist() == [0, 0, 0]
    m.plain = trident.zeros(1)
    assert "plain" not in m._buffers


def test_registries_and_attributes_stay_in_step():
    m = nn.Linear(2, 2)
    new = nn.Parameter(trident.ones(2, 2))
    m._parameters["weight"] = new
    assert m.weight is new
    m._modules["child"] = nn.ReLU()
    assert isinstance(m.child, nn.ReLU)
    assert isinstance(m._modules.pop("child"), nn.ReLU) and not hasattr(m, "child")
    m._parameters.update(extra=nn.Parameter(trident.ones(1)))
    assert m.extra is m._parameters["extra"]
    m._parameters.clear()
    assert not hasattr(m, "weight")


def test_bad_registrations_say_what_is_wrong():
    m = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="'weight' is a parameter, so only a Parameter or None"):
        m.weight = trident.zeros(2, 2)
    with pytest.raises(TypeError, match=r"Wrap the tensor: trident.nn.Parameter\(tensor\)"):
        m.register_parameter("v", trident.zeros(1))
    with pytest.raises(KeyError, match="'forward' already exists"):
        m.register_buffer("forward", trident.zeros(1))
    with pytest.raises(KeyError, match=r'must not be empty or contain "\."'):
        m.add_module("a.b", nn.ReLU())
    with pytest.raises(AttributeError, match="the nearest name it has is 'weight'"):
        m.weigth  # noqa: B018

    class Early(nn.Module):
        def __init__(self):
            self.w = nn.Parameter(trident.zeros(1))

    with pytest.raises(AttributeError, match="before super"):
        Early()
    with pytest.raises(TypeError, match="must define forward"):
        nn.Module()(1)


def test_get_by_path():
    net = Net()
    assert net.get_submodule("blocks.1.qkv") is net.blocks[1].qkv
    assert net.get_submodule("") is net
    assert net.get_parameter("blocks.0.qkv.bias") is net.blocks[0].qkv.bias
    assert net.get_buffer("mean") is net.mean
    with pytest.raises(AttributeError, match="'qkw'; the nearest name it has is 'qkv'"):
        net.get_submodule("blocks.0.qkw")


def test_shared_parameters_come_once():
    a = nn.Linear(3, 3)
    net = nn.Sequential(a, nn.ReLU(), a)
    assert [n for n, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    assert len(list(net.named_parameters(remove_duplicate=False))) == 4
    assert len(list(net.children())) == 2
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


# ---- state --------------------------------------------------------------------------------------


def test_state_dict_round_trip(rng):
    a, b = Net(), Net()
    state = a.state_dict()
    assert list(state) == ["scale", "mean", *NAMES[1:]]
    assert not state["scale"].requires_grad
    assert repr(b.load_state_dict(state)) == "<All keys matched successfully>"
    x = trident.tensor(rng.standard_normal((3, 4)).astype(np.float32))
    np.testing.assert_array_equal(get(a(x)), get(b(x)))
    assert b.scale is not a.scale and b.scale.requires_grad
    with trident.no_grad():
        a.scale.fill_(9.0)
    assert get(state["scale"]).tolist() == [9.0, 9.0]  # the state shares memory
    assert get(b.scale).tolist() == [2.0, 3.0]  # the loaded model does not
    assert a.state_dict(keep_vars=True)["scale"] is a.scale
    assert next(iter(a.blocks.state_dict(prefix="p."))) == "p.0.qkv.weight"


def test_load_state_dict_lists_everything_and_writes_nothing():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = get(net[0].bias).copy()
    state = net.state_dict()
    bad = {
        "0.weight": trident.zeros(3, 5),
        "0.bias": trident.ones(3),
        "1.weight": state["1.weight"],
        "extra": trident.ones(1),
    }
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(bad)
    text = str(caught.value)
    assert "size mismatch for 0.weight: the state dict has (3, 5), the model has (3, 2)" in text
    assert "missing keys: '1.bias'" in text and "unexpected keys: 'extra'" in text
    np.testing.assert_array_equal(get(net[0].bias), before)
    del bad["0.weight"]
    found = net.load_state_dict(bad, strict=False)
    assert found.missing_keys == ["0.weight", "1.bias"] and found.unexpected_keys == ["extra"]
    assert get(net[0].bias).tolist() == [1, 1, 1]


def test_load_state_dict_assign_takes_the_tensors():
    net = nn.Linear(2, 1)
    w = trident.tensor([[1.0, 2.0]])
    net.load_state_dict({"weight": w, "bias": nn.Parameter(trident.tensor([3.0]))}, assign=True)
    assert isinstance(net.weight, nn.Parameter) and get(net(trident.ones(1, 2))).tolist() == [[6.0]]


def test_extra_state():
    class Counting(nn.Module):
        n = 0

        def get_extra_state(self):
            return self.n

        def set_extra_state(self, state):
            self.n = state

    a, b = nn.Sequential(Counting()), nn.Sequential(Counting())
    a[0].n = 7
    assert a.state_dict() == {"0._extra_state": 7}
    b.load_state_dict(a.state_dict())
    assert b[0].n == 7


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_apart(copied):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net[1].eval()
    twin = copied(net)
    assert repr(twin) == repr(net) and twin[1].training is False
    for (n, p), (m, q) in zip(net.state_dict().items(), twin.state_dict().items()):
        assert n == m
        np.testing.assert_array_equal(get(p), get(q))
    assert (
        isinstance(twin[0].weight, nn.Parameter) and twin[0].weight is twin[0]._parameters["weight"]
    )
    with trident.no_grad():
        twin[0].weight.zero_()
    assert np.abs(get(net[0].weight)).sum() > 0
    twin[0].weight = nn.Parameter(trident.ones(3, 2))
    assert twin[0]._parameters["weight"] is twin[0].weight


# ---- modes, devices, dtypes ---------------------------------------------------------------------


def test_train_eval_apply_freeze():
    net = Net()
    assert net.eval() is net and not any(m.training for m in net.modules())
    net.train()
    assert all(m.training for m in net.modules())
    with pytest.raises(ValueError, match="mode must be a bool"):
        net.train("yes")
    seen = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "ReLU", "Block"] * 2 + ["ModuleList", "Net"]
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())


def test_conversions_keep_identity_and_gradients(device):
    net = Net()
    x = trident.ones(1, 4)
    net(x).sum().backward()
    before = list(net.parameters())
    grad = get(net.blocks[0].qkv.weight.grad)
    net.to(device).double()
    assert all(p is q for p, q in zip(net.parameters(), before))
    assert all(p.dtype is trident.float64 and p.is_leaf for p in net.parameters())
    assert net.mean.dtype is trident.float64 and net.mean.device.type == device
    assert net.blocks[0].qkv.weight.grad.dtype is trident.float64
    close(net.blocks[0].qkv.weight.grad, grad.astype(np.float64))
    assert net.half().scale.dtype is trident.float16
    assert net.to(trident.zeros(1)).scale.dtype is trident.float32
    norm = nn.BatchNorm1d(2).to(device, trident.float64)
    assert norm.num_batches_tracked.dtype is trident.int64
    with pytest.raises(TypeError, match="floating dtypes"):
        net.to(trident.int64)


def test_zero_grad():
    net = nn.Linear(2, 1)
    net(trident.ones(1, 2)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert get(net.weight.grad).tolist() == [[0.0, 0.0]]
    net.zero_grad()
    assert net.weight.grad is None and net.bias.grad is None


# ---- hooks --------------------------------------------------------------------------------------


def test_forward_hooks_see_and_replace():
    layer = nn.Identity()
    log = []
    pre = layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    layer.register_forward_pre_hook(lambda m, args: log.append(args[0].item()), prepend=True)
    layer.register_forward_hook(lambda m, args, out: out + 1)
    layer.register_forward_hook(
        lambda m, args, kwargs, out: log.append((kwargs, out.item())), with_kwargs=True
    )
    assert layer(trident.tensor(5.0)).item() == 11.0
    assert log == [5.0, ({}, 11.0)]
    pre.remove()
    pre.remove()
    assert layer(trident.tensor(5.0)).item() == 6.0


def test_pre_hook_with_kwargs():
    class Scale(nn.Module):
        def forward(self, x, by=1.0):
            return x * by

    layer = Scale()
    with layer.register_forward_pre_hook(lambda m, a, k: (a, {"by": 3.0}), with_kwargs=True):
        assert layer(trident.tensor(2.0)).item() == 6.0
    assert layer(trident.tensor(2.0)).item() == 2.0


def test_full_backward_hooks():
    layer = nn.Linear(2, 1, bias=False)
    with trident.no_grad():
        layer.weight.copy_(trident.tensor([[2.0, 5.0]]))
    seen = []
    layer.register_full_backward_pre_hook(lambda m, g: (g[0] * 10,))
    layer.register_full_backward_hook(lambda m, gi, go: seen.append((get(gi[0]), get(go[0]))))
    layer.register_full_backward_hook(lambda m, gi, go: (gi[0] * 2,))
    x = trident.ones(1, 2, requires_grad=True)
    layer(x).sum().backward()
    assert seen[0][0].tolist() == [[20.0, 50.0]] and seen[0][1].tolist() == [[10.0]]
    assert get(x.grad).tolist() == [[40.0, 100.0]]
    assert get(layer.weight.grad).tolist() == [[10.0, 10.0]]


def test_backward_hook_of_the_first_layer():
    layer, seen = nn.Linear(2, 1), []
    layer.register_full_backward_hook(lambda m, gi, go: seen.append((gi, get(go[0]))))
    layer(trident.ones(3, 2)).sum().backward()  # the input needs no gradient
    assert len(seen) == 1 and seen[0][1].tolist() == [[1.0]] * 3


def test_an_error_names_the_module():
    net = Net()
    with pytest.raises(Exception) as caught:
        net(trident.zeros(2, 5))
    assert caught.value.__notes__ == ["in Net.blocks.0.qkv: Linear(4 -> 12)"]
    with pytest.raises(Exception) as caught:
        nn.Linear(2, 2)(trident.zeros(3))
    assert caught.value.__notes__ == ["in Linear(2 -> 2)"]


# ---- text ---------------------------------------------------------------------------------------


def test_repr():
    net = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 8, 3, padding=1, bias=False),
            layers=nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(inplace=True)]),
            norm=nn.LayerNorm(4),
        )
    )
    assert repr(net) == (
        "Sequential(\n"
        "  (conv): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)\n"
        "  (layers): ModuleList(\n"
        "    (0-1): 2 x Linear(in_features=2, out_features=2, bias=True)\n"
        "    (2): ReLU(inplace=True)\n"
        "  )\n"
        "  (norm): LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)\n"
        ")"
    )
    assert repr(nn.Sequential()) == "Sequential()"
    assert repr(nn.ParameterList([trident.zeros(2, 3)])) == (
        "ParameterList(\n  (0): Parameter containing: [trident.float32 of size 2x3]\n)"
    )
    assert repr(nn.Parameter(trident.tensor([1.0]))) == (
        "Parameter containing:\ntensor([1.], requires_grad=True)"
    )
    assert repr(nn.MaxPool2d(2)) == (
        "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)"
    )


def test_summary():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 2))
    table = net.summary(trident.zeros(2, 3, 5, 5))
    assert net.training and not net[0]._forward_hooks
    assert [r.shape for r in table.rows] == ["(2, 2)", "(2, 4, 5, 5)", "(2, 100)", "(2, 2)"]
    assert [r.params for r in table.rows] == [0, 3 * 4 * 9 + 4, 0, 202]
    conv, linear = 2 * 200 * 27 + 200, 2 * 4 * 100 + 4
    assert table.total_flops == conv + linear and table.total_params == 314
    assert "Conv2d" in str(table) and "<table>" in table._repr_html_()


def test_missing_names_name_the_nearest():
    for module, name, near in ((nn, "Conv2D", "Conv2d"), (F, "lay_norm", "layer_norm")):
        with pytest.raises(AttributeError, match=f"nearest name it has is '{near}'"):
            getattr(module, name)


# ---- containers ---------------------------------------------------------------------------------


def test_sequential():
    a, b, c = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)
    net = nn.Sequential(a, b, c)
    assert len(net) == 3 and net[-1] is c and list(net[1:]) == [b, c]
    assert isinstance(net[:2], nn.Sequential) and list(net) == [a, b, c]
    net.append(nn.Tanh()).insert(0, nn.Identity())
    assert [type(m).__name__ for m in net] == ["Identity", "Linear", "ReLU", "Linear", "Tanh"]
    del net[0]
    assert list(net._modules) == ["0", "1", "2", "3"] and net[0] is a
    assert net.pop(-1).__class__ is nn.Tanh and len(net) == 3
    net[1] = nn.Sigmoid()
    assert isinstance(net[1], nn.Sigmoid)
    named = nn.Sequential(OrderedDict(first=a, last=c))
    assert named.first is a and list(named[:1]._modules) == ["first"]
    with pytest.raises(IndexError, match=r"index must lie in \[-3, 2\]"):
        net[3]


def test_module_list_and_dict():
    layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
    layers += [nn.ReLU()]
    layers.insert(1, nn.Tanh())
    assert [type(m).__name__ for m in layers] == ["Linear", "Tanh", "Linear", "Linear", "ReLU"]
    del layers[1:3]
    assert list(layers._modules) == ["0", "1", "2"] and len(layers[1:]) == 2
    d = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.ReLU()})
    assert "a" in d and list(d) == ["a", "b"] and len(list(d.parameters())) == 2
    d["a"] = nn.Tanh()
    assert isinstance(d.pop("a"), nn.Tanh) and list(d.keys()) == ["b"]


def test_parameter_list_and_dict():
    ps = nn.ParameterList([trident.zeros(1), nn.Parameter(trident.ones(2)), 5])
    ps.append(trident.ones(3))
    assert [n for n, _ in ps.named_parameters()] == ["0", "1", "3"] and ps[2] == 5
    assert len(ps) == 4 and ps[-1].shape == (3,) and len(ps[1:]) == 3
    d = nn.ParameterDict({"left": trident.zeros(1)})
    d["right"] = trident.ones(1)
    assert list(d.keys()) == ["left", "right"] and d["right"].requires_grad
    twin = copy.deepcopy(d)
    assert twin["right"] is not d["right"] and twin["right"].item() == 1.0
    del d["left"]
    assert [n for n, _ in d.named_parameters()] == ["right"]


def test_lazy_layers_keep_their_parameters():
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    before = list(net.parameters())
    out = net(trident.randn(2, 3, 5, 5))
    assert out.shape == (2, 2) and all(p is q for p, q in zip(net.parameters(), before))
    assert [type(m) for m in net] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]
    assert net[3].in_features == 36 and net[0].weight.shape == (4, 3, 3, 3)
    bound = 1 / math.sqrt(27)
    assert 0.5 * bound < np.abs(get(net[0].weight)).max() <= bound
