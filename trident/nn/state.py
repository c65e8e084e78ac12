"""``state_dict`` and ``load_state_dict``: a module tree to a flat dict of tensors and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import trident

from .. import Tensor
from .parameter import Parameter

_EXTRA = "_extra_state"  # the key of what a module's get_extra_state() returns


class IncompatibleKeys(NamedTuple):
    """What ``load_state_dict`` found: keys without a value, and keys the model does not know."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return (
            f"IncompatibleKeys(missing_keys={self.missing_keys}, "
            f"unexpected_keys={self.unexpected_keys})"
        )


def _saved(module: Any) -> Iterator[tuple[str, dict[str, Any], Tensor]]:
    """(name, registry, tensor) of the direct members of ``module`` that are saved."""
    for name, p in module._parameters.items():
        if p is not None:
            yield name, module._parameters, p
    for name, b in module._buffers.items():
        if b is not None and name not in module._non_persistent_buffers_set:
            yield name, module._buffers, b


def collect(module: Any, into: dict[str, Any], prefix: str, keep_vars: bool) -> dict[str, Any]:
    """Fill ``into`` with the saved members of ``module`` and everything below it."""
    for name, _, tensor in _saved(module):
        into[prefix + name] = tensor if keep_vars else tensor.detach()
    if hasattr(module, "get_extra_state"):
        into[prefix + _EXTRA] = module.get_extra_state()
    for name, child in module._modules.items():
        if child is not None:
            # through the method, so that a subclass may override what it saves
            child.state_dict(destination=into, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
    return into


def load(module: Any, state_dict: dict[str, Any], strict: bool, assign: bool) -> IncompatibleKeys:
    """Copy ``state_dict`` into the tree of ``module``; an error leaves it untouched."""
    if not hasattr(state_dict, "keys"):
        raise TypeError(
            f"load_state_dict: state_dict must be a dict; got {type(state_dict).__name__}"
        )
    missing: list[str] = []
    wrong: list[str] = []
    writes: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
    extras: list[tuple[Any, Any]] = []
    known: set[str] = set()
    # duplicates are walked too: a shared module has one set of keys per path
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, registry, old in _saved(owner):
            key = prefix + name
            known.add(key)
            if key not in state_dict:
                missing.append(key)
                continue
            new = state_dict[key]
            if not isinstance(new, Tensor):
                try:
                    new = trident.as_tensor(new)
                except (TypeError, ValueError) as error:
                    wrong.append(f"{key}: a {type(new).__name__} is no tensor ({error})")
                    continue
            if tuple(new.shape) != tuple(old.shape):
                wrong.append(
                    f"size mismatch for {key}: the state dict has {tuple(new.shape)}, "
                    f"the model has {tuple(old.shape)}"
                )
                continue
            writes.append((registry, name, old, new))
        if hasattr(owner, "set_extra_state"):
            known.add(prefix + _EXTRA)
            if prefix + _EXTRA in state_dict:
                extras.append((owner, state_dict[prefix + _EXTRA]))
            else:
                missing.append(prefix + _EXTRA)
    unexpected = [key for key in state_dict if key not in known]
    if strict and missing:
        wrong.append("missing keys: " + ", ".join(map(repr, missing)))
    if strict and unexpected:
        wrong.append("unexpected keys: " + ", ".join(map(repr, unexpected)))
    if wrong:
        raise RuntimeError(
            f"load_state_dict: the state does not fit {type(module).__name__}:\n  "
            + "\n  ".join(wrong)
        )
    with trident.no_grad():
        for registry, name, old, new in writes:
            if not assign:
                old.copy_(new)
            elif isinstance(old, Parameter):
                registry[name] = (
                    new if isinstance(new, Parameter) else Parameter(new, old.requires_grad)
                )
            else:
                registry[name] = new
    for owner, extra in extras:
        owner.set_extra_state(extra)
    return IncompatibleKeys(missing, unexpected)
