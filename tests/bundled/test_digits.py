"""The bundled digits model: its size, its interfaces, and the figures it is accepted by."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn

from qdiff_fx.bundled import digits

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist.npz"


@pytest.fixture(scope="module")
def pipe() -> digits.DigitsPipeline:
    pipe = digits.load_digits_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Recorder(nn.Module):
    """A stand-in for the UNet with no config and no parameters; keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, sample: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> SimpleNamespace:
        self.calls.append((sample, t, encoder_hidden_states))
        return SimpleNamespace(sample=sample * 0.1)


def test_unet_and_embedding_have_at_most_a_million_and_a_half_parameters() -> None:
    unet, embedding = digits.load_digits_unet(), digits.load_digits_embedding()
    assert sum(p.numel() for p in [*unet.parameters(), *embedding.parameters()]) <= 1_500_000


def test_classifier_has_at_most_150_thousand_parameters() -> None:
    assert sum(p.numel() for p in digits.load_digit_classifier().parameters()) <= 150_000


def test_bundled_files_are_small_and_not_pickled() -> None:
    files = [path for path in digits.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_networks_load_in_float32_and_eval_mode() -> None:
    for network in (
        digits.load_digits_unet(),
        digits.load_digits_embedding(),
        digits.load_digit_classifier(),
    ):
        assert not network.training
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert all(bool(p.isfinite().all()) for p in network.parameters())


def test_shapes() -> None:
    unet, embedding = digits.load_digits_unet(), digits.load_digits_embedding()
    context = embedding(torch.tensor([3, 10]))
    assert context.shape == (2, 4, unet.config.cross_attention_dim)
    with torch.no_grad():
        noise = unet(torch.randn(2, 1, 32, 32), torch.tensor([10, 900]), encoder_hidden_states=context).sample
        classifier = digits.load_digit_classifier()
        features = classifier.features(noise)
        assert classifier(noise).shape == (2, 10)
    assert noise.shape == (2, 1, 32, 32)
    assert features.shape == (2, 64)


def test_unet_has_cross_attention_and_concatenated_shortcuts() -> None:
    unet = digits.load_digits_unet()
    assert isinstance(unet, UNet2DConditionModel)
    assert any(name.endswith("attn2") for name, _ in unet.named_modules())
    first = unet.up_blocks[0].resnets[0].conv1
    assert first.in_channels > first.out_channels


def test_scheduler_has_its_timesteps_set() -> None:
    assert len(digits.make_digits_scheduler().timesteps) == 25
    assert len(digits.make_digits_scheduler(7).timesteps) == 7


def test_sampling_is_deterministic() -> None:
    unet = digits.load_digits_unet()
    first, again, other = (digits.sample_digits(unet, [1, 8], seed, steps=3) for seed in (5, 5, 6))
    assert first.shape == (2, 1, 32, 32)
    assert float(first.abs().max()) <= 1.0
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sample_digits_agrees_with_the_pipeline(pipe: digits.DigitsPipeline) -> None:
    latents = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(4))
    images = pipe(torch.tensor([2, 9]), num_inference_steps=3, latents=latents).images
    assert torch.equal(images, digits.sample_digits(pipe.unet, [2, 9], seed=4, steps=3))


def test_guidance_evaluates_both_halves_in_one_call() -> None:
    recorder = Recorder()
    digits.sample_digits(recorder, [7, 0, 4], seed=0, steps=2, guidance_scale=3.0)
    assert len(recorder.calls) == 2
    sample, _, context = recorder.calls[0]
    assert sample.shape == (6, 1, 32, 32)
    assert torch.equal(sample[:3], sample[3:])
    embedding = digits.load_digits_embedding()
    assert torch.equal(context, embedding(torch.tensor([10, 10, 10, 7, 0, 4])))


def test_guidance_formula_matches_separate_calls(pipe: digits.DigitsPipeline) -> None:
    latents = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    scheduler = digits.make_digits_scheduler(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        null, wanted = (
            pipe.unet(latents, t, encoder_hidden_states=pipe.embedding(torch.tensor([label]))).sample
            for label in (10, 6)
        )
    expected = scheduler.step(
        null + 2.5 * (wanted - null), t, latents, use_clipped_model_output=True
    ).prev_sample.clamp(-1, 1)
    images = pipe(6, num_inference_steps=1, guidance_scale=2.5, latents=latents).images
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=1e-4)


