"""Data sets: anything with ``__getitem__`` and ``__len__``, or a stream with ``__iter__``."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import IndexBoundsError, wrong
from .rng import fresh_rng


class Dataset:
    """Base of data sets with samples by index: define ``__getitem__(index)`` and ``__len__()``.

    >>> class Squares(trident.utils.data.Dataset):
    ...     def __len__(self): return 4
    ...     def __getitem__(self, index): return index * index
    >>> Squares()[3]
    9
    """

    def __class_getitem__(cls, item: Any) -> type:
        return cls  # Dataset[...] as a type annotation or a base

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(f"{type(self).__name__} must define __getitem__(self, index)")

    def __add__(self, other: Dataset) -> ConcatDataset:
        return ConcatDataset([self, other])


class IterableDataset(Dataset):
    """Base of streams: define ``__iter__()``, and ``__len__()`` where the length is known.

    A loader reads the stream in one place whatever ``num_workers`` is, so no sample comes twice;
    with workers it is read ahead in the background.
    """

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"{type(self).__name__} must define __iter__(self)")


class TensorDataset(Dataset):
    """Sample ``i`` is the tuple of ``tensor[i]``. All tensors (N, ...) share their first size.

    A loader with the default collate function gathers whole batches from it at once.

    >>> data = trident.utils.data.TensorDataset(trident.arange(6).reshape(3, 2), trident.arange(3))
    >>> len(data), data[1][1].item()
    (3, 1)
    """

    def __init__(self, *tensors: Any) -> None:
        shapes = [tuple(t.shape) for t in tensors]
        if not tensors or () in shapes or len({s[0] for s in shapes}) != 1:
            raise wrong(
                "TensorDataset", "tensors must share the size of their first axis", got=shapes
            )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple:
        return tuple(t[index] for t in self.tensors)

    def __len__(self) -> int:
        return self.tensors[0].shape[0]


class ConcatDataset(Dataset):
    """The samples of several data sets, one after the other."""

    def __init__(self, datasets: Iterable[Dataset]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise wrong("ConcatDataset", "datasets must not be empty", error=ValueError)
        for d in self.datasets:
            if isinstance(d, IterableDataset):
                raise wrong(
                    "ConcatDataset",
                    "takes data sets with samples by index",
                    got=f"the IterableDataset {type(d).__name__}",
                    error=TypeError,
                )
        sizes = (len(d) for d in self.datasets)  # type: ignore[arg-type]
        self.cumulative_sizes = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: int) -> Any:
        n = len(self)
        if not -n <= index < n:
            raise wrong(
                "ConcatDataset",
                f"index must lie in [{-n}, {n - 1}]",
                got=index,
                error=IndexBoundsError,
            )
        index %= n
        which = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[which][index - (self.cumulative_sizes[which - 1] if which else 0)]


class Subset(Dataset):
    """The samples ``indices`` of a data set."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


def random_split(
    dataset: Dataset, lengths: Sequence[int | float], generator: Any = None
) -> list[Subset]:
    """Cut a data set at random into parts that do not overlap.

    ``lengths``: sizes that sum to ``len(dataset)``, or fractions that sum to 1 (what rounding
    leaves over goes one each to the first parts). ``generator``: None is trident's default
    generator.

    >>> parts = trident.utils.data.random_split(range(10), [0.7, 0.3])
    >>> [len(p) for p in parts]
    [7, 3]
    """
    n = len(dataset)  # type: ignore[arg-type]
    total = sum(lengths)
    if any(length < 0 for length in lengths):
        raise wrong("random_split", "lengths must not be negative", got=lengths, error=ValueError)
    if total == n and all(float(length).is_integer() for length in lengths):
        sizes = [int(length) for length in lengths]
    elif math.isclose(total, 1.0):
        sizes = [math.floor(n * f) for f in lengths]
        for i in range(n - sum(sizes)):
            sizes[i % len(sizes)] += 1
    else:
        raise wrong(
            "random_split",
            f"lengths must sum to {n}, the length of the data set, or be fractions that sum to 1",
            got=lengths,
            error=ValueError,
        )
    order = fresh_rng(generator).permutation(n)
    ends = np.cumsum([0, *sizes])
    return [Subset(dataset, order[a:b].tolist()) for a, b in itertools.pairwise(ends)]


def gather(dataset: Any, indices: Any) -> tuple | None:
    """The batch ``indices`` of a (subset of a) TensorDataset by one gather a tensor, else None."""
    if isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__:
        indices = np.asarray(indices)
        if indices.dtype.kind != "i" or not isinstance(dataset.dataset, TensorDataset | Subset):
            return None
        return gather(dataset.dataset, np.asarray(dataset.indices)[indices])
    if not isinstance(dataset, TensorDataset):
        return None
    if type(dataset).__getitem__ is not TensorDataset.__getitem__:
        return None  # a subclass that makes its samples in its own way
    indices = np.asarray(indices)
    n = len(dataset)
    if indices.ndim != 1 or indices.dtype.kind != "i":
        return None
    if len(indices) and not (-n <= indices.min() and indices.max() < n):
        return None  # item by item, so that the error names the index
    return tuple(_take(t, indices) for t in dataset.tensors)


def _take(tensor: Any, indices: np.ndarray) -> Any:
    if not isinstance(tensor, np.ndarray):
        if tensor.device.type != "cpu":
            return tensor[indices]
        tensor = tensor.detach().numpy()
    if tensor.flags.c_contiguous:  # else take() would first copy all of it
        return tensor.take(indices, axis=0, mode="wrap")
    return tensor[indices]


def off_cpu(dataset: Any) -> bool:
    """Whether samples of ``dataset`` are slices of tensors that are not on the CPU."""
    if isinstance(dataset, Subset):
        return off_cpu(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return any(map(off_cpu, dataset.datasets))
    tensors = dataset.tensors if isinstance(dataset, TensorDataset) else ()
    return any(not isinstance(t, np.ndarray) and t.device.type != "cpu" for t in tensors)
