"""``trident.fuse``: every fused function against its own body in plain ops.

Random functions are drawn from a small grammar of elementwise ops, broadcasts and reductions;
values and gradients are compared with the body in float64. On the CPU both the compiled and the
numpy form run.
"""

from __future__ import annotations

import copy
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trident
import trident.nn.functional as F
from trident import dtypes
from trident.autograd import grad, gradcheck, gradgradcheck
from trident.backends import compiled
from trident.errors import FusionError
from trident.testing import assert_close
from trident.testing.draw import Draw, HypothesisDraw

SMOOTH = {
    "tanh": trident.tanh, "sigmoid": trident.sigmoid, "sin": trident.sin, "gelu": F.gelu,
    "softplus": F.softplus, "half": lambda v: v * 0.5, "shifted": lambda v: 1.5 - v,
    "square": lambda v: trident.square(trident.tanh(v)),
    "exp": lambda v: trident.exp(trident.tanh(v)), "silu": F.silu,
    "log1p": lambda v: trident.log1p(trident.square(v)),
}  # fmt: skip
KINKED = {
    "relu": trident.relu, "abs": trident.abs, "clamp": lambda v: trident.clamp(v, -0.7, 0.9),
    "pick": lambda v: trident.where(v > 0.1, v * 2.0, -v),
}  # fmt: skip
TWO = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * trident.tanh(b),
    "div": lambda a, b: a / (1.5 + trident.sigmoid(b)), "maximum": trident.maximum,
}  # fmt: skip
ROWS = {
    "mean": lambda v: v.mean(-1, keepdim=True), "softmax": lambda v: trident.softmax(v, -1),
    "logsumexp": lambda v: trident.logsumexp(v, -1, True),
    "norm": lambda v: F.layer_norm(v, v.shape[-1:]),
    "amax": lambda v: trident.amax(v, -1, True), "var": lambda v: v.var(-1, keepdim=True),
    "log_softmax": lambda v: F.log_softmax(v, -1),
    "rms": lambda v: F.rms_norm(v, v.shape[-1:], eps=0.1),
}  # fmt: skip
ENDS = {
    "none": lambda v: v, "rows": lambda v: v.sum(-1), "sum": lambda v: v.sum(),
    "mean": lambda v: v.mean(), "both": lambda v: (v * 2.0, v.sum(-1)),
    "loss": lambda v: (v * v).sum(-1).mean(),
}  # fmt: skip


@pytest.fixture(params=["compiled", "numpy"])
def form(request, device, monkeypatch):
    """On the CPU: C, and numpy on blocks. On cuda there is one form."""
    if device == "cuda":
        if request.param == "numpy":
            pytest.skip("cuda has one form")
    elif request.param == "numpy":
        monkeypatch.setattr(compiled, "available", lambda: False)
    elif not compiled.available():
        pytest.skip("no C compiler here")
    return request.param


def random_function(draw, kinks=True):
    """(function of x, w, s, t; its description)."""
    ones = SMOOTH | (KINKED if kinks else {})
    steps = []
    rows = 0
    for _ in range(draw.integer(1, 5)):
        kind = draw.integer(0, 3)
        if kind == 0:
            steps.append(("one", draw.choice(sorted(ones))))
        elif kind == 1:
            names = sorted(TWO) if kinks else [n for n in sorted(TWO) if n != "maximum"]
            steps.append(("two", draw.choice(names), draw.choice(["w", "s", "t", "x"])))
        elif kind == 2 and rows < 2:
            names = sorted(ROWS) if kinks else [n for n in sorted(ROWS) if n != "amax"]
            steps.append(("row", draw.choice(names), draw.boolean()))
            rows += 1
        else:
            steps.append(("one", draw.choice(sorted(SMOOTH))))
    end = draw.choice(sorted(ENDS))

    def function(x, w, s, t):
        named = {"x": x, "w": w, "s": s, "t": t}
        v = x * w + s * t
        for step in steps:
            if step[0] == "one":
                v = ones[step[1]](v)
            elif step[0] == "two":
                v = TWO[step[1]](v, named[step[2]])
            else:
                r = ROWS[step[1]](v)
                v = v + r if step[2] else v * trident.sigmoid(r)
        return ENDS[end](v)

    return function, (steps, end)


