"""`optimize_schedule`: which steps a sampler had better take, where it may take only so many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from qdiff_fx.errors import ConfigError
from qdiff_fx.progress import Progress, phase
from qdiff_fx.schedule import Schedule
from qdiff_fx.schedules.placing import placed
from qdiff_fx.schedules.trajectories import Sampling
from qdiff_fx.schedules.walk import uniform

SAMPLES = 4
Data = int | Sequence[str] | Mapping[str, Any]


def optimize_schedule(
    pipe_or_network: Any,
    data: Data = SAMPLES,
    steps: int = 12,
    *,
    out_of: int = 25,
    scheduler: Any = None,
    num_samples: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    progress: bool | Progress = True,
) -> Schedule:
    """Choose the steps of a sampler that lead nearest to where all of them lead.

    The sampler draws the same samples `steps` times over, along its own steps and along others: dynamic programming
    over where these lead, see `placing`. The result is used by
    ``pipe.scheduler = with_schedule(pipe.scheduler, schedule)``, or, with schedulers that take them, as
    ``pipe(..., timesteps=list(schedule.timesteps))``.

    Args:
        pipe_or_network: a diffusers pipeline, or a network together with `scheduler`.
        data: what is drawn: prompts; arguments of the pipeline (or of the network), by name, with one item per sample;
            or only how many samples.
        steps: how many to take.
        out_of: how many uniform steps they are chosen from. The images of these are what they are judged by.
        scheduler: in place of the pipeline's own; one that draws no noise on the way.
        num_samples: how many samples are drawn, where `data` does not tell.
        guidance_scale: classifier-free guidance; None leaves a pipeline its default and a bare network unguided.
        seed: of the noise.
        progress: show a bar, or report to this.
    Raises:
        ConfigError: more steps than there are, or a scheduler whose steps cannot be left out.
        CalibrationError: it cannot be sampled, gives NaN, or draws noise on the way.
    """
    if not 1 <= steps <= out_of:
        raise ConfigError(
            f"{steps} steps cannot be chosen from {out_of}", where="steps", fix="Choose 1 to out_of, or raise out_of"
        )
    inputs, count = _drawn(data, num_samples)
    given = getattr(pipe_or_network, "scheduler", None) if scheduler is None else scheduler
    if given is None:
        raise ConfigError(
            f"{type(pipe_or_network).__name__} has none", where="scheduler", fix="Pass scheduler= with a bare network"
        )
    every_step = uniform(given, out_of)
    sampling = Sampling(pipe_or_network, given, every_step, count, inputs, seed, guidance_scale)
    with phase(progress, "placing", steps, "step") as bar:
        first, reference = sampling.reference()
        for found in placed(sampling, first, reference):
            bar.advance(1)
            if len(found.steps) == steps:
                return every_step.part(found.steps)
    raise AssertionError("there is a way of every number of steps")


def _drawn(data: Data, num_samples: int | None) -> tuple[Mapping[str, Any], int]:
    """Arguments, and how many samples they are for."""
    if isinstance(data, int):
        inputs, count = {}, data
    elif isinstance(data, Mapping):
        lengths = [len(value) for value in data.values() if _is_one_each(value)]
        inputs, count = dict(data), min(lengths, default=SAMPLES)
    elif not isinstance(data, str) and isinstance(data, Sequence) and all(isinstance(each, str) for each in data):
        inputs, count = {"prompt": list(data)}, len(data)
    else:
        raise ConfigError(
            f"{type(data).__name__} does not say what to draw",
            where="data",
            fix="Give a list of prompts, a mapping of the pipeline's arguments, or how many samples",
        )
    count = count if num_samples is None else num_samples
    if count < 1:
        raise ConfigError(f"{count} samples show nothing", where="data", fix="Draw at least one; four are better")
    return inputs, count


def _is_one_each(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
