"""Which kernels there are: calls of every op on the compile-only device, and what they launch.

``CASES`` are the calls that networks spend their time in, at sizes where launchers choose their
large tiles, every axis divisible by 16 and every array aligned: what a kernel can do is seen there.
The samples of the test kit reach the rest (odd sizes, strides, the paths that are seldom taken).
Nothing is computed, so sizes cost nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import numpy as np

import trident.kernels.configs as configs  # the module itself, not a stand-in that loads later

from .. import config, dtypes, runtime, shapes
from ..dtypes import dtype as DType
from ..ops.registry import REGISTRY, Elementwise, InPlace
from ..runtime.aot import AotDevice, Specialization
from ..tensor import tensor_of
from .cases import differentiable, float_dtypes, function_of, run, sample, tensors
from .draw import Draw

DTYPES = (dtypes.float32, dtypes.bfloat16)
SEEDS = 8
FLAT = 1 << 16


@dataclass
class Launched:
    """A specialisation and the names of the cases that launch it (none: only samples do)."""

    spec: Specialization
    cases: list[str] = field(default_factory=list)

    @property
    def kernel(self) -> str:
        """``kernels.softmax.softmax_kernel``: file and name, without the package."""
        name = f"{self.spec.kernel.fn.__module__}.{self.spec.kernel.name}"
        return name.removeprefix("trident.")

    @property
    def types(self) -> str:
        """The types behind the pointers, ``bf16 i64``."""
        return " ".join(sorted({t[1:] for _, t in self.spec.signature if t.startswith("*")}))

    @property
    def generated(self) -> bool:
        """Whether the emitter wrote it."""
        return self.kernel.startswith("generated")

    @property
    def half(self) -> bool:
        return any("bf16" in t or "fp16" in t for _, t in self.spec.signature)


class New:
    """Makes the operands of a case: float tensors of one dtype that require grad, and labels."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype

    def __call__(self, *shape: int) -> Any:
        import trident

        return trident.empty(shape, dtype=self.dtype, device="cuda", requires_grad=True)

    def last(self, *shape: int) -> Any:
        """The same, channels-last."""
        strides = shapes.channels_last_strides(shape)
        array = runtime.current().empty_strided(shape, strides, self.dtype)
        return tensor_of(array).requires_grad_()

    def labels(self, *shape: int) -> Any:
        import trident

        return trident.empty(shape, dtype=dtypes.int64, device="cuda")


