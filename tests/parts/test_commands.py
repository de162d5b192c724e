"""`qdiff quantize PIPELINE --parts` and `qdiff sample` of what it writes, from float16 files to a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result
from whole import tiny_pipeline

from qdiff_fx.cli import app
from qdiff_fx.cli.parts import parse_parts
from qdiff_fx.errors import ConfigError
from qdiff_fx.quant.qparams import SIXTEEN_BITS
from qdiff_fx.tuning.finer import Limits

QUICK = ("--steps", "2", "--samples", "2", "--prompt", "a fish")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in float16 files, and no others."""
    folder = tmp_path_factory.mktemp("half") / "pipeline"
    tiny_pipeline().to(torch.float16).save_pretrained(folder, variant="fp16")
    return folder


def test_parts_as_text() -> None:
    network, others = parse_parts("all")
    assert network
    assert [(each.word, each.by_name) for each in others] == [("controlnet", False), ("vae", False), ("text", False)]
    network, others = parse_parts("vae=w4a8, text")
    assert not network
    assert [(each.word, each.config.weight_bits, each.by_name) for each in others] == [
        ("vae", 4, True),
        ("text", 8, True),
    ]
    (wide,) = parse_parts("vae=w4a16")[1]
    assert (wide.config.weight_bits, wide.config.act_bits) == (4, 8)
    assert wide.config.settings_for("anything").act_bits == SIXTEEN_BITS
    assert [each.finer for each in others] == [Limits(), None]
    for text, message in (
        ("vea", "'vea' is none of unet, controlnet, vae, encoder, text"),
        ("", "is none of"),
        ("vae=four", "says no bits"),
        ("unet=w4a8", "its bits are options of their own. Give --weight-bits"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_parts(text)


@pytest.mark.slow
def test_from_float16_files_to_a_picture(half: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "quantized", tmp_path / "drawn.png"
    done = run("quantize", half, "--parts", "all", "--weight-bits", "4", *QUICK, "--out", out, "--json", "-")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert list(figures["parts"]) == ["unet", "vae.decoder", "text_encoder"]
    assert figures["parts"]["unet"]["config"]["weight_bits"] == 4
    assert figures["parts"]["vae.decoder"]["config"]["weight_bits"] == 8
    assert figures["parts"]["vae.decoder"]["bits"]["weights"] == 8
    assert "vae.decoder: 8.00 bits a weight" in done.stderr
    assert {"sampling", "vae.decoder: choosing bits", "vae.decoder: rounding", "text_encoder: saving"} <= set(
        figures["estimate"]["phases"]
    )
    assert figures["in_float"] == {}
    assert "vae.decoder: calibrating" in done.stderr
    drawn = run("sample", out, "--prompt", "a fish", "--prompt", "two birds", "--steps", "2", "--out", picture)
    assert drawn.exit_code == 0, drawn.output
    assert "unet, text_encoder, vae.decoder quantized" in drawn.stderr
    with Image.open(picture) as sheet:
        assert sheet.width > 2 * 32
        assert sheet.getextrema() != ((0, 0),) * 3
    compared = run(
        *("sample", out, "--compare", "--source", half, "--prompt", "a fish"),
        *("--steps", "2", "--backend", "reference", "--out", picture),
    )
    assert compared.exit_code == 0, compared.output
    again = run("quantize", half, "--parts", "unet", *QUICK, "--rounding", "nearest", "--out", out)
    assert again.exit_code == 0, again.output
    assert json.loads((out / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]


def test_a_dry_run_says_what_the_parts_will_take(half: Path, tmp_path: Path) -> None:
    done = run("quantize", half, "--parts", "vae", *QUICK, "--out", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "vae.decoder: calibrating" in done.stdout
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_or_drawn_is_said_before_any_work(half: Path, tmp_path: Path) -> None:
    for out, message in ((half, "it exists and is no pipeline saved by this"), (tmp_path, "it exists and is no")):
        (tmp_path / "own.txt").write_text("mine")
        done = run("quantize", half, "--parts", "all", *QUICK, "--out", out)
        assert done.exit_code == 1
        assert message in done.stderr
    custom = Path(__file__).parents[2] / "examples" / "custom_unet.py"
    done = run("quantize", custom, "--parts", "unet", "--steps", "2", "--out", tmp_path / "new")
    assert "it is no pipeline of diffusers. Leave out --parts" in done.stderr
    done = run("quantize", "digits", "--parts", "vae", "--steps", "2", "--out", tmp_path / "new")
    assert "no autoencoder with a decoder" in done.stderr
    assert not (tmp_path / "new").exists()
