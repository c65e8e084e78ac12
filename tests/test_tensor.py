"""Tensor as an object: making, dtypes and promotion, attributes, conversion, Python's protocols."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

import trident
from trident.errors import AutogradError, DeviceError, DTypeError, ShapeError

FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTS = ["uint8", "int8", "int16", "int32", "int64"]
ALL = ["bool", *INTS, *FLOATS]


def named(name):
    return getattr(trident, name)


def equal(x, expected, dtype=None):
    """The values of ``x`` are exactly ``expected``."""
    got = x.detach().cpu().numpy()
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)
    if dtype is not None:
        assert x.dtype is dtype


# ---- making -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (3, "int64"),
        (2.5, "float32"),
        (True, "bool"),
        ([1, 2, 3], "int64"),
        ([1, 2.5], "float32"),
        ([[True, False]], "bool"),
        ((1.5, 2), "float32"),
        ([], "float32"),
        ([[1, 2], [3, 4]], "int64"),
    ],
)
def test_tensor_infers_the_dtype_of_python_data(data, dtype, device):
    x = trident.tensor(data, device=device)
    equal(x, np.array(data, named(dtype).np), named(dtype))
    assert x.device.type == device and not x.requires_grad


@pytest.mark.parametrize("name", ALL)
def test_tensor_keeps_the_dtype_of_arrays_and_copies(name, device, rng):
    a = rng.integers(0, 2, (2, 3)).astype(named(name).np)
    before = a.copy()
    x = trident.tensor(a, device=device)
    equal(x, before, named(name))
    a[...] = 0
    equal(x, before)


def test_tensor_from_mixtures(device):
    one = trident.tensor([1.0, 2.0], device=device)
    x = trident.tensor([one, [3.0, trident.tensor(4.0)]], device=device)
    equal(x, [[1, 2], [3, 4]], trident.float32)
    assert trident.tensor([np.float64(1.5), np.float64(2)]).dtype is trident.float64
    assert trident.tensor(np.float32(1.5)).dtype is trident.float32
    assert trident.tensor([1, 2], dtype=trident.float16).dtype is trident.float16
    assert trident.tensor([1.7, -1.7], dtype=trident.int32).tolist() == [1, -1]


def test_tensor_from_tensor_is_a_detached_copy(device):
    x = trident.tensor([1.0, 2.0], device=device, requires_grad=True)
    y = trident.tensor(x)
    assert not y.requires_grad and y.device.type == device
    y[0] = 9.0
    equal(x, [1.0, 2.0])


def test_tensor_refuses_what_is_no_number():
    with pytest.raises(ShapeError, match="tensor: nested lists must have equal lengths"):
        trident.tensor([[1, 2], [3]])
    with pytest.raises(DTypeError, match=r"tensor: expected numbers.*; got str"):
        trident.tensor("abc")
    with pytest.raises(DTypeError, match="numpy dtype complex64 has no trident counterpart"):
        trident.tensor(np.zeros(2, np.complex64))
    with pytest.raises(DTypeError, match="only floating tensors can have gradients"):
        trident.tensor([1, 2], requires_grad=True)


def test_filled(device):
    equal(trident.zeros(2, 3, device=device), np.zeros((2, 3)), trident.float32)
    equal(trident.zeros((2, 3), device=device), np.zeros((2, 3)))
    equal(trident.zeros(trident.Size([2]), device=device), np.zeros(2))
    equal(trident.zeros((), device=device), 0.0)
    equal(trident.ones([2], dtype=trident.int16, device=device), [1, 1], trident.int16)
    equal(trident.full((2, 2), 7, device=device), [[7, 7], [7, 7]], trident.int64)
    equal(trident.full((2,), 0.5, device=device), [0.5, 0.5], trident.float32)
    equal(trident.full((2,), True, device=device), [True, True], trident.bool)
    equal(trident.full((1,), trident.tensor(3), device=device), [3])
    equal(trident.eye(2, 3, device=device), np.eye(2, 3), trident.float32)
    assert trident.empty(2, 0, 3, device=device).shape == (2, 0, 3)
    assert trident.zeros(3, requires_grad=True).requires_grad
    assert math.copysign(1.0, trident.full((1,), -0.0, device=device).item()) == -1.0


def test_filled_like(device):
    x = trident.ones(2, 3, dtype=trident.float64, device=device)
    for made, value in (
        (trident.zeros_like(x), 0),
        (trident.ones_like(x), 1),
        (trident.full_like(x, 2.5), 2.5),
        (x.new_zeros(2, 3), 0),
        (x.new_ones((2, 3)), 1),
        (x.new_full((2, 3), 4), 4),
    ):
        equal(made, np.full((2, 3), value), trident.float64)
        assert made.device.type == device
    equal(x.new_tensor([1, 2]), [1.0, 2.0], trident.float64)
    equal(trident.zeros_like(x, dtype=trident.int32), np.zeros((2, 3)), trident.int32)
    assert trident.empty_like(x).shape == (2, 3)
    assert x.new_empty(4).dtype is trident.float64


def test_sequences(device):
    equal(trident.arange(5, device=device), np.arange(5), trident.int64)
    equal(trident.arange(2, 11, 3, device=device), [2, 5, 8])
    equal(trident.arange(3, -3, -2, device=device), [3, 1, -1])
    equal(trident.arange(0.0, 1.0, 0.25, device=device), [0, 0.25, 0.5, 0.75], trident.float32)
    assert trident.arange(3.0).dtype is trident.float32
    equal(trident.linspace(-1, 1, 5, device=device), [-1, -0.5, 0, 0.5, 1], trident.float32)
    np.testing.assert_allclose(trident.logspace(0, 3, 4).numpy(), [1, 10, 100, 1000], rtol=1e-6)
    with pytest.raises(ShapeError, match="arange: step must not be zero; got 0"):
        trident.arange(0, 3, 0)


@pytest.mark.parametrize("make", [trident.zeros, trident.ones, trident.empty, trident.rand])
def test_negative_sizes_are_refused(make):
    with pytest.raises(ShapeError, match="sizes must not be negative"):
        make(2, -1)


def test_random_is_reproducible_and_equal_on_all_devices(device):
    def draws(where):
        trident.manual_seed(3)
        return [
            trident.rand(7, device=where).cpu().numpy(),
            trident.randint(-5, 9, (3, 4), device=where).cpu().numpy(),
        ]

    for a, b in zip(draws("cpu"), draws(device)):
        np.testing.assert_array_equal(a, b)
    trident.manual_seed(3)
    np.testing.assert_array_equal(trident.rand(7).numpy(), draws("cpu")[0])
    assert not np.array_equal(trident.rand(7).numpy(), draws("cpu")[0])


def test_random_values(device):
    trident.manual_seed(0)
    u = trident.rand(4000, device=device).cpu().numpy()
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.03
    n = trident.randn(4000, device=device).cpu().numpy()
    assert abs(n.mean()) < 0.06 and abs(n.std() - 1) < 0.05
    k = trident.randint(2, 5, (4000,), device=device).cpu().numpy()
    assert set(k.tolist()) == {2, 3, 4}
    x = trident.empty(4000, device=device).uniform_(-2, -1).cpu().numpy()
    assert x.min() >= -2 and x.max() < -1
    x = trident.empty(4000, device=device).normal_(3, 0.5).cpu().numpy()
    assert abs(x.mean() - 3) < 0.05 and abs(x.std() - 0.5) < 0.05
    assert trident.randn_like(trident.zeros(2, dtype=trident.float64)).dtype is trident.float64
    with pytest.raises(ShapeError, match="randint: high must be above low"):
        trident.randint(3, 3, (2,))
    with pytest.raises(TypeError, match="randint: missing size"):
        trident.randint(3)


def test_randperm(device):
    p = trident.randperm(20, device=device)
    assert p.dtype is trident.int64 and sorted(p.tolist()) == list(range(20))


def test_meshgrid(device):
    a, b = trident.arange(2, device=device), trident.arange(3, device=device)
    for indexing in ("ij", "xy"):
        got = trident.meshgrid(a, b, indexing=indexing)
        for g, w in zip(got, np.meshgrid(np.arange(2), np.arange(3), indexing=indexing)):
            equal(g, w)


# ---- numpy and other libraries ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bool", *INTS, "float16", "float32", "float64"])
def test_from_numpy_and_back_share_memory(name, rng):
    a = rng.integers(0, 2, (3, 4)).astype(named(name).np)[:, ::2]
    x = trident.from_numpy(a)
    assert x.stride() == (4, 2) and x.numpy() is a
    x[1, 1] = 1
    a[0, 0] = 1
    assert a[1, 1] == 1 and x[0, 0].item() == 1


def test_numpy_protocols(rng):
    a = rng.standard_normal((2, 3)).astype(np.float32)
    x = trident.from_numpy(a)
    assert np.shares_memory(np.asarray(x), a)
    assert not np.shares_memory(np.array(x), a)
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.array(x, dtype=np.float64, copy=False)
    np.testing.assert_array_equal(np.sin(x), np.sin(a))
    for y in (a + x, x + a, np.float32(2) * x, x * np.float64(2)):
        assert isinstance(y, trident.Tensor) and y.dtype is trident.float32
    equal(a - x * 2, a - a * 2)
    np.testing.assert_array_equal(trident.tensor([x, x]).numpy(), [a, a])


def test_numpy_refusals(device):
    x = trident.ones(2, requires_grad=True)
    with pytest.raises(AutogradError, match=r"numpy: the tensor requires grad; use x.detach\(\)"):
        x.numpy()
    assert x.numpy(force=True).tolist() == [1, 1]
    if device == "cuda":
        y = trident.ones(2, device=device)
        with pytest.raises(TypeError, match=r"numpy: .* on cuda; .* x.cpu\(\).numpy\(\)"):
            y.numpy()
        with pytest.raises(TypeError, match="cuda"):
            np.asarray(y)
        assert y.numpy(force=True).tolist() == [1, 1]
    with pytest.raises(TypeError, match="from_numpy: expected an ndarray; got list"):
        trident.from_numpy([1.0])


def test_as_tensor_shares_where_it_can(device):
    a = np.array([1.0, 2.0], np.float32)
    x = trident.as_tensor(a)
    a[0] = 5
    assert x[0].item() == 5
    assert trident.as_tensor(x) is x
    assert trident.as_tensor([1, 2], dtype=trident.float64).dtype is trident.float64
    assert trident.as_tensor(a, device=device).device.type == device


# ---- dtypes and promotion -----------------------------------------------------------------------

# torch's table, row by row in the order of ALL: b = bool, u = uint8, 1 2 4 8 = int8..int64,
# h = float16, B = bfloat16, f = float32, d = float64
PROMOTION = """
b u 1 2 4 8 h B f d
u u 2 2 4 8 h B f d
1 2 1 2 4 8 h B f d
2 2 2 2 4 8 h B f d
4 4 4 4 4 8 h B f d
8 8 8 8 8 8 h B f d
h h h h h h h f f d
B B B B B B f B f d
f f f f f f f f f d
d d d d d d d d d d
"""
CODES = dict(zip("bu1248hBfd", ALL))


def test_promotion_table(device):
    rows = [line.split() for line in PROMOTION.strip().splitlines()]
    for a, row in zip(ALL, rows):
        for b, code in zip(ALL, row):
            want = named(CODES[code])
            assert trident.promote_types(named(a), named(b)) is want
            if device == "cpu" or {a, b} < {"bool", "int32", "float16", "bfloat16", "float32"}:
                x = trident.ones(2, dtype=named(a), device=device)
                y = trident.ones(2, dtype=named(b), device=device)
                result = x * y
                assert result.dtype is want, (a, b)
                equal(result, np.ones(2))


@pytest.mark.parametrize(
    ("tensor", "other", "want"),
    [
        ("int32", 2, "int32"),
        ("int32", 2.0, "float32"),
        ("int32", True, "int32"),
        ("bool", 2, "int64"),
        ("bool", 2.0, "float32"),
        ("float16", 2.0, "float16"),
        ("bfloat16", 2, "bfloat16"),
        ("float64", 2.0, "float64"),
        ("float16", ("float64",), "float16"),  # a 0-d tensor is weaker than one with axes
        ("int32", ("int64",), "int32"),
        ("int32", ("float16",), "float16"),
        ("int64", ("float64",), "float64"),
        ("bool", ("uint8",), "uint8"),
    ],
)
def test_weak_operands(tensor, other, want, device):
    x = trident.ones(3, dtype=named(tensor), device=device)
    if isinstance(other, tuple):
        other = trident.tensor(1, dtype=named(other[0]), device=device)
    assert (x + other).dtype is named(want)
    assert (other + x).dtype is named(want)


def test_division_and_comparison_dtypes(device):
    i = trident.tensor([7, -7], dtype=trident.int32, device=device)
    equal(i / 2, [3.5, -3.5], trident.float32)
    equal(i // 2, [3, -4], trident.int32)
    equal(i % 3, [1, 2], trident.int32)
    equal(i > 0, [True, False], trident.bool)
    assert (i.to(trident.bool) / 2).dtype is trident.float32
    assert i.sum().dtype is trident.int64 and i.sqrt().dtype is trident.float32
    equal(2 ** trident.tensor([1, 3], device=device), [2, 8], trident.int64)
    equal(1 - trident.tensor([0.25], device=device), [0.75])
    equal(1 / trident.tensor([4], device=device), [0.25], trident.float32)


def test_default_dtype():
    try:
        trident.set_default_dtype(trident.float64)
        assert trident.tensor(1.0).dtype is trident.float64
        assert trident.zeros(1).dtype is trident.float64
        assert (trident.tensor([1]) / 2).dtype is trident.float64
    finally:
        trident.set_default_dtype(trident.float32)
    with pytest.raises(DTypeError, match="set_default_dtype: d must be a floating dtype"):
        trident.set_default_dtype(trident.int32)


def test_dtype_objects():
    assert repr(trident.float32) == "trident.float32"
    assert trident.float is trident.float32 and trident.long is trident.int64
    assert trident.half is trident.float16 and trident.double is trident.float64
    assert pickle.loads(pickle.dumps(trident.bfloat16)) is trident.bfloat16
    assert copy.deepcopy(trident.int8) is trident.int8
    assert trident.finfo(trident.float32).eps == 2**-23
    assert trident.finfo(trident.bfloat16).bits == 16
    assert trident.iinfo(trident.int8).max == 127
    assert trident.float16.is_floating_point and not trident.uint8.is_signed


# ---- attributes ---------------------------------------------------------------------------------


def test_attributes(device):
    x = trident.zeros(2, 3, 4, dtype=trident.float16, device=device)
    assert x.shape == (2, 3, 4) and repr(x.shape) == "trident.Size([2, 3, 4])"
    assert x.shape.numel() == 24 and isinstance(x.shape, tuple)
    assert x.size() == (2, 3, 4) and x.size(-1) == 4 and x.size(0) == 2
    assert x.ndim == x.dim() == x.ndimension() == 3
    assert x.numel() == x.nelement() == 24
    assert x.itemsize == x.element_size() == 2 and x.nbytes == 48
    assert x.stride() == (12, 4, 1) and x.stride(1) == 4
    assert x.is_contiguous() and not x.transpose(0, 1).is_contiguous()
    assert x.is_floating_point() and not x.is_sparse
    assert x.is_leaf and x.grad_fn is None and x.grad is None
    assert x.is_cuda == (device == "cuda") and x.get_device() == (0 if x.is_cuda else -1)
    assert x[1].data_ptr() - x.data_ptr() == 24
    assert x.T.shape == (4, 3, 2) and x.mT.shape == (2, 4, 3)
    with pytest.raises(IndexError, match=r"size: dim must lie in \[-3, 2\] for 3 axes; got 3"):
        x.size(3)
    with pytest.raises(ShapeError, match="mT: x must have at least 2 axes"):
        trident.zeros(3).mT  # noqa: B018
    with pytest.raises(AttributeError, match="no_such_name"):
        x.no_such_name  # noqa: B018


def test_missing_names_suggest_the_nearest():
    with pytest.raises(AttributeError, match="the nearest name it has is 'softmax'"):
        trident.sofmax  # noqa: B018


def test_device_objects(device):
    cpu = trident.device("cpu")
    assert cpu == "cpu" and str(cpu) == "cpu" and repr(cpu) == "device(type='cpu')"
    assert trident.device("cuda:0") == trident.device("cuda") == trident.device("cuda", 0)
    assert hash(trident.device("cuda:0")) == hash(trident.device("cuda"))
    assert trident.device("cuda:0").index == 0 and trident.device(cpu) == cpu
    assert trident.zeros(1, device=device).device == trident.device(device)
    assert pickle.loads(pickle.dumps(trident.device("cuda:0"))) == trident.device("cuda:0")
    with pytest.raises(DeviceError, match="device: expected 'cpu', 'cuda' or 'cuda:N'; got 'gpu'"):
        trident.device("gpu")
    with pytest.raises(DeviceError, match="only cuda:0 can be here; got 'cuda:3'"):
        trident.device("cuda:3")


def test_default_device(device):
    try:
        trident.set_default_device(device)
        assert trident.zeros(2).device.type == device
        assert trident.tensor([1.0]).device.type == device
        assert trident.get_default_device() == device
    finally:
        trident.set_default_device(None)
    assert trident.zeros(2).device.type == "cpu"


# ---- conversion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ALL)
def test_to_dtype_from_every_dtype(target, device, rng):
    values = np.array([0.0, 1.0, 2.75, 5.0, 3.25])
    for source in ALL:
        a = values.astype(named(source).np)
        want = a.astype(np.float32) if source == "bfloat16" else a
        x = trident.tensor(a, device=device).to(named(target))
        equal(x, want.astype(named(target).np), named(target))


def test_conversion_methods(device):
    x = trident.tensor([0.0, 1.5, 3.0], device=device)
    for method, dtype in {
        "bool": "bool", "byte": "uint8", "char": "int8", "short": "int16", "int": "int32",
        "long": "int64", "half": "float16", "bfloat16": "bfloat16", "float": "float32",
        "double": "float64",
    }.items():  # fmt: skip
        y = getattr(x, method)()
        assert y.dtype is named(dtype) and y.device.type == device
    assert x.float() is x and x.to(trident.float32) is x and x.to(device) is x
    assert x.contiguous() is x
    y = x.to(trident.float32, copy=True)
    y[0] = 9
    assert x[0].item() == 0
    assert x.to(y.double()).dtype is trident.float64
    assert x.type_as(y.long()).dtype is trident.int64
    assert x.type(trident.float64).dtype is trident.float64
    with pytest.raises(TypeError, match="to: unknown arguments"):
        x.to(kind="float32")
    with pytest.raises(DeviceError, match="got 'cuda:7'"):
        x.to("cuda:7")


def test_between_devices(device, rng):
    a = rng.standard_normal((3, 4)).astype(np.float32)
    x = trident.tensor(a).T
    y = x.to(device)
    equal(y, a.T)
    z = y.cpu()
    equal(z, a.T)
    assert y.device.type == device and z.device.type == "cpu"
    if device == "cuda":
        assert x.cuda().is_cuda and y.to("cpu", trident.float64).dtype is trident.float64
        leaf = trident.tensor(a, requires_grad=True)
        (leaf.cuda() * 3).cpu().sum().backward()
        equal(leaf.grad, np.full((3, 4), 3.0))
        with pytest.raises(DeviceError, match=r"add: tensors must be on one device; got cpu"):
            x + y
        equal(y + trident.tensor(1.0), a.T + 1)
    else:
        assert x.cpu() is x


def test_converting_to_integers_ends_the_gradient(device):
    x = trident.tensor([1.5, 2.5], device=device, requires_grad=True)
    assert not x.long().requires_grad and x.long().grad_fn is None
    assert not x.bool().requires_grad
    y = x.double()
    assert y.requires_grad
    y.sum().backward()
    equal(x.grad, [1, 1], trident.float32)


def test_item_and_tolist(device):
    assert trident.tensor([[2.5]], device=device).item() == 2.5
    assert type(trident.tensor(3, device=device).item()) is int
    assert type(trident.tensor(True, device=device).item()) is bool
    for name in FLOATS:
        value = trident.tensor(1.5, dtype=named(name), device=device).item()
        assert type(value) is float and value == 1.5
        assert trident.tensor([[1.5], [2.0]], dtype=named(name), device=device).tolist() == [
            [1.5],
            [2.0],
        ]
    assert trident.tensor(4, device=device).tolist() == 4
    with pytest.raises(ShapeError, match=r"item: .* this one has shape \(2,\)\. Use tolist\(\)"):
        trident.tensor([1, 2], device=device).item()


# ---- Python's protocols -------------------------------------------------------------------------


def test_len_iter_bool_and_numbers(device):
    x = trident.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    assert len(x) == 2 and [r.tolist() for r in x] == [[1, 2], [3, 4]]
    assert bool(trident.tensor([[1]], device=device)) and not trident.tensor(0.0, device=device)
    one = trident.tensor(3, device=device)
    assert float(one) == 3.0 and int(one) == 3 and [10, 20, 30, 40][one] == 40
    assert f"{trident.tensor(2.5, device=device):.2f}" == "2.50"
    assert f"{trident.tensor(2.5, device=device)}" == "2.5"
    assert 3.0 in x and 7.0 not in x
    assert hash(x) == hash(x) and x in [x] and len({x, x}) == 1
    a, b = x
    assert a.tolist() == [1, 2] and b.tolist() == [3, 4]
    with pytest.raises(TypeError, match="0-d tensor has no length"):
        len(one)
    with pytest.raises(TypeError, match="iteration over a 0-d tensor"):
        iter(one)
    with pytest.raises(ShapeError, match=r"bool: the truth of a tensor of shape \(2, 2\)"):
        bool(x)
    with pytest.raises(TypeError, match="only an integer tensor of one element can be an index"):
        [1, 2][trident.tensor(1.0, device=device)]


def test_comparison_with_foreign_objects():
    x = trident.tensor([1.0])
    assert (x == None) is False and (x != "a") is True  # noqa: E711
    with pytest.raises(TypeError):
        x + "a"
    with pytest.raises(TypeError):
        x + None
    with pytest.raises(TypeError, match="expected at least one Tensor"):
        trident.sqrt([1.0])


def test_operators(device, rng):
    a = rng.uniform(0.5, 2, (2, 3))
    b = rng.uniform(0.5, 2, (3,))
    x, y = trident.tensor(a, device=device), trident.tensor(b, device=device)
    for got, want in (
        (x + y, a + b), (x - y, a - b), (x * y, a * b), (x / y, a / b), (x**2, a**2),
        (2**x, 2**a), (x // y, a // b), (x % y, a % b), (-x, -a), (abs(-x), a), (+x, a),
        (x @ y, a @ b), (2 - x, 2 - a), (2 / x, 2 / a),
        (3 // x, 3 // a), (3 % x, 3 % a),
    ):  # fmt: skip
        np.testing.assert_allclose(got.cpu().numpy(), want, rtol=1e-6)
    m, n = trident.tensor([True, False], device=device), trident.tensor([True, True], device=device)
    for got, want in ((m & n, [1, 0]), (m | n, [1, 1]), (m ^ n, [0, 1]), (~m, [0, 1])):
        equal(got, np.array(want, bool), trident.bool)
    i = trident.tensor([1, 4], device=device)
    for got, want in ((i << 2, [4, 16]), (i >> 1, [0, 2]), (i & 5, [1, 4]), (~i, [-2, -5])):
        equal(got, want, trident.int64)


def test_shape_errors_name_the_op(device):
    x, y = trident.ones(2, 3, device=device), trident.ones(2, 4, device=device)
    with pytest.raises(ShapeError, match=r"add: shapes \(2, 3\) and \(2, 4\) do not broadcast"):
        x + y
    with pytest.raises(
        DTypeError, match="bitwise_and: expected an integer or bool dtype; got float32"
    ):
        x & x


@pytest.mark.parametrize("name", ALL)
def test_pickle(name, device, rng):
    a = rng.integers(0, 2, (3, 4)).astype(named(name).np)
    x = trident.tensor(a, device=device).T
    y = pickle.loads(pickle.dumps(x))
    equal(y, a.T, named(name))
    assert y.device == x.device and not y.requires_grad


def test_pickle_keeps_requires_grad_and_refuses_graphs(device):
    x = trident.tensor([1.0], device=device, requires_grad=True)
    x.label = "weight"
    y = pickle.loads(pickle.dumps(x))
    assert y.requires_grad and y.is_leaf and y.label == "weight"
    with pytest.raises(AutogradError, match=r"pickle: .* use x.detach\(\)"):
        pickle.dumps(x * 2)


def test_deepcopy(device):
    x = trident.tensor([[1.0, 2.0]], device=device, requires_grad=True)
    x.label = ["weight"]
    (x * x).sum().backward()
    pair = [x, x]
    copied = copy.deepcopy(pair)
    y = copied[0]
    assert copied[1] is y and y.requires_grad and y.is_leaf
    assert y.label == ["weight"] and y.label is not x.label
    equal(y.grad, [[2, 4]])
    with trident.no_grad():
        y.zero_()
        y.grad.zero_()
    equal(x, [[1, 2]])
    equal(x.grad, [[2, 4]])
    with pytest.raises(AutogradError, match="only leaves can be deep-copied"):
        copy.deepcopy(x * 2)
    z = copy.copy(x)
    z.data[0, 0] = 7
    equal(x, [[7, 2]])


def test_constructor_of_the_class(rng):
    assert trident.Tensor(2, 3).shape == (2, 3)
    assert trident.Tensor().shape == (0,)
    equal(trident.Tensor([1, 2]), [1, 2], trident.float32)
    x = trident.tensor([1.0, 2.0])
    y = trident.Tensor(x)
    y[0] = 5
    assert x[0].item() == 5


# ---- printing -----------------------------------------------------------------------------------


def test_printing(device):
    where = "" if device == "cpu" else ", device='cuda:0'"

    def t(data, **options):
        return repr(trident.tensor(data, device=device, **options))

    assert t([1.0, 2.0]) == f"tensor([1., 2.]{where})"
    assert t([[1.5, -2.0]]) == f"tensor([[ 1.5000, -2.0000]]{where})"
    assert t(3) == f"tensor(3{where})"
    assert t([True]) == f"tensor([True]{where})"
    assert t([1.0], dtype=trident.float64) == f"tensor([1.]{where}, dtype=trident.float64)"
    assert t([1.5], dtype=trident.bfloat16) == f"tensor([1.5000]{where}, dtype=trident.bfloat16)"
    assert t([1.0], requires_grad=True) == f"tensor([1.]{where}, requires_grad=True)"
    x = trident.tensor([1.0], device=device, requires_grad=True)
    assert repr(x * 2) == f"tensor([2.]{where}, grad_fn=<MulBackward>)"
    assert str(x.detach()) == f"tensor([1.]{where})"
    assert "..." in repr(trident.zeros(2000, device=device))
