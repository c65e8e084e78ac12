"""The system's C compiler: text in, loaded function out, kept on disk.

A compiled file is named by a hash of its text, the flags, the compiler and the processor, so that a
home directory may be shared between machines. Nothing here knows what the code does.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

from .. import config
from . import disk_cache

FLAGS = (
    "-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp-simd",
    # NaN, infinities and signed zeros stay right: no -ffast-math, and nothing is contracted, so
    # that a value computed twice is the same value
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
)  # fmt: skip
NATIVE = ("-march=native", "-mprefer-vector-width=512")
TIMEOUT = 120  # seconds


@functools.cache
def find() -> str | None:
    """The path of the compiler, or None: TRIDENT_CC or CC, else the first of cc, gcc, clang."""
    if config.CC == "none":
        return None
    for name in (config.CC,) if config.CC else ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path:
            return path
    if config.CC:
        warnings.warn(
            f"the C compiler {config.CC!r} (TRIDENT_CC or CC) is not there; fused functions run in "
            "numpy",
            stacklevel=2,
        )
    return None


@functools.cache
def _identity() -> str:
    """The compiler's version and the processor's features."""
    path = find()
    assert path is not None
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TIMEOUT)
    features = platform.processor() + platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            features += "".join(sorted({x for x in info if x.startswith(("flags", "Features"))}))
    except OSError:
        pass
    return version.stdout + features


@functools.cache
def _native() -> tuple[str, ...]:
    """Those of NATIVE that the compiler takes."""
    taken: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("int probe(void) { return 0; }\n")
        for flag in NATIVE:
            if _run([*FLAGS, *taken, flag], source, Path(folder, "probe.so")).returncode == 0:
                taken.append(flag)
    return tuple(taken)


def _run(flags: list[str], source: Path, target: Path) -> Any:
    command = [str(find()), *flags, str(source), "-o", str(target), "-lm"]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)


class CompileError(Exception):
    """What the compiler said."""


@functools.lru_cache(maxsize=1024)
def load(text: str, name: str) -> Any:
    """The function ``name`` of the C ``text``. Raises CompileError where it does not compile."""
    path = find()
    if path is None:
        raise CompileError("no C compiler")
    key = hashlib.sha256("\0".join((text, path, *FLAGS, _identity())).encode()).hexdigest()[:32]
    target = disk_cache.folder("c") / f"{key}.so"
    if target.exists():
        disk_cache.touch(target)
        try:
            return getattr(ctypes.CDLL(str(target)), name)
        except (OSError, AttributeError):
            target.unlink(missing_ok=True)  # damaged, or of another system: made again
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, f"{name}.c"), Path(folder, f"{name}.so")
        source.write_text(text)
        done = _run([*FLAGS, *_native()], source, built)
        if done.returncode:
            raise CompileError(done.stderr[-4000:])
        disk_cache.write(target, built.read_bytes())
    return getattr(ctypes.CDLL(str(target)), name)