Case = Callable[[New, Any], Any]  # (new, nn.functional) -> the outputs to differentiate
CASES: dict[str, Case] = {
    # products
    "matmul": lambda new, F: new(4096, 4096) @ new(4096, 4096),
    "matmul a.T": lambda new, F: new(4096, 4096).T @ new(4096, 4096),
    "matmul b.T": lambda new, F: new(4096, 4096) @ new(4096, 4096).T,
    "matmul middle": lambda new, F: new(512, 1024) @ new(1024, 512),
    "matmul skinny": lambda new, F: new(64, 16384) @ new(16384, 64),
    "matmul batched": lambda new, F: new(32, 512, 64) @ new(32, 64, 512),
    "matvec": lambda new, F: new(4096, 4096) @ new(4096),
    "linear": lambda new, F: F.linear(new(4096, 1024), new(4096, 1024), new(4096)),
    "linear relu": lambda new, F: F.relu(F.linear(new(4096, 1024), new(4096, 1024), new(4096))),
    # convolutions
    "conv 3x3": lambda new, F: F.conv2d(
        new.last(32, 64, 32, 32), new.last(128, 64, 3, 3), new(128), padding=1
    ),
    "conv 3x3 stride 2": lambda new, F: F.conv2d(
        new.last(32, 128, 32, 32), new.last(256, 128, 3, 3), None, 2, 1
    ),
    "conv 1x1": lambda new, F: F.conv2d(new.last(32, 256, 16, 16), new.last(1024, 256, 1, 1)),
    "conv first layer": lambda new, F: F.conv2d(
        new.last(32, 3, 224, 224), new.last(64, 3, 7, 7), None, 2, 3
    ),
    "conv depthwise": lambda new, F: F.conv2d(
        new.last(32, 96, 32, 32), new(96, 1, 7, 7), new(96), padding=3, groups=96
    ),
    "conv grouped": lambda new, F: F.conv2d(
        new.last(32, 128, 32, 32), new.last(128, 32, 3, 3), padding=1, groups=4
    ),
    "conv transpose": lambda new, F: F.conv_transpose2d(
        new.last(32, 64, 32, 32), new.last(64, 32, 2, 2), stride=2
    ),
    "conv 3x3 row-major": lambda new, F: F.conv2d(
        new(32, 64, 32, 32), new(128, 64, 3, 3), new(128), padding=1
    ),
    "conv1d": lambda new, F: F.conv1d(new(32, 64, 1024), new(128, 64, 3), padding=1),
    "conv 3x3 wide": lambda new, F: F.conv2d(
        new.last(64, 256, 28, 28), new.last(256, 256, 3, 3), padding=1
    ),
    "conv 1x1 stride 2": lambda new, F: F.conv2d(
        new.last(32, 256, 28, 28), new.last(512, 256, 1, 1), stride=2
    ),
    "conv relu": lambda new, F: _conv_relu(
        new.last(32, 64, 56, 56), new.last(64, 64, 3, 3), new.last(32, 64, 56, 56)
    ),
    "max pool": lambda new, F: F.max_pool2d(new.last(32, 64, 32, 32), 2),
    "avg pool": lambda new, F: F.avg_pool2d(new.last(32, 64, 32, 32), 2),
    "max pool row-major": lambda new, F: F.max_pool2d(new(32, 64, 32, 32), 2),
    # rows
    "softmax": lambda new, F: F.softmax(new(4096, 1024), -1),
    "softmax 1000": lambda new, F: F.softmax(new(4096, 1000), -1),
    "softmax 32K": lambda new, F: F.softmax(new(1024, 1 << 15), -1),
    "softmax long": lambda new, F: F.softmax(new(512, 1 << 17), -1),
    "log_softmax": lambda new, F: F.log_softmax(new(4096, 1024), -1),
    "cross_entropy": lambda new, F: F.cross_entropy(new(4096, 1024), new.labels(4096)),
    "cross_entropy long": lambda new, F: F.cross_entropy(new(1024, 1 << 16), new.labels(1024)),
    "layer_norm": lambda new, F: F.layer_norm(new(4096, 1024), (1024,), new(1024), new(1024)),
    "layer_norm 16K": lambda new, F: F.layer_norm(
        new(1024, 1 << 14), (1 << 14,), new(1 << 14), new(1 << 14)
    ),
    "layer_norm long": lambda new, F: F.layer_norm(
        new(512, 1 << 16), (1 << 16,), new(1 << 16), new(1 << 16)
    ),
    "rms_norm": lambda new, F: F.rms_norm(new(4096, 1024), (1024,), new(1024)),
    "group_norm": lambda new, F: F.group_norm(new(32, 64, 32, 32), 8, new(64), new(64)),
    "batch_norm": lambda new, F: F.batch_norm(
        new.last(32, 64, 32, 32), None, None, new(64), new(64), training=True
    ),
    "batch_norm row-major": lambda new, F: F.batch_norm(
        new(32, 64, 32, 32), None, None, new(64), new(64), training=True
    ),
    "sum of rows": lambda new, F: new(4096, 1024).sum(1),
    "sum of columns": lambda new, F: new(4096, 1024).sum(0),
    "sum": lambda new, F: new(4096, 4096).sum(),
    "amax of rows": lambda new, F: new(4096, 1024).amax(1),
    "logsumexp": lambda new, F: new(4096, 1024).logsumexp(1),
    "cumsum": lambda new, F: new(4096, 1024).cumsum(1),
    "attention": lambda new, F: F.scaled_dot_product_attention(
        new(4, 16, 1024, 128), new(4, 16, 1024, 128), new(4, 16, 1024, 128), is_causal=True
    ),
    "attention 64": lambda new, F: F.scaled_dot_product_attention(
        new(4, 16, 1024, 64), new(4, 16, 1024, 64), new(4, 16, 1024, 64)
    ),
    "attention masked": lambda new, F: F.scaled_dot_product_attention(
        new(4, 16, 1024, 128),
        new(4, 4, 1024, 128),
        new(4, 4, 1024, 128),
        new.labels(1024, 1024) > 0,
        enable_gqa=True,
    ),
    "attention dropout": lambda new, F: F.scaled_dot_product_attention(
        new(4, 16, 1024, 64), new(4, 16, 1024, 64), new(4, 16, 1024, 64), dropout_p=0.1
    ),
    # memory
    "embedding": lambda new, F: F.embedding(new.labels(8192), new(32000, 1024)),
    "gather": lambda new, F: new(4096, 1024).gather(1, new.labels(4096, 64)),
    "copy": lambda new, F: new(4096, 1024).clone(),
    "cast": lambda new, F: new(4096, 1024).to(_other(new.dtype)),
    "transpose": lambda new, F: new(4096, 1024).T.contiguous(),
    "cat": lambda new, F: _trident().cat([new(1024, 1024), new(1024, 1024)]),
    "fill": lambda new, F: new(4096, 1024).detach().zero_(),
    "dropout": lambda new, F: F.dropout(new(4096, 1024), 0.5),
    "normal": lambda new, F: new(4096, 1024).detach().normal_(),
    "sort": lambda new, F: new(4096, 1024).sort(-1)[0],
    "topk": lambda new, F: new(4096, 1024).topk(16)[0],
    # functions made by ``fuse``, in each form that the emitter writes
    "fused flat": lambda new, F: _fused(_gelu_sum, new(1 << 20), new(1 << 20), new(1 << 20)),
    "fused rows": lambda new, F: _fused(_norm, new(4096, 1024), new(1024), new(1024)),
    "fused long rows": lambda new, F: _fused(_norm, new(64, 1 << 15), new(1 << 15), new(1 << 15)),
    "fused loss": lambda new, F: _fused(_soft_loss, new(512, 1024), new(512, 1024)),
    "fused broadcast": lambda new, F: _fused(_gated, new(512, 4096), new(512, 4096), new(4096)),
    "fused maximum": lambda new, F: _fused(_peak, new(512, 8192)),
}
TF32 = ("matmul", "matmul batched", "conv 3x3", "conv 1x1")
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": ("Adam", {}),
    "adamw amsgrad": ("AdamW", {"amsgrad": True}),
    "rmsprop": ("RMSprop", {"momentum": 0.9, "centered": True}),
    "adagrad": ("Adagrad", {}),
}


