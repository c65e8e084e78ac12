"""How a kernel is started: a closure around Triton's own C launcher.

It takes pointers as ints. Compared with ``kernel[grid](...)`` nothing is hashed, classified or
looked up (0.4 to 0.9 us against 7 to 12, measured on the stub driver). Where that launcher cannot
be built (no C compiler, no Python.h) or is one we do not know, the same is done through
cuLaunchKernel (``own_launcher.py``).
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import CudaError
from . import libcuda, own_launcher, triton_driver

if TYPE_CHECKING:
    from .aot import Specialization
    from .bound import Bound
    from .cuda_device import CudaDevice

GRID_X, GRID_YZ = 2**31 - 1, 65535
MOST_PROGRAMS = 2**31 - 1
"""Triton's launchers multiply the axes of the grid as a C int, and start nothing where that
overflows (measured on 3.6 and 3.9)."""

Start = Callable[[int, int, int, int, tuple], None]
"""start(x, y, z, stream, args)"""

_why_own: str | None = None


def launcher_of(compiled: Any) -> Any:
    """Triton's CudaLauncher for a kernel; None where it cannot be had (``why_own`` says why)."""
    global _why_own
    if _why_own is not None:
        return None
    try:
        if triton_driver.launcher_form() is None:
            raise RuntimeError("its launcher is not one that trident knows")
        own_launcher.needs_headers()
        with triton_driver.installed() as ours:
            return ours.launcher_cls(compiled.src, compiled.metadata)
    except (RuntimeError, OSError, AssertionError, subprocess.SubprocessError) as error:
        _why_own = f"{error}"
        warnings.warn(
            f"Triton's C launcher cannot be used ({error}); kernels are started through "
            "cuLaunchKernel, which takes some microseconds longer. A C compiler and Python's "
            "headers (python3-dev) are needed for it",
            stacklevel=2,
        )
        return None


def why_own() -> str | None:
    """Why kernels are not started through Triton's C launcher; None where they are."""
    return _why_own


Raw = Callable[..., None]
"""raw(x, y, z, stream, args, global scratch, profile scratch, metadata, enter hook, exit hook)"""


def start_of(bound: Bound, specialization: Specialization) -> Start:
    """``Bound.start`` for a loaded kernel."""
    meta = bound.compiled.metadata
    launcher = launcher_of(bound.compiled)
    form = triton_driver.launcher_form() if launcher is not None else None
    fast: Start
    if form == "shared":
        careful = _careful(bound, _shared(bound, launcher), specialization)
        fast = _fast_shared(bound, launcher, careful)
    elif form == "generated":
        careful = _careful(bound, _generated(bound, launcher), specialization)
        fast = _fast_generated(bound, launcher, careful)
    else:
        fast = careful = _careful(bound, own_launcher.raw(bound), specialization)
    start = careful if meta.global_scratch_size or meta.profile_scratch_size else fast
    return _in_context(bound.device, start) if libcuda.device_count() > 1 else start


def _shared(bound: Bound, launcher: Any) -> Raw:
    launch = launcher.launch
    function, packed = bound.function, bound.compiled.packed_metadata
    cooperative, pdl = launcher.launch_cooperative_grid, launcher.launch_pdl
    annotations, signature = launcher.arg_annotations, launcher.kernel_signature

    def raw(
        x: int, y: int, z: int, stream: int, args: tuple, scratch: Any, profile: Any, meta: Any,
        enter: Any, leave: Any,
    ) -> None:  # fmt: skip
        launch(
            x, y, z, stream, function, cooperative, pdl, packed, meta, enter, leave, scratch,
            profile, annotations, signature, args,
        )  # fmt: skip

    return raw


def _generated(bound: Bound, launcher: Any) -> Raw:
    launch = launcher.launch
    function, packed = bound.function, bound.compiled.packed_metadata
    cooperative, pdl = launcher.launch_cooperative_grid, launcher.launch_pdl

    def raw(
        x: int, y: int, z: int, stream: int, args: tuple, scratch: Any, profile: Any, meta: Any,
        enter: Any, leave: Any,
    ) -> None:  # fmt: skip
        launch(
            x, y, z, stream, function, cooperative, pdl, scratch, profile, packed, meta, enter,
            leave, *args,
        )  # fmt: skip

    return raw


def _fast_shared(bound: Bound, launcher: Any, careful: Start) -> Start:
    """What most launches are: no scratch memory, no hooks. The rest goes to ``careful``."""
    launch = launcher.launch
    function, packed = bound.function, bound.compiled.packed_metadata
    cooperative, pdl = launcher.launch_cooperative_grid, launcher.launch_pdl
    annotations, signature = launcher.arg_annotations, launcher.kernel_signature
    most = MOST_PROGRAMS // bound.compiled.metadata.num_ctas
    runtime, enters, entering, leaving = _hooks()

    def start(x: int, y: int, z: int, stream: int, args: tuple) -> None:
        if not 0 < x * y * z <= most or y > GRID_YZ or z > GRID_YZ or entering or leaving or (
            runtime.launch_enter_hook is not enters
        ):  # fmt: skip
            careful(x, y, z, stream, args)
            return
        try:
            launch(
                x, y, z, stream, function, cooperative, pdl, packed, None, None, None, None, None,
                annotations, signature, args,
            )  # fmt: skip
        except RuntimeError as error:
            _failed(error, bound, careful, x, y, z, stream, args)

    return start


