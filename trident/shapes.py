"""Pure tuple arithmetic on shapes and strides: no arrays, no ops. Strides are in elements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import IndexBoundsError, ShapeError, wrong

Shape = tuple[int, ...]


def numel(shape: Iterable[int]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def contiguous_strides(shape: Sequence[int]) -> Shape:
    """Row-major strides: (2, 3, 4) -> (12, 4, 1)."""
    strides = []
    step = 1
    for s in reversed(shape):
        strides.append(step)
        step *= max(s, 1)
    return tuple(reversed(strides))


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    step = 1
    for s, st in zip(reversed(shape), reversed(strides)):
        if s == 0:
            return True
        if s != 1 and st != step:
            return 0 in shape
        step *= s
    return True


def channels_last_strides(shape: Sequence[int]) -> Shape:
    """Strides with axis 1 fastest and the others in order: (2, 3, 4, 5) -> (60, 1, 15, 3)."""
    n, c, *space = shape
    outer = contiguous_strides((n, *space, c))
    return (outer[0], outer[-1], *outer[1:-1])


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether memory holds the elements in the order of ``channels_last_strides``."""
    if len(shape) < 3:
        return False
    n, c, *space = shape
    first, channel, *steps = strides
    return is_contiguous((n, *space, c), (first, *steps, channel))


def prefers_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether an array wants its results channels-last: its strides grow from axis 1 over the last
    axis to the first, and say so even where axes of size 1 would let it pass for row-major.

    The array may have gaps (a slice of a channels-last one).
    """
    if len(shape) < 3 or strides[1] == 0:
        return False
    least = 0
    for axis in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * shape[axis]
    return True


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill a piece of memory without gaps or overlaps, in any order."""
    order = sorted(range(len(shape)), key=lambda a: -strides[a])
    return is_contiguous([shape[a] for a in order], [strides[a] for a in order])


def turned_order(shape: Sequence[int], strides: Sequence[int]) -> Shape | None:
    """The axes from the slowest to the fastest of an array without gaps that is not row-major; None
    for one that is, and for one with gaps."""
    if is_contiguous(shape, strides) or not is_dense(shape, strides):
        return None
    return tuple(sorted(range(len(shape)), key=lambda a: -strides[a]))


