"""A network whose graph changes every step: control flow in Python, weights shared between layers.

Each forward pass draws a number from 0 to 3 and applies the same middle layer that many times, so
the net has one to four hidden layers from one step to the next, always with three sets of
weights. Nothing has to be declared for that: the tape holds what was done in this pass, and where
the middle layer was used three times its weights get the sum of three gradients.

The depth is drawn from a generator of the net's own, so a run can be repeated. The loss of every
step is drawn as a picture, coloured by the depth of the net in that step.

    python examples/dynamic_net.py
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import trident as torch
import trident.nn as nn
import trident.optim as optim

BATCH, N_IN, N_HIDDEN, N_OUT = 64, 1000, 100, 10
MOST_REPEATS = 3


class DynamicNet(nn.Module):
    """input layer, then the middle layer 0 to 3 times, then the output layer."""

    def __init__(self, n_in, n_hidden, n_out, seed):
        super().__init__()
        self.enter = nn.Linear(n_in, n_hidden)
        self.middle = nn.Linear(n_hidden, n_hidden)
        self.leave = nn.Linear(n_hidden, n_out)
        self.choose = random.Random(seed)
        self.depth = 0

    def forward(self, x):
        h = self.enter(x).relu()
        repeats = self.choose.randint(0, MOST_REPEATS)
        for _ in range(repeats):
            h = self.middle(h).relu()
        self.depth = 1 + repeats
        return self.leave(h)


def save_curve(losses, depths, path):
    """The loss of every step on a logarithmic scale, one colour for each depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(losses, color="0.8", linewidth=0.8, zorder=1)
    colours = plt.get_cmap("viridis")
    for depth in range(1, MOST_REPEATS + 2):
        steps = [i for i, d in enumerate(depths) if d == depth]
        axes.scatter(
            steps, [losses[i] for i in steps], s=9, zorder=2,
            color=colours((depth - 1) / (MOST_REPEATS + 0.4)), label=f"{depth}",
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="loss (sum of squares)", yscale="log")
    axes.set_title("One net, one to four hidden layers", loc="left")
    axes.legend(title="hidden layers", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few steps, for CI")
    args = parser.parse_args()
    steps = 20 if args.quick else args.steps

    torch.manual_seed(args.seed)
    x = torch.randn(BATCH, N_IN, device=args.device)
    y = torch.randn(BATCH, N_OUT, device=args.device)
    model = DynamicNet(N_IN, N_HIDDEN, N_OUT, args.seed).to(args.device)
    loss_fn = nn.MSELoss(reduction="sum")
    optimizer = optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    losses, depths = [], []
    for step in range(steps):
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        depths.append(model.depth)
        if step % (steps // 5) == 0 or step == steps - 1:
            print(f"step {step:>4}   hidden layers {model.depth}   loss {losses[-1]:.6g}")

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "dynamic_net.png"
    save_curve(losses, depths, path)
    print(f"loss curve: {path}")


if __name__ == "__main__":
    main()
