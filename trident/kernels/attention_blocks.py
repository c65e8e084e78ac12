"""Which blocks the attention kernels are launched with (``configs``): three families, forward, dq,
and dk with dv, each with a file of defaults.

A block that is walked over may be read through a tensor descriptor (``TMA``): one thread asks the
memory unit for the whole block, which frees the registers that addresses take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import config, dtypes
from ..dtypes import dtype as DType
from ..lang import Jit
from ..runtime import Device, DeviceArray
from ..runtime.tuning import Config
from . import configs
from .layout import fill

SIZES = ("d", "m", "n", "extra")
TRIALS = (
    Config(BLOCK_M=32, BLOCK_N=16, num_warps=4, num_stages=1),
    Config(BLOCK_M=16, BLOCK_N=32, TMA=True, num_warps=4, num_stages=1),
)


def choose(
    name: str, q: DeviceArray, k: DeviceArray, mask: DeviceArray | None, common: dict[str, Any]
) -> Config:
    """The configuration of family ``name``. Its size "extra" says what else needs registers: 1 for
    a mask or dropout, 2 for dropout where each element makes its own word."""
    small = config.interpret_block.get()
    if small and q.device.interpreted and name not in config.forced_configs.get():
        return TRIALS[small < 16]  # several blocks in small tests
    drops = common["KEPT"] is not None
    return configs.pick(name, q.device, q.dtype, {
        "d": max(common["BLOCK_D"], common["BLOCK_E"]), "m": q.shape[2], "n": k.shape[2],
        "extra": 2 if drops and not common["FOURS"] else int(mask is not None or drops),
    })  # fmt: skip


def blocks(c: Config, common: dict[str, Any], *arrays: DeviceArray) -> dict[str, Any]:
    """What a launch takes from the configuration. ``arrays``, which a program walks over, are read
    through descriptors if that is asked for and their rows begin at multiples of 16 bytes."""
    described = c.constants.get("TMA", False) and all(
        a.strides[3] == 1 and 0 not in a.strides and common["VEC"] * a.dtype.itemsize == 16
        for a in arrays
    )
    return {
        "TMA": described,
        "BLOCK_M": c.constants["BLOCK_M"],
        "BLOCK_N": c.constants["BLOCK_N"],
        "num_warps": c.num_warps,
        "num_stages": c.num_stages,
    }


def family(name: str, kernels: tuple[Jit, ...], run: Callable, blocks: Iterable[tuple]) -> None:
    """Register a family. ``run(q, k, v, g, out, lse, mask, dropout)`` launches it, ``blocks`` are
    (BLOCK_M, BLOCK_N, warps, stages) that ``tune`` measures."""

    def candidates(place: configs.Place) -> Iterable[Config]:
        number = place.architecture.removeprefix("sm_")
        described = (False, True) if number.isdigit() and int(number) >= 90 else (False,)
        return [
            Config(BLOCK_M=m, BLOCK_N=n, TMA=tma, num_warps=warps, num_stages=stages)
            for m, n, warps, stages in blocks
            for tma in described
        ]

    def rehearse(device: Device, dtype: DType, sizes: Mapping[str, int]) -> Callable[[], None]:
        heads = max(1, 4 * device.multiprocessors * 128 // sizes["m"])
        rows, keys = (1, heads, sizes["m"], sizes["d"]), (1, heads, sizes["n"], sizes["d"])
        q, k, v, g, out = (device.empty(s, dtype) for s in (rows, keys, keys, rows, rows))
        lse = device.empty(rows[:3], dtype.compute)
        mask = device.empty((1, 1, 1, sizes["n"]), dtypes.bool_) if sizes["extra"] == 1 else None
        for array in (q, k, v, g, out, lse):
            fill(array, 0)
        if mask is not None:
            fill(mask, True)
        return lambda: run(q, k, v, g, out, lse, mask, 0.1 if sizes["extra"] == 2 else 0.0)

    kinds = {
        "half": dtypes.bfloat16, "tf32": dtypes.float32, "single": dtypes.float32,
        "double": dtypes.float64,
    }  # fmt: skip
    problems = tuple(
        {"d": d, "m": m, "n": m, "extra": 0} for d in (64, 128, 256) for m in (1024, 4096)
    )
    configs.register(
        configs.Family(name, kernels, SIZES, candidates, rehearse, problems, kinds, TRIALS)
    )
