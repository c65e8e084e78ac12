"""``check_op``: everything that an op owes its users, checked from its registry entry alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import config, dtypes, runtime
from ..autograd import grad, gradcheck, gradgradcheck
from ..creation import tensor
from ..dtypes import dtype as DType
from ..ops.registry import REGISTRY, Elementwise, Fused, Op, Primitive, Spec, View
from ..tensor import Tensor, tensor_of
from .draw import Draw
from .tolerance import assert_close

Sample = tuple[tuple, dict]

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5, -3.5, 1e-20, 300.0, -300.0])


def float_dtypes(op: Op) -> tuple[DType, ...]:
    """The floating dtypes that an op is tested in."""
    return getattr(op, "dtypes", dtypes.FLOATS)


def sample(op: Op, draw: Draw, dtype: DType) -> Sample:
    """One random call of ``op``: arrays and attributes."""
    if op.samples is not None:
        return op.samples(draw)
    if not isinstance(op, Elementwise):
        raise TypeError(f"{op.name}: the entry has no samples to test it with")
    shape = draw.shape(0, 3)
    args = []
    for name, domain in zip(op.operands, op.domain):
        own = shape
        if op.arity > 1 and draw.boolean():  # broadcast: drop leading axes, stretch others
            own = shape[draw.integer(0, len(shape)) :]
            own = tuple(1 if draw.integer(0, 3) == 0 else s for s in own)
        d = dtypes.bool_ if name in op.untyped else dtype
        args.append(draw.inside(own, d, domain))
    return tuple(args), dict(op.defaults)


def function_of(op: Op) -> Callable:
    """The public function of an op."""
    from ..ops.registry import FUNCTIONS

    function = FUNCTIONS[op.name]
    return function


def tensors(args: tuple, device: str, requires_grad: bool = False) -> tuple:
    """Arrays of a sample as Tensors with the same strides (on the CPU), lists included."""

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


def run(op: Op, args: tuple, attrs: dict) -> tuple[Tensor, ...]:
    """The op's results as a tuple."""
    result = function_of(op)(*args, **attrs)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def check_values(op: Op, draw: Draw, dtype: DType, device: str = "cpu") -> None:
    """Value and dtype: against the float64 oracle, with inputs left as they were."""
    args, attrs = sample(op, draw, dtype)
    before = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    given = tensors(args, device)
    poison = config.poison.set(True)
    try:
        got = run(op, given, attrs)
    finally:
        config.poison.reset(poison)
    want = oracle(op, args, attrs)
    length = max([a.size for a in args if isinstance(a, np.ndarray)] + [1])
    for i, (g, w) in enumerate(zip(got, want)):
        here = f"{op.name}[{dtype.name}, {device}] output {i}"
        expected = expected_dtype(op, args, attrs, i)
        assert g.dtype is expected, f"{here}: dtype {g.dtype.name}, expected {expected.name}"
        n = 1 if isinstance(op, Elementwise) else length
        if expected.is_floating_point or w.dtype.kind != "f":
            assert_close(g, w.astype(expected.np) if not expected.is_floating_point else w,
                         length=n, msg=here)  # fmt: skip
    for i, (b, t) in enumerate(zip(before, given)):
        if isinstance(b, np.ndarray):
            same = np.array_equal(
                t._host().astype(np.float64), b.astype(np.float64), equal_nan=True
            )
            assert same, f"{op.name}[{dtype.name}, {device}]: operand {i} was modified"


