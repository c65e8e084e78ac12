"""Programs of 2018 run as written; each old spelling warns and names today's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import trident
from trident.autograd import Variable

TYPES = {
    "FloatTensor": "float32", "DoubleTensor": "float64", "HalfTensor": "float16",
    "BFloat16Tensor": "bfloat16", "ByteTensor": "uint8", "CharTensor": "int8",
    "ShortTensor": "int16", "IntTensor": "int32", "LongTensor": "int64", "BoolTensor": "bool",
}  # fmt: skip


def old(match):
    return pytest.warns(DeprecationWarning, match=match)


def types_of(device):
    return trident if device == "cpu" else trident.cuda


@pytest.mark.parametrize("name", TYPES)
def test_tensor_types(name, device):
    dtype = getattr(trident, TYPES[name])
    kind = getattr(types_of(device), name)
    prefix = "trident.cuda." if device == "cuda" else "trident."
    with old(rf"{name} is the spelling of 2018; use trident.tensor\(data, dtype={dtype!r}"):
        x = kind([[1, 0], [1, 1]])
    assert x.tolist() == [[1, 0], [1, 1]] and x.dtype is dtype and x.device.type == device
    with old(name):
        y = kind(2, 3)
    assert y.shape == (2, 3) and y.dtype is dtype
    with old(name):
        assert kind().shape == (0,)
    assert x.type() == f"{prefix}{name}" == repr(kind)
    assert isinstance(x, kind)
    other = trident.DoubleTensor if name != "DoubleTensor" else trident.FloatTensor
    assert not isinstance(x, other) and not isinstance(3, kind)


def test_type_conversion(device):
    x = trident.tensor([1.75, 0.0], device=device)
    assert x.type(trident.int64).tolist() == [1, 0]  # a dtype: today's spelling, silent
    assert x.type("float64").dtype is trident.float64
    types = types_of(device)
    with old(r"type\(trident.*LongTensor\) is the spelling of 2018; use x.to\(trident.int64\)"):
        assert x.type(types.LongTensor).tolist() == [1, 0]
    prefix = "torch.cuda." if device == "cuda" else "torch."
    with old("type"):
        y = x.type(f"{prefix}DoubleTensor")
    assert y.dtype is trident.float64 and y.device.type == device
    if device == "cuda":
        with old("type"):
            assert trident.ones(2).type(trident.cuda.FloatTensor).is_cuda
        with old("type"):
            assert not x.type(trident.FloatTensor).is_cuda


def test_warnings_point_at_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = trident.FloatTensor([1.0])
        x.type(trident.LongTensor)
        Variable(x)
        x.sum()[0]
    assert len(caught) == 4
    assert {w.filename for w in caught} == {__file__}


def test_variable(device):
    t = trident.tensor([1.0, 2.0], device=device)
    with old("Variable is the spelling of 2018; use the tensor itself, with requires_grad=True"):
        x = Variable(t, requires_grad=True)
    assert x.requires_grad and x.is_leaf and not t.requires_grad
    x.data.add_(1)
    assert t.tolist() == [2, 3]  # the same memory
    (x * x).sum().backward()
    assert x.grad.data.tolist() == [4, 6]
    with old("Variable"):
        assert not Variable(x).requires_grad
    with old("Variable"), pytest.raises(TypeError, match=r"volatile is gone; .*no_grad"):
        Variable(t, volatile=True)
    with old("Variable"), pytest.raises(TypeError, match="Variable: expected a Tensor; got list"):
        Variable([1.0])


def test_indexing_a_loss(device):
    loss = (trident.tensor([1.0, 2.0], device=device, requires_grad=True) * 3).sum()
    with old(r"indexing a 0-d tensor with \[0\] is the spelling of 2018; use x.item\(\)"):
        value = loss.data[0]
    assert float(value) == 9.0 and f"{value:.1f}" == "9.0"
    with pytest.raises(IndexError):
        loss.data[1]


def test_size_average(device, rng):
    a, b = (rng.standard_normal((3, 2)).astype(np.float32) for _ in range(2))
    x, y = trident.tensor(a, device=device), trident.tensor(b, device=device)
    with old("reduction='sum'"):
        criterion = trident.nn.MSELoss(size_average=False)
    np.testing.assert_allclose(criterion(x, y).item(), ((a - b) ** 2).sum(), rtol=1e-5)
    with old("reduction='mean'"):
        criterion = trident.nn.MSELoss(size_average=True)
    np.testing.assert_allclose(criterion(x, y).item(), ((a - b) ** 2).mean(), rtol=1e-5)
    with old("reduction='none'"):
        criterion = trident.nn.L1Loss(reduce=False)
    np.testing.assert_allclose(criterion(x, y).cpu().numpy(), abs(a - b), rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_2018(device):
    """The two-layer net of the old tutorial, by hand and with nn, on the types of the time."""
    dtype = types_of(device).FloatTensor
    trident.manual_seed(0)
    n, d_in, d_hidden, d_out = 16, 20, 10, 4
    x = Variable(trident.randn(n, d_in).type(dtype), requires_grad=False)
    y = Variable(trident.randn(n, d_out).type(dtype), requires_grad=False)
    w1 = Variable((trident.randn(d_in, d_hidden) * 0.1).type(dtype), requires_grad=True)
    w2 = Variable((trident.randn(d_hidden, d_out) * 0.1).type(dtype), requires_grad=True)
    losses = []
    for _ in range(10):
        y_pred = x.mm(w1).clamp(min=0).mm(w2)
        loss = (y_pred - y).pow(2).sum()
        losses.append(loss.data[0])
        loss.backward()
        w1.data -= 5e-3 * w1.grad.data
        w2.data -= 5e-3 * w2.grad.data
        w1.grad.data.zero_()
        w2.grad.data.zero_()
    assert float(losses[-1]) < 0.8 * float(losses[0])

    model = trident.nn.Sequential(
        trident.nn.Linear(d_in, d_hidden), trident.nn.ReLU(), trident.nn.Linear(d_hidden, d_out)
    ).type(dtype)
    criterion = trident.nn.MSELoss(size_average=False)
    optimizer = trident.optim.SGD(model.parameters(), lr=2e-3, momentum=0.9)
    first = None
    for _ in range(8):
        loss = criterion(model(x), y)
        first = loss.data[0] if first is None else first
        model.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.8 * float(first)
