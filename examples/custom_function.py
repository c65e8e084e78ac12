"""An autograd function of one's own: the Legendre polynomial P3, checked and then trained.

``torch.autograd.Function`` is for an operation whose derivative you know better than the tape
does. ``forward`` computes with recording off and saves what the derivative needs; ``backward``
gets the gradient of the output and returns that of the input. Here

    P3(x) = (5 x**3 - 3 x) / 2        P3'(x) = (15 x**2 - 3) / 2

which costs one multiplication chain each way, where the tape would keep three intermediate
results.

``gradcheck`` compares ``backward`` with finite differences before anything is trained with it.
Then ``a + b * P3(c + d * x)`` is fitted to one period of a sine by gradient descent on its four
numbers. The least-squares cubic says how good a cubic can get, so we see that the training
arrives there.

    python examples/custom_function.py
"""

from __future__ import annotations

import argparse

import numpy as np

import trident as torch


class LegendreP3(torch.autograd.Function):
    """P3(x), elementwise."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * x * (5 * x * x - 3)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * 1.5 * (5 * x * x - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, for CI")
    args = parser.parse_args()
    steps = 40 if args.quick else args.steps

    torch.manual_seed(args.seed)
    probe = torch.randn(7, dtype=torch.float64, device=args.device, requires_grad=True)
    torch.autograd.gradcheck(LegendreP3.apply, probe)
    torch.autograd.gradgradcheck(LegendreP3.apply, probe)
    print("gradcheck: first and second derivative agree with finite differences")

    xs = np.linspace(-1, 1, 2001, dtype=np.float32)
    x = torch.from_numpy(xs).to(args.device)
    y = torch.sin(torch.pi * x)
    start = {"a": 0.0, "b": -1.0, "c": 0.0, "d": 0.3}
    p = {k: torch.tensor(v, device=args.device, requires_grad=True) for k, v in start.items()}

    learning_rate = 0.05
    for step in range(steps):
        y_pred = p["a"] + p["b"] * LegendreP3.apply(p["c"] + p["d"] * x)
        loss = (y_pred - y).pow(2).mean()
        loss.backward()
        with torch.no_grad():
            for value in p.values():
                value -= learning_rate * value.grad
                value.grad = None
        if step % (steps // 5) == 0 or step == steps - 1:
            print(f"step {step:>5}   root mean square error {loss.item() ** 0.5:.4f}")

    best = np.polynomial.Polynomial.fit(xs, np.sin(np.pi * xs), 3)
    rms = np.sqrt(np.mean((best(xs) - np.sin(np.pi * xs)) ** 2))
    print("y = {a:.3f} + {b:.3f} P3({c:.3f} + {d:.3f} x)".format(
        **{k: v.item() + 0.0 for k, v in p.items()}
    ))  # fmt: skip
    print(f"trained {loss.item() ** 0.5:.4f}, least-squares cubic {rms:.4f}")


if __name__ == "__main__":
    main()
