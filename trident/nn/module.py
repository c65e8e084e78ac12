"""``Module``: a tree of parameters, buffers and submodules with a ``forward``.

Parameters, buffers and modules live twice: in the ordered registries ``_parameters``, ``_buffers``
and ``_modules`` (what iteration and ``state_dict`` walk) and in the instance ``__dict__`` (so that
``self.weight`` is a plain attribute load, not a call of ``__getattr__``). ``_Registry`` keeps the
two in step, whichever of them is written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Self

import trident

from .. import Tensor
from ..errors import missing_name
from ..memory_formats import check as check_format
from . import hooks, state
from .hooks import RemovableHandle
from .parameter import Buffer, Parameter

_REGISTRIES = ("_parameters", "_buffers", "_modules")


class _Registry(dict):
    """An ordered dict of named members that mirrors itself into its owner's ``__dict__``."""

    __slots__ = ("owner",)

    def __init__(self, owner: dict[str, Any]) -> None:
        self.owner = owner

    def __setitem__(self, name: str, value: Any) -> None:
        dict.__setitem__(self, name, value)
        self.owner[name] = value

    def __delitem__(self, name: str) -> None:
        dict.__delitem__(self, name)
        self.owner.pop(name, None)

    def pop(self, name: str, *default: Any) -> Any:
        self.owner.pop(name, None) if name in self else None
        return dict.pop(self, name, *default)

    def popitem(self) -> tuple[str, Any]:
        name, value = dict.popitem(self)
        self.owner.pop(name, None)
        return name, value

    def clear(self) -> None:
        for name in list(self):
            del self[name]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]


