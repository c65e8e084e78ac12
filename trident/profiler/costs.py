"""What an op must move and compute: bytes of operands and results, and a table of flops.

**Bytes**: the elements of each operand and each result, once. An axis that was expanded (stride 0)
counts as one element, an operand that is passed twice once, a view nothing. Ops that pick some
elements of an operand (``gather``, an embedding) read those alone.

**Flops**: one for each add, subtract, multiply, divide, compare, minimum, maximum, and one for each
call of a function (exp, sqrt, tanh), whatever a machine makes of it. Copies, casts, indexing and
integers of random generators are none. The table below says how many; None stands for an op that
it does not know (one of a user's own, made with ``primitive`` or ``fused``).

=====================  =====================================================================
elementwise            1 per element of the result and node of the graph (an op is one node,
                       its gradient as many as its traced rule has)
reduction, scan        1 per element of the operand
matmul                 2 m n k, and 1 per element for a bias or an activation
convolution            2 per element of the output and weight that it meets
softmax, norms, losses ``PER_INPUT``: per element of the first operand
attention              4 per query, key it sees and feature, and a softmax
optimizers             ``OPTIMIZERS``: per element of the parameters
=====================  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .. import backends, shapes
from ..backends.graph import Graph, Reduce, Ref
from ..backends.program import Program, value_axes
from ..ops.registry import Elementwise, InPlace, Op, View
from ..tape.node import ElementwiseNode, FusedNode, Node, RuleNode, find_rule
from .sizes import arrays, moved, touched

Cost = tuple[int, int | None]
"""(bytes, flops)."""

# ---- flops ---------------------------------------------------------------------------------------


class Call:
    """A call of an op: ``call["x"]`` is an operand's array (or number), ``call.out`` the result."""

    def __init__(self, op: Op, args: Sequence[Any], attrs: dict[str, Any], result: Any) -> None:
        data = [getattr(a, "_data", a) for a in args]
        self.operands = dict(zip(op.operands, [data] if op.variadic else data))
        self.attrs = attrs
        self.outs = arrays(result)

    def __getitem__(self, name: str) -> Any:
        return self.operands.get(name)

    @property
    def out(self) -> int:
        """Elements of the first result."""
        return self.outs[0].size if self.outs else 0

    @property
    def first(self) -> int:
        """Elements of the first operand."""
        return sum([a.size for a in arrays(next(iter(self.operands.values()), ()))])


def _matmul(c: Call) -> int:
    return 2 * c.out * c["a"].shape[-1]


def _linear(c: Call) -> int:
    extra = (c["bias"] is not None) + (c.attrs.get("activation") is not None)
    return 2 * c.out * c["x"].shape[-1] + extra * c.out


def _matmul_add(c: Call) -> int:
    """beta input + alpha (a b)."""
    beta, alpha = c.attrs["beta"], c.attrs["alpha"]
    _, a, _ = c.operands.values()
    return c.out * (2 * a.shape[-1] + (alpha != 1) + (beta != 0) + (beta not in (0, 1)))


def _convolution(c: Call) -> int:
    return 2 * c.out * shapes.numel(c["w"].shape[1:]) + (c.out if c["bias"] is not None else 0)


def _conv_act(c: Call) -> int:
    more = 2 * (c["scale"] is not None) + (c["residual"] is not None)
    return _convolution(c) + (more + (c.attrs["activation"] is not None)) * c.out


def _conv_data(c: Call) -> int:
    bias = c.out if c["bias"] is not None else 0
    return 2 * c["y"].size * shapes.numel(c["w"].shape[1:]) + bias


def _conv_weight(c: Call) -> int:
    channels = c["x"].shape[1] // c.attrs.get("groups", 1)
    return 2 * c["y"].size * channels * shapes.numel(c.attrs["kernel_size"])


def _pairs(c: Call) -> int:
    """Scores that attention looks at: query i sees the keys up to i where it is causal."""
    q, k = c["query"], c["key"]
    m, n = q.shape[-2], k.shape[-2]
    seen = m * n
    if c.attrs.get("causal"):
        low = min(m, n)
        seen = low * (low + 1) // 2 + (m - low) * n
    return shapes.numel(q.shape[:-2]) * seen


