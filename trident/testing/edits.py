"""The edits of ``mutants.py``: which statements of a kernel can break, and how.

``edits(tree)`` yields (kind, node, change) for a kernel's syntax tree; ``change(node)`` breaks the
node in place. ``Flow`` knows which names are masks and which values reach other lanes, so that no
edit is made that cannot matter.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

STRIDE = re.compile(r"(_stride\d?|_step)$|^[a-z]?s\d$|^[a-z][rc]\d$")
WIDE = re.compile(r"^(ACC|COMPUTE|tl\.float32|tl\.float64|(?!out)[a-z_]+\.dtype(\.element_ty)?)$")
CROSS_LANE = {
    "sum", "max", "min", "argmax", "argmin", "reduce", "dot", "cumsum", "cumprod", "sort", "gather",
    "associative_scan", "xor_sum", "histogram", "permute", "trans", "reshape", "split",
}  # fmt: skip
FLIPPED = {"sum": "max", "max": "min", "min": "max", "cumsum": "cumprod"}

REASONS = {
    "load mask dropped": "mask= taken off a load: lanes beyond the end are read",
    "store mask dropped": "mask= taken off a store: lanes beyond the end are written",
    "mask term dropped": "one side of a & b in a mask taken off",
    "bound one too far": "< became <= in a mask",
    "bound one short": "< n became < n - 1 in a mask",
    "stride dropped": "a stride taken as 1: the kernel believes the array contiguous",
    "strides swapped": "two strides of one array exchanged",
    "last block dropped": "a loop over blocks ends one block early",
    "other changed": "the value of masked lanes, where it reaches other lanes",
    "accumulator not cleared": "an accumulator begins at 3",
    "accumulation dropped": "+= became =, or the accumulator of a dot was left out",
    "pointer not advanced": "a pointer stands still in a loop",
    "not widened": "a half type is computed in itself",
    "reduction changed": "sum became max, max became min, min became max",
    "store dropped": "a store taken out",
    "program axes swapped": "program_id(0) and program_id(1) exchanged",
    "grid one short": "the last program of a grid axis is not started",
    "launch skipped": "the kernel is not started",
}
"""What each kind of mutant does."""


Edit = tuple[str, ast.AST, Callable[[ast.AST], None]]
"""Kind, the node that is changed, and what changes it in place."""


def is_tl(node: ast.AST, *names: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "tl"
        and node.func.attr in names
    )


def _mask_of(call: ast.Call) -> ast.expr | None:
    position = {"load": 1, "store": 2}[call.func.attr]  # type: ignore[attr-defined]
    if len(call.args) > position:
        return call.args[position]
    return next((k.value for k in call.keywords if k.arg == "mask"), None)


def _drop_mask(call: Any) -> None:
    position = {"load": 1, "store": 2}[call.func.attr]
    call.args = call.args[:position]
    call.keywords = [k for k in call.keywords if k.arg not in ("mask", "other")]


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _targets(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Assign):
        return set().union(*(_names(t) for t in node.targets))
    if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
        return _names(node.target)
    return set()


class Flow:
    """Which names are masks, and which loads reach other lanes than their own."""

    def __init__(self, tree: ast.FunctionDef) -> None:
        self.tree = tree
        self.assigned = [n for n in ast.walk(tree) if isinstance(n, (ast.Assign, ast.AugAssign))]
        calls = [n for n in ast.walk(tree) if is_tl(n, "load", "store")]
        masks = [m for m in (_mask_of(c) for c in calls) if m is not None]  # type: ignore[arg-type]
        self.mask_roots: list[ast.AST] = list(masks)
        self.mask_names: set[str] = {"mask"}
        for m in masks:
            self.mask_names |= self._lanes(m)
        grew = True
        while grew:
            before = len(self.mask_names)
            for a in self.assigned:
                if _targets(a) & self.mask_names and self._is_mask(a.value):
                    self.mask_names |= self._lanes(a.value)
            grew = len(self.mask_names) > before
        for a in self.assigned:
            if _targets(a) & self.mask_names and self._is_mask(a.value):
                self.mask_roots.append(a.value)
        for r in ast.walk(tree):
            if isinstance(r, ast.Return) and isinstance(r.value, ast.Tuple):  # (index, mask)
                self.mask_roots += [
                    c for c in ast.walk(r.value) if isinstance(c, (ast.Compare, ast.BinOp))
                ]

    @staticmethod
    def _is_mask(value: ast.AST) -> bool:
        return any(isinstance(n, (ast.Compare, ast.BitAnd)) for n in ast.walk(value)) and not any(
            is_tl(n, "load", "where", "sum", "max", "min") for n in ast.walk(value)
        )

    @staticmethod
    def _lanes(mask: ast.AST) -> set[str]:
        """Names that a mask is made of, those inside comparisons left out."""
        found: set[str] = set()

        def visit(node: ast.AST) -> None:
            if isinstance(node, ast.Compare):
                return
            if isinstance(node, ast.Name):
                found.add(node.id)
            for child in ast.iter_child_nodes(node):
                visit(child)

        visit(mask)
        return found - {"tl"}

    def in_mask(self, kind: type) -> list[Any]:
        found: dict[int, Any] = {}
        for root in self.mask_roots:
            for n in ast.walk(root):
                if isinstance(n, kind):
                    found[id(n)] = n
        return list(found.values())

    def _terms(self, condition: ast.AST, deep: bool = True) -> set[str]:
        """The terms of ``a & b & c``; those of a name are those of the value it was given."""
        if isinstance(condition, ast.BinOp) and isinstance(condition.op, ast.BitAnd):
            return self._terms(condition.left, deep) | self._terms(condition.right, deep)
        found = {ast.unparse(condition)}
        if isinstance(condition, ast.Name) and deep:
            for a in self.assigned:
                if condition.id in _targets(a):
                    found |= self._terms(a.value, deep=False)
        return found

    def crosses(self, load: ast.Call) -> bool:
        """Whether what ``load`` gives to masked lanes can reach another lane.

        It can where the value goes through a sum, a maximum, a dot or a call of another function,
        and not through ``tl.where`` with the mask of the load before.
        """
        mask = _mask_of(load)
        text = ast.unparse(mask) if mask is not None else ""
        tainted: set[str] = set()

        def dirty(node: ast.AST) -> bool:
            if node is load or (isinstance(node, ast.Name) and node.id in tainted):
                return True
            if is_tl(node, "where"):
                call: Any = node
                if text and text in self._terms(call.args[0]):
                    return False
            if isinstance(node, ast.Attribute) and node.attr in ("dtype", "shape"):
                return False
            return any(dirty(c) for c in ast.iter_child_nodes(node))

        def mixes(node: ast.AST) -> bool:
            for n in ast.walk(node):
                if isinstance(n, ast.Call) and any(dirty(c) for c in n.args):
                    if is_tl(n, *CROSS_LANE):
                        return True
                    if isinstance(n.func, ast.Name) and n.func.id in HELPERS_THAT_REDUCE:
                        return True
            return False

        def walk(body: list) -> bool:
            """In the order of the text, so that a name that gets a new value is clean again."""
            for statement in body:
                if isinstance(statement, (ast.For, ast.While, ast.If)):
                    if isinstance(statement, ast.While) and dirty(statement.test):
                        return True
                    rounds = 1 if isinstance(statement, ast.If) else 2
                    if any(walk(statement.body) for _ in range(rounds)) or walk(statement.orelse):
                        return True
                    continue
                if mixes(statement):
                    return True
                if isinstance(statement, (ast.Assign, ast.AugAssign)):
                    names = _targets(statement)
                    if dirty(statement.value):
                        tainted.update(names)
                    elif isinstance(statement, ast.Assign):
                        tainted.difference_update(names)
            return False

        return walk(self.tree.body)


HELPERS_THAT_REDUCE = {"row_max", "fold", "bitonic", "combine", "gather_dot", "run_sum"}
"""Helper functions of the project's kernels that mix lanes; ``sites`` adds what it can see."""


