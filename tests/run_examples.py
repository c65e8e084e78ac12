"""Every example on its short setting (``python -m pytest tests/run_examples.py``)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples"
EXAMPLES = sorted(p for p in FOLDER.rglob("*.py") if not p.name.startswith("_"))
GALLERY = [p for p in EXAMPLES if p.parent.name == "fused"]


def run(path, tmp_path, *arguments, **env):
    return subprocess.run(
        [sys.executable, str(path), "--quick", *arguments],
        cwd=tmp_path, text=True, capture_output=True, timeout=600, env={**os.environ, **env},
    )  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, tmp_path):
    done = run(path, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", GALLERY, ids=lambda p: p.stem)
def test_gallery_on_the_kernels(path, tmp_path):
    """Each fused op of the gallery, checked through its kernels in Triton's interpreter."""
    done = run(path, tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr


def test_classifier_on_the_kernels(tmp_path):
    """The main job through every kernel it needs, in Triton's interpreter."""
    path = ROOT / "examples" / "train_classifier.py"
    done = run(path, tmp_path, "--device", "cuda", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
