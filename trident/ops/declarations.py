"""What ``@elementwise`` and ``@fused`` check of an entry when it is defined.

An entry is read by name in many places and much later: by the emitter, by the tape, by a launch. A
slip in it is cheapest where it was written, so each check here names the entry, what is wrong with
it and what to write instead.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..dtypes import dtype as DType
from ..errors import wrong
from ..lang import Jit

if TYPE_CHECKING:
    from .registry import Elementwise, Fused

_KINDS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def bad(kind: str, name: str, expected: str, got: object = None, hint: str = "") -> Exception:
    """The TypeError for an entry that cannot work."""
    return wrong(f"{kind} {name}", expected, got=got, hint=hint or None, error=TypeError)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _named_parameters(kind: str, name: str, role: str, function: Any) -> list[inspect.Parameter]:
    """The parameters of a body, all of which must have names."""
    if not inspect.isfunction(function):
        raise bad(
            kind, name, f"{role} must be a Python function, written with def or lambda",
            got=type(function).__name__,
        )  # fmt: skip
    found = list(inspect.signature(function).parameters.values())
    starred = [str(p) for p in found if p.kind in _KINDS]
    if starred:
        raise bad(kind, name, f"{role} takes named parameters only", got=starred[0])
    return found


# ---- elementwise --------------------------------------------------------------------------------

_PARTS = ("numpy", "triton", "vjp", "samples")


def elementwise_parts(body: Any) -> dict[str, Any]:
    """The bodies of an elementwise entry by name, ``triton`` as a ``Jit``."""
    name = getattr(body, "__name__", repr(body))
    if not isinstance(body, type):
        raise bad(
            "elementwise", name, "decorates a class that holds numpy, triton and (optionally) vjp",
            got=f"a {type(body).__name__}",
            hint="a function of other ops needs no decorator; with kernels of its own it is "
            "@trident.fused",
        )  # fmt: skip
    inside = {k: v for k, v in vars(body).items() if not k.startswith("_")}
    strange = [k for k in inside if k not in _PARTS]
    if strange:
        raise bad("elementwise", name, f"an entry holds {_listed(_PARTS)}", got=repr(strange[0]))
    parts = {k: v.__func__ if isinstance(v, staticmethod) else v for k, v in inside.items()}
    if "numpy" not in parts:
        raise bad(
            "elementwise", name, "the entry has no numpy body",
            hint="add `def numpy(x): ...`, the formula on ndarrays: it is the CPU path and the "
            "kernel's reference",
        )  # fmt: skip
    if "triton" not in parts:
        raise bad(
            "elementwise", name, "the entry has no triton body",
            hint="add `@trident.jit` and `def triton(x): ...`, the same formula on values in "
            "registers",
        )  # fmt: skip
    triton = parts["triton"]
    if triton is not None and not isinstance(triton, Jit):
        fn = getattr(triton, "fn", triton)  # a real @triton.jit function holds it as .fn
        _named_parameters("elementwise", name, "triton", fn)
        parts["triton"] = Jit(fn)
    _named_parameters("elementwise", name, "numpy", parts["numpy"])
    return parts


def check_elementwise(op: Elementwise, vjp: Any) -> None:
    """The bodies of ``op`` fit each other, and its options name what is there."""
    kind, name = "elementwise", op.name
    if not op.operands:
        raise bad(kind, name, "numpy needs at least one positional parameter: the operand x")
    clash = [n for n in (*op.operands, *op.attributes) if n in ("g", "out")]
    if clash:
        raise bad(kind, name, "operands and constants cannot be called g or out", got=clash[0],
                  hint="in vjp these are the incoming gradient and the result")  # fmt: skip
    if op.triton is not None:
        found = list(inspect.signature(op.triton.fn).parameters)
        if len(found) < op.arity or sorted(found[op.arity :]) != sorted(op.attributes):
            want = _listed((*op.operands, *(f"{a}: tl.constexpr" for a in op.attributes)))
            raise bad(kind, name, f"triton must take what numpy takes: ({want})",
                      got=f"({_listed(found)})")  # fmt: skip
    if vjp is not None:
        found = [p.name for p in _named_parameters(kind, name, "vjp", vjp)]
        known = ("g", *op.operands, "out", *op.attributes)
        for n in found:
            if n not in known:
                raise bad(
                    kind, name, f"vjp names {n!r}, which is no operand; known are {_listed(known)}",
                    hint="the names say what is saved for the rule",
                )  # fmt: skip
    if op.result not in ("same", "float", "bool"):
        raise bad(kind, name, 'result must be "same", "float" or "bool"', got=repr(op.result))
    if op.takes not in ("all", "number", "float", "int"):
        raise bad(kind, name, 'takes must be "all", "number", "float" or "int"', got=repr(op.takes))
    if isinstance(op.untyped, str) or any(n not in op.operands for n in op.untyped):
        raise bad(kind, name, f"untyped must be a tuple of operands, of {_listed(op.operands)}",
                  got=repr(op.untyped))  # fmt: skip
    if len(op.domain) != op.arity or any(not hasattr(d, "hole") for d in op.domain):
        raise bad(kind, name, f"domain must be an Interval, or one for each of {op.arity} operands",
                  got=repr(op.domain))  # fmt: skip
    if any(not isinstance(k, numbers.Real) for k in op.kinks):
        raise bad(kind, name, "kinks must be numbers", got=repr(op.kinks))


# ---- fused --------------------------------------------------------------------------------------


def check_fused_body(body: Any) -> None:
    """``@fused`` decorates a function with named operands."""
    name = getattr(body, "__name__", repr(body))
    if not inspect.isfunction(body):
        raise bad("fused", name, "decorates a function in plain ops: the op's meaning",
                  got=f"a {type(body).__name__}")  # fmt: skip
    found = _named_parameters("fused", name, "the body", body)
    if not found or found[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise bad(
            "fused", name, "the body needs at least one positional parameter: the operand x",
            hint="positional parameters are operands, keyword-only ones attributes",
        )  # fmt: skip


def check_fused(op: Fused) -> None:
    """Launchers and residuals of ``op`` name what there is, and leave nothing unwritten."""
    kind, name = "fused", op.name
    own = (*op.operands, *op.attributes)
    gradients = tuple(f"d{n}" for n in op.operands)
    for n in own:
        if n in ("out", "g") or n in gradients:
            raise bad(
                kind, name, f"parameter {n!r} has a name that means something to launchers",
                hint="out is the result, g its gradient, d<operand> a gradient buffer; rename it",
            )  # fmt: skip
    _check_residuals(op, {"out", "g", *own, *gradients})
    known = {
        "forward": ("out", *op.residuals, *own),
        "backward": (*gradients, "g", *own, "out", *op.residuals),
    }
    for role, launcher in (("forward", op.forward), ("backward", op.backward)):
        if launcher is not None:
            _check_launcher(op, role, launcher, known[role])
    if op.forward is not None:
        names = tuple(inspect.signature(op.forward).parameters)
        for n in ("out", *op.residuals):
            if n not in names:
                what = "the result" if n == "out" else f"residual {n!r}"
                raise bad(
                    kind, name, f"the forward launcher has no parameter {n!r}, so {what} "
                    "would stay unwritten", got=f"({_listed(names)})",
                )  # fmt: skip
    if op.backward is not None:
        names = tuple(inspect.signature(op.backward).parameters)
        if not set(gradients) & set(names):
            raise bad(
                kind, name, "the backward launcher has no gradient to write; it needs one or more "
                f"of {_listed(gradients)}", got=f"({_listed(names)})",
            )  # fmt: skip


def _check_launcher(op: Fused, role: str, launcher: Any, known: tuple[str, ...]) -> None:
    if not callable(launcher):
        raise bad("fused", op.name, f"{role} must be a function that launches kernels",
                  got=type(launcher).__name__)  # fmt: skip
    if isinstance(getattr(launcher, "jit", launcher), Jit):  # trident.kernel or trident.jit
        raise bad(
            "fused", op.name, f"{role} is a kernel; it must be a Python function that launches it",
            hint="write `def forward(out, x): kernel[grid](x, out, ...)`",
        )  # fmt: skip
    for p in inspect.signature(launcher).parameters.values():
        if p.kind in _KINDS or p.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise bad("fused", op.name, f"the {role} launcher is called by the names of its "
                      "parameters, so each must be a plain one", got=str(p))  # fmt: skip
        if p.name not in known:
            raise bad("fused", op.name, f"the {role} launcher names {p.name!r}; known are "
                      f"{_listed(known)}")  # fmt: skip


def _check_residuals(op: Fused, taken: set[str]) -> None:
    kind, name = "fused", op.name
    if op.residuals and op.forward is None:
        raise bad(kind, name, "residuals are written by a forward launcher, and there is none",
                  got=f"residuals {_listed(op.residuals)}")  # fmt: skip
    for n, shape in op.residuals.items():
        if not isinstance(n, str) or not n.isidentifier() or n in taken:
            raise bad(kind, name, "a residual needs a name of its own that a launcher can have "
                      "as a parameter", got=repr(n))  # fmt: skip
        if not callable(shape):
            raise bad(kind, name, f"residual {n!r} is declared by a function that gives its shape",
                      got=type(shape).__name__, hint=_residual_hint(op, n))  # fmt: skip
        try:
            inspect.signature(shape).bind(*op.operands, **op.attributes)
        except TypeError as error:
            raise bad(
                kind, name, f"the shape function of residual {n!r} is called with the operands by "
                f"position and the attributes by name ({error})", hint=_residual_hint(op, n),
            ) from None  # fmt: skip


def _residual_hint(op: Fused, n: str) -> str:
    first, names = op.operands[0], ", ".join(op.operands)
    return f"for example residuals={{{n!r}: lambda {names}, **_: {first}.shape[:1]}}"


def check_dtypes(kind: str, name: str, found: Any) -> None:
    """The option ``dtypes``: a tuple of floating dtypes."""
    if (
        not isinstance(found, tuple)
        or not found
        or not all(isinstance(d, DType) and d.is_floating_point for d in found)
    ):
        raise bad(kind, name, "dtypes must be a tuple of floating dtypes, those it is tested in",
                  got=repr(found))  # fmt: skip


def leftover(kind: str, name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise if options are left that nobody took."""
    if options:
        raise bad(kind, name, f"unknown option {next(iter(options))!r}; known are {_listed(known)}")
