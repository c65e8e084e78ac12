"""``Module.summary``: one run without gradients, as a table of layers."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

import trident

from .. import Tensor


@dataclass
class Row:
    """One module: its path, type, output shape, own and shared parameter counts, FLOPs per call."""

    name: str
    kind: str
    shape: str
    params: int
    flops: int
    depth: int


def _shape_of(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, (tuple, list)):
        return "[" + ", ".join(_shape_of(o) for o in output) + "]"
    if isinstance(output, dict):
        return "{" + ", ".join(f"{k}: {_shape_of(o)}" for k, o in output.items()) + "}"
    return type(output).__name__


def _flops(module: Any, args: tuple, output: Any) -> int:
    """Multiplications and additions of the layers that are products; 0 for all others."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(output, Tensor):
        return 0
    kind = type(module).__name__
    bias = output.numel() if getattr(module, "bias", None) is not None else 0
    if kind == "Linear":
        return 2 * output.numel() * module.in_features + bias
    if kind == "Bilinear":
        return 2 * output.numel() * module.in1_features * (module.in2_features + 1) + bias
    if kind.startswith("ConvTranspose"):
        return 2 * args[0].numel() * math.prod(weight.shape[1:]) + bias
    if kind.startswith("Conv"):
        return 2 * output.numel() * math.prod(weight.shape[1:]) + bias
    return 0


def _count(n: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:,}"


class Summary:
    """The table; ``str()`` gives text, notebooks show HTML. ``rows`` and the totals are numbers."""

    def __init__(
        self, rows: list[Row], total_params: int, trainable_params: int, bytes: int
    ) -> None:
        self.rows = rows
        self.total_params = total_params
        self.trainable_params = trainable_params
        self.param_bytes = bytes
        self.total_flops = sum(r.flops for r in rows)

    def _cells(self) -> list[list[str]]:
        return [
            ["  " * r.depth + r.name, r.kind, r.shape, f"{r.params:,}", _count(r.flops)]
            for r in self.rows
        ]

    def _totals(self) -> list[str]:
        frozen = self.total_params - self.trainable_params
        return [
            f"parameters: {self.total_params:,} ({frozen:,} not trained), "
            f"{self.param_bytes / 2**20:.2f} MiB",
            f"FLOPs of products, one forward: {_count(self.total_flops)}",
        ]

    _HEAD = ["layer", "type", "output shape", "params", "FLOPs"]

    def __repr__(self) -> str:
        cells = [self._HEAD, *self._cells()]
        widths = [max(len(row[i]) for row in cells) for i in range(5)]

        def line(row: list[str]) -> str:
            left = [c.ljust(w) for c, w in zip(row[:3], widths[:3])]
            right = [c.rjust(w) for c, w in zip(row[3:], widths[3:])]
            return "  ".join(left + right).rstrip()

        rule = "-" * (sum(widths) + 8)
        return "\n".join([line(cells[0]), rule, *map(line, cells[1:]), rule, *self._totals()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{h}</th>" for h in self._HEAD)
        body = "".join(
            "<tr>"
            + f'<td style="text-align:left;padding-left:{r.depth + 0.5}em">'
            + f"{html.escape(r.name)}</td>"
            + "".join(f'<td style="text-align:left">{html.escape(c)}</td>' for c in cells[1:3])
            + "".join(f"<td>{c}</td>" for c in cells[3:])
            + "</tr>"
            for r, cells in zip(self.rows, self._cells())
        )
        totals = "<br>".join(map(html.escape, self._totals()))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{totals}</p>"


def summarize(module: Any, args: tuple, kwargs: dict[str, Any]) -> Summary:
    """Run ``module(*args, **kwargs)`` in eval mode, without recording, and tabulate its modules."""
    outputs: dict[int, tuple[str, int]] = {}

    def seen(m: Any, inputs: tuple, output: Any) -> None:
        _, flops = outputs.get(id(m), ("", 0))
        outputs[id(m)] = (_shape_of(output), flops + _flops(m, inputs, output))

    modes = [(m, m.training) for m in module.modules()]
    handles = [m.register_forward_hook(seen) for m, _ in modes]
    try:
        module.eval()
        with trident.no_grad():
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for m, training in modes:
            m.training = training
    rows = []
    for path, m in module.named_modules():
        shape, flops = outputs.get(id(m), ("not called", 0))
        own = sum(p.numel() for p in m.parameters(recurse=False))
        name = path.rpartition(".")[2] or type(module).__name__
        depth = path.count(".") + 1 if path else 0
        rows.append(Row(name, m._get_name(), shape, own, flops, depth))
    params = list(module.parameters())
    return Summary(
        rows,
        sum(p.numel() for p in params),
        sum(p.numel() for p in params if p.requires_grad),
        sum(p.numel() * p.element_size() for p in params),
    )
