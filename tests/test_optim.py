"""Every optimizer, step by step, against its formula written in numpy."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import trident
from trident import nn, optim

SHAPES = ((4, 3), (5,), (2, 2))


def get(t):
    return t.detach().cpu().numpy()


# ---- the formulas: (parameter, gradient, state, options, step from 1) -> parameter --------------


def sgd(p, g, s, o, t):
    g = g + o.get("weight_decay", 0) * p
    mu = o.get("momentum", 0)
    if mu:
        s["b"] = g if t == 1 else mu * s["b"] + (1 - o.get("dampening", 0)) * g
        g = g + mu * s["b"] if o.get("nesterov") else s["b"]
    return p - o["lr"] * g


def adam(p, g, s, o, t):
    b1, b2 = o.get("betas", (0.9, 0.999))
    if o.get("decoupled"):
        p = p * (1 - o["lr"] * o.get("weight_decay", 1e-2))
    else:
        g = g + o.get("weight_decay", 0) * p
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    s["top"] = np.maximum(s.get("top", 0), s["v"])
    v = s["top"] if o.get("amsgrad") else s["v"]
    return p - o["lr"] * (s["m"] / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)


def adamw(p, g, s, o, t):
    return adam(p, g, s, {**o, "decoupled": True}, t)


def rmsprop(p, g, s, o, t):
    g = g + o.get("weight_decay", 0) * p
    s["v"] = 0.99 * s.get("v", 0) + 0.01 * g * g
    spread = s["v"]
    if o.get("centered"):
        s["mean"] = 0.99 * s.get("mean", 0) + 0.01 * g
        spread = spread - s["mean"] ** 2
    step = g / (np.sqrt(spread) + 1e-8)
    s["b"] = o.get("momentum", 0) * s.get("b", 0) + step
    return p - o["lr"] * s["b"]


def adagrad(p, g, s, o, t):
    g = g + o.get("weight_decay", 0) * p
    s["sum"] = s.get("sum", o.get("initial_accumulator_value", 0)) + g * g
    lr = o["lr"] / (1 + (t - 1) * o.get("lr_decay", 0))
    return p - lr * g / (np.sqrt(s["sum"]) + 1e-10)


def adadelta(p, g, s, o, t):
    g = g + o.get("weight_decay", 0) * p
    s["v"] = 0.9 * s.get("v", 0) + 0.1 * g * g
    d = g * np.sqrt(s.get("u", 0) + 1e-6) / np.sqrt(s["v"] + 1e-6)
    s["u"] = 0.9 * s.get("u", 0) + 0.1 * d * d
    return p - o["lr"] * d


def adamax(p, g, s, o, t):
    g = g + o.get("weight_decay", 0) * p
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["u"] = np.maximum(0.999 * s.get("u", 0), abs(g) + 1e-8)
    return p - o["lr"] / (1 - 0.9**t) * s["m"] / s["u"]


def nadam(p, g, s, o, t):
    if o.get("decoupled_weight_decay"):
        p = p * (1 - o["lr"] * o["weight_decay"])
    mu, ahead = (0.9 * (1 - 0.5 * 0.96 ** (k * 4e-3)) for k in (t, t + 1))
    s["product"] = s.get("product", 1.0) * mu
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
    m = ahead * s["m"] / (1 - s["product"] * ahead) + (1 - mu) * g / (1 - s["product"])
    return p - o["lr"] * m / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)


def radam(p, g, s, o, t):
    b1, b2 = o.get("betas", (0.9, 0.999))
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    m = s["m"] / (1 - b1**t)
    top = 2 / (1 - b2) - 1
    rho = top - 2 * t * b2**t / (1 - b2**t)
    if rho <= 5:
        return p - o["lr"] * m
    r = math.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
    return p - o["lr"] * m * r * math.sqrt(1 - b2**t) / (np.sqrt(s["v"]) + 1e-8)


def rprop(p, g, s, o, t):
    same = g * s.get("prev", 0)
    size = s.get("size", np.full(p.shape, o["lr"]))
    s["size"] = np.clip(size * np.where(same > 0, 1.2, np.where(same < 0, 0.5, 1)), 1e-6, 50)
    s["prev"] = np.where(same < 0, 0, g)
    return p - np.sign(s["prev"]) * s["size"]


CASES = [
    (optim.SGD, sgd, {}),
    (optim.SGD, sgd, {"momentum": 0.9, "dampening": 0.3}),
    (optim.SGD, sgd, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (optim.Adam, adam, {}),
    (optim.Adam, adam, {"weight_decay": 0.1, "amsgrad": True, "betas": (0.8, 0.9)}),
    (optim.AdamW, adamw, {}),
    (optim.AdamW, adamw, {"weight_decay": 0.3, "amsgrad": True}),
    (optim.RMSprop, rmsprop, {"weight_decay": 0.1}),
    (optim.RMSprop, rmsprop, {"centered": True, "momentum": 0.9}),
    (optim.Adagrad, adagrad, {}),
    (
        optim.Adagrad,
        adagrad,
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.3},
    ),
    (optim.Adadelta, adadelta, {"weight_decay": 0.1}),
    (optim.Adamax, adamax, {"weight_decay": 0.1}),
    (optim.NAdam, nadam, {}),
    (optim.NAdam, nadam, {"weight_decay": 0.2, "decoupled_weight_decay": True}),
    (optim.RAdam, radam, {}),
    (optim.RAdam, radam, {"betas": (0.8, 0.9)}),
    (optim.Rprop, rprop, {}),
]
IDS = [f"{c.__name__}-{','.join(o) or 'plain'}" for c, _, o in CASES]


def make(rng, device, dtype=trident.float64):
    arrays = [rng.standard_normal(s) for s in SHAPES]
    params = [trident.tensor(a, dtype=dtype, device=device).requires_grad_() for a in arrays]
    return arrays, params


@pytest.mark.parametrize(("cls", "formula", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_steps_follow_the_formula(cls, formula, options, maximize, device, rng):
    arrays, params = make(rng, device)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
    opt = cls(groups, **{"lr": 0.1, "maximize": maximize, **options})
    states, steps = [{} for _ in arrays], [0] * len(arrays)
    for t in range(7):
        for i, p in enumerate(params):
            if (i == 1 and t < 2) or (i == 2 and t == 4):  # joins later; pauses
                p.grad = None
                continue
            g = rng.standard_normal(p.shape)
            p.grad = trident.tensor(g, device=device)
            steps[i] += 1
            o = {"lr": 0.02 if i == 2 else 0.1, **options}
            arrays[i] = formula(arrays[i], -g if maximize else g, states[i], o, steps[i])
        opt.step()
        for p, a in zip(params, arrays):
            np.testing.assert_allclose(get(p), a, rtol=1e-9, atol=1e-11)
    assert all(p.requires_grad and p.is_leaf for p in params)


@pytest.mark.parametrize(("cls", "formula", "options"), CASES, ids=IDS)
def test_state_dict_round_trip(cls, formula, options, device, rng):
    _, params = make(rng, device)
    twins = [p.detach().clone().requires_grad_() for p in params]
    a = cls(params, **{"lr": 0.1, **options})
    grads = [[rng.standard_normal(p.shape) for p in params] for _ in range(5)]

    def go(opt, tensors, some):
        for row in some:
            for p, g in zip(tensors, row):
                p.grad = trident.tensor(g, device=device)
            opt.step()

    go(a, params, grads[:3])
    for p, q in zip(params, twins):
        q.data = p.detach().clone()
    b = cls(twins, lr=0.7)
    b.load_state_dict(pickle.loads(pickle.dumps(a.state_dict())))
    assert b.param_groups[0]["lr"] == 0.1
    go(a, params, grads[3:])
    go(b, twins, grads[3:])
    for p, q in zip(params, twins):
        np.testing.assert_array_equal(get(p), get(q))


def test_half_parameters_are_updated_in_float32(device, rng):
    a = rng.standard_normal(6).astype(np.float16)
    g = rng.standard_normal(6).astype(np.float16)
    p = trident.tensor(a, device=device).requires_grad_()
    p.grad = trident.tensor(g, device=device)
    optim.SGD([p], lr=0.1).step()
    expected = (a.astype(np.float32) - np.float32(0.1) * g.astype(np.float32)).astype(np.float16)
    np.testing.assert_allclose(get(p).astype(np.float32), expected.astype(np.float32), rtol=1e-3)


def test_torchs_layout_loads():
    p = trident.zeros(2, requires_grad=True)
    opt = optim.Adam([p], lr=0.5)
    state = {
        "step": np.float32(3),
        "exp_avg": np.ones(2, np.float32),
        "exp_avg_sq": np.full(2, 4, np.float32),
    }
    group = {"lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0, "amsgrad": False,
             "maximize": False, "foreach": None, "capturable": False, "differentiable": False,
             "fused": None, "decoupled_weight_decay": False, "params": [0]}  # fmt: skip
    opt.load_state_dict({"state": {0: state}, "param_groups": [group]})
    p.grad = trident.zeros(2)
    opt.step()
    m, v = 0.9 / (1 - 0.9**4), 4 * 0.99 / (1 - 0.99**4)
    np.testing.assert_allclose(get(p), [-0.1 * m / math.sqrt(v)] * 2, rtol=1e-6)
    assert opt.state[p]["step"] == 4


def test_loading_what_does_not_fit_says_so():
    a, b = trident.zeros(1, requires_grad=True), trident.zeros(1, requires_grad=True)
    state = optim.SGD([a, b]).state_dict()
    with pytest.raises(ValueError, match=r"group 0 of the state has 2 parameters, .* has 1"):
        optim.SGD([a]).load_state_dict(state)
    with pytest.raises(ValueError, match="the state has 1 param groups, the optimizer has 2"):
        optim.SGD([{"params": [a]}, {"params": [b]}]).load_state_dict(state)


def test_groups_and_defaults():
    a, b, c = (trident.zeros(1, requires_grad=True) for _ in range(3))
    opt = optim.SGD([{"params": a}, {"params": [b], "lr": 0.5}], lr=0.1, momentum=0.9)
    opt.add_param_group({"params": [c], "momentum": 0.0})
    assert [g["lr"] for g in opt.param_groups] == [0.1, 0.5, 0.1]
    assert [g["momentum"] for g in opt.param_groups] == [0.9, 0.9, 0.0]
    assert opt.state_dict()["param_groups"][2]["params"] == [2]
    named = optim.SGD(nn.Linear(2, 1).named_parameters(), lr=0.1)
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    assert repr(opt).startswith("SGD (\nParameter Group 0\n    dampening: 0\n")


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda p: optim.SGD([p], lr=-0.1), ValueError, "SGD: lr must be >= 0; got -0.1"),
        (lambda p: optim.SGD([p], nesterov=True), ValueError, "nesterov needs momentum > 0"),
        (
            lambda p: optim.Adam([p], betas=(0.9, 1.0)),
            ValueError,
            r"betas\[1\] must lie in \[0, 1\)",
        ),
        (lambda p: optim.Adam([p], eps=-1.0), ValueError, "Adam: eps must be >= 0; got -1.0"),
        (lambda p: optim.RMSprop([p], alpha=-1), ValueError, "alpha must be >= 0; got -1"),
        (lambda p: optim.Rprop([p], etas=(1.5, 1.2)), ValueError, "etas must hold"),
        (lambda p: optim.SGD([]), ValueError, "empty parameter list"),
        (lambda p: optim.SGD(p), TypeError, r"Put it in a list: \[tensor\]"),
        (lambda p: optim.SGD([p, 3]), TypeError, r"params\[1\] must be a Tensor; got int"),
        (lambda p: optim.SGD([p * 2]), ValueError, "only leaf tensors can be optimized"),
        (lambda p: optim.SGD([p, p]), ValueError, "is in the optimizer already"),
        (lambda p: optim.SGD([{"lr": 1.0}]), ValueError, "needs the key 'params'"),
        (lambda p: optim.SGD({p}), TypeError, "must be ordered; got a set"),
        (lambda p: optim.Adan([p]), AttributeError, "the nearest name it has is 'Adam'"),
    ],
)
def test_mistakes(make, error, text):
    with pytest.raises(error, match=text):
        make(trident.zeros(2, requires_grad=True))


def test_zero_grad_and_closure():
    w = trident.tensor([1.0, 2.0], requires_grad=True)
    opt = optim.SGD([w], lr=0.1)

    def closure():
        opt.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    with trident.no_grad():
        assert opt.step(closure).item() == 5.0  # the closure records all the same
    np.testing.assert_allclose(get(w), [0.8, 1.6], rtol=1e-6)
    opt.zero_grad(set_to_none=False)
    assert get(w.grad).tolist() == [0.0, 0.0]
    opt.zero_grad()
    assert w.grad is None
    opt.step()  # nothing to do
    np.testing.assert_allclose(get(w), [0.8, 1.6], rtol=1e-6)


def test_step_after_backward_is_in_place_and_seen_by_backward():
    w = trident.tensor([3.0], requires_grad=True)
    opt = optim.SGD([w], lr=0.1, momentum=0.9)
    shared = w.detach()
    y = w * w
    y.backward(retain_graph=True)
    opt.step()
    np.testing.assert_allclose(get(shared), [2.4], rtol=1e-6)
    with pytest.raises(RuntimeError):  # y saved w, which the step overwrote
        y.backward()


def test_optimizers_can_be_copied():
    w = trident.tensor([1.0], requires_grad=True)
    opt = optim.Adam([w], lr=0.1)
    w.grad = trident.ones(1)
    opt.step()
    twin = copy.deepcopy(opt)
    other = twin.param_groups[0]["params"][0]
    assert other is not w and twin.state[other]["step"] == 1
    other.grad = trident.ones(1)
    twin.step()
    assert get(other)[0] < get(w)[0]


def test_own_rule_by_leaf():
    class SignDescent(optim.LeafOptimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr, "weight_decay": 0.0})

        def _leaf(self, p, g, state, group):
            p.sub_(g.sign(), alpha=group["lr"] / state["step"])

    w = trident.tensor([1.0, -1.0], requires_grad=True)
    opt = SignDescent([w])
    for _ in range(2):
        w.grad = trident.tensor([5.0, -3.0])
        opt.step()
    np.testing.assert_allclose(get(w), [0.85, -0.85], rtol=1e-6)
