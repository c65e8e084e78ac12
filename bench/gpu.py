"""trident beside torch on a GPU: two processes in turn (A B A B ...), medians, ratios, limits.

    python -m bench gpu                     every goal; writes bench/results/gpu-NAME.{md,json}
    python -m bench gpu --only G1,G3 --rounds 7 --out DIR
    python -m bench gpu --stub              without a GPU: trident's side on the tests' libcuda, at
                                            small sizes. Kernels do not run: no values, no times

Each workload (``gpu_workloads.py``) is prepared in both processes from the same random numbers and
its values are compared. Then the rounds begin: in each, one process after the other makes at least
20 calls, with 256 MiB written between two calls, so that nothing is found in the L2 cache. A call's
time is that between two CUDA events; a round's figure is the median of its calls, the row's that of
the rounds, its ratio the median of the rounds' ratios. Copy bandwidth and torch's matmul rate are
measured in the same run. What raises is a row with the error. With ``--only``, rows of other goals
that are in the folder from the same machine and versions stay.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .gpu_workloads import STARTS, TOGETHER, WORKLOADS, Lib, Prepared, Start, Workload

FLUSH = 256 << 20
ROUNDS = 5
SAMPLE = 1 << 20  # values that are compared of each result
PREPARE, MEASURE = 420, 180  # seconds after which a worker counts as hanging
GOALS = list(dict.fromkeys([*(w.goal for w in WORKLOADS), *(s.goal for s in STARTS)]))


# ---- the worker: one library, one process ------------------------------------------------------


class Worker:
    """Prepares and times workloads in this process. Its public methods are the commands."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.lib = Lib(library)
        self.torch = self.lib.torch
        self.cuda = self.torch.cuda
        self.flush = self.torch.zeros(FLUSH // 4, device="cuda")
        self.kept: dict[str, tuple[Workload, Prepared]] = {}

    def about(self) -> dict[str, Any]:
        """The GPU and what runs on it."""
        return {
            "gpu": self.cuda.get_device_name(),
            "version": self.torch.__version__,
            "cuda": getattr(getattr(self.torch, "version", None), "cuda", None),
        }

    def prepare(self, name: str, variant: str) -> dict[str, Any]:
        """Make a workload's inputs and run it once. Answers its peak memory, inputs included."""
        workload = next(w for w in WORKLOADS if w.name == name)
        self.cuda.synchronize()
        before = self.cuda.memory_allocated()
        prepared = workload.make(Lib(self.library, variant), **workload.full)
        prepared.call()
        self.cuda.synchronize()
        self.cuda.reset_peak_memory_stats()
        prepared.call()
        self.cuda.synchronize()
        self.kept[variant] = (workload, prepared)
        return {"peak": self.cuda.max_memory_allocated() - before}

    def values(self, variant: str, path: str) -> dict[str, Any]:
        """Write (a part of) the results to a file."""
        arrays = []
        for t in self.kept[variant][1].values():
            flat = t.detach().reshape(-1)
            step = -(-flat.shape[0] // SAMPLE)
            arrays.append(flat[::step].to(self.torch.float32).cpu().numpy())
        np.savez(path, *arrays)
        return {}

    def measure(self, variant: str) -> dict[str, Any]:
        """Seconds of one call, the median of a round."""
        workload, prepared = self.kept[variant]
        if workload.host:
            return {"seconds": self._host(prepared.call)}
        return {"seconds": self._events(prepared.call, workload.calls)}

    def drop(self) -> dict[str, Any]:
        """Forget what was prepared, and give its memory back."""
        self.kept.clear()
        if self.library == "torch":
            self.torch._dynamo.reset()
        import gc

        gc.collect()
        self.cuda.empty_cache()
        return {}

    def limits(self, n: int = 1 << 28, side: int = 8192) -> dict[str, Any]:
        """Bytes a second of a copy of 1 GiB (read and written), and operations a second of this
        library's bf16 product."""
        source = self.torch.zeros(n, device="cuda")
        target = self.torch.empty_like(source)
        a, b = (self.lib.new(side, side) for _ in range(2))
        copy = self._events(lambda: target.copy_(source), 20)
        product = self._events(lambda: a @ b, 20)
        return {"copy": 8.0 * n / copy, "matmul": 2.0 * side**3 / product}

    def launch_path(self) -> dict[str, Any]:
        """trident's launch of a kernel of ten arguments, and Triton's own, in microseconds."""
        from trident import runtime

        from .host import best, ten_arguments, triton_rows

        bound, args = ten_arguments(runtime.current())
        stream = runtime.current().current_stream.get()  # type: ignore[attr-defined]

        def launch() -> None:
            bound.start(1, 1, 1, stream, args)

        return {
            "ours": best(launch, calls=200),
            "triton": min(r.microseconds for r in triton_rows()),
        }

    def _events(self, call: Callable[[], Any], calls: int) -> float:
        event = self.cuda.Event
        pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(calls)]
        for _ in range(3):
            call()
        for first, last in pairs:
            self.flush.zero_()
            first.record()
            call()
            last.record()
        self.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in pairs) * 1e-3

    def _host(self, call: Callable[[], Any], calls: int = 400, batches: int = 10) -> float:
        """Of the host alone: what is queued is waited for between the batches, not inside."""
        times = []
        for _ in range(batches):
            self.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(calls):
                call()
            times.append((time.perf_counter() - started) / calls)
        self.cuda.synchronize()
        return statistics.median(times)


