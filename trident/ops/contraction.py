"""Products over named axes: ``einsum``, ``tensordot`` and ``kron``, made of ``matmul``.

``einsum`` and ``tensordot`` sort their axes into batch, rows, inner and columns and are one matmul.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .. import shapes
from ..errors import wrong
from .registry import composite, ops

if TYPE_CHECKING:
    from ..tensor import Tensor

Labels = tuple[Any, ...]
"""One label an axis: a letter, or a negative int for an axis of the ellipsis."""

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


@composite(method=False)
def einsum(equation: str, *operands: Any) -> Tensor:
    """Sum of products over named axes: ``einsum("bij,bjk->bik", x, y)`` is a batched matmul.

    A letter in the output is kept, any other is summed over; without ``->`` the letters that occur
    once are kept, in alphabetical order. ``...`` stands for axes that broadcast, a letter twice in
    one operand for its diagonal. Axes of size 1 broadcast. Products are taken from left to right.

    >>> trident.einsum("ij,kj->ik", trident.ones(2, 3), trident.ones(4, 3)).shape
    trident.Size([2, 4])
    """
    if not isinstance(equation, str):
        equation, operands = _equation_of_lists((equation, *operands))
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    inputs, output = _parse(equation, [len(x.shape) for x in operands])
    sizes = _sizes(equation, inputs, [x.shape for x in operands])
    terms = [_simplify(labels, x, sizes) for labels, x in zip(inputs, operands)]
    labels, value = terms[0]
    for i, (right, x) in enumerate(terms[1:], 1):
        needed = set(output).union(*(other for other, _ in terms[i + 1 :]))
        labels, value = _contract(labels, value, right, x, needed)
    labels, value = _sum_out(labels, value, set(output))
    missing = tuple(label for label in output if label not in labels)  # size 1 in every operand
    for _ in missing:
        value = ops.unsqueeze(value, -1)
    return _permute(labels + missing, value, output)


def _equation_of_lists(args: tuple) -> tuple[str, tuple]:
    """torch's second form, ``einsum(x, [0, 1], y, [1, 2], [0, 2])``, as an equation."""

    def text(labels: Sequence[Any]) -> str:
        try:
            known = sorted(LETTERS, key=lambda c: (c.isupper(), c))
            return "".join("..." if x is Ellipsis else known[x] for x in labels)
        except (IndexError, TypeError):
            raise wrong("einsum", "labels must be ints in [0, 52)", got=list(labels)) from None

    pairs = len(args) // 2
    equation = ",".join(text(labels) for labels in args[1 : 2 * pairs : 2])
    if len(args) % 2:
        equation += "->" + text(args[-1])
    return equation, args[0 : 2 * pairs : 2]


def _parse(equation: str, ndims: list[int]) -> tuple[list[Labels], Labels]:
    """The labels of every operand and of the output, the ellipsis spelled out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(ndims):
        raise wrong("einsum", f"{equation!r} has {len(texts)} operands", got=len(ndims))
    inputs = []
    for i, (text, ndim) in enumerate(zip(texts, ndims)):
        spare = ndim - len(text.replace("...", ""))
        if spare < 0 or (spare and "..." not in text):
            raise wrong("einsum", f"operand {i} has {ndim} axes, {text!r} of {equation!r} does not")
        inputs.append(_spell(equation, text, spare))
    widest = max(
        (-label for labels in inputs for label in labels if isinstance(label, int)), default=0
    )
    flat = [label for labels in inputs for label in labels]
    if arrow:
        output = _spell(equation, right, widest)
    else:
        once = sorted(label for label in flat if isinstance(label, str) and flat.count(label) == 1)
        output = (*range(-widest, 0), *once)
    for label in output:
        if output.count(label) > 1:
            raise wrong("einsum", f"the output of {equation!r} must not name {label!r} twice")
        if label not in flat:
            raise wrong("einsum", f"the output of {equation!r} names {label!r}, no operand does")
    return inputs, output


def _spell(equation: str, text: str, spare: int) -> Labels:
    """ "a...b" with 2 spare axes -> ("a", -2, -1, "b")."""
    before, dots, after = text.partition("...")
    for c in before + after:
        if c not in LETTERS:
            raise wrong(
                "einsum", f"{equation!r} may hold letters, '...', ',' and '->'", got=repr(c)
            )
    return (*before, *(range(-spare, 0) if dots else ()), *after)


def _sizes(equation: str, inputs: list[Labels], given: list) -> dict[Any, int]:
    """The size of every label; 1 gives way to any other."""
    sizes: dict[Any, int] = {}
    for labels, shape in zip(inputs, given):
        for label, size in zip(labels, shape):
            known = sizes.setdefault(label, size)
            if known == 1:
                sizes[label] = size
            elif size not in (1, known):
                name = f"axis {label} of '...'" if isinstance(label, int) else repr(label)
                raise wrong("einsum", f"{name} in {equation!r} has size {known} and size {size}")
    return sizes


def _simplify(labels: Labels, x: Tensor, sizes: dict) -> tuple[Labels, Tensor]:
    """Take diagonals of repeated labels and drop axes of size 1, which only broadcast."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            i = labels.index(label)
            j = labels.index(label, i + 1)
            if x.shape[i] != x.shape[j]:
                raise wrong(
                    "einsum", f"{label!r} names two axes of one operand, of unequal size",
                    got=tuple(x.shape),
                )  # fmt: skip
            x = ops.diagonal(x, 0, i, j)  # the diagonal becomes the last axis
            labels = tuple(c for at, c in enumerate(labels) if at not in (i, j)) + (label,)
    for axis in reversed(range(len(labels))):
        if x.shape[axis] == 1:
            x = ops.squeeze(x, axis)
            labels = labels[:axis] + labels[axis + 1 :]
    return labels, x


