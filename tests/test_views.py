"""Views: every one shares memory on both devices, and equals numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trident
from trident import runtime, shapes
from trident.dtypes import from_numpy
from trident.errors import ShapeError
from trident.runtime import DeviceArray


def values(x):
    return x.detach().cpu().numpy()


def base(device, rng, shape=(2, 3, 4)):
    """A tensor and an independent copy of its values."""
    a = rng.standard_normal(shape).astype(np.float32)
    return trident.tensor(a, device=device), a.copy()


VIEWS = {
    "reshape": (lambda x: x.reshape(4, 6), lambda a: a.reshape(4, 6)),
    "reshape -1": (lambda x: x.reshape(3, -1), lambda a: a.reshape(3, -1)),
    "reshape tuple": (lambda x: x.reshape((24,)), lambda a: a.reshape(24)),
    "reshape_as": (lambda x: x.reshape_as(trident.zeros(6, 4)), lambda a: a.reshape(6, 4)),
    "view": (lambda x: x.view(2, 12), lambda a: a.reshape(2, 12)),
    "view_as": (lambda x: x.view_as(trident.zeros(8, 3)), lambda a: a.reshape(8, 3)),
    "view of a transpose": (
        lambda x: x.transpose(0, 1).view(3, 2, 2, 2),
        lambda a: a.swapaxes(0, 1).reshape(3, 2, 2, 2),
    ),
    "permute": (lambda x: x.permute(2, 0, 1), lambda a: a.transpose(2, 0, 1)),
    "permute negative": (lambda x: x.permute((-1, 0, -2)), lambda a: a.transpose(2, 0, 1)),
    "transpose": (lambda x: x.transpose(0, -1), lambda a: a.swapaxes(0, 2)),
    "T": (lambda x: x.T, lambda a: a.T),
    "mT": (lambda x: x.mT, lambda a: a.swapaxes(1, 2)),
    "t": (lambda x: x[0].t(), lambda a: a[0].T),
    "expand": (lambda x: x[:, :1].expand(2, 5, 4), lambda a: np.broadcast_to(a[:, :1], (2, 5, 4))),
    "expand -1": (lambda x: x.expand(6, -1, -1, 4), lambda a: np.broadcast_to(a, (6, 2, 3, 4))),
    "expand_as": (
        lambda x: x[:1].expand_as(trident.zeros(7, 3, 4)),
        lambda a: np.broadcast_to(a[:1], (7, 3, 4)),
    ),
    "squeeze": (lambda x: x[:1].squeeze(), lambda a: a[:1].squeeze()),
    "squeeze dim": (lambda x: x[:1, :, :1].squeeze(-1), lambda a: a[:1, :, :1].squeeze(-1)),
    "squeeze nothing": (lambda x: x.squeeze(1), lambda a: a),
    "unsqueeze": (lambda x: x.unsqueeze(1), lambda a: a[:, None]),
    "unsqueeze -1": (lambda x: x.unsqueeze(-1), lambda a: a[..., None]),
    "flatten": (lambda x: x.flatten(), lambda a: a.reshape(-1)),
    "flatten inner": (lambda x: x.flatten(1, 2), lambda a: a.reshape(2, 12)),
    "unflatten": (lambda x: x.unflatten(2, (2, -1)), lambda a: a.reshape(2, 3, 2, 2)),
    "narrow": (lambda x: x.narrow(2, 1, 2), lambda a: a[:, :, 1:3]),
    "select": (lambda x: x.select(1, -1), lambda a: a[:, -1]),
    "split": (lambda x: x.split(3, 2)[1], lambda a: a[:, :, 3:]),
    "split sizes": (lambda x: x.split([1, 2], dim=1)[1], lambda a: a[:, 1:]),
    "chunk": (lambda x: x.chunk(2, -1)[0], lambda a: a[:, :, :2]),
    "unbind": (lambda x: x.unbind(1)[2], lambda a: a[:, 2]),
    "diagonal": (lambda x: x.diagonal(0, 1, 2), lambda a: a.diagonal(0, 1, 2)),
    "diagonal offset": (lambda x: x.diagonal(-1, 0, 2), lambda a: a.diagonal(-1, 0, 2)),
    "int": (lambda x: x[1], lambda a: a[1]),
    "ints": (lambda x: x[1, -1, 0], lambda a: a[1, -1, 0]),
    "slice": (lambda x: x[:, 1:, ::2], lambda a: a[:, 1:, ::2]),
    "None": (lambda x: x[None, :, None], lambda a: a[None, :, None]),
    "Ellipsis": (lambda x: x[..., 1], lambda a: a[..., 1]),
    "empty slice": (lambda x: x[:, 3:], lambda a: a[:, 3:]),
    "view of a view": (lambda x: x[1].T[::2].unsqueeze(0), lambda a: a[1].T[::2][None]),
    "detach": (lambda x: x.detach(), lambda a: a),
    "data": (lambda x: x.data[0], lambda a: a[0]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_equal_numpy_and_share_memory(name, device, rng):
    make, oracle = VIEWS[name]
    x, a = base(device, rng)
    y = make(x)
    want = oracle(a)
    assert tuple(y.shape) == want.shape
    np.testing.assert_array_equal(values(y), want)
    # a write to the base is seen through the view, everywhere
    x.mul_(-2)
    np.testing.assert_array_equal(values(y), oracle(a * -2))
    if not y.numel() or "expand" in name:
        return
    # and a write through the view changes exactly its part of the base
    y.fill_(50)
    written = a * -2
    marks = np.zeros_like(a)
    np.copyto(marks, np.arange(a.size).reshape(a.shape))
    touched = np.isin(marks, oracle(marks))
    written[touched] = 50
    np.testing.assert_array_equal(values(x), written)


@pytest.mark.parametrize("name", [n for n in VIEWS if n not in ("detach", "data")])
def test_gradients_of_views(name, device, rng):
    make, oracle = VIEWS[name]
    x, a = base(device, rng)
    x.requires_grad_()
    y = make(x)
    w = rng.standard_normal(tuple(y.shape)).astype(np.float32)
    (y * trident.tensor(w, device=device)).sum().backward()
    # the adjoint of a view: every weight is added to the element that it looks at
    marks = oracle(np.arange(a.size).reshape(a.shape))
    want = np.bincount(marks.reshape(-1), weights=w.reshape(-1), minlength=a.size)
    np.testing.assert_allclose(values(x.grad), want.reshape(a.shape), rtol=1e-5, atol=1e-5)


def test_second_derivatives_of_views(rng):
    x = trident.tensor(rng.standard_normal((2, 3, 4)), requires_grad=True)
    for name, (make, _) in VIEWS.items():
        if name not in ("detach", "data", "empty slice"):
            assert trident.autograd.gradgradcheck(lambda x, make=make: make(x) ** 3, x)


def test_reshape_copies_where_it_must(device, rng):
    x, a = base(device, rng)
    y = x.permute(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(values(y), a.transpose(2, 0, 1).reshape(-1))
    y.zero_()
    np.testing.assert_array_equal(values(x), a)
    z = x.permute(2, 0, 1).contiguous()
    assert z.is_contiguous()
    np.testing.assert_array_equal(values(z), a.transpose(2, 0, 1))
    with pytest.raises(
        ShapeError, match=r"view: shape \(4, 2, 3\) with strides \(1, 12, 4\) cannot"
    ):
        x.permute(2, 0, 1).view(-1)


def test_pieces(device, rng):
    x, a = base(device, rng, (5, 4))
    for pieces, want in (
        (x.split(2), np.split(a, [2, 4])),
        (x.split([4, 1]), np.split(a, [4])),
        (x.chunk(3), np.split(a, [2, 4])),
        (x.chunk(9), np.split(a, 5)),
        (x.unbind(1), list(a.T)),
    ):
        assert len(pieces) == len(want)
        for p, w in zip(pieces, want):
            np.testing.assert_array_equal(values(p), w)


def test_empty_axes(device):
    x = trident.zeros(0, 3, device=device)
    assert x.reshape(3, 0).shape == (3, 0) and x.T.shape == (3, 0)
    assert x.flatten().shape == (0,) and x.unsqueeze(0).shape == (1, 0, 3)
    assert len(x.unbind(1)) == 3 and x.split(2)[0].shape == (0, 3)
    assert x.expand(2, 0, 3).shape == (2, 0, 3)
    assert trident.zeros((), device=device).reshape(1, 1).shape == (1, 1)
    assert trident.zeros((), device=device).flatten().shape == (1,)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: x.reshape(5, 5), ShapeError, r"reshape: \(2, 3, 4\) has 24 elements, \(5, 5\)"),
        (lambda x: x.reshape(-1, -1), ShapeError, "reshape: shape may hold one -1"),
        (
            lambda x: x.reshape(5, -1),
            ShapeError,
            r"reshape: shape \(5, -1\) does not divide the 24",
        ),
        (lambda x: x.view(7), ShapeError, "view: .* 24 elements"),
        (lambda x: x.permute(0, 1), ShapeError, "permute: dims must name each of the 3 axes once"),
        (lambda x: x.permute(0, 0, 1), ShapeError, r"permute: dims .*; got \(0, 0, 1\)"),
        (lambda x: x.transpose(0, 3), IndexError, r"transpose: dim must lie in \[-3, 2\]"),
        (
            lambda x: x.expand(2, 3, 5),
            ShapeError,
            r"expand: cannot expand \(2, 3, 4\) to \(2, 3, 5\)",
        ),
        (lambda x: x.expand(3, 4), ShapeError, "expand: cannot expand .* to fewer axes"),
        (lambda x: x.expand(-1, 2, 3, 4), ShapeError, "expand: .* a new axis needs a size"),
        (lambda x: x.unsqueeze(5), IndexError, r"unsqueeze: dim must lie in \[-4, 3\]"),
        (lambda x: x.flatten(2, 0), ShapeError, "flatten: start_dim must not come after end_dim"),
        (lambda x: x.unflatten(2, (3, 2)), ShapeError, r"unflatten: \(4,\) has 4 elements"),
        (lambda x: x.narrow(2, 3, 2), IndexError, "narrow: start 3 and length 2 exceed axis 2"),
        (lambda x: x.split(0), ShapeError, "split: split_size must be positive; got 0"),
        (lambda x: x.split([1, 3], 1), ShapeError, "split: sizes must sum to 3"),
        (lambda x: x.chunk(0), ShapeError, "chunk: chunks must be positive"),
        (lambda x: x.diagonal(0, 1, 1), ShapeError, "diagonal: dim1 and dim2 must differ"),
        (lambda x: x.t(), ShapeError, "t: x must have at most 2 axes"),
        (lambda x: x.select(0, 2), IndexError, "index 2 is out of range for axis 0 of size 2"),
    ],
)
def test_errors(call, error, text, device):
    with pytest.raises(error, match=text):
        call(trident.zeros(2, 3, 4, device=device))


# ---- the arithmetic of strides ------------------------------------------------------------------


@st.composite
def windows(draw, max_ndim=4):
    """A strided view of distinct numbers: sliced, permuted, with new axes and stretched ones."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=max_ndim)))
    a = np.arange(np.prod(shape)).reshape(shape)
    index = tuple(
        draw(st.sampled_from([slice(None), slice(None, None, 2), slice(1, None), slice(0, 1)]))
        for _ in shape
    )
    a = a[index]
    a = a.transpose(draw(st.permutations(range(a.ndim))))
    if draw(st.booleans()):
        a = np.broadcast_to(a, (draw(st.integers(1, 3)), *a.shape))
    return a


