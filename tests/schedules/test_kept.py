"""A schedule goes with the network: from the command that chooses it to the one that draws."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import crafted_folders as crafted
import pytest
import torch
from diffusers import DDIMScheduler
from typer.testing import CliRunner

from qdiff_fx import load_qdiff, save_qdiff
from qdiff_fx.calibration.fingerprint import source_fingerprint
from qdiff_fx.cli import app
from qdiff_fx.cli.saved import request_of
from qdiff_fx.errors import ArtifactError, ConfigError
from qdiff_fx.schedule import Schedule
from qdiff_fx.schedules.walk import uniform, with_schedule
from qdiff_fx.sources import SampleRequest, resolve
from qdiff_fx.sources.digits import DigitsSource
from qdiff_fx.storage.checked_schedule import schedule_from_json
from qdiff_fx.workflow.job import Job, QDiffConfig

CUSTOM = Path(__file__).parents[2] / "examples" / "custom_unet.py"
SCHEDULE = Schedule("DDIMScheduler", 1000, 8, (0, 1, 4), (875.0, 750.0, 375.0))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def network(folder: Path):
    return load_qdiff(crafted.write(folder), "reference")


def test_a_folder_keeps_it_and_every_copy_has_it(tmp_path):
    quantized = network(tmp_path / "without")
    assert quantized.schedule is None
    assert "schedule" not in json.loads((tmp_path / "without" / "qdiff.json").read_text())
    quantized.schedule = SCHEDULE
    again = load_qdiff(save_qdiff(quantized, tmp_path / "with"), "reference")
    others = [again, again.with_backend("reference"), pickle.loads(pickle.dumps(again))]  # noqa: S301  # our own bytes
    assert [each.schedule for each in others] == [SCHEDULE] * 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"chosen": [0, 1.5, 4]}, "not a list of steps"),
        ({"chosen": [0, 1]}, "3 timesteps"),
        ({"chosen": [0, 4, 1]}, "do not ascend"),
        ({"timesteps": [1, "2", 3]}, "not a list of numbers"),
        ({"timesteps": [1, True, 3]}, "not a list of numbers"),
        ({"sigmas": [1.0, float("nan"), 1.0, 0.0]}, "not all finite"),
        ({"sigmas": None}, "sigmas"),
        ({"out_of": 0}, "out_of"),
        ({"scheduler": 3}, "scheduler"),
        ({"num_train_timesteps": -5}, "num_train_timesteps"),
    ],
)
def test_a_folders_schedule_is_checked(changed, words):
    assert schedule_from_json(SCHEDULE.to_json(), "qdiff.json") == SCHEDULE
    with pytest.raises(ArtifactError, match=words) as caught:
        schedule_from_json(SCHEDULE.to_json() | changed, "qdiff.json")
    assert "qdiff.json, schedule" in str(caught.value)


def test_requests_have_as_many_steps_as_their_schedule():
    request = SampleRequest(5, 3, schedule=SCHEDULE)
    assert [(each.count, each.first, each.schedule) for each in request.batches(3)] == [
        (3, 0, SCHEDULE),
        (2, 3, SCHEDULE),
    ]
    with pytest.raises(ConfigError, match="the schedule has 3 steps, not 4"):
        SampleRequest(5, 4, schedule=SCHEDULE)


def test_what_was_recorded_along_other_steps_is_other_data():
    scheduler = DDIMScheduler()
    found = [
        source_fingerprint(torch.nn.Identity(), each)
        for each in (
            scheduler,
            *(with_schedule(scheduler, uniform(scheduler, 8).part(way)) for way in ([0, 1], [0, 2])),
        )
    ]
    assert len({each["scheduler settings"] for each in found}) == 3
    jobs = [Job(QDiffConfig(), SampleRequest(2, 3, schedule=each)) for each in (None, SCHEDULE)]
    assert jobs[0].settings() != jobs[1].settings()


def test_a_folders_own_steps_are_taken_unless_others_are_asked_for(tmp_path):
    quantized, origin = network(tmp_path / "net"), DigitsSource()
    assert request_of(origin, quantized, 2, None, 0) == SampleRequest(2, 25)
    quantized.schedule = SCHEDULE
    assert request_of(origin, quantized, 2, None, 0) == SampleRequest(2, 3, schedule=SCHEDULE)
    assert request_of(origin, quantized, 2, 10, 0) == SampleRequest(2, 10)
    assert request_of(origin, quantized, 2, None, 0, 0.5) == SampleRequest(2, 3, schedule=SCHEDULE, guidance_until=0.5)


@pytest.mark.usefixtures("quickly")
class TestCommands:
    @pytest.fixture(scope="class")
    def file(self, tmp_path_factory):
        file = tmp_path_factory.mktemp("schedule") / "steps.json"
        said = run("schedule", CUSTOM, "--steps", "3", "--out-of", "6", "--samples", "2", "--out", file)
        assert "steps 0, " in said
        return file

    def test_from_choosing_to_drawing(self, file, tmp_path):
        chosen = schedule_from_json(json.loads(file.read_text()), "file")
        assert (len(chosen), chosen.out_of) == (3, 6)
        folder = tmp_path / "net"
        options = ("--schedule", file, "--rounding", "nearest", "--samples", "2")
        run("quantize", CUSTOM, *options, "--calibration", tmp_path / "data", "--out", folder)
        assert load_qdiff(folder, "reference").schedule == chosen
        said = run("sample", folder, "--source", CUSTOM, "--count", "2", "--out", tmp_path / "sheet.png")
        assert "taking 3 placed steps in place of 6" in said
        report = tmp_path / "report.json"
        run("eval", folder, "--source", CUSTOM, "--images", "1", "--json", report)
        figures = json.loads(report.read_text())
        assert figures["timesteps"] == list(chosen.timesteps)

    def test_calibration_is_along_these_steps(self, file):
        chosen = schedule_from_json(json.loads(file.read_text()), "file")
        data = resolve(str(CUSTOM)).calibration_data(SampleRequest(2, 3, schedule=chosen), every=1)
        assert [float(batch["t"][0]) for batch in data] == list(chosen.timesteps)

    def test_another_schedulers_is_refused_before_the_work(self, file, tmp_path):
        other = tmp_path / "other.json"
        other.write_text(json.dumps(json.loads(file.read_text()) | {"num_train_timesteps": 77}))
        result = CliRunner().invoke(
            app, ["quantize", str(CUSTOM), "--schedule", str(other), "--out", str(tmp_path / "x")]
        )
        assert result.exit_code != 0
        assert "it was made for" in result.output
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize("text", ["", "[1]", '{"scheduler": 1}'])
    def test_files_that_hold_none(self, text, tmp_path):
        bad = tmp_path / "bad.json"
        bad.write_text(text)
        for file in (bad, tmp_path / "missing.json"):
            result = CliRunner().invoke(
                app, ["quantize", str(CUSTOM), "--schedule", str(file), "--out", str(tmp_path / "x")]
            )
            assert result.exit_code == 1
            assert file.name in result.output


def test_a_source_puts_the_pipelines_scheduler_back():
    source = resolve(str(CUSTOM))
    every_step = uniform(source.make_scheduler(6), 6)
    request = SampleRequest(1, 2, schedule=every_step.part([0, 2]))
    before = source.pipe.scheduler
    images = source.sample(source.unet, request)
    assert source.pipe.scheduler is before
    assert not torch.equal(images, source.sample(source.unet, replace(request, schedule=None)))
    assert [float(each.timestep) for each in source.trajectory(request).steps] == [
        every_step.timesteps[0],
        every_step.timesteps[2],
    ]