class Module:
    """Base class of every layer and model: subclass it, make layers in ``__init__``, write
    ``forward``.

    Attributes that are ``Parameter``, ``Buffer`` or ``Module`` are registered when they are
    assigned; ``super().__init__()`` must have run before.

    >>> class Net(trident.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = trident.nn.Parameter(trident.tensor([2.0, 3.0]))
    ...     def forward(self, x):
    ...         return x * self.scale
    >>> Net()(trident.tensor([1.0, 10.0])).tolist()
    [2.0, 30.0]
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]

    def __init__(self) -> None:
        members = self.__dict__
        for registry in _REGISTRIES:
            members[registry] = _Registry(members)
        members["_non_persistent_buffers_set"] = set()
        members["_forward_pre_hooks"] = OrderedDict()
        members["_forward_hooks"] = OrderedDict()
        members["_backward_pre_hooks"] = OrderedDict()
        members["_backward_hooks"] = OrderedDict()
        members["training"] = True

    # ------------------------------------------------------------------ calling

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; every subclass writes its own."""
        raise TypeError(
            f"{type(self).__name__}: a module must define forward(self, ...) to be called"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
        ):
            return hooks.call(self, args, kwargs)
        try:
            return self.forward(*args, **kwargs)
        except Exception as error:
            hooks.note_module(error, self)
            raise

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args)`` before each forward; what it returns replaces the arguments.

        With ``with_kwargs`` it is ``hook(module, args, kwargs)`` and may return ``(args, kwargs)``.
        """
        return hooks.register(self._forward_pre_hooks, (hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, args, output)`` after each forward; a result replaces the output.

        With ``with_kwargs`` it is ``hook(module, args, kwargs, output)``.

        >>> layer = trident.nn.Identity()
        >>> handle = layer.register_forward_hook(lambda module, args, output: output + 1)
        >>> layer(trident.tensor(1.0)).item()
        2.0
        >>> handle.remove()
        """
        return hooks.register(self._forward_hooks, (hook, with_kwargs), prepend)

    def register_full_backward_pre_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, grad_output)`` before the module's backward; a result replaces it."""
        return hooks.register(self._backward_pre_hooks, hook, prepend)

    def register_full_backward_hook(
        self, hook: Callable[..., Any], prepend: bool = False
    ) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` when the gradients of the inputs are
        known.

        What it returns, if not None, replaces ``grad_input``. The tuples hold None for what is no
        tensor or needs no gradient.
        """
        return hooks.register(self._backward_hooks, hook, prepend)

    # ------------------------------------------------------------------ members

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self.register_parameter(name, value)
            return
        if isinstance(value, Module):
            self._claim(name, "_modules", "module")[name] = value
            return
        if isinstance(value, Buffer):
            self.register_buffer(name, value, value.persistent)
            return
        members = self.__dict__
        if name in members and name not in _REGISTRIES:
            for registry, kind, wanted in (
                ("_parameters", "parameter", Parameter),
                ("_buffers", "buffer", Tensor),
                ("_modules", "child module", Module),
            ):
                if name in members.get(registry, ()):
                    if value is not None and not isinstance(value, wanted):
                        raise TypeError(
                            f"{type(self).__name__}: {name!r} is a {kind}, so only a "
                            f"{wanted.__name__} or None can be assigned; got {type(value).__name__}"
                        )
                    members[registry][name] = value
                    return
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:  # only reached for what is not in __dict__
        if "_modules" not in self.__dict__:
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}: its __init__ did not call "
                "super().__init__() first"
            )
        raise missing_name(f"{type(self).__name__!r} object", name, dir(self))

    def __delattr__(self, name: str) -> None:
        for registry in _REGISTRIES:
            if name in self.__dict__.get(registry, ()):
                del self.__dict__[registry][name]
                self._non_persistent_buffers_set.discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted(set(object.__dir__(self)))

    def _claim(self, name: str, registry: str, kind: str) -> dict[str, Any]:
        """The registry to write ``name`` into, once no other member holds that name."""
        members = self.__dict__
        if registry not in members:
            raise AttributeError(
                f"{type(self).__name__}: cannot assign the {kind} {name!r} before "
                "super().__init__() has run"
            )
        for other in _REGISTRIES:
            if other != registry and name in members[other]:
                del members[other][name]
        return members[registry]

    def _check_name(self, name: Any, kind: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{kind} name must be a string; got {type(name).__name__}")
        if not name or "." in name:
            raise KeyError(f'{kind} name must not be empty or contain "."; got {name!r}')

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that moves and is saved with the module but is not trained.

        ``persistent=False`` leaves it out of ``state_dict``.
        """
        self._check_name(name, "buffer")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"buffer {name!r} must be a Tensor or None; got {type(tensor).__name__}"
            )
        registry = self._claim(name, "_buffers", "buffer")
        if name not in registry and hasattr(self, name):
            raise KeyError(f"attribute {name!r} already exists")
        registry[name] = tensor
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter under ``name`` (None holds the place: iteration and saving skip it)."""
        self._check_name(name, "parameter")
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"parameter {name!r} must be a Parameter or None; got {type(param).__name__}. "
                "Wrap the tensor: trident.nn.Parameter(tensor)"
            )
        self._claim(name, "_parameters", "parameter")[name] = param

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a child module under ``name``; it becomes the attribute of that name."""
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"child {name!r} must be a Module or None; got {type(module).__name__}")
        self._check_name(name, "module")
        registry = self._claim(name, "_modules", "module")
        if name not in registry and hasattr(self, name):
            raise KeyError(f"attribute {name!r} already exists")
        registry[name] = module

    register_module = add_module

    def get_submodule(self, target: str) -> Module:
        """The module at the dotted path ``target``: ``net.get_submodule("blocks.3.qkv")``."""
        module = self
        for part in target.split(".") if target else ():
            child = module._modules.get(part)
            if child is None:
                raise missing_name(
                    f"{type(module).__name__} (in {target!r})", part, module._modules
                )
            module = child
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter at the dotted path ``target``: ``net.get_parameter("blocks.3.weight")``."""
        return self._member(target, "_parameters")

    def get_buffer(self, target: str) -> Tensor:
        """The buffer at the dotted path ``target``."""
        return self._member(target, "_buffers")

    def _member(self, target: str, registry: str) -> Any:
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        found = owner.__dict__[registry].get(name)
        if found is None:
            raise missing_name(type(owner).__name__, name, owner.__dict__[registry])
        return found

    # ------------------------------------------------------------------ iteration

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Pairs (dotted path, module) of this module and everything below, each module once."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                path = f"{prefix}.{name}" if prefix else name
                yield from child.named_modules(memo, path, remove_duplicate)

    def _named(
        self, registry: str, prefix: str, recurse: bool, remove_duplicate: bool
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        owners = (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
            if recurse
            else [(prefix, self)]
        )
        for path, module in owners:
            for name, value in module.__dict__[registry].items():
                if value is None or id(value) in seen:
                    continue
                if remove_duplicate:
                    seen.add(id(value))
                yield (f"{path}.{name}" if path else name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Pairs (dotted path, parameter); a shared parameter comes once, under its first name."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Pairs (dotted path, buffer)."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Pairs (name, module) of the direct children, each module once."""
        seen = set()
        for name, child in self._modules.items():
            if child is not None and child not in seen:
                seen.add(child)
                yield name, child

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, for an optimizer: ``trident.optim.Adam(net.parameters())``."""
        for _, value in self.named_parameters(recurse=recurse):
            yield value

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, such as the running statistics of a BatchNorm."""
        for _, value in self.named_buffers(recurse=recurse):
            yield value

    def children(self) -> Iterator[Module]:
        """The direct children."""
        for _, child in self.named_children():
            yield child

    def modules(self) -> Iterator[Module]:
        """This module and everything below it."""
        for _, module in self.named_modules():
            yield module

    # ------------------------------------------------------------------ state

    def state_dict(
        self,
        *,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """Parameters and persistent buffers by dotted path, as detached tensors that share memory.

        >>> list(trident.nn.Linear(2, 3).state_dict())
        ['weight', 'bias']
        """
        return state.collect(
            self, OrderedDict() if destination is None else destination, prefix, keep_vars
        )

    def load_state_dict(
        self, state_dict: dict[str, Any], strict: bool = True, assign: bool = False
    ) -> state.IncompatibleKeys:
        """Copy the values of ``state_dict`` into the parameters and buffers of the same path.

        Raises RuntimeError that lists every missing and unexpected key (``strict``) and every size
        that does not match. ``assign`` takes the given tensors themselves instead of copying.
        """
        return state.load(self, state_dict, strict, assign)

    def __getstate__(self) -> dict[str, Any]:
        members = dict(self.__dict__)
        for registry in _REGISTRIES:
            for name in members.get(registry, ()):
                del members[name]
            if registry in members:
                members[registry] = dict(members[registry])
        return members

    def __setstate__(self, members: dict[str, Any]) -> None:
        self.__dict__.update(members)
        for registry in _REGISTRIES:
            mirrored = _Registry(self.__dict__)
            mirrored.update(members.get(registry, {}))
            self.__dict__[registry] = mirrored

    # ------------------------------------------------------------------ modes, devices, dtypes

    def train(self, mode: bool = True) -> Self:
        """Set ``training`` here and below: dropout drops, batch norm uses batch statistics."""
        if not isinstance(mode, bool):
            raise ValueError(f"train: mode must be a bool; got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """``train(False)``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze every parameter."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or fill them with zeros."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad = None if set_to_none else trident.zeros_like(p.grad)

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` on every module, children first (to initialise, for example)."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Replace the data of parameters, gradients, buffers by ``fn`` of it; identities stay."""
        done: set[int] = set()
        for module in self.modules():
            for p in module._parameters.values():
                if p is not None and id(p) not in done:
                    done.add(id(p))
                    grad, p.grad = p.grad, None
                    p.data = fn(p.data)
                    if grad is not None:
                        p.grad = fn(grad.detach())
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = fn(buffer)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device and/or convert floating members to a dtype, in place.

        ``to(device)``, ``to(dtype)``, ``to(device, dtype)`` or ``to(tensor)``. Parameters keep
        their identity, so an optimizer made before stays valid. ``memory_format`` is for the
        members that have as many axes as it is for: ``net.to(memory_format=trident.channels_last)``
        lays out the weights of 2-d convolutions.
        """
        device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        order = kwargs.pop("memory_format", None)
        if order is not None:
            check_format("to", order)
        kwargs.pop("non_blocking", None)
        if kwargs:
            raise TypeError(
                f"to: unexpected keyword {next(iter(kwargs))!r}; it takes device, dtype, "
                "memory_format"
            )
        for a in args:
            if isinstance(a, Tensor):
                device, dtype = a.device, a.dtype
            elif isinstance(a, trident.dtype):
                dtype = a
            elif a is not None and not isinstance(a, bool):
                device = a
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"to: a module takes floating dtypes; got {dtype}")

        def move(t: Tensor) -> Tensor:
            wanted = dtype if dtype is not None and t.dtype.is_floating_point else t.dtype
            out = t.to(device=t.device if device is None else device, dtype=wanted)
            return out.to(memory_format=order) if order is not None and fits(t) else out

        def fits(t: Tensor) -> bool:
            return order.ndim in (None, t.ndim)

        return self._apply(move)

    def cpu(self) -> Self:
        """``to("cpu")``."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Self:
        """``to("cuda")``."""
        if device is None:
            return self.to("cuda")
        return self.to(f"cuda:{device}" if isinstance(device, int) else device)

    def type(self, dst_type: Any) -> Self:
        """Convert every parameter and buffer, whatever its dtype, to ``dst_type``."""
        return self._apply(lambda t: t.type(dst_type))

    def float(self) -> Self:
        """Floating members to float32."""
        return self.to(trident.float32)

    def double(self) -> Self:
        """Floating members to float64."""
        return self.to(trident.float64)

    def half(self) -> Self:
        """Floating members to float16."""
        return self.to(trident.float16)

    def bfloat16(self) -> Self:
        """Floating members to bfloat16."""
        return self.to(trident.bfloat16)

    # ------------------------------------------------------------------ text

    def extra_repr(self) -> str:
        """What stands between the parentheses of the repr; subclasses give their arguments."""
        return ""

    def _get_name(self) -> str:
        return type(self).__name__

    def _label(self) -> str:
        """One line for error notes and tables: ``Linear(64 -> 192)``."""
        return f"{self._get_name()}({self.extra_repr()})"

    def __repr__(self) -> str:
        extra = self.extra_repr().split("\n") if self.extra_repr() else []
        children = [f"({name}): {_indent(repr(child))}" for name, child in self._modules.items()]
        return _assemble(self._get_name(), extra, children)

    def summary(self, *inputs: Any, **kwargs: Any) -> Any:
        """Run once on ``inputs`` without gradients and tabulate layers, output shapes, parameters,
        FLOPs.

        >>> net = trident.nn.Sequential(trident.nn.Linear(4, 8), trident.nn.ReLU())
        >>> net.summary(trident.zeros(2, 4)).total_params
        40
        """
        from .summary import summarize

        return summarize(self, inputs, kwargs)


def _indent(text: str) -> str:
    """All lines but the first pushed two spaces to the right."""
    first, *rest = text.split("\n")
    return "\n".join([first, *("  " + line for line in rest)])


def _assemble(name: str, extra: list[str], children: list[str]) -> str:
    """``name(...)`` on one line where there are no children and one line of ``extra``, else
    indented.
    """
    if not children and len(extra) <= 1:
        return f"{name}({extra[0] if extra else ''})"
    return f"{name}(\n  " + "\n  ".join(extra + children) + "\n)"
