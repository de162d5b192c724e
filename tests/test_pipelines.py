"""A Stable-Diffusion-shaped pipeline with the quantized UNet in the float one's place."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
)

from qdiff_fx import QDiffConfig, QuantizedUNet, calibrate, collect_calibration_data, convert_qdiff, prepare_qdiff
from tests.pipelines.parts import tiny_pipeline

PROMPTS = ["a fish", "two birds", "a boat on a lake", "the moon over a hill"]
STEPS = 4


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def networks(pipe):
    """The float UNet, and the quantized one on `reference`."""
    unet = pipe.unet
    data = collect_calibration_data(
        pipe, num_samples=4, num_inference_steps=8, batch_size=4, seed=0, inputs={"prompt": PROMPTS}, progress=False
    )
    prepared = prepare_qdiff(unet, QDiffConfig(timestep_bins=4), data[0])
    calibrate(prepared, data, progress=False)
    return unet, convert_qdiff(prepared, "reference")


def latents(pipe, unet, prompts=PROMPTS[:1], **call) -> torch.Tensor:
    pipe.unet = unet
    generator = torch.Generator().manual_seed(7)
    return pipe(prompts, num_inference_steps=STEPS, generator=generator, output_type="latent", **call).images


def assert_close_to_float(pipe, networks, **call):
    float_unet, quantized = networks
    expected, actual = latents(pipe, float_unet, **call), latents(pipe, quantized, **call)
    assert actual.shape == expected.shape
    # Random weights, W8A8, a few steps of accumulated error; without a working UNet it is below 3 dB.
    assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 20


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_batches_with_and_without_guidance(pipe, networks, count, guidance_scale):
    assert_close_to_float(pipe, networks, prompts=PROMPTS[:count], guidance_scale=guidance_scale)


@pytest.mark.parametrize(
    "scheduler",
    [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, PNDMScheduler, LMSDiscreteScheduler],
)
def test_schedulers(pipe, networks, scheduler, monkeypatch):
    if scheduler is LMSDiscreteScheduler:
        pytest.importorskip("scipy", reason="diffusers' LMS scheduler needs scipy")
    monkeypatch.setattr(pipe, "scheduler", scheduler.from_config(pipe.scheduler.config))
    assert_close_to_float(pipe, networks)


def test_another_resolution(pipe, networks):
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    assert_close_to_float(pipe, networks, height=size, width=2 * size)


def test_several_images_per_prompt(pipe, networks):
    assert_close_to_float(pipe, networks, num_images_per_prompt=2)


def test_the_same_seed_gives_the_same_images(pipe, networks):
    first, second = latents(pipe, networks[1]), latents(pipe, networks[1])
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.fixture(scope="module")
def saved(pipe, networks, tmp_path_factory):
    """The pipeline as a folder, with its float UNet."""
    pipe.unet = networks[0]
    folder = tmp_path_factory.mktemp("pipeline")
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("given", ["to from_pretrained", "after None", "to register_modules"])
def test_a_saved_pipeline_takes_it(pipe, networks, saved, given):
    float_unet, quantized = networks
    first = quantized if given == "to from_pretrained" else None
    restored = type(pipe).from_pretrained(saved, unet=first, safety_checker=None)
    restored.set_progress_bar_config(disable=True)
    if given == "after None":
        restored.unet = quantized
    else:
        restored.register_modules(unet=quantized)
    restored.to("cpu")
    call = {"height": 16, "width": 16}
    assert torch.equal(latents(restored, restored.unet, **call), latents(pipe, quantized, **call))
    assert type(pipe).from_pipe(restored).unet is quantized
    assert restored.unet is quantized


def test_diffusers_alone_takes_it_for_one_of_its_models(networks):
    quantized = networks[1]
    assert quantized.__class__ is QuantizedUNet
    assert not isinstance(quantized, ModelMixin)


def test_running_the_pipeline_calibrates_a_prepared_network(pipe, networks):
    float_unet, _ = networks
    example = {"sample": torch.randn(2, 4, 16, 16), "timestep": 3, "encoder_hidden_states": torch.randn(2, 24, 32)}
    prepared = prepare_qdiff(float_unet, QDiffConfig(timestep_bins=4, act_range="minmax"), example)
    expected, observed = latents(pipe, float_unet), latents(pipe, prepared)
    torch.testing.assert_close(observed, expected, rtol=1e-3, atol=1e-4)
    actual = latents(pipe, convert_qdiff(prepared, "reference"))
    assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 20


@pytest.mark.slow
def test_the_compiled_network_draws_the_same(pipe, networks):
    compiled = networks[1].with_backend("inductor")
    for count, guidance_scale in ((1, 5.0), (2, 1.0), (3, 5.0)):
        call = {"prompts": PROMPTS[:count], "guidance_scale": guidance_scale}
        expected, actual = latents(pipe, networks[1], **call), latents(pipe, compiled, **call)
        assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 25
    size = 16 * pipe.vae_scale_factor
    assert_close_to_float(pipe, (networks[0], compiled), height=size, width=2 * size)
