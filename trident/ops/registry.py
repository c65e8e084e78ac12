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
from ..runtime.plan import Plans
from ..shapes import Shape
from . import declarations

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
        self.function: Callable
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


_ELEMENTWISE_OPTIONS = ("domain", "kinks", "result", "takes", "untyped", "method")
_FUSED_OPTIONS = ("forward", "backward", "residuals", "dtypes", "method")


class Elementwise(Op):
    kind = "elementwise"

    def __init__(self, body: type, **options: Any) -> None:
        parts = declarations.elementwise_parts(body)
        self.numpy: Callable = parts["numpy"]
        super().__init__(body.__name__, body.__doc__, self.numpy)
        self.triton: Any = parts["triton"]
        self.samples = parts.get("samples")
        vjp = parts.get("vjp")
        self.result: str = options.pop("result", "same")
        self.untyped: tuple[str, ...] = options.pop("untyped", ())
        domain = options.pop("domain", REALS)
        self.domain: tuple = domain if isinstance(domain, tuple) else (domain,) * self.arity
        self.kinks: tuple[float, ...] = tuple(options.pop("kinks", ()))
        self.takes: str = options.pop("takes", "all")
        self.method = options.pop("method", True)
        self.trace_cache: dict = {}
        self.rules: list[Any] = [None, None, None, None]
        self.device_rules: list[Any] = [None, None, None, None]
        self.plans = Plans()
        self.fast = self.takes != "int" and not self.untyped
        declarations.leftover(self.kind, self.name, options, _ELEMENTWISE_OPTIONS)
        declarations.check_elementwise(self, vjp)
        self.set_vjp(vjp)

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
        self.layout: Callable | None = body.__dict__.get("layout")
        self.samples = body.__dict__.get("samples")
        self.dtypes: tuple[DType, ...] = options.pop("dtypes", dtypes.FLOATS)
        self.method = options.pop("method", True)
        self.constant: tuple[str, ...] = options.pop("constant", ())
        self.plans = Plans()
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

    def __init__(self, body: Callable, launched: bool = True, **options: Any) -> None:
        declarations.check_fused_body(body)
        super().__init__(body.__name__, body.__doc__, body)
        self.body = body
        self.forward: Callable | None = options.pop("forward", None)
        self.backward: Callable | None = options.pop("backward", None)
        self.residuals: dict[str, Callable] = dict(options.pop("residuals", {}))
        self.dtypes: tuple[DType, ...] = options.pop("dtypes", dtypes.FLOATS)
        self.method = options.pop("method", True)
        self.check: Callable | None = None
        self.infer_cache: dict = {}
        self.plans, self.backward_plans = Plans(), Plans()
        declarations.leftover(self.kind, self.name, options, _FUSED_OPTIONS)
        declarations.check_dtypes(self.kind, self.name, self.dtypes)
        if launched:  # a function of fuse has no launchers that ask for arrays by name
            declarations.check_fused(self)
        written = inspect.signature(self.backward).parameters if self.backward else {}
        self.written = tuple(f"d{n}" in written for n in self.operands)
        self.reads_out = "out" in written

    def gives(self, mask: tuple[bool, ...]) -> bool:
        """Whether the backward launcher writes every gradient that ``mask`` wants."""
        return all(w or not m for w, m in zip(self.written, mask))


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


def _free_name(name: str, module: str) -> str:
    """The name that ``module`` may enter ``name`` under.

    An entry replaces what its own module entered before (a notebook cell that runs again), and
    nothing else: a user's ``relu`` becomes ``my_module_relu`` in the tables, in error messages and
    in generated kernels, while trident's stays what ``trident.relu`` and every rule mean by it.
    """
    holder = FUNCTIONS.get(name)
    if holder is None or holder.__module__ == module:
        return name
    if module.partition(".")[0] == __name__.partition(".")[0]:
        raise TypeError(f"{module}: op {name!r} is defined by {holder.__module__} already")
    prefix = "".join(c if c.isalnum() else "_" for c in module).strip("_")
    return _free_name(f"{prefix}_{name}", module)


