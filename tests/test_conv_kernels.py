"""The convolution kernels: values in every layout, with the tiles of a GPU, and the code that comes
out for one. ``test_every_op.py`` checks the same ops on random small samples.
"""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest

import trident
import trident.nn.functional as F
from trident import config, dtypes, nn, runtime, shapes
from trident.kernels import configs
from trident.kernels.conv_gather import Epilogue
from trident.kernels.conv_parts import Parts, parts_of
from trident.kernels.conv_tiles import INTERPRETED, SMALL, tile_for
from trident.ops import conv_numpy
from trident.ops.conv import output_size
from trident.runtime.aot import WALKS, AotDevice
from trident.tensor import tensor_of
from trident.testing import check_op
from trident.testing.cases import gpu_tiles

# the modules themselves: ``from trident.kernels import conv`` gives a stand-in
conv, conv_data, conv_depthwise, conv_geometry, conv_weight = (
    importlib.import_module(f"trident.kernels.{name}")
    for name in ("conv", "conv_data", "conv_depthwise", "conv_geometry", "conv_weight")
)
LAST = trident.channels_last

# n, c, size, o, kernel, stride, padding, dilation, groups
PROBLEMS = {
    "3x3": (2, 32, (6, 7), 24, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "odd channels": (2, 17, (5, 6), 19, (3, 2), (1, 1), (1, 0), (1, 1), 1),
    "24 channels": (2, 24, (5, 5), 40, (3, 3), (1, 1), (0, 1), (1, 1), 1),
    "stride 2": (2, 16, (9, 8), 16, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "stride 3, dilation 2": (1, 16, (11, 10), 16, (3, 3), (3, 2), (2, 1), (2, 2), 1),
    "first layer": (2, 3, (13, 12), 18, (5, 5), (2, 2), (2, 2), (1, 1), 1),
    "one channel": (2, 1, (9, 9), 6, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    "four channels": (2, 4, (8, 8), 16, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "1x1": (2, 16, (5, 6), 20, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1 stride 2": (2, 16, (5, 6), 20, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "1x1 padded": (2, 16, (3, 3), 16, (1, 1), (1, 1), (1, 1), (1, 1), 1),
    "two groups": (2, 32, (5, 5), 32, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "small groups": (2, 12, (5, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    "depthwise": (2, 24, (6, 6), 24, (3, 3), (1, 1), (1, 1), (1, 1), 24),
    "depthwise, two outputs": (2, 5, (6, 5), 10, (3, 2), (2, 1), (1, 1), (1, 2), 5),
    "one axis": (2, 16, (13,), 20, (4,), (2,), (1,), (1,), 1),
    "three axes": (2, 16, (4, 5, 3), 16, (2, 3, 2), (1, 2, 1), (1, 1, 0), (1, 1, 1), 1),
    "depthwise, three axes": (1, 3, (4, 5, 3), 3, (2, 3, 2), (1, 2, 1), (1, 1, 0), (2, 1, 1), 3),
    "wide kernel": (1, 16, (3, 3), 16, (5, 5), (1, 1), (2, 2), (1, 1), 1),
}  # fmt: skip


class Problem:
    """Random arrays of a problem, rounded to the dtype, and the answers in float64."""

    def __init__(self, name: str, dtype: dtypes.dtype, seed: int = 0) -> None:
        n, c, size, o, kernel, stride, padding, dilation, groups = PROBLEMS[name]
        rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        out = output_size("test", size, kernel, stride, padding, dilation)
        self.x = rng.standard_normal((n, c, *size)).astype(dtype.np)
        self.w = rng.standard_normal((o, c // groups, *kernel)).astype(dtype.np)
        self.bias = rng.standard_normal(o).astype(dtype.np)
        self.g = rng.standard_normal((n, o, *out)).astype(dtype.np)
        x, w, g = (a.astype(np.float64) for a in (self.x, self.w, self.g))
        args = (stride, padding, dilation, groups)
        self.y = conv_numpy.convolution(x, w, None, out, *args)
        self.dx = conv_numpy.conv_data_grad(g, w, None, size, *args)
        self.dw = conv_numpy.conv_weight_grad(g, x, kernel, *args)

    def close(self, got: np.ndarray, want: np.ndarray, terms: int) -> None:
        rounding = {2: 2.0**-8 if self.dtype is dtypes.bfloat16 else 2.0**-11, 4: 0.0, 8: 0.0}
        eps = np.finfo(np.float64 if self.dtype is dtypes.float64 else np.float32).eps
        bound = 4 * eps * np.sqrt(terms) * np.abs(want).max()
        np.testing.assert_allclose(
            got.astype(np.float64), want, rtol=1.01 * rounding[self.dtype.itemsize], atol=bound
        )


def place(a: np.ndarray, last: bool) -> runtime.DeviceArray:
    """``a`` on the current device, row-major or channels-last."""
    if not last:
        return runtime.current().from_host(a)
    moved = np.ascontiguousarray(np.moveaxis(a, 1, -1))
    order = (0, a.ndim - 1, *range(1, a.ndim - 1))
    return runtime.current().from_host(moved).transpose(order)


def fresh(shape: tuple[int, ...], d: dtypes.dtype, last: bool) -> runtime.DeviceArray:
    strides = shapes.channels_last_strides(shape) if last else shapes.contiguous_strides(shape)
    return runtime.current().empty_strided(shape, strides, d)


def run_all(p: Problem, last: bool, last_w: bool | None = None, bias: bool = False) -> None:
    """Forward, data and weight gradient against float64."""
    last_w = last if last_w is None else last_w
    x, w, g = place(p.x, last), place(p.w, last_w), place(p.g, last)
    b = runtime.current().from_host(p.bias) if bias else None
    d = p.dtype
    y, dx, dw = fresh(p.y.shape, d, last), fresh(p.dx.shape, d, last), fresh(p.dw.shape, d, last_w)
    conv.convolution(y, x, w, b, **p.attrs)
    conv_data.conv_data_grad(dx, g, w, None, **p.attrs)
    conv_weight.conv_weight_grad(dw, g, x, **p.attrs)
    want = p.y + p.bias.astype(np.float64).reshape(-1, *(1,) * (p.y.ndim - 2)) if bias else p.y
    per = int(np.prod(p.w.shape[1:]))
    p.close(y.numpy(), want, per)
    p.close(dx.numpy(), p.dx, per * p.w.shape[0])
    p.close(dw.numpy(), p.dw, p.g.size // p.g.shape[1])


needs_kernels = pytest.mark.usefixtures("kernels")


@pytest.fixture
def kernels(device):
    if device != "cuda":
        pytest.skip("for the cuda device")


# ---- values -------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("last", [False, True], ids=["row-major", "channels-last"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_values(name, last):
    run_all(Problem(name, dtypes.float32), last, bias=True)


@needs_kernels
@pytest.mark.parametrize("d", [dtypes.float16, dtypes.bfloat16, dtypes.float64])
@pytest.mark.parametrize("name", ["24 channels", "first layer", "small groups", "depthwise"])
def test_other_dtypes(name, d):
    run_all(Problem(name, d), True)


@needs_kernels
@pytest.mark.parametrize("last", [False, True], ids=["row-major", "channels-last"])
@pytest.mark.parametrize(
    "name", ["3x3", "odd channels", "stride 2", "four channels", "two groups", "depthwise"]
)
def test_the_tiles_of_a_gpu(name, last):
    """Tiles as a GPU gets them, programs from the last to the first."""
    p = Problem(name, dtypes.float32)
    with gpu_tiles():
        run_all(p, last)


@needs_kernels
@pytest.mark.parametrize("family", ["conv", "conv_data", "conv_weight"])
def test_every_trial_of_a_family(family):
    """Blocks that cut every axis, as ``trident tune`` may choose."""
    found = configs.tunable()[family]
    for trial in found.trials:
        with configs.using({family: trial}):
            run_all(Problem("odd channels", dtypes.float32), True)
            run_all(Problem("first layer", dtypes.float32), False)


@needs_kernels
def test_weights_in_another_layout_than_images():
    for last, last_w in itertools.product((False, True), repeat=2):
        run_all(Problem("3x3", dtypes.float32), last, last_w)


@needs_kernels
def test_any_strides_are_read():
    """Windows with gaps and expanded axes, which no vector load may touch."""
    p = Problem("24 channels", dtypes.float32)
    wide = np.full(tuple(2 * s + 1 for s in p.x.shape), 77, np.float32)
    wide[(slice(1, None, 2),) * 4] = p.x
    x = runtime.current().from_host(wide)[(slice(1, None, 2),) * 4]
    y = fresh(p.y.shape, p.dtype, True)
    conv.convolution(y, x, place(p.w, True), None, **p.attrs)
    p.close(y.numpy(), p.y, 24 * 9)
    one = runtime.current().from_host(np.ones((1, 1, 1, 1), np.float32))
    g = one.broadcast_to(p.g.shape)
    dw = fresh(p.dw.shape, p.dtype, True)
    conv_weight.conv_weight_grad(dw, g, place(p.x, True), **p.attrs)
    want = conv_numpy.conv_weight_grad(
        np.ones(p.g.shape), p.x.astype(np.float64), p.w.shape[2:], *list(p.attrs.values())
    )
    p.close(dw.numpy(), want, p.g.size // p.g.shape[1])


@needs_kernels
@pytest.mark.parametrize("name", ["3x3", "stride 2", "two groups", "depthwise"])
def test_large_operands_are_turned_first(name, monkeypatch):
    """From so many products on, operands in another order are copied; here: from the first on."""
    monkeypatch.setattr(conv_geometry, "TURN_PRODUCTS", 0)
    copies = []
    plain = conv_geometry.copy
    monkeypatch.setattr(conv_geometry, "copy", lambda out, x: (copies.append(x), plain(out, x)))
    run_all(Problem(name, dtypes.float32), False)
    assert copies or name == "depthwise"  # a row-major depthwise convolution gains nothing
    copies.clear()
    run_all(Problem(name, dtypes.float32), True)
    assert not copies


@needs_kernels
def test_offsets_in_int64():
    with pytest.MonkeyPatch.context() as patch:
        for module in (conv, conv_data, conv_weight, conv_depthwise):
            patch.setattr(module, "needs_int64", lambda *arrays: True)
        for name in ("3x3", "stride 2", "first layer", "two groups", "depthwise"):
            run_all(Problem(name, dtypes.float32), True)


@needs_kernels
def test_empty_batches_launch_nothing():
    x = trident.zeros(0, 16, 5, 5, device="cuda", requires_grad=True)
    w = trident.ones(4, 16, 3, 3, device="cuda", requires_grad=True)
    y = F.conv2d(x, w)
    assert y.shape == (0, 4, 3, 3)
    y.sum().backward()
    np.testing.assert_array_equal(w.grad.cpu().numpy(), np.zeros((4, 16, 3, 3)))


@needs_kernels
def test_a_nan_stays_in_its_group_and_window():
    p = Problem("two groups", dtypes.float32)
    p.x[0, 0, 0, 0] = np.nan
    y = fresh(p.y.shape, p.dtype, True)
    conv.convolution(y, place(p.x, True), place(p.w, True), None, **p.attrs)
    lost = np.isnan(y.numpy())
    assert lost[0, :16, :2, :2].all() and lost.sum() == 16 * 4


# ---- 1x1 ----------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("last", [False, True], ids=["row-major", "channels-last"])
def test_windows_of_one_element_are_matrix_products(last, monkeypatch):
    calls = []
    plain = conv.matmul
    monkeypatch.setattr(conv, "matmul", lambda *a, **k: (calls.append(a), plain(*a, **k)))
    p = Problem("1x1", dtypes.float32)
    run_all(p, last)
    assert len(calls) == 2  # forward and data gradient, both on the operands as they lie
    assert all(out.is_contiguous() for out, _, _ in calls)
    for other in ("1x1 stride 2", "1x1 padded"):
        run_all(Problem(other, dtypes.float32), last)
    assert len(calls) == 2


# ---- epilogue -----------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("d", dtypes.FLOATS)
@pytest.mark.parametrize("name", ["3x3", "first layer", "depthwise", "1x1", "two groups"])
def test_an_epilogue_rounds_where_the_ops_do(name, d):
    p = Problem(name, d)
    rng = np.random.default_rng(1)
    o = p.w.shape[0]
    scale, shift = (rng.standard_normal(o).astype(d.compute.np) for _ in range(2))
    residual = rng.standard_normal(p.y.shape).astype(d.np)

    def put(a: np.ndarray) -> trident.Tensor:
        return tensor_of(place(a, a.ndim > 2))

    x, w, bias, r = (put(a) for a in (p.x, p.w, p.bias, residual))
    s, t = put(scale), put(shift)
    got = trident.conv_act(x, w, bias, **p.attrs, scale=s, shift=t, residual=r, activation="relu")
    z = F.conv2d(x, w, bias, **p.attrs)
    axis = (-1, *(1,) * (p.y.ndim - 2))
    z = (z * s.reshape(axis) + t.reshape(axis)).to(x.dtype)
    want = F.relu(z + r)
    a, b = (v.cpu().float().numpy() for v in (got, want))
    # one unit in the last place: the affine map is one fused operation in the kernel
    eps = dtypes.finfo(d).eps
    np.testing.assert_allclose(a, b, rtol=2 * eps, atol=4 * eps * np.abs(b).max())
    assert got.is_contiguous(memory_format=LAST)


@needs_kernels
def test_a_residual_in_another_layout_is_copied():
    p = Problem("3x3", dtypes.float32)
    y = fresh(p.y.shape, p.dtype, True)
    conv.convolution(
        y, place(p.x, True), place(p.w, True), None, **p.attrs,
        epilogue=Epilogue(residual=place(p.g, False)),
    )  # fmt: skip
    p.close(y.numpy(), p.y + p.g, 32 * 9)


def test_conv_act_is_the_ops_it_stands_for():
    check_op("convolution_act", devices=["cpu"], examples=4)


def test_conv_act_on_one_image_and_its_errors():
    x, w = trident.ones(2, 4, 4), trident.ones(3, 2, 3, 3)
    r = trident.full((3, 2, 2), -20.0)
    out = trident.conv_act(x, w, residual=r)
    assert out.shape == (3, 2, 2) and float(out.max()) == 0.0
    assert float(trident.conv_act(x, w, residual=r, activation=None).max()) == -2.0
    one = trident.ones(3)
    with pytest.raises(ValueError, match="scale and shift go together"):
        trident.conv_act(x, w, scale=one)
    with pytest.raises(ValueError, match=r"scale must have shape \(3,\)"):
        trident.conv_act(x, w, scale=trident.ones(2), shift=one)
    with pytest.raises(TypeError, match="shift must be float32, in which float32 is computed"):
        trident.conv_act(x, w, scale=one, shift=one.double())
    with pytest.raises(ValueError, match="residual must have the shape of the convolution"):
        trident.conv_act(x, w, residual=trident.ones(3, 1, 1))
    with pytest.raises(ValueError, match="conv_act: activation must be None or"):
        trident.conv_act(x, w, activation="softmax")


# ---- folding ------------------------------------------------------------------------------------


def trained(bn: nn.Module) -> nn.Module:
    n = bn.num_features
    bn.running_mean.copy_(trident.linspace(-1, 1, n))
    bn.running_var.copy_(trident.linspace(0.5, 2, n))
    if bn.weight is not None:
        with trident.no_grad():
            bn.weight.copy_(trident.linspace(0.3, 1.7, n))
            bn.bias.copy_(trident.linspace(2, -2, n))
    return bn.eval()


@pytest.mark.parametrize(
    "conv_layer, bn, x",
    [
        (nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, bias=False, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6, affine=False), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    ],
)
def test_folding_batch_norm_into_a_convolution(device, conv_layer, bn, x):
    conv_layer, bn = conv_layer.eval().to(device), trained(bn).to(device)
    before = conv_layer.weight.detach().clone()
    transpose = isinstance(conv_layer, nn.ConvTranspose2d)
    fused = nn.utils.fuse_conv_bn_eval(conv_layer, bn, transpose)
    x = trident.randn(*x).to(device)
    a, b = fused(x).detach().cpu().numpy(), bn(conv_layer(x)).detach().cpu().numpy()
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert trident.equal(conv_layer.weight.detach(), before)  # a copy was changed
    assert isinstance(fused.bias, nn.Parameter) and type(fused) is type(conv_layer)


def test_folding_into_a_linear_layer_and_in_channels_last():
    linear, bn = nn.Linear(4, 6).eval(), trained(nn.BatchNorm1d(6))
    fused = nn.utils.fuse_linear_bn_eval(linear, bn)
    x = trident.randn(3, 4)
    np.testing.assert_allclose(
        fused(x).detach().numpy(), bn(linear(x)).detach().numpy(), rtol=1e-4, atol=1e-5
    )
    layer = nn.Conv2d(4, 6, 3).eval().to(memory_format=LAST)
    fused = nn.utils.fuse_conv_bn_eval(layer, trained(nn.BatchNorm2d(6)))
    assert fused.weight.is_contiguous(memory_format=LAST)


def test_folding_refuses_what_it_cannot_fold():
    layer, bn = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6).eval()
    with pytest.raises(RuntimeError, match="must be in evaluation mode"):
        nn.utils.fuse_conv_bn_eval(layer, bn)
    with pytest.raises(ValueError, match="is for 5 channels, the layer has 6"):
        nn.utils.fuse_conv_bn_eval(layer.eval(), nn.BatchNorm2d(5).eval())
    with pytest.raises(ValueError, match="no running statistics"):
        nn.utils.fuse_conv_bn_eval(layer, nn.BatchNorm2d(6, track_running_stats=False).eval())


# ---- choices ------------------------------------------------------------------------------------


def test_units_of_strides():
    assert conv_geometry.vector(2, 64, 4096) == 8
    assert conv_geometry.vector(2, 24) == 8
    assert conv_geometry.vector(4, 24) == 4
    assert conv_geometry.vector(2, 0, 12) == 4
    assert conv_geometry.vector(8, 17) == 1


def test_parts_cover_the_pixels():
    for pixels, block, programs in ((0, 32, 4), (1, 32, 4), (4097, 32, 1), (100000, 64, 36)):
        parts, each = parts_of(pixels, block, programs, False)
        assert (parts - 1) * each < max(pixels, 1) <= parts * each
        assert each % block == 0 and parts * programs <= 2 * 512


def test_where_parts_are_written():
    device = AotDevice("sm_90")
    out = fresh_on(device, (64, 9, 32), dtypes.bfloat16)
    one = Parts(out, 1)
    assert one.array is out and one.unit == 8 and one.strides == (64 * 9 * 32 // 8, 36, 4)
    several = Parts(out.transpose((0, 2, 1)), 3)
    assert several.array.shape == (3, 64, 32, 9) and several.array.dtype is dtypes.float32
    assert several.unit == 1  # 9 elements are not a whole number of vectors


def fresh_on(device: AotDevice, shape: tuple[int, ...], d: dtypes.dtype) -> runtime.DeviceArray:
    return device.empty(shape, d)


def test_tiles_are_narrowed_to_the_problem():
    x = AotDevice("sm_90").empty((1,), dtypes.bfloat16)
    large = tile_for("conv", x, (1 << 17, 256, 256, 9, 8), ("BLOCK_P", "BLOCK_R"))
    assert (large["BLOCK_P"], large["BLOCK_R"], large["BLOCK_K"]) == (128, 256, 64)
    few = tile_for("conv", x, (40, 8, 3, 9, 1), ("BLOCK_P", "BLOCK_R"))
    assert few["BLOCK_P"] <= 64 and few["BLOCK_R"] == 16 and few["BLOCK_K"] == 32
    odd = tile_for("conv", x, (1 << 17, 256, 96, 9, 8), ("BLOCK_P", "BLOCK_R"))
    assert odd["BLOCK_K"] == 32  # 96 is three times 32
    assert large["num_warps"] == 8 and few["num_warps"] == 4


@needs_kernels
def test_tiles_of_the_interpreter():
    x = runtime.current().empty((1,), dtypes.float32)
    sizes, result = (4096, 64, 32, 9, 4), ("BLOCK_P", "BLOCK_R")
    assert tile_for("conv", x, sizes, result)["BLOCK_P"] == INTERPRETED.constants["BLOCK_P"]
    token = config.interpret_block.set(16)
    try:
        assert tile_for("conv", x, sizes, result)["BLOCK_P"] == SMALL.constants["BLOCK_P"]
    finally:
        config.interpret_block.reset(token)


# ---- what a GPU gets ----------------------------------------------------------------------------

COMPILED = {
    # n, c, side, o, kernel, stride, padding, groups
    "3x3": (32, 64, 56, 128, 3, 1, 1, 1),
    "3x3 wide": (64, 256, 56, 256, 3, 1, 1, 1),
    "1x1 stride 2": (32, 256, 28, 512, 1, 2, 0, 1),
    "24 channels": (32, 24, 56, 40, 3, 1, 1, 1),
}


def compiled(name: str, target: str, d: dtypes.dtype) -> dict[str, dict]:
    """Resources of the three kernels of a channels-last problem, by kernel."""
    from trident.testing.resources import measure

    n, c, side, o, kernel, stride, padding, groups = COMPILED[name]
    walk = next(w for w, targets in WALKS.items() if target in targets)
    device = AotDevice(walk)

    def new(*shape: int) -> runtime.DeviceArray:
        return device.empty_strided(shape, shapes.channels_last_strides(shape), d)

    x, w = new(n, c, side, side), new(o, c // groups, kernel, kernel)
    out = (side + 2 * padding - kernel) // stride + 1
    y = new(n, o, out, out)
    attrs = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1)}
    with runtime.use(device):
        conv.convolution(y, x, w, None, **attrs, groups=groups)
        conv_data.conv_data_grad(x, y, w, None, **attrs, groups=groups)
        conv_weight.conv_weight_grad(w, y, x, **attrs, groups=groups)
    return {s.kernel.name: measure(s, target) for s in device.seen}


THREE = ("forward_kernel", "data_grad_kernel", "weight_grad_kernel")
not_interpreted = pytest.mark.skipif(config.INTERPRET, reason="compiles for GPUs")


@not_interpreted
@pytest.mark.parametrize("name", COMPILED)
def test_hopper_gets_wgmma_and_asynchronous_vector_loads(name):
    pytest.importorskip("triton")
    rows = compiled(name, "sm_90", dtypes.bfloat16)
    for kernel in THREE:
        row = rows[kernel]
        assert "error" not in row, (kernel, row)
        assert row["wgmma"] > 0 and row["spills"] == 0 and row["shared"] <= 232448, (kernel, row)
        assert row["load16"] == row["load"] > 0, (kernel, row)  # every load is a vector
        assert row["store16"] == row["store"] > 0 or kernel == "weight_grad_kernel", (kernel, row)


@not_interpreted
@pytest.mark.parametrize(
    "target, product, shared",
    [("sm_80", "mma.sync", 166912), ("sm_100", "tcgen05", 232448), ("gfx942", "mfma", 65536)],
)
def test_other_targets(target, product, shared):
    pytest.importorskip("triton")
    rows = compiled("3x3", target, dtypes.bfloat16)
    for kernel in THREE:
        row = rows[kernel]
        assert "error" not in row, (kernel, row)
        assert row[product] > 0 and row["spills"] == 0 and row["shared"] <= shared, (kernel, row)


@not_interpreted
def test_float32_is_ieee_unless_told_otherwise():
    pytest.importorskip("triton")
    for row in (compiled("3x3", "sm_90", dtypes.float32)[k] for k in THREE):
        assert row["wgmma"] == row["mma.sync"] == 0 and row["spills"] == 0
    token = config.matmul_precision.set("high")
    try:
        rows = compiled("3x3", "sm_90", dtypes.float32)
    finally:
        config.matmul_precision.reset(token)
    assert all(rows[k]["wgmma"] > 0 and rows[k]["spills"] == 0 for k in THREE)
