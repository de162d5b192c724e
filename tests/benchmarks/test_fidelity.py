"""The fidelity protocol, on a network small enough to follow."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from benchmarks import fidelity
from benchmarks.fidelity import IMAGES_PER_BATCH, FidelityRow, batches_of, compare, draw_noise, run_reference, sample
from benchmarks.networks import Network
from benchmarks.subjects import Subject

REQUIRED = {"model", "config", "backend", "sqnr_db_mean", "sqnr_db_steps", "psnr_db", "frechet"}
STEPS = 3


class Net(nn.Module):
    """eps = 0.2 x (1 + error) + mean of the context, which tells images apart."""

    def __init__(self, error: float = 0.0):
        super().__init__()
        self.error = error

    def forward(self, sample, timestep, context=None):
        eps = 0.2 * sample * (1 + self.error)
        return UNet2DOutput(sample=eps if context is None else eps + context.view(-1, 1, 1, 1))


def make_subject(**changes) -> Subject:
    scheduler = DDIMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(STEPS)
    network = Network("toy", lambda meta: Net(), 4, (1, 4, 4), num_train_timesteps=100)
    return Subject(network, scheduler, collect, features=lambda images: images.flatten(1)[:, :5], **changes)


def collect(unet: nn.Module, images: int, seed: int):
    raise AssertionError("nothing is calibrated here")


def guided_subject() -> Subject:
    def context(images: range) -> dict[str, torch.Tensor]:
        return {"context": torch.tensor([0.0] * len(images) + [0.1 * image for image in images])}

    return make_subject(conditioning=context, guidance_scale=2.0)


def row(images: int = 6) -> FidelityRow:
    return FidelityRow("toy", "w8a8", "reference", STEPS, images, images, 1, 2)


def test_noise_depends_on_the_seed_alone() -> None:
    network = make_subject().network
    assert torch.equal(draw_noise(network, 2, 5), draw_noise(network, 2, 5))
    assert not torch.equal(draw_noise(network, 1, 5), draw_noise(network, 2, 5))


def test_batches_cover_every_image_once() -> None:
    assert [list(batch) for batch in batches_of(10)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [list(batch) for batch in batches_of(6, first=4)] == [[4, 5]]
    assert list(batches_of(4, first=4)) == []


@pytest.mark.parametrize("subject", [make_subject(), guided_subject()], ids=["plain", "guided"])
def test_the_reference_is_what_sampling_gives_image_by_image(subject: Subject) -> None:
    noise = draw_noise(subject.network, 2, 6)
    reference = run_reference(subject, Net(), noise)
    assert len(reference.recorded.steps) == STEPS
    assert reference.recorded.steps[0].sample.shape[0] == IMAGES_PER_BATCH * subject.halves
    assert torch.allclose(reference.finals, sample(subject, Net(), noise))


def test_fp_against_itself_is_perfect(tmp_path: Path) -> None:
    subject = make_subject()
    measured = compare(subject, Net(), run_reference(subject, Net(), draw_noise(subject.network, 2, 6)), row())
    assert measured.sqnr_db_mean == math.inf
    assert measured.psnr_db == math.inf
    assert measured.frechet == pytest.approx(0, abs=1e-9)
    fidelity.write_json([asdict(measured)], tmp_path / "rows.json")
    (written,) = json.loads((tmp_path / "rows.json").read_text())
    assert set(written) >= REQUIRED
    assert written["sqnr_db_steps"] == [None] * STEPS


def test_a_known_error_gives_its_figures() -> None:
    subject = make_subject()
    reference = run_reference(subject, Net(), draw_noise(subject.network, 2, 6))
    close, far = (compare(subject, Net(error), reference, row()) for error in (0.01, 0.1))
    assert close.sqnr_db_steps == pytest.approx([40.0] * STEPS, abs=1e-3)
    assert far.sqnr_db_mean == pytest.approx(20.0, abs=1e-3)
    assert far.sqnr_db_last == far.sqnr_db_steps[-1]
    assert far.psnr_db < close.psnr_db
    assert far.frechet > close.frechet > 0


def test_only_the_images_asked_for_are_judged() -> None:
    counted: list[int] = []
    subject = make_subject(class_accuracy=lambda images: float(counted.append(len(images)) or 0.5))
    reference = run_reference(subject, Net(), draw_noise(subject.network, 2, 8))
    measured = compare(subject, Net(0.1), reference, FidelityRow("toy", "c", "b", STEPS, 4, 8, 1, 2))
    assert counted == [8, 8]  # the quantized ones, and those of the FP network
    assert measured.class_accuracy == 0.5
    assert measured.psnr_db == pytest.approx(compare(subject, Net(0.1), reference, row(images=4)).psnr_db)


@pytest.mark.parametrize(
    ("config", "backend", "name"),
    [
        ("fp", "inductor", "torch-fp32"),
        ("w4a8-nosplit", "x86", "x86-w4a8-nosplit"),
        ("w8a8", "inductor-bf16", "inductor-bf16-w8a8"),
        ("openvino-int8-default-f32", "inductor", "openvino-int8-default-f32"),
    ],
)
def test_a_configuration_names_a_contender(config: str, backend: str, name: str) -> None:
    assert fidelity.contender_of(config, backend)[0] == name
