"""The rules of launching without ``kernel[grid](...)``, one test each."""

from __future__ import annotations

import gc
import struct
import threading
import weakref

import numpy as np
import pytest

import trident
from tests.stub import kernels
from trident import runtime
from trident.errors import CudaError, DeviceError
from trident.lang import Jit
from trident.runtime import aot, bound, launchers, triton_driver
from trident.runtime.cuda_device import _constant


def launch(gpu, kernel, grid, args, constants=(), **options):
    gpu.launch(kernel, grid, args, dict(constants), {"num_warps": 4, **options})


def floats(words: tuple[int, ...], at: int) -> float:
    return struct.unpack("<f", struct.pack("<I", words[at]))[0]


# ---- what reaches the driver ---------------------------------------------------------------------


def test_arguments_arrive_without_the_constants(stub, gpu):
    args, constants, options = kernels.many(gpu)
    first = stub.n_launches
    gpu.launch(kernels.many_kernel, (32,), args, constants, options)
    (done,) = stub.launches(first)
    a, b, _, out, n, _, wide, scale = args
    assert (done.name, done.grid, done.block) == ("many_kernel", (32, 1, 1), (128, 1, 1))
    # absent_ptr, one (== 1) and the constexprs are compiled in
    assert done.words[:5] == (a.ptr, b.ptr, out.ptr, n, wide)
    assert floats(done.words, 5) == scale
    assert done.words[6:] == (0, 0)  # the two scratch pointers that Triton appends
    assert done.n_params == 8
    assert done.stream == gpu.own_stream


def test_grid_of_two_and_three_axes(stub, gpu):
    out = trident.empty(128, device="cuda")._data
    first = stub.n_launches
    for grid in ((5,), (5, 3), (5, 3, 2)):
        launch(gpu, kernels.zero_kernel, grid, (out,), {"BLOCK": 128})
    assert [x.grid for x in stub.launches(first)] == [(5, 1, 1), (5, 3, 1), (5, 3, 2)]


def test_the_second_launch_compiles_and_loads_nothing(stub, gpu, monkeypatch):
    args, constants, options = kernels.many(gpu)
    gpu.launch(kernels.many_kernel, (32,), args, constants, options)
    modules = stub.count("cuModuleLoadData")
    monkeypatch.setattr(aot.Specialization, "compile", lambda *a: pytest.fail("compiled again"))
    gpu.launch(kernels.many_kernel, (16,), args, constants, options)
    assert stub.count("cuModuleLoadData") == modules


@pytest.mark.parametrize(
    "change",
    [
        lambda a, c: ((*a[:4], 4097, *a[5:]), c),  # not divisible by 16
        lambda a, c: ((*a[:6], 7, a[7]), c),  # fits an int32
        lambda a, c: ((*a[:5], 2, *a[6:]), c),  # not 1
        lambda a, c: ((a[0][1:], *a[1:]), c),  # an address that is not aligned
        lambda a, c: (a, {**c, "SQUARE": False}),
        lambda a, c: ((*a[:2], a[0], *a[3:]), c),  # no longer absent
    ],
)
def test_what_is_compiled_depends_on_the_arguments(stub, gpu, change):
    args, constants, options = kernels.many(gpu)
    gpu.launch(kernels.many_kernel, (32,), args, constants, options)
    before = stub.launches()[-1].function
    gpu.launch(kernels.many_kernel, (32,), *change(args, constants), options)
    assert stub.launches()[-1].function != before


def test_constants_that_are_equal_but_not_the_same_are_told_apart():
    values = (1, 1.0, True, 0.0, -0.0, "1")
    assert len({_constant(("BLOCK", v)) for v in values}) == len(values)
    assert _constant(("X", float("nan"))) == _constant(("X", float("nan")))


def test_fp_fusion_is_set_explicitly(gpu):
    bound_, _ = kernels.bind_many(gpu)
    assert bound_.compiled.metadata.enable_fp_fusion is True


def test_bound_knows_what_it_uses(gpu):
    bound_, _ = kernels.bind_many(gpu)
    assert bound_.name == "many_kernel"
    assert bound_.registers > 8
    assert bound_.spills == 0
    assert bound_.shared == bound_.compiled.metadata.shared
    assert "many_kernel on cuda:0" in repr(bound_)


