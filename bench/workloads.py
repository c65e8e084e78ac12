"""What is timed: the same code for every library, since the names are the same.

Run as ``python -m bench.workloads LIBRARY WORKLOAD SECONDS``: prints one JSON line with the median
time a step in microseconds, the loss after a fixed number of steps (compared between libraries
first), and the peak resident memory of the process.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def two_layer_net(torch: Any, adam: bool) -> Callable[[], float]:
    """64 x 1000 x 100 x 10, float32: forward, backward, update (the issue's first example)."""
    rng = np.random.default_rng(0)
    nn = importlib.import_module(f"{torch.__name__}.nn")
    optim = importlib.import_module(f"{torch.__name__}.optim")
    x = torch.from_numpy(rng.standard_normal((64, 1000)).astype(np.float32))
    y = torch.from_numpy(rng.standard_normal((64, 10)).astype(np.float32))
    model = nn.Sequential(nn.Linear(1000, 100), nn.ReLU(), nn.Linear(100, 10))
    _fill(torch, model, rng)
    loss_of = nn.MSELoss(reduction="sum")
    if adam:
        optimizer = optim.Adam(model.parameters(), lr=1e-4)
    else:
        optimizer = optim.SGD(model.parameters(), lr=1e-5)

    def step() -> float:
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def lenet(torch: Any) -> Callable[[], float]:
    """Batch 64 of 3x32x32, two 5x5 convolutions, three linear layers, SGD with momentum."""
    rng = np.random.default_rng(0)
    nn = importlib.import_module(f"{torch.__name__}.nn")
    optim = importlib.import_module(f"{torch.__name__}.optim")
    x = torch.from_numpy(rng.standard_normal((64, 3, 32, 32)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 10, 64))
    model = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84),
        nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    _fill(torch, model, rng)
    loss_of = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


CHAIN = 200


def chain(torch: Any) -> Callable[[], float]:
    """200 ops on one element, forward and backward; the time is per op."""
    x = torch.tensor([1.0], requires_grad=True)
    w = torch.tensor([0.999], requires_grad=True)

    def step() -> float:
        y = x
        for _ in range(CHAIN // 4):
            y = y + x
            y = y * w
            y = y - x
            y = torch.tanh(y)
        y.backward()
        value = x.grad.item()
        x.grad = w.grad = None
        return value

    return step


def gelu_chain(torch: Any) -> Callable[[], float]:
    """gelu(a * b + c).sum() on 4 million float32, forward and backward."""
    rng = np.random.default_rng(0)
    functional = importlib.import_module(f"{torch.__name__}.nn.functional")
    a, b, c = (
        torch.from_numpy(rng.standard_normal(1 << 22).astype(np.float32)).requires_grad_()
        for _ in range(3)
    )

    def step() -> float:
        loss = functional.gelu(a * b + c, approximate="tanh").sum()
        loss.backward()
        a.grad = b.grad = c.grad = None
        return loss.item()

    return step


def fused_chain(torch: Any, backward: bool, compiler: bool) -> Callable[[], float]:
    """The same function through ``trident.fuse``, beside the eager one of the peer; the forward
    alone is not recorded."""
    rng = np.random.default_rng(0)
    functional = importlib.import_module(f"{torch.__name__}.nn.functional")
    a, b, c = (
        torch.from_numpy(rng.standard_normal(1 << 22).astype(np.float32)).requires_grad_()
        for _ in range(3)
    )

    def f(a: Any, b: Any, c: Any) -> Any:
        return functional.gelu(a * b + c, approximate="tanh").sum()

    if torch.__name__ == "trident":
        if not compiler:
            torch.config.CC = "none"
        f = torch.fuse(f)

    def forward() -> float:
        with torch.no_grad():
            return f(a, b, c).item()

    def both() -> float:
        loss = f(a, b, c)
        loss.backward()
        a.grad = b.grad = c.grad = None
        return loss.item()

    return both if backward else forward


def _fill(torch: Any, model: Any, rng: np.random.Generator) -> None:
    """The same random weights for every library."""
    with torch.no_grad():
        for p in model.parameters():
            values = rng.uniform(-1, 1, tuple(p.shape)) / np.sqrt(np.prod(p.shape[1:]) or 1)
            p.copy_(torch.from_numpy(np.asarray(values, np.float32)))


def _peak_mb() -> float:
    """Peak resident memory of this process (getrusage would count what the parent held at fork)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


WORKLOADS: dict[str, tuple[Callable[[Any], Callable[[], float]], int]] = {
    # name: (make a step, operations in a step that the time is divided by)
    "net_sgd": (lambda torch: two_layer_net(torch, adam=False), 1),
    "net_adam": (lambda torch: two_layer_net(torch, adam=True), 1),
    "lenet": (lenet, 1),
    "chain": (chain, CHAIN),
    "gelu_chain": (gelu_chain, 1),
    "fused_forward": (lambda torch: fused_chain(torch, False, True), 1),
    "fused_both": (lambda torch: fused_chain(torch, True, True), 1),
    "fused_forward_numpy": (lambda torch: fused_chain(torch, False, False), 1),
    "fused_both_numpy": (lambda torch: fused_chain(torch, True, False), 1),
}


def main(library: str, workload: str, seconds: float, threads: int) -> None:
    torch = importlib.import_module(library)
    if library == "torch":
        torch.set_num_threads(threads)
    make, per = WORKLOADS[workload]
    step = make(torch)
    losses = [step() for _ in range(10)]
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        t0 = time.perf_counter()
        step()
        times.append(time.perf_counter() - t0)
    peak = _peak_mb()
    median = float(np.median(times)) * 1e6 / per
    print(json.dumps({"us": median, "loss": losses[-1], "peak_mb": peak}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
