"""``python -m bench [NAME] ...``: each name is a module beside this one; see its docstring."""

from __future__ import annotations

import importlib
import sys

NAMES = ("speed", "host", "gpu", "kernels", "memory", "mutation")


def main() -> int:
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else NAMES[0]
    if name not in NAMES:
        print(f"bench: unknown benchmark {name!r}; known are {', '.join(NAMES)}")
        return 2
    return importlib.import_module(f".{name}", __package__).main(arguments)


if __name__ == "__main__":
    sys.exit(main())