def _trident() -> Any:
    import trident

    return trident


def _other(d: DType) -> DType:
    return dtypes.float32 if d is dtypes.bfloat16 else dtypes.bfloat16


def _conv_relu(x: Any, w: Any, residual: Any) -> Any:
    """The end of a residual block in evaluation: folded batch norm, sum, activation."""
    trident = _trident()
    scale = trident.empty(w.shape[0], dtype=x.dtype.compute, device="cuda")
    return trident.conv_act(
        x, w, padding=1, scale=scale, shift=scale, residual=residual, activation="relu"
    )


def _fused(f: Callable, *args: Any) -> Any:
    return _trident().fuse(f)(*args)


def _gelu_sum(a: Any, b: Any, c: Any) -> Any:
    return _trident().nn.functional.gelu(a * b + c, approximate="tanh").sum()


def _norm(x: Any, w: Any, b: Any) -> Any:
    return _trident().nn.functional.layer_norm(x, x.shape[-1:]) * w + b


def _soft_loss(x: Any, t: Any) -> Any:
    return -(_trident().nn.functional.log_softmax(x, -1) * t).sum(-1).mean()


def _gated(x: Any, y: Any, b: Any) -> Any:
    return _trident().nn.functional.gelu(x + b) * y


def _peak(x: Any) -> Any:
    return x / _trident().amax(x.abs(), -1, True)