def _public(op: Op, module: str | None = None) -> Callable:
    """The function that users call; ``function.op`` is the record."""
    module = module or inspect.unwrap(op.signature).__module__
    plain, op.name = op.name, _free_name(op.name, module)
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
        elif fixed and not kwargs and complete and arity < len(args) <= most:
            kwargs = {**defaults, **dict(zip(names, args[arity:]))}
            args = args[:arity]
        else:
            args, kwargs = bind(args, kwargs)
        try:
            apply = args[0]._apply
        except (AttributeError, IndexError):
            apply = fallback(op, args) if arity else create
        return apply(op, args, kwargs)

    call.__name__ = plain
    call.__qualname__ = plain
    call.__module__ = module
    call.__doc__ = op.doc
    # what inspect.signature and help() show: the body's operands and attributes
    call.__wrapped__ = op.signature  # type: ignore[attr-defined]
    call.op = op  # type: ignore[attr-defined]
    op.function = call
    REGISTRY[op.name] = op
    _enter(op.name, call)
    return call


def _enter(name: str, function: Callable) -> None:
    FUNCTIONS[name] = function
    ops.__dict__.pop(name, None)  # it keeps what was looked up once


def elementwise(body: type | None = None, **options: Any) -> Any:
    """Define an elementwise op from a class with three bodies; the op is a function of that name.

    The parameters of ``numpy`` say what the op takes: positional ones are operands (Tensors or
    numbers), keyword-only ones constants. Broadcasting, strides, promotion, half types, empty
    shapes and the kernel around the formula come from the runtime.

    - ``numpy(x, *, k=1.0)``: the formula on ndarrays; the CPU path and the reference. All operands
      arrive in one promoted dtype, float16 and bfloat16 as float32.
    - ``triton(x, k: tl.constexpr)``, under ``@trident.jit``: the same on values in registers.
    - ``vjp(g, x, k)``, optional: the gradient of each operand, one or a tuple, None where there is
      none, in operators and elementwise ops, so that it can be differentiated again. Its parameters
      say what is saved: operands, ``out``, constants; ``g`` is the incoming gradient. It is traced
      once and runs as one kernel; sums over broadcast axes are done outside.
    - ``samples(draw)``, optional: one random call ``(operands, constants)`` for ``check_op``.

    Options:

    - ``result``: "same" (the promoted dtype), "float" (integers become the default float), "bool";
    - ``takes``: "all" dtypes, "number" (no bool), "float" or "int" (with bool);
    - ``untyped``: operands that stay bool (the condition of ``where``);
    - ``domain`` (an ``Interval``, or one for each operand) and ``kinks`` (numbers where the op is
      not smooth) are for the tests;
    - ``method=False``: no Tensor method. Ops outside of trident never become methods.

    Defining an op again, as a notebook does, replaces it. An op whose name trident or another
    module has taken leaves that one alone: the function is the same, but its record is called
    ``my_module_relu``, in error messages too.

    Raises TypeError, when the op is defined, for a body that is missing, for parameters that do not
    fit each other and for unknown options.

    >>> from trident.lang import tl
    >>> @trident.elementwise(takes="float")
    ... class halfway:
    ...     "x + w (y - x)."
    ...     def numpy(x, y, *, w=0.5):
    ...         return x + w * (y - x)
    ...     @trident.jit
    ...     def triton(x, y, w: "tl.constexpr"):
    ...         return x + w * (y - x)
    ...     def vjp(g, w):
    ...         return g * (1 - w), g * w
    >>> x = trident.tensor([1.0, 2.0], requires_grad=True)
    >>> y = halfway(x, 4.0, w=0.25)
    >>> y.sum().backward()
    >>> y.detach(), x.grad
    (tensor([1.7500, 2.5000]), tensor([0.7500, 0.7500]))

    Source: scalar formula in, strides and broadcasting from the framework, as in FlagGems.
    """
    if body is None:
        return lambda b: elementwise(b, **options)
    return _public(Elementwise(body, **options), body.__module__)


def primitive(body: type | None = None, **options: Any) -> Any:
    """Define an op with its own kernel from a class with ``infer``, ``numpy``, ``launch``, ``vjp``.

    ``numpy_vjp`` may be there too: the rule once more, with vjp's parameters, on ndarrays. The
    CPU's first derivative in float32 and float64 runs it where it is worth having: an op on Tensors
    costs 3 us of Python, as much as a small matrix product. It returns None for what it leaves to
    ``vjp``. Tests compare the two.

    Results are row-major, unless ``layout(shape, operands, *, attributes)`` is there too: it gives
    the strides of a result of this shape (in elements, without gaps), on both devices. ``operands``
    are (shape, strides) of the arrays among the operands; ``launch`` must then fill any strides
    that it may answer.

    Options: ``dtypes`` are the floating dtypes it takes; ``constant`` names floating operands that
    have no gradient (class weights); ``grad_outputs`` are the numbers of the outputs that gradients
    flow through, where not all floating ones; ``method=False``: no Tensor method.
    """
    if body is None:
        return lambda b: primitive(b, **options)
    return _public(Primitive(body, **options), body.__module__)