def edits(tree: ast.FunctionDef) -> Iterator[Edit]:
    flow = Flow(tree)
    loops = [n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While))]
    in_loop = {id(n) for loop in loops for n in ast.walk(loop)}
    for n in ast.walk(tree):
        if is_tl(n, "load") and _mask_of(n) is not None:  # type: ignore[arg-type]
            yield "load mask dropped", n, _drop_mask
            yield from _others(flow, n)
        if is_tl(n, "store") and _mask_of(n) is not None:  # type: ignore[arg-type]
            yield "store mask dropped", n, _drop_mask
        if isinstance(n, ast.Expr) and is_tl(n.value, "store"):
            yield "store dropped", n, _set(value=ast.Constant(None))
        if isinstance(n, ast.For):
            yield from _loop_ends(n)
        if is_tl(n, *FLIPPED):
            yield "reduction changed", n, _flip
        if is_tl(n, "dot") and len(n.args) == 3 and id(n) in in_loop:  # type: ignore[attr-defined]
            yield "accumulation dropped", n, _no_accumulator
        if isinstance(n, ast.AugAssign) and id(n) in in_loop and isinstance(n.op, ast.Add):
            name = ast.unparse(n.target)
            if "ptr" in name:
                yield "pointer not advanced", n, _set(value=ast.Constant(0))
            elif name in _starts(tree):
                yield "accumulation dropped", n, _forget
        if isinstance(n, ast.Assign) and id(n) not in in_loop:
            yield from _starts_wrong(tree, n, loops)
        yield from _widening(tree, n)
    for c in flow.in_mask(ast.Compare):
        if len(c.ops) == 1 and isinstance(c.ops[0], ast.Lt):
            yield "bound one too far", c, _set(ops=[ast.LtE()])
            yield "bound one short", c, _shorter
    for b in flow.in_mask(ast.BinOp):
        if isinstance(b.op, ast.BitAnd):
            for side in ("left", "right"):
                yield "mask term dropped", b, _keep(side)
    yield from _strides(tree)
    ids = [n for n in ast.walk(tree) if is_tl(n, "program_id")]
    axes = {ast.unparse(n.args[0]) for n in ids}  # type: ignore[attr-defined]
    if {"0", "1"} <= axes:
        yield "program axes swapped", tree, _swap_programs


