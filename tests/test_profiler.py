"""trident.profile(): what it counts, where it stands, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import numpy as np
import pytest

import trident
from trident import nn
from trident.autograd import Function
from trident.errors import ShapeError
from trident.ops import registry
from trident.profiler import costs, limits, seam
from trident.profiler.session import current, open_session

F4, F8, I8 = 4, 8, 8  # bytes


def row(p, name, phase="forward"):
    """The one row of that name and phase."""
    (found,) = [r for r in p.rows() if (r.name, r.phase) == (name, phase)]
    return found


def facts(p, name, phase="forward"):
    r = row(p, name, phase)
    return r.calls, r.bytes, r.flops


def launches(device, run):
    """How many kernels ``run`` launches, by the device's own count."""
    if device == "cpu":
        run()
        return 0
    where = trident.runtime.current()
    before = where.launches
    run()
    return where.launches - before


# ---- bytes and flops of known ops ----------------------------------------------------------------


def ones(device, *shape, **kwargs):
    return trident.ones(*shape, device=device, **kwargs)


CALLS = {
    # name: (call, bytes, flops)
    "add": (lambda x, w: x + x.clone(), 3 * 6 * F4, 6),
    "sub": (lambda x, w: trident.sub(x, 2.0), 2 * 6 * F4, 6),
    "mul": (lambda x, w: x * x, 2 * 6 * F4, 6),  # one operand, read once
    "div": (lambda x, w: 1.0 / x, 2 * 6 * F4, 6),
    "exp": (lambda x, w: x.exp(), 2 * 6 * F4, 6),
    "eq": (lambda x, w: x == 1.0, 6 * F4 + 6, 6),
    "maximum": (lambda x, w: trident.maximum(x, w[0]), (6 + 3 + 6) * F4, 6),
    "matmul": (lambda x, w: x @ w.T, (6 + 12 + 8) * F4, 2 * 2 * 4 * 3),
    "linear": (
        lambda x, w: nn.functional.linear(x, w, w[:, 0]), (6 + 12 + 4 + 8) * F4, 48 + 8,
    ),
    "addmm": (
        lambda x, w: trident.addmm(w[:, 0], x, w.T, beta=2), (4 + 6 + 12 + 8) * F4, 48 + 2 * 8,
    ),
    "sum": (lambda x, w: x.sum(1), (6 + 2) * F4, 6),
    "mean": (lambda x, w: x.mean(), (6 + 1) * F4, 6),
    "softmax": (lambda x, w: x.softmax(-1), 2 * 6 * F4, 5 * 6),
    "cumsum": (lambda x, w: x.cumsum(0), 2 * 6 * F4, 6),
    "transpose": (lambda x, w: x.T, 0, 0),
    "reshape": (lambda x, w: x.reshape(3, 2), 0, 0),
    "clone": (lambda x, w: x.clone(), 2 * 6 * F4, 0),
    "to_dtype": (lambda x, w: x.half(), 6 * F4 + 6 * 2, 0),
    "joined": (lambda x, w: trident.cat([x, w]), 2 * (6 + 12) * F4, 0),
    "standardize": (
        lambda x, w: registry.ops.standardize(x, axes=1, eps=1e-5, centred=True)[0],
        (6 + 6 + 2) * F4, 5 * 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_bytes_and_flops_of(name, device):
    call, nbytes, flops = CALLS[name]
    x, w = ones(device, 2, 3), ones(device, 4, 3)
    call(x, w)
    with trident.profile() as p:
        result = call(x, w)
    name = "permute" if name == "transpose" else name
    if name == "maximum":  # w[0] is a view
        assert facts(p, "slice_view") == (1, 0, 0)
    assert facts(p, name) == (1, nbytes, flops)
    (event,) = [e for e in p.events if e.name == name and e.kind == "op"]
    assert event.device == ("cpu" if device == "cpu" else "interpreter")
    assert result.device.type == device


def test_an_expanded_operand_is_as_large_as_its_memory(device):
    x = ones(device, 1, 5).expand(4, 5)
    with trident.profile() as p:
        x.exp()
        x[:, :0].exp()
    assert facts(p, "exp") == (2, (5 + 20) * F4, 20)


def test_reshape_that_copies_moves_bytes(device):
    x = ones(device, 4, 6).T
    with trident.profile() as p:
        x.reshape(24)
    assert facts(p, "reshape") == (1, 2 * 24 * F4, 0)


def test_picking_rows_reads_those_alone(device):
    table, index = ones(device, 1000, 8), trident.tensor([3, 1, 3], device=device)
    with trident.profile() as p:
        nn.functional.embedding(index, table)
    (r,) = [r for r in p.rows() if r.name == "take_slices"]
    assert (r.bytes, r.flops) == (3 * I8 + 2 * 3 * 8 * F4, 0)


def test_convolution(device):
    x, w, b = ones(device, 2, 4, 6, 5), ones(device, 6, 2, 3, 3), ones(device, 6)
    x.requires_grad_(), w.requires_grad_()
    with trident.profile() as p:
        y = nn.functional.conv2d(x, w, b, groups=2)
        y.backward(trident.ones_like(y))
    assert tuple(y.shape) == (2, 6, 4, 3)
    n, per = y.numel(), 2 * 2 * 9
    assert facts(p, "convolution")[2] == n * per + n
    assert row(p, "convolution").bytes == (240 + 108 + 6 + n) * F4
    assert row(p, "ConvolutionBackward", "backward").flops == 2 * n * per


@pytest.mark.parametrize("name", ["float64", "bfloat16", "int32"])
def test_dtypes_count_their_own_bytes(name, device):
    d = getattr(trident, name)
    x = trident.ones(10, dtype=d, device=device)
    with trident.profile() as p:
        x + x.clone()
    assert row(p, "add").bytes == 30 * d.itemsize


def test_pooling_counts_the_elements_of_the_windows(device):
    x = ones(device, 1, 2, 6, 6)
    with trident.profile() as p:
        nn.functional.avg_pool2d(x, 3, stride=1)
        nn.functional.max_pool2d(x, 2)
    assert row(p, "avg_pool").flops == 2 * 16 * 9
    assert row(p, "max_pool").flops == 2 * 9 * 4


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal, device):
    q, k = ones(device, 1, 2, 4, 8, requires_grad=True), ones(device, 1, 2, 6, 8)
    with trident.profile() as p:
        y = nn.functional.scaled_dot_product_attention(q, k, k, is_causal=causal)
        y.sum().backward()
    pairs = 2 * (10 if causal else 24)
    r = row(p, "attention_heads")
    if device == "cuda":
        assert r.flops == pairs * (4 * 8 + 5)
        assert r.bytes == (64 + 96 + 64) * F4
        back = row(p, "AttentionHeadsBackward", "backward")
        assert back.flops == pairs * (2 * 5 * 8 + 9)
    else:  # the body: all scores, and plain ops around the products
        assert r.flops >= 48 * (4 * 8 + 5)
    assert r.calls == 1


def test_every_op_of_tridents_own_has_an_entry():
    missing = [
        op.name
        for op in registry.REGISTRY.values()
        if op.function.__module__.startswith("trident.ops.") and not costs.known(op)
    ]
    assert not missing, f"trident/profiler/costs.py: say how many flops {', '.join(missing)} take"


def test_ops_of_a_user_have_bytes_and_no_flops():
    @trident.fused(method=False)
    def softmax(x):  # takes the name of one of ours
        return x * 2.0

    @registry.primitive(method=False)
    class halved:
        "Half of x."

        def infer(x):
            return registry.Spec(x.shape, x.dtype)

        def numpy(x):
            return x / 2

        def launch(out, x):
            raise AssertionError

    with trident.profile() as p:
        halved(trident.ones(4))
        softmax(trident.ones(4))
    (r,) = [r for r in p.rows() if r.name.endswith("halved")]
    assert (r.bytes, r.flops) == (2 * 4 * F4, None)
    (r,) = [r for r in p.rows() if r.name.endswith("softmax")]
    assert (r.bytes, r.flops) == (2 * 4 * F4, 4)  # its body's
    assert "?" in p.table()


# ---- every way to run an op ----------------------------------------------------------------------


def test_operators_functions_methods_and_writes_are_one_event_each(device):
    x, y = ones(device, 3), ones(device, 3)
    calls = {
        "add": [lambda: x + y, lambda: x + 1, lambda: 1 + x, lambda: trident.add(x, y),
                lambda: x.add(y), lambda: x + np.float32(1), lambda: x + True],
        "lt": [lambda: x < y, lambda: x < 2],
        "pow": [lambda: x**3.5, lambda: 2.0**x],
        "matmul": [lambda: x @ y],
        "neg": [lambda: -x],
        "relu": [lambda: trident.relu(x), lambda: x.relu(), lambda: nn.functional.relu(x)],
    }  # fmt: skip
    for name, ways in calls.items():
        for way in ways:
            with trident.profile() as p:
                way()
            found = [e.name for e in p.events if e.kind == "op"]
            assert found == [name], (name, found)


def test_what_an_operator_refuses_is_no_event():
    x = trident.ones(3)
    with trident.profile() as p:
        with pytest.raises(TypeError):
            x + "text"
        assert (x == "text") is False
    assert [e.name for e in p.events] == []
    assert current.get() is None


def test_writing_in_place(device):
    x, y = ones(device, 4), ones(device, 4)
    with trident.profile() as p:
        x.add_(y)
        x += 1
        x.copy_(y)
        x.zero_()
        x[1:3] = 5.0
        x.relu_()
    assert row(p, "add_").calls == 2
    on_cpu = device == "cpu"  # in one pass there; a kernel and a copy else
    assert row(p, "add_").bytes == ((3 + 2) if on_cpu else (3 + 2 + 2 + 2)) * 4 * F4
    assert facts(p, "copy_") == (1, 2 * 4 * F4, 0)
    assert facts(p, "zero_") == (1, 4 * F4, 0)
    assert facts(p, "setitem") == (1, (1 + 2) * F4, 0)
    assert row(p, "relu_").flops == 4
    assert x.tolist() == [0, 5, 5, 0]


def test_random_and_creation(device):
    with trident.profile() as p:
        trident.rand(10, device=device)
        trident.nn.functional.dropout(ones(device, 8), 0.5)
    assert facts(p, "random_uniform") == (1, 10 * F4, 20)
    (r,) = [r for r in p.rows() if r.name.startswith("dropout")]
    assert (r.calls, r.flops) == (1, 16)


# ---- gradients -----------------------------------------------------------------------------------


def test_gradients_have_rows_of_their_own(device):
    x, y = ones(device, 2, 3, requires_grad=True), ones(device, 2, 3, requires_grad=True)
    (x * y).tanh().sum().backward()
    with trident.profile() as p:
        (x * y).tanh().sum().backward()
    assert facts(p, "mul") == (1, 3 * 6 * F4, 6)
    # g is one number, spread: dx = g y, dy = g x, of tanh's gradient
    assert facts(p, "MulBackward", "backward") == (1, 5 * 6 * F4, 12)
    assert facts(p, "TanhBackward", "backward")[1] == (1 + 6 + 6) * F4
    assert row(p, "AccumulateGrad", "backward").calls == 2
    each = 3 if device == "cpu" else 5  # in one pass, or a sum and a copy
    assert row(p, "AccumulateGrad", "backward").bytes == 2 * each * 6 * F4
    assert row(p, "AccumulateGrad", "backward").flops == 12
    assert {r.phase for r in p.rows() if "Backward" in r.name} == {"backward"}


def test_matmul_backward_is_two_products(device):
    a, b = ones(device, 4, 5, requires_grad=True), ones(device, 5, 6, requires_grad=True)
    y = a @ b
    with trident.profile() as p:
        y.backward(trident.ones_like(y))
    assert row(p, "MatmulBackward", "backward").flops == 2 * (2 * 4 * 5 * 6)
    a2 = ones(device, 4, 5, requires_grad=True)
    y = a2 @ b.detach()
    with trident.profile() as p:
        y.backward(trident.ones_like(y))
    assert row(p, "MatmulBackward", "backward").flops == 2 * 4 * 5 * 6


def test_gradients_of_gradients_and_unbroadcasting(device):
    x = ones(device, 3, requires_grad=True)
    w = ones(device, 2, 3)
    with trident.profile() as p:
        (g,) = trident.autograd.grad((x * w * x).sum(), x, create_graph=True)
        (g * g).sum().backward()
    names = {r.name: r for r in p.rows() if r.phase == "backward"}
    assert names["MulBackward"].calls > 2
    assert "FitGradient" in names
    assert any(e.name == "mul" and e.phase == "backward" for e in p.events)  # inside of a node
    assert "mul" not in {r.name for r in p.rows() if r.phase == "backward"}  # counted there


def test_a_function_of_ones_own_is_a_node(device):
    class Twice(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            with trident.record_function("mine"):
                return g * 2

    x = ones(device, 4, requires_grad=True)
    with trident.profile() as p:
        Twice.apply(x).backward(ones(device, 4))
    assert facts(p, "TwiceBackward", "backward") == (1, 2 * 4 * F4, 4)
    assert facts(p, "mul") == (1, 2 * 4 * F4, 4)


def test_a_composed_op_is_one_row(device):
    x, w, b = ones(device, 2, 8), ones(device, 8), ones(device, 8)
    with trident.profile() as p:
        nn.functional.layer_norm(x, (8,), w, b)
    r = row(p, "layer_norm_axes")
    assert [q.name for q in p.rows()] == ["layer_norm_axes"]
    assert r.flops == 7 * 16
    inside = [e for e in p.events if e.depth == 1]
    assert all(e.parent.name == "layer_norm_axes" for e in inside)
    assert ("standardize" in {e.name for e in inside}) == (device == "cpu")


def test_a_fused_function_is_one_op_with_its_name(device):
    @trident.fuse
    def scaled_gelu(x, w):
        return trident.gelu(x * w)

    x, w = ones(device, 6, 7, requires_grad=True), ones(device, 7, requires_grad=True)
    scaled_gelu(x, w).sum().backward()
    with trident.profile() as p:
        y = scaled_gelu(x, w)
        y.sum().backward()
    told = scaled_gelu.explain()
    r = row(p, "scaled_gelu")
    assert (r.calls, r.bytes) == (1, told.bytes_forward) and r.flops == 2 * 42
    assert r.bytes == (42 + 7 + 42) * F4
    back = row(p, "ScaledGeluBackward", "backward")
    assert back.calls == 1 and back.flops > 42
    assert not {"mul", "gelu"} & {e.name for e in p.events if e.phase == "forward"}


def test_optimizer_steps(device):
    ps = [ones(device, 10, requires_grad=True), ones(device, 3, 2, requires_grad=True)]
    for t in ps:
        t.grad = trident.ones_like(t)
    adam = trident.optim.Adam(ps, lr=0.1, weight_decay=0.1)
    sgd = trident.optim.SGD(ps, lr=0.1)
    adam.step()
    with trident.profile() as p:
        adam.step()
        sgd.step()
    # p, g, m, v read; p, m, v written
    assert facts(p, "adam_", "optimizer") == (1, 7 * 16 * F4, 15 * 16)
    assert facts(p, "sgd_", "optimizer") == (1, 3 * 16 * F4, 2 * 16)
    ranges = [(e.name, e.phase) for e in p.events if e.kind == "range"]
    assert ranges == [("Adam.step", "optimizer"), ("SGD.step", "optimizer")]


# ---- launches and copies -------------------------------------------------------------------------


def small_step(device):
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).to(device)
    opt = trident.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = trident.ones(5, 4, device=device)
    t = trident.tensor([0, 1, 2, 0, 1], device=device)

    def step():
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x), t)
        loss.backward()
        opt.step()
        return loss.item()

    return step


