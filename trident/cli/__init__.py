"""The command ``trident`` (also ``python -m trident``): doctor, bench, kernels, tune.

One module a command, each with ``add(parser)``, which declares its options, and ``run(options)``,
which returns the exit code: 0; 1 where something asked for is broken; 2 where it cannot be done
here.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "doctor": "what works here, what is missing, and how to get it",
    "bench": "copy and matmul rates of this device, and how near to them operations come",
    "kernels": "what kernels compile to: registers, shared memory, tensor cores (needs no GPU)",
    "tune": "measure the configurations of kernels on this GPU and keep the best",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (``sys.argv`` unless given) and return the exit code.

    >>> from trident import cli
    >>> cli.main(["tune", "--list"])  # doctest: +ELLIPSIS
    attention...
    0
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="trident", description="Tools of trident.")
    from .. import __version__

    parser.add_argument("--version", action="version", version=f"trident {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=f"trident {name}: {text}.")
        if name in given:  # a command's module loads when it is wanted
            importlib.import_module(f".{name}", __name__).add(sub)
    options = parser.parse_args(given)
    return importlib.import_module(f".{options.command}", __name__).run(options)
