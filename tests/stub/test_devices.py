"""``CudaDevice``: what it knows, copies, several of them, memory that runs out."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import trident
from tests.stub import kernels
from trident import config, runtime
from trident.errors import CudaError, DeviceError, OutOfMemoryError
from trident.runtime import libcuda
from trident.runtime.device import cuda_device, cuda_of, current_index, select


@pytest.fixture
def second():
    yield cuda_device(1)
    select(0)


def test_what_a_device_says(gpu):
    assert gpu.capability == (9, 0)
    assert gpu.architecture == "sm_90"
    assert gpu.multiprocessors == 132
    assert gpu.name == "Stub GPU 0"
    assert gpu.total_memory == 4 << 30
    assert gpu.shared_memory == 232448
    assert not gpu.interpreted and gpu.type == "cuda"
    assert repr(gpu) == "cuda:0"


def test_the_context_is_retained_once(stub, gpu):
    trident.ones(3, device="cuda").cpu()
    assert stub.retained(0) == 1


def test_current(gpu):
    assert runtime.current() is gpu
    assert runtime.is_available()
    assert runtime.device.count() == 2


def test_inside_interpret_cuda_is_the_host(gpu):
    with trident.interpret():
        assert runtime.current().interpreted
        assert runtime.device.count() == 1
        assert runtime.device.numbered(0).interpreted
    assert runtime.current() is gpu


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [d.name for d in trident.dtypes.ALL])
def test_values_go_and_come_back(gpu, name):
    dtype = trident.dtypes.by_name(name)
    values = np.arange(24).reshape(2, 3, 4).astype(dtype.np)
    x = trident.tensor(values, device="cuda", dtype=dtype)
    assert x._data.device is gpu
    np.testing.assert_array_equal(x._data.numpy(), values)


def test_a_host_array_that_is_not_contiguous(gpu):
    values = np.arange(24.0).reshape(4, 6)[::2, ::-2]
    np.testing.assert_array_equal(gpu.from_host(values).numpy(), values)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose((2, 0, 1)), lambda x: x.transpose((1, 0, 2)), lambda x: x[1],
        lambda x: x[:1], lambda x: x[1:, None], lambda x: x.swapaxes(0, 2),
    ],
)  # fmt: skip
def test_permuted_arrays_come_back_without_a_kernel(stub, gpu, view):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    x = gpu.from_host(values)
    before = stub.n_launches
    got = view(x).numpy()
    assert stub.n_launches == before
    np.testing.assert_array_equal(got, view(values))
    assert got.flags.c_contiguous


def test_a_permuted_target_is_filled(stub, gpu):
    x = gpu.from_host(np.zeros((3, 5), np.float32))
    values = np.arange(15, dtype=np.float32).reshape(5, 3)
    before = stub.n_launches
    gpu.copy_in(x.transpose((1, 0)), values)
    assert stub.n_launches == before
    np.testing.assert_array_equal(x.numpy(), values.T)


def test_a_strided_target_takes_a_kernel(stub, gpu):
    x = gpu.from_host(np.zeros((4, 6), np.float32))
    before = stub.n_launches
    gpu.copy_in(x[:, ::2], np.ones((4, 3), np.float32))
    (copy,) = stub.launches(before)
    assert copy.words[1] == x.ptr  # out_ptr


def test_a_strided_source_takes_a_kernel(stub, gpu):
    x = gpu.from_host(np.zeros((4, 6), np.float32))
    before = stub.n_launches
    assert x[:, ::2].numpy().shape == (4, 3)
    (copy,) = stub.launches(before)
    assert copy.words[0] == x.ptr  # x_ptr


def test_copy_in_converts_and_broadcasts(gpu):
    x = gpu.from_host(np.zeros((2, 3), np.float32))
    gpu.copy_in(x, np.arange(3))
    np.testing.assert_array_equal(x.numpy(), [[0, 1, 2], [0, 1, 2]])


def test_empty_arrays(stub, gpu):
    steps = stub.n_steps
    x = gpu.from_host(np.zeros((0, 3), np.float32))
    assert x.numpy().shape == (0, 3)
    assert not [s for s in stub.log(steps) if "emcpy" in s.name]


def test_reading_waits_for_the_current_stream_alone(stub, gpu):
    x = trident.ones(4, device="cuda")
    other = runtime.stream.Stream()
    stub.hold(other.handle)
    since = stub.n_steps
    x.cpu()
    waited = [(s.name, s.stream) for s in stub.log(since) if "Synchronize" in s.name]
    assert waited == [("cuStreamSynchronize", gpu.own_stream)]
    assert not other.query()
    trident.runtime.current().synchronize()
    assert other.query()


def test_writing_does_not_wait(stub, gpu):
    since = stub.n_steps
    gpu.from_host(np.ones(4, np.float32))
    assert not [s for s in stub.log(since) if "Synchronize" in s.name]


def test_pinned_memory_is_read_before_the_call_returns(stub, gpu):
    """The GPU reads pinned memory after the call, so that a blocking copy has to wait."""
    pointer = int(libcuda.cu.cuMemHostAlloc(64, 0))
    import ctypes

    pinned = np.ctypeslib.as_array((ctypes.c_float * 16).from_address(pointer))
    pinned[:] = 3
    since = stub.n_steps
    x = gpu.from_host(pinned)
    names = [s.name for s in stub.log(since) if s.stream == gpu.own_stream]
    assert names[-2:] == ["cuMemcpyHtoDAsync_v2", "cuStreamSynchronize"]
    np.testing.assert_array_equal(x.numpy(), 3)
    libcuda.cu.cuMemFreeHost(pointer)


def test_fresh_memory_is_poisoned_when_asked(gpu):
    token = config.poison.set(True)
    try:
        x = trident.empty(5, device="cuda")
    finally:
        config.poison.reset(token)
    assert np.isnan(x.cpu().numpy()).all()


def test_host_values_in_a_capture_are_a_sentence(stub, gpu):
    with kernels.capture(gpu.own_stream):
        with pytest.raises(DeviceError, match=r"cannot be copied while a graph is captured.*pin_m"):
            gpu.from_host(np.ones(4))
        trident.empty(4, device="cuda")  # and the capture goes on


# ---- memory --------------------------------------------------------------------------------------


def test_memory_is_used_again(stub, gpu):
    del_me = trident.empty(1000, device="cuda")
    at = del_me.data_ptr()
    del del_me
    gc.collect()
    used = stub.used()
    assert trident.empty(1000, device="cuda").data_ptr() == at
    assert stub.used() == used


def test_out_of_memory(stub, gpu):
    with pytest.raises(OutOfMemoryError):
        trident.empty(5 << 30, device="cuda", dtype=trident.uint8)
    assert trident.ones(3, device="cuda").shape == (3,)  # and it goes on
    x = trident.empty(3 << 30, device="cuda", dtype=trident.uint8)
    with pytest.raises(OutOfMemoryError):
        trident.empty(2 << 30, device="cuda", dtype=trident.uint8)
    del x
    assert trident.empty(2 << 30, device="cuda", dtype=trident.uint8).numel() == 2 << 30
    gc.collect()
    gpu.allocator.empty_cache()


def test_out_of_memory_of_the_driver_itself(stub, gpu):
    stub.fail("cuStreamCreateWithPriority", 2)
    with pytest.raises(OutOfMemoryError, match=r"cuStreamCreateWithPriority: CUDA_ERROR_OUT_OF_M"):
        runtime.stream.Stream()


def test_a_new_thread_allocates_and_copies(gpu):
    got = []

    def work():
        gpu.allocator.empty_cache()
        x = trident.tensor(np.arange(300000.0), device="cuda")
        got.append(x.cpu().numpy())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(got[0], np.arange(300000.0))


def test_finalisers_do_not_change_the_context(stub, gpu, second):
    """They run between any two calls: what was current stays so."""
    stream, event = (
        runtime.stream.Stream(1),
        runtime.stream.Event().record(runtime.stream.Stream(1)),
    )
    with runtime.stream.Stream(1) as s:
        x = trident.ones(4, device="cuda:1")
        second.allocator.record_stream(x._data.buffer, second.own_stream)
    handles = (stream.handle, event.handle)
    gpu.activate()
    events = stub.count("cuEventRecord")
    del stream, event, x, s
    gc.collect()
    assert gpu.is_current()
    assert stub.count("cuEventRecord") == events + 1
    assert not any(map(stub.alive, handles))


# ---- errors --------------------------------------------------------------------------------------


def test_a_failed_call_says_what_it_means(stub, gpu):
    stub.fail("cuMemcpyHtoDAsync_v2", 719)
    with pytest.raises(CudaError) as found:
        gpu.from_host(np.ones(3))
    text = str(found.value)
    assert text.startswith("cuMemcpyHtoDAsync: CUDA_ERROR_LAUNCH_FAILED, a kernel failed. Way out")
    assert "trident.interpret()" in text
    assert (found.value.code, found.value.call) == (719, "cuMemcpyHtoDAsync")


def test_an_error_without_advice_has_the_drivers_words(stub, gpu):
    stub.fail("cuMemcpyHtoDAsync_v2", 999)
    with pytest.raises(CudaError, match=r"CUDA_ERROR_UNKNOWN, unknown error$"):
        gpu.from_host(np.ones(3))
    stub.fail("cuMemcpyHtoDAsync_v2", 98765)  # one that cuda-bindings does not know
    with pytest.raises(CudaError, match=r"98765 .*pip install -U cuda-bindings"):
        gpu.from_host(np.ones(3))


def test_every_piece_of_advice_names_a_real_error():
    known = {int(c) for c in libcuda.driver().CUresult}
    assert set(libcuda._MEANING) <= known


# ---- reports of kernels --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.cpu(), lambda x: runtime.current().synchronize(), lambda x: x.sum().item(),
        lambda x: runtime.stream.Stream().synchronize(),
        lambda x: runtime.stream.Event().record().synchronize(),
    ],
)  # fmt: skip
def test_what_waits_raises_what_kernels_reported(gpu, wait):
    x = trident.ones(4, device="cuda")
    reports = gpu.reports
    assert reports is gpu.reports
    assert libcuda.pinned(reports.array.ptr)  # kernels write it, the host reads it
    number = reports.site(("test", wait), lambda value: IndexError(f"index {value}"))
    reports.words[1 + number % runtime.reports.VALUES] = 77  # as a kernel does
    reports.words[0] = number
    with pytest.raises(IndexError, match="index 77"):
        wait(x)
    wait(x)  # once


# ---- several devices -----------------------------------------------------------------------------


def test_arrays_on_the_second_device(stub, second):
    x = trident.ones(4, device="cuda:1")
    assert x.device == trident.device("cuda", 1) and x.get_device() == 1
    y = x * 2 + x
    assert y._data.device is second
    assert {launch.device for launch in stub.launches()[-2:]} == {1}
    assert stub.launches()[-1].stream == second.own_stream


def test_select_changes_what_cuda_means(second, gpu):
    select(1)
    assert current_index() == 1
    assert trident.ones(2, device="cuda")._data.device is second
    assert trident.ones(2, device="cuda:0")._data.device is gpu
    select(0)
    assert trident.ones(2, device="cuda")._data.device is gpu


def test_a_thread_starts_with_the_first_device(second):
    seen = []
    select(1)
    thread = threading.Thread(target=lambda: seen.append(trident.ones(2, device="cuda").device))
    thread.start()
    thread.join()
    assert seen == [trident.device("cuda:0")]


@pytest.mark.parametrize("name", ["cuda:2", "cuda:17"])
def test_devices_that_are_not_there(name):
    with pytest.raises(DeviceError, match=f"device: cuda:0 to cuda:1 are here; got '{name}'"):
        trident.device(name)
    with pytest.raises(DeviceError, match=f"there is no {name}; this machine has 2"):
        cuda_device(int(name[5:]))


def test_naming_devices(gpu, second):
    assert cuda_of(None) is gpu
    assert cuda_of(1) is cuda_of("cuda:1") is cuda_of(trident.device("cuda:1")) is second
    with pytest.raises(DeviceError, match="expected a cuda device"):
        cuda_of("cpu")


def test_moving_between_devices(stub, gpu, second):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = trident.tensor(values, device="cuda:0")
    since = stub.n_steps
    y = x.to("cuda:1")
    names = [s.name for s in stub.log(since)]
    assert [n for n in names if "emcpy" in n] == ["cuMemcpyPeerAsync"]
    assert not [n for n in names if "Synchronize" in n]
    assert y._data.device is second
    np.testing.assert_array_equal(y.cpu().numpy(), values)
    assert y.to("cuda:1") is y
    np.testing.assert_array_equal(y.to("cuda:0").cpu().numpy(), values)
    assert trident.empty(0, 3, device="cuda").to("cuda:1").shape == (0, 3)


def test_from_the_interpreter_to_a_gpu(gpu):
    with trident.interpret():
        x = trident.ones(3, device="cuda")
        assert x._data.device.interpreted
    np.testing.assert_array_equal(gpu.from_device(x._data).numpy(), np.ones(3))


def test_a_peer_copy_waits_for_both_sides(stub, gpu, second):
    x = trident.tensor(np.ones(4, np.float32), device="cuda:0")
    stub.hold(gpu.own_stream)
    y = x.to("cuda:1")
    assert not second.current().query()  # the copy is not done
    stub.release(gpu.own_stream)
    assert second.current().query()
    del y


def test_a_peer_copy_does_not_free_the_source_too_early(stub, gpu, second):
    """The copy runs on the source's stream, so that its memory is used again only afterwards."""
    x = trident.tensor(np.ones(4, np.float32), device="cuda:0")
    since = stub.n_steps
    x.to("cuda:1")
    (copy,) = [s for s in stub.log(since) if s.name == "cuMemcpyPeerAsync"]
    assert copy.stream == gpu.own_stream