def test_launches_are_counted_where_they_happen(device):
    step = small_step(device)
    step()
    with trident.profile() as p:
        n = launches(device, step)
    assert sum(r.launches for r in p.rows()) == n
    assert sum(e.launches for e in p.events if e.kind == "kernel") == n
    if device == "cuda":
        assert row(p, "relu").launches == 1
        kernel = next(e for e in p.events if e.kind == "kernel" and e.parent.name == "relu")
        assert kernel.name == "relu_kernel" and kernel.device == "interpreter"
        assert kernel.seconds < kernel.parent.seconds


def test_launches_of_plans_are_counted(device):
    if device == "cpu":
        pytest.skip("launch plans belong to devices with kernels")
    from planning import PlanningHost

    with trident.runtime.use(PlanningHost()) as where:
        x = trident.ones(64, device="cuda")
        w = trident.ones(8, 64, device="cuda")
        for _ in range(2):
            x.exp(), w.softmax(-1), x + x
        repeated, before = where.repeated, where.launches
        with trident.profile() as p:
            x.exp(), w.softmax(-1), x + x
        assert where.repeated - repeated == 3 == where.launches - before
        for name in ("exp", "softmax", "add"):
            assert row(p, name).launches == 1
        assert sum(e.launches for e in p.events if e.kind == "kernel") == 3


