"""The registry: one definition of an op, and the callable that users see.

A decorator takes the entry (a class with independent bodies, or a function), makes an ``Op`` record
of it and returns a plain function of the same name. The function only finds the first argument that
knows how to apply ops (a Tensor, or a symbol during capture) and hands the op over:
``relu(x) -> x._apply(op, (x,), {})``. So this layer never imports Tensor.

========================  =====================================================================
``@elementwise``          a scalar formula: ``numpy``, ``triton``, ``vjp``
``@primitive``            ``infer``, ``numpy``, ``launch`` (its own kernel), ``vjp``
``@view``                 shares memory: ``view`` (one body for both devices), ``infer``, ``vjp``
``@fused``                a body in plain ops that is its meaning; kernels for forward and backward
``@inplace``              updates lists of arrays (optimizer steps): ``numpy``, ``launch``
``@composite``            a plain function of other ops
========================  =====================================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..errors import missing_name
from ..shapes import Shape

REGISTRY: dict[str, Op] = {}
"""Every op by name."""

FUNCTIONS: dict[str, Callable] = {}
"""Every public function by name: the ops' and the composites'."""


class Spec:
    """Shape and dtype of an array that need not exist yet."""

    __slots__ = ("dtype", "shape")

    def __init__(self, shape: Shape, dtype: DType) -> None:
        self.shape = shape
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return shapes.numel(self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and (self.shape, self.dtype) == (other.shape, other.dtype)

    def __hash__(self) -> int:
        return hash((self.shape, self.dtype))

    def __repr__(self) -> str:
        return f"Spec({self.shape}, {self.dtype.name})"


@dataclass(frozen=True)
class Interval:
    """Where an operand of an elementwise op may lie for the op to be finite and smooth."""

    low: float
    high: float
    hole: float = 0.0
    """No values with ``abs(x) < hole``."""
    whole_low: int = -8
    """Integer operands are not drawn below this."""


REALS = Interval(-8.0, 8.0)
POSITIVE = Interval(0.05, 8.0)
NONZERO = Interval(-8.0, 8.0, hole=0.1)
UNIT = Interval(-0.95, 0.95)

_TORCH_NAMES = {"axis": "dim", "keepdims": "keepdim", "axes": "dim"}


class Op:
    """What the runtime knows of an op. Users call the function; the runtime reads this record."""

    kind = "op"
    method = True
    numpy_vjp: Callable | None = None

    def __init__(self, name: str, doc: str | None, signature: Callable) -> None:
        self.name = name
        self.doc = doc or ""
        self.signature = signature
        self.operands: list[str]
        self.variadic = False
        self.attributes: dict[str, Any]
        self.optional: dict[str, Any]
        signature = inspect.unwrap(signature)
        code = signature.__code__
        names = code.co_varnames
        positional = list(names[: code.co_argcount])
        keyword_only = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        defaults = signature.__defaults__ or ()
        self.operands = positional
        self.optional = dict(zip(positional[len(positional) - len(defaults) :], defaults))
        if code.co_flags & inspect.CO_VARARGS:
            self.operands.append(names[code.co_argcount + code.co_kwonlyargcount])
            self.variadic = True
        given = signature.__kwdefaults__ or {}
        self.attributes = {n: given.get(n, inspect.Parameter.empty) for n in keyword_only}
        self.arity = len(self.operands)
        self._positional = [*self.operands, *self.attributes]
        self.defaults = {
            k: v for k, v in self.attributes.items() if v is not inspect.Parameter.empty
        }
        self.vjp: Callable | None = None
        self.vjp_names: tuple[str, ...] = ()
        self.samples: Callable | None = None
        self.set_vjp(None)

    def set_vjp(self, vjp: Callable | None) -> None:
        self.vjp = vjp
        self.vjp_names: tuple[str, ...] = ()
        if vjp is not None:
            code = inspect.unwrap(vjp).__code__
            self.vjp_names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        self.saves = [n in self.vjp_names for n in self.operands]
        self.saves_operands = any(self.saves)
        self.spec_names = [
            (i, n + "_spec") for i, n in enumerate(self.operands) if n + "_spec" in self.vjp_names
        ]
        self.saves_out = "out" in self.vjp_names

    def bind(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Split a call into operands and attributes, by position or by torch's and our names."""
        if self.variadic:
            return args, {**self.defaults, **kwargs}
        if len(args) > len(self._positional):
            raise TypeError(
                f"{self.name}: takes at most {len(self._positional)} arguments "
                f"({', '.join(self._positional)}); got {len(args)}"
            )
        values = dict(zip(self._positional, args))
        for key, value in kwargs.items():
            name = key
            if name not in self._positional:
                name = _TORCH_NAMES.get(key, key)
                if key in ("input", "self") and self.operands:
                    name = self.operands[0]
                elif key == "other" and self.arity > 1:
                    name = self.operands[1]
                if name not in self._positional:
                    raise TypeError(
                        f"{self.name}: unknown argument {key!r}; it takes "
                        f"{', '.join(self._positional)}"
                    )
            if name in values:
                raise TypeError(f"{self.name}: argument {name!r} given twice")
            values[name] = value
        missing = [n for n in self.operands if n not in values and n not in self.optional]
        missing += [n for n in self.attributes if n not in values and n not in self.defaults]
        if missing:
            raise TypeError(f"{self.name}: missing argument {missing[0]!r}")
        operands = tuple(values.get(n, self.optional.get(n)) for n in self.operands)
        attrs = {n: values.get(n, d) for n, d in self.attributes.items()}
        return operands, attrs

    def __repr__(self) -> str:
        return f"<{self.kind} op {self.name}>"


