"""The tape: walking, modes, hooks, Function, checks, anomaly mode, memory, and what goes wrong."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

import trident
from trident import autograd
from trident.autograd import Function, GradcheckError, grad, gradcheck, gradgradcheck
from trident.autograd.function import once_differentiable
from trident.errors import AutogradError, DTypeError, ShapeError


def leaf(data, device="cpu", dtype=None):
    return trident.tensor(data, device=device, dtype=dtype, requires_grad=True)


def values(x):
    return x.detach().cpu().numpy()


def close(x, want, rtol=1e-5):
    np.testing.assert_allclose(values(x), want, rtol=rtol, atol=1e-6)


@pytest.fixture(autouse=True)
def _modes_are_restored():
    yield
    left = trident.is_grad_enabled(), autograd.is_anomaly_enabled()
    trident.set_grad_enabled(True)
    autograd.set_detect_anomaly(False)
    assert left == (True, False)


# ---- backward and grad --------------------------------------------------------------------------


def test_backward_of_a_scalar(device, rng):
    a, b = rng.standard_normal((3, 4)).astype("f4"), rng.standard_normal(4).astype("f4")
    x, y = leaf(a, device), leaf(b, device)
    (x * y + y.exp()).sum().backward()
    close(x.grad, np.broadcast_to(b, (3, 4)))
    close(y.grad, a.sum(0) + 3 * np.exp(b))
    assert x.grad.dtype is trident.float32 and not x.grad.requires_grad


def test_backward_with_a_gradient(device, rng):
    a, g = rng.standard_normal((2, 3)).astype("f4"), rng.standard_normal((2, 3))
    x = leaf(a, device)
    (x * x).backward(trident.tensor(g, device=device))  # float64: converted
    close(x.grad, 2 * a * g)
    assert x.grad.dtype is trident.float32


def test_gradients_accumulate_until_cleared(device):
    x = leaf([1.0, 2.0], device)
    for k in (1, 2, 3):
        (x * 3).sum().backward()
        close(x.grad, [3 * k, 3 * k])
    x.grad = None
    (x * 3).sum().backward()
    close(x.grad, [3, 3])
    x.grad.zero_()
    (x * 5).sum().backward()
    close(x.grad, [5, 5])


def test_gradients_of_two_leaves_do_not_share_memory(device):
    x, y = leaf([1.0, 2.0], device), leaf([3.0, 4.0], device)
    (x + y).sum().backward()
    x.grad.mul_(10)
    close(y.grad, [1, 1])
    z = leaf([1.0], device)
    g = trident.tensor([2.0], device=device)
    z.backward(g)
    z.grad.zero_()
    close(g, [2])


def test_several_roots(device):
    x = leaf([1.0, 2.0], device)
    autograd.backward([x * 2, (x**2).sum()], [trident.tensor([1.0, 10.0], device=device), None])
    close(x.grad, [2 + 2, 20 + 4])
    (g,) = grad([x * 2, x * 3], x, [trident.ones(2, device=device)] * 2)
    close(g, [5, 5])


def test_grad_returns_and_does_not_accumulate(device):
    x, y = leaf([2.0, 3.0], device), leaf([5.0, 7.0], device)
    h = x * y
    gx, gh = grad((h * h).sum(), (x, h))
    close(gx, 2 * values(h) * values(y))
    close(gh, 2 * values(h))
    assert x.grad is None and y.grad is None and isinstance(grad(x.sum(), x), tuple)
    (g,) = grad(x * 2, [x], grad_outputs=trident.tensor([1.0, 3.0], device=device))
    close(g, [2, 6])


def test_unused_inputs(device):
    x, y = leaf([1.0], device), leaf([2.0], device)
    with pytest.raises(AutogradError, match=r"grad: inputs\[1\], shape \(1,\), was not used"):
        grad(x * 2, (x, y))
    g = grad(x * 2, (x, y), allow_unused=True)
    assert g[1] is None
    g = grad(x * 2, (x, y), materialize_grads=True, allow_unused=True)
    close(g[1], [0])
    with pytest.raises(AutogradError, match=r"grad: inputs\[0\], .* does not require grad"):
        grad(x * 2, trident.ones(1, device=device))


def test_backward_into_chosen_inputs(device):
    x, y = leaf([1.0], device), leaf([2.0], device)
    h = x * y
    (h * y).sum().backward(inputs=[x, h])
    close(x.grad, [4])
    close(h.grad, [2])
    assert y.grad is None


def test_retain_graph(device):
    x = leaf([1.0, 2.0], device)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    close(x.grad, [4, 8])
    with pytest.raises(
        AutogradError, match=r"saved tensors are freed; call backward\(retain_graph=True\)"
    ):
        y.backward()


def test_a_graph_that_saved_nothing_can_be_walked_again(device):
    w = leaf([[1.0, 2.0], [3.0, 4.0]], device)
    t = w.T + 1  # made once, used in every step
    for _ in range(2):
        (t * 2).sum().backward()
    close(w.grad, np.full((2, 2), 4))


def test_un_broadcasting(device, rng):
    for shapes in (
        ((3, 4), (4,)),
        ((2, 1, 3), (4, 1)),
        ((), (2, 3)),
        ((1, 1), (5, 1)),
        ((0, 3), (3,)),
    ):
        a, b = (rng.standard_normal(s) for s in shapes)
        x, y = leaf(a, device), leaf(b, device)
        z = x * y
        w = rng.standard_normal(tuple(z.shape))
        z.backward(trident.tensor(w, device=device))
        for t, other in ((x, b), (y, a)):
            full = np.broadcast_to(w * other, z.shape)
            lead = full.ndim - t.ndim
            axes = tuple(range(lead)) + tuple(
                i + lead for i, n in enumerate(t.shape) if n == 1 and full.shape[i + lead] != 1
            )
            close(t.grad, full.sum(axes).reshape(t.shape))
            assert t.grad.shape == t.shape


def test_mixed_dtypes(device):
    x = leaf([1.5, 2.5], device, trident.float16)
    y = leaf([2.0, 4.0], device, trident.float32)
    z = leaf(3.0, device, trident.float64)
    (x * y * z).sum().backward()
    assert (x.grad.dtype, y.grad.dtype, z.grad.dtype) == (
        trident.float16, trident.float32, trident.float64,
    )  # fmt: skip
    close(x.grad, [6, 12])
    close(y.grad, [4.5, 7.5])
    close(z.grad, 13)


def test_a_leaf_alone(device):
    x = leaf(3.0, device)
    x.backward()
    close(x.grad, 1)
    y = leaf([1.0, 2.0], device)
    (g,) = grad(y, y, trident.tensor([5.0, 6.0], device=device))
    close(g, [5, 6])


def test_diamonds_and_weight_sharing(device, rng):
    a = rng.standard_normal(4).astype("f4")
    x = leaf(a, device)
    y = x * 2
    z = y * y + y * x + x
    z.sum().backward()
    close(x.grad, 8 * a + 4 * a + 1)
    w = leaf([[0.5, -0.25], [1.0, 0.75]], device)
    h = trident.tensor([1.0, 2.0], device=device)
    for _ in range(3):  # one weight, three times
        h = w @ h
    h.sum().backward()
    # d(sum W W W h0)/dW: for each factor, what comes from the left times what it was applied to
    m, right, want = values(w).astype("f8"), np.array([1.0, 2.0]), 0
    for k in range(3):
        left = np.linalg.matrix_power(m.T, 2 - k) @ np.ones(2)
        want, right = want + np.outer(left, right), m @ right
    close(w.grad, want)


def test_dynamic_control_flow(device):
    x = leaf([0.3], device)
    y, steps = x, 0
    while y.item() < 100:
        y = y * 3 if steps % 2 else y + 1
        steps += 1
    y.backward()
    probe, slope = 0.3, 1.0
    for k in range(steps):
        probe, slope = (probe * 3, slope * 3) if k % 2 else (probe + 1, slope)
    close(x.grad, [slope])
    close(y, [probe])


# ---- higher derivatives -------------------------------------------------------------------------


def test_double_and_triple_backward(device, rng):
    a = rng.uniform(0.5, 2, 3)
    x = leaf(a, device)
    y = (x**5).sum()
    (g1,) = grad(y, x, create_graph=True)
    (g2,) = grad(g1.sum(), x, create_graph=True)
    (g3,) = grad(g2.sum(), x, create_graph=True)
    close(g1, 5 * a**4)
    close(g2, 20 * a**3)
    close(g3, 60 * a**2)
    g3.sum().backward()
    close(x.grad, 120 * a)


def test_gradient_penalty(device, rng):
    """A loss of a gradient, by backward(create_graph=True) and by grad."""
    a, b = rng.standard_normal((4, 3)), rng.standard_normal(3)
    x, w = leaf(a, device), leaf(b, device)
    out = ((x * w).sum(1)).tanh().sum()
    (g,) = grad(out, x, create_graph=True)
    ((g * g).sum()).backward()
    t = np.tanh(a @ b)
    s = 1 - t**2
    # g = s w; sum g^2 = sum s^2 |w|^2; ds/dw = -2 t s x
    want = (2 * s * (-2 * t * s) * (b @ b)) @ a + 2 * b * (s**2).sum()
    close(w.grad, want)


def test_backward_with_create_graph_makes_a_differentiable_grad(device):
    x = leaf([2.0], device)
    (x**3).backward(create_graph=True)
    close(x.grad, [12])
    assert x.grad.requires_grad
    (g,) = grad(x.grad, x)
    close(g, [12])


def test_second_derivative_through_a_product_of_gradients(device):
    x, y = leaf(2.0, device), leaf(3.0, device)
    f = x**2 * y**3
    gx, gy = grad(f, (x, y), create_graph=True)
    (gxy,) = grad(gx, y, create_graph=True)
    close(gxy, 2 * 2 * 3 * 9)
    (gyx,) = grad(gy, x)
    close(gyx, values(gxy))


# ---- grad mode ----------------------------------------------------------------------------------


def test_modes_as_context_managers(device):
    x = leaf([1.0], device)
    with trident.no_grad():
        assert not trident.is_grad_enabled() and not (x * 2).requires_grad
        with trident.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    with trident.inference_mode():
        assert not (x * 2).requires_grad
    with trident.inference_mode(False):
        assert (x * 2).requires_grad
    with trident.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    try:
        trident.set_grad_enabled(False)
        assert not trident.is_grad_enabled()
    finally:
        trident.set_grad_enabled(True)
    with pytest.raises(KeyError), trident.no_grad():
        raise KeyError
    assert trident.is_grad_enabled()


def test_modes_as_decorators():
    x = leaf([1.0])

    @trident.no_grad()
    def a():
        return (x * 2).requires_grad

    @trident.no_grad
    def b():
        return (x * 2).requires_grad

    @trident.inference_mode()
    def c():
        return (x * 2).requires_grad

    @trident.enable_grad()
    def d():
        """Docstring kept."""
        return (x * 2).requires_grad

    @trident.set_grad_enabled(False)
    def e():
        return (x * 2).requires_grad

    assert trident.is_grad_enabled()
    assert (a(), b(), c(), e()) == (False,) * 4
    with trident.no_grad():
        assert d() is True
    assert d.__doc__ == "Docstring kept." and d.__name__ == "d"
    switch = trident.no_grad()
    with switch, switch:  # one object, twice
        assert not trident.is_grad_enabled()
    assert trident.is_grad_enabled()


def test_the_mode_is_per_thread():
    seen = []
    with trident.no_grad():
        thread = threading.Thread(target=lambda: seen.append(trident.is_grad_enabled()))
        thread.start()
        thread.join()
        assert not trident.is_grad_enabled()
    assert seen == [True]


def test_requires_grad_attribute(device):
    x = trident.ones(2, device=device)
    assert x.requires_grad_() is x and x.requires_grad and x.is_leaf
    x.requires_grad = False
    assert not x.requires_grad
    y = leaf([1.0], device) * 2
    assert not y.is_leaf and not y.detach().requires_grad
    with pytest.raises(
        AutogradError, match=r"cannot be told not to require grad; use x.detach\(\)"
    ):
        y.requires_grad = False
    with pytest.raises(DTypeError, match="only floating tensors can have gradients"):
        trident.arange(3).requires_grad_()
    y.detach_()
    assert y.is_leaf and not y.requires_grad
    assert not (leaf([1.0]) > 0).requires_grad


# ---- hooks --------------------------------------------------------------------------------------


def test_hooks_on_computed_tensors(device):
    x = leaf([1.0, 2.0], device)
    y = x * 3
    seen = []
    first = y.register_hook(lambda g: seen.append(values(g).tolist()))
    second = y.register_hook(lambda g: g * 10)
    third = y.register_hook(lambda g: seen.append(values(g).tolist()))
    (y * 2).sum().backward(retain_graph=True)
    assert seen == [[2, 2], [20, 20]]
    close(x.grad, [60, 60])
    second.remove()
    second.remove()
    x.grad = None
    (y * 2).sum().backward(retain_graph=True)
    assert seen[2:] == [[2, 2], [2, 2]]
    close(x.grad, [6, 6])
    first.remove()
    third.remove()
    (y * 2).sum().backward()
    assert len(seen) == 4


def test_hooks_on_leaves(device):
    x = leaf([1.0], device)
    handle = x.register_hook(lambda g: g * 2)
    (x * 3 + x * 4).sum().backward()  # once, on the sum
    close(x.grad, [14])
    (g,) = grad((x * 3).sum(), x)
    close(g, [6])
    handle.remove()
    (g,) = grad((x * 3).sum(), x)
    close(g, [3])


def test_the_same_hook_twice_is_removed_once():
    x = leaf([1.0])

    def double(g):
        return g * 2

    first = x.register_hook(double)
    with x.register_hook(double):
        close(grad(x * 1, x)[0], [4])
    close(grad(x * 1, x)[0], [2])
    first.remove()
    close(grad(x * 1, x)[0], [1])


def test_hooks_on_nodes(device):
    x, y = leaf([2.0], device), leaf([5.0], device)
    z = x * y
    seen = []
    node = z.grad_fn
    assert node.name() == "MulBackward" and "MulBackward" in repr(node)
    handle = node.register_hook(lambda gi, go: seen.append((len(gi), values(go[0]).tolist())))
    pre = node.register_prehook(lambda g: g * 100)
    z.sum().backward(retain_graph=True)
    assert seen == [(2, [100])]
    close(x.grad, [500])
    handle.remove()
    pre.remove()
    node.register_hook(lambda gi, go: tuple(g * 0 for g in gi))
    x.grad = None
    z.sum().backward()
    close(x.grad, [0])
    names = [f.name() for f, _ in z.grad_fn.next_functions]
    assert names == ["AccumulateGrad", "AccumulateGrad"]
    assert z.grad_fn.next_functions[0][0].variable is x


def test_post_accumulate_hook(device):
    x = leaf([1.0, 2.0], device)
    seen = []

    def step(p):
        seen.append(values(p.grad).tolist())
        p.data -= p.grad
        p.grad = None

    handle = x.register_post_accumulate_grad_hook(step)
    (x * x).sum().backward()
    assert seen == [[2, 4]] and x.grad is None
    close(x, [-1, -2])
    handle.remove()
    (x * 1).sum().backward()
    assert len(seen) == 1
    with pytest.raises(AutogradError, match="only leaves accumulate gradients"):
        (x * 2).register_post_accumulate_grad_hook(step)


def test_hook_errors(device):
    x = trident.ones(2, device=device)
    for method in ("register_hook", "retain_grad"):
        with pytest.raises(AutogradError, match=f"{method}: the tensor does not require grad"):
            getattr(x, method)(*[print] * (method == "register_hook"))
    y = leaf([1.0, 2.0], device)
    y.register_hook(lambda g: g.sum().reshape(1))
    with pytest.raises(
        ShapeError, match=r"hook: a gradient hook must return shape \(2,\); got \(1,\)"
    ):
        (y * 2).sum().backward()


def test_retain_grad(device):
    x = leaf([1.0, 2.0], device)
    y = x * 2
    z = x + y
    y.retain_grad()
    z.retain_grad()
    assert y.retains_grad and not x.retains_grad
    loss = (z * 3).sum()
    loss.backward(retain_graph=True)
    close(y.grad, [3, 3])
    close(z.grad, [3, 3])
    y.grad.mul_(5)
    close(z.grad, [3, 3])
    loss.backward()  # like a leaf's, it accumulates
    close(y.grad, [18, 18])
    close(x.grad, [18, 18])


# ---- Function -----------------------------------------------------------------------------------


class Poly(Function):
    """a x^2 + b x with a number a; differentiable again."""

    @staticmethod
    def forward(ctx, x, a, b):
        ctx.save_for_backward(x, b)
        ctx.a = a
        ctx.needed = ctx.needs_input_grad
        return a * x**2 + b * x

    @staticmethod
    def backward(ctx, g):
        x, b = ctx.saved_tensors
        assert ctx.needs_input_grad == ctx.needed
        return g * (2 * ctx.a * x + b), None, g * x if ctx.needs_input_grad[2] else None


def test_function(device):
    x = leaf([1.0, -2.0], device)
    b = trident.tensor([3.0, 4.0], device=device)
    y = Poly.apply(x, 5.0, b)
    assert y.grad_fn.name() == "PolyBackward" and not y.is_leaf
    close(y, [8, 12])
    y.sum().backward()
    close(x.grad, [13, -16])
    assert b.grad is None
    b.requires_grad_()
    Poly.apply(x.detach(), 5.0, b).sum().backward()
    close(b.grad, [1, -2])
    with trident.no_grad():
        assert not Poly.apply(x, 1.0, b).requires_grad


def test_function_second_order():
    x, b = leaf([1.0, -2.0], dtype=trident.float64), leaf([3.0, 4.0], dtype=trident.float64)
    assert gradcheck(lambda x, b: Poly.apply(x, 5.0, b), (x, b))
    assert gradgradcheck(lambda x, b: Poly.apply(x, 5.0, b), (x, b))


def test_function_with_a_saved_output(device):
    class Exp(Function):
        @staticmethod
        def forward(ctx, x):
            out = x.exp()
            ctx.save_for_backward(out)
            return out

        @staticmethod
        def backward(ctx, g):
            (out,) = ctx.saved_tensors
            return g * out

    x = leaf([0.5, 1.0], device)
    y = Exp.apply(x)
    (g,) = grad(y.sum(), x, create_graph=True)
    close(g, np.exp([0.5, 1]))
    (g2,) = grad(g.sum(), x, create_graph=True)
    close(g2, np.exp([0.5, 1]))
    (g3,) = grad(g2.sum(), x)
    close(g3, np.exp([0.5, 1]))


def test_function_with_setup_context(device):
    class Scale(Function):
        @staticmethod
        def forward(x, k):
            return x * k

        @staticmethod
        def setup_context(ctx, inputs, output):
            _, ctx.k = inputs

        @staticmethod
        def backward(ctx, g):
            return g * ctx.k, None

    x = leaf([1.0], device)
    Scale.apply(x, 7.0).backward()
    close(x.grad, [7])


def test_function_with_several_outputs(device):
    class Split(Function):
        @staticmethod
        def forward(ctx, x):
            index = x.argmax()
            ctx.mark_non_differentiable(index)
            return x * 2, x * 3, index, "a note"

        @staticmethod
        def backward(ctx, g2, g3, g_index, g_note):
            assert g_note is None
            return g2 * 2 + g3 * 3

    x = leaf([1.0, 4.0], device)
    a, b, i, note = Split.apply(x)
    assert i.item() == 1 and not i.requires_grad and note == "a note"
    (a * 10).sum().backward()  # the missing gradient of b is zeros
    close(x.grad, [20, 20])
    a, b, _, _ = Split.apply(x)
    x.grad = None
    (a * b).sum().backward()
    close(x.grad, [12, 48])


def test_function_without_materialized_gradients(device):
    got = []

    class Two(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x * 1, x * 2

        @staticmethod
        def backward(ctx, a, b):
            got.append((a is None, b is None))
            return b * 2

    x = leaf([1.0], device)
    Two.apply(x)[1].backward()
    assert got == [(True, False)]
    close(x.grad, [2])


def test_function_that_returns_or_writes_its_input(device):
    class Same(Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, g):
            return g * 2

    class Double(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

        @staticmethod
        def backward(ctx, g):
            return g * 2

    x = leaf([3.0], device)
    y = Same.apply(x)
    assert x.is_leaf and not y.is_leaf
    y.backward()
    close(x.grad, [2])
    z = x * 1
    out = Double.apply(z)
    assert out is z
    close(z, [6])
    x.grad = None
    (z * z).sum().backward()
    close(x.grad, [24])
    with pytest.raises(AutogradError, match=r"Double.forward: .* leaf .* in place"):
        Double.apply(x)


def test_once_differentiable(device):
    class Cube(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @once_differentiable
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return trident.tensor(3 * values(x) ** 2, device=device) * g

    x = leaf([2.0], device)
    w = leaf([1.0], device)
    (g,) = grad((Cube.apply(x) * w).sum(), x, create_graph=True)
    close(g, [12])
    with pytest.raises(
        AutogradError, match=r"once_differentiable: .* cannot be differentiated again"
    ):
        g.sum().backward()


def test_function_errors(device):
    def function(result):
        class Bad(Function):
            @staticmethod
            def forward(ctx, x, y):
                return x * y

            @staticmethod
            def backward(ctx, g):
                return result(g)

        return Bad.apply(leaf([1.0, 2.0], device), leaf([3.0, 4.0], device)).sum()

    with pytest.raises(
        AutogradError,
        match=r"Bad.backward: must return one gradient per input of forward, 2; got 1",
    ):
        function(lambda g: g).backward()
    with pytest.raises(AutogradError, match="got 3"):
        function(lambda g: (g, g, g)).backward()
    with pytest.raises(
        TypeError, match=r"Bad.backward: gradient 1 must be a Tensor or None; got float"
    ):
        function(lambda g: (g, 1.0)).backward()
    with pytest.raises(ShapeError, match=r"Bad.backward: gradient 0 must have the shape \(2,\)"):
        function(lambda g: (g[:0], g)).backward()
    with pytest.raises(TypeError, match=r"Functions are not instantiated; call Poly.apply"):
        Poly()
    y = Poly.apply(leaf([1.0]), 2.0, leaf([1.0]))
    y.backward()
    with pytest.raises(AutogradError, match="saved tensors are freed"):
        y.backward()
    with pytest.raises(AutogradError, match=r"saved tensor 0, .* overwritten by mul_"):
        x = leaf([1.0]) * 1
        y = Poly.apply(x, 2.0, leaf([1.0]))
        x.mul_(2)
        y.backward()


# ---- checks -------------------------------------------------------------------------------------


class WrongSin(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos() * 1.01


def test_gradcheck_catches_a_wrong_gradient(rng):
    x = leaf(rng.standard_normal(5))
    assert gradcheck(lambda x: x.sin(), x)
    with pytest.raises(
        GradcheckError, match=r"gradcheck: the gradient of inputs\[0\], shape \(5,\)"
    ):
        gradcheck(WrongSin.apply, x)
    assert not gradcheck(WrongSin.apply, x, raise_exception=False)
    assert gradcheck(lambda x, n: (x * n, x.exp()), (x, 3.0))


def test_gradgradcheck_catches_a_wrong_second_derivative(rng):
    class Square(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * (x + x.detach())  # the right value, the wrong derivative

    x = leaf(rng.standard_normal(5))
    assert gradcheck(Square.apply, x)
    with pytest.raises(GradcheckError):
        gradgradcheck(Square.apply, x)
    assert gradgradcheck(lambda x: x**4, x)
    assert gradgradcheck(lambda x: x * 2, x)  # linear


def test_gradcheck_needs_float64_inputs():
    with pytest.raises(AutogradError, match="no input requires grad"):
        gradcheck(lambda x: x, trident.ones(2))
    with pytest.raises(AutogradError, match=r"inputs\[0\] must be float64 .*; got float32"):
        gradcheck(lambda x: x * 2, leaf([1.0]))
    with pytest.raises(AutogradError, match="no output of func depends on"):
        gradcheck(lambda x: x.detach(), leaf([1.0], dtype=trident.float64))


def test_anomaly_mode_shows_the_forward_line(device):
    x = leaf([0.0, 1.0], device)
    with autograd.detect_anomaly():
        assert autograd.is_anomaly_enabled()
        y = x.sqrt()  # the guilty line
        z = (y * trident.tensor([0.0, 1.0], device=device)).sum()
        with pytest.raises(AutogradError, match=r"(?s)backward of sqrt: .* NaN.*the guilty line"):
            z.backward()
    assert not autograd.is_anomaly_enabled()
    x.sqrt().sum().backward()  # infinite, and nobody minds
    with autograd.detect_anomaly(check_nan=False):
        (x.sqrt() * 0).sum().backward()
    autograd.set_detect_anomaly(True)
    autograd.set_detect_anomaly(False)
    assert not autograd.is_anomaly_enabled()


def test_anomaly_mode_names_the_line_of_an_overwritten_tensor(device):
    with autograd.detect_anomaly():
        x = leaf([1.0, 2.0], device)
        y = x * 1
        z = y.exp() * y  # saved here
        y.add_(1)
        with pytest.raises(AutogradError, match=r"(?s)operand .* overwritten by add_ .*saved here"):
            z.sum().backward()


def test_anomaly_mode_notes_the_line_of_a_failing_backward():
    class Fails(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            raise KeyError("inside")

    with autograd.detect_anomaly():
        y = Fails.apply(leaf([1.0]))  # applied here
        with pytest.raises(KeyError) as caught:
            y.backward()
    assert "applied here" in "".join(caught.value.__notes__)


# ---- depth and memory ---------------------------------------------------------------------------


def test_a_graph_of_100000_operations():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    close(x.grad, 1)
    del y  # releasing must not recurse either
    y = leaf(1.0)
    for _ in range(100_000):
        y = y * 1.0
    del y
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y.reshape(1).reshape(())
    (g,) = grad(y, x)
    close(g, 1)


def test_saved_arrays_are_freed_during_the_walk():
    x = leaf(np.ones(1000))
    alive = []
    freed_when_reached = []
    y = x
    for k in range(6):
        y = y.exp() * 0.1
        alive.append(weakref.ref(y._data))
        at = k

        def note(g, at=at):
            # everything that was computed after this tensor is no longer needed
            freed_when_reached.append(all(ref() is None for ref in alive[at + 1 : -1]))

        y.register_hook(note)
    y.sum().backward()
    assert freed_when_reached == [True] * 6
    assert all(ref() is None for ref in alive[:-1])


def test_graphs_die_without_the_garbage_collector(device):
    gc.disable()
    try:
        x = leaf([1.0, 2.0], device)
        y = (x.exp() * x.reshape(2, 1)[0]).sum()
        node = weakref.ref(y.grad_fn)
        y.backward()
        del y
        assert node() is None
        z = (x * 2).exp()
        node = weakref.ref(z.grad_fn)
        del z
        assert node() is None
    finally:
        gc.enable()


def test_retain_graph_keeps_and_walking_twice_equals_once(device):
    x = leaf([1.0, 2.0, 3.0], device)
    y = (x.exp() * x).sum()
    (a,) = grad(y, x, retain_graph=True)
    (b,) = grad(y, x)
    np.testing.assert_array_equal(values(a), values(b))


# ---- errors -------------------------------------------------------------------------------------


def test_backward_errors(device):
    x = leaf([1.0, 2.0], device)
    with pytest.raises(
        AutogradError, match=r"backward: a gradient is implied only for .* \(2,\)\. Reduce"
    ):
        (x * 2).backward()
    with pytest.raises(
        ShapeError, match=r"backward: the gradient must have the tensor's shape \(2,\); got \(3,\)"
    ):
        (x * 2).backward(trident.ones(3, device=device))
    with pytest.raises(
        AutogradError, match=r"backward: the tensor, shape \(2,\), does not require grad"
    ):
        trident.ones(2, device=device).backward()
    with pytest.raises(AutogradError, match="does not require grad"), trident.no_grad():
        (x * 2).sum().backward()
    with pytest.raises(AutogradError, match="backward: 2 tensors need 2 gradients; got 1"):
        autograd.backward([x * 2, x * 3], [trident.ones(2, device=device)])
    with pytest.raises(TypeError, match="backward: a gradient must be a Tensor; got float"):
        (x * 2).sum().backward(1.0)
    assert x.grad is None


def test_gradient_on_another_device(device):
    if device == "cpu":
        pytest.skip("needs two devices: run with --device cuda")
    x = leaf([1.0, 2.0], device)
    with pytest.raises(trident.errors.DeviceError, match="backward: the gradient is on cpu"):
        (x * 2).backward(trident.ones(2))
