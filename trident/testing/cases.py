"""What the checks are made on: samples of an op, as tensors of a device, and their oracle."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from .. import config, dtypes, runtime
from ..dtypes import dtype as DType
from ..ops.registry import FUNCTIONS, Elementwise, Fused, InPlace, Op, Primitive, Spec, View
from ..tensor import Tensor, tensor_of
from .draw import Draw

Sample = tuple[tuple, dict]


def record_of(op: Any) -> Op:
    """The registry's record of an op given as a name, as a public function, or as the record."""
    from ..ops.registry import REGISTRY

    if isinstance(op, str):
        if op not in REGISTRY:
            raise KeyError(f"check_op: no op is called {op!r}")
        return REGISTRY[op]
    found = getattr(op, "op", op)
    if not isinstance(found, Op):
        raise TypeError(
            f"check_op: expected an op (a function made by a decorator of trident, its record, or "
            f"its name); got {type(op).__name__}"
        )
    return found


def function_of(op: Op) -> Callable:
    """The public function of an op."""
    own: Callable | None = getattr(op, "function", None)
    return own if own is not None else FUNCTIONS[op.name]


def float_dtypes(op: Op) -> tuple[DType, ...]:
    """The floating dtypes that an op is tested in."""
    return getattr(op, "dtypes", dtypes.FLOATS)


def tested_dtypes(op: Op) -> tuple[DType, ...]:
    """Every dtype that an op is run in."""
    if not isinstance(op, Elementwise):
        return float_dtypes(op)
    table = {
        "all": (dtypes.bool_, dtypes.int32, dtypes.int64, *dtypes.FLOATS),
        "number": (dtypes.int32, dtypes.int64, *dtypes.FLOATS),
        "float": dtypes.FLOATS,
        "int": (dtypes.bool_, dtypes.int32, dtypes.int64),
    }
    return table[op.takes]


def differentiable(op: Op) -> bool:
    """Whether the op has a gradient."""
    if isinstance(op, Fused):
        return True
    return op.vjp is not None


def sample(op: Op, draw: Draw, dtype: DType) -> Sample:
    """One random call of ``op``: arrays and attributes."""
    if op.samples is not None:
        return op.samples(draw)
    if not isinstance(op, Elementwise):
        raise TypeError(
            f"{op.name}: the entry has no samples to test it with. Add them with "
            f"@{op.name}.samples, or give check_op(..., samples=lambda draw: ((x,), {{}}))"
        )
    shape = draw.shape(0, 4)
    args = []
    for name, domain in zip(op.operands, op.domain):
        own = shape
        if op.arity > 1 and draw.boolean():  # broadcast: drop leading axes, stretch others
            own = shape[draw.integer(0, len(shape)) :]
            own = tuple(1 if draw.integer(0, 3) == 0 else s for s in own)
        d = dtypes.bool_ if name in op.untyped else dtype
        args.append(draw.inside(own, d, domain))
    return tuple(args), dict(op.defaults)


def tensors(args: tuple, device: str, requires_grad: bool = False) -> tuple:
    """Arrays of a sample as Tensors with the same strides, lists included."""

    def one(a: Any) -> Any:
        if isinstance(a, list):
            return [one(x) for x in a]
        if not isinstance(a, np.ndarray):
            return a
        out = _on(a, device)
        if requires_grad and out.is_floating_point():
            out.requires_grad = True
        return out

    return tuple(one(a) for a in args)


def _on(a: np.ndarray, device: str) -> Tensor:
    if device == "cpu":
        return tensor_of(a)
    return tensor_of(_strided_copy(a))


