"""Which blocks, warps and stages a kernel is launched with, by architecture, dtype and sizes.

A *family* is a set of kernels that one launcher chooses from. For each call the launcher asks
``pick``, and the answer is the first of

1. what a test forces (``using``);
2. what ``trident tune`` measured on this machine for sizes that round to the same powers of two.
   It is a file in the disk cache, named by architecture, Triton version, the source of the family's
   kernels and the list it was chosen from (``runtime/tuning.py``), so an edit of a kernel
   forgets it. ``use_deterministic_algorithms(True)`` passes it over: another configuration may
   add in another order;
3. the package's own default, from ``defaults/<family>.json``.

A file of defaults has, for each architecture and kind of number, a list of rules, and the first
rule whose sizes fit is taken: ``{"tables": {"sm_90": {"half": [{"at_least": {"m*n": 65536},
"at_most": {"k": 512}, "config": {"BLOCK": 128, "num_warps": 8, "num_stages": 3}}, ...]}}}``. If the
family has a ``cost``, it is the fitting rule of the least cost. Architectures without
a table, and kinds that a table leaves out, take the table ``any``, whose blocks fit 64 KiB of
shared memory.
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config, dtypes
from ..dtypes import dtype as DType
from ..errors import wrong
from ..lang import Jit
from ..runtime import Device, disk_cache, tuning
from ..runtime.tuning import Config

KINDS = ("half", "tf32", "single", "double", "int")
"""Kinds of numbers that have configurations of their own: float16 and bfloat16; float32 where
TF32 may be used; float32; float64; every integer type."""

SHARED = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "any": 65536}
"""Bytes of shared memory that one program may have."""

MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "any": 64}
"""Of the largest part of each architecture: what choices that change the order of additions
are made by, so that they are the same on every part."""

_LIKE = {"sm_87": "sm_80", "sm_103": "sm_100"}
_FOLDER = Path(__file__).parent / "defaults"


@dataclass(frozen=True)
class Place:
    """What a configuration is chosen for."""

    architecture: str
    kind: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Family:
    """The kernels of one launcher, and what there is to choose.

    sizes: the names of the numbers that ``pick`` is given. candidates: what ``tune`` measures
    beside the default. rehearse: makes operands of these sizes and returns a launch to be timed.
    problems: the sizes that ``tune`` measures unless told otherwise. kinds: the dtype that stands
    for each kind. trials: small configurations that together reach every kernel: tests run them
    in the interpreter. cost: (place, config, rate) -> the time of a call, in any unit; rate is the
    rule's figure of how much is done in a unit of time.
    """

    name: str
    kernels: tuple[Jit, ...]
    sizes: tuple[str, ...]
    candidates: Callable[[Place], Iterable[Config]]
    rehearse: Callable[[Device, DType, Mapping[str, int]], Callable[[], None]]
    problems: tuple[Mapping[str, int], ...]
    kinds: Mapping[str, DType]
    trials: tuple[Config, ...] = ()
    cost: Callable[[Place, Config, float], float] | None = None


@dataclass(frozen=True)
class Measured:
    """One configuration that was timed, or (``seconds`` None) why it could not be."""

    family: str
    kind: str
    sizes: Mapping[str, int]
    config: Config
    seconds: float | None
    error: str = ""


@dataclass(frozen=True)
class Chosen:
    """The outcome of ``tune`` for one problem. ``default`` is what is used without it."""

    family: str
    kind: str
    sizes: Mapping[str, int]
    config: Config
    default: Config


_families: dict[str, Family] = {}
_picked: dict[tuple, Config] = {}
_PICKED_LIMIT = 4096


def register(family: Family) -> Family:
    """Make a family known to ``pick`` and ``tune``."""
    _families[family.name] = family
    return family


def tunable() -> dict[str, Family]:
    """Every family by name, in the order of the names. Loads all kernel files."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_families.items()))


