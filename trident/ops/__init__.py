"""Every op, one family a file. ``trident.ops.relu`` is the function, ``trident.ops.relu.op`` its
record.
"""

from __future__ import annotations

from typing import Any

from . import (  # noqa: F401  (importing a family enters its ops)
    activation,
    aliases,
    arithmetic,
    attention,
    batchnorm,
    columns,
    comparison,
    contraction,
    conv,
    conv_act,
    creation,
    exponential,
    extrema,
    index,
    layout,
    likelihood,
    loss,
    matmul,
    matmul_add,
    moments,
    normalization,
    optim,
    pool,
    power,
    random,
    reduction,
    rounding,
    scan,
    scatter,
    softmax,
    sort,
    special,
    trigonometry,
    view,
    window,
)
from .registry import FUNCTIONS, REGISTRY

aliases.install()
globals().update(FUNCTIONS)  # after the families: ops.matmul is the function, not its file


def __getattr__(name: str) -> Any:
    from ..errors import missing_name

    raise missing_name("trident.ops", name, FUNCTIONS)


__all__ = ["FUNCTIONS", "REGISTRY", *FUNCTIONS]
