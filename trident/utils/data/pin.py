"""Batches on page-locked memory (``DataLoader(pin_memory=True)``)."""

from __future__ import annotations

import warnings
from concurrent.futures import Future
from typing import Any

import numpy as np

import trident

from ...dtypes import FROM_NUMPY
from ...runtime import device as gpus
from ...runtime import pinned as page_locked
from ...runtime.libcuda import why_not
from .collate import map_tree

_warned = False


def wanted(pin_memory: bool) -> bool:
    """Whether batches go to page-locked memory. Says once that it is pointless without a GPU."""
    global _warned
    if not pin_memory or gpus.interpreting():  # the interpreter reads any memory
        return False
    if page_locked.available():
        return True
    if not _warned:
        _warned = True
        text = f"DataLoader: pin_memory=True does nothing without a GPU ({why_not()})"
        warnings.warn(text, UserWarning, stacklevel=3)
    return False


def pinned(tree: Any) -> Any:
    """The arrays and CPU tensors in a tree of dicts, lists and tuples on page-locked memory, and
    what has a method ``pin_memory`` as that gives it."""
    return map_tree(tree, _leaf)


def _leaf(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return page_locked.copy(x) if x.dtype in FROM_NUMPY else x
    if isinstance(x, trident.Tensor):
        return x if x.is_cuda else x.pin_memory()
    return x.pin_memory() if hasattr(x, "pin_memory") else x


def result(future: Future) -> Any:
    """The batch that a worker process made, on page-locked memory of this one."""
    return pinned(future.result())
