"""What kernels have to say: an index that is out of range, told when the host waits anyway.

A check that read its result back would wait for the GPU at every lookup. So a kernel that finds a
bad index writes it into memory of the host that the device sees, and the next thing that waits
(``to_host``, ``synchronize``) raises the error, with the op, the index and its bound. Until then
the kernels that use the index treat it as the nearest valid one: nothing is read or written
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import numpy as np

from .. import dtypes
from .array import DeviceArray, LastingBuffer

if TYPE_CHECKING:
    from .device import Device

VALUES = 1023
WORDS = 1 + VALUES
"""int64 words: the number of a site that failed (0: none), and a value for each site, in turns."""


class Reports:
    """The words of one device. ``words`` is the host's view of the memory at ``address``."""

    def __init__(self, device: Device, words: np.ndarray, address: int) -> None:
        self.words = words
        words[:] = 0
        buffer = LastingBuffer(device, address, words.nbytes, words.view(np.uint8))
        self.array = DeviceArray(buffer, (WORDS,), (1,), dtypes.int64)
        self._numbers: dict[Hashable, int] = {}
        self._errors: list[Callable[[int], Exception]] = []

    def site(self, key: Hashable, error: Callable[[int], Exception]) -> int:
        """The number (from 1) by which kernels report for ``key``; ``error(value)`` is raised for
        what they report."""
        number = self._numbers.get(key)
        if number is None:
            self._errors.append(error)
            number = self._numbers[key] = len(self._errors)
        return number

    def raise_found(self) -> None:
        """Raise what was reported since the last call. Call it where the device was waited for."""
        number = int(self.words[0])
        if number:
            self.words[0] = 0
            raise self._errors[number - 1](int(self.words[1 + number % VALUES]))
