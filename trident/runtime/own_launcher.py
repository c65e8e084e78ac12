"""Launches without Triton's C launcher, through cuda-bindings.

For machines without a C compiler or Python's headers, and for a Triton whose launcher is unknown.
Measured on the stub driver with eight arguments: 2.6 us, where Triton's launcher takes 0.9. Through
ctypes, with the parameters packed by ``struct``, it took the same.
"""

from __future__ import annotations

import ctypes
import struct
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import wrong
from . import libcuda

if TYPE_CHECKING:
    from .bound import Bound
    from .launchers import Raw

_KINDS: dict[str, Any] = {
    "i1": ctypes.c_ubyte, "i8": ctypes.c_byte, "i16": ctypes.c_short, "i32": ctypes.c_int,
    "i64": ctypes.c_longlong, "u1": ctypes.c_ubyte, "u8": ctypes.c_ubyte, "u16": ctypes.c_ushort,
    "u32": ctypes.c_uint, "u64": ctypes.c_ulonglong, "fp32": ctypes.c_float,
    "f32": ctypes.c_float, "fp64": ctypes.c_double,
    "fp16": ctypes.c_ushort, "bf16": ctypes.c_ushort,  # their bits
}  # fmt: skip
_BITS = {
    "fp16": lambda value: struct.unpack("<H", struct.pack("<e", value))[0],
    "bf16": lambda value: struct.unpack("<I", struct.pack("<f", value))[0] >> 16,
}


def needs_headers() -> None:
    """Raise RuntimeError where Python.h is not there: Triton would run the compiler in vain."""
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    folder = Path(sysconfig.get_paths(scheme=scheme)["include"])
    if not (folder / "Python.h").exists():
        raise RuntimeError(f"Python.h is not in {folder}")


def raw(bound: Bound) -> Raw:
    """A launch like that of Triton's launcher, with the same arguments."""
    meta, function = bound.compiled.metadata, bound.function
    taken: list[int] = []  # the arguments that are no constants
    kinds: list[Any] = []
    halves: list[tuple[int, Any]] = []  # which of them have to be given as bits
    for i, (name, kind) in enumerate(bound.signature):
        if kind == "constexpr":
            continue
        found = ctypes.c_void_p if kind[0] == "*" else _KINDS.get(kind)
        if found is None:
            raise wrong(
                bound.name, f"{name} is a {kind}, which needs Triton's C launcher", error=TypeError,
                hint="install a C compiler and Python's headers",
            )  # fmt: skip
        if kind in _BITS:
            halves.append((len(taken), _BITS[kind]))
        taken.append(i)
        kinds.append(found)
    types = (*kinds, ctypes.c_void_p, ctypes.c_void_p)  # two for scratch memory
    if meta.num_ctas == 16:
        which = libcuda.driver().CUfunction_attribute
        portable = which.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        libcuda.cu.cuFuncSetAttribute(function, portable, 1)
    plain = libcuda.driver().cuLaunchKernel
    special = libcuda.driver().cuLaunchKernelEx
    attributes = _attributes(meta)
    call = "cuLaunchKernelEx" if attributes else "cuLaunchKernel"
    ctas, threads, shared = meta.num_ctas, 32 * meta.num_warps, meta.shared

    def launch(
        x: int, y: int, z: int, stream: int, args: tuple, scratch: Any, profile: Any, launched: Any,
        enter: Any, leave: Any,
    ) -> None:  # fmt: skip
        if enter is not None:
            enter(launched)
        values = [0 if args[i] is None else args[i] for i in taken]
        for i, bits in halves:
            values[i] = bits(values[i])
        given = ((*values, scratch or 0, profile or 0), types)
        grid = (x * ctas, y, z)
        try:
            if attributes:
                config = _config(grid, threads, shared, stream, attributes)
                (code,) = special(config, function, given, 0)
            else:
                (code,) = plain(function, *grid, threads, 1, 1, shared, stream, given, 0)
        except OverflowError as error:
            raise wrong(
                bound.name, f"an argument does not fit: {error}", error=OverflowError
            ) from None
        if code:
            about = f"launch of {bound.name}, grid {x} x {y} x {z}, {shared} bytes shared"
            raise libcuda.failure(call, int(code), about)
        if leave is not None:
            leave(launched)

    return launch


def _attributes(meta: Any) -> list[Any]:
    """The launch attributes that Triton's launcher sets for a kernel."""
    d = libcuda.driver()
    ids = d.CUlaunchAttributeID
    found = []

    def add(name: str) -> Any:
        attribute = d.CUlaunchAttribute()
        attribute.id = getattr(ids, f"CU_LAUNCH_ATTRIBUTE_{name}")
        found.append(attribute)
        return attribute.value

    if meta.launch_pdl:
        add("PROGRAMMATIC_STREAM_SERIALIZATION").programmaticStreamSerializationAllowed = 1
    if meta.launch_cooperative_grid:
        add("COOPERATIVE").cooperative = 1
    if meta.num_ctas != 1:
        size = add("CLUSTER_DIMENSION").clusterDim
        size.x, size.y, size.z = meta.num_ctas, 1, 1
        spread = d.CUclusterSchedulingPolicy.CU_CLUSTER_SCHEDULING_POLICY_SPREAD
        add("CLUSTER_SCHEDULING_POLICY_PREFERENCE").clusterSchedulingPolicyPreference = spread
    return found


def _config(grid: tuple, threads: int, shared: int, stream: int, attributes: list[Any]) -> Any:
    config = libcuda.driver().CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared
    config.hStream = stream
    config.attrs = attributes
    config.numAttrs = len(attributes)
    return config
