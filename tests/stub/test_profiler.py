"""trident.profile() on a GPU: launches by plans and without, CUDA events around them, several
devices, capture."""

from __future__ import annotations

import gc
import json

import pytest

import trident
from trident import nn
from trident.profiler import limits, seam
from trident.runtime.libcuda import cu, driver


def step(device="cuda"):
    net = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 4)).to(device)
    opt = trident.optim.AdamW(net.parameters(), lr=0.1)
    x = trident.empty(8, 16, device=device)

    def run():
        opt.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        opt.step()

    return run


@pytest.fixture(scope="module")
def stepped():
    run = step()
    for _ in range(3):
        run()
    return run


def test_every_launch_is_counted(stub, stepped):
    n = stub.n_launches
    with trident.profile() as p:
        stepped()
    launched = stub.n_launches - n
    assert launched > 10
    assert sum(r.launches for r in p.rows()) == launched
    assert sum(e.launches for e in p.events if e.kind == "kernel") == launched
    by_plan = [e for e in p.events if e.name == "launch plan"]
    assert len(by_plan) > 5  # repeated ops go by plans
    ranges = {e.name: e for e in p.events if e.kind == "range"}
    assert {"backward", "AdamW.step"} <= ranges.keys()
    assert ranges["AdamW.step"].launches == 1


def test_fused_functions_are_one_op_here_too(stub):
    @trident.fuse
    def scaled_gelu(x, w):
        return trident.gelu(x * w).sum(-1)

    x = trident.empty(6, 64, device="cuda", requires_grad=True)
    w = trident.empty(64, device="cuda", requires_grad=True)
    for _ in range(3):
        scaled_gelu(x, w).sum().backward()
    n = stub.n_launches
    with trident.profile() as p:
        y = scaled_gelu(x, w)
    assert stub.n_launches - n == 1
    (r,) = p.rows()
    assert (r.name, r.launches, r.bytes) == ("scaled_gelu", 1, (6 * 64 + 64 + 6) * 4)
    n = stub.n_launches
    with trident.profile() as p:
        y.sum().backward()
    assert sum(r.launches for r in p.rows()) == stub.n_launches - n
    assert "ScaledGeluBackward" in {r.name for r in p.rows()}


def test_the_first_call_of_an_op_is_counted_too(stub):
    x = trident.empty(7, 11, device="cuda")
    n = stub.n_launches
    with trident.profile() as p:
        x.sin().softmax(0)
    assert stub.n_launches - n == 2 == sum(r.launches for r in p.rows())
    assert next(e.name for e in p.events if e.kind == "kernel") == "sin_kernel"


def test_time_is_taken_by_events_around_each_launch(stub, gpu, stepped):
    with trident.profile() as p:
        n = stub.n_steps
        stepped()
        log = stub.log(n)
    kernels = [e for e in p.events if e.kind == "kernel"]
    names = [
        s.name for s in log if s.name in ("cuEventRecord", "cuLaunchKernelEx", "cuLaunchKernel")
    ]
    launch = names.index(next(n for n in names if n.startswith("cuLaunch")))
    assert names[launch - 1] == names[launch + 1] == "cuEventRecord"
    stream = gpu.current_stream.get()
    assert {s.stream for s in log if s.name == "cuEventRecord"} == {stream}
    for e in kernels:
        assert e.device == "cuda:0" and 0 <= e.span.seconds <= e.seconds + 1e-3
        assert e.device_seconds == e.span.seconds
    whole = next(e for e in p.events if e.name == "LayerNormAxesBackward")
    assert whole.device_seconds == pytest.approx(
        sum(e.span.seconds for e in kernels if e.parent is whole)
    )
    r = next(r for r in p.rows() if r.name == "gelu")
    assert r.device == "cuda:0" and r.seconds <= r.host_seconds
    views = [r for r in p.rows() if r.name == "permute"]
    assert all(r.seconds == 0 for r in views)  # nothing ran on the GPU
    text = p.table()
    assert "roofline of cuda:0: " in text and "gelu" in text


def test_nothing_waits_until_times_are_read(stub, stepped):
    with trident.profile():
        stepped()
    with trident.profile() as p:
        stepped()  # the first launch sets the clocks
        n = stub.n_steps
        stepped()
        waits = [s for s in stub.log(n) if "Synchronize" in s.name]
    assert waits == []
    assert p.events


def test_events_are_given_back(stub, stepped):
    gc.collect()
    made, gone = stub.count("cuEventCreate"), stub.count("cuEventDestroy_v2")
    with trident.profile() as p:
        stepped()
    str(p)
    del p
    gc.collect()
    made = stub.count("cuEventCreate") - made
    gone = stub.count("cuEventDestroy_v2") - gone
    assert made - gone <= 1  # the zero of the clock stays