def arrays_for(draw, dtype):
    lead = tuple(draw.integer(1, 4) for _ in range(draw.integer(1, 2)))
    n = draw.integer(1, 40)
    draw.dtype = dtype
    return (
        draw.tensor((*lead, n)), draw.tensor((n,)), draw.tensor((*lead, 1)), draw.tensor(()),
    )  # fmt: skip


def results(value):
    return value if isinstance(value, tuple) else (value,)


def compare(f, fused, arrays, dtype, device, gradients):
    xs = [trident.tensor(a, device=device, requires_grad=gradients) for a in arrays]
    wide = [trident.tensor(a.astype(np.float64), requires_grad=gradients) for a in arrays]
    got, want = results(fused(*xs)), results(f(*wide))
    length = max(a.size for a in arrays)
    for g, w in zip(got, want):
        assert g.dtype is dtype and g.shape == w.shape
        assert_close(g.detach(), w.detach(), length=4 * length)
    if not gradients:
        return
    rng = np.random.default_rng(1)
    cotangents = [rng.standard_normal(tuple(w.shape)) for w in want]
    given = [trident.tensor(c.astype(dtype.np), device=device) for c in cotangents]
    exact = [trident.tensor(c.astype(dtype.np).astype(np.float64)) for c in cotangents]
    found = grad(got, xs, given, allow_unused=True)
    expected = grad(want, wide, exact, allow_unused=True)
    for name, a, b in zip("xwst", found, expected):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype is dtype and a.shape == b.shape
            assert_close(a, b, length=64 * length, msg=f"gradient of {name}")


@pytest.mark.parametrize("dtype", dtypes.FLOATS, ids=lambda d: d.name)
def test_random_functions(dtype, form, device):
    exact = dtype is trident.float64

    @settings(max_examples=settings().max_examples if device == "cpu" else 8)
    @given(st.data())
    def run(data):
        draw = HypothesisDraw(data)
        f, _ = random_function(draw, kinks=exact)
        compare(f, trident.fuse(f), arrays_for(draw, dtype), dtype, device, gradients=True)

    run()


@pytest.mark.parametrize("block", [8, 64])
def test_long_rows_and_several_programs(block, device):
    """Rows that do not fit in a tile, on the kernels."""
    if device != "cuda":
        pytest.skip("the CPU has one way to walk a row")
    token = trident.config.interpret_block.set(block)
    try:
        for seed in range(12):
            draw = Draw(seed)
            f, _ = random_function(draw)
            compare(
                f, trident.fuse(f), arrays_for(draw, trident.float64), trident.float64, device, True
            )
    finally:
        trident.config.interpret_block.reset(token)


def test_large_arrays_on_threads(form, device):
    if device == "cuda":
        pytest.skip("sizes for the CPU")
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(300_001) for _ in range(3))

    def f(a, b, c):
        return F.gelu(a * b + c, approximate="tanh").sum()

    xs = [trident.tensor(v.astype(np.float32), requires_grad=True) for v in (a, b, c)]
    ys = [
        trident.tensor(v.astype(np.float32).astype(np.float64), requires_grad=True)
        for v in (a, b, c)
    ]
    got, want = trident.fuse(f)(*xs), f(*ys)
    assert_close(got.detach(), want.detach(), length=a.size)
    for g, w in zip(grad(got, xs), grad(want, ys)):
        assert_close(g, w, length=16)  # gelu' crosses zero: terms of order one cancel

    def rows(x, w):
        return trident.softmax(x * w, -1)

    x = rng.standard_normal((700, 401)).astype(np.float32)
    w = rng.standard_normal(401).astype(np.float32)
    fused = trident.fuse(rows)
    xs = [trident.tensor(v, requires_grad=True) for v in (x, w)]
    ys = [trident.tensor(v.astype(np.float64), requires_grad=True) for v in (x, w)]
    g = rng.standard_normal(x.shape)
    got = grad(fused(*xs), xs, trident.tensor(g.astype(np.float32)))
    want = grad(rows(*ys), ys, trident.tensor(g.astype(np.float32).astype(np.float64)))
    for a, b in zip(got, want):
        assert_close(a, b, length=700)


SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5, -80.0, 1e-20, 88.0, -88.0, 0.3]
)


