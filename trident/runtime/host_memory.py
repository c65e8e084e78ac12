"""Keep freed arrays: half of an eager CPU step would otherwise be page faults.

glibc gives large blocks back to the kernel when they are freed, and fresh ones are zeroed page by
page at first touch: every temporary array of a training step pays that again. Raising three
thresholds turns malloc's own free lists into the array pool. Measured here on the issue's two-layer
net (see ``docs/architecture.md``). Nothing else changes, and up to ``KEEP`` bytes of freed memory
stay with the process. ``TRIDENT_MALLOC=0`` leaves malloc alone; other C libraries have no such call
and are left alone.
"""

from __future__ import annotations

import ctypes
import sys

KEEP = 256 << 20
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_arrays() -> bool:
    """Tell glibc's malloc to reuse freed blocks up to 32 MB; whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest value glibc takes
    return bool(done and mallopt(_M_TRIM_THRESHOLD, KEEP) and mallopt(_M_TOP_PAD, 16 << 20))
