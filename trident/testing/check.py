"""``check_op``: everything that an op owes its users, checked from its registry entry alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import dtypes, runtime
from ..dtypes import dtype as DType
from ..ops.registry import Elementwise, Fused, InPlace, Op, View
from .cases import (
    differentiable,
    draw_for,
    expected_dtype,
    float_dtypes,
    function_of,
    length_of,
    on,
    oracle,
    placed,
    plain_cpu,
    record_of,
    run,
    sample,
    strict,
    tensors,
    tested_dtypes,
    tiles,
)
from .closeness import assert_close, tolerance
from .draw import Draw
from .gradients import check_gradient, check_gradient_kernel, check_kinks
from .mistakes import check_errors

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5, -3.5, 1e-20, 300.0, -300.0])


def check_values(op: Op, draw: Draw, dtype: DType, device: str = "cpu") -> None:
    """Value and dtype: against the float64 oracle, with inputs left as they were."""
    with tiles(draw, device, dtype), strict():
        args, attrs = sample(op, draw, dtype)
        before = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        given = tensors(args, device)
        got = [(g, g._host()) for g in run(op, given, placed(op, attrs, device))]
        after = [t._host() if isinstance(b, np.ndarray) else t for b, t in zip(before, given)]
    want = oracle(op, args, attrs)
    length = 1 if isinstance(op, Elementwise) else length_of(args)
    for i, ((tensor, g), w) in enumerate(zip(got, want)):
        here = f"{op.name}[{dtype.name}, {device}] output {i}"
        expected = expected_dtype(op, args, attrs, i)
        assert tensor.dtype is expected, (
            f"{here}: dtype {tensor.dtype.name}, expected {expected.name}"
        )
        if expected in dtypes.HALVES and _rounds_at_the_end(op, device):
            assert_close(
                g,
                w,
                msg=here,
                **half_tolerance(expected, length, 3 if isinstance(op, Fused) else 1),
            )
        elif expected.is_floating_point:
            assert_close(g, w, length=length, msg=here)
        elif w.dtype.kind != "f":
            raw = g.view(np.uint8) if expected is dtypes.bool_ else np.zeros(0, np.uint8)
            assert raw.max(initial=0) <= 1, f"{here}: a bool that is neither 0 nor 1: not written?"
            assert_close(g, w.astype(expected.np), length=length, msg=here)
    for i, (b, t) in enumerate(zip(before, after)):
        if isinstance(b, np.ndarray):
            same = np.array_equal(t.astype(np.float64), b.astype(np.float64), equal_nan=True)
            assert same, f"{op.name}[{dtype.name}, {device}]: operand {i} was modified"


def half_tolerance(dtype: DType, length: int, roundings: int) -> dict[str, Any]:
    """rtol and atol of a half type that is computed in float32 and rounded at the end: half a unit
    in the last place for each rounding, and what float32 may lose. Tighter than ``tolerance``, so
    that a kernel which computes in the half type itself is seen."""
    rtol, atol = tolerance(dtypes.float32, length)
    info = dtypes.finfo(dtype)
    return {"rtol": rtol + 0.5 * info.eps * roundings, "atol": atol + float(info.tiny) * info.eps}


def _rounds_at_the_end(op: Op, device: str) -> bool:
    """Not where separate ops run, or where a kernel rounds as they would (between a product, its
    bias and its activation): what is rounded before a sum may cancel in it."""
    if isinstance(op, Fused):
        return device != "cpu"
    return "activation" not in op.attributes


def check_special(op: Elementwise, draw: Draw, dtype: DType, device: str) -> None:
    """NaN, infinities, signed zeros and huge values: the kernel agrees with numpy."""
    rows = np.meshgrid(*[SPECIAL] * op.arity, indexing="ij") if op.arity <= 2 else [
        np.tile(SPECIAL, 3)[i : i + SPECIAL.size] for i in range(op.arity)
    ]  # fmt: skip
    args = tuple(
        (r > 0) if name in op.untyped else r.astype(dtype.np) for name, r in zip(op.operands, rows)
    )
    attrs = dict(op.defaults)
    if op.samples is not None:
        attrs |= {k: v for k, v in op.samples(draw)[1].items() if k in op.attributes}
    with plain_cpu():
        (want,) = run(op, tensors(args, "cpu"), attrs)
    with tiles(draw, device, dtype), strict():
        (got,) = run(op, tensors(args, device), attrs)
        found = got._host()
    # 300 overflows exp-like results at different points in float32: compare in float64 arithmetic
    assert_close(found, want, msg=f"{op.name}[{dtype.name}, {device}] special values", length=16)


def check_rows(op: Op, draw: Draw, dtype: DType, device: str) -> None:
    """NaN, infinities and signed zeros among the values of the first operand of a primitive or
    fused op: the kernel agrees with the CPU on what is finite, and on the finite values. An
    infinity that meets a zero or another one is NaN or not as the order has it."""
    with tiles(draw, device, dtype), strict():
        args, attrs = sample(op, draw, dtype)
        rng = draw.values()
        many = float(rng.choice([0.1, 0.3, 1.0, 1.0]))
        kinds = rng.permutation([np.nan, np.inf, -np.inf, -0.0])[: rng.integers(1, 3)]
        first = next((i for i, a in enumerate(args) if _floats(a)), -1)
        args = tuple(
            _with_special(a, kinds, many, rng) if i == first else a for i, a in enumerate(args)
        )
        with np.errstate(all="ignore"), plain_cpu():
            want = run(op, tensors(args, "cpu"), attrs)
        found = [g._host() for g in run(op, tensors(args, device), placed(op, attrs, device))]
    length = 16 * length_of(args)
    for i, (g, t) in enumerate(zip(found, want)):
        w = t._host()
        if w.dtype.kind not in "iub":
            w = w.astype(np.float64)
            odd = ~np.isfinite(g.astype(np.float64))
            w = np.where(odd & ~np.isfinite(w), g.astype(np.float64), w)
        assert_close(g, w, length=length, msg=f"{op.name}[{dtype.name}, {device}] special rows {i}")


SPREADS = ("nll_backward",)
"""Kernels that multiply a gradient by a row of zeros and a one, so that NaN spreads along it."""


def _floats(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind not in "iub" and a.size > 0


def _with_special(a: np.ndarray, kinds: np.ndarray, many: float, rng: Any) -> np.ndarray:
    """``a`` with some of ``kinds`` in it, in the same layout (an expanded one becomes plain)."""
    out = a if 0 not in a.strides and a.flags.writeable else a.copy()
    where = rng.random(a.shape) < many
    kind = kinds[int(rng.integers(0, len(kinds)))]
    if a.ndim and rng.integers(0, 2):  # in one place along an axis alone: its neighbours stay clean
        axis = int(rng.integers(0, a.ndim))
        place = (slice(None),) * axis + (int(rng.integers(0, a.shape[axis])),)
        alone = np.zeros_like(where)
        alone[place] = where[place]
        where = alone
    out[where] = kind
    return out


def check_inplace(op: InPlace, draw: Draw, dtype: DType, device: str) -> None:
    """An update of lists of arrays: every array afterwards, against the update in float64."""
    with tiles(draw, device, dtype), strict():
        args, attrs = sample(op, draw, dtype)
        args = tuple([np.asarray(a) for a in r] if isinstance(r, list) else r for r in args)
        wide = tensors(
            tuple([a.astype(np.float64) for a in r] if isinstance(r, list) else r for r in args),
            "cpu",
        )
        given = tensors(args, device)
        function_of(op)(*given, **attrs)
        after = [[t._host() for t in row] if isinstance(row, list) else row for row in given]
    with plain_cpu():
        function_of(op)(*wide, **attrs)
    for name, row, expected in zip(op.operands, after, wide):
        if not isinstance(row, list):
            continue
        for k, (a, w) in enumerate(zip(row, expected)):
            here = f"{op.name}[{dtype.name}, {device}] {name}[{k}]"
            assert_close(a, w, length=8, msg=here)


def check_op(
    op: Any,
    *,
    devices: Iterable[str] | None = None,
    examples: int = 8,
    seed: int = 0,
    samples: Callable | None = None,
    verbose: bool = False,
) -> None:
    """Check an op from its entry, on every device present: values and dtypes against a float64
    oracle over shapes and strides of every kind, inputs left unmodified, special values, first and
    second derivatives against differences, gradients at kinks, the gradient kernel against the
    tape, and the errors that wrong calls must raise. Fresh memory is NaN, and under the interpreter
    an access out of bounds is an error.

    op: a public function (``trident.relu``, or your own), an ``Op``, or a name. samples: a function
    from a ``Draw`` to (operands, attributes), instead of the entry's. examples: random calls of
    each step. verbose: print each step and its seconds. Raises AssertionError (GradcheckError for a
    gradient, KernelError for an access out of bounds) with one line that reproduces the failure.

    >>> trident.testing.check_op(trident.relu, examples=1)
    """
    record = record_of(op)
    places = list(devices) if devices is not None else present_devices()
    with _sampled(record, samples):
        for place in places:
            for name, step in steps(record, place):
                start = time.perf_counter()
                for k in range(1 if once(record, name) else examples):
                    _run_step(record, place, name, step, seed + k, samples is not None)
                if verbose:
                    spent = time.perf_counter() - start
                    print(f"{record.name} [{place}] {name}: {spent:.2f} s")


def once(op: Op, step: str) -> bool:
    """Whether a step draws nothing, so that one run of it is enough."""
    return step == "errors" and not hasattr(op, "infer") and not isinstance(op, Fused)


def _run_step(
    record: Op, place: str, name: str, step: Callable, seed: int, overridden: bool
) -> None:
    try:
        step(draw_for(seed, name))
    except Exception as error:
        extra = ", samples=..." if overridden else ""
        error.add_note(
            f"reproduce: trident.testing.check_op({record.name!r}, devices=[{place!r}], "
            f"examples=1, seed={seed}{extra})  # step {name}"
        )
        raise


@contextmanager
def _sampled(op: Op, samples: Callable | None) -> Any:
    if samples is None:
        yield
        return
    before = op.samples
    op.samples = samples
    try:
        yield
    finally:
        op.samples = before


def steps(op: Op, device: str) -> list[tuple[str, Callable[[Draw], None]]]:
    """The named checks that ``check_op`` and the test suite run for an op on a device."""
    found: list[tuple[str, Callable[[Draw], None]]] = []

    def with_dtype(check: Callable, d: DType) -> Callable[[Draw], None]:
        def step(draw: Draw) -> None:
            draw.dtype = d
            with on(device):
                check(op, draw, d, device)

        return step

    if isinstance(op, InPlace):
        return [(f"update {d.name}", with_dtype(check_inplace, d)) for d in dtypes.FLOATS]
    for d in tested_dtypes(op):
        found.append((f"values {d.name}", with_dtype(check_values, d)))
    if isinstance(op, Elementwise) and device != "cpu" and op.takes != "int":
        for d in (dtypes.float32, dtypes.float64):
            found.append((f"special {d.name}", with_dtype(check_special, d)))
    if not isinstance(op, (Elementwise, View)) and device != "cpu" and op.name not in SPREADS:
        found.append(("special rows", with_dtype(check_rows, float_dtypes(op)[-2:][0])))
    if differentiable(op):
        if device == "cpu":
            found.append(("gradient", with_dtype(check_gradient, dtypes.float64)))
        else:
            for d in float_dtypes(op):
                if d in (dtypes.float32, dtypes.float64):
                    found.append((f"gradient {d.name}", with_dtype(check_gradient_kernel, d)))
        if getattr(op, "kinks", ()):
            found.append(("kinks", with_dtype(check_kinks, dtypes.float64)))
    found.append(("errors", with_dtype(check_errors, tested_dtypes(op)[-1])))
    return found


def present_devices() -> list[str]:
    """'cpu', and 'cuda' where its kernels can run here."""
    return ["cpu", "cuda"] if runtime.is_available() else ["cpu"]
