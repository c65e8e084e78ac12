"""The compile-only device: a launch compiles the kernel for GPU targets and runs nothing.

With ``use(AotDevice())`` the op samples of the test suite walk every launcher, and each (kernel,
signature, constants) they reach is compiled for every target on a machine without a GPU.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .array import Buffer, DeviceArray
from .device import Device

if TYPE_CHECKING:
    from ..lang import Jit

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
WALKS: dict[str, tuple[str, ...]] = {
    # launchers choose by architecture: what they chose on the left is compiled for the right
    "sm_80": ("sm_80",),
    "sm_90": ("sm_90",),
    "sm_100": ("sm_100",),
    "gfx942": ("gfx942",),
}


def gpu_target(name: str) -> Any:
    """Triton's target object for ``sm_90`` or ``gfx942``."""
    from triton.backends.compiler import GPUTarget

    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return GPUTarget("hip", name, 64)


@dataclass(frozen=True)
class Specialization:
    """One kernel with the types, alignments and constants that Triton compiles it for."""

    kernel: Jit
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[tuple[int], Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]

    def compile(self, target: str) -> Any:
        """Triton's CompiledKernel for ``target`` (no GPU needed)."""
        import triton
        from triton.compiler import ASTSource

        source = ASTSource(
            self.kernel.triton(),
            dict(self.signature),
            dict(self.constants),
            {(i,): [["tt.divisibility", 16]] for i in self.aligned},
        )
        options = dict(self.options) | {"enable_fp_fusion": True}
        return triton.compile(source, target=gpu_target(target), options=options)


def specialize(kernel: Jit, args: tuple, constexprs: dict, options: dict) -> Specialization:
    """What a launch with these arguments compiles: Triton's own rules (1 is a constant, 16
    divides).
    """
    names = list(inspect.signature(kernel.fn).parameters)
    defaults = {
        n: p.default
        for n, p in inspect.signature(kernel.fn).parameters.items()
        if p.default is not inspect.Parameter.empty
    }
    values = dict(zip(names, args)) | constexprs
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    aligned = []
    for i, name in enumerate(names):
        value = values[name] if name in values else defaults[name]
        if name in constexprs or value is None or name not in values:
            signature[name] = "constexpr"
            constants[(i,)] = _as_constant(value)
        elif isinstance(value, DeviceArray):
            signature[name] = "*" + value.dtype.triton
            if value.ptr % 16 == 0:
                aligned.append(i)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name] = "constexpr"
            constants[(i,)] = 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(i)
    return Specialization(
        kernel,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(aligned),
        tuple(options.items()),
    )


def _as_constant(value: Any) -> Any:
    from ..lang import Jit

    return value.triton() if isinstance(value, Jit) else value


_MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}


@dataclass
class AotDevice(Device):
    """Collects the specialisations that are launched on it, as launchers choose them for
    ``target`` (one of ``WALKS``)."""

    target: str = "sm_80"
    seen: dict[Specialization, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target.startswith("sm_"):  # others have no compute capability
            digits = self.target.removeprefix("sm_")
            self.capability = (int(digits[:-1]), int(digits[-1]))
        self.multiprocessors = _MULTIPROCESSORS[self.target]

    @property
    def architecture(self) -> str:
        return self.target

    def allocate(self, nbytes: int) -> Buffer:
        memory = np.zeros(nbytes + 16, np.uint8)
        return Buffer(self, memory.ctypes.data + -memory.ctypes.data % 16, nbytes, memory)

    def launch(
        self, kernel: Jit, grid: tuple[int, ...], args: tuple, constexprs: dict, options: dict
    ) -> None:
        self.seen.setdefault(specialize(kernel, args, constexprs, options))

    def copy_in(self, target: DeviceArray, source: np.ndarray, wait: bool = True) -> None:
        pass

    def to_host(self, array: DeviceArray, wait: bool = True) -> np.ndarray:
        return np.zeros(array.shape, array.dtype.np)

    __hash__ = object.__hash__
