"""The training script: an interrupted run that is resumed equals an uninterrupted one."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "examples" / "train_digits.py"
Train = Callable[..., None]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs the script's command line on a few random pictures laid out as MNIST is."""
    source = np.random.default_rng(0)
    arrays = {}
    for name in ("train", "test"):
        arrays[f"{name}_images"] = source.integers(0, 256, (16, 28, 28), dtype=np.uint8)
        arrays[f"{name}_labels"] = source.integers(0, 10, 16, dtype=np.uint8)
    np.savez(tmp_path / "data.npz", **arrays)

    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_digits", script)
    spec.loader.exec_module(script)

    def run(out: Path, *more: str) -> None:
        options = f"--steps 4 --batch 4 --classifier-epochs 1 --samples 0 --threads {torch.get_num_threads()}".split()
        argv = [str(SCRIPT), "--data", str(tmp_path / "data.npz"), "--out", str(out), *options, *more]
        monkeypatch.setattr(sys, "argv", argv)
        script.main()

    return run


def test_resumed_run_equals_uninterrupted_run(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole)
    train(broken, "--until", "2")
    train(broken)
    assert "resuming at step 2" in capsys.readouterr().out
    states = [json.loads((out / "state.json").read_text()) for out in (whole, broken)]
    assert states[0] == states[1]
    assert states[0]["step"] == 4
    first, second = (load_file(out / states[0]["tensors"]) for out in (whole, broken))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert [path.name for path in broken.glob("state-*")] == [states[1]["tensors"]]


def test_resuming_with_other_settings_is_refused(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", "--until", "1")
    with pytest.raises(SystemExit, match="other settings"):
        train(tmp_path / "run", "--lr", "0.5")


def test_evaluating_without_a_checkpoint_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkpoint"):
        train(tmp_path / "run", "--evaluate")
