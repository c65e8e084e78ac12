"""``Parameter`` and ``Buffer``: tensors that a ``Module`` registers when they are assigned."""

from __future__ import annotations

from typing import Any

import trident

from .. import Tensor


class Parameter(Tensor):
    """A leaf tensor that a module trains: it requires grad, and assigning it to a module registers
    it.

    It shares the memory of ``data`` and forgets its history.

    >>> p = trident.nn.Parameter(trident.zeros(2))
    >>> p.requires_grad
    True
    """

    def __init__(self, data: Any = None, requires_grad: bool = True) -> None:
        super().__init__(_as_tensor(data))
        self.requires_grad = requires_grad

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class Buffer(Tensor):
    """A tensor that a module holds, moves and (``persistent``) saves, but does not train.

    >>> net = trident.nn.Module()
    >>> net.mean = trident.nn.Buffer(trident.zeros(2))
    >>> [name for name, _ in net.named_buffers()]
    ['mean']
    """

    persistent = True

    def __init__(self, data: Any = None, *, persistent: bool = True) -> None:
        super().__init__(_as_tensor(data))
        self.persistent = persistent


def _as_tensor(data: Any) -> Tensor:
    if data is None:
        return trident.empty(0)
    if not isinstance(data, Tensor):
        raise TypeError(
            f"Parameter and Buffer take a Tensor; got {type(data).__name__}. "
            "Make one with trident.tensor(...)"
        )
    return data