class Elementwise(Op):
    kind = "elementwise"

    def __init__(self, body: type, **options: Any) -> None:
        self.numpy: Callable = body.__dict__["numpy"]
        super().__init__(body.__name__, body.__doc__, self.numpy)
        self.triton: Any = body.__dict__["triton"]
        self.set_vjp(body.__dict__.get("vjp"))
        self.result: str = options.pop("result", "same")
        self.untyped: tuple[str, ...] = options.pop("untyped", ())
        domain = options.pop("domain", REALS)
        self.domain: tuple = domain if isinstance(domain, tuple) else (domain,) * self.arity
        self.kinks: tuple[float, ...] = tuple(options.pop("kinks", ()))
        self.takes: str = options.pop("takes", "all")
        self.method = options.pop("method", True)
        self.trace_cache: dict = {}
        self.rules: list[Any] = [None, None, None, None]
        self.fast = self.takes != "int" and not self.untyped
        if options:
            raise TypeError(f"elementwise {self.name}: unknown options {sorted(options)}")

    def result_dtype(self, promoted: DType) -> DType:
        """The dtype of the output for operands promoted to ``promoted``."""
        if self.result == "bool":
            return dtypes.bool_
        if self.result == "float" and not promoted.is_floating_point:
            return dtypes.get_default_dtype()
        return promoted


class Primitive(Op):
    kind = "primitive"

    def __init__(self, body: type, **options: Any) -> None:
        self.numpy: Callable = body.__dict__["numpy"]
        self.infer: Callable = body.__dict__["infer"]
        self.launch: Callable = body.__dict__["launch"]
        super().__init__(body.__name__, body.__doc__, self.numpy)
        self.set_vjp(body.__dict__.get("vjp"))
        self.numpy_vjp: Callable | None = body.__dict__.get("numpy_vjp")
        self.samples = body.__dict__.get("samples")
        self.dtypes: tuple[DType, ...] = options.pop("dtypes", dtypes.FLOATS)
        self.method = options.pop("method", True)
        self.constant: tuple[str, ...] = options.pop("constant", ())
        self.grad_outputs: tuple[int, ...] | None = options.pop("grad_outputs", None)
        if options:
            raise TypeError(f"primitive {self.name}: unknown options {sorted(options)}")


