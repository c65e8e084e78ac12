"""The benchmarks' own logic: comparing, judging, reporting, and the rules for compiled kernels."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import gpu, kernel_rules
from bench.gpu_workloads import GPT, TOGETHER, WORKLOADS, Lib, Workload
from bench.kernel_rules import ALL, LeftOut, Rule

ROOT = Path(__file__).resolve().parent.parent
WORK = Workload(
    "G3", "norm", lambda lib: None, {}, {}, {"eager": 0.80, "compile": None},
    copy=0.90, memory=0.5, nbytes=8e9, flops=4e12, tolerance=0.01,
)  # fmt: skip


class FakePeer:
    """Answers as a worker would: ``times`` by variant, values, and errors where told."""

    def __init__(self, library: str, times: dict[str, list[float]], log: list, **errors: str):
        self.library, self.times, self.log, self.errors = library, times, log, errors
        self.stopped = 0

    def ask(self, command: str, *arguments: Any, timeout: float = 0) -> dict[str, Any]:
        self.log.append((self.library, command))
        if command in self.errors:
            return {"error": self.errors[command]}
        if command == "prepare":
            return {"peak": 100 if self.library == "trident" else 400}
        if command == "values":
            np.savez(arguments[1], np.array([1.0, 2.0 + (self.library == "trident") * 0.1]))
        if command == "measure":
            return {"seconds": self.times[arguments[0]].pop(0)}
        return {}

    def stop(self) -> None:
        self.stopped += 1


def test_the_rounds_alternate_and_the_ratio_is_the_median_of_rounds():
    log: list = []
    ours = FakePeer("trident", {"eager": [1.0, 2.0, 3.0]}, log)
    theirs = FakePeer("torch", {"eager": [4.0, 1.0, 2.0], "compile": [1.0, 1.0, 1.0]}, log)
    row = gpu.run(WORK, ours, theirs, rounds=3, compiled=True)
    measured = [name for name, command in log if command == "measure"]
    assert measured == ["trident", "torch", "torch"] * 3
    assert row["seconds"] == 2.0
    assert row["peers"]["eager"]["ratio"] == 1.5  # the medians alone would give 1.0
    assert row["peers"]["eager"]["range"] == [0.25, 2.0]
    assert row["peers"]["compile"]["ratio"] == 2.0
    assert row["peers"]["eager"]["max error"] == pytest.approx(0.05)
    first = [log.index(("trident", c)) for c in ("prepare", "values", "measure", "drop")]
    assert first == sorted(first)


def test_torch_compile_can_be_left_out():
    log: list = []
    ours = FakePeer("trident", {"eager": [1.0]}, log)
    theirs = FakePeer("torch", {"eager": [2.0]}, log)
    assert set(gpu.run(WORK, ours, theirs, 1, compiled=False)["peers"]) == {"eager"}


@pytest.mark.parametrize("command", ["prepare", "measure"])
def test_what_raises_in_trident_is_a_row(command):
    ours = FakePeer("trident", {}, [], **{command: "KernelError: no"})
    row = gpu.run(WORK, ours, FakePeer("torch", {}, []), 2, True)
    assert row["error"] == "KernelError: no" and "seconds" not in row
    gpu.judge(WORK, row, {"copy": 1e12, "matmul": 1e14})
    assert "checks" not in row
    assert "| G3 | norm | error: KernelError: no |" in gpu._line(row)


def test_what_raises_in_torch_leaves_the_rest():
    log: list = []
    theirs = FakePeer("torch", {}, log, prepare="RuntimeError: no | kernel")
    row = gpu.run(WORK, FakePeer("trident", {"eager": [1.0, 3.0]}, log), theirs, 2, True)
    assert row["seconds"] == 2.0
    assert row["peers"]["eager"] == {"error": "RuntimeError: no | kernel"}
    gpu.judge(WORK, row, {"copy": 8e9, "matmul": 4e12})
    assert [c["what"] for c in row["checks"]] == ["of the copy rate"]
    assert "no \\| kernel" in gpu._line(row)


def judged(ratio: float, error: float, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "goal": "G3", "name": "norm", "seconds": seconds, "peak": 30,
        "peers": {"eager": {"ratio": ratio, "max error": error, "peak": 100}},
    }  # fmt: skip
    gpu.judge(WORK, row, {"copy": 4e12, "matmul": 8e14})
    return row


def test_goals_are_judged():
    row = judged(0.8, 0.005, 2e-3)
    assert row["shares"] == pytest.approx({"copy": 1.0, "matmul": 2.5})
    assert [(c["what"], c["met"]) for c in row["checks"]] == [
        ("time / torch eager", True), ("error against torch eager", True),
        ("of the copy rate", True), ("peak memory / eager", True),
    ]  # fmt: skip
    row = judged(0.81, 0.02, 2.3e-3)
    assert [c["met"] for c in row["checks"]] == [False, False, False, True]
    assert row["shares"]["copy"] == pytest.approx(0.87, abs=0.01)


def test_the_largest_error_of_any_result_counts():
    a = [np.array([1.0, 2.0]), np.array([100.0])]
    assert gpu.max_error(a, a) == 0
    assert gpu.max_error(a, [np.array([1.0, 4.0]), np.array([100.0])]) == 0.5
    assert gpu.max_error(a, a[:1]) == float("inf")
    assert gpu.max_error([np.array([np.nan, 1.0])], [np.array([0.0, 1.0])]) == float("inf")
    assert gpu.max_error([np.array([np.inf, 1.0])], [np.array([np.inf, 1.0])]) == 0


def test_the_geometric_mean_needs_every_row():
    (goal,) = TOGETHER
    rows = [
        {"name": n, "peers": {"eager": {"ratio": r}}}
        for n, r in zip(goal.rows, (0.5, 2.0, 1.0, 1.0, 4.0))
    ]
    (row,) = gpu.together(rows)
    assert row["checks"][0]["measured"] == pytest.approx(4 ** (1 / 5))
    assert row["checks"][0]["met"] is False
    assert not list(gpu.together(rows[1:]))


def test_every_row_of_a_mean_is_a_workload():
    names = [w.name for w in WORKLOADS]
    assert len(set(names)) == len(names)
    assert all(n in names for t in TOGETHER for n in t.rows)


def report(**changes: Any) -> dict[str, Any]:
    about = {
        "gpu": "NVIDIA H200", "driver": "580.1", "triton": "3.9.0", "torch": "2.13.0",
        "trident": "0.1.0", "python": "3.11.7", "date": "2026-11-27", "rounds": 5,
        "command": "python -m bench gpu",
    }  # fmt: skip
    row = judged(0.7, 0.001, 2e-3)
    row["peers"]["eager"] |= {"seconds": 2.9e-3, "range": [0.68, 0.71]}
    return {
        "about": {**about, **changes},
        "limits": {"copy": 4.1e12, "matmul": 7.7e14},
        "rows": [row, {"goal": "G9", "name": "Adam", "peers": {}, "error": "no"}],
    }


def test_the_report_names_machine_versions_limits_and_goals():
    text = gpu.markdown(report())
    for part in ("NVIDIA H200", "580.1", "3.9.0", "2.13.0", "2026-11-27", "4.10 TB/s", "770 TFLOP"):
        assert part in text
    assert "| G3 | norm | 2 ms | eager 2.9 ms, 0.70 (0.68 to 0.71) | 100% of copy" in text
    assert "time / torch eager 0.7, goal at most 0.8: met" in text
    assert "Goals met: 3 of 3 measured." in text and "Raised: Adam." in text


def test_rows_of_other_goals_stay_where_the_machine_is_the_same(tmp_path):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(report()))
    new = {**report(), "rows": [{"goal": "G9", "name": "Adam", "seconds": 1.0, "peers": {}}]}
    gpu._merge(path, new, ["G9"])
    assert [r["name"] for r in new["rows"]] == ["norm", "Adam"]
    assert "error" not in new["rows"][1]
    other = {**report(torch="2.14.0"), "rows": []}
    gpu._merge(path, other, ["G9"])
    assert other["rows"] == []
    path.write_text("not json")
    gpu._merge(path, other, ["G9"])
    assert other["rows"] == []


def test_a_worker_answers_errors_and_its_death_is_seen():
    peer = gpu.Peer("a_library_that_does_not_exist")
    try:
        assert "ModuleNotFoundError" in peer.ask("about", timeout=120)["error"]
        assert peer.process is not None
        peer.process.kill()
        assert "died at about" in peer.ask("about", timeout=120)["error"]
        assert peer.process is None  # and the next question starts another
        assert "no answer to about in 0 s" in peer.ask("about", timeout=0)["error"]
    finally:
        peer.stop()


def test_unknown_goals_are_refused(capsys):
    assert gpu.main(["--only", "G99"]) == 2
    assert "no goal 'G99'" in capsys.readouterr().out


def test_inputs_are_the_same_in_every_library():
    a, b = Lib("trident", device="cpu"), Lib("trident", "other", device="cpu")
    assert np.array_equal(a.array(3, 4), b.array(3, 4))
    x = a.new(5, dtype="float32")
    assert np.array_equal(x.numpy(), b.array(5)) and not np.array_equal(x.numpy(), b.array(5))
    assert GPT().layers == 12 and a.ours


# ---- rules for compiled kernels -----------------------------------------------------------------


def compiled(**changes: Any) -> dict[str, Any]:
    return {
        "kernel": "kernels.softmax.softmax_kernel", "types": "bf16", "target": "sm_90",
        "cases": ["softmax"], "registers": 40, "spills": 0, "shared": 1024, "load16": 2, "load": 2,
        "store16": 2, "store": 2, "wgmma": 0, "atomic float": 0, "slow sine": 0, **changes,
    }  # fmt: skip


@pytest.fixture
def rules(monkeypatch):
    def use(*rules: Rule, left_out: tuple[LeftOut, ...] = ()) -> None:
        monkeypatch.setattr(kernel_rules, "RULES", rules)
        monkeypatch.setattr(kernel_rules, "LEFT_OUT", left_out)

    return use


def problems(*rows: dict[str, Any], whole: bool = False) -> list[str]:
    return kernel_rules.broken(rows, whole, kernel_rules.EVERY)


def test_a_rule_holds_or_is_broken(rules):
    rules(Rule("load16", "kernels.softmax.*", "bf16", "softmax", least=2))
    assert problems(compiled()) == []
    (line,) = problems(compiled(load16=1))
    assert "load16 1" in line and "at least 2" in line
    for other in ({"types": "fp32"}, {"cases": ["log_softmax"]}, {"target": "gfx942"}):
        assert problems(compiled(load16=0, **other)) == []


def test_what_reads_nothing_need_not_read_in_16_bytes(rules):
    rules(Rule("load16", least=1), Rule("store16", least=1))
    assert problems(compiled(load16=0, load=0)) == []
    assert len(problems(compiled(load16=0, load=1))) == 1
    assert len(problems(compiled(store16=0, store=4))) == 1


def test_rules_look_at_samples_only_where_they_say_so(rules):
    rules(Rule("load16", least=1), Rule("spills", cases=ALL, most=0))
    (line,) = problems(compiled(cases=[], load16=0, spills=8))
    assert "spills 8" in line


def test_the_stack_of_the_slow_sine_is_told_apart():
    kept = [r for r in kernel_rules.RULES if r.what == "spills"]
    for spills, sine, wrong in ((0, 0, 0), (8, 0, 1), (8, 1, 0), (12, 1, 1)):
        row = compiled(spills=spills, **{"slow sine": sine})
        assert sum(r.matches(row) and not r.holds(row) for r in kept) == wrong


def test_ptx_and_sass_must_agree(rules):
    rules(Rule("load16", least=1))
    (line,) = problems(compiled(**{"sass load16": 0}))
    assert "PTX has 2" in line and "SASS 0" in line
    assert problems(compiled(**{"sass load16": 2})) == []


def test_failures_and_too_much_shared_memory_are_problems(rules):
    rules()
    assert "CompilationError" in problems(compiled(error="CompilationError: no"))[0]
    assert "232449 bytes of shared memory" in problems(compiled(shared=232449))[0]


def test_neither_rules_nor_exceptions_go_stale(rules):
    rules(
        Rule("load16", "kernels.gone.*", least=1),
        Rule("store16", least=1),
        left_out=(
            LeftOut("store16", "kernels.softmax.*", why="a number a row"),
            LeftOut("load16", "kernels.gone.*", why="gone"),
        ),
    )
    found = problems(compiled(store16=0), whole=True)
    assert len(found) == 2
    assert "no compiled kernel matches the rule load16" in found[0]
    assert "no kernel needs the exception" in found[1] and "kernels.gone.*" in found[1]
    assert problems(compiled(store16=0), whole=False) == []


def test_an_exception_may_be_for_one_case(rules):
    rules(
        Rule("store16", least=1),
        left_out=(LeftOut("store16", "kernels.softmax.*", cases="softmax", why="a reason"),),
    )
    assert problems(compiled(store16=0)) == []
    assert len(problems(compiled(store16=0, cases=["log_softmax"]))) == 1


# ---- workloads ----------------------------------------------------------------------------------

ON_THE_CPU = """
import numpy as np
from bench import gpu
from bench.gpu_workloads import WORKLOADS, Lib

DIFFERENT = {(w.make, tuple(w.small.items())): w for w in reversed(WORKLOADS)}.values()
for w in DIFFERENT:
    found = {}
    for name in ("trident", "torch"):
        lib = Lib(name, device="cpu")
        values = w.make(lib, **w.small).values()
        found[name] = [v.detach().reshape(-1).to(lib.torch.float32).numpy() for v in values]
    error = gpu.max_error(found["trident"], found["torch"])
    assert error <= w.tolerance, f"{w.name}: {error}"
    assert any(np.abs(v).max() > 0 for v in found["torch"]), w.name
print(len(DIFFERENT))
"""


def test_workloads_mean_the_same_in_both_libraries():
    """At their small sizes, on the CPU. In a process of its own: torch is imported there."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    done = subprocess.run(
        [sys.executable, "-c", ON_THE_CPU], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 15
