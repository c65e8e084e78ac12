"""The Lion optimizer: momentum whose sign is the step, so that every weight moves by lr.

    p <- p - lr (sign(beta1 m + (1 - beta1) g) + weight_decay p)
    m <- beta2 m + (1 - beta2) g

There is one state array, half of Adam's. The step looks at the newest gradient more than the
momentum does (beta1 < beta2). Since every step has the size lr, Lion wants an lr three to ten times
smaller than AdamW's, and a weight_decay larger by the same factor.

In plain ops an update is ten passes over memory; this kernel reads p, g and m once and writes p and
m once, in place. So it is not a ``fused`` op, which makes new tensors and has a gradient, but an
``inplace`` one: an update of lists of arrays, with a numpy body for the CPU. ``check_op`` tests it
against that body in float64; ``check_training`` tests the optimizer around it.

There is a launch for each parameter. For models of many small ones, trident/kernels/optim.py shows
how a single launch updates them all.

Source: Chen et al., "Symbolic discovery of optimization algorithms", arXiv:2302.06675.
"""

from __future__ import annotations

import numpy as np
from _bench import bench, main, place

import trident
from trident import nn, optim
from trident.dtypes import from_numpy
from trident.kernels.layout import copy
from trident.lang import cdiv, tl
from trident.ops.registry import inplace
from trident.testing import assert_close
from trident.testing.check import present_devices


