"""Writing in place: values, histories that move along, and hazards that raise instead of giving a
wrong gradient. Expected gradients come from the same program written without writes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trident
from trident.autograd import Function, grad, gradcheck, gradgradcheck
from trident.errors import AutogradError, DTypeError, ShapeError


def leaf(data, device="cpu", dtype=None):
    return trident.tensor(data, device=device, dtype=dtype, requires_grad=True)


def values(x):
    return x.detach().cpu().numpy()


def close(x, want, rtol=1e-5):
    np.testing.assert_allclose(values(x), want, rtol=rtol, atol=1e-6)


# name -> (the call in place, the same out of place)
CALLS = {
    "add_": (lambda y, w: y.add_(w), lambda y, w: y + w),
    "add_ alpha": (lambda y, w: y.add_(w, alpha=3), lambda y, w: y + 3 * w),
    "sub_": (lambda y, w: y.sub_(w), lambda y, w: y - w),
    "mul_": (lambda y, w: y.mul_(w), lambda y, w: y * w),
    "div_": (lambda y, w: y.div_(w), lambda y, w: y / w),
    "pow_": (lambda y, w: y.pow_(w), lambda y, w: y**w),
    "mul_ number": (lambda y, w: y.mul_(2.5).mul_(w), lambda y, w: y * 2.5 * w),
    "mul_ after add_": (lambda y, w: y.add_(w).mul_(w), lambda y, w: (y + w) * w),
    "exp_": (lambda y, w: y.mul_(w).exp_(), lambda y, w: (y * w).exp()),
    "log_": (lambda y, w: y.log_().mul_(w), lambda y, w: y.log() * w),
    "sqrt_": (lambda y, w: y.mul_(w).sqrt_(), lambda y, w: (y * w).sqrt()),
    "tanh_": (lambda y, w: y.mul_(w).tanh_(), lambda y, w: (y * w).tanh()),
    "sigmoid_": (lambda y, w: y.mul_(w).sigmoid_(), lambda y, w: (y * w).sigmoid()),
    "relu_": (lambda y, w: y.sub_(w).relu_(), lambda y, w: (y - w).relu()),
    "neg_": (lambda y, w: y.neg_().mul_(w), lambda y, w: -y * w),
    "reciprocal_": (lambda y, w: y.mul_(w).reciprocal_(), lambda y, w: 1 / (y * w)),
    "square_": (lambda y, w: y.mul_(w).square_(), lambda y, w: (y * w) ** 2),
    "clamp_": (lambda y, w: y.mul_(w).clamp_(0.8, 2), lambda y, w: (y * w).clamp(0.8, 2)),
    "masked_fill_": (
        lambda y, w: y.mul_(w).masked_fill_(y > 1, 0.5),
        lambda y, w: (y * w).masked_fill(y * w > 1, 0.5),
    ),
    "copy_": (lambda y, w: y.copy_(w), lambda y, w: y * 0 + w),
    "zero_": (lambda y, w: y.zero_().add_(w), lambda y, w: y * 0 + w),
    "fill_": (lambda y, w: y.fill_(3).mul_(w), lambda y, w: y * 0 + 3 * w),
    "cumsum_": (lambda y, w: y.mul_(w).cumsum_(0), lambda y, w: (y * w).cumsum(0)),
    "lerp_": (lambda y, w: y.lerp_(w, 0.3), lambda y, w: y + 0.3 * (w - y)),
    "addcmul_": (lambda y, w: y.addcmul_(w, w, value=0.5), lambda y, w: y + 0.5 * w * w),
    "setitem": (
        lambda y, w: y.__setitem__(slice(1, None), w[1:]) or y,
        lambda y, w: trident.cat([y[:1], w[1:]]),
    ),
    "index_add_": (
        lambda y, w: y.index_add_(0, trident.tensor([2, 0], device=y.device), w[:2]),
        lambda y, w: trident.stack([y[0] + w[1], y[1], y[2] + w[0]]),
    ),
}
OPERATORS = {
    "+=": (lambda y, w: y.__iadd__(w), lambda y, w: y + w),
    "-=": (lambda y, w: y.__isub__(w), lambda y, w: y - w),
    "*=": (lambda y, w: y.__imul__(w), lambda y, w: y * w),
    "/=": (lambda y, w: y.__itruediv__(w), lambda y, w: y / w),
    "**=": (lambda y, w: y.__ipow__(w), lambda y, w: y**w),
}


@pytest.mark.parametrize("name", [*CALLS, *OPERATORS])
def test_writes_move_the_history(name, device, rng):
    write, plain = {**CALLS, **OPERATORS}[name]
    a, b, c = (rng.uniform(0.5, 2, 3) for _ in range(3))
    results = []
    for in_place in (True, False):
        x, w = leaf(a, device), leaf(b, device)
        y = x * 1.5
        out = write(y, w) if in_place else plain(y, w)
        assert out is y or not in_place
        (out * trident.tensor(c, device=device)).sum().backward()
        results.append([values(t) if t is not None else np.zeros(3) for t in (out, x.grad, w.grad)])
    for got, want in zip(*results):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


def test_values_without_history(device, rng):
    a, b = rng.uniform(0.5, 2, (2, 3)), rng.uniform(0.5, 2, 3)
    x = trident.tensor(a, device=device)
    alias, want = x, a.copy()
    x += 1
    x *= trident.tensor(b, device=device)
    x -= 0.5
    x /= 2
    x **= 2
    want = ((want + 1) * b - 0.5) / 2
    close(x, want**2)
    assert alias is x
    i = trident.tensor([7, -7], device=device)
    i //= 2
    i %= 3
    assert i.tolist() == [0, 2]
    m = trident.tensor([True, False], device=device)
    m &= trident.tensor([False, True], device=device)
    m |= trident.tensor([True, False], device=device)
    m ^= trident.tensor([True, True], device=device)
    assert m.tolist() == [False, True]


def test_second_derivatives_of_writes(rng):
    x, w = leaf(rng.uniform(0.5, 2, (3, 2))), leaf(rng.uniform(0.5, 2, 2))

    def f(x, w):
        y = x * 2
        y.mul_(w).sin_()
        y[0] = w * w
        y[1:].mul_(w)  # through a view
        y += x
        return y * y

    assert gradcheck(f, (x, w)) and gradgradcheck(f, (x, w))


# ---- saved tensors that are overwritten ---------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (lambda y: y * y, "backward of mul: operand"),
        (lambda y: y.tan() * y.atan(), "backward of .*: operand"),
        (lambda y: y.sin(), "backward of sin: operand x"),
        (lambda y: y @ y, "backward of matmul: operand"),
        (lambda y: y.sum() * y, "backward of mul: operand y"),
        (lambda y: y.softmax(-1) * y, "operand y"),
        (lambda y: y[trident.tensor([0, 1], device=y.device)] * y.T, "operand"),
    ],
)
@pytest.mark.parametrize(
    ("write", "writer"),
    [
        (lambda y: y.add_(1), "add_"),
        (lambda y: y.detach().mul_(2), "mul_"),
        (lambda y: y.data.zero_(), "zero_"),
        (lambda y: y[0].detach().fill_(3), "fill_"),
        (lambda y: y.__setitem__(0, 5.0), "setitem"),
        (lambda y: y.normal_(), "normal_"),
    ],
)
def test_a_saved_operand_that_was_overwritten_raises(op, message, write, writer, device):
    x = leaf([[1.0, 2.0], [3.0, 4.0]], device)
    y = x * 1.5
    z = op(y)
    write(y)
    with pytest.raises(AutogradError, match=rf"{message}.*, shape \(2, 2\), which \w+ saved, was "
                       rf"overwritten by {writer} before .* clone\(\)"):  # fmt: skip
        z.sum().backward()


@pytest.mark.parametrize("op", ["exp", "tanh", "sigmoid", "sqrt", "relu"])
def test_a_saved_output_that_was_overwritten_raises(op, device):
    x = leaf([1.0, 2.0], device)
    y = getattr(x, op)()
    y.mul_(2)
    with pytest.raises(
        AutogradError, match=f"backward of {op}: the output, .* overwritten by mul_"
    ):
        y.sum().backward()


def test_writes_to_what_was_not_saved_are_fine(device):
    x = leaf([1.0, 2.0], device)
    y = x * 3  # saves no tensor that is written below
    z = y + 1
    y.mul_(2)
    (y + z).sum().backward()
    close(x.grad, [9, 9])
    u = leaf([1.0, 2.0], device)
    v = u * 1
    w = v * 4
    v.zero_()  # mul by a number saved nothing of v
    w.sum().backward()
    close(u.grad, [4, 4])


def test_a_weight_changed_between_forward_and_backward(device):
    w, x = leaf([2.0, 3.0], device), leaf([5.0, 7.0], device)
    y = (w * x).sum()
    with trident.no_grad():
        w.sub_(1)
    with pytest.raises(AutogradError, match=r"operand x, .* overwritten by sub_"):
        y.backward()
    y = (w * x).sum()
    optimizer = trident.optim.SGD([w], lr=0.1)
    y.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(AutogradError, match="overwritten"):
        y.backward()


def test_a_gradient_that_is_used_and_then_accumulated_into(device):
    x, w = leaf([1.0, 2.0], device), leaf([3.0, 4.0], device)
    (x * x).sum().backward()
    loss = (x.grad * w).sum()
    (x * x).sum().backward()  # adds to x.grad, which loss has saved
    with pytest.raises(AutogradError, match="overwritten by gradient accumulation"):
        loss.backward()


# ---- leaves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda w: w.add_(1), "add_"),
        (lambda w: w.__iadd__(1), "add_"),
        (lambda w: w.zero_(), "zero_"),
        (lambda w: w.copy_(w.detach()), "copy_"),
        (lambda w: w.__setitem__(0, 1.0), "setitem"),
        (lambda w: w.uniform_(), "uniform_"),
        (lambda w: w.relu_(), "relu_"),
    ],
)
def test_leaves_may_be_written_under_no_grad_only(write, name, device):
    w = leaf([1.0, -2.0], device)
    with pytest.raises(AutogradError, match=f"{name}: a leaf tensor that requires grad .*no_grad"):
        write(w)
    close(w, [1, -2])
    with trident.no_grad():
        write(w)
    assert w.is_leaf and w.requires_grad
    (w * 2).sum().backward()
    close(w.grad, [2, 2])


def test_views_of_leaves(device):
    w = leaf([1.0, 2.0], device)
    with pytest.raises(AutogradError, match="mul_: a view of a leaf tensor that requires grad"):
        w[0].mul_(2)
    with pytest.raises(AutogradError, match="setitem: a view of a leaf"):
        w.view(2, 1)[0] = 3.0
    with trident.no_grad():
        v = w[0]
        v.mul_(5)
    close(w, [5, 2])
    with pytest.raises(AutogradError, match="mul_: a view of a leaf"):
        v.mul_(2)
    close(w, [5, 2])


# ---- views --------------------------------------------------------------------------------------


def test_a_write_through_a_view_reaches_the_base(device, rng):
    a, b = rng.standard_normal((3, 4)), rng.standard_normal(4)
    x, w = leaf(a, device), leaf(b, device)
    y = x * 2
    y[1].mul_(w)
    y.T[0].add_(10)
    y.view(-1)[2:4].zero_()
    c = rng.standard_normal((3, 4))
    (y * trident.tensor(c, device=device)).sum().backward()
    gx, gw = 2 * c, (c * 2 * a)[1]
    gx[1] *= b
    gx[0, 2:4] = 0
    close(x.grad, gx)
    close(w.grad, gw)


def test_a_write_through_a_view_makes_a_plain_base_require_grad(device):
    x = leaf([1.0, 2.0], device)
    out = trident.zeros(2, 2, device=device)
    for i in range(2):
        out[i].copy_(x * (i + 1))
    assert out.requires_grad
    (out * trident.tensor([[1.0, 2.0], [3.0, 4.0]], device=device)).sum().backward()
    close(x.grad, [7, 10])


def test_updates_of_elements(device):
    """x[i] op= y is a read, a write through the view, and a write of the same values."""
    w = leaf([2.0, 3.0], device)
    h = trident.ones(3, 2, device=device)
    h[0] += w
    h[1] *= w
    h[:, 1] -= w[0]
    h[2, 0] /= w[1]
    (h * trident.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], device=device)).sum().backward()
    close(h, [[3, 2], [2, 1], [1 / 3, -1]])
    close(w.grad, [1 + 3 - 2 - 4 - 6, 2 + 4 - 5 / 9])


def test_a_view_made_before_the_write_sees_it(device):
    x = leaf([1.0, 2.0, 3.0], device)
    y = x * 2
    head, tail = y[:2], y[1:]
    y.mul_(10)
    (head * trident.tensor([1.0, 5.0], device=device)).sum().backward(retain_graph=True)
    close(x.grad, [20, 100, 0])
    tail.mul_(3)  # a sibling writes
    x.grad = None
    (head * trident.tensor([1.0, 5.0], device=device)).sum().backward()
    close(x.grad, [20, 300, 0])


def test_a_plain_view_made_before_a_recorded_write(device):
    x = leaf([3.0, 4.0], device)
    out = trident.zeros(2, device=device)
    early = out[1:]
    out.copy_(x)
    assert (early * 5).requires_grad
    (early * 5).sum().backward()
    close(x.grad, [0, 5])
    x.grad = None
    out = trident.zeros(2, device=device)
    early = out[1:]
    out.copy_(x)
    early.sum().backward()
    close(x.grad, [0, 1])
    z = trident.zeros(2, device=device)
    early = z[1:]
    z.copy_(x)
    x.grad = None
    early.exp().sum().backward()
    close(x.grad, [0, np.exp(4)])


def test_a_no_grad_write_does_not_hide_a_recorded_one(device):
    w = leaf([5.0], device)
    y = trident.ones(4, device=device)
    early, other = y[1:], y[::2]
    other[0] = w[0]  # recorded: y and early have not been used since
    with trident.no_grad():
        early.mul_(2)
        y.mul_(3)
    (y.sum() + early.sum() + other.sum()).backward()
    close(w.grad, [2])  # y and other see element 0; the factors are constants for the tape
    close(y, [15, 6, 6, 6])


def test_constants_written_into_a_view_of_a_recorded_tensor(device):
    x = leaf([1.0, 2.0, 3.0], device)
    y = x * 2
    v = y[:2]
    v.fill_(7)
    assert v.requires_grad  # part of a recorded whole
    v.fill_(8).mul_(2)
    (y.sum() + v.sum()).backward()
    close(x.grad, [0, 0, 2])
    close(y, [16, 16, 6])


def test_backward_from_a_stale_tensor_itself(device):
    """The root of a walk was written through a view: its history must follow."""
    x = leaf([3.0], device)
    y = x * 2
    y[0].mul_(5)
    y.backward()
    close(x.grad, [10])
    y = x * 2
    view = y[:]
    y.mul_(7)
    (g,) = grad(view, x)
    close(g, [14])


def test_writes_through_a_detached_alias_are_constants(device):
    x = leaf([1.0, 2.0], device)
    y = x * 2
    y.detach().add_(100)
    y.data[0] = -1
    (y + 0).sum().backward()
    close(y, [-1, 104])
    close(x.grad, [2, 2])


def test_expanded_tensors_cannot_be_written(device):
    y = trident.ones(1, 3, device=device).expand(2, 3)
    for write in (
        lambda: y.add_(1),
        lambda: y.zero_(),
        lambda: y.__setitem__(0, 5.0),
        lambda: y.normal_(),
    ):
        with pytest.raises(AutogradError, match=r"share memory.* clone\(\)"):
            write()
    assert y.clone().add_(1).tolist() == [[2, 2, 2]] * 2


def test_read_only_arrays_cannot_be_written():
    a = np.ones(3, np.float32)
    a.setflags(write=False)
    x = trident.from_numpy(a)
    with pytest.raises(
        AutogradError, match=r"mul_: the tensor's memory is read-only; clone\(\) it"
    ):
        x.mul_(2)
    assert (x * 2).tolist() == [2, 2, 2]


# ---- .data --------------------------------------------------------------------------------------


def test_data(device):
    w = leaf([1.0, 2.0], device)
    assert not w.data.requires_grad and w.data is not w
    w.data.mul_(3)
    w.data -= 1  # reads data, writes in place, assigns the same memory back
    close(w, [2, 5])
    assert w.is_leaf and w.requires_grad
    w.data[0] = 9.0
    close(w, [9, 5])
    other = trident.tensor([[1.0], [2.0], [3.0]], device=device)
    w.data = other
    assert w.shape == (3, 1) and w.requires_grad
    other.add_(1)
    close(w, [[2], [3], [4]])
    with pytest.raises(TypeError, match="data: expected a Tensor; got list"):
        w.data = [1.0]


def test_data_replaced_between_forward_and_backward(device):
    w = leaf([[1.0, 2.0], [3.0, 4.0]], device)
    x = leaf([5.0, 6.0], device)
    y = (w @ x).sum()
    w.data = w.data * 10
    with pytest.raises(AutogradError, match=r"overwritten by \.data ="):
        y.backward()
    w.data.add_(1)  # not counted in vain: a new graph is fine
    (w @ x).sum().backward()
    close(x.grad, [11 + 31, 21 + 41])


def test_parameters_share_and_count_with_their_source(device):
    source = trident.tensor([2.0, 3.0], device=device)
    p = trident.nn.Parameter(source)
    y = (p * p).sum()
    source.add_(1)
    close(p, [3, 4])
    with pytest.raises(AutogradError, match="overwritten by add_"):
        y.backward()


# ---- conversions and shapes ---------------------------------------------------------------------


def test_dtypes_of_writes(device):
    i = trident.tensor([1, 2], device=device)
    with pytest.raises(
        DTypeError, match="add_: a float32 result cannot be written into a int64 tensor"
    ):
        i.add_(1.5)
    with pytest.raises(DTypeError, match="div_"):
        i /= 2
    assert i.tolist() == [1, 2]
    h = trident.ones(2, dtype=trident.float16, device=device)
    h += trident.tensor([0.25, 0.5], dtype=trident.float64, device=device)
    assert h.dtype is trident.float16 and h.tolist() == [1.25, 1.5]
    x = leaf([1.0, 2.0], device, trident.float64)
    y = trident.zeros(2, device=device)
    y += x * x  # float32 += float64, recorded
    y.sum().backward()
    close(x.grad, [2, 4])
    assert x.grad.dtype is trident.float64
    f = trident.zeros(2, device=device)
    f.copy_(trident.tensor([3, 4], device=device))
    assert f.tolist() == [3, 4]


def test_shapes_of_writes(device):
    x = trident.ones(2, 1, device=device)
    with pytest.raises(
        ShapeError, match=r"add_: the result has shape \(2, 3\), which does not fit"
    ):
        x.add_(trident.ones(3, device=device))
    with pytest.raises(ShapeError, match=r"copy_|expand"):
        x.copy_(trident.ones(3, device=device))
    assert x.tolist() == [[1], [1]]
    x.copy_(trident.tensor(4.0))
    assert x.tolist() == [[4], [4]]


def test_failed_writes_leave_no_trace(device):
    x = leaf([1.0, 2.0], device)
    y = x * 2
    z = y * y
    with pytest.raises(ShapeError):
        y.add_(trident.ones(3, device=device))
    z.sum().backward()
    close(x.grad, [8, 16])


def test_copy_between_devices(device):
    x = trident.zeros(2, device=device)
    x.copy_(trident.tensor([1.0, 2.0]))
    assert x.tolist() == [1, 2]
    w = leaf([3.0, 4.0])
    y = trident.zeros(2, device=device)
    y.copy_(w)
    (y * 2).sum().backward()
    close(w.grad, [2, 2])
    assert w.grad.device.type == "cpu"


def test_set_and_resize(device):
    x = trident.zeros(2, device=device)
    y = trident.ones(3, device=device)
    x.set_(y)
    x.add_(1)
    assert y.tolist() == [2, 2, 2]
    assert x.resize_as_(trident.zeros(4, 5)).shape == (4, 5)


def test_random_fills_are_constants_for_the_tape(device):
    x = leaf([1.0, 2.0], device)
    y = x * 2
    y.uniform_(0, 1)
    z = (y * 3).sum()
    assert not z.requires_grad


def test_a_function_that_saved_its_output_sees_writes(device):
    class Exp(Function):
        @staticmethod
        def forward(ctx, x):
            out = x.exp()
            ctx.save_for_backward(out)
            return out

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]

    y = Exp.apply(leaf([1.0], device))
    y.add_(1)
    with pytest.raises(AutogradError, match=r"saved tensor 0, .* overwritten by add_"):
        y.backward()


# ---- random programs --------------------------------------------------------------------------

VIEW_STEPS = [
    lambda t: t[0],
    lambda t: t[1:],
    lambda t: t.reshape(-1),
    lambda t: t.T,
    lambda t: t[..., ::2],
    lambda t: t.unsqueeze(0),
]
WRITE_STEPS = [
    lambda t, w: t.mul_(1.5),
    lambda t, w: t.mul_(w[1]),
    lambda t, w: t.add_(w[:1]),
    lambda t, w: t.sin_(),
    lambda t, w: t.fill_(0.7),
    lambda t, w: t.__setitem__(0, w[2]),
    lambda t, w: t.__setitem__((..., 0), 2.0 * t[..., -1]),
    lambda t, w: t.copy_(t * w[0]),
]


@given(
    st.lists(
        st.tuples(st.sampled_from("vvwwwr"), st.integers(0, 7), st.integers(0, 9)),
        min_size=3,
        max_size=10,
    )
)
def test_random_programs_of_views_and_writes(steps):
    """Views, writes through any of them, reads in between: the gradient is that of the values that
    the program computes (finite differences run the same writes), or the program raises."""

    def program(x, w):
        pool = [x * 1.5, trident.full((3, 4), 0.5, dtype=trident.float64), (x * 2).T]
        total = 0.0
        for kind, choice, which in steps:
            t = pool[which % len(pool)]
            if kind == "v" and t.ndim and t.numel() > 1:
                pool.append(VIEW_STEPS[choice % len(VIEW_STEPS)](t))
            elif kind == "w" and t.ndim and t.numel():
                WRITE_STEPS[choice % len(WRITE_STEPS)](t, w)
            elif kind == "r":
                total = total + (t * (choice + 1)).sum()
        for i, t in enumerate(pool):
            total = total + (t * t * (i + 1)).sum()
        return total

    rng = np.random.default_rng(len(steps))
    x, w = leaf(rng.uniform(0.5, 1.5, (3, 4))), leaf(rng.uniform(0.5, 1.5, 4))
    try:
        total = program(x, w)
        total.backward()
    except AutogradError as error:
        assert "overwritten" in str(error)
        return
    assert gradcheck(program, (x, w), atol=1e-4)
