"""The C functions made of ``triton`` bodies, against the numpy bodies; the rules of translation.

All elementwise ops in all dtypes are compiled as one C file, each function in a plain array loop.
"""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trident
from trident import dtypes
from trident.backends.transpile import C_TYPES, CModule, Untranslatable
from trident.lang import jit, tl
from trident.ops.registry import REGISTRY, Elementwise
from trident.testing import assert_close
from trident.testing.check import SPECIAL
from trident.testing.draw import Draw

COMPILER = shutil.which("gcc") or shutil.which("cc")
FLAGS = ["-O1", "-ftree-vectorize", "-march=native", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=off", "-fopenmp-simd", "-shared", "-fPIC"]  # fmt: skip
GCC = (
    COMPILER is not None
    and "Free Software Foundation"
    in subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout
)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (gcc or cc) is here")

TRITON_NAMES = {"u8": "u8", "fp32": "f32", "fp64": "f64"}
TAKES = {
    "all": (dtypes.bool_, *dtypes.INTS, dtypes.float32, dtypes.float64),
    "number": (*dtypes.INTS, dtypes.float32, dtypes.float64),
    "float": (dtypes.float32, dtypes.float64),
    "int": (dtypes.bool_, *dtypes.INTS),
}
LITERAL = {("hardtanh", "uint8")}
"""-1.0, the default of min_val, is no uint8; Triton refuses it too."""


def short(d: trident.dtype) -> str:
    return "i1" if d is dtypes.bool_ else TRITON_NAMES.get(d.triton, d.triton)


def cases() -> list[tuple[Elementwise, trident.dtype]]:
    found = []
    for op in REGISTRY.values():
        # test files that ran before may have registered ops of their own
        if isinstance(op, Elementwise) and op.numpy.__module__.startswith("trident."):
            for d in TAKES[op.takes]:
                if (d.is_floating_point or op.result != "float") and (
                    op.name, d.name
                ) not in LITERAL:  # fmt: skip
                    found.append((op, d))
    return found


CASES = cases()
FLOATS = [(op, d) for op, d in CASES if d.is_floating_point]
NAMES = [f"{op.name}-{d.name}" for op, d in CASES]


def loop(name: str, function: str, operands: list[str], result: str) -> str:
    """C text of a loop that applies ``function`` to arrays."""
    memory = {**C_TYPES, "i1": "uint8_t"}
    formals = "".join(f", const {memory[t]} *restrict x{i}" for i, t in enumerate(operands))
    actual = ", ".join(f"x{i}[i]{' != 0' * (t == 'i1')}" for i, t in enumerate(operands))
    return (
        f"void {name}(long n, {memory[result]} *restrict out{formals}) {{\n"
        f"#pragma omp simd\n"
        f"    for (long i = 0; i < n; i++) out[i] = ({C_TYPES[result]}){function}({actual});\n}}\n"
    )


def compiled(text: str, folder: Path, *flags: str) -> tuple[ctypes.CDLL, str]:
    """The library of a C text, and what the compiler said."""
    source, library = folder / "text.c", folder / "text.so"
    source.write_text(text)
    assert COMPILER is not None
    quick = ["--param", "vect-epilogues-nomask=0"] if GCC else []  # half of the compile time
    command = [COMPILER, *FLAGS, *quick, *flags, str(source), "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library)), done.stderr


def call(function: Any, arrays: list[np.ndarray], result: np.dtype) -> np.ndarray:
    """Run a loop of ``loop`` on equally long arrays."""
    arrays = [np.ascontiguousarray(a) for a in arrays]
    out = np.empty(arrays[0].shape, result)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (out, *arrays)]
    function(ctypes.c_long(out.size), *pointers)
    return out


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    module = CModule()
    loops = []
    for op, d in CASES:
        operands = ["i1" if name in op.untyped else short(d) for name in op.operands]
        name, _ = module.function(op.triton, tuple(operands), dict(op.defaults))
        loops.append(loop(f"{op.name}_{d.name}", name, operands, short(op.result_dtype(d))))
    text = module.text() + "\n" + "\n".join(loops)
    return compiled(text, tmp_path_factory.mktemp("transpile"))[0]


def of_numpy(op: Elementwise, args: list[np.ndarray], result: trident.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        out = np.asarray(op.numpy(*args, **op.defaults))
        return out if result.is_floating_point else out.astype(result.np)


@needs_compiler
@pytest.mark.parametrize(("op", "d"), CASES, ids=NAMES)
def test_values(op: Elementwise, d: trident.dtype, library: ctypes.CDLL) -> None:
    result = op.result_dtype(d)
    for seed in range(2):
        draw = Draw(np.random.default_rng([seed, len(op.name)]).integers(2**32), d, strided=False)
        args = [
            draw.inside((1003,), dtypes.bool_ if name in op.untyped else d, domain)
            for name, domain in zip(op.operands, op.domain)
        ]
        got = call(library[f"{op.name}_{d.name}"], args, result.np)
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in args]
        assert_close(got, of_numpy(op, wide, result), msg=f"{op.name} {d.name} seed {seed}")


@needs_compiler
@pytest.mark.parametrize(("op", "d"), FLOATS, ids=[f"{op.name}-{d.name}" for op, d in FLOATS])
def test_special_values(op: Elementwise, d: trident.dtype, library: ctypes.CDLL) -> None:
    rows = np.meshgrid(*[SPECIAL] * op.arity, indexing="ij") if op.arity <= 2 else [
        np.tile(SPECIAL, 3)[i : i + SPECIAL.size] for i in range(op.arity)
    ]  # fmt: skip
    args = [(r > 0) if name in op.untyped else r.astype(d.np) for name, r in zip(op.operands, rows)]
    result = op.result_dtype(d)
    got = call(library[f"{op.name}_{d.name}"], args, result.np)
    want = of_numpy(op, args, result)
    assert_close(got, want, msg=f"{op.name} {d.name} special values", length=16)


# The helper functions: accuracy and extreme arguments

EXACT: dict[str, Callable] = {
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sin": np.sin, "cos": np.cos,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
}  # fmt: skip


@jit
def exp_of(x):
    return tl.exp(x)


@jit
def exp2_of(x):
    return tl.exp2(x)


@jit
def log_of(x):
    return tl.log(x)


@jit
def log2_of(x):
    return tl.log2(x)


@jit
def sin_of(x):
    return tl.sin(x)


@jit
def cos_of(x):
    return tl.cos(x)


@jit
def erf_of(x):
    return tl.erf(x)


BODIES = {"exp": exp_of, "exp2": exp2_of, "log": log_of, "log2": log2_of, "sin": sin_of,
          "cos": cos_of, "erf": erf_of}  # fmt: skip


def arguments(name: str, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Arguments from every part of a function's range, the subnormal results or arguments too."""
    deep = {"f32": 103.0, "f64": 745.0}[kind]
    if name in ("exp", "exp2"):
        top = {"f32": 88.0, "f64": 709.0}[kind]
        scale = 1.0 if name == "exp" else 1 / math.log(2)
        wide = rng.uniform(-deep, top, 4000) * scale
    elif name in ("log", "log2"):
        wide = np.exp(rng.uniform(-deep, 80, 4000))
    elif name == "erf":
        wide = rng.uniform(-6.5, 6.5, 4000)
    else:  # also far beyond where the reduction reaches
        wide = np.exp(rng.uniform(-20, 85, 4000)) * rng.choice([-1, 1], 4000)
    near = rng.uniform(0.5, 2.0, 2000) if name.startswith("log") else rng.uniform(-3, 3, 2000)
    return np.concatenate([wide, near])


@needs_compiler
def test_helpers_are_accurate(tmp_path: Path) -> None:
    module, loops = CModule(), []
    for name, body in BODIES.items():
        for kind in ("f32", "f64"):
            function, result = module.function(body, (kind,), {})
            assert result == kind
            loops.append(loop(f"{name}_{kind}", function, [kind], kind))
    library, _ = compiled(module.text() + "\n".join(loops), tmp_path)
    rng = np.random.default_rng(7)
    for name in BODIES:
        for kind, d in (("f32", np.float32), ("f64", np.float64)):
            x = arguments(name, kind, rng).astype(d)
            got = call(library[f"{name}_{kind}"], [x], np.dtype(d))
            # float32 against float64; float64 against libm, which is within an ulp itself
            want = EXACT[name](x.astype(np.float64))
            unit = np.spacing(np.abs(want).astype(d)).astype(np.float64)
            with np.errstate(invalid="ignore"):
                error = np.abs(got.astype(np.float64) - want) / unit
            worst = int(np.argmax(error))
            limit = 1.5 if kind == "f32" else 2.5
            assert error[worst] < limit, f"{name}_{kind}({x[worst]!r}): {error[worst]:.2f} ulp"
            special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1.0, 1.0], d)
            got = call(library[f"{name}_{kind}"], [special], np.dtype(d))
            with np.errstate(all="ignore"):
                want = EXACT[name](special.astype(np.float64)).astype(d)
            assert_close(got, want, msg=f"{name}_{kind}")
            zero = (got == 0) & (want == 0)
            assert np.array_equal(np.signbit(got[zero]), np.signbit(want[zero])), name


