"""trident: a deep-learning runtime without PyTorch.

``import trident as torch`` and train with the names you know. Every GPU operation is a readable
Triton kernel, every operation has a numpy reference that is also the CPU backend, and a dynamic
tape connects them. The submodules ``nn``, ``optim``, ``utils``, ``vision`` and ``testing`` load
when first used.
"""

from __future__ import annotations

import importlib as _importlib
import math as _math
from typing import Any as _Any

from . import accelerator, autograd, config, cuda, dispatch, ops
from .autograd import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from .creation import (
    arange,
    as_tensor,
    asarray,
    empty,
    empty_like,
    eye,
    from_numpy,
    full,
    full_like,
    get_rng_state,
    initial_seed,
    is_tensor,
    linspace,
    logspace,
    manual_seed,
    meshgrid,
    normal,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    seed,
    set_rng_state,
    tensor,
    zeros,
    zeros_like,
)
from .custom import Config, autotune, kernel
from .devices import device, get_default_device, set_default_device
from .dtypes import (
    bfloat16,
    dtype,
    finfo,
    float16,
    float32,
    float64,
    get_default_dtype,
    iinfo,
    int8,
    int16,
    int32,
    int64,
    promote_types,
    set_default_dtype,
    uint8,
)
from .dtypes import bool_ as bool
from .errors import OutOfMemoryError
from .interop import from_dlpack
from .lang import cdiv, jit, next_power_of_2
from .legacy import CPU_TYPES as _CPU_TYPES
from .memory_formats import (
    channels_last,
    channels_last_3d,
    contiguous_format,
    memory_format,
    preserve_format,
)
from .ops.registry import elementwise, fused
from .printing import set_printoptions
from .runtime.host_memory import keep_freed_arrays as _keep_freed_arrays
from .runtime.host_threads import get_num_threads, set_num_threads
from .runtime.random import Generator, default_generator
from .shapes import Size
from .switches import (
    are_deterministic_algorithms_enabled,
    get_float32_matmul_precision,
    set_float32_matmul_precision,
    use_deterministic_algorithms,
)
from .tensor import Tensor

__version__ = "0.1.0"

double, float, half = float64, float32, float16
short, int, long = int16, int32, int64
inf, nan, pi, e = _math.inf, _math.nan, _math.pi, _math.e
newaxis = None

_LAZY_MODULES = ("nn", "optim", "profiler", "utils", "vision", "testing")
_LAZY_NAMES = {
    "save": "serialization", "load": "serialization", "interpret": "lab", "fuse": "compile",
    "profile": "profiler", "record_function": "profiler",
}  # fmt: skip
_own = set(globals())  # creation functions, Python's names: these win over ops of the same name
globals().update({k: v for k, v in ops.FUNCTIONS.items() if k not in _own})
globals().update(_CPU_TYPES)

if config.TUNE_MALLOC:
    _keep_freed_arrays()


def __getattr__(name: str) -> _Any:
    if name in _LAZY_MODULES:
        return _importlib.import_module(f".{name}", __name__)
    if name in _LAZY_NAMES:
        value = getattr(_importlib.import_module(f".{_LAZY_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    from .errors import missing_name

    raise missing_name("trident", name, [*globals(), *_LAZY_MODULES, *_LAZY_NAMES])


def __dir__() -> list[str]:
    names = {*globals(), *_LAZY_MODULES, *_LAZY_NAMES}
    return sorted(n for n in names if not n.startswith("_"))
