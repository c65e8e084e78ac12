"""Every module class, gathered from the family files."""

from __future__ import annotations

from . import (
    activation,
    container,
    conv,
    distance,
    dropout,
    lazy,
    linear,
    loss,
    module,
    normalization,
    padding,
    pooling,
    rnn,
    sparse,
    transformer,
)

_FAMILIES = (
    module, container, linear, conv, pooling, normalization, activation, dropout, padding, sparse,
    distance, loss, rnn, transformer, lazy,
)  # fmt: skip

__all__ = []
for _family in _FAMILIES:
    for _name, _value in vars(_family).items():
        if (
            isinstance(_value, type)
            and issubclass(_value, module.Module)
            and _value.__module__ == _family.__name__
            and not _name.startswith("_")
        ):
            globals()[_name] = _value
            __all__.append(_name)
