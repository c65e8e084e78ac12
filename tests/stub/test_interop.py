"""Memory shared with other libraries on a GPU: what the structs say, and who waits for whom."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from capsules import Producer, name_of, struct_of

import trident
from trident.errors import AutogradError, DTypeError
from trident.runtime.device import cuda_device
from trident.runtime.libcuda import cu
from trident.runtime.stream import Stream

LEGACY, PER_THREAD = 1, 2


@pytest.fixture
def steps(stub):
    """What the streams were asked since the last call: (function, stream, event) of each."""
    seen = [stub.n_steps]

    def since():
        found = [
            (s.name, s.stream, s.a)
            for s in stub.log(seen[0])
            if s.name in ("cuEventRecord", "cuStreamWaitEvent")
        ]
        seen[0] = stub.n_steps
        return found

    return since


def ordered(found, before, after):
    """Exactly: ``after`` waits for what is on ``before``."""
    (record, wait) = found
    assert record[:2] == ("cuEventRecord", before)
    assert wait[:2] == ("cuStreamWaitEvent", after)
    assert record[2] == wait[2]
    return True


def on_gpu(values, device="cuda", **kwargs):
    return trident.tensor(np.asarray(values, np.float32), device=device, **kwargs)


# ---- DLPack, out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"max_version": (1, 0)}])
def test_the_struct_names_the_gpu(gpu, form):
    x = on_gpu([[1, 2, 3], [4, 5, 6]])
    assert x.__dlpack_device__() == (2, 0)
    for y in (x, x.T, x[:, ::2], x[1, 2]):
        capsule = y.__dlpack__(**form)
        _, t = struct_of(capsule)
        assert (t.device_type, t.device_id) == (2, 0)
        assert (t.code, t.bits, t.lanes) == (2, 32, 1)
        assert t.data + t.byte_offset == y.data_ptr()
        assert [t.shape[i] for i in range(t.ndim)] == list(y.shape)
        assert [t.strides[i] for i in range(t.ndim)] == list(y.stride())
    assert struct_of(trident.empty(0, 3, device="cuda").__dlpack__(**form))[1].data is None
    half = trident.empty(2, dtype=trident.bfloat16, device="cuda")
    _, t = struct_of(half.__dlpack__(**form))
    assert (t.code, t.bits) == (4, 16)
    flags = trident.empty(2, dtype=trident.bool, device="cuda")
    assert struct_of(flags.__dlpack__(**form))[1].code == 6


def test_another_gpu(stub):
    x = on_gpu([1, 2], "cuda:1")
    assert x.__dlpack_device__() == (2, 1)
    y = trident.from_dlpack(x.__dlpack__())
    assert y.device == trident.device("cuda:1") and y.data_ptr() == x.data_ptr()


def test_the_consumers_stream_waits_for_ours(gpu, steps):
    x = on_gpu([1, 2])
    ours = gpu.current_stream.get()
    other = Stream()
    for stream, handle in (
        (None, LEGACY), (1, LEGACY), (2, PER_THREAD), (other.handle, other.handle), (other, None),
    ):  # fmt: skip
        steps()
        capsule = x.__dlpack__(stream=stream)
        assert ordered(steps(), ours, handle or other.handle)
        del capsule
    steps()
    kept = [x.__dlpack__(stream=-1), x.__dlpack__(stream=ours)]
    assert steps() == [] and len(kept) == 2
    with other:
        kept = x.__dlpack__(stream=1)
    assert ordered(steps(), other.handle, LEGACY)
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=rf"__dlpack__: stream must be None, -1.*got {wrong}"):
            x.__dlpack__(stream=wrong)
    with pytest.raises(TypeError, match="expected a Stream, a handle"):
        x.__dlpack__(stream="default")


def test_what_cannot_be_exported(gpu):
    x = on_gpu([1, 2], requires_grad=True)
    with pytest.raises(BufferError, match=r"requires grad.*x.detach\(\)"):
        x.__dlpack__()
    x = x.detach()
    with pytest.raises(BufferError, match=r"dl_device must be \(2, 0\).*or \(1, 0\).*got \(2, 1\)"):
        x.__dlpack__(dl_device=(2, 1))
    with pytest.raises(BufferError, match="copy=False forbids one"):
        x.__dlpack__(dl_device=(1, 0), copy=False)


def test_a_copy_for_the_cpu_and_one_for_the_gpu(gpu):
    x = on_gpu([3, 4])
    capsule = x.__dlpack__(dl_device=(1, 0), max_version=(1, 0))
    managed, t = struct_of(capsule)
    assert (t.device_type, t.device_id, managed.flags) == (1, 0, 2)
    assert trident.from_dlpack(capsule).tolist() == [3, 4]
    managed, t = struct_of(x.__dlpack__(copy=True, max_version=(1, 0)))
    assert (t.device_type, managed.flags) == (2, 2) and t.data != x.data_ptr()


def test_a_capsule_keeps_the_memory(gpu, steps):
    gc.collect()
    before = gpu.allocator.allocated
    x = trident.empty(1 << 18, device="cuda")
    held = gpu.allocator.allocated - before
    assert held >= 1 << 20
    capsule = x.__dlpack__()
    del x
    gc.collect()
    assert gpu.allocator.allocated - before == held
    steps()
    del capsule
    gc.collect()
    # the consumer's work may be under way: the memory rests until the default stream was there
    assert [s[:2] for s in steps()] == [("cuEventRecord", LEGACY)]
    assert gpu.allocator.allocated == before


# ---- DLPack, in ----------------------------------------------------------------------------------


@pytest.fixture
def foreign(gpu):
    """Memory of a GPU that another library allocated: 1, 2, 3, 4."""
    gpu.activate()
    values = np.array([1, 2, 3, 4], np.float32)
    ptr = int(cu.cuMemAlloc(values.nbytes))
    cu.cuMemcpyHtoD(ptr, values.ctypes.data, values.nbytes)
    yield ptr
    gc.collect()
    cu.cuMemFree(ptr)


@pytest.mark.parametrize("kind", [2, 13])
@pytest.mark.parametrize("versioned", [True, False])
def test_foreign_memory(gpu, foreign, steps, kind, versioned):
    p = Producer([0] * 4, versioned, at=foreign, device=(kind, 0))
    ours = gpu.current_stream.get()
    steps()
    x = trident.from_dlpack(p)
    assert p.asked["stream"] == ours  # the producer makes it wait
    assert steps() == []
    assert x.device == trident.device("cuda:0") and x.data_ptr() == foreign
    assert x.tolist() == [1, 2, 3, 4]
    y = x[1:]
    del x
    gc.collect()
    assert p.deleted == 0
    steps()
    del y
    gc.collect()
    assert p.deleted == 1
    assert ordered(steps(), ours, LEGACY)  # before the memory is used again


def test_foreign_memory_on_a_stream_of_ones_own(gpu, foreign):
    p = Producer([0] * 4, at=foreign, device=(2, 0))
    side = Stream()
    with side:
        x = trident.from_dlpack(p)
    assert p.asked["stream"] == side.handle and x.shape == (4,)


def test_strides_and_offsets_of_foreign_memory(foreign):
    back = Producer([0], at=foreign, device=(2, 0), count=4, offset=12, stride=-1)
    x = trident.from_dlpack(back)
    assert (x.data_ptr(), x.stride()) == (foreign + 12, (-1,))
    assert x[1:3].data_ptr() == foreign + 8 and x[3].item() == 1
    every = Producer([0], at=foreign, device=(2, 0), count=2, offset=4, stride=2)
    y = trident.from_dlpack(every)
    assert (y.data_ptr(), y.stride(), y.shape) == (foreign + 4, (2,), (2,))
    assert [y[0].item(), y[1].item()] == [2, 4]


def test_foreign_memory_that_is_read_only(foreign):
    x = trident.from_dlpack(Producer([0] * 4, at=foreign, device=(2, 0), flags=1))
    for write in (x.zero_, lambda: x[1:].add_(1), lambda: x.copy_(x.clone())):
        with pytest.raises(AutogradError, match=r"memory is read-only; clone\(\)"):
            write()
    assert struct_of(x.__dlpack__(max_version=(1, 0)))[0].flags == 1
    with pytest.raises(BufferError, match="read-only"):
        x.__dlpack__()
    x.clone().zero_()


def test_a_failing_driver_does_not_keep_foreign_memory(foreign, stub):
    p = Producer([0] * 4, at=foreign, device=(2, 0))
    x = trident.from_dlpack(p)
    stub.fail("cuEventRecord", 900)  # while a graph is captured, say
    del x
    gc.collect()
    assert p.deleted == 1


def test_a_refused_capsule_of_a_gpu_stays_whole(foreign):
    p = Producer([0] * 4, at=foreign, device=(2, 0), dtype=(5, 64, 1))
    capsule = p.__dlpack__()
    with pytest.raises(DTypeError, match="type code 5"):
        trident.from_dlpack(capsule)
    assert name_of(capsule) == b"dltensor_versioned"
    Producer.lent.remove(p)


# ---- the CUDA array interface --------------------------------------------------------------------


class Array:
    """Another library's array, by the interface alone."""

    def __init__(self, **facts):
        self.__cuda_array_interface__ = facts


