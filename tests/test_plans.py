"""Launch plans: a repeated op gives what the first call gave, for other numbers at other addresses.

Runs in Triton's interpreter, with the launches of plans turned back into interpreted ones.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from planning import PlanningHost

import trident
from trident import config, dtypes, runtime
from trident.ops.registry import REGISTRY, Elementwise, InPlace, View
from trident.runtime.array import Layout
from trident.runtime.plan import Plan, Plans, Recording, record
from trident.testing import Draw, assert_close
from trident.testing.cases import differentiable, float_dtypes, placed, run, sample, tensors

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter"
)

OPS = [
    op
    for op in REGISTRY.values()
    if op.function.__module__.startswith("trident.")
    and not isinstance(op, (View, InPlace))
    and op.operands
    and (isinstance(op, Elementwise) or op.samples is not None)
]


@pytest.fixture
def planning():
    with runtime.use(PlanningHost()) as device:
        yield device


def clear(op):
    for name in ("plans", "backward_plans"):
        if hasattr(op, name):
            setattr(op, name, Plans())


def fresh(args, rng):
    """The same shapes and strides with other numbers (a permutation of each array's)."""

    def one(a):
        if isinstance(a, list):
            return [one(x) for x in a]
        if not isinstance(a, np.ndarray) or a.size < 2 or any(s <= 0 for s in a.strides):
            return a
        out = a.copy(order="K") if np.may_share_memory(a, a) else a
        if out.strides != a.strides:
            return a
        flat = rng.permutation(np.ascontiguousarray(a).reshape(-1))
        out[...] = flat.reshape(a.shape)
        return out

    return tuple(one(a) for a in args)


def results(op, args, attrs, device, grad):
    """Outputs and gradients as arrays of the host."""
    given = tensors(args, device, requires_grad=grad)
    outs = run(op, given, placed(op, attrs, device))
    found = [o.detach()._host() for o in outs]
    for o in outs:
        if o.requires_grad and o.numel():
            g = np.linspace(0.5, 1.5, o.numel(), dtype=np.float32).reshape(tuple(o.shape))
            o.backward(trident.tensor(g.astype(o.dtype.np), device=device), retain_graph=True)
    for t in given:
        if isinstance(t, trident.Tensor) and t.grad is not None:
            found.append(t.grad._host())
    return found


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_repeated_op(op, planning, rng):
    d = dtypes.int32 if getattr(op, "takes", "") == "int" else float_dtypes(op)[0]
    grad = differentiable(op)
    repeated = 0
    for seed in range(3):
        args, attrs = sample(op, Draw(seed, d, strided=seed == 1), d)
        clear(op)
        results(op, args, attrs, "cuda", grad)
        for _ in range(2):  # the first of these meets the strides of gradients, too
            other = fresh(args, rng)
            before = planning.repeated
            got = results(op, other, attrs, "cuda", grad)
            repeated += planning.repeated - before
            want = results(op, other, attrs, "cpu", grad)
            assert len(got) == len(want)
            if op.name == "max_pool":  # a window in the padding alone has no place: any will do
                got[1], want[1] = np.where(got[0] > -np.inf, [got[1], want[1]], 0)
            for g, w in zip(got, want):
                assert_close(g, w, length=max(g.size, 8) * 8)
    planned = getattr(op, "plans", {})
    if any(plan is not None for plan in planned.values()):
        assert repeated, f"{op.name} has plans that were not used"


def test_most_ops_have_plans(planning):
    """That plans are there at all: without this, none anywhere would pass the test above."""
    missing = []
    for op in OPS:
        d = dtypes.int32 if getattr(op, "takes", "") == "int" else float_dtypes(op)[0]
        clear(op)
        for seed in range(6):
            args, attrs = sample(op, Draw(seed, d), d)
            run(op, tensors(args, "cuda"), placed(op, attrs, "cuda"))
        if not any(plan is not None for plan in op.plans.values()):
            missing.append(op.name)
    assert len(missing) < len(OPS) / 8, missing


def test_operands_on_one_buffer_are_told_apart(planning):
    x = trident.tensor([[1.0, 2.0], [3.0, 4.0]], device="cuda")
    y = trident.tensor([[5.0, 6.0], [7.0, 8.0]], device="cuda")
    clear(REGISTRY["matmul"])
    assert (x @ x).tolist() == [[7.0, 10.0], [15.0, 22.0]]
    assert (x @ y).tolist() == [[19.0, 22.0], [43.0, 50.0]]
    clear(REGISTRY["add"])
    assert (x + x).tolist() == [[2.0, 4.0], [6.0, 8.0]]
    assert (x + y).tolist() == [[6.0, 8.0], [10.0, 12.0]]
    assert planning.repeated == 2


def test_numbers_are_arguments_of_a_plan(planning):
    x = trident.tensor([1.0, 2.0], device="cuda")
    clear(REGISTRY["mul"])
    assert [(x * k).tolist() for k in (2.0, 3, 0.5)] == [[2.0, 4.0], [3.0, 6.0], [0.5, 1.0]]
    clear(REGISTRY["sub"])
    assert [(k - x).tolist() for k in (2.0, 3)] == [[1.0, 0.0], [2.0, 1.0]]
    assert (x - x).tolist() == [0.0, 0.0]
    assert planning.repeated == 3
    n = trident.tensor([5, 7], device="cuda")
    clear(REGISTRY["add"])
    assert [(n + k).tolist() for k in (1, 2, 16)] == [[6, 8], [7, 9], [21, 23]]
    z = trident.tensor([5.0], dtype=trident.float64, device="cuda")
    assert [(z * k).tolist() for k in (0.1, 0.2)] == [[0.5], [1.0]]


def test_the_key_has_all_that_changes_a_launch(planning):
    """Another shape, stride, alignment, dtype, attribute or switch is another plan."""
    clear(REGISTRY["relu"])
    base = trident.tensor(np.arange(-8.0, 8.0, dtype=np.float32).reshape(4, 4), device="cuda")
    cases = [base, base.T, base[1:], base[:, 1:], base.reshape(-1)[1:5], base.to(trident.float16)]
    for x in cases:
        assert trident.relu(x).tolist() == np.maximum(x.cpu().numpy(), 0).tolist()
    assert len(REGISTRY["relu"].plans) == len(cases) and planning.repeated == 0
    for x in cases:
        assert trident.relu(x).tolist() == np.maximum(x.cpu().numpy(), 0).tolist()
    assert planning.repeated == len(cases)
    x = trident.tensor([[1.0, 2.0], [3.0, 4.0]], device="cuda")
    assert [trident.sum(x, d).tolist() for d in (0, 1, 0, 1)] == [[4.0, 6.0], [3.0, 7.0]] * 2


def test_fused_functions_repeat(planning, rng):
    def chain(x, w, b):
        return trident.nn.functional.gelu(x * w + b)

    def loss(x, t):
        return -(trident.log_softmax(x, -1) * t).sum(-1).mean()

    for f, shapes in ((chain, [(5, 6), (6,), (6,)]), (loss, [(4, 7), (4, 7)])):
        fused = trident.fuse(f)
        found = {}
        inputs = [[rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(3)]
        for device in ("cuda", "cpu"):
            for k, arrays in enumerate(inputs):
                before = planning.repeated
                given = [trident.tensor(a, device=device, requires_grad=True) for a in arrays]
                out = fused(*given)
                out.backward(trident.ones_like(out))
                found.setdefault(k, []).append([out._host(), *(t.grad._host() for t in given)])
                if device == "cuda" and k:
                    assert planning.repeated >= before + 2, "forward or backward was not repeated"
        for on_cuda, on_cpu in found.values():
            for g, w in zip(on_cuda, on_cpu):
                assert_close(g, w, rtol=1e-4, atol=1e-5)


def test_switches_that_choose_kernels_are_in_the_key(planning):
    op = REGISTRY["matmul"]
    a = trident.tensor(np.eye(8, dtype=np.float32), device="cuda")

    def plans_after(switch) -> int:
        with switch:
            assert (a @ a).tolist() == np.eye(8).tolist()
        return len(op.plans)

    clear(op)
    switches = [
        nullcontext(),
        switched(config.matmul_precision, "high"),
        switched(config.deterministic, True),
        switched(config.autotune, True),
    ]
    assert [plans_after(s) for s in switches] == [1, 2, 3, 4]
    assert plans_after(nullcontext()) == 4 and planning.repeated == 1
    on_trial = switched(config.forced_configs, {"matmul_thin": object()})
    with suppress(Exception), on_trial:  # no plan is used
        a @ a
    assert len(op.plans) == 4 and planning.repeated == 1


@contextmanager
def switched(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def test_layouts_are_one_object_each(planning):
    a, b = planning.empty((2, 3), dtypes.float32), planning.empty((2, 3), dtypes.float32)
    assert Layout.of(a) is Layout.of(b) is a.layout
    others = [
        a.transpose((1, 0)), a[1:], planning.empty((2, 3), dtypes.float16),
        planning.empty((3, 2), dtypes.float32), PlanningHost().empty((2, 3), dtypes.float32),
    ]  # fmt: skip
    assert len({id(Layout.of(x)) for x in (a, *others)}) == 6


def test_what_looks_at_values_has_no_plan(planning):
    x = trident.tensor([1.0, -2.0, 0.0], device="cuda")
    with record() as rec:
        x.tolist()
    assert not rec.complete
    for _ in range(2):
        assert trident.nonzero(x).tolist() == [[0], [1]]


def test_a_plan_refuses_memory_it_does_not_know(planning):
    rec = Recording()
    a, foreign = planning.empty((4,), dtypes.float32), planning.empty((4,), dtypes.float32)
    rec.launch(SimpleNamespace(start=None), (1, 1, 1), (a, foreign))
    with pytest.raises(LookupError):
        Plan(rec, planning, [a], [], None)


def test_plans_of_keys_that_never_come_back_are_paused():
    plans = Plans()
    made = 0
    for i in range(2000):
        if plans.wanted():
            plans.keep(i, object())
            made += 1
    assert made <= 2 * Plans.TRIES
    plans = Plans()
    for i in range(600):
        plans.keep(i, object())
        plans.used = 0
    assert len(plans) <= Plans.MOST


def test_training_with_plans(planning, rng):
    """The same losses as on the CPU, most launches by plan."""
    data = rng.standard_normal((32, 6)).astype(np.float32)
    labels = (data.sum(1) > 0).astype(np.int64)

    def losses(device):
        trident.manual_seed(0)
        net = trident.nn.Sequential(
            trident.nn.Linear(6, 16), trident.nn.LayerNorm(16), trident.nn.GELU(),
            trident.nn.Linear(16, 2),
        ).to(device)  # fmt: skip
        optimizer = trident.optim.AdamW(net.parameters(), lr=0.02)
        x, y = trident.tensor(data, device=device), trident.tensor(labels, device=device)
        found = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = trident.nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    before = planning.launches
    assert_close(np.array(losses("cuda")), np.array(losses("cpu")), rtol=1e-4, atol=1e-5)
    assert planning.repeated > 0.6 * (planning.launches - before)
