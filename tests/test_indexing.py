"""``x[index]`` and ``x[index] = value`` against numpy, with torch's rule where the two differ:
an int beside index tensors is a basic index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trident
from trident.errors import AutogradError, DTypeError, ShapeError


def values(x):
    return x.detach().cpu().numpy()


# ---- generated indices --------------------------------------------------------------------------


@st.composite
def cases(draw, writing=False):
    """(shape, list of items): ints, slices, None, Ellipsis, int arrays that broadcast, masks."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    lead = draw(st.sampled_from([(), (1,), (2,), (3,), (2, 3), (1, 3)]))
    arrays = 0
    items = []
    axis = 0
    last = draw(st.integers(1, len(shape)))
    while axis < last:
        n = shape[axis]
        kind = draw(st.sampled_from(["slice", "int", "array", "mask", "slice", "array"]))
        if writing and arrays:  # a second index array may name an element twice
            kind = "slice" if kind in ("array", "mask") else kind
        if kind == "int":
            items.append(draw(st.integers(-n, n - 1)))
        elif kind == "slice":
            items.append(draw(st.slices(n).filter(lambda s: s.step is None or s.step > 0)))
        elif kind == "array" and lead:
            own = lead[draw(st.integers(0, len(lead) - 1)) :]
            size = int(np.prod(own))
            if writing:
                own = lead if int(np.prod(lead)) <= n else (1,)
                size = int(np.prod(own))
                flat = draw(st.permutations(range(n)))[:size]
                flat = [i - n if draw(st.booleans()) else i for i in flat]
            else:
                flat = draw(st.lists(st.integers(-n, n - 1), min_size=size, max_size=size))
            items.append(np.array(flat, np.int64).reshape(own))
            arrays += 1
        elif kind == "mask" and not arrays and not lead:
            wide = draw(st.integers(1, last - axis))
            sides = shape[axis : axis + wide]
            bits = draw(st.lists(st.booleans(), min_size=int(np.prod(sides)),
                                 max_size=int(np.prod(sides))))  # fmt: skip
            items.append(np.array(bits).reshape(sides))
            axis += wide - 1
            arrays += 1
        else:
            items.append(slice(None))
        axis += 1
    if draw(st.booleans()):
        at = draw(st.integers(0, len(items)))
        if at == len(items) or last == len(shape):
            items.insert(at, Ellipsis)
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    return shape, items


def oracle_view(a, items):
    """numpy's view by the ints alone, and the index that remains: torch's order of work."""
    first, rest = [], []
    for item in items:
        if isinstance(item, int):
            first.append(item)
        elif item is None:
            rest.append(None)
        elif item is Ellipsis:
            first.append(Ellipsis)
            rest.append(Ellipsis)
        else:
            wide = item.ndim if isinstance(item, np.ndarray) and item.dtype == bool else 1
            first += [slice(None)] * wide
            rest.append(item)
    return a[tuple(first)], tuple(rest)


def on(items, device):
    return tuple(
        trident.tensor(i, device=device) if isinstance(i, np.ndarray) else i for i in items
    )


