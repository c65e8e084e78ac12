"""Row kernels at the sizes of a GPU: long rows, shared rows, vector accesses, fixed programs; and
what optimizers and table look-ups launch."""

from __future__ import annotations

import re

import numpy as np
import pytest

import trident
from trident import config, dtypes, runtime
from trident.kernels import rows
from trident.kernels.rows import layout, tiled, whole
from trident.lang import has_triton
from trident.nn import functional as F
from trident.runtime.aot import AotDevice
from trident.testing.cases import gpu_tiles

compiles = pytest.mark.skipif(
    config.INTERPRET or not has_triton(), reason="compiles, which the interpreter's process cannot"
)


def get(t):
    return t.detach().cpu().numpy()


def on_gpu_tiles(device, function, *arrays, g=None):
    """The result of ``function`` and its gradients, with the tiles that a GPU would get."""
    context = gpu_tiles() if device == "cuda" else trident.enable_grad()
    with context:
        leaves = [trident.tensor(a, device=device) for a in arrays]
        for leaf in leaves:
            leaf.requires_grad = True
        out = function(*leaves)
        out.backward(trident.tensor(g if g is not None else np.ones(out.shape), device=device))
        return [get(out), *(get(leaf.grad) for leaf in leaves)]


def compare(device, function, *arrays, shape=None, rng=None, rtol=1e-5):
    """On the device with a GPU's tiles, against the CPU."""
    g = rng.standard_normal(shape)
    found = on_gpu_tiles(device, function, *arrays, g=g)
    with trident.enable_grad():
        expected = on_gpu_tiles("cpu", function, *arrays, g=g)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-9)


# ---- values -------------------------------------------------------------------------------------

LONG = {  # (rows, columns): float64 rows of up to 8192 are held by one program
    "whole": (3, 1000), "shared": (2, 8400), "odd": (3, 8201), "many": (9, 8260),
}  # fmt: skip