def _attention(c: Call) -> int:
    """Scores and sum over values, two products; a softmax."""
    widths = c["query"].shape[-1] + c["value"].shape[-1]
    return _pairs(c) * (2 * widths + PER_INPUT["softmax"])


def _attention_backward(c: Call) -> int:
    """The scores again, and products for the gradients of query, key, value and weights."""
    d, e = c["query"].shape[-1], c["value"].shape[-1]
    return _pairs(c) * (2 * (3 * d + 2 * e) + PER_INPUT["softmax"] + PER_INPUT["softmax_backward"])


def _pool(c: Call) -> int:
    """The elements of all windows, counted on the side that has one element per window."""
    outer = c.outs[0] if c.outs and c["g"] is None else c["g"]
    if outer is None:
        return 0
    windows = c.attrs["windows"]
    planes = outer.size // max(math.prod(w.out for w in windows), 1)
    return planes * math.prod(
        sum(hi - lo for lo, hi in map(w.bounds, range(w.out))) if w.adaptive else w.out * w.kernel
        for w in windows
    )


def _sorted(c: Call) -> int:
    x, dim = c["x"], c.attrs["dim"]
    n = x.shape[dim] if x.ndim else 1
    return x.size * max(n - 1, 0).bit_length()


def _searched(c: Call) -> int:
    edges = c["edges"]
    return c["x"].size * edges.shape[-1].bit_length()


PER_INPUT: dict[str, int] = {
    # reductions and scans
    **dict.fromkeys(
        ("sum", "mean", "prod", "amax", "amin", "argmax", "argmin", "max_along", "min_along", "any",
         "all", "count_nonzero", "channel_sum", "cumsum", "cumprod", "cummax_along",
         "cummin_along"), 1),
    "linear_scan": 2,  # multiply, add
    "logsumexp": 4,  # maximum, subtract, exp, add
    "softmax": 5,  # maximum, subtract, exp, add, divide
    "log_softmax": 5,  # maximum, subtract, exp, add, subtract
    "softmax_backward": 4,  # multiply, add, subtract, multiply
    "log_softmax_backward": 4,  # add, exp, multiply, subtract
    # normalization: mean 1, subtract 1, square 1, add 1, multiply by 1/std 1; weight and bias
    "standardize": 5,
    "standardize_backward": 7,  # two sums and a product 3, two multiplies and subtracts 4
    "layer_norm_axes": 7,
    "group_norm_channels": 7,
    "rms_norm_axes": 4,  # square, add, multiply, weight
    "batch_norm_train": 7,
    "batch_norm_backward": 10,  # normalize again 2, three sums with a product 4, combine 4
    # losses
    "cross_entropy_index": 4,  # as logsumexp
    # elements added where an index says
    "scatter_sum": 1,
    "sum_slices": 1,
    "col2im": 1,
    # random: what is done with the random bits
    "random_like": 2,
    "bernoulli_draw": 1,
    "dropout_mask_apply": 2,
}  # fmt: skip
"""Flops per element of the first operand."""

PER_OUTPUT: dict[str, int] = {"random_uniform": 2, "random_normal": 8}
"""Flops per element of the first result."""

NONE = frozenset({
    "clone", "to_dtype", "full_like", "arange_like", "gather_along", "scatter_put", "winners",
    "take_slices", "put_slices", "ravel_index", "nonzero_places", "one_hot_of", "joined",
    "constant_pad", "flip", "triangle", "im2col", "slice_backward", "slice_put", "window",
    "window_put", "diagonal_backward", "max_pool_take", "max_pool_indices", "random_int",
    "random_permutation",
})  # fmt: skip
"""Ops that move and select."""

FORMULAS: dict[str, Callable[[Call], int]] = {
    "matmul": _matmul,
    "linear": _linear,
    "addmm": _matmul_add,
    "baddbmm": _matmul_add,
    "convolution": _convolution,
    "convolution_act": _conv_act,
    "conv_data_grad": _conv_data,
    "conv_weight_grad": _conv_weight,
    "attention_heads": _attention,
    "max_pool": _pool,
    "max_pool_backward": _pool,
    "avg_pool": _pool,
    "avg_pool_backward": _pool,
    "ordered": _sorted,
    "search": _searched,
    "nll_reduced": lambda c: 2 * c["target"].size,
    "nll_backward": lambda c: 2 * c["target"].size,
}

