"""Options and fixtures shared by all tests: the public plugin, hypothesis' profiles, ``rng``.

``pytest --device cuda`` runs the device tests on the cuda device: a GPU, or Triton's interpreter
where TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from trident import config
from trident.testing import plugin

_CALM = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, max_examples=20, deadline=None, suppress_health_check=_CALM
)
settings.register_profile("full", max_examples=300, deadline=None, suppress_health_check=_CALM)
settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    """The plugin, also where trident lies on the path and is not installed."""
    if not config.pluginmanager.is_registered(plugin):
        config.pluginmanager.register(plugin, "trident")


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.is_registered(plugin):
        plugin.add_option(parser)


@pytest.fixture(autouse=True)
def _poisoned(request: pytest.FixtureRequest):
    """On cuda, fresh memory is NaN in every test of ours, whether it takes ``device`` or not."""
    token = config.poison.set(plugin.chosen_device(request.config) == "cuda")
    yield
    config.poison.reset(token)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, anew for each test."""
    return np.random.default_rng(20240607)