def strides_of(a):
    return tuple(s // a.itemsize for s in a.strides)


@given(windows(), st.data())
def test_reshape_strides_against_numpy(a, data):
    """The new shape: random factors of the size, and ones anywhere."""
    rest, new = a.size, []
    while rest > 1:
        divisors = [d for d in range(2, rest + 1) if rest % d == 0]
        new.append(data.draw(st.sampled_from(divisors)))
        rest //= new[-1]
    if not a.size:
        new.append(0)
    for _ in range(data.draw(st.integers(0, 2))):
        new.insert(data.draw(st.integers(0, len(new))), 1)
    got = shapes.reshape_strides(a.shape, strides_of(a), tuple(new))
    want = a.reshape(new)
    if got is None:
        assert a.size == 0 or not np.shares_memory(a, want)
        return
    view = np.lib.stride_tricks.as_strided(a, new, [s * a.itemsize for s in got])
    np.testing.assert_array_equal(view, want)


@given(windows())
def test_contiguity_and_extent_against_numpy(a):
    assert shapes.is_contiguous(a.shape, strides_of(a)) == a.flags.c_contiguous
    reached = 0 if a.size == 0 else int(a.max() - a.min())
    assert shapes.extent(a.shape, strides_of(a)) == reached


@st.composite
def basic_indices(draw, shape):
    """A basic index that numpy accepts too (positive steps)."""
    items = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        kinds = [st.slices(n).filter(lambda s: s.step is None or s.step > 0)]
        if n:
            kinds.append(st.integers(-n, n - 1))
        items.append(draw(st.one_of(kinds)))
    if draw(st.booleans()):
        tail = draw(st.integers(0, len(items)))
        if tail == len(items):
            items.append(Ellipsis)
    for _ in range(draw(st.integers(0, 2))):
        items.insert(draw(st.integers(0, len(items))), None)
    return tuple(items)


@given(windows(), st.data())
def test_basic_indexing_of_device_arrays_against_numpy(a, data):
    """DeviceArray's own arithmetic, on a device that only keeps addresses."""
    index = data.draw(basic_indices(a.shape))
    memory = runtime.Buffer(runtime.Device(), 0, 0, None)
    array = DeviceArray(memory, a.shape, strides_of(a), from_numpy(a.dtype), 5)
    window, want = array[index], a[index]
    assert window.shape == want.shape
    if want.size:
        first = np.asarray(want).__array_interface__["data"][0] - a.__array_interface__["data"][0]
        assert (window.offset - array.offset) * a.itemsize == first
        steps = tuple(s // a.itemsize for s in np.asarray(want).strides)
        for n, got, expected in zip(want.shape, window.strides, steps):
            assert n == 1 or got == expected


@given(st.data())
def test_basic_indexing_of_tensors_against_numpy(data):
    a = data.draw(windows())
    index = data.draw(basic_indices(a.shape))
    np.testing.assert_array_equal(trident.from_numpy(a)[index].numpy(), a[index])


def test_int64_offsets_are_found_without_a_big_array():
    memory = runtime.Buffer(runtime.Device(), 0, 0, None)

    def array(shape, strides):
        return DeviceArray(memory, shape, strides, trident.float32)

    assert not shapes.needs_int64(array((2**31 - 1,), (1,)), None)
    assert shapes.needs_int64(array((2**31,), (1,)))
    assert shapes.needs_int64(array((3, 2), (2**30, 1)))
    assert not shapes.needs_int64(array((2, 2), (2**30, 1)))
    assert shapes.needs_int64(array((2**16, 2**16), (0, 1)))


def test_broadcast_rules():
    assert shapes.broadcast("op", (2, 1), (3,), ()) == (2, 3)
    assert shapes.broadcast("op", (0, 1), (1, 4)) == (0, 4)
    assert shapes.broadcast_strides("op", (3, 1), (1, 1), (2, 3, 4)) == (0, 1, 0)
    with pytest.raises(ShapeError, match="At axis -2 one has 2 and another 3"):
        shapes.broadcast("op", (2, 1), (3, 4))