def test_copies_between_devices(device):
    if device == "cpu":
        with trident.profile() as p:
            trident.ones(3).cpu(), trident.ones(()).item()
        assert not [e for e in p.events if e.kind == "copy"]
        return
    x = trident.ones(5, 2)
    with trident.profile() as p:
        y = x.to("cuda")
        y[0, 0].item()
        y.T.cpu()
    copies = [(e.name, e.bytes) for e in p.events if e.kind == "copy"]
    assert copies == [("copy to device", 40), ("copy to host", 4), ("copy to host", 40)]
    assert "copies between devices" in p.table()


def test_a_kernel_of_ones_own_is_a_row(device):
    if device == "cpu":
        pytest.skip("kernels run on cuda")
    from trident.lang import tl

    @trident.kernel(writes=("out_ptr",))
    def tripled(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n) * 3, mask=i < n)

    x, out = trident.ones(10, device="cuda"), trident.zeros(10, device="cuda")
    with trident.profile() as p:
        tripled[(1,)](x, out, 10, BLOCK=16)
    r = row(p, "tripled")
    assert (r.kind, r.launches, r.bytes, r.flops) == ("kernel", 1, 80, None)


# ---- where it stands -----------------------------------------------------------------------------


def seams():
    return [(holder, name, vars(holder)[name]) for holder, name, _ in seam.points()]


