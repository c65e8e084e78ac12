"""``@trident.fuse``: a plain function of tensors as one kernel forward and one backward.

Each call is looked up by the shapes and dtypes of its tensors and the values of its other
arguments. The first of a kind is captured (``capture.py``), differentiated (``gradient.py``) and
arranged as loops (``plan.py``); the backends emit and keep the kernels. Derivatives of derivatives
run the function's own body on tensors (``node.py``).
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .. import dtypes
from ..backends import arrange
from ..backends import of as backend_of
from ..backends.program import Unfusable
from ..dispatch import same_device
from ..errors import FusionError
from ..ops.registry import Fused
from ..tape.grad_mode import _enabled
from ..tape.node import Slot, Version
from ..tape.storage import settle
from ..tensor import Tensor, tensor_of
from . import guards
from .node import FuseNode
from .plan import Capture, Plan

LIMIT = 64
"""Captures that a fused function keeps; beyond that the one used longest ago goes."""
NOISY = 16
"""Captures after which a warning says what keeps changing."""


class FusedFunction:
    """What ``fuse`` returns: call it like the function it was made of."""

    __name__: str
    __qualname__: str

    def __init__(self, fn: Callable) -> None:
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.signature = inspect.signature(fn)
        found = self.signature.parameters.values()
        named = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in found)
        self.plain = tuple(p.name for p in found) if named else ()
        self.captures: OrderedDict[tuple, Any] = OrderedDict()
        self.made = 0
        self.last: tuple[Plan, dict[int, int], str] | None = None
        self.outside = guards.outside(fn)
        self.op = Fused(fn, launched=False)
        """What ``check_op`` reads: the body is the meaning."""
        self.op.function = self

    def samples(self, draw: Callable) -> Callable:
        """Decorator: ``draw -> (operands, attributes)``, a random call for ``check_op``."""
        self.op.samples = draw
        return draw

    def __deepcopy__(self, memo: dict) -> FusedFunction:
        return self  # as a plain function: a copy of a module shares it

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled by name, as a plain function

    def __repr__(self) -> str:
        return f"<fused function {self.__name__}>"

    # ---- calling --------------------------------------------------------------------------------

    def call_body(self, arguments: dict[str, Any]) -> Any:
        bound = self.signature.bind_partial()
        bound.arguments.update(arguments)
        return self.fn(*bound.args, **bound.kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and len(args) == len(self.plain):
            arguments = dict(zip(self.plain, args))
        else:
            bound = self.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = bound.arguments
        names = [n for n, a in arguments.items() if isinstance(a, Tensor)]
        tensors = [arguments[n] for n in names]
        if not tensors or any(t._data.size == 0 for t in tensors):
            return self.fn(*args, **kwargs)  # traced from outside, or nothing to compute
        capture = self._capture(arguments, names, tensors)
        sizes = capture.sizes([t._data.shape for t in tensors])
        if sizes is None:  # these shapes do not broadcast: the body says so
            return self.fn(*args, **kwargs)
        return self._run(capture, tensors, arguments, names, sizes)

    def _capture(self, arguments: dict[str, Any], names: list[str], tensors: list) -> Any:
        shapes = tuple([t._data.shape for t in tensors])
        others = tuple([
            (n, guards.frozen(a)) for n, a in arguments.items() if not isinstance(a, Tensor)
        ])  # fmt: skip
        key = (
            tuple(names), tuple([t._data.dtype for t in tensors]), others,
            tuple([read() for read in self.outside]), dtypes.get_default_dtype(),
        )  # fmt: skip
        loose = (*key, tuple([tuple([s == 1 for s in sh]) for sh in shapes]))
        try:
            capture = self.captures.get(loose)
        except TypeError:  # something that cannot be hashed
            capture = None
        if capture == "exact":
            loose = (*key, shapes)
            capture = self.captures.get(loose)
        if capture is not None:
            self.captures.move_to_end(loose)
            return capture
        for n, a in arguments.items():
            if not isinstance(a, Tensor):
                guards.check_argument(self.__name__, n, a)
        try:
            capture = Capture(self, arguments, names)
            capture.plan((False,) * len(names))
        except Unfusable as error:
            raise FusionError(f"fuse: {self.__name__}: {error}") from None
        if capture.exact:
            self._remember((*key, tuple([tuple([s == 1 for s in sh]) for sh in shapes])), "exact")
            loose = (*key, shapes)
        self._remember(loose, capture)
        self._count(capture.exact)
        return capture

    def _remember(self, key: tuple, value: Any) -> None:
        self.captures[key] = value
        if len(self.captures) > 2 * LIMIT:
            self.captures.popitem(last=False)

    def _count(self, exact: bool) -> None:
        """Say what keeps changing, where that has no end (dtypes and layouts do)."""
        self.made += 1
        if self.made == NOISY:
            varying = _varying(list(self.captures), exact)
            if varying is not None:
                warnings.warn(
                    f"fuse: {self.__name__} has been captured {NOISY} times; what changes from "
                    f"call to call is {varying}",
                    stacklevel=4,
                )

    def _run(
        self, capture: Capture, tensors: list[Tensor], arguments: dict[str, Any], names: list[str],
        sizes: dict[int, int],
    ) -> Any:  # fmt: skip
        recording = _enabled.get()
        for t in tensors:
            if t._version is not None and recording:
                settle(self.__name__, t)
        mask = tuple([recording and t._requires_grad for t in tensors])
        plan = capture.plan(mask)
        arrays = same_device(self.op, [t._data for t in tensors])
        backend: Any = backend_of(arrays[0])
        data = arrange.run(plan.forward, arrays, sizes, backend)
        n = len(capture.outputs)
        outs = [tensor_of(d) for d in data[:n]]
        if True in mask:
            node = FuseNode(self, plan, tensors, arguments, names, sizes, data)
            for i, o in enumerate(outs):
                if o.is_floating_point():
                    o._node = Slot(node, i, o._data) if n > 1 else node
                    o._requires_grad = True
                    if plan.uses_out:
                        o._version = Version()
            node.watch(outs)
        self.last = (plan, sizes, backend.__name__)
        return tuple(outs) if capture.several else outs[0]

    # ---- looking inside -------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """The text of the kernels made for the last call: forward, then backward."""
        from .explain import source

        return source(self)

    def explain(self) -> Any:
        """What was fused, what is saved for backward, the bytes moved, and the speed limit."""
        from .explain import Explanation

        return Explanation(self)


def _varying(keys: list[tuple], exact: bool) -> str | None:
    """Which part of the keys takes the most values, in words; None for dtypes and layouts."""
    distinct = [len({repr(k[i]) for k in keys}) for i in range(6)]
    at = distinct.index(max(distinct))
    if at == 2:
        values = [dict(k[2]) for k in keys]
        names = [n for n in values[0] if len({repr(v.get(n)) for v in values}) > 1]
        return f"the argument {', '.join(names)}. Numbers that change can be passed as 0-d tensors"
    if at == 3:
        return "a global or a variable of an enclosing function. Pass it as a 0-d tensor"
    if at == 5 and exact:
        return (
            "a shape, which the function reads. Sizes are known to mean() and others without that"
        )
    return None


def fuse(fn: Callable | None = None) -> Any:
    """Make ``fn``, a function of tensors in elementwise ops and reductions, one kernel forward and
    one backward.

    The function is captured once per dtypes and layouts of its arguments: as a Triton kernel on
    ``cuda``, as compiled C on the CPU (numpy on blocks where there is no compiler). Reductions are
    fused too, before, between and after elementwise parts: softmax-, norm- and loss-like functions
    are one kernel. Intermediate values stay in registers, in float32 for half types, and are
    rounded once at the end. ``f.source`` is the text of the kernels, ``f.explain()`` what was done.

    Arguments that are not tensors are part of what is captured. Raises FusionError, with the line
    of ``fn``, for what is not one loop: a matmul, a branch on values, a tensor from outside.

    >>> @trident.fuse
    ... def scaled_relu(x, w):
    ...     return trident.relu(x * w)
    >>> scaled_relu(trident.tensor([-1.0, 2.0]), trident.tensor(3.0))
    tensor([0., 6.])
    """
    return FusedFunction(fn) if fn is not None else fuse


__all__ = ["FusedFunction", "fuse"]
