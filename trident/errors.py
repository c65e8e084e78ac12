"""Errors and their wording.

Every error a user can act on is built from four facts: the op, what it expected, what it received,
and the way out. ``wrong("layer_norm", "weight must have shape (64,), the last axis of x (8, 64)",
got="(32,)")`` reads: ``layer_norm: weight must have shape (64,), the last axis of x (8, 64); got
(32,)``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TridentError(Exception):
    """Base of the errors that are trident's own; each also derives from the builtin one expects."""


class ShapeError(TridentError, RuntimeError, ValueError):
    """Shapes that do not fit together."""


class DTypeError(TridentError, RuntimeError, TypeError):
    """A dtype that an op does not take, or dtypes that may not be mixed."""


class DeviceError(TridentError, RuntimeError):
    """Tensors on different devices, or a device that is not there."""


class OutOfMemoryError(TridentError, RuntimeError):
    """The device has no memory left for an allocation. Training can go on once tensors are
    dropped."""


class CudaError(TridentError, RuntimeError):
    """A call of the CUDA driver failed. ``call``: its name, ``code``: the CUresult."""

    def __init__(self, text: str, call: str = "", code: int = 0) -> None:
        super().__init__(text)
        self.call = call
        self.code = code


class AutogradError(TridentError, RuntimeError):
    """A gradient that cannot be computed, and why."""


class FusionError(TridentError, RuntimeError):
    """Something in a function that ``fuse`` cannot put into one kernel."""


class IndexBoundsError(TridentError, IndexError):
    """An index outside of its axis."""


class KernelError(TridentError, IndexError):
    """A kernel in the interpreter left its arrays, or did what a GPU refuses or does otherwise."""


def wrong(
    op: str,
    expected: str,
    *,
    got: object = None,
    hint: str | None = None,
    error: type[Exception] = ShapeError,
) -> Exception:
    """Build (do not raise) the error of ``op``: what it expected, what it got, and the way out."""
    text = f"{op}: {expected}"
    if got is not None:
        text += f"; got {got}"
    if hint:
        text += f". {hint[0].upper()}{hint[1:]}"
    return error(text)


def missing_name(
    module: str, name: str, known: Iterable[str], hint: str | None = None
) -> AttributeError:
    """The AttributeError for a name that is not there, naming the nearest one that is."""
    near = difflib.get_close_matches(
        name, [k for k in known if not k.startswith("_")], n=1, cutoff=0.5
    )
    text = f"{module} has no attribute {name!r}"
    if hint:
        text += f"; {hint}"
    elif near:
        text += f"; the nearest name it has is {near[0]!r}"
    return AttributeError(text)
