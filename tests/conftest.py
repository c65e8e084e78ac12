"""Options and fixtures shared by all tests.

``pytest --device cuda`` runs the device tests on the cuda device: a GPU, or Triton's interpreter
where TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from trident import config, runtime

_CALM = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, max_examples=20, deadline=None, suppress_health_check=_CALM
)
settings.register_profile("full", max_examples=300, deadline=None, suppress_health_check=_CALM)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the device tests run"
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """'cpu' or 'cuda', as asked for with ``--device``."""
    name = request.config.getoption("--device")
    if name == "cuda" and not runtime.is_available():
        pytest.skip("no cuda device here: set TRITON_INTERPRET=1 to run kernels interpreted")
    return name


@pytest.fixture(autouse=True)
def _poisoned(request: pytest.FixtureRequest):
    """On cuda, fresh memory is NaN: a kernel that skips a store is seen."""
    token = config.poison.set(request.config.getoption("--device") == "cuda")
    yield
    config.poison.reset(token)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, anew for each test."""
    return np.random.default_rng(20240607)