def filled(shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@given(cases())
def test_reads_against_numpy(device, case):
    shape, items = case
    a = filled(shape)
    view, rest = oracle_view(a, items)
    want = view[rest]
    got = trident.tensor(a, device=device)[on(items, device)]
    assert tuple(got.shape) == want.shape
    np.testing.assert_array_equal(values(got), want)


@given(cases(writing=True), st.booleans(), st.booleans())
def test_writes_against_numpy(device, case, number, recorded):
    shape, items = case
    a = filled(shape)
    want = a.copy()
    view, rest = oracle_view(want, items)
    v = filled(view[rest].shape) + 10
    x = trident.tensor(a, device=device)
    target = x * trident.ones((), device=device, requires_grad=True) if recorded else x
    target[on(items, device)] = 7.5 if number else trident.tensor(v, device=device)
    view[rest] = 7.5 if number else v
    np.testing.assert_array_equal(values(target), want)


@given(cases())
def test_gradient_of_reads(device, case):
    shape, items = case
    a = filled(shape)
    x = trident.tensor(a, device=device, requires_grad=True)
    y = x[on(items, device)]
    w = filled(tuple(y.shape))
    (y * trident.tensor(w, device=device)).sum().backward()
    marks = np.arange(a.size).reshape(shape)
    view, rest = oracle_view(marks, items)
    want = np.bincount(view[rest].reshape(-1), weights=w.reshape(-1), minlength=a.size)
    np.testing.assert_allclose(values(x.grad), want.reshape(shape), rtol=1e-5, atol=1e-5)


@given(cases(writing=True))
def test_gradient_of_writes(device, case):
    shape, items = case
    a, w = filled(shape), filled(shape) * 3 + 1
    marks = np.arange(a.size).reshape(shape)
    view, rest = oracle_view(marks, items)
    chosen = view[rest]
    x = trident.tensor(a, device=device, requires_grad=True)
    v = trident.tensor(filled(chosen.shape), device=device, requires_grad=True)
    y = x * 1.0
    y[on(items, device)] = v
    (y * trident.tensor(w, device=device)).sum().backward()
    np.testing.assert_array_equal(values(v.grad), w.reshape(-1)[chosen])
    want = w.copy().reshape(-1)
    want[chosen.reshape(-1)] = 0
    np.testing.assert_array_equal(values(x.grad), want.reshape(shape))


# ---- chosen cases -------------------------------------------------------------------------------


def test_index_kinds(device, rng):
    a = rng.standard_normal((4, 5)).astype(np.float32)
    x = trident.tensor(a, device=device)
    i = trident.tensor([2, 0], device=device)
    for index, want in (
        ([2, 0], a[[2, 0]]),
        (np.array([2, 0]), a[[2, 0]]),
        (i, a[[2, 0]]),
        (i.int(), a[[2, 0]]),
        (range(2), a[:2]),
        (np.int64(3), a[3]),
        (trident.tensor(3), a[3]),
        (trident.tensor(3, device=device), a[3]),
        (slice(trident.tensor(1), trident.tensor(3)), a[1:3]),
        ((slice(None), [0, -1]), a[:, [0, -1]]),
        (([[0, 1], [2, 3]], 1), a[[[0, 1], [2, 3]], 1]),
        ((i, i), a[[2, 0], [2, 0]]),
        ((i[:, None], i), a[np.ix_([2, 0], [2, 0])]),
        ([True, False, True, False], a[[0, 2]]),
        (x[:, 0] > 0, a[a[:, 0] > 0]),
        (x > 0, a[a > 0]),
        ((x > 0).byte(), a[a > 0]),
        ((slice(1, 3), x[0] > 0), a[1:3, a[0] > 0]),
        ([], a[[]]),
        ((Ellipsis, None), a[..., None]),
    ):
        np.testing.assert_array_equal(values(x[index]), want)


def test_an_int_beside_index_tensors_is_basic_as_in_torch(device):
    x = trident.arange(24, device=device).reshape(2, 3, 4)
    i = trident.tensor([0, 3], device=device)
    assert x[0, :, i].shape == (3, 2)
    assert x[0, :, i].tolist() == [[0, 3], [4, 7], [8, 11]]
    assert x[i[:1], :, i].shape == (2, 3)


def test_reads_of_every_dtype(device, rng):
    for name in ("bool", "uint8", "int32", "int64", "float16", "bfloat16", "float64"):
        a = rng.integers(0, 2, (3, 4)).astype(getattr(trident, name).np)
        x = trident.tensor(a, device=device)
        got = x[trident.tensor([2, 0], device=device)]
        assert got.dtype is x.dtype
        np.testing.assert_array_equal(values(got), a[[2, 0]])
        x[1] = 1
        a[1] = 1
        np.testing.assert_array_equal(values(x), a)


def test_reading_with_tensors_copies(device):
    x = trident.arange(4.0, device=device)
    y = x[trident.tensor([0, 1], device=device)]
    y.zero_()
    assert x.tolist() == [0, 1, 2, 3]


def test_repeated_indices_add_their_gradients(device):
    x = trident.tensor([1.0, 2.0, 3.0], device=device, requires_grad=True)
    i = trident.tensor([0, 2, 0, 0], device=device)
    w = trident.tensor([1.0, 10.0, 100.0, 1000.0], device=device)
    (x[i] * w).sum().backward()
    assert x.grad.tolist() == [1101, 0, 10]


def test_second_derivative(rng):
    x = trident.tensor(rng.standard_normal((3, 4)), requires_grad=True)
    i = trident.tensor([2, 0, 2])

    def f(x):
        y = x * 1.0
        y[0] = x[1] ** 2
        y[:, trident.tensor([1, 3])] = x[:, :2] * 3
        return y[i] ** 3

    assert trident.autograd.gradcheck(f, x) and trident.autograd.gradgradcheck(f, x)


def test_write_values(device, rng):
    a = rng.standard_normal((3, 4)).astype(np.float32)
    for index, value in (
        (0, 5),
        ((slice(None), 1), [1.0, 2.0, 3.0]),
        ((slice(None), slice(0, 2)), np.array([[1.0, 2.0]])),
        (slice(1, 3), trident.tensor([[9.0, 8.0, 7.0, 6.0]])),
        ((1, 2), trident.tensor(4, dtype=trident.int32)),
        (Ellipsis, True),
        (a > 0, 0),
        (a > 0, trident.tensor(2.5)),
        (a > 0, trident.arange(int((a > 0).sum()), dtype=trident.float32)),
        (([0, 2], [1, 3]), trident.tensor([1.5, 2.5])),
        (([0, 2],), np.float32(3)),
        ((slice(0, 0),), 3.0),
    ):
        x, want = trident.tensor(a, device=device), a.copy()
        x[index] = value
        want[index] = value.numpy() if isinstance(value, trident.Tensor) else value
        np.testing.assert_array_equal(values(x), want)


def test_write_converts_to_the_dtype_of_the_target(device):
    x = trident.zeros(3, dtype=trident.int32, device=device)
    x[0] = 2.0
    x[1] = trident.tensor(3.9, device=device)
    assert x.tolist() == [2, 3, 0] and x.dtype is trident.int32
    y = trident.zeros(2, dtype=trident.float16, device=device)
    y[trident.tensor([1], device=device)] = trident.tensor([1.5], device=device)
    assert y.tolist() == [0, 1.5]


def test_overlapping_write_reads_first(device, rng):
    n = 5000  # more than one program on a device
    a = rng.standard_normal(n).astype(np.float32)
    x = trident.tensor(a, device=device)
    x[1:] = x[:-1]
    np.testing.assert_array_equal(values(x), np.concatenate([a[:1], a[:-1]]))
    y = trident.tensor(a, device=device)
    y[:] = y[trident.arange(n - 1, -1, -1, device=device)]
    np.testing.assert_array_equal(values(y), a[::-1])
    z = trident.tensor(a[:9].reshape(3, 3), device=device)
    z[...] = z.T
    np.testing.assert_array_equal(values(z), a[:9].reshape(3, 3).T)


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        (3, IndexError, "getitem: index 3 is out of range for axis 0 of size 3"),
        ((0, -5), IndexError, "getitem: index -5 is out of range for axis 1 of size 4"),
        ((0, 0, 0), IndexError, r"getitem: 3 indices for the 2 axes of shape \(3, 4\)"),
        (1.5, TypeError, "getitem: expected ints, slices, None, ... or tensors; got float"),
        ("a", TypeError, "got str"),
        (True, TypeError, "a Python bool is no index"),
        (
            slice(None, None, -1),
            IndexError,
            r"a slice step must be positive; got -1. Reverse with flip",
        ),
        ((Ellipsis, Ellipsis), IndexError, "one Ellipsis"),
        (trident.tensor([0.5]), DTypeError, r"index tensor must be integer or bool; got float32"),
        (trident.tensor([0, 3]), IndexError, "index 3 is out of range"),
        (trident.tensor([-4]), IndexError, "index -4 is out of range"),
        (trident.ones(3, 3).bool(), IndexError, r"a mask must have the shape \(3, 4\)"),
        (
            (trident.tensor([0, 1]), trident.tensor([0, 1, 2])),
            ShapeError,
            r"shapes \(2,\) and \(3,\) do not broadcast",
        ),
    ],
)
def test_errors(index, error, text, device):
    x = trident.zeros(3, 4, device=device)
    with pytest.raises(error, match=text):
        x[index]
    with pytest.raises(error, match=text):
        x[index] = 1.0


def test_write_errors(device):
    x = trident.zeros(3, 4, device=device)
    with pytest.raises(ShapeError, match=r"setitem: a value of shape \(3,\) does not broadcast"):
        x[0] = [1.0, 2.0, 3.0]
    with pytest.raises(ShapeError, match="setitem"):
        x[x > -1] = trident.ones(5, device=device)
    with pytest.raises(DTypeError, match=r"setitem: 1.5 does not fit into a int64 tensor"):
        x.long()[0] = 1.5
    w = trident.ones(2, device=device, requires_grad=True)
    with pytest.raises(AutogradError, match="setitem: a leaf tensor that requires grad"):
        w[0] = 1.0
    assert values(x).sum() == 0