def test_the_trace_has_a_lane_for_the_gpu(stepped, tmp_path):
    with trident.profile() as p:
        stepped()
    p.export_chrome_trace(tmp_path / "t.json")
    trace = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    lanes = {e["args"]["name"]: e["pid"] for e in trace if e["name"] == "process_name"}
    assert lanes.keys() == {"host", "cuda:0"}
    on_gpu = [e for e in trace if e["pid"] == lanes["cuda:0"] and e["ph"] == "X"]
    assert len(on_gpu) == len([e for e in p.events if e.span is not None])
    assert any(e["name"] == "gelu: launch plan" for e in on_gpu)
    starts = [e["ts"] for e in on_gpu]
    assert starts == sorted(starts) and starts[0] > 0


def test_copies(gpu):
    x = trident.ones(4, 4)
    with trident.profile() as p:
        y = x.to("cuda")
        z = y.to("cuda:1")
        z.cpu()
        y[0, 0].item()
    copies = [(e.name, e.bytes, e.device) for e in p.events if e.kind == "copy"]
    assert [c[0] for c in copies] == [
        "copy to device", "copy between devices", "copy to host", "copy to host",
    ]  # fmt: skip
    assert [c[1] for c in copies] == [64, 64, 64, 4]
    assert all(e.span is not None for e in p.events if e.kind == "copy")


def test_two_gpus_have_rows_of_their_own(stub):
    x, y = trident.empty(5, device="cuda:0"), trident.empty(5, device="cuda:1")
    n = stub.n_launches
    with trident.profile() as p:
        x.cos(), y.cos(), y.cos()
    assert {(r.device, r.calls, r.launches) for r in p.rows()} == {
        ("cuda:0", 1, 1), ("cuda:1", 2, 2),
    }  # fmt: skip
    assert [k.device for k in stub.launches(n)] == [0, 1, 1]
    assert str(p).count("roofline of cuda:") == 2


def test_no_events_go_into_a_graph(stub, gpu, stepped):
    stream = trident.runtime.stream.Stream(gpu)
    x = trident.empty(64, device="cuda")
    with stream:
        for _ in range(3):
            x.exp()
        gpu.activate()
        mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with trident.profile() as p:
            x.exp()
            n = stub.n_steps
            cu.cuStreamBeginCapture(stream.handle, mode)
            x.exp()
            graph = cu.cuStreamEndCapture(stream.handle)
            log = stub.log(n)
    assert not [s for s in log if s.name == "cuEventRecord"]
    spans = [e.span for e in p.events if e.kind == "kernel"]
    assert spans[0] is not None and spans[1] is None
    (r,) = p.rows()
    assert (r.calls, r.launches) == (2, 2)
    cu.cuGraphDestroy(graph)


def test_limits_come_from_the_drivers_clocks(stub, gpu):
    found = limits.gpu(0)
    read = lambda name: trident.runtime.libcuda.attribute(gpu.ordinal, name)  # noqa: E731
    bandwidth = 2 * read("MEMORY_CLOCK_RATE") * 1e3 * read("GLOBAL_MEMORY_BUS_WIDTH") / 8
    assert found.bandwidth == bandwidth > 0
    cycles = read("CLOCK_RATE") * 1e3 * gpu.multiprocessors
    assert gpu.capability == (9, 0)
    assert found.flops["float32"] == 256 * cycles and found.flops["tf32"] == 2048 * cycles
    assert found.flops["bfloat16"] == found.flops["float16"] == 4096 * cycles
    x = trident.empty(64, 64, device="cuda")
    with trident.profile() as p:
        x @ x
        token = trident.config.matmul_precision.set("high")
        x @ x
        trident.config.matmul_precision.reset(token)
    dtypes = [e.dtype for e in p.events if e.name == "matmul"]
    assert dtypes == ["float32", "tf32"]
    (r,) = p.rows()
    least = sum(found.seconds(e.bytes, e.flops, e.dtype) for e in p.events if e.name == "matmul")
    assert r.least == pytest.approx(least)


def test_nothing_is_left_behind_on_a_gpu(stepped):
    seams = [(h, n, vars(h)[n]) for h, n, _ in seam.points()]
    names = {getattr(h, "__name__", "") for h, n, _ in seams}
    assert {"CudaDevice", "HostDevice", "Plan", "ElementwisePlan"} <= names
    with pytest.raises(KeyError), trident.profile():
        stepped()
        raise KeyError
    assert all(vars(h)[n] is f for h, n, f in seams)