def oracle(op: Op, args: tuple, attrs: dict) -> tuple[np.ndarray, ...]:
    """The op's meaning in float64: its numpy body (or plain-op body) on widened inputs."""
    wide = tuple(
        a.astype(np.float64)
        if isinstance(a, np.ndarray) and dtypes.from_numpy(a.dtype).is_floating_point
        else a
        for a in args
    )
    if isinstance(op, (Elementwise, Primitive, View)):
        attrs = {k: (dtypes.float64 if v in dtypes.HALVES or v is dtypes.float32 else v)
                 if isinstance(v, DType) else v for k, v in attrs.items()}  # fmt: skip
    result = run(op, tensors(wide, "cpu"), attrs)
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
    else:
        spec = op.infer(*specs, **attrs)  # type: ignore[attr-defined]
    return (spec if isinstance(spec, tuple) else (spec,))[i].dtype


def check_special(op: Elementwise, dtype: DType, device: str) -> None:
    """NaN, infinities, signed zeros and huge values: the kernel agrees with numpy."""
    rows = np.meshgrid(*[SPECIAL] * op.arity, indexing="ij") if op.arity <= 2 else [
        np.tile(SPECIAL, 3)[i : i + SPECIAL.size] for i in range(op.arity)
    ]  # fmt: skip
    args = tuple(
        (r > 0) if name in op.untyped else r.astype(dtype.np) for name, r in zip(op.operands, rows)
    )
    attrs = dict(op.defaults)
    (want,) = run(op, tensors(args, "cpu"), attrs)
    (got,) = run(op, tensors(args, device), attrs)
    # 300 overflows exp-like results at different points in float32: compare in float64 arithmetic
    assert_close(got, want, msg=f"{op.name}[{dtype.name}, {device}] special values", length=16)


def smooth_sample(op: Op, draw: Draw) -> Sample:
    """A float64 sample, away from the op's kinks."""
    args, attrs = sample(op, draw, dtypes.float64)
    kinks = getattr(op, "kinks", ())
    if kinks:
        args = tuple(_away(a, kinks) for a in args)
    return args, attrs


def _away(a: Any, kinks: Iterable[float]) -> Any:
    if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
        return a
    a = a.copy()
    for k in kinks:
        near = np.abs(a - k) < 0.05
        a[near] = k + 0.1
    return a


def differentiable(op: Op) -> bool:
    """Whether the op has a gradient."""
    if isinstance(op, Fused):
        return True
    return op.vjp is not None


def leaves_of(op: Op, args: tuple, device: str) -> tuple:
    """A sample as tensors that require grad where the op is differentiable in them."""
    constant = getattr(op, "constant", ())
    names = op.operands * len(args) if op.variadic else op.operands
    return tuple(
        tensors((a,), device, requires_grad=name not in constant)[0] for name, a in zip(names, args)
    )


def check_gradient(op: Op, draw: Draw, device: str = "cpu") -> None:
    """First and second derivatives against differences along random directions, in float64."""
    args, attrs = smooth_sample(op, draw)
    given = leaves_of(op, args, device)
    if not any(isinstance(a, Tensor) and a.requires_grad and a.numel() for a in given):
        return
    function = function_of(op)

    def call(*xs: Any) -> Any:
        return function(*xs, **attrs)

    if not any(o.requires_grad for o in run(op, given, attrs)):
        return
    _check_numpy_vjp(op, call, given)
    gradcheck(call, given, eps=1e-6, atol=1e-5, rtol=1e-4, directions=2)
    gradgradcheck(call, given, eps=1e-6, atol=1e-4, rtol=1e-2)


def _check_numpy_vjp(op: Op, call: Callable, given: tuple) -> None:
    """``numpy_vjp`` (what an ordinary backward runs) against ``vjp`` (what create_graph runs)."""
    if op.numpy_vjp is None:
        return
    leaves = [a for a in given if isinstance(a, Tensor) and a.requires_grad]
    out = call(*given)
    g = tensor(np.random.default_rng(1).standard_normal(tuple(out.shape)))
    plain = grad(out, leaves, g, retain_graph=True, allow_unused=True)
    recorded = grad(out, leaves, g, create_graph=True, allow_unused=True)
    for i, (a, b) in enumerate(zip(plain, recorded)):
        if b is not None:
            assert_close(a, b.detach(), length=b.numel(), msg=f"{op.name}: numpy_vjp, gradient {i}")