OPTIMIZERS: dict[str, Callable[[dict[str, Any]], int]] = {
    # parameter -= lr * g is 2; a momentum buffer 4; Nesterov's step 2
    "sgd_": lambda a: 2 + 4 * bool(a["momentum"]) + 2 * bool(a["nesterov"]) + _decay(a),
    # m: 3, v: 4, bias correction and step: 6
    "adam_": lambda a: 13 + _decay(a),
    "rmsprop_": lambda a: 8 + 4 * bool(a["momentum"]) + _decay(a),
    "adagrad_": lambda a: 7 + _decay(a),
}
"""Flops per element of the parameters, by the step's options."""


def _decay(a: dict[str, Any]) -> int:
    return 2 * bool(a["weight_decay"]) + bool(a["maximize"])


_PICKED = {"gather_along": "x", "take_slices": "x", "window": "x", "max_pool_take": "x"}
"""Ops that read as many elements of this operand as they give."""


def of_op(op: Op, args: Sequence[Any], attrs: dict[str, Any], result: Any) -> Cost:
    """Bytes and flops of one call that ran as one: a numpy body, or its own kernels."""
    if isinstance(op, InPlace):
        return _of_step(op, args, attrs)
    if isinstance(op, View):
        if op.may_copy and _copied(args[0], result):
            return moved(args, result), 0
        return 0, 0
    picked = _PICKED.get(op.name)
    if picked is not None and op.operands[0] == picked:
        nbytes = moved(args[1:]) + 2 * sum(map(touched, arrays(result)))
    else:
        nbytes = moved(args, result)
    if isinstance(op, Elementwise):
        return nbytes, sum([a.size for a in arrays(result)])
    return nbytes, _flops(op, args, attrs, result)


def _flops(op: Op, args: Sequence[Any], attrs: dict[str, Any], result: Any) -> int | None:
    name = op.name
    if not _ours(op):
        return None
    if name in NONE:
        return 0
    c = Call(op, args, attrs, result)
    if name in PER_INPUT:
        return PER_INPUT[name] * c.first
    if name in PER_OUTPUT:
        return PER_OUTPUT[name] * c.out
    formula = FORMULAS.get(name)
    return None if formula is None else formula(c)


def _ours(op: Op) -> bool:
    """Whether the table may speak of an op: a user's may have the name of one of ours."""
    return op.function.__module__.startswith("trident.")


def known(op: Op) -> bool:
    """Whether the table has the flops of an op of trident's own."""
    return (
        isinstance(op, (Elementwise, View))
        or op.name in NONE
        or op.name in PER_INPUT
        or op.name in PER_OUTPUT
        or op.name in FORMULAS
        or op.name in OPTIMIZERS
    )


def _copied(x: Any, result: Any) -> bool:
    a, b = x._data, result._data
    if isinstance(a, np.ndarray):
        return not np.may_share_memory(a, b)
    return a.buffer is not b.buffer


def _of_step(op: InPlace, args: Sequence[Any], attrs: dict[str, Any]) -> Cost:
    """An optimizer's step: everything is read, and all but the gradients written."""
    lists = dict(zip(op.operands, args))
    nbytes = moved(list(lists.values()))
    nbytes += moved([v for n, v in lists.items() if n != "grads"])
    rule = OPTIMIZERS.get(op.name)
    if rule is None:
        return nbytes, None
    n = sum([a.size for a in arrays(args[0])])
    more = n if arrays(lists.get("max_exp_avg_sqs", ())) else 0  # one maximum
    return nbytes, n * rule(attrs) + more


# ---- gradients -----------------------------------------------------------------------------------

FUSED_BACKWARD: dict[str, int | Callable[[Call], int]] = {
    # normalize again 2, times the weight 1, as standardize_backward 7, gradients of weight, bias 3
    "layer_norm_axes": 13,
    "group_norm_channels": 13,
    "rms_norm_axes": 9,
    "cross_entropy_index": 4,  # subtract, exp, subtract the target, multiply
    "attention_heads": _attention_backward,
}
"""Flops of a fused op's backward kernels; a number: per element of the first operand."""


