"""Walk a denoising trajectory and, where asked, remember what the network saw and said at every step.

Guidance: with `guidance_scale` above 1 every batch is doubled, the unconditional half first, as diffusers
pipelines do; conditioning tensors are then given with both halves, and a recorded step holds the doubled
batch, which is what the network really computes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from qdiff_fx.errors import InputError

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
NOISE_SEED = 0
"""Where a scheduler draws noise of its own, it is drawn from this seed: two networks get the same noise."""


class Step(NamedTuple):
    """One call of the network: ``eps = unet(sample, timestep)``; sample and eps are (B, C, H, W)."""

    sample: torch.Tensor
    timestep: torch.Tensor
    eps: torch.Tensor


@dataclass(frozen=True)
class Trajectory:
    """Every call made while denoising one batch, in order, and the images (N, C, H, W) it ended in."""

    steps: list[Step]
    final: torch.Tensor
    conditioning: Mapping[str, Any] = field(default_factory=dict)

    def batches(self) -> Iterator[dict[str, Any]]:
        """The network's inputs, one mapping of `forward` arguments per step: calibration data."""
        for step in self.steps:
            yield {"sample": step.sample, "timestep": step.timestep, **self.conditioning}


def predict(unet: Callable[..., Any], sample: torch.Tensor, timestep: Any, **conditioning: Any) -> torch.Tensor:
    """The network's prediction as a tensor, whether it returns a diffusers output, a tuple or a tensor."""
    return prediction_of(unet(sample, timestep, **conditioning))


def prediction_of(output: Any) -> torch.Tensor:
    """The tensor in what a network returns: a diffusers output, a tuple or a tensor."""
    if isinstance(output, tuple):
        output = output[0]
    return output if isinstance(output, torch.Tensor) else output.sample


def trajectory(
    unet: Callable[..., Any],
    scheduler: Any,
    noise: torch.Tensor,
    *,
    guidance_scale: float = 1.0,
    step_options: Mapping[str, Any] = NO_OPTIONS,
    progress: bool = False,
    **conditioning: Any,
) -> Trajectory:
    """Denoise `noise` with `unet` and keep every step.

    Args:
        unet: called as ``unet(sample, timestep, **conditioning)``.
        scheduler: a diffusers scheduler after ``set_timesteps``; it is copied, never changed.
        noise: the starting point (N, C, H, W), of unit variance.
        guidance_scale: above 1, classifier-free guidance on a doubled batch (see the module docstring).
        step_options: further arguments of ``scheduler.step``, e.g. ``{"use_clipped_model_output": True}``.
        progress: show a bar.
        conditioning: further arguments of the network, e.g. ``encoder_hidden_states``.

    Raises:
        InputError: if the scheduler has no timesteps.
    """
    steps: list[Step] = []
    final = _denoise(unet, scheduler, noise, guidance_scale, step_options, conditioning, steps.append, progress)
    return Trajectory(steps, final, conditioning)


def generate(
    unet: Callable[..., Any],
    scheduler: Any,
    noise: torch.Tensor,
    *,
    guidance_scale: float = 1.0,
    step_options: Mapping[str, Any] = NO_OPTIONS,
    progress: bool = False,
    **conditioning: Any,
) -> torch.Tensor:
    """The final images of `trajectory`, without keeping its steps."""

    def forget(step: Step) -> None: ...

    return _denoise(unet, scheduler, noise, guidance_scale, step_options, conditioning, forget, progress)


@torch.no_grad()
def _denoise(
    unet: Callable[..., Any],
    scheduler: Any,
    noise: torch.Tensor,
    guidance_scale: float,
    step_options: Mapping[str, Any],
    conditioning: Mapping[str, Any],
    record: Callable[[Step], object],
    progress: bool,
) -> torch.Tensor:
    scheduler = copy.deepcopy(scheduler)
    if getattr(scheduler, "num_inference_steps", None) is None:
        raise InputError("no timesteps are set", where="scheduler", fix="Call set_timesteps(steps) on it first")
    extra = {**_step_extras(scheduler), **step_options}
    image = noise * scheduler.init_noise_sigma
    for timestep in tqdm(scheduler.timesteps, desc="denoise", leave=False, disable=not progress):
        sample = torch.cat([image, image]) if guidance_scale > 1 else image
        sample = scheduler.scale_model_input(sample, timestep)
        eps = predict(unet, sample, timestep, **conditioning)
        record(Step(sample, timestep, eps))
        image = scheduler.step(_guided(eps, guidance_scale), timestep, image, **extra).prev_sample
    return image


def _guided(eps: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance: (2N, ...) -> (N, ...), or `eps` itself without guidance."""
    if scale <= 1:
        return eps
    unconditional, conditional = eps.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def _step_extras(scheduler: Any) -> dict[str, Any]:
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"generator": torch.Generator().manual_seed(NOISE_SEED)}