@pytest.mark.parametrize("dtype", [trident.float32, trident.float64], ids=lambda d: d.name)
def test_nan_and_infinities(dtype, form, device):
    """Values that are not finite come out where the plain ops have them."""
    bodies = [
        lambda x: F.gelu(x * 1.0), lambda x: trident.tanh(x) + trident.sigmoid(-x),
        lambda x: trident.relu(x), lambda x: trident.maximum(x, 0.5), lambda x: trident.exp(x) / x,
        lambda x: trident.softmax(x, -1), lambda x: x.sum(-1), lambda x: trident.amax(x, -1),
        lambda x: trident.amin(x, -1), lambda x: trident.logsumexp(x, -1), lambda x: x.mean(),
        lambda x: trident.where(x > 0, trident.log(x), x), lambda x: trident.clamp(x, -1.0, 1.0),
    ]  # fmt: skip
    rows = [
        SPECIAL,
        SPECIAL[np.isfinite(SPECIAL)],
        np.array([-np.inf, -np.inf]),
        np.array([np.nan, 1.0]),
    ]
    for at, f in enumerate(bodies):
        fused = trident.fuse(f)
        for row in rows:
            x = np.stack([row, row[::-1]]).astype(dtype.np)
            want = f(trident.tensor(x))
            assert_close(fused(trident.tensor(x, device=device)), want, length=16, msg=f"body {at}")


def test_strides_and_layouts(form, device):
    def f(x, w, b):
        return F.gelu(x * w + b)

    fused = trident.fuse(f)
    draw = Draw(5)
    for _ in range(12):
        arrays = [draw.tensor((3, 4, 5)), draw.tensor((4, 1)), draw.tensor((3, 1, 5))]
        compare(f, fused, arrays, trident.float32, device, gradients=True)
    permuted = trident.tensor(draw.tensor((5, 4, 3)), device=device).permute(2, 1, 0)
    w, b = (trident.tensor(draw.tensor(s), device=device) for s in ((4, 1), (3, 1, 5)))
    assert_close(fused(permuted, w, b), f(permuted, w, b))


def test_reductions_over_other_axes(form, device):
    draw = Draw(1)
    bodies = {
        "middle": lambda x: x - x.mean(1, keepdim=True),
        "first": lambda x: x / x.abs().amax(0, keepdim=True),
        "two": lambda x: F.layer_norm(x, (4, 5)), "outer": lambda x: x.sum((0, 2)) * 2.0,
        "all": lambda x: x / (x * x).sum().sqrt(), "pooled": lambda x: (x.mean((1, 2)) ** 2).sum(),
    }  # fmt: skip
    for f in bodies.values():
        for dtype in (trident.float32, trident.float64):
            draw.dtype = dtype
            compare(f, trident.fuse(f), [draw.tensor((3, 4, 5))], dtype, device, gradients=True)


def test_integers_bools_and_mixed_dtypes(form, device):
    rng = np.random.default_rng(0)
    x = trident.tensor(rng.standard_normal((4, 6)).astype(np.float32), device=device)
    k = trident.tensor(rng.integers(-3, 4, (4, 6)), device=device)
    m = trident.tensor(rng.random((4, 6)) < 0.5, device=device)
    d = trident.tensor(rng.standard_normal((4, 6)), device=device)
    for f, args in (
        (lambda x, k: x * k + k, (x, k)), (lambda m, x: trident.where(m, x, 0.0).sum(-1), (m, x)),
        (lambda k: k.sum(), (k,)), (lambda k: (k * k).amax(-1), (k,)), (lambda x, d: x + d, (x, d)),
        (lambda x: x > 0.1, (x,)), (lambda m, k: (m & (k > 0)).sum(-1), (m, k)),
        (lambda x: x.to(trident.float16).to(trident.float32) - x, (x,)), (lambda k: k / 2, (k,)),
        (lambda x: x.to(trident.bfloat16) * 3, (x,)), (lambda x: x.to(trident.int32) + 1, (x,)),
    ):  # fmt: skip
        got, want = trident.fuse(f)(*args), f(*args)
        assert got.dtype is want.dtype and got.shape == want.shape
        assert_close(got, want, length=6)


def test_second_derivatives(device):
    def f(x, w):
        return trident.softmax(trident.tanh(x) * w, -1) * x

    rng = np.random.default_rng(3)
    x = trident.tensor(rng.standard_normal((2, 3)), requires_grad=True, device=device)
    w = trident.tensor(rng.standard_normal(3), requires_grad=True, device=device)
    fused = trident.fuse(f)
    assert gradcheck(fused, (x, w))
    assert gradgradcheck(fused, (x, w))


