"""``trident tune``: time the configurations of kernels on this GPU and keep the best.

The result goes to the tuning cache on disk, where every later launch finds it
(``kernels/configs.py``); with ``--write`` also into files of shipped defaults.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import trident.kernels.configs as configs  # the module itself, not a stand-in that loads later

from .. import config
from ..runtime import tuning


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("families", nargs="*", help="default: all; see --list")
    parser.add_argument("--list", action="store_true", help="what can be tuned; needs no GPU")
    parser.add_argument("--kind", nargs="+", choices=configs.KINDS, help="default: all")
    parser.add_argument(
        "--size", action="append", type=_sizes, metavar="m=4096,n=4096,k=512",
        help="sizes to tune for (may be repeated; default: the family's own list)",
    )  # fmt: skip
    parser.add_argument("--again", action="store_true", help="measure what is in the cache too")
    parser.add_argument(
        "--write", metavar="FOLDER", type=Path,
        help="also write FOLDER/<family>.json: the shipped defaults with these results before them",
    )  # fmt: skip


def _sizes(text: str) -> dict[str, int]:
    """``m=4096,n=64`` as a dict."""
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): int(value) for name, value in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected name=int,name=int,...; got {text!r}") from None


def run(options: argparse.Namespace) -> int:
    known = configs.tunable()
    unknown = [f for f in options.families if f not in known]
    if unknown:
        print(f"trident tune: no family {unknown[0]!r}; there are {', '.join(known)}")
        return 2
    families = options.families or list(known)
    if options.list:
        _list(known[f] for f in families)
        return 0
    from .. import cuda, runtime

    if config.INTERPRET or not cuda.is_available():
        print(
            "trident tune: no GPU can be used here, and times of anything else say nothing of one; "
            "`trident doctor --device cuda` says why, `trident tune --list` what there is to tune"
        )
        return 2
    device = runtime.current()
    table = configs.table_name(device.architecture)
    if options.write and device.architecture != table:
        print(
            "trident tune: --write: defaults are shipped for sm_80, sm_90 and sm_100, and this "
            f"GPU is {device.architecture}; without --write the cache on disk is used"
        )
        return 2
    return _tune(options, families, device, table)


def _list(families: Iterable[configs.Family]) -> None:
    for family in families:
        place = configs.Place("sm_90", next(iter(family.kinds)), family.problems[0])
        count = len(list(family.candidates(place)))
        print(f"{family.name}: {', '.join(family.sizes)}; {', '.join(family.kinds)}")
        print(f"    about {count} configurations for each of {len(family.problems)} problems:")
        for problem in family.problems:
            print(f"    {_text(problem)}")


def _text(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def _tune(options: argparse.Namespace, families: list[str], device: Any, table: str) -> int:
    from .clock import Clock

    clock = Clock(device, fewest=20, budget=0.1)
    times: dict[tuple, float] = {}
    failed = 0

    def report(m: configs.Measured) -> None:
        nonlocal failed
        if m.seconds is None:
            failed += 1
        else:
            times[m.family, m.kind, _text(m.sizes), m.config] = m.seconds

    for name in families:
        family = configs.tunable()[name]
        kinds = [k for k in options.kind or family.kinds if k in family.kinds]
        try:
            chosen = configs.tune(
                name, device, clock, report, kinds=kinds, problems=options.size, again=options.again
            )
        except ValueError as error:  # sizes of another family
            print(error)
            return 2
        for c in chosen:
            place = (c.family, c.kind, _text(c.sizes))
            best, usual = times.get((*place, c.config)), times.get((*place, c.default))
            if best is None:
                verdict = "in the cache already (--again measures it anew)"
            else:
                gain = f", the default takes {usual / best:.2f} times that" if usual else ""
                verdict = f"{best * 1e6:.1f} us{gain}"
            print(f"{' '.join(place)}: {c.config}: {verdict}", flush=True)
        if options.write:
            options.write.mkdir(parents=True, exist_ok=True)
            path = options.write / f"{name}.json"
            content = with_measured(configs.shipped(name), table, chosen)
            path.write_text(_as_text(content))
            print(f"wrote {path}")
    if failed:
        print(
            f"{failed} configurations do not run on this GPU (too large for it) and were left out"
        )
    return 0


def with_measured(
    shipped: Mapping[str, Any], table: str, chosen: Iterable[configs.Chosen]
) -> dict[str, Any]:
    """A file of defaults with measured rules in front of its own.

    A result holds for the sizes that round up to the same powers of two. It is left out where the
    default is the same, and takes the place of an earlier one for the same sizes.
    """
    content = copy.deepcopy(dict(shipped))
    tables = content["tables"]
    for c in chosen:
        kinds = tables.setdefault(table, {})
        lines = kinds.get(c.kind) or copy.deepcopy(tables["any"][c.kind])
        bounds = _bounds(c.sizes)
        lines = [x for x in lines if not (x.get("measured") and bounds.items() <= x.items())]
        if c.config != c.default:
            options = {"num_warps": c.config.num_warps, "num_stages": c.config.num_stages}
            found = {"config": {**c.config.constants, **options}, "measured": True}
            lines.insert(0, {**bounds, **found})
        kinds[c.kind] = lines
    return content


def _bounds(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Which sizes round up to the same powers of two, as a rule says it."""
    most = {name: tuning.size_class(size) for name, size in sizes.items()}
    least = {name: size // 2 + 1 for name, size in most.items() if size > 1}
    return {"at_least": least, "at_most": most}


def _as_text(content: Mapping[str, Any]) -> str:
    """A file of defaults with one rule a line."""
    tables = []
    for table, kinds in content["tables"].items():
        lists = []
        for kind, rules in kinds.items():
            lines = ",\n".join(f"   {json.dumps(rule)}" for rule in rules)
            lists.append(f'  "{kind}": [\n{lines}\n  ]')
        tables.append(f' "{table}": {{\n' + ",\n".join(lists) + "\n }")
    notes = [f"{json.dumps(k)}: {json.dumps(v)},\n " for k, v in content.items() if k != "tables"]
    return "{" + "".join(notes) + '"tables": {\n' + ",\n".join(tables) + "\n}}\n"
