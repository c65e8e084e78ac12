"""The kernels of matrix products: every schedule and epilogue by value, how one is chosen, and the
code that comes out for a GPU. ``test_every_op.py`` checks the same ops on random small samples.
"""

from __future__ import annotations

import importlib
import itertools
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

import trident
from trident import config, dtypes, runtime, shapes
from trident.errors import DTypeError
from trident.ops.matmul import _device_function
from trident.runtime.aot import AotDevice
from trident.runtime.tuning import Config
from trident.testing.cases import gpu_tiles

# the modules themselves: ``from trident.kernels import matmul`` gives a stand-in
configs, matmul, common, family, split, tma = (
    importlib.import_module(f"trident.kernels.{name}")
    for name in ("configs", "matmul", "matmul_common", "matmul_family", "matmul_split",
                 "matmul_tma")
)  # fmt: skip
RELU, TANH = _device_function("relu"), _device_function("tanh")
SPLIT, TMA, WIDE, TMA_SPLIT = configs.tunable()["matmul"].trials
GROUPED = SPLIT.replace(SPLIT_K=1)
PERSISTENT = GROUPED.replace(SCHEDULE="persistent")
TRIALS = [GROUPED, SPLIT, PERSISTENT, TMA, WIDE, TMA_SPLIT]
NAMES = ["grouped", "split", "persistent", "tma", "wide", "tma-split"]

needs_kernels = pytest.mark.usefixtures("kernels")
not_interpreted = pytest.mark.skipif(config.INTERPRET, reason="compiles for GPUs")


@pytest.fixture
def kernels(device):
    if device != "cuda":
        pytest.skip("for the cuda device")


def random(rng, shape, d=dtypes.float32):
    return rng.standard_normal(shape).astype(d.np)


def put(a: np.ndarray, turn: bool = False) -> runtime.DeviceArray:
    """``a`` on the device, its last two axes in the other order in memory if ``turn``."""
    if not turn:
        return runtime.current().from_host(np.ascontiguousarray(a))
    x = runtime.current().from_host(np.ascontiguousarray(a.swapaxes(-1, -2)))
    return x.swapaxes(-1, -2)


def run(a, b, *, turn=(False, False), **more) -> np.ndarray:
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    d = dtypes.from_numpy(a.dtype)
    out = runtime.current().empty((*batch, a.shape[-2], b.shape[-1]), d)
    more = {k: put(v) if isinstance(v, np.ndarray) else v for k, v in more.items()}
    matmul.matmul(out, put(a, turn[0]), put(b, turn[1]), **more)
    return out.numpy()


def close(got: np.ndarray, want: np.ndarray, k: int) -> None:
    d = dtypes.from_numpy(got.dtype)
    eps = float(dtypes.finfo(d.compute).eps)
    rounding = 0.51 * float(dtypes.finfo(d).eps) if d in dtypes.HALVES else 0.0
    bound = 4 * eps * np.sqrt(max(k, 1)) * np.abs(want).max(initial=1.0)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=rounding, atol=bound)


