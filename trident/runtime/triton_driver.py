"""Triton without torch: our driver object, compiling, and what we rely on in the installed Triton.

Triton asks a process-wide driver object for the device, the stream and its C helpers, and its own
object takes them from torch where torch is imported. Ours takes them from ``CudaDevice``. It is put
in place only around the calls that look there (``installed``), so that torch.compile beside us
keeps its own. Compiling names its target and never looks there; launching calls the C launcher.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lang import jit, tl
from .libcuda import cu, library_folder

if TYPE_CHECKING:
    from .aot import Specialization

OLDEST = (3, 6)
SHARED = "iiiKKpp(iii)OOOOOOy*O"
"""What the one C launcher of Triton 3.7 to 3.9 parses: grid, stream, function, two flags, (warps,
CTAs, shared memory), launch metadata, two hooks, two scratch pointers, annotations, signature,
arguments."""
GENERATED = "iiiKKppOOOOOO"
"""What the C launchers that Triton 3.6 writes, one for each signature, parse before the arguments:
grid, stream, function, two flags, two scratch pointers, kernel metadata, launch metadata, two
hooks."""

_lock = threading.RLock()


@jit
def probe_kernel(x_ptr, n, BLOCK: tl.constexpr):
    """What ``contract`` compiles."""
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + at, at.to(tl.float32), mask=at < n)


@functools.cache
def nvidia() -> Any:
    """The module ``triton.backends.nvidia.driver``."""
    from triton.backends.nvidia import driver

    return driver


@functools.cache
def driver_class() -> type:
    """Our driver class. It is made at first use, as its base is Triton's."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    nv = nvidia()

    class Driver(nv.CudaDriver):  # type: ignore[name-defined]
        """What Triton asks of a driver, answered by the current ``CudaDevice``."""

        def __init__(self) -> None:
            DriverBase.__init__(self)  # GPUDriver.__init__ would import torch
            self.utils = _utils(nv)
            self.launcher_cls = nv.CudaLauncher
            self.get_current_device = lambda: _current().index
            self.set_current_device = _select
            self.get_current_stream = lambda index: _device(index).current_stream.get()
            self.get_device_capability = lambda index=0: _device(index).capability

        def get_current_target(self) -> Any:
            major, minor = _current().capability
            return GPUTarget("cuda", major * 10 + minor, 32)

        def get_device_interface(self) -> Any:
            raise TypeError("trident's driver for Triton has no torch device interface")

        get_active_torch_device = get_device_interface

        def allocate_default_profile_scratch(self, size: int, alignment: int, stream: int) -> Any:
            return profile_scratch(_current(), size, stream)

        def get_benchmarker(self) -> Callable:
            return benchmark

        def get_empty_cache_for_benchmark(self) -> Any:
            return _current().allocate(256 << 20)

        def clear_cache(self, cache: Any) -> None:
            cu.cuMemsetD8Async(cache.ptr, 0, cache.nbytes, cache.device.current_stream.get())

    return Driver


def profile_scratch(device: Any, nbytes: int, stream: int) -> Any:
    """Zeroed memory for a profiler's kernels, as Triton's allocators return it."""
    block = device.take(nbytes, stream)
    cu.cuMemsetD8Async(block.ptr, 0, nbytes, stream)
    return _Scratch(block)


def _utils(nv: Any) -> Any:
    """Triton's C helpers, built with a C compiler once and then kept on disk. Where Triton does not
    find the driver's library (it asks ldconfig), it is told where the loaded one lies."""
    try:
        return nv.CudaUtils()
    except (AssertionError, OSError):
        from triton import knobs

        folder = library_folder()
        if folder is None or knobs.nvidia.libcuda_path:
            raise
        knobs.nvidia.libcuda_path = folder
        return nv.CudaUtils()


class _Scratch:
    """A buffer as Triton's allocator protocol has it."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def data_ptr(self) -> int:
        return self.buffer.ptr


def _current() -> Any:
    from .device import current_cuda

    return current_cuda()


def _device(index: int) -> Any:
    from .device import cuda_device

    return cuda_device(index)


def _select(index: int) -> None:
    from .device import select

    select(index)


def benchmark(kernel_call: Callable[[], Any], *, quantiles: Any = None, **other: Any) -> Any:
    """Milliseconds of ``kernel_call()`` on the current device, measured with events: the median, or
    the quantiles asked for. ``warmup`` and ``rep`` are times in ms, as in ``triton.testing``."""
    from .stream import Event

    device = _current()
    cache = driver().get_empty_cache_for_benchmark()

    def sample() -> float:
        driver().clear_cache(cache)
        first, last = Event(enable_timing=True), Event(enable_timing=True)
        first.record()
        kernel_call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    kernel_call()
    device.synchronize()
    once = max(sample(), 1e-3)
    for _ in range(min(int(other.get("warmup", 25) / once), 100)):
        kernel_call()
    times = sorted(sample() for _ in range(max(min(int(other.get("rep", 100) / once), 1000), 3)))
    if quantiles is None:
        return times[len(times) // 2]
    return [times[min(int(q * len(times)), len(times) - 1)] for q in quantiles]


@functools.cache
def driver() -> Any:
    """The driver object of this process. Raises what Triton's build of its C helpers raises."""
    return driver_class()()


@contextlib.contextmanager
def installed() -> Iterator[Any]:
    """Our driver as Triton's active one inside; what was active before (torch's, or none yet) is
    put back. One thread at a time."""
    from triton.runtime.driver import driver as active

    ours = driver()
    with _lock:
        before = active._active
        active.set_active(ours)
        try:
            yield ours
        finally:
            active._active = before