# ---- rule 1: who keeps a module loaded -----------------------------------------------------------


def test_a_module_stays_loaded_while_its_kernel_is_held(stub, gpu):
    gpu.synchronize()
    bound_, args = kernels.bind_many(gpu)
    loaded = stub.loaded
    start, module = bound_.start, bound_.module
    gpu.synchronize()
    assert stub.loaded == loaded
    start(1, 1, 1, gpu.own_stream, args)
    del bound_, start
    gc.collect()
    assert stub.loaded == loaded  # work may still be running from it
    unloads = stub.count("cuModuleUnload")
    gpu.synchronize()
    assert stub.count("cuModuleUnload") == unloads + 1
    assert not stub.alive(module)
    assert stub.loaded == loaded - 1


def test_triton_does_not_unload_what_we_loaded(stub, gpu):
    gpu.synchronize()
    gpu.synchronize()
    bound_, args = kernels.bind_many(gpu)
    start, compiled = bound_.start, weakref.ref(bound_.compiled)
    unloads = stub.count("cuModuleUnload")
    bound_.compiled = None  # Triton 3.9 unloads here what it loaded itself
    gc.collect()
    assert compiled() is None
    start(1, 1, 1, gpu.own_stream, args)
    assert stub.count("cuModuleUnload") == unloads


def test_a_dropped_kernel_function_frees_its_modules(stub, gpu):
    gpu.synchronize()
    loaded = stub.loaded
    out = trident.empty(128, device="cuda")._data
    fresh = Jit(kernels.zero_kernel.fn)
    launch(gpu, fresh, (1,), (out,), {"BLOCK": 64})
    assert stub.loaded == loaded + 1
    del fresh
    Jit(kernels.zero_kernel.fn).triton()  # Triton itself keeps the last function of each name
    gc.collect()
    gpu.synchronize()
    assert stub.loaded == loaded


# ---- rules 2 and 3: placeholders, arity, ranges --------------------------------------------------


@pytest.mark.parametrize("filler", [None, 0, "anything", object()])
def test_placeholders_are_skipped(stub, gpu, filler):
    bound_, args = kernels.bind_many(gpu)
    args = (*args[:2], filler, *args[3:8], filler, filler)
    bound_.start(1, 1, 1, gpu.own_stream, args)
    assert stub.launches()[-1].words[:3] == (args[0], args[1], args[3])


def test_the_number_of_arguments_is_checked(gpu):
    bound_, args = kernels.bind_many(gpu)
    bound_.check((1, 1, 1), args)
    for wrong in (args[:-1], (*args, 0), ()):
        with pytest.raises(TypeError, match=f"takes 10 arguments; got {len(wrong)}"):
            bound_.check((1, 1, 1), wrong)


@pytest.mark.parametrize("value", [2**31, 2**32 + 5, -(2**31) - 1])
def test_ints_out_of_range_are_refused(gpu, value):
    bound_, args = kernels.bind_many(gpu)
    with pytest.raises(OverflowError, match=r"many_kernel: n must lie in .* i32; got"):
        bound_.check((1, 1, 1), (*args[:4], value, *args[5:]))


@pytest.mark.parametrize(
    ("at", "value", "name"), [(0, 1.5, "a_ptr"), (4, 2.0, "n"), (7, "x", "scale"), (3, "x", "out")]
)
def test_kinds_of_arguments_are_checked(gpu, at, value, name):
    bound_, args = kernels.bind_many(gpu)
    with pytest.raises(TypeError, match=f"many_kernel: {name}"):
        bound_.check((1, 1, 1), (*args[:at], value, *args[at + 1 :]))


@pytest.mark.parametrize("number", [np.int64(5), np.float32(0.5), np.float64(0.5)])
def test_numpys_numbers_are_numbers(gpu, number):
    bound_, args = kernels.bind_many(gpu)
    at = 4 if isinstance(number, np.integer) else 7
    bound_.check((1, 1, 1), (*args[:at], number, *args[at + 1 :]))
    bound_.start(1, 1, 1, gpu.own_stream, (*args[:at], number, *args[at + 1 :]))


