"""Which line of the user's program is running: the first frame outside of trident.

What is kept is a code object and a place in it, so that no frame, and none of its variables, stays
alive.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType

_PACKAGE = str(Path(__file__).parent.parent) + "/"
_ours: dict[str, bool] = {}


def _is_ours(filename: str) -> bool:
    """Whether a file is trident's, or a kernel or rule that it generated."""
    found = _ours[filename] = filename.startswith((_PACKAGE, "<trident"))
    return found


def origin() -> tuple[CodeType, int] | None:
    """(code, place) of the user's line that is running, or None where there is none (a finaliser,
    a worker thread of trident's)."""
    frame = sys._getframe(2)  # called by the allocator, which is called by somebody
    known = _ours.get
    while frame is not None:
        code = frame.f_code
        ours = known(code.co_filename)
        if ours is None:
            ours = _is_ours(code.co_filename)
        if not ours:
            return code, frame.f_lasti
        frame = frame.f_back  # type: ignore[assignment]
    return None


def describe(place: tuple[CodeType, int] | None) -> str:
    """``train.py:31 in step``."""
    if place is None:
        return "(not from a line of the program)"
    code, at = place
    line = code.co_firstlineno
    for start, stop, number in code.co_lines():
        if start <= at < stop and number is not None:
            line = number
    return f"{code.co_filename}:{line} in {code.co_qualname}"
