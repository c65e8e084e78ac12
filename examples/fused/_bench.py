"""What the files of this gallery share: a stopwatch and a command line.

``bench`` times functions side by side, ``main`` is the command line of every file here:

    python rms_norm.py            the example, then check_op on every device present
    python rms_norm.py --quick    the same with fewer random calls (what CI runs)
    python rms_norm.py --bench    the fused op beside its body in plain ops
    python rms_norm.py --source   the kernels

With ``TRITON_INTERPRET=1`` in the environment the kernels run, and are checked, in Triton's
interpreter. It is no place to measure speed, so ``--bench`` leaves it out.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import trident
from trident.custom import Kernel
from trident.lang import Jit
from trident.testing.check import present_devices

SAMPLE_SECONDS = 0.02
"""A sample repeats a short call until it takes about this long."""


def bench(
    title: str,
    variants: dict[str, Callable[[], Any]],
    *,
    bytes: float | None = None,
    flops: float | None = None,
    rounds: int = 15,
) -> dict[str, float]:
    """Time functions without arguments in turns; print and return the median seconds of a call.

    Every round takes one sample of each variant, so that a machine which slows down slows all of
    them. A line gives the median, the range, and the ratio to the first variant: above 1 is
    slower. ``bytes`` and ``flops`` are what the task needs at least: they add GB/s and GFLOP/s.
    """
    repeats = {name: _repeats(call) for name, call in variants.items()}
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            samples[name].append(_seconds(call, repeats[name]))
    medians = {name: statistics.median(times) for name, times in samples.items()}
    first = next(iter(medians.values()))
    print(f"{title} (median of {rounds} rounds)")
    for name, median in medians.items():
        line = f"  {name:<28}{_unit(median):>10}  x {median / first:<6.2f}"
        if bytes is not None:
            line += f"{bytes / median / 1e9:>8.1f} GB/s"
        if flops is not None:
            line += f"{flops / median / 1e9:>8.1f} GFLOP/s"
        print(f"{line}   {_unit(min(samples[name]))} to {_unit(max(samples[name]))}")
    return medians


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    """The time of one call, averaged over ``repeats`` in a row."""
    trident.cuda.synchronize()  # returns at once where there is no GPU
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    trident.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Callable[[], Any]) -> int:
    """How often to call for one sample; the first call compiles and is not counted."""
    call()
    return max(1, int(SAMPLE_SECONDS / max(_seconds(call, 1), 1e-7)))


def _unit(seconds: float) -> str:
    for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds / 1e-9:.0f} ns"


def main(
    ops: Any,
    bench_variants: Callable[[str], Any],
    example: Callable[[], Any] | None = None,
    argv: list[str] | None = None,
) -> None:
    """The command line of a gallery file.

    ops: a fused op or a list of them. ``bench_variants(device)`` calls ``bench``, once or more;
    ``example()`` prints something small.
    """
    ops = list(ops) if isinstance(ops, (list, tuple)) else [ops]
    parser = argparse.ArgumentParser(description=(ops[0].__doc__ or "").strip())
    parser.add_argument("--quick", action="store_true", help="few random calls, for CI")
    parser.add_argument("--examples", type=int, help="random calls per op (default 10, quick 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first random call")
    parser.add_argument("--bench", action="store_true", help="time the op beside its body")
    parser.add_argument("--source", action="store_true", help="print the kernels")
    options = parser.parse_args(argv)
    if options.source:
        print("\n\n".join(inspect.getsource(fn) for fn in triton_functions(ops)))
        return
    if options.bench:
        for device in bench_devices():
            bench_variants(device)
        return
    if example is not None:
        example()
    examples = options.examples or (2 if options.quick else 10)
    for op in ops:
        for device in present_devices():
            start = time.perf_counter()
            trident.testing.check_op(op, devices=[device], examples=examples, seed=options.seed)
            took = time.perf_counter() - start
            print(f"check_op({op.__name__}) on {place(device)}: {examples} calls, {took:.1f} s, ok")


def place(device: str) -> str:
    """What a device is in this process, for people."""
    return device if device == "cpu" else trident.cuda.get_device_name()


def bench_devices() -> list[str]:
    """Where timing means something: the CPU, and a GPU, but not the interpreter."""
    if trident.cuda.is_available() and not trident.runtime.current().interpreted:
        return ["cpu", "cuda"]
    return ["cpu"]


def triton_functions(ops: Iterable[Any]) -> list[Callable]:
    """The Triton functions that the files of ``ops`` define, in order."""
    found: dict[Callable, None] = {}
    for op in ops:
        body = op.op.body
        for value in body.__globals__.values():
            if isinstance(value, (Kernel, Jit)) and value.fn.__module__ == body.__module__:
                found[value.fn] = None
    return list(found)
