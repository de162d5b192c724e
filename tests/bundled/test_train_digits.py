"""The training script: an interrupted run that is resumed equals an uninterrupted one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train_digits.py"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An archive of random pictures, laid out as MNIST is."""
    source = np.random.default_rng(0)
    arrays = {}
    for name in ("train", "test"):
        arrays[f"{name}_images"] = source.integers(0, 256, (16, 28, 28), dtype=np.uint8)
        arrays[f"{name}_labels"] = source.integers(0, 10, 16, dtype=np.uint8)
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def train(data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    options = [
        "--steps",
        "4",
        "--batch",
        "4",
        "--classifier-epochs",
        "1",
        "--samples",
        "0",
        "--threads",
        "1",
        *more,
    ]
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--data", str(data), "--out", str(out), *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_resumed_run_equals_uninterrupted_run(data: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out, more in ((whole, ()), (broken, ("--until", "2")), (broken, ())):
        done = train(data, out, *more)
        assert done.returncode == 0, done.stderr
    assert "resuming at step 2" in done.stdout
    states = [json.loads((out / "state.json").read_text()) for out in (whole, broken)]
    assert states[0] == states[1]
    assert states[0]["step"] == 4
    first, second = (load_file(out / states[0]["tensors"]) for out in (whole, broken))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert [path.name for path in broken.glob("state-*")] == [states[1]["tensors"]]

    refused = train(data, broken, "--lr", "0.5")
    assert refused.returncode != 0
    assert "other settings" in refused.stderr
