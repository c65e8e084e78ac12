"""Compile every kernel for four GPU targets, without a GPU, and check what each one uses.

The walk (``trident.testing.walk``) runs calls of real sizes and the samples of the test kit on the
compile-only device, once per architecture, since launchers choose by it; what they launch is
compiled for the targets of that walk, and registers, spills, shared memory, 16-byte accesses and
tensor-core instructions are read off the binaries (``trident.testing.resources``).

    python -m bench kernels            everything: all dtypes, blocks and shipped configurations
    python -m bench kernels --quick    each kernel in the first case that reaches it: what CI runs
    python -m bench kernels --check    exit 1 where a rule of ``bench/kernel_rules.py`` is broken
    python -m bench kernels --only softmax --targets sm_90
                                       kernels or cases with this in their name
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from trident.testing import resources, walk

from . import kernel_rules


def collect(
    quick: bool, targets: list[str], only: list[str]
) -> tuple[list[tuple[walk.Launched, str]], dict[str, str]]:
    """What is compiled: each specialisation with each target of the walk that found it, once. And
    the cases that raised, with their messages."""
    from trident.runtime.aot import WALKS

    found: dict[tuple, tuple[walk.Launched, str]] = {}
    failed: dict[str, str] = {}
    chosen = walk.matching(only)
    for architecture, compiled_for in WALKS.items():
        wanted = [t for t in compiled_for if t in targets]
        if not wanted:
            continue
        walked = (walk.quick if quick else walk.full)(architecture)
        failed |= {f"{k} ({architecture})": v for k, v in walked.failed.items() if chosen(k)}
        halves = {x.kernel for x in walked.found.values() if x.half}
        for launched in walked.found.values():
            if chosen(launched.kernel) or any(chosen(c) for c in launched.cases):
                for target in wanted:
                    if not quick or _in_quick(launched, target, halves):
                        found.setdefault((launched.spec, target), (launched, target))
    return list(found.values()), failed


def _in_quick(launched: walk.Launched, target: str, halves: set[str]) -> bool:
    """Elementwise kernels for sm_90 and gfx942 alone, since their text for the other two differs in
    nothing but the target's name; other kernels for gfx942 in one dtype, a half type if it has one.
    """
    if launched.generated:
        fused = any(c.startswith("fused") for c in launched.cases)
        return fused or target in ("sm_90", "gfx942")
    return target != "gfx942" or launched.half or launched.kernel not in halves


def worker(shard: int, of: int, quick: bool, targets: list[str], only: list[str]) -> None:
    """Print one JSON row per compiled kernel of this shard."""
    found, failed = collect(quick, targets, only)
    if shard == 0:
        for case, error in failed.items():
            print(json.dumps({"case": case, "error": error}))
    for i, (launched, target) in enumerate(found):
        if i % of == shard:
            row = {
                "kernel": launched.kernel,
                "types": launched.types,
                "target": target,
                "cases": launched.cases,
            }
            sass = not quick or (target == "sm_90" and launched.half and not launched.generated)
            row |= resources.measure(launched.spec, target, sass=sass)
            print(json.dumps(row), flush=True)


def rows(quick: bool, targets: list[str], only: list[str], jobs: int) -> list[dict[str, Any]]:
    """Compile in ``jobs`` processes; every row of the table."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernels", "--targets", *targets]
    command += ["--quick"] if quick else []
    command += ["--only", *only] if only else []
    running = [
        subprocess.Popen(
            [*command, "--shard", f"{i}/{jobs}"], stdout=subprocess.PIPE, text=True, env=env
        )
        for i in range(jobs)
    ]
    found = []
    for p in running:
        assert p.stdout is not None
        found += [json.loads(line) for line in p.stdout if line.startswith("{")]
        if p.wait() != 0:
            raise SystemExit(f"bench kernels: a worker failed with exit code {p.returncode}")
    return found


def main(argv: list[str] | None = None) -> int:
    from trident.runtime.aot import TARGETS

    parser = argparse.ArgumentParser(
        prog="python -m bench kernels", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--only", nargs="+", default=[], help="parts of kernel or case names")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.shard:
        shard, of = map(int, options.shard.split("/"))
        worker(shard, of, options.quick, options.targets, options.only)
        return 0
    found = rows(options.quick, options.targets, options.only, options.jobs)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=0)
    failed = [f"case {r['case']}: {r['error']}" for r in found if "case" in r]
    found = [r for r in found if "case" not in r]
    found.sort(key=lambda r: (r["kernel"], r["types"], not r["cases"], r["target"]))
    print(resources.table(found, options.targets))
    broken = failed + kernel_rules.broken(found, not options.only, options.targets)
    print(f"\n{len(found)} compilations, {len(broken)} problems")
    for line in broken:
        print(f"- {line}")
    return 1 if broken and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
