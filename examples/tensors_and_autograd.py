"""A two-layer network fitted twice: gradients by hand, then by autograd.

The net maps 64 inputs of 1000 numbers to 10 outputs through 100 hidden units:

    hidden = relu(x @ w1)            (64, 1000) @ (1000, 100)
    y_pred = hidden @ w2             (64, 100) @ (100, 10)
    loss   = sum((y_pred - y)**2)

Its data are random, so the net can only learn them by heart; that is enough to see every step.
The first half writes the chain rule out in tensor operations. The second half only writes the
forward pass: tensors with ``requires_grad=True`` record what is done to them, and
``loss.backward()`` walks that record. Both halves start from the same weights, so their losses
and weights must agree to rounding; the last lines check that they do.

    python examples/tensors_and_autograd.py
"""

from __future__ import annotations

import argparse

import trident as torch

BATCH, N_IN, N_HIDDEN, N_OUT = 64, 1000, 100, 10
LEARNING_RATE = 1e-6


def train_by_hand(x, y, w1, w2, steps):
    """Gradient descent with the backward pass written out. Returns the losses and the weights."""
    w1, w2 = w1.clone(), w2.clone()
    losses = []
    for _ in range(steps):
        # forward
        before = x.mm(w1)
        hidden = before.clamp(min=0)
        y_pred = hidden.mm(w2)
        error = y_pred - y
        losses.append(error.pow(2).sum().item())

        # backward: the same steps in reverse order, each one's derivative times what came so far
        grad_y_pred = 2.0 * error
        grad_w2 = hidden.t().mm(grad_y_pred)
        grad_hidden = grad_y_pred.mm(w2.t())
        grad_before = grad_hidden * (before > 0)
        grad_w1 = x.t().mm(grad_before)

        w1 -= LEARNING_RATE * grad_w1
        w2 -= LEARNING_RATE * grad_w2
    return losses, w1, w2


def train_by_autograd(x, y, w1, w2, steps):
    """The same descent; only the forward pass is written."""
    w1, w2 = w1.clone().requires_grad_(), w2.clone().requires_grad_()
    losses = []
    for _ in range(steps):
        loss = (x.mm(w1).clamp(min=0).mm(w2) - y).pow(2).sum()
        losses.append(loss.item())
        loss.backward()
        with torch.no_grad():  # an update is not part of the function that is differentiated
            w1 -= LEARNING_RATE * w1.grad
            w2 -= LEARNING_RATE * w2.grad
        w1.grad = w2.grad = None  # backward() adds to .grad, so it starts empty each time
    return losses, w1.detach(), w2.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, for CI")
    args = parser.parse_args()
    steps = 20 if args.quick else args.steps

    torch.manual_seed(args.seed)
    x = torch.randn(BATCH, N_IN, device=args.device)
    y = torch.randn(BATCH, N_OUT, device=args.device)
    w1 = torch.randn(N_IN, N_HIDDEN, device=args.device)
    w2 = torch.randn(N_HIDDEN, N_OUT, device=args.device)

    by_hand, hand1, hand2 = train_by_hand(x, y, w1, w2, steps)
    by_tape, tape1, tape2 = train_by_autograd(x, y, w1, w2, steps)

    print(f"{'step':>6} {'loss by hand':>16} {'by autograd':>16}")
    for step in sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1}):
        print(f"{step:>6} {by_hand[step]:>16.6g} {by_tape[step]:>16.6g}")

    # the last losses are a millionth of the data, where rounding shows: weights are what to compare
    first_gap = abs(by_hand[0] - by_tape[0]) / by_hand[0]
    weight_gap = max((hand1 - tape1).abs().max().item(), (hand2 - tape2).abs().max().item())
    print(f"relative difference of the first loss:       {first_gap:.2g}")
    print(f"largest difference of a weight at the end:   {weight_gap:.2g} (weights are about 1)")
    assert first_gap < 1e-5 and weight_gap < 1e-3, "the two ways must agree to float32 rounding"
    print("both ways agree")


if __name__ == "__main__":
    main()
