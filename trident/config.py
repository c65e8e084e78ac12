"""Switches: the only file that reads ``os.environ``.

A switch that a computation depends on is a context variable, so that threads and nested ``with``
blocks cannot disturb each other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

INTERPRET: bool = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
"""Whether the ``cuda`` device runs its kernels through Triton's interpreter on host memory."""

TUNE_MALLOC: bool = os.environ.get("TRIDENT_MALLOC", "1") != "0"
"""Whether glibc's allocator is told to keep freed arrays instead of returning them to the
kernel.
"""

THREADS: int | None = int(os.environ.get("OMP_NUM_THREADS", "0").partition(",")[0] or 0) or None
"""Threads of the CPU backend; None: as many as there are cores."""

CACHE: str = os.environ.get("TRIDENT_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "trident"
)
"""Where compiled C and tuning results are kept (``runtime/disk_cache.py``)."""

CC: str = os.environ.get("TRIDENT_CC", os.environ.get("CC", ""))
"""The C compiler for fused CPU code; empty: the first of cc, gcc, clang. ``none``: do without."""

VIRTUAL_MEMORY: bool = os.environ.get("TRIDENT_VIRTUAL_MEMORY", "1") != "0"
"""Whether pools of GPU memory grow in reserved addresses (``runtime/virtual_memory.py``)."""

poison: ContextVar[bool] = ContextVar("trident_poison", default=False)
"""Fill every fresh device buffer with NaN bytes (0xFF): a kernel that skips a store is seen."""

interpret_block: ContextVar[int | None] = ContextVar("trident_interpret_block", default=None)
"""Overrides the block size of interpreted elementwise kernels (tests use small ones)."""

interpreting: ContextVar[Any] = ContextVar("trident_interpreting", default=None)
"""The open ``trident.interpret()`` block of this context, or None."""

check_bounds: ContextVar[bool] = ContextVar("trident_check_bounds", default=True)
"""Interpreted kernels raise KernelError where a lane would leave the arrays of its launch."""

matmul_precision: ContextVar[str] = ContextVar("trident_matmul_precision", default="highest")
"""'highest': float32 matmul and conv are IEEE on the GPU. 'high': TF32 may be used."""

deterministic: ContextVar[bool] = ContextVar("trident_deterministic", default=False)
"""Kernels are launched with the shipped configurations, never with tuned ones."""

forced_configs: ContextVar[Mapping[str, Any]] = ContextVar(
    "trident_forced_configs", default=MappingProxyType({})
)
"""Configurations by kernel family that override every other choice (``kernels/configs.py``)."""

AUTOTUNE: bool = os.environ.get("TRIDENT_AUTOTUNE", "0").lower() in ("1", "true", "on", "yes")
"""Whether kernels with several configurations are measured (``trident.autotune``)."""

autotune: ContextVar[Any] = ContextVar("trident_autotune", default=AUTOTUNE)
"""Whether to measure; a function (config, run) -> seconds measures in place of the clock."""
