"""The curves of steps: every way to place them, on the bundled model."""

import json

import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks.steps import JUDGED, OTHERS, Judge, chosen, main
from qdiff_fx.schedules.walk import uniform
from qdiff_fx.sources import SampleRequest, resolve


@pytest.fixture(scope="module")
def origin():
    return resolve("digits")


@pytest.mark.parametrize("name", OTHERS)
def test_others_call_the_network_as_often(name):
    scheduler = OTHERS[name](DDIMScheduler(), 7)
    scheduler.set_timesteps(7)
    assert len(scheduler.timesteps) == 7
    assert scheduler.timesteps[0] > scheduler.timesteps[-1]


def test_a_row_compares_with_all_steps_and_knows_digits(origin, monkeypatch):
    monkeypatch.setattr("benchmarks.steps.ALL", 4)
    judge = Judge(origin, 2)
    same = judge.row("uniform", "float", origin.unet, 4)
    assert same.psnr == (float("inf"),) * len(JUDGED)
    assert same.frechet == pytest.approx(0, abs=1e-6)
    assert 0 <= same.accuracy <= 1
    before = origin.pipe.scheduler
    other = judge.row("Karras", "float", origin.unet, 3, other=OTHERS["Karras"](before, 3))
    assert origin.pipe.scheduler is before
    assert other.mean < 60


def test_schedules_are_kept_and_taken_again(origin, tmp_path, monkeypatch):
    scheduler = origin.pipe.scheduler
    monkeypatch.setattr("benchmarks.steps.ALL", 5)
    monkeypatch.setattr("benchmarks.steps.CHOSEN_BY", 1)
    found = chosen(origin, [2, 3], tmp_path)
    assert {count: len(each) for count, each in found.items()} == {2: 2, 3: 3}
    assert json.loads((tmp_path / "3.json").read_text())[0]["chosen"] == list(found[3].chosen)
    monkeypatch.setattr("benchmarks.steps.placed", None)
    assert chosen(origin, [2, 3], tmp_path) == found
    images = origin.sample(origin.unet, SampleRequest(1, 3, schedule=found[3]))
    assert not torch.equal(images, origin.sample(origin.unet, SampleRequest(1, 5)))
    assert uniform(scheduler, 5).part(found[3].chosen) == found[3]


def test_rows_and_a_picture_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.steps.ALL", 4)
    monkeypatch.setattr("benchmarks.steps.CHOSEN_BY", 1)
    main("digits", [2], 1, None, None, tmp_path / "steps.json", tmp_path / "steps.png")
    found = json.loads((tmp_path / "steps.json").read_text())
    assert [row["model"] for row in found] == ["uniform", "placed", *OTHERS]
    assert (tmp_path / "steps.png").stat().st_size > 1000
