"""Tests of the CUDA layer on the stub driver (``__init__.py`` beside this). A process of their own:
once the stub stands in for libcuda, nothing else can.

``python -m pytest tests/stub``, or ``python -m tests stub``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.stub import Stub, missing, preload
from trident import config

_reason = "TRITON_INTERPRET=1 is set: cuda is the interpreter" if config.INTERPRET else missing()
_stub = preload() if _reason is None else None
if _stub is not None:
    _stub.devices(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if _reason is not None else ():
        item.add_marker(pytest.mark.skip(reason=str(_reason)))


@pytest.fixture(autouse=True)
def _plain():
    """No poison here: kernels do not run, and would leave NaN behind."""
    token = config.poison.set(False)
    yield
    config.poison.reset(token)


@pytest.fixture
def stub() -> Iterator[Stub]:
    """The loaded stub: two GPUs of 4 GiB, capability 9.0."""
    assert _stub is not None
    yield _stub
    gc.collect()


@pytest.fixture
def gpu(stub):
    """``cuda:0``."""
    from trident.runtime.device import cuda_device

    return cuda_device(0)
