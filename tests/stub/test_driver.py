"""Our driver object for Triton, what it relies on, and why there may be no GPU."""

from __future__ import annotations

import abc
import threading

import numpy as np
import pytest

import trident
from tests.stub import build, kernels
from trident.runtime import libcuda, triton_driver
from trident.runtime.stream import Stream

# ---- what we rely on -----------------------------------------------------------------------------


def test_the_installed_triton_is_as_we_need_it():
    assert triton_driver.contract() == []
    assert triton_driver.launcher_form() in ("shared", "generated")


def broken() -> str:
    return "\n".join(triton_driver.contract())


def test_an_old_triton_is_reported(monkeypatch):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.5.1")
    assert "Triton 3.5.1 is installed; 3.6 or newer is needed" in broken()


def test_a_changed_compile_is_reported(monkeypatch):
    import triton

    monkeypatch.setattr(triton, "compile", lambda src, target: None)
    assert "triton.compile takes no options; it takes src, target" in broken()


def test_a_changed_source_class_is_reported(monkeypatch):
    import triton.compiler

    class ASTSource:
        def __init__(self, fn, signature, constants=None):
            pass

    monkeypatch.setattr(triton.compiler, "ASTSource", ASTSource)
    text = broken()
    assert "ASTSource takes no constexprs" in text and "ASTSource takes no attrs" in text


def test_a_changed_launcher_is_reported(monkeypatch):
    nv = triton_driver.nvidia()

    class CudaLauncher:
        def __init__(self, source, metadata):
            self.go = None

    monkeypatch.setattr(nv, "CudaLauncher", CudaLauncher)
    text = broken()
    assert "CudaLauncher takes no src" in text and "CudaLauncher sets no launch" in text


def test_other_launcher_arguments_are_reported(monkeypatch):
    monkeypatch.setattr(triton_driver, "SHARED", "iii")
    monkeypatch.setattr(triton_driver, "GENERATED", "iii")
    assert "C launcher takes other arguments" in broken()


def test_a_missing_class_is_reported(monkeypatch):
    monkeypatch.delattr(triton_driver.nvidia(), "CudaUtils")
    assert "triton.backends.nvidia.driver has no CudaUtils" in broken()


def test_a_driver_with_more_duties_is_reported(monkeypatch):
    base = triton_driver.nvidia().CudaDriver
    duty = abc.abstractmethod(lambda self: None)
    monkeypatch.setattr(base, "brew", duty, raising=False)
    monkeypatch.setattr(base, "__abstractmethods__", frozenset({"brew"}))
    monkeypatch.setattr(triton_driver, "driver_class", triton_driver.driver_class.__wrapped__)
    assert "Triton's drivers must have brew, which ours has not" in broken()


def test_hooks_of_another_kind_are_reported(monkeypatch):
    from triton import knobs

    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda x: None)
    assert "launch_enter_hook keeps its hooks in no list" in broken()


def test_changed_metadata_is_reported(monkeypatch):
    monkeypatch.setattr(
        triton_driver, "_METADATA", (*triton_driver._METADATA, "number_of_the_beast")
    )
    assert "the metadata of a compiled kernel has no number_of_the_beast" in broken()


def test_a_kernel_without_scratch_pointers_is_reported(monkeypatch):
    from trident.runtime import aot

    compile_ = aot.Specialization.compile

    def changed(self, target):
        kernel = compile_(self, target)
        kernel.asm["ptx"] = kernel.asm["ptx"].replace(".param .u64", ".other", 1)
        kernel.packed_metadata = (8, 1, 0)
        return kernel

    monkeypatch.setattr(aot.Specialization, "compile", changed)
    text = broken()
    assert "has 3 parameters in its PTX; 4 are expected" in text
    assert "packed_metadata must start with" in text


def test_a_check_that_fails_is_reported(monkeypatch):
    from trident.runtime import aot

    def fails(self, target):
        raise LookupError("no such target")

    monkeypatch.setattr(aot.Specialization, "compile", fails)
    assert "kernel: LookupError('no such target')" in broken()


# ---- the driver object ---------------------------------------------------------------------------


def test_the_active_driver_is_put_back(gpu):
    from triton.runtime.driver import driver as active

    theirs = object()
    before = active._active
    try:
        for outer in (theirs, None):
            active._active = outer
            with triton_driver.installed() as ours:
                assert active.active is ours
                with triton_driver.installed():
                    assert active.active is ours
                assert active.active is ours
            assert active._active is outer
            with pytest.raises(KeyError), triton_driver.installed():
                raise KeyError
            assert active._active is outer
            kernels.bind_many(gpu)
            trident.ones(5, device="cuda") + 1
            assert active._active is outer
    finally:
        active._active = before