def test_the_interface_of_a_tensor(gpu):
    x = on_gpu([[1, 2, 3], [4, 5, 6]])
    facts = x.__cuda_array_interface__
    assert facts == {
        "shape": (2, 3), "typestr": "<f4", "data": (x.data_ptr(), False), "strides": None,
        "stream": gpu.current_stream.get(), "version": 3,
    }  # fmt: skip
    assert x.T.__cuda_array_interface__["strides"] == (4, 12)
    assert x[:, ::2].__cuda_array_interface__["strides"] == (12, 8)
    assert x[0, 0].__cuda_array_interface__["shape"] == ()
    empty = trident.empty(0, 3, device="cuda").__cuda_array_interface__
    assert empty["data"] == (0, False) and empty["shape"] == (0, 3)
    for name, text in {
        "bool": "|b1", "uint8": "|u1", "int64": "<i8", "float16": "<f2", "bfloat16": "<V2",
    }.items():  # fmt: skip
        y = trident.empty(2, dtype=getattr(trident, name), device="cuda")
        assert y.__cuda_array_interface__["typestr"] == text
        assert trident.as_tensor(Array(**y.__cuda_array_interface__)).dtype is y.dtype
    with Stream() as side:
        assert x.__cuda_array_interface__["stream"] == side.handle
    assert not hasattr(x.cpu(), "__cuda_array_interface__")
    with pytest.raises(BufferError, match=r"requires grad.*x.detach\(\)"):
        _ = on_gpu([1], requires_grad=True).__cuda_array_interface__


