"""The examples run."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("custom_unet", ["--steps", "2"]),
        ("quantize_pipeline", ["--steps", "2", "--backend", "reference"]),
        ("quantize_digits", ["--steps", "2", "--samples", "2", "--backend", "reference"]),
    ],
)
def test_an_example_saves_its_network(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--out", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert (tmp_path / "out" / "qdiff.json").is_file()
    assert "0 in float" in capsys.readouterr().out
