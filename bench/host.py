"""What an operation costs on the host, measured without a GPU: ``python -m bench host``.

The process runs on the tests' libcuda, which answers at once and computes nothing. So everything
of ours is in the figures (dispatch, tape, allocation, launch) and nothing of the driver's or the
GPU's. Beside it stands Triton's own ``kernel[grid](...)`` on the same library.

    python -m bench host            the table
    python -m bench host --check    exit 1 where a budget times ``SLACK`` is exceeded (CI)

A figure is the processor time of this thread in the best of many batches, the mean of a thousand
calls each: the machine is shared, and what others take can only be added.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trident.lang import jit, tl

SLACK = 1.5
BATCHES, CALLS = 40, 1000


@dataclass
class Row:
    """One figure: what, microseconds, and the most it may be (None: for comparison)."""

    what: str
    microseconds: float
    budget: float | None


def best(call: Callable[[], Any], batches: int = BATCHES, calls: int = CALLS) -> float:
    """Microseconds of ``call`` in the best batch."""
    for _ in range(50):
        call()
    gc.collect()
    gc.disable()
    found = float("inf")
    try:
        for _ in range(batches):
            started = time.thread_time()
            for _ in range(calls):
                call()
            found = min(found, time.thread_time() - started)
    finally:
        gc.enable()
    return found / calls * 1e6


def measure() -> list[Row]:
    """The rows of trident. Needs the stub preloaded."""
    import trident
    from trident import runtime

    rows = []

    def add(what: str, budget: float | None, call: Callable[[], Any]) -> None:
        rows.append(Row(what, best(call), budget))

    a, b = (trident.randn(64, 64).to("cuda") for _ in range(2))
    x, y = (trident.randn(64, 64).to("cuda").requires_grad_() for _ in range(2))
    relu, matmul = trident.relu, trident.matmul
    bound, args = ten_arguments(runtime.current())
    stream = runtime.current().current_stream.get()  # type: ignore[attr-defined]
    add("bare launch, ten arguments", 1.0, lambda: bound.start(4, 1, 1, stream, args))
    add("relu(a)", 3.0, lambda: relu(a))
    add("relu(x), x requires grad", 4.0, lambda: relu(x))
    add("a + b", None, lambda: a + b)
    add("x + y, both require grad", None, lambda: x + y)
    add("a * 0.5", None, lambda: a * 0.5)
    add("a @ b", 5.0, lambda: matmul(a, b))
    add("x @ y, both require grad", None, lambda: matmul(x, y))
    add("softmax(a, -1)", None, lambda: trident.softmax(a, -1))
    add("a.sum(1)", None, lambda: a.sum(1))
    add("relu(x) and its gradient", None, _forward_backward(relu, x))
    return rows


def _forward_backward(f: Callable, x: Any) -> Callable[[], None]:
    import trident

    g = trident.ones_like(x)

    def call() -> None:
        f(x).backward(g)
        x.grad = None

    return call


def ten_arguments(device: Any) -> tuple[Any, tuple]:
    """A bound kernel of ten run-time arguments, and values for them."""
    from trident import dtypes
    from trident.runtime.aot import specialize

    arrays = [device.empty((1024,), dtypes.float32) for _ in range(4)]
    values = (*arrays, *NUMBERS)
    options = {"num_warps": 4, "num_stages": 3}
    bound = device.bind(specialize(ten_kernel, values, {"BLOCK": 1024}, options))
    return bound, (*(a.ptr for a in arrays), *NUMBERS, None)


NUMBERS = (1023, 33, 65, 129, 257, 0.5)


@jit
def ten_kernel(a_ptr, b_ptr, c_ptr, out_ptr, n, sa, sb, sc, so, scale, BLOCK: tl.constexpr):
    """out = scale * (a + b + c), strided: ten arguments, as a plain elementwise kernel has."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = tl.load(a_ptr + i * sa, mask=mask) + tl.load(b_ptr + i * sb, mask=mask)
    x += tl.load(c_ptr + i * sc, mask=mask)
    tl.store(out_ptr + i * so, x * scale, mask=mask)


class _Pointer:
    """What Triton's launch asks of a tensor."""

    dtype = np.dtype(np.float32)

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address


def triton_rows() -> list[Row]:
    """Triton's own launches of the same kernel, through the same driver."""
    from trident import dtypes, runtime
    from trident.runtime import triton_driver

    device = runtime.current()
    arrays = [device.empty((1024,), dtypes.float32) for _ in range(4)]
    pointers = [_Pointer(a.ptr) for a in arrays]
    kernel = ten_kernel.triton()
    options = {"BLOCK": 1024, "num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
    with triton_driver.installed():
        fixed = best(lambda: kernel[(4,)](*pointers, *NUMBERS, **options))
        grid = best(lambda: kernel[lambda meta: (4,)](*pointers, *NUMBERS, **options))
    return [
        Row("Triton's kernel[grid](...), the same ten arguments", fixed, None),
        Row("the same with a grid function", grid, None),
    ]


def show(rows: list[Row]) -> None:
    """The table as Markdown."""
    print("| host time of | us | budget | |")
    print("|---|---|---|---|")
    for r in rows:
        budget = "" if r.budget is None else f"{r.budget:g}"
        verdict = "" if r.budget is None else "met" if r.microseconds <= r.budget else "missed"
        print(f"| {r.what} | {r.microseconds:.2f} | {budget} | {verdict} |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench host", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail beyond the budgets times 1.5")
    options = parser.parse_args(argv)
    from tests.stub import missing, preload

    reason = missing()
    if reason:
        print(f"bench host: {reason}")
        return 1
    preload()
    for _ in range(3):  # a busy machine is not a regression
        rows = measure() + triton_rows()
        over = [r for r in rows if r.budget is not None and r.microseconds > SLACK * r.budget]
        if not over or not options.check:
            break
    show(rows)
    for r in over:
        print(f"{r.what}: {r.microseconds:.2f} us, more than {SLACK} times its budget {r.budget:g}")
    return 1 if over and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