@trident.kernel
def lion_kernel(
    p_ptr,  # (n,) contiguous: parameters, updated
    g_ptr,  # (n,) contiguous: gradients
    m_ptr,  # (n,) contiguous: momentum, updated
    numbers_ptr,  # (4,) float64: lr, beta1, beta2, weight_decay
    n,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    # from memory: as arguments they would be float32, as constants each lr would be a new kernel
    lr = tl.load(numbers_ptr).to(ACC)
    beta1 = tl.load(numbers_ptr + 1)
    beta2 = tl.load(numbers_ptr + 2)
    decay = tl.load(numbers_ptr + 3).to(ACC)
    p = tl.load(p_ptr + i, mask=mask, other=0.0).to(ACC)
    g = tl.load(g_ptr + i, mask=mask, other=0.0).to(ACC)
    m = tl.load(m_ptr + i, mask=mask, other=0.0).to(ACC)
    look = beta1.to(ACC) * m + (1.0 - beta1).to(ACC) * g
    sign = tl.where(look > 0, 1.0, tl.where(look < 0, -1.0, look))  # of 0 and NaN: themselves
    p -= lr * (sign + decay * p)
    m = beta2.to(ACC) * m + (1.0 - beta2).to(ACC) * g
    tl.store(p_ptr + i, p.to(p_ptr.dtype.element_ty), mask=mask)
    tl.store(m_ptr + i, m.to(m_ptr.dtype.element_ty), mask=mask)


@inplace
class lion_:
    """One step of Lion on lists of arrays of equal shapes: overwrites ``params`` and ``momenta``.

    Half types are computed in float32 and rounded once.
    """

    def numpy(params, grads, momenta, *, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
        for p, g, m in zip(params, grads, momenta):
            compute = from_numpy(p.dtype).compute.np
            wide_p, wide_g, wide_m = (a.astype(compute, copy=False) for a in (p, g, m))
            step = np.sign(beta1 * wide_m + (1 - beta1) * wide_g)
            p[...] = wide_p - lr * (step + weight_decay * wide_p)
            m[...] = beta2 * wide_m + (1 - beta2) * wide_g

    def launch(params, grads, momenta, *, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
        numbers = params[0].device.from_host(np.array([lr, beta1, beta2, weight_decay]))
        for p, g, m in zip(params, grads, momenta):
            flat_p, flat_m = p.contiguous(), m.contiguous()
            lion_kernel[cdiv(p.size, 1024)](
                flat_p, g.contiguous(), flat_m, numbers, p.size, ACC=p.dtype.compute, BLOCK=1024
            )
            for array, flat in ((p, flat_p), (m, flat_m)):
                if flat is not array:  # it was not contiguous: what was updated is a copy
                    copy(array, flat)

    def samples(draw):
        """The betas are exact in binary: a sum beta1 m + (1 - beta1) g that is 0 is then 0 in every
        dtype, and nothing depends on the sign of a rounding error."""
        shapes = [(2, 520), *(draw.shape(0, 3) for _ in range(2))]
        lists = [[draw.tensor(shape) for shape in shapes] for _ in range(3)]
        for arrays in lists:
            arrays[0] = np.ascontiguousarray(arrays[0])  # several blocks; the small ones have gaps
            arrays[1:] = [np.array(a) if 0 in a.strides else a for a in arrays[1:]]  # writable
        decay = draw.choice([0.0, 0.25])
        return tuple(lists), {"lr": 0.01, "beta1": 0.875, "beta2": 0.96875, "weight_decay": decay}


class Lion(optim.LeafOptimizer):
    """``p -= lr (sign(beta1 m + (1 - beta1) g) + weight_decay p)``;
    ``m = beta2 m + (1 - beta2) g``.

    >>> w = trident.tensor([3.0, -2.0], requires_grad=True)
    >>> opt = Lion([w], lr=0.5)
    >>> (w * w).sum().backward()
    >>> opt.step()
    >>> w.tolist()
    [2.5, -1.5]
    """

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _start(self, p, state, group):
        state["exp_avg"] = trident.zeros_like(p)

    def _step(self, group, params, grads, states):
        beta1, beta2 = group["betas"]
        momenta = [state["exp_avg"] for state in states]
        lr, weight_decay = group["lr"], group["weight_decay"]
        lion_(params, grads, momenta, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay)


def check_training(device):
    """A linear regression, gradients and all, beside the same in numpy: with two groups, a
    schedule, and an optimizer that goes on from the state_dict of another one."""
    rng = np.random.default_rng(0)
    x, y, w = (rng.standard_normal(shape) for shape in ((32, 5), (32, 1), (5, 1)))
    b, m_w, m_b = np.zeros(1), np.zeros((5, 1)), np.zeros(1)
    inputs, targets = trident.tensor(x, device=device), trident.tensor(y, device=device)
    weight, bias = (trident.tensor(a, device=device, requires_grad=True) for a in (w, b))
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "betas": (0.8, 0.9)}]
    optimizer = Lion(groups, lr=0.1)
    schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for t in range(6):
        if t == 3:
            saved = optimizer.state_dict(), schedule.state_dict()
            optimizer = Lion(groups)
            schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            optimizer.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        optimizer.zero_grad()
        nn.functional.mse_loss(inputs @ weight + bias, targets).backward()
        optimizer.step()
        schedule.step()

        slope = 2 / 32 * (x @ w + b - y)
        lr, g_w, g_b = 0.1 * 0.5**t, x.T @ slope, slope.sum(0)
        w = w - lr * (np.sign(0.9 * m_w + 0.1 * g_w) + 0.1 * w)
        b = b - lr * np.sign(0.8 * m_b + 0.2 * g_b)
        m_w, m_b = 0.99 * m_w + 0.01 * g_w, 0.9 * m_b + 0.1 * g_b
        assert_close(weight, w, msg=f"Lion on {device}, weight after step {t + 1}", length=32)
        assert_close(bias, b, msg=f"Lion on {device}, bias after step {t + 1}", length=32)


def example():
    for device in present_devices():
        check_training(device)
        print(f"six steps of Lion are those of its formula on {place(device)}")


class PlainLion(Lion):
    """The same rule in plain ops, a tensor at a time."""

    def _step(self, group, params, grads, states):
        (beta1, beta2), lr = group["betas"], group["lr"]
        for p, g, state in zip(params, grads, states):
            m = state["exp_avg"]
            step = trident.sign(beta1 * m + (1 - beta1) * g)
            p.sub_(step + group["weight_decay"] * p, alpha=lr)
            m.mul_(beta2).add_(g, alpha=1 - beta2)


def bench_variants(device):
    def step_of(make):
        params = [trident.randn(1024, 1024, device=device, requires_grad=True) for _ in range(4)]
        for p in params:
            p.grad = trident.randn(1024, 1024, device=device)
        return make(params, weight_decay=0.1).step

    bench(
        f"one step on 4 x 1024 x 1024 parameters, float32, {device}",
        {
            "Lion": step_of(Lion),
            "Lion in plain ops": step_of(PlainLion),
            "AdamW": step_of(optim.AdamW),
        },
        bytes=5 * 4 * 4 * 1024**2,
    )


if __name__ == "__main__":
    main(lion_, bench_variants, example)