def interface(ptr, **changes):
    return Array(**{
        "shape": (2, 2), "typestr": "<f4", "data": (ptr, False), "strides": None, "version": 3,
        "stream": None, **changes,
    })  # fmt: skip


def test_an_array_of_the_interface_is_shared(gpu, foreign, steps):
    ours = gpu.current_stream.get()
    side = Stream()
    for stream, before in (
        (1, LEGACY), (2, PER_THREAD), (side.handle, side.handle), (ours, None), (None, None)
    ):  # fmt: skip
        steps()
        a = interface(foreign, stream=stream)
        x = trident.as_tensor(a)
        assert x.data_ptr() == foreign and x.tolist() == [[1, 2], [3, 4]]
        assert ordered(steps(), before, ours) if before else not steps()
        del x
        gc.collect()
    old = interface(foreign, version=2)
    del old.__cuda_array_interface__["stream"]
    steps()
    x = trident.as_tensor(old)
    assert ordered(steps(), LEGACY, ours)
    y = trident.as_tensor(interface(foreign, strides=(4, 8)))
    assert y.stride() == (1, 2) and y.tolist() == [[1, 3], [2, 4]]
    locked = trident.as_tensor(interface(foreign, data=(foreign, True)))
    with pytest.raises(AutogradError, match="read-only"):
        locked.zero_()
    assert x.shape == (2, 2)


def test_the_owner_is_kept_and_waited_for(gpu, foreign, steps):
    import weakref

    a = interface(foreign)
    alive = weakref.ref(a)
    x = trident.as_tensor(a)
    del a
    gc.collect()
    assert alive() is not None
    steps()
    del x
    gc.collect()
    assert alive() is None
    assert ordered(steps(), gpu.current_stream.get(), LEGACY)


def test_tensor_copies_what_as_tensor_shares(foreign):
    a = interface(foreign)
    x = trident.tensor(a)
    assert x.data_ptr() != foreign and x.device.type == "cuda" and x.shape == (2, 2)
    assert trident.tensor(a, device="cpu", dtype=trident.float64).tolist() == [[1, 2], [3, 4]]
    assert trident.tensor(a, requires_grad=True).requires_grad
    assert trident.as_tensor(a, device="cpu").tolist() == [[1, 2], [3, 4]]


def test_an_empty_array_of_the_interface(gpu):
    x = trident.as_tensor(interface(0, shape=(0, 4)))
    assert x.shape == (0, 4) and x.device.type == "cuda"


@pytest.mark.parametrize(
    "changes, error, text",
    [
        ({"typestr": "<c8"}, DTypeError, "got typestr '<c8'"),
        ({"typestr": ">f4"}, DTypeError, "got typestr '>f4'"),
        ({"strides": (8, 3)}, ValueError, r"strides must be multiples.*got \(8, 3\)"),
        ({"mask": object()}, ValueError, "a masked array has no counterpart"),
        ({"stream": 0}, ValueError, "stream must be None.*got 0.*either default stream"),
        ({"data": (4096, False)}, ValueError, "must point to memory of a GPU; got 0x1000"),
    ],
)
def test_what_the_interface_may_not_say(foreign, changes, error, text):
    with pytest.raises(error, match=f"as_tensor: .*{text}"):
        trident.as_tensor(interface(foreign, **changes))


def test_memory_of_another_gpu(stub):
    x = on_gpu([1, 2], "cuda:1")
    y = trident.as_tensor(Array(**x.__cuda_array_interface__))
    assert y.device == trident.device("cuda:1") == trident.device(str(cuda_device(1)))
    assert y.tolist() == [1, 2]
