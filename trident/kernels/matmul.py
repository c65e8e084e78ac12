"""Matrix multiplication: which kernel computes a product, and in which blocks.

``matmul`` views every call as batches of ``(m, k) @ (k, n)`` with free strides on all axes, so that
transposed, sliced and broadcast operands are read where they lie. Then ``schedule`` picks

- thin: few rows or columns, or integers; sums of products (``matmul_thin.py``);
- grouped: a program for each tile of the output (``matmul_tiled.py``);
- persistent: a program for each multiprocessor, which walks over tiles (``matmul_tiled.py``);
- tma: the same through tensor descriptors, from sm_90 on (``matmul_tma.py``);

and any of them may cut a long k into chunks (``matmul_split.py``). Except for thin, the schedule is
part of the configuration of a call, beside the blocks (``configs.py``); ``configs.using`` forces
one, in the interpreter too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from .. import dtypes, shapes
from ..dtypes import dtype as DType
from ..lang import Jit, cdiv, next_power_of_2
from ..runtime import Device, DeviceArray
from ..runtime.tuning import Config
from ..shapes import Shape
from . import configs, matmul_family, matmul_split, matmul_thin, matmul_tiled, matmul_tma
from .matmul_common import Problem
from .matmul_family import chunks, sizes_of, thin_chunks, thin_config, tiled_config


def matmul(
    out: DeviceArray,
    a: DeviceArray,
    b: DeviceArray,
    *,
    bias: DeviceArray | None = None,
    act: Jit | None = None,
    c: DeviceArray | None = None,
    alpha: float | None = None,
    beta: float | None = None,
) -> None:
    """``out = act(alpha * (a @ b) + beta * c + bias)``, rounded before ``act`` and at the end.

    a (..., m, k), b (..., k, n), batch axes broadcast; ``out`` is contiguous. ``bias`` (n,) is one
    number a column, (m, 1) one a row. ``c`` broadcasts to ``out``. ``act`` is a ``@jit`` function
    of one value. alpha and beta, None for 1, are for floating dtypes. All of one dtype.
    """
    if out.size == 0:
        return
    batch = out.shape[:-2]
    a = a.broadcast_to(batch + a.shape[-2:])
    b = b.broadcast_to(batch + b.shape[-2:])
    if c is not None:
        c = c.broadcast_to(out.shape)
    bias_rows = bias is not None and bias.ndim == 2 and bias.shape[1] == 1
    if bias is not None:
        line = bias.broadcast_to(out.shape[-2:])
        assert bias.ndim == 1 or 1 in bias.shape, "a whole matrix is c"
        bias = line[:, 0] if bias_rows else line[0]
    if batch and not bias_rows and not any(b.strides[:-2]):
        rows = shapes.numel(out.shape[:-1])  # one b for all batches: their rows are one long matrix
        if all(x is None or x.can_reshape((rows, x.shape[-1])) for x in (a, c)):
            a = a.reshape((rows, a.shape[-1]))
            b = b.as_strided(b.shape[-2:], b.strides[-2:])
            out = out.reshape((rows, out.shape[-1]))
            c = c.reshape(out.shape) if c is not None else None
    if c is None:
        for o, x, y in _four_axes(2, out, a, b):
            schedule(Problem(o, x, y, bias, bias_rows, None, act, alpha, beta))
    else:
        for o, x, y, z in _four_axes(1, out, a, b, c):
            schedule(Problem(o, x, y, bias, bias_rows, z, act, alpha, beta))


# ---- the choice


def schedule(p: Problem) -> None:
    """Launch ``p`` by the kernel that is meant for it."""
    m, n, _ = p.mnk
    if not p.a.dtype.is_floating_point or min(m, n) <= matmul_thin.ROWS:
        _thin(p if m <= n else p.transposed())
    else:
        _tiles(p)


def _thin(p: Problem) -> None:
    m, n, k = p.mnk
    tile = thin_config(p)
    bm, bn, bk = matmul_thin.blocks(p, tile)
    splits = tile.constants["SPLIT_K"] or thin_chunks(
        p.batches * cdiv(m, bm) * cdiv(n, bn), k, configs.multiprocessors(p.a.device)
    )
    matmul_split.run(p, splits, bk, lambda p: matmul_thin.run(p, tile))


def _tiles(p: Problem) -> None:
    tile = tiled_config(p)
    blocks = {
        name: min(tile.constants[name], max(16, next_power_of_2(size)))
        for name, size in zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), p.mnk)
    }
    tile = tile.replace(**blocks)
    splits = chunks(p.a.device.architecture, configs.kind_of(p.a.dtype), sizes_of(p), tile)

    def launcher(p: Problem) -> None:
        if tile.constants["SCHEDULE"] == "tma" and matmul_tma.fits(p):
            matmul_tma.run(p, tile)
        else:
            matmul_tiled.run(p, tile, persistent=tile.constants["SCHEDULE"] != "grouped")

    matmul_split.run(p, splits, blocks["BLOCK_K"], launcher)


# ---- the shapes


def _four_axes(most: int, *arrays: DeviceArray) -> Iterator[tuple[DeviceArray, ...]]:
    """The arrays with two batch axes: their (equal) ones merged into ``most``; the first is 1 if
    that is 1. More of them are looped over."""
    sizes, strides = merge_axes(arrays[0].shape[:-2], [x.strides[:-2] for x in arrays])
    lead = max(len(sizes) - most, 0)
    pad = (1,) * (2 - len(sizes) + lead)
    for index in itertools.product(*(range(size) for size in sizes[:lead])):
        yield tuple(
            x.as_strided(
                pad + sizes[lead:] + x.shape[-2:],
                (0,) * len(pad) + st[lead:] + x.strides[-2:],
                sum(i * s for i, s in zip(index, st)),
            )
            for x, st in zip(arrays, strides)
        )


def merge_axes(sizes: Shape, strides: list[Shape]) -> tuple[Shape, list[Shape]]:
    """Drop axes of size 1 and join neighbours that every array walks as one axis.

    ((2, 1, 3), [(3, 9, 1), (0, 0, 0)]) -> ((6,), [(1,), (0,)]).
    """
    kept: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(sizes):
        if size == 1:
            continue
        if kept and all(done[-1] == st[axis] * size for done, st in zip(steps, strides)):
            kept[-1] *= size
            for done, st in zip(steps, strides):
                done[-1] = st[axis]
        else:
            kept.append(size)
            for done, st in zip(steps, strides):
                done.append(st[axis])
    return tuple(kept), [tuple(s) for s in steps]


# ---- what is tuned


def _rehearse(
    device: Device, dtype: DType, sizes: Mapping[str, int], turn: bool
) -> Callable[[], None]:
    """A product of random numbers (zeros let a GPU run faster); ``turn``: b lies in rows of k."""
    batches, m, n, k = (sizes[name] for name in ("batches", "m", "n", "k"))
    rng = np.random.default_rng(0)

    def operand(rows: int, cols: int) -> DeviceArray:
        values = rng.standard_normal((batches, rows, cols), np.float32).astype(dtype.np)
        return device.from_host(values)

    a = operand(m, k)
    b = operand(n, k).transpose((0, 2, 1)) if turn else operand(k, n)
    out = device.empty((batches, m, n), dtype)
    return lambda: matmul(out, a, b)


def _problem(batches: int, m: int, n: int, k: int, **more: int) -> dict[str, int]:
    return {"batches": batches, "m": m, "n": n, "k": k, **more}


_TRIAL = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2, "HALVES": False,
          "WARP_SPECIALIZE": False}  # fmt: skip
configs.register(
    configs.Family(
        name="matmul",
        kernels=(matmul_tiled.tiled_kernel, matmul_tma.tma_kernel, matmul_split.combine_kernel),
        sizes=("batches", "m", "n", "k", "described", "heavy"),
        candidates=matmul_family.tiles_of,
        rehearse=lambda device, dtype, sizes: _rehearse(device, dtype, sizes, dtype.itemsize == 4),
        problems=tuple(
            _problem(*size, described=1, heavy=0)
            for size in (
                (1, 8192, 8192, 8192), (1, 4096, 4096, 4096), (1, 2048, 2048, 2048),
                (1, 1024, 1024, 1024), (1, 512, 512, 512), (1, 256, 256, 256),
                (1, 65536, 1024, 1024), (1, 1024, 1024, 65536), (1, 4096, 16384, 4096),
                (1, 128, 4096, 4096), (1, 16, 4096, 4096), (1, 64, 64, 16384),
                (64, 512, 512, 64), (64, 512, 64, 512),
            )
        ),
        kinds={"half": dtypes.bfloat16, "tf32": dtypes.float32, "single": dtypes.float32,
               "double": dtypes.float64},
        trials=(
            Config(SCHEDULE="grouped", SPLIT_K=3, **_TRIAL),
            Config(SCHEDULE="tma", SPLIT_K=1, **_TRIAL),
            # with one warp, an activation is applied in halves
            Config(SCHEDULE="persistent", SPLIT_K=1, num_warps=1,
                   **_TRIAL | {"BLOCK_M": 32, "BLOCK_N": 64}),
            Config(SCHEDULE="tma", SPLIT_K=3, **_TRIAL | {"HALVES": True, "BLOCK_N": 32}),
        ),
        cost=matmul_family.estimated,
    )
)  # fmt: skip
configs.register(
    configs.Family(
        name="matmul_thin",
        kernels=(matmul_thin.thin_kernel, matmul_split.combine_kernel),
        sizes=("batches", "m", "n", "k", "along_k"),
        candidates=matmul_family.thin_tiles,
        rehearse=lambda device, dtype, sizes: _rehearse(
            device, dtype, sizes, bool(sizes["along_k"])
        ),
        problems=tuple(
            _problem(*size, along_k=along)
            for along in (0, 1)
            for size in (
                (1, 1, 4096, 4096), (1, 1, 16384, 4096), (1, 4, 4096, 4096), (1, 1, 1, 1 << 20),
                (64, 1, 128, 2048),
            )
        ),
        kinds={"half": dtypes.bfloat16, "single": dtypes.float32, "double": dtypes.float64,
               "int": dtypes.int64},
        trials=(
            Config(BLOCK_M=2, BLOCK_N=2, BLOCK_K=4, SPLIT_K=1),
            Config(BLOCK_M=2, BLOCK_N=2, BLOCK_K=2, SPLIT_K=3),
        ),
    )
)  # fmt: skip
