"""Modules that hold modules or parameters: ``Sequential``, lists and dicts."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from .. import Tensor
from .module import Module, _assemble, _indent
from .parameter import Parameter


def _position(name: str, index: Any, n: int) -> int:
    """``index`` counted from the front of ``n`` items; raises IndexError outside."""
    i = operator.index(index)
    if not -n <= i < n:
        raise IndexError(f"{name}: index must lie in [{-n}, {n - 1}] for {n} items; got {i}")
    return i % n


class Sequential(Module):
    """Call modules one after the other, each on the result of the one before.

    >>> net = trident.nn.Sequential(trident.nn.Linear(4, 8), trident.nn.ReLU())
    >>> net(trident.zeros(3, 4)).shape
    trident.Size([3, 8])
    """

    _modules: dict[str, Module]  # type: ignore[assignment]  # here no module is None

    def __init__(self, *args: Any) -> None:
        super().__init__()
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            for name, module in args[0].items():
                self.add_module(name, module)
        else:
            for i, module in enumerate(args):
                self.add_module(str(i), module)

    def forward(self, input: Any) -> Any:
        for module in self._modules.values():
            input = module(input)
        return input

    def __getitem__(self, index: slice | int) -> Any:
        if isinstance(index, slice):
            return type(self)(OrderedDict(list(self._modules.items())[index]))
        return list(self._modules.values())[_position("Sequential", index, len(self))]

    def __setitem__(self, index: int, module: Module) -> None:
        key = list(self._modules)[_position("Sequential", index, len(self))]
        setattr(self, key, module)

    def __delitem__(self, index: slice | int) -> None:
        keys = list(self._modules)
        chosen = (
            keys[index]
            if isinstance(index, slice)
            else [keys[_position("Sequential", index, len(keys))]]
        )
        for key in chosen:
            del self._modules[key]
        _renumber(self)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __add__(self, other: Sequential) -> Sequential:
        if not isinstance(other, Sequential):
            return NotImplemented
        return Sequential(*self, *other)

    def __iadd__(self, other: Sequential) -> Self:
        return self.extend(other)

    def append(self, module: Module) -> Self:
        """Add one module at the end."""
        self.add_module(str(len(self)), module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Add one module before position ``index``."""
        _reset(self, _inserted(self, index, module))
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end."""
        for module in list(modules):
            self.append(module)
        return self

    def pop(self, index: int) -> Module:
        """Remove and return one module."""
        module = self[index]
        del self[index]
        return module


def _inserted(holder: Any, index: int, module: Module) -> list[Module]:
    modules = list(holder._modules.values())
    if not -len(modules) <= index <= len(modules):
        raise IndexError(
            f"insert: index must lie in [{-len(modules)}, {len(modules)}]; got {index}"
        )
    modules.insert(index, module)
    return modules


def _reset(holder: Module, modules: Iterable[Module]) -> None:
    """Hold ``modules``, numbered from 0."""
    modules = list(modules)
    holder._modules.clear()
    for i, module in enumerate(modules):
        holder.add_module(str(i), module)


def _renumber(holder: Sequential) -> None:
    """Close the gaps in the numbers; names that are no numbers stay."""
    if all(key.isdigit() for key in holder._modules):
        _reset(holder, list(holder._modules.values()))


class ModuleList(Module):
    """A list whose modules are registered; it has no ``forward``.

    >>> layers = trident.nn.ModuleList([trident.nn.Linear(4, 4) for _ in range(3)])
    >>> len(list(layers.parameters()))
    6
    """

    _modules: dict[str, Module]  # type: ignore[assignment]  # here no module is None

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def __getitem__(self, index: slice | int) -> Any:
        if isinstance(index, slice):
            return type(self)(list(self._modules.values())[index])
        return self._modules[str(_position("ModuleList", index, len(self)))]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, str(_position("ModuleList", index, len(self))), module)

    def __delitem__(self, index: slice | int) -> None:
        kept = list(self._modules.values())
        del kept[index]
        _reset(self, kept)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __iadd__(self, modules: Iterable[Module]) -> Self:
        return self.extend(modules)

    def append(self, module: Module) -> Self:
        """Add one module at the end."""
        self.add_module(str(len(self)), module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Add one module before position ``index``."""
        _reset(self, _inserted(self, index, module))

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end."""
        if not isinstance(modules, Iterable):
            raise TypeError(
                f"ModuleList: modules must be an iterable of Modules; got {type(modules).__name__}"
            )
        for module in list(modules):
            self.append(module)
        return self

    def pop(self, index: int) -> Module:
        """Remove and return one module."""
        module = self[index]
        del self[index]
        return module

    def __repr__(self) -> str:
        """Equal neighbours are told once: ``(0-2): 3 x Linear(...)``."""
        lines: list[str] = []
        texts = [repr(module) for module in self]
        start = 0
        for i in range(1, len(texts) + 1):
            if i == len(texts) or texts[i] != texts[start]:
                n = i - start
                label = f"({start})" if n == 1 else f"({start}-{i - 1})"
                times = "" if n == 1 else f"{n} x "
                lines.append(f"{label}: {times}{_indent(texts[start])}")
                start = i
        return _assemble(self._get_name(), [], lines)


class ModuleDict(Module):
    """A dict whose modules are registered; it has no ``forward``.

    >>> heads = trident.nn.ModuleDict({"cls": trident.nn.Linear(8, 10)})
    >>> "cls" in heads
    True
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.update(modules)

    def __getitem__(self, key: str) -> Module:
        return self._modules[key]  # type: ignore[return-value]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: str) -> bool:
        return key in self._modules

    def clear(self) -> None:
        """Remove everything."""
        self._modules.clear()

    def pop(self, key: str) -> Module:
        """Remove and return the module under ``key``."""
        module = self[key]
        del self[key]
        return module

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._modules.keys()

    def items(self) -> Iterable[tuple[str, Module]]:
        """Pairs (name, module)."""
        return self._modules.items()  # type: ignore[return-value]

    def values(self) -> Iterable[Module]:
        """The modules."""
        return self._modules.values()  # type: ignore[return-value]

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add or replace several modules."""
        for key, module in dict(modules).items():
            self[key] = module


class DataParallel(Module):
    """Holds ``module`` and calls it: a process has one device, so there is nothing to spread over.

    State keys begin with ``module.``, as in checkpoints of models that were wrapped so.
    """

    def __init__(
        self, module: Module, device_ids: Any = None, output_device: Any = None, dim: int = 0
    ) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.module(*inputs, **kwargs)


def _as_parameter(value: Any) -> Any:
    """A plain Tensor becomes a Parameter; anything else is kept."""
    if isinstance(value, Tensor) and not isinstance(value, Parameter):
        return Parameter(value)
    return value


def _parameter_line(key: str, p: Any) -> str:
    if not isinstance(p, Tensor):
        return f"({key}): Object of type: {type(p).__name__}"
    kind = "Parameter" if isinstance(p, Parameter) else "Tensor"
    size = "x".join(map(str, p.shape))
    place = "" if p.device.type == "cpu" else f" ({p.device})"
    return f"({key}): {kind} containing: [{p.dtype!r} of size {size}{place}]"


class ParameterList(Module):
    """A list whose tensors are registered as parameters; other values are held as they are."""

    def __init__(self, values: Iterable[Any] | None = None) -> None:
        super().__init__()
        self._size = 0
        if values is not None:
            self.extend(values)

    def __getitem__(self, index: slice | int) -> Any:
        if isinstance(index, slice):
            return type(self)([self[i] for i in range(*index.indices(self._size))])
        return getattr(self, str(_position("ParameterList", index, self._size)))

    def __setitem__(self, index: int, value: Any) -> None:
        setattr(self, str(_position("ParameterList", index, self._size)), _as_parameter(value))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self._size))

    def __iadd__(self, values: Iterable[Any]) -> Self:
        return self.extend(values)

    def append(self, value: Any) -> Self:
        """Add one value at the end."""
        self._size += 1
        self[self._size - 1] = value
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        """Add values at the end."""
        for value in list(values):
            self.append(value)
        return self

    def __repr__(self) -> str:
        lines = [_parameter_line(str(i), p) for i, p in enumerate(self)]
        return _assemble(self._get_name(), [], lines)


class ParameterDict(Module):
    """A dict whose tensors are registered as parameters; other values are held as they are."""

    def __init__(self, parameters: Any = None) -> None:
        super().__init__()
        self._keys: dict[str, None] = {}
        if parameters is not None:
            self.update(parameters)

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys:
            raise KeyError(key)
        return self.__dict__[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._keys and hasattr(self, key):
            raise KeyError(f"ParameterDict: {key!r} is the name of a method or attribute")
        self._keys[key] = None
        setattr(self, key, _as_parameter(value))

    def __delitem__(self, key: str) -> None:
        del self._keys[key]
        delattr(self, key)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._keys.keys()

    def values(self) -> Iterable[Any]:
        """The values."""
        return [self[key] for key in self._keys]

    def items(self) -> Iterable[tuple[str, Any]]:
        """Pairs (name, value)."""
        return [(key, self[key]) for key in self._keys]

    def get(self, key: str, default: Any = None) -> Any:
        """The value under ``key``, or ``default``."""
        return self[key] if key in self._keys else default

    def pop(self, key: str) -> Any:
        """Remove and return the value under ``key``."""
        value = self[key]
        del self[key]
        return value

    def update(self, parameters: Any) -> None:
        """Add or replace several values."""
        for key, value in dict(parameters).items():
            self[key] = value

    def __repr__(self) -> str:
        lines = [_parameter_line(key, p) for key, p in self.items()]
        return _assemble(self._get_name(), [], lines)