def kind_of(dtype: DType, tensor_cores: bool = True) -> str:
    """One of ``KINDS``; "tf32" where ``set_float32_matmul_precision`` allows it and the family's
    float32 products run on ``tensor_cores``."""
    if dtype in dtypes.HALVES:
        return "half"
    if dtype is dtypes.float64:
        return "double"
    if dtype is not dtypes.float32:
        return "int"
    high = tensor_cores and config.matmul_precision.get() == "high"
    return "tf32" if high else "single"


def pick(name: str, device: Device, dtype: DType | str, sizes: Mapping[str, int]) -> Config:
    """The configuration of family ``name`` for a call: ``sizes`` has the family's names.

    ``dtype`` may be a kind from ``KINDS``. Where a block is wider than the matrix asks for, the
    launcher narrows it.
    """
    only = forced(name)
    if only is not None:
        return only
    kind = dtype if isinstance(dtype, str) else kind_of(dtype)
    tuned = not config.deterministic.get()
    family = _families[name]
    key = (name, device.architecture, kind, tuned, *(sizes[n] for n in family.sizes))
    found = _picked.get(key)
    if found is None:
        place = Place(device.architecture, kind, {n: sizes[n] for n in family.sizes})
        found = default(name, place)
        if tuned and name in _tuned_names():
            best, measured = _choose(family, place, None)
            found = best if measured else found
        if len(_picked) >= _PICKED_LIMIT:
            _picked.clear()
        _picked[key] = found
    return found


def default(name: str, place: Place) -> Config:
    """The shipped configuration."""
    fitting = [r for r in rules(name, place.architecture, place.kind) if r.fits(place.sizes)]
    assert fitting, f"defaults/{name}.json: no rule for {place}"
    cost = _families[name].cost
    if cost is None or fitting[0].measured:
        return fitting[0].config
    return min(fitting, key=lambda rule: cost(place, rule.config, rule.rate)).config


def forced(name: str) -> Config | None:
    """The configuration that ``using`` forces on a family here."""
    return config.forced_configs.get().get(name)


@contextmanager
def using(choices: Mapping[str, Config]) -> Iterator[None]:
    """Inside the block these families are launched with these configurations."""
    token = config.forced_configs.set({**config.forced_configs.get(), **choices})
    try:
        yield
    finally:
        config.forced_configs.reset(token)


# ---- the shipped files


@dataclass(frozen=True)
class Rule:
    """One line of a file of defaults. Its bounds are on sizes or products of sizes ("m*n"); rate is
    what the family's ``cost`` is told of it. One that was ``measured`` for its sizes
    (``trident tune --write``) is taken before all others."""

    at_least: Mapping[str, int]
    at_most: Mapping[str, int]
    config: Config
    rate: float
    measured: bool = False

    def fits(self, sizes: Mapping[str, int]) -> bool:
        return all(_value(n, sizes) >= least for n, least in self.at_least.items()) and all(
            _value(n, sizes) <= most for n, most in self.at_most.items()
        )


def _value(name: str, sizes: Mapping[str, int]) -> int:
    value = 1
    for part in name.split("*"):
        value *= sizes[part]
    return value


@functools.cache
def shipped(name: str) -> dict[str, Any]:
    """The content of a family's file of defaults."""
    return json.loads((_FOLDER / f"{name}.json").read_text())


def table_name(architecture: str) -> str:
    """The table of defaults that an architecture uses: ``sm_90``, or ``any``."""
    name = _LIKE.get(architecture, architecture)
    return name if name in SHARED else "any"


def multiprocessors(device: Device) -> int:
    """How many programs a default choice assumes to run side by side."""
    return MULTIPROCESSORS[table_name(device.architecture)]


@functools.cache
def rules(name: str, architecture: str, kind: str) -> tuple[Rule, ...]:
    """The lines of a family's file that hold for an architecture and a kind of number."""
    tables = shipped(name)["tables"]
    table = tables.get(table_name(architecture), {})
    lines = table.get(kind) or tables["any"][kind]
    return tuple(
        Rule(
            line.get("at_least", {}),
            line.get("at_most", {}),
            Config(**line["config"]),
            line.get("rate", 1.0),
            line.get("measured", False),
        )
        for line in lines
    )


# ---- tuning