@jit
def to_int64(x):
    return x.to(tl.int64)


@jit
def to_float64(x):
    return x.to(tl.float64)


@jit
def to_float32(x):
    return x.to(tl.float32)


@jit
def quotient(x, y):
    return x // y


@jit
def rest(x, y):
    return x % y


@jit
def high_product(x, y):
    return tl.umulhi(x, y)


@needs_compiler
def test_integers_are_exact(tmp_path: Path) -> None:
    module, loops = CModule(), []

    def add(name: str, body: Any, *operands: str) -> None:
        function, result = module.function(body, operands, {})
        loops.append(loop(name, function, list(operands), result))

    add("whole", to_int64, "f64")
    add("wide", to_float64, "i64")
    add("narrow", to_float32, "i64")
    add("high", high_product, "i64", "i64")
    for t in ("i8", "i32", "i64", "u8"):
        add(f"div_{t}", quotient, t, t)
        add(f"mod_{t}", rest, t, t)
    library, _ = compiled(module.text() + "\n".join(loops), tmp_path)
    rng = np.random.default_rng(3)

    x = np.concatenate([np.ldexp(rng.uniform(-1, 1, 4000), rng.integers(-3, 63, 4000)),
                        np.array([0.0, -0.0, 0.5, -0.5, -1.0, -(2.0**63), 2.0**62])])  # fmt: skip
    assert np.array_equal(call(library["whole"], [x], np.dtype(np.int64)), x.astype(np.int64))
    call(library["whole"], [np.array([np.nan, np.inf, -np.inf, 1e300])], np.dtype(np.int64))

    n = rng.integers(-(2**63), 2**63 - 1, 4000) >> rng.integers(0, 63, 4000)
    n = np.concatenate([n, [2**63 - 1, -(2**63), 0, -1, 2**24 + 1, 2**53 + 1, 2**60 + 2**36 + 1]])
    assert np.array_equal(call(library["wide"], [n], np.dtype(np.float64)), n.astype(np.float64))
    assert np.array_equal(call(library["narrow"], [n], np.dtype(np.float32)), n.astype(np.float32))
    m = np.roll(n, 5)
    product = [(int(a) % 2**64) * (int(b) % 2**64) >> 64 for a, b in zip(n, m)]
    high = call(library["high"], [n, m], np.dtype(np.int64)).view(np.uint64)
    assert high.tolist() == product

    for t, d in (("i8", np.int8), ("i32", np.int32), ("i64", np.int64), ("u8", np.uint8)):
        info = np.iinfo(d)
        a = rng.integers(info.min, info.max, 3000, dtype=d, endpoint=True)
        b = rng.integers(info.min, info.max, 3000, dtype=d) >> d(rng.integers(0, 7))
        a[:4], b[:4] = [info.min, info.min, 5, 0], [-1 if info.min else 1, 1, 0, 0]
        quotients, rests = [], []
        for p, q in zip(a.tolist(), b.tolist()):
            whole = abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1) if q else 0
            quotients.append((whole - info.min) % 2**info.bits + info.min)  # wraps
            rests.append(p - whole * q if q else 0)
        assert call(library[f"div_{t}"], [a, b], np.dtype(d)).tolist() == quotients, t
        assert call(library[f"mod_{t}"], [a, b], np.dtype(d)).tolist() == rests, t


