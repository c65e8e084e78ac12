"""One pool of threads for the CPU backend. numpy releases the GIL in its loops, copies and BLAS."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from .. import config
from . import blas

_pool: ThreadPoolExecutor | None = None
_threads: int | None = None


def get_num_threads() -> int:
    """Threads that CPU operations use: OMP_NUM_THREADS, else the cores this process may use."""
    global _threads
    if _threads is None:
        affinity = getattr(os, "sched_getaffinity", None)
        _threads = config.THREADS or (len(affinity(0)) if affinity else os.cpu_count() or 1)
    return _threads


def set_num_threads(n: int) -> None:
    """Let CPU operations use ``n`` threads (numpy's BLAS keeps the number it was started with)."""
    global _threads, _pool
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads: n must be a positive int; got {n!r}")
    _threads = n
    _pool = None


def _forget_pool() -> None:
    """A forked child (a DataLoader worker) has none of its parent's threads: it makes its own."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def run(task: Callable[[int], Any], count: int) -> list:
    """``[task(0), ..., task(count - 1)]``, each in a thread (the first in this one).

    The threads compute in the caller's context: numpy's error state lives there. Meanwhile BLAS
    keeps to one thread a product.
    """
    global _pool
    if count == 1:
        return [task(0)]
    if _pool is None:
        _pool = ThreadPoolExecutor(get_num_threads(), thread_name_prefix="trident")
    setter = blas.limit()
    try:
        others = [_pool.submit(copy_context().run, task, i) for i in range(1, count)]
        return [task(0)] + [f.result() for f in others]
    finally:
        blas.restore(setter)