def test_gradients_across_devices(second):
    x = trident.tensor(np.ones(4, np.float32), device="cuda:0", requires_grad=True)
    x.to("cuda:1").backward(trident.ones(4, device="cuda:1"))
    assert x.grad.device == trident.device("cuda:0")


@pytest.mark.parametrize(
    "op", [lambda a, b: a + b, lambda a, b: a @ b, lambda a, b: trident.cat([a, b])]
)
def test_operands_on_two_devices_are_refused(second, op):
    a = trident.ones(4, 4, device="cuda:0")
    b = trident.ones(4, 4, device="cuda:1")
    with pytest.raises(DeviceError, match=r"must be on one device; got cuda:\d and cuda:\d\. M"):
        op(a, b)


def test_kernels_on_two_devices_are_two_modules(stub, gpu, second):
    trident.ones(4, device="cuda:0") - 3
    first = stub.launches()[-1].function
    trident.ones(4, device="cuda:1") - 3
    assert stub.launches()[-1].function != first
    trident.ones(4, device="cuda:0") - 3
    assert stub.launches()[-1].function == first


def test_another_library_changes_the_context(stub, gpu, second):
    """torch.cuda.set_device(1) in this thread, behind our back."""
    x = trident.ones(4, device="cuda:0")
    libcuda.cu.cuCtxSetCurrent(second.context)
    (x + 1).cpu()
    assert stub.launches()[-1].device == 0


def test_a_single_device_needs_no_context_in_a_thread(stub, gpu):
    """Triton's launcher makes the first device's context current where a thread has none."""
    bound, args = kernels.bind_many(gpu)
    failed = []

    def work():
        try:
            bound.start(1, 1, 1, gpu.own_stream, args)
        except Exception as error:
            failed.append(error)

    before = stub.n_launches
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed and stub.n_launches == before + 1
