"""Compile every kernel for four GPU targets, without a GPU, and list what each one uses.

The op samples of the test suite walk every launcher on the compile-only device; each kernel is then
compiled once per dtype it was seen in, and registers, spills, shared memory and tensor-core
instructions are read off the binaries.

    python -m bench kernels            all four targets, float32 and bfloat16
    python -m bench kernels --quick    float32 only (bfloat16 for kernels with a dot): what CI runs
    python -m bench kernels --check    exit 1 on a failed compile, a spill, or too much shared
                                       memory
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPILL_LIMIT = 16  # bytes a thread: sin and cos spill 8 in their slow path for huge arguments
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}


def collect(quick: bool) -> list[Any]:
    """One specialisation per kernel and dtype signature that the samples of all ops reach."""
    import numpy as np

    import trident
    from trident import dtypes, runtime
    from trident.ops.registry import REGISTRY, InPlace
    from trident.runtime.aot import AotDevice
    from trident.testing import Draw
    from trident.testing.check import differentiable, float_dtypes, run, sample, tensors

    device = AotDevice()
    wanted = [dtypes.float32, dtypes.bfloat16]
    with runtime.use(device):
        for d in wanted:
            _usual_sizes(d)
            _fused_forms(d)
        for op in REGISTRY.values():
            if op.samples is None and op.kind != "elementwise":
                continue
            for d in wanted if op.kind != "elementwise" or not quick else wanted[:1]:
                if d not in float_dtypes(op) and op.kind != "elementwise":
                    continue
                if op.kind == "elementwise" and op.takes == "int":
                    d = dtypes.int32
                for seed in range(8 if op.kind != "elementwise" else 2):
                    args, attrs = sample(op, Draw(seed, d, strided=seed % 2 == 1), d)
                    if isinstance(op, InPlace):
                        lists = [
                            [tensors((np.asarray(a),), "cuda")[0] for a in x]
                            if isinstance(x, list)
                            else x
                            for x in args
                        ]
                        getattr(trident.ops, op.name)(*lists, **attrs)
                        continue
                    given = tensors(args, "cuda", requires_grad=differentiable(op))
                    for o in run(op, given, attrs):
                        if o.requires_grad and o.numel():
                            g = np.ones(tuple(o.shape), o.dtype.np)
                            o.backward(trident.tensor(g, device="cuda"), retain_graph=True)
    chosen: dict[tuple, Any] = {}
    for s in device.seen:
        pointers = tuple(t for _, t in s.signature if t.startswith("*"))
        key = (s.kernel.name, pointers, _flags(s))
        if key not in chosen or len(s.aligned) > len(chosen[key].aligned):
            chosen[key] = s
    kept = list(chosen.values())
    if quick:
        kept = list(_quick(kept))
    return sorted(kept, key=lambda s: (s.kernel.fn.__module__, s.kernel.name))


def _usual_sizes(d: Any) -> None:
    """Forward and backward of what networks spend time in, at sizes where the launchers choose
    their large tiles: the samples of the tests are small. Nothing is computed on this device."""
    import trident
    import trident.nn.functional as F

    def new(*shape: int) -> Any:
        return trident.empty(shape, dtype=d, device="cuda", requires_grad=True)

    labels = trident.empty(512, dtype=trident.int64, device="cuda")
    x, image = new(512, 1024), new(32, 64, 28, 28)
    outs = [
        x @ new(1024, 512),
        F.linear(x, new(2048, 1024), new(2048)),
        new(8, 256, 64) @ new(8, 64, 256),
        F.conv2d(image, new(128, 64, 3, 3), new(128), padding=1),
        F.conv2d(image, new(64, 1, 3, 3), groups=64, padding=1),
        F.conv_transpose2d(image, new(64, 32, 2, 2), stride=2),
        F.max_pool2d(image, 2),
        F.avg_pool2d(image, 2),
        F.softmax(x, -1),
        F.log_softmax(x, -1),
        F.cross_entropy(x, labels),
        F.layer_norm(x, (1024,), new(1024), new(1024)),
        F.rms_norm(x, (1024,), new(1024)),
        F.group_norm(image, 8, new(64), new(64)),
        F.batch_norm(image, None, None, new(64), new(64), training=True),
        x.sum(1),
        x.sum(0),
        x.logsumexp(1),
        x.cumsum(1),
        F.embedding(labels, new(1000, 512)),
        x.T.contiguous(),
    ]
    for out in outs:
        out.backward(trident.empty(tuple(out.shape), dtype=d, device="cuda"))


def _fused_forms(d: Any) -> None:
    """Functions made by ``fuse``, in each form that the emitter writes: flat, tiles, long rows."""
    import trident
    import trident.nn.functional as F

    def chain_sum(a: Any, b: Any, c: Any) -> Any:
        return F.gelu(a * b + c, approximate="tanh").sum()

    def scaled_norm(x: Any, w: Any, b: Any) -> Any:
        return F.layer_norm(x, x.shape[-1:]) * w + b

    def soft_loss(x: Any, t: Any) -> Any:
        return -(F.log_softmax(x, -1) * t).sum(-1).mean()

    def gated(x: Any, y: Any, b: Any) -> Any:
        return F.gelu(x + b) * y

    def peak_scaled(x: Any) -> Any:
        return x / trident.amax(x.abs(), -1, True)

    n = 4096
    calls = [
        (chain_sum, [(1 << 20,)] * 3), (scaled_norm, [(512, 1024), (1024,), (1024,)]),
        (scaled_norm, [(64, 20000), (20000,), (20000,)]), (soft_loss, [(512, 1000)] * 2),
        (gated, [(512, n), (512, n), (n,)]), (gated, [(64, 3, 5), (64, 1, 5), (5,)]),
        (peak_scaled, [(512, 8192)]),
    ]  # fmt: skip
    for f, sizes in calls:
        tensors = [trident.empty(s, dtype=d, device="cuda", requires_grad=True) for s in sizes]
        out = trident.fuse(f)(*tensors)
        out.backward(trident.empty(tuple(out.shape), dtype=d, device="cuda"))


def _flags(s: Any) -> tuple:
    """Constants that choose a path through the kernel (not sizes)."""
    return tuple(
        str(v)
        for (_,), v in s.constants
        if v is None or isinstance(v, bool) or not isinstance(v, int)
    )


def _quick(kept: list[Any]) -> Iterator[Any]:
    """Per kernel: the first float32 and the first bfloat16 specialisation."""
    seen = set()
    for s in kept:
        half = any("bf16" in t for _, t in s.signature)
        key = (s.kernel.name, half)
        if key not in seen:
            seen.add(key)
            yield s


def describe(s: Any, target: str) -> dict[str, Any]:
    """Compile ``s`` for ``target`` and read off what it uses."""
    row: dict[str, Any] = {
        "kernel": s.kernel.name,
        "file": s.kernel.fn.__module__.removeprefix("trident."),
        "types": " ".join(sorted({t[1:] for _, t in s.signature if t.startswith("*")})),
        "target": target,
    }
    try:
        compiled = s.compile(target)
    except Exception as error:
        lines = [
            t.strip() for t in str(error).splitlines() if t.strip() and set(t.strip()) != {"^"}
        ]
        return {**row, "error": f"{type(error).__name__}: {' / '.join(lines[-3:])[:300]}"}
    row["shared"] = compiled.metadata.shared
    if target.startswith("sm_"):
        row.update(_nvidia(compiled))
        row["mma"] = len(
            re.findall(r"\b(?:wgmma|mma|tcgen05\.mma)\S*\.sync|tcgen05\.mma", compiled.asm["ptx"])
        )
        row["vec"] = len(
            re.findall(r"ld\.global\S*\.v[24]|st\.global\S*\.v[24]", compiled.asm["ptx"])
        )
    else:
        text = compiled.asm["amdgcn"]
        number = lambda name: int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))  # type: ignore[union-attr]  # noqa: E731
        row["registers"] = number("vgpr_count")
        row["spills"] = number("vgpr_spill_count") + number("sgpr_spill_count")
        row["mma"] = text.count("v_mfma")
        row["vec"] = len(re.findall(r"(?:global|buffer)_(?:load|store)_dwordx[24]", text))
    return row


def _nvidia(compiled: Any) -> dict[str, int]:
    """Registers, and spilled bytes where there is a stack at all (sin and cos keep a table
    there).
    """
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "k.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        text = _output(tools / "cuobjdump", "-res-usage", binary)
        found = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        spills = 0
        if found["STACK"] or found["LOCAL"]:
            spills = _spilled(tools, folder, compiled.asm["ptx"], found["STACK"] + found["LOCAL"])
    return {"registers": found["REG"], "spills": spills}


def _spilled(tools: Path, folder: str, ptx: str, stack: int) -> int:
    """Bytes that ptxas says it spills; ``stack`` where no ptxas here reads this PTX version."""
    source = Path(folder, "k.ptx")
    source.write_text(ptx)
    arch = re.search(r"\.target (sm_\w+)", ptx).group(1)  # type: ignore[union-attr]
    for tool in sorted(tools.glob("ptxas*")):
        command = [str(tool), "-v", f"-arch={arch}", str(source), "-o", str(Path(folder, "k.out"))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            found = re.findall(r"(\d+) bytes spill", done.stdout + done.stderr)
            return sum(int(n) for n in found)
    return stack


def _output(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def worker(shard: int, of: int, targets: list[str], quick: bool) -> None:
    """Print one JSON row per compiled kernel of this shard."""
    for i, s in enumerate(collect(quick)):
        for k, target in enumerate(targets):
            if (i + k) % of == shard:
                print(json.dumps(describe(s, target)), flush=True)


def rows(targets: list[str], quick: bool, jobs: int) -> list[dict[str, Any]]:
    """Compile in ``jobs`` processes; every row of the table."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernels", "--targets", *targets]
    running = [
        subprocess.Popen(
            [*command, "--shard", f"{i}/{jobs}", *(["--quick"] if quick else [])],
            stdout=subprocess.PIPE, text=True, env=env,
        )
        for i in range(jobs)
    ]  # fmt: skip
    found = []
    for p in running:
        assert p.stdout is not None
        found += [json.loads(line) for line in p.stdout if line.startswith("{")]
        if p.wait() != 0:
            raise SystemExit(f"bench kernels: a worker failed with exit code {p.returncode}")
    return sorted(found, key=lambda r: (r["file"], r["kernel"], r["types"], r["target"]))


