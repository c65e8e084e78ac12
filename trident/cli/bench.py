"""``trident bench``: what this device can do, and how much of it operations reach.

First the limits: bytes a second that a copy moves, operations a second of a large product, the
host's time for one operation on a tiny tensor. Then a few operations, each with the time it
took and its part of the limit that it should be bound by. Needs no other library; ``python -m
bench`` of the repository compares with torch.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import config


class Work(NamedTuple):
    """One operation: a call without arguments, the bytes that it must move and the floating-point
    operations that it must do."""

    what: str
    call: Callable[[], Any]
    nbytes: float
    flops: float


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: every one there is")
    parser.add_argument("--quick", action="store_true", help="small sizes, few calls")
    parser.add_argument("--json", action="store_true")


def run(options: argparse.Namespace) -> int:
    from .. import cuda

    gpu = cuda.is_available() and not config.INTERPRET
    if options.device == "cuda" and not gpu:
        print("trident bench: no GPU can be used here; `trident doctor --device cuda` says why")
        return 2
    devices = [options.device] if options.device else ["cpu", "cuda"] if gpu else ["cpu"]
    report = {d: measure(d, options.quick) for d in devices}
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    for i, (device, rows) in enumerate(report.items()):
        print(("\n" if i else "") + f"{device}: {_name(device)}")
        for r in rows:
            share = f"{r['share']:4.0%} of {r['of']}" if "share" in r else ""
            print(f"{r['what']:34} {r['value']:10.4g} {r['unit']:8} {share}".rstrip())
    return 0


def _name(device: str) -> str:
    from .. import cuda
    from ..runtime.host_threads import get_num_threads

    if device == "cuda":
        return cuda.get_device_name()
    return f"{platform.machine()}, {get_num_threads()} threads, numpy"


def measure(device: str, quick: bool = False) -> list[dict[str, Any]]:
    """The rows for one device: what, value, unit, and for operations share and of."""
    import trident

    from .clock import clock_of

    clock = clock_of(device)
    if quick:
        clock.fewest, clock.budget = 3, 0.0
    big = device == "cuda" and not quick
    n = (1 << 26) if big else (1 << 18) if quick else (1 << 22)
    size = 8192 if big else 128 if quick else 1024
    half = trident.bfloat16 if device == "cuda" else trident.float32
    x = trident.randn(n, device=device)
    copied = trident.empty(n, device=device)
    bandwidth = 8.0 * n / clock(lambda: copied.copy_(x))
    a, b = (trident.randn(size, size, device=device).to(half) for _ in range(2))
    rate = 2.0 * size**3 / clock(lambda: a @ b)
    one = trident.randn(1, device=device)
    leaf = trident.randn(1, device=device, requires_grad=True)
    calls = 100 if quick else 1000
    rows = [
        _row("copy", bandwidth * 1e-9, "GB/s"),
        _row(f"matmul {half.name} {size} x {size}", rate * 1e-12, "TFLOP/s"),
        _row("host, tiny a + b", clock.host(lambda: one + one, calls) * 1e6, "us"),
        _row("host, tiny a + b, recorded", clock.host(lambda: leaf + leaf, calls) * 1e6, "us"),
    ]
    for work in _works(device, half, n, size):
        seconds = clock(work.call)
        by_bytes, by_flops = work.nbytes / bandwidth, work.flops / rate
        limit = "the copy rate" if by_bytes > by_flops else "the matmul rate"
        row = _row(work.what, seconds * 1e6, "us")
        rows.append({**row, "share": max(by_bytes, by_flops) / seconds, "of": limit})
    return rows


def _row(what: str, value: float, unit: str) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit}


def _works(device: str, half: Any, n: int, size: int) -> list[Work]:
    """The operations that are timed, on ``n`` float32 values and products of ``size``."""
    import trident
    import trident.nn.functional as F

    def new(*shape: int) -> Any:
        return trident.randn(*shape, device=device)

    cols = 1024
    x, y = new(n // cols, cols), new(n // cols, cols)
    w, bias = new(cols), new(cols)
    a, weight = new(size, size).to(half), new(size, size).to(half)
    item = half.itemsize
    leaf = new(n // cols, cols).requires_grad_()
    target = trident.zeros(n // cols, dtype=trident.int64, device=device)
    fused = trident.fuse(lambda x, y: F.gelu(x * y + x, approximate="tanh"))
    heads, length, width = (16, 4096, 128) if size > 4096 else (2, 128, 64)
    q, k, v = (new(1, heads, length, width).to(half) for _ in range(3))

    def loss_and_gradient() -> None:
        F.cross_entropy(leaf, target).backward()
        leaf.grad = None

    return [
        Work("relu", lambda: F.relu(x), 8.0 * n, 0),
        Work("a + b", lambda: x + y, 12.0 * n, 0),
        Work("fused gelu(a * b + a)", lambda: fused(x, y), 12.0 * n, 0),
        Work(f"softmax of rows of {cols}", lambda: F.softmax(x, -1), 8.0 * n, 0),
        Work(
            f"layer_norm of rows of {cols}", lambda: F.layer_norm(x, (cols,), w, bias), 8.0 * n, 0
        ),
        Work("sum of rows", lambda: x.sum(1), 4.0 * n, 0),
        Work("transposed copy", lambda: x.T.contiguous(), 8.0 * n, 0),
        Work("cross_entropy and its gradient", loss_and_gradient, 12.0 * n, 0),
        Work("linear", lambda: F.linear(a, weight), 3.0 * item * size**2, 2.0 * size**3),
        Work(
            f"attention, {length} x {width}, {heads} heads",
            lambda: F.scaled_dot_product_attention(q, k, v),
            4.0 * item * heads * length * width, 4.0 * heads * length**2 * width,
        ),
    ]  # fmt: skip