class Walk:
    """Runs calls on the compile-only device of one architecture and keeps what they launch."""

    def __init__(self, target: str) -> None:
        self.device = AotDevice(target)
        self.found: dict[Specialization, Launched] = {}
        self.failed: dict[str, str] = {}
        """What raised, by the name of the case or op."""

    @contextlib.contextmanager
    def case(self, name: str, sample: bool = False) -> Iterator[None]:
        """What is launched inside belongs to the case ``name`` (or is the sample of an op)."""
        self.device.seen.clear()
        try:
            with runtime.use(self.device):
                yield
        except Exception as error:  # the other cases go on
            self.failed[name] = f"{type(error).__name__}: {error}"
        for spec in self.device.seen:
            launched = self.found.setdefault(spec, Launched(spec))
            if not sample and name not in launched.cases:
                launched.cases.append(name)

    def cases(self, dtypes_: Iterable[DType] = DTYPES, only: Callable[[str], bool] = bool) -> None:
        """``CASES`` and ``OPTIMIZERS``, forward and backward; those of ``TF32`` once more with
        ``set_float32_matmul_precision("high")``, as "matmul tf32"."""
        import trident
        import trident.nn.functional as F

        for d in dtypes_:
            new = New(d)
            for name, call in CASES.items():
                if only(name):
                    with self.case(name):
                        _backward(call(new, F))
            for name in TF32 if d is dtypes.float32 else ():
                if only(f"{name} tf32"):
                    with self.case(f"{name} tf32"), _precision("high"):
                        _backward(CASES[name](new, F))
            for name, (kind, options) in OPTIMIZERS.items():
                if only(name):
                    with self.case(name):
                        params = [new(1024, 1024), new(1024)]
                        for p in params:
                            p.grad = trident.empty(tuple(p.shape), dtype=d, device="cuda")
                        getattr(trident.optim, kind)(params, **options).step()

    def elementwise(self, dtypes_: Iterable[DType] = DTYPES[:1], only: Any = bool) -> None:
        """Every elementwise op and its gradient, on contiguous arrays of one shape (case
        ``flat``)."""
        for d in dtypes_:
            for op in REGISTRY.values():
                if isinstance(op, Elementwise) and only(op.name):
                    with self.case("flat"):
                        _flat_call(op, dtypes.int32 if op.takes == "int" else d)

    def configurations(self) -> None:
        """Every shipped configuration of the tuned families (``kernels/configs.py``), on the first
        of their problems whose sizes it is meant for."""
        for family in configs.tunable().values():
            for kind, dtype in family.kinds.items():
                token = config.matmul_precision.set("high" if kind == "tf32" else "highest")
                try:
                    self._configurations(family, kind, dtype)
                finally:
                    config.matmul_precision.reset(token)

    def _configurations(self, family: configs.Family, kind: str, dtype: DType) -> None:
        rules = configs.rules(family.name, self.device.architecture, kind)
        for rule in rules:
            fitting = [p for p in family.problems if rule.fits(p)] or family.problems
            with self.case(f"default {family.name}"), configs.using({family.name: rule.config}):
                family.rehearse(self.device, dtype, fitting[0])()

    def samples(self, dtypes_: Iterable[DType] = DTYPES, seeds: int = SEEDS) -> None:
        """The random calls of the test kit, forward and backward."""
        for op in REGISTRY.values():
            elementwise = isinstance(op, Elementwise)
            if op.samples is None and not elementwise:
                continue
            for d in dtypes_:
                if isinstance(op, Elementwise) and op.takes == "int":
                    d = dtypes.int32
                elif not elementwise and d not in float_dtypes(op):
                    continue
                with self.case(op.name, sample=True):
                    for seed in range(2 if elementwise else seeds):
                        _sample_call(op, Draw(seed, d, strided=seed % 2 == 1), d)


@contextlib.contextmanager
def _precision(value: str) -> Iterator[None]:
    token = config.matmul_precision.set(value)
    try:
        yield
    finally:
        config.matmul_precision.reset(token)


