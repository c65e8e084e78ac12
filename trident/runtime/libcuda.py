"""The CUDA driver, through cuda-bindings: every call checked, and the reason where there is none.

``cu.cuMemAlloc(n)`` calls the function of that name and returns its value (a tuple for several,
None for none), or raises ``CudaError``; running out of memory raises ``OutOfMemoryError``. Handles
are ints on our side: cuda-bindings takes them as they are. Nothing is imported or initialised
before the first use.

ctypes is no faster, so that it is nowhere used for speed: on the stub driver, cuda-bindings 13.5
takes 0.3 to 0.7 us for a call and ctypes 0.3 to 1.5 (the more arguments, the more).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CudaError, DeviceError, OutOfMemoryError
from ..lang import has_triton

OUT_OF_MEMORY, NOT_READY = 2, 600
OLDEST = 12000
"""The oldest driver that runs what Triton 3.6 and later compile."""

_LOST = (
    "an earlier kernel failed, and nothing on this GPU works any more in this process. Start "
    "Python again; to find the kernel, run the step inside `with trident.interpret():`, which "
    "checks every access, or set CUDA_LAUNCH_BLOCKING=1"
)
_MEANING: dict[int, tuple[str, str]] = {
    1: ("a value out of range", "this is an error in trident, or in how a kernel was launched"),
    OUT_OF_MEMORY: ("out of memory", "drop tensors, or trident.cuda.empty_cache()"),
    3: (
        "the driver is not initialised in this process",
        "after a fork CUDA cannot be used: start workers with the 'spawn' method, or keep to the "
        "CPU in them",
    ),
    4: ("the driver is shutting down", "do not use the GPU in functions that run at exit"),
    34: ("libcuda.so.1 is a stub for linking", "let the driver's own library be found first"),
    46: ("the GPU is in use by another process", "it is in exclusive mode; wait, or take another"),
    100: (
        "the driver finds no GPU",
        "look at `nvidia-smi`; CUDA_VISIBLE_DEVICES may hide it, and a container needs "
        "`--gpus all`",
    ),
    101: ("there is no GPU of that number", "trident.cuda.device_count() says how many there are"),
    200: ("the kernel's binary is damaged", "delete Triton's cache, ~/.triton/cache"),
    201: ("no CUDA context is current in this thread", "please report"),
    209: (
        "the kernel was compiled for another GPU",
        "delete Triton's cache, ~/.triton/cache; a GPU newer than Triton needs a newer Triton",
    ),
    222: ("the driver is too old for this kernel", "update it, or use an older Triton"),
    400: ("a handle that does not exist", "a stream or event was used after it was destroyed"),
    700: ("a kernel accessed memory that is not its own", _LOST),
    701: ("the launch needs more registers or shared memory than there are", "use fewer warps"),
    702: ("a kernel ran longer than the display's watchdog allows", _LOST),
    709: ("the CUDA context was destroyed", "another library reset the device; start Python again"),
    710: ("a device-side assert failed", _LOST),
    716: ("a kernel used a misaligned address", _LOST),
    717: ("a kernel used an address of the wrong space", _LOST),
    719: ("a kernel failed", _LOST),
    801: ("the GPU or the driver cannot do this", "update the NVIDIA driver"),
    802: ("the system is not ready", "the fabric manager must run: `systemctl start "
          "nvidia-fabricmanager`"),
    803: ("kernel module and libcuda.so.1 are of different versions", "reboot, or update both"),
    804: ("libcuda.so.1 does not fit this GPU", "remove the cuda-compat package from its path"),
    900: (
        "not possible while a graph is captured",
        "do it before the capture: what copies to the host, waits, or needs fresh memory is not "
        "part of a graph",
    ),
    901: ("the capture was broken by an earlier call", "see the first error of the capture"),
    904: ("a stream joined the capture and did not come back", "let the first stream wait for it"),
    905: ("the capture depends on work outside of it", "synchronize before the capture starts"),
    906: (
        "the default stream (0) was used while a graph is captured",
        "use streams made with trident.cuda.Stream()",
    ),
    908: ("the capture was ended by another thread", "begin and end a capture in one thread"),
}  # fmt: skip


@functools.cache
def why_not() -> str | None:
    """Why no GPU can be used here, with the way out; None where one can."""
    if not sys.platform.startswith("linux"):
        return "GPUs are used through Triton, which runs on Linux"
    if not has_triton():
        return "Triton is not installed: pip install 'triton>=3.6'"
    try:
        found = importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        return "cuda-bindings is not installed: pip install 'cuda-bindings>=12.8'"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (
            "the NVIDIA driver (libcuda.so.1) is not there: install it, or start the container "
            "with `--gpus all`"
        )
    try:
        from cuda.bindings import driver
    except ImportError as error:
        return f"cuda-bindings cannot be loaded ({error}): pip install -U 'cuda-bindings>=12.8'"
    code = int(driver.cuInit(0)[0])
    if code:
        meaning, way_out = _MEANING.get(code, (_text(code), "look at `nvidia-smi`"))
        return f"cuInit failed with {_name(driver, code)}, {meaning}: {way_out}"
    version = int(driver.cuDriverGetVersion()[1])
    if version < OLDEST:
        return (
            f"the NVIDIA driver is for CUDA {version // 1000}.{version % 1000 // 10}, and too old: "
            f"update it to one for {OLDEST // 1000}.0 or newer"
        )
    return None


def driver() -> Any:
    """The module ``cuda.bindings.driver``, initialised. DeviceError where there is no GPU."""
    reason = why_not()
    if reason is not None:
        raise DeviceError(f"device 'cuda': {reason}. Without a GPU, {OTHERWISE}")
    from cuda.bindings import driver

    return driver


OTHERWISE = (
    "use device='cpu', or run the kernels in Triton's interpreter: inside `with "
    "trident.interpret():`, or with TRITON_INTERPRET=1 set before Python starts"
)


def _name(driver: Any, code: int) -> str:
    """``CUDA_ERROR_OUT_OF_MEMORY``."""
    try:
        return driver.CUresult(code).name
    except ValueError:  # newer than cuda-bindings
        return f"CUresult {code}"


def _text(code: int) -> str:
    """What the driver says about an error. Through ctypes: for errors newer than the driver,
    cuda-bindings 12 reads a null pointer."""
    text = ctypes.c_char_p()
    ctypes.CDLL("libcuda.so.1").cuGetErrorString(code, ctypes.byref(text))
    return text.value.decode() if text.value else "an unknown error"


def failure(call: str, code: int, about: str = "") -> Exception:
    """The error (not raised) of a failed call; ``about`` says what it was doing."""
    from cuda.bindings import driver

    meaning, way_out = _MEANING.get(code, (_text(code), ""))
    text = f"{call}: {_name(driver, code)}, {meaning}"
    if about:
        text += f" ({about})"
    if way_out:
        text += f". Way out: {way_out}"
    return OutOfMemoryError(text) if code == OUT_OF_MEMORY else CudaError(text, call, code)


def code_of(text: str) -> int:
    """The CUresult that Triton's C code tells by its text alone; 0 where it is none."""
    return _codes().get(text.removeprefix("Triton Error [CUDA]: "), 0)