# Vectorisation

COMMON = ("relu", "gelu", "silu", "tanh", "sigmoid", "exp", "log", "softplus", "erf", "mul",
          "where", "maximum", "sqrt", "rsqrt", "pow", "sin", "cos", "leaky_relu", "div", "log1p",
          "eq", "floor")  # fmt: skip
IN_DOUBLE = ("gelu", "tanh", "exp", "log", "erf", "pow", "sin", "where", "maximum")


@pytest.mark.skipif(not GCC, reason="the report of vectorised loops is gcc's")
def test_common_loops_are_vectorised(tmp_path: Path) -> None:
    module, names, loops = CModule(), [], []
    for name in (*COMMON, "gelu_tanh"):
        op = REGISTRY[name.removesuffix("_tanh")]
        constants = dict(op.defaults)
        if name == "gelu_tanh":
            constants["approximate"] = "tanh"
        for d in (dtypes.float32, dtypes.float64)[: 1 + (name in IN_DOUBLE)]:
            operands = ["i1" if n in op.untyped else short(d) for n in op.operands]
            function, _ = module.function(op.triton, tuple(operands), constants)
            names.append(f"{name}_{d.name}")
            loops.append(loop(names[-1], function, operands, short(op.result_dtype(d))))
    text = module.text() + "\n" + "\n".join(loops)
    _, said = compiled(text, tmp_path, "-O3", "-fopt-info-vec-optimized")
    done = {int(line) for line in re.findall(r":(\d+):\d+: optimized: loop vectorized", said)}
    lines = text.splitlines()
    missing = []
    for name in names:
        at = next(i for i, line in enumerate(lines, 1) if line.startswith(f"void {name}("))
        if not done & {at + 1, at + 2}:
            missing.append(name)
    assert not missing, f"not vectorised: {missing}"


