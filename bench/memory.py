"""The caching allocator on training steps: how much more memory it holds than tensors need, how
often it has to look further than a bin, and what a hit costs. No GPU: ``python -m bench memory``.

The steps run on a device that launches nothing, so models of real sizes are traced in seconds.
Their requests and frees, in order, are then served by the allocator over memory that is only
counted. The sizes are those of the model, not of an invented distribution.
"""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import trident
import trident.nn.functional as F
from trident import nn
from trident.runtime import Buffer, use
from trident.runtime.allocator import CachingAllocator
from trident.runtime.aot import AotDevice
from trident.runtime.segments import MIB, OutOfMemory

Trace = list[tuple[int, int]]
"""(number of the block, bytes) where one is taken, (number, -1) where it is dropped."""


class Counted:
    """Memory that is counted and never touched."""

    granularity = 0

    def __init__(self) -> None:
        self.next = 1 << 40
        self.given: dict[int, int] = {}

    def alloc(self, nbytes: int) -> int:
        ptr, self.next = self.next, self.next + nbytes + 4 * MIB
        self.given[ptr] = nbytes
        return ptr

    def free(self, ptr: int) -> None:
        del self.given[ptr]

    def info(self) -> tuple[int, int]:
        return 80 << 30, 80 << 30

    def synchronize(self) -> None:
        pass

    def record(self, stream: int) -> int:
        return 0

    def done(self, event: int) -> bool:
        return True


class Growing(Counted):
    """The same with reserved addresses."""

    granularity = 2 * MIB

    def reserve(self, nbytes: int) -> int:
        ptr, self.next = self.next, self.next + nbytes
        return ptr

    def unreserve(self, ptr: int, nbytes: int) -> None:
        pass

    def back(self, ptr: int, nbytes: int) -> None:
        if ptr in self.given:
            raise OutOfMemory
        self.given[ptr] = nbytes

    def unback(self, ptr: int, nbytes: int) -> None:
        del self.given[ptr]


# ---- recording ----------------------------------------------------------------------------------


class _Traced(Buffer):
    __slots__ = ()

    def __del__(self) -> None:
        self.memory.append((self.ptr >> 40, -1))


class Recorder(AotDevice):
    """Writes requests and frees down; nothing is launched or copied."""

    def __init__(self) -> None:
        super().__init__(target="sm_90")
        self.trace: Trace = []
        self.n = 0

    def allocate(self, nbytes: int) -> Buffer:
        self.n += 1
        self.trace.append((self.n, nbytes))
        return _Traced(self, self.n << 40, nbytes, self.trace)

    def launch(self, *args: Any) -> None:
        pass

    def to_host(self, array: Any, wait: bool = True) -> np.ndarray:
        return np.broadcast_to(np.zeros((), array.dtype.np), array.shape)

    __hash__ = object.__hash__