@functools.cache
def _codes() -> dict[str, int]:
    from cuda.bindings import driver

    return {_text(int(code)): int(code) for code in driver.CUresult if int(code)}


class _Calls:
    """The functions of the driver, each looked up once and checked at every call."""

    def __getattr__(self, name: str) -> Callable:
        if not name.startswith("cu"):  # what inspect and doctest ask every object for
            raise AttributeError(name)
        function = getattr(driver(), name)

        def checked(*args: Any) -> Any:
            try:
                result = function(*args)
            except ValueError as error:
                if "CUresult" not in str(error):
                    raise
                way_out = "Way out: pip install -U cuda-bindings, which will know it"
                raise CudaError(f"{name}: a new kind of error, {error}. {way_out}", name) from None
            if result[0]:
                raise failure(name, int(result[0]))
            return result[1] if len(result) == 2 else (result[1:] or None)

        checked.__name__ = name
        setattr(self, name, checked)
        return checked


cu: Any = _Calls()


def ready(call: str, handle: int) -> bool:
    """``cuStreamQuery`` or ``cuEventQuery``: whether the work is done."""
    code = int(getattr(driver(), call)(handle)[0])
    if code and code != NOT_READY:
        raise failure(call, code)
    return not code


def device_count() -> int:
    """How many GPUs there are; 0 where none can be used."""
    return int(cu.cuDeviceGetCount()) if why_not() is None else 0


def attribute(device: int, name: str) -> int:
    """A device attribute by its name, ``MULTIPROCESSOR_COUNT``."""
    which = getattr(driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(cu.cuDeviceGetAttribute(which, device))


def library_folder() -> str | None:
    """Where the loaded libcuda.so.1 lies; None where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[5] for line in lines if "libcuda.so" in line}
    folders = [str(Path(p).parent) for p in sorted(paths)]
    return next((f for f in folders if Path(f, "libcuda.so.1").exists()), None)


def on_device(ptr: int) -> int | None:
    """The number of the GPU whose memory ``ptr`` points to; None for memory of the host."""
    kinds = driver().CUpointer_attribute
    kind, where = (
        driver().cuPointerGetAttribute(which, ptr)
        for which in (
            kinds.CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        )
    )
    if int(kind[0]) or int(kind[1]) != 2:  # CU_MEMORYTYPE_DEVICE
        return None
    return int(where[1])


def pinned(ptr: int) -> bool:
    """Whether ``ptr`` points to page-locked memory of the host, which the GPU reads by itself."""
    which = driver().CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    code, kind = driver().cuPointerGetAttribute(which, ptr)
    return not int(code) and int(kind) == 1