def check_gradient_kernel(op: Op, draw: Draw, dtype: DType, device: str) -> None:
    """The backward kernels against the CPU's tape, on the same random cotangents."""
    args, attrs = smooth_sample(op, draw) if dtype is dtypes.float64 else sample(op, draw, dtype)
    kinks = getattr(op, "kinks", ())
    args = tuple(_away(a, kinks) if kinks else a for a in args)
    results = []
    for where in ("cpu", device):
        given = leaves_of(op, args, where)
        leaves = [a for a in given if isinstance(a, Tensor) and a.requires_grad]
        poison = config.poison.set(True)
        try:
            outs = [o for o in run(op, given, attrs) if o.requires_grad]
            if not outs:
                return
            rng = np.random.default_rng(3)
            gs = [
                tensor(rng.standard_normal(tuple(o.shape)).astype(o.dtype.np), device=where)
                for o in outs
            ]
            results.append(grad(outs, leaves, gs, allow_unused=True))
        finally:
            config.poison.reset(poison)
    length = max([a.size for a in args if isinstance(a, np.ndarray)] + [1])
    for i, (want, got) in enumerate(zip(*results)):
        assert (want is None) == (got is None), f"{op.name}: gradient {i} is missing on one device"
        if want is not None:
            assert_close(got, want, length=4 * length, msg=f"{op.name}[{dtype.name}] gradient {i}")


def check_op(
    op: Any, *, devices: Iterable[str] | None = None, examples: int = 5, seed: int = 0
) -> None:
    """Check an op from its entry: values, dtypes, strides, special values, first and second
    derivatives, on every device present. Raises AssertionError with one line that reproduces the
    failure.

    op: a public function (``trident.relu``), an ``Op``, or a name.

    >>> trident.testing.check_op(trident.relu, examples=1)
    """
    record: Op = REGISTRY[op] if isinstance(op, str) else getattr(op, "op", op)
    places = list(devices) if devices is not None else present_devices()
    for place in places:
        for k in range(examples):
            for name, step in steps(record, place):
                try:
                    step(Draw(seed + k))
                except AssertionError as error:
                    error.add_note(
                        f"reproduce: trident.testing.check_op({record.name!r}, "
                        f"devices=[{place!r}], examples=1, seed={seed + k})  # step {name}"
                    )
                    raise


def steps(op: Op, device: str) -> list[tuple[str, Callable[[Draw], None]]]:
    """The named checks that ``check_op`` and the test suite run for an op on a device."""
    found: list[tuple[str, Callable[[Draw], None]]] = []

    def with_dtype(check: Callable, d: DType) -> Callable[[Draw], None]:
        def step(draw: Draw) -> None:
            draw.dtype = d
            check(op, draw, d, device)

        return step

    def special(op: Elementwise, d: DType) -> Callable[[Draw], None]:
        return lambda draw: check_special(op, d, device)

    for d in tested_dtypes(op):
        found.append((f"values {d.name}", with_dtype(check_values, d)))
    if isinstance(op, Elementwise) and device != "cpu" and op.takes != "int":
        for d in (dtypes.float32, dtypes.float64):
            found.append((f"special {d.name}", special(op, d)))
    if differentiable(op):
        if device == "cpu":

            def gradient(draw: Draw) -> None:
                draw.dtype = dtypes.float64
                check_gradient(op, draw)

            found.append(("gradient", gradient))
        else:
            for d in float_dtypes(op):
                if d in (dtypes.float32, dtypes.float64):
                    found.append((f"gradient {d.name}", with_dtype(check_gradient_kernel, d)))
    return found


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


def present_devices() -> list[str]:
    """'cpu', and 'cuda' where its kernels can run here."""
    return ["cpu", "cuda"] if runtime.is_available() else ["cpu"]
