"""What a compiled kernel uses, read off the binary: no GPU is needed.

``measure(spec, target)`` compiles a specialisation and returns a row: registers a thread, spilled
bytes, shared memory, and how many instructions of the kinds that speed hangs on are in its text.
Instructions are counted in PTX (AMD: the assembly), and for a cross check in SASS.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..runtime.aot import Specialization

SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
"""Bytes of shared memory a program may have."""

COUNTED = {
    # what: PTX, SASS. An access of 16 bytes or more is one of 128 bits, an asynchronous copy of 16
    # bytes to shared memory, or a tile that the copy engine (TMA) moves
    "load16": (
        r"ld\.global[.\w:]*\.(?:v4\.b32|v2\.b64|v8\.b32|v4\.b64|b128)\b"
        r"|cp\.async\.c[ag]\.shared\.global[.\w:]* \[[^\]]*\], \[[^\]]*\], (?:0x10|16)\b"
        r"|cp\.async\.bulk\.tensor[.\w:]*\.shared::\w+\.global",
        r"\bLDG\.E[.\w]*\.(?:128|256)|\bLDGSTS\.E[.\w]*\.128|\bUTMALDG",
    ),
    "store16": (
        r"st\.global[.\w:]*\.(?:v4\.b32|v2\.b64|v8\.b32|v4\.b64|b128)\b"
        r"|cp\.async\.bulk\.tensor[.\w:]*\.global\.shared",
        r"\bSTG\.E[.\w]*\.(?:128|256)|\bUTMASTG",
    ),
    "load": (
        r"ld\.global[.\w:]*|cp\.async\.c[ag]\.shared|cp\.async\.bulk\.tensor[.\w:]*\.shared::\w+\.g",
        r"\bLDG\.|\bLDGSTS\.|\bUTMALDG",
    ),
    "store": (
        r"\bst\.global[.\w:]*|cp\.async\.bulk\.tensor[.\w:]*\.global\.shared",
        r"\bSTG\.|\bUTMASTG",
    ),
    "mma.sync": (r"\bmma\.sync", r"\b[HDI]MMA\."),
    "wgmma": (r"\bwgmma\.mma_async", r"\b[HQI]GMMA\."),
    "tcgen05": (r"\btcgen05\.mma", r"\bUT[CQ]\w*MMA"),
    "tma": (r"\bcp\.async\.bulk\.tensor", r"\bUTMA(?:LDG|STG)"),
    # libdevice's sin and cos of huge arguments: a loop over a table of the digits of 2 / pi
    "slow sine": (r"\.global[^;]*__cudart_i2opi_f\b", r"__cudart_i2opi_f"),
    "atomic float": (
        r"\b(?:atom|red)\.[.\w:]*\.add[.\w]*\.(?:f|bf)\d+",
        r"\b(?:ATOMG?|RED)G?\.[.\w]*ADD[.\w]*\.(?:F|BF)\d+",
    ),
}
AMD = {
    "load16": r"(?:global|buffer)_load_dwordx4",
    "store16": r"(?:global|buffer)_store_dwordx4",
    "load": r"(?:global|buffer)_load_",
    "store": r"(?:global|buffer)_store_",
    "mfma": r"\bv_mfma",
    "atomic float": r"(?:global|buffer)_atomic_(?:pk_)?add_(?:f|bf)\d+",
}
TENSOR = ("mma.sync", "wgmma", "tcgen05", "mfma")
"""Instructions of the tensor cores."""


def measure(spec: Specialization, target: str, sass: bool = False) -> dict[str, Any]:
    """Compile ``spec`` for ``target`` and read off what it uses.

    Keys: registers, spills and shared (bytes), warps, and the names of ``COUNTED`` (``mfma`` on
    AMD); with ``sass`` also "sass load16" and so on. Where it does not compile: error.
    """
    try:
        compiled = spec.compile(target)
    except Exception as error:
        text = [t.strip() for t in str(error).splitlines() if t.strip(" ^\t")]
        return {"error": f"{type(error).__name__}: {' / '.join(text[-3:])[:300]}"}
    row: dict[str, Any] = {
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
    }
    if target.startswith("sm_"):
        row |= _nvidia(compiled, sass)
    else:
        row |= _amd(compiled.asm["amdgcn"])
    return row


def tensor_cores(row: dict[str, Any]) -> str:
    """The tensor-core instructions of a row, ``wgmma 8``; empty where there are none."""
    return ", ".join(f"{name} {row[name]}" for name in TENSOR if row.get(name))


def _count(text: str, patterns: dict[str, str]) -> dict[str, int]:
    return {name: len(re.findall(p, text)) for name, p in patterns.items()}


def _amd(text: str) -> dict[str, int]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found.group(1)) if found else 0

    return {
        "registers": number("vgpr_count"),
        "spills": 4 * (number("vgpr_spill_count") + number("sgpr_spill_count")),
        **_count(text, AMD),
    }


def _nvidia(compiled: Any, sass: bool) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "k.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        text = _output([_tools() / "cuobjdump", "-res-usage", binary])
        found = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
        frame = found["STACK"] + found["LOCAL"]
        row = {
            "registers": found["REG"],
            # a frame may also hold a table or the arguments of a call: ask ptxas
            "spills": _spilled(folder, compiled.asm["ptx"], frame) if frame else 0,
            **_count(compiled.asm["ptx"], {k: ptx for k, (ptx, _) in COUNTED.items()}),
        }
        if sass:
            listing = _output([_tools() / "nvdisasm", "-c", binary])
            row |= {
                f"sass {k}": n
                for k, n in _count(listing, {k: s for k, (_, s) in COUNTED.items()}).items()
            }
    return row


@functools.cache
def _tools() -> Path:
    """Where Triton keeps NVIDIA's assembler and disassembler."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _spilled(folder: str, ptx: str, frame: int) -> int:
    """Bytes that ptxas says it stores to and loads from spills; ``frame`` where no ptxas here
    reads this PTX."""
    source = Path(folder, "k.ptx")
    source.write_text(ptx)
    found = re.search(r"\.target (sm_\w+)", ptx)
    assert found is not None
    for tool in sorted(_tools().glob("ptxas*")):
        command = [tool, "-v", f"-arch={found.group(1)}", source, "-o", Path(folder, "k.out")]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode == 0:
            return sum(int(n) for n in re.findall(r"(\d+) bytes spill", done.stdout + done.stderr))
    return frame


def _output(command: Sequence[object]) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def table(rows: Iterable[dict[str, Any]], targets: Sequence[str]) -> str:
    """Rows of ``measure`` (with kernel, types, target added) as Markdown: one line per kernel and
    types, a column per target with registers/spills/shared/16-byte loads/stores/tensor cores."""
    head = " | ".join(f"{t}: reg/spill/shared/ld16/st16/mma" for t in targets)
    lines = [f"| kernel | types | {head} |", "|" + "---|" * (len(targets) + 2)]
    cells: dict[tuple, dict[str, str]] = {}
    for r in rows:
        text = "failed" if "error" in r else (
            f"{r['registers']}/{r['spills']}/{r['shared']}/{r['load16']}/{r['store16']}/"
            f"{tensor_cores(r) or 0}"
        )  # fmt: skip
        cells.setdefault((r["kernel"], r["types"]), {}).setdefault(r["target"], text)
    for (kernel, types), found in cells.items():
        columns = " | ".join(found.get(t, "") for t in targets)
        lines.append(f"| {kernel} | {types} | {columns} |")
    return "\n".join(lines)
