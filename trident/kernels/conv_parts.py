"""Splitting a sum over pixels: a weight has few tiles and a batch many pixels, so the pixels are
cut into parts, which a second kernel adds in fixed order. No atomics, the same bits each run.
"""

from __future__ import annotations

from .. import dtypes
from ..lang import cdiv, jit, tl
from ..runtime import DeviceArray, launch
from .conv_geometry import accumulator, vector

PROGRAMS = 512
"""The pixels are split until about so many programs run: two or more on each multiprocessor. It is
one number for all chips, so that all of them add in one order."""
STEPS = 4
"""A part has at least so many steps."""


@jit
def sum_parts_kernel(
    parts_ptr,  # (parts, n0, n1, n2)
    out_ptr,  # (n0, n1, n2), any strides
    size,
    parts,
    n1,
    n2,
    out_stride0,
    out_stride1,
    out_stride2,
    ACC: tl.constexpr,
    FLAT: tl.constexpr,  # out is contiguous
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    total = tl.zeros((BLOCK,), dtype=ACC)
    for _ in range(0, parts):
        total += tl.load(parts_ptr + place, mask=mask, other=0.0)
        parts_ptr += size
    if FLAT:
        at = place
    else:
        at = place // (n1 * n2) * out_stride0
        at += place // n2 % n1 * out_stride1 + place % n2 * out_stride2
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask)


def parts_of(pixels: int, block: int, programs: int, interpreted: bool) -> tuple[int, int]:
    """(parts, pixels of each) where a part walks ``block`` pixels a step and each part takes
    ``programs`` programs."""
    most = 3 if interpreted else cdiv(PROGRAMS, programs)
    steps = max(cdiv(cdiv(pixels, block), most), STEPS)
    return max(cdiv(pixels, steps * block), 1), steps * block


class Parts:
    """What the programs of a weight gradient write to: ``out`` (n0, n1, n2) itself, or ``parts``
    contiguous arrays of that shape in scratch memory.

    unit, and strides counted in it: of the parts, of n0 and of n1; n2 has ``last_stride`` elements.
    """

    def __init__(self, out: DeviceArray, parts: int) -> None:
        self.out = out
        self.parts = parts
        self.array = out
        if parts > 1:
            widest = dtypes.float64 if out.dtype is dtypes.float64 else dtypes.float32
            self.array = out.device.empty((parts, *out.shape), widest)
        strides = self.array.strides[-3:]
        self.last_stride = strides[2]
        self.unit = 1
        if self.last_stride == 1:
            self.unit = vector(self.array.dtype.itemsize, strides[0], strides[1])
        self.strides = (out.size // self.unit, strides[0] // self.unit, strides[1] // self.unit)

    def add(self) -> None:
        """Add up the parts into ``out``."""
        if self.parts == 1:
            return
        out = self.out
        block = 1 << 14 if out.device.interpreted else 1024
        launch(
            sum_parts_kernel,
            (cdiv(out.size, block),),
            *(self.array, out, out.size, self.parts, *out.shape[1:], *out.strides),
            ACC=accumulator(out.dtype),
            FLAT=out.is_contiguous(),
            BLOCK=block,
        )
