"""Two ways to produce trajectories: a diffusers pipeline, or a bare network with a scheduler."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from qdiff_fx.errors import CalibrationError
from qdiff_fx.sampling.denoiser import denoiser_of
from qdiff_fx.sampling.guidance import Guidance
from qdiff_fx.sampling.listener import is_listened_to
from qdiff_fx.sampling.loop import accepted_options, denoise
from qdiff_fx.sampling.prediction import predict


class Sampler(Protocol):
    """Draws samples by calling `unet` once per step; who wants to know with what hooks `unet`."""

    unet: nn.Module
    scheduler: Any
    halves: int  # rows of conditioning per sample: 2 where `unet` gets an unconditional and a conditional half

    def sample(self, count: int, inputs: Mapping[str, Any], generator: torch.Generator) -> int | None:
        """Run one whole trajectory of `count` samples with their conditioning; how many images it drew, if it says."""


def make_sampler(source: Any, scheduler: Any, num_inference_steps: int, guidance_scale: float | None) -> Sampler:
    """The sampler for a pipeline or a network.

    Raises:
        CalibrationError: source is neither, or a bare network came without a scheduler.
    """
    if isinstance(source, nn.Module):
        if scheduler is None:
            raise CalibrationError(
                "a network alone does not say how to sample from it",
                where="collect_calibration_data",
                fix="Pass scheduler=, or a diffusers pipeline instead of the network",
            )
        return NetworkSampler(source, copy.deepcopy(scheduler), num_inference_steps, guidance_scale)
    if not callable(source):
        raise CalibrationError(
            f"{type(source).__name__} is neither a network nor a pipeline",
            where="collect_calibration_data",
            fix="Pass a diffusers pipeline, or an nn.Module and its scheduler",
        )
    return PipelineSampler(source, scheduler or source.scheduler, num_inference_steps, guidance_scale)


def length_of_schedule(scheduler: Any) -> int | None:
    """Steps of the training schedule; None of a scheduler that counts in a time from 0 to 1 (Würstchen's)."""
    length = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    return None if length is None else int(length)


class PipelineSampler:
    """Calls the pipeline; everything in `inputs` goes to it as keyword arguments."""

    halves = 1  # a pipeline doubles the batch itself

    def __init__(self, pipeline: Any, scheduler: Any, num_inference_steps: int, guidance_scale: float | None):
        self.pipeline, self.scheduler, self.unet = pipeline, scheduler, denoiser_of(pipeline)
        self._accepted = inspect.signature(type(pipeline).__call__).parameters
        self._arguments: dict[str, Any] = {"num_inference_steps": num_inference_steps}
        # Nobody looks at the images: skip the decoder. Those that hand out arrays, as of depths, may know no latents.
        kind, vae = self._accepted.get("output_type"), getattr(pipeline, "vae", None)
        unheard = vae is not None and not is_listened_to(getattr(vae, "decoder", None))
        if unheard and (kind is None or kind.default == "pil"):
            self._arguments["output_type"] = "latent"
        if guidance_scale is not None:
            self._arguments["guidance_scale"] = guidance_scale

    def sample(self, count: int, inputs: Mapping[str, Any], generator: torch.Generator) -> int | None:
        arguments = {**self._arguments, "generator": generator, **_one_prompt_each(inputs, count)}
        if "batch_size" in self._accepted:
            arguments.setdefault("batch_size", count)
        unknown = sorted(set(arguments) - set(self._accepted))
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in self._accepted.values()):
            raise CalibrationError(
                f"it does not take {unknown}",
                where=type(self.pipeline).__name__,
                fix=f"It takes {[name for name in self._accepted if name != 'self']}",
            )
        with self._borrowed():
            drawn = self.pipeline(**arguments)
        images = getattr(drawn, "images", drawn[0] if isinstance(drawn, tuple) and drawn else None)
        return len(images) if isinstance(images, Sized) else None

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """Our scheduler in the pipeline, its own progress bar off; both put back afterwards."""
        scheduler, bar = self.pipeline.scheduler, getattr(self.pipeline, "_progress_bar_config", {})
        self.pipeline.scheduler = self.scheduler
        self.pipeline._progress_bar_config = {**bar, "disable": True}
        try:
            yield
        finally:
            self.pipeline.scheduler, self.pipeline._progress_bar_config = scheduler, bar


class NetworkSampler:
    """The plain denoising loop; everything in `inputs` goes to the network as keyword arguments."""

    def __init__(self, unet: nn.Module, scheduler: Any, num_inference_steps: int, guidance_scale: float | None):
        self.unet, self.scheduler = unet, scheduler
        self.guidance = Guidance(guidance_scale)
        self.halves = self.guidance.halves
        self._shape, self._steps = _sample_shape(unet), num_inference_steps

    def sample(self, count: int, inputs: Mapping[str, Any], generator: torch.Generator) -> int | None:
        like = next(itertools.chain(self.unet.parameters(), self.unet.buffers()), torch.empty(0))
        self.scheduler.set_timesteps(self._steps)
        sample = torch.randn(count, *self._shape, generator=generator).to(
            like.device, getattr(self.unet, "dtype", like.dtype)
        )
        images = denoise(
            lambda noisy, timestep: predict(self.unet, noisy, timestep, **inputs),
            self.scheduler,
            sample * self.scheduler.init_noise_sigma,
            guidance=self.guidance,
            step_options=accepted_options(self.scheduler, generator=generator),
        )
        return len(images)


def _one_prompt_each(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Prompts that are one string are meant for every sample: a pipeline would draw one image of them."""
    return {
        name: [value] * count if isinstance(value, str) and "prompt" in name else value
        for name, value in inputs.items()
    }


def _sample_shape(unet: nn.Module) -> tuple[int, ...]:
    """[C, H, W] from the network's configuration."""
    config = getattr(unet, "config", {})
    try:
        channels, size = config["in_channels"], config["sample_size"]
    except (KeyError, TypeError) as error:
        raise CalibrationError(
            "its config has no in_channels and sample_size, so the shape of the starting noise is unknown",
            where=type(unet).__name__,
            fix="Sample with a pipeline instead",
        ) from error
    return (channels, size, size) if isinstance(size, int) else (channels, *size)