def test_nothing_is_left_behind():
    before, create = seams(), registry._CREATE[0]
    assert len(before) > 40
    with trident.profile():
        assert all(vars(h)[n] is not f for h, n, f in before)
        assert registry._CREATE[0] is not create
        with trident.profile():
            pass
        assert all(vars(h)[n] is not f for h, n, f in before)  # the outer one is open still
    assert all(vars(h)[n] is f for h, n, f in before)
    assert registry._CREATE[0] is create
    assert (open_session.get(), current.get()) == (None, None)


def test_nothing_is_left_behind_when_the_body_raises():
    before = seams()
    with pytest.raises(ShapeError, match="add: shapes"), trident.profile() as p:
        trident.ones(3) * 2.0
        trident.ones(3) + trident.ones(4)
    assert all(vars(h)[n] is f for h, n, f in before)
    assert (open_session.get(), current.get()) == (None, None)
    assert [(e.name, e.failed) for e in p.events if e.depth == 0] == [("mul", False), ("add", True)]
    assert [r.name for r in p.rows()] == ["mul"]
    with pytest.raises(KeyError), trident.profile(), trident.record_function("part"):
        raise KeyError
    assert current.get() is None


def test_values_do_not_change(device):
    trident.manual_seed(3)
    step = small_step(device)
    plain = [step() for _ in range(3)]
    trident.manual_seed(3)
    step = small_step(device)
    with trident.profile():
        seen = [step() for _ in range(3)]
    assert seen == plain