def wide(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(a.astype(np.float64) for a in arrays)


@contextmanager
def launches():
    """Counts the launches of each kernel inside."""
    device, found = runtime.current(), Counter()
    plain = type(device).launch

    def launch(self, kernel, *rest):
        found[kernel.name] += 1
        return plain(self, kernel, *rest)

    device.launch = launch.__get__(device)
    try:
        yield found
    finally:
        del device.launch


# ---- schedules ----------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("turn", [*itertools.product((False, True), repeat=2)], ids=str)
@pytest.mark.parametrize("trial", TRIALS, ids=NAMES)
def test_values(rng, trial, turn):
    for m, n, k in ((48, 40, 64), (33, 37, 45), (17, 130, 8), (24, 64, 200)):
        a, b = random(rng, (m, k)), random(rng, (k, n))
        with configs.using({"matmul": trial}):
            close(run(a, b, turn=turn), np.matmul(*wide(a, b)), k)


@needs_kernels
@pytest.mark.parametrize("d", [dtypes.float16, dtypes.bfloat16, dtypes.float64], ids=str)
@pytest.mark.parametrize("trial", TRIALS, ids=NAMES)
def test_other_dtypes(rng, trial, d):
    a, b = random(rng, (40, 72), d), random(rng, (72, 48), d)
    with configs.using({"matmul": trial}):
        close(run(a, b, turn=(False, True)), np.matmul(*wide(a, b)), 72)


@needs_kernels
@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 24, 40), (3, 40, 24)), ((2, 3, 24, 40), (2, 3, 40, 24)), ((2, 1, 24, 40), (3, 40, 24)),
        ((3, 24, 40), (40, 24)), ((24, 40), (3, 40, 24)), ((2, 1, 2, 1, 24, 32), (2, 1, 2, 32, 24)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("trial", TRIALS, ids=NAMES)
def test_batches(rng, trial, a, b):
    a, b = random(rng, a), random(rng, b)
    with configs.using({"matmul": trial}):
        close(run(a, b), np.matmul(*wide(a, b)), 40)


@needs_kernels
def test_batches_in_another_order_of_memory(rng):
    """(batch, row, head) memory read as (batch, head, row): strides that do not go down."""
    x = random(rng, (2, 24, 3, 32))
    a, b = x.transpose(0, 2, 1, 3), x.transpose(0, 2, 3, 1)
    memory = runtime.current().from_host(x)
    for trial in TRIALS:
        out = runtime.current().empty((2, 3, 24, 24), dtypes.float32)
        with configs.using({"matmul": trial}):
            matmul.matmul(out, memory.transpose((0, 2, 1, 3)), memory.transpose((0, 2, 3, 1)))
        close(out.numpy(), np.matmul(*wide(a, b)), 32)


@needs_kernels
@pytest.mark.parametrize("trial", [GROUPED, SPLIT, TMA, TMA_SPLIT], ids=str)
def test_nothing_to_add_up(trial):
    with configs.using({"matmul": trial, "matmul_thin": Config(
        BLOCK_M=2, BLOCK_N=2, BLOCK_K=2, SPLIT_K=3)}):  # fmt: skip
        for m, n in ((20, 24), (1, 24)):
            got = run(np.zeros((m, 0), np.float32), np.zeros((0, n), np.float32))
            assert got.shape == (m, n) and not got.any()


@needs_kernels
@pytest.mark.parametrize("trial", TRIALS, ids=NAMES)
def test_offsets_of_64_bits(rng, monkeypatch, trial):
    """The same numbers where offsets would not fit into 32 bits."""
    monkeypatch.setattr(shapes, "needs_int64", lambda *arrays: True)
    a, b, c = random(rng, (2, 40, 48)), random(rng, (2, 48, 32)), random(rng, (2, 40, 32))
    with configs.using({"matmul": trial}):
        got = run(a, b, c=c, bias=c[0, 0], act=TANH)
    wa, wb, wc = wide(a, b, c)
    close(got, np.tanh(wa @ wb + wc + wc[0, 0]), 48)


@needs_kernels
def test_which_kernel_runs(rng):
    a, b = random(rng, (40, 64)), random(rng, (64, 48))
    odd = random(rng, (64, 37))

    def kernels_of(trial, a, b, **more):
        with configs.using({"matmul": trial}), launches() as found:
            run(a, b, **more)
        return dict(found)

    assert kernels_of(GROUPED, a, b) == {"tiled_kernel": 1}
    assert kernels_of(SPLIT, a, b) == {"tiled_kernel": 1, "combine_kernel": 1}
    assert kernels_of(TMA, a, b) == {"tma_kernel": 1}
    assert kernels_of(TMA, a, b, turn=(True, True)) == {"tma_kernel": 1}
    assert kernels_of(TMA_SPLIT, a, b) == {"tma_kernel": 1, "combine_kernel": 1}
    assert kernels_of(TMA, a, odd) == {"tiled_kernel": 1}  # rows that are not 16 bytes apart
    assert kernels_of(SPLIT, a[:, :16], b[:16]) == {"tiled_kernel": 1}  # one block of k
    assert kernels_of(GROUPED, a[:3], b) == {"thin_kernel": 1}


@needs_kernels
def test_persistent_programs_share_the_tiles(rng):
    """Two programs, more tiles than that: each walks over several."""
    device = runtime.current()
    seen = []
    plain = type(device).launch

    def launch(kernel, grid, *rest):
        seen.append(grid)
        return plain(device, kernel, grid, *rest)

    device.launch = launch
    try:
        for trial in (PERSISTENT, TMA):
            with configs.using({"matmul": trial}):
                run(random(rng, (64, 32)), random(rng, (32, 64)))
    finally:
        del device.launch
    assert seen == [(device.multiprocessors,)] * 2 and device.multiprocessors > 1


# ---- epilogues ----------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("trial", TRIALS, ids=NAMES)
def test_epilogue(rng, trial):
    m, n, k = 40, 72, 64
    a, b, c = random(rng, (m, k)), random(rng, (k, n)), random(rng, (m, n))
    row, column = random(rng, (n,)), random(rng, (m, 1))
    wa, wb, wc, wrow, wcolumn = wide(a, b, c, row, column)
    product = wa @ wb
    cases = [
        ({"bias": row}, product + wrow),
        ({"bias": column}, product + wcolumn),
        ({"bias": row, "act": RELU}, np.maximum(product + wrow, 0)),
        ({"act": TANH}, np.tanh(product)),
        ({"c": c}, product + wc),
        ({"c": row, "beta": 0.25}, product + 0.25 * wrow),
        ({"c": c, "alpha": -1.5, "beta": 0.25}, -1.5 * product + 0.25 * wc),
        ({"alpha": 2.0, "bias": column, "c": c, "act": TANH},
         np.tanh(2 * product + wcolumn + wc)),
    ]  # fmt: skip
    with configs.using({"matmul": trial}):
        for more, want in cases:
            close(run(a, b, **more), want, k)


@needs_kernels
@pytest.mark.parametrize("trial", [None, *TRIALS], ids=["default", *NAMES])
def test_epilogue_of_batches(rng, trial):
    a, b = random(rng, (2, 3, 24, 40)), random(rng, (3, 40, 32))
    for shape in ((2, 3, 24, 32), (3, 24, 32), (2, 1, 24, 32), (24, 1), ()):
        c = random(rng, shape)
        wa, wb, wc = wide(a, b, np.asarray(c))
        with configs.using({} if trial is None else {"matmul": trial}):
            got = run(a, b, c=np.asarray(c), alpha=0.5, beta=2.0)
        close(got, 0.5 * (wa @ wb) + 2 * wc, 40)


@needs_kernels
@pytest.mark.parametrize("m", [1, 3, 40])
def test_epilogue_of_few_columns(rng, m):
    """Transposed on the way: bias and c turn round with the result."""
    a, b, c = random(rng, (m, 30)), random(rng, (30, 2)), random(rng, (m, 2))
    row, column = random(rng, (2,)), random(rng, (m, 1))
    wa, wb, wc, wrow, wcolumn = wide(a, b, c, row, column)
    for splits in (1, 3):
        tile = Config(BLOCK_M=2, BLOCK_N=4, BLOCK_K=4, SPLIT_K=splits)
        with configs.using({"matmul_thin": tile}):
            close(run(a, b, bias=row, c=c, beta=0.5), wa @ wb + wrow + 0.5 * wc, 30)
            close(run(a, b, bias=column, act=TANH), np.tanh(wa @ wb + wcolumn), 30)


@needs_kernels
@pytest.mark.parametrize("trial", TRIALS, ids=NAMES)
def test_scalars_of_float64_keep_their_digits(rng, trial):
    a, b, c = (random(rng, s, dtypes.float64) for s in ((24, 16), (16, 32), (24, 32)))
    with configs.using({"matmul": trial}):
        got = run(a, b, c=c, alpha=0.1, beta=1 / 3)
    np.testing.assert_allclose(got, 0.1 * (a @ b) + c / 3, rtol=1e-13, atol=1e-14)


@needs_kernels
@pytest.mark.parametrize("trial", TRIALS, ids=NAMES)
def test_half_types_are_rounded_once_and_before_an_activation(rng, trial):
    """What is added is added to the accumulator; an activation sees the rounded sum."""
    d = dtypes.bfloat16
    a, b, c = random(rng, (24, 32), d), random(rng, (32, 32), d), random(rng, (24, 32), d)
    bias = random(rng, (32,), d)
    f = np.float32
    total = a.astype(f) @ b.astype(f) * f(0.3) + c.astype(f) * f(0.7) + bias.astype(f)
    with configs.using({"matmul": trial}):
        more = {"c": c, "bias": bias, "alpha": 0.3, "beta": 0.7}
        once = run(a, b, **more)
        fused = run(a, b, **more, act=TANH)
    same = once == total.astype(d.np)
    assert same.mean() > 0.99  # sums in another order fall on the other side now and then
    close(once, total.astype(np.float64), 32)
    np.testing.assert_allclose(
        fused.astype(f), np.tanh(once.astype(f)).astype(d.np).astype(f), rtol=2**-8
    )


# ---- chunks of k --------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("trial", [SPLIT, TMA_SPLIT], ids=["grouped", "tma"])
@pytest.mark.parametrize("k", [40, 48, 200])
def test_chunks_give_the_same_bits_every_time(rng, trial, k):
    """Whatever the order in which programs run, also from the last to the first."""
    a, b = random(rng, (24, k)), random(rng, (k, 32))
    with configs.using({"matmul": trial}):
        first = run(a, b)
        assert first.tobytes() == run(a, b).tobytes()
        with gpu_tiles():
            assert first.tobytes() == run(a, b).tobytes()
    close(first, np.matmul(*wide(a, b)), k)


@needs_kernels
@pytest.mark.parametrize("splits", [2, 3, 7, 50])
def test_any_number_of_chunks(rng, splits):
    a, b, c = random(rng, (3, 20, 77)), random(rng, (3, 77, 24)), random(rng, (3, 20, 24))
    wa, wb, wc = wide(a, b, c)
    with configs.using({"matmul": GROUPED.replace(SPLIT_K=splits)}), launches() as found:
        close(run(a, b, c=c, act=RELU), np.maximum(wa @ wb + wc, 0), 77)
    assert found == {"tiled_kernel": 1, "combine_kernel": 1}


@needs_kernels
def test_chunks_of_integers_wrap_as_a_whole(rng):
    a = rng.integers(-100, 100, (2, 50)).astype(np.int8)
    b = rng.integers(-100, 100, (50, 3)).astype(np.int8)
    with configs.using({"matmul_thin": Config(BLOCK_M=2, BLOCK_N=2, BLOCK_K=4, SPLIT_K=4)}):
        got = run(a, b)
    np.testing.assert_array_equal(got, (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int8))


def test_how_many_chunks():
    tile = configs.rules("matmul", "sm_90", "half")[0].config
    sizes = {"batches": 1, "described": 1, "heavy": 0}

    def chunks(m, n, k):
        return family.chunks("sm_90", "half", sizes | {"m": m, "n": n, "k": k}, tile)

    assert chunks(8192, 8192, 8192) == 1  # enough tiles
    assert chunks(1024, 1024, 65536) == 4  # 32 tiles for 132 multiprocessors
    assert chunks(1024, 1024, 1024) == 1  # not worth a second launch
    assert family.chunks("sm_90", "half", sizes | {"m": 8192, "n": 8192, "k": 8192},
                         tile.replace(SPLIT_K=5)) == 5  # as the configuration says  # fmt: skip


# ---- tensor descriptors -------------------------------------------------------------------------


def problem(a, b, out=None, **more):
    device = a.device
    out = out or device.empty((*a.shape[:2], a.shape[2], b.shape[3]), a.dtype)
    return common.Problem(out, a, b, **more)


def test_what_can_be_described():
    device = AotDevice("sm_90")

    def new(*shape):
        return device.empty(shape, dtypes.bfloat16)

    a, b = new(2, 3, 64, 32), new(2, 3, 32, 48)
    assert tma.fits(problem(a, b))
    assert tma.fits(problem(a, new(2, 3, 48, 32).transpose((0, 1, 3, 2))))
    assert tma.fits(problem(a.transpose((0, 1, 3, 2)), new(2, 3, 64, 48)))
    assert tma.fits(problem(a, b.as_strided(b.shape, (0, 0, 48, 1))))  # one b for all
    wide = new(1, 1, 64, 64)
    assert tma.fits(problem(wide.as_strided((1, 1, 64, 32), wide.strides, 8), new(1, 1, 32, 48)))
    for bad in (
        problem(wide.as_strided((1, 1, 64, 32), wide.strides, 4), new(1, 1, 32, 48)),  # 8 bytes off
        problem(a, new(2, 3, 32, 44)),  # rows of 88 bytes
        problem(a.as_strided((2, 3, 32, 32), (6144, 2048, 64, 2)), b),  # no stride of 1
        problem(a.as_strided(a.shape, (*a.strides[:2], 0, 1)), b),  # rows that are all the same
        problem(new(1, 1, 64, 0), new(1, 1, 0, 48)),
    ):
        assert not tma.fits(bad)


def test_tf32_takes_descriptors_where_both_operands_lie_in_rows_of_k():
    device = AotDevice("sm_90")
    a, b = (
        device.empty((1, 1, 64, 32), dtypes.float32),
        device.empty((1, 1, 48, 32), dtypes.float32),
    )
    turned = b.transpose((0, 1, 3, 2))
    assert not tma.pays(problem(a, turned))  # IEEE products need no tensor cores
    token = config.matmul_precision.set("high")
    try:
        assert tma.pays(problem(a, turned))
        assert not tma.pays(problem(a, device.empty((1, 1, 32, 48), dtypes.float32)))
    finally:
        config.matmul_precision.reset(token)


def test_stages_make_room():
    device = AotDevice("sm_90")
    tile = configs.rules("matmul", "sm_90", "half")[0].config
    a, b = (device.empty((1, 1, 512, 512), dtypes.bfloat16) for _ in range(2))
    c = device.empty((1, 1, 512, 512), dtypes.bfloat16)
    part = device.empty((1, 1, 512, 512), dtypes.float32)
    assert tma.stages(problem(a, b), tile) == 4
    assert tma.stages(problem(a, b, c=c), tile) == 3
    assert tma.stages(problem(a, b, out=part), tile) == 3
    assert tma.stages(problem(a, b), tile.replace(num_stages=2)) == 2


# ---- addmm and baddbmm --------------------------------------------------------------------------


def test_addmm(device, rng):
    c, a, b = random(rng, (5, 6)), random(rng, (5, 4)), random(rng, (4, 6))
    t = lambda x: trident.tensor(x, device=device)  # noqa: E731
    for added in (c, c[0], c[:, :1], c[0, 0]):
        got = trident.addmm(t(added), t(a), t(b), beta=0.5, alpha=-2).cpu().numpy()
        np.testing.assert_allclose(got, 0.5 * added - 2 * (a @ b), rtol=1e-5, atol=1e-5)
    got = trident.baddbmm(t(c), t(a[None]), t(b[None])).cpu().numpy()
    np.testing.assert_allclose(got, (c + a @ b)[None], rtol=1e-5, atol=1e-5)


def test_addmm_with_beta_0_does_not_look_at_input(device):
    nan = trident.full((2, 2), float("nan"), device=device)
    x = trident.ones(2, 2, device=device)
    assert trident.addmm(nan, x, x, beta=0).tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_addmm_of_integers(device):
    x = trident.tensor([[1, 2], [3, 4]], device=device)
    assert trident.addmm(x, x, x, beta=2, alpha=3).tolist() == [[23, 34], [51, 74]]
    with pytest.raises(DTypeError, match="addmm: alpha must be an int for int64 operands"):
        trident.addmm(x, x, x, alpha=0.5)


def test_addmm_errors(device):
    x, y = trident.ones(2, 3, device=device), trident.ones(3, 4, device=device)
    with pytest.raises(ValueError, match=r"input must broadcast to \(2, 4\).*got \(5,\)"):
        trident.addmm(trident.ones(5, device=device), x, y)
    with pytest.raises(ValueError, match=r"input must broadcast to \(2, 4\)"):
        trident.addmm(trident.ones(7, 2, 4, device=device), x, y)
    with pytest.raises(ValueError, match="mat2 must have 2 axes"):
        trident.addmm(x, x, y[None])
    with pytest.raises(ValueError, match="batch1 and batch2 must have one batch size"):
        trident.baddbmm(
            x, trident.ones(2, 2, 3, device=device), trident.ones(1, 3, 4, device=device)
        )
    with pytest.raises(DTypeError, match="operands must have one dtype"):
        trident.addmm(trident.ones(4, device=device).double(), x, y)


# ---- configurations -----------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder of tuning results."""
    monkeypatch.setattr(config, "CACHE", str(tmp_path))
    configs.forget()
    yield tmp_path
    configs.forget()


SIZES = {"batches": 1, "m": 1000, "n": 1000, "k": 1000, "described": 1, "heavy": 0}
ROUNDED = SIZES | {"m": 1024, "n": 1024, "k": 1024}


class Gpu(AotDevice):
    """Stands for a GPU that only takes launches."""


def tuned(favourite: Config, **more):
    """Tune ``SIZES`` on a clock that likes one configuration."""
    measured = []

    def clock(run):
        return 1.0 if configs.forced("matmul") == favourite else 2.0

    chosen = configs.tune(
        "matmul", Gpu("sm_90"), clock, measured.append, kinds=["half"], problems=[SIZES], **more
    )
    return chosen[0], measured


def test_a_tuned_choice_holds_for_sizes_that_round_alike(cache):
    device = Gpu("sm_90")
    place = configs.Place("sm_90", "half", ROUNDED)
    default = configs.pick("matmul", device, dtypes.bfloat16, SIZES)
    assert default == configs.default("matmul", configs.Place("sm_90", "half", SIZES))
    best = [c for c in family.tiles_of(place) if c != default][3]
    chosen, measured = tuned(best)
    assert (chosen.config, chosen.default) == (best, default)
    assert {m.config for m in measured} >= {best, default} and min(m.seconds for m in measured) == 1
    assert configs.pick("matmul", device, dtypes.bfloat16, SIZES) == best
    assert configs.pick("matmul", device, dtypes.float16, ROUNDED) == best
    assert configs.pick("matmul", device, dtypes.bfloat16, SIZES | {"k": 1025}) != best
    assert configs.pick("matmul", Gpu("sm_80"), dtypes.bfloat16, SIZES) != best
    again, measured = tuned(default)
    assert again.config == best and not measured  # kept
    again, measured = tuned(default, again=True)
    assert again.config == default and measured


def test_deterministic_mode_uses_the_shipped_choice(cache):
    device = Gpu("sm_90")
    default = configs.pick("matmul", device, dtypes.bfloat16, SIZES)
    best = next(c for c in family.tiles_of(configs.Place("sm_90", "half", ROUNDED)) if c != default)
    tuned(best)
    assert not trident.are_deterministic_algorithms_enabled()
    trident.use_deterministic_algorithms(True)
    try:
        assert trident.are_deterministic_algorithms_enabled()
        assert configs.pick("matmul", device, dtypes.bfloat16, SIZES) == default
    finally:
        trident.use_deterministic_algorithms(False)
    assert configs.pick("matmul", device, dtypes.bfloat16, SIZES) == best
    with pytest.raises(TypeError, match="mode must be True or False"):
        trident.use_deterministic_algorithms(1)


def test_an_edited_kernel_forgets_its_tuning(cache, monkeypatch):
    device = Gpu("sm_90")
    default = configs.pick("matmul", device, dtypes.bfloat16, SIZES)
    best = next(c for c in family.tiles_of(configs.Place("sm_90", "half", ROUNDED)) if c != default)
    tuned(best)
    monkeypatch.setattr(configs.tuning, "fingerprint", lambda kernel: "another text")
    configs.forget()
    assert configs.pick("matmul", device, dtypes.bfloat16, SIZES) == default


def test_a_configuration_that_fails_is_not_chosen(cache):
    default = configs.default("matmul", configs.Place("sm_90", "half", ROUNDED))
    measured = []

    def clock(run):
        if configs.forced("matmul") == default:
            raise MemoryError("too much shared memory")
        return 1.0

    (chosen,) = configs.tune(
        "matmul", Gpu("sm_90"), clock, measured.append, kinds=["half"], problems=[SIZES]
    )
    assert chosen.config != default
    failed = [m for m in measured if m.seconds is None]
    assert [m.config for m in failed] == [default] and "shared memory" in failed[0].error


def test_tuning_launches_what_it_measures(cache):
    """``rehearse`` makes a product of the sizes that are asked for, launched with the candidate."""
    device, grids = Gpu("sm_90"), []

    def clock(run):
        device.seen.clear()
        run()
        (spec, *_) = device.seen
        grids.append((configs.forced("matmul"), spec))
        return 1.0

    configs.tune("matmul", device, clock, kinds=["half", "tf32"], problems=[SIZES])
    assert len(grids) > 10
    for chosen, spec in grids:
        constants = {spec.signature[i][0]: v for (i,), v in spec.constants}
        assert spec.kernel.name == ("tma_kernel" if chosen.constants["SCHEDULE"] == "tma" else
                                    "tiled_kernel")  # fmt: skip
        assert constants["BLOCK_M"] == chosen.constants["BLOCK_M"]


def test_tune_errors(cache):
    device = Gpu("sm_90")
    with pytest.raises(ValueError, match=r"tune: the families are .*matmul, matmul_thin"):
        configs.tune("matmull", device)
    with pytest.raises(ValueError, match="kind must be one of half, tf32, single, double"):
        configs.tune("matmul", device, kinds=["fp8"])
    with pytest.raises(ValueError, match="a problem of matmul has the sizes batches, m, n, k"):
        configs.tune("matmul", device, problems=[{"m": 3}])
    host = runtime.device.host_device()
    with pytest.raises(ValueError, match="the device must be a GPU"):
        configs.tune("matmul", host)


@pytest.mark.parametrize("name", ["matmul", "matmul_thin"])
def test_every_architecture_has_a_default_for_every_size(name):
    found = configs.tunable()[name]
    grid = itertools.product(
        (1, 64), (1, 5, 33, 4096), (1, 40, 8192), (0, 16, 65536), (0, 1), (0, 1)
    )
    for values in grid:
        sizes = dict(zip(("batches", "m", "n", "k"), values))
        sizes |= {n: v for n, v in zip(("described", "heavy"), values[4:]) if n in found.sizes}
        sizes |= {"along_k": values[4]} if "along_k" in found.sizes else {}
        for architecture, kind in itertools.product(
            ("sm_80", "sm_89", "sm_90", "sm_103"), found.kinds
        ):
            chosen = configs.default(name, configs.Place(architecture, kind, sizes))
            assert chosen.constants.get("SCHEDULE") != "tma" or (
                sizes["described"] and architecture in ("sm_90", "sm_103")
            )


def test_shipped_tiles_fit_into_shared_memory():
    size = {"half": 2, "tf32": 4, "single": 4, "double": 8}
    for table, kind in itertools.product(configs.SHARED, size):
        for rule in configs.rules("matmul", table, kind):
            tile = rule.config
            m, n, k = (tile.constants[f"BLOCK_{axis}"] for axis in "MNK")
            stages = tile.num_stages - (tile.constants["SCHEDULE"] == "grouped" and table == "any")
            assert (m + n) * k * size[kind] * stages <= configs.SHARED[table], (table, rule)
            assert 0 < rule.rate <= 1


def test_parts_without_a_table_of_their_own():
    assert configs.table_name("sm_103") == "sm_100" and configs.table_name("sm_87") == "sm_80"
    # as much shared memory as these have is not promised by their name
    assert {configs.table_name(a) for a in ("sm_86", "sm_89", "sm_120", "gfx942", "host")} == {
        "any"
    }


def test_forcing_is_for_one_block():
    assert configs.forced("matmul") is None
    with configs.using({"matmul": GROUPED}):
        with configs.using({"conv": WIDE}):
            assert configs.forced("matmul") == GROUPED and configs.forced("conv") == WIDE
        assert configs.forced("conv") is None
    assert configs.forced("matmul") is None


# ---- the code for a GPU -------------------------------------------------------------------------


def compiled(target: str, call, kernel: str) -> dict:
    """Resources of the one ``kernel`` that ``call(device)`` launches as on ``target``."""
    pytest.importorskip("triton")
    from trident.testing.resources import measure

    device = AotDevice(target)
    with runtime.use(device):
        call(device)
    (spec,) = [s for s in device.seen if s.kernel.name == kernel]
    row = measure(spec, target)
    assert "error" not in row, row
    limit = configs.SHARED.get(target, configs.SHARED["any"])
    assert row["spills"] == 0 and row["shared"] <= limit, row
    return row


def product(m, n, k, d=dtypes.bfloat16, turn=(False, False), batch=(), **more):
    def call(device):
        a = device.empty((*batch, k, m) if turn[0] else (*batch, m, k), d)
        b = device.empty((*batch, n, k) if turn[1] else (*batch, k, n), d)
        a, b = (x.swapaxes(-1, -2) if t else x for x, t in zip((a, b), turn))
        given = dict(more)
        for name in ("bias", "c"):
            if name in given:
                given[name] = device.empty(given[name], d)
        matmul.matmul(device.empty((*batch, m, n), d), a, b, **given)

    return call


HOPPER = {
    "plain": product(4096, 4096, 4096),
    "a.T b.T": product(4096, 4096, 4096, turn=(True, True)),
    "batches": product(512, 512, 64, batch=(64,)),
    "gelu": product(4096, 4096, 4096, bias=(4096,), act=_device_function("gelu")),
    "relu": product(4096, 4096, 4096, bias=(4096,), act=RELU),
    "c": product(4096, 4096, 4096, c=(4096, 4096), alpha=2.0, beta=3.0),
    "chunks": product(1024, 1024, 65536),
}


@not_interpreted
@pytest.mark.parametrize("name", HOPPER)
def test_hopper_gets_descriptors_and_wgmma(name):
    row = compiled("sm_90", HOPPER[name], "tma_kernel")
    assert row["wgmma"] > 0 and row["tma"] > 0, row
    assert row["load16"] >= 2 and row["store16"] >= 1, row


@not_interpreted
def test_blackwell_gets_descriptors_and_tensor_memory():
    row = compiled("sm_100", product(4096, 4096, 4096), "tma_kernel")
    assert row["tcgen05"] > 0 and row["tma"] > 0, row


@not_interpreted
@pytest.mark.parametrize("target, cores", [("sm_80", "mma.sync"), ("gfx942", "mfma")])
def test_others_get_their_tensor_cores(target, cores):
    row = compiled(target, product(4096, 4096, 4096), "tiled_kernel")
    assert row[cores] > 0, row
    assert target != "sm_80" or row["load16"] == row["load"] > 0, row


@not_interpreted
def test_rows_that_are_not_aligned_still_get_wgmma():
    row = compiled("sm_90", product(4096, 4095, 4096), "tiled_kernel")
    assert row["wgmma"] > 0 and row["tma"] == 0, row


@not_interpreted
def test_float32_and_float64():
    rows = {}
    for d in (dtypes.float32, dtypes.float64):
        rows[d] = compiled("sm_90", product(2048, 2048, 2048, d), "tiled_kernel")
    assert rows[dtypes.float32]["wgmma"] == rows[dtypes.float32]["mma.sync"] == 0  # IEEE
    assert rows[dtypes.float64]["mma.sync"] > 0
    token = config.matmul_precision.set("high")
    try:
        linear = product(2048, 2048, 2048, dtypes.float32, turn=(False, True))
        row = compiled("sm_90", linear, "tma_kernel")
        plain = compiled("sm_90", product(2048, 2048, 2048, dtypes.float32), "tiled_kernel")
    finally:
        config.matmul_precision.reset(token)
    assert row["wgmma"] > 0 and plain["wgmma"] > 0


@not_interpreted
@pytest.mark.parametrize("target, halves", [("sm_90", False), ("sm_100", True)])
def test_warps_are_specialised_where_they_are_asked_to(target, halves):
    """``num_warps`` of the binary grows by the warps that only fetch."""
    pytest.importorskip("triton")
    warps = 4 if target == "sm_90" else 8
    tile = Config(SCHEDULE="tma", BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, GROUP_M=8, SPLIT_K=1,
                  HALVES=halves, WARP_SPECIALIZE=True, num_warps=warps)  # fmt: skip
    device = AotDevice(target)
    with configs.using({"matmul": tile}):
        product(4096, 4096, 4096)(device)
    (spec,) = device.seen
    binary = spec.compile(target)
    assert "setmaxnreg" in binary.asm["ptx"] and binary.metadata.num_warps > warps


@not_interpreted
@pytest.mark.parametrize("turn", [False, True], ids=["rows of n", "rows of k"])
def test_matrix_times_vector_reads_vectors(turn):
    row = compiled("sm_90", product(1, 4096, 4096, turn=(False, turn)), "thin_kernel")
    assert row["load16"] > 1 and row["load"] - row["load16"] <= 1, row


@pytest.mark.parametrize("m, n", [(5, 1), (1, 5), (1, 1), (5, 6)])
def test_an_addend_of_one_column_or_row(device, rng, m, n):
    """(m, 1) is one number a row, also where the product has one column itself."""
    a = rng.standard_normal((m, 3)).astype(np.float32)
    b = rng.standard_normal((3, n)).astype(np.float32)
    on = lambda x: trident.tensor(x, device=device)  # noqa: E731
    for shape in {(m, 1), (1, n), (n,), (1, 1), (m, n)}:
        c = rng.standard_normal(shape).astype(np.float32)
        got = trident.addmm(on(c), on(a), on(b))
        trident.testing.assert_close(got, c + a @ b, length=4)
