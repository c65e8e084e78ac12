"""Every op of the registry against its promises, on the device under test.

Generated: a new entry is tested without an edit here. Values and dtypes are compared with the
float64 oracle, gradients with finite differences (CPU) or with the CPU's tape (cuda), on inputs
with every kind of strides. A failure prints the ``check_op`` line that repeats it.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trident
from trident.ops.registry import REGISTRY
from trident.testing import Draw, check_op
from trident.testing.check import once, steps
from trident.testing.draw import HypothesisDraw

# other test files register ops of their own
OPS = [op for op in REGISTRY.values() if op.function.__module__.startswith("trident.")]
EXAMPLES = {"cpu": 20, "cuda": 5}


def cases(device):
    return [(op, name, step) for op in OPS for name, step in steps(op, device)]


def pytest_generate_tests(metafunc):
    if "op_step" in metafunc.fixturenames:
        device = metafunc.config.getoption("--device")
        found = cases(device)
        metafunc.parametrize("op_step", [_case(*case) for case in found])


def _case(op, name, step):
    return pytest.param((op, name, step), id=f"{op.name}-{name.replace(' ', '-')}")


def test_op(op_step, device):
    op, name, step = op_step
    more = settings().max_examples // 20 or 1  # the `full` profile multiplies

    @settings(
        max_examples=1 if once(op, name) else EXAMPLES[device] * more,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.data())
    def run(data):
        step(HypothesisDraw(data))

    run()


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_can_be_tested(op):
    assert op.kind == "elementwise" or op.samples is not None, f"{op.name} has no samples"
    assert op.doc, f"{op.name} has no docstring"


def test_broadcast_error_names_op_and_shapes(device):
    x = trident.ones(2, 3, device=device)
    y = trident.ones(4, 3, device=device)
    with pytest.raises(ValueError, match=r"add: shapes \(2, 3\) and \(4, 3\) do not broadcast"):
        x + y


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_check_op_notices_a_wrong_op(wrong):
    """The checker itself: an op whose numpy body or gradient is off by a little is caught."""
    import numpy as np

    from trident.ops.registry import Elementwise

    class broken:
        """sin, nearly."""

        def numpy(x):
            return np.sin(x) + (1e-3 if wrong == "value" and x.dtype == np.float32 else 0)

        triton = None

        def vjp(g, x):
            return g * trident.cos(x) * (1.001 if wrong == "gradient" else 1.0)

    op = Elementwise(broken)
    from trident.ops import registry

    function = registry._public(op)
    try:
        with pytest.raises((AssertionError, trident.autograd.GradcheckError)):
            check_op(function, devices=["cpu"], examples=8)
    finally:
        del registry.REGISTRY["broken"], registry.FUNCTIONS["broken"]


def test_draw_makes_every_layout():
    kinds = set()
    for seed in range(60):
        a = Draw(seed).tensor((3, 4))
        kinds.add((a.flags.c_contiguous, a.flags.f_contiguous, a.strides[0] == 0))
    assert len(kinds) >= 4
