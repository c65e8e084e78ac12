"""Which configuration a matrix product gets: the choices of the families ``matmul`` and
``matmul_thin`` of ``configs.py``.

A default for ``matmul`` is the tile with the least estimated time: whole tiles in whole waves of
programs, at the rate that ``defaults/matmul.json`` gives a tile, and what chunks of k cost on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .. import config
from ..lang import cdiv
from ..runtime.tuning import Config
from . import configs, matmul_tma
from .matmul_common import Problem

SHORTEST = 512
"""A chunk of k is at least this long."""
LAUNCH = 8e6
"""What the second launch of a product in chunks costs, and (PARTIAL) each of its float32 sums,
which is written and read: in multiply-adds that one multiprocessor does meanwhile in half types."""
PARTIAL = 6
SPEED = {"half": 1.0, "tf32": 0.5, "single": 1 / 16, "double": 1 / 16}
"""Multiply-adds of other kinds in that time, roughly."""
BESIDE = 4
"""Programs of a thin product that run on one multiprocessor side by side."""


# ---- chunks of k


def chunks(architecture: str, kind: str, sizes: Mapping[str, int], tile: Config) -> int:
    """Into how many chunks a product is cut: as its configuration says, or as is estimated."""
    return _plan(architecture, kind, sizes, tile, 1.0)[1]


def _plan(
    architecture: str, kind: str, sizes: Mapping[str, int], tile: Config, rate: float
) -> tuple[float, int]:
    """(time, chunks of k) of the quickest way with this tile."""
    most = tile.constants
    m, n, k, batches = (sizes[name] for name in ("m", "n", "k", "batches"))
    beside = configs.MULTIPROCESSORS[configs.table_name(architecture)]
    items = batches * cdiv(m, most["BLOCK_M"]) * cdiv(n, most["BLOCK_N"])
    room = min(beside // items, k // max(SHORTEST, most["BLOCK_K"]))
    ways = []
    for splits in (most["SPLIT_K"],) if most["SPLIT_K"] else {1, max(room, 1)}:
        work = cdiv(items * splits, beside) * most["BLOCK_M"] * most["BLOCK_N"] * k / splits
        extra = (LAUNCH + PARTIAL * splits * batches * m * n) * SPEED[kind] if splits > 1 else 0.0
        ways.append((work / rate + extra, splits))
    return min(ways)


def estimated(place: configs.Place, tile: Config, rate: float) -> float:
    return _plan(place.architecture, place.kind, place.sizes, tile, rate)[0]


def thin_chunks(items: int, k: int, multiprocessors: int) -> int:
    """The same for a thin product of so many tiles: as many as give every place a program."""
    return max(1, min(BESIDE * multiprocessors // items, k // SHORTEST))


# ---- the configuration of a call


def sizes_of(p: Problem) -> dict[str, int]:
    """What the choice of a tile depends on. What a descriptor can describe is also what pointers
    read in 16 bytes."""
    m, n, k = p.mnk
    return {
        "batches": p.batches, "m": m, "n": n, "k": k,
        "described": int(matmul_tma.pays(p)), "heavy": int(p.heavy),
    }  # fmt: skip


def tiled_config(p: Problem) -> Config:
    """The configuration of a product by ``tl.dot``; the launcher narrows its blocks."""
    device = p.a.device
    if device.interpreted and configs.forced("matmul") is None:
        # the cost of a program hardly depends on its size there; tests want several
        block = config.interpret_block.get()
        size = max(2 * block, 16) if block else 256
        return Config(SCHEDULE="grouped", BLOCK_M=size, BLOCK_N=size, BLOCK_K=size, GROUP_M=2,
                      SPLIT_K=1, HALVES=False, WARP_SPECIALIZE=False)  # fmt: skip
    return configs.pick("matmul", device, p.a.dtype, sizes_of(p))


def thin_config(p: Problem) -> Config:
    """The configuration of a product of few rows; the launcher narrows its blocks."""
    device = p.a.device
    if device.interpreted and configs.forced("matmul_thin") is None:
        block = config.interpret_block.get()
        if block:
            side = max(block // 4, 2)
            return Config(BLOCK_M=2, BLOCK_N=side, BLOCK_K=side, SPLIT_K=1)
        return Config(BLOCK_M=32, BLOCK_N=128, BLOCK_K=32, SPLIT_K=1)
    m, n, k = p.mnk
    along_k = int(p.b.strides[2] == 1)
    sizes = {"batches": p.batches, "m": m, "n": n, "k": k, "along_k": along_k}
    kind = configs.kind_of(p.a.dtype, tensor_cores=False)
    return configs.pick("matmul_thin", device, kind, sizes)


# ---- what is tuned


def tiles_of(place: configs.Place) -> Iterable[Config]:
    """What ``tune`` measures: the tiles of the tables, with and without chunks of k."""
    tables = ("any", "sm_80", configs.table_name(place.architecture))
    for tile in dict.fromkeys(
        rule.config for table in tables for rule in configs.rules("matmul", table, place.kind)
    ):
        most = tile.constants
        if most["SCHEDULE"] == "tma" and not place.sizes["described"]:
            continue
        if most["BLOCK_M"] > 2 * place.sizes["m"] or most["BLOCK_N"] > 2 * place.sizes["n"]:
            continue
        yield tile
        yield tile.replace(SPLIT_K=1)
        if most["SCHEDULE"] == "tma" and not most["HALVES"]:
            yield tile.replace(WARP_SPECIALIZE=not most["WARP_SPECIALIZE"])
        if most["SCHEDULE"] == "grouped":
            yield tile.replace(SCHEDULE="persistent")


def thin_tiles(place: configs.Place) -> Iterable[Config]:
    """What ``tune`` measures: eight shapes of one block, and chunks of k or none."""
    (rule, *_) = configs.rules("matmul_thin", place.architecture, place.kind)
    most = rule.config.constants
    room = most["BLOCK_N"] * most["BLOCK_K"]
    for columns in (4, 8, 16, 32, 64, 128, 256):
        for splits in (0, 1):
            yield rule.config.replace(BLOCK_N=columns, BLOCK_K=room // columns, SPLIT_K=splits)
