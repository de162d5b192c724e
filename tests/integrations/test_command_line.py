"""Commands on pipelines: drawing with prompts, looking at the component of a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_pipeline import tiny_pipeline
from PIL import Image
from typer.testing import CliRunner, Result

from qdiff_fx import save_qdiff
from qdiff_fx.cli import app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folders(quantized_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float pipeline, a quantized one, and the quantized UNet alone."""
    above = tmp_path_factory.mktemp("folders")
    found = {name: above / name for name in ("float", "quantized", "unet")}
    tiny_pipeline().save_pretrained(found["float"])
    quantized_pipeline.save_pretrained(found["quantized"])
    save_qdiff(quantized_pipeline.unet, found["unet"])
    return found


def test_it_draws_what_a_prompt_says(folders: dict[str, Path], tmp_path: Path) -> None:
    drawn = {}
    for prompt in ("a fish", "two birds", "a fish again"):
        out = tmp_path / f"{prompt}.png"
        arguments = ("--prompt", prompt.removesuffix(" again"), "--count", "1", "--steps", "2", "--seed", "1")
        result = run("sample", folders["unet"], "--source", folders["float"], "--out", out, *arguments)
        assert result.exit_code == 0, result.output
        drawn[prompt] = np.asarray(Image.open(out))
    assert np.array_equal(drawn["a fish"], drawn["a fish again"])
    assert not np.array_equal(drawn["a fish"], drawn["two birds"])


def test_the_component_of_a_pipeline_is_inspected(folders: dict[str, Path]) -> None:
    component = folders["quantized"] / "unet"
    result = run("inspect", component, "--backend", "reference", "--json", "-")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    alone = json.loads(run("inspect", folders["unet"], "--backend", "reference", "--json", "-").stdout)
    assert figures["layers"] == alone["layers"]
    assert figures["bytes"] == alone["bytes"] + (component / "config.json").stat().st_size


def test_a_pipeline_that_is_quantized_already_is_no_source(folders: dict[str, Path], tmp_path: Path) -> None:
    result = run("quantize", folders["quantized"], "--out", tmp_path / "twice")
    assert result.exit_code == 1
    assert "its unet is a QuantizedUNet already" in result.stderr
    assert not (tmp_path / "twice").exists()
