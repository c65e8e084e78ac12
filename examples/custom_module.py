"""A module of one's own: parameters found by attribute, saved to a file and loaded again.

A subclass of ``nn.Module`` makes its parts in ``__init__`` and says in ``forward`` how they are
used. Assigning a module or a Parameter to an attribute is what registers it: ``parameters()``,
``state_dict()``, ``to(device)`` and the printed form follow from that.

The net adds a learned scale to the two layers, to show a bare ``nn.Parameter`` beside submodules.
It is trained with momentum, saved as a safetensors file that any tool can read, and loaded into a
fresh net; the last line checks that both nets predict the same numbers.

    python examples/custom_module.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trident as torch
import trident.nn as nn
import trident.optim as optim

BATCH, N_IN, N_HIDDEN, N_OUT = 64, 1000, 100, 10


class TwoLayerNet(nn.Module):
    """relu(x W1 + b1) W2 + b2, times a learned scale per output."""

    def __init__(self, n_in, n_hidden, n_out):
        super().__init__()
        self.first = nn.Linear(n_in, n_hidden)
        self.second = nn.Linear(n_hidden, n_out)
        self.scale = nn.Parameter(torch.ones(n_out))

    def forward(self, x):
        hidden = self.first(x).clamp(min=0)
        return self.second(hidden) * self.scale


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few steps, for CI")
    args = parser.parse_args()
    steps = 20 if args.quick else args.steps

    torch.manual_seed(args.seed)
    x = torch.randn(BATCH, N_IN, device=args.device)
    y = torch.randn(BATCH, N_OUT, device=args.device)

    model = TwoLayerNet(N_IN, N_HIDDEN, N_OUT).to(args.device)
    print(model)
    for name, p in model.named_parameters():
        print(f"  {name:<14} {tuple(p.shape)}")

    loss_fn = nn.MSELoss(reduction="sum")
    optimizer = optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    for step in range(steps):
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % (steps // 5) == 0 or step == steps - 1:
            print(f"step {step:>4}   loss {loss.item():.6g}")

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "two_layer_net.safetensors"
    torch.save(model.state_dict(), path)
    restored = TwoLayerNet(N_IN, N_HIDDEN, N_OUT).to(args.device)
    restored.load_state_dict(torch.load(path, map_location=args.device))
    with torch.no_grad():
        assert (model(x) == restored(x)).all()
    print(f"saved to {path}; the net loaded from there predicts the same numbers")


if __name__ == "__main__":
    main()
