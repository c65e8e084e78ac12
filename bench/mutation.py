"""The mutation score of the tests: break every kernel in every known way, and see what
``check_op`` notices.

    python -m bench mutation              all groups of kernels, in two processes; the table
    python -m bench mutation softmax sort only these groups
    python -m bench mutation --cached     no run: the table of what is known
    python -m bench mutation --check      exit 1 where a mutant survives or a file has no group

Killed mutants are kept by kernel source in TRIDENT_CACHE/mutation.jsonl and not run again while
that source stays; survivors are. Under ``nice`` it takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

GROUPS: dict[str, tuple[str, ...]] = {
    # file of kernels: the ops whose checks launch them, the cheapest first
    "softmax": ("softmax", "log_softmax", "softmax_backward", "log_softmax_backward", "logsumexp"),
    "reduce": (
        "sum", "any", "amax", "amin", "argmax", "argmin", "prod", "max_along",
    ),
    "scan": ("cumsum", "cumprod", "linear_scan", "cummax_along", "cummin_along"),
    "layout": (
        "clone", "full_like", "arange_like", "to_dtype", "triangle", "permute", "flip", "joined",
        "constant_pad",
    ),
    "index": ("ravel_index", "nonzero_places", "one_hot_of", "take_slices", "gather_along"),
    "scatter": ("sum_slices", "winners", "scatter_sum", "scatter_put", "put_slices"),
    "sort": ("search", "ordered", "random_permutation"),
    "matmul_tiled": ("matmul", "linear", "addmm", "baddbmm"),
    "matmul_thin": ("matmul", "linear", "addmm", "baddbmm"),
    "matmul_split": ("matmul", "linear", "addmm", "baddbmm"),
    "matmul_tma": ("matmul", "linear", "addmm", "baddbmm"),
    "matmul_common": ("matmul", "linear", "addmm", "baddbmm"),
    "conv_gather": ("convolution", "conv_data_grad"),
    "conv_depthwise": ("convolution", "conv_data_grad", "conv_weight_grad"),
    "conv_direct": ("im2col", "col2im"),
    "conv_parts": ("conv_weight_grad",),
    "conv_weight": ("conv_weight_grad",),
    "attention": ("attention_heads",),
    "attention_backward": ("attention_heads",),
    "pool": (
        "max_pool", "max_pool_take", "max_pool_backward", "max_pool_indices", "avg_pool",
        "avg_pool_backward",
    ),
    "norm": ("layer_norm_axes", "rms_norm_axes", "group_norm_channels", "standardize"),
    "norm_backward": (
        "layer_norm_axes", "rms_norm_axes", "group_norm_channels", "standardize_backward",
        "batch_norm_backward",
    ),
    "norm_parameters": (
        "layer_norm_axes", "rms_norm_axes", "group_norm_channels", "batch_norm_backward",
    ),
    "moments": ("batch_norm_train", "group_norm_channels", "layer_norm_axes"),
    "batchnorm": ("batch_norm_train", "batch_norm_backward"),
    "cross_entropy": ("cross_entropy_index", "nll_reduced", "nll_backward"),
    "optim": ("sgd_", "adam_", "rmsprop_", "adagrad_"),
    "random": (
        "random_uniform", "random_normal", "random_int", "random_like", "bernoulli_draw",
        "dropout_mask_apply", "random_permutation",
    ),
    "generated": ("relu", "add", "where", "lt", "gelu", "lerp"),
}  # fmt: skip


EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    # kernel, a regular expression for "kind: before => after", why it changes nothing. What masked
    # lanes get is changed to a finite number (3, or 0 instead of an infinity), so that a product
    # with 0 stays 0
    (
        "generated.*",
        r"stride dropped: .*out_stride(\d)\) .*=> out_stride\1 = 1",
        "the saved result is contiguous, and this is its last axis: its stride is 1",
    ),
    (
        "conv_direct.depthwise.*",
        r"load mask dropped: (weight |acc \+)= tl.load\((w|bias)_ptr",
        "the channel is taken modulo the channels, so every lane reads inside; the store is masked",
    ),
    (
        "softmax.softmax_backward_kernel",
        r"other changed: (y = tl.load|g \*= tl.load)",
        "a factor of y * g; the load of g gives 0 to the same lanes",
    ),
    (
        "matmul.*|conv.gather_dot|conv_weight.weight_grad_kernel",
        r"other changed: (g|a|b|weight) = tl.load",
        "one operand of a product: beyond the end of the summed axis the other one is 0, and what "
        "it gives to rows or columns outside is not stored",
    ),
    (
        "norm_(backward|parameters).*",
        r"other changed: (x|rstd|mean|g \*|x -|along \+)=? ",
        "a factor of a product with g, which is 0 in masked lanes; rows outside are not stored",
    ),
    (
        "(batchnorm|moments).moments_kernel",
        r"other changed: x = ",
        "it is only used as delta and as a factor of delta, which tl.where makes 0 there",
    ),
    (
        "(batchnorm|moments).moments_finish_kernel",
        r"other changed: means = ",
        "it is only used with the count, which is 0 there, as a factor",
    ),
    (
        "batchnorm.batch_kernel",
        r"load mask dropped: slope = ",
        "the blocks of all programs together are shorter than twice the channels, and behind the "
        "sums of one kind lie as many of the other: every lane reads inside; the store is masked",
    ),
    (
        "scatter.(add|heads)_kernel",
        r"other changed: (target|before|active) = |bound one too far: before = ",
        "in these lanes (j < m), (j == 0) or active decides, whatever was read; the key that one "
        "lane more reads is the last one",
    ),
    (
        "scatter.add_kernel",
        r"mask term dropped: active = (owner|active) & .* => active = \(\1 ",
        "lanes that own no run are not stored; the keys are sorted, so that a destination that has "
        "ended does not come again",
    ),
    (
        "scan.(cumulate|linear)_kernel",
        r"other changed",
        "a scan runs towards the masked lanes, and the block that has them is the last; rows "
        "outside are not stored",
    ),
    (
        "scan.extremum_kernel",
        r"accumulator not cleared: where",
        "the first element always beats the identity (it is not less, or NaN), so this position "
        "is never kept",
    ),
    (
        "cross_entropy.forward_kernel",
        r"other changed: chosen",
        "a masked lane is used with weight NaN, which makes the loss NaN, or is not used, and "
        "tl.where(used, ...) makes it 0",
    ),
)
"""Edits that no test can see, each with the reason; docs/testing.md lists them."""


def equivalent(row: dict[str, Any]) -> bool:
    """Whether a survivor is one of ``EQUIVALENT``."""
    text = f"{row['kind']}: {row['before']} => {row['after']}"
    return any(
        re.fullmatch(kernel, row["kernel"]) and re.search(pattern, text)
        for kernel, pattern, _ in EQUIVALENT
    )


def without_group() -> list[str]:
    """Files of kernels that no group names: their mutants are not tried."""
    folder = Path(__file__).parents[1] / "trident" / "kernels"
    names = {p.stem for p in sorted(folder.glob("*.py")) if "tl.store(" in p.read_text()}
    return sorted(names - set(GROUPS))


def cache_file() -> Path:
    from trident import config

    return Path(config.CACHE) / "mutation.jsonl"


def known() -> dict[str, dict[str, Any]]:
    """What earlier runs found, by key."""
    path = cache_file()
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return {r["key"]: r for r in rows}


def key_of(subject: Any, mutant: Any) -> str:
    """Names a mutant by the sources of the kernels that it changes, and by its edit."""
    from trident.testing.mutants import role
    from trident.testing.mutation import _family, name_of

    sources = sorted(
        {
            inspect.getsource(j.fn)
            for k in subject.launched
            for j in _family(k)
            if name_of(j) == mutant.kernel
        }
    )
    if mutant.kernel.startswith("generated"):
        # the emitter writes a text for every layout: the edit is known by its role in all of them
        text = json.dumps([mutant.kernel, role(mutant.site)])
    else:
        text = json.dumps([mutant.kernel, sources, mutant.site.key])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def run(group: str, examples: int, only: str = "") -> None:
    """Try the mutants of one group that are not known to be killed; append to the cache file."""
    from trident.testing.mutation import Subject

    failed: list[str] = []
    subject = Subject(GROUPS[group], examples, failed)
    for line in failed:
        print(f"{group}: left out, it fails on the unbroken kernels: {line}", flush=True)
    names = [n for n in subject.kernels() if n.startswith(f"{group}.") and only in n]
    before = known()
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    current = []
    for m in subject.mutants(names):
        key = key_of(subject, m)
        current.append(key)
        if before.get(key, {}).get("status") in ("killed", "stillborn", "same"):
            continue
        o = subject.try_(m)
        row = {
            "key": key, "group": group, "kernel": m.kernel, "line": m.site.line,
            "kind": m.site.kind, "before": m.site.before, "after": m.site.after,
            "status": o.status, "by": o.by, "why": o.why, "seconds": round(o.seconds, 2),
        }  # fmt: skip
        with path.open("a") as f:
            f.write(json.dumps(row) + "\n")
        if o.status == "survived":
            print(f"survived: {m}", flush=True)
    with path.open("a") as f:
        f.write(json.dumps({"key": f"group {group}", "current": current, "kernels": names}) + "\n")
    print(f"{group}: {len(current)} mutants of {len(names)} kernels", flush=True)


def table(groups: list[str]) -> tuple[str, int]:
    """The Markdown table, by file and by kind, and how many mutants survived or files were left
    out."""
    rows = known()
    lines = [
        "| kernels | functions | mutants | killed | survived | equivalent | no change "
        "| do not compile |",
        "|" + "---|" * 8,
    ]
    kinds: dict[str, Counter] = defaultdict(Counter)
    total: Counter = Counter()
    left = []
    for group in groups:
        found = rows.get(f"group {group}")
        if found is None:  # stopped before its end
            part = [r for r in rows.values() if r.get("group") == group]
            if not part:
                lines.append(f"| {group} | not run |  |  |  |  |  |  |")
                continue
            names = {r["kernel"] for r in part}
            found = {"current": [r["key"] for r in part], "kernels": [*names, "(unfinished)"]}
        count: Counter = Counter()
        for key in found["current"]:
            r = rows.get(key)
            if r is None:
                continue
            if r["status"] == "survived" and equivalent(r):
                r["status"] = "equivalent"
            count[r["status"]] += 1
            kinds[r["kind"]][r["status"]] += 1
            if r["status"] == "survived":
                left.append(r)
        total += count
        n = count["killed"] + count["survived"]
        whole = "(unfinished)" not in found["kernels"]
        size = len(found["kernels"]) if whole else "unfinished"
        lines.append(
            f"| {group} | {size} | {n} | {count['killed']} "
            f"| {count['survived']} | {count['equivalent']} | {count['same']} "
            f"| {count['stillborn']} |"
        )
    lost = without_group() if groups == list(GROUPS) else []
    lines += [f"| {name} | in no group |  |  |  |  |  |  |" for name in lost]
    n = total["killed"] + total["survived"]
    lines.append(
        f"| all |  | {n} | {total['killed']} ({total['killed'] / max(n, 1):.1%}) "
        f"| {total['survived']} | {total['equivalent']} | {total['same']} | {total['stillborn']} |"
    )
    lines += ["", "| kind of mutant | mutants | killed |", "|---|---|---|"]
    for kind, count in sorted(kinds.items()):
        n = count["killed"] + count["survived"]
        if n:
            lines.append(f"| {kind} | {n} | {count['killed']} |")
    if left:
        lines += ["", "Survivors:", ""]
        lines += [
            f"- `{r['kernel']}`, line {r['line']}, {r['kind']}: `{r['before']}` became "
            f"`{r['after']}`"
            for r in left
        ]
    return "\n".join(lines), len(left) + len(lost)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench mutation", description=__doc__)
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--examples", type=int, default=8, help="as in check_op")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kernel", default="", help="only kernels whose name holds this")
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    unknown = [g for g in options.groups if g not in GROUPS]
    if unknown:
        print(f"bench mutation: unknown group {unknown[0]!r}; known are {', '.join(GROUPS)}")
        return 2
    groups = options.groups or list(GROUPS)
    if options.here:
        for group in groups:
            run(group, options.examples, options.kernel)
        return 0
    if not options.cached:
        env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        waiting, running = list(groups), []
        failed = 0
        while waiting or running:
            while waiting and len(running) < options.jobs:
                command = [
                    sys.executable, "-m", "bench", "mutation", waiting.pop(0), "--here",
                    "--examples", str(options.examples), "--kernel", options.kernel,
                ]  # fmt: skip
                running.append(subprocess.Popen(command, env=env))
            failed += running[0].wait() != 0
            running.pop(0)
        if failed:
            print(f"bench mutation: {failed} groups stopped with an error")
            return 1
    text, left = table(groups)
    print(text)
    return 1 if options.check and left else 0


if __name__ == "__main__":
    sys.exit(main())