@pytest.mark.parametrize("shape", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_softmax_of_long_rows(device, rng, name, shape):
    x = rng.standard_normal(shape)
    x[0, 5] = 80.0
    x[1] = -600.0 + x[1]

    def function(t):
        return t.logsumexp(1) if name == "logsumexp" else getattr(F, name)(t, -1)

    compare(device, function, x, shape=shape[:1] if name == "logsumexp" else shape, rng=rng)


def test_infinite_rows_that_are_shared(device):
    x = np.zeros((4, 8201))
    x[0, 9] = np.inf
    x[1] = -np.inf
    x[2, 3] = np.nan
    x[3, :8200] = -np.inf
    with gpu_tiles() if device == "cuda" else trident.no_grad():
        t = trident.tensor(x, device=device)
        out, lse = get(F.softmax(t, -1)), get(t.logsumexp(1))
    assert np.isnan(out[:3]).all()
    assert not out[3, :8200].any() and out[3, 8200] == 1
    np.testing.assert_array_equal(lse, [np.inf, -np.inf, np.nan, 0.0])


@pytest.mark.parametrize("shape", LONG.values(), ids=LONG)
def test_layer_and_rms_norm_of_long_rows(device, rng, shape):
    n = shape[1]
    x, w, b = rng.standard_normal(shape) + 3, rng.standard_normal(n), rng.standard_normal(n)
    compare(
        device, lambda x, w, b: F.layer_norm(x, (n,), w, b), x, w, b, shape=shape, rng=rng,
        rtol=1e-6,
    )  # fmt: skip
    compare(device, lambda x, w: F.rms_norm(x, (n,), w), x, w, shape=shape, rng=rng, rtol=1e-6)


def test_group_norm_of_long_rows(device, rng):
    x, w, b = rng.standard_normal((1, 4, 4501)), rng.standard_normal(4), rng.standard_normal(4)
    compare(
        device, lambda x, w, b: F.group_norm(x, 2, w, b), x, w, b, shape=x.shape, rng=rng, rtol=1e-6
    )


def test_norm_gradients_with_more_rows_than_programs(device, rng):
    """Every program sums several tiles of rows, the last of them in part."""
    x, w, b = rng.standard_normal((101, 300)), rng.standard_normal(300), rng.standard_normal(300)
    compare(
        device, lambda x, w, b: F.layer_norm(x, (300,), w, b), x, w, b, shape=x.shape, rng=rng,
        rtol=1e-6,
    )  # fmt: skip


def test_cross_entropy_of_long_rows(device, rng):
    labels = np.array([3, 8200, -100])

    def function(x):
        target = trident.tensor(labels, device=x.device)
        return F.cross_entropy(x, target, label_smoothing=0.1)

    compare(device, function, rng.standard_normal((3, 8201)), shape=(), rng=rng)


def test_reductions_along_each_axis(device, rng):
    x = rng.standard_normal((3, 20, 300))
    with gpu_tiles() if device == "cuda" else trident.no_grad():
        t = trident.tensor(x, device=device)
        for dim in (0, 1, 2, (0, 1), (0, 2), (1, 2), (0, 1, 2)):
            np.testing.assert_allclose(get(t.sum(dim)), x.sum(dim), rtol=1e-9)
            np.testing.assert_array_equal(get(t.amax(dim)), x.max(dim))
        for dim in range(3):
            np.testing.assert_array_equal(get(t.argmax(dim)), x.argmax(dim))
        column = trident.tensor(x.reshape(-1, 4), device=device)
        np.testing.assert_allclose(get(column.sum(0)), x.reshape(-1, 4).sum(0), rtol=1e-9)
        np.testing.assert_array_equal(get(column.argmin(0)), x.reshape(-1, 4).argmin(0))


@pytest.mark.parametrize("width", [1, 7, 8, 40, 300])
def test_table_look_ups(device, rng, width):
    """Rows of memory, and the element by element form for narrow or strided tables."""
    table = rng.standard_normal((9, width))
    index = rng.integers(-9, 9, (3, 5))
    with gpu_tiles() if device == "cuda" else trident.enable_grad():
        for flip in (False, True):
            leaf = trident.tensor(table.T.copy() if flip else table, device=device)
            leaf.requires_grad = True
            rows_of = leaf.T if flip else leaf
            out = rows_of[trident.tensor(index, device=device)]
            g = rng.standard_normal((3, 5, width))
            out.backward(trident.tensor(g, device=device))
            grad = np.zeros_like(table)
            np.add.at(grad, index, g)
            np.testing.assert_array_equal(get(out), table[index])
            found = get(leaf.grad)
            np.testing.assert_allclose(found.T if flip else found, grad, rtol=1e-12)
        wide = trident.tensor(rng.standard_normal((4, 9, width)), device=device)
        flat = trident.tensor(index.reshape(-1) % 9, device=device)
        picked = wide.index_select(1, flat)
        np.testing.assert_array_equal(get(picked), get(wide)[:, index.reshape(-1) % 9])


def test_runs_of_one_index_longer_than_a_piece(device, rng):
    index = np.sort(rng.integers(0, 2, 300)) * 3
    g = rng.standard_normal((300, 24))
    with gpu_tiles() if device == "cuda" else trident.enable_grad():
        table = trident.zeros(5, 24, dtype=trident.float64, device=device, requires_grad=True)
        table[trident.tensor(index, device=device)].backward(trident.tensor(g, device=device))
    expected = np.zeros((5, 24))
    np.add.at(expected, index, g)
    np.testing.assert_allclose(get(table.grad), expected, rtol=1e-10)


# ---- tiles and vectors --------------------------------------------------------------------------


def vec(shape, over, *, transposed=False, tile=(2, 1024)):
    """ROW_VEC and COL_VEC of a contiguous array of this shape (or of its transpose)."""
    x = AotDevice().empty(shape, dtypes.float32)
    if transposed:
        x = x.transpose(tuple(range(x.ndim))[::-1])
    plan, _ = layout(over, x)
    found = tiled(plan, *tile)
    return found["ROW_VEC"], found["COL_VEC"]


def test_what_the_compiler_is_told_of_strides_and_sizes():
    assert vec((8, 1024), (1,)) == (1, 16)
    assert vec((8, 1000), (1,)) == (1, 8)
    assert vec((8, 1002), (1,)) == (1, 2)
    assert vec((8, 1001), (1,)) == (1, 1)
    assert vec((8, 1000), (1,), tile=(2, 4)) == (1, 4)  # no more than a tile holds
    assert vec((8, 1000), (0,), tile=(64, 32)) == (8, 1)  # the columns are the rows' neighbours
    assert vec((1000, 8), (1,), transposed=True, tile=(64, 32)) == (8, 1)
    # two axes of columns: a vector must not run over the end of the inner one
    x = AotDevice().empty((6, 4, 3, 12), dtypes.float32)
    plan, _ = layout((0, 3), x)
    assert tiled(plan, 1, 1024)["COL_VEC"] == 4
    # every other column: neighbours are not side by side
    plan, _ = layout((1,), AotDevice().empty((8, 64), dtypes.float32)[:, ::2])
    assert tiled(plan, 1, 1024)["COL_VEC"] == 1


def test_rows_that_fit_on_the_chip():
    hopper = AotDevice("sm_90")
    plan, _ = layout((1,), hopper.empty((8, 30000), dtypes.float32))
    assert whole(plan, dtypes.float32, hopper, 32768) == (1, 32768)
    assert whole(plan, dtypes.float64, hopper, 32768) is None  # half as many of 8 bytes
    assert rows.warps(32768, hopper) == 32
    assert rows.warps(32768, AotDevice("sm_80")) == 16
    tall, _ = layout((0,), hopper.empty((300, 64), dtypes.float32))
    assert whole(tall, dtypes.float32, hopper, 32768) is None
    tall, _ = layout((0,), hopper.empty((200, 64), dtypes.float32))
    assert whole(tall, dtypes.float32, hopper, 32768) == (16, 256)


class Recorder(AotDevice):
    """Keeps the grids of its launches and counts what it copies."""

    def __init__(self, target="sm_90"):
        super().__init__(target)
        self.grids = []
        self.copies = 0

    def launch(self, kernel, grid, args, constexprs, options):
        self.grids.append((kernel.name, grid))
        super().launch(kernel, grid, args, constexprs, options)

    def copy_in(self, target, source, *more):
        self.copies += 1


def new(*shape, dtype=trident.float32):
    return trident.empty(shape, dtype=dtype, device="cuda", requires_grad=True)


def backward(out):
    out.backward(trident.empty(tuple(out.shape), dtype=out.dtype, device="cuda"))


def test_norm_gradients_come_from_a_fixed_number_of_programs():
    for count in (100_000, 300):
        device = Recorder()
        with runtime.use(device):
            backward(F.layer_norm(new(count, 1024), (1024,), new(1024), new(1024)))
        grids = dict(device.grids)
        tiles = -(-count // 4)
        assert grids["rows_backward_kernel"] == (min(2 * device.multiprocessors, tiles),)
        assert grids["parameter_finish_kernel"] == (64, 2)
    device = Recorder()
    with runtime.use(device):  # too long for the sums to stay in registers, not for the gradient
        backward(F.rms_norm(new(4096, 16384), (16384,), new(16384)))
    names = [name for name, _ in device.grids]
    assert names == [
        "rows_kernel", "rows_backward_kernel", "parameter_kernel", "parameter_finish_kernel",
    ]  # fmt: skip


def test_few_long_rows_are_shared():
    device = Recorder()
    with runtime.use(device):
        F.softmax(new(2, 1 << 20), -1)
        F.layer_norm(new(2, 1 << 20), (1 << 20,))
    grids = dict(device.grids)
    assert grids["exponentials_kernel"][0] == 1  # the last one joins the pieces
    first = next(g for name, g in device.grids if name == "exponentials_kernel")
    assert first == (2, 128)
    assert grids["moments_kernel"] == (2, 128)


# ---- optimizers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adagrad"])
def test_one_launch_for_all_tensors_and_tables_that_are_kept(name):
    device = Recorder()
    with runtime.use(device):
        params = [new(40, 3), new(7), new(2000)]
        optimizer = getattr(trident.optim, name)(params, lr=0.1)
        grads = [trident.empty(tuple(p.shape), device="cuda") for p in params]

        def step(gradients):
            device.grids.clear()
            device.copies = 0
            for p, g in zip(params, gradients):
                p.grad = g.detach()  # another array on the same memory
            optimizer.step()
            return [k for k, _ in device.grids if k.endswith(f"{name.lower()}_kernel")]

        assert len(step(grads)) == 1
        assert len(step(grads)) == 1 and device.copies == 0
        others = [trident.empty(tuple(p.shape), device="cuda") for p in params]
        assert len(step(others)) == 1 and device.copies == 1  # the addresses alone
        assert len(step(grads)) == 1 and device.copies == 0


def test_tables_tell_lists_apart(device, rng):
    """Same shapes in other places, other shapes in the same place, and a strided parameter."""
    for shapes in (((3, 4), (5,)), ((5,), (3, 4)), ((4, 3), (5,))):
        arrays = [rng.standard_normal(s) for s in shapes]
        params = [trident.tensor(a, device=device) for a in arrays]
        params[-1] = trident.tensor(np.repeat(arrays[-1], 2, -1), device=device)[..., ::2]
        for p in params:
            p.requires_grad = True
        optimizer = trident.optim.SGD(params, lr=0.5)
        for k in range(2):
            for p in params:
                p.grad = trident.full(tuple(p.shape), k + 1.0, dtype=p.dtype, device=device)
            optimizer.step()
        for p, a in zip(params, arrays):
            np.testing.assert_allclose(get(p), a - 1.5, rtol=1e-12)


# ---- what is compiled ---------------------------------------------------------------------------


def accesses(ptx):
    """Bytes of each global load and store, most first."""
    found = re.findall(r"\b(?:ld|st)\.global[.\w:]*?(?:\.v(\d))?\.[a-z](8|16|32|64)\b", ptx)
    return {int(v or 1) * int(bits) // 8 for v, bits in found}


def compiled(run, name):
    device = AotDevice("sm_90")
    with runtime.use(device):
        run()
    return [s.compile("sm_90").asm["ptx"] for s in device.seen if s.kernel.name == name]


@compiles
@pytest.mark.parametrize("dtype", [trident.float32, trident.bfloat16], ids=str)
def test_sixteen_bytes_at_once(dtype):
    """1000 columns: no multiple of 16, but rows begin at multiples of 16 bytes."""
    x = lambda: new(512, 1000, dtype=dtype)  # noqa: E731
    for run, name in (
        (lambda: F.softmax(x(), -1), "softmax_kernel"),
        (lambda: trident.relu(new(1001, 4095, dtype=dtype)), "relu_kernel"),
        (lambda: F.embedding(new(64).detach().long(), x()), "select_kernel"),
    ):
        for ptx in compiled(run, name):
            assert 16 in accesses(ptx), name
    (ptx,) = compiled(lambda: F.softmax(x(), -1), "softmax_kernel")
    assert accesses(ptx) == {16}


@compiles
def test_gradients_of_tables_use_no_atomics_and_whole_vectors():
    def run():
        backward(F.embedding(new(4096).detach().long(), new(1000, 768)))

    for name in ("heads_kernel", "add_kernel"):
        (ptx,) = compiled(run, name)
        assert "atom" not in ptx
        assert 16 in accesses(ptx)