def inverse(order: Shape) -> Shape:
    """The order that undoes ``order``: (2, 0, 1) -> (1, 2, 0)."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def memory_order(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> Shape:
    """The axes from the slowest to the fastest for arrays of one (broadcast) shape.

    Two axes are compared by the first array that has a stride for both; where none has, they stay
    in order. Source: torch's TensorIterator orders its axes by the same rule.
    """
    order = list(range(len(shape)))
    for i in range(len(order) - 2, -1, -1):  # the axes behind i are in order: put i among them
        at = i
        for k in range(i + 1, len(order)):
            slower = _slower(order[k], order[at], shape, strides)
            if slower is False:
                break
            if slower:
                order[k], order[at] = order[at], order[k]
                at = k
    return tuple(order)


def _slower(a: int, b: int, shape: Sequence[int], strides: Sequence[Sequence[int]]) -> bool | None:
    """Whether axis ``a`` is slower than axis ``b``; None where nothing says so."""
    for steps in strides:
        x, y = abs(steps[a]), abs(steps[b])
        if x and y:
            if x != y:
                return x > y
            if shape[a] > shape[b]:
                return True
    return None


def out_strides(shape: Shape, operands: Sequence[tuple[Shape, Shape]]) -> Shape:
    """The strides of an elementwise result of ``shape``: dense, in the operands' order.

    operands: (shape, strides) of every array that is read. Row-major where they do not agree on
    another order; the first of them has the first word.

    >>> from trident.shapes import out_strides
    >>> out_strides((2, 3, 4), [((2, 3, 4), (12, 1, 3)), ((3, 1), (1, 1))])
    (12, 1, 3)
    """
    same = all(s == shape for s, _ in operands)
    if same and all(is_contiguous(s, st) for s, st in operands):
        return contiguous_strides(shape)
    if same and len(shape) == 4 and all(is_channels_last(s, st) for s, st in operands):
        return channels_last_strides(shape)
    steps = [broadcast_strides("elementwise", s, st, shape) for s, st in operands]
    order = memory_order(shape, steps)
    dense = contiguous_strides([shape[a] for a in order])
    return tuple(dense[order.index(a)] for a in range(len(shape)))


def kept_strides(shape: Shape, operands: Iterable[tuple[Shape, Shape]], **_: object) -> Shape:
    """The strides of the result (N, C, ...) of an op over channels (a convolution, a batch norm):
    channels-last where an operand with as many axes prefers it, else row-major."""
    for s, strides in operands:
        if len(s) == len(shape) and prefers_channels_last(s, strides):
            return channels_last_strides(shape)
    return contiguous_strides(shape)


def broadcast(op: str, *shapes: Shape) -> Shape:
    """The shape that all of ``shapes`` broadcast to; raises ShapeError naming ``op``."""
    ndim = max((len(s) for s in shapes), default=0)
    result = [1] * ndim
    for shape in shapes:
        for i, s in enumerate(shape, ndim - len(shape)):
            if s != 1:
                if result[i] not in (1, s):
                    text = " and ".join(str(tuple(s)) for s in shapes)
                    raise wrong(
                        op,
                        f"shapes {text} do not broadcast",
                        hint=f"at axis {i - ndim} one has {result[i]} and another {s}; "
                        "sizes must be equal or 1",
                    )
                result[i] = s
    return tuple(result)


def axis(op: str, dim: int, ndim: int) -> int:
    """``dim`` counted from the front; raises IndexBoundsError outside of [-ndim, ndim)."""
    n = max(ndim, 1)
    if not -n <= dim < n:
        raise wrong(
            op, f"dim must lie in [{-n}, {n - 1}] for {ndim} axes", got=dim, error=IndexBoundsError
        )
    return dim % n


def axes(op: str, dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """The sorted axes that ``dim`` names; None means all."""
    if dim is None:
        return tuple(range(ndim))
    if isinstance(dim, int):
        return (axis(op, dim, ndim),) if ndim else ()
    if not dim:
        return tuple(range(ndim))
    found = [axis(op, d, ndim) for d in dim]
    if len(set(found)) != len(found):
        raise wrong(op, "dim must not name an axis twice", got=tuple(dim))
    return tuple(sorted(found)) if ndim else ()


def reduced(shape: Shape, over: Sequence[int], keepdim: bool) -> Shape:
    """The shape after reducing the axes ``over``."""
    if keepdim:
        return tuple(1 if i in over else s for i, s in enumerate(shape))
    return tuple(s for i, s in enumerate(shape) if i not in over)


def infer_reshape(op: str, shape: Shape, wanted: Sequence[int]) -> Shape:
    """``wanted`` with its -1 filled in; raises where the sizes do not agree."""
    n = numel(shape)
    wanted = tuple(int(w) for w in wanted)
    if wanted.count(-1) > 1 or any(w < -1 for w in wanted):
        raise wrong(op, "shape may hold one -1 and no other negative size", got=wanted)
    if -1 in wanted:
        rest = numel(w for w in wanted if w != -1)
        if rest == 0 or n % rest:
            raise wrong(op, f"shape {wanted} does not divide the {n} elements of {tuple(shape)}")
        wanted = tuple(n // rest if w == -1 else w for w in wanted)
    if numel(wanted) != n:
        raise wrong(op, f"{tuple(shape)} has {n} elements, {wanted} would have {numel(wanted)}")
    return wanted


def reshape_strides(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Strides that view (shape, strides) as ``new`` without a copy, or None where that is
    impossible.
    """
    if numel(shape) == 0:
        return contiguous_strides(new)
    old = [(s, st) for s, st in zip(shape, strides) if s != 1]
    result: list[int] = []
    i = 0
    chunk, step = 1, 1  # size still to be handed out of the current run of old axes; its stride
    for size in reversed(new):
        if size == 1:
            result.append(step)
            continue
        if chunk == 1:
            i += 1
            if i > len(old):
                return None
            chunk, step = old[-i]
        while chunk % size and i < len(old):  # merge the next old axis if it continues this one
            s, st = old[-i - 1]
            base_size, base_step = old[-i]
            if st != base_step * base_size:
                return None
            i += 1
            old[-i] = (s * base_size, base_step)
            chunk *= s
        if chunk % size:
            return None
        result.append(step)
        chunk //= size
        step *= size
    return tuple(reversed(result))


def broadcast_strides(op: str, shape: Shape, strides: Shape, new: Shape) -> Shape:
    """Strides that expand (shape, strides) to ``new``: 0 along every axis that is stretched."""
    pad = len(new) - len(shape)
    if pad < 0:
        raise ShapeError(f"{op}: cannot expand {tuple(shape)} to fewer axes {tuple(new)}")
    result = [0] * pad
    for s, st, n in zip(shape, strides, new[pad:]):
        if s == n:
            result.append(st)
        elif s == 1:
            result.append(0)
        else:
            raise ShapeError(
                f"{op}: cannot expand {tuple(shape)} to {tuple(new)}; only axes of size 1 stretch"
            )
    return tuple(result)


def stretched(shape: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """The axes of ``target`` along which ``shape`` was broadcast to it."""
    lead = len(target) - len(shape)
    return tuple(range(lead)) + tuple(
        i + lead for i, s in enumerate(shape) if s == 1 and target[i + lead] != 1
    )


def extent(shape: Shape, strides: Shape) -> int:
    """Largest element offset that (shape, strides) reaches, 0 for empty shapes."""
    if 0 in shape:
        return 0
    return sum((s - 1) * abs(st) for s, st in zip(shape, strides))


def needs_int64(*arrays: object) -> bool:
    """Whether a flat offset into any of ``arrays`` can pass 2**31 - 1."""
    return any(
        max(extent(a.shape, a.strides), numel(a.shape)) > 2**31 - 1  # type: ignore[attr-defined]
        for a in arrays
        if a is not None
    )


class Size(tuple):
    """A shape: a tuple that prints as ``trident.Size([2, 3])`` and knows ``numel()``."""

    __slots__ = ()

    def numel(self) -> int:
        return numel(self)

    def __repr__(self) -> str:
        return f"trident.Size({list(self)})"
