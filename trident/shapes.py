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
            return False
        step *= s
    return True


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
