"""Files that outlive the process: compiled C, tuning results. Bounded, and safe to delete.

They lie in ``config.CACHE`` (``TRIDENT_CACHE``, else ``~/.cache/trident``), a folder per purpose. A
file is written beside its place and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from .. import config

LIMIT = 512
"""Files kept per folder; the ones used longest ago go first."""


def folder(purpose: str) -> Path:
    """The folder of ``purpose``, made at first use; a private temporary one where it cannot be."""
    path = Path(config.CACHE) / purpose
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return _fallback(purpose)


def _fallback(purpose: str) -> Path:
    global _temporary
    if _temporary is None:
        _temporary = tempfile.TemporaryDirectory(prefix="trident-cache-")
    path = Path(_temporary.name) / purpose
    path.mkdir(exist_ok=True)
    return path


_temporary: tempfile.TemporaryDirectory | None = None


def write(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    prune(path.parent)


def touch(path: Path) -> None:
    """Count ``path`` as used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


def prune(path: Path, limit: int = LIMIT) -> None:
    """Remove the files of a folder that were used longest ago, down to ``limit``."""
    files = []
    for e in os.scandir(path):
        with contextlib.suppress(FileNotFoundError):  # another process moved it into place
            if e.is_file():
                files.append((e.stat().st_mtime, e.path))
    for _, name in sorted(files)[: max(len(files) - limit, 0)]:
        with contextlib.suppress(OSError):
            os.unlink(name)
