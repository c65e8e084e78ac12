"""Switches under torch's names."""

from __future__ import annotations

from . import config
from .errors import wrong


def set_float32_matmul_precision(precision: str) -> None:
    """'highest' (the default): float32 matmul and conv are IEEE on the GPU. 'high' or 'medium':
    their products may use TF32 (10 bits of mantissa). The CPU is always IEEE.

    >>> trident.set_float32_matmul_precision("highest")
    """
    if precision not in ("highest", "high", "medium"):
        raise wrong(
            "set_float32_matmul_precision",
            "precision must be 'highest', 'high' or 'medium'",
            got=repr(precision),
            error=ValueError,
        )
    config.matmul_precision.set("highest" if precision == "highest" else "high")


def get_float32_matmul_precision() -> str:
    """'highest' or 'high'."""
    return config.matmul_precision.get()


def use_deterministic_algorithms(mode: bool) -> None:
    """True: kernels are launched with the configurations that the package ships, the same on every
    machine of one architecture. False (the default): a choice that ``trident tune`` measured here
    comes first, and it may add in another order. Neither uses float atomics.

    >>> trident.use_deterministic_algorithms(True)
    >>> trident.are_deterministic_algorithms_enabled()
    True
    >>> trident.use_deterministic_algorithms(False)
    """
    if not isinstance(mode, bool):
        raise wrong(
            "use_deterministic_algorithms", "mode must be True or False",
            got=repr(mode), error=TypeError,
        )  # fmt: skip
    config.deterministic.set(mode)


def are_deterministic_algorithms_enabled() -> bool:
    """What ``use_deterministic_algorithms`` set last."""
    return config.deterministic.get()
