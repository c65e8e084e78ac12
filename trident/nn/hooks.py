"""Hooks around a module's forward and backward, and the note that names a failing module."""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from typing import Any

import trident

from .. import Tensor

_ids = itertools.count()


class RemovableHandle:
    """What registering a hook returns: ``remove()`` takes the hook off; it is a context manager
    too.
    """

    def __init__(self, hooks: OrderedDict[int, Any]) -> None:
        self.id = next(_ids)
        self._hooks = weakref.ref(hooks)

    def remove(self) -> None:
        """Take the hook off; a second call does nothing."""
        hooks = self._hooks()
        if hooks is not None:
            hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def register(hooks: OrderedDict[int, Any], hook: Any, prepend: bool = False) -> RemovableHandle:
    """Add ``hook`` to ``hooks`` (in front with ``prepend``) and return its handle."""
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle


def call(module: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``module(*args, **kwargs)`` where there are hooks: the slow path of ``Module.__call__``."""
    for hook, with_kwargs in list(module._forward_pre_hooks.values()):
        if with_kwargs:
            result = hook(module, args, kwargs)
            if result is not None:
                if not (isinstance(result, tuple) and len(result) == 2):
                    raise TypeError(
                        "a forward pre-hook with_kwargs must return None or (args, kwargs); "
                        f"got {type(result).__name__}"
                    )
                args, kwargs = result
        else:
            result = hook(module, args)
            if result is not None:
                args = result if isinstance(result, tuple) else (result,)
    watch = None
    if module._backward_hooks or module._backward_pre_hooks:
        watch = _BackwardWatch(module)
        args = watch.inputs(args)
    try:
        output = module.forward(*args, **kwargs)
    except Exception as error:
        note_module(error, module)
        raise
    for hook, with_kwargs in list(module._forward_hooks.values()):
        result = hook(module, args, kwargs, output) if with_kwargs else hook(module, args, output)
        if result is not None:
            output = result
    return output if watch is None else watch.outputs(output)


class _BackwardWatch:
    """One call of a module with backward hooks.

    Inputs and outputs pass through identities whose backward sees the gradients: that of the
    outputs runs first and gives ``grad_output``, that of the inputs runs last and gives
    ``grad_input``.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.grad_output: tuple[Any, ...] = ()
        self.has_inputs = False

    def inputs(self, args: tuple) -> tuple:
        where = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        if not (trident.is_grad_enabled() and any(args[i].requires_grad for i in where)):
            return args
        self.has_inputs = True
        n_args = len(args)

        def backward(grads: tuple[Any, ...]) -> tuple[Any, ...]:
            spread: list[Any] = [None] * n_args
            for i, g in zip(where, grads):
                spread[i] = g
            spread = list(self.run_hooks(tuple(spread)))
            return tuple(spread[i] for i in where)

        passed = _pass_through(backward, [args[i] for i in where])
        replaced = list(args)
        for i, t in zip(where, passed):
            replaced[i] = t
        return tuple(replaced)

    def outputs(self, output: Any) -> Any:
        single = isinstance(output, Tensor)
        items = [output] if single else list(output) if isinstance(output, (tuple, list)) else None
        if items is None or not trident.is_grad_enabled():
            return output
        where = [i for i, t in enumerate(items) if isinstance(t, Tensor)]
        if not any(items[i].requires_grad for i in where):
            return output

        def backward(grads: tuple[Any, ...]) -> tuple[Any, ...]:
            spread: list[Any] = [None] * len(items)
            for i, g in zip(where, grads):
                spread[i] = g
            seen = tuple(spread)
            for hook in list(self.module._backward_pre_hooks.values()):
                result = hook(self.module, seen)
                if result is not None:
                    seen = result if isinstance(result, tuple) else (result,)
            self.grad_output = seen
            if not self.has_inputs:  # no input needs a gradient: nothing later would run the hooks
                self.run_hooks(())
            return tuple(seen[i] for i in where)

        for i, t in zip(where, _pass_through(backward, [items[i] for i in where])):
            items[i] = t
        return items[0] if single else type(output)(items)

    def run_hooks(self, grad_input: tuple[Any, ...]) -> tuple[Any, ...]:
        for hook in list(self.module._backward_hooks.values()):
            result = hook(self.module, grad_input, self.grad_output)
            if result is not None:
                result = result if isinstance(result, tuple) else (result,)
                if len(result) != len(grad_input):
                    raise RuntimeError(
                        f"a backward hook of {self.module._label()} must return {len(grad_input)} "
                        f"gradients, as many as it was given; got {len(result)}"
                    )
                grad_input = result
        return grad_input


def _pass_through(backward: Any, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The same values, on a node of the tape whose gradients go through ``backward``."""
    out = _identity().apply(backward, *tensors)
    return out if isinstance(out, tuple) else (out,)


def _identity() -> Any:
    """The ``autograd.Function`` of ``_pass_through``, made at first use."""
    global _IDENTITY
    if _IDENTITY is None:

        class HookedIdentity(trident.autograd.Function):
            @staticmethod
            def forward(ctx: Any, rule: Any, *tensors: Tensor) -> Any:
                ctx.rule = rule
                return tuple(t.view(t.shape) for t in tensors)

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return (None, *ctx.rule(grads))

        _IDENTITY = HookedIdentity
    return _IDENTITY


_IDENTITY: Any = None


def note_module(error: BaseException, module: Any) -> None:
    """Give ``error`` one note that names the innermost failing module by its path from the
    outermost.

    Every module of the call chain passes here, innermost first; each rewrites the note of the one
    before with the longer path.
    """
    inner, at = error.__dict__.get("_module", (None, -1))
    if inner is None:
        error.add_note(f"in {module._label()}")
        error._module = (module, len(error.__notes__) - 1)  # type: ignore[attr-defined]
        return
    for path, m in module.named_modules():
        if m is inner and path:
            error.__notes__[at] = f"in {type(module).__name__}.{path}: {inner._label()}"
            return
