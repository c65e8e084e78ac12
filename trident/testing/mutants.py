"""The ways in which kernels break, as edits of a kernel's syntax tree.

``sites(function)`` lists every edit that applies to a kernel, ``mutated(jit, site)`` makes it.
An edit is named by what it does to which text, so that it can be found again in another kernel
with the same statement: the emitter writes one kernel for every layout and dtype.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import inspect
import linecache
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..lang import Jit, tl
from .edits import REASONS, STRIDE, after_doc, edits, is_tl


@dataclass(frozen=True)
class Site:
    """One edit: its kind, the statement before and after, and which of equal ones it is."""

    kind: str
    before: str
    after: str
    nth: int = 0
    line: int = 0

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.kind, self.before, self.after, self.nth


def parse(fn: Callable) -> tuple[ast.FunctionDef, int]:
    """The kernel's syntax tree without decorators, and the line its file has it on."""
    lines, first = inspect.getsourcelines(fn)
    (node,) = ast.parse(textwrap.dedent("".join(lines))).body
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list = []
    return node, max(first, 1)


def _text(node: Any, whole: bool) -> str:
    """The line that shows an edit: of a statement its first, of a function its strides."""
    if not whole:
        return ast.unparse(node).splitlines()[0]
    start = after_doc(node)
    kept = [ast.unparse(s) for s in node.body[start : start + 1]]
    kept = [s for s in kept if re.fullmatch(r"\w+ = 1", s)]
    ids = [ast.unparse(n) for n in ast.walk(node) if is_tl(n, "program_id")]
    names = [a.arg for a in node.args.args if STRIDE.search(a.arg)]
    return "; ".join(kept) or f"({', '.join(names)}) {' '.join(ids)}".strip()


def _parents(tree: ast.FunctionDef) -> dict[int, ast.AST]:
    """The innermost statement around every node."""
    found: dict[int, ast.AST] = {}

    def visit(node: ast.AST, statement: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            statement = node
        found[id(node)] = statement
        for child in ast.iter_child_nodes(node):
            visit(child, statement)

    visit(tree, tree)
    return found


def _head(statement: ast.AST, tree: ast.FunctionDef) -> ast.AST:
    """What of a statement its text shows: a loop or branch without its body."""
    if statement is tree or not isinstance(statement, (ast.For, ast.While, ast.If)):
        return statement
    fields = {**vars(statement), "body": [ast.Pass()], "orelse": []}
    return type(statement)(**fields)


def _all(tree: ast.FunctionDef) -> list[tuple[Site, int]]:
    """Every edit that changes the text, and its number among the edits of the tree."""
    counts: dict[tuple, int] = {}
    found = []
    parents = _parents(tree)
    for index, (kind, node, edit) in enumerate(edits(tree)):
        statement = _head(parents[id(node)], tree)
        before = _text(statement, statement is tree)
        memo: dict[int, Any] = {}
        clone = copy.deepcopy(statement, memo)
        edit(memo[id(node)])
        after = _text(clone, statement is tree)
        if before == after:
            continue
        nth = counts.get((kind, before, after), 0)
        counts[(kind, before, after)] = nth + 1
        found.append((Site(kind, before, after, nth, getattr(node, "lineno", 1)), index))
    return found


def _apply(tree: ast.FunctionDef, index: int) -> ast.FunctionDef:
    """A copy of the tree with edit number ``index`` made."""
    for i, (_, node, edit) in enumerate(edits(tree)):
        if i == index:
            memo: dict[int, Any] = {}
            clone = copy.deepcopy(tree, memo)
            edit(memo[id(node)])
            return clone
    raise IndexError(index)


def role(site: Site) -> tuple[str, str]:
    """What an edit of a generated kernel is about, the same in kernels for other layouts: the
    emitter writes one statement for each operand, with as many strides as the layout needs."""
    what = ""
    if site.kind == "stride dropped":
        what = site.after.partition(" ")[0]
    elif site.kind == "strides swapped":
        pairs = zip(*(re.findall(r"\w+_stride\d+", text) for text in (site.before, site.after)))
        what = ",".join(a for a, b in pairs if a != b)
    elif "ptr" in site.before:
        strided = "strided" if "stride" in site.before else "flat"
        what = f"{re.search(r'[a-z0-9_]+_ptr', site.before).group()} {strided}"  # type: ignore[union-attr]
    return site.kind, what


def mutated_by_role(jit: Jit, wanted: tuple[str, str]) -> Jit | None:
    """``jit`` with the first edit of this role; None where it has none."""
    for site in sites(jit.fn):
        if role(site) == wanted:
            return mutated(jit, site)
    return None


@functools.lru_cache(maxsize=512)
def _known(fn: Callable) -> tuple[ast.FunctionDef, int, dict[tuple, tuple[Site, int]]]:
    tree, first = parse(fn)
    return tree, first, {s.key: (s, index) for s, index in _all(tree)}


def sites(fn: Callable) -> list[Site]:
    """Every edit that applies to a kernel, with its line in the kernel's file."""
    _, first, found = _known(fn)
    return [Site(s.kind, s.before, s.after, s.nth, s.line + first - 1) for s, _ in found.values()]


def mutated(jit: Jit, site: Site) -> Jit | None:
    """``jit`` with the edit ``site`` made; None where it has no such statement."""
    tree, _, found = _known(jit.fn)
    if site.key not in found:
        return None
    return compiled(_apply(tree, found[site.key][1]), jit)


def compiled(tree: ast.FunctionDef, jit: Jit, replaced: dict[str, Any] | None = None) -> Jit:
    """A new Jit from a changed tree, in the scope of ``jit``; Triton finds its source by
    linecache."""
    ast.fix_missing_locations(tree)
    source = ast.unparse(tree) + "\n"
    fn = jit.fn
    filename = f"<mutant {jit.name} {abs(hash(source)):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    scope = dict(fn.__globals__)
    scope.update(inspect.getclosurevars(fn).nonlocals)
    scope["tl"] = tl
    scope.update(replaced or {})
    code = compile(source, filename, "exec", flags=__future__.annotations.compiler_flag)
    exec(code, scope)
    made = scope[tree.name]
    made.__module__ = fn.__module__
    return Jit(made)


def forget(jit: Jit) -> None:
    """Drop what was kept for the source of a mutant."""
    linecache.cache.pop(jit.fn.__code__.co_filename, None)


def called(jit: Jit) -> dict[str, Jit]:
    """The other Jits that ``jit`` calls, by the names it knows them by."""
    fn = jit.fn
    scope = {**fn.__globals__, **inspect.getclosurevars(fn).nonlocals}
    names = set(fn.__code__.co_names) | set(fn.__code__.co_freevars)
    return {n: scope[n] for n in sorted(names) if isinstance(scope.get(n), Jit)}


def rebuilt(jit: Jit, old: Jit, new: Jit) -> Jit | None:
    """``jit`` with ``new`` wherever it (or what it calls) calls ``old``; None if it never does."""
    if jit is old:
        return new
    changed = {}
    for name, helper in called(jit).items():
        other = rebuilt(helper, old, new)
        if other is not None:
            changed[name] = other
    if not changed:
        return None
    tree, _ = parse(jit.fn)
    return compiled(tree, jit, changed)


__all__ = [
    "REASONS",
    "Site",
    "called",
    "compiled",
    "forget",
    "linecache",
    "mutated",
    "mutated_by_role",
    "rebuilt",
    "role",
    "sites",
]
