"""The digits subject samples as the bundled pipeline does, and is calibrated on what that pipeline feeds it."""

import pytest
import torch

from benchmarks.subjects import get_subject
from qdiff_fx.bundled.digits import load_digits_pipeline, load_digits_unet

STEPS, IMAGES = 2, 2


@torch.no_grad()
def test_digits_are_sampled_as_their_pipeline_samples() -> None:
    subject, pipeline = get_subject("digits", STEPS), load_digits_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(IMAGES, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images = subject.generate(load_digits_unet(), noise, range(IMAGES))
    expected = pipeline(list(range(IMAGES)), num_inference_steps=STEPS, latents=noise).images
    assert torch.allclose(images.clamp(-1, 1), expected, atol=1e-5)


def test_digits_are_calibrated_on_both_halves_of_every_step() -> None:
    subject = get_subject("digits", STEPS)
    batches = list(subject.collect(load_digits_unet(), IMAGES, seed=1))
    assert len(batches) == STEPS
    assert all(batch["sample"].shape[0] == IMAGES * subject.halves for batch in batches)
    assert all(batch["encoder_hidden_states"].shape[0] == IMAGES * subject.halves for batch in batches)


def test_unknown_subjects_list_the_known() -> None:
    with pytest.raises(ValueError, match="digits"):
        get_subject("cifar10", STEPS)
