"""What needs a process of its own: torch beside us, no compiler, no driver, forks, a cold cache."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
STUB = "from tests.stub import preload\nstub = preload()\n"

STEP = """
import numpy as np
import trident

def step(net, optimizer, x, y):
    optimizer.zero_grad()
    loss = trident.nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    return loss

def make():
    trident.manual_seed(0)
    x = trident.tensor(np.ones((32, 4), np.float32), device="cuda")
    y = trident.tensor(np.zeros(32, np.int64), device="cuda")
    net = trident.nn.Sequential(
        trident.nn.Linear(4, 16), trident.nn.LayerNorm(16), trident.nn.ReLU(),
        trident.nn.Linear(16, 2),
    ).to("cuda")
    return net, trident.optim.AdamW(net.parameters(), lr=0.03), x, y
"""

FAKE_TORCH = """
import sys

class _Refuses:
    def __getattr__(self, name):
        raise AssertionError(f"torch.cuda.{name} was used")

cuda = _Refuses()
imported = True
print("torch was imported")
"""


def run(program: str, *, stub: bool = True, path: Path | None = None, **env: str | None) -> str:
    """The output of a program that must succeed and write nothing to stderr."""
    done = attempt(program, stub=stub, path=path, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def attempt(
    program: str, *, stub: bool = True, path: Path | None = None, **env: str | None
) -> subprocess.CompletedProcess:
    given = {k: v for k, v in os.environ.items() if k != "TRITON_LIBCUDA_PATH"}
    given["PYTHONPATH"] = os.pathsep.join([*([str(path)] if path else []), str(ROOT)])
    for name, value in env.items():
        given.pop(name, None)
        if value is not None:
            given[name] = value
    text = (STUB if stub else "") + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", text],
        cwd=ROOT, env=given, text=True, capture_output=True, timeout=600,
    )  # fmt: skip


@pytest.fixture
def torch_beside(tmp_path):
    """A folder with a torch in it that tells when it is imported, and refuses to be used."""
    package = tmp_path / "beside" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE_TORCH)
    return package.parent


# ---- torch ---------------------------------------------------------------------------------------


def test_torch_beside_us_is_never_imported(torch_beside):
    out = run(
        STEP + """
import sys, importlib.util
assert importlib.util.find_spec("torch") is not None
parts = make()
for _ in range(3):
    step(*parts)
assert stub.n_launches > 20
assert "torch" not in sys.modules
print("ok")
""", path=torch_beside)  # fmt: skip
    assert out == "ok\n"


def test_torch_that_was_imported_first_is_not_used(torch_beside):
    """Triton's own driver takes device and stream from torch then; ours does not."""
    out = run(
        """
import torch
""" + STEP + """
from triton.runtime.driver import driver as active
parts = make()
for _ in range(3):
    step(*parts)
gpu = trident.runtime.current()
assert {x.stream for x in stub.launches()} == {gpu.own_stream}
assert active._active is None
print("ok")
""", path=torch_beside)  # fmt: skip
    assert out == "torch was imported\nok\n"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_real_torch_imported_first():
    out = run(
        """
import torch
""" + STEP + """
parts = make()
for _ in range(3):
    step(*parts)
gpu = trident.runtime.current()
assert {x.stream for x in stub.launches()} == {gpu.own_stream}
assert torch.ones(3).sum().item() == 3
print("ok")
""")  # fmt: skip
    assert out == "ok\n"


# ---- the cache on disk ---------------------------------------------------------------------------

COUNTED = (
    STEP
    + """
from triton import knobs
hits = []
knobs.compilation.listener = lambda *, cache_hit, **other: hits.append(cache_hit)
parts = make()
for _ in range(2):
    step(*parts)
print(len(hits), sum(hits))
"""
)


def test_a_second_process_compiles_nothing(tmp_path):
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    first = [int(n) for n in run(COUNTED, **cache).split()]
    assert first[0] > 5 and first[1] == 0
    second = [int(n) for n in run(COUNTED, **cache).split()]
    assert second == [first[0], first[0]]


# ---- no compiler ---------------------------------------------------------------------------------

NO_COMPILER = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    parts = make()
    for _ in range(2):
        step(*parts)
texts = [str(w.message) for w in caught]
from trident.runtime import launchers
print(stub.n_launches > 20, launchers.why_own() is not None)
print([t for t in texts if "C launcher" in t])
"""


def test_without_a_compiler(tmp_path):
    """A machine with Triton's wheel, a driver, and neither gcc nor clang."""
    out = run(STEP + NO_COMPILER, TRITON_CACHE_DIR=str(tmp_path), PATH="", CC=None)
    assert out.startswith("True True\n")
    assert out.count("Triton's C launcher cannot be used") == 1
    assert "Failed to find C compiler" in out
    assert "python3-dev" in out


