"""A call of a fused function on the tape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..backends import arrange
from ..backends import of as backend_of
from ..dispatch import same_device
from ..dtypes import FROM_NUMPY
from ..dtypes import dtype as DType
from ..tape.engine import grad
from ..tape.grad_mode import _enabled
from ..tape.node import Node, Version, alias, rule_edges, saved_versions, unwrap, wrap
from ..tensor import Tensor
from .plan import Plan

if TYPE_CHECKING:
    from .fuse import FusedFunction


class FuseNode(Node):
    """A call of a fused function on the tape."""

    def __init__(
        self, fn: FusedFunction, plan: Plan, tensors: list[Tensor], arguments: dict[str, Any],
        names: list[str], sizes: dict[int, int], data: list[Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.op = fn.op
        self.fn = fn
        self.plan = plan
        self.args = tuple(tensors)
        self.arguments = arguments
        self.names = names
        self.sizes = sizes
        self.edges = rule_edges(self.args)
        self.versions = saved_versions(self.args)
        n = len(plan.capture.outputs)
        self.n_outputs = n
        self.out = data[:n] if plan.uses_out else None
        self.saved = data[n:]
        self.like = [(d.shape, d.dtype) for d in data[:n]]
        if n == 1:
            self._shape, self._dtype = data[0].shape, data[0].dtype
        self.out_versions: list[Version | None] = []

    def watch(self, outs: list[Tensor]) -> None:
        """Notice when an output that backward reads is overwritten."""
        self.out_versions = [o._version for o in outs] if self.out is not None else []

    def pull(self, g: Any, graph: bool) -> tuple:
        for i, t in enumerate(self.args):
            if getattr(t, "_version", None) is not None:
                self.check_saved(
                    t, self.versions[i] if self.versions else 0, f"argument {self.names[i]}"
                )
        for v in self.out_versions:
            if v is not None and v.n:
                self.overwritten("an output", self._shape or (), v)
        gs = list(g) if isinstance(g, tuple) else [g]
        plan = self.plan
        if graph or plan.backward is None:
            return self._body_gradient(gs, graph)
        arrays = same_device(self.op, [t._data for t in self.args])
        backend: Any = backend_of(arrays[0])
        for k, (shape, dtype) in enumerate(self.like):
            if gs[k] is None:
                like = arrays[0]
                gs[k] = backend.full(like, shape, 0, _trident_dtype(dtype))
        where = {"arg": arrays, "g": gs, "out": self.out, "saved": self.saved}
        operands = [where[kind][i] for kind, i in plan.reads]
        return tuple(arrange.run(plan.backward, operands, self.sizes, backend))

    def _body_gradient(self, gs: list, graph: bool) -> tuple:
        """The gradient of the function's own body, recorded when ``graph``."""
        mask = [e is not None for e in self.edges]
        token = _enabled.set(True)
        try:
            aliases = [alias(a) if m else a for a, m in zip(self.args, mask)]
            out = self.fn.call_body(self.arguments | dict(zip(self.names, aliases)))
            outs = list(out) if isinstance(out, (tuple, list)) else [out]
            pairs = [
                (o, wrap(x, graph)) for o, x in zip(outs, gs) if x is not None and o._requires_grad
            ]
            wanted = [a for a, m in zip(aliases, mask) if m]
            found = iter(
                grad(
                    [o for o, _ in pairs], wanted, [x for _, x in pairs],
                    create_graph=graph, allow_unused=True,
                )
            )  # fmt: skip
        finally:
            _enabled.reset(token)
        return tuple(unwrap(next(found), graph) if m else None for m in mask)

    def release(self) -> None:
        super().release()
        self.saved = []
        self.arguments = {}


def _trident_dtype(dtype: Any) -> DType:
    return dtype if isinstance(dtype, DType) else FROM_NUMPY[dtype]