class View(Op):
    kind = "view"

    def __init__(self, body: type, **options: Any) -> None:
        self.view: Callable = body.__dict__["view"]
        self.infer: Callable = body.__dict__["infer"]
        super().__init__(body.__name__, body.__doc__, self.view)
        self.set_vjp(body.__dict__.get("vjp"))
        self.samples = body.__dict__.get("samples")
        self.dtypes: tuple[DType, ...] = dtypes.FLOATS
        self.method = options.pop("method", True)
        self.may_copy: bool = options.pop("may_copy", False)


class Fused(Op):
    kind = "fused"

    def __init__(self, body: Callable, **options: Any) -> None:
        super().__init__(body.__name__, body.__doc__, body)
        self.body = body
        self.forward: Callable | None = options.pop("forward", None)
        self.backward: Callable | None = options.pop("backward", None)
        self.residuals: dict[str, Callable] = options.pop("residuals", {})
        self.dtypes: tuple[DType, ...] = options.pop("dtypes", dtypes.FLOATS)
        self.method = options.pop("method", True)
        self.check: Callable | None = None
        self.infer_cache: dict = {}
        for role, launcher in (("forward", self.forward), ("backward", self.backward)):
            known = {"out", "g", *self.operands, *self.attributes, *self.residuals}
            known |= {f"d{name}" for name in self.operands}
            if launcher is not None:
                unknown = [n for n in inspect.signature(launcher).parameters if n not in known]
                if unknown:
                    raise TypeError(
                        f"fused {self.name}: its {role} launcher names {unknown}; known are "
                        f"{', '.join(sorted(known))}"
                    )
        if options:
            raise TypeError(f"fused {self.name}: unknown options {sorted(options)}")


class InPlace(Op):
    """Updates the arrays of its operands, which are lists of arrays; no gradient."""

    kind = "inplace"

    def __init__(self, body: type) -> None:
        self.numpy: Callable = body.__dict__["numpy"]
        self.launch: Callable = body.__dict__["launch"]
        super().__init__(body.__name__, body.__doc__, self.numpy)
        self.samples = body.__dict__.get("samples")
        self.method = False


def _no_tensor(op: Op, args: tuple) -> TypeError:
    kinds = ", ".join(type(a).__name__ for a in args)
    return TypeError(
        f"{op.name}: expected at least one Tensor; got ({kinds}). "
        "Wrap data with trident.tensor(...)"
    )


def find_apply(op: Op, args: tuple) -> Callable:
    """The ``_apply`` of the first argument that has one, looking into lists."""
    for a in args:
        for item in a if isinstance(a, (list, tuple)) else (a,):
            apply = getattr(item, "_apply", None)
            if apply is not None:
                return apply
    raise _no_tensor(op, args)


def create(op: Op, args: tuple, attrs: dict[str, Any]) -> Any:
    """Apply an op without operands (creation); ``dispatch`` fills this in."""
    return _CREATE[0](op, args, attrs)


_CREATE: list[Callable] = []


def _public(op: Op) -> Callable:
    """The function that users call; ``function.op`` is the record."""
    arity, bind = op.arity, op.bind
    fixed = not op.variadic
    defaults, names = op.defaults, op.attributes.keys()
    complete = len(defaults) == len(names)
    most = arity + len(names)
    fallback: Callable = find_apply

    def call(*args: Any, **kwargs: Any) -> Any:
        if fixed and len(args) == arity and not kwargs and complete:
            kwargs = defaults
        elif fixed and len(args) == arity and kwargs.keys() <= names:
            kwargs = {**defaults, **kwargs}
            if len(kwargs) != len(names):
                args, kwargs = bind(args, kwargs)
        elif fixed and not kwargs and arity < len(args) == most:
            kwargs = dict(zip(names, args[arity:]))
            args = args[:arity]
        else:
            args, kwargs = bind(args, kwargs)
        try:
            apply = args[0]._apply
        except (AttributeError, IndexError):
            apply = fallback(op, args) if arity else create
        return apply(op, args, kwargs)

    call.__name__ = op.name
    call.__qualname__ = op.name
    call.__doc__ = op.doc
    call.op = op  # type: ignore[attr-defined]
    REGISTRY[op.name] = op
    FUNCTIONS[op.name] = call
    return call


