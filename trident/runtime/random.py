"""Random numbers that depend on (seed, offset, index) alone, and the state that hands out offsets.

Philox 4x32-10 turns a 128-bit counter and a 64-bit key into four 32-bit words. Element ``i`` of a
draw is lane ``i % 4`` of block ``offset + i // 4``; the seed is the key. Where an element needs 64
bits (a float64), counter word 2 gives it a second word. So a draw is the same on every device, for
every block size and thread count, and ``n`` elements always use ``n`` words of the stream. What is
here is the numpy side; ``kernels/random.py`` holds the same functions as Triton text, equal bit by
bit up to the uniform floats and the integers.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import functools
import threading
import time

import numpy as np

ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = (
    8192  # Philox blocks in flight: 2 x 64 KB of state and as much scratch stay in the L2 cache
)


_CHUNK = 1024  # blocks of the stream that small draws share


@functools.lru_cache(maxsize=64)
def _round_keys(seed: int) -> list[np.ndarray]:
    key = np.array([[seed & 0xFFFFFFFF], [seed >> 32 & 0xFFFFFFFF]], np.uint64)
    return [(key + np.uint64(i) * _WEYL) & _LOW for i in range(ROUNDS)]


def philox_blocks(
    seed: int, offset: int, n_blocks: int, high: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """The blocks from ``offset`` on: uint32 (n_blocks, 4). ``high``: counter words 2 and 3."""
    out = np.empty((n_blocks, 4), np.uint32)
    size = min(_BLOCK, n_blocks)
    even, odd, product, spare = (np.empty((2, size), np.uint64) for _ in range(4))
    keys = _round_keys(seed)
    for first in range(0, n_blocks, size or 1):
        count = min(size, n_blocks - first)
        # even holds counter words 0 and 2, odd words 1 and 3, each in the low half of 64 bits
        e, o, p, s = (a[:, :count] for a in (even, odd, product, spare))
        counter = np.arange(count, dtype=np.uint64)
        counter += np.uint64((offset + first) & (2**64 - 1))
        np.bitwise_and(counter, _LOW, out=e[0])
        np.right_shift(counter, _HALF, out=o[0])
        e[1], o[1] = high
        for key in keys:
            np.multiply(e, _MULTIPLIERS, out=p)
            np.right_shift(p, _HALF, out=s)
            o ^= s[::-1]  # word 0 takes the high product of word 2, and the other way round
            o ^= key
            np.bitwise_and(p[::-1], _LOW, out=s)
            e, o, s = o, s, e
        block = out[first : first + count]
        block[:, 0], block[:, 2] = e
        block[:, 1], block[:, 3] = o
    return out


def philox(seed: int, offset: int, n: int, plane: int = 0) -> np.ndarray:
    """The first ``n`` words of the draw that starts at block ``offset``: uint32 (n,).

    ``plane`` is counter word 2: other planes give other words to the same elements.
    """
    start = offset % _CHUNK * 4
    if n <= 1024 and start + n <= _CHUNK * 4:
        return _chunk(seed, offset // _CHUNK, plane)[start : start + n]
    return philox_blocks(seed, offset, -(-n // 4), (plane, 0)).reshape(-1)[:n]


@functools.lru_cache(maxsize=16)
def _chunk(seed: int, number: int, plane: int) -> np.ndarray:
    """A piece of the stream that is kept: small draws, one after the other, are cut from it."""
    words = philox_blocks(seed, number * _CHUNK, _CHUNK, (plane, 0)).reshape(-1)
    words.flags.writeable = False
    return words


def words64(seed: int, offset: int, n: int) -> np.ndarray:
    """``n`` 64-bit words: the high half from plane 0, the low half from plane 1. uint64 (n,)."""
    result = philox(seed, offset, n).astype(np.uint64)
    result <<= _HALF
    result |= philox(seed, offset, n, plane=1)
    return result


def to_uniform(words: np.ndarray, bits: int = 24) -> np.ndarray:
    """float32 in [0, 1) from the top ``bits`` (at most 24) of each uint32 word."""
    u = (words >> np.uint32(32 - bits)).astype(np.float32)
    u *= np.float32(2.0**-bits)
    return u


def to_uniform64(words: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the top 53 bits of each uint64 word."""
    u = (words >> np.uint64(11)).astype(np.float64)
    u *= 2.0**-53
    return u


