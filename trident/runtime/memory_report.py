"""What is said of an allocator: figures, live blocks, and the error when there is no room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .origin import describe
from .segments import KIB, MIB

if TYPE_CHECKING:
    from .allocator import CachingAllocator

TRACKED = MIB
"""Of blocks of this size or more it is known which line of the user's made them."""
LISTED = 10
"""How many kinds of blocks an OutOfMemoryError lists."""


def live(allocator: CachingAllocator) -> list[tuple[int, int, str]]:
    """(address, bytes, where made) of the blocks that somebody holds, the largest first."""
    found = allocator.alone(lambda: [p for a in allocator.arenas() for p in a.on_loan().values()])
    resting = allocator.resting()
    rows = [
        (p.ptr, p.size, describe(allocator.origins.get(p.ptr)) if p.size >= TRACKED else "")
        for p in found
        if p.ptr not in resting
    ]
    return sorted(rows, key=lambda row: -row[1])


def stats(allocator: CachingAllocator) -> dict[str, int]:
    """The figures under the names that ``torch.cuda.memory_stats`` has for them."""
    tally = allocator.tally

    def count() -> tuple[int, ...]:
        arenas = allocator.arenas()
        bins = [b for a in arenas for b in a.bins.values()]
        loans = [p.size for a in arenas for p in a.on_loan().values()]
        takes = tally.old_takes + sum(b.takes for b in bins)
        taken = tally.old_bytes + sum(b.takes * b.size for b in bins)
        return takes, taken, len(loans), sum(loans), sum(a.split() for a in arenas)

    takes, taken, loans, active, split = allocator.alone(count)
    live = loans - len(allocator.resting())
    return {
        "allocated_bytes.all.current": tally.allocated,
        "allocated_bytes.all.peak": tally.peak,
        "allocated_bytes.all.allocated": taken,
        "allocated_bytes.all.freed": taken - tally.allocated,
        "allocation.all.current": live,
        "allocation.all.allocated": takes,
        "allocation.all.freed": takes - live,
        "reserved_bytes.all.current": tally.reserved,
        "reserved_bytes.all.peak": tally.peak_reserved,
        "reserved_bytes.all.allocated": tally.obtained,
        "reserved_bytes.all.freed": tally.obtained - tally.reserved,
        "segment.all.current": tally.segments,
        "segment.all.peak": tally.peak_segments,
        "segment.all.allocated": tally.segments + tally.freed_segments,
        "segment.all.freed": tally.freed_segments,
        "active.all.current": loans,
        "active_bytes.all.current": active,
        "inactive_split_bytes.all.current": split,
        "num_alloc_retries": tally.retries,
        "num_ooms": tally.ooms,
    }


def summary(name: str, stats: dict[str, int], blocks: list[tuple[int, int, str]]) -> str:
    """The figures as a table, and the largest live blocks."""
    lines = [f"memory of {name}", f"{'':16}{'now':>12}{'peak':>12}{'in all':>14}{'freed':>14}"]
    for title, key in (
        ("live tensors", "allocated_bytes"), ("reserved", "reserved_bytes"),
        ("blocks", "allocation"), ("segments", "segment"),
    ):  # fmt: skip
        cells = [stats.get(f"{key}.all.{k}") for k in ("current", "peak", "allocated", "freed")]
        text = size_text if key.endswith("bytes") else str
        row = ["" if c is None else text(c) for c in cells]
        if any(row):
            lines.append(f"{title:16}{row[0]:>12}{row[1]:>12}{row[2]:>14}{row[3]:>14}")
    retries, ooms = stats.get("num_alloc_retries", 0), stats.get("num_ooms", 0)
    lines.append(f"freed its cache to go on {retries} times, ran out of memory {ooms} times")
    if blocks:
        lines += ["the largest live blocks:", *_largest(blocks)]
    return "\n".join(lines)


def _largest(blocks: list[tuple[int, int, str]]) -> list[str]:
    """A line for each kind of live block, the kinds that hold most first."""
    groups: dict[tuple[int, str], int] = {}
    for _, size, place in blocks:
        groups[size, place] = groups.get((size, place), 0) + 1
    largest = sorted(groups.items(), key=lambda g: -g[0][0] * g[1])[:LISTED]
    return [
        f"  {f'{n} x ' if n > 1 else ''}{size_text(size)}  {place or '(not traced: below 1 MiB)'}"
        for (size, place), n in largest
    ]


def no_room(allocator: CachingAllocator, nbytes: int, capturing: bool) -> str:
    """What an OutOfMemoryError says."""
    free, total = allocator.memory.info()
    where = f" on {allocator.device}" if allocator.device is not None else ""
    text = (
        f"CUDA out of memory: wanted {size_text(nbytes)}{where}, where {size_text(free)} of "
        f"{size_text(total)} are free; this process holds {size_text(allocator.reserved)}, "
        f"{size_text(allocator.allocated)} of them in live tensors and "
        f"{size_text(allocator.reserved - allocator.allocated)} cached"
    )
    if capturing:
        text += ". A private pool is open (a graph is being captured), so nothing cached was "
        text += "returned: call trident.cuda.empty_cache() before it is"
    blocks = live(allocator)
    if blocks:
        text += "\n".join([". The largest live blocks:", *_largest(blocks)])
    return text


def size_text(nbytes: int) -> str:
    """``1.50 GiB``."""
    for unit, size in (("GiB", 1 << 30), ("MiB", MIB), ("KiB", KIB)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} bytes"