def _set(**fields: Any) -> Callable[[ast.AST], None]:
    def edit(node: ast.AST) -> None:
        for key, value in fields.items():
            setattr(node, key, copy.deepcopy(value))

    return edit


def _flip(node: Any) -> None:
    node.func.attr = FLIPPED[node.func.attr]


def _no_accumulator(node: Any) -> None:
    node.args.pop()


def _keep(side: str) -> Callable[[ast.AST], None]:
    def edit(node: Any) -> None:
        """``a & b`` becomes a (b) that keeps the shape of both: the other side turns true."""
        other = "right" if side == "left" else "left"
        dropped = getattr(node, other)
        true = ast.Compare(dropped, [ast.GtE()], [ast.Constant(0)])
        setattr(node, other, ast.BinOp(dropped, ast.BitOr(), true))

    return edit


def _shorter(node: Any) -> None:
    node.comparators = [ast.BinOp(node.comparators[0], ast.Sub(), ast.Constant(1))]


def _forget(node: Any) -> None:
    """``acc += x`` keeps the shape of acc and only its last term."""
    node.value = ast.BinOp(node.value, ast.Sub(), copy.deepcopy(_load(node.target)))


def _load(target: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(target), mode="eval").body


def _others(flow: Flow, load: Any) -> Iterator[Edit]:
    at = 2
    keyword = next((k for k in load.keywords if k.arg == "other"), None)
    if keyword is None and len(load.args) <= at:
        return
    if not flow.crosses(load):
        return
    value = keyword.value if keyword is not None else load.args[at]
    new = "0.0" if "inf" in ast.unparse(value) else "3"

    def edit(node: Any) -> None:
        changed = ast.parse(new, mode="eval").body
        for k in node.keywords:
            if k.arg == "other":
                k.value = changed
                return
        node.args[at] = changed

    yield "other changed", load, edit


def _loop_ends(loop: ast.For) -> Iterator[Edit]:
    call = loop.iter
    ranges = isinstance(call, ast.Call) and (
        (isinstance(call.func, ast.Name) and call.func.id == "range")
        or is_tl(call, "range", "static_range")
    )
    if not ranges:
        return

    def edit(node: Any) -> None:
        args = node.args
        step = copy.deepcopy(args[2]) if len(args) == 3 else ast.Constant(1)
        end = 0 if len(args) == 1 else 1
        args[end] = ast.BinOp(args[end], ast.Sub(), step)

    yield "last block dropped", call, edit


def _starts(tree: ast.FunctionDef) -> set[str]:
    """Names that begin as zeros or a constant block outside of every loop."""
    return {
        a.targets[0].id
        for a in ast.walk(tree)
        if isinstance(a, ast.Assign)
        and isinstance(a.targets[0], ast.Name)
        and is_tl(a.value, "zeros", "full", "zeros_like")
    }


def _starts_wrong(tree: ast.FunctionDef, a: ast.Assign, loops: list) -> Iterator[Edit]:
    if not isinstance(a.targets[0], ast.Name) or not is_tl(a.value, "zeros", "full"):
        return
    name = a.targets[0].id
    grown = [n for loop in loops for n in ast.walk(loop) if name in _targets(n)]
    if not grown or any(_rescales(n, name) for n in grown):
        return

    def edit(node: Any) -> None:
        if node.func.attr == "full":
            infinite = "inf" in ast.unparse(node.args[1])
            node.args[1] = ast.Constant(0.0 if infinite else 3)
        else:
            node.func.attr = "full"
            node.args.insert(1, ast.Constant(3))

    yield "accumulator not cleared", a.value, edit