def _strided_copy(a: np.ndarray) -> Any:
    """``a`` on the cuda device with strides of the same kind as on the host."""
    target = runtime.current()
    if a.size == 0 or a.flags.c_contiguous:
        return target.from_host(np.array(a, order="C"))
    steps = tuple(s // a.itemsize for s in a.strides)
    if any(s < 0 for s in steps):
        return target.from_host(np.array(a, order="C"))
    span = sum((n - 1) * s for n, s in zip(a.shape, steps)) + 1
    flat = np.lib.stride_tricks.as_strided(a, (span,), (a.itemsize,))
    return target.from_host(np.ascontiguousarray(flat)).as_strided(a.shape, steps)


def leaves_of(op: Op, args: tuple, device: str) -> tuple:
    """A sample as tensors that require grad where the op is differentiable in them."""
    constant = getattr(op, "constant", ())
    names = op.operands * len(args) if op.variadic else op.operands
    return tuple(
        tensors((a,), device, requires_grad=name not in constant)[0] for name, a in zip(names, args)
    )


@contextmanager
def plain_cpu() -> Iterator[None]:
    """The CPU as it is: inside ``trident.interpret()`` a fused op would run its kernels on CPU
    tensors too, and be compared with itself."""
    token = config.interpreting.set(None)
    try:
        yield
    finally:
        config.interpreting.reset(token)


def on(device: str) -> Any:
    """The context in which ``device`` is itself."""
    return plain_cpu() if device == "cpu" else nullcontext()


def run(op: Op, args: tuple, attrs: dict) -> tuple[Tensor, ...]:
    """The op's results as a tuple."""
    result = function_of(op)(*args, **attrs)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def placed(op: Op, attrs: dict, device: str) -> dict:
    """Attributes that make an op without operands (``random_uniform``) work on ``device``."""
    if device != "cpu" and not op.operands and "device" in op.attributes:
        return {**attrs, "device": runtime.current()}
    return attrs


def oracle(op: Op, args: tuple, attrs: dict) -> tuple[np.ndarray, ...]:
    """The op's meaning in float64: its numpy body (or plain-op body) on widened inputs."""

    def wider(a: Any) -> Any:
        if isinstance(a, list):
            return [wider(x) for x in a]
        if isinstance(a, np.ndarray) and dtypes.from_numpy(a.dtype).is_floating_point:
            return a.astype(np.float64)
        return a

    if isinstance(op, (Elementwise, Primitive, View)):
        attrs = {k: (dtypes.float64 if v in dtypes.HALVES or v is dtypes.float32 else v)
                 if isinstance(v, DType) else v for k, v in attrs.items()}  # fmt: skip
    with plain_cpu():
        result = run(op, tensors(tuple(wider(a) for a in args), "cpu"), attrs)
    return tuple(r.detach()._host() for r in result)


def expected_dtype(op: Op, args: tuple, attrs: dict, i: int) -> DType:
    """The dtype that the entry promises for output ``i``."""
    specs = [
        Spec(a.shape, dtypes.from_numpy(a.dtype)) if isinstance(a, np.ndarray) else a for a in args
    ]
    if isinstance(op, Elementwise):
        from ..backends.numpy import promote

        return op.result_dtype(promote(op, args))
    if isinstance(op, Fused):
        from ..dispatch import fused_spec

        spec = fused_spec(op, tuple(args), attrs)
    elif not hasattr(op, "infer"):
        return run(op, tensors(args, "cpu"), attrs)[i].dtype
    else:
        spec = op.infer(*specs, **attrs)
    return (spec if isinstance(spec, tuple) else (spec,))[i].dtype


def length_of(args: tuple) -> int:
    """How many numbers one element of a result may have been accumulated from."""
    return max([a.size for a in args if isinstance(a, np.ndarray)] + [1])


@contextmanager
def strict() -> Iterator[None]:
    """Fresh memory is NaN, and under the interpreter a lane out of bounds raises KernelError."""
    switches = [config.poison]
    bounds = getattr(config, "check_bounds", None)
    if bounds is not None:
        switches.append(bounds)
    tokens = [s.set(True) for s in switches]
    try:
        yield
    finally:
        for s, token in zip(switches, tokens):
            s.reset(token)


def tiles(draw: Draw, device: str, dtype: DType, gpu_often: bool = False) -> Any:
    """How large the blocks of the kernels are in a check on the interpreted device, as a context.

    One program for everything hides what goes wrong between programs and in partial blocks, and
    the interpreter's large blocks are not those of a GPU. So a check draws: blocks of 4 or of 16
    elements, the interpreter's own, (float32 and float64) the tile sizes of a GPU, or for every
    tuned family one of its ``trials``, which reach the kernels that only a GPU would choose.
    ``gpu_often``: about every other time the tile sizes of a GPU.
    """
    if device != "cuda" or not runtime.current().interpreted:
        return nullcontext()
    gpu = dtype in (dtypes.float32, dtypes.float64)  # the interpreter cannot tl.dot half types
    choices = [4, "gpu", "trial", 16, None] if gpu else [4, "trial", 16, None]
    choice = draw.blocks = draw.choice([*choices, "gpu", "gpu"] if gpu and gpu_often else choices)
    if choice == "trial":
        return trial(draw.integer(0, 11))  # a multiple of 2, 3 and 4 trials
    return gpu_tiles() if choice == "gpu" else _block(choice)


def trial(number: int) -> Any:
    """Every tuned family launched with its ``trials[number]``, counted round and round."""
    from ..kernels import configs

    families = configs.tunable().values()
    return configs.using({f.name: f.trials[number % len(f.trials)] for f in families if f.trials})


@contextmanager
def _block(size: int | None) -> Iterator[None]:
    token = config.interpret_block.set(size)
    try:
        yield
    finally:
        config.interpret_block.reset(token)


@contextmanager
def gpu_tiles() -> Iterator[None]:
    """The interpreter, with launchers choosing the tiles that they choose on a GPU, and programs
    running from the last to the first: a GPU promises no order."""
    from triton.runtime import interpreter

    device = type(runtime.current())()
    device.interpreted = False
    builder = interpreter.interpreter_builder
    plain = builder.set_grid_idx

    def backwards(*place: int) -> None:
        plain(*(n - 1 - i for n, i in zip(builder.grid_dim, place)))

    builder.set_grid_idx = backwards
    try:
        with runtime.use(device):
            yield
    finally:
        builder.set_grid_idx = plain


def draw_for(seed: int, step: str) -> Draw:
    """The draws of one step of ``check_op``: other ones for each step, so that dtypes do not all
    meet the same shapes."""
    return Draw([seed, zlib.crc32(step.encode())])


__all__ = [
    "InPlace", "Sample", "draw_for", "gpu_tiles", "sample", "strict", "tensors", "tiles", "trial",
]  # fmt: skip
