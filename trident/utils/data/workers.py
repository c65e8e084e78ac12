"""Workers that fetch batches ahead: threads, or processes where they are asked for.

Threads are the default, for robustness. numpy, Pillow, zlib and file reads release the GIL, so
loading overlaps; the data set is shared and needs no pickling; there is no fork, whose child
inherits the locks of BLAS, Triton and logging threads that do not exist in it and then hangs; no
shared-memory segment or child process can be left behind. Transforms that are pure Python do not
gain from threads: for those ``multiprocessing_context="forkserver"`` or ``"spawn"`` starts
processes.

Both kinds have ``submit(fn, *args) -> Future`` and ``close(wait)``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import wrong


@dataclass(frozen=True)
class WorkerInfo:
    """Which worker runs: ``id`` (from 0), ``num_workers``, ``seed``, ``dataset``."""

    id: int
    num_workers: int
    seed: int
    dataset: Any


_info: ContextVar[WorkerInfo | None] = ContextVar("trident_worker_info", default=None)


def get_worker_info() -> WorkerInfo | None:
    """The worker that calls this, None outside of workers and while a stream is read.

    >>> trident.utils.data.get_worker_info() is None
    True
    """
    return _info.get()


class Threads:
    """``n`` daemon threads that take tasks from one queue."""

    def __init__(self, n: int, init: Callable[[int], None]) -> None:
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = [
            threading.Thread(
                target=_serve, args=(self._tasks, init, i), name=f"trident-loader-{i}", daemon=True
            )
            for i in range(n)
        ]
        for t in self._threads:
            t.start()

    def submit(self, fn: Callable, *args: Any) -> Future:
        future: Future = Future()
        self._tasks.put((future, fn, args))
        return future

    def close(self, wait: bool = True) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for t in self._threads:
                if t is not threading.current_thread():
                    t.join()


def _serve(tasks: queue.SimpleQueue, init: Callable[[int], None], worker_id: int) -> None:
    failure: BaseException | None = None
    try:
        init(worker_id)
    except BaseException as error:
        failure = error  # every batch of this worker raises it
    while (task := tasks.get()) is not None:
        future, fn, args = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            if failure is not None:
                raise failure
            future.set_result(fn(*args))
        except BaseException as error:
            future.set_exception(error)
        del task, future, fn, args  # an idle worker keeps no batch alive


class Processes:
    """``n`` processes. What ``init`` holds (the data set, the collate function) is pickled once
    each.
    """

    def __init__(self, n: int, init: Callable[[int], None], context: Any) -> None:
        if not isinstance(context, multiprocessing.context.BaseContext):
            methods = multiprocessing.get_all_start_methods()
            if context not in methods:
                raise wrong(
                    "DataLoader",
                    f"multiprocessing_context must be one of {methods}",
                    got=repr(context),
                    error=ValueError,
                )
            context = multiprocessing.get_context(context)
        if context.get_start_method() != "fork":
            try:
                pickle.dumps(init)
            except Exception as error:
                raise wrong(
                    "DataLoader",
                    "the data set, its transforms, collate_fn and worker_init_fn must "
                    f"be picklable for worker processes; {type(error).__name__}: {error}",
                    hint="define them at the top level of a module, or leave "
                    "multiprocessing_context out: threads need no pickling",
                    error=TypeError,
                ) from error
        self._executor = ProcessPoolExecutor(
            n,
            mp_context=context,
            initializer=_start_process,
            initargs=(init, context.Value("i", 0)),
        )

    def submit(self, fn: Callable, *args: Any) -> Future:
        return self._executor.submit(fn, *args)

    def close(self, wait: bool = True) -> None:
        if not wait:  # a worker that hangs would keep the shutdown, and Python's end, waiting
            for child in list((getattr(self._executor, "_processes", None) or {}).values()):
                with contextlib.suppress(ValueError, OSError):
                    child.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


_failure: BaseException | None = None  # of this worker process, while it started


def _start_process(init: Callable[[int], None], counter: Any) -> None:
    global _failure
    with counter.get_lock():
        worker_id = counter.value
        counter.value += 1
    try:
        init(worker_id)
    except Exception as error:
        _failure = error
    # code that draws from the global generators gets numbers that differ between workers
    info = _info.get()
    seed = worker_id if info is None else (info.seed + worker_id) & (2**32 - 1)
    random.seed(seed)
    np.random.seed(seed)


def check_started() -> None:
    """Raise what stopped this worker process from starting."""
    if _failure is not None:
        raise _failure


def set_worker_info(info: WorkerInfo) -> None:
    """Let ``get_worker_info`` return ``info`` in this thread or process."""
    _info.set(info)
