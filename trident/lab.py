"""``trident.interpret()``: the kernel lab. Kernels run in Python, on any machine, and are watched.

>>> from trident.lang import tl
>>> @trident.kernel
... def double(x_ptr, out_ptr, n, BLOCK: "tl.constexpr"):
...     i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
...     x = tl.load(x_ptr + i, mask=i < n)
...     tl.store(out_ptr + i, x * 2, mask=i < n)
>>> x, out = trident.arange(6.0), trident.zeros(6)
>>> with trident.interpret() as lab:
...     double[(2,)](x, out, 6, BLOCK=4)
>>> out
tensor([ 0.,  2.,  4.,  6.,  8., 10.])
>>> lab.total.bytes_loaded, lab.total.flops
(24, 8)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import config
from .errors import DeviceError, KernelError, wrong
from .lang import has_triton
from .runtime.interpreter import Run, Stop


@dataclass(frozen=True)
class Launch:
    """What one launch did, or several together.

    bytes_loaded, bytes_stored: of the lanes whose mask is true, each time they are touched.
    distinct_loaded, distinct_stored: each element of the arguments once: what a perfect cache would
    still have to move. loads, stores: calls of ``tl.load`` and ``tl.store`` over all programs; an
    atomic operation is one of each.

    flops: operations on floats. One a lane: add, subtract, multiply, divide, remainder, negate,
    minimum, maximum, floor, ceil, and each transcendental (exp, log, sin, sqrt, rsqrt, erf, ...).
    Two a lane: fma, clamp. n - 1 for a reduction or scan of n values by sum, product, maximum or
    minimum; a combine function of one's own counts what it computes. ``tl.dot`` of (m, k) by (k, n)
    is 2 m n k. Nothing: comparisons, select, abs, conversions, integers, pointers. Blocks count
    whole, as a GPU computes them: also lanes that a later mask drops.
    """

    kernel: str
    grid: tuple[int, ...]
    programs: int
    loads: int
    stores: int
    bytes_loaded: int
    bytes_stored: int
    distinct_loaded: int
    distinct_stored: int
    flops: int
    seconds: float

    @property
    def intensity(self) -> float:
        """flops per byte that must move: (distinct_loaded + distinct_stored)."""
        moved = self.distinct_loaded + self.distinct_stored
        return self.flops / moved if moved else 0.0


_SUMS = (
    "programs", "loads", "stores", "bytes_loaded", "bytes_stored", "distinct_loaded",
    "distinct_stored", "flops", "seconds",
)  # fmt: skip


@dataclass
class Lab:
    """The open block: ``launches`` in order, their ``total``, and ``print(lab)`` for a table."""

    launches: list[Launch] = field(default_factory=list)
    stop: Stop | None = None
    outer: Lab | None = field(default=None, repr=False)

    @property
    def total(self) -> Launch:
        """All launches together; its kernel is "total" and its grid empty."""
        sums: dict[str, Any] = {n: sum(getattr(x, n) for x in self.launches) for n in _SUMS}
        return Launch("total", (), **sums)

    def record(self, run: Run) -> None:
        """Keep what a finished launch did (called by the host device)."""
        c = run.counts
        if c is None:
            return
        done = Launch(
            run.kernel, run.given_grid, run.grid[0] * run.grid[1] * run.grid[2], c.loads, c.stores,
            c.loaded, c.stored, c.distinct("load"), c.distinct("store"), c.flops, run.seconds,
        )  # fmt: skip
        lab: Lab | None = self
        while lab is not None:
            lab.launches.append(done)
            lab = lab.outer

    def __str__(self) -> str:
        head = ("kernel", "grid", "programs", "loads", "stores", "loaded", "stored",
                "distinct", "flops", "flops/byte", "time")  # fmt: skip
        rows = [head, *(_row(x) for x in self.launches)]
        if len(self.launches) != 1:
            rows.append(_row(self.total))
        widths = [max(len(r[k]) for r in rows) for k in range(len(head))]
        return "\n".join(
            "  ".join(
                t.ljust(w) if k < 2 else t.rjust(w) for k, (t, w) in enumerate(zip(r, widths))
            )
            for r in rows
        )


def _row(x: Launch) -> tuple[str, ...]:
    moved = x.distinct_loaded + x.distinct_stored
    return (
        x.kernel, " x ".join(map(str, x.grid)), f"{x.programs:,}", f"{x.loads:,}", f"{x.stores:,}",
        f"{_short(x.bytes_loaded)}B", f"{_short(x.bytes_stored)}B", f"{_short(moved)}B",
        _short(x.flops), f"{x.intensity:.3g}", f"{x.seconds * 1e3:.3g} ms",
    )  # fmt: skip


def _short(n: float) -> str:
    """1234567 as '1.23 M', with a space where a unit follows."""
    for unit in ("", "k", "M", "G"):
        if n < 1000 or unit == "G":
            break
        n /= 1000
    return f"{n:.3g} {unit}"


@contextmanager
def interpret(
    stop_at: int | str | None = None,
    program: tuple[int, ...] | int | None = (0, 0, 0),
    every: bool = False,
) -> Iterator[Lab]:
    """Run the kernels of this block in Python, through Triton's interpreter, and watch them.

    A kernel that is launched on CPU tensors, and a ``fused`` op of them, runs on their memory.
    Where there is no GPU, ``device="cuda"`` is there inside of the block too. ``breakpoint()`` in a
    kernel opens the debugger on its line; tensors print as numpy arrays and pointers as argument
    and index. What the block did is in ``lab.launches``, ``lab.total`` and ``print(lab)``.

    stop_at: opens the debugger before a line of a kernel without editing it: a line number, text
    that the line contains, or "file.py:LINE" (a bare number counts in files outside of trident).
    program: in which program of the grid; None: in the first that gets there. every: each time the
    line is reached, not once a launch.

    Raises KernelError, with program, file and line, for a lane that loads or stores outside of the
    arrays of its launch (before the access), and for what runs here but not on a GPU or otherwise
    there: a ``tl.dot`` of float32 without ``input_precision``, int32 arithmetic that overflows, a
    combine function passed as a parameter, a block used as one truth value, block sizes that are no
    power of two, a grid beyond the limits, NaN in ``tl.argmax``. Also where ``stop_at`` was in no
    kernel that ran. DeviceError where Triton is not installed.

    >>> with trident.interpret() as lab:
    ...     y = trident.ones(2, 3, device="cuda").exp()
    >>> lab.launches[-1].stores
    1
    """
    if stop_at is not None and (isinstance(stop_at, bool) or not isinstance(stop_at, (int, str))):
        raise wrong("interpret", "stop_at must be a line number or text", got=repr(stop_at),
                    error=TypeError)  # fmt: skip
    if isinstance(program, int):
        program = (program,)
    if program is not None and not (1 <= len(program) <= 3):
        raise wrong("interpret", "program must be up to three ints", got=repr(program),
                    error=TypeError)  # fmt: skip
    if not has_triton():
        raise DeviceError(
            "interpret: this needs Triton, which is not installed; `pip install 'triton>=3.6'` "
            "(Linux). Outside of the block the CPU path runs without it"
        )
    stop = None if stop_at is None else Stop(stop_at, program, every)
    lab = Lab(stop=stop, outer=config.interpreting.get())
    token = config.interpreting.set(lab)
    try:
        yield lab
    finally:
        config.interpreting.reset(token)
    if stop is not None and not stop.found:
        ran = ", ".join(sorted(stop.launched)) or "none"
        raise KernelError(
            f"interpret: stop_at={stop_at!r} is in no kernel that ran in the block; those are {ran}"
        )
