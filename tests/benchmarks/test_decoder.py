"""Decoders as networks of one step, the pictures they are judged on, and the rows of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import decoder as benchmark
from benchmarks.artifacts import artifact_folder, ensure_artifact
from benchmarks.decoders import DECODERS, Decoder
from benchmarks.lineup import ANCHOR, get_contender
from benchmarks.networks import get_network
from benchmarks.pictures import find_pictures, load_picture, load_pictures
from benchmarks.unet_step import Plan
from qdiff_fx.evaluation import sqnr_db


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.png", "d.png"):
        Image.fromarray(generator.integers(0, 256, (20, 32, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("name", ["taef2-256", "vae-sd15", "vae-tiny"])
def test_a_decoder_is_a_network_without_a_timestep(name: str) -> None:
    decoder = get_network(name)
    assert list(decoder.inputs()) == ["sample"]
    assert torch.equal(decoder.inputs(3)["sample"], decoder.inputs(3)["sample"])
    assert not torch.equal(decoder.inputs(3)["sample"], decoder.inputs(4)["sample"])


def test_decoders_of_the_same_weights_share_what_is_prepared(tmp_path: Path) -> None:
    contender = get_contender("native")
    small, large, other = (artifact_folder(tmp_path, DECODERS[each], contender) for each in list(DECODERS)[:3])
    assert small == large != other


def test_the_work_of_stable_diffusions_decoder() -> None:
    work = get_network("vae-sd15").work()
    assert work.gflop == pytest.approx(2480.2, abs=0.1)
    assert work.attention_gflop == pytest.approx(34.4, abs=0.1)


@pytest.mark.slow
@torch.no_grad()
def test_contenders_decode(tmp_path: Path) -> None:
    decoder, ours = DECODERS["vae-tiny"], get_contender("native")
    ensure_artifact(tmp_path, decoder, ours)
    folder = artifact_folder(tmp_path, decoder, ours)
    assert folder is not None
    inputs = decoder.inputs(seed=5)
    expected = get_contender(ANCHOR).load(decoder, Path())(**inputs)
    assert expected.shape == (1, 3, 16, 16)
    assert torch.equal(expected, decoder.predict(decoder.build(False), **inputs))
    assert sqnr_db(expected, ours.load(decoder, folder)(**inputs)) > 25


def test_every_third_picture_of_a_folder_is_judged(pictures: Path) -> None:
    calibrate, judge = find_pictures(pictures)
    assert [path.name for path in judge] == ["a.png", "d.png"]
    assert [path.name for path in calibrate] == ["b.jpg", "c.png"]
    for name in ("b.jpg", "c.png"):
        (pictures / name).unlink()
    with pytest.raises(FileNotFoundError, match="holds 2 pictures"):
        find_pictures(pictures)


def test_without_pictures_it_says_where_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"install scikit-image.*--pictures"):
        find_pictures(None)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match="holds none"):
        find_pictures(None)


def test_a_picture_is_a_square_at_its_place(tmp_path: Path) -> None:
    striped = np.zeros((4, 8, 3), dtype=np.uint8)
    striped[:, 4:] = 255
    Image.fromarray(striped).save(tmp_path / "striped.png")
    left, right = load_pictures([tmp_path / "striped.png"], 4, (0.0, 1.0))
    assert left.shape == (1, 3, 4, 4)
    assert (float(left.max()), float(right.min())) == (0.0, 1.0)
    middle = load_picture(tmp_path / "striped.png", 4)
    assert middle[..., :2].max() == 0
    assert middle[..., 2:].min() == 1


def shrink(picture: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(picture, 8)


def grow(sample: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(sample, scale_factor=8.0)


def test_the_psnr_is_that_of_pictures_in_0_to_1(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "shared_module", lambda name: SimpleNamespace(load_encoder=lambda: shrink))
    judge = benchmark.Judge(pictures)
    assert [batch["sample"].shape[2:] for batch in judge.batches()] == [(32, 32)] * 4 + [(64, 64)] * 2
    decoder = Decoder("test", lambda meta: grow, 1, (3, 4, 4))
    psnrs = list(judge.psnrs(decoder, lambda sample: grow(sample) + 0.01))
    assert psnrs == pytest.approx([40.0, 40.0], abs=1e-3)


def test_pieces_are_squares_of_the_latents() -> None:
    decoder = DECODERS["vae-tiny"]
    latents = torch.arange(4.0 * 12 * 9).reshape(1, 4, 12, 9)
    batches = [{"sample": latents}, {"sample": latents + 1000}]
    pieces, again = ([piece["sample"] for piece in decoder.pieces(batches)] for _ in range(2))
    assert [piece.shape for piece in pieces] == [(8, 4, 8, 8)] * 8
    assert all(torch.isin(piece, torch.cat([latents, latents + 1000])).all() for piece in pieces)
    assert not torch.equal(pieces[0], pieces[1])
    assert all(map(torch.equal, pieces, again))


PEAKS = {ANCHOR: 1000, "native": 400}


class FakeWorker:
    def __init__(self, name: str):
        self.name = name

    def prepare(self) -> None: ...
    def close(self) -> None: ...

    def start(self) -> dict[str, float]:
        return {"load_seconds": 1.0, "first_step_seconds": 2.0}

    def step(self) -> dict[str, float]:
        return {"seconds": PEAKS[self.name] / 1000, "idle_cpu_seconds": 0.0}

    def stop(self) -> dict[str, int]:
        return {"peak_rss_bytes": PEAKS[self.name], "resident_rss_bytes": PEAKS[self.name]}


@dataclass(frozen=True)
class FakePlan(Plan):
    def worker(self, network, name):
        return FakeWorker(name)


def test_rows_say_how_much_of_the_anchors_memory_is_taken() -> None:
    rows = benchmark.measured(DECODERS["vae-tiny"], ["native"], FakePlan(Path(), 2, 1, 1), pictures=None)
    assert [(row.backend, row.speedup, row.memory, row.psnr) for row in rows] == [
        (ANCHOR, 1.0, 1.0, None),
        ("native", 2.5, 0.4, None),
    ]
