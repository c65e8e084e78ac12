"""In which order a loader takes the samples.

Samplers draw from ``generator`` where one is given; inside a ``DataLoader`` otherwise from a stream
that (seed, epoch) decides; and elsewhere from trident's default generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np

from ...errors import wrong
from .rng import sampling_rng

_CHUNK = 4096  # how many indices with replacement are drawn at a time


class Sampler:
    """Base of samplers: define ``__iter__()`` (yields indices) and, where known, ``__len__()``."""

    def __init__(self, data_source: Sized | None = None) -> None:
        pass

    def __class_getitem__(cls, item: Any) -> type:
        return cls

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"{type(self).__name__} must define __iter__(self)")


class SequentialSampler(Sampler):
    """0, 1, ..., len(data_source) - 1.

    >>> list(trident.utils.data.SequentialSampler("abc"))
    [0, 1, 2]
    """

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler):
    """A random order of ``range(len(data_source))``, or ``num_samples`` draws with replacement.

    Without replacement ``num_samples`` may exceed the length: whole permutations follow each other.

    >>> sorted(trident.utils.data.RandomSampler("abc"))
    [0, 1, 2]
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Any = None,
    ) -> None:
        _check_count("RandomSampler", num_samples, optional=True)
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = generator

    @property
    def num_samples(self) -> int:
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        n, left = len(self.data_source), self.num_samples
        if n == 0:
            return
        rng = sampling_rng(self.generator)
        while left > 0:
            if self.replacement:
                part = rng.integers(0, n, min(left, _CHUNK))
            else:
                part = rng.permutation(n)[:left]
            yield from part.tolist()
            left -= len(part)

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler):
    """The given indices in random order."""

    def __init__(self, indices: Sequence[Any], generator: Any = None) -> None:
        self.indices = indices
        self.generator = generator

    def __iter__(self) -> Iterator[Any]:
        for i in sampling_rng(self.generator).permutation(len(self.indices)).tolist():
            yield self.indices[i]

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler):
    """``num_samples`` draws from ``range(len(weights))`` with these odds (they need not sum to 1).

    >>> list(trident.utils.data.WeightedRandomSampler([0.0, 2.0], 3))
    [1, 1, 1]
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool = True,
        generator: Any = None,
    ) -> None:
        _check_count("WeightedRandomSampler", num_samples)
        w = np.asarray(weights, dtype=np.float64)
        if w.ndim != 1 or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
            raise wrong(
                "WeightedRandomSampler",
                "weights must be a list of finite numbers >= 0 with a sum above 0",
                got=f"shape {w.shape}" if w.ndim != 1 else w.tolist()[:8],
                error=ValueError,
            )
        positive = int((w > 0).sum())
        if not replacement and num_samples > positive:
            raise wrong(
                "WeightedRandomSampler",
                f"num_samples without replacement must be at most {positive}, the number of "
                "weights above 0",
                got=num_samples,
                error=ValueError,
            )
        self.weights = w
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        rng = sampling_rng(self.generator)
        chosen = rng.choice(
            len(self.weights),
            self.num_samples,
            replace=self.replacement,
            p=self.weights / self.weights.sum(),
        )
        yield from chosen.tolist()

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler):
    """Lists of ``batch_size`` indices of another sampler; the last may be shorter, or is dropped.

    >>> list(trident.utils.data.BatchSampler(range(5), batch_size=2, drop_last=False))
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, sampler: Iterable[Any], batch_size: int, drop_last: bool) -> None:
        _check_count("BatchSampler", batch_size, name="batch_size")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list]:
        batch = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


def _check_count(
    op: str, value: int | None, *, name: str = "num_samples", optional: bool = False
) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise wrong(op, f"{name} must be a positive integer", got=repr(value), error=ValueError)