def _sum_out(labels: Labels, x: Tensor, needed: set) -> tuple[Labels, Tensor]:
    """Sum over the axes whose labels nobody needs."""
    axes = tuple(i for i, label in enumerate(labels) if label not in needed)
    if not axes:
        return labels, x
    return tuple(label for label in labels if label in needed), ops.sum(x, axes)


def _permute(labels: Labels, x: Tensor, wanted: Labels) -> Tensor:
    if labels == wanted:
        return x
    return ops.permute(x, tuple(labels.index(label) for label in wanted))


def _reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x if tuple(x.shape) == shape else ops.reshape(x, shape)


def _contract(
    left: Labels, x: Tensor, right: Labels, y: Tensor, needed: set
) -> tuple[Labels, Tensor]:
    """The product of two operands, summed over the labels that nobody needs any more."""
    left, x = _sum_out(left, x, needed | set(right))
    right, y = _sum_out(right, y, needed | set(left))
    batch = tuple(c for c in left if c in right and c in needed)
    inner = tuple(c for c in left if c in right and c not in needed)
    rows = tuple(c for c in left if c not in right)
    columns = tuple(c for c in right if c not in left)
    x = _permute(left, x, batch + rows + inner)
    y = _permute(right, y, batch + inner + columns)
    size = dict(zip(batch + rows + inner, x.shape)) | dict(zip(batch + inner + columns, y.shape))
    lead = tuple(size[c] for c in batch)
    m, k, n = (tuple(size[c] for c in group) for group in (rows, inner, columns))
    if inner:
        x = _reshape(x, (*lead, math.prod(m), math.prod(k)))
        y = _reshape(y, (*lead, math.prod(k), math.prod(n)))
        value = ops.matmul(x, y)
    else:
        value = ops.mul(
            _reshape(x, (*lead, *m, *(1,) * len(n))), _reshape(y, (*lead, *(1,) * len(m), *n))
        )
    return batch + rows + columns, _reshape(value, (*lead, *m, *n))


@composite(method=False)
def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """Sum of products over ``dims``: the last n axes of a with the first n of b, or two lists.

    >>> trident.tensordot(trident.ones(2, 3, 4), trident.ones(3, 4, 5)).shape
    trident.Size([2, 5])
    """
    if isinstance(dims, int):
        if not 0 <= dims <= min(a.ndim, b.ndim):
            raise wrong(
                "tensordot", f"dims must lie in [0, {min(a.ndim, b.ndim)}] for operands of "
                f"{a.ndim} and {b.ndim} axes", got=dims,
            )  # fmt: skip
        dims = (range(a.ndim - dims, a.ndim), range(dims))
    over_a, over_b = (_axes(d, x.ndim) for d, x in zip(dims, (a, b)))
    if [a.shape[i] for i in over_a] != [b.shape[i] for i in over_b]:
        raise wrong(
            "tensordot", f"axes {over_a} of {tuple(a.shape)} and {over_b} of {tuple(b.shape)} "
            "must have equal sizes",
        )  # fmt: skip
    keep_a = [i for i in range(a.ndim) if i not in over_a]
    keep_b = [i for i in range(b.ndim) if i not in over_b]
    k = math.prod(a.shape[i] for i in over_a)
    m, n = ([x.shape[i] for i in keep] for x, keep in ((a, keep_a), (b, keep_b)))
    left = _reshape(ops.permute(a, (*keep_a, *over_a)), (math.prod(m), k))
    right = _reshape(ops.permute(b, (*over_b, *keep_b)), (k, math.prod(n)))
    return _reshape(ops.matmul(left, right), (*m, *n))


def _axes(dims: int | Iterable[int], ndim: int) -> list[int]:
    listed = [dims] if isinstance(dims, int) else list(dims)
    found = [shapes.axis("tensordot", d, ndim) for d in listed]
    if len(set(found)) != len(found):
        raise wrong("tensordot", "dims must not name an axis twice", got=listed)
    return found


@composite
def kron(input: Tensor, other: Tensor) -> Tensor:
    """Kronecker product: every element of ``input`` times all of ``other``, as one block matrix.

    >>> trident.kron(trident.eye(2), trident.ones(1, 2)).tolist()
    [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    """
    ndim = max(input.ndim, other.ndim)
    a = (1,) * (ndim - input.ndim) + tuple(input.shape)
    b = (1,) * (ndim - other.ndim) + tuple(other.shape)
    blocks = ops.mul(
        _reshape(input, tuple(s for n in a for s in (n, 1))),
        _reshape(other, tuple(s for n in b for s in (1, n))),
    )
    return _reshape(blocks, tuple(i * j for i, j in zip(a, b)))
