"""Curves over how much data: what each point is shown."""

import json

import pytest
import torch

from benchmarks.enough_data import (
    CURVES,
    Recorded,
    alike,
    by_rounded_rows,
    by_rows,
    by_steps,
    by_trajectories,
    main,
    rows_of,
)
from qdiff_fx import CalibrationData

STEPS = 8


def recorded(samples=6):
    """Trajectories of eight steps, three drawn together; a row's value tells its trajectory and its step."""

    def draw(count):
        groups = [range(first, min(first + 3, count)) for first in range(0, count, 3)]
        records = [
            {
                "sample": torch.tensor([[100.0 * number + step] for number in group]),
                "timestep": torch.full((len(group),), 900 - 100 * step),
            }
            for group in groups
            for step in range(STEPS)
        ]
        return CalibrationData(records)

    return Recorded(samples, STEPS, draw)


def values(some):
    return [int(value) for batch in some for value in batch["sample"].flatten()]


def steps_of(some):
    return sorted({value % 100 for value in values(some)})


def test_rows_are_spread_over_steps_and_trajectories():
    shown = list(by_rows(recorded()))
    assert [each.amount for each in shown] == [8, 16, 32, 48]
    for each in shown:
        assert rows_of(each.observed) == rows_of(each.rounded) == each.amount
        assert steps_of(each.observed) == list(range(STEPS))
    assert len({value // 100 for value in values(shown[0].observed)}) > 3


def test_rounding_sees_fewer_rows_than_observers():
    shown = list(by_rounded_rows(recorded()))
    assert [rows_of(each.rounded) for each in shown] == [each.amount for each in shown] == [8, 16, 32, 48]
    assert {rows_of(each.observed) for each in shown} == {48}


def test_trajectories_are_whole():
    shown = {each.amount: each.observed for each in by_trajectories(recorded())}
    assert {count: sorted(values(some)) for count, some in shown.items()} == {
        count: [100 * number + step for number in range(count) for step in range(STEPS)] for count in (1, 2, 4, 6)
    }


def test_steps_hold_the_last_one_always():
    shown = {each.amount: each.rounded for each in by_steps(recorded())}
    assert {amount: steps_of(some) for amount, some in shown.items()} == {
        1: [7],
        2: [3, 7],
        4: [1, 3, 5, 7],
        8: list(range(8)),
    }


@pytest.mark.slow
def test_a_curve_of_the_bundled_model_is_printed_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(CURVES, "rows", lambda recorded: iter([alike(2, recorded.most[:1]), alike(4, recorded.most)]))
    main("digits", samples=1, steps=2, images=1, only=["rows"], json=tmp_path / "c.json", picture=tmp_path / "c.png")
    points = json.loads((tmp_path / "c.json").read_text())
    assert [point["amount"] for point in points] == [2, 4]
    assert all(5 < point["decibels"] < 60 for point in points)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count(" dB  last step") == 2