def test_one_thread_at_a_time(gpu):
    order = []
    inside = threading.Event()

    def other():
        inside.wait()
        with triton_driver.installed():
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with triton_driver.installed():
        inside.set()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_what_triton_asks(gpu):
    ours = triton_driver.driver()
    assert ours.get_current_device() == 0
    assert ours.get_current_stream(0) == gpu.own_stream
    assert ours.get_device_capability(0) == (9, 0)
    target = ours.get_current_target()
    assert (target.backend, target.arch, target.warp_size) == ("cuda", 90, 32)
    with Stream() as s:
        assert ours.get_current_stream(0) == s.handle
    ours.set_current_device(1)
    assert ours.get_current_device() == 1
    ours.set_current_device(0)
    with pytest.raises(TypeError, match="no torch device interface"):
        ours.get_active_torch_device()
    assert ours.map_python_to_cpp_type("*fp32") == "CUdeviceptr"


class Tensor:
    """What Triton's own launch takes: a dtype and an address."""

    def __init__(self, x):
        self.x, self.dtype = x, np.dtype(np.float32)

    def data_ptr(self):
        return self.x.data_ptr()


def test_tritons_own_launch_works_with_it(stub, gpu):
    x = trident.ones(128, device="cuda")
    with triton_driver.installed(), Stream() as s:
        kernels.zero_kernel.triton()[(3,)](Tensor(x), BLOCK=128, enable_fp_fusion=True)
    done = stub.launches()[-1]
    assert (done.name, done.grid, done.stream) == ("zero_kernel", (3, 1, 1), s.handle)
    assert done.words[0] == x.data_ptr()


def test_benchmark(stub, gpu):
    x = trident.ones(128, device="cuda")
    bench = triton_driver.driver().get_benchmarker()
    before = stub.n_launches
    middle = bench(lambda: x + 1, warmup=0.1, rep=1)
    assert 0 < middle < 100
    assert stub.n_launches > before + 3
    low, high = bench(lambda: x + 1, warmup=0.1, rep=1, quantiles=(0.1, 0.9))
    assert 0 < low <= high


def test_profile_scratch_is_zeroed(stub, gpu):
    stub.fill(0xFF)
    try:
        block = triton_driver.driver().allocate_default_profile_scratch(
            5 << 20, 128, gpu.own_stream
        )
    finally:
        stub.fill(0)
    host = np.empty(1000, np.uint8)
    libcuda.cu.cuMemcpyDtoH(host.ctypes.data, block.data_ptr(), 1000)
    assert not host.any()


def test_where_the_library_lies(stub, monkeypatch):
    assert libcuda.library_folder() == str(build())
    from triton import knobs

    nv = triton_driver.nvidia()
    asked = []

    class CudaUtils:
        def __init__(self):
            asked.append(knobs.nvidia.libcuda_path)
            if len(asked) == 1:
                raise AssertionError("libcuda.so cannot found!")  # as Triton says it

    monkeypatch.setattr(nv, "CudaUtils", CudaUtils)
    monkeypatch.setattr(knobs.nvidia, "libcuda_path", None)
    assert isinstance(triton_driver._utils(nv), CudaUtils)
    assert asked == [None, str(build())]


# ---- the driver's functions ----------------------------------------------------------------------


def test_calls_are_checked_and_give_values(gpu):
    gpu.activate()
    assert int(libcuda.cu.cuDriverGetVersion()) == 13010
    free, total = libcuda.cu.cuMemGetInfo()
    assert 0 < int(free) <= int(total) == 4 << 30
    assert libcuda.cu.cuCtxSynchronize() is None
    assert libcuda.cu.cuMemAlloc is libcuda.cu.cuMemAlloc  # looked up once
    with pytest.raises(AttributeError):
        libcuda.cu.cuBrewCoffee  # noqa: B018


def test_whose_memory_a_pointer_is(gpu):
    x = trident.ones(4, device="cuda")
    y = trident.ones(4, device="cuda:1")
    assert libcuda.on_device(x.data_ptr()) == 0
    assert libcuda.on_device(y.data_ptr()) == 1
    host = np.ones(4)
    assert libcuda.on_device(host.ctypes.data) is None
    assert not libcuda.pinned(host.ctypes.data) and not libcuda.pinned(x.data_ptr())
    pointer = int(libcuda.cu.cuMemHostAlloc(64, 0))
    assert libcuda.pinned(pointer) and libcuda.on_device(pointer) is None
    libcuda.cu.cuMemFreeHost(pointer)