def test_only_some_arguments_require_grad(form, device):
    def f(x, w, b):
        return (trident.exp(x * w) + b).sum(-1)

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in ((3, 4), (4,), (3, 1))]
    for mask in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1)):
        xs = [trident.tensor(a, requires_grad=bool(m), device=device) for a, m in zip(arrays, mask)]
        ys = [trident.tensor(a, requires_grad=bool(m)) for a, m in zip(arrays, mask)]
        trident.fuse(f)(*xs).sum().backward()
        f(*ys).sum().backward()
        for a, b in zip(xs, ys):
            assert (a.grad is None) == (b.grad is None)
            if b.grad is not None:
                assert_close(a.grad, b.grad)


def test_equal_maxima_share_the_gradient(form, device):
    x = trident.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True, device=device)
    trident.fuse(lambda v: (v * 2.0).amax(-1))(x).sum().backward()
    assert_close(x.grad, np.array([[0, 1, 1], [2 / 3] * 3], np.float32))


def test_empty_and_single(device):
    def f(x, w):
        return trident.softmax(x * w, -1)

    fused = trident.fuse(f)
    for shape in ((0, 3), (2, 0), (1, 1), (1, 3), (3, 1)):
        x, w = (trident.ones(*s, device=device) * 0.3 for s in (shape, shape[-1:]))
        assert_close(fused(x, w), f(x, w))


def test_no_tensor_is_an_error():
    with pytest.raises(TypeError, match="expected at least one Tensor"):
        trident.fuse(lambda x: trident.exp(x))(1.0)


# ---- capture ------------------------------------------------------------------------------------


def test_captured_once_per_dtypes_and_layouts():
    fused = trident.fuse(lambda x, w: trident.relu(x * w))
    for n in (3, 5, 8):
        fused(trident.randn(n, 4), trident.randn(4))
    assert fused.made == 1
    fused(trident.randn(3, 1), trident.randn(4))  # broadcast along another axis
    fused(trident.randn(3, 4, dtype=trident.float64), trident.randn(4, dtype=trident.float64))
    assert fused.made == 3


def test_sizes_that_the_function_reads_are_captured_again():
    fused = trident.fuse(lambda x: x / x.shape[-1])
    for n in (3, 5, 3):
        x = trident.randn(2, n)
        assert_close(fused(x), x / n)
    assert fused.made == 2


class Settings:
    slope = 0.5


scale = 2.0
settings_of_all = Settings()


def shifted(x):
    return x + scale


def test_what_is_read_from_outside_is_part_of_the_key(monkeypatch):
    own, weights = Settings(), [1.5]
    inner = 3.0

    def f(x):
        def part(v):
            return v * settings_of_all.slope

        return shifted(x) * inner + part(x) * own.slope * weights[-1]

    fused = trident.fuse(f)
    x = trident.randn(4)
    assert_close(fused(x), f(x))
    for change in (
        lambda: monkeypatch.setitem(globals(), "scale", 5.0),
        lambda: monkeypatch.setattr(settings_of_all, "slope", -1.5),
        lambda: monkeypatch.setattr(own, "slope", 4.0),
        lambda: weights.append(2.0),
    ):
        change()
        assert_close(fused(x), f(x))
    inner = -7.0
    assert_close(fused(x), f(x))
    assert fused.made == 6
    fused(x)
    assert fused.made == 6


def test_the_default_dtype_and_signed_zeros_are_part_of_the_key():
    fused = trident.fuse(lambda k, z: k * 0.5 / z)
    k = trident.tensor([1, 2])
    assert fused(k, 0.0).tolist() == [float("inf")] * 2
    assert fused(k, -0.0).tolist() == [-float("inf")] * 2
    trident.set_default_dtype(trident.float64)
    try:
        assert fused(k, 2.0).dtype is trident.float64
    finally:
        trident.set_default_dtype(trident.float32)
    assert fused(k, 2.0).dtype is trident.float32
    for _ in range(20):
        fused(k, float("nan"))
    assert fused.made == 5


