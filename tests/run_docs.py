"""The examples in docstrings and documents, run (``python -m pytest tests/run_docs.py``).

Not named test_*: ``python -m tests`` runs it as a step of its own, on the CPU.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import trident

ROOT = Path(__file__).resolve().parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def modules():
    for info in pkgutil.walk_packages(trident.__path__, "trident."):
        if ".kernels" not in info.name:
            yield info.name


def doctests(module):
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {"trident": trident, "np": np}
    found = {}
    for test in finder.find(module, module.__name__, globs=dict(names)):
        found[test.name] = test
    for name, function in vars(module).items():  # op functions: their docstring is the entry's
        if not inspect.ismodule(function) and getattr(function, "op", None) is not None:
            if function.__module__ != module.__name__:
                continue
            parser = doctest.DocTestParser()
            full = f"{module.__name__}.{name}"
            found[full] = parser.get_doctest(
                inspect.cleandoc(function.__doc__ or ""), dict(names), full, None, 0
            )
    return [t for t in found.values() if t.examples]


@pytest.mark.parametrize("name", list(modules()))
def test_docstrings(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failures = []
    for test in doctests(module):
        trident.manual_seed(0)
        lines: list[str] = []
        runner.run(test, out=lines.append)
        if getattr(runner, "failures", False) or lines:
            failures.append("".join(lines))
    assert not failures, "\n".join(failures)


def public_functions():
    from trident.ops.registry import FUNCTIONS

    return sorted(FUNCTIONS.items())


@pytest.mark.parametrize(
    "name, function", public_functions(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_public_functions_have_a_docstring(name, function):
    assert (function.__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_python_blocks_of_documents(path, tmp_path):
    """Every ```python block of a document runs, in order, in one process and one namespace."""
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M)
    if not blocks:
        pytest.skip(f"{path.name} has no python blocks")
    script = tmp_path / f"{path.stem.replace('-', '_')}_blocks.py"
    script.write_text("\n\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
