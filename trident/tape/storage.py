"""Several tensors on one memory: how a recorded write reaches the histories of all of them.

A write through a view rebinds the view; ``rebase`` then says in the base's history that its window
was replaced. Other views of that base learn of it when they are used next: ``settle`` gives them a
history as windows of the base. A window is (shape, strides, offset) in the row-major order of the
base's axes.

Source: PyTorch's CopySlices and view-and-in-place rules, the same idea in our terms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import backends, shapes
from ..errors import AutogradError
from ..ops.registry import REGISTRY, ops
from ..ops.view import element_strides
from . import node
from .node import ElementwiseNode, Node, RuleNode, find_rule, rule_edges


def recorded(op: Any, args: tuple, attrs: dict[str, Any], data: Any) -> Any:
    """A tensor on ``data`` with the history ``op(*args)``, which is not computed."""
    return node.tensor_of(data, RuleNode(op, args, attrs, rule_edges(args), data))


def is_stale(t: Any) -> bool:
    """Whether a recorded write went through another tensor on this memory, unseen by ``t``."""
    return t._version is not None and t._version.taped > t._seen


def settle(name: str, t: Any) -> bool:
    """Bring the history of ``t`` up to date; says whether it had to. Raises where it cannot."""
    if not is_stale(t):
        return False
    base, version = t._base, t._version
    if base is not None and base._version is version and base._seen >= version.taped:
        place = _window(base._data, t._data)
        if place is not None and not overlaps(t._data):
            order, window = place
            x = base if order is None else ops.permute(base, dims=order)
            if x._requires_grad:
                t._node = RuleNode(REGISTRY["window"], (x,), window, rule_edges((x,)), t._data)
            t._requires_grad = x._requires_grad
            t._seen = version.n
            return True
    raise AutogradError(
        f"{name}: an operand of shape {tuple(t._data.shape)} was overwritten through another "
        f"tensor on the same memory (by {version.writer}), so its recorded history is stale. Write "
        "through this tensor itself (x[...] = value), or clone() before writing"
    )


def rebase(target: Any, shallow: Any) -> None:
    """``target``, a view, was written and rebound: let its base's history hold the new window.

    ``shallow`` copies the Tensor object, so that a node can hold what the base was before.
    """
    base, version = target._base, target._version
    if base._version is not version or version.taped_before > base._seen:
        return  # the base had missed another write: it stays stale, and using it raises
    place = _window(base._data, target._data)
    if place is None:
        return
    order, window = place
    before = shallow(base)
    before._seen = version.n
    x = before if order is None else ops.permute(before, dims=order)
    result = recorded(REGISTRY["window_put"], (x, shallow(target)), window, x._data)
    if order is not None:
        result = ops.permute(result, dims=_inverse(order))
    base._node = result._node
    base._requires_grad = True
    base._seen = version.n


def _window(base: Any, view: Any) -> tuple[Any, dict[str, Any]] | None:
    """Where ``view`` lies in ``base``: the order of axes that makes ``base`` row-major (None: as it
    is) and the window in that order. None where the base has gaps or repeats itself."""
    strides = element_strides(base)
    order = tuple(sorted(range(base.ndim), key=lambda i: -strides[i]))
    if not shapes.is_contiguous([base.shape[i] for i in order], [strides[i] for i in order]):
        return None
    window = {
        "shape": tuple(view.shape),
        "strides": element_strides(view),
        "offset": _elements_between(base, view),
    }
    return (None if shapes.is_contiguous(base.shape, strides) else order), window


def _elements_between(base: Any, view: Any) -> int:
    if hasattr(base, "offset"):
        return view.offset - base.offset
    start, at = (a.__array_interface__["data"][0] for a in (base, view))
    return (at - start) // base.itemsize


def same_window(a: Any, b: Any) -> bool:
    """Whether two arrays of one base are the same elements in the same order."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and element_strides(a) == element_strides(b)
        and _elements_between(a, b) == 0
    )


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def overlaps(data: Any) -> bool:
    """Whether two indices of ``data`` may name one element (as in an expanded tensor)."""
    if data.flags.forc if isinstance(data, np.ndarray) else data.is_contiguous():
        return False
    reach = 0
    axes = [(abs(st), n) for st, n in zip(element_strides(data), data.shape) if n > 1]
    for stride, n in sorted(axes):
        if stride <= reach:
            return 0 not in data.shape
        reach += stride * (n - 1)
    return False


def keep_before(before: Any, root: Node, since: int) -> None:
    """Give ``before``, what an in-place op computed from, memory of its own where a node recorded
    after ``since`` has saved it: its old memory is about to be overwritten."""
    old, kept = before._data, None
    stack, seen = [root], set()
    while stack:
        current = stack.pop()
        if current.seq <= since or current.seq in seen:
            continue
        seen.add(current.seq)
        stack.extend(e for e in current.edges if isinstance(e, Node))
        if current.args is None or not any(a is before for a in current.args):
            continue
        if isinstance(current, ElementwiseNode):
            rule = find_rule(current.op, current.edges, current.attrs, backends.of(old))
            if not any(current.args[i] is before for i in rule.uses):
                continue
        if kept is None:
            kept = backends.of(old).copy(old)
        if isinstance(current, ElementwiseNode):
            current.arrays = tuple(kept if a is old else a for a in current.arrays)
    if kept is not None:
        before._data = kept
        before._version = None