def test_arguments_by_keyword_defaults_and_flags():
    @trident.fuse
    def f(x, w=None, *, slope=0.1, square=False):
        y = x if w is None else x * w
        y = trident.where(y > 0, y, y * slope)
        return y * y if square else y

    x, w = trident.randn(3, 4), trident.randn(4)
    assert_close(f(x), f.fn(x))
    assert_close(f(x, w=w, slope=0.5), f.fn(x, w, slope=0.5))
    assert_close(f(w=w, x=x, square=True), f.fn(x, w, square=True))
    for bad in ([1], (1, {}), Settings()):
        with pytest.raises(FusionError, match=r"argument slope is a (list|dict|Settings), whose"):
            f(x, slope=bad)


def test_names_that_generated_code_uses(form, device):
    def f(col, tl, v0, out0, row, n, g, double, np, out):
        return col * tl + v0 - out0 * row + n * g - double * np + out

    xs = [trident.randn(4, device=device) for _ in range(10)]
    assert_close(trident.fuse(f)(*xs), f(*xs), length=8)


def test_many_captures_are_reported_and_bounded(monkeypatch):
    monkeypatch.setattr(sys.modules["trident.compile.fuse"], "LIMIT", 10)
    monkeypatch.setattr(compiled, "available", lambda: False)
    fused = trident.fuse(lambda x, n: x * n)
    x = trident.randn(3)
    with pytest.warns(UserWarning, match=r"captured 16 times; what changes .* the argument n"):
        for i in range(16):
            fused(x, float(i))
    for i in range(16, 60):
        assert_close(fused(x, float(i)), x * float(i))
    assert len(fused.captures) <= 20


@pytest.mark.parametrize(
    "body, says",
    [
        (lambda x: x @ x.T, r"\.T of a traced value"),
        (lambda x: x @ x, r"matmul cannot be part of one loop"),
        (lambda x: trident.relu(x) if x.sum() > 0 else x, r"bool\(\) of a traced value"),
        (lambda x: x * float(x.sum()), r"float\(\) of a traced value"),
        (lambda x: x * x.sum().item(), r"\.item of a traced value"),
        (lambda x: x.reshape(-1), r"reshape from \(4, 4\) to \(16,\)"),
        (lambda x: x.add_(1), r"\.add_\(\) writes in place"),
        (
            lambda x: x * trident.ones(4),
            r"mul uses a tensor of shape \(4,\) that is not an argument",
        ),
        (lambda x: x - x.mean(-1), r"two axes of x, shape \(4, 4\)"),
        (lambda x: x * np.ones(4), r"mul uses a numpy array of shape \(4,\)"),
        (lambda x: x[0] * 2, r"takes a part of a tensor"),
        (lambda x: trident.sort(x)[0], r"cannot be part of one loop"),
        (lambda x: (x - x.mean(-1, keepdim=True)) * x.sum(0), r"reduces over different axes"),
        (lambda x: 3.0, r"must return a tensor"),
    ],
)
def test_what_cannot_be_fused_names_the_line(body, says):
    with pytest.raises(FusionError, match=says) as caught:
        trident.fuse(body)(trident.randn(4, 4))
    if "must return" not in says and "different axes" not in says:
        assert "test_fuse.py" in str(caught.value)


def test_shapes_that_do_not_broadcast_raise_the_ops_error():
    fused = trident.fuse(lambda x, w: x * w)
    fused(trident.randn(3, 4), trident.randn(4))
    with pytest.raises(trident.errors.ShapeError, match=r"mul: shapes \(3, 4\) and \(5,\)"):
        fused(trident.randn(3, 4), trident.randn(5))


# ---- the tape -----------------------------------------------------------------------------------


def test_overwritten_arguments_and_outputs_raise(device):
    fused = trident.fuse(lambda x: trident.exp(x) * 2.0)
    x = trident.randn(4, device=device, requires_grad=True)
    y = x * 1.0
    out = fused(y)
    y.mul_(2.0)
    with pytest.raises(trident.errors.AutogradError, match=r"argument x, .* overwritten by mul_"):
        out.sum().backward()
    fused = trident.fuse(lambda x: trident.exp(x))
    out = fused(x)
    kept = out * 1.0
    out.mul_(2.0)
    if fused.last[0].uses_out:
        with pytest.raises(trident.errors.AutogradError, match=r"output.* overwritten"):
            kept.sum().backward()
    else:
        kept.sum().backward()


