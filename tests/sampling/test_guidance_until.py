"""Guidance that ends early: the steps after it take one row, and what they draw is what the conditional half would."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

import qdiff_fx
from qdiff_fx.bundled.digits import load_digits_pipeline
from qdiff_fx.errors import ConfigError
from qdiff_fx.sampling.denoiser import denoiser_of
from qdiff_fx.sampling.guidance import Guidance
from qdiff_fx.sampling.guidance_until import OF_BOTH_HALVES, guidance_until, guided_steps
from qdiff_fx.sampling.loop import denoise
from qdiff_fx.sources import SampleRequest, Source
from qdiff_fx.sources.digits import DigitsSource
from tests.pipelines import features, frames, images, stages, transformers
from tests.pipelines.line import Line

LINES: dict[str, Line] = {
    line.name: line for lines in (images.LINES, stages.LINES, frames.LINES, transformers.LINES) for line in lines
}
STEPS, GUIDED = 5, 2


@pytest.mark.parametrize(("share", "steps", "guided"), [(0.6, 20, 12), (0.5, 5, 2), (0.01, 4, 1), (1, 7, 7)])
def test_a_share_of_the_steps_is_guided(share: float, steps: int, guided: int) -> None:
    assert guided_steps(share, steps) == guided


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="no share of the steps"):
        guidance_until(share, None)
    with pytest.raises(ConfigError, match="no share of the steps"):
        guided_steps(share, 5)


def test_all_of_the_steps_ask_for_nothing() -> None:
    assert guidance_until(1, None) == {}


def drawn(pipe: Any, line: Line, **more: Any) -> Tensor:
    torch.manual_seed(3)
    names = inspect.signature(type(pipe).__call__).parameters
    steps = {"num_inference_steps": STEPS} if "num_inference_steps" in names else {}
    with torch.no_grad():
        found = pipe(**{**line.call(), **steps, "generator": torch.Generator().manual_seed(0), **more})
    return torch.as_tensor(found[0])


@contextmanager
def rows_of(network: nn.Module, answering_alike: int | None = None) -> Iterator[list[int]]:
    """The rows of every call; after so many calls both halves get the answer of the second."""
    seen: list[int] = []

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        answer = output[0]
        seen.append(len(answer))
        if answering_alike is not None and len(seen) > answering_alike:
            first, second = answer.chunk(2)
            first.copy_(second)

    handle = network.register_forward_hook(see)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", OF_BOTH_HALVES)
def test_pipelines_take_one_row_where_guidance_has_ended(name: str) -> None:
    line = LINES[name]
    torch.manual_seed(0)
    pipe = line.build()
    pipe.set_progress_bar_config(disable=True)
    network = denoiser_of(pipe)
    with rows_of(network) as seen:
        found = drawn(pipe, line, **guidance_until(GUIDED / STEPS, pipe))
    steps, each = len(seen), seen[-1]
    guided = guided_steps(GUIDED / STEPS, steps)
    assert seen == [2 * each] * guided + [each] * (steps - guided)
    with rows_of(network, answering_alike=guided):
        expected = drawn(pipe, line)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    # The next image is guided from its first step on.
    with rows_of(network) as seen:
        drawn(pipe, line)
    assert seen == [2 * each] * steps


def test_several_prompts_each_keep_their_own() -> None:
    pipe = LINES["StableDiffusionPipeline"].build()
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", **guidance_until(0.4, pipe)}
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    both = pipe(["a fish", "two birds"], latents=noise.repeat(2, 1, 1, 1), **options).images
    for prompt, found in zip(["a fish", "two birds"], both, strict=True):
        torch.testing.assert_close(found, pipe(prompt, latents=noise, **options).images[0], rtol=1e-3, atol=1e-4)


def test_what_is_not_guided_is_drawn_as_ever() -> None:
    line = LINES["StableDiffusionPipeline"]
    pipe = line.build()
    pipe.set_progress_bar_config(disable=True)
    expected = drawn(pipe, line, guidance_scale=1.0)
    assert torch.equal(drawn(pipe, line, guidance_scale=1.0, **guidance_until(0.5, pipe)), expected)


def test_other_pipelines_are_refused() -> None:
    for name in ("StableDiffusionInstructPix2PixPipeline", "DDIMPipeline"):
        with pytest.raises(ConfigError, match=f"what {name} computes of both halves cannot be halved"):
            guidance_until(0.5, LINES[name].build())


def test_an_ip_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match="of an IP-Adapter cannot be halved"):
        guidance_until(0.5, features.with_ip_adapter())


def test_the_loop_calls_the_network_with_the_conditional_rows_alone() -> None:
    scheduler = DDIMScheduler(num_train_timesteps=100)
    scheduler.set_timesteps(4)
    seen = []

    def network(noisy: Tensor, timestep: Tensor) -> Tensor:
        seen.append(len(noisy))
        return noisy / 10

    denoise(network, scheduler, torch.ones(3, 1, 2, 2), guidance=Guidance(2.0), guided=1)
    assert seen == [6, 3, 3, 3]


def test_digits_end_their_guidance() -> None:
    pipe = load_digits_pipeline()
    pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"labels": [3, 7], "num_inference_steps": 4}
    with rows_of(pipe.unet) as seen:
        (found,) = pipe(**arguments, guidance_until=0.5, generator=torch.Generator().manual_seed(0), return_dict=False)
    assert seen == [4, 4, 2, 2]
    assert found.shape == (2, 1, 32, 32)


def test_sources_pass_it_to_their_pipeline() -> None:
    for source in (DigitsSource(), Source("", LINES["StableDiffusionPipeline"].build(), ["a fish"])):
        with rows_of(source.unet) as seen:
            source.run(SampleRequest(2, 4, guidance_until=0.5))
        assert seen == [4, 4, 2, 2]
    with pytest.raises(ConfigError, match="DDIMPipeline computes"):
        Source("", LINES["DDIMPipeline"].build()).run(SampleRequest(2, 4, guidance_until=0.5))


def test_it_is_public() -> None:
    assert qdiff_fx.guidance_until is guidance_until
