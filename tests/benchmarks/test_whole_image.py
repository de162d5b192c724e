"""Parts of an image add up to the whole, steps that are not taken count, and ratios are to the anchor's same round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from benchmarks import whole_image
from benchmarks.timing import WorkerError
from benchmarks.whole import clock
from benchmarks.whole.clock import Clock, Time
from benchmarks.whole.contender import get_contender
from benchmarks.whole.subject import DECODER, TEXT_ENCODER, UNET, Digits, get_subject, network_at
from benchmarks.whole.worker import drawing, prepare
from benchmarks.whole_image import ImageRow, Plan, caption, measure
from qdiff_fx.evaluation import psnr_db

SUBJECT = Digits("fake", {}, {TEXT_ENCODER: "text_encoder", UNET: "unet", DECODER: "vae.decoder"}, 4, 2.0)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What has passed; the processor is busy for half of it."""
    passed = [0.0]
    monkeypatch.setattr(clock.Time, "now", staticmethod(lambda: Time(passed[0], passed[0] / 2)))
    return passed


class Taking(nn.Module):
    """A network that takes so long."""

    def __init__(self, passed: list[float], takes: float):
        super().__init__()
        self.passed, self.takes = passed, takes

    def forward(self) -> None:
        self.passed[0] += self.takes


@pytest.fixture
def pipe(seconds: list[float]) -> Any:
    text, unet, decoder = (Taking(seconds, takes) for takes in (1.0, 10.0, 4.0))

    def draw(num_inference_steps: int, **more: Any) -> None:
        text()
        for _ in range(num_inference_steps):
            unet()
            seconds[0] += 0.5  # a scheduler
        decoder()

    whole = SimpleNamespace(text_encoder=text, unet=unet, vae=SimpleNamespace(decoder=decoder))
    return type("Pipe", (SimpleNamespace,), {"__call__": lambda self, **more: draw(**more)})(**vars(whole))


def test_a_clock_says_what_each_took_since_it_was_asked(seconds: list[float]) -> None:
    first, second = Taking(seconds, 1.0), Taking(seconds, 2.0)
    watched = Clock({"first": first, "second": second})
    for network in (first, second, second):
        network()
    assert watched.read() == {"first": Time(1.0, 0.5), "second": Time(4.0, 2.0)}
    assert set(watched.read().values()) == {Time(0.0, 0.0)}


def test_the_parts_of_an_image_are_the_whole(pipe: Any) -> None:
    image = drawing(SUBJECT, pipe, steps=4, timed=4, guidance=1.0)()
    assert image["parts"] == {TEXT_ENCODER: [1.0, 0.5], UNET: [40.0, 20.0], DECODER: [4.0, 2.0], "rest": [2.0, 1.0]}
    assert (image["seconds"], image["processor"]) == (47.0, 23.5)


def test_steps_that_are_not_taken_count_as_those_that_are(pipe: Any) -> None:
    image = drawing(SUBJECT, pipe, steps=20, timed=2, guidance=1.0)()
    assert image["parts"][UNET] == [200.0, 100.0]
    assert image["counted"] == [180.0, 90.0]
    assert image["seconds"] == 1.0 + 200.0 + 4.0 + 2 * 0.5


class FakeWorker:
    """Images of so many seconds, a second more each time; None fails."""

    alive = 0

    def __init__(self, name: str, takes: float | None):
        self.name, self.takes, self.images = name, takes, 0

    def prepare(self) -> None: ...

    def start(self) -> dict[str, Any]:
        if self.takes is None:
            raise WorkerError("no such instruction")
        FakeWorker.alive += 1
        return {"processor_from_start": 30.0, "counted_seconds": 100.0, "peak_rss_bytes": 5}

    def step(self) -> dict[str, Any]:
        assert self.takes is not None
        self.images += 1
        taken = self.takes * self.images
        parts = {UNET: [taken, taken / 2]}
        return {"seconds": taken, "processor": taken / 2, "parts": parts, "idle_cpu_seconds": 0.0}

    def stop(self) -> dict[str, int]:
        FakeWorker.alive -= 1
        return {"peak_rss_bytes": 7}

    def close(self) -> None: ...


TAKES: dict[str, float | None] = {"a": 2.0, "b": 4.0, "c": 1.0, "broken": None}


@dataclass(frozen=True)
class FakePlan(Plan):
    def worker(self, row: ImageRow) -> Any:
        return FakeWorker(row.backend, TAKES[row.backend])


