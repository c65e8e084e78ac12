"""How large the tiles of the convolution kernels are: a configuration, narrowed to the problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .. import config, dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import Jit, next_power_of_2
from ..runtime import Device, DeviceArray
from ..runtime.tuning import Config
from . import configs
from .layout import fill

PACKED = 16
"""Below so many channels a group, (tap, channel) pairs are numbered without gaps."""
SIZES = ("pixels", "rows", "channels", "taps", "unit")
SIDE = 28

SMALL = Config(BLOCK_P=32, BLOCK_R=16, BLOCK_K=16, num_warps=4, num_stages=2)
"""Several tiles along every axis in the small problems of tests."""
INTERPRETED = Config(BLOCK_P=1024, BLOCK_R=128, BLOCK_K=64, num_warps=4, num_stages=1)
"""The cost of a program hardly depends on its size in the interpreter."""


def tile_for(
    family: str, x: DeviceArray, sizes: tuple[int, int, int, int, int], result: tuple[str, str]
) -> dict[str, Any]:
    """Blocks and launch options for ``SIZES``: BLOCK_P for the pixels (of the result), BLOCK_R for
    the channels of the convolution's result, BLOCK_K for those of its input, of which a packed
    kernel has taps times as many. "unit" is how many elements a load takes: single ones need more
    registers. ``result`` names the blocks that the accumulator has."""
    named = dict(zip(SIZES, sizes))
    if x.device.interpreted and family not in config.forced_configs.get():
        c = SMALL if config.interpret_block.get() else INTERPRETED
    else:
        c = configs.pick(family, x.device, x.dtype, named)
    pixels, rows, depth, taps, _ = sizes
    if depth < PACKED:
        depth *= taps
    block = {
        name: min(c.constants[name], max(16, next_power_of_2(size)))
        for name, size in (("BLOCK_P", pixels), ("BLOCK_R", rows), ("BLOCK_K", depth))
    }
    half = block["BLOCK_K"] // 2
    if half >= 32 and depth % block["BLOCK_K"] and depth % half == 0:
        block["BLOCK_K"] = half  # 96 channels are three times 32, not twice 64
    # a warp for so many results: without tensor cores each lane adds up its own, in registers
    each = 2048 if x.dtype.itemsize == 2 else 512
    warps = min(c.num_warps, max(4, math.prod(block[name] for name in result) // each))
    return {**block, "num_warps": warps, "num_stages": c.num_stages}


def images(device: Device, dtype: DType, pixels: int, channels: int) -> DeviceArray:
    """Channels-last images of zeros with about so many pixels, to measure on."""
    shape = (max(1, pixels // SIDE**2), channels, SIDE, SIDE)
    x = device.empty_strided(shape, shapes.channels_last_strides(shape), dtype)
    fill(x, 0)
    return x


def family(
    name: str,
    kernel: Jit,
    run: Callable[[DeviceArray, DeviceArray, DeviceArray, int], None],
    blocks: Iterable[tuple[int, int, int, int, int]],
) -> configs.Family:
    """A family of convolution kernels. ``run(x, w, y, padding)`` launches it on channels-last x, w
    and y = conv(x, w), ``blocks`` are (BLOCK_P, BLOCK_R, BLOCK_K, warps, stages) for ``tune``."""
    listed = [
        Config(BLOCK_P=p, BLOCK_R=r, BLOCK_K=k, num_warps=warps, num_stages=stages)
        for p, r, k, warps, stages in blocks
    ]

    def candidates(place: configs.Place) -> Iterable[Config]:
        halved = place.kind != "half"  # elements are twice as wide or more: half as many a step
        return [
            Config(
                **{**c.constants, "BLOCK_K": max(c.constants["BLOCK_K"] // (1 + halved), 16)},
                num_warps=c.num_warps,
                num_stages=c.num_stages,
            )
            for c in listed
        ]

    def rehearse(device: Device, dtype: DType, sizes: Mapping[str, int]) -> Callable[[], None]:
        side = math.isqrt(sizes["taps"])
        x = images(device, dtype, sizes["pixels"], sizes["channels"])
        y = images(device, dtype, sizes["pixels"], sizes["rows"])
        shape = (sizes["rows"], sizes["channels"], side, side)
        w = device.empty_strided(shape, shapes.channels_last_strides(shape), dtype)
        fill(w, 0)
        return lambda: run(x, w, y, side // 2)

    kinds = {
        "half": dtypes.bfloat16, "tf32": dtypes.float32, "single": dtypes.float32,
        "double": dtypes.float64,
    }  # fmt: skip
    problems = tuple(
        dict(zip(SIZES, (SIDE**2 * n, channels, channels, 9, 8)))
        for n, channels in ((128, 64), (32, 128), (32, 256), (8, 512))
    )
    trials = (SMALL, Config(BLOCK_P=16, BLOCK_R=32, BLOCK_K=32, num_warps=4, num_stages=2))
    return configs.register(
        configs.Family(name, (kernel,), SIZES, candidates, rehearse, problems, kinds, trials)
    )