def test_in_a_graph_with_other_ops(device):
    """Fused parts between matmuls, an output used twice, retain_graph, no_grad."""
    act = trident.fuse(lambda h, b: F.gelu(h + b))
    loss_of = trident.fuse(lambda y, t: ((y - t) ** 2).mean())
    rng = np.random.default_rng(0)
    w1, b1, w2 = (trident.tensor(rng.standard_normal(s), device=device, requires_grad=True)
                  for s in ((5, 7), (7,), (7, 3)))  # fmt: skip
    x, t = (trident.tensor(rng.standard_normal(s), device=device) for s in ((4, 5), (4, 3)))

    def step(act, loss_of):
        h = act(x @ w1, b1)
        loss = loss_of(h @ w2, t) + h.sum() * 0.1
        return grad(loss, [w1, b1, w2], retain_graph=True), loss

    got, loss = step(act, loss_of)
    want, plain = step(act.fn, loss_of.fn)
    assert_close(loss.detach(), plain.detach())
    for a, b in zip(got, want):
        assert_close(a, b, length=8)
    with trident.no_grad():
        assert not act(x @ w1, b1).requires_grad


@trident.fuse
def doubled(x):
    return x * 2.0


def test_nesting_copies_and_pickles(device):
    x = trident.randn(3, 4, device=device)
    inner = trident.fuse(lambda v: trident.tanh(v) * 2.0)
    outer = trident.fuse(lambda v: inner(v) + 1.0)
    assert_close(outer(x), trident.tanh(x) * 2.0 + 1.0)
    assert copy.deepcopy(outer) is outer
    assert pickle.loads(pickle.dumps(doubled)) is doubled


def test_check_op_takes_a_fused_function():
    @trident.fuse
    def scaled_softmax(x, w):
        return trident.softmax(x * w, -1)

    @scaled_softmax.samples
    def _(draw):
        shape = tuple(s or 1 for s in draw.shape(1, 3))
        return (draw.tensor(shape), draw.tensor(shape[-1:])), {}

    trident.testing.check_op(scaled_softmax, devices=["cpu"], examples=2)


# ---- text, cache, compiler ----------------------------------------------------------------------


def test_source_and_explanation(form, device):
    @trident.fuse
    def scaled(x, w):
        return trident.softmax(x * w, -1)

    with pytest.raises(FusionError, match="call it once"):
        scaled.explain()
    x = trident.randn(6, 50, device=device, requires_grad=True)
    scaled(x, trident.randn(50, device=device)).sum().backward()
    text = scaled.source
    assert "scaled" in text and "scaled_backward" in text
    assert {"cpu": "void" if form == "compiled" else "np.", "cuda": "tl.load"}[device] in text
    report = scaled.explain()
    assert report.bytes_forward == 6 * 50 * 4 * 2 + 50 * 4 + 2 * 6 * 4  # x, w, out, two row values
    assert report.bytes_eager > 2 * report.bytes_forward
    assert report.saved == 2 * 6 * 4
    assert "6 rows of 50" in str(report) and "speed limit" in str(report)


def test_a_broken_cache_file_is_made_again(tmp_path, monkeypatch):
    if not compiled.available():
        pytest.skip("no C compiler here")
    from trident.runtime import c_compiler

    monkeypatch.setattr(trident.config, "CACHE", str(tmp_path))
    text = "int twice(int x) { return 2 * x; }\n"
    c_compiler.load.cache_clear()
    assert c_compiler.load(text, "twice")(21) == 42
    (file,) = (tmp_path / "c").iterdir()
    file.unlink()  # not written over: this process has the old one mapped
    file.write_bytes(b"not a library")
    c_compiler.load.cache_clear()
    assert c_compiler.load(text, "twice")(21) == 42
    with pytest.raises(c_compiler.CompileError, match="error"):
        c_compiler.load("int broken( {", "broken")
    c_compiler.load.cache_clear()


def test_without_a_compiler_numpy_runs(tmp_path):
    """TRIDENT_CC=none in a process of its own."""
    import os
    import subprocess

    code = (
        "import trident\n"
        "f = trident.fuse(lambda x: trident.softmax(x, -1))\n"
        "x = trident.randn(3, 5)\n"
        "trident.testing.assert_close(f(x), trident.softmax(x, -1), length=5)\n"
        "assert 'np.exp' in f.source\n"
    )
    env = {**os.environ, "TRIDENT_CC": "none", "TRIDENT_CACHE": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert not list(tmp_path.iterdir())
