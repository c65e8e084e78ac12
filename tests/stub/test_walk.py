"""Every op of the registry launches on a GPU as far as a driver can tell: it compiles, loads, fits
the device, and its launches are taken. No value is checked, since nothing runs.
"""

from __future__ import annotations

import numpy as np
import pytest

import trident
from trident import dtypes
from trident.ops.registry import REGISTRY, Elementwise, InPlace
from trident.runtime import libcuda
from trident.testing import Draw
from trident.testing.cases import differentiable, float_dtypes, run, sample, tensors

NEEDS_VALUES = {"nonzero_places"}  # goes on with the count that a kernel found
WALKED = [
    op
    for op in REGISTRY.values()
    if (op.samples is not None or op.kind == "elementwise") and op.name not in NEEDS_VALUES
]


@pytest.fixture(autouse=True)
def zeroed(gpu, monkeypatch):
    """What a kernel would have written is zero, and not what lay there before: some ops read back
    what a kernel found out (whether an index is out of range)."""
    allocate = type(gpu).allocate

    def cleared(nbytes):
        buffer = allocate(gpu, nbytes)
        libcuda.cu.cuMemsetD8Async(buffer.ptr, 0, nbytes, gpu.own_stream)
        return buffer

    monkeypatch.setattr(gpu, "allocate", cleared)


def call(op, seed: int) -> int:
    """Run ``op`` forward and backward on drawn operands; how many outputs it has."""
    d = dtypes.int32 if op.kind == "elementwise" and op.takes == "int" else dtypes.float32
    if d not in float_dtypes(op) and op.kind != "elementwise":
        pytest.skip("takes no float32")
    args, attrs = sample(op, Draw(seed, d, strided=seed % 2 == 1), d)
    if isinstance(op, InPlace):
        lists = [
            [tensors((np.asarray(a),), "cuda")[0] for a in x] if isinstance(x, list) else x
            for x in args
        ]
        getattr(trident.ops, op.name)(*lists, **attrs)
        return 1
    given = tensors(args, "cuda", requires_grad=differentiable(op))
    outs = run(op, given, attrs)
    for o in outs:
        if o.requires_grad and o.numel():
            o.backward(trident.empty(tuple(o.shape), dtype=o.dtype, device="cuda"), True)
    return len(outs)


@pytest.mark.parametrize("op", WALKED, ids=lambda op: op.name)
def test_every_op_launches(stub, gpu, op):
    before = stub.n_launches
    assert call(op, 0) > 0
    first = stub.launches(before)
    assert all(x.stream == gpu.own_stream and not x.captured for x in first)
    if isinstance(op, Elementwise):
        assert first


def test_every_op_was_walked():
    assert len(WALKED) > 0.9 * len(REGISTRY)


def test_training_steps(stub, gpu):
    """A small net with a convolution, a norm and an optimizer; the later steps load nothing."""
    trident.manual_seed(0)
    net = trident.nn.Sequential(
        trident.nn.Conv2d(1, 4, 3), trident.nn.BatchNorm2d(4), trident.nn.ReLU(),
        trident.nn.MaxPool2d(2), trident.nn.Flatten(), trident.nn.Linear(4 * 9, 10),
    ).to("cuda")  # fmt: skip
    optimizer = trident.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = trident.tensor(np.ones((16, 1, 8, 8), np.float32), device="cuda")
    y = trident.tensor(np.zeros(16, np.int64), device="cuda")
    counts = []
    for _ in range(5):
        launches, loads = stub.n_launches, stub.count("cuModuleLoadData")
        used = stub.used()
        optimizer.zero_grad()
        loss = trident.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        counts.append(
            (
                stub.n_launches - launches,
                stub.count("cuModuleLoadData") - loads,
                stub.used() - used,
            )
        )
    assert counts[0][1] > 5
    assert counts[-1][0] > 10
    assert counts[-1][1:] == (0, 0)
    assert counts[-1] == counts[-2]
