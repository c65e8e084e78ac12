"""How many threads numpy's OpenBLAS uses, call by call.

OpenBLAS lets its threads spin for milliseconds after a product, on the cores that the CPU backend's
own threads want next; and products below some million multiply-adds gain little from a second core.
So products inside the thread pool, and small ones, run on one BLAS thread. Measured on the LeNet
step of ``python -m bench`` with 2 threads: 9.7 -> 8.2 ms. Without numpy's bundled OpenBLAS nothing
is changed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ALONE = 1 << 18
"""OpenBLAS itself stays on one thread up to this many multiply-adds."""
SHARED = 1 << 22
"""From this many on a product is worth all threads."""

_set: Callable[[int], Any] | None = None
_threads = 1
_looked = False


def _find() -> None:
    """Look for the bundled library, which numpy has loaded already."""
    global _set, _threads, _looked
    _looked = True
    folder = Path(np.__file__).parent
    bundled = [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]
    for path in bundled:
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for prefix in ("scipy_openblas", "openblas"):
            for suffix in ("64_", ""):
                setter = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                getter = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                if setter is not None and getter is not None:
                    _threads = getter()
                    _set = setter if _threads > 1 else None
                    return


def limit() -> Callable[[int], Any] | None:
    """Set BLAS to one thread; returns what ``restore`` takes (None: nothing to restore)."""
    if not _looked:
        _find()
    if _set is not None:
        _set(1)
    return _set


def restore(setter: Callable[[int], Any] | None) -> None:
    if setter is not None:
        setter(_threads)


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``np.matmul`` on the number of threads that its size is worth."""
    work = a.size * b.shape[-1]
    if ALONE < work < SHARED:
        setter = limit()
        try:
            return np.matmul(a, b)
        finally:
            restore(setter)
    return np.matmul(a, b)
