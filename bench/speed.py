"""trident beside torch on this CPU: processes in turn (A B A B ...), medians, ratios.

    python -m bench                         all workloads, 5 rounds
    python -m bench speed --only lenet --rounds 7 --threads 1
    python -m bench speed --check           exit 1 where a goal is missed by more than 10 %

Each round runs every library once in a process of its own, so that drift of a shared machine hits
both; the ratio is the median of the rounds' ratios. Losses are compared before times are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

GOALS = {
    "net_sgd": 0.85, "net_adam": 0.90, "lenet": 1.5, "chain": 1.0, "gelu_chain": 1.6,
    "fused_forward": 0.30, "fused_both": 0.25, "fused_forward_numpy": 1.0, "fused_both_numpy": 1.0,
    "import": 0.15, "lenet peak memory": 0.5,
}  # fmt: skip
LIBRARIES = ("trident", "torch")


def _run(library: str, workload: str, seconds: float, threads: int) -> dict:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = {**os.environ, **{n: str(threads) for n in names}}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", "bench.workloads", library, workload, str(seconds), str(threads)],
        env=env, text=True, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"bench: {library} {workload} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _import_seconds(library: str) -> float:
    """Time of the import alone; numpy's own import is not counted for either library."""
    code = (
        "import numpy, time; t = time.perf_counter(); "
        f"import {library}; print(time.perf_counter() - t)"
    )
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    )


def _row(name: str, ours: list[float], theirs: list[float], unit: str) -> tuple[str, float]:
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    ratio = statistics.median(ratios)
    goal = GOALS.get(name)
    verdict = "" if goal is None else f"{goal:.2f} " + ("met" if ratio <= goal else "missed")
    text = (
        f"| {name} | {statistics.median(ours):.4g} {unit} | "
        f"{statistics.median(theirs):.4g} {unit} | "
        f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {verdict} |"
    )
    return text, ratio


def main(argv: list[str] | None = None) -> int:
    from .workloads import WORKLOADS

    parser = argparse.ArgumentParser(prog="python -m bench speed", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[*WORKLOADS, "import"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    import torch

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, Python "
        f"{platform.python_version()}, torch {torch.__version__}; {options.rounds} rounds\n"
    )
    print("| workload | trident | torch | ratio (range) | goal |\n|---|---|---|---|---|")
    missed = []
    for name in options.only:
        if name == "import":
            found = {
                lib: [_import_seconds(lib) for _ in range(options.rounds)] for lib in LIBRARIES
            }
            lines = [_row(name, found["trident"], found["torch"], "s")]
        else:
            runs: dict[str, list[dict]] = {lib: [] for lib in LIBRARIES}
            for _ in range(options.rounds):
                for lib in LIBRARIES:
                    runs[lib].append(_run(lib, name, options.seconds, options.threads))
            a, b = (runs[lib][0]["loss"] for lib in LIBRARIES)
            if abs(a - b) > 1e-3 * abs(b):
                raise SystemExit(f"bench: {name}: the losses differ: trident {a}, torch {b}")
            us = {lib: [r["us"] for r in runs[lib]] for lib in LIBRARIES}
            lines = [_row(name, us["trident"], us["torch"], "us")]
            if name == "lenet":
                mb = {lib: [r["peak_mb"] for r in runs[lib]] for lib in LIBRARIES}
                lines.append(_row("lenet peak memory", mb["trident"], mb["torch"], "MB"))
        for text, ratio in lines:
            print(text, flush=True)
            key = text.split("|")[1].strip()
            if key in GOALS and ratio > 1.1 * GOALS[key]:
                missed.append(key)
    if missed:
        print(f"\nmissed by more than 10 %: {', '.join(missed)}")
    return 1 if missed and options.check else 0
