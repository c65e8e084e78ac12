"""``DataLoader``: batches of a data set, in order, the same for any number of workers."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...errors import TridentError, wrong
from . import pin, rng, workers
from .collate import default_collate, default_convert, stack, to_tensors
from .dataset import IterableDataset, gather, off_cpu
from .sampler import BatchSampler, RandomSampler, SequentialSampler


class SampleError(TridentError, RuntimeError):
    """A sample (or the batch of it) could not be made. ``index`` and ``epoch`` say which one.

    The error of the data set is chained (``__cause__``), with its traceback, from worker processes
    too.
    """

    index: Any = None
    epoch: int = 0


def _sample_error(what: str, index: Any, epoch: int, cause: Exception) -> SampleError:
    error = SampleError(f"DataLoader: {what} failed: {type(cause).__name__}: {cause}")
    error.index, error.epoch = index, epoch
    return error


@dataclass
class _Job:
    """What a worker needs to make batches."""

    dataset: Any
    collate_fn: Callable | None  # None: default_collate, whose second half is done by the loop
    batched: bool
    num_workers: int
    worker_init_fn: Callable | None
    seed: int
    pin: bool = False  # page-locked batches, made where the others are (not in another process)

    def start(self, worker_id: int) -> None:
        info = workers.WorkerInfo(worker_id, self.num_workers, self.seed, self.dataset)
        workers.set_worker_info(info)
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)

    def fetch(
        self, indices: list, seed: int, epoch: int, number: int, stop: threading.Event | None = None
    ) -> Any:
        """Batch ``number`` of the epoch: the samples ``indices``, collated."""
        batch = self._fetch(indices, seed, epoch, number, stop)
        return pin.pinned(batch) if self.pin else batch

    def _fetch(self, indices: list, seed: int, epoch: int, number: int, stop: Any) -> Any:
        if self.batched and self.collate_fn is None:
            whole = gather(self.dataset, indices)
            if whole is not None:
                return list(whole)
        samples = []
        for index in indices:
            if stop is not None and stop.is_set():
                raise CancelledError
            with rng.item_stream(seed, epoch, index):
                try:
                    samples.append(self.dataset[index])
                except Exception as error:
                    name = type(self.dataset).__name__
                    what = f"sample {index!r} of {name} (epoch {epoch})"
                    raise _sample_error(what, index, epoch, error) from error
        return self.collate(samples, indices, seed, epoch, number)

    def collate(self, samples: list, indices: list, seed: int, epoch: int, number: int) -> Any:
        with rng.item_stream(seed, epoch, number, rng.COLLATE):
            try:
                if not self.batched:
                    return samples[0] if self.collate_fn is None else self.collate_fn(samples[0])
                return stack(samples) if self.collate_fn is None else self.collate_fn(samples)
            except Exception as error:
                shown = ", ".join(map(repr, indices[:8])) + (", ..." if len(indices) > 8 else "")
                what = f"collating samples [{shown}] (epoch {epoch})"
                raise _sample_error(what, list(indices), epoch, error) from error

    def read(self, seed: int, epoch: int, size: int, drop_last: bool, stop: Any) -> Iterator[Any]:
        """The batches of a stream. Its draws come from (seed, epoch, position)."""
        position, number, samples, source = 0, 0, [], None
        while not stop.is_set():
            with rng.item_stream(seed, epoch, position):
                try:
                    source = iter(self.dataset) if source is None else source
                    samples.append(next(source))
                except StopIteration:
                    break
                except Exception as error:
                    what = f"sample {position} of {type(self.dataset).__name__} (epoch {epoch})"
                    raise _sample_error(what, position, epoch, error) from error
            position += 1
            if len(samples) == size:
                indices = list(range(position - size, position))
                batch = self.collate(samples, indices, seed, epoch, number)
                yield pin.pinned(batch) if self.pin else batch
                number, samples = number + 1, []
        if samples and not drop_last and not stop.is_set():
            indices = list(range(position - len(samples), position))
            batch = self.collate(samples, indices, seed, epoch, number)
            yield pin.pinned(batch) if self.pin else batch


_process_job: _Job  # of a worker process


def _start_in_process(job: _Job, worker_id: int) -> None:
    global _process_job
    _process_job = job
    job.start(worker_id)


def _fetch_in_process(indices: list, seed: int, epoch: int, number: int) -> Any:
    workers.check_started()
    return _process_job.fetch(indices, seed, epoch, number)


_END = object()


class DataLoader:
    """Iterate over ``dataset`` in batches; each ``iter(loader)`` is one epoch.

    Order and augmentation are a pure function of (seed, epoch, index): equal for any
    ``num_workers``. The seed is ``seed``, else that of ``generator``, else that of
    ``trident.manual_seed``; nothing is drawn from the generator. The epoch counts up by itself;
    ``set_epoch`` sets it (to resume). Random transforms keep the promise by drawing from
    ``trident.utils.data.item_rng()``.

    Arguments are torch's. ``num_workers`` workers keep ``num_workers * prefetch_factor`` batches
    ahead. They are threads, unless ``multiprocessing_context`` ("forkserver", "spawn", "fork") asks
    for processes, which pure Python transforms need to run in parallel. ``worker_init_fn(id)`` runs
    as each worker starts. ``timeout``: seconds to wait for a batch (0: for ever).
    ``batch_size=None`` gives samples, not batches. ``pin_memory``: batches lie on page-locked
    memory, from which ``x.to("cuda", non_blocking=True)`` copies while Python goes on; the workers
    put them there. Without a GPU it does nothing, and says so once.
    Workers make data on the CPU; a data set of tensors on another device is read by the loop
    itself. An ``IterableDataset`` is read by one background thread.

    A failing sample raises ``SampleError`` that names its index, with the original error chained.

    >>> data = trident.utils.data.TensorDataset(trident.arange(5))
    >>> for (x,) in trident.utils.data.DataLoader(data, batch_size=2):
    ...     print(x)
    tensor([0, 1])
    tensor([2, 3])
    tensor([4])
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable | None = None,
        batch_sampler: Iterable | None = None,
        num_workers: int = 0,
        collate_fn: Callable | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Any = None,
        *,
        seed: int | None = None,
        prefetch_factor: int | None = 2,
        persistent_workers: bool = False,
    ) -> None:
        streaming = isinstance(dataset, IterableDataset)
        prefetch_factor = 2 if prefetch_factor is None else prefetch_factor
        _require(num_workers >= 0, "num_workers must be >= 0", num_workers)
        _require(timeout >= 0, "timeout must be >= 0 seconds", timeout)
        _require(prefetch_factor >= 1, "prefetch_factor must be at least 1", prefetch_factor)
        _require(
            num_workers > 0 or not persistent_workers, "persistent_workers needs num_workers > 0"
        )
        _require(
            not (streaming and (shuffle or sampler is not None or batch_sampler is not None)),
            "an IterableDataset has no indices: shuffle, sampler and batch_sampler do not apply",
        )
        _require(sampler is None or not shuffle, "sampler excludes shuffle=True")
        if batch_sampler is not None:
            _require(
                batch_size in (None, 1) and not shuffle and sampler is None and not drop_last,
                "batch_sampler excludes batch_size, shuffle, sampler and drop_last",
            )
            batch_size = None
        elif batch_size is None:
            _require(
                not drop_last, "batch_size=None gives single samples: drop_last does not apply"
            )
        else:
            _require(batch_size >= 1, "batch_size must be at least 1, or None", batch_size)
        if batch_sampler is None and not streaming:
            if sampler is None:
                sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
            if batch_size is not None:
                batch_sampler = BatchSampler(sampler, batch_size, drop_last)

        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.sampler, self.batch_sampler = sampler, batch_sampler
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.multiprocessing_context = multiprocessing_context
        self.persistent_workers = persistent_workers
        self.timeout, self.worker_init_fn = timeout, worker_init_fn
        self.generator, self.seed, self.pin_memory = generator, seed, pin_memory
        self.epoch = 0
        """The epoch that the next ``iter(loader)`` gives."""
        self._batched = batch_sampler is not None or (streaming and batch_size is not None)
        self.collate_fn = collate_fn or (default_collate if self._batched else default_convert)
        self._pool: Any = None

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter(loader)`` be epoch number ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches an epoch has. TypeError where the data set or the sampler has no length."""
        if isinstance(self.dataset, IterableDataset):
            n = len(self.dataset)  # type: ignore[arg-type]
            if self.batch_size is None:
                return n
            return n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return len(self.batch_sampler if self._batched else self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        seed = rng.base_seed(self.generator) if self.seed is None else int(self.seed)
        epoch, self.epoch = self.epoch, self.epoch + 1
        is_default = self.collate_fn in (default_collate, default_convert)
        job = _Job(
            self.dataset,
            None if is_default else self.collate_fn,
            self._batched,
            self.num_workers,
            self.worker_init_fn,
            seed,
            pin.wanted(self.pin_memory),
        )
        if isinstance(self.dataset, IterableDataset):
            return self._stream(job, seed, epoch)
        # kernels are started by one thread: workers would only stand in line
        if self.num_workers == 0 or off_cpu(self.dataset):
            return self._in_turn(job, seed, epoch)
        return self._ahead(job, seed, epoch)

    def _order(self, seed: int, epoch: int) -> Iterator[tuple[int, list]]:
        """(number, indices) of each batch. The sampler draws from the order stream of the epoch."""
        stream = rng.Stream(seed, epoch, 0, rng.ORDER)
        source = None
        for number in itertools.count():
            with rng.entered(stream):
                if source is None:
                    batches = self.batch_sampler if self._batched else self.sampler
                    source = iter(batches)  # type: ignore[arg-type]
                try:
                    indices = next(source)
                except StopIteration:
                    return
            yield number, list(indices) if self._batched else [indices]

    def _finish(self, job: _Job, batch: Any) -> Any:
        """The half of the work that is done in the loop's own thread."""
        if job.collate_fn is None:
            return to_tensors(batch) if self._batched else default_convert(batch)
        return batch

    def _in_turn(self, job: _Job, seed: int, epoch: int) -> Iterator[Any]:
        for number, indices in self._order(seed, epoch):
            yield self._finish(job, job.fetch(indices, seed, epoch, number))

    def _ahead(self, job: _Job, seed: int, epoch: int) -> Iterator[Any]:
        """Batches by workers, in order; the pool is gone when the loop ends or is left."""
        in_processes = self.multiprocessing_context is not None
        pool = self._pool
        if pool is None:
            if in_processes:  # the memory of a process is its own
                init = partial(_start_in_process, replace(job, pin=False))
                pool = workers.Processes(self.num_workers, init, self.multiprocessing_context)
            else:
                pool = workers.Threads(self.num_workers, job.start)
            if self.persistent_workers:
                self._pool = pool
                weakref.finalize(self, pool.close)
        pins = workers.Threads(1, lambda worker_id: None) if job.pin and in_processes else None
        stop = threading.Event()
        pending: deque[tuple[list, Future]] = deque()
        order = self._order(seed, epoch)
        healthy = True
        try:
            while True:
                room = self.num_workers * self.prefetch_factor - len(pending)
                for number, indices in itertools.islice(order, room):
                    if in_processes:
                        future = pool.submit(_fetch_in_process, indices, seed, epoch, number)
                        if pins is not None:
                            future = pins.submit(pin.result, future)
                    else:
                        future = pool.submit(job.fetch, indices, seed, epoch, number, stop)
                    pending.append((indices, future))
                if not pending:
                    return
                indices, future = pending.popleft()
                batch = self._result(future, f"samples {indices[:8]}")
                yield self._finish(job, batch)
                del batch, future
        except (_Lost, KeyboardInterrupt):
            healthy = False
            raise
        finally:
            stop.set()
            for _, future in pending:
                future.cancel()
            if pins is not None:
                pins.close(wait=False)  # it may wait for a worker that hangs
            if not (self.persistent_workers and healthy):
                self._pool = None
                pool.close(wait=healthy)

    def _stream(self, job: _Job, seed: int, epoch: int) -> Iterator[Any]:
        """Batches of an IterableDataset; with workers, read ahead by one thread."""
        stop = threading.Event()
        size = self.batch_size or 1
        source = job.read(seed, epoch, size, self.drop_last, stop)
        if self.num_workers == 0:
            for batch in source:
                yield self._finish(job, batch)
            return
        pool = workers.Threads(1, lambda worker_id: None)
        pending: deque[Future] = deque()
        healthy = True
        try:
            while True:
                while len(pending) < self.num_workers * self.prefetch_factor:
                    pending.append(pool.submit(next, source, _END))
                batch = self._result(pending.popleft(), "the stream")
                if batch is _END:
                    return
                yield self._finish(job, batch)
                del batch
        except (_Lost, KeyboardInterrupt):
            healthy = False
            raise
        finally:
            stop.set()
            for future in pending:
                future.cancel()
            pool.close(wait=healthy)
            if healthy:
                source.close()  # type: ignore[attr-defined]

    def _result(self, future: Future, what: str) -> Any:
        try:
            return future.result(self.timeout or None)
        except TimeoutError as error:
            if future.done():
                raise  # the data set's own, from a place that is no sample
            raise _Lost(
                f"DataLoader: no batch within timeout={self.timeout} seconds while fetching {what}"
            ) from error
        except BrokenProcessPool as error:
            raise _Lost(
                "DataLoader: a worker process died (killed, crashed or out of memory) while "
                f"fetching {what}. Run it with num_workers=0 to see the cause; a script that "
                "starts processes needs `if __name__ == '__main__':` around its work"
            ) from error


class _Lost(TridentError, RuntimeError):
    """A worker that does not answer any more."""


def _require(condition: bool, text: str, got: object = None) -> None:
    if not condition:
        raise wrong("DataLoader", text, got=got, error=ValueError)