def _rescales(statement: ast.AST, name: str) -> bool:
    """``sums = sums * scale + ...``: the first scale is exp(-inf), which clears any start."""
    value = getattr(statement, "value", None)
    return (
        isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Add)
        and isinstance(value.left, ast.BinOp)
        and isinstance(value.left.op, ast.Mult)
        and isinstance(value.left.left, ast.Name)
        and value.left.left.id == name
        and "exp(" in ast.unparse(value.left.right)
    )


def _widening(tree: ast.FunctionDef, n: ast.AST) -> Iterator[Edit]:
    """``tl.load(...).to(ACC)``, or ``x.to(ACC)`` of a name that a load gave its value."""
    if not (
        isinstance(n, ast.Call)
        and isinstance(n.func, ast.Attribute)
        and n.func.attr == "to"
        and len(n.args) == 1
        and WIDE.match(ast.unparse(n.args[0]))
    ):
        return
    source = n.func.value
    loaded = {
        t
        for a in ast.walk(tree)
        if isinstance(a, ast.Assign) and is_tl(a.value, "load")
        for t in _targets(a)
    }
    if is_tl(source, "load") or (isinstance(source, ast.Name) and source.id in loaded):
        stored = any(is_tl(s, "store") and n in ast.walk(s) for s in ast.walk(tree))
        if stored or not _computed(tree, n):
            return

        def edit(node: Any) -> None:
            node.args[0] = ast.parse(f"({ast.unparse(node.func.value)}).dtype", mode="eval").body

        if isinstance(source, ast.Name):
            yield "not widened", n, edit
        else:
            yield "not widened", n, _unwrap


ARITHMETIC = CROSS_LANE - {"max", "min", "argmax", "argmin", "sort", "gather"} | {
    "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "fma", "sigmoid",
}  # fmt: skip


def _computed(tree: ast.FunctionDef, value: ast.AST) -> bool:
    """Whether ``value``, or what is made of it, goes into arithmetic that would round in a half
    type. Comparisons, selections and conversions do not."""
    names: set[str] = set()

    def dirty(node: ast.AST) -> bool:
        if node is value or (isinstance(node, ast.Name) and node.id in names):
            return True
        if isinstance(node, ast.Compare):
            return False
        if isinstance(node, ast.Attribute) and node.attr in ("dtype", "shape"):
            return False
        return any(dirty(c) for c in ast.iter_child_nodes(node))

    grew = True
    while grew:
        before = len(names)
        for a in ast.walk(tree):
            if isinstance(a, (ast.Assign, ast.AugAssign)) and dirty(a.value):
                names |= _targets(a)
        grew = len(names) > before
    for n in ast.walk(tree):
        arithmetic = isinstance(n, ast.BinOp) and isinstance(
            n.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)
        )
        if arithmetic and (dirty(n.left) or dirty(n.right)):  # type: ignore[attr-defined]
            return True
        if isinstance(n, ast.AugAssign) and not isinstance(n.op, ast.BitAnd) and dirty(n.value):
            return True
        if is_tl(n, *ARITHMETIC) and any(dirty(c) for c in n.args):  # type: ignore[attr-defined]
            return True
        helper = isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        if helper and n.func.id != "row_max" and any(dirty(c) for c in n.args):  # type: ignore[attr-defined]
            return True
    return False


def _unwrap(node: Any) -> None:
    """``tl.load(...).to(ACC)`` becomes ``tl.load(...)`` in place."""
    inner = node.func.value
    node.func, node.args, node.keywords = inner.func, inner.args, inner.keywords


def _strides(tree: ast.FunctionDef) -> Iterator[Edit]:
    names = [a.arg for a in tree.args.args]
    for i, name in enumerate(names):
        if not STRIDE.search(name):
            continue

        def drop(node: Any, name: str = name) -> None:
            node.body.insert(after_doc(node), ast.parse(f"{name} = 1").body[0])

        yield "stride dropped", tree, drop
        following = names[i + 1] if i + 1 < len(names) else ""
        same = re.sub(r"_[a-z0-9]+_(stride|step)$|\d$", "", name)
        if STRIDE.search(following) and same == re.sub(
            r"_[a-z0-9]+_(stride|step)$|\d$", "", following
        ):

            def swap(node: Any, i: int = i) -> None:
                args = node.args.args
                args[i], args[i + 1] = args[i + 1], args[i]

            yield "strides swapped", tree, swap


def after_doc(tree: ast.FunctionDef) -> int:
    return 1 if ast.get_docstring(tree) is not None else 0


def _swap_programs(tree: Any) -> None:
    for n in ast.walk(tree):
        if is_tl(n, "program_id", "num_programs"):
            call: Any = n
            text = ast.unparse(call.args[0])
            call.args[0] = ast.Constant({"0": 1, "1": 0}.get(text, 2))
