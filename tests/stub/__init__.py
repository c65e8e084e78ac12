"""A CUDA driver without a GPU, for tests and for measuring what a launch costs on the host.

``preload()`` builds ``libcuda.so.1`` out of the C files beside this one (once, kept on disk) and
loads it before anything asks for the real one: cuda-bindings and Triton's own driver module then
talk to it. Memory, copies, streams, events, capture, graphs and modules behave as the driver's
manual says. Kernels are checked, counted and recorded, and never run: memory that a kernel would
write stays as it was (zeros in fresh memory).

    from tests.stub import preload
    stub = preload()          # before the first use of trident's cuda device
    import trident
    x = trident.ones(4, device="cuda") + 1
    print(stub.launches()[-1])
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trident import config

HERE = Path(__file__).parent
SOURCES = ("libcuda.c", "memory.c", "virtual.c", "stream.c", "kernel.c")
FLAGS = ("-O2", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-soname,libcuda.so.1")
WORDS = 24


def missing() -> str | None:
    """Why the stub cannot be built here, or None."""
    if _compiler() is None:
        return "no C compiler (cc, gcc or clang) to build the stub of libcuda with"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: the stub of libcuda is built with its cuda.h"
    if importlib.util.find_spec("cuda") is None:
        return "cuda-bindings is not installed: pip install 'cuda-bindings>=12.8'"
    return None


def _compiler() -> str | None:
    return next((p for p in map(shutil.which, ("cc", "gcc", "clang")) if p), None)


def build() -> Path:
    """The folder that holds ``libcuda.so.1``."""
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(missing())
    include = Path(spec.submodule_search_locations[0]) / "backends" / "nvidia" / "include"
    texts = [(HERE / name).read_bytes() for name in ("stub.h", *SOURCES)]
    # the header's version matters, its place does not
    key = hashlib.sha256(b"\0".join([*texts, (include / "cuda.h").read_bytes()])).hexdigest()[:16]
    folder = Path(config.CACHE) / "stub" / key
    target = folder / "libcuda.so.1"
    if not target.exists():
        if _compiler() is None:
            raise RuntimeError(missing())
        folder.mkdir(parents=True, exist_ok=True)
        handle, built = tempfile.mkstemp(dir=folder)
        os.close(handle)
        command = [str(_compiler()), *FLAGS, f"-I{include}", *(str(HERE / s) for s in SOURCES)]
        subprocess.run([*command, "-o", built, "-lpthread"], check=True)
        os.replace(built, target)
    return folder


_loaded: Stub | None = None


def preload() -> Stub:
    """Build and load the stub. Call it before anything loads the real driver."""
    global _loaded
    if _loaded is None:
        folder = build()
        try:
            other = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
        except OSError:
            other = None
        if other is not None and not hasattr(other, "stub_fail"):
            raise RuntimeError("libcuda.so.1 is loaded already; preload the stub before trident")
        os.environ["TRITON_LIBCUDA_PATH"] = str(folder)  # where Triton's build looks for -lcuda
        _loaded = Stub(ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL))
    return _loaded


class _Launch(ctypes.Structure):
    _fields_ = [
        ("sequence", ctypes.c_uint64), ("stream", ctypes.c_uint64), ("function", ctypes.c_uint64),
        ("name", ctypes.c_char_p), ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint), ("attributes", ctypes.c_uint), ("device", ctypes.c_uint),
        ("captured", ctypes.c_uint), ("replayed", ctypes.c_uint), ("n_params", ctypes.c_int),
        ("words", ctypes.c_uint64 * WORDS),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("id", ctypes.c_uint32), ("captured", ctypes.c_uint32), ("stream", ctypes.c_uint64),
        ("a", ctypes.c_uint64), ("b", ctypes.c_uint64), ("c", ctypes.c_uint64),
    ]  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One kernel launch: ``words`` are its parameters (as unsigned integers, the two scratch
    pointers that Triton appends last), at most 24 of them."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    stream: int
    device: int
    function: int
    captured: bool  # went into a graph
    replayed: bool  # comes from a graph
    attributes: int
    n_params: int
    words: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One operation in the log: the driver's function, its stream, and up to three words about it
    (copies: target, source, bytes; fills: target, value, bytes; allocations: pointer, bytes;
    events: the event)."""

    name: str
    stream: int
    a: int
    b: int
    c: int
    captured: bool