def test_no_guidance_runs_the_conditional_half_alone() -> None:
    recorder = Recorder()
    digits.sample_digits(recorder, [7, 0, 4], seed=0, steps=2, guidance_scale=1.0)
    sample, _, context = recorder.calls[0]
    assert sample.shape == (3, 1, 32, 32)
    assert torch.equal(context, digits.load_digits_embedding()(torch.tensor([7, 0, 4])))


def test_unet_of_the_pipeline_can_be_replaced(pipe: digits.DigitsPipeline) -> None:
    original, recorder = pipe.unet, Recorder()
    pipe.unet = recorder
    try:
        assert pipe([1], num_inference_steps=2).images.shape == (1, 1, 32, 32)
    finally:
        pipe.unet = original
    assert len(recorder.calls) == 2


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_other_schedulers(kind: type) -> None:
    base = digits.load_digits_pipeline()
    pipe = digits.DigitsPipeline(base.unet, base.embedding, kind.from_config(base.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    images = pipe([3, 5], num_inference_steps=4, generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (2, 1, 32, 32)
    assert bool(images.isfinite().all())


def test_output_types(pipe: digits.DigitsPipeline) -> None:
    latents = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    tensor, array, pictures = (
        pipe([0, 1], num_inference_steps=2, latents=latents, output_type=kind).images for kind in ("pt", "np", "pil")
    )
    assert array.shape == (2, 32, 32, 1)
    np.testing.assert_allclose(array[..., 0], tensor[:, 0].numpy() / 2 + 0.5, atol=1e-6)
    assert [picture.size for picture in pictures] == [(32, 32), (32, 32)]
    np.testing.assert_allclose(np.asarray(pictures[0]) / 255, array[0, ..., 0], atol=1 / 255)
    (plain,) = pipe([0, 1], num_inference_steps=2, latents=latents, return_dict=False)
    assert torch.equal(plain, tensor)


def test_wrong_arguments_are_refused(pipe: digits.DigitsPipeline) -> None:
    with pytest.raises(ValueError, match="0-9"):
        pipe([11])
    with pytest.raises(ValueError, match="non-empty"):
        pipe([])
    with pytest.raises(ValueError, match="output_type"):
        pipe([1], output_type="latent")
    with pytest.raises(ValueError, match="shape"):
        pipe([1], latents=torch.zeros(1, 1, 28, 28))


def test_missing_file_is_named(tmp_path: Path) -> None:
    shutil.copytree(digits.FOLDER, tmp_path / "digits")
    (tmp_path / "digits" / digits.UNET_WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"unet.*missing"):
        digits.load_digits_unet(tmp_path / "digits")


def test_saved_folder_loads_back(tmp_path: Path) -> None:
    pipe = digits.load_digits_pipeline()
    classifier = digits.load_digit_classifier()
    digits.save_digits(tmp_path, pipe.unet, pipe.embedding, pipe.scheduler, classifier)
    for mine, theirs in (
        (digits.load_digits_unet(tmp_path), pipe.unet),
        (digits.load_digits_embedding(tmp_path), pipe.embedding),
        (digits.load_digit_classifier(tmp_path), classifier),
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert dict(digits.make_digits_scheduler(folder=tmp_path).config) == dict(digits.make_digits_scheduler().config)


def test_pipeline_survives_save_pretrained(tmp_path: Path) -> None:
    pipe = digits.load_digits_pipeline()
    pipe.save_pretrained(tmp_path)
    again = digits.DigitsPipeline.from_pretrained(tmp_path)
    for pipeline in (pipe, again):
        pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    first, second = (p([5], num_inference_steps=2, latents=latents).images for p in (pipe, again))
    assert torch.equal(first, second)


@pytest.mark.skipif(not MNIST.is_file(), reason="needs MNIST as shared/data/mnist.npz beside the repository")
def test_classifier_reads_real_digits() -> None:
    with np.load(MNIST, allow_pickle=False) as archive:
        images, labels = torch.from_numpy(archive["test_images"]), torch.from_numpy(archive["test_labels"])
    images = nn.functional.pad(images.float().div(127.5).sub(1).unsqueeze(1), (2, 2, 2, 2), value=-1.0)
    classifier = digits.load_digit_classifier()
    with torch.no_grad():
        found = torch.cat([classifier(chunk).argmax(dim=1) for chunk in images.split(1000)])
    assert float((found == labels).float().mean()) >= 0.98


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_samples_are_the_digits_asked_for(count: int) -> None:
    labels = torch.arange(count) % 10
    images = digits.sample_digits(digits.load_digits_unet(), labels, seed=0)
    with torch.no_grad():
        found = digits.load_digit_classifier()(images).argmax(dim=1)
    assert float((found == labels).float().mean()) >= 0.95
