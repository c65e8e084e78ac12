"""Bad indices where nobody waits for the device: told at the next thing that waits, and harmless
until then. In Triton's interpreter, with launchers that work as on a GPU."""

from __future__ import annotations

import os

import numpy as np
import pytest

import trident
from trident import runtime
from trident.errors import IndexBoundsError
from trident.testing.cases import gpu_tiles

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter"
)
F = trident.nn.functional


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    with gpu_tiles():
        yield


def on(data, **named):
    return trident.tensor(data, device="cuda", **named)


X = np.arange(12.0, dtype=np.float32).reshape(4, 3)
CALLS = {
    "gather": lambda bad: trident.gather(on(X), 0, on([[0, bad, 1]])),
    "index_select": lambda bad: trident.index_select(on(X), 0, on([1, bad])),
    "getitem": lambda bad: on(X)[on([bad, 0])],
    "embedding": lambda bad: F.embedding(on([0, bad]), on(X)),
    "index_add": lambda bad: trident.index_add(on(X), 0, on([bad, 1]), on(X[:2])),
    "scatter": lambda bad: trident.scatter(on(X), 0, on([[bad, 0, 1]]), on(X[:1])),
    "cross_entropy": lambda bad: F.cross_entropy(on(X), on([0, 1, bad, 2])),
}
SIZE = {name: 3 if name == "cross_entropy" else 4 for name in CALLS}


@pytest.mark.parametrize("beyond", [0, 10**6, -(10**6)])
@pytest.mark.parametrize("name", CALLS)
def test_a_bad_index_is_an_error_at_the_next_wait(name, beyond):
    bad = SIZE[name] + beyond if beyond >= 0 else beyond
    out = CALLS[name](bad)  # nothing waits here, and no lane leaves its array
    with pytest.raises(IndexBoundsError, match=rf"{bad}\b"):
        out.tolist()
    assert np.shape(out.tolist()) == tuple(out.shape)  # it was told once
    CALLS[name](1).tolist()  # and what is right goes on


@pytest.mark.parametrize("name", CALLS)
def test_good_indices_say_nothing(name):
    out = CALLS[name](2)
    runtime.current().synchronize()
    assert np.isfinite(np.array(out.tolist())).all()


def test_synchronize_raises_too():
    CALLS["gather"](9)
    with pytest.raises(IndexBoundsError, match=r"gather: index 9 is out of range for axis 0"):
        runtime.current().synchronize()
    runtime.current().synchronize()


def test_each_check_names_its_own_bound():
    CALLS["gather"](7)
    with pytest.raises(IndexBoundsError, match="axis 0 of size 4"):
        runtime.current().synchronize()
    trident.gather(on(X), 1, on([[-4]]))
    with pytest.raises(IndexBoundsError, match="index -4 is out of range for axis 1 of size 3"):
        runtime.current().synchronize()
    F.cross_entropy(on(X), on([0, 1, -7, 2]), ignore_index=-100)
    with pytest.raises(IndexBoundsError, match=r"\[0, 3\) or be ignore_index=-100; got -7"):
        runtime.current().synchronize()
    F.cross_entropy(on(X), on([0, 1, -100, 2]), ignore_index=-100).item()


def test_the_first_bad_index_of_a_long_array_is_named():
    index = np.zeros(5000, np.int64)
    index[[3210, 4321]] = 77, 88
    out = trident.index_select(on(X), 0, on(index))
    with pytest.raises(IndexBoundsError, match=r"index (77|88) "):
        out.tolist()