def launcher_form() -> str | None:
    """``shared`` or ``generated``, as the C launcher of the installed Triton is; None where it is
    one that this file does not know."""
    nv = nvidia()
    if getattr(nv, "_BASE_ARGS_FORMAT", None) == GENERATED and hasattr(nv, "make_launcher"):
        return "generated"
    try:
        text = Path(nv.dirname, "driver.c").read_text()
    except OSError:
        return None
    return "shared" if f'"{SHARED}"' in text and "launchKernel" in text else None


def compiled(specialization: Specialization, architecture: str) -> Any:
    """Triton's CompiledKernel for ``sm_90``: from its cache on disk, or compiled now.

    It is not loaded by Triton: ``bound.py`` loads and unloads what it holds.
    """
    return specialization.compile(architecture)


# ---- what we rely on -----------------------------------------------------------------------------

_METADATA = (
    "name", "shared", "num_warps", "num_ctas", "global_scratch_size", "global_scratch_align",
    "profile_scratch_size", "profile_scratch_align", "launch_cooperative_grid", "launch_pdl",
)  # fmt: skip


def contract() -> list[str]:
    """What of the installed Triton is not as trident needs it, one sentence each; [] is good.

    Needs no GPU: a tiny kernel is compiled, and looked at.
    """
    import triton

    broken: list[str] = []
    digits = re.match(r"(\d+)\.(\d+)", triton.__version__)
    if digits is None or (int(digits[1]), int(digits[2])) < OLDEST:
        broken.append(f"Triton {triton.__version__} is installed; 3.6 or newer is needed")
    for check in (_check_signatures, _check_driver, _check_hooks, _check_kernel):
        try:
            broken += check()
        except Exception as error:
            broken.append(f"{check.__name__.removeprefix('_check_')}: {error!r}")
    if launcher_form() is None:
        broken.append(
            "Triton's C launcher takes other arguments than those of 3.6 to 3.9; kernels are "
            "launched through cuLaunchKernel, which takes longer"
        )
    return broken


def _missing(what: str, thing: Any, names: tuple[str, ...]) -> list[str]:
    return [f"{what} has no {n}" for n in names if not hasattr(thing, n)]


def _parameters(what: str, function: Callable, names: tuple[str, ...]) -> list[str]:
    have = list(inspect.signature(function).parameters)
    lacking = [n for n in names if n not in have]
    return [f"{what} takes no {n}; it takes {', '.join(have)}" for n in lacking]


def _check_signatures() -> list[str]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    return [
        *_parameters("triton.compile", triton.compile, ("src", "target", "options")),
        *_parameters(
            "ASTSource", ASTSource.__init__, ("fn", "signature", "constexprs", "attrs")
        ),
        *_parameters("GPUTarget", GPUTarget, ("backend", "arch", "warp_size")),
    ]  # fmt: skip


def _check_driver() -> list[str]:
    from triton.runtime.driver import driver as active

    nv = nvidia()
    broken = _missing("triton.runtime.driver", active, ("set_active", "_active"))
    broken += _missing(
        "triton.backends.nvidia.driver", nv, ("CudaDriver", "CudaLauncher", "CudaUtils", "dirname")
    )
    broken += _parameters("CudaLauncher", nv.CudaLauncher.__init__, ("src", "metadata"))
    lacking: Any = getattr(driver_class(), "__abstractmethods__", ())
    broken += [f"Triton's drivers must have {n}, which ours has not" for n in sorted(lacking)]
    text = inspect.getsource(nv.CudaLauncher)
    for name in ("launch", "launch_cooperative_grid", "launch_pdl", "global_scratch_size"):
        if f"self.{name} =" not in text:
            broken.append(f"CudaLauncher sets no {name}")
    if launcher_form() == "shared":
        for name in ("arg_annotations", "kernel_signature"):
            if f"self.{name} =" not in text:
                broken.append(f"CudaLauncher sets no {name}")
    return broken


def _check_hooks() -> list[str]:
    from triton import knobs

    names = (
        "launch_enter_hook", "launch_exit_hook", "kernel_load_start_hook", "kernel_load_end_hook"
    )  # fmt: skip
    broken = _missing("triton.knobs.runtime", knobs.runtime, names)
    for name in names:
        hook = getattr(knobs.runtime, name, None)
        if hook is not None and not isinstance(getattr(hook, "calls", None), list):
            broken.append(f"triton.knobs.runtime.{name} keeps its hooks in no list `calls`")
    return broken


def _check_kernel() -> list[str]:
    from .aot import Specialization

    signature = (("x_ptr", "*fp32"), ("n", "i32"), ("BLOCK", "constexpr"))
    tiny = Specialization(probe_kernel, signature, (((2,), 128),), (0,), (("num_warps", 4),))
    kernel = tiny.compile("sm_80")
    broken = _missing(
        "a compiled kernel", kernel, ("metadata", "packed_metadata", "asm", "name", "src")
    )
    broken += _missing("the metadata of a compiled kernel", kernel.metadata, _METADATA)
    packed = tuple(kernel.packed_metadata)
    shared = kernel.metadata.shared
    if packed[:3] != (4, 1, shared):
        broken.append(
            f"packed_metadata must start with (warps, CTAs, shared memory), (4, 1, {shared}); it "
            f"is {packed}"
        )
    if "cubin" not in kernel.asm:
        broken.append("a compiled kernel has no cubin")
    text = kernel.asm["ptx"]
    entry = re.search(r"\.entry\s+(\w+)\s*\(([^)]*)\)", text)
    found = entry[2].count(".param") if entry else 0
    if found != 4:
        broken.append(
            f"a kernel with 2 arguments has {found} parameters in its PTX; 4 are expected, the "
            "last two for scratch memory"
        )
    return broken
