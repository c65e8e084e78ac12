"""What people build on: ``trident.kernel``, its configurations, ``fused`` and ``elementwise``.

Kernels run on the device under test: on ``cuda``, or on the memory of CPU tensors inside
``trident.interpret()``.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest

import trident
from trident import config
from trident.errors import AutogradError, DeviceError
from trident.lang import has_triton, tl
from trident.ops import registry
from trident.ops.registry import FUNCTIONS, REGISTRY, Interval
from trident.runtime import DeviceArray, tuning
from trident.testing import assert_close, check_op, gradcheck, gradgradcheck

BLOCK = 16


@pytest.fixture
def lab(device):
    """A place where kernels run on tensors of the device under test."""
    if not has_triton():
        pytest.skip("needs triton")
    with trident.interpret() if device == "cpu" else contextlib.nullcontext():
        yield


@trident.jit
def plus(a, b):
    return a + b


@trident.kernel(writes=("out_ptr",))
def add_kernel(x_ptr, y_ptr, out_ptr, n, SCALE: tl.constexpr = 1, BLOCK: tl.constexpr = 16):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    if y_ptr is not None:
        x = plus(x, tl.load(y_ptr + i, mask=i < n))
    tl.store(out_ptr + i, x * SCALE, mask=i < n)


@trident.kernel
def unnamed_writes(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)


def pair(device, rng, n=37):
    return tuple(trident.tensor(rng.standard_normal(n).astype("f"), device=device) for _ in "ab")


def grid(a):
    return (trident.cdiv(a["n"], a["BLOCK"]),)


# ---- launching ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3,), [3], 3, np.int64(3), grid, lambda a: 3], ids=str)
def test_grid_is_an_int_a_tuple_or_a_function_of_the_arguments(device, lab, rng, sizes):
    x, y = pair(device, rng)
    out = trident.zeros_like(x)
    add_kernel[sizes](x, y, out, 37, BLOCK=BLOCK)
    assert_close(out, x._host() + y._host())


def test_arguments_go_by_position_or_by_name(device, lab, rng):
    x, y = pair(device, rng)
    want = 3 * (x._host() + y._host())
    for launch in (
        lambda out: add_kernel[grid](x, y, out, 37, 3, 32),
        lambda out: add_kernel[grid](x, y, n=37, out_ptr=out, SCALE=3, BLOCK=64),
        lambda out: add_kernel[grid](BLOCK=8, n=37, SCALE=3, out_ptr=out, y_ptr=y, x_ptr=x),
        lambda out: add_kernel[grid](x, y, out, np.int64(37), np.int32(3), num_warps=2),
    ):
        out = trident.full_like(x, float("nan"))
        launch(out)
        assert_close(out, want)


def test_the_grid_function_sees_every_argument(device, lab, rng):
    x, y = pair(device, rng)
    out, seen = trident.zeros_like(x), {}

    def sizes(a):
        seen.update(a)
        return (1,)

    add_kernel[sizes](x, y, out_ptr=out, n=16, num_warps=8)
    assert seen.pop("x_ptr") is x and seen.pop("y_ptr") is y and seen.pop("out_ptr") is out
    assert seen == {"n": 16, "SCALE": 1, "BLOCK": 16, "num_warps": 8}


def test_none_is_an_absent_pointer(device, lab, rng):
    x, _ = pair(device, rng)
    out = trident.zeros_like(x)
    add_kernel[grid](x, None, out, 37, SCALE=5)
    assert_close(out, 5 * x._host())


def test_grid_can_be_declared(device, lab, rng):
    x, y = pair(device, rng)
    out = trident.zeros_like(x)
    declared = trident.kernel(add_kernel.fn, grid=grid)
    declared(x, y, out, 37)
    assert_close(out, x._host() + y._host())
    with pytest.raises(TypeError, match="the number of programs is missing"):
        add_kernel(x, y, out, 37)


def test_a_grid_with_a_zero_launches_nothing(device, lab):
    x = trident.full((4,), 7.0, device=device)
    add_kernel[0](x, None, x, 4, SCALE=2)
    add_kernel[grid](x, None, x, 0, SCALE=2)
    assert x.tolist() == [7.0] * 4


def test_constants_may_stand_between_run_time_parameters(device, lab, rng):
    @trident.kernel
    def mixed(x_ptr, BLOCK: tl.constexpr, out_ptr, HALVE: tl.constexpr, n, factor=2.0):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n) * factor
        if HALVE:
            x = x / 2
        tl.store(out_ptr + i, x, mask=i < n)

    x, out = pair(device, rng)
    mixed[grid](x, 32, out, True, 37)
    assert_close(out, x._host())
    mixed[grid](x, out_ptr=out, n=37, BLOCK=64, HALVE=False, factor=-3.0)
    assert_close(out, -3 * x._host())


def test_functions_of_triton_jit(device, lab, rng):
    triton = pytest.importorskip("triton")
    language = triton.language

    @triton.jit
    def helper(x, K: language.constexpr):
        return x * K

    @triton.jit
    def native(x_ptr, out_ptr, n, K: language.constexpr, BLOCK: language.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = helper(tl.load(x_ptr + i, mask=i < n), K)
        tl.store(out_ptr + i, plus(x, 1.0), mask=i < n)

    x, out = pair(device, rng)
    for k in (trident.kernel(native), trident.kernel(trident.jit(native.fn))):
        out.zero_()
        k[grid](x, out, 37, K=4, BLOCK=BLOCK)
        assert_close(out, 4 * x._host() + 1)


def test_functions_and_dtypes_as_constants(device, lab, rng):
    @trident.jit
    def square(x):
        return x * x

    @trident.kernel
    def apply(x_ptr, out_ptr, n, F: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out_ptr + i, F(tl.load(x_ptr + i, mask=i < n).to(D)), mask=i < n)

    x, _ = pair(device, rng)
    out = trident.zeros(37, dtype=trident.float64, device=device)
    apply[grid](x, out, 37, square, trident.float64, BLOCK=BLOCK)
    assert_close(out, x._host().astype("d") ** 2)


def test_numbers_of_every_kind_arrive(device, lab):
    @trident.kernel
    def numbers(out_ptr, i, big, f):
        tl.store(out_ptr, i.to(tl.float64))
        tl.store(out_ptr + 1, big.to(tl.float64))
        tl.store(out_ptr + 2, f.to(tl.float64))

    out = trident.zeros(3, dtype=trident.float64, device=device)
    numbers[1](out, 7, 2**40, 0.1)
    assert out.tolist() == [7.0, 2.0**40, float(np.float32(0.1))]  # floats are float32


def test_strided_tensors_where_declared(device, lab, rng):
    @trident.kernel(strided="x_ptr", writes="out_ptr")
    def gather(x_ptr, out_ptr, n, step, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(out_ptr + i, tl.load(x_ptr + i * step, mask=i < n), mask=i < n)

    x, _ = pair(device, rng)
    view, out = x[1::3], trident.zeros(12, device=device)
    gather[grid](view, out, 12, view.stride(0), BLOCK=BLOCK)
    assert_close(out, x._host()[1::3])
    with pytest.raises(ValueError, match=r"gather: out_ptr must be contiguous; got shape \(4,\)"):
        gather[grid](view, out[::3], 4, 3, BLOCK=BLOCK)


# ---- errors -------------------------------------------------------------------------------------


def test_a_launch_names_what_is_wrong_with_its_arguments(device, lab, rng):
    x, y = pair(device, rng)
    k = add_kernel[1]
    for call, text in [
        (lambda: k(x, y), "kernel add_kernel: missing arguments out_ptr, n"),
        (lambda: k(x, y, x), "missing argument n"),
        (lambda: k(x, y, x, 37, m=3), "unknown argument 'm'; it takes x_ptr, y_ptr, out_ptr, n, "),
        (lambda: k(x, y, x, 37, n=3), "argument 'n' is given twice"),
        (lambda: k(x, y, x, 37, 1, 16, 4), r"takes at most 6 arguments \(x_ptr, .*; got 7"),
        (lambda: k([1.0], y, x, 37), "x_ptr must be a Tensor.*got a list.*trident.from_numpy"),
        (lambda: k("x", y, x, 37), "x_ptr must be a Tensor.*got a str.*`x_ptr: tl.constexpr`"),
        (lambda: k(x, y, x, {}), "n must be a Tensor, a number or None; got a dict"),
        (lambda: k(x, y, x, 37, x), "SCALE is a tl.constexpr; it takes a number, not a tensor"),
        (lambda: k(x, y, x, 37, [1]), "SCALE is a tl.constexpr; it takes .*got a list"),
        (lambda: k(1, 2, 3, 37), "got no tensor among its arguments"),
        (lambda: add_kernel[1.5](x, y, x, 37), "the grid must be one to three ints; got 1.5"),
        (lambda: add_kernel[1, 1, 1, 1](x, y, x, 37), "the grid must be one to three ints"),
        (lambda: add_kernel[lambda a: -1](x, y, x, 37), r"the grid must be .*; got \(-1,\)"),
    ]:
        with pytest.raises(TypeError, match=text):
            call()


def test_numpy_arrays_are_wrapped_first():
    with pytest.raises(TypeError, match=r"x_ptr must be .*a numpy array.*trident.from_numpy\(a\)"):
        add_kernel[1](np.ones(3), None, trident.ones(3), 3)


def test_cpu_tensors_need_the_interpreter():
    with pytest.raises(DeviceError, match=r"trident\.interpret"):
        add_kernel[1](trident.ones(3), None, trident.ones(3), 3)


def test_tensors_must_be_on_one_device(device, lab):
    other = trident.ones(3, device="cuda" if device == "cpu" else "cpu")
    with pytest.raises(DeviceError, match=r"must be on one device; got x_ptr on .*, out_ptr on "):
        add_kernel[1](trident.ones(3, device=device), None, other, 3)


def test_a_kernel_that_cannot_work_is_an_error_where_it_is_made():
    def k(x_ptr, n, BLOCK: tl.constexpr):
        pass

    def starred(x_ptr, *sizes):
        pass

    first, second = trident.Config(BLOCK=8), trident.Config(BLOCK=16)
    for make, text in [
        (lambda: trident.kernel(3), "kernel: expected a function.*got a int"),
        (lambda: trident.kernel(starred), r"takes named parameters only; got \*sizes"),
        (lambda: trident.kernel(k, strided=("y_ptr",)), "strided names 'y_ptr'.*x_ptr, n"),
        (lambda: trident.kernel(k, writes=("BLOCK",)), "writes names 'BLOCK'"),
        (lambda: trident.kernel(k, key=("m",), configs=[first, second]), "key names 'm'"),
        (lambda: trident.kernel(k, key=("n",)), "there are none"),
        (lambda: trident.kernel(k, configs=[{"BLOCK": 8}]), r"trident.Config\(...\); got \{"),
        (lambda: trident.kernel(k, configs=[trident.Config(B=8)]), "'B', which is no tl.constexpr"),
        (lambda: trident.kernel(k, configs=[first, trident.Config()]), "set the same parameters"),
    ]:
        with pytest.raises(TypeError, match=text):
            make()
    for options in ({"num_warps": 3}, {"num_warps": 0}, {"num_stages": "2"}):
        with pytest.raises(ValueError, match=f"Config: {next(iter(options))} must be a p"):
            trident.Config(**options)


def test_triton_autotune_is_pointed_to_configs():
    triton = pytest.importorskip("triton")

    @triton.autotune([triton.Config({"BLOCK": 16})], key=[])
    @triton.jit
    def tuned(x_ptr, BLOCK: triton.language.constexpr):
        pass

    with pytest.raises(TypeError, match=r"Autotuner around tuned.*configs="):
        trident.kernel(tuned)


# ---- the tape -----------------------------------------------------------------------------------


def test_a_launch_on_a_tensor_that_requires_grad(device, lab, rng):
    x, out = pair(device, rng)
    x.requires_grad_()
    with pytest.raises(AutogradError, match=r"x_ptr requires grad.*no_grad.*detach.*fused"):
        add_kernel[grid](x, None, out, 37)
    with trident.no_grad():
        add_kernel[grid](x, None, out, 37, SCALE=2)
    assert_close(out, 2 * x.detach()._host())
    add_kernel[grid](x.detach(), None, out, 37, SCALE=3)
    assert_close(out, 3 * x.detach()._host())


def test_a_write_under_a_saved_tensor_is_noticed(device, lab, rng):
    x, other = pair(device, rng)
    w = trident.ones(37, device=device, requires_grad=True)
    loss = (w * x).sum()  # saves x
    add_kernel[grid](x, None, other, 37)  # reads it
    loss.backward(retain_graph=True)
    assert_close(w.grad, x)
    add_kernel[grid](other, None, x, 37, SCALE=2)  # writes it
    with pytest.raises(AutogradError, match="overwritten by kernel add_kernel"):
        loss.backward()


def test_every_tensor_counts_as_written_where_writes_is_not_declared(device, lab, rng):
    x, out = pair(device, rng)
    w = trident.ones(37, device=device, requires_grad=True)
    loss = (w * x).sum()
    unnamed_writes[grid](x, out, 37, BLOCK=BLOCK)
    with pytest.raises(AutogradError, match=r"kernel unnamed_writes \(which declares no writes="):
        loss.backward()


def test_what_cannot_be_written_is_not_launched(device, lab):
    row = trident.zeros(1, device=device).expand(4)
    k = trident.kernel(add_kernel.fn, strided=("out_ptr",), writes=("out_ptr",))
    with pytest.raises(AutogradError, match="out_ptr: the tensor's elements share memory"):
        k[1](trident.ones(4, device=device), None, row, 4)


# ---- configurations -----------------------------------------------------------------------------

CONFIGS = [trident.Config(BLOCK=8), trident.Config(BLOCK=32, num_warps=8), trident.Config(BLOCK=64)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE", str(tmp_path))
    return tmp_path / "tuning"


def counter(**options):
    """A new kernel that adds its block size to every element of x, and one to n_programs."""

    def count(x_ptr, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x_ptr + i, tl.load(x_ptr + i, mask=i < n) + BLOCK, mask=i < n)

    return trident.kernel(count, **{"configs": CONFIGS, "key": ("n",), "grid": grid, **options})


def clock(times, log=None):
    """A clock on which configuration i takes times[i] seconds."""

    def read(c, run):
        run()
        if log is not None:
            log.append(c)
        return times[CONFIGS.index(c)]

    return read


def used(k, device, n=20, **kwargs):
    """The block size that a launch of ``k`` uses."""
    x = trident.zeros(n, dtype=trident.int32, device=device)
    k(x, n, **kwargs)
    (block,) = set(x.tolist())
    return block


def test_the_first_configuration_is_used_until_one_was_measured(device, lab, cache):
    k = counter()
    assert used(k, device) == 8
    with trident.autotune():  # the interpreter's clock says nothing
        assert used(k, device) == 8
    assert not list(cache.glob("*"))
    with trident.autotune(clock=clock([3.0, 1.0, 2.0])):
        assert used(k, device) == 32  # in place, and still added once
    assert used(k, device) == 32
    assert len(list(cache.glob("count-*.json"))) == 1


def test_a_choice_is_kept_on_disk(device, lab, cache):
    log = []
    with trident.autotune(clock=clock([3.0, 2.0, 1.0], log)):
        assert used(counter(), device) == 64
        assert log == CONFIGS
        assert used(counter(), device) == 64  # another kernel object, as in another process
        assert log == CONFIGS
    assert used(counter(), device) == 64
    (file,) = cache.glob("*.json")
    record = json.loads(file.read_text())
    assert record["config"] == "Config(BLOCK=64, num_warps=4, num_stages=3)"
    assert record["seconds"][record["config"]] == 1.0


def test_what_a_choice_depends_on(device, lab, cache):
    log = []

    def measured(k, **kwargs):
        log.clear()
        with trident.autotune(clock=clock([2.0, 1.0, 3.0], log)):
            used(k, device, **kwargs)
        return bool(log)

    k = counter()
    assert measured(k, n=20)
    assert not measured(k, n=32)  # the same power of two
    assert measured(k, n=33)
    assert measured(counter(configs=CONFIGS[:2]), n=20)
    assert measured(counter(key=()), n=20)
    assert not measured(counter(key=()), n=5000)
    x = trident.zeros(20, dtype=trident.int64, device=device)
    log.clear()
    with trident.autotune(clock=clock([2.0, 1.0, 3.0], log)):
        k(x, 20)
    assert log, "another dtype"


def test_the_source_of_what_a_kernel_calls_counts():
    def kernels():
        for scale in (1, 2):

            @trident.jit
            def helper(x):
                return x + 1

            if scale == 2:

                @trident.jit
                def helper(x):
                    return x + 2

            def caller(x_ptr):
                tl.store(x_ptr, helper(tl.load(x_ptr)))

            yield trident.jit(caller)

    first, second = (tuning.fingerprint(k) for k in kernels())
    again = [tuning.fingerprint(k) for k in kernels()]
    assert first != second and again == [first, second]


def test_constants_named_by_a_kernel_count():
    prints = set()
    for value in (1, 2, 2.0):
        scale = value

        def caller(x_ptr):
            tl.store(x_ptr, tl.load(x_ptr) * scale)  # noqa: B023

        prints.add(tuning.fingerprint(trident.jit(caller)))
    assert len(prints) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff\x00", b'{"format": 1}'])
def test_a_broken_file_is_ignored_and_written_anew(device, lab, cache, content):
    with trident.autotune(clock=clock([3.0, 2.0, 1.0])):
        used(counter(), device)
    (file,) = cache.glob("*.json")
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="ignored, not a tuning result of this kernel"):
        assert used(counter(), device) == 8
    with (
        pytest.warns(UserWarning, match="ignored"),
        trident.autotune(clock=clock([3.0, 1.0, 2.0])),
    ):
        assert used(counter(), device) == 32
    assert used(counter(), device) == 32


def test_a_file_of_another_kernel_is_ignored(device, lab, cache):
    with trident.autotune(clock=clock([3.0, 2.0, 1.0])):
        used(counter(), device, n=20)
        used(counter(), device, n=100)
    first, second = sorted(cache.glob("*.json"))
    first.write_bytes(second.read_bytes())
    with pytest.warns(UserWarning, match="it was written for something else"):
        blocks = {used(counter(), device, n=20), used(counter(), device, n=100)}
    assert blocks == {8, 64}


def test_a_configuration_that_fails_is_not_chosen(device, lab, cache):
    def failing(c, run):
        if c is not CONFIGS[2]:
            raise RuntimeError(f"no {c}")
        run()
        return 1.0

    with trident.autotune(clock=failing):
        assert used(counter(), device) == 64

    def never(c, run):
        raise RuntimeError("no clock")

    k = counter(restore=())
    with trident.autotune(clock=never), pytest.raises(RuntimeError, match="no clock"):
        used(k, device, n=1000)


def test_tensors_to_restore(device, lab, cache):
    with trident.autotune(clock=clock([3.0, 2.0, 1.0])):
        assert used(counter(restore=("x_ptr",)), device) == 64
        x = trident.zeros(100, dtype=trident.int32, device=device)
        counter(restore=())(x, 100)  # measured on the tensor itself, three times
    assert set(x.tolist()) == {8 + 32 + 64 + 64}


def test_configured_arguments_are_not_passed(device, lab):
    x = trident.zeros(4, dtype=trident.int32, device=device)
    for kwargs in ({"BLOCK": 8}, {"num_warps": 8}):
        with pytest.raises(TypeError, match=f"'{next(iter(kwargs))}' comes from its config"):
            counter()(x, 4, **kwargs)


def test_the_median_is_taken_and_preparing_is_not_timed(monkeypatch):
    now, log = [0.0], []
    costs = iter([5.0] * tuning.WARM_UP + [1.0, 9.0, 1.0, 2.0, 2.0, 9.0, 1.0])

    def run():
        now[0] += next(costs)

    def prepare():
        log.append("prepare")
        now[0] += 100.0

    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now[0])
    assert tuning.seconds(run, lambda: None, prepare) == 2.0
    assert len(log) == tuning.WARM_UP + tuning.FEWEST


def test_two_processes_may_tune_at_once(tmp_path):
    code = (
        "import sys\n"
        "from trident.runtime import tuning\n"
        "configs = [tuning.Config(B=1), tuning.Config(B=2)]\n"
        "for k in range(40):\n"
        "    found, _ = tuning.choose('k', [k], configs, lambda c: -c.constants['B'])\n"
        "    assert found is configs[1]\n"
    )
    env = {"TRIDENT_CACHE": str(tmp_path), "PATH": "", "PYTHONWARNINGS": "error"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for p in running:
        assert p.wait(60) == 0, p.stderr.read().decode()
        p.stderr.close()
    files = list((tmp_path / "tuning").iterdir())
    assert len(files) == 40
    assert all(json.loads(f.read_text())["config"].startswith("Config(B=2") for f in files)


@pytest.mark.parametrize("value, on", [("1", True), ("0", False)])
def test_the_environment_turns_tuning_on(value, on):
    code = "from trident import config; print(config.autotune.get())"
    env = {"TRIDENT_AUTOTUNE": value, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(on), done.stderr


# ---- fused --------------------------------------------------------------------------------------


@trident.jit
def row(x_ptr, w_ptr, cols, n, like):
    """x, w and x w of a row, in the dtype of ``like``."""
    x = tl.load(x_ptr + cols, mask=cols < n, other=0.0).to(like.dtype.element_ty)
    w = tl.full(x.shape, 1.0, x.dtype)
    if w_ptr is not None:
        w = tl.load(w_ptr + cols, mask=cols < n, other=0.0).to(x.dtype)
    return x, w, x * w


@trident.jit
def row_gradient(gy_ptr, gs_ptr, r_ptr, row, u, cols, n, K):
    """The gradient of u = x w in a row."""
    r = tl.load(r_ptr + row)
    gy = tl.load(gy_ptr + row * n + cols, mask=cols < n, other=0.0).to(u.dtype) * K
    gs = tl.load(gs_ptr + row).to(u.dtype)
    return r * gy - u * r * r * r * tl.sum(gy * u, 0) / n + 2.0 * gs * u * r * r / n


@trident.kernel(writes=("y_ptr", "s_ptr", "r_ptr"))
def gain_forward(
    x_ptr, w_ptr, y_ptr, s_ptr, r_ptr, n, K: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    _, _, u = row(x_ptr + i * n, w_ptr, cols, n, r_ptr)
    square = tl.sum(u * u, 0) / n + EPS
    r = 1.0 / tl.sqrt(square)
    tl.store(r_ptr + i, r)
    tl.store(s_ptr + i, tl.log(square).to(s_ptr.dtype.element_ty))
    tl.store(y_ptr + i * n + cols, (u * r * K).to(y_ptr.dtype.element_ty), mask=cols < n)


@trident.kernel(writes=("dx_ptr",))
def gain_dx(gy_ptr, gs_ptr, x_ptr, w_ptr, r_ptr, dx_ptr, n, K: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    _, w, u = row(x_ptr + i * n, w_ptr, cols, n, r_ptr)
    dx = w * row_gradient(gy_ptr, gs_ptr, r_ptr, i, u, cols, n, K)
    tl.store(dx_ptr + i * n + cols, dx.to(dx_ptr.dtype.element_ty), mask=cols < n)


@trident.kernel(writes=("dw_ptr",))
def gain_dw(
    gy_ptr, gs_ptr, x_ptr, w_ptr, r_ptr, dw_ptr, rows, n, K: tl.constexpr, BLOCK: tl.constexpr
):
    cols = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), r_ptr.dtype.element_ty)
    for i in range(0, rows):
        x, _, u = row(x_ptr + i * n, w_ptr, cols, n, r_ptr)
        total += x * row_gradient(gy_ptr, gs_ptr, r_ptr, i, u, cols, n, K)
    tl.store(dw_ptr + cols, total.to(dw_ptr.dtype.element_ty), mask=cols < n)


RAN: list[str] = []


def took(expected):
    """Whether these launchers ran, since this was last asked."""
    ran, RAN[:] = list(RAN), []
    return ran == expected


def present(w):
    return None if w is None else w.contiguous()


def forward(out, r, x, w, *, k, eps):
    RAN.append("forward")
    y, s = out
    rows, n = x.shape
    size = trident.next_power_of_2(n)
    gain_forward[(rows,)](x.contiguous(), present(w), y, s, r, n, K=k, EPS=eps, BLOCK=size)


def backward(dx, dw, g, x, w, r, *, k):
    RAN.append("backward")
    rows, n = x.shape
    size = trident.next_power_of_2(n)
    given = (*(a.contiguous() for a in g), x.contiguous(), present(w), r)
    if dx is not None:
        gain_dx[(rows,)](*given, dx, n, K=k, BLOCK=size)
    if dw is not None:
        gain_dw[(1,)](*given, dw, rows, n, K=k, BLOCK=size)


def backward_dx(dx, g, x, w, r, *, k):
    """A launcher that leaves the gradient of w to the body."""
    backward(dx, None, g, x, w, r, k=k)


def gain(name, **launchers):
    """y = k x w r and s = log(mean((x w)^2) + eps), where r = exp(-s / 2). x (N, D); w (D,)."""

    def body(x, w=None, *, k=1.5, eps=0.1):
        u = x if w is None else x * w
        square = trident.mean(u * u, -1) + eps
        return k * u * trident.rsqrt(square).unsqueeze(-1), trident.log(square)

    body.__name__, body.__doc__ = name, gain.__doc__
    if "forward" in launchers:
        launchers["residuals"] = {"r": lambda x, w, **_: x.shape[:1]}
    op = trident.fused(body, **launchers)

    @op.samples
    def _(draw):
        rows, n = draw.integer(1, 3), draw.integer(1, 5)
        w = draw.choice([None, draw.tensor((n,), low=0.5)])
        # (eps keeps the logarithm away from 0, where the body's roundings of half types would show)
        return (draw.tensor((rows, n)), w), {"k": draw.choice([1.5, -2.0]), "eps": 2.0}

    return op


GAINS = {
    "body": gain("gain_body"),
    "forward": gain("gain_forward_only", forward=forward),
    "both": gain("gain_both", forward=forward, backward=backward),
    "partly": gain("gain_partly", forward=forward, backward=backward_dx),
}


def operands(device, rng, dtype=np.float64, requires_grad=True):
    x, w = rng.standard_normal((3, 4)), rng.uniform(0.5, 2.0, 4)
    return [
        trident.tensor(a.astype(dtype), device=device, requires_grad=requires_grad) for a in (x, w)
    ]


def reference(x, w, k=1.5, eps=0.1):
    u = x * w
    square = (u * u).mean(-1) + eps
    return k * u / np.sqrt(square)[:, None], np.log(square)


def derivatives(op, given):
    """First derivatives of a function of the outputs, and second ones of a function of those."""
    y, s = op(*given)
    first = trident.autograd.grad((y * y * y).sum() + (s * s).sum(), given, create_graph=True)
    return first, trident.autograd.grad(sum((f * f).sum() for f in first), given)


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("with_w", [True, False], ids=["w", "no-w"])
def test_fused_values_and_derivatives(device, rng, name, with_w):
    op = GAINS[name]
    given = operands(device, rng)[: 1 + with_w]
    host = [t.detach().cpu().requires_grad_() for t in given]
    y, s = op(*given, k=-2.0)
    want = reference(*(t.detach()._host() for t in host), *[1.0] * (not with_w), k=-2.0)
    assert_close(y.detach(), want[0], length=4)
    assert_close(s.detach(), want[1], length=4)
    exact = derivatives(GAINS["body"], host)
    for order, (got, want) in enumerate(zip(derivatives(op, given), exact)):
        for i, (a, b) in enumerate(zip(got, want)):
            assert_close(a.detach(), b.detach(), length=64, msg=f"derivative {order + 1}, {i}")
    if device == "cpu":  # elsewhere too slow, and compared with this
        gradcheck(op, given)
        gradgradcheck(op, given)


def test_a_backward_launcher_alone(device, rng):
    ran = []

    def backward(dx, g):
        ran.append("backward")
        add_kernel[1](g.contiguous(), None, dx, 3, SCALE=2)

    op = fused_entry(backward=backward)
    x = trident.tensor(rng.standard_normal(3), device=device, requires_grad=True)
    y = op(x, k=2.0)
    assert_close(y.detach(), 2 * x.detach()._host())
    y.sum().backward()
    assert x.grad.tolist() == [2.0] * 3
    assert ran == ([] if device == "cpu" else ["backward"])


@pytest.mark.parametrize("name", GAINS)
def test_fused_kernels_run_where_they_can(device, rng, name):
    if device == "cpu":
        pytest.skip("launchers run on devices with kernels")
    op, (x, w) = GAINS[name], operands(device, rng)
    RAN.clear()
    with trident.no_grad():
        op(x, w)
    assert took([] if name == "body" else ["forward"])
    y, s = op(x, w)
    (y.sum() + s.sum()).backward()
    recorded = {"body": [], "forward": [], "both": ["forward", "backward"], "partly": ["forward"]}
    assert took(recorded[name])
    x.grad = None
    y, s = op(x, w.detach())
    (y.sum() + s.sum()).backward()
    assert took(["forward", "backward"] if name in ("both", "partly") else [])


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("wanted", ["x", "w", "xw"])
@pytest.mark.parametrize("used", ["y", "s"])
def test_fused_gradients_that_are_wanted(device, rng, name, wanted, used):
    x, w = operands(device, rng)
    x.requires_grad, w.requires_grad = "x" in wanted, "w" in wanted
    results = []
    for op in (GAINS[name], GAINS["body"].op.body):
        y, s = op(x, w)
        loss = ((y * y * y).sum() if "y" in used else 0) + ((s * s).sum() if "s" in used else 0)
        leaves = [t for t in (x, w) if t.requires_grad]
        results.append(trident.autograd.grad(loss, leaves))
    for got, want in zip(*results):
        assert_close(got, want, length=8)


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("dtype", [trident.float16, trident.bfloat16, trident.float32])
def test_fused_dtypes(device, rng, name, dtype):
    x, w = (t.to(dtype).detach().requires_grad_() for t in operands(device, rng, np.float32))
    y, s = GAINS[name](x, w)
    assert y.dtype is dtype and s.dtype is dtype
    want = reference(x.detach()._host().astype("d"), w.detach()._host().astype("d"))
    assert_close(y.detach(), want[0], length=4)
    (y.float().sum() + s.float().sum()).backward()
    assert x.grad.dtype is dtype and w.grad.dtype is dtype
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    sum(t.sum() for t in GAINS["body"](*wide)).backward()
    for got, exact in zip((x, w), wide):
        # the body rounds between its ops, the kernels once
        rough = {} if dtype is trident.float32 else {"rtol": 0.05, "atol": 0.05}
        assert_close(got.grad, exact.grad, length=32, **rough)


@pytest.mark.parametrize("name", GAINS)
def test_fused_ops_pass_their_check(device, name):
    check_op(GAINS[name], devices=[device], examples=2 if device == "cpu" else 1)


def test_fused_saved_operands_are_guarded(device, rng):
    x, w = operands(device, rng)
    doubled = x * 2
    y, s = GAINS["both"](doubled, w)
    with trident.no_grad():
        doubled.add_(1)
    with pytest.raises(AutogradError, match="overwritten by add_"):
        (y.sum() + s.sum()).backward()


@pytest.mark.parametrize("silent", ["forward", "backward"])
def test_check_op_notices_a_launcher_that_writes_nothing(device, silent):
    if device == "cpu":
        pytest.skip("launchers run on devices with kernels")

    def nothing_forward(out, r, x):
        pass

    def nothing_backward(dx, dw, g):
        pass

    launchers = {"forward": forward, "backward": backward}
    launchers[silent] = nothing_forward if silent == "forward" else nothing_backward
    with pytest.raises(AssertionError):
        check_op(gain(f"gain_silent_{silent}", **launchers), devices=["cuda"], examples=2)


def fused_entry(**options):
    def scale(x, w=None, *, k=1.0):
        """k x."""
        return x * k

    return trident.fused(scale, **options)


def test_a_fused_entry_that_cannot_work_is_an_error_where_it_is_made():
    before = REGISTRY.get("scale")
    ok = lambda out, x: None  # noqa: E731
    for make, text in [
        (lambda: fused_entry(forward=lambda out, y: 0), "forward launcher names 'y'; known are "),
        (lambda: fused_entry(forward=lambda x: 0), "no parameter 'out', so the result would stay"),
        (lambda: fused_entry(forward=lambda out, dx: 0), "forward launcher names 'dx'"),
        (lambda: fused_entry(forward=lambda out, **kw: 0), r"must be a plain one; got \*\*kw"),
        (lambda: fused_entry(forward=lambda out, /: 0), "called by the names of its parameters"),
        (lambda: fused_entry(forward=3), "forward must be a function that launches.*got int"),
        (lambda: fused_entry(forward=plus), "forward is a kernel"),
        (lambda: fused_entry(forward=add_kernel), "forward is a kernel"),
        (lambda: fused_entry(forward=ok, backward=lambda g, x: 0), "no gradient to write.*dx, dw"),
        (lambda: fused_entry(forward=ok, backward=lambda dx, r: 0), "backward launcher names 'r'"),
        (lambda: fused_entry(forward=ok, residuals={"r": lambda x, *_, **__: ()}),
         "no parameter 'r', so residual 'r' would stay unwritten"),
        (lambda: fused_entry(residuals={"r": lambda x, *_, **__: ()}), "written by a forward laun"),
        (lambda: fused_entry(forward=ok, residuals={"r": (3,)}), "function that gives its shape"),
        (lambda: fused_entry(forward=ok, residuals={"r": lambda x, **_: ()}),
         r"shape function of residual 'r' .*too many.*\{'r': lambda x, w, \*\*_: x.shape"),
        (lambda: fused_entry(forward=ok, residuals={"r": lambda x, w: ()}), "unexpected keyword"),
        (lambda: fused_entry(forward=ok, residuals={"x": lambda *_, **__: ()}), "name of its own"),
        (lambda: fused_entry(forward=ok, residuals={"dw": lambda *_, **__: ()}), "name of its own"),
        (lambda: fused_entry(dtypes=trident.float32), "dtypes must be a tuple of floating"),
        (lambda: fused_entry(kernel=ok), "unknown option 'kernel'; known are forward, backward"),
        (lambda: trident.fused(lambda *xs: xs[0]), r"named parameters only; got \*xs"),
        (lambda: trident.fused(lambda *, k: k), "at least one positional parameter"),
        (lambda: trident.fused(lambda g: g), "'g' has a name that means something"),
        (lambda: trident.fused(lambda x, dx: x), "'dx' has a name that means something"),
        (lambda: trident.fused(type("scale", (), {})), "decorates a function.*got a type"),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=text):
            make()
    assert REGISTRY.get("scale") is before, "a broken entry is not entered"


# ---- elementwise --------------------------------------------------------------------------------


@trident.elementwise(takes="float", domain=(Interval(0.5, 4.0), Interval(-2.0, 2.0)))
class soft_power:
    """k x^y, for x > 0."""

    def numpy(x, y, *, k=1.0):
        return k * np.exp(y * np.log(x))

    @trident.jit
    def triton(x, y, k: tl.constexpr):
        return k * tl.exp(y * tl.log(x))

    def vjp(g, x, y, out):
        return g * out * y / x, g * out * trident.log(x)


def test_an_elementwise_op_from_outside(device, rng):
    x, y = rng.uniform(0.5, 4.0, (3, 1)), rng.uniform(-2.0, 2.0, 4)
    a, b = (trident.tensor(v, device=device, requires_grad=True) for v in (x, y))
    assert_close(soft_power(a, b, k=2.0).detach(), 2 * x**y)
    assert_close(soft_power(a, 0.5).detach(), np.sqrt(x))
    half = soft_power(a.detach().half(), b.detach().half())
    assert half.dtype is trident.float16
    assert_close(half, a.detach().half()._host().astype("d") ** b.detach().half()._host())
    gradcheck(lambda a, b: soft_power(a, b, k=2.0), (a, b))
    gradgradcheck(lambda a, b: soft_power(a, b, k=2.0), (a, b))
    check_op(soft_power, devices=[device], examples=2)


def test_an_elementwise_op_inside_the_rule_of_another(device, rng):
    @trident.elementwise(takes="float", domain=Interval(0.5, 4.0))
    class own_sqrt:
        """The square root."""

        def numpy(x):
            return np.sqrt(x)

        def triton(x):  # @trident.jit may be left out
            return tl.sqrt(x)

        def vjp(g, x):
            return g * soft_power(x, -0.5, k=0.5)

    x = trident.tensor(rng.uniform(0.5, 4.0, 5), device=device, requires_grad=True)
    assert_close(own_sqrt(x).detach(), np.sqrt(x.detach()._host()))
    gradcheck(own_sqrt, (x,), directions=1)
    gradgradcheck(own_sqrt, (x,))


def entry(name="entry", numpy=lambda x: x, triton=lambda x: x, **rest):
    parts = {"numpy": numpy, "triton": triton, **rest}
    options = parts.pop("options", {})
    body = type(name, (), {k: v for k, v in parts.items() if v is not ...})
    return trident.elementwise(body, **options)


def test_an_elementwise_entry_that_cannot_work_is_an_error_where_it_is_made():
    for make, text in [
        (lambda: entry(numpy=...), "elementwise entry: the entry has no numpy body.*def numpy"),
        (lambda: entry(triton=...), "the entry has no triton body.*@trident.jit"),
        (lambda: entry(numpy=np.exp), "numpy must be a Python function.*got ufunc"),
        (lambda: entry(numpy=lambda *xs: xs), r"numpy takes named parameters only; got \*xs"),
        (lambda: entry(numpy=lambda *, k: k), "numpy needs at least one positional parameter"),
        (lambda: entry(numpy=lambda g: g), "cannot be called g or out; got g"),
        (lambda: entry(triton=3), "triton must be a Python function"),
        (lambda: entry(triton=lambda x, y: x), r"triton must take what numpy takes: \(x\)"),
        (lambda: entry(numpy=lambda x, *, k=1: x), r"\(x, k: tl.constexpr\); got \(x\)"),
        (lambda: entry(vjp=lambda g, y: g), "vjp names 'y', which is no operand; known are g, x"),
        (lambda: entry(vjp=lambda g, *xs: g), "vjp takes named parameters only"),
        (lambda: entry(gradient=lambda g: g), "an entry holds numpy.*; got 'gradient'"),
        (lambda: entry(options={"dtypes": ()}), "unknown option 'dtypes'; known are domain, kinks"),
        (lambda: entry(options={"result": "int"}), "result must be \"same\".*got 'int'"),
        (lambda: entry(options={"takes": "ints"}), "takes must be \"all\".*got 'ints'"),
        (lambda: entry(options={"untyped": ("y",)}), "untyped must be a tuple of operands, of x"),
        (lambda: entry(options={"untyped": "x"}), "untyped must be a tuple of operands"),
        (lambda: entry(options={"domain": (0.0, 1.0)}), "domain must be an Interval, or one for"),
        (lambda: entry(options={"kinks": ["0"]}), "kinks must be numbers"),
        (lambda: trident.elementwise(lambda x: x), "decorates a class.*got a function"),
    ]:
        with pytest.raises(TypeError, match=text):
            make()
    assert "entry" not in REGISTRY, "a broken entry is not entered"


# ---- names --------------------------------------------------------------------------------------


def times(name, factor, module=__name__):
    """An op of that name that multiplies by ``factor``, in the numpy body and in the kernel."""
    source = (
        f"class {name}:\n"
        f"    'times {factor}'\n"
        f"    def numpy(x):\n        return x * {factor}\n"
        f"    @trident.jit\n    def triton(x):\n        return x * {factor}\n"
        f"    def vjp(g):\n        return trident.relu(g) * {factor}\n"
    )
    scope = {"__name__": module, "trident": trident, "tl": tl}
    file = f"<{module} {name} {factor}>"
    import linecache

    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), scope)
    return trident.elementwise(scope[name])


@pytest.fixture
def tables():
    """The registry as it was."""
    kept = dict(REGISTRY), dict(FUNCTIONS)
    yield
    for table, before in zip((REGISTRY, FUNCTIONS), kept):
        table.clear()
        table.update(before)


def test_an_op_that_is_defined_again_replaces_the_old_one(device, tables):
    x = trident.tensor([1.0, -2.0], device=device)
    first = times("again", 2)
    assert first(x).tolist() == [2.0, -4.0]
    second = times("again", 3)
    assert second(x).tolist() == [3.0, -6.0], "the kernel of the old text is not used"
    assert first(x).tolist() == [2.0, -4.0]
    assert REGISTRY["again"] is second.op and FUNCTIONS["again"] is second
    assert registry.ops.again is second
    third = times("again", 4)
    assert registry.ops.again is third


@pytest.mark.parametrize("name", ["relu", "mul", "sum", "clip"])
def test_a_name_of_trident_stays_what_it_is(device, tables, name):
    before = FUNCTIONS[name], REGISTRY.get(name)
    own = times(name, 5)
    assert own.__name__ == name
    assert (FUNCTIONS[name], REGISTRY.get(name)) == before
    assert getattr(trident, name) is before[0] and getattr(trident.ops, name) is before[0]
    assert own.op.name == f"{__name__.replace('.', '_')}_{name}"
    assert REGISTRY[own.op.name] is own.op
    again = times(name, 7)
    assert again.op.name == own.op.name and REGISTRY[own.op.name] is again.op
    x = trident.tensor([1.0, -2.0], device=device, requires_grad=True)
    y = own(x)  # its rule calls trident's relu
    assert y.tolist() == [5.0, -10.0]
    (g,) = trident.autograd.grad(y, x, trident.tensor([2.0, -2.0], device=device))
    assert g.tolist() == [10.0, 0.0]
    assert again(x).tolist() == [7.0, -14.0]
    assert trident.relu(x).tolist() == [1.0, 0.0] and (x * 3).tolist() == [3.0, -6.0]


def test_modules_do_not_take_names_from_each_other(device, tables):
    x = trident.tensor([1.0], device=device)
    first, second = times("shared", 2, "one.ops"), times("shared", 3, "two.ops")
    assert (first.op.name, second.op.name) == ("shared", "two_ops_shared")
    third = times("shared", 4, "two_ops")  # not the module "two.ops"
    assert third.op.name == "two_ops_two_ops_shared"
    assert [f(x).item() for f in (first, second, third)] == [2.0, 3.0, 4.0]
    assert REGISTRY["shared"] is first.op


def test_trident_itself_defines_a_name_once(tables):
    with pytest.raises(TypeError, match=r"op 'relu' is defined by trident.ops.activation already"):
        times("relu", 2, "trident.ops.arithmetic")


def test_composites_from_outside_leave_trident_alone(tables):
    def gelu(x):
        return x

    before = FUNCTIONS["gelu"]
    assert registry.composite(gelu) is gelu
    assert FUNCTIONS["gelu"] is before


# ---- arrays in launchers ------------------------------------------------------------------------


def test_device_arrays_know_torchs_words(device):
    if device == "cpu":
        pytest.skip("CPU tensors hold numpy arrays")
    x = trident.arange(24, device=device).reshape(2, 3, 4)
    for t in (x, x.permute(2, 0, 1), x[:, 1:, ::2], x[0, 0, 0]):
        a = t._data
        assert isinstance(a, DeviceArray)
        assert a.stride() == tuple(t.stride()) == a.strides and a.numel() == t.numel() == a.size
        assert [a.stride(d) for d in range(-a.ndim, a.ndim)] == [*t.stride()] * 2
        c = a.contiguous()
        assert c.is_contiguous() and (c is a) == t.is_contiguous()
        assert np.array_equal(c.numpy(), t._host())
    with pytest.raises(IndexError, match="stride: dim must lie in"):
        x._data.stride(3)


# ---- bodies -------------------------------------------------------------------------------------


def test_a_body_may_use_tensor_methods(device, lab, rng):
    """The shape rule runs the body on symbols: methods, properties and indexing work there."""

    def fill(out, x):
        launches.append(tuple(out.shape))
        add_kernel[(1,)](x.contiguous(), None, out, out.numel(), SCALE=1, BLOCK=64)

    launches = []

    @trident.fused(forward=fill)
    def halves(x):
        """The first half of every row of x, as columns."""
        rows, n = x.size(0), x.shape[-1]
        y = x.view(rows, 2, n // 2).permute(0, 2, 1)[..., 0].T
        return (y.float() + x.sum(-1) * 0).clone().to(x.dtype)

    x = trident.tensor(rng.standard_normal((3, 6)).astype("f"), device=device)
    assert halves(x).shape == (3, 3) and launches == [(3, 3)]


def test_a_body_that_asks_for_values_is_told_so(device, lab):
    def never(out, x):
        raise AssertionError

    @trident.fused(forward=never)
    def branches(x):
        """x, or its opposite."""
        return x if x.sum() > 0 else -x

    @trident.fused(forward=never)
    def reads(x):
        """x times its first element."""
        return x * x[0].item()

    for op in (branches, reads):
        with pytest.raises(AutogradError, match=r"of a symbol.*values are not known"):
            op(trident.ones(3, device=device))


def test_a_result_that_backward_reads_is_guarded(device, rng):
    if device == "cpu":
        pytest.skip("launchers run on devices with kernels")

    @trident.jit
    def load(ptr, i, mask):  # named like what it calls
        return tl.load(ptr + i, mask=mask)

    @trident.kernel(writes=("out_ptr",))
    def times(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        product = load(x_ptr, i, i < n) * load(y_ptr, i, i < n)
        tl.store(out_ptr + i, product, mask=i < n)

    def forward(out, x):
        times[(1,)](x.contiguous(), x.contiguous(), out, x.numel(), BLOCK=8)

    def backward(
        dx, g, out, x
    ):  # d(x^2) = 2 g out / x; the rest is left out: only the guard counts
        times[(1,)](g.contiguous(), out, dx, x.numel(), BLOCK=8)

    @trident.fused(forward=forward, backward=backward)
    def guarded_square(x):
        """x * x. x (N,)."""
        return x * x

    x = trident.tensor(rng.standard_normal(5), device=device, requires_grad=True)
    y = guarded_square(x)
    kept = y * 1.0
    y.detach().mul_(3.0)
    with pytest.raises(AutogradError, match=r"a result, shape .* overwritten by mul_"):
        kept.sum().backward()


def test_shape_rules_are_kept_for_a_bounded_number_of_signatures(device, rng):
    @trident.fused(forward=lambda out, x, *, seed: None)
    def unwritten(x, *, seed):
        """x."""
        return x * 1.0

    from trident.dispatch import _SPECS, fused_spec

    x = trident.tensor(rng.standard_normal(2))._data
    for seed in range(_SPECS + 10):
        assert fused_spec(unwritten.op, (x,), {"seed": seed}).shape == (2,)
    assert len(unwritten.op.infer_cache) <= _SPECS
