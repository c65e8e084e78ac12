"""The pytest plugin: ``--device``, and the fixtures ``device`` and ``op``.

pytest loads it by its entry point where trident is installed, in every project, so it imports
neither trident's ops nor hypothesis until a fixture of it is used.

- ``pytest --device cuda``: where tests that take ``device`` run. Where the cuda device cannot run
  here they are skipped, with the reason. Another plugin's ``--device`` is used as it is.
- ``device``: "cpu" or "cuda". Fresh memory on cuda is NaN while a test runs that takes it.
- ``op``: the public function of an op. The test runs for each op that the mark
  ``@pytest.mark.ops(f, "relu")`` names, or for all of the registry without the mark.
  ``check_op(op, devices=[device])`` is a whole test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> None:
    """Add ``--device`` after all other plugins and the first conftest.py files: pytest stops where
    an option is added twice, and theirs must not fail because of ours."""
    add_option(parser)


def add_option(parser: pytest.Parser) -> None:
    """``--device``, unless there is one: that one is read instead."""
    with contextlib.suppress(ValueError):
        parser.getgroup("trident").addoption(
            "--device",
            choices=("cpu", "cuda"),
            default="cpu",
            help="where tests with trident's `device` fixture run",
        )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "ops(*ops): the ops (functions or names) that trident's `op` fixture stands for"
    )


def chosen_device(config: pytest.Config) -> str:
    """'cpu' or 'cuda', as ``--device`` says; 'cpu' where another plugin's option says neither."""
    value = str(config.getoption("--device", default="cpu") or "cpu").partition(":")[0]
    return value if value in ("cpu", "cuda") else "cpu"


def missing_device() -> str | None:
    """Why the cuda device cannot run here, or None where it can."""
    from .. import runtime

    if runtime.is_available():
        return None
    return "no cuda device here: set TRITON_INTERPRET=1 to run kernels in Triton's interpreter"


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """'cpu' or 'cuda', as asked for with ``--device``."""
    name = chosen_device(request.config)
    reason = missing_device() if name == "cuda" else None
    if reason is not None:
        pytest.skip(reason)
    return name


@pytest.fixture(autouse=True)
def _trident_poison(request: pytest.FixtureRequest) -> Iterator[None]:
    """On cuda, fresh memory is NaN: a kernel that skips a store is seen."""
    if "device" not in request.fixturenames or chosen_device(request.config) != "cuda":
        yield
        return
    from .. import config

    token = config.poison.set(True)
    yield
    config.poison.reset(token)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "op" not in metafunc.fixturenames or not _ours(metafunc):
        return
    mark = metafunc.definition.get_closest_marker("ops")
    found = functions(mark.args if mark is not None else ())
    metafunc.parametrize("op", found, ids=[f.op.name for f in found])  # type: ignore[attr-defined]


@pytest.fixture
def op(request: pytest.FixtureRequest) -> Callable:
    """The public function of an op: of each that ``@pytest.mark.ops`` names, or of every op."""
    raise pytest.UsageError("the fixture `op` of trident is filled in for test functions only")


def _ours(metafunc: pytest.Metafunc) -> bool:
    """Whether ``op`` is this plugin's fixture and not the project's own, and not parametrised."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else ""
        names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
        if "op" in names:
            return False
    defined: Any = metafunc._arg2fixturedefs.get("op", ())
    return bool(defined) and defined[-1].func.__module__ == __name__


def functions(ops: tuple) -> list[Any]:
    """Ops given as functions, records or names, as functions; all of the registry if none is."""
    from .cases import function_of, record_of

    if not ops:
        from ..ops.registry import REGISTRY

        ops = tuple(REGISTRY)
    return [function_of(record_of(o)) for o in ops]
