"""``trident.cuda`` and ``trident.accelerator``: the names, and what they answer without a GPU."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import trident
from trident import accelerator, cuda
from trident.errors import DeviceError
from trident.runtime import libcuda
from trident.runtime.device import interpreting
from trident.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
interpreted = pytest.mark.skipif(not interpreting(), reason="cuda is not the interpreter here")
no_gpu = pytest.mark.skipif(
    interpreting() or libcuda.why_not() is None, reason="there is a cuda device here"
)

_CUDA = (
    "is_available device_count current_device set_device device device_of get_device_name "
    "get_device_capability get_device_properties is_initialized init is_bf16_supported "
    "can_device_access_peer mem_get_info memory_allocated max_memory_allocated memory_reserved "
    "max_memory_reserved reset_peak_memory_stats reset_accumulated_memory_stats memory_stats "
    "memory_summary empty_cache synchronize Stream Event ExternalStream stream current_stream "
    "default_stream set_stream is_current_stream_capturing OutOfMemoryError manual_seed "
    "manual_seed_all seed initial_seed FloatTensor LongTensor"
)
_ACCELERATOR = (
    "is_available device_count current_accelerator current_device_index current_device_idx "
    "set_device_index set_device_idx device_index synchronize current_stream set_stream "
    "memory_allocated max_memory_allocated memory_reserved max_memory_reserved memory_stats "
    "reset_peak_memory_stats reset_accumulated_memory_stats empty_cache get_memory_info "
    "get_device_capability"
)
CUDA, ACCELERATOR = _CUDA.split(), _ACCELERATOR.split()


@pytest.mark.parametrize("name", CUDA)
def test_names_of_cuda(name):
    assert callable(getattr(cuda, name))


@pytest.mark.parametrize("name", ACCELERATOR)
def test_names_of_accelerator(name):
    assert callable(getattr(accelerator, name)) and name in accelerator.__all__


def test_public_names_say_what_they_do():
    for module, names in ((cuda, CUDA), (accelerator, ACCELERATOR)):
        for name in names:
            if not name.endswith("Tensor"):
                assert getattr(module, name).__doc__, name


def test_a_missing_name_names_the_nearest():
    with pytest.raises(
        AttributeError, match=r"trident.cuda has no attribute 'memory_cached'.*'mem"
    ):
        _ = cuda.memory_cached
    with pytest.raises(AttributeError, match="the nearest name it has is 'empty_cache'"):
        _ = cuda.empty_caches
    with pytest.raises(AttributeError, match="the nearest name it has is 'synchronize'"):
        _ = accelerator.synchronise
    assert not hasattr(cuda, "ipc_collect")


def test_the_error_is_public():
    assert trident.OutOfMemoryError is cuda.OutOfMemoryError
    assert issubclass(cuda.OutOfMemoryError, RuntimeError)


# ---- no device ----------------------------------------------------------------------------------


@no_gpu
def test_reports_without_a_gpu():
    assert not cuda.is_available() and cuda.device_count() == 0 and not cuda.is_initialized()
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved",
                 "max_memory_reserved"):  # fmt: skip
        assert getattr(cuda, name)() == 0
    assert cuda.memory_stats() == {} and not cuda.is_bf16_supported()
    assert not cuda.is_current_stream_capturing()
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    cuda.synchronize()
    cuda.manual_seed_all(3)
    assert cuda.initial_seed() == 3
    with cuda.device(None), cuda.device(-1), cuda.stream(None), cuda.device_of(trident.ones(1)):
        pass
    assert not accelerator.is_available() and accelerator.current_accelerator() is None


@no_gpu
@pytest.mark.parametrize(
    "name", ["init", "current_device", "get_device_name", "get_device_properties", "mem_get_info",
             "memory_summary", "current_stream", "default_stream", "Stream"],
)  # fmt: skip
def test_the_rest_says_why_there_is_none(name):
    with pytest.raises(DeviceError, match=r"device 'cuda': .*use device='cpu'"):
        getattr(cuda, name)()


@no_gpu
def test_accelerator_without_one():
    for name in ("synchronize", "current_stream", "current_device_index", "get_memory_info"):
        with pytest.raises(DeviceError, match=f"accelerator.{name}: there is none here"):
            getattr(accelerator, name)()


@no_gpu
def test_pinning_without_a_gpu():
    x = trident.ones(3)
    assert not x.is_pinned()
    why = r"pin_memory: page-locked memory is for copies to a GPU, and there is none: .*Leave"
    with pytest.raises(DeviceError, match=why):
        x.pin_memory()
    with pytest.raises(DeviceError, match=why):
        trident.empty(3, pin_memory=True)
    with pytest.raises(DeviceError, match=why):
        trident.zeros(3, pin_memory=True)


@no_gpu
def test_a_loader_says_once_that_it_does_not_pin(monkeypatch):
    monkeypatch.setattr("trident.utils.data.pin._warned", False)
    loader = DataLoader(TensorDataset(trident.arange(4)), batch_size=2, pin_memory=True)
    with pytest.warns(UserWarning, match="pin_memory=True does nothing without a GPU") as caught:
        first = [x.tolist() for (x,) in loader]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [x.tolist() for (x,) in loader] == first == [[0, 1], [2, 3]]


def test_non_blocking_is_accepted_everywhere():
    x = trident.arange(3.0)
    assert x.to("cpu", non_blocking=True) is x
    assert x.to("cpu", trident.float32, True) is x
    y = x.to("cpu", trident.float32, False, True)  # the second flag is copy
    assert y is not x and y.tolist() == [0, 1, 2]
    assert trident.zeros(3).copy_(x, non_blocking=True).tolist() == [0, 1, 2]


def test_import_starts_nothing():
    code = (
        "import trident\n"
        "assert not trident.cuda.is_initialized()\n"
        "import sys\n"
        "assert not {m for m in sys.modules if m.startswith('cuda.bindings')}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- the interpreter ----------------------------------------------------------------------------


@interpreted
def test_what_the_interpreter_is():
    assert cuda.is_available() and cuda.device_count() == 1 and cuda.current_device() == 0
    assert cuda.get_device_name() == cuda.get_device_name(0) == "Triton interpreter on host memory"
    assert cuda.get_device_capability("cuda") == (0, 0)
    assert cuda.is_bf16_supported() and not cuda.is_bf16_supported(including_emulation=False)
    properties = cuda.get_device_properties("cuda:0")
    assert properties.name == cuda.get_device_name() and properties.multi_processor_count == 1
    free, total = cuda.mem_get_info()
    assert 0 < free < total == properties.total_memory
    cuda.set_device(0)
    with cuda.device("cuda"), accelerator.device_index(0):
        assert accelerator.current_device_index() == 0
    assert accelerator.current_accelerator() == trident.device("cuda")
    with pytest.raises(DeviceError, match=r"set_device: expected the number.*below 1; got 1"):
        cuda.set_device(1)
    with pytest.raises(DeviceError, match=r"set_device: expected a cuda device.*got cpu"):
        cuda.set_device("cpu")


@interpreted
def test_memory_of_the_interpreter():
    trident.ones(1, device="cuda")
    gc.collect()
    before, stats = cuda.memory_allocated(), cuda.memory_stats()
    cuda.reset_peak_memory_stats()
    x = trident.empty(1000, device="cuda")
    assert cuda.memory_allocated() == before + 4000
    y = trident.empty(500, dtype=trident.float64, device="cuda")
    view = y[10:]
    del x, y
    assert cuda.memory_allocated() == cuda.memory_reserved() == before + 4000
    assert cuda.max_memory_allocated() == cuda.max_memory_reserved() == before + 8000
    now = cuda.memory_stats()
    assert now["allocation.all.allocated"] - stats["allocation.all.allocated"] == 2
    assert now["allocation.all.freed"] - stats["allocation.all.freed"] == 1
    assert now["allocated_bytes.all.allocated"] - stats["allocated_bytes.all.allocated"] == 8000
    del view
    assert cuda.memory_allocated() == before
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    assert cuda.max_memory_allocated() == before
    cuda.reset_accumulated_memory_stats()
    assert accelerator.memory_stats()["allocation.all.allocated"] == 0
    text = cuda.memory_summary()
    assert text.startswith("memory of cuda:0, Triton interpreter") and "live tensors" in text


@interpreted
def test_streams_of_the_interpreter():
    """Programs for several streams run as written; everything is done when a call returns."""
    main, side = cuda.current_stream(), cuda.Stream(priority=-1)
    assert main == cuda.default_stream() and isinstance(side, cuda.Stream) and side != main
    x = trident.ones(4, device="cuda")
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    with cuda.stream(side):
        assert cuda.current_stream() is side
        side.wait_stream(main)
        start.record()
        y = x + 1
        time.sleep(0.01)
        end.record()
        y.record_stream(side)
    assert cuda.current_stream() is main
    main.wait_event(end)
    main.wait_stream(side)
    end.synchronize()
    side.synchronize()
    assert side.query() and end.query() and 10 <= start.elapsed_time(end) < 10_000
    assert isinstance(start, cuda.Event) and y.tolist() == [2, 2, 2, 2]
    cuda.set_stream(side)
    assert accelerator.current_stream() is side
    cuda.set_stream(main)
    with side, pytest.raises(KeyError), cuda.Stream():
        raise KeyError
    assert cuda.current_stream() is main and side.priority == -1
    with pytest.raises(RuntimeError, match="the second event was not recorded"):
        start.elapsed_time(cuda.Event(enable_timing=True))
    with pytest.raises(RuntimeError, match="the first event keeps no time"):
        side.record_event().elapsed_time(end)


@interpreted
def test_pinning_in_the_interpreter():
    """The device is the host: there is nothing to lock, and programs that ask for it run."""
    x = trident.ones(3)
    assert x.pin_memory() is x and not x.is_pinned()
    y = trident.tensor([1.0, 2.0], pin_memory=True).to("cuda", non_blocking=True)
    assert y.tolist() == [1, 2] and y.to("cpu", non_blocking=True).tolist() == [1, 2]
    assert trident.empty(3, pin_memory=True).shape == (3,)
    z = trident.zeros(2, device="cuda").copy_(trident.ones(2), non_blocking=True)
    np.testing.assert_array_equal(z.cpu().numpy(), [1, 1])
    for (batch,) in DataLoader(TensorDataset(trident.arange(4)), batch_size=2, pin_memory=True):
        assert batch.shape == (2,)
    with pytest.raises(DeviceError, match="pin_memory: only CPU tensors"):
        z.pin_memory()
