"""``trident doctor`` where there is a driver: the stub's two GPUs."""

from __future__ import annotations

import dataclasses
import json

from trident import cli, config
from trident.cli import doctor
from trident.cli.doctor import BROKEN, MISSING, NOTE, OK


def found(what: str, asked: bool = False) -> doctor.Finding:
    return next(f for f in doctor._driver(asked) if f.what == what)


def test_the_driver_and_every_gpu_are_named(stub):
    assert found("GPU driver").mark == OK
    for index in (0, 1):
        line = found(f"cuda:{index}")
        assert line.mark == OK
        assert "sm_90" in line.found and "of 4.0 GiB free" in line.found


def test_a_kernel_that_does_not_run_is_broken(stub, capsys):
    """The stub launches kernels and runs none: fresh memory is zeros, and doctor sees that."""
    (line,) = doctor._kernel(True)
    assert line.mark == BROKEN and "wrong result: 1.5 * 2 + 1 gave 0.0" in line.found
    assert cli.main(["doctor", "--device", "cuda", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [f["what"] for f in findings if f["mark"] == BROKEN] == ["kernel"]
    assert cli.main(["doctor", "--json"]) == 0  # the cpu was asked for, and works


def test_a_launch_that_fails_is_said(stub, gpu):
    stub.fail("cuLaunchKernelEx", 719)
    (line,) = doctor._kernel(True)
    assert line.mark == BROKEN and "CudaError" in line.found and "a kernel failed" in line.found


def test_an_older_gpu_is_a_note(stub, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "capability", (7, 5))
    line = doctor._gpu(0, True)
    assert line.mark == NOTE and "sm_75" in line.found


def test_a_gpu_that_cannot_be_used_is_missing_or_broken(stub, gpu, monkeypatch):
    def refuse() -> tuple[int, int]:
        raise RuntimeError("the GPU is in use by another process")

    monkeypatch.setattr(gpu.memory, "info", refuse)
    assert doctor._gpu(0, False).mark == MISSING
    assert doctor._gpu(0, True).mark == BROKEN
    assert "in use" in doctor._gpu(0, True).found


def test_the_caches_of_both_are_reported(stub, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE", str(tmp_path))
    assert [f.what for f in doctor._caches(False)] == ["cache", "Triton cache"]


def test_bench_runs_on_the_gpu(stub, capsys):
    """No figure means anything here: every operation launches what it should, that is all."""
    before = stub.n_launches
    assert cli.main(["bench", "--device", "cuda", "--quick", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["cuda"]
    assert [r["what"] for r in rows][:2] == ["copy", "matmul bfloat16 128 x 128"]
    assert len(rows) == 14 and stub.n_launches - before > 14 * 6


def test_tune_measures_and_keeps(stub, gpu, monkeypatch, tmp_path, capsys):
    """One problem of the first family: its kernels are launched in every configuration."""
    import trident.kernels.configs as configs

    monkeypatch.setattr(config, "CACHE", str(tmp_path))
    configs.forget()
    name, family = next(iter(configs.tunable().items()))
    kind = next(iter(family.kinds))
    sizes = dict.fromkeys(family.sizes, 64)
    few = list(family.candidates(configs.Place("sm_90", kind, sizes)))[:2]
    fewer = dataclasses.replace(family, candidates=lambda place: few)
    monkeypatch.setitem(configs._families, name, fewer)
    before = stub.n_launches
    size = ",".join(f"{n}=64" for n in family.sizes)
    assert cli.main(["tune", name, "--kind", kind, "--size", size]) == 0
    out = capsys.readouterr().out
    assert f"{name} {kind} {size}: Config(" in out and stub.n_launches > before + 40
    assert cli.main(["tune", name, "--kind", kind, "--size", size]) == 0
    assert "in the cache already" in capsys.readouterr().out
    configs.forget()