# Types, static branches, calls


@jit
def product(x, y):
    return x * y


@jit
def ratio(x, y):
    return x / y


@jit
def choice(c, x, y):
    return tl.where(c, x, y)


@pytest.mark.parametrize(
    ("body", "types", "result"),
    [
        (product, ("i32", "f32"), "f32"),
        (product, ("i64", "f32"), "f32"),
        (product, ("f32", "f64"), "f64"),
        (product, ("i1", "i1"), "i1"),
        (product, ("i1", "i8"), "i8"),
        (product, ("u8", "i8"), "u8"),
        (product, ("u8", "i16"), "i16"),
        (product, ("i8", "i64"), "i64"),
        (product, ("f32", 0.1), "f32"),  # a number is weak
        (product, ("f32", 1e300), "f32"),
        (product, ("u8", 3), "u8"),
        (product, ("u8", 0.5), "f32"),
        (product, ("i32", 2**40), None),
        (product, ("u8", -1), None),
        (product, ("i1", 2), "i32"),
        (product, ("i1", True), "i1"),
        (ratio, ("i32", "i32"), "f32"),
        (ratio, ("i64", "f64"), "f64"),
        (ratio, ("u8", "i32"), None),
        (quotient, ("f32", "f32"), None),
        (choice, ("i1", 1, 2.0), "f32"),
        (choice, ("i1", 1, 2**40), "i64"),
        (choice, ("i1", "f64", 0), "f64"),
        (choice, ("i1", "i8", "i16"), "i16"),
    ],
)
def test_promotion(body: Any, types: tuple, result: str | None) -> None:
    if result is None:
        with pytest.raises(Untranslatable, match=body.name):
            CModule().function(body, types, {})
    else:
        assert CModule().function(body, types, {})[1] == result


@jit
def by_type(x):
    if x.dtype == tl.float64:
        return x.no_such_thing()
    elif x.dtype.is_floating():
        y = x * 2
    else:
        y = x.to(tl.int64)
        y = y + x.dtype.primitive_bitwidth
    return y