COMMANDS = ("about", "prepare", "values", "measure", "drop", "limits", "launch_path")


def serve(library: str) -> None:
    """Answer commands, a JSON line each, until the input ends. What raises is the answer."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    worker: Any = None
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            worker = worker or Worker(library)
            assert command in COMMANDS
            answer = getattr(worker, command)(*arguments)
        except Exception as error:
            first = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {first[0][:200]}"}
        print(json.dumps(answer), file=answers)


class Peer:
    """A worker process, started anew after it failed or hung."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.process: subprocess.Popen | None = None

    def ask(self, command: str, *arguments: Any, timeout: float = MEASURE) -> dict[str, Any]:
        """The worker's answer; {"error": ...} where it raised, died or did not answer in time."""
        if self.process is None:
            env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu", "--worker", self.library],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
            )  # fmt: skip
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps([command, *arguments]) + "\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                line = process.stdout.readline() if selector.select(timeout) else None
        except OSError:
            line = ""
        if line:
            return json.loads(line)
        self.stop()
        if line is None:
            return {"error": f"no answer to {command} in {timeout:.0f} s"}
        return {"error": f"the process died at {command} (exit code {process.returncode})"}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):  # what was not read by the dead process
                    assert pipe is not None
                    pipe.close()
            self.process = None


# ---- the rounds --------------------------------------------------------------------------------


def compare(workload: Workload, ours: Peer, theirs: Peer, variant: str) -> dict[str, Any]:
    """The largest difference of the values, relative to the largest value."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{name}.npz")) for name in ("ours", "theirs")]
        for peer, v, path in ((ours, "eager", paths[0]), (theirs, variant, paths[1])):
            answer = peer.ask("values", v, path)
            if "error" in answer:
                return {"error": f"{peer.library}: {answer['error']}"}
        a, b = (np.load(p) for p in paths)
        return {"max error": max_error([a[k] for k in a.files], [b[k] for k in b.files])}


def max_error(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference of each pair over the largest of the second, the worst pair's; inf
    where shapes differ or one is not finite where the other is."""
    if len(ours) != len(theirs):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs):
        if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return float("inf")
        finite = np.isfinite(b)
        if finite.any():
            difference = np.abs(a[finite].astype(np.float64) - b[finite]).max()
            worst = max(worst, float(difference / max(np.abs(b[finite]).max(), 1e-30)))
    return worst


