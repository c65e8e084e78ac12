"""What compiled kernels must be like: one table, read by ``python -m bench kernels --check``.

A rule says that every compiled kernel it matches has at least (or at most) so many of something. It
looks at the kernels of named cases (``trident/testing/walk.py``: real sizes, everything aligned),
or with ``cases=ALL`` at everything that was compiled. A rule that matches nothing is broken itself,
and so is an exception that nothing needs: neither can go stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from trident.testing.resources import SHARED_LIMIT

NVIDIA = ("sm_80", "sm_90", "sm_100")
EVERY = (*NVIDIA, "gfx942")
ALL = "(all)"  # also what only the samples of the test kit launch


@dataclass(frozen=True)
class Some:
    """Kernels by name, types and case (patterns as in file names, with ``|`` for "or")."""

    what: str
    kernels: str = "*"
    types: str = "*"
    cases: str = "*"
    targets: tuple[str, ...] = NVIDIA

    def matches(self, row: dict[str, Any]) -> bool:
        return (
            row["target"] in self.targets
            and _is(row["kernel"], self.kernels)
            and _is(row["types"], self.types)
            and (self.cases == ALL or any(_is(c, self.cases) for c in row["cases"]))
        )


def _is(name: str, patterns: str) -> bool:
    return any(fnmatch(name, p) for p in patterns.split("|"))


@dataclass(frozen=True)
class Rule(Some):
    """``least <= row[what] <= most``. A kernel that loads (or stores) nothing need not do it in 16
    bytes."""

    least: int = 0
    most: int | None = None
    slow_sine: bool | None = None  # only where libdevice's slow sin and cos are in it, or are not

    def matches(self, row: dict[str, Any]) -> bool:
        return super().matches(row) and self.slow_sine in (None, bool(row.get("slow sine")))

    def holds(self, row: dict[str, Any]) -> bool:
        found = row[self.what]
        if self.what.endswith("16") and not row[self.what.removesuffix("16")]:
            return True
        return self.least <= found and (self.most is None or found <= self.most)

    def __str__(self) -> str:
        short = self.kernels if len(self.kernels) < 60 else f"{self.kernels[:50]}..."
        parts = [short, self.types, self.cases, " ".join(self.targets)]
        bound = f"at least {self.least}" if self.most is None else f"at most {self.most}"
        return f"{self.what} {bound} for [{' / '.join(parts)}]"


@dataclass(frozen=True)
class LeftOut(Some):
    """Where a rule on ``what`` does not hold, and why it cannot."""

    why: str = ""


HALF = "bf16*"
DOTS = (
    "kernels.matmul_tiled.tiled_kernel|kernels.matmul_tma.tma_kernel|kernels.conv.forward_kernel|"
    "kernels.conv_data.data_grad_kernel|kernels.conv_weight.weight_grad_kernel|"
    "kernels.attention.forward_kernel|kernels.attention_backward.dkdv_kernel|"
    "kernels.attention_backward.dq_kernel"
)
DOT_CASES = "matmul|matmul [ab].T|matmul batched|linear*|conv*|attention*"

RULES = (
    # Nothing is spilled. The one exception is ptxas's own doing: each of a thread's elements has
    # libdevice's loop for arguments of sin and cos beyond 105615, and where that takes one register
    # more than a multiple of 8, ptxas puts one value of it on the stack: 4 bytes stored, 4 loaded
    Rule("spills", cases=ALL, targets=EVERY, most=0, slow_sine=False),
    Rule("spills", cases=ALL, targets=NVIDIA, most=8, slow_sine=True),
    # No float is added in an order that is not fixed
    Rule("atomic float", cases=ALL, targets=EVERY, most=0),
    # 16-byte loads and stores wherever the shape allows (LEFT_OUT says where it does not)
    Rule("load16", least=1),
    Rule("store16", least=1),
    # A multi-tensor step reads parameter, gradient and two states, and writes all but the gradient
    Rule("load16", "kernels.optim.adam_kernel", cases="adam", least=4),
    Rule("store16", "kernels.optim.adam_kernel", cases="adam", least=3),
    # Tensor cores for products, convolutions and attention of half types and their gradients
    Rule("mma.sync", DOTS, HALF, DOT_CASES, ("sm_80",), least=1),
    Rule("wgmma", DOTS, HALF, DOT_CASES, ("sm_90",), least=1),
    Rule("tcgen05", DOTS, HALF, DOT_CASES, ("sm_100",), least=1),
    Rule("mfma", DOTS, HALF, DOT_CASES, ("gfx942",), least=1),
    # and for float32 where TF32 is allowed
    Rule("mma.sync", DOTS, "fp32", "* tf32", ("sm_80",), least=1),
    Rule("wgmma", DOTS, "fp32", "* tf32", ("sm_90",), least=1),
    Rule("tcgen05", DOTS, "fp32", "* tf32", ("sm_100",), least=1),
    # Each kind of dot kernel is there: a renamed one would leave the rules above without it
    *(Rule("registers", k, HALF, DOT_CASES, least=1) for k in DOTS.split("|")),
    # The copy engine moves the tiles of large products
    Rule("tma", "kernels.matmul_tma.*", HALF, "matmul|linear", ("sm_90", "sm_100"), least=1),
)

LEFT_OUT = (
    # generated kernels
    LeftOut("store16", "generated.*", "*u8", why="booleans are bytes, a thread has 8 elements"),
    LeftOut(
        "spills", "generated._peak_backward", HALF, "fused maximum", ("sm_80",),
        why="ptxas keeps to 64 registers, for two programs of 512 threads, and puts two values of "
        "the division's slow path on the stack: 8 bytes stored, 4 loaded",
    ),
    LeftOut("store16", "generated._gelu_sum|generated._soft_loss", why="one sum a program"),
    LeftOut("load16", "generated.*_tail", why="the last step of a sum: one number"),
    LeftOut("store16", "generated.*_tail", why="the last step of a sum: one number"),
    # results of one or two numbers a row, a channel or a program
    LeftOut("store16", "kernels.attention_backward.delta_kernel", why="a number a row"),
    LeftOut("store16", "kernels.cross_entropy.f*_kernel", why="three numbers a row"),
    LeftOut("store16", "kernels.index.check_kernel", why="a number a program"),
    LeftOut("store16", "kernels.moments.*", why="two numbers a row"),
    LeftOut("store16", "kernels.norm_backward.shared_backward_kernel", why="two numbers a row"),
    LeftOut("store16", "kernels.norm_parameters.*", why="two numbers a channel"),
    LeftOut("store16", "kernels.reduce.reduce_kernel", why="a number a row"),
    LeftOut("store16", "kernels.softmax.exponentials_kernel", why="two numbers a piece of a row"),
    LeftOut("store16", "kernels.softmax.products_kernel", why="a number a piece of a row"),
    # vectors
    LeftOut("store16", "kernels.matmul_thin.*", cases="matvec", why="a vector, an element a warp"),
    LeftOut("store16", "kernels.matmul_split.*", cases="matvec", why="a vector of few elements"),
    LeftOut("load16", "kernels.matmul_split.*", cases="matvec", why="a vector of few elements"),
    LeftOut("load16", "kernels.matmul_tiled.*", cases="matvec", why="columns of one element"),
    # convolutions
    LeftOut("load16", "kernels.conv*", cases="conv first layer", why="three channels: 6 bytes"),
    LeftOut("store16", "kernels.conv*", cases="conv first layer", why="three channels: 6 bytes"),
    LeftOut(
        "store16", "kernels.conv_depthwise.depthwise_weight_grad_kernel", why="one tap a program"
    ),
    LeftOut(
        "store16", "kernels.conv_parts.sum_parts_kernel",
        why="the odd number of taps of a row-major weight, or four halves a thread: 8 bytes",
    ),
    LeftOut(
        "load16", "kernels.layout.copy_kernel", cases="conv 3x3 row-major",
        why="a weight made channels-last: its nine taps lie between the channels",
    ),
    LeftOut(
        "load16", "kernels.pool.max_pool_*", cases="max pool row-major",
        why="the windows of neighbouring elements do not line up",
    ),
    LeftOut(
        "load16", "kernels.pool.max_pool_backward_kernel", cases="max pool",
        why="where a window's maximum stands is a byte",
    ),
    LeftOut("store16", "kernels.pool.max_pool_*", cases="max pool row-major", why="as its loads"),
    # the rest
    LeftOut("load16", "kernels.random.float_kernel", why="reads the generator's state alone"),
    LeftOut("store16", "kernels.sort.merge_kernel", why="each element goes to a place of its own"),
)  # fmt: skip


def _left_out(what: str, row: dict[str, Any]) -> LeftOut | None:
    """The exception that covers a row, or None."""
    return next((x for x in LEFT_OUT if x.what == what and x.matches(row)), None)


def broken(rows: Iterable[dict[str, Any]], whole: bool, targets: Iterable[str]) -> list[str]:
    """A line for each failed compilation, broken rule, and (when ``whole``: everything was
    compiled) rule or exception without a kernel."""
    rows, targets = list(rows), set(targets)
    lines = []
    needed: set[LeftOut] = set()
    for row in rows:
        name = f"{row['kernel']} [{row['types']}] {row['target']} ({', '.join(row['cases'][:2])})"
        if "error" in row:
            lines.append(f"{name}: {row['error']}")
            continue
        limit = SHARED_LIMIT[row["target"]]
        if row["shared"] > limit:
            lines.append(f"{name}: {row['shared']} bytes of shared memory, the limit is {limit}")
        for rule in RULES:
            if not rule.matches(row):
                continue
            exception = _left_out(rule.what, row)
            if not rule.holds(row):
                if exception is None:
                    lines.append(f"{name}: {rule.what} {row[rule.what]}; rule: {rule}")
                else:
                    needed.add(exception)
            elif rule.least and row.get(f"sass {rule.what}", row[rule.what]) < row[rule.what]:
                lines.append(
                    f"{name}: PTX has {row[rule.what]} of {rule.what}, SASS "
                    f"{row[f'sass {rule.what}']}; rule: {rule}"
                )
    if whole:
        for rule in RULES:
            if targets & set(rule.targets) and not any(rule.matches(r) for r in rows):
                lines.append(f"no compiled kernel matches the rule {rule}")
        if targets >= set(EVERY):
            lines += [f"no kernel needs the exception {x}" for x in LEFT_OUT if x not in needed]
    return lines