class Stub:
    """What the loaded stub saw, and how it answers from here on."""

    def __init__(self, library: Any) -> None:
        self.library = library
        for name, result, arguments in (
            ("stub_fail", ctypes.c_int, [ctypes.c_char_p] + [ctypes.c_int] * 3),
            ("stub_count", ctypes.c_int64, [ctypes.c_char_p]),
            ("stub_devices", None, [ctypes.c_int]),
            ("stub_total", None, [ctypes.c_int, ctypes.c_uint64]),
            ("stub_used", ctypes.c_uint64, [ctypes.c_int]),
            ("stub_blocks", ctypes.c_uint64, [ctypes.c_int]),
            ("stub_host_used", ctypes.c_uint64, []),
            ("stub_fill", None, [ctypes.c_int]),
            ("stub_attribute", None, [ctypes.c_int, ctypes.c_int]),
            ("stub_version", None, [ctypes.c_int]),
            ("stub_peer_access", None, [ctypes.c_int]),
            ("stub_retained", ctypes.c_int, [ctypes.c_int]),
            ("stub_loaded", ctypes.c_int, []),
            ("stub_alive", ctypes.c_int, [ctypes.c_uint64]),
            ("stub_hold", ctypes.c_int, [ctypes.c_uint64]),
            ("stub_release", ctypes.c_int, [ctypes.c_uint64]),
            ("stub_n_launches", ctypes.c_uint64, []),
            ("stub_launches", ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]),
            ("stub_n_steps", ctypes.c_uint64, []),
            ("stub_steps", ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]),
            ("stub_name", ctypes.c_char_p, [ctypes.c_int]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    # ---- settings

    def devices(self, count: int) -> None:
        """How many GPUs there are (0: cuInit fails). Before the first use of the device."""
        self.library.stub_devices(count)

    def total_memory(self, nbytes: int, device: int = 0) -> None:
        """The memory of a device (4 GiB unless set)."""
        self.library.stub_total(device, nbytes)

    def capability(self, major: int, minor: int) -> None:
        """The compute capability of all devices (9.0 unless set). Before the first use."""
        self.attribute(75, major)
        self.attribute(76, minor)

    def attribute(self, which: int, value: int) -> None:
        """A CUdevice_attribute of all devices."""
        self.library.stub_attribute(which, value)

    def driver_version(self, value: int) -> None:
        """What cuDriverGetVersion answers (13010 unless set)."""
        self.library.stub_version(value)

    def peer_access(self, possible: bool) -> None:
        """Whether devices reach each other's memory."""
        self.library.stub_peer_access(int(possible))

    def fill(self, byte: int) -> None:
        """What fresh device memory holds (0 unless set)."""
        self.library.stub_fill(byte)

    def fail(self, call: str, code: int, *, skip: int = 0, times: int = 1) -> None:
        """Let the next ``times`` calls of a function (after ``skip`` more) return ``code``."""
        if self.library.stub_fail(call.encode(), code, skip, times):
            raise ValueError(f"the stub has no function {call!r}")

    def hold(self, stream: int) -> None:
        """Work on ``stream`` is not done until it is released or waited for."""
        if not self.library.stub_hold(stream):
            raise ValueError(f"{stream:#x} is no stream")

    def release(self, stream: int) -> None:
        """The work on a held stream is done."""
        if not self.library.stub_release(stream):
            raise ValueError(f"{stream:#x} is no stream")

    # ---- what happened

    def count(self, call: str) -> int:
        """How often a function of the driver was called."""
        n = self.library.stub_count(call.encode())
        if n < 0:
            raise ValueError(f"the stub has no function {call!r}")
        return n

    def used(self, device: int = 0) -> int:
        """Bytes of device memory in use."""
        return self.library.stub_used(device)

    def blocks(self, device: int = 0) -> int:
        """Allocations of device memory in use."""
        return self.library.stub_blocks(device)

    @property
    def host_used(self) -> int:
        """Bytes of page-locked host memory in use."""
        return self.library.stub_host_used()

    @property
    def loaded(self) -> int:
        """Modules that are loaded now."""
        return self.library.stub_loaded()

    def retained(self, device: int = 0) -> int:
        """How often the primary context is retained."""
        return self.library.stub_retained(device)

    def alive(self, handle: int) -> bool:
        """Whether a stream, event, module, function or graph exists and was not destroyed."""
        return bool(self.library.stub_alive(handle))

    @property
    def n_launches(self) -> int:
        """Launches so far, replays of graphs included."""
        return self.library.stub_n_launches()

    def launches(self, since: int = 0) -> list[Launch]:
        """The launches from number ``since`` on (the last 8192 are kept)."""
        room = min(max(self.n_launches - since, 0), 8192)
        raw = (_Launch * max(room, 1))()
        n = self.library.stub_launches(raw, since, room)
        return [
            Launch(
                r.name.decode(), tuple(r.grid), tuple(r.block), r.shared, r.stream, r.device,
                r.function, bool(r.captured), bool(r.replayed), r.attributes, r.n_params,
                tuple(r.words[: min(max(r.n_params, 0), WORDS)]),
            )
            for r in raw[:n]
        ]  # fmt: skip

    @property
    def n_steps(self) -> int:
        """Length of the log."""
        return self.library.stub_n_steps()

    def log(self, since: int = 0) -> list[Step]:
        """The log from number ``since`` on (the last 65536 are kept)."""
        room = min(max(self.n_steps - since, 0), 65536)
        raw = (_Step * max(room, 1))()
        n = self.library.stub_steps(raw, since, room)
        name = self.library.stub_name
        return [
            Step(name(r.id).decode(), r.stream, r.a, r.b, r.c, bool(r.captured)) for r in raw[:n]
        ]