def run(
    workload: Workload, ours: Peer, theirs: Peer, rounds: int, compiled: bool
) -> dict[str, Any]:
    """The row of one workload (without the limits, which ``judge`` needs)."""
    row: dict[str, Any] = {"goal": workload.goal, "name": workload.name, "peers": {}}
    variants = [
        v for v in workload.against if compiled or v not in ("compile", "max-autotune")
    ]  # fmt: skip
    answer = ours.ask("prepare", workload.name, "eager", timeout=PREPARE)
    if "error" in answer:
        ours.stop()
        return {**row, "error": answer["error"]}
    row["peak"] = answer["peak"]
    peers = row["peers"]
    for v in variants:
        answer = theirs.ask("prepare", workload.name, v, timeout=PREPARE)
        peers[v] = {"error": answer["error"]} if "error" in answer else {"peak": answer["peak"]}
    working = [v for v in variants if "error" not in peers[v]]
    for v in working:
        found = compare(workload, ours, theirs, v)
        peers[v] |= {"values": found["error"]} if "error" in found else found
    times: dict[str, list[float]] = {v: [] for v in ("ours", *working)}
    for _ in range(rounds):
        for key in list(times):
            peer, v = (ours, "eager") if key == "ours" else (theirs, key)
            answer = peer.ask("measure", v)
            if "error" in answer:
                times.pop(key)
                if key == "ours":
                    row["error"] = answer["error"]
                    break
                peers[key] = {"error": answer["error"]}
            else:
                times[key].append(answer["seconds"])
        if "error" in row:
            break
    for peer in (ours, theirs):
        if "error" in peer.ask("drop"):
            peer.stop()
    mine = times.pop("ours", [])
    if mine and "error" not in row:
        row["seconds"] = statistics.median(mine)
        for v, found_times in times.items():
            ratios = sorted(a / b for a, b in zip(mine, found_times))
            peers[v] |= {
                "seconds": statistics.median(found_times),
                "ratio": statistics.median(ratios),
                "range": [ratios[0], ratios[-1]],
            }
    return row


def judge(workload: Workload, row: dict[str, Any], limits: dict[str, float]) -> None:
    """Add ``shares`` (of the limits) and ``checks`` (goal, measured, met) to a row."""
    if "seconds" not in row:
        return
    shares = row["shares"] = {}
    if workload.nbytes and limits:
        shares["copy"] = workload.nbytes / row["seconds"] / limits["copy"]
    if workload.flops and limits:
        shares["matmul"] = workload.flops / row["seconds"] / limits["matmul"]
    checks = row["checks"] = []
    for variant, most in workload.against.items():
        peer = row["peers"].get(variant, {})
        if most is not None and "ratio" in peer:
            checks.append(_check(f"time / torch {variant}", peer["ratio"], most))
        if "max error" in peer:
            name = f"error against torch {variant}"
            checks.append(_check(name, peer["max error"], workload.tolerance))
    if workload.copy is not None and "copy" in shares:
        checks.append(_check("of the copy rate", shares["copy"], workload.copy, least=True))
    eager = row["peers"].get("eager", {})
    if workload.memory is not None and eager.get("peak"):
        checks.append(_check("peak memory / eager", row["peak"] / eager["peak"], workload.memory))


def _check(what: str, measured: float, goal: float, least: bool = False) -> dict[str, Any]:
    met = measured >= goal if least else measured <= goal
    return {"what": what, "measured": measured, "goal": goal, "least": least, "met": bool(met)}


