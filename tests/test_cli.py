"""The command ``trident``: doctor, bench, kernels, tune."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import trident.kernels.configs as configs
from trident import cli, config
from trident.cli import bench, clock, doctor, tune
from trident.cli.doctor import BROKEN, MISSING, NOTE, OK, Finding
from trident.runtime import c_compiler, libcuda, triton_driver
from trident.runtime.tuning import Config
from trident.testing import resources, walk

ROOT = Path(__file__).resolve().parent.parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
compiles = pytest.mark.skipif(
    not HAS_TRITON or config.INTERPRET, reason="Triton's compiler is not there"
)


def lines_of(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def found(findings: list[Finding], what: str) -> Finding:
    return next(f for f in findings if f.what == what)


# ---- the command line ---------------------------------------------------------------------------


def test_without_a_command_it_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("doctor", "bench", "kernels", "tune"))
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("trident 0.")


def test_every_command_has_help(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            cli.main([name, "--help"])
        assert stopped.value.code == 0
        assert f"trident {name}" in capsys.readouterr().out


def test_as_a_module_in_a_process_of_its_own():
    """And torch, which lies beside in this environment, is not imported by any of it."""
    program = (
        "import sys; from trident import cli\n"
        "code = cli.main(['doctor', '--json'])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    for command in (["-m", "trident", "doctor", "--json"], ["-c", program]):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        findings = json.loads(done.stdout)
        assert {"Python", "numpy", "threads", "cache", "torch"} <= {f["what"] for f in findings}


def test_the_entry_point_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'trident = "trident.cli:main"' in text


# ---- doctor -------------------------------------------------------------------------------------


def test_doctor_reports_what_is_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(config, "CACHE", str(tmp_path / "cache"))
    assert cli.main(["doctor"]) == 0
    lines = lines_of(capsys)
    assert any(line.startswith("ok") and np.__version__ in line for line in lines)
    assert any("not made yet" in line for line in lines)
    assert lines[-1] == "cpu: everything needed works"


def test_doctor_counts_the_files_of_a_cache(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.so").write_bytes(b"x" * (3 << 20))
    (tmp_path / "b").write_bytes(b"y")
    line = doctor._cache("cache", tmp_path, "TRIDENT_CACHE")
    assert line.mark == OK and "2 files, 3.0 MiB" in line.found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_doctor_sees_a_cache_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    line = doctor._cache("cache", tmp_path / "below", "TRIDENT_CACHE")
    assert line.mark == NOTE and "TRIDENT_CACHE" in line.fix


def test_doctor_sees_a_file_where_the_cache_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    line = doctor._cache("cache", tmp_path / "file" / "below", "TRIDENT_CACHE")
    assert line.mark == NOTE and "cannot be written" in line.found


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the NVIDIA driver (libcuda.so.1) is not there: install it"
    monkeypatch.setattr(libcuda, "why_not", lambda: reason)
    monkeypatch.setattr(config, "INTERPRET", False)


@pytest.mark.parametrize(
    "asked, code, mark", [("cpu", 0, MISSING), ("cuda", 1, BROKEN)]
)  # fmt: skip
def test_a_missing_gpu_counts_only_where_it_was_asked_for(monkeypatch, capsys, asked, code, mark):
    no_gpu(monkeypatch)
    line = found(list(doctor._driver(asked == "cuda")), "GPU")
    assert line == Finding(
        mark, "GPU", "the NVIDIA driver (libcuda.so.1) is not there", "install it"
    )
    monkeypatch.setattr(doctor, "CHECKS", (doctor._driver,))
    assert cli.main(["doctor", "--device", asked]) == code
    lines = lines_of(capsys)
    assert any("fix: install it" in line for line in lines)
    assert lines[-1] == ("cpu: everything needed works" if code == 0 else "cuda: 1 broken")


def test_a_missing_triton_has_a_fix(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    (line,) = doctor._triton(True)
    assert line.mark == BROKEN and line.fix == "pip install 'triton>=3.6'"
    monkeypatch.setattr(doctor, "_version", lambda name: "3.5.1")
    monkeypatch.setattr("trident.lang.has_triton", lambda: True)
    (line,) = doctor._triton(False)
    assert line.mark == MISSING and line.found == "3.5.1 is too old"


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_contract_with_triton_is_reported(monkeypatch):
    monkeypatch.setattr(triton_driver, "contract", lambda: [])
    (line,) = doctor._triton(True)
    assert line.mark == OK
    monkeypatch.setattr(triton_driver, "contract", lambda: ["ASTSource takes no attrs"])
    (line,) = doctor._triton(True)
    assert line.mark == NOTE and "ASTSource takes no attrs" in line.found and line.fix

    def broken() -> list[str]:
        raise ImportError("libtriton.so is damaged")

    monkeypatch.setattr(triton_driver, "contract", broken)
    (line,) = doctor._triton(True)
    assert line.mark == BROKEN and "damaged" in line.found


def test_the_interpreter_is_said(monkeypatch):
    monkeypatch.setattr(config, "INTERPRET", True)
    line = found(list(doctor._driver(False)), "interpreter")
    assert line.mark == NOTE and "unset TRITON_INTERPRET" in line.fix


def test_a_missing_compiler_is_no_fault(monkeypatch):
    monkeypatch.setattr(c_compiler, "find", lambda: None)
    (line,) = doctor._compiler(True)
    assert line.mark == NOTE and "gcc" in line.fix


def test_a_kernel_is_run_where_one_can(device):
    lines = list(doctor._kernel(True))
    if device == "cpu":
        assert not lines or lines[0].mark == OK
    else:
        assert [line.mark for line in lines] == [OK] and "ran on" in lines[0].found


def test_a_kernel_that_computes_nonsense_is_seen(monkeypatch):
    import trident

    monkeypatch.setattr("trident.cuda.is_available", lambda: True)
    monkeypatch.setattr("trident.full", lambda *a, **k: trident.zeros(3))
    (line,) = doctor._kernel(True)
    assert line.mark == BROKEN and "gave 1.0" in line.found


# ---- bench --------------------------------------------------------------------------------------


def test_bench_on_the_cpu(capsys):
    assert cli.main(["bench", "--device", "cpu", "--quick", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["cpu"]
    assert all(r["value"] > 0 for r in rows)
    by_name = {r["what"]: r for r in rows}
    assert by_name["copy"]["unit"] == "GB/s"
    assert by_name["relu"]["of"] == "the copy rate" and by_name["relu"]["share"] > 0
    assert by_name["linear"]["of"] == "the matmul rate"
    assert cli.main(["bench", "--device", "cpu", "--quick"]) == 0
    assert any("of the copy rate" in line for line in lines_of(capsys))


def test_bench_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr("trident.cuda.is_available", lambda: False)
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "trident doctor --device cuda" in capsys.readouterr().out


def test_the_shares_are_of_the_limit_that_binds(monkeypatch):
    """A clock that says one second for everything: the share is bytes or operations alone."""
    monkeypatch.setattr(clock.Clock, "__call__", lambda self, call: (call(), 1.0)[1])
    monkeypatch.setattr(clock.Clock, "host", lambda self, call, calls=1: 2e-6)
    rows = {r["what"]: r for r in bench.measure("cpu", quick=True)}
    n, size = 1 << 18, 128
    assert rows["copy"]["value"] == pytest.approx(8e-9 * n)
    assert rows["host, tiny a + b"]["value"] == pytest.approx(2.0)
    assert rows["relu"]["share"] == pytest.approx(1.0)  # as many bytes as the copy
    assert rows["a + b"]["share"] == pytest.approx(1.5)
    assert rows["sum of rows"]["share"] == pytest.approx(0.5)
    assert rows["linear"]["share"] == pytest.approx(1.0)
    assert rows[f"matmul float32 {size} x {size}"]["value"] == pytest.approx(2e-12 * size**3)


def test_the_clock_takes_the_median(monkeypatch):
    watch = clock.Clock(fewest=5, budget=0.0)
    samples = iter([9.0, 9.0, 3.0, 1.0, 2.0, 5.0, 4.0])
    monkeypatch.setattr(watch, "_wall", lambda call: next(samples))
    assert watch(lambda: None) == 3.0  # the first two warm up


# ---- kernels ------------------------------------------------------------------------------------


def test_the_calls_are_listed(capsys):
    assert cli.main(["kernels", "--calls"]) == 0
    lines = lines_of(capsys)
    assert "softmax" in lines and "adam" in lines and "conv 3x3" in lines


@compiles
def test_kernels_compiles_what_is_named(capsys):
    assert cli.main(["kernels", "cumsum", "--target", "sm_90", "--json", "--dtype", "float32"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all("cumsum" in "".join([r["kernel"], *r["cases"]]) for r in rows)
    for r in rows:
        assert r["target"] == "sm_90" and r["types"] == "fp32"
        assert 0 < r["registers"] <= 255 and r["spills"] == 0 and r["load16"] <= r["load"]


@compiles
def test_kernels_that_do_not_exist(capsys):
    assert cli.main(["kernels", "no such kernel"]) == 2
    assert "--calls" in capsys.readouterr().out


def test_kernels_needs_the_compiler(monkeypatch, capsys):
    monkeypatch.setattr(config, "INTERPRET", True)
    assert cli.main(["kernels", "softmax"]) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().out or not HAS_TRITON


# ---- what is read off a binary ------------------------------------------------------------------


def test_wide_accesses_are_counted():
    ptx = """
    ld.global.v4.b32 {%r1}, [%rd1];
    @%p1 ld.global.L1::evict_last.v2.b64 {%rd}, [%rd2];
    ld.global.b32 %r2, [%rd3];
    ld.global.v2.b32 {%r3, %r4}, [%rd3];
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
    cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, %r2;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd];
    st.global.v8.b32 [%rd1], {%r1};
    st.global.v2.b16 [%rd1], {%r1};
    cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r2, %r3}], [%r1];
    wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1};
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1};
    tcgen05.mma.cta_group::1.kind::f16 [%r1];
    atom.global.gpu.relaxed.add.f32 %f1, [%rd1], %f2;
    red.global.add.u32 [%rd1], %r2;
    """
    counts = resources._count(ptx, {k: p for k, (p, _) in resources.COUNTED.items()})
    assert counts == {
        "load16": 4, "store16": 2, "load": 7, "store": 3, "mma.sync": 1, "wgmma": 1, "tcgen05": 1,
        "tma": 2, "slow sine": 0, "atomic float": 1,
    }  # fmt: skip
    sass = """
    LDG.E.128 R4, desc[UR4][R2.64] ;
    LDG.E.64 R4, desc[UR4][R2.64] ;
    LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;
    STG.E.128 desc[UR4][R2.64], R4 ;
    STG.E desc[UR4][R2.64], R4 ;
    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8] ;
    HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
    UTMALDG.2D [UR8], [UR4] ;
    """
    counts = resources._count(sass, {k: s for k, (_, s) in resources.COUNTED.items()})
    assert (counts["load16"], counts["load"], counts["store16"], counts["store"]) == (3, 4, 1, 2)
    assert (counts["wgmma"], counts["mma.sync"], counts["tma"]) == (1, 1, 1)


def test_the_table_has_a_line_a_kernel():
    row = {
        "kernel": "kernels.a", "types": "bf16", "target": "sm_90", "registers": 40, "spills": 0,
        "shared": 128, "load16": 2, "store16": 1, "wgmma": 8,
    }  # fmt: skip
    failed = {"kernel": "kernels.b", "types": "fp32", "target": "sm_80", "error": "TypeError"}
    text = resources.table([row, failed], ["sm_80", "sm_90"]).splitlines()
    assert text[2] == "| kernels.a | bf16 |  | 40/0/128/2/1/wgmma 8 |"
    assert text[3] == "| kernels.b | fp32 | failed |  |"


def test_names_match_by_parts_and_by_patterns():
    assert walk.matching(["soft"])("kernels.softmax.softmax_kernel")
    assert not walk.matching(["soft"])("matmul")
    assert walk.matching(["*max"])("softmax") and not walk.matching(["*max"])("maxima")
    assert walk.matching([])("anything")


# ---- tune ---------------------------------------------------------------------------------------


def test_tune_lists_without_a_gpu(capsys):
    assert cli.main(["tune", "--list"]) == 0
    text = capsys.readouterr().out
    for name, family in configs.tunable().items():
        assert f"{name}: {', '.join(family.sizes)}" in text


def test_tune_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr("trident.cuda.is_available", lambda: False)
    assert cli.main(["tune"]) == 2
    assert "no GPU" in capsys.readouterr().out
    assert cli.main(["tune", "nonsense"]) == 2
    assert "there are" in capsys.readouterr().out


TOY = {
    "tables": {
        "any": {
            "half": [
                {"at_most": {"n": 64}, "config": {"BLOCK": 16}},
                {"config": {"BLOCK": 32, "num_warps": 4}},
            ]
        }
    }
}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A family of one number, on a device that compiles only and a clock that knows the times."""
    from trident import dtypes, runtime
    from trident.runtime.aot import AotDevice

    def rehearse(device, dtype, sizes):
        return lambda: None

    def seconds(self, call):
        call()
        block = configs.forced("toy").constants["BLOCK"]
        if block == 256:
            raise ValueError("too much shared memory")
        return {16: 4e-6, 32: 3e-6, 64: 1e-6}[block]

    family = configs.Family(
        "toy", (), ("n",), lambda place: [Config(BLOCK=b) for b in (16, 32, 64, 256)], rehearse,
        ({"n": 1000}, {"n": 64}), {"half": dtypes.bfloat16},
    )  # fmt: skip
    monkeypatch.setattr(config, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(configs, "_families", {"toy": family})
    monkeypatch.setattr(configs, "tunable", lambda: {"toy": family})
    monkeypatch.setattr(configs, "shipped", lambda name: TOY)
    monkeypatch.setattr(clock.Clock, "__call__", seconds)
    monkeypatch.setattr(config, "INTERPRET", False)
    monkeypatch.setattr("trident.cuda.is_available", lambda: True)
    configs.rules.cache_clear()
    configs.forget()
    device = AotDevice("sm_90")
    with runtime.use(device):
        yield device
    configs.rules.cache_clear()
    configs.forget()


def test_tune_keeps_the_fastest(toy, capsys):
    from trident import dtypes

    assert configs.pick("toy", toy, dtypes.bfloat16, {"n": 1000}).constants == {"BLOCK": 32}
    assert cli.main(["tune", "toy"]) == 0
    text = capsys.readouterr().out
    assert "toy half n=1000: Config(BLOCK=64" in text and "1.0 us" in text
    assert "the default takes 3.00 times that" in text
    assert "2 configurations do not run" in text
    assert configs.pick("toy", toy, dtypes.bfloat16, {"n": 1000}).constants == {"BLOCK": 64}
    assert cli.main(["tune", "toy", "--size", "n=1000"]) == 0
    assert "in the cache already" in capsys.readouterr().out
    assert cli.main(["tune", "toy", "--size", "m=3"]) == 2
    assert "a problem of toy has the sizes n" in capsys.readouterr().out


def test_tune_writes_defaults_that_are_taken(toy, capsys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert cli.main(["tune", "toy", "--size", "n=1000", "--write", str(out)]) == 0
    text = (out / "toy.json").read_text()
    assert text.count("\n") == 6 + 2 * 2 + 5  # a rule a line
    written = json.loads(text)
    assert written["tables"]["any"] == TOY["tables"]["any"]
    first, *rest = written["tables"]["sm_90"]["half"]
    assert rest == TOY["tables"]["any"]["half"]
    assert first == {
        "at_least": {"n": 513}, "at_most": {"n": 1024}, "measured": True,
        "config": {"BLOCK": 64, "num_warps": 4, "num_stages": 3},
    }  # fmt: skip
    monkeypatch.setattr(configs, "shipped", lambda name: written)
    configs.rules.cache_clear()
    for n, block in ((512, 32), (513, 64), (1024, 64), (1025, 32), (64, 16)):
        place = configs.Place("sm_90", "half", {"n": n})
        assert configs.default("toy", place).constants == {"BLOCK": block}, n
    elsewhere = configs.Place("sm_80", "half", {"n": 1000})
    assert configs.default("toy", elsewhere).constants == {"BLOCK": 32}


def test_a_later_result_takes_the_place_of_an_earlier():
    def chosen(block: int) -> configs.Chosen:
        return configs.Chosen("toy", "half", {"n": 1000}, Config(BLOCK=block), Config(BLOCK=32))

    once = tune.with_measured(TOY, "sm_90", [chosen(64)])
    again = tune.with_measured(once, "sm_90", [chosen(128)])
    lines = again["tables"]["sm_90"]["half"]
    assert [x["config"]["BLOCK"] for x in lines] == [128, 16, 32]
    undone = tune.with_measured(again, "sm_90", [chosen(32)])  # the default is as good
    assert undone["tables"]["sm_90"]["half"] == TOY["tables"]["any"]["half"]
    assert "sm_90" not in TOY["tables"]


def test_tune_writes_nothing_for_a_gpu_without_shipped_defaults(toy, capsys, tmp_path):
    toy.target = "sm_120"
    assert cli.main(["tune", "toy", "--write", str(tmp_path / "out")]) == 2
    assert "this GPU is sm_120" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_sizes_are_read():
    assert tune._sizes("m=4096, n=64,k=1") == {"m": 4096, "n": 64, "k": 1}
    with pytest.raises(argparse.ArgumentTypeError, match="name=int"):
        tune._sizes("m=x")
