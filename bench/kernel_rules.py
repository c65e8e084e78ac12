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
class Rule:
    """``least <= row[what] <= most`` for the kernels that match (patterns as in file names)."""

    what: str
    kernels: str = "*"
    types: str = "*"
    cases: str = "*"
    targets: tuple[str, ...] = NVIDIA
    least: int = 0
    most: int | None = None
    slow_sine: bool | None = None  # only where libdevice's slow sin and cos are in it, or are not

    def matches(self, row: dict[str, Any]) -> bool:
        return (
            row["target"] in self.targets
            and self.slow_sine in (None, bool(row.get("slow sine")))
            and any(fnmatch(row["kernel"], k) for k in self.kernels.split("|"))
            and any(fnmatch(row["types"], t) for t in self.types.split("|"))
            and (
                self.cases == ALL
                or any(fnmatch(c, p) for p in self.cases.split("|") for c in row["cases"])
            )
        )

    def holds(self, row: dict[str, Any]) -> bool:
        return self.least <= row[self.what] <= (row[self.what] if self.most is None else self.most)

    def __str__(self) -> str:
        parts = [self.kernels, self.types, self.cases, " ".join(self.targets)]
        bound = f"at least {self.least}" if self.most is None else f"at most {self.most}"
        return f"{self.what} {bound} for [{' / '.join(parts)}]"


RULES = (
    # Nothing is spilled. The one exception is ptxas's own doing: each of a thread's elements has
    # libdevice's loop for arguments of sin and cos beyond 105615, and where that takes one register
    # more than a multiple of 8, ptxas puts one value of it on the stack: 4 bytes stored, 4 loaded
    Rule("spills", cases=ALL, targets=EVERY, most=0, slow_sine=False),
    Rule("spills", cases=ALL, targets=NVIDIA, most=8, slow_sine=True),
    # No float is added in an order that is not fixed
    Rule("atomic float", cases=ALL, targets=EVERY, most=0),
    # 16-byte loads and stores wherever the shape allows
    Rule("load16", least=1),
    Rule("store16", least=1),
)

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""(what, "kernel" or "kernel / case") -> why the rule cannot hold there."""


def _excepted(what: str, row: dict[str, Any]) -> tuple[str, str] | None:
    """The exception that covers a row, or None."""
    for what_not, where in EXCEPTIONS:
        kernels, _, cases = where.partition(" / ")
        found = any(fnmatch(row["kernel"], k) for k in kernels.split("|"))
        if found and cases:
            found = any(fnmatch(c, p) for p in cases.split("|") for c in row["cases"])
        if found and what_not == what:
            return what_not, where
    return None


def broken(rows: Iterable[dict[str, Any]], whole: bool, targets: Iterable[str]) -> list[str]:
    """A line for each failed compilation, broken rule, and (when ``whole``: everything was
    compiled) rule or exception without a kernel."""
    rows, targets = list(rows), set(targets)
    lines = []
    used: set[tuple[str, str]] = set()
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
            if not rule.holds(row):
                exception = _excepted(rule.what, row)
                if exception:
                    used.add(exception)
                else:
                    lines.append(f"{name}: {rule.what} {row[rule.what]}; rule: {rule}")
            elif rule.least and row.get(f"sass {rule.what}", rule.least) < rule.least:
                lines.append(
                    f"{name}: PTX has {row[rule.what]} of {rule.what}, SASS "
                    f"{row[f'sass {rule.what}']}; rule: {rule}"
                )
    if whole:
        for rule in RULES:
            if targets & set(rule.targets) and not any(rule.matches(r) for r in rows):
                lines.append(f"no compiled kernel matches the rule {rule}")
        if targets >= set(EVERY):
            lines += [f"no kernel needs the exception {e}" for e in EXCEPTIONS if e not in used]
    return lines