def _fast_generated(bound: Bound, launcher: Any, careful: Start) -> Start:
    """As ``_fast_shared``, for the launchers of Triton 3.6."""
    launch = launcher.launch
    function, packed = bound.function, bound.compiled.packed_metadata
    cooperative, pdl = launcher.launch_cooperative_grid, launcher.launch_pdl
    most = MOST_PROGRAMS // bound.compiled.metadata.num_ctas
    runtime, enters, entering, leaving = _hooks()

    def start(x: int, y: int, z: int, stream: int, args: tuple) -> None:
        if not 0 < x * y * z <= most or y > GRID_YZ or z > GRID_YZ or entering or leaving or (
            runtime.launch_enter_hook is not enters
        ):  # fmt: skip
            careful(x, y, z, stream, args)
            return
        try:
            launch(
                x, y, z, stream, function, cooperative, pdl, None, None, packed, None, None, None,
                *args,
            )  # fmt: skip
        except RuntimeError as error:
            _failed(error, bound, careful, x, y, z, stream, args)

    return start


def _hooks() -> tuple[Any, Any, Any, Any]:
    """Triton's settings, its hook for launches, and the lists of those that were added: read when a
    kernel is bound, so that a launch only asks whether the lists are empty."""
    from triton import knobs

    runtime = knobs.runtime
    enters, leaves = runtime.launch_enter_hook, runtime.launch_exit_hook
    return runtime, enters, getattr(enters, "calls", ()), getattr(leaves, "calls", ())


def _careful(bound: Bound, raw: Raw, specialization: Specialization) -> Start:
    """A launch with everything: the grid's limits, scratch memory, hooks."""
    runtime = _hooks()[0]
    device, meta = bound.device, bound.compiled.metadata
    scratch, profile = meta.global_scratch_size, meta.profile_scratch_size

    def launch(x: int, y: int, z: int, stream: int, args: tuple) -> None:
        programs = x * y * z * meta.num_ctas
        # dropped after the launch, and taken again by work that comes later on the same stream
        a = device.take(programs * scratch, stream) if scratch else None
        b = _profile_scratch(device, programs * profile, meta, stream) if profile else None
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        enter = enter if getattr(enter, "calls", True) else None
        leave = leave if getattr(leave, "calls", True) else None
        about = None
        if enter is not None or leave is not None:
            about = _metadata(bound, specialization, (x, y, z), stream, args)
        raw(x, y, z, stream, args, a and a.ptr, b and b.data_ptr(), about, enter, leave)

    def start(x: int, y: int, z: int, stream: int, args: tuple) -> None:
        bound.check_grid(x, y, z)
        if not x * y * z:
            return
        try:
            launch(x, y, z, stream, args)
        except RuntimeError as error:
            _failed(error, bound, launch, x, y, z, stream, args)

    return start


def _failed(
    error: Exception, bound: Bound, again: Start, x: int, y: int, z: int, stream: int, args: tuple
) -> None:
    """Start it once more where another library made its context current in this thread; else raise
    what happened, with the driver's code, the kernel and the grid."""
    code = _code(error)
    if code in (1, 201, 400) and not bound.device.is_current():
        bound.device.activate()
        try:
            again(x, y, z, stream, args)
            return
        except RuntimeError as second:
            error, code = second, _code(second)
    if not code or isinstance(error, CudaError):
        raise error
    about = f"launch of {bound.name}, grid {x} x {y} x {z}, {bound.shared} bytes shared"
    raise libcuda.failure("cuLaunchKernelEx", code, about) from error


def _code(error: Exception) -> int:
    return error.code if isinstance(error, CudaError) else libcuda.code_of(str(error))


def _in_context(device: CudaDevice, start: Start) -> Start:
    """Where there are several GPUs: make this one's context current in the thread first."""
    local = device.local

    def switched(x: int, y: int, z: int, stream: int, args: tuple) -> None:
        if getattr(local, "device", None) is not device:
            device.activate()
        start(x, y, z, stream, args)

    return switched


def _profile_scratch(device: CudaDevice, nbytes: int, meta: Any, stream: int) -> Any:
    from triton.runtime import _allocation

    allocate = _allocation._profile_allocator.get()
    if isinstance(allocate, _allocation.NullAllocator):
        return triton_driver.profile_scratch(device, nbytes, stream)
    return allocate(nbytes, meta.profile_scratch_align, stream)


def _metadata(
    bound: Bound, specialization: Specialization, grid: tuple, stream: int, args: tuple
) -> Any:
    """What Triton hands to launch hooks: a name, the function, the stream, and what the kernel's
    own ``launch_metadata`` says."""
    from triton.compiler.compiler import LazyDict

    about = LazyDict({"name": bound.name, "function": bound.function, "stream": stream})
    extra = getattr(bound.compiled.src.fn, "launch_metadata", None)
    if extra is not None:
        names = dict(zip((n for n, _ in specialization.signature), args))
        about.add(extra, (grid, bound.compiled.metadata, names))
    return about