def put(device: Recorder, *shape: int, dtype: Any = trident.float32) -> Any:
    from trident.tensor import tensor_of

    return tensor_of(device.empty(shape, dtype))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Any) -> Any:
        b, t, c = x.shape
        q, k, v = (
            z.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for z in self.qkv(self.norm1(x)).split(c, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Residual(nn.Module):
    def __init__(self, i: int, o: int, step: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(i, o, 3, step, 1, bias=False), nn.BatchNorm2d(o)
        self.b, self.nb = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.skip = nn.Conv2d(i, o, 1, step, bias=False) if (i, step) != (o, 1) else nn.Identity()

    def forward(self, x: Any) -> Any:
        return F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + self.skip(x))


def transformer(device: Recorder, lengths: list[int], layers: int = 6) -> None:
    """A GPT of 768 channels, vocabulary 50304, batches of 8 sequences of these lengths, AdamW."""
    width, vocabulary = 768, 50304
    blocks = nn.ModuleList([Block(width, 12) for _ in range(layers)])
    _on(device, blocks)
    table = put(device, vocabulary, width).requires_grad_()
    optimizer = trident.optim.AdamW([*blocks.parameters(), table], lr=1e-3)
    for n in lengths:
        tokens = put(device, 8, n, dtype=trident.int64)
        x = F.embedding(tokens, table)
        for block in blocks:
            x = block(x)
        logits = F.linear(x, table)
        loss = F.cross_entropy(logits.view(-1, vocabulary), tokens.view(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del x, logits, loss


def convolutions(device: Recorder, batches: list[int]) -> None:
    """A ResNet-18 on images of 224 x 224, SGD with momentum."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    i = 64
    for o, step in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(Residual(i, o, step))
        i = o
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    _on(device, net)
    optimizer = trident.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for n in batches:
        images, labels = put(device, n, 3, 224, 224), put(device, n, dtype=trident.int64)
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _on(device: Recorder, net: nn.Module) -> None:
    for p in net.parameters():
        p.data = put(device, *p.shape)
    for b in net.buffers():
        b.data = put(device, *b.shape, dtype=b.dtype)


def _draw(n: int) -> list[int]:
    return [int(k) for k in np.random.default_rng(0).integers(100, 1024, n)]


STEPS: dict[str, Callable[[Recorder], None]] = {
    "GPT, 12 layers, length 1024": lambda d: transformer(d, [1024] * 6, 12),
    "GPT, 6 layers, lengths 100 to 1023": lambda d: transformer(d, _draw(14)),
    "ResNet-18, batch 64": lambda d: convolutions(d, [64] * 6),
    "ResNet-18, batches 64, 64, 64, 17": lambda d: convolutions(d, [64, 64, 64, 17] * 3),
}


def record(steps: Callable[[Recorder], None]) -> Trace:
    """The requests and frees of some training steps."""
    device = Recorder()
    with use(device):
        steps(device)
        return list(device.trace)


# ---- serving ------------------------------------------------------------------------------------


def serve(trace: Trace, memory: Any) -> tuple[CachingAllocator, int, float]:
    """The allocator after a trace, the most bytes that were wanted at once, and the part of the
    requests in the last third that found an empty bin."""
    allocator = CachingAllocator(memory)
    misses: list[int] = []
    find, taken = allocator._find, 0

    def counted(*args: Any) -> Any:
        misses.append(taken)
        return find(*args)

    allocator._find = counted  # type: ignore[method-assign]
    live: dict[int, Any] = {}
    sizes: dict[int, int] = {}
    wanted = most = 0
    for number, nbytes in trace:
        if nbytes < 0:
            del live[number]
            wanted -= sizes.pop(number)
        else:
            live[number] = allocator.take(nbytes, 1)
            sizes[number] = nbytes
            wanted += nbytes
            most = max(most, wanted)
            taken += 1
    late = sum(at > taken * 2 / 3 for at in misses) / (taken / 3)
    return allocator, most, late


def hit_cost() -> tuple[float, float]:
    """Nanoseconds to take and drop a block of 4 KiB, and of 8 MiB (whose origin is noted)."""
    found = []
    for nbytes in (4096, 8 * MIB):
        take = CachingAllocator(Growing()).take
        take(nbytes, 7)
        best = min(timeit.repeat(lambda: take(nbytes, 7), number=1000, repeat=1000))  # noqa: B023
        found.append(best * 1e6)
    return found[0], found[1]


def rows() -> Iterator[str]:
    yield "| steps | requests | needed at most | held, growing | held, segments | late misses |"
    yield "|---|---|---|---|---|---|"
    for name, steps in STEPS.items():
        trace = record(steps)
        taken = sum(nbytes >= 0 for _, nbytes in trace)
        growing, most, late = serve(trace, Growing())
        plain, _, _ = serve(trace, Counted())
        over = [f"{a.peak_reserved / most - 1:+.1%}" for a in (growing, plain)]
        yield f"| {name} | {taken} | {most >> 20} MiB | {over[0]} | {over[1]} | {late:.1%} |"


def main(arguments: list[str]) -> int:
    for row in rows():
        print(row, flush=True)
    small, large = hit_cost()
    print(f"\ntake and drop: 4 KiB {small:.0f} ns, 8 MiB {large:.0f} ns (Python {sys.version[:6]})")
    return 0
