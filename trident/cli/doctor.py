"""``trident doctor``: what of this machine trident can use, and the way out where something lacks.

Each check is one function that yields findings. ``broken`` counts only for what was asked for:
``--device cuda`` demands a GPU that runs a kernel, without it a missing GPU is no more than said.
torch is looked for, never imported.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import config

OK, NOTE, MISSING, BROKEN = "ok", "note", "missing", "broken"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``mark``: ok, note (worth knowing), missing (an optional part) or
    broken (something asked for does not work); ``fix`` is what to do, empty where nothing is."""

    mark: str
    what: str
    found: str
    fix: str = ""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu",
        help="what must work (default: cpu); exit code 1 where it does not",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, for a bug report")


def run(options: argparse.Namespace) -> int:
    findings = examine(options.device)
    if options.json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        for f in findings:
            print(f"{f.mark:8} {f.what:13} {f.found}")
            if f.fix:
                print(f"{'':8} {'':13} fix: {f.fix}")
    broken = [f for f in findings if f.mark == BROKEN]
    if not options.json:
        verdict = f"{len(broken)} broken" if broken else "everything needed works"
        print(f"\n{options.device}: {verdict}")
    return 1 if broken else 0


def examine(device: str = "cpu") -> list[Finding]:
    """Every finding, in the order of the report."""
    asked = device == "cuda"
    found: list[Finding] = []
    for check in CHECKS:
        found += check(asked)
    return found


def _wanted(asked: bool) -> str:
    """How serious it is when a part of the cuda device is not there."""
    return BROKEN if asked else MISSING


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    digits = [p for p in version.split(".")[:2] if p.isdigit()]
    return tuple(int(p) for p in digits)


# ---- the checks ---------------------------------------------------------------------------------


def _python(asked: bool) -> Iterator[Finding]:
    version = platform.python_version()
    if (3, 11) <= sys.version_info < (3, 14):
        yield Finding(OK, "Python", version)
    else:
        yield Finding(NOTE, "Python", f"{version}, not tested", "use Python 3.11, 3.12 or 3.13")


def _numpy(asked: bool) -> Iterator[Finding]:
    import numpy as np

    yield Finding(OK, "numpy", np.__version__)
    for name in ("scipy", "ml_dtypes"):
        version = _version(name)
        if version is None:
            yield Finding(BROKEN, name, "is not installed", f"pip install {name}")
        else:
            yield Finding(OK, name, version)


def _threads(asked: bool) -> Iterator[Finding]:
    from ..runtime.host_threads import get_num_threads

    cores = os.cpu_count() or 1
    text = f"{get_num_threads()} of {cores} cores"
    if config.THREADS is not None:
        text += " (OMP_NUM_THREADS)"
    yield Finding(OK, "threads", text)


def _compiler(asked: bool) -> Iterator[Finding]:
    from ..runtime import c_compiler

    path = c_compiler.find()
    if path is None:
        switched = " (switched off by TRIDENT_CC=none)" if config.CC == "none" else ""
        yield Finding(
            NOTE, "C compiler", f"none{switched}: fused functions of the cpu run in numpy, and "
            "launches on a GPU take about 1 us longer",
            "install gcc or clang, or set TRIDENT_CC",
        )  # fmt: skip
        return
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    yield Finding(OK, "C compiler", f"{path}, {done.stdout.splitlines()[0] if done.stdout else ''}")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        yield Finding(
            NOTE, "Python.h", f"not at {header}: launches on a GPU take about 1 us longer",
            "install Python's development files (python3-dev)",
        )  # fmt: skip


def _triton(asked: bool) -> Iterator[Finding]:
    from ..lang import has_triton

    version = _version("triton")
    if version is None or not has_triton():
        where = "" if sys.platform.startswith("linux") else " (it runs on Linux only)"
        yield Finding(
            _wanted(asked), "Triton", f"is not installed{where}: no kernels, the cpu only",
            "pip install 'triton>=3.6'",
        )  # fmt: skip
        return
    if _numbers(version) < (3, 6):
        yield Finding(
            _wanted(asked), "Triton", f"{version} is too old", "pip install 'triton>=3.6'"
        )
        return
    from ..runtime import triton_driver

    try:
        complaints = triton_driver.contract()
    except Exception as error:  # whatever a broken installation raises: the report goes on
        yield Finding(
            _wanted(asked), "Triton", f"{version} does not load: {error!r}",
            "pip install --force-reinstall triton",
        )  # fmt: skip
        return
    if not complaints:
        yield Finding(OK, "Triton", f"{version}, as trident needs it")
    for complaint in complaints:
        yield Finding(
            NOTE, "Triton", f"{version}: {complaint}",
            "report this, and use a Triton between 3.6 and 3.9 until it is mended",
        )  # fmt: skip