def test_every_backend_gets_a_row_and_ratios_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing.PAUSE_SECONDS", 0)
    plan = FakePlan(Path(), rounds=3, threads=1, together=2)
    rows = {row.backend: row for row in measure(SUBJECT, ["a", "b", "c"], plan)}
    assert list(rows) == ["a", "b", "c"]
    assert {name: row.speedup for name, row in rows.items()} == {"a": 1.0, "b": 0.5, "c": 2.0}
    assert {name: row.of_processor for name, row in rows.items()} == {"a": 1.0, "b": 0.5, "c": 2.0}
    assert (rows["b"].seconds, rows["b"].processor, rows["b"].unet) == (8.0, 4.0, 4.0)
    assert (rows["b"].decoder, rows["b"].runs, rows["b"].peak_rss_bytes) == (None, 3, 7)
    assert rows["b"].first_peak_bytes == 5
    assert rows["b"].from_start is not None
    assert rows["b"].from_start >= 100.0
    assert FakeWorker.alive == 0


def test_a_backend_that_fails_has_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing.PAUSE_SECONDS", 0)
    first, broken = measure(SUBJECT, ["a", "broken"], FakePlan(Path(), rounds=1, threads=1))
    assert first.seconds == 2.0
    assert (broken.seconds, broken.error) == (None, "no such instruction")


def test_a_plan_takes_steps_and_guidance_of_the_pipeline_unless_it_says_them() -> None:
    row = Plan(Path(), 1, 1).blank(SUBJECT, "a")
    assert (row.steps, row.timed, row.guidance) == (4, 4, 2.0)
    row = Plan(Path(), 1, 1, steps=3, timed=5, guidance=0.0).blank(SUBJECT, "a")
    assert (row.steps, row.timed, row.guidance) == (3, 3, 0.0)


def test_a_caption_says_how_many_steps_were_taken() -> None:
    row = ImageRow("sd15", "a", 20, 2, 7.5, 1)
    assert "20 steps, guided by 7.5, of which 2 were taken" in caption(row, 3)
    assert caption(ImageRow("sd15", "a", 4, 4, 0.0, 1), 3).startswith("4 steps, unguided; medians of 3")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="known: torch-fp32"):
        get_contender("tensorrt")
    with pytest.raises(ValueError, match="write w4a8"):
        get_contender("native-w4a8-funny")
    with pytest.raises(ValueError, match="known: digits"):
        get_subject("sd3")


@pytest.mark.parametrize("name", ["native-w4a8-float16", "native-w4a8-alike-float16"])
def test_half_a_pipeline_is_made_as_a_whole_one_is(name: str) -> None:
    whole, half = get_contender(name.removesuffix("-float16")), get_contender(name)
    assert half.artifact == whole.artifact
    assert half == replace(cast("Any", whole), dtype=torch.float16)
    with pytest.raises(ValueError, match="write w4a8"):
        get_contender(f"{name}-float16")


def test_networks_are_found_inside_of_others(pipe: Any) -> None:
    assert network_at(pipe, "vae.decoder") is pipe.vae.decoder


@pytest.mark.slow
def test_digits_are_drawn_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(measure(get_subject("digits"), ["torch-fp32"], Plan(tmp_path, 1, 1, steps=2)))
    (row,) = rows
    assert not row.error
    assert row.processor is not None
    assert row.processor == pytest.approx(sum(row.parts.values()))
    assert set(row.parts) == {UNET, "rest"}
    monkeypatch.setattr(whole_image, "measure", lambda *given: iter(rows))
    with suppress(SystemExit):
        whole_image.main(models="digits", backends="torch-fp32", json=tmp_path / "rows.json", cache=tmp_path)
    assert json.loads((tmp_path / "rows.json").read_text())[0]["parts"] == row.parts


def pictures(name: str, folder: Path) -> Iterator[torch.Tensor]:
    """Of one pipeline by float and by another, (H, W, 3) in [0, 1]."""
    subject = get_subject("sd-tiny")
    for each in ("torch-fp32", name):
        contender = get_contender(each)
        prepare(subject, contender, folder)
        pipe = contender.load(subject, folder / "float", folder / contender.artifact)
        pipe.set_progress_bar_config(disable=True)
        yield torch.from_numpy(pipe(**subject.arguments(3, 7.5), output_type="np").images[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "decibels"), [("native-w8a8", 20), ("openvino-float", 50), ("openvino-int8", 20), ("openvino-hybrid", 20)]
)
def test_whole_pipelines_draw_nearly_what_float_does(name: str, decibels: float, tmp_path: Path) -> None:
    if name.startswith("openvino"):
        pytest.importorskip("openvino", reason="needs the bench extra")
        pytest.importorskip("nncf", reason="needs the bench extra")
    expected, found = pictures(name, tmp_path)
    assert psnr_db(found * 2 - 1, expected * 2 - 1) > decibels