def _products(node: RuleNode, grads: Sequence[Any]) -> int:
    """The gradients of a product are products as large as it."""
    a, b = node.edges[0] is not None, node.edges[1] is not None
    inner = _inner(node)
    n = shapes.numel(node._shape)
    total = 2 * n * inner * (a + b)
    return total + (n if len(grads) > 2 and grads[2] is not None else 0)


def _inner(node: RuleNode) -> int:
    """The axis that a product sums over, from whichever operand was saved."""
    for i, axis in ((0, -1), (1, -2 if node.op.name == "matmul" else -1)):
        saved = node.args[i]
        if saved is not None:
            return saved._data.shape[axis]
    return 0


RULES: dict[str, Callable[[RuleNode, Sequence[Any]], int]] = {
    "matmul": _products,
    "linear": _products,
    "sum": lambda node, grads: 0,
    "mean": lambda node, grads: shapes.numel(node._shape),
}
"""Flops of gradient rules that run on bare arrays (``numpy_vjp``); others are made of ops."""


def of_node(node: Node, g: Any, grads: Sequence[Any]) -> Cost:
    """Bytes and flops of a gradient that ran as one: a traced rule, or kernels of its own."""
    wanted = [x for x in grads if x is not None]
    if isinstance(node, ElementwiseNode):
        rule = node.rule or find_rule(node.op, node.edges, node.attrs, backends.of(g))
        read = [node.arrays[i] for i in rule.uses] if node.arrays is not None else []
        nbytes = moved((g, read, node.out if rule.uses_out else None), wanted)
        return nbytes, g.size * _live_nodes(rule.function.graph)
    if isinstance(node, RuleNode):
        count = RULES.get(node.op.name) if _ours(node.op) else None
        flops = None if count is None else count(node, grads)
        return moved((g, list(node.args or ())), wanted), flops
    if isinstance(node, FusedNode):
        out = node.out if node.op.reads_out else ()
        saved = (list(node.args), list(node.residuals.values()), out)
        per = FUSED_BACKWARD.get(node.op.name) if _ours(node.op) else None
        c = Call(node.op, node.args, node.attrs, wanted)
        flops = per(c) if callable(per) else None if per is None else per * c.first
        return moved((g, *saved), wanted), flops
    return 0, 0


def _live_nodes(graph: Graph) -> int:
    n = len(graph.inputs)
    return sum(i >= n for i in graph.live())


# ---- fused functions -----------------------------------------------------------------------------


def of_program(program: Program, sizes: dict[int, int]) -> Cost:
    """Bytes and flops of a fused program: its inputs and stores once, each node where it varies.

    What becomes of the sums over all rows afterwards (a few numbers) is not counted.
    """
    graph = program.graph

    def extent(axes: Iterable[int | None]) -> int:
        return shapes.numel(sizes[a] for a in axes if a is not None)

    n = len(graph.inputs)
    live = graph.live()
    nbytes = sum(extent(axes) * d.itemsize for d, axes in program.stores)
    for i in live:
        d = graph.input_dtypes[i] if i < n else None
        if d is not None and i not in program.counts:
            nbytes += extent(program.dims[i]) * d.itemsize
    inputs = [frozenset(d for d in dims if d is not None) for dims in program.dims]
    axes = value_axes(graph, [*inputs, *[frozenset()] * (n - len(inputs))])  # type: ignore[list-item]
    flops = 0
    for i in live:
        if i < n:
            continue
        node = graph.nodes[i - n]
        operand = node.args[0]
        reduces = isinstance(node.op, Reduce) and isinstance(operand, Ref)
        flops += extent(axes[operand.index] if reduces else axes[i])
    for how, index in program.tail_inputs:  # the partial sums themselves
        if how == "partial":
            flops += extent(axes[graph.outputs[len(program.stores) + index].index])
    return nbytes, flops


__all__ = ["Cost", "known", "of_node", "of_op", "of_program"]