def test_a_compiler_that_fails(tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    out = run(STEP + NO_COMPILER, TRITON_CACHE_DIR=str(tmp_path / "t"), CC=str(broken), PATH="")
    assert out.startswith("True True\n")
    assert out.count("Triton's C launcher cannot be used") == 1


# ---- no driver, no GPU ---------------------------------------------------------------------------

WHY = """
import trident
from trident.runtime import libcuda
print(trident.cuda.is_available(), trident.cuda.device_count(), libcuda.why_not())
try:
    trident.ones(3, device="cuda")
except trident.errors.DeviceError as error:
    print(error)
"""


def test_no_driver():
    found = run("import ctypes\n" + WHY, stub=False, LD_LIBRARY_PATH=None)
    if found.startswith("True"):
        pytest.skip("this machine has a GPU")
    assert "the NVIDIA driver (libcuda.so.1) is not there" in found or "cuInit failed" in found
    assert "use device='cpu', or run the kernels in Triton's interpreter" in found


def test_no_gpu():
    out = run("stub.devices(0)" + WHY)
    assert out.startswith(
        "False 0 cuInit failed with CUDA_ERROR_NO_DEVICE, the driver finds no GPU"
    )
    assert "CUDA_VISIBLE_DEVICES" in out and "--gpus all" in out
    assert "device 'cuda': cuInit failed" in out


def test_an_old_driver():
    out = run("stub.driver_version(11080)" + WHY)
    assert "the NVIDIA driver is for CUDA 11.8, and too old: update it to one for 12.0" in out


def test_a_driver_that_does_not_start():
    out = run("stub.fail('cuInit', 803)" + WHY)
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, kernel module and libcuda.so.1 are of diff" in out
    out = run("stub.fail('cuInit', 999)" + WHY)
    assert "cuInit failed with CUDA_ERROR_UNKNOWN, unknown error: look at `nvidia-smi`" in out


def test_no_cuda_bindings():
    out = run(
        """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cuda":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
""" + WHY, stub=True)  # fmt: skip
    assert "cuda-bindings is not installed: pip install 'cuda-bindings>=12.8'" in out


def test_no_triton():
    out = run(
        """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda n, *a: None if n == "triton" else real(n, *a)
""" + WHY)  # fmt: skip
    assert "Triton is not installed: pip install 'triton>=3.6'" in out


def test_importing_trident_does_not_touch_the_driver():
    out = run("""
import sys, trident
assert stub.count("cuInit") == 0
assert not [m for m in sys.modules if m.split(".")[0] in ("cuda", "triton", "torch")]
trident.ones(3) + 1
assert stub.count("cuInit") == 0
print("ok")
""")
    assert out == "ok\n"


# ---- beginnings and ends -------------------------------------------------------------------------


def test_after_a_fork_it_is_a_sentence():
    out = run("""
import os, sys, trident
x = trident.ones(3, device="cuda")
pid = os.fork()
if not pid:
    try:
        x.cpu()
    except trident.errors.CudaError as error:
        print(error)
        sys.stdout.flush()
    del x
    os._exit(0)
os.waitpid(pid, 0)
print(x.cpu().tolist())
""")
    assert "CUDA_ERROR_NOT_INITIALIZED" in out and "'spawn'" in out
    assert out.endswith("[1.0, 1.0, 1.0]\n")


def test_a_process_ends_quietly():
    """With live tensors, streams, events, kernels, and a stream that is still current."""
    out = run("""
import trident
from trident.runtime.stream import Event, Stream
s = Stream()
s.__enter__()
x = trident.ones(1 << 20, device="cuda") + 1
e = Event(enable_timing=True).record()
class Cycle:
    def __init__(self): self.me, self.x, self.s = self, x, Stream()
c = Cycle()
print("end")
""")
    assert out == "end\n"


def test_threads_that_start_together_make_one_context():
    out = run("""
import threading, trident
go = threading.Barrier(8)
seen = []
def work():
    go.wait()
    seen.append(trident.ones(3, device="cuda")._data.device)
threads = [threading.Thread(target=work) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(len(set(map(id, seen))), len(seen), stub.retained(0))
""")
    assert out == "1 8 1\n"


def test_one_device_is_not_checked_for_at_every_launch():
    out = run("""
import trident
from tests.stub import kernels
gpu = trident.runtime.current()
bound, args = kernels.bind_many(gpu)
before = stub.count("cuCtxSetCurrent")
for _ in range(50):
    bound.start(1, 1, 1, gpu.own_stream, args)
print(stub.count("cuCtxSetCurrent") - before, bound.start.__name__)
""")
    assert out == "0 start\n"


@pytest.mark.parametrize("version", [(8, 0), (10, 0)])
def test_other_gpus(version):
    out = run(f"""
stub.capability(*{version})
import trident
x = trident.ones(3, device="cuda") + 1
print(trident.runtime.current().architecture, stub.launches()[-1].name)
""")
    assert out == f"sm_{version[0]}{version[1]} add_kernel\n"