def tune(
    name: str,
    device: Device,
    clock: Callable[[Callable[[], None]], float] | None = None,
    report: Callable[[Measured], None] | None = None,
    *,
    kinds: Iterable[str] | None = None,
    problems: Iterable[Mapping[str, int]] | None = None,
    again: bool = False,
) -> list[Chosen]:
    """Measure the candidates of a family on ``device`` and keep the best on disk.

    ``clock(run)`` returns the seconds of one ``run()``; without it the wall clock is read around
    a synchronised run. ``report`` is called after each configuration. What is in the
    cache already is not measured again, unless ``again``. Raises ValueError for a family, kind or
    size that is not there, and for the interpreter without a ``clock``.
    """
    family = _named(name)
    if device.interpreted and clock is None:
        raise wrong(
            "tune", "the device must be a GPU: times of the interpreter say nothing of one",
            got=repr(device), error=ValueError,
        )  # fmt: skip
    chosen = []
    for kind in kinds if kinds is not None else family.kinds:
        if kind not in family.kinds:
            raise wrong(
                "tune", f"kind must be one of {', '.join(family.kinds)}, the kinds of {name}",
                got=repr(kind), error=ValueError,
            )  # fmt: skip
        for sizes in problems if problems is not None else family.problems:
            missing = [n for n in family.sizes if n not in sizes]
            if missing:
                raise wrong(
                    "tune", f"a problem of {name} has the sizes {', '.join(family.sizes)}",
                    got=f"{dict(sizes)}, without {missing[0]}", error=ValueError,
                )  # fmt: skip
            chosen.append(_tune_one(family, device, kind, sizes, clock, report, again))
    return chosen


def _tune_one(
    family: Family, device: Device, kind: str, sizes: Mapping[str, int],
    clock: Callable | None, report: Callable | None, again: bool,
) -> Chosen:  # fmt: skip
    place = Place(device.architecture, kind, {n: sizes[n] for n in family.sizes})
    token = config.matmul_precision.set("high" if kind == "tf32" else "highest")
    prepared: list[Callable[[], None]] = []

    def timed(c: Config) -> float:
        if not prepared:  # not for a choice that the cache has
            prepared.append(family.rehearse(device, family.kinds[kind], sizes))
        with using({family.name: c}):
            if clock is not None:
                return clock(prepared[0])
            return tuning.seconds(prepared[0], device.synchronize, lambda: None)

    def measure(c: Config) -> float:
        seconds, error = None, ""
        try:
            seconds = timed(c)
        except Exception as failed:
            error = f"{type(failed).__name__}: {failed}"
            raise
        finally:
            if report is not None:
                report(Measured(family.name, kind, place.sizes, c, seconds, error))
        return seconds

    try:
        best, _ = _choose(family, place, measure, again)
    finally:
        config.matmul_precision.reset(token)
        forget()
    return Chosen(family.name, kind, place.sizes, best, default(family.name, place))


def _named(name: str) -> Family:
    known = tunable()
    if name not in known:
        raise wrong(
            "tune", f"the families are {', '.join(known)}", got=repr(name), error=ValueError
        )
    return known[name]


def _choose(
    family: Family, place: Place, measure: Callable[[Config], float] | None, again: bool = False
) -> tuple[Config, bool]:
    rounded = {n: tuning.size_class(size) for n, size in place.sizes.items()}
    where = Place(place.architecture, place.kind, rounded)
    options = list(dict.fromkeys((default(family.name, where), *family.candidates(where))))
    facts = (
        where.architecture,
        where.kind,
        tuple(rounded.items()),
        _triton_version(),
        tuple(tuning.fingerprint(k) for k in family.kernels),
    )
    return tuning.choose(family.name, facts, options, measure, again=again)


@functools.cache
def _triton_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("triton")


@functools.cache
def _tuned_names() -> frozenset[str]:
    """The families with a file in the cache: nothing else is looked up there, and no source is
    read for a fingerprint."""
    files = disk_cache.folder("tuning").glob("*.json")
    return frozenset(f.name.rpartition("-")[0] for f in files)


def forget() -> None:
    """Read the cache on disk anew (it is read once a process)."""
    _tuned_names.cache_clear()
    _picked.clear()
