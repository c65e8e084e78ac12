"""What the kernels of matrix products share: the problem, the order of tiles, the epilogue."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import Jit, jit, tl
from ..runtime import DeviceArray

LIGHT = ("relu", "relu6", "leaky_relu_default", "hardtanh_default", "hardsigmoid", "hardswish")
"""Activations of a few instructions."""


@jit
def place(item, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """(batch, row of tiles, column of tiles) of the work item: a batch after the other, in each of
    them bands of GROUP_M rows of tiles, each band walked column by column.

    What runs side by side then needs few rows of a and few columns of b, which stay in L2.
    """
    batch = item // (tiles_m * tiles_n)
    tile = item % (tiles_m * tiles_n)
    first_m = tile // (GROUP_M * tiles_n) * GROUP_M
    band = tl.minimum(tiles_m - first_m, GROUP_M)
    tile_m = first_m + tile % (GROUP_M * tiles_n) % band
    tile_n = tile % (GROUP_M * tiles_n) // band
    return batch, tile_m, tile_n


@jit
def number(x, ACC: tl.constexpr):
    """A scalar argument in the type of the accumulator; a float64 comes as its bits."""
    if tl.float64 == ACC:
        value = tl.cast(x, tl.int64).to(tl.float64, bitcast=True)
    else:
        value = tl.cast(x, ACC)
    return value


@jit
def halved(x):
    """The left and the right half of the columns of x (M, N)."""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1).split()


@jit
def activated(x, ACT: tl.constexpr, HALVED: tl.constexpr):
    """``ACT(x)``, HALVED: of one half of the columns after the other.

    Every step of a formula is written out for all elements that a thread holds before the next
    step, and for 64 of them at once the steps of an erf do not fit into registers.
    """
    if HALVED:
        left, right = halved(x)
        y = tl.join(ACT(left), ACT(right)).permute(0, 2, 1).reshape(x.shape[0], x.shape[1])
    else:
        y = ACT(x)
    return y


@jit
def finish(
    acc,  # (BLOCK_M, BLOCK_N)
    rows,
    cols,
    row_mask,
    col_mask,
    bias_ptr,  # (m,) or (n,) or None
    bias_stride,
    c_ptr,  # (m, n) or None
    c_m_stride,
    c_n_stride,
    alpha,
    beta,
    OUT: tl.constexpr,
    ACT: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    ACT_HALVED: tl.constexpr,
):
    """``ACT(alpha * acc + beta * c + bias)``, rounded to OUT before ACT and at the end.

    The sum is one op wherever it is written, and rounded once; an activation is an op of its own,
    and sees the same rounded value fused or not.
    """
    if alpha is not None:
        acc *= number(alpha, acc.dtype)
    if c_ptr is not None:
        c_offsets = rows[:, None] * c_m_stride + cols[None, :] * c_n_stride
        c_mask = row_mask[:, None] & col_mask[None, :]
        c = tl.load(c_ptr + c_offsets, mask=c_mask, other=0).to(acc.dtype)
        if beta is not None:
            c *= number(beta, acc.dtype)
        acc += c
    if bias_ptr is not None:
        if BIAS_ROWS:
            bias = tl.load(bias_ptr + rows * bias_stride, mask=row_mask, other=0)
            acc += bias.to(acc.dtype)[:, None]
        else:
            bias = tl.load(bias_ptr + cols * bias_stride, mask=col_mask, other=0)
            acc += bias.to(acc.dtype)[None, :]
    if ACT is not None:
        acc = activated(acc.to(OUT).to(acc.dtype), ACT, ACT_HALVED)
    return acc.to(OUT)


@dataclass(frozen=True)
class Problem:
    """``out = act(alpha * (a @ b) + beta * c + bias)``, with two batch axes (outer, inner).

    a (outer, inner, m, k), b (outer, inner, k, n), out (outer, inner, m, n). c like out, or None;
    with c, outer is 1. bias (m,) if ``bias_rows``, else (n,), or None. alpha and beta: None stands
    for 1. With ``chunk``, outer numbers pieces of k, and out[outer] is the sum from outer * chunk
    to (outer + 1) * chunk.
    """

    out: DeviceArray
    a: DeviceArray
    b: DeviceArray
    bias: DeviceArray | None = None
    bias_rows: bool = False
    c: DeviceArray | None = None
    act: Jit | None = None
    alpha: float | None = None
    beta: float | None = None
    chunk: int | None = None

    @property
    def mnk(self) -> tuple[int, int, int]:
        return self.a.shape[2], self.b.shape[3], self.a.shape[3]

    @property
    def batches(self) -> int:
        return self.out.shape[0] * self.out.shape[1]

    @property
    def heavy(self) -> bool:
        """Whether ``act`` needs many registers for each element."""
        return self.act is not None and self.act.name not in LIGHT

    def act_halved(self, block_m: int, block_n: int, warps: int) -> bool:
        """Whether the kernel applies ``act`` to one half of a tile after the other. Not from sm_100
        on: results lie in tensor memory there, and halves of them would go through shared memory.
        """
        many = block_m * block_n >= 64 * 32 * warps
        return self.heavy and many and self.a.device.capability < (10, 0)

    @property
    def precision(self) -> str:
        """The ``input_precision`` of ``tl.dot``."""
        high = self.a.dtype is dtypes.float32 and config.matmul_precision.get() == "high"
        return "tf32" if high else "ieee"

    def transposed(self) -> Problem:
        """The same numbers as ``out.T = b.T @ a.T``."""
        swap = (0, 1, 3, 2)
        return dataclasses.replace(
            self,
            out=self.out.transpose(swap),
            a=self.b.transpose(swap),
            b=self.a.transpose(swap),
            bias_rows=not self.bias_rows,
            c=self.c.transpose(swap) if self.c is not None else None,
        )

    def swapped(self) -> Problem:
        """The same numbers with the two batch axes in the other order; without a c."""
        swap = (1, 0, 2, 3)
        return dataclasses.replace(
            self,
            out=self.out.transpose(swap),
            a=self.a.transpose(swap),
            b=self.b.transpose(swap),
        )

    def operands(self) -> tuple:
        """What every kernel here begins with: pointers, numbers, sizes."""
        return (
            *(self.a, self.b, self.bias, self.c, self.out),
            *(self.scalar(self.alpha), self.scalar(self.beta)),
            *self.mnk,
            self.out.shape[1],
            self.chunk,
        )

    def addend_strides(self) -> tuple[int, ...]:
        """The strides of bias (m,) or (n,) and of c (inner, m, n)."""
        bias = self.bias.strides if self.bias is not None else (0,)
        return bias + (self.c.strides[1:] if self.c is not None else (0, 0, 0))

    def scalar(self, x: float | None) -> float | int | None:
        """A number as a launch argument: those are float32, so a float64 travels as its bits."""
        if x is None or self.a.dtype is not dtypes.float64:
            return x
        return struct.unpack("q", struct.pack("d", x))[0]

    def constants(self) -> dict:
        """The constants that every kernel here takes."""
        return {
            "ACC": accumulator(self.a.dtype),
            "ACT": self.act.triton() if self.act is not None else None,
            "BIAS_ROWS": self.bias_rows,
            "INT64": shapes.needs_int64(self.a, self.b, self.c, self.out),
        }


def accumulator(dtype: DType) -> object:
    """float32 for halves and float32, float64 for itself; small ints in int32 (sums wrap alike)."""
    if dtype is dtypes.float64:
        return tl.float64
    if dtype.is_floating_point:
        return tl.float32
    return tl.int64 if dtype is dtypes.int64 else tl.int32
