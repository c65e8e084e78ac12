"""trident: a deep-learning runtime without PyTorch.

``import trident as torch`` and train with the names you know; every GPU operation is a readable Triton
kernel, every operation has a numpy reference that is also the CPU backend.
"""

from __future__ import annotations

import math as _math
from typing import Any

from . import config, ops
from .dtypes import (
    bfloat16, finfo, float16, float32, float64, get_default_dtype, iinfo, int8, int16, int32, int64,
    promote_types, set_default_dtype, uint8,
)  # fmt: skip
from .dtypes import bool_ as bool
from .dtypes import dtype as dtype
from .runtime.host_memory import keep_freed_arrays
from .tensor import Tensor, install_methods
from . import dispatch

install_methods()
if config.TUNE_MALLOC:
    keep_freed_arrays()
from .creation import (
    arange, as_tensor, asarray, empty, empty_like, eye, from_dlpack, from_numpy, full, full_like,
    initial_seed, is_tensor, linspace, logspace, manual_seed, meshgrid, normal, ones, ones_like, rand,
    rand_like, randint, randint_like, randn, randn_like, randperm, seed, tensor, zeros, zeros_like,
)  # fmt: skip
from .runtime.random import Generator, default_generator
from .autograd import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from .devices import device, get_default_device, set_default_device
from .printing import set_printoptions
from .shapes import Size
from . import autograd, testing

double, half, long, short = float64, float16, int64, int16
int, float = int32, float32
inf, nan, pi, e = _math.inf, _math.nan, _math.pi, _math.e
newaxis = None


def __getattr__(name: str) -> Any:
    from .ops.registry import FUNCTIONS

    if name in FUNCTIONS:
        return FUNCTIONS[name]
    from .errors import missing_name

    raise missing_name("trident", name, [*globals(), *FUNCTIONS])
