"""``trident.cuda`` and ``trident.accelerator`` where there are GPUs."""

from __future__ import annotations

import threading

import pytest

import trident
from trident import accelerator, cuda
from trident.errors import DeviceError


@pytest.fixture(autouse=True)
def _device_0(gpu):
    yield
    cuda.set_device(0)


def test_what_is_there(stub, gpu):
    assert cuda.is_available() and cuda.device_count() == 2 and cuda.is_initialized()
    assert cuda.get_device_name() == "Stub GPU 0" and cuda.get_device_name("cuda:1") == "Stub GPU 1"
    assert cuda.get_device_capability(1) == (9, 0) and cuda.is_bf16_supported()
    p = cuda.get_device_properties(1)
    assert (p.name, p.major, p.minor, p.total_memory) == ("Stub GPU 1", 9, 0, 4 << 30)
    assert (p.multi_processor_count, p.warp_size) == (gpu.multiprocessors, 32)
    assert p.shared_memory_per_block_optin == 232448
    assert cuda.can_device_access_peer(0, 1) and not cuda.can_device_access_peer(0, 0)
    assert accelerator.is_available() and accelerator.device_count() == 2
    assert accelerator.current_accelerator() == trident.device("cuda")
    assert trident.float32 in accelerator.get_device_capability()["supported_dtypes"]


def test_the_current_device(gpu):
    assert cuda.current_device() == accelerator.current_device_index() == 0
    cuda.set_device("cuda:1")
    assert cuda.current_device() == 1 and trident.ones(1, device="cuda").get_device() == 1
    cuda.set_device(-1)
    assert cuda.current_device() == 1
    accelerator.set_device_index(0)
    assert cuda.current_device() == 0
    seen = []
    cuda.set_device(1)
    thread = threading.Thread(target=lambda: seen.append(cuda.current_device()))
    thread.start()
    thread.join()
    assert seen == [0]  # as in torch, each thread has its own


@pytest.mark.parametrize("number", [2, -2])
def test_a_device_that_is_not_there(number):
    with pytest.raises(DeviceError, match=rf"get_device_name: expected the number.*got {number}"):
        cuda.get_device_name(number)


def test_with_device(gpu):
    x = trident.ones(1, device="cuda:1")
    with cuda.device(1):
        assert cuda.current_device() == 1
        with cuda.device(0), cuda.device(None), cuda.device(-1):
            assert cuda.current_device() == 0
        with pytest.raises(KeyError), cuda.device("cuda:0"):
            raise KeyError
        assert cuda.current_device() == 1
    assert cuda.current_device() == 0
    with cuda.device_of(x):
        assert cuda.current_device() == 1
        with cuda.device_of(trident.ones(1)):
            assert cuda.current_device() == 1
    with accelerator.device_index(1):
        assert cuda.current_device() == 1
    assert cuda.current_device() == 0


def test_streams(stub, gpu):
    main = cuda.default_stream()
    assert main == cuda.current_stream() and main.handle == gpu.own_stream
    side = cuda.Stream()
    with cuda.stream(side):
        assert cuda.current_stream() is side and cuda.default_stream() == main
        with cuda.stream(None):
            assert accelerator.current_stream() is side
    assert cuda.current_stream() == main
    cuda.set_stream(side)
    assert cuda.current_stream() is side
    other = cuda.Stream(1)
    accelerator.set_stream(other)
    assert cuda.current_device() == 1 and cuda.current_stream() is other
    assert cuda.current_stream(0) is side
    cuda.set_stream(None)
    cuda.set_stream(cuda.default_stream(1))
    cuda.set_stream(main)
    assert cuda.current_device() == 0 and cuda.current_stream() == main
    foreign = cuda.ExternalStream(side.handle)
    assert isinstance(foreign, cuda.Stream) and foreign == side
    with foreign:
        trident.ones(4, device="cuda") + 1
    assert stub.launches()[-1].stream == side.handle


def test_synchronize(stub, gpu):
    before = stub.count("cuCtxSynchronize")
    cuda.synchronize()
    cuda.synchronize(1)
    accelerator.synchronize("cuda:0")
    assert stub.count("cuCtxSynchronize") == before + 3


def test_empty_cache_reaches_all_devices(stub, gpu):
    for d in ("cuda:0", "cuda:1"):
        trident.empty(8 << 20, device=d)
    assert cuda.memory_reserved(0) > 0 and cuda.memory_reserved(1) > 0
    held = stub.used(0) + stub.used(1)
    accelerator.empty_cache()
    assert stub.used(0) + stub.used(1) <= held - (64 << 20)
    for d in (0, 1):
        assert cuda.memory_reserved(d) == stub.used(d)