@pytest.mark.parametrize("value", [1j, "x", np.float32(1)])
def test_a_launch_of_wrong_arguments_is_refused(gpu, value):
    args, constants, options = kernels.many(gpu)
    with pytest.raises(TypeError, match="many_kernel: argument 7 must be an array, an int, a"):
        gpu.launch(kernels.many_kernel, (1,), (*args[:7], value), constants, options)


def test_a_value_beyond_int32_takes_a_kernel_with_int64(stub, gpu):
    """Triton 3.9's launcher would cut 2**32 + 5 to 5."""
    args, constants, options = kernels.many(gpu)
    for value in (5, 2**32 + 5, -(2**33)):
        gpu.launch(kernels.many_kernel, (1,), (*args[:4], value, *args[5:]), constants, options)
        assert stub.launches()[-1].words[3] == value % 2**64


# ---- rule 4: the grid ----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(65536, 65535, 1), (2**30, 2, 1), (2**16, 2**8, 2**8)])
def test_more_programs_than_a_c_int_are_refused(stub, gpu, grid):
    bound_, args = kernels.bind_many(gpu)
    before = stub.n_launches
    for go in (
        lambda: bound_.start(*grid, gpu.own_stream, args), lambda: bound_.check(grid, args)
    ):  # fmt: skip
        with pytest.raises(DeviceError, match="may have 2147483647 programs at most"):
            go()
    assert stub.n_launches == before


@pytest.mark.parametrize("grid", [(1, 65536, 1), (1, 1, 65536), (2**31, 1, 1), (-1, 1, 1)])
def test_long_axes_are_refused(stub, gpu, grid):
    bound_, args = kernels.bind_many(gpu)
    before = stub.n_launches
    with pytest.raises(DeviceError, match="the grid may be 2147483647 x 65535 x 65535 at most"):
        bound_.start(*grid, gpu.own_stream, args)
    assert stub.n_launches == before


def test_the_largest_grids_are_launched(stub, gpu):
    bound_, args = kernels.bind_many(gpu)
    for grid in ((2**31 - 1, 1, 1), (1, 65535, 1), (1, 1, 65535), (32768, 65535, 1)):
        bound_.start(*grid, gpu.own_stream, args)
        assert stub.launches()[-1].grid == grid


@pytest.mark.parametrize("grid", [(0,), (0, 5), (5, 0), (5, 5, 0)])
def test_a_grid_of_zero_never_launches(stub, gpu, grid):
    args, constants, _ = kernels.many(gpu)
    before = stub.n_launches
    runtime.launch(kernels.many_kernel, grid, *args, **constants)
    bound_, plain = kernels.bind_many(gpu)
    bound_.start(*(*grid, 1, 1)[:3], gpu.own_stream, plain)
    assert stub.n_launches == before


# ---- rule 5: shared memory, warps ----------------------------------------------------------------


def test_too_much_shared_memory_is_a_sentence(stub, gpu):
    a, b, out = (trident.empty(1024 * 1024, device="cuda")._data for _ in range(3))
    loads = stub.count("cuModuleLoadData")
    with pytest.raises(DeviceError, match=r"wide_dot_kernel: needs \d+ bytes of shared memory"):
        launch(gpu, kernels.wide_dot_kernel, (1,), (a, b, out), {"BLOCK": 128}, num_stages=2)
    assert stub.count("cuModuleLoadData") == loads


def test_more_than_48_kib_of_shared_memory_are_asked_for(stub, gpu):
    a, b, out = (trident.empty(1024 * 1024, device="cuda")._data for _ in range(3))
    launch(gpu, kernels.wide_dot_kernel, (1,), (a, b, out), {"BLOCK": 64}, num_stages=4)
    assert 49152 < stub.launches()[-1].shared <= gpu.shared_memory


def test_too_many_warps_are_a_sentence(gpu, monkeypatch):
    args, constants, _ = kernels.many(gpu)
    limited = bound.libcuda.cu.cuFuncGetAttribute
    attributes = bound.libcuda.driver().CUfunction_attribute
    monkeypatch.setattr(
        bound.libcuda.cu, "cuFuncGetAttribute",
        lambda which, f: 512
        if which == attributes.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        else limited(which, f),
        raising=False,
    )  # fmt: skip
    spec = aot.specialize(kernels.many_kernel, args, constants, {"num_warps": 32})
    with pytest.raises(DeviceError, match=r"32 warps are 1024 threads.* runs 512 at most"):
        gpu.bind(spec)


