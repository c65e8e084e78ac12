"""How a tensor prints: ``tensor([[1., 2.], [3., 4.]])``, with the layout rules people know from
torch.

The core takes numpy arrays. One ``Columns`` is chosen for the whole tensor (integer-like, fixed or
scientific; all entries equally wide), then nested rows are laid out and wrapped at ``linewidth``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from . import dtypes
from .errors import wrong

_PROFILES: dict[str, dict[str, Any]] = {
    "default": {"precision": 4, "threshold": 1000, "edgeitems": 3, "linewidth": 80},
    "short": {"precision": 2, "threshold": 1000, "edgeitems": 2, "linewidth": 80},
    "full": {"precision": 4, "threshold": math.inf, "edgeitems": 3, "linewidth": 80},
}


@dataclass(frozen=True)
class _Options:
    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_options = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors print; what is None stays as it is, except ``sci_mode``: None means
    automatic.

    precision: digits after the point (4). threshold: more elements than this are summarised (1000).
    edgeitems: entries shown at each end of a summarised axis (3). linewidth: columns (80).
    profile: "default", "short" or "full" sets the four together first. sci_mode: True or False
    forces or forbids scientific notation.

    >>> trident.set_printoptions(precision=2)
    >>> trident.set_printoptions(profile="default")
    """
    global _options
    if profile is not None and profile not in _PROFILES:
        names = ", ".join(map(repr, _PROFILES))
        raise wrong(
            "set_printoptions",
            f"profile must be one of {names}",
            got=repr(profile),
            error=ValueError,
        )
    given = {
        "precision": precision,
        "threshold": threshold,
        "edgeitems": edgeitems,
        "linewidth": linewidth,
    }
    changes: dict[str, Any] = dict(_PROFILES[profile]) if profile else {}
    changes |= {name: value for name, value in given.items() if value is not None}
    _options = replace(_options, **changes, sci_mode=sci_mode)


def get_printoptions() -> dict[str, Any]:
    """The print options in force, by name.

    >>> trident.printing.get_printoptions()["precision"]
    4
    """
    return asdict(_options)


@contextmanager
def printoptions(**options: Any) -> Iterator[None]:
    """``set_printoptions(**options)`` inside the block, the former options after it.

    >>> with trident.printing.printoptions(precision=1):
    ...     print(trident.tensor([0.25, 1.0]))
    tensor([0.2, 1.0])
    """
    global _options
    before = _options
    try:
        set_printoptions(**options)
        yield
    finally:
        _options = before


class Columns:
    """Turns one entry into text, right-aligned to the width that the entries ``shown`` need.

    Zeros, nan and inf do not count towards the width, so a few of them never spread the columns.
    """

    def __init__(self, shown: np.ndarray, options: _Options) -> None:
        self.spec: str | None = None  # format spec of finite floats; None: integers and bools
        self.suffix = ""
        values = shown.ravel().tolist()
        if shown.dtype.kind != "f":
            self.width = max((len(str(v)) for v in values), default=1)
            return
        self.spec, self.suffix, self.width = ".0f", ".", 1
        counted = [v for v in values if v and math.isfinite(v)]
        if not counted:
            return
        largest, smallest = max(map(abs, counted)), min(map(abs, counted))
        wide_range = largest / smallest > 1000.0 or largest > 1e8 or smallest < 1e-4
        scientific = wide_range if options.sci_mode is None else options.sci_mode
        if scientific:
            self.spec, self.suffix = f".{options.precision}e", ""
        elif not all(v.is_integer() for v in counted):
            self.spec, self.suffix = f".{options.precision}f", ""
        self.width = max(len(format(v, self.spec)) + len(self.suffix) for v in counted)

    def text(self, value: Any) -> str:
        if self.spec is None:
            return str(value).rjust(self.width)
        suffix = self.suffix if math.isfinite(value) else ""
        return (format(value, self.spec) + suffix).rjust(self.width)


