"""Memory formats, with torch's names: in which order the elements of a tensor lie in memory.

A format changes strides and never the shape: images stay (N, C, H, W). ``channels_last`` puts the
channels of a pixel next to each other, which is how convolution kernels want to read them, and what
ops make of a channels-last tensor is channels-last again.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import shapes
from .errors import wrong
from .shapes import Shape


class memory_format:
    """``trident.contiguous_format``, ``channels_last`` (4 axes), ``channels_last_3d`` (5 axes) or
    ``preserve_format``.

    >>> x = trident.zeros(2, 3, 4, 5).to(memory_format=trident.channels_last)
    >>> x.shape, x.stride()
    (trident.Size([2, 3, 4, 5]), (60, 1, 15, 3))
    >>> x.is_contiguous(), x.is_contiguous(memory_format=trident.channels_last)
    (False, True)
    """

    def __init__(self, name: str, ndim: int | None = None) -> None:
        self.name = name
        self.ndim = ndim

    def strides(self, op: str, shape: Shape, like: Shape) -> Shape:
        """The strides of an array of ``shape`` in this format; ``like`` are those of the array
        that it is made from. Raises ShapeError for a number of axes that the format is not for."""
        if self.ndim is not None:
            if len(shape) != self.ndim:
                raise wrong(
                    op, f"{self} is for tensors of {self.ndim} axes", got=f"shape {tuple(shape)}",
                    hint="channels_last takes (N, C, H, W), channels_last_3d (N, C, D, H, W)",
                )  # fmt: skip
            return shapes.channels_last_strides(shape)
        if self is contiguous_format:
            return shapes.contiguous_strides(shape)
        return like if shapes.is_dense(shape, like) else shapes.out_strides(shape, [(shape, like)])

    def holds(self, op: str, shape: Sequence[int], strides: Sequence[int]) -> bool:
        """Whether an array lies in this format. Raises ValueError for ``preserve_format``."""
        if self is preserve_format:
            raise wrong(
                op, "memory_format must be contiguous_format, channels_last or channels_last_3d",
                got=self, error=ValueError,
            )  # fmt: skip
        if self.ndim is None:
            return shapes.is_contiguous(shape, strides)
        return len(shape) == self.ndim and shapes.is_channels_last(shape, strides)

    def __repr__(self) -> str:
        return f"trident.{self.name}"

    def __reduce__(self) -> str:
        return self.name


contiguous_format = memory_format("contiguous_format")
preserve_format = memory_format("preserve_format")
channels_last = memory_format("channels_last", 4)
channels_last_3d = memory_format("channels_last_3d", 5)


def check(op: str, value: object) -> memory_format:
    """``value`` if it is a memory format; else raise TypeError."""
    if not isinstance(value, memory_format):
        raise wrong(
            op, "memory_format must be a memory format, such as trident.channels_last",
            got=repr(value), error=TypeError,
        )  # fmt: skip
    return value