# ---- rule 6: scratch memory ----------------------------------------------------------------------


def described(gpu):
    x, out = (trident.empty(256, 256, device="cuda")._data for _ in range(2))
    return (x, out, 256, 256), {"BLOCK": 64}


def scratch_block(stub, gpu):
    launched = stub.launches()[-1]
    assert launched.name == "described_kernel"
    return launched.words[-2], launched.words[-1]


def test_global_scratch_comes_from_the_allocator(stub, gpu):
    args, constants = described(gpu)
    launch(gpu, kernels.described_kernel, (4, 4), args, constants)
    scratch, profile = scratch_block(stub, gpu)
    assert scratch % 128 == 0 and profile == 0
    (found,) = kernels.described_kernel.bound.values()
    size = 16 * found.compiled.metadata.global_scratch_size
    assert size > 0
    base, room = bound.libcuda.cu.cuMemGetAddressRange(scratch)
    assert scratch + size <= int(base) + int(room)
    before = gpu.allocator.allocated
    launch(gpu, kernels.described_kernel, (4, 4), args, constants)
    assert gpu.allocator.allocated == before  # given back


def test_scratch_is_not_shared_with_what_lives(stub, gpu):
    args, constants = described(gpu)
    launch(gpu, kernels.described_kernel, (4, 4), args, constants)
    scratch, _ = scratch_block(stub, gpu)
    for a in (args[0], args[1]):
        assert not a.buffer.ptr <= scratch < a.buffer.ptr + a.buffer.nbytes


def test_scratch_works_in_every_thread(stub, gpu):
    """Triton keeps its allocator in a context variable, which is empty in a new thread."""
    args, constants = described(gpu)
    failed = []

    def work():
        try:
            launch(gpu, kernels.described_kernel, (4, 4), args, constants)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
    assert scratch_block(stub, gpu)[0]


def test_scratch_of_another_stream_is_another_one(stub, gpu):
    args, constants = described(gpu)
    launch(gpu, kernels.described_kernel, (4, 4), args, constants)
    first, _ = scratch_block(stub, gpu)
    with runtime.stream.Stream():
        launch(gpu, kernels.described_kernel, (4, 4), args, constants)
    second, _ = scratch_block(stub, gpu)
    assert first != second


# ---- rule 7: hooks -------------------------------------------------------------------------------


@pytest.fixture
def hooks():
    from triton import knobs

    added = []

    def add(name, function):
        getattr(knobs.runtime, name).add(function)
        added.append((name, function))

    yield add
    for name, function in added:
        getattr(knobs.runtime, name).remove(function)


def test_launch_hooks_see_the_kernel(stub, gpu, hooks):
    bound_, args = kernels.bind_many(gpu)
    order = []

    def enter(lazy):
        order.append(("enter", lazy.get()))
        order.append(("launches", stub.n_launches))

    hooks("launch_enter_hook", enter)
    hooks("launch_exit_hook", lambda lazy: order.append(("exit", lazy.get()["name"])))
    before = stub.n_launches
    bound_.start(2, 1, 1, gpu.own_stream, args)
    assert stub.n_launches == before + 1
    (_, seen), (_, at_enter), (_, name) = order
    assert seen["name"] == name == "many_kernel"
    assert (seen["stream"], seen["function"]) == (gpu.own_stream, bound_.function)
    assert at_enter == before


def test_without_hooks_nothing_is_called(gpu, hooks):
    bound_, args = kernels.bind_many(gpu)
    calls = []
    hooks("launch_enter_hook", calls.append)
    bound_.start(2, 1, 1, gpu.own_stream, args)
    assert len(calls) == 1
    from triton import knobs

    knobs.runtime.launch_enter_hook.remove(calls.append)
    bound_.start(2, 1, 1, gpu.own_stream, args)
    assert len(calls) == 1


def test_a_hook_that_replaces_the_chain_is_called(gpu, monkeypatch):
    from triton import knobs

    bound_, args = kernels.bind_many(gpu)
    calls = []
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", calls.append)
    bound_.start(2, 1, 1, gpu.own_stream, args)
    assert len(calls) == 1


