"""``trident.interpret()``: kernels on CPU memory, bounds, counts, breakpoints, and what Triton's
interpreter does otherwise than a GPU, one test each.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import trident
from trident import config, runtime
from trident.errors import DeviceError, KernelError
from trident.lang import jit, tl
from trident.runtime import host_window, launch
from trident.testing import assert_close

triton = pytest.importorskip("triton")
FILE = os.path.abspath(__file__)


def line_of(fn, text):
    """The line number in this file of the line of ``fn`` that contains ``text``."""
    lines, first = inspect.getsourcelines(fn)
    return next(first + i for i, line in enumerate(lines) if text in line)


@jit
def scale_kernel(x_ptr, out_ptr, n, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    y = x * factor
    tl.store(out_ptr + i, y, mask=i < n)


@jit
def unmasked_kernel(x_ptr, out_ptr, start, BLOCK: tl.constexpr):
    i = start + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x)


@jit
def overrun_store_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=7.5)
    tl.store(out_ptr + i, x)


# ---- running


@pytest.mark.parametrize("n", [1, 63, 64, 200])
def test_a_kernel_runs_on_the_memory_of_cpu_arrays(rng, n):
    x, out = rng.standard_normal(n).astype(np.float32), np.zeros(n, np.float32)
    with trident.interpret() as lab:
        launch(scale_kernel, (trident.cdiv(n, 64),), x, out, n, 1.5, BLOCK=64)
    assert_close(out, x * np.float32(1.5), rtol=0, atol=0)
    assert [run.kernel for run in lab.launches] == ["scale_kernel"]


def test_a_kernel_takes_cpu_tensors(rng):
    values = rng.standard_normal(100).astype(np.float32)
    x, out = trident.tensor(values), trident.zeros(100)
    with trident.interpret():
        trident.kernel(scale_kernel)[(2,)](x, out, 100, 3.0, BLOCK=64)
    assert_close(out, values * np.float32(3), rtol=0, atol=0)


@jit
def add(a, b):
    return a + b


@jit
def helpers_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, tl.softmax(x))
    tl.store(out_ptr + BLOCK + i, tl.cumsum(x, 0))
    tl.store(out_ptr + 2 * BLOCK + i, tl.sort(x))
    tl.store(out_ptr + 3 * BLOCK + i, tl.zeros_like(x) + x.sum(-1))
    tl.store(out_ptr + 4 * BLOCK, tl.reduce(x, 0, add))
    tl.store(out_ptr + 4 * BLOCK + 1, tl.argmax(x, 0).to(tl.float32))
    tl.store(out_ptr + 4 * BLOCK + 2, tl.min(x, 0))
    tl.store(out_ptr + 4 * BLOCK + 3, tl.sum(tl.cdiv(i, 3), 0).to(tl.float32))


def test_the_helpers_of_triton_language_run(rng):
    """They are JITFunctions where TRITON_INTERPRET was not set when Triton was imported."""
    x, out = rng.standard_normal(16).astype(np.float32), np.zeros(68, np.float32)
    with trident.interpret():
        launch(helpers_kernel, (1,), x, out, BLOCK=16)
    e = np.exp(x.astype(np.float64) - x.max())
    assert_close(out[:16], e / e.sum(), length=16)
    assert_close(out[16:32], np.cumsum(x.astype(np.float64)), length=16)
    assert_close(out[32:48], np.sort(x), rtol=0, atol=0)
    assert_close(out[48:64], np.full(16, x.sum(dtype=np.float64)), length=16)
    assert_close(
        out[64:],
        [x.sum(dtype=np.float64), x.argmax(), x.min(), sum(-(-i // 3) for i in range(16))],
        length=16,
    )


def test_a_kernel_defined_in_a_function_sees_its_enclosing_names(rng):
    shift = 3.0

    @jit
    def moved(x):
        return x + shift

    @jit
    def closed_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(out_ptr + i, moved(tl.load(x_ptr + i)))

    x, out = rng.standard_normal(8).astype(np.float32), np.zeros(8, np.float32)
    with trident.interpret():
        launch(closed_kernel, (1,), x, out, BLOCK=8)
    assert_close(out, x + np.float32(3), rtol=0, atol=0)


def test_cuda_is_there_inside_of_the_block_only():
    code = (
        "import numpy as np, trident\n"
        "assert not trident.cuda.is_available()\n"
        "with trident.interpret():\n"
        "    assert trident.cuda.is_available()\n"
        "    x = trident.tensor([0.0, 1.0], device='cuda', requires_grad=True)\n"
        "    y = trident.nn.functional.softmax(x @ trident.ones(2, 3, device='cuda'), 0)\n"
        "    (y * trident.arange(3.0, device='cuda')).sum().backward()\n"
        "np.testing.assert_allclose(y.detach().cpu().numpy(), np.full(3, 1 / 3), rtol=1e-6)\n"
        "np.testing.assert_allclose(x.grad.cpu().numpy(), np.zeros(2), atol=1e-6)\n"
        "try: trident.ones(2, device='cuda')\n"
        "except trident.errors.DeviceError as e: assert 'with trident.interpret()' in str(e)\n"
        "else: raise AssertionError\n"
        "assert (y * 2).detach().cpu().numpy().shape == (3,)  # arrays of the block stay usable\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(FILE).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_cpu_arrays_outside_of_the_block_name_the_way_out():
    x = np.zeros(4, np.float32)
    with pytest.raises(
        DeviceError, match=r"scale_kernel.*with trident\.interpret\(\).*INTERPRET=1"
    ):
        launch(scale_kernel, (1,), x, x, 4, 1.0, BLOCK=4)


def test_blocks_nest_and_end_with_an_exception():
    x = np.zeros(4, np.float32)
    with trident.interpret() as outer:
        with trident.interpret() as inner:
            launch(scale_kernel, (1,), x, x, 4, 1.0, BLOCK=4)
        with pytest.raises(KernelError), trident.interpret():
            launch(unmasked_kernel, (1,), x, x, 4, BLOCK=4)
        assert config.interpreting.get() is outer
    assert config.interpreting.get() is None
    assert len(inner.launches) == len(outer.launches) == 1


def languages():
    import triton.language as t
    from triton.runtime.jit import JITFunction

    owners = (t, t.core, t.math, t.tensor, t.dtype, JITFunction)
    return [{n: v for n, v in vars(o).items() if n != "__doc__"} for o in owners]


@pytest.mark.skipif(config.INTERPRET, reason="then the process cannot compile anyway")
def test_the_language_is_as_before_and_kernels_compile(rng):
    from trident.runtime.aot import AotDevice

    before = languages()
    x, out = rng.standard_normal(16).astype(np.float32), np.zeros(68, np.float32)
    with trident.interpret():
        launch(helpers_kernel, (1,), x, out, BLOCK=16)
        assert languages() == before
        with pytest.raises(KernelError):
            launch(helpers_kernel, (1,), x[:3], out, BLOCK=16)
    assert languages() == before
    with runtime.use(AotDevice()) as device:
        launch(helpers_kernel, (1,), device.from_host(x), device.from_host(out), BLOCK=16)
        (found,) = device.seen
        assert "ptx" in found.compile("sm_90").asm


# ---- windows


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[::-1],
        lambda a: a[1:, ::-2],
        lambda a: a.T,
        lambda a: a[2:2],
        lambda a: a[0, 0],
        lambda a: np.broadcast_to(a[:, :1], (5, 6)),
    ],
)
def test_a_window_is_the_memory_of_the_array(rng, view):
    base = rng.standard_normal((5, 6))
    array = np.asarray(view(base))
    window = host_window(array)
    assert window.shape == array.shape
    assert_close(window.numpy(), array, rtol=0, atol=0)
    if array.size and array.flags.writeable:
        window.device.window(window)[...] = 3.0
        assert (array == 3.0).all()


def test_a_window_needs_whole_elements():
    record = np.zeros(4, [("a", np.float32), ("b", np.int16)])
    with pytest.raises(ValueError, match="multiples of the item size, 4 bytes"):
        host_window(record["a"])


def test_a_window_keeps_its_array_alive(rng):
    values = rng.standard_normal(1000)
    window = host_window(values.copy())
    junk = [np.full(1000, 7.0) for _ in range(50)]
    assert_close(window.numpy(), values, rtol=0, atol=0)
    assert len(junk) == 50


# ---- fused ops of CPU tensors


@jit
def square_kernel(x_ptr, out_ptr, r_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(r_ptr + i, 2 * x.to(r_ptr.dtype.element_ty), mask=i < n)
    tl.store(out_ptr + i, x * x, mask=i < n)


@jit
def square_backward_kernel(g_ptr, r_ptr, dx_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(g_ptr + i, mask=i < n)
    tl.store(dx_ptr + i, (g * tl.load(r_ptr + i, mask=i < n)).to(g.dtype), mask=i < n)


def square_forward(out, r, x):
    assert x.is_contiguous()
    launch(square_kernel, (trident.cdiv(x.size, 16),), x, out, r, x.size, BLOCK=16)


def square_backward(dx, g, r):
    g = g if g.is_contiguous() else host_window(np.ascontiguousarray(g.numpy()))
    launch(square_backward_kernel, (trident.cdiv(g.size, 16),), g, r, dx, g.size, BLOCK=16)


@pytest.fixture
def squared():
    from trident.ops.registry import FUNCTIONS, REGISTRY

    def lab_square(x):
        """x^2. x (N,)."""
        return x * x

    yield trident.fused(
        forward=square_forward, backward=square_backward, residuals={"r": lambda x: x.shape}
    )(lab_square)
    REGISTRY.pop("lab_square", None)
    FUNCTIONS.pop("lab_square", None)
    if "lab_square" in vars(trident.Tensor):
        delattr(trident.Tensor, "lab_square")


@pytest.mark.parametrize("backward_inside", [True, False])
def test_a_fused_op_runs_its_kernels_on_cpu_tensors(rng, squared, backward_inside):
    values = rng.standard_normal(50).astype(np.float32)
    g = rng.standard_normal(50).astype(np.float32)
    x = trident.tensor(values, requires_grad=True)
    with trident.interpret() as lab:
        y = squared(x)
        if backward_inside:
            y.backward(trident.tensor(g))
    if not backward_inside:
        y.backward(trident.tensor(g))
    assert y.device.type == "cpu" and x.grad.device.type == "cpu"
    assert_close(y.detach(), values**2)
    assert_close(x.grad, 2 * values * g)
    want = ["square_kernel", "square_backward_kernel"][: 1 + backward_inside]
    assert [run.kernel for run in lab.launches] == want


def test_a_fused_op_outside_runs_its_body(rng, squared):
    host = runtime.device.host_device()
    before = host.launches
    assert_close(squared(trident.tensor([1.0, -3.0])), [1.0, 9.0])
    assert host.launches == before


def test_a_second_derivative_of_a_fused_op_inside(rng, squared):
    x = trident.tensor(rng.standard_normal(5), requires_grad=True)
    with trident.interpret():
        (first,) = trident.autograd.grad(squared(x).sum(), x, create_graph=True)
        (second,) = trident.autograd.grad(first.sum(), x)
    assert_close(first.detach(), 2 * x.detach())
    assert_close(second, np.full(5, 2.0))


# ---- bounds


def test_a_load_outside_names_everything(rng):
    big = rng.standard_normal(100).astype(np.float32)
    x, out = big[10:20], np.zeros(100, np.float32)
    with pytest.raises(IndexError) as error, trident.interpret():
        launch(unmasked_kernel, (2,), x, out, 0, BLOCK=8)
    assert isinstance(error.value, KernelError)
    text = str(error.value)
    line = line_of(unmasked_kernel.fn, "x = tl.load")
    for part in (
        "unmasked_kernel: load outside of x_ptr",
        "element 10, its elements are [0, 10)",
        "lane 2 of 8, the first of 6 such lanes",
        "program (1, 0, 0)",
        f"{FILE}:{line}: x = tl.load(x_ptr + i)",
    ):
        assert part in text, text
    assert not out[8:].any()


def test_a_store_outside_names_the_value_and_writes_nothing(rng):
    x = rng.standard_normal(8).astype(np.float32)
    big = np.full(100, 5.0, np.float32)
    with pytest.raises(KernelError) as error, trident.interpret():
        launch(overrun_store_kernel, (1,), x, big[50:58], 6, BLOCK=16)
    text = str(error.value)
    assert "store outside of out_ptr: element 8, its elements are [0, 8)" in text
    assert "lane 8 of 16, the first of 8 such lanes" in text
    assert "the value would have been 7.5" in text
    assert (big == 5.0).all()


def test_an_index_below_the_array_is_outside(rng):
    big = rng.standard_normal(100).astype(np.float32)
    out = np.zeros(9, np.float32)
    message = r"element -1, .*lane 0 of 4, the only such lane"
    with pytest.raises(KernelError, match=message), trident.interpret():
        launch(unmasked_kernel, (1,), big[50:60], out, -1, BLOCK=4)


def test_masked_lanes_may_point_anywhere(rng):
    x, out = rng.standard_normal(5).astype(np.float32), np.zeros(5, np.float32)
    with trident.interpret():
        launch(scale_kernel, (1,), x, out, 5, 1.0, BLOCK=1024)
    assert_close(out, x, rtol=0, atol=0)


def test_a_neighbour_of_the_array_is_outside_even_where_it_was_passed_too(rng):
    """Two rows of one buffer: running over the end of the first reads the second."""
    rows = rng.standard_normal((2, 8)).astype(np.float32)
    with pytest.raises(KernelError, match=r"outside of x_ptr: element 8"), trident.interpret():
        launch(unmasked_kernel, (1,), rows[0], rows[1], 0, BLOCK=16)


@jit
def strided_kernel(x_ptr, out_ptr, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i * stride))


def test_the_span_of_a_strided_window_is_its_bound(rng):
    base, out = rng.standard_normal((4, 6)).astype(np.float32), np.zeros(4, np.float32)
    with trident.interpret():
        launch(strided_kernel, (1,), base[:, 2], out, 6, BLOCK=4)
        assert_close(out, base[:, 2], rtol=0, atol=0)
        launch(strided_kernel, (1,), base[::-1, 2], out, -6, BLOCK=4)
        assert_close(out, base[::-1, 2], rtol=0, atol=0)
        with pytest.raises(KernelError, match=r"element 21, its elements are \[0, 19\)"):
            launch(strided_kernel, (1,), base[:, 2], out, 7, BLOCK=4)
        with pytest.raises(KernelError, match=r"element 1, its elements are \[-18, 1\)"):
            launch(strided_kernel, (1,), base[::-1, 2], out, 1, BLOCK=4)


@jit
def count_kernel(x_ptr, bins_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0)
    tl.atomic_add(bins_ptr + x, 1, mask=i < n)


def test_an_atomic_operation_outside(rng):
    x, bins = rng.integers(0, 4, 10).astype(np.int32), np.zeros(4, np.int32)
    with trident.interpret():
        launch(count_kernel, (1,), x, bins, 10, BLOCK=16)
        assert (bins == np.bincount(x, minlength=4)).all()
        x[3] = 4
        with pytest.raises(KernelError, match=r"atomic operation outside of bins_ptr: element 4"):
            launch(count_kernel, (1,), x, bins, 10, BLOCK=16)


@jit
def descriptor_kernel(x_ptr, out_ptr, rows, COLS: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [rows, COLS], [COLS, 1], [BLOCK, COLS])
    out = tl.make_tensor_descriptor(out_ptr, [BLOCK, COLS], [COLS, 1], [BLOCK, COLS])
    out.store([0, 0], x.load([0, 0]))


def test_a_descriptor_with_a_wrong_shape(rng):
    device = runtime.device.host_device()  # descriptors want addresses aligned to 16 bytes
    values = rng.standard_normal((3, 8)).astype(np.float32)
    x, out = device.from_host(values), device.from_host(np.ones((4, 8), np.float32))
    with trident.interpret():
        launch(descriptor_kernel, (1,), x, out, 3, COLS=8, BLOCK=4)
        assert_close(out.numpy(), np.concatenate([values, np.zeros((1, 8))]), rtol=0, atol=0)
        with pytest.raises(
            KernelError, match=r"outside of x_ptr: element 24.*24 of 32 at \(3, 0\)"
        ):
            launch(descriptor_kernel, (1,), x, out, 4, COLS=8, BLOCK=4)


@jit
def table_kernel(table_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x_ptr = tl.load(table_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr + i, tl.load(x_ptr + i))


def test_a_pointer_from_a_table_must_lie_in_live_memory(rng):
    device = runtime.device.host_device()
    values = rng.standard_normal(8).astype(np.float32)
    x, out = device.from_host(values), device.from_host(np.zeros(8, np.float32))
    table = device.from_host(np.array([x.ptr, 4096], np.int64))
    launch(table_kernel, (1,), table, out, BLOCK=8)
    assert_close(out.numpy(), values, rtol=0, atol=0)
    with pytest.raises(KernelError, match=r"program \(1, 0, 0\)"):
        launch(table_kernel, (2,), table, out, BLOCK=8)


def test_memory_that_is_read_only_is_not_written():
    x, out = np.zeros(4, np.float32), np.zeros(4, np.float32)
    out.flags.writeable = False
    with (
        pytest.raises(KernelError, match="out_ptr, whose memory is read-only"),
        trident.interpret(),
    ):
        launch(scale_kernel, (1,), x, out, 4, 1.0, BLOCK=4)


def test_the_check_needs_no_block_and_can_be_switched_off(rng):
    device = runtime.device.host_device()
    big = device.from_host(rng.standard_normal(32).astype(np.float32))
    out = device.from_host(np.zeros(16, np.float32))
    with pytest.raises(KernelError, match="element 8"):
        launch(unmasked_kernel, (1,), big[:8], out, 0, BLOCK=16)
    token = config.check_bounds.set(False)
    try:
        launch(unmasked_kernel, (1,), big[:8], out, 0, BLOCK=16)
    finally:
        config.check_bounds.reset(token)
    assert_close(out.numpy(), big.numpy()[:16], rtol=0, atol=0)


# ---- counts


def test_bytes_and_operations_of_a_launch(rng):
    n = 1000
    x, out = rng.standard_normal(n).astype(np.float32), np.zeros(n, np.float32)
    with trident.interpret() as lab:
        launch(scale_kernel, (4,), x, out, n, 2.0, BLOCK=256)
        launch(scale_kernel, (2, 2), x.astype(np.float64), out, 512, 2.0, BLOCK=256)
    one, two = lab.launches
    assert (one.grid, one.programs, one.loads, one.stores) == ((4,), 4, 4, 4)
    assert one.bytes_loaded == one.bytes_stored == 4 * n
    assert one.flops == 4 * 256
    assert one.intensity == pytest.approx(1024 / 8000)
    assert (two.grid, two.programs) == ((2, 2), 4)
    assert (two.bytes_loaded, two.distinct_loaded) == (2 * 8 * 512, 8 * 512)  # each row twice
    assert (two.bytes_stored, two.distinct_stored) == (2 * 4 * 512, 4 * 512)
    total = lab.total
    assert total.bytes_loaded == 4000 + 8192 and total.flops == 2048 and total.programs == 8
    assert 0 < one.seconds < 60
    head, *rows = str(lab).splitlines()
    assert head.split()[:3] == ["kernel", "grid", "programs"] and "flops/byte" in head
    assert [r.split()[0] for r in rows] == ["scale_kernel", "scale_kernel", "total"]
    assert "2 x 2" in rows[1] and "4 kB" in rows[0]


@jit
def product_kernel(a_ptr, b_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    i, j, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    a = tl.load(a_ptr + i * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + j)
    tl.store(out_ptr + i * N + j, tl.dot(a, b, input_precision="ieee"))


@jit
def count_flops_kernel(x_ptr, out_ptr, WHAT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    if WHAT == "exp":
        y = tl.exp(x)
    elif WHAT == "fma":
        y = tl.fma(x, x, x)
    elif WHAT == "sum":
        y = x - tl.sum(x, 0)
    elif WHAT == "max":
        y = tl.where(x > tl.max(x, 0), x, tl.abs(x))
    elif WHAT == "combine":
        y = x + tl.reduce(x, 0, add)
    elif WHAT == "scan":
        y = tl.cumsum(x, 0)
    else:
        y = (i * 3 + i // 2).to(tl.float32)
    tl.store(out_ptr + i, y)


@pytest.mark.parametrize(
    ("what", "flops"),
    [("exp", 32), ("fma", 64), ("sum", 63), ("max", 31), ("combine", 63), ("scan", 31), ("int", 0)],
)
def test_what_counts_as_an_operation(rng, what, flops):
    x, out = rng.standard_normal(32).astype(np.float32), np.zeros(32, np.float32)
    with trident.interpret() as lab:
        launch(count_flops_kernel, (1,), x, out, WHAT=what, BLOCK=32)
    assert lab.total.flops == flops


def test_a_product_counts_two_per_multiply_add(rng):
    a = rng.standard_normal((16, 32)).astype(np.float32)
    b = rng.standard_normal((32, 8)).astype(np.float32)
    out = np.zeros((16, 8), np.float32)
    with trident.interpret() as lab:
        launch(product_kernel, (1,), a, b, out, M=16, N=8, K=32)
    assert_close(out, a.astype(np.float64) @ b, length=32)
    assert lab.total.flops == 2 * 16 * 8 * 32
    assert lab.total.distinct_loaded == 4 * (16 * 32 + 32 * 8)


# ---- breakpoints


@jit
def helper(x, power: tl.constexpr):
    result = x
    for _ in range(power - 1):
        result = result * x
    return result


@jit
def loop_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """A docstring with a line that
    def looks_like_a_function
    """
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < n, other=0.0)
        total += helper(x, 2)
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, 0))


@jit
def stopping_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    breakpoint()
    tl.store(out_ptr + i, x)


@pytest.fixture
def stops(monkeypatch):
    """What a debugger would see: (file, line, locals as they print) per stop."""
    seen = []

    def hook(*args, **kwargs):
        frame = sys._getframe(1)
        shown = {n: repr(v) for n, v in frame.f_locals.items()}
        seen.append((frame.f_code.co_filename, frame.f_lineno, shown))

    monkeypatch.setattr(sys, "breakpointhook", hook)
    return seen


def test_a_breakpoint_in_the_kernel(rng, stops):
    x, out = rng.standard_normal(8).astype(np.float32), np.zeros(8, np.float32)
    with trident.interpret():
        launch(stopping_kernel, (1,), x, out, BLOCK=8)
    ((file, line, shown),) = stops
    assert file == FILE and line == line_of(stopping_kernel.fn, "breakpoint()")
    assert shown["x"] == repr(x)
    assert shown["i"] == repr(np.arange(8, dtype=np.int32))
    assert shown["x_ptr"] == "x_ptr + 0" and shown["BLOCK"] == "8"
    assert_close(out, x, rtol=0, atol=0)


EARLIER = sys.version_info < (3, 13)  # there the call stands on the line before


@pytest.mark.parametrize("how", ["text", "line", "file"])
def test_stop_at_a_line(rng, stops, how):
    x, out = rng.standard_normal(20).astype(np.float32), np.zeros(2, np.float32)
    line = line_of(loop_kernel.fn, "total += helper")
    at = {"text": "total += helper", "line": line, "file": f"test_interpret.py:{line}"}[how]
    with trident.interpret(stop_at=at, program=1):
        launch(loop_kernel, (2,), x, out, 20, BLOCK=8)
        launch(loop_kernel, (2,), x, out, 20, BLOCK=8)
    assert len(stops) == 2  # once a launch
    file, where, shown = stops[0]
    assert (file, where + EARLIER) == (FILE, line)
    assert shown["x"] == repr(x[:8]) and shown["start"] == "0"
    assert_close(out, np.full(2, (x.astype(np.float64) ** 2).sum()), length=20)


def test_stop_at_every_time(rng, stops):
    x, out = rng.standard_normal(20).astype(np.float32), np.zeros(2, np.float32)
    with trident.interpret(stop_at="total += helper", every=True):
        launch(loop_kernel, (2,), x, out, 20, BLOCK=8)
    assert [s["start"] for _, _, s in stops] == ["0", "8", "16"]
    with trident.interpret(stop_at="total += helper", program=None, every=True):
        launch(loop_kernel, (2,), x, out, 20, BLOCK=8)
    assert len(stops) == 3 + 6


def test_stop_at_in_a_function_that_the_kernel_calls(rng, stops):
    x, out = rng.standard_normal(4).astype(np.float32), np.zeros(1, np.float32)
    with trident.interpret(stop_at="result = result * x"):
        launch(loop_kernel, (1,), x, out, 4, BLOCK=4)
    ((_, where, shown),) = stops
    assert where + EARLIER == line_of(helper.fn, "result = result * x")
    assert shown["result"] == shown["x"] == repr(x)
    with trident.interpret():  # the next block has no stop in it
        launch(loop_kernel, (1,), x, out, 4, BLOCK=4)
    assert len(stops) == 1


def test_stop_at_a_line_of_no_kernel(stops):
    x = np.zeros(4, np.float32)
    message = r"'no such line' is in no kernel.*those are scale_kernel"
    with pytest.raises(KernelError, match=message), trident.interpret(stop_at="no such line"):
        launch(scale_kernel, (1,), x, x, 4, 1.0, BLOCK=4)
    with pytest.raises(TypeError, match="stop_at must be"), trident.interpret(stop_at=1.5):
        pass


def test_pdb_stops_before_the_line_and_prints_arrays(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from __future__ import annotations\n"
        "import numpy as np, trident\n"
        "from trident.lang import tl\n"
        "@trident.jit\n"
        "def k(x_ptr, BLOCK: tl.constexpr):\n"
        "    i = tl.arange(0, BLOCK)\n"
        "    # a comment between\n"
        "    y = i * 10\n"
        "    tl.store(x_ptr + i, y)\n"
        "x = np.zeros(4, np.int32)\n"
        "with trident.interpret(stop_at='y = i'):\n"
        "    trident.runtime.launch(k, (1,), x, BLOCK=4)\n"
        "print('after', x)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONBREAKPOINT"}
    env["PYTHONPATH"] = str(Path(FILE).parent.parent)
    done = subprocess.run(
        [sys.executable, str(program)], input="p i\nn\np y\np i + 1\nc\n", env=env,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if EARLIER:
        assert "program.py(8)k()" in done.stdout and "-> y = i * 10" in done.stdout
        assert "array([ 0, 10, 20, 30], dtype=int32)" in done.stdout
    assert "array([0, 1, 2, 3], dtype=int32)" in done.stdout
    assert "array([1, 2, 3, 4], dtype=int32)" in done.stdout
    assert "after [ 0 10 20 30]" in done.stdout


# ---- what the interpreter does otherwise than a GPU


def on_host(kernel, *arrays, grid=(1,), **constexprs):
    """Run ``kernel`` outside of a block: what holds there holds in the test suite."""
    device = runtime.device.host_device()
    given = [device.from_host(a) if isinstance(a, np.ndarray) else a for a in arrays]
    launch(kernel, grid, *given, **constexprs)
    return given[-1].numpy()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_a_dot_of_half_types_multiplies_numbers(rng, dtype):
    a = rng.standard_normal((16, 16)).astype(dtype)
    b = rng.standard_normal((16, 16)).astype(dtype)
    got = on_host(product_kernel, a, b, np.zeros((16, 16), np.float32), M=16, N=16, K=16)
    assert_close(got, a.astype(np.float64) @ b.astype(np.float64), length=16)


@jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(out_ptr + i, x + y)
    tl.store(out_ptr + BLOCK + i, x * y)
    tl.store(out_ptr + 2 * BLOCK + i, x - y)
    tl.store(out_ptr + 3 * BLOCK + i, tl.where(x < y, x, -y))
    tl.store(out_ptr + 4 * BLOCK + i, tl.maximum(x, y))
    tl.store(out_ptr + 5 * BLOCK + i, (x > y).to(tl.int32).to(tl.bfloat16))


def test_bfloat16_arithmetic_is_that_of_numbers(rng):
    x, y = (rng.standard_normal(64).astype(ml_dtypes.bfloat16) for _ in range(2))
    got = on_host(arithmetic_kernel, x, y, np.zeros(384, ml_dtypes.bfloat16), BLOCK=64)
    want = [x + y, x * y, x - y, np.where(x < y, x, -y), np.maximum(x, y), x > y]
    assert_close(got.astype(np.float32), np.concatenate(want).astype(np.float32), rtol=0, atol=0)


@jit
def cast_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.float32, ml_dtypes.bfloat16),
        (np.float64, ml_dtypes.bfloat16),
        (np.int32, ml_dtypes.bfloat16),
        (ml_dtypes.bfloat16, np.float64),
        (ml_dtypes.bfloat16, np.float16),
        (ml_dtypes.bfloat16, np.int32),
        (np.float16, ml_dtypes.bfloat16),
    ],
)
def test_casts_to_and_from_bfloat16_round(rng, source, target):
    x = (rng.standard_normal(256) * 100).astype(source)
    got = on_host(cast_kernel, x, np.zeros(256, target), BLOCK=256)
    want = x.astype(np.float32).astype(target)
    assert_close(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=0)


@jit
def sum_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + i), 0))


def pairwise(x):
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_a_sum_of_half_types_rounds_each_addition(rng, dtype):
    x = (rng.standard_normal(128) + 3).astype(dtype)
    got = on_host(sum_kernel, x, np.zeros(1, dtype), BLOCK=128)
    assert_close(got.astype(np.float32), pairwise(x).astype(np.float32), rtol=0, atol=0)
    x[17] = np.nan
    assert np.isnan(on_host(sum_kernel, x, np.zeros(1, dtype), BLOCK=128).astype(np.float32))


@jit
def max_kernel(x_ptr, out_ptr, ARG: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    if ARG:
        tl.store(out_ptr, tl.argmax(x, 0).to(tl.float32))
    else:
        tl.store(out_ptr, tl.max(x, 0).to(tl.float32))


def test_a_maximum_drops_nan(rng):
    x = rng.standard_normal(16).astype(np.float32)
    x[3] = np.nan
    out = np.zeros(1, np.float32)
    assert_close(on_host(max_kernel, x, out, ARG=False, BLOCK=16), [np.nanmax(x)], rtol=0, atol=0)
    x[:] = np.nan
    assert np.isnan(on_host(max_kernel, x, out, ARG=False, BLOCK=16)).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_argmax_takes_no_nan(rng, dtype):
    x = (rng.standard_normal(16) - 5).astype(dtype)
    out = np.zeros(1, np.float32)
    want = x.astype(np.float32).argmax()
    assert_close(on_host(max_kernel, x, out, ARG=True, BLOCK=16), [want], rtol=0, atol=0)
    x[3] = np.nan
    with pytest.raises(KernelError, match=r"NaN among the values of tl\.argmax: on a GPU"):
        on_host(max_kernel, x, out, ARG=True, BLOCK=16)


@jit
def maximum_kernel(x_ptr, out_ptr, PROPAGATE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    if PROPAGATE:
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        y = tl.maximum(x, 0.0)
    tl.store(out_ptr + i, y)
    tl.store(out_ptr + BLOCK + i, tl.clamp(x, -1.0, 1.0))


def test_tl_maximum_drops_nan_unless_told():
    x, out = np.array([np.nan, -1, 2, np.inf], np.float32), np.zeros(8, np.float32)
    got = on_host(maximum_kernel, x, out, PROPAGATE=False, BLOCK=4)
    assert_close(got, [0, 0, 2, np.inf, -1, -1, 1, 1], rtol=0, atol=0)
    got = on_host(maximum_kernel, x, out, PROPAGATE=True, BLOCK=4)
    assert_close(got[:4], [np.nan, 0, 2, np.inf], rtol=0, atol=0)


def test_grids():
    x, out = np.ones(4, np.float32), np.zeros(4, np.float32)
    with trident.interpret() as lab:
        launch(scale_kernel, (0,), x, out, 4, 1.0, BLOCK=4)  # nothing to do: not launched
        assert not lab.launches and not out.any()
        for grid in ((1, 65536), (1, 1, 65536), (2**31,), (-1,), (1, 1, 1, 1), ()):
            with pytest.raises(KernelError, match=r"scale_kernel: .*grid"):
                launch(scale_kernel, grid, x, out, 4, 1.0, BLOCK=4)


@jit
def combined_kernel(x_ptr, out_ptr, FN: tl.constexpr, SCAN: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    if SCAN:
        tl.store(out_ptr + tl.arange(0, BLOCK), tl.associative_scan(x, 0, FN))
    else:
        tl.store(out_ptr, tl.reduce(x, 0, FN))


@pytest.mark.parametrize("scan", [False, True])
def test_a_combine_function_is_no_parameter(scan):
    x, out = np.ones(4, np.float32), np.zeros(4, np.float32)
    with pytest.raises(KernelError, match="does not compile for a GPU"):
        on_host(combined_kernel, x, out, FN=add, SCAN=scan, BLOCK=4)


@jit
def applied_kernel(x_ptr, out_ptr, FN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, FN(x, x))


def test_a_function_to_call_may_be_a_parameter(rng):
    x = rng.standard_normal(8).astype(np.float32)
    assert_close(on_host(applied_kernel, x, np.zeros(8, np.float32), FN=add, BLOCK=8), 2 * x)


@jit
def offset_kernel(x_ptr, out_ptr, row, stride, WIDE: tl.constexpr):
    if WIDE:
        row = row.to(tl.int64)
    tl.store(out_ptr, tl.load(x_ptr + (row * stride) % 7))


def test_int32_overflow_raises_inside_the_block():
    x, out = np.arange(7, dtype=np.float32), np.zeros(1, np.float32)
    row, stride = 70_000, 70_000
    with trident.interpret():
        launch(offset_kernel, (1,), x, out, row, stride, WIDE=True)
        assert out[0] == row * stride % 7
        with pytest.raises(KernelError, match=r"70000 \* 70000 = 4900000000 wraps.*tl\.int64"):
            launch(offset_kernel, (1,), x, out, row, stride, WIDE=False)


@jit
def block_kernel(out_ptr, WHAT: tl.constexpr, BLOCK: tl.constexpr):
    if WHAT == "arange":
        x = tl.arange(0, BLOCK)
    elif WHAT == "zeros":
        x = tl.zeros((BLOCK,), tl.int32)
    else:
        x = tl.full((2, BLOCK), 1, tl.int32)
    tl.store(out_ptr, tl.sum(x))


@pytest.mark.parametrize("what", ["arange", "zeros", "full"])
def test_a_block_size_is_a_power_of_two(what):
    assert on_host(block_kernel, np.zeros(1, np.int32), WHAT=what, BLOCK=8) is not None
    with pytest.raises(KernelError, match=r"(?s)power of (2|two).*test_interpret.py"):
        on_host(block_kernel, np.zeros(1, np.int32), WHAT=what, BLOCK=6)


@jit
def plain_dot_kernel(a_ptr, out_ptr, SAY: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a = tl.load(a_ptr + at)
    if SAY:
        c = tl.dot(a, a, input_precision=SAY)
    else:
        c = tl.dot(a, a)
    tl.store(out_ptr + at, c)


def test_a_float32_dot_says_its_precision_inside_the_block(rng):
    a, out = rng.standard_normal((16, 16)).astype(np.float32), np.zeros((16, 16), np.float32)
    with trident.interpret():
        with pytest.raises(KernelError, match=r"without input_precision.*TF32.*'ieee'"):
            launch(plain_dot_kernel, (1,), a, out, SAY=None, N=16)
        launch(plain_dot_kernel, (1,), a, out, SAY="ieee", N=16)
        assert_close(out, a.astype(np.float64) @ a, length=16)
        half = a.astype(np.float16)
        launch(plain_dot_kernel, (1,), half, out, SAY=None, N=16)
    assert_close(out, half.astype(np.float64) @ half.astype(np.float64), length=16)


def test_a_dot_is_as_large_as_the_hardware_takes(rng):
    a = rng.standard_normal((8, 8)).astype(np.float16)
    with pytest.raises(KernelError, match="K >= 16"):
        on_host(product_kernel, a, a, np.zeros((8, 8), np.float32), M=8, N=8, K=8)


@jit
def float_argument_kernel(out_ptr, factor):
    tl.store(out_ptr, factor.to(tl.float64))


def test_a_float_argument_is_float32():
    out = np.zeros(1)
    with trident.interpret():
        launch(float_argument_kernel, (1,), out, 0.1)
    assert out[0] == np.float64(np.float32(0.1)) != 0.1


@jit
def truth_kernel(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    both = (x > 0) and (x < 1)
    tl.store(out_ptr + i, tl.where(both, 1.0, 0.0))


def test_a_block_is_no_truth_value():
    x, out = np.array([0.5, 2], np.float32), np.zeros(2, np.float32)
    with pytest.raises(KernelError, match=r"shape \(2,\) is used as one truth value"):
        on_host(truth_kernel, x, out, BLOCK=2)


@jit
def asserting_kernel(x_ptr, LIMIT: tl.constexpr):
    tl.static_assert(LIMIT > 2, "too low")
    tl.device_assert(tl.load(x_ptr) > 0, "not positive")


def test_assertions_name_their_line():
    x = np.array([-1.0])
    with trident.interpret():
        with pytest.raises(KernelError, match=r"(?s)too low.*static_assert"):
            launch(asserting_kernel, (1,), x, LIMIT=1)
        with pytest.raises(KernelError, match=r"(?s)not positive.*device_assert"):
            launch(asserting_kernel, (1,), x, LIMIT=3)