def _backward(outs: Any) -> None:
    import trident

    for out in outs if isinstance(outs, (list, tuple)) else [outs]:
        if out.requires_grad:
            g = trident.empty(tuple(out.shape), dtype=out.dtype, device="cuda")
            if shapes.is_channels_last(tuple(out.shape), out.stride()):
                g = tensor_of(runtime.current().empty_strided(g.shape, out.stride(), out.dtype))
            out.backward(g)


def _flat_call(op: Elementwise, d: DType) -> None:
    args = [
        np.empty(FLAT, bool if name in op.untyped else d.np) for name in op.operands
    ]  # values do not matter
    attrs = dict(op.defaults)
    if op.samples is not None:
        attrs |= {k: v for k, v in op.samples(Draw(0, d))[1].items() if k in op.attributes}
    given = tensors(tuple(args), "cuda", requires_grad=differentiable(op))
    _backward(function_of(op)(*given, **attrs))


def _sample_call(op: Any, draw: Draw, d: DType) -> None:
    import trident

    args, attrs = sample(op, draw, d)
    if isinstance(op, InPlace):
        lists = [
            [tensors((np.asarray(a),), "cuda")[0] for a in x] if isinstance(x, list) else x
            for x in args
        ]
        getattr(trident.ops, op.name)(*lists, **attrs)
        return
    for o in run(op, tensors(args, "cuda", requires_grad=differentiable(op)), attrs):
        if o.requires_grad and o.numel():
            o.backward(
                trident.empty(tuple(o.shape), dtype=o.dtype, device="cuda"), retain_graph=True
            )


def matching(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name has one of ``patterns`` in it (``*`` and ``?`` as in file names)."""
    wanted = [p if any(c in p for c in "*?[") else f"*{p}*" for p in patterns]
    return lambda name: not wanted or any(fnmatch(name, p) for p in wanted)


def full(target: str) -> Walk:
    """Everything: each block size and configuration at real sizes, every elementwise op in two
    dtypes, and of the samples one per kernel, types, path and form."""
    walk = Walk(target)
    walk.cases()
    walk.configurations()
    walk.elementwise(DTYPES)
    walk.samples()
    kept: dict[tuple, Launched] = {}
    for launched in walk.found.values():
        spec = launched.spec
        key: tuple = (launched.kernel, len(spec.signature), launched.types, _flags(spec))
        if launched.cases and not launched.generated:
            key = (spec,)
        _keep(kept, key, launched)
    walk.found = {x.spec: x for x in _sorted(kept)}
    return walk


def quick(target: str) -> Walk:
    """What CI compiles: each kernel and path in the first case that reaches it, in float32 and
    bfloat16; elementwise ops in float32; of the samples what no case reaches."""
    walk = Walk(target)
    walk.cases()
    walk.elementwise()
    walk.samples()
    kept: dict[tuple, Launched] = {}
    reached = {(x.kernel, x.half) for x in walk.found.values() if x.cases}
    for launched in walk.found.values():
        if launched.cases:  # in the order of the table
            flags = () if launched.generated else _flags(launched.spec)
            kept.setdefault((launched.kernel, launched.half, flags), launched)
            continue
        key = (launched.kernel, launched.half)
        if key not in reached and not (launched.generated and launched.half):
            _keep(kept, key, launched)
    walk.found = {x.spec: x for x in _sorted(kept)}
    return walk


def _keep(kept: dict[tuple, Launched], key: tuple, launched: Launched) -> None:
    """The most aligned one, and one that a case reaches before one that samples alone do."""
    rank = lambda x: (bool(x.cases), len(x.spec.aligned))  # noqa: E731
    if key not in kept or rank(launched) > rank(kept[key]):
        kept[key] = launched


def _sorted(kept: dict[tuple, Launched]) -> list[Launched]:
    return sorted(kept.values(), key=lambda x: (x.kernel, x.types))


def _flags(spec: Specialization) -> tuple:
    """Constants that choose a path through the kernel: no sizes."""
    return tuple(str(v) for _, v in spec.constants if isinstance(v, bool) or not isinstance(v, int))
