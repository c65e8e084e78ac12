"""Tools around training: ``utils.data`` loads data in batches."""

from __future__ import annotations

from . import data

__all__ = ["data"]
