"""A training step runs where torch cannot be imported at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} was asked for")

sys.meta_path.insert(0, NoTorch())
try:
    import torch
except ImportError as error:
    assert "torch was asked for" in str(error)
else:
    raise SystemExit("the guard does not work")

import numpy as np
import trident

device = sys.argv[1]
rng = np.random.default_rng(0)
trident.manual_seed(0)
inputs = rng.standard_normal((32, 4)).astype(np.float32)
targets = (inputs @ [1.0, -2.0, 0.5, 0.0] > 0).astype(np.int64)
x, y = trident.tensor(inputs, device=device), trident.tensor(targets, device=device)
net = trident.nn.Sequential(
    trident.nn.Linear(4, 16), trident.nn.LayerNorm(16), trident.nn.ReLU(), trident.nn.Linear(16, 2)
).to(device)
optimizer = trident.optim.AdamW(net.parameters(), lr=0.03)
losses = []
for _ in range(15):
    optimizer.zero_grad()
    loss = trident.nn.functional.cross_entropy(net(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < 0.5 * losses[0], losses
assert net(x).argmax(1).eq(y).float().mean().item() > 0.9
assert not [m for m in sys.modules if m.split(".")[0] == "torch"]
print("ok", losses[0], losses[-1])
"""


def test_training_without_torch(device):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, device],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok")
