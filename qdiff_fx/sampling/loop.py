"""The denoising loop: once, for calibration, evaluation, the bundled pipeline and whoever else samples."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from qdiff_fx.errors import InputError
from qdiff_fx.sampling.guidance import UNGUIDED, Guidance
from qdiff_fx.sampling.prediction import names_of, predict
from qdiff_fx.sampling.trajectory import Step, Trajectory

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
NOISE_SEED = 0
"""Where a scheduler draws noise of its own, it is drawn from this seed: two networks get the same noise."""


def denoise(
    network: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    sample: Tensor,
    *,
    guidance: Guidance = UNGUIDED,
    step_options: Mapping[str, Any] = NO_OPTIONS,
    timesteps: Iterable[Tensor] | None = None,
    guided: int | None = None,
) -> Tensor:
    """From a noisy sample (N, C, H, W), scaled as the scheduler wants it, to where the scheduler ends.

    Args:
        network: ``ε = network(x_t, t)`` of the doubled batch where there is guidance.
        scheduler: a diffusers scheduler with its timesteps set; it is changed by its own steps.
        step_options: further arguments of ``scheduler.step``.
        timesteps: the scheduler's own, in something that shows progress, say.
        guided: steps after which guidance ends: the network is then called with the conditional rows alone. None: all.
    """
    for step, timestep in enumerate(scheduler.timesteps if timesteps is None else timesteps):
        if step == guided:
            guidance = UNGUIDED
        noisy = scheduler.scale_model_input(guidance.doubled(sample), timestep)
        predicted = guidance.combined(network(noisy, timestep))
        sample = scheduler.step(predicted, timestep, sample, **step_options).prev_sample
    return sample


def accepted_options(scheduler: Any, **options: Any) -> dict[str, Any]:
    """Those of the options that the scheduler's step takes."""
    accepted = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if name in accepted}


def trajectory(
    unet: Callable[..., Any],
    scheduler: Any,
    noise: Tensor,
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
        guidance_scale: above 1, classifier-free guidance on a doubled batch, see `Guidance`.
        step_options: further arguments of ``scheduler.step``, e.g. ``{"use_clipped_model_output": True}``.
        progress: show a bar.
        conditioning: further arguments of the network, e.g. ``encoder_hidden_states``.

    Raises:
        InputError: if the scheduler has no timesteps.
    """
    steps: list[Step] = []

    def remembered(sample: Tensor, timestep: Tensor) -> Tensor:
        eps = predict(unet, sample, timestep, **conditioning)
        steps.append(Step(sample, timestep, eps))
        return eps

    final = _from_noise(remembered, scheduler, noise, guidance_scale, step_options, progress)
    return Trajectory(steps, final, conditioning, names_of(unet, conditioning))


def generate(
    unet: Callable[..., Any],
    scheduler: Any,
    noise: Tensor,
    *,
    guidance_scale: float = 1.0,
    step_options: Mapping[str, Any] = NO_OPTIONS,
    progress: bool = False,
    **conditioning: Any,
) -> Tensor:
    """The final images of `trajectory`, without keeping its steps."""

    def forgotten(sample: Tensor, timestep: Tensor) -> Tensor:
        return predict(unet, sample, timestep, **conditioning)

    return _from_noise(forgotten, scheduler, noise, guidance_scale, step_options, progress)


@torch.no_grad()
def _from_noise(
    network: Callable[[Tensor, Tensor], Tensor],
    scheduler: Any,
    noise: Tensor,
    guidance_scale: float,
    step_options: Mapping[str, Any],
    progress: bool,
) -> Tensor:
    scheduler = copy.deepcopy(scheduler)
    if getattr(scheduler, "num_inference_steps", None) is None:
        raise InputError("no timesteps are set", where="scheduler", fix="Call set_timesteps(steps) on it first")
    return denoise(
        network,
        scheduler,
        noise * scheduler.init_noise_sigma,
        guidance=Guidance.above_one(guidance_scale),
        step_options={
            **accepted_options(scheduler, generator=torch.Generator().manual_seed(NOISE_SEED)),
            **step_options,
        },
        timesteps=tqdm(scheduler.timesteps, desc="denoise", leave=False, disable=not progress),
    )