def _named(function: Callable, body: Any) -> Callable:
    function.__module__ = body.__module__
    op: Op = function.op  # type: ignore[attr-defined]
    # what inspect.signature and help() show: the body's operands and attributes
    function.__wrapped__ = op.signature  # type: ignore[attr-defined]
    return function


def elementwise(body: type | None = None, **options: Any) -> Any:
    """Define an elementwise op from a class with ``numpy``, ``triton`` and (optionally) ``vjp``.

    Options: ``domain`` (Interval or one per operand) and ``kinks`` are test data; ``result`` is
    "same" (the promoted dtype), "float" (integers become the default float) or "bool"; ``untyped``
    names operands that stay bool (the condition of ``where``); ``takes`` limits the dtypes to
    "all", "number" (no bool), "float" or "int" (with bool); ``method=False``: no Tensor method.
    """
    if body is None:
        return lambda b: elementwise(b, **options)
    return _named(_public(Elementwise(body, **options)), body)


def primitive(body: type | None = None, **options: Any) -> Any:
    """Define an op with its own kernel from a class with ``infer``, ``numpy``, ``launch``, ``vjp``.

    ``numpy_vjp`` may be there too: the rule once more, with vjp's parameters, on ndarrays. The
    CPU's first derivative in float32 and float64 runs it where it is worth having: an op on Tensors
    costs 3 us of Python, as much as a small matrix product. It returns None for what it leaves to
    ``vjp``. Tests compare the two.

    Options: ``dtypes`` are the floating dtypes it takes; ``constant`` names floating operands that
    have no gradient (class weights); ``grad_outputs`` are the numbers of the outputs that gradients
    flow through, where not all floating ones; ``method=False``: no Tensor method.
    """
    if body is None:
        return lambda b: primitive(b, **options)
    return _named(_public(Primitive(body, **options)), body)


def view(body: type | None = None, **options: Any) -> Any:
    """Define an op whose result shares memory with its operand: ``view``, ``infer``, ``vjp``."""
    if body is None:
        return lambda b: view(b, **options)
    return _named(_public(View(body, **options)), body)


def fused(body: Callable | None = None, **options: Any) -> Any:
    """Define an op whose body in plain ops is its meaning, with hand-written kernels beside it.

    ``forward(out, <residuals>, <operands>, *, attributes)`` and ``backward(d<operand>, g, ...)``
    are launchers, called by the names in their signatures. ``residuals`` maps a name to a function
    from the operands' specs to a shape. Without ``forward`` the body runs; without ``backward`` the
    gradient is the body's.
    """
    if body is None:
        return lambda b: fused(b, **options)
    op = Fused(body, **options)
    function = _named(_public(op), body)

    def samples(draw: Callable) -> Callable:
        op.samples = draw
        return draw

    def check(test: Callable) -> Callable:
        op.check = test
        return test

    function.samples = samples  # type: ignore[attr-defined]
    function.check = check  # type: ignore[attr-defined]
    return function


def inplace(body: type) -> Any:
    """Define an update of lists of arrays: ``numpy(lists...)`` and ``launch(lists...)``."""
    return _named(_public(InPlace(body)), body)


def composite(function: Callable | None = None, *, method: bool = True) -> Any:
    """List a plain function of ops: it is public, documented, and (by default) a Tensor method."""
    if function is None:
        return lambda f: composite(f, method=method)
    function.is_method = method  # type: ignore[attr-defined]
    FUNCTIONS[function.__name__] = function
    return function


def alias(name: str, target: str) -> None:
    """Let ``name`` be another name of the function ``target``."""
    FUNCTIONS[name] = FUNCTIONS[target]


class _Namespace:
    """``ops.relu``: every function by name, looked up when used, so that families need no
    imports.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            function = FUNCTIONS[name]
        except KeyError:
            raise missing_name("trident.ops", name, FUNCTIONS) from None
        self.__dict__[name] = function
        return function


ops: Any = _Namespace()