def test_nested_blocks_each_record_what_is_inside():
    x = trident.ones(3)
    with trident.profile() as outer:
        x + 1
        with trident.record_function("part"), trident.profile() as inner:
            x * 2
        x - 1
    x / 2
    assert [r.name for r in outer.rows()] == ["add", "mul", "sub"]
    assert [r.name for r in inner.rows()] == ["mul"]


def test_a_block_inside_of_an_op_sees_the_ops_there():
    x = trident.ones(3, requires_grad=True)
    found = []

    class Watched(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            with trident.profile() as p:
                g = g * 2
            found.append(p)
            return g

    with trident.profile() as outer:
        Watched.apply(x).sum().backward()
    assert [r.name for r in found[0].rows()] == ["mul"]
    assert "mul" not in {r.name for r in outer.rows() if r.phase == "backward"}


def test_other_threads_are_not_recorded():
    x = trident.ones(3)
    inside, done = threading.Event(), threading.Event()

    def other():
        inside.wait(10)
        x * 3
        with trident.profile() as p:
            x / 3
        theirs.append([r.name for r in p.rows()])
        done.set()

    theirs = []
    thread = threading.Thread(target=other)
    thread.start()
    before = seams()
    with trident.profile() as p:
        x + 1
        inside.set()
        assert done.wait(10)
        x - 1
    thread.join()
    assert [r.name for r in p.rows()] == ["add", "sub"]
    assert theirs == [["div"]]
    assert all(vars(h)[n] is f for h, n, f in before) or not before


def test_blocks_of_two_threads_overlap():
    """The first to open is the first to close: the hooks stay for the other."""
    x = trident.ones(3)
    steps = [threading.Event() for _ in range(3)]
    found = {}
    before = seams()

    def first():
        with trident.profile() as p:
            x + 1
            steps[0].set()
            steps[1].wait(10)
        found["first"] = p
        steps[2].set()

    thread = threading.Thread(target=first)
    thread.start()
    assert steps[0].wait(10)
    with trident.profile() as p:
        steps[1].set()
        assert steps[2].wait(10)
        x * 2
    thread.join()
    assert [r.name for r in p.rows()] == ["mul"]
    assert [r.name for r in found["first"].rows()] == ["add"]
    assert [vars(h)[n] is f for h, n, f in before] == [True] * len(before)


def test_tasks_of_asyncio_keep_apart():
    x = trident.ones(3)

    async def one(name, pause):
        with trident.profile() as p:
            getattr(x, name)()
            await asyncio.sleep(pause)
            getattr(x, name)()
        return [(r.name, r.calls) for r in p.rows()]

    async def both():
        return await asyncio.gather(one("exp", 0.02), one("sin", 0.01))

    assert asyncio.run(both()) == [[("exp", 2)], [("sin", 2)]]


def test_a_task_that_outlives_the_block_records_nothing():
    x = trident.ones(3)

    async def late():
        await asyncio.sleep(0.01)
        with trident.profile():
            x.sin()
        x.exp()

    async def main():
        with trident.profile() as p:
            task = asyncio.ensure_future(late())
            x.neg()
        await task
        return p

    assert [e.name for e in asyncio.run(main()).events] == ["neg"]


def test_a_block_may_be_used_again_but_not_twice_at_once():
    p = trident.profile()
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        p.table()
    x = trident.ones(2)
    with p:
        x + 1
        with pytest.raises(RuntimeError, match="open already"), p:
            pass
        x + 1
    assert row(p, "add").calls == 2
    with p:
        x * 1
    assert [r.name for r in p.rows()] == ["mul"]


# ---- ranges, table, trace, memory ----------------------------------------------------------------


def test_ranges():
    @trident.record_function("part")
    def part(x):
        return x + 1

    part(trident.ones(2))  # outside: nothing
    with trident.profile() as p, trident.record_function("whole"):
        part(part(trident.ones(2)))
    ranges = [e for e in p.events if e.kind == "range"]
    assert [(e.name, e.depth) for e in ranges] == [("part", 1), ("part", 1), ("whole", 0)]
    assert ranges[2].seconds >= ranges[0].seconds + ranges[1].seconds
    assert row(p, "add").calls == 2
    assert "whole" in p.table() and "ranges" in p.table()


def test_times_add_up(device):
    x = ones(device, 100, 100)
    x @ x
    started = time.perf_counter()
    with trident.profile() as p:
        for _ in range(5):
            x @ x
    wall = time.perf_counter() - started
    r = row(p, "matmul")
    assert r.calls == 5 and 0 < r.seconds <= wall
    assert r.mean == pytest.approx(r.seconds / 5)
    assert r.host_seconds == r.seconds


def test_the_table():
    x = trident.ones(300, 300)
    with trident.profile() as p:
        x @ x
        x + x
        x.exp()
        x.exp()
    text = p.table(sort_by="calls", limit=2)
    lines = text.splitlines()
    assert lines[0].split()[:5] == ["op", "phase", "device", "calls", "time"]
    assert lines[1].split()[:4] == ["exp", "forward", "cpu", "2"]
    assert lines[3].startswith("(1 more)") and lines[4].startswith("total")
    assert "roofline of cpu:" in text
    assert str(p) == p.table()
    by_name = [line.split()[0] for line in p.table(sort_by="name").splitlines()[1:4]]
    assert by_name == ["add", "exp", "matmul"]
    by_flops = [line.split()[0] for line in p.table(sort_by="flops").splitlines()[1:4]]
    assert by_flops == ["matmul", "exp", "add"]
    for key in ("time", "mean", "host", "launches", "bytes", "roofline"):
        p.table(sort_by=key)
    with pytest.raises(ValueError, match=r"table: sort_by must be one of 'time'.*; got 'speed'"):
        p.table(sort_by="speed")


def test_the_roofline_is_the_least_time_over_the_time():
    x = trident.ones(256, 256)
    with trident.profile() as p:
        x @ x
        _ = x.T
    limit = limits.cpu()
    assert limit.bandwidth > 1e8 and limit.flops["float32"] > 1e8
    r = row(p, "matmul")
    least = max(3 * 256 * 256 * F4 / limit.bandwidth, 2 * 256**3 / limit.flops["float32"])
    assert r.roofline == pytest.approx(least / r.seconds)
    assert r.bound == "compute"
    with trident.profile() as p:
        x + x
        _ = x.T
    assert row(p, "add").bound == "memory"
    assert row(p, "permute").roofline is None
    assert limits.of("interpreter") is None


def test_shapes_are_kept_when_asked_for(device):
    with trident.profile(record_shapes=True) as p:
        for n in (2, 3, 3):
            trident.ones(n, 4, device=device) @ trident.ones(4, n, device=device)
        trident.cat([ones(device, 1), ones(device, 2)])
        ones(device, 2) * 2.0
    found = [e.shapes for e in p.events if e.name == "matmul"]
    assert found == [{"a": (n, 4), "b": (4, n)} for n in (2, 3, 3)]
    assert next(e for e in p.events if e.name == "joined").shapes == {"xs": (1,), "1": (2,)}
    assert next(e for e in p.events if e.name == "mul").shapes == {"x": (2,), "y": 2.0}
    assert [r.calls for r in p.rows(by_shape=True) if r.name == "matmul"] == [1, 2]
    assert "matmul [a (3, 4), b (4, 3)]" in p.table(by_shape=True)
    with trident.profile() as p:
        ones(device, 2) * 2.0
    assert next(e for e in p.events if e.name == "mul").shapes is None


def test_the_trace_is_what_chrome_reads(device, tmp_path):
    step = small_step(device)
    path = tmp_path / "trace.json"
    path.write_text("old")
    with trident.profile(record_shapes=True) as p, trident.record_function("whole"):
        step()
    p.export_chrome_trace(path)
    assert [f.name for f in tmp_path.iterdir()] == ["trace.json"]  # nothing left beside it
    trace = json.loads(path.read_text())
    complete = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(complete) == len(p.events)
    for e in complete:
        assert {"name", "cat", "ts", "dur", "pid", "tid", "args"} <= e.keys()
        assert e["ts"] >= 0 and e["dur"] >= 0 and isinstance(e["name"], str)
    assert all(e["ph"] in "XM" for e in trace["traceEvents"])
    (whole,) = [e for e in complete if e["name"] == "whole"]
    for e in complete:  # all of it lies inside
        assert whole["ts"] <= e["ts"] + 1e-6
        assert e["ts"] + e["dur"] <= whole["ts"] + whole["dur"] + 1e-6
    names = {e["name"] for e in complete}
    assert {"linear", "LinearBackward", "SGD.step", "backward", "sgd_"} <= names
    assert ("relu_kernel" in names) == (device == "cuda")


def test_a_trace_that_cannot_be_written_leaves_the_old_one(tmp_path):
    with trident.profile() as p:
        trident.ones(2) + 1
    with pytest.raises(FileNotFoundError):
        p.export_chrome_trace(tmp_path / "absent" / "trace.json")
    assert not list(tmp_path.iterdir())


def test_memory_of_results(device):
    x = ones(device, 1000)
    with trident.profile() as p:
        y = x + 1
        del y
        y = x.exp()
        z = y * 2
        y.reshape(10, 100)
        del y
        kept = [z.T]
    assert p.memory.peak == 8000 and p.memory.left == 4000
    assert p.memory.ops["add", "forward"] == (4000, 4000)
    assert p.memory.ops["mul", "forward"] == (4000, 8000)
    assert p.memory.ops["reshape", "forward"] == (0, 8000)
    assert "peak 8 kB" in str(p.memory)
    assert kept
