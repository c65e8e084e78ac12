"""What ``python -m bench gpu`` times: one definition for trident and for torch.

A workload is written with the names that both have, on a ``Lib`` that holds the library and says
which variant of it is meant. ``make`` returns what is timed (``call``) and what is compared between
the libraries before (``values``). Inputs come from one seed, so they are the same everywhere.

The goals are G1 to G10, G13 and G14 of the project's performance plan: the most that trident's time
may be of a peer's, or the least part of the copy rate that it must reach. Those of captured steps
(G11, G12) have no workload yet.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_PERIOD = 16777213  # a prime: rows of a matrix do not repeat


@functools.cache
def _noise(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n, np.float32)


class Lib:
    """A library (``torch`` or ``trident`` under torch's names) in one variant.

    eager: as it is. compile, max-autotune: functions given to ``compiled`` go through
    ``torch.compile``. flash, cudnn: which attention torch takes. fused: torch's fused optimizer.
    """

    def __init__(self, name: str, variant: str = "eager", device: str = "cuda") -> None:
        self.name = name
        self.variant = variant
        self.device = device
        self.torch: Any = importlib.import_module(name)
        self.nn: Any = importlib.import_module(f"{name}.nn")
        self.F: Any = importlib.import_module(f"{name}.nn.functional")
        self.optim: Any = importlib.import_module(f"{name}.optim")
        self.ours = name == "trident"
        self._seed = 0

    def array(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """The next random array: standard normal times ``scale``, the same in every library."""
        self._seed += 1
        n = int(np.prod(shape))
        noise = _noise(self._seed, min(n, _PERIOD))
        return (np.resize(noise, n) * np.float32(scale)).reshape(shape)

    def new(
        self, *shape: int, dtype: str = "bfloat16", grad: bool = False, scale: float = 1.0
    ) -> Any:
        """The next random tensor on the device."""
        host = self.torch.from_numpy(self.array(*shape, scale=scale))
        x = host.to(self.device).to(getattr(self.torch, dtype))
        return x.requires_grad_() if grad else x

    def labels(self, high: int, *shape: int) -> Any:
        self._seed += 1
        found = np.random.default_rng(self._seed).integers(0, high, shape)
        return self.torch.from_numpy(found).to(self.device)

    def compiled(self, f: Callable) -> Callable:
        """``torch.compile`` in its variants, else ``f`` itself."""
        if self.variant == "compile":
            return self.torch.compile(f)
        if self.variant == "max-autotune":
            return self.torch.compile(f, mode="max-autotune-no-cudagraphs")
        return f

    def fused(self, f: Callable) -> Callable:
        """``trident.fuse``, and ``compiled`` elsewhere."""
        return self.torch.fuse(f) if self.ours else self.compiled(f)

    def attention(self) -> Any:
        """The context in which torch takes the kernels that the variant names."""
        if self.variant not in ("flash", "cudnn"):
            return contextlib.nullcontext()
        attention = importlib.import_module("torch.nn.attention")
        kind = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION"}[self.variant]
        return attention.sdpa_kernel(getattr(attention.SDPBackend, kind))

    def channels_last(self, x: Any) -> Any:
        return x.to(memory_format=self.torch.channels_last)

    def grad(self, outs: Any, inputs: Any, g: Any = None) -> Any:
        return self.torch.autograd.grad(outs, inputs, g, retain_graph=True)


@dataclass
class Prepared:
    """``call()`` is timed; ``values()`` gives the tensors that are compared."""

    call: Callable[[], Any]
    values: Callable[[], list]


def of_call(call: Callable[[], Any]) -> Prepared:
    """Where the result of the call is what is compared."""

    def values() -> list:
        found = call()
        return list(found) if isinstance(found, (tuple, list)) else [found]

    return Prepared(call, values)


@dataclass(frozen=True)
class Workload:
    """``make(lib, **full)`` on a GPU, ``make(lib, **small)`` in a dry run.

    against: torch's variants, and the most that trident's time may be of theirs (None: shown, no
    goal). copy: the least part of the copy rate. memory: the most that the peak memory may be of
    eager's. nbytes, flops: what must be moved and computed. tolerance: of the values, relative to
    the largest. calls: how many are timed in a round. host: the time of the host is what counts.
    """

    goal: str
    name: str
    make: Callable[..., Prepared]
    full: dict[str, Any]
    small: dict[str, Any]
    against: dict[str, float | None]
    copy: float | None = None
    memory: float | None = None
    nbytes: float = 0
    flops: float = 0
    tolerance: float = 0.02
    calls: int = 20
    host: bool = False


WORKLOADS: list[Workload] = []


@dataclass(frozen=True)
class Together:
    """A goal on the geometric mean of several rows' ratios to one peer."""

    goal: str
    name: str
    rows: tuple[str, ...]
    against: str
    most: float


TOGETHER: list[Together] = []


# ---- G1, G2: products ----------------------------------------------------------------------------


def matmul(lib: Lib, m: int, n: int, k: int) -> Prepared:
    a, b = lib.new(m, k), lib.new(k, n)
    return of_call(lambda: a @ b)


def linear_gelu(lib: Lib, m: int, n: int, k: int) -> Prepared:
    x, w, b = lib.new(m, k), lib.new(n, k, scale=k**-0.5), lib.new(n)
    if lib.ours:
        return of_call(lambda: lib.torch.linear(x, w, b, activation="gelu"))
    f = lib.compiled(lambda x, w, b: lib.F.gelu(lib.F.linear(x, w, b)))
    return of_call(lambda: f(x, w, b))


SQUARES = (1024, 2048, 4096, 8192)
for size in SQUARES:
    WORKLOADS.append(
        Workload(
            "G1", f"matmul bf16 {size}^3", matmul, {"m": size, "n": size, "k": size},
            {"m": 128, "n": 128, "k": 128}, {"eager": 1.10 if size == 8192 else None},
            flops=2.0 * size**3,
        )
    )  # fmt: skip
WORKLOADS.append(
    Workload(
        "G1", "matmul bf16 65536x1024x1024", matmul, {"m": 65536, "n": 1024, "k": 1024},
        {"m": 512, "n": 64, "k": 64}, {"eager": None}, flops=2.0 * 65536 * 1024**2,
    )
)  # fmt: skip
TOGETHER.append(
    Together(
        "G1", "matmul bf16, geometric mean",
        (*(f"matmul bf16 {s}^3" for s in SQUARES), "matmul bf16 65536x1024x1024"), "eager", 1.20,
    )
)  # fmt: skip
for k in (1024, 2048):
    WORKLOADS.append(
        Workload(
            "G2", f"linear + bias + gelu bf16, 8192x8192, K={k}", linear_gelu,
            {"m": 8192, "n": 8192, "k": k}, {"m": 128, "n": 128, "k": 64},
            {"eager": 0.90, "max-autotune": 1.05}, flops=2.0 * 8192**2 * k,
        )
    )  # fmt: skip

# ---- G3, G4: norms -------------------------------------------------------------------------------


def norm(lib: Lib, kind: str, rows: int, cols: int, backward: bool = False) -> Prepared:
    x = lib.new(rows, cols, grad=backward)
    w, b = lib.new(cols, grad=backward), lib.new(cols, grad=backward)
    F = lib.F
    if kind == "softmax":
        f, args = lib.compiled(lambda x: F.softmax(x, -1)), (x,)
    elif kind == "rms_norm":
        f, args = lib.compiled(lambda x, w: F.rms_norm(x, (cols,), w)), (x, w)
    else:
        f, args = lib.compiled(lambda x, w, b: F.layer_norm(x, (cols,), w, b)), (x, w, b)
    if not backward:
        return of_call(lambda: f(*args))
    out, g = f(*args), lib.new(rows, cols)
    return of_call(lambda: lib.grad(out, args, g))


ELEMENTS = 1 << 27  # 256 MiB in bfloat16
for kind in ("rms_norm", "layer_norm", "softmax"):
    for cols in (1024, 4096, 16384, 32768):
        WORKLOADS.append(
            Workload(
                "G3", f"{kind} forward bf16 N={cols}", norm,
                {"kind": kind, "rows": ELEMENTS // cols, "cols": cols},
                {"kind": kind, "rows": 32, "cols": 256},
                {"eager": 0.80 if kind == "layer_norm" else None, "compile": 1.05},
                copy=0.90, nbytes=4.0 * ELEMENTS,
            )
        )  # fmt: skip
for kind in ("rms_norm", "layer_norm"):
    for cols in (4096, 8192, 16384):
        WORKLOADS.append(
            Workload(
                "G4", f"{kind} backward bf16 N={cols}", norm,
                {"kind": kind, "rows": ELEMENTS // cols, "cols": cols, "backward": True},
                {"kind": kind, "rows": 32, "cols": 256, "backward": True},
                {"eager": 0.80, "compile": None}, copy=0.60, nbytes=6.0 * ELEMENTS, tolerance=0.03,
            )
        )  # fmt: skip

# ---- G5, G6: losses and gated units --------------------------------------------------------------


def cross_entropy(lib: Lib, rows: int, classes: int) -> Prepared:
    logits, target = lib.new(rows, classes, grad=True), lib.labels(classes, rows)
    f = lib.compiled(lambda x, t: lib.F.cross_entropy(x, t))

    def call() -> list:
        loss = f(logits, target)
        return [loss.detach(), lib.torch.autograd.grad(loss, logits)[0]]

    return of_call(call)


for classes in (32768, 131072):
    rows = (1 << 29) // classes
    WORKLOADS.append(
        Workload(
            "G5", f"cross_entropy forward and backward bf16 V={classes}", cross_entropy,
            {"rows": rows, "classes": classes}, {"rows": 16, "classes": 1000},
            {"eager": 0.45, "compile": 0.75}, memory=0.55, nbytes=6.0 * rows * classes,
        )
    )  # fmt: skip


def swiglu(lib: Lib, rows: int, cols: int, backward: bool) -> Prepared:
    gate, up = (lib.new(rows, cols, grad=backward) for _ in range(2))
    f = lib.fused(lambda gate, up: lib.F.silu(gate) * up)
    if not backward:
        return of_call(lambda: f(gate, up))
    out, g = f(gate, up), lib.new(rows, cols)
    return of_call(lambda: lib.grad(out, (gate, up), g))


def chain(lib: Lib, n: int) -> Prepared:
    a, b, c = (lib.new(n, dtype="float32") for _ in range(3))
    f = lib.fused(lambda a, b, c: lib.F.gelu(a * b + c, approximate="tanh").sum())
    return of_call(lambda: f(a, b, c))


for backward, most in ((False, 0.40), (True, 0.45)):
    what = "backward" if backward else "forward"
    WORKLOADS.append(
        Workload(
            "G6", f"swiglu {what} bf16 8192x14336", swiglu,
            {"rows": 8192, "cols": 14336, "backward": backward},
            {"rows": 16, "cols": 256, "backward": backward}, {"eager": most, "compile": None},
            nbytes=(10.0 if backward else 6.0) * 8192 * 14336,
        )
    )  # fmt: skip
WORKLOADS.append(
    Workload(
        "G6", "gelu(a * b + c).sum() float32 64M", chain, {"n": 1 << 26}, {"n": 1 << 12},
        {"eager": 0.25, "compile": None}, copy=0.90, nbytes=12.0 * (1 << 26), tolerance=1e-3,
    )
)  # fmt: skip

# ---- G7: attention -------------------------------------------------------------------------------


def attention(
    lib: Lib, batch: int, heads: int, length: int, width: int, causal: bool, backward: bool = False
) -> Prepared:
    q, k, v = (lib.new(batch, heads, length, width, grad=backward) for _ in range(3))

    def forward() -> Any:
        with lib.attention():
            return lib.F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    if not backward:
        return of_call(forward)
    out, g = forward(), lib.new(batch, heads, length, width)
    return of_call(lambda: lib.grad(out, (q, k, v), g))


for length in (4096, 16384):
    for causal in (False, True):
        shape = {"batch": 16384 // length, "heads": 16, "length": length, "width": 128}
        name = f"bf16 D=128 L={length}{' causal' if causal else ''}"
        flops = 4.0 * 16384 * 16 * length * 128 * (0.5 if causal else 1)
        small = {"batch": 1, "heads": 2, "length": 128, "width": 64, "causal": causal}
        WORKLOADS.append(
            Workload(
                "G7", f"attention forward {name}", attention, {**shape, "causal": causal}, small,
                {"flash": 0.90, "cudnn": 1.45}, flops=flops,
            )
        )  # fmt: skip
        WORKLOADS.append(
            Workload(
                "G7", f"attention backward {name}", attention,
                {**shape, "causal": causal, "backward": True}, {**small, "backward": True},
                {"flash": 1.30, "cudnn": None}, flops=2.5 * flops, tolerance=0.03,
            )
        )  # fmt: skip

# ---- G8: convolutions ----------------------------------------------------------------------------


def conv3x3(lib: Lib, batch: int, channels: int, side: int, backward: bool) -> Prepared:
    x = lib.channels_last(lib.new(batch, channels, side, side)).requires_grad_(backward)
    w = lib.new(channels, channels, 3, 3, scale=(9 * channels) ** -0.5)
    w = lib.channels_last(w).requires_grad_(backward)

    def forward() -> Any:
        return lib.F.conv2d(x, w, padding=1)

    if not backward:
        return of_call(forward)
    g = lib.channels_last(lib.new(batch, channels, side, side))
    out = forward()
    return of_call(lambda: lib.grad(out, (x, w), g))


for channels, side in ((64, 56), (128, 28), (256, 14)):
    for backward, most in ((False, 1.4), (True, 1.7)):
        what = "backward" if backward else "forward"
        flops = 2.0 * 128 * side**2 * 9 * channels**2
        WORKLOADS.append(
            Workload(
                "G8", f"conv 3x3 {what} bf16 channels-last, {channels} channels, {side}^2", conv3x3,
                {"batch": 128, "channels": channels, "side": side, "backward": backward},
                {"batch": 2, "channels": 32, "side": 8, "backward": backward}, {"eager": most},
                flops=flops * (2 if backward else 1), tolerance=0.03,
            )
        )  # fmt: skip

# ---- G9: optimizers ------------------------------------------------------------------------------


def adam(lib: Lib, tensors: int, size: int) -> Prepared:
    params = [lib.new(size, dtype="float32", scale=0.1, grad=True) for _ in range(tensors)]
    for p in params:
        p.grad = lib.new(size, dtype="float32", scale=0.1)
    options = {"fused": True} if lib.variant == "fused" else {}
    optimizer = lib.optim.Adam(params, lr=1e-3, **options)

    def values() -> list:
        optimizer.step()
        return [p.detach() for p in params[:4]]

    return Prepared(optimizer.step, values)


WORKLOADS += [
    Workload(
        "G9", "Adam, 1e9 float32 parameters in 4 tensors", adam,
        {"tensors": 4, "size": 250_000_000}, {"tensors": 2, "size": 4096},
        {"fused": 1.05, "eager": None}, copy=0.90, nbytes=28e9, tolerance=1e-5,
    ),
    Workload(  # the goal of 0.35 is for a captured step
        "G9", "Adam, 1000 tensors of 1024", adam, {"tensors": 1000, "size": 1024},
        {"tensors": 20, "size": 64}, {"fused": None, "eager": None}, tolerance=1e-5,
    ),
]  # fmt: skip

# ---- G10: the host -------------------------------------------------------------------------------


def tiny(lib: Lib, grad: bool) -> Prepared:
    a, b = (lib.new(16, dtype="float32", grad=grad) for _ in range(2))
    return of_call(lambda: a + b)


for grad in (True, False):
    WORKLOADS.append(
        Workload(
            "G10", f"host time of a tiny a + b, {'recorded' if grad else 'not recorded'}", tiny,
            {"grad": grad}, {"grad": grad}, {"eager": 1.0 if grad else None}, tolerance=1e-6,
            host=True,
        )
    )  # fmt: skip

# ---- G13: a whole model --------------------------------------------------------------------------


@dataclass(frozen=True)
class GPT:
    """The sizes of the 124M model of GPT-2."""

    layers: int = 12
    heads: int = 12
    width: int = 768
    vocabulary: int = 50304
    length: int = 1024
    batch: int = 8


def gpt_step(lib: Lib, **sizes: int) -> Prepared:
    """Forward, backward and AdamW of a GPT in bfloat16 on one batch."""
    o = GPT(**sizes)
    torch, nn, F = lib.torch, lib.nn, lib.F

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(o.width), nn.LayerNorm(o.width)
            self.qkv, self.out = nn.Linear(o.width, 3 * o.width), nn.Linear(o.width, o.width)
            self.up, self.down = nn.Linear(o.width, 4 * o.width), nn.Linear(4 * o.width, o.width)

        def forward(self, x: Any) -> Any:
            n, length, width = x.shape
            parts = self.qkv(self.norm1(x)).view(n, length, 3, o.heads, width // o.heads)
            q, k, v = (parts[:, :, i].transpose(1, 2) for i in range(3))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(n, length, width))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(o.vocabulary, o.width)
            self.place = nn.Embedding(o.length, o.width)
            self.blocks = nn.ModuleList([Block() for _ in range(o.layers)])
            self.norm = nn.LayerNorm(o.width)
            self.head = nn.Linear(o.width, o.vocabulary, bias=False)

        def forward(self, ids: Any, target: Any) -> Any:
            x = self.token(ids) + self.place(torch.arange(o.length, device=lib.device))
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return F.cross_entropy(logits.view(-1, o.vocabulary), target.view(-1))

    model = Model()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = lib.array(*p.shape, scale=0.02)
            p.copy_(torch.from_numpy(noise + 1 if "norm" in name and "weight" in name else noise))
    model = model.to(lib.device).to(torch.bfloat16)
    ids, target = (lib.labels(o.vocabulary, o.batch, o.length) for _ in range(2))
    loss_of = lib.compiled(model)
    options = {"fused": True} if not lib.ours else {}
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-4, **options)

    def step() -> Any:
        loss = loss_of(ids, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Prepared(step, lambda: [step(), step(), step()])


WORKLOADS.append(
    Workload(
        "G13", "GPT 124M bf16 training step, 8 x 1024 tokens", gpt_step, {},
        {"layers": 2, "heads": 2, "width": 64, "vocabulary": 128, "length": 64, "batch": 2},
        # tokens a second: 1.15 of eager's, 0.85 of torch.compile's
        {"eager": 1 / 1.15, "compile": 1 / 0.85}, memory=0.85, calls=10, tolerance=0.02,
    )
)  # fmt: skip

# ---- G14: cold starts, each a process ------------------------------------------------------------

FIRST_OP = "import {lib}; x = {lib}.ones(1000, device='{device}'); print((x + x).sum().item())"
CNN = """
import numpy as np, {lib} as torch
import {lib}.nn as nn, {lib}.optim as optim
rng = np.random.default_rng(0)
x = torch.from_numpy(rng.standard_normal((64, 3, 32, 32)).astype(np.float32)).to("{device}")
y = torch.from_numpy(rng.integers(0, 10, 64)).to("{device}")
net = nn.Sequential(
    nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
    nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84),
    nn.ReLU(), nn.Linear(84, 10),
).to("{device}")
optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
for _ in range(2):
    loss = nn.CrossEntropyLoss()(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
"""


@dataclass(frozen=True)
class Start:
    """The time of a whole process: ``most`` of torch's, or ``seconds`` at the most."""

    name: str
    program: str
    most: float | None = None
    seconds: float | None = None
    goal: str = "G14"


STARTS = [
    Start("import and first op, caches on disk warm", FIRST_OP, most=0.5),
    Start("CNN with SGD, two steps, caches on disk warm", CNN, seconds=1.5),
]
