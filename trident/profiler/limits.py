"""What a device can do at most: the rates that ``percent of roofline`` is a percentage of.

The CPU is measured, once in a process and quickly: a copy (read and written) and a matrix product,
on as many threads as trident uses. A GPU's rates follow from what its driver says of it: memory
clock and bus, multiprocessors, clock and what one of them does a cycle. The interpreter has none.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field

import numpy as np

from ..compile.explain import copy_rate
from ..runtime.device import cuda_device
from ..runtime.libcuda import attribute


@dataclass(frozen=True)
class Limits:
    """``bandwidth`` in bytes a second; ``flops``: a second, by dtype; ``source``: how known."""

    bandwidth: float
    flops: dict[str, float] = field(hash=False)
    source: str

    def seconds(self, nbytes: int, flops: int | None, dtype: str | None) -> float:
        """The least time for so many bytes and flops."""
        rate = self.flops.get(dtype or "float32") or self.flops["float32"]
        return max(nbytes / self.bandwidth, (flops or 0) / rate)


@functools.cache
def cpu() -> Limits:
    """This machine's limits, measured at the first call (about 0.1 s)."""
    rates = {name: _product_rate(np.dtype(name)) for name in ("float32", "float64")}
    half = rates["float32"]  # half types are computed in float32
    rates |= {"float16": half, "bfloat16": half}
    return Limits(copy_rate(), rates, "measured here: a copy, and a product of 512 by 512 matrices")


def _product_rate(dtype: np.dtype) -> float:
    n = 512
    a = np.full((n, n), 1.5, dtype)
    out = np.empty_like(a)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        np.matmul(a, a, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


_PER_CYCLE: dict[tuple[int, int], dict[str, int]] = {
    (8, 0): {"half": 2048, "tf32": 1024, "float32": 128, "float64": 128},
    (8, 6): {"half": 1024, "tf32": 512, "float32": 256, "float64": 4},
    (8, 9): {"half": 1024, "tf32": 512, "float32": 256, "float64": 4},
    (9, 0): {"half": 4096, "tf32": 2048, "float32": 256, "float64": 256},
    (10, 0): {"half": 8192, "tf32": 4096, "float32": 256, "float64": 128},
    (12, 0): {"half": 1024, "tf32": 512, "float32": 256, "float64": 4},
}
"""Flops of a multiprocessor in a cycle, dense: half types and TF32 on its matrix units.

Source: NVIDIA's data sheets (peak rate over multiprocessors times boost clock).
"""


@functools.cache
def gpu(index: int) -> Limits | None:
    """A GPU's limits at its highest clocks; None where its driver does not tell them."""
    device = cuda_device(index)
    clock, memory, bits = (
        attribute(device.ordinal, name)
        for name in ("CLOCK_RATE", "MEMORY_CLOCK_RATE", "GLOBAL_MEMORY_BUS_WIDTH")
    )
    known = [c for c in _PER_CYCLE if c <= device.capability]
    if not known or not clock or not memory or not bits:
        return None
    cycles = clock * 1e3 * device.multiprocessors  # clocks are told in kHz
    per = _PER_CYCLE[max(known)]
    rates = {name: n * cycles for name, n in per.items()}
    rates |= {"float16": rates["half"], "bfloat16": rates["half"]}
    bandwidth = 2 * memory * 1e3 * bits / 8  # two transfers a cycle
    return Limits(bandwidth, rates, f"{device.name}, from its clocks")


def of(device: str) -> Limits | None:
    """The limits of a device by the name that events have for it."""
    if device == "cpu":
        return cpu()
    kind, _, number = device.partition(":")
    return gpu(int(number)) if kind == "cuda" else None
