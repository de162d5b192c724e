"""Curves over how much data: what each point is shown."""

import json

import pytest
import torch

from benchmarks.enough_data import CURVES, by_rows, by_runs, by_steps, main, rows_of
from qdiff_fx import CalibrationData

STEPS = 8


def data(runs=2, samples=3):
    """Two runs of the sampler over eight steps; a record's values tell its run and its step."""
    records = [
        {"sample": torch.full((samples, 1), 100.0 * run + step), "timestep": torch.full((samples,), 900 - 100 * step)}
        for run in range(runs)
        for step in range(STEPS)
    ]
    return CalibrationData(records)


def steps_of(some):
    return sorted({int(batch["sample"][0, 0]) % 100 for batch in some})


def test_rows_are_spread_over_steps_and_runs():
    shown = list(by_rows(data(), STEPS))
    assert [amount for amount, _ in shown] == sorted(amount for amount, _ in shown)
    assert shown[-1][0] == rows_of(data()) == 48
    assert all(amount == rows_of(some) for amount, some in shown)
    assert len({int(batch["sample"][0, 0]) // 100 for batch in shown[0][1]}) == 2


def test_runs_are_whole_trajectories():
    assert [(count, len(some), steps_of(some)) for count, some in by_runs(data(), STEPS)] == [
        (1, STEPS, list(range(STEPS))),
        (2, 2 * STEPS, list(range(STEPS))),
    ]


def test_steps_hold_the_last_one_always():
    shown = dict(by_steps(data(), STEPS))
    assert {amount: steps_of(some) for amount, some in shown.items()} == {
        1: [7],
        2: [3, 7],
        4: [1, 3, 5, 7],
        8: list(range(8)),
    }


@pytest.mark.slow
def test_a_curve_of_the_bundled_model_is_printed_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(CURVES, "rows", lambda data, steps: iter([(2, data[:1]), (4, data)]))
    main("digits", samples=1, steps=2, images=1, only=["rows"], json=tmp_path / "c.json", picture=tmp_path / "c.png")
    points = json.loads((tmp_path / "c.json").read_text())
    assert [point["amount"] for point in points] == [2, 4]
    assert all(5 < point["decibels"] < 60 for point in points)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count(" dB  last step") == 2