def view(body: type | None = None, **options: Any) -> Any:
    """Define an op whose result shares memory with its operand: ``view``, ``infer``, ``vjp``."""
    if body is None:
        return lambda b: view(b, **options)
    return _public(View(body, **options), body.__module__)


def fused(body: Callable | None = None, **options: Any) -> Any:
    """Define an op whose body in plain ops is its meaning, with hand-written kernels beside it.

    The body's positional parameters are operands (with the default None where they may be absent),
    its keyword-only ones attributes. It may return a tuple. It is the CPU path, the rule for shapes
    and dtypes (so it must not read values), the reference of ``check_op`` and the second
    derivative.

    ``forward`` and ``backward`` are Python functions that launch kernels (``trident.kernel``). They
    are called by the names of their parameters, in any order, and ask only for what they need.
    Arrays are ``DeviceArray``: ``shape``, ``strides`` or ``stride()``, ``numel()``, ``dtype``,
    ``contiguous()``, and ``device.empty(shape, dtype)`` for scratch memory.

    ==================  =================================================  ========  ========
    name                what it is                                         forward   backward
    ==================  =================================================  ========  ========
    ``out``             the result, or a tuple of them                     to write  to read
    an operand's        its array, with any strides; a number; None        to read   to read
    an attribute's      its value                                          to read   to read
    a residual's        a contiguous array of the declared shape           to write  to read
    ``g``               the gradient of ``out``, any strides; a tuple                to read
                        where ``out`` is one (zeros where none arrived)
    ``d<operand>``      a contiguous array like the operand                          to write
    ==================  =================================================  ========  ========

    Everything to write is allocated and not initialised, and must be written in full.
    ``d<operand>`` is None where that gradient is not wanted, as that of an absent operand never is.
    Where a gradient is wanted that ``backward`` has no parameter for, the body's are used.

    ``residuals`` maps a name to a function from the operands (anything with ``shape`` and
    ``dtype``) and attributes to a shape: ``{"r": lambda x, **_: x.shape[:1]}``. Residuals are
    float32, and float64 where an operand is.

    Without ``forward`` the body runs. Without ``backward`` the gradient is the body's. A gradient
    that is differentiated again is the body's, too. ``dtypes`` are the floating dtypes to test.

    The op has two decorators for the tests: ``@op.samples`` on a function of ``draw`` that returns
    one random call ``(operands, attributes)``, and ``@op.check`` on a function of a call that
    raises the error a user should read. A name that is taken is handled as in ``elementwise``.

    Raises TypeError, when the op is defined, for a launcher that names something unknown or leaves
    the result, a residual or all gradients unwritten, and for residuals that are not functions of
    the operands.

    >>> from trident.lang import tl
    >>> @trident.kernel(writes=("out_ptr",))
    ... def scaled_kernel(x_ptr, out_ptr, n, S: "tl.constexpr", BLOCK: "tl.constexpr"):
    ...     i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ...     x = tl.load(x_ptr + i, mask=i < n)
    ...     tl.store(out_ptr + i, (x * S).to(out_ptr.dtype.element_ty), mask=i < n)
    >>> def forward(out, x, *, s):
    ...     n = x.numel()
    ...     scaled_kernel[(trident.cdiv(n, 1024),)](x.contiguous(), out, n, S=s, BLOCK=1024)
    >>> def backward(dx, g, *, s):
    ...     n = g.numel()
    ...     scaled_kernel[(trident.cdiv(n, 1024),)](g.contiguous(), dx, n, S=s, BLOCK=1024)
    >>> @trident.fused(forward=forward, backward=backward)
    ... def scaled(x, *, s=2.0):
    ...     "s x."
    ...     return x * s
    >>> x = trident.ones(3, requires_grad=True)
    >>> scaled(x, s=3.0).sum().backward()
    >>> x.grad
    tensor([3., 3., 3.])

    Source: a body in plain ops under the kernels, and derivatives that fall back to it, as in mlx's
    fast.cpp.
    """
    if body is None:
        return lambda b: fused(b, **options)
    op = Fused(body, **options)
    function = _public(op, body.__module__)

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
    return _public(InPlace(body), body.__module__)


def composite(function: Callable | None = None, *, method: bool = True) -> Any:
    """List a plain function of ops: it is public, documented, and (by default) a Tensor method."""
    if function is None:
        return lambda f: composite(f, method=method)
    function.is_method = method  # type: ignore[attr-defined]
    _enter(_free_name(function.__name__, function.__module__), function)
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