def test_loading_hooks_are_called(gpu, hooks):
    seen = []
    hooks("kernel_load_start_hook", lambda *a: seen.append(("start", a[2])))
    hooks("kernel_load_end_hook", lambda *a: seen.append(("end", a[2], a[0] != 0, a[1] != 0)))
    kernels.bind_many(gpu)
    assert seen == [("start", "many_kernel"), ("end", "many_kernel", True, True)]


# ---- rule 8: capture -----------------------------------------------------------------------------


def test_a_new_kernel_in_a_capture_is_a_sentence(stub, gpu):
    cu = bound.libcuda.cu
    bound_, args = kernels.bind_many(gpu)
    with kernels.capture(gpu.own_stream) as graph:  # which is not spoilt by it
        bound_.start(3, 1, 1, gpu.own_stream, args)
        with pytest.raises(DeviceError, match=r"many_kernel: .* Run the same step once before"):
            kernels.bind_many(gpu)
    program = cu.cuGraphInstantiate(graph[0], 0)
    before = stub.n_launches
    cu.cuGraphLaunch(program, gpu.own_stream)
    (replayed,) = stub.launches(before)
    assert replayed.replayed and replayed.grid == (3, 1, 1)


def test_fresh_memory_in_a_capture_does_not_spoil_it(stub, gpu):
    used = stub.used()
    with kernels.capture(gpu.own_stream) as graph, gpu.allocator.private_pool():
        block = gpu.allocate(64 << 20)
    assert stub.used() >= used + (64 << 20)
    assert graph
    del block


# ---- errors --------------------------------------------------------------------------------------


def test_a_failed_launch_says_what_happened(stub, gpu):
    bound_, args = kernels.bind_many(gpu)
    stub.fail("cuLaunchKernelEx", 700)
    with pytest.raises(CudaError, match="many_kernel, grid 2 x 1 x 1") as found:
        bound_.start(2, 1, 1, gpu.own_stream, args)
    assert found.value.code == 700
    assert found.value.call == "cuLaunchKernelEx"
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(found.value)
    assert "Way out: " in str(found.value)


def test_arrays_of_the_cpu_are_refused(gpu):
    args, constants, options = kernels.many(gpu)
    with pytest.raises(DeviceError, match="many_kernel: its arrays must be on one device"):
        gpu.launch(kernels.many_kernel, (1,), (np.zeros(4), *args[1:]), constants, options)


# ---- without Triton's launcher -------------------------------------------------------------------


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(launchers, "_why_own", "no C compiler (test)")