def _shown(array: np.ndarray, edge: int) -> np.ndarray:
    """What a summary of ``array`` shows: ``edge`` entries from both ends of each long axis."""

    def ends(n: int) -> np.ndarray:
        return np.arange(n) if n <= 2 * edge else np.r_[0:edge, n - edge : n].astype(np.intp)

    return array[np.ix_(*map(ends, array.shape))] if array.ndim else array


def _rows(array: np.ndarray, indent: int, columns: Columns, edge: int, linewidth: int) -> str:
    """The bracketed text of ``array``, whose first bracket stands in column ``indent``."""
    if array.ndim == 0:
        return columns.text(array.item())
    cut = len(array) > 2 * edge
    if array.ndim == 1:
        if cut and not edge:
            entries = ["..."]
        elif cut:
            head, tail = array[:edge].tolist(), array[len(array) - edge :].tolist()
            entries = [*map(columns.text, head), " ...", *map(columns.text, tail)]
        else:
            entries = [columns.text(v) for v in array.tolist()]
        per_line = max(1, (linewidth - indent) // (columns.width + 2))
        starts = range(0, len(entries), per_line)
        parts = [", ".join(entries[i : i + per_line]) for i in starts]
        newlines = 1
    else:
        index: list[int | None] = list(range(len(array)))
        if cut:
            index[edge : len(array) - edge] = [None]
        parts = [
            "..." if i is None else _rows(array[i], indent + 1, columns, edge, linewidth)
            for i in index
        ]
        newlines = array.ndim - 1
    return "[" + ("," + "\n" * newlines + " " * (indent + 1)).join(parts) + "]"


def format_array(array: np.ndarray, indent: int = 0) -> str:
    """The values of ``array`` in nested brackets, without ``tensor(...)`` around them."""
    if array.size == 0:
        return "[]"
    if array.dtype.kind not in "biuf":  # bfloat16: numpy sees no float in it
        array = array.astype(np.float32)
    edge = _options.edgeitems if array.size > _options.threshold else sys.maxsize
    columns = Columns(_shown(array, edge), _options)
    return _rows(array, indent, columns, edge, _options.linewidth)


def format_tensor(
    array: np.ndarray,
    *,
    dtype: dtypes.dtype,
    device: object = "cpu",
    requires_grad: bool = False,
    grad_fn: str | None = None,
    prefix: str = "tensor(",
) -> str:
    """The text of a tensor with these values.

    Facts that cannot be read off the values follow: ``device='cuda:0'`` off the CPU, ``size=(0,3)``
    of an empty tensor, a ``dtype`` that is not float32 (the default), int64 or bool, and
    ``grad_fn=<AddBackward>`` (``grad_fn`` is a name) or ``requires_grad=True``.

    >>> trident.tensor([[1.0, 2.0], [3.0, 4.5]])
    tensor([[1.0000, 2.0000],
            [3.0000, 4.5000]])
    """
    facts = []
    if str(device) != "cpu":
        facts.append(f"device='{device}'")
    if array.ndim != 1 if array.size == 0 else not _options.edgeitems:
        facts.append(f"size={tuple(array.shape)}")
    default = dtypes.get_default_dtype()
    # an empty tensor shows nothing that would tell int64 or bool from the default
    plain = (default,) if array.size == 0 else (default, dtypes.int64, dtypes.bool_)
    if dtype not in plain:
        facts.append(f"dtype={dtype!r}")
    if grad_fn is not None:
        facts.append(f"grad_fn=<{grad_fn}>")
    elif requires_grad:
        facts.append("requires_grad=True")

    indent = len(prefix)
    text = prefix + format_array(array, indent)
    column = len(text) - text.rfind("\n") + 1
    for fact in facts:
        if column + len(fact) + 2 > _options.linewidth:
            text += ",\n" + " " * indent + fact
            column = indent + len(fact)
        else:
            text += ", " + fact
            column += len(fact) + 2
    return text + ")"
