"""The stub itself: that it refuses what a driver refuses."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.stub import WORDS, build, missing
from trident.errors import CudaError, OutOfMemoryError
from trident.runtime import libcuda
from trident.runtime.libcuda import cu
from trident.runtime.stream import Event, Stream


@pytest.fixture(autouse=True)
def _active(gpu):
    gpu.activate()


def begin(stream: Stream, mode: str = "THREAD_LOCAL") -> None:
    modes = libcuda.driver().CUstreamCaptureMode
    cu.cuStreamBeginCapture(stream.handle, getattr(modes, f"CU_STREAM_CAPTURE_MODE_{mode}"))


def code(call, *args) -> int:
    with pytest.raises((CudaError, OutOfMemoryError)) as found:
        call(*args)
    return getattr(found.value, "code", 2)


def test_it_is_built_once():
    assert missing() is None
    assert build() == build()
    assert (build() / "libcuda.so.1").exists()


def test_counts_and_injected_errors(stub):
    before = stub.count("cuMemAlloc_v2")
    stub.fail("cuMemAlloc_v2", 2, skip=1, times=2)
    kept = [int(cu.cuMemAlloc(8))]
    for _ in range(2):
        assert code(cu.cuMemAlloc, 8) == 2
    kept.append(int(cu.cuMemAlloc(8)))
    assert stub.count("cuMemAlloc_v2") == before + 4
    for p in kept:
        cu.cuMemFree(p)
    with pytest.raises(ValueError, match="no function 'cuBrew'"):
        stub.fail("cuBrew", 1)
    with pytest.raises(ValueError, match="no function 'cuBrew'"):
        stub.count("cuBrew")


def test_memory_is_limited_and_accounted_for(stub):
    free, total = map(int, cu.cuMemGetInfo())
    p = int(cu.cuMemAlloc(1000))
    assert int(cu.cuMemGetInfo()[0]) == free - 1024
    assert stub.used() == total - free + 1024
    assert code(cu.cuMemAlloc, total) == 2
    cu.cuMemFree(p)
    assert int(cu.cuMemGetInfo()[0]) == free
    assert code(cu.cuMemFree, p) == 1  # twice
    assert code(cu.cuMemAlloc, 0) == 1


def test_copies_are_done_and_their_ranges_checked():
    p = int(cu.cuMemAlloc(4096))
    host = np.arange(512.0)
    cu.cuMemcpyHtoD(p, host.ctypes.data, 4096)
    back = np.zeros(512)
    cu.cuMemcpyDtoH(back.ctypes.data, p, 4096)
    np.testing.assert_array_equal(back, host)
    assert code(cu.cuMemcpyHtoD, p + 8, host.ctypes.data, 4096) == 1
    assert code(cu.cuMemcpyHtoD, host.ctypes.data, host.ctypes.data, 8) == 1
    cu.cuMemsetD32(p, 7, 1024)
    cu.cuMemcpyDtoH(back.ctypes.data, p, 4096)
    assert (back.view(np.int32) == 7).all()
    cu.cuMemFree(p)


def test_calls_need_a_context():
    found = []

    def work():
        found.append(code(cu.cuMemAlloc, 8))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [201]


def test_streams_of_another_device_are_refused(gpu):
    there = Stream(1)
    gpu.activate()
    assert code(cu.cuMemsetD8Async, 0, 0, 0, there.handle) == 201


# ---- capture -------------------------------------------------------------------------------------


def test_the_legacy_stream_cannot_be_captured():
    modes = libcuda.driver().CUstreamCaptureMode
    for handle in (0, 1):
        args = (handle, modes.CU_STREAM_CAPTURE_MODE_RELAXED)
        assert code(cu.cuStreamBeginCapture, *args) == 900


def test_captured_work_is_done_at_replay(stub):
    s = Stream()
    p = int(cu.cuMemAlloc(64))
    host = np.zeros(16, np.int32)
    begin(s)
    cu.cuMemsetD32Async(p, 5, 16, s.handle)
    cu.cuMemcpyDtoHAsync(host.ctypes.data, p, 64, s.handle)
    graph = cu.cuStreamEndCapture(s.handle)
    assert not host.any()
    nodes, count = cu.cuGraphGetNodes(graph, 2)[:2]
    assert int(count) == len(nodes) == 2
    program = cu.cuGraphInstantiate(graph, 0)
    cu.cuGraphLaunch(program, s.handle)
    assert (host == 5).all()
    cu.cuMemFree(p)
    assert code(cu.cuGraphLaunch, program, s.handle) == 700  # its memory is gone


@pytest.mark.parametrize(
    "spoiler",
    [
        lambda s: cu.cuMemAlloc(64), lambda s: cu.cuStreamSynchronize(s.handle),
        lambda s: cu.cuStreamQuery(s.handle), lambda s: cu.cuCtxSynchronize(),
        lambda s: cu.cuMemcpyDtoH(0, 0, 0),
    ],
)  # fmt: skip
def test_what_spoils_a_capture(spoiler):
    s = Stream()
    begin(s)
    assert code(spoiler, s) == 900
    assert code(cu.cuMemsetD8Async, 0, 0, 0, s.handle) == 901
    assert code(cu.cuStreamEndCapture, s.handle) == 901
    s.synchronize()  # and then it is an ordinary stream again


def test_relaxed_captures_and_threads_allow_more(stub):
    s = Stream()
    begin(s, "RELAXED")
    cu.cuMemFree(cu.cuMemAlloc(64))
    cu.cuStreamEndCapture(s.handle)
    for mode, expected in (("THREAD_LOCAL", []), ("GLOBAL", [900])):
        begin(s, mode)
        found = []

        def work(found=found):
            gpu = s.device
            gpu.activate()
            try:
                cu.cuMemFree(cu.cuMemAlloc(64))
            except CudaError as error:
                found.append(error.code)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == expected
        if not expected:
            cu.cuStreamEndCapture(s.handle)
    assert code(cu.cuStreamEndCapture, s.handle) == 901


def test_a_blocking_stream_and_the_legacy_stream():
    s = Stream(stream=int(cu.cuStreamCreate(0)))
    begin(s)
    p = 0
    assert code(cu.cuMemsetD8Async, p, 0, 0, 0) == 906
    assert code(cu.cuStreamEndCapture, s.handle) == 901
    cu.cuStreamDestroy(s.handle)


def test_streams_join_a_capture_and_must_come_back():
    a, b = Stream(), Stream()
    begin(a)
    fork = a.record_event()
    b.wait_event(fork)
    assert b.is_capturing()
    cu.cuMemsetD8Async(0, 0, 0, b.handle)
    a.wait_event(b.record_event())
    cu.cuStreamEndCapture(a.handle)
    assert not b.is_capturing()
    begin(a)
    b.wait_event(a.record_event())
    assert code(cu.cuStreamEndCapture, a.handle) == 904
    begin(a)
    assert code(cu.cuStreamEndCapture, b.handle) == 401  # b captures nothing
    cu.cuStreamEndCapture(a.handle)


def test_a_capture_depends_on_nothing_outside():
    a, b = Stream(), Stream()
    outside = b.record_event()
    begin(a)
    assert code(cu.cuStreamWaitEvent, a.handle, outside.handle, 0) == 905
    assert code(cu.cuStreamEndCapture, a.handle) == 901


def test_another_thread_must_not_end_it():
    s = Stream()
    begin(s)
    found = []

    def work():
        s.device.activate()
        found.append(code(cu.cuStreamEndCapture, s.handle))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [908]
    cu.cuStreamEndCapture(s.handle)


# ---- modules and launches ------------------------------------------------------------------------


def test_damaged_and_foreign_binaries_are_refused(gpu):
    from tests.stub import kernels
    from trident.runtime import aot

    assert code(cu.cuModuleLoadData, b"no binary at all" * 8) == 200
    args, constants, options = kernels.many(gpu)
    spec = aot.specialize(kernels.many_kernel, args, constants, options)
    other = spec.compile("sm_80").asm["cubin"]
    gpu.activate()
    assert code(cu.cuModuleLoadData, other) == 209
    module = int(cu.cuModuleLoadData(spec.compile("sm_90").asm["cubin"]))
    assert code(cu.cuModuleGetFunction, module, b"no_such_kernel") == 500
    function = int(cu.cuModuleGetFunction(module, b"many_kernel"))
    cu.cuModuleUnload(module)
    attributes = libcuda.driver().CUfunction_attribute
    assert code(cu.cuFuncGetAttribute, attributes.CU_FUNC_ATTRIBUTE_NUM_REGS, function) == 400


def test_parameters_are_read_from_the_binary(stub, gpu):
    from tests.stub import kernels

    bound, args = kernels.bind_many(gpu)
    bound.start(1, 1, 1, gpu.own_stream, args)
    launch = stub.launches()[-1]
    assert launch.n_params == len(launch.words) == 8 < WORDS


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, 65536, 1), (1, 1, 65536)])
def test_grids_that_a_gpu_refuses(gpu, grid):
    from tests.stub import kernels

    bound, _ = kernels.bind_many(gpu)
    args = (bound.function, *grid, 128, 1, 1, 0, gpu.own_stream, 0, 0)
    assert code(cu.cuLaunchKernel, *args) == 1


def test_the_log(stub, gpu):
    since = stub.n_steps
    s = Stream()
    e = Event().record(s)
    s.synchronize()
    steps = [(x.name, x.stream, x.a) for x in stub.log(since)]
    assert steps == [
        ("cuStreamCreate", s.handle, 1), ("cuEventCreate", 0, e.handle),
        ("cuEventRecord", s.handle, e.handle), ("cuStreamSynchronize", s.handle, 0),
    ]  # fmt: skip
