"""The random numbers of data loading: a pure function of (seed, epoch, index).

While an item is fetched, ``item_rng()`` is a numpy Generator over Philox, whose counter holds the
index and the epoch and whose key holds the seed. Nothing else goes in: not the worker, not what was
drawn before. So augmentation is equal for any number of workers, and differs between items and
epochs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from ...runtime import random

_MASK = 2**64 - 1
ITEM, ORDER, COLLATE, OUTSIDE = 0, 1, 2, 3
"""Separate streams: an item's, the sampler's, a collate function's; draws outside of any loader."""


class Stream:
    """The place of one stream; the Generator is made when something is first drawn (it takes 13
    us).
    """

    __slots__ = ("epoch", "index", "kind", "rng", "seed")

    def __init__(self, seed: int, epoch: int, index: Any, kind: int) -> None:
        self.seed, self.epoch, self.index, self.kind = seed, epoch, index, kind
        self.rng: np.random.Generator | None = None

    def generator(self) -> np.random.Generator:
        if self.rng is None:
            # numpy advances the first word of the counter: streams never overlap
            counter = [0, _word(self.index), self.epoch & _MASK, self.kind]
            key = [self.seed & _MASK, (self.seed >> 64) & _MASK]
            self.rng = np.random.Generator(np.random.Philox(counter=counter, key=key))
        return self.rng


_current: ContextVar[Stream | None] = ContextVar("trident_item_stream", default=None)


def _word(index: Any) -> int:
    try:
        return int(index) & _MASK
    except (TypeError, ValueError):  # a sampler may yield keys: names, tuples
        return zlib.crc32(repr(index).encode())


@contextmanager
def item_stream(seed: int, epoch: int, index: Any, kind: int = ITEM) -> Iterator[None]:
    """Inside the block ``item_rng()`` draws the numbers of (seed, epoch, index).

    The loader does this around each item; use it to see one augmented item again:

    >>> from trident.utils.data import item_rng, item_stream
    >>> with item_stream(seed=0, epoch=3, index=17):
    ...     a = item_rng().random()
    >>> with item_stream(seed=0, epoch=3, index=17):
    ...     a == item_rng().random()
    True
    """
    with entered(Stream(seed, epoch, index, kind)):
        yield


@contextmanager
def entered(stream: Stream) -> Iterator[None]:
    """Inside the block ``item_rng()`` goes on drawing from ``stream``."""
    token = _current.set(stream)
    try:
        yield
    finally:
        _current.reset(token)


def item_rng() -> np.random.Generator:
    """The numpy Generator that transforms and datasets draw from.

    While a ``DataLoader`` fetches an item: seeded by (seed, epoch, index). Elsewhere: seeded by one
    draw from trident's default generator, so ``trident.manual_seed`` decides.

    >>> from trident.utils.data import item_rng
    >>> 0.0 <= item_rng().random() < 1.0
    True
    """
    stream = _current.get()
    return stream.generator() if stream is not None else fresh_rng(None)


def fresh_rng(generator: Any) -> np.random.Generator:
    """A Generator seeded by one draw from ``generator`` (None: trident's default generator)."""
    seed, offset = (generator or random.default_generator).take(4)
    return Stream(seed, 0, offset, OUTSIDE).generator()


def sampling_rng(generator: Any) -> np.random.Generator:
    """What samplers draw from: their own generator, else the loader's order stream, else the
    default.
    """
    return item_rng() if generator is None else fresh_rng(generator)


def base_seed(generator: Any) -> int:
    """The seed that ``generator`` (None: trident's default generator) was given; draws nothing."""
    return (generator or random.default_generator).initial_seed()