def together(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows for the goals on several workloads; none where one of them has no figure."""
    by_name = {r["name"]: r for r in rows}
    for t in TOGETHER:
        found = [by_name.get(n, {}).get("peers", {}).get(t.against, {}) for n in t.rows]
        if all("ratio" in p for p in found):
            mean = statistics.geometric_mean(p["ratio"] for p in found)
            check = _check(f"time / torch {t.against}", mean, t.most)
            yield {"goal": t.goal, "name": t.name, "peers": {}, "checks": [check]}


def start_row(start: Start, rounds: int) -> dict[str, Any]:
    """Whole processes, in turn; the first of each fills the caches on disk and is not counted."""
    row: dict[str, Any] = {"goal": start.goal, "name": start.name, "peers": {}}
    times: dict[str, list[float]] = {"trident": [], "torch": []}
    for i in range(rounds + 1):
        for library, found in times.items():
            began = time.perf_counter()
            program = start.program.format(lib=library, device="cuda")
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, timeout=PREPARE
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                return {**row, "error": f"{library}: {last[:200]}"}
            if i:
                found.append(time.perf_counter() - began)
    ratios = sorted(a / b for a, b in zip(times["trident"], times["torch"]))
    ratio = statistics.median(ratios)
    row["seconds"] = statistics.median(times["trident"])
    row["peers"]["eager"] = {
        "seconds": statistics.median(times["torch"]),
        "ratio": ratio,
        "range": [ratios[0], ratios[-1]],
    }
    row["checks"] = []
    if start.most is not None:
        row["checks"].append(_check("time / torch", ratio, start.most))
    if start.seconds is not None:
        row["checks"].append(_check("seconds", row["seconds"], start.seconds))
    return row


def launch_row(ours: Peer) -> dict[str, Any]:
    """G10's second half: our launch beside Triton's own, in trident's process."""
    row = {"goal": "G10", "name": "launch of a kernel with ten arguments", "peers": {}}
    answer = ours.ask("launch_path")
    if "error" in answer:
        return {**row, "error": answer["error"]}
    ratio = answer["ours"] / answer["triton"]
    return {
        **row,
        "seconds": answer["ours"] * 1e-6,
        "peers": {
            "kernel[grid](...)": {
                "seconds": answer["triton"] * 1e-6, "ratio": ratio, "range": [ratio, ratio]
            }
        },
        "checks": [_check("time / kernel[grid](...)", ratio, 0.40)],
    }  # fmt: skip


# ---- the report --------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    """The table that goes into ``bench/results``."""
    about, limits = report["about"], report["limits"]
    lines = [
        f"# trident beside torch on {about['gpu']}",
        "",
        f"{about['date']}: `{about['command']}`; driver {about['driver']}, Triton "
        f"{about['triton']}, torch {about['torch']}, trident {about['trident']}, Python "
        f"{about['python']}; {about['rounds']} rounds.",
    ]
    if limits:
        lines += [
            "",
            f"Limits in the same run: copy {limits['copy'] * 1e-12:.2f} TB/s, torch's bf16 product "
            f"8192^3 {limits['matmul'] * 1e-12:.0f} TFLOP/s.",
        ]
    lines += [
        "",
        "A ratio is trident's time over the peer's: below 1 is faster. In brackets its range over "
        "the rounds.",
        "",
        "| goal | workload | trident | peers: time, ratio | of the limit | goals |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(_line(row))
    checks = [c for r in report["rows"] for c in r.get("checks", ()) if "error" not in c["what"]]
    failed = [r["name"] for r in report["rows"] if "error" in r]
    lines += ["", f"Goals met: {sum(c['met'] for c in checks)} of {len(checks)} measured."]
    if failed:
        lines.append(f"Raised: {', '.join(failed)}.")
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        text = row["error"].replace("|", "\\|")
        return f"| {row['goal']} | {row['name']} | error: {text} | | | |"
    peers = []
    for name, p in row["peers"].items():
        if "ratio" in p:
            low, high = p["range"]
            peers.append(
                f"{name} {_time(p['seconds'])}, {p['ratio']:.2f} ({low:.2f} to {high:.2f})"
            )
        else:
            peers.append(f"{name}: {p.get('error', 'no figure')}".replace("|", "\\|"))
    shares = [f"{v:.0%} of {k}" for k, v in row.get("shares", {}).items()]
    verdicts = [
        f"{c['what']} {c['measured']:.3g}, goal {'at least' if c['least'] else 'at most'} "
        f"{c['goal']:.3g}: {'met' if c['met'] else 'missed'}"
        for c in row.get("checks", ())
    ]
    cells = [
        row["goal"], row["name"], _time(row["seconds"]) if "seconds" in row else "",
        "; ".join(peers), ", ".join(shares), "; ".join(verdicts),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _driver() -> str:
    """The version of the NVIDIA driver."""
    with contextlib.suppress(OSError, IndexError):
        text = Path("/proc/driver/nvidia/version").read_text()
        return text.splitlines()[0].split("Kernel Module")[-1].split()[0]
    return "unknown"


def _merge(path: Path, report: dict[str, Any], goals: list[str]) -> None:
    """Keep the rows of other goals that lie in ``path`` from the same machine and versions."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        old = json.loads(path.read_text())
        same = ("gpu", "driver", "triton", "torch", "trident")
        if all(old["about"][k] == report["about"][k] for k in same):
            report["rows"] += [r for r in old["rows"] if r["goal"] not in goals]
            report["rows"].sort(key=lambda r: GOALS.index(r["goal"]))


# ---- without a GPU -----------------------------------------------------------------------------


def dry(workload: Workload) -> int:
    """Run trident's side of a workload at its small sizes on the stub libcuda (preloaded by the
    caller): inputs, two calls, values. Answers how many kernels were launched."""
    from tests.stub import preload

    stub = preload()
    before = stub.n_launches
    prepared = workload.make(Lib("trident"), **workload.small)
    prepared.call()
    prepared.call()
    for t in prepared.values():
        t.detach().reshape(-1)[::2].cpu().numpy()
    return stub.n_launches - before


def dry_start(start: Start) -> int:
    """The same for a program of its own, in this process."""
    from tests.stub import preload

    stub = preload()
    before = stub.n_launches
    with contextlib.redirect_stdout(None):
        exec(start.program.format(lib="trident", device="cuda"), {"__name__": "start"})
    return stub.n_launches - before


def _stub_main(goals: list[str]) -> int:
    from tests.stub import missing, preload

    reason = missing()
    if reason:
        print(f"bench gpu: {reason}")
        return 1
    preload()
    print("No GPU: kernels were launched on a stub of libcuda and did not run.\n")
    print("| goal | workload | launches |\n|---|---|---|")
    failed = 0
    works: list[tuple[Any, Callable[[Any], int]]] = [(w, dry) for w in WORKLOADS]
    works += [(s, dry_start) for s in STARTS]
    for work, run_dry in works:
        if work.goal not in goals:
            continue
        try:
            text = str(run_dry(work))
        except Exception as error:
            failed += 1
            text = f"{type(error).__name__}: {error}"
        print(f"| {work.goal} | {work.name} | {text} |", flush=True)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", default=",".join(GOALS), help="goals, with commas: G1,G3")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "bench/results")))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--stub", action="store_true", help="no GPU: only that everything runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        serve(options.worker)
        return 0
    goals = options.only.split(",")
    unknown = [g for g in goals if g not in GOALS]
    if unknown:
        print(f"bench gpu: no goal {unknown[0]!r}; there are {', '.join(GOALS)}")
        return 2
    if options.stub:
        return _stub_main(goals)
    return _measure(goals, options)


def _measure(goals: list[str], options: argparse.Namespace) -> int:
    ours, theirs = Peer("trident"), Peer("torch")
    mine, other = (p.ask("about", timeout=PREPARE) for p in (ours, theirs))
    for peer, answer in ((ours, mine), (theirs, other)):
        if "error" in answer:
            print(f"bench gpu: {peer.library}: {answer['error']}")
            ours.stop()
            theirs.stop()
            return 1
    command = "python -m bench gpu " + " ".join(sys.argv[2:])
    report: dict[str, Any] = {
        "about": {
            "gpu": other["gpu"], "driver": _driver(), "cuda": other["cuda"],
            "triton": importlib.metadata.version("triton"), "torch": other["version"],
            "trident": mine["version"], "python": platform.python_version(),
            "date": datetime.date.today().isoformat(), "rounds": options.rounds,
            "command": command.strip(),
        },
        "limits": {},
        "rows": [],
    }  # fmt: skip
    name = "".join(c if c.isalnum() else "-" for c in other["gpu"].lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"gpu-{name}.json"
    seen: list[dict[str, float]] = []

    def save() -> None:
        whole = {**report, "rows": list(report["rows"])}
        _merge(target, whole, goals)
        target.write_text(json.dumps(whole, indent=1))
        target.with_suffix(".md").write_text(markdown(whole))

    def add(row: dict[str, Any]) -> None:
        report["rows"].append(row)
        print(_line(row), flush=True)
        save()

    try:
        for goal in goals:
            answer = theirs.ask("limits")
            if "error" not in answer:
                seen.append(answer)
                report["limits"] = {
                    k: statistics.median(s[k] for s in seen) for k in ("copy", "matmul")
                }
            for workload in WORKLOADS:
                if workload.goal == goal:
                    row = run(workload, ours, theirs, options.rounds, not options.no_compile)
                    judge(workload, row, report["limits"])
                    add(row)
            if goal == "G10":
                add(launch_row(ours))
            for start in STARTS:
                if start.goal == goal:
                    add(start_row(start, options.rounds))
            for row in together(report["rows"]):
                if row["goal"] == goal:
                    add(row)
    finally:
        ours.stop()
        theirs.stop()
    print(f"\nwrote {target} and {target.with_suffix('.md').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
