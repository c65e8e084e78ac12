"""torch's and numpy's other names for the ops, in one table."""

from __future__ import annotations

from .registry import alias

ALIASES: dict[str, str] = {
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "negative": "neg",
    "absolute": "abs",
    "fix": "trunc",
    "sgn": "sign",
    "clip": "clamp",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arctan2": "atan2",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "expit": "sigmoid",
}
"""New name -> name of the op."""


def install() -> None:
    """Enter the aliases; called once, when every family is loaded."""
    for name, target in ALIASES.items():
        alias(name, target)