@jit
def both_ends(x, n: tl.constexpr):
    low = x
    high = x
    for k in tl.static_range(n):
        low -= k
        high += k
    return low, (high, n)


@jit
def span(x, n: tl.constexpr = 3):
    low, (high, count) = both_ends(x, n=n)
    return (high - low) * count


@jit
def same(x, like):
    if not isinstance(x, tl.tensor):
        return tl.full(like.shape, x, like.dtype)
    else:
        return x


@jit
def shifted(x):
    return x + same(2.5, x)


def test_static_parts(tmp_path: Path) -> None:
    module = CModule()
    assert module.function(by_type, ("f32",), {})[1] == "f32"
    assert module.function(by_type, ("i16",), {})[1] == "i64"
    with pytest.raises(Untranslatable, match=r"by_type .*test_transpile\.py:\d+.*no_such_thing"):
        module.function(by_type, ("f64",), {})
    name, result = module.function(span, ("f64",), {"n": 4})
    again = module.function(span, ("f64",), {"n": 4})
    other = module.function(span, ("f64",), {"n": 5})
    assert (name, result) == again and other[0] != name
    assert module.text().count(f" {name}(") == 1
    shift, _ = module.function(shifted, ("f32",), {})
    assert "same" not in module.text()  # a call that returns a number or an argument leaves no call
    if COMPILER is None:
        pytest.skip("no C compiler (gcc or cc) is here")
    rng = np.random.default_rng(0)
    text = module.text() + loop("span", name, ["f64"], "f64") + loop("plus", shift, ["f32"], "f32")
    library, _ = compiled(text, tmp_path)
    x = rng.standard_normal(37)
    assert_close(call(library["span"], [x], x.dtype), np.full(37, 48.0))  # 2 (0 + 1 + 2 + 3) 4
    narrow = x.astype(np.float32)
    assert_close(call(library["plus"], [narrow], narrow.dtype), narrow + np.float32(2.5))


def test_literals_are_not_parameters(tmp_path: Path) -> None:
    module = CModule()
    name, result = module.function(product, (3, "f32"), {})
    assert result == "f32" and f"{name}(float a0)" in module.text()
    integer = module.function(product, (1, "f32"), {})[0]
    floating = module.function(product, (1.0, "f32"), {})[0]
    assert len({name, integer, floating}) == 3
    assert module.function(product, (2, 0.5), {})[1] == "f32"  # no run-time argument at all


@jit
def branch_on_value(x):
    y = x + 1
    if y > 0:
        return y
    return x


@jit
def reduction(x):
    return tl.sum(x, 0)


@jit
def block(x):
    return x + tl.full([4], 1, x.dtype)


@jit
def lookup(x):
    return x * x.shape[0]


@jit
def half(x):
    return x.to(tl.float16)


@jit
def outer(x):
    return branch_on_value(x)


@jit
def endless(x):
    for _ in range(10**6):
        x = x * x + 1
    return x


@jit
def pair(x):
    return x, x


@jit
def root(x):
    return x**0.5


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (branch_on_value, "tl.where"),
        (reduction, "tl.sum"),
        (block, "shape"),
        (lookup, "shape"),
        (half, "fp16"),
        (endless, "operations"),
        (pair, "not one value"),
        (root, "unsupported operand"),
    ],
)
def test_what_has_no_c_form(body: Any, says: str) -> None:
    with pytest.raises(Untranslatable) as caught:
        CModule().function(body, ("f32",), {})
    message = str(caught.value)
    assert body.name in message and says in message, message
    if body is not pair:
        first = body.fn.__code__.co_firstlineno
        (line,) = re.findall(r"test_transpile\.py:(\d+)", message)
        assert first < int(line) <= first + 4, message


def test_an_error_names_the_function_it_is_in() -> None:
    with pytest.raises(Untranslatable, match=r"^branch_on_value \(.*test_transpile\.py:\d+\)"):
        CModule().function(outer, ("f32",), {})
    module = CModule()
    with pytest.raises(Untranslatable, match=r"outer.*argument"):
        module.function(outer, ("f32", "f32"), {})
    module.function(product, ("f32", "f32"), {})  # a failure leaves the module usable
    assert "f_product_f32_f32" in module.text()
