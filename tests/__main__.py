"""``python -m tests``: every check of the project, two at a time; exit code 0 if all pass.

python -m tests               what CI runs
python -m tests lint cpu      only the named steps
python -m tests --list        their names
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable

STEPS: dict[str, tuple[list[str], dict[str, str]]] = {
    # the longest first, so that the two lanes end together
    "cuda": (["-m", "pytest", "--device", "cuda"], {"TRITON_INTERPRET": "1"}),
    "cpu": (["-m", "pytest", "--device", "cpu"], {}),
    "kernels": (["-m", "bench", "kernels", "--quick", "--check", "--jobs", "1"], {}),
    "stub": (["-m", "pytest", "tests/stub"], {}),
    "host": (["-m", "bench", "host", "--check"], {}),
    "docs": (["-m", "pytest", "tests/run_docs.py"], {}),
    "examples": (["-m", "pytest", "tests/run_examples.py"], {}),
    "types": (["-m", "mypy"], {}),
    "lint": (["-m", "ruff", "check", "."], {}),
    "format": (["-m", "ruff", "format", "--check", "."], {}),
}


def run(name: str) -> tuple[str, int, float, str]:
    arguments, extra = STEPS[name]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | extra
    env.setdefault("OMP_NUM_THREADS", "1")
    started = time.perf_counter()
    done = subprocess.run(
        [PYTHON, *arguments], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return name, done.returncode, time.perf_counter() - started, done.stdout


def main(argv: list[str]) -> int:
    if "--list" in argv:
        print("\n".join(STEPS))
        return 0
    unknown = [n for n in argv if n not in STEPS]
    if unknown:
        print(f"tests: unknown step {unknown[0]!r}; known are {', '.join(STEPS)}")
        return 2
    failed = []
    with ThreadPoolExecutor(2) as pool:
        for name, code, seconds, output in pool.map(run, argv or list(STEPS)):
            print(f"---- {name}: {'ok' if code == 0 else f'FAILED ({code})'} in {seconds:.0f} s")
            lines = output.rstrip().splitlines()
            print("\n".join(lines if code else lines[-3:]), flush=True)
            if code:
                failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
