"""Streams and events: order, the current stream of a context, other libraries' streams."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading

import pytest

import trident
from tests.stub import kernels
from trident.errors import CudaError
from trident.runtime.device import cuda_device
from trident.runtime.stream import Event, Stream, handle_of


def test_our_own_stream_is_not_the_default_one(stub, gpu):
    assert gpu.current_stream.get() == gpu.own_stream
    assert gpu.own_stream > 2  # 0, 1 and 2 are the driver's default streams
    flags = trident.runtime.libcuda.cu.cuStreamGetFlags(gpu.own_stream)
    assert int(flags) == 1  # non-blocking


def test_with_puts_work_onto_the_stream(stub, gpu):
    x = trident.ones(8, device="cuda")
    s = Stream()
    assert s.handle != gpu.own_stream
    with s as entered:
        assert entered is s
        assert gpu.current() is s
        x + 1
        assert stub.launches()[-1].stream == s.handle
    x + 1
    assert stub.launches()[-1].stream == gpu.own_stream
    assert gpu.current().handle == gpu.own_stream


def test_blocks_nest_and_end_after_an_error(gpu):
    a, b = Stream(), Stream()
    with a:
        with pytest.raises(KeyError), b, a, b:
            raise KeyError
        assert gpu.current() is a
        with a:
            assert gpu.current() is a
    assert gpu.current().handle == gpu.own_stream


def test_the_current_stream_stays_alive(stub, gpu):
    with Stream():
        handle = gpu.current_stream.get()
        gc.collect()
        assert stub.alive(handle)
    gc.collect()
    assert not stub.alive(handle)


def test_a_thread_starts_on_the_devices_own_stream(gpu):
    seen = []
    with Stream():
        thread = threading.Thread(target=lambda: seen.append(gpu.current_stream.get()))
        thread.start()
        thread.join()
    assert seen == [gpu.own_stream]


def test_tasks_do_not_disturb_each_other(gpu):
    async def on(stream):
        with stream:
            for _ in range(3):
                await asyncio.sleep(0)
                assert gpu.current() is stream

    async def both():
        await asyncio.gather(on(Stream()), on(Stream()), on(Stream()))

    asyncio.run(both())
    contextvars.copy_context().run(lambda: Stream().__enter__())
    assert gpu.current_stream.get() == gpu.own_stream


def test_priority(gpu):
    assert Stream.priority_range() == (0, -5)
    assert [Stream(priority=p).priority for p in (0, -1, -5, -9, 7)] == [0, -1, -5, -5, 0]


def test_query_and_synchronize(stub, gpu):
    s = Stream()
    assert s.query()
    stub.hold(s.handle)
    assert not s.query()
    s.synchronize()
    assert s.query()


def test_wait_stream(stub, gpu):
    a, b = Stream(), Stream()
    stub.hold(a.handle)
    b.wait_stream(a)
    assert not b.query()
    stub.release(a.handle)
    assert b.query()
    since = stub.n_steps
    a.wait_stream(a)
    assert stub.n_steps == since  # waiting for itself is nothing


def test_wait_stream_of_another_device(stub, gpu):
    with Stream(1) as there:
        pass
    here = Stream(0)
    stub.hold(there.handle)
    here.wait_stream(there)
    assert not here.query()
    stub.release(there.handle)
    assert here.query()


def test_events_order_streams(stub, gpu):
    a, b = Stream(), Stream()
    stub.hold(a.handle)
    event = a.record_event()
    assert not event.query()
    b.wait_event(event)
    assert not b.query()
    event.synchronize()
    assert event.query() and b.query()


def test_an_event_can_be_recorded_again(stub, gpu):
    a = Stream()
    event = Event()
    assert a.record_event(event) is event
    handle = event.handle
    a.record_event(event)
    assert event.handle == handle


def test_an_event_that_was_never_recorded_is_done(gpu):
    event = Event()
    assert event.query()
    event.synchronize()
    event.wait()
    assert "not recorded" in repr(event)


def test_elapsed_time(stub, gpu):
    import time

    first, last = Event(enable_timing=True), Event(enable_timing=True)
    first.record()
    time.sleep(0.02)
    last.record()
    last.synchronize()
    assert 15 < first.elapsed_time(last) < 5000
    assert first.elapsed_time(first) == 0


def test_elapsed_time_says_what_is_missing(stub, gpu):
    plain, timed = Event().record(), Event(enable_timing=True)
    with pytest.raises(RuntimeError, match=r"keeps no time.*enable_timing=True"):
        plain.elapsed_time(timed)
    with pytest.raises(RuntimeError, match="was not recorded"):
        timed.elapsed_time(timed)
    s = Stream()
    timed.record(s)
    stub.hold(s.handle)
    late = Event(enable_timing=True).record(s)
    with pytest.raises(RuntimeError, match=r"not reached yet. Call synchronize"):
        timed.elapsed_time(late)
    stub.release(s.handle)


def test_an_event_belongs_to_one_device(gpu):
    event = Event().record(Stream(0))
    with pytest.raises(RuntimeError, match="the event belongs to cuda:0; got a stream of cuda:1"):
        event.record(Stream(1))


def test_events_and_streams_are_given_back(stub, gpu):
    s = Stream()
    event = s.record_event()
    handles = (s.handle, event.handle)
    assert all(map(stub.alive, handles))
    del s, event
    gc.collect()
    assert not any(map(stub.alive, handles))


def test_memory_of_a_stream_that_is_gone_is_returned(stub, gpu):
    with Stream():
        x = trident.ones(1 << 20, device="cuda")
    del x
    gc.collect()
    gpu.allocator.empty_cache()
    used = stub.used()
    assert used < 4 << 20


class Foreign:
    def __init__(self, handle, version=0):
        self.handle, self.version = handle, version

    def __cuda_stream__(self):
        return (self.version, self.handle)


class OldTorch:
    def __init__(self, handle):
        self.cuda_stream = handle


def test_streams_of_other_libraries(stub, gpu):
    other, x = Stream(), trident.ones(4, device="cuda")
    for foreign in (Foreign(other.handle), OldTorch(other.handle), other.handle, other):
        assert handle_of(foreign) == other.handle
        s = Stream(stream=foreign)
        assert s == other and not s.owned
        with s:
            x + 1
            assert stub.launches()[-1].stream == other.handle
        del s
        gc.collect()
        assert stub.alive(other.handle)  # not ours to destroy


def test_our_stream_for_other_libraries(gpu):
    s = Stream()
    assert s.__cuda_stream__() == (0, s.handle)
    assert s.cuda_stream == s.handle
    assert handle_of(Foreign(7)) == 7


@pytest.mark.parametrize("wrong", ["x", 1.5, object(), None])
def test_no_stream(wrong):
    with pytest.raises(TypeError, match=r"expected a Stream, a handle \(int\) or an object with"):
        handle_of(wrong)


def test_a_newer_protocol_is_refused():
    with pytest.raises(TypeError, match="expected version 0"):
        handle_of(Foreign(7, version=1))


def test_a_destroyed_stream_is_a_sentence(gpu):
    s = Stream()
    handle = s.handle
    del s
    gc.collect()
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_HANDLE, a handle that does not exist"):
        Stream(stream=handle).synchronize()


def test_equality_and_repr(gpu):
    s = Stream()
    assert s == Stream(stream=s.handle)
    assert s != Stream() and s != s.handle
    assert len({s, Stream(stream=s)}) == 1
    assert repr(s) == f"<Stream {s.handle:#x} on cuda:0>"


def test_a_stream_selects_its_device(stub):
    one = cuda_device(1)
    with Stream(1):
        x = trident.ones(3, device="cuda")
        assert x.device == trident.device("cuda:1")
        x + 1
        assert stub.launches()[-1].device == 1
    assert trident.ones(3, device="cuda").device == trident.device("cuda:0")
    with Stream(1) as s, Stream(0):
        assert one.current() is s  # each device has a current stream of its own


def test_capturing(gpu):
    s = Stream()
    assert not s.is_capturing()
    with kernels.capture(s.handle):
        assert s.is_capturing()
    assert not s.is_capturing()
