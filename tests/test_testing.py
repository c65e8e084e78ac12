"""The public test kit: strategies, ``assert_close``, ``check_op`` on ops that are wrong in one way,
the pytest plugin, and mutants of kernels."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st

import trident
from trident import config, dtypes, runtime
from trident.lang import cdiv, jit, tl
from trident.ops import registry
from trident.ops.registry import Interval, Spec, elementwise, fused, primitive
from trident.runtime import launch
from trident.testing import Draw, assert_close, broadcastable, check_op, mutate, shapes, tensors
from trident.testing import mutants as edits

# ---- strategies


@given(data=st.data())
def test_shapes_stay_in_their_bounds(data):
    low, high = sorted((data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))))
    shape = data.draw(shapes(low, high, 1, 3))
    assert low <= len(shape) <= high
    assert all(1 <= s <= 3 for s in shape)


def test_shapes_shrink_and_have_empty_axes():
    assert find(shapes(), lambda s: True) == ()
    assert find(shapes(min_dims=1), lambda s: 0 in s) == (0,)


@given(broadcastable(3))
def test_broadcastable_shapes_broadcast_to_the_result(case):
    operands, result = case
    assert len(operands) == 3
    assert np.broadcast_shapes(*operands) == result
    assert tuple(sum(trident.zeros(s) for s in operands).shape) == result


def test_broadcastable_stretches_and_drops_axes():
    assert find(broadcastable(2), lambda c: c[0][0] and c[0][0][0] == 1 and c[1][0] > 1)
    assert find(broadcastable(2), lambda c: len(c[0][0]) < len(c[0][1]))


@given(data=st.data())
@pytest.mark.parametrize("dtype", [*dtypes.FLOATS, dtypes.int32, dtypes.bool_], ids=str)
def test_tensors_have_dtype_shape_and_values(data, dtype):
    x = data.draw(tensors(dtype, shapes(0, 3, 0, 4), values=(-1.3, 2.7)))
    assert x.dtype is dtype
    values = x.numpy().astype(np.float64)
    if dtype is not dtypes.bool_:
        unit = dtypes.finfo(dtype).eps * 2 if dtype.is_floating_point else 0
        assert ((values >= -1.3 - unit) & (values <= 2.7 + unit)).all()


@given(tensors(values=Interval(-3.0, 3.0, hole=0.5), shape=(5,)))
def test_tensors_leave_the_hole_out(x):
    assert (np.abs(x.numpy()) >= 0.5).all()


@pytest.mark.parametrize("kind", ["contiguous", "permuted", "sliced", "expanded"])
def test_tensors_have_the_strides_that_were_asked_for(kind, device):
    strategy = tensors(shape=(3, 4), strides=kind, device=device)
    x = find(strategy, lambda t: True)
    expected = {
        "contiguous": ((4, 1),),
        "permuted": ((1, 3),),
        "sliced": ((18, 2), (9, 2)),
        "expanded": ((0, 1), (1, 0)),
    }[kind]
    assert x.stride() in expected
    assert x.device.type == device


def test_tensors_require_grad_and_shrink_to_zeros():
    x = find(tensors(shape=(2, 2), strides="sliced", requires_grad=True), lambda t: True)
    assert x.requires_grad and x.is_leaf
    assert not x.detach().numpy().any()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: tensors(strides="odd"), "strides must be 'any' or one of contiguous"),
        (lambda: tensors(values=(2, 1)), "low <= high"),
        (lambda: shapes(3, 2), "min_dims <= max_dims"),
        (lambda: broadcastable(0), "at least 1"),
    ],
)
def test_strategies_name_a_wrong_argument(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_kit_does_not_import_hypothesis():
    code = "import sys, trident.testing, trident.testing.plugin; trident.testing.check_op; "
    code += "assert 'hypothesis' not in sys.modules and 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- assert_close


def test_assert_close_names_the_worst_element_in_ulps():
    want = np.ones((2, 3), np.float32)
    got = want.copy()
    got[1, 2] += 4096 * np.finfo(np.float32).eps
    got[0, 1] += 128 * np.finfo(np.float32).eps
    with pytest.raises(AssertionError, match=r"2 of 6 .* index \(1, 2\).* 4096\.0 ulp"):
        assert_close(got, want)


@given(st.integers(1, 4000), st.integers(0, 99))
def test_assert_close_takes_a_float32_sum_of_any_length(n, seed):
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    total = np.float32(0)
    for v in x:  # the worst order
        total += v
    assert_close(np.float32(total), x.astype(np.float64).sum(), length=n)


# ---- check_op notices what is wrong with an op


@pytest.fixture
def define():
    """Enters ops for one test."""
    before = dict(registry.REGISTRY), dict(registry.FUNCTIONS)
    yield
    for table, kept in zip((registry.REGISTRY, registry.FUNCTIONS), before):
        table.clear()
        table.update(kept)


def shrink_op(numpy=None, vjp=None, **options):
    """softshrink-like: x - 1 above 1, 0 below; the slope at the kink is 0."""

    class shrunk:
        """max(x - 1, 0)."""

        @jit
        def triton(x):
            return tl.maximum(x - 1.0, 0.0, propagate_nan=tl.PropagateNan.ALL)

    shrunk.numpy = numpy or (lambda x: np.maximum(x - 1.0, 0.0))
    shrunk.vjp = vjp or (lambda g, x: trident.where(x > 1.0, g, 0.0))
    return elementwise(takes="float", kinks=(1.0,), **options)(shrunk)


def test_check_op_accepts_a_right_op_on_all_devices(define):
    check_op(shrink_op(), examples=3)


def wrong_value(x):
    return np.maximum(x - 1.0, 0.0) + (1e-4 if x.dtype == np.float32 else 0.0)


def wrong_input(x):
    out = np.maximum(x - 1.0, 0.0)
    x += 1.0
    return out


def wrong_at_kink(g, x):
    return trident.where(x > 1.0, g, trident.where(trident.eq(x, 1.0), g * 3.0, 0.0))


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"numpy": wrong_value}, "elements differ"),
        ({"numpy": wrong_input}, "was modified|read-only|elements differ"),
        ({"vjp": lambda g, x: g * 1.001}, "along a random direction"),
        # right everywhere but at the kink, where it leaves the slopes 0 and 1
        (
            {"vjp": wrong_at_kink},
            "not between the slopes",
        ),
    ],
    ids=["value", "modified", "gradient", "kink"],
)
def test_check_op_notices(define, parts, words):
    with pytest.raises((AssertionError, trident.autograd.GradcheckError, ValueError), match=words):
        check_op(shrink_op(**parts), devices=["cpu"], examples=8)


def outer_op(infer):
    class outer_product:
        """a[i] * b[j]."""

        def numpy(a, b):
            return np.einsum("i,j->ij", a, b)

        def launch(out, a, b):
            raise AssertionError("this test runs on the CPU")

        def samples(draw):
            return (draw.tensor(draw.shape(1, 1)), draw.tensor(draw.shape(1, 1))), {}

    outer_product.infer = infer
    return primitive(outer_product)


def test_check_op_wants_a_clear_error_for_a_wrong_rank(define):
    def careless(a, b):
        return Spec((a.shape[0], b.shape[0]), a.dtype)

    with pytest.raises(AssertionError, match=r"a of shape .* raised .*, not a TridentError"):
        check_op(outer_op(careless), devices=["cpu"], examples=2)

    def careful(a, b):
        if a.ndim != 1 or b.ndim != 1:
            raise trident.errors.wrong("outer_product", "a and b need one axis", got=a.shape)
        return careless(a, b)

    check_op(outer_op(careful), devices=["cpu"], examples=2)


def test_a_failure_prints_one_line_that_repeats_it(define):
    with pytest.raises(AssertionError) as caught:
        check_op(shrink_op(numpy=wrong_value), devices=["cpu"], examples=8)
    (line,) = caught.value.__notes__
    assert line.startswith("reproduce: trident.testing.check_op('")
    call = line.partition(": ")[2].partition("  #")[0]
    with pytest.raises(AssertionError, match="elements differ"):
        exec(call, {"trident": trident})


def test_samples_can_be_given_and_steps_are_printed(define, capsys):
    op = shrink_op()
    seen = []

    def samples(draw):
        seen.append(draw.dtype)
        return (draw.tensor((3,)),), {}

    check_op(op, devices=["cpu"], examples=2, samples=samples, verbose=True)
    assert set(seen) == set(dtypes.FLOATS)
    assert op.op.samples is None
    printed = capsys.readouterr().out
    assert f"{op.op.name} [cpu] values float32: " in printed
    assert f"{op.op.name} [cpu] kinks: " in printed


def test_check_op_says_what_it_cannot_check():
    with pytest.raises(TypeError, match="expected an op"):
        check_op(np.sin)
    with pytest.raises(KeyError, match="no op is called 'sine'"):
        check_op("sine")


@pytest.mark.parametrize("name", ["sgd_", "adam_", "rmsprop_", "adagrad_"])
def test_updates_in_place_are_checked(name, device):
    check_op(name, devices=[device], examples=2)


def test_draw_sizes_reach_several_blocks():
    drawn = {Draw(seed).size(0, 5, 37) for seed in range(100)}
    assert drawn == {0, 1, 2, 3, 4, 5, 37}
    boxes = [Draw(seed).shape(1, 4) for seed in range(100)]
    assert any(len(b) == 4 and min(b) >= 2 for b in boxes)


# ---- mutants


@jit
def scale_kernel(x_ptr, out_ptr, n, x_stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = tl.load(x_ptr + i * x_stride, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + i, (x * 2.0).to(out_ptr.dtype.element_ty), mask=mask)


def launch_scale(out, x):
    launch(scale_kernel, (cdiv(x.size, 4),), x, out, x.size, x.strides[0], BLOCK=4)


def scale_op(samples):
    @fused(forward=launch_scale, dtypes=(dtypes.float16, dtypes.float32))
    def doubled(x):
        """2 x of one axis."""
        return x * 2.0

    doubled.samples(samples)
    return doubled


def test_sites_list_the_edits_of_a_kernel():
    found = {(s.kind, s.after) for s in edits.sites(scale_kernel.fn)}
    assert {
        ("bound one too far", "mask = i <= n"),
        ("bound one short", "mask = i < n - 1"),
        ("stride dropped", "x_stride = 1"),
        ("store dropped", "None"),
        ("load mask dropped", "x = tl.load(x_ptr + i * x_stride).to(tl.float32)"),
    } <= found
    # lanes do not meet, so what a masked lane holds cannot matter
    assert not any(kind == "other changed" for kind, _ in found)


def test_an_edit_has_one_role_in_kernels_for_all_layouts():
    """The emitter writes as many strides as a layout needs, and the edit is the same."""
    sites = [
        edits.Site(
            "strides swapped", f"(x_stride0, x_stride1{more}", f"(x_stride1, x_stride0{more}"
        )
        for more in (") tl.program_id(0)", ", y_stride0) tl.program_id(0)")
    ]
    assert {edits.role(s) for s in sites} == {("strides swapped", "x_stride0,x_stride1")}


def test_mutated_leaves_the_kernel_as_it_is():
    site = next(s for s in edits.sites(scale_kernel.fn) if s.kind == "bound one short")
    broken = edits.mutated(scale_kernel, site)
    assert broken is not scale_kernel
    assert "i < n - 1" in edits.linecache.getline(broken.fn.__code__.co_filename, 3)
    assert not any("n - 1" in s.before for s in edits.sites(scale_kernel.fn))


needs_kernels = pytest.mark.skipif(
    not runtime.is_available(), reason="kernels run under TRITON_INTERPRET=1 only"
)


@needs_kernels
def test_mutate_kills_every_mutant_of_a_users_kernel(define):
    op = scale_op(lambda draw: ((draw.tensor((draw.integer(0, 9),)),), {}))
    report = mutate(op, examples=4, kernels=["test_testing.scale_kernel"])
    assert not report.survivors, str(report)
    assert report.score == 1.0
    assert {"launch skipped", "grid one short", "store dropped", "stride dropped"} <= {
        o.mutant.site.kind for o in report.killed
    }


@needs_kernels
def test_mutate_shows_what_samples_miss(define):
    """One full block of a contiguous array: the mask, the stride and the grid go untested."""
    op = scale_op(lambda draw: ((np.ones(4, draw.dtype.np),), {}))
    report = mutate(op, examples=2, kernels=["test_testing.scale_kernel"])
    survived = {o.mutant.site.kind for o in report.survivors}
    assert {"load mask dropped", "stride dropped", "grid one short"} <= survived
    assert "store dropped" not in survived
    assert "survived: test_testing.scale_kernel" in str(report)
    assert 0.0 < report.score < 1.0


@needs_kernels
@pytest.mark.parametrize(
    "name, kernel, kinds",
    [
        ("cumsum", "scan.cumulate_kernel", ("last block dropped", "store mask dropped")),
        ("sum", "reduce.reduce_kernel", ("bound one short", "accumulator not cleared")),
        ("relu", "generated.relu_kernel", ("load mask dropped", "strides swapped")),
        ("nll_reduced", "cross_entropy.target_of", ("bound one too far", "mask term dropped")),
        ("winners", "scatter.winners_kernel", ("bound one short",)),
    ],
)
def test_mutants_of_the_projects_kernels_are_killed(name, kernel, kinds):
    """A sample of ``python -m bench mutation``, which takes them all."""
    report = mutate(name, kernels=[kernel], kinds=kinds)
    assert len(report.killed) >= len(kinds)
    assert not report.survivors, str(report)


@pytest.mark.parametrize("n", [1, 3, 4, 9, 17])
def test_nonzero_counts_every_block(n, device):
    """The composite in front of ``nonzero_places``, whose samples say how many there are."""
    token = config.interpret_block.set(4)
    try:
        for x in (np.ones(n, np.float32), np.arange(n) % 3 == 1, np.zeros(n, np.int64)):
            found = trident.nonzero(trident.tensor(x, device=device))
            assert found.tolist() == np.argwhere(x).tolist()
    finally:
        config.interpret_block.reset(token)


# ---- the plugin


def run_pytest(folder, text, *arguments, conftest=""):
    (folder / "test_it.py").write_text(textwrap.dedent(text))
    (folder / "conftest.py").write_text(textwrap.dedent(conftest))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *arguments]
    if "trident.testing.plugin" not in subprocess.run(
        [sys.executable, "-m", "pytest", "--trace-config", "--co", "-q", "/dev/null"],
        capture_output=True, text=True, cwd=folder,
    ).stdout:  # fmt: skip
        command += ["-p", "trident.testing.plugin"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


PLAIN = """
    import pytest, trident
    from trident.testing import check_op

    @pytest.mark.ops(trident.relu, "tanh")
    def test_op(op, device):
        assert op(trident.zeros(2, device=device)).tolist() == [0.0, 0.0]
        assert trident.empty(3, device=device).isnan().all().item() or device == "cpu"

    def test_device(device):
        assert trident.zeros(1, device=device).device.type == device

    @pytest.mark.parametrize("op", [1, 2])
    def test_own_op(op):
        assert op in (1, 2)
"""


def test_plugin_runs_ops_on_the_chosen_device(tmp_path, device):
    done = run_pytest(tmp_path, PLAIN, "-v", "--device", device)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_op[relu] PASSED" in done.stdout and "test_op[tanh] PASSED" in done.stdout
    assert "5 passed" in done.stdout


def test_plugin_skips_where_cuda_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = run_pytest(tmp_path, PLAIN, "--device", "cuda")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 skipped" in done.stdout
    assert "set TRITON_INTERPRET=1" in done.stdout


def test_plugin_lives_with_another_device_option(tmp_path):
    other = """
        def pytest_addoption(parser):
            parser.addoption("--device", default="tpu:0")
    """
    done = run_pytest(tmp_path, PLAIN, conftest=other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
