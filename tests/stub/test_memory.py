"""Memory of a GPU and of the host beside it: growth, figures, no room, page-locked memory, copies
that are only started."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import trident
from trident import cuda
from trident.errors import DeviceError, OutOfMemoryError
from trident.runtime import libcuda, pinned
from trident.runtime.allocator import CachingAllocator
from trident.runtime.cuda_device import DriverMemory
from trident.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _clean(gpu):
    """Each test starts with an empty cache and fresh peaks."""
    gc.collect()
    cuda.synchronize()
    cuda.empty_cache()
    pinned.allocator.empty_cache()
    cuda.reset_peak_memory_stats()
    yield
    gc.collect()


def names(steps):
    return [s.name for s in steps]


# ---- reserved addresses -------------------------------------------------------------------------


def test_large_blocks_grow_in_one_range(stub, gpu):
    assert gpu.memory.granularity == 2 * MIB
    since, used = stub.n_steps, stub.used()
    with cuda.Stream():  # which nobody has used
        x = trident.empty(32 * MIB, dtype=trident.uint8, device="cuda")
        y = trident.empty(96 * MIB, dtype=trident.uint8, device="cuda")
        assert y.data_ptr() == x.data_ptr() + 32 * MIB
        done = names(stub.log(since))
        assert done.count("cuMemAddressReserve") == 1 and "cuMemAlloc_v2" not in done
        # 32 MiB, then 96 MiB in segments of at most 64
        assert done.count("cuMemCreate") == done.count("cuMemMap") == 3
        assert stub.used() - used == 128 * MIB and stub.used() == cuda.memory_reserved()
        at = x.data_ptr()
        del x, y
        assert trident.empty(128 * MIB, dtype=trident.uint8, device="cuda").data_ptr() == at
        assert stub.used() - used == 128 * MIB
    cuda.empty_cache()
    assert stub.used() == cuda.memory_reserved() == used
    assert names(stub.log(since)).count("cuMemAddressFree") == 1


def test_memory_over_several_segments_is_one(stub, gpu):
    values = np.arange(17 * MIB, dtype=np.int32)  # 68 MiB
    x = trident.tensor(values, device="cuda")
    np.testing.assert_array_equal(x.cpu().numpy(), values)
    y = x.to("cuda", copy=True)
    del x, y


@pytest.mark.parametrize(
    "call", ["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemAddressReserve"]
)
@pytest.mark.parametrize("code", [801, 1, 2])
def test_a_device_that_refuses_gets_plain_memory(stub, gpu, call, code):
    stub.fail(call, code)
    used = stub.used()
    memory = DriverMemory(gpu)
    assert memory.granularity == 0 and stub.used() == used
    allocator = CachingAllocator(memory, gpu)
    since = stub.n_steps
    block = allocator.take(30 * MIB, gpu.own_stream)
    assert names(stub.log(since)) == ["cuMemAlloc_v2"] and block.ptr % 512 == 0
    del block
    allocator.empty_cache()
    assert stub.used() == used


def test_a_device_without_virtual_memory(stub, gpu):
    stub.attribute(102, 0)
    try:
        assert DriverMemory(gpu).granularity == 0
    finally:
        stub.attribute(102, 1)


def test_a_failure_in_between_leaves_nothing_behind(stub, gpu):
    x = trident.empty(30 * MIB, dtype=trident.uint8, device="cuda")
    used = stub.used()
    for call in ("cuMemMap", "cuMemSetAccess"):
        stub.fail(call, 999)
        with pytest.raises(trident.errors.CudaError, match=call):
            trident.empty(100 * MIB, dtype=trident.uint8, device="cuda")
        assert stub.used() == used == cuda.memory_reserved()
    y = trident.empty(100 * MIB, dtype=trident.uint8, device="cuda")
    assert y.data_ptr() == x.data_ptr() + 30 * MIB


def test_the_switch():
    code = (
        "from tests.stub import preload\n"
        "stub = preload()\n"
        "import trident\n"
        "x = trident.empty(30 << 20, device='cuda')\n"
        "assert stub.count('cuMemCreate') == stub.count('cuMemAddressReserve') == 0\n"
        "assert stub.count('cuMemAlloc_v2') >= 1\n"
    )
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "TRIDENT_VIRTUAL_MEMORY": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# ---- figures ------------------------------------------------------------------------------------


def test_figures(stub, gpu):
    before = cuda.memory_allocated()
    stats = cuda.memory_stats()
    x = trident.zeros(3 * MIB, device="cuda")
    assert cuda.memory_allocated() - before == 12 * MIB
    y = x + 1
    assert cuda.memory_allocated() - before == cuda.max_memory_allocated() - before == 24 * MIB
    del x
    assert cuda.memory_allocated() - before == 12 * MIB
    assert cuda.max_memory_allocated() - before == 24 * MIB
    assert cuda.memory_reserved() == cuda.max_memory_reserved() == stub.used()
    cuda.reset_peak_memory_stats()
    assert cuda.max_memory_allocated() - before == 12 * MIB
    free, total = cuda.mem_get_info()
    assert total == 4 << 30 and free == total - stub.used()
    now = cuda.memory_stats()
    assert now["allocated_bytes.all.current"] == cuda.memory_allocated()
    made = now["allocation.all.allocated"] - stats["allocation.all.allocated"]
    freed = now["allocation.all.freed"] - stats["allocation.all.freed"]
    assert made == 2 and freed == 1
    cuda.reset_accumulated_memory_stats()
    assert cuda.memory_stats()["allocation.all.allocated"] == 0
    assert y.shape == (3 * MIB,)
    assert trident.accelerator.memory_allocated() == cuda.memory_allocated()
    assert trident.accelerator.get_memory_info(0) == cuda.mem_get_info("cuda:0")


def test_the_summary(stub, gpu):
    x = trident.zeros(5 * MIB, device="cuda")
    line = sys._getframe().f_lineno - 1
    text = cuda.memory_summary()
    assert text.startswith("memory of cuda:0, Stub GPU 0\n")
    assert f"20.00 MiB  {__file__}:{line} in test_the_summary" in text
    assert "20.00 MiB" not in cuda.memory_summary(abbreviated=True).partition("freed its")[2]
    assert x.numel()


def test_figures_of_another_device(stub, gpu):
    x = trident.zeros(MIB, device="cuda:1")
    assert cuda.memory_allocated(1) >= 4 * MIB
    assert cuda.memory_allocated("cuda:1") == cuda.memory_allocated(trident.device("cuda:1"))
    with cuda.device(1):
        assert cuda.memory_allocated() == cuda.memory_allocated(1)
    assert x.get_device() == 1
    with pytest.raises(DeviceError, match="memory_allocated: expected the number of a device"):
        cuda.memory_allocated(2)
    with pytest.raises(DeviceError, match=r"memory_allocated: expected a cuda device.*got cpu"):
        cuda.memory_allocated("cpu")


def test_figures_do_not_start_a_device():
    code = (
        "from tests.stub import preload\n"
        "stub = preload()\n"
        "import trident\n"
        "c = trident.cuda\n"
        "assert c.is_available() and c.device_count() == 1 and not c.is_initialized()\n"
        "assert c.memory_allocated() == c.max_memory_reserved() == 0 and c.memory_stats() == {}\n"
        "c.empty_cache(); c.reset_peak_memory_stats()\n"
        "assert not c.is_initialized() and stub.retained() == 0\n"
        "c.init()\n"
        "assert c.is_initialized() and stub.retained() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- no room ------------------------------------------------------------------------------------


def test_training_goes_on_after_running_out(stub, gpu):
    w = trident.ones(64, 64, device="cuda", requires_grad=True)
    held = []
    with pytest.raises(cuda.OutOfMemoryError) as caught:
        while True:
            held.append(trident.empty(256 * MIB, dtype=trident.uint8, device="cuda"))
    line = caught.traceback[0].lineno + 1
    text = str(caught.value)
    assert text.startswith("CUDA out of memory: wanted 256.00 MiB on cuda:0, where ")
    assert f"{len(held)} x 256.00 MiB  {__file__}:{line} in test_training_goes_on" in text
    assert cuda.OutOfMemoryError is OutOfMemoryError is trident.OutOfMemoryError
    assert issubclass(OutOfMemoryError, RuntimeError)
    del caught
    held.clear()
    loss = (w @ w).sum()
    loss.backward()
    assert w.grad is not None and w.grad.shape == (64, 64)
    assert trident.empty(3 << 30, dtype=trident.uint8, device="cuda").numel() == 3 << 30
    assert cuda.memory_stats()["num_ooms"] >= 1


# ---- streams ------------------------------------------------------------------------------------


def test_record_stream(stub, gpu):
    side = cuda.Stream()
    x = trident.ones(1000, device="cuda")
    at = x.data_ptr()
    stub.hold(side.handle)
    with cuda.stream(side):
        x + 1
    x.record_stream(side)
    del x
    gc.collect()
    taken = [trident.empty(1000, device="cuda") for _ in range(4)]
    assert at not in {t.data_ptr() for t in taken}
    stub.release(side.handle)
    taken += [trident.empty(1000 + i, device="cuda") for i in range(3)]  # a new size looks again
    assert at in {t.data_ptr() for t in taken}
    with pytest.raises(DeviceError, match="record_stream: only tensors on a GPU"):
        trident.ones(2).record_stream(side)


def test_a_dropped_streams_memory_is_returned(stub, gpu):
    side = cuda.Stream()
    with cuda.stream(side):
        x = trident.ones(30 * MIB, dtype=trident.uint8, device="cuda")
    held = cuda.memory_reserved()
    del x
    cuda.empty_cache()
    assert cuda.memory_reserved() == held - 30 * MIB
    with side:
        x = trident.ones(30 * MIB, dtype=trident.uint8, device="cuda")
    del side
    gc.collect()
    del x
    cuda.empty_cache()
    assert cuda.memory_reserved() == held - 30 * MIB


def test_fresh_memory_during_a_capture(stub, gpu):
    """Neither kind of allocation spoils a capture, though the driver forbids both inside."""
    cu, modes = libcuda.cu, libcuda.driver().CUstreamCaptureMode
    stream = cuda.Stream()
    with stream, gpu.allocator.private_pool() as pool:
        mode = modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        cu.cuStreamBeginCapture(stream.handle, mode)
        assert cuda.is_current_stream_capturing()
        a = trident.empty(30 * MIB, dtype=trident.uint8, device="cuda")
        b = trident.empty(10, dtype=trident.uint8, device="cuda")
        graph = cu.cuStreamEndCapture(stream.handle)
        assert not cuda.is_current_stream_capturing()
    cu.cuGraphDestroy(graph)
    held = cuda.memory_reserved()
    del a, b
    cuda.empty_cache()
    assert cuda.memory_reserved() == held
    del pool
    cuda.empty_cache()
    assert cuda.memory_reserved() < held


# ---- page-locked memory -------------------------------------------------------------------------


def test_pin_memory(stub, gpu):
    x = trident.arange(6.0).reshape(2, 3)
    assert not x.is_pinned()
    before = stub.host_used
    p = x.pin_memory()
    assert stub.host_used == before + 2 * MIB  # small ones share a segment
    assert p.is_pinned() and p is not x and p.pin_memory() is p
    assert p.tolist() == x.tolist() and p.device.type == "cpu" and p.dtype is x.dtype
    assert isinstance(p.numpy(), np.ndarray)
    assert p[1].is_pinned() and p.t().is_pinned() and not (p + 1).is_pinned()
    assert trident.from_numpy(p.numpy()).is_pinned()
    p[0, 0] = 7
    assert x[0, 0] == 0
    at = p.data_ptr()
    view = p[1]
    del p
    gc.collect()
    assert trident.empty(2, 3, pin_memory=True).data_ptr() != at
    assert view.tolist() == [3, 4, 5]  # a view keeps the memory
    del view
    assert trident.empty(2, 3, pin_memory=True).data_ptr() == at
    with pytest.raises(DeviceError, match=r"pin_memory: only CPU tensors.*got a tensor on cuda:0"):
        trident.ones(2, device="cuda").pin_memory()
    assert not trident.ones(2, device="cuda").is_pinned()


def test_pinned_tensors_are_made(stub, gpu):
    for x, values in (
        (trident.zeros(2, 3, pin_memory=True), np.zeros((2, 3))),
        (trident.ones((2,), dtype=trident.int64, pin_memory=True), np.ones(2)),
        (trident.full((3,), 2.5, pin_memory=True), np.full(3, 2.5)),
        (trident.tensor([[1, 2]], pin_memory=True), [[1, 2]]),
        (trident.tensor(3.0, dtype=trident.bfloat16, pin_memory=True), 3),
    ):
        assert x.is_pinned()
        np.testing.assert_array_equal(x.float().numpy(), values)
    assert trident.empty(0, pin_memory=True).shape == (0,)
    assert trident.empty(4, 5, dtype=trident.float16, pin_memory=True).is_pinned()
    with pytest.raises(DeviceError, match=r"pin_memory: only CPU tensors.*got device=cuda"):
        trident.empty(2, device="cuda", pin_memory=True)
    with pytest.raises(DeviceError, match=r"pin_memory: only CPU tensors.*got device=cuda"):
        trident.zeros(2, device="cuda", pin_memory=True)


def test_pinning_has_a_gradient(gpu):
    x = trident.ones(3, requires_grad=True)
    p = (x * 2).pin_memory()
    assert p.is_pinned()
    (p * p).sum().backward()
    assert x.grad.tolist() == [8, 8, 8]


def test_a_copy_from_pinned_memory_is_only_started(stub, gpu):
    p = trident.arange(1000.0).pin_memory()
    since, at = stub.n_steps, p.data_ptr()
    waits = stub.count("cuStreamSynchronize")
    x = p.to("cuda", non_blocking=True)
    y = p.cuda(non_blocking=True)
    z = p.to("cuda", trident.float32, True)
    assert stub.count("cuStreamSynchronize") == waits
    copies = [s for s in stub.log(since) if s.name == "cuMemcpyHtoDAsync_v2"]
    assert [c.b for c in copies] == [at] * 3 and {c.stream for c in copies} == {gpu.own_stream}
    p.to("cuda")
    assert stub.count("cuStreamSynchronize") == waits + 1
    for t in (x, y, z):
        np.testing.assert_array_equal(t.cpu().numpy(), np.arange(1000.0))


def test_the_source_stays_until_the_copy_is_done(stub, gpu):
    p = trident.ones(1000, pin_memory=True)
    at = p.data_ptr()
    stub.hold(gpu.own_stream)
    try:
        x = p.to("cuda", non_blocking=True)
        y = p.to("cuda", non_blocking=True)
        del p
        assert trident.empty(1000, pin_memory=True).data_ptr() != at
    finally:
        stub.release(gpu.own_stream)
    fresh = [trident.empty(1000 + i, pin_memory=True) for i in range(3)]
    assert at in {f.data_ptr() for f in fresh}
    assert x.shape == y.shape


def test_a_source_of_another_library_stays_too(stub, gpu):
    """Registered memory is page-locked, and not ours to recycle: the array itself is kept."""
    raw = np.ones(4096, np.float32)
    at, there = raw.ctypes.data, weakref.ref(raw)
    libcuda.cu.cuMemHostRegister(at, raw.nbytes, 0)
    try:
        x = trident.from_numpy(raw)
        assert x.is_pinned()
        stub.hold(gpu.own_stream)
        x.to("cuda", non_blocking=True)
        del x, raw
        gc.collect()
        assert there() is not None
        stub.release(gpu.own_stream)
        pinned.keep(np.ones(1), gpu, gpu.own_stream)  # looks what is done
        assert there() is None
    finally:
        libcuda.cu.cuMemHostUnregister(at)
        pinned._foreign.clear()


def test_a_copy_from_pageable_memory_is_done(stub, gpu):
    a = np.arange(10.0, dtype=np.float32)
    x = trident.from_numpy(a).to("cuda", non_blocking=True)
    a[:] = 0
    np.testing.assert_array_equal(x.cpu().numpy(), np.arange(10.0))
    assert not pinned._foreign


def test_a_copy_to_the_cpu_is_only_started(stub, gpu):
    x = trident.tensor(np.arange(12.0, dtype=np.float32).reshape(3, 4), device="cuda")
    waits = stub.count("cuStreamSynchronize")
    h = x.to("cpu", non_blocking=True)
    turned = x.t().to("cpu", non_blocking=True)
    assert stub.count("cuStreamSynchronize") == waits
    assert h.is_pinned() and turned.is_pinned() and turned.shape == (4, 3)
    cuda.synchronize()
    np.testing.assert_array_equal(h.numpy(), np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(turned.numpy(), np.arange(12.0).reshape(3, 4).T)
    waits = stub.count("cuStreamSynchronize")
    assert not x.cpu().is_pinned() and stub.count("cuStreamSynchronize") == waits + 1


def test_the_target_stays_until_the_copy_is_done(stub, gpu):
    x = trident.zeros(1000, device="cuda")
    stub.hold(gpu.own_stream)
    h = x.to("cpu", non_blocking=True)
    at = h.data_ptr()
    del h
    assert trident.empty(1000, pin_memory=True).data_ptr() != at
    stub.release(gpu.own_stream)


def test_gradients_pass_such_copies(gpu):
    w = trident.ones(3, pin_memory=True).requires_grad_()
    y = w.to("cuda", non_blocking=True).to("cpu", non_blocking=True)
    cuda.synchronize()
    (y * trident.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert w.grad.tolist() == [1, 2, 3]


def test_copy_(stub, gpu):
    p = trident.arange(6.0).pin_memory()
    x = trident.zeros(6, device="cuda")
    waits, since = stub.count("cuStreamSynchronize"), stub.n_steps
    launched = stub.n_launches
    assert x.copy_(p, non_blocking=True) is x
    assert names(stub.log(since)).count("cuMemcpyHtoDAsync_v2") == 1  # straight into x
    back = trident.empty(6, pin_memory=True)
    assert back.copy_(x, non_blocking=True) is back
    assert stub.count("cuStreamSynchronize") == waits and stub.n_launches == launched
    cuda.synchronize()
    assert back.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("case", ["pageable", "dtype", "shape", "strided", "device"])
def test_copy_where_it_cannot_be_only_started(stub, gpu, case):
    """Everything else goes the usual way, and is done when the call returns."""
    source = trident.arange(6.0) if case == "pageable" else trident.arange(6.0).pin_memory()
    target = trident.zeros(6, device="cuda")
    if case == "dtype":
        source = trident.arange(6).pin_memory()
    elif case == "shape":
        target = trident.zeros(2, 6, device="cuda")
    elif case == "strided":
        source = trident.arange(12.0).pin_memory()[::2]
    elif case == "device":
        source = source.to("cuda")
    launched = stub.n_launches
    target.copy_(source, non_blocking=True)
    assert stub.n_launches > launched  # by a kernel, which the stub does not run


def test_copy_counts_as_a_write(gpu):
    w = trident.ones(3, device="cuda", requires_grad=True)
    y = w * w
    saved = w.detach()
    saved.copy_(trident.zeros(3, pin_memory=True), non_blocking=True)
    with pytest.raises(trident.errors.AutogradError, match="copy_"):
        y.sum().backward()


def test_a_pinned_block_in_a_graph_stays_for_ever(stub, gpu):
    cu, modes = libcuda.cu, libcuda.driver().CUstreamCaptureMode
    p = trident.ones(1000, pin_memory=True)
    at, stream = p.data_ptr(), cuda.Stream()
    x = trident.zeros(1000, device="cuda")
    kept = len(pinned._of_graphs)
    with stream:
        cu.cuStreamBeginCapture(stream.handle, modes.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        x.copy_(p, non_blocking=True)
        graph = cu.cuStreamEndCapture(stream.handle)
    cu.cuGraphDestroy(graph)
    del p
    gc.collect()
    assert len(pinned._of_graphs) == kept + 1
    assert trident.empty(1000, pin_memory=True).data_ptr() != at
    pinned._of_graphs.clear()


def test_page_locked_memory_runs_out(stub, gpu):
    stub.fail("cuMemHostAlloc", 2, times=10)
    try:
        with pytest.raises(
            OutOfMemoryError, match=r"out of memory: wanted 100\.00 MiB on the host's"
        ):
            trident.empty(100 * MIB, dtype=trident.uint8, pin_memory=True)
    finally:
        stub.fail("cuMemHostAlloc", 0, times=0)
    assert trident.empty(100 * MIB, dtype=trident.uint8, pin_memory=True).is_pinned()


def test_pinning_in_another_thread(gpu):
    got = []
    thread = threading.Thread(target=lambda: got.append(trident.ones(3 * MIB).pin_memory()))
    thread.start()
    thread.join()
    assert got[0].is_pinned() and got[0].sum().item() == 3 * MIB


# ---- DataLoader ---------------------------------------------------------------------------------


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"x": np.full((3,), i, np.float32), "y": i, "name": f"row {i}"}


class Stream_(IterableDataset):
    def __iter__(self):
        return iter([np.full((3,), i, np.float32) for i in range(8)])


@pytest.mark.parametrize(
    "how", [{}, {"num_workers": 2}, {"num_workers": 1, "multiprocessing_context": "spawn"}]
)
def test_a_loader_pins_its_batches(stub, gpu, how):
    seen = []
    for batch in DataLoader(Rows(), batch_size=4, pin_memory=True, **how):
        assert batch["x"].is_pinned() and batch["y"].is_pinned()
        assert batch["name"][0].startswith("row ")
        x = batch["x"].to("cuda", non_blocking=True)
        seen.append(x.cpu().numpy()[:, 0])
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(8))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_a_stream_pins(gpu, workers):
    loader = DataLoader(Stream_(), batch_size=4, pin_memory=True, num_workers=workers)
    batches = list(loader)
    assert all(b.is_pinned() for b in batches)
    np.testing.assert_array_equal(np.concatenate([b.numpy()[:, 0] for b in batches]), np.arange(8))


def test_batches_of_ones_own_kind(gpu):
    class Batch:
        def __init__(self, rows):
            self.x = trident.stack([r[0] for r in rows])

        def pin_memory(self):
            self.x = self.x.pin_memory()
            return self

    data = TensorDataset(trident.arange(6.0).reshape(6, 1))
    for batch in DataLoader(data, batch_size=2, collate_fn=Batch, pin_memory=True, num_workers=1):
        assert isinstance(batch, Batch) and batch.x.is_pinned()
    for batch in DataLoader(data, batch_size=2, collate_fn=Batch, num_workers=1):
        assert not batch.x.is_pinned()
    (sample,) = DataLoader(data, batch_size=None, pin_memory=True).__iter__().__next__()
    assert sample.is_pinned()


def test_samples_on_the_gpu_are_left_there(gpu):
    data = TensorDataset(trident.ones(4, 2, device="cuda"))
    for (x,) in DataLoader(data, batch_size=2, pin_memory=True):
        assert x.is_cuda
