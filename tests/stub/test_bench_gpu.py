"""``python -m bench gpu`` without a GPU: every workload is made, called and read on the stub."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bench") is None, reason="the benchmarks are not beside the tests"
)

from bench import gpu  # noqa: E402
from bench.gpu_workloads import STARTS, WORKLOADS  # noqa: E402

DIFFERENT = {(w.make, tuple(w.small.items())): w for w in reversed(WORKLOADS)}.values()


@pytest.mark.parametrize("workload", DIFFERENT, ids=lambda w: w.name)
def test_every_workload_runs_through(stub, workload):
    assert gpu.dry(workload) >= 2  # a kernel in each of the two calls


@pytest.mark.parametrize("start", STARTS, ids=lambda s: s.name)
def test_every_start_runs_through(stub, start):
    assert gpu.dry_start(start) >= 2


def test_the_commands_of_a_worker(stub, monkeypatch, tmp_path):
    """All that the parent process may ask, on one workload at its small size."""
    workload = next(w for w in WORKLOADS if w.name == "swiglu backward bf16 8192x14336")
    small = dataclasses.replace(workload, full=workload.small)
    monkeypatch.setattr(gpu, "WORKLOADS", [small])
    monkeypatch.setattr(gpu, "FLUSH", 4096)
    worker = gpu.Worker("trident")
    about = worker.about()
    assert "stub" in about["gpu"].lower() and about["version"].startswith("0.")
    assert worker.prepare(small.name, "eager")["peak"] > 0
    assert worker.measure("eager")["seconds"] >= 0
    worker.values("eager", str(tmp_path / "v.npz"))
    import numpy as np

    found = np.load(tmp_path / "v.npz")
    assert [found[k].shape for k in found.files] == [(16 * 256,), (16 * 256,)]
    assert set(worker.limits(1 << 12, 64)) == {"copy", "matmul"}
    launch = worker.launch_path()
    assert 0 < launch["ours"] < launch["triton"]
    assert worker.drop() == {} and not worker.kept


def test_a_host_bound_workload_is_timed_by_the_wall(stub, monkeypatch):
    workload = next(w for w in WORKLOADS if w.host)
    monkeypatch.setattr(gpu, "WORKLOADS", [workload])
    monkeypatch.setattr(gpu, "FLUSH", 4096)
    worker = gpu.Worker("trident")
    worker.prepare(workload.name, "eager")
    assert 1e-7 < worker.measure("eager")["seconds"] < 1e-3
