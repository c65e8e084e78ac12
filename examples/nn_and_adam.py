"""The same two-layer network out of ready parts: ``nn.Sequential``, a loss, ``optim.Adam``.

``nn`` modules own their parameters and start them sensibly, the loss is a module too, and the
optimizer knows how to update: what is left is the loop that every training script has.

    predict, compare, zero the gradients, go backward, step

Adam scales each step by a running estimate of how large that weight's gradients are, so one
learning rate serves layers of very different size.

    python examples/nn_and_adam.py
"""

from __future__ import annotations

import argparse

import trident as torch
import trident.nn as nn
import trident.optim as optim

BATCH, N_IN, N_HIDDEN, N_OUT = 64, 1000, 100, 10


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps, for CI")
    args = parser.parse_args()
    steps = 20 if args.quick else args.steps

    torch.manual_seed(args.seed)
    x = torch.randn(BATCH, N_IN, device=args.device)
    y = torch.randn(BATCH, N_OUT, device=args.device)

    model = nn.Sequential(
        nn.Linear(N_IN, N_HIDDEN),
        nn.ReLU(),
        nn.Linear(N_HIDDEN, N_OUT),
    ).to(args.device)
    loss_fn = nn.MSELoss(reduction="sum")
    optimizer = optim.Adam(model.parameters(), lr=args.lr)
    print(model)
    print(f"{sum(p.numel() for p in model.parameters())} parameters")

    for step in range(steps):
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % (steps // 5) == 0 or step == steps - 1:
            print(f"step {step:>4}   loss {loss.item():.6g}")


if __name__ == "__main__":
    main()
