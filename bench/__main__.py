"""``python -m bench [speed | kernels | mutation] ...``; see each module's docstring."""

from __future__ import annotations

import sys


def main() -> int:
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "speed"
    if name == "speed":
        from .speed import main as run
    elif name == "kernels":
        from .kernels import main as run
    elif name == "mutation":
        from .mutation import main as run
    else:
        print(f"bench: unknown benchmark {name!r}; known are speed, kernels, mutation")
        return 2
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
