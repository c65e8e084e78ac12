"""``Optimizer``: parameter groups, their options and state; and ``LeafOptimizer`` for per-tensor
rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import trident

from .. import Tensor


class Optimizer:
    """Base class: holds ``param_groups`` (parameters with their options) and ``state`` per
    parameter.

    A subclass passes its options as ``defaults`` and writes ``_update(group, params, grads)``,
    which receives the parameters of one group that have a gradient. It runs without recording.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                f"{type(self).__name__}: params must be an iterable of Tensors or of dicts; got a "
                "Tensor. Put it in a list: [tensor]"
            )
        if isinstance(params, (set, frozenset)):
            raise TypeError(f"{type(self).__name__}: params must be ordered; got a set. Use a list")
        self.defaults = defaults
        self.state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        groups = list(params)
        if not groups:
            raise ValueError(
                f"{type(self).__name__}: got an empty parameter list; "
                "model.parameters() can be iterated only once, keep list(...) of it"
            )
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; absent options come from the defaults.

        >>> w, b = trident.zeros(2, requires_grad=True), trident.zeros(1, requires_grad=True)
        >>> opt = trident.optim.SGD([w], lr=0.1)
        >>> opt.add_param_group({"params": [b], "lr": 0.01})
        >>> [g["lr"] for g in opt.param_groups]
        [0.1, 0.01]
        """
        name = type(self).__name__
        if not isinstance(param_group, dict):
            raise TypeError(
                f"{name}: a param group must be a dict; got {type(param_group).__name__}"
            )
        group = dict(param_group)
        if "params" not in group:
            raise ValueError(f"{name}: a param group needs the key 'params'; got {sorted(group)}")
        params = group["params"]
        if isinstance(params, (set, frozenset)):
            raise TypeError(f"{name}: params must be ordered; got a set. Use a list")
        params = [params] if isinstance(params, Tensor) else list(params)
        if params and all(isinstance(p, tuple) and len(p) == 2 for p in params):
            group["param_names"] = [n for n, _ in params]  # named_parameters()
            params = [p for _, p in params]
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise TypeError(f"{name}: params[{i}] must be a Tensor; got {type(p).__name__}")
            if not p.is_leaf:
                raise ValueError(
                    f"{name}: params[{i}] of shape {tuple(p.shape)} is the result of an operation; "
                    "only leaf tensors can be optimized. Use .detach().requires_grad_()"
                )
            if id(p) in known:
                raise ValueError(
                    f"{name}: params[{i}] of shape {tuple(p.shape)} is in the optimizer already"
                )
            known.add(id(p))
        group["params"] = params
        for key, value in self.defaults.items():
            if value is _REQUIRED and key not in group:
                raise ValueError(f"{name}: the option {key!r} has no default; give it")
            group.setdefault(key, value)
        self._check(group)
        self.param_groups.append(group)

    def _check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for options out of range; subclasses add their own."""
        for key in (
            "lr",
            "eps",
            "weight_decay",
            "momentum",
            "lr_decay",
            "initial_accumulator_value",
        ):
            if key in group:
                self._require(group[key] >= 0, f"{key} must be >= 0", group[key])
        for i, beta in enumerate(group.get("betas", ())):
            self._require(0 <= beta < 1, f"betas[{i}] must lie in [0, 1)", beta)

    def _require(self, fine: bool, expected: str, got: Any) -> None:
        if not fine:
            raise ValueError(f"{type(self).__name__}: {expected}; got {got}")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. ``closure`` recomputes the loss and is
        returned.

        >>> w = trident.tensor([1.0, 2.0], requires_grad=True)
        >>> opt = trident.optim.SGD([w], lr=0.5)
        >>> (w * w).sum().backward()
        >>> opt.step()
        >>> w.tolist()
        [0.0, 0.0]
        """
        loss = None
        if closure is not None:
            with trident.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = group["params"]
            grads = [g for p in params if (g := p.grad) is not None]
            if len(grads) != len(params):
                params = [p for p in params if p.grad is not None]
            if grads:
                self._update(group, params, grads)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        raise TypeError(f"{type(self).__name__}: an optimizer must define _update or step")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients (the next backward writes, it does not add), or fill them with
        zeros.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad = trident.zeros_like(p.grad)

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {index: ...}, "param_groups": [...]}``; numbers stand for parameters."""
        numbers: dict[int, int] = {}
        for group in self.param_groups:
            for p in group["params"]:
                numbers[id(p)] = len(numbers)
        groups = [
            {
                **{k: v for k, v in g.items() if k != "params"},
                "params": [numbers[id(p)] for p in g["params"]],
            }
            for g in self.param_groups
        ]
        state = {numbers[id(p)]: dict(s) for p, s in self.state.items() if id(p) in numbers}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take options and state from ``state_dict`` (ours, or torch's layout); tensors are copied.

        Raises ValueError where the number of groups or the sizes of the groups differ.
        """
        name = type(self).__name__
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise ValueError(
                f"{name}: the state has {len(saved)} param groups, "
                f"the optimizer has {len(self.param_groups)}"
            )
        for i, (old, new) in enumerate(zip(self.param_groups, saved)):
            if len(old["params"]) != len(new["params"]):
                raise ValueError(
                    f"{name}: group {i} of the state has {len(new['params'])} parameters, that of "
                    f"the optimizer has {len(old['params'])}"
                )
        by_number: dict[int, Tensor] = {}
        for old, new in zip(self.param_groups, saved):
            by_number.update(zip(new["params"], old["params"]))
            options = {k: v for k, v in new.items() if k not in ("params", "param_names")}
            old.update({k: tuple(v) if k == "betas" else v for k, v in options.items()})
        self.state.clear()
        for number, values in state_dict["state"].items():
            p = by_number[number]
            self.state[p] = {
                k: self._load_value(k, v, p) for k, v in values.items() if v is not None
            }

    def _load_value(self, key: str, value: Any, p: Tensor) -> Any:
        if key == "step":
            return int(value)
        if not isinstance(value, Tensor) and hasattr(value, "__array__"):
            value = trident.tensor(value)
        if not isinstance(value, Tensor):
            return value
        dtype = p.dtype if value.dtype.is_floating_point else value.dtype
        return value.detach().to(device=p.device, dtype=dtype).clone()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "defaults": self.defaults,
            "state": dict(self.state),
            "param_groups": self.param_groups,
        }

    def __setstate__(self, members: dict[str, Any]) -> None:
        self.__dict__.update(members)
        self.state = defaultdict(dict, members["state"])

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for i, group in enumerate(self.param_groups):
            lines += ["", f"Parameter Group {i}"] if i else [f"Parameter Group {i}"]
            lines += [f"    {k}: {group[k]}" for k in sorted(group) if k != "params"]
        return "\n".join([*lines, ")"])


def update(op: Any, *lists: list[Tensor], **attributes: Any) -> None:
    """Run a multi-tensor op: ``op(*lists, **attributes)`` with every attribute given.

    It goes to the tensor directly; parsing the call again costs 4 us, a third of a small step.
    """
    lists[0][0]._apply(op.op, lists, attributes)


class _Required:
    def __repr__(self) -> str:
        return "<required>"


_REQUIRED = _Required()


class LeafOptimizer(Optimizer):
    """An optimizer whose rule is written for one tensor: ``_leaf(p, g, state, group)``.

    ``_start`` makes the state of a parameter at its first gradient; ``state["step"]`` counts from 1
    when the rule sees it. ``maximize`` and ``weight_decay`` (added to the gradient, or taken from
    the parameter with ``decoupled_weight_decay``) have been applied to ``g``. A rule that is one
    multi-tensor update overrides ``_step`` instead and does all of this itself.
    """

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        states = []
        with trident.no_grad():
            for p in params:
                state = self.state[p]
                if "step" not in state:
                    state["step"] = 0
                    self._start(p, state, group)
                state["step"] += 1
                states.append(state)
            self._step(group, params, grads, states)

    def _start(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Make the state of a parameter at its first gradient."""

    def _step(self, group: dict[str, Any], params: list, grads: list, states: list) -> None:
        decay, decoupled = group.get("weight_decay", 0.0), group.get("decoupled_weight_decay")
        for p, g, state in zip(params, grads, states):
            if group.get("maximize"):
                g = -g
            if decay and decoupled:
                p.mul_(1.0 - group["lr"] * decay)
            elif decay:
                g = g + decay * p.detach()
            self._leaf(p, g, state, group)

    def _leaf(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise TypeError(f"{type(self).__name__}: a LeafOptimizer must define _leaf")
