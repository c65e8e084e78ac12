"""A compiled kernel on a GPU, ready to be started: loaded, checked once, and one call away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DeviceError, wrong
from . import launchers, libcuda, triton_driver
from .launchers import GRID_X, GRID_YZ, MOST_PROGRAMS, Start
from .libcuda import cu

if TYPE_CHECKING:
    from .aot import Specialization
    from .cuda_device import CudaDevice

_RANGES = {f"i{b}": (-(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in (8, 16, 32, 64)} | {
    f"u{b}": (0, 2**b - 1) for b in (8, 16, 32, 64)
}
_RANGES |= {"i1": (0, 1), "u1": (0, 1)}


class Bound:
    """A kernel of one specialisation, loaded on one device. Keeps the module loaded while it lives.

    ``start(x, y, z, stream, args)`` launches it: the grid, a stream's handle, and one value for
    each parameter of the kernel in order: pointers as ints, ints, floats, and anything (None) where
    the parameter is a constant. It checks the grid; ``check`` checks the rest, once per plan.
    ``registers`` and ``spills`` (bytes of local memory) of a thread, ``shared`` of a program.
    """

    __slots__ = ("__weakref__", "compiled", "device", "function", "max_threads", "module", "name",
                 "registers", "shared", "signature", "spills", "start")  # fmt: skip

    start: Start

    def __init__(self, device: CudaDevice, specialization: Specialization, compiled: Any) -> None:
        meta = compiled.metadata
        self.device = device
        self.compiled = compiled
        self.signature = specialization.signature
        self.name: str = meta.name
        self.shared: int = meta.shared
        self.module = 0
        _check_resources(device, meta)
        device.activate()
        _hook("kernel_load_start_hook", self)
        self.module = int(cu.cuModuleLoadData(compiled.asm["cubin"]))
        self.function = int(cu.cuModuleGetFunction(self.module, meta.name.encode()))
        attributes = libcuda.driver().CUfunction_attribute
        read = lambda name: int(  # noqa: E731
            cu.cuFuncGetAttribute(
                getattr(attributes, f"CU_FUNC_ATTRIBUTE_{name}"), self.function
            )
        )  # fmt: skip
        self.registers = read("NUM_REGS")
        self.spills = read("LOCAL_SIZE_BYTES")
        self.max_threads = read("MAX_THREADS_PER_BLOCK")
        if meta.num_warps * 32 > self.max_threads:
            raise DeviceError(
                f"{self.name}: {meta.num_warps} warps are {meta.num_warps * 32} threads, and with "
                f"{self.registers} registers each, {device.name} runs {self.max_threads} at most. "
                "Launch it with fewer warps"
            )
        fixed = read("SHARED_SIZE_BYTES")  # ptxas gives itself 1024 bytes from sm_90 on
        if self.shared + fixed > 49152:  # more than that has to be asked for
            preference = libcuda.driver().CUfunc_cache.CU_FUNC_CACHE_PREFER_SHARED
            cu.cuFuncSetCacheConfig(self.function, preference)
            cu.cuFuncSetAttribute(
                self.function,
                attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                device.shared_memory - fixed,
            )
        _hook("kernel_load_end_hook", self)
        self.start = launchers.start_of(self, specialization)

    def check(self, grid: tuple[int, int, int], args: tuple) -> None:
        """Raise where a launch would be refused, or do something else than it says: the number of
        arguments, their kinds, and the range of ints. Triton 3.9 looks at none of these."""
        if len(args) != len(self.signature):
            raise wrong(
                self.name, f"the kernel takes {len(self.signature)} arguments",
                got=f"{len(args)}", error=TypeError,
            )  # fmt: skip
        for (name, kind), value in zip(self.signature, args):
            if kind == "constexpr":
                continue
            if isinstance(value, np.number):
                value = value.item()
            if kind[0] == "*":
                if value is not None and value.__class__ is not int:
                    raise wrong(
                        self.name, f"{name} must be an address (int)",
                        got=type(value).__name__, error=TypeError,
                    )  # fmt: skip
            elif kind in _RANGES:
                low, high = _RANGES[kind]
                if not isinstance(value, int):
                    raise wrong(
                        self.name, f"{name} must be an int", got=type(value).__name__,
                        error=TypeError,
                    )  # fmt: skip
                if not low <= value <= high:
                    raise wrong(
                        self.name, f"{name} must lie in [{low}, {high}], as it was compiled for "
                        f"{kind}", got=value, error=OverflowError,
                    )  # fmt: skip
            elif not isinstance(value, (float, int)):
                raise wrong(
                    self.name, f"{name} must be a float", got=type(value).__name__, error=TypeError
                )
        self.check_grid(*grid)

    def check_grid(self, x: int, y: int, z: int) -> None:
        """Raise where the grid is more than a GPU, or Triton's launcher, can take."""
        if y > GRID_YZ or z > GRID_YZ or x > GRID_X or min(x, y, z) < 0:
            raise wrong(
                self.name, f"the grid may be {GRID_X} x {GRID_YZ} x {GRID_YZ} at most",
                got=f"{x} x {y} x {z}", hint="put the axis without bound first", error=DeviceError,
            )  # fmt: skip
        if x * y * z * self.compiled.metadata.num_ctas > MOST_PROGRAMS:
            raise wrong(
                self.name, f"a grid may have {MOST_PROGRAMS} programs at most",
                got=f"{x} x {y} x {z}", hint="give each program more to do", error=DeviceError,
            )  # fmt: skip

    def __del__(self) -> None:
        if self.module:
            self.device.retire(self.module)

    def __repr__(self) -> str:
        return (
            f"<{self.name} on {self.device}: {self.registers} registers, {self.spills} bytes "
            f"spilled, {self.shared} bytes shared>"
        )


def _check_resources(device: CudaDevice, meta: Any) -> None:
    if meta.shared > device.shared_memory:
        raise DeviceError(
            f"{meta.name}: needs {meta.shared} bytes of shared memory for a program, and "
            f"{device.name} has {device.shared_memory}. Launch it with smaller blocks or fewer "
            "stages (num_stages)"
        )
    if (getattr(meta, "tmem_size", None) or 0) > 512:
        raise DeviceError(
            f"{meta.name}: needs {meta.tmem_size} columns of tensor memory, and there are 512. "
            "Launch it with smaller blocks"
        )


def _hook(name: str, bound: Bound) -> None:
    """Call Triton's hooks around the loading of a kernel (profilers set them)."""
    from triton import knobs

    hook = getattr(knobs.runtime, name)
    if hook is not None and getattr(hook, "calls", True):
        c = bound.compiled
        hook(bound.module, getattr(bound, "function", 0), c.name, c.metadata_group, c.hash)


def bind(device: CudaDevice, specialization: Specialization) -> Bound:
    """Compile (or read from Triton's cache on disk), load and check a kernel."""
    if device.is_capturing():
        name = specialization.kernel.name
        raise DeviceError(
            f"{name}: it was not launched in this form before, and kernels cannot be loaded while "
            "a graph is captured. Run the same step once before the capture"
        )
    compiled = triton_driver.compiled(specialization, device.architecture)
    return Bound(device, specialization, compiled)