def to_positive(words: np.ndarray) -> np.ndarray:
    """float32 in (0, 1] from uint32, float64 from uint64: safe under the logarithm.

    float32 keeps the fine steps near 0 (down to 2**-33), where the tail of the normal lies.
    """
    if words.dtype == np.uint64:
        u = to_uniform64(words)
        u += 2.0**-54
        return u
    u = words.astype(np.float32)
    u *= np.float32(2.0**-32)
    u += np.float32(2.0**-33)
    return u


def to_normal(words: np.ndarray) -> np.ndarray:
    """Standard normals by Box and Muller from pairs of words; float32 (uint32) or float64 (uint64).

    A pair (w0, w1) gives r cos(t) and r sin(t) with r = sqrt(-2 log u(w0)), t = 2 pi u(w1).
    Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
    """
    n = words.size
    if n % 2:
        raise ValueError(f"to_normal: words must come in pairs; got {n}")
    pairs = words.reshape(-1, 2)
    radius = to_positive(pairs[:, 0])
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    if words.dtype == np.uint64:
        angle = to_uniform64(pairs[:, 1])
        angle *= 2 * np.pi
    else:
        angle = pairs[:, 1].astype(np.float32)
        angle *= np.float32(2.0**-32)
        angle *= np.float32(2 * np.pi)
    out = np.empty((n // 2, 2), radius.dtype)
    np.multiply(radius, np.cos(angle), out=out[:, 0])
    np.multiply(radius, np.sin(angle, out=angle), out=out[:, 1])
    return out.reshape(-1)


class Generator:
    """The state of a stream of draws: a seed and the next free Philox block.

    >>> g = trident.Generator().manual_seed(7)
    >>> g.take(10), g.take(1)
    ((7, 0), (7, 3))
    """

    def __init__(self, seed: int | None = None, *, device: object = "cpu") -> None:
        self._lock = threading.Lock()
        self.device = device
        self._seed = time.time_ns() & (2**63 - 1) if seed is None else _checked(seed)
        self._offset = 0

    def manual_seed(self, seed: int) -> Generator:
        """Start again from ``seed`` (-2**63 to 2**64 - 1); returns the generator."""
        with self._lock:
            self._seed, self._offset = _checked(seed), 0
        return self

    def seed(self) -> int:
        """Start again from a seed taken from the clock, and return it."""
        self.manual_seed(time.time_ns() & (2**63 - 1))
        return self._seed

    def initial_seed(self) -> int:
        """The seed that the stream started from."""
        return self._seed

    def take(self, n: int) -> tuple[int, int]:
        """Reserve ``n`` words (rounded up to blocks of four): the (seed, offset) of a draw."""
        with self._lock:
            offset = self._offset
            self._offset = offset + -(-n // 4)
            return self._seed, offset

    def get_state(self) -> np.ndarray:
        """The state as 16 bytes (uint8): seed and offset."""
        return np.array([self._seed, self._offset], np.uint64).view(np.uint8)

    def set_state(self, state: np.ndarray) -> None:
        """Continue from what ``get_state`` returned."""
        raw = np.ascontiguousarray(np.asarray(state, np.uint8))
        if raw.shape != (16,):
            raise ValueError(
                f"Generator.set_state: state must hold 16 bytes; got shape {raw.shape}"
            )
        seed, offset = raw.view(np.uint64)
        with self._lock:
            self._seed, self._offset = int(seed), int(offset)

    def __repr__(self) -> str:
        return f"Generator(seed={self._seed}, offset={self._offset})"

    def __getstate__(self) -> tuple[int, int, object]:
        return self._seed, self._offset, self.device

    def __setstate__(self, state: tuple[int, int, object]) -> None:
        self._lock = threading.Lock()
        self._seed, self._offset, self.device = state


def _checked(seed: int) -> int:
    seed = int(seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"manual_seed: seed must lie in [-2**63, 2**64 - 1]; got {seed}")
    return seed & (2**64 - 1)


default_generator = Generator()