def _driver(asked: bool) -> Iterator[Finding]:
    version = _version("cuda-bindings")
    if version is None:
        yield Finding(
            _wanted(asked), "cuda-bindings", "is not installed: no GPU",
            "pip install 'cuda-bindings>=12.8'",
        )  # fmt: skip
    else:
        yield Finding(OK, "cuda-bindings", version)
    if config.INTERPRET:
        yield Finding(
            NOTE, "interpreter", "TRITON_INTERPRET is set: 'cuda' is Triton's interpreter here, "
            "which is for checking kernels and slow",
            "unset TRITON_INTERPRET to use a GPU",
        )  # fmt: skip
        return
    from ..runtime import libcuda

    reason = libcuda.why_not()
    if reason is not None:
        what, _, fix = reason.partition(": ")
        yield Finding(_wanted(asked), "GPU", what, fix)
        return
    cuda = int(libcuda.cu.cuDriverGetVersion())
    yield Finding(OK, "GPU driver", f"for CUDA {cuda // 1000}.{cuda % 1000 // 10}")
    count = libcuda.device_count()
    if not count:
        yield Finding(
            _wanted(asked), "GPU", "the driver finds none",
            "look at `nvidia-smi`; CUDA_VISIBLE_DEVICES may hide it",
        )  # fmt: skip
    for index in range(count):
        yield _gpu(index, asked)


def _gpu(index: int, asked: bool) -> Finding:
    from ..runtime.device import cuda_device

    what = f"cuda:{index}"
    try:
        device = cuda_device(index)
        free, total = device.memory.info()
    except Exception as error:  # e.g. in exclusive mode: the others may work
        return Finding(_wanted(asked), what, str(error))
    major, minor = device.capability
    text = (
        f"{device.name}, sm_{major}{minor}, {device.multiprocessors} multiprocessors, "
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    )
    if major < 8:
        return Finding(
            NOTE, what, f"{text}; older than what kernels are tuned and tested for (sm_80)"
        )
    return Finding(OK, what, text)


def _kernel(asked: bool) -> Iterator[Finding]:
    """A kernel's result, where there is a cuda device of any kind."""
    from .. import cuda, full

    if not cuda.is_available():
        return
    try:
        x = full((1000,), 1.5, device="cuda")
        values = (x * 2 + 1).cpu()
    except Exception as error:
        yield Finding(_wanted(asked), "kernel", f"{type(error).__name__}: {error}")
        return
    if bool((values == 4).all().item()):
        yield Finding(OK, "kernel", f"ran on {cuda.get_device_name()}")
    else:
        yield Finding(
            _wanted(asked), "kernel", f"wrong result: 1.5 * 2 + 1 gave {values[0].item()}",
            "delete Triton's cache; if it stays, please report",
        )  # fmt: skip


def _caches(asked: bool) -> Iterator[Finding]:
    yield _cache("cache", Path(config.CACHE), "TRIDENT_CACHE")
    from ..lang import has_triton

    if has_triton():
        folder = _triton_cache()
        if folder is not None:
            yield _cache("Triton cache", folder, "TRITON_CACHE_DIR")


def _triton_cache() -> Path | None:
    """Where the installed Triton keeps compiled kernels."""
    try:
        from triton import knobs

        return Path(knobs.cache.dir)
    except (ImportError, AttributeError):
        return None


def _cache(what: str, folder: Path, variable: str) -> Finding:
    """Whether files can be written into ``folder`` (or where it would be made), and its size."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK) or not there.is_dir():
        return Finding(
            NOTE, what, f"{folder} cannot be written: nothing compiled outlives the process",
            f"set {variable} to a folder of your own",
        )  # fmt: skip
    if not folder.exists():
        return Finding(OK, what, f"{folder}, not made yet")
    files, size = _size(folder)
    left = shutil.disk_usage(folder).free
    text = f"{folder}, {files} files, {size / 2**20:.1f} MiB, {left / 2**30:.1f} GiB free"
    if left < 2**28:
        return Finding(NOTE, what, text, f"make room, or set {variable} to another disk")
    return Finding(OK, what, text)


def _size(folder: Path) -> tuple[int, int]:
    """Files below a folder, and their bytes."""
    files = size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(root, name)).st_size
            except OSError:  # another process tidied it away
                continue
            files += 1
    return files, size


def _torch(asked: bool) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding(OK, "torch", "not installed, and not needed")
    else:
        yield Finding(
            OK, "torch",
            f"{_version('torch') or 'of unknown version'} lies beside; trident does not import it",
        )  # fmt: skip


CHECKS: tuple[Callable[[bool], Iterator[Finding]], ...] = (
    _python, _numpy, _threads, _compiler, _triton, _driver, _kernel, _caches, _torch,
)  # fmt: skip