def problems(table: list[dict[str, Any]]) -> list[str]:
    """What ``--check`` fails on."""
    found = []
    for r in table:
        name = f"{r['file']}.{r['kernel']} [{r['types']}] {r['target']}"
        if "error" in r:
            found.append(f"{name}: {r['error']}")
            continue
        if r["spills"] > SPILL_LIMIT:
            found.append(f"{name}: {r['spills']} bytes spilled")
        if r["shared"] > SHARED_LIMIT[r["target"]]:
            found.append(f"{name}: {r['shared']} bytes of shared memory")
    return found


def show(table: list[dict[str, Any]]) -> None:
    """The table as Markdown: one line per kernel and dtype, registers/spills/shared per target."""
    targets = sorted({r["target"] for r in table})
    print("| kernel | types | " + " | ".join(f"{t}: reg/spill/shared/mma" for t in targets) + " |")
    print("|" + "---|" * (len(targets) + 2))
    by_name: dict[tuple, dict[str, str]] = {}
    for r in table:
        cell = "failed" if "error" in r else (
            f"{r['registers']}/{r['spills']}/{r['shared']}/{r['mma']}"
        )  # fmt: skip
        by_name.setdefault((f"{r['file']}.{r['kernel']}", r["types"]), {})[r["target"]] = cell
    for (kernel, types), cells in by_name.items():
        print(f"| {kernel} | {types} | " + " | ".join(cells.get(t, "") for t in targets) + " |")


def main(argv: list[str] | None = None) -> int:
    from trident.runtime.aot import TARGETS

    parser = argparse.ArgumentParser(prog="python -m bench kernels", description=__doc__)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.shard:
        shard, of = map(int, options.shard.split("/"))
        worker(shard, of, options.targets, options.quick)
        return 0
    table = rows(options.targets, options.quick, options.jobs)
    show(table)
    bad = problems(table)
    print(f"\n{len(table)} compilations, {len(bad)} problems")
    for line in bad:
        print(f"- {line}")
    return 1 if bad and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