def test_without_a_compiler_the_same_arrives(stub, gpu, no_compiler):
    args, constants, options = kernels.many(gpu)
    spec = aot.specialize(kernels.many_kernel, args, constants, options)
    plain = (args[0].ptr, args[1].ptr, None, args[3].ptr, -5, 1, -(2**40), 0.5, None, None)
    own = gpu.bind(spec)
    own.start(7, 3, 2, gpu.own_stream, plain)
    mine = stub.launches()[-1]
    launchers._why_own = None
    gpu.bind(spec).start(7, 3, 2, gpu.own_stream, plain)
    theirs = stub.launches()[-1]
    for name in ("name", "grid", "block", "shared", "stream", "n_params", "words", "attributes"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert mine.function != theirs.function


@pytest.mark.parametrize(
    ("kind", "value", "bits"),
    [
        ("fp16", 1.5, 0x3E00), ("bf16", 1.5, 0x3FC0), ("fp32", -2.0, 0xC0000000),
        ("fp64", 0.5, 0x3FE0000000000000), ("i8", 100, 100), ("i16", -2, 0xFFFE), ("u8", 200, 200),
        ("u16", 60000, 60000), ("u32", 2**32 - 1, 2**32 - 1), ("u64", 2**64 - 1, 2**64 - 1),
        ("i1", 1, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("own", [True, False])
def test_every_kind_of_number_arrives(stub, gpu, kind, value, bits, own, request):
    """With our launcher and with Triton's."""
    if own:
        request.getfixturevalue("no_compiler")
    names = ("out_ptr", "a", "b", "c", "d", "e", "BLOCK")
    kinds = ("*fp32", kind, "i32", kind, "fp32", kind, "constexpr")
    spec = aot.Specialization(
        kernels.halves_kernel, tuple(zip(names, kinds)), (((6,), 32),), (0,), (("num_warps", 1),)
    )
    out = trident.empty(32, device="cuda")._data
    bound_ = gpu.bind(spec)
    bound_.start(1, 1, 1, gpu.own_stream, (out.ptr, value, 7, value, 1.0, value, None))
    words = stub.launches()[-1].words
    assert (words[0], words[1], words[2], words[3], words[5]) == (out.ptr, bits, 7, bits, bits)


def test_without_a_compiler_scratch_and_hooks_work(stub, gpu, no_compiler, hooks):
    fresh = Jit(kernels.described_kernel.fn)
    seen = []
    hooks("launch_enter_hook", lambda lazy: seen.append(lazy.get()["name"]))
    args, constants = described(gpu)
    launch(gpu, fresh, (4, 4), args, constants)
    assert scratch_block(stub, gpu)[0] % 128 == 0
    assert seen == ["described_kernel"]


def test_without_a_compiler_a_failed_launch_says_what_happened(stub, gpu, no_compiler):
    bound_, args = kernels.bind_many(gpu)
    stub.fail("cuLaunchKernel", 719)
    with pytest.raises(CudaError, match=r"CUDA_ERROR_LAUNCH_FAILED.*many_kernel, grid 2 x 1 x 1"):
        bound_.start(2, 1, 1, gpu.own_stream, args)
    with pytest.raises(OverflowError, match="many_kernel: an argument does not fit"):
        bound_.start(2, 1, 1, gpu.own_stream, (*args[:4], 2**40, *args[5:]))


@pytest.mark.parametrize(
    "options", [{"num_ctas": 2}, {"launch_pdl": True}, {"launch_cooperative_grid": True}]
)
def test_without_a_compiler_attributes_are_launched_alike(stub, gpu, no_compiler, options):
    out = trident.empty(128, device="cuda")._data
    spec = aot.specialize(kernels.zero_kernel, (out,), {"BLOCK": 128}, {"num_warps": 4, **options})
    found = []
    for why in ("no C compiler (test)", None):
        launchers._why_own = why
        gpu.bind(spec).start(3, 2, 1, gpu.own_stream, (out.ptr, None))
        found.append(stub.launches()[-1])
    mine, theirs = found
    assert mine.attributes == theirs.attributes == (2 if "num_ctas" in options else 1)
    assert mine.grid == theirs.grid == (3 * options.get("num_ctas", 1), 2, 1)
    assert (mine.words, mine.block, mine.shared) == (theirs.words, theirs.block, theirs.shared)


def test_threads_launch_side_by_side(stub, gpu, no_compiler):
    """The parameters of one launch never get into another one's."""
    bound_, args = kernels.bind_many(gpu)
    before = stub.n_launches

    def work(k: int) -> None:
        for i in range(200):
            own = (*args[:4], 16 * (1000 * k + i), *args[5:6], 2**40 + k, *args[7:])
            bound_.start(k + 1, 1, 1, gpu.own_stream, own)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    done = stub.launches(before)
    assert len(done) == 800
    for x in done:
        k = x.grid[0] - 1
        assert x.words[4] == 2**40 + k
        assert x.words[3] // 16 // 1000 == k


def test_a_launcher_that_is_not_known_is_not_used(gpu, monkeypatch):
    monkeypatch.setattr(triton_driver, "launcher_form", lambda: None)
    monkeypatch.setattr(launchers, "_why_own", None)
    with pytest.warns(UserWarning, match="started through cuLaunchKernel, "):
        bound_, args = kernels.bind_many(gpu)
    bound_.start(1, 1, 1, gpu.own_stream, args)
    assert "not one that trident knows" in launchers.why_own()


def test_launch_speed(gpu):
    """A start with ten arguments takes microseconds, not the ten of ``kernel[grid](...)``."""
    import timeit

    bound_, args = kernels.bind_many(gpu)
    start, stream = bound_.start, gpu.own_stream
    once = min(timeit.repeat(lambda: start(1, 1, 1, stream, args), number=2000, repeat=9)) / 2000
    assert once < 5e-6, f"{once * 1e6:.2f} us"
