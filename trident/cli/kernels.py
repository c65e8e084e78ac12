"""``trident kernels``: what kernels compile to, for any GPU architecture and without a GPU.

The kernels are those that the calls of ``testing/walk.py`` launch, at the sizes given there. With
words, only those with one of the words in their name or in the name of the call.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .. import config, dtypes
from ..runtime.aot import TARGETS, WALKS

DTYPES = ("float32", "float16", "bfloat16", "float64")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help="parts of kernel or call names: matmul softmax")
    parser.add_argument(
        "--target", nargs="+", choices=TARGETS, default=["sm_90"], help="default: sm_90"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["bfloat16"], help="default: bfloat16"
    )
    parser.add_argument("--elementwise", action="store_true", help="elementwise ops as well")
    parser.add_argument("--calls", action="store_true", help="list the calls and compile nothing")
    parser.add_argument("--json", action="store_true")


def run(options: argparse.Namespace) -> int:
    from ..lang import has_triton
    from ..testing import resources, walk

    if options.calls:
        print("\n".join([*walk.CASES, *walk.OPTIMIZERS]))
        return 0
    if not has_triton() or config.INTERPRET:
        why = "unset TRITON_INTERPRET" if has_triton() else "pip install 'triton>=3.6' (Linux)"
        print(f"trident kernels: compiling needs Triton, not its interpreter: {why}")
        return 2
    rows = list(compiled(options))
    if not rows:
        print(
            f"trident kernels: nothing is called {' or '.join(options.names)}; "
            "`trident kernels --calls` lists the calls"
        )
        return 2
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(resources.table(rows, options.target))
        print(
            "\nregisters a thread / bytes spilled / bytes of shared memory / loads and stores of "
            "16 bytes / instructions of tensor cores"
        )
    for r in rows:
        if "error" in r:
            print(f"{r['kernel']} {r['target']}: {r['error']}", file=sys.stderr)
    return 1 if any("error" in r for r in rows) else 0


def compiled(options: argparse.Namespace) -> Any:
    """The rows of ``resources.measure`` for what was asked for."""
    from ..testing import resources, walk

    wanted = walk.matching(options.names)
    kinds = [getattr(dtypes, d) for d in options.dtype]
    for architecture, compiled_for in WALKS.items():
        targets = [t for t in compiled_for if t in options.target]
        if not targets:
            continue
        found = walk.Walk(architecture)
        found.cases(kinds)
        if options.elementwise:
            found.elementwise(kinds)
        for launched in found.found.values():
            if wanted(launched.kernel) or any(wanted(c) for c in launched.cases):
                about = {
                    "kernel": launched.kernel,
                    "types": launched.types,
                    "cases": launched.cases,
                }
                for target in targets:
                    yield about | {"target": target} | resources.measure(launched.spec, target)
