"""Which of several configurations a kernel is launched with: by measurement, kept on disk.

Nothing is measured unless asked. A choice holds for an architecture, a Triton version, the kernel's
source with that of every function it calls, the configurations themselves, and the arguments'
dtypes and sizes, sizes rounded up to powers of two. It is a small JSON file in the cache folder
``tuning`` (``disk_cache``: bounded, written in one step, safe to delete).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import statistics
import time
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..lang import Jit, _names
from . import disk_cache

FORMAT = 1
WARM_UP = 3
BUDGET = 0.05
"""Seconds of samples for one configuration; at least ``FEWEST`` of them, at most ``MOST``."""
FEWEST, MOST = 7, 100


class Config:
    """One way to launch a kernel: values of its ``tl.constexpr`` parameters, and launch options.

    num_warps: warps of a program (a power of two); num_stages: stages of software pipelines.

    >>> trident.Config(BLOCK=1024, num_warps=8)
    Config(BLOCK=1024, num_warps=8, num_stages=3)
    """

    __slots__ = ("constants", "num_stages", "num_warps")

    def __init__(self, *, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
        for name, value in (("num_warps", num_warps), ("num_stages", num_stages)):
            if value.__class__ is not int or value < 1:
                raise ValueError(f"Config: {name} must be a positive int; got {value!r}")
        if num_warps & (num_warps - 1):
            raise ValueError(f"Config: num_warps must be a power of two; got {num_warps}")
        self.num_warps = num_warps
        self.num_stages = num_stages
        self.constants = constants

    def replace(self, **changes: Any) -> Config:
        """Another Config with some values changed.

        >>> trident.Config(BLOCK=1024).replace(BLOCK=64, num_warps=1)
        Config(BLOCK=64, num_warps=1, num_stages=3)
        """
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return Config(**{**self.constants, **options, **changes})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        values = {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}
        return f"Config({', '.join(f'{k}={v!r}' for k, v in values.items())})"


def choose(
    name: str,
    facts: Iterable[object],
    configs: Sequence[Config],
    measure: Callable[[Config], float] | None,
    *,
    again: bool = False,
) -> tuple[Config, bool]:
    """The configuration for ``facts``: the cached one; else the one with the least
    ``measure(config)`` seconds, which is then cached; else (no ``measure``) the first. Also says
    whether the choice rests on a measurement, of now or before. ``again`` measures in any case.

    A configuration that raises is not chosen; if all do, the first error is raised.
    """
    parts = [str(FORMAT), *(repr(f) for f in facts), *(repr(c) for c in configs)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = disk_cache.folder("tuning") / f"{name}-{digest[:24]}.json"
    found = None if again and measure is not None else _read(path, digest, configs)
    if found is not None:
        return found, True
    if measure is None:
        return configs[0], False
    times: dict[Config, float] = {}
    errors: list[Exception] = []
    for c in configs:
        try:
            times[c] = measure(c)
        except Exception as error:  # too much shared memory, a block that does not compile
            errors.append(error)
    if not times:
        raise errors[0]
    best = min(times, key=times.__getitem__)
    record = {
        "format": FORMAT,
        "kernel": name,
        "key": digest,
        "config": repr(best),
        "seconds": {repr(c): t for c, t in times.items()},
        "facts": parts,
    }
    try:
        disk_cache.write(path, json.dumps(record, indent=1).encode())
    except OSError as error:  # a full disk, or a race with another process that tidies up
        warnings.warn(f"{path}: the tuned choice was not kept: {error}", stacklevel=2)
    return best, True


def _read(path: Path, digest: str, configs: Sequence[Config]) -> Config | None:
    """The choice in the file, or None; a file that is not ours is ignored, with a warning."""
    try:
        record = json.loads(path.read_bytes())
        if record["format"] != FORMAT or record["key"] != digest:
            raise ValueError("it was written for something else")
        found = next(c for c in configs if repr(c) == record["config"])
    except FileNotFoundError:
        return None
    except StopIteration:
        reason = "it names a configuration that the kernel does not have"
    except KeyError as error:
        reason = f"it has no entry {error}"
    except (OSError, ValueError, TypeError) as error:
        reason = str(error)
    else:
        disk_cache.touch(path)
        return found
    warnings.warn(f"{path}: ignored, not a tuning result of this kernel ({reason})", stacklevel=2)
    return None


def seconds(
    run: Callable[[], None], synchronize: Callable[[], None], prepare: Callable[[], None]
) -> float:
    """The median time of ``run()`` on a device, after a warm-up; ``prepare()`` before each run is
    not counted."""
    for _ in range(WARM_UP):
        prepare()
        run()
    samples: list[float] = []
    while len(samples) < FEWEST or (sum(samples) < BUDGET and len(samples) < MOST):
        prepare()
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)


def size_class(value: Any) -> Any:
    """What a choice depends on of an argument: ints, and the sizes of arrays, rounded up to powers
    of two; anything else as it is."""
    if hasattr(value, "shape"):
        return tuple(size_class(int(n)) for n in value.shape)
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return 1 << (value - 1).bit_length()
    return value


@functools.lru_cache(maxsize=1024)
def fingerprint(kernel: Jit) -> str:
    """A digest of a kernel's text, of every Triton function it calls, and of the constants they
    name."""
    found: dict[str, None] = {}

    def visit(fn: Callable) -> None:
        text = _source(fn)
        if text in found:
            return
        found[text] = None
        for name, value in sorted(_named_values(fn).items()):
            called = getattr(value, "fn", None)  # a Jit, or a function of triton.jit
            if isinstance(called, types.FunctionType):
                visit(called)
            elif isinstance(value, (int, float, str)):
                found[f"{name} = {value!r}"] = None
            elif type(value).__name__ == "constexpr":
                found[f"{name} = {value.value!r}"] = None  # type: ignore[union-attr]

    visit(kernel.fn)
    return hashlib.sha256("\0".join(found).encode()).hexdigest()


def _named_values(fn: Any) -> dict[str, Any]:
    """The globals and closed-over variables that the text of ``fn`` names."""
    values = {n: fn.__globals__[n] for n in _names(fn.__code__) & fn.__globals__.keys()}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
        with contextlib.suppress(ValueError):  # not assigned yet
            values[name] = cell.cell_contents
    return values


def _source(fn: Callable) -> str:
    try:
        return inspect.getsource(fn)
    except (OSError, TypeError):  # typed into a prompt that keeps no text
        return f"{fn.__qualname__} {fn.__code__.co_code.hex()} {fn.__code__.co_consts!r}"


__all__ = ["Config", "choose", "fingerprint", "seconds", "size_class"]
