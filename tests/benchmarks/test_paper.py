"""The paper's experiments, on a network small enough for a test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.paper.ablation import LADDER, NAIVE
from benchmarks.paper.activations import layer_ranges, over_timesteps
from benchmarks.paper.bimodal import bimodal
from benchmarks.paper.result import Result
from benchmarks.paper.study import Study
from qdiff_fx import QDiffConfig
from qdiff_fx.cli.quantize import DEFAULTS

CUSTOM = Path(__file__).parents[2] / "examples" / "custom_unet.py"


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(str(CUSTOM), steps=5, images=2, backend="reference")


def test_the_ladder_ends_at_the_defaults():
    """So the last rung is what a user of the command line gets, and each rung is a configuration."""
    config = dict(NAIVE)
    for rung in LADDER:
        config |= rung.changes
        QDiffConfig(**config)
    # What "auto" is to the command line, which rounds the weights.
    assert QDiffConfig(**config) == replace(DEFAULTS, weight_rounding="second_order")
    assert LADDER[-1].where is None


def test_every_layer_has_a_range_and_the_shortcut_is_marked(study):
    rows = {row["layer"]: row for row in layer_ranges(study).rows}
    assert all(row["range"] > 0 for row in rows.values())
    assert [name for name, row in rows.items() if row["shortcut"]] == ["merge.shortcut input"]


def test_quantiles_are_in_order_in_every_timestep_bin(study):
    rows = over_timesteps(study).rows
    assert len(rows) == 5
    for row in rows:
        values = [row[name] for name in ("min", "1%", "25%", "50%", "75%", "99%", "max")]
        assert values == sorted(values)


def test_parts_of_the_concatenation(study, tmp_path):
    result = bimodal(study)
    assert [row["layer"] for row in result.rows] == ["merge.shortcut"]
    result.save(tmp_path, "bimodal", {"steps": 5})
    assert (tmp_path / "bimodal.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "bimodal.json").read_text())["settings"] == {"steps": 5}


def test_a_network_that_makes_no_error_has_no_error(study):
    """The float network itself in place of the quantized one."""
    figures = study.fidelity(study.source.unet)
    assert figures["sqnr_db"] > 100
    assert figures["psnr_db"] > 100


@pytest.mark.slow
def test_fewer_bits_stray_further(study):
    float_steps = [step.sample for step in study.trajectories[0].steps]
    errors = []
    for bits in (8, 3):
        met = [step.sample for step in study.walk(study.quantized(weight_bits=bits), study.seeds[1]).steps]
        assert len(met) == study.steps
        assert met[0].equal(float_steps[0])
        errors.append(float((met[-1] - float_steps[-1]).square().mean()))
    assert errors[0] < errors[1]


def test_a_table_shows_its_rows():
    assert Result("t", [{"a": 0.01234, "b": "x"}, {"a": 12.34, "b": "y"}]).markdown().splitlines() == [
        "| a | b |",
        "|---|---|",
        "| 0.0123 | x |",
        "| 12.3 | y |",
    ]


def test_an_unknown_experiment_names_the_known_ones():
    import typer

    from benchmarks.paper.__main__ import main

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["figure9"])
    assert result.exit_code != 0
    assert "accumulation" in result.output
