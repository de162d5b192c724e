"""A diffusers scheduler that takes the steps of a schedule, whoever's loop drives it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.errors import ConfigError, InputError
from qdiff_fx.sampling.samplers import length_of_schedule
from qdiff_fx.schedule import Schedule

TOLERANCE = 1e-3
"""Of timesteps and sigmas, relative: as far as processors and versions compute the same ones differently."""


@dataclass(frozen=True)
class Taken:
    """A step as the scheduler saw it: after guidance, before noise is removed.

    Attributes:
        number: which step of those that are taken.
        prediction, sample: of the network, and what it was made of; (N, C, H, W).
        arrived: the sample at the next step.
        options: what else the loop passed to ``step``.
    """

    number: int
    prediction: Tensor
    sample: Tensor
    arrived: Tensor
    options: dict[str, Any]


Watch = Callable[[Taken], Tensor | None]
"""Is shown every step, and may say where it arrives instead."""


def with_schedule(scheduler: Any, schedule: Schedule, watch: Watch | None = None) -> Any:
    """A copy of the scheduler that takes only the steps of the schedule.

    It serves any pipeline: ``pipe.scheduler = with_schedule(pipe.scheduler, schedule)``, then
    ``pipe(..., num_inference_steps=len(schedule))``. Saved with a pipeline it is the scheduler that it was.

    Raises:
        ConfigError: the schedule is another scheduler's, or the scheduler takes steps of a kind that none can be left
            out of.
    """
    schedule.check_scheduler(type(scheduler).__name__, scheduler.config)
    walked = without_schedule(scheduler)
    own = type(walked)
    mixin = _WalkingDDIM if _goes_by_stride(walked) else _Walking
    # Under the names of its own class: a saved pipeline names the class that diffusers knows.
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    # And with the signatures of its own methods, which loops look at to see what they may pass.
    methods = {name: _like(getattr(own, name), getattr(mixin, name)) for name in ("set_timesteps", "step")}
    walked.__class__ = type(own.__name__, (mixin, own), names | methods)
    walked.qdiff_schedule, walked._watch = schedule, watch
    walked.set_timesteps(len(schedule))
    return walked


def schedule_of(scheduler: Any) -> Schedule | None:
    """The schedule that it takes the steps of, if it does."""
    return scheduler.qdiff_schedule if isinstance(scheduler, _Walking) else None


def without_schedule(scheduler: Any) -> Any:
    """A copy that takes its own steps."""
    copied = copy.deepcopy(scheduler)
    if isinstance(copied, _Walking):
        copied.__class__ = type(scheduler).__bases__[1]
    return copied


def uniform(scheduler: Any, steps: int) -> Schedule:
    """All of the steps that the scheduler takes by itself.

    Raises:
        ConfigError: they are of a kind that none can be left out of, or there are not that many.
    """
    by_itself, length = without_schedule(scheduler), length_of_schedule(scheduler)
    if length is None or steps > length:
        training = "a time from 0 to 1" if length is None else f"{length} training steps"
        raise ConfigError(
            f"{steps} steps cannot be taken of {training}",
            where=type(scheduler).__name__,
            fix="Take fewer, of a scheduler that counts training steps",
        )
    by_itself.set_timesteps(steps)
    timesteps, sigmas = _grid(by_itself, steps)
    return Schedule(type(scheduler).__name__, length, steps, tuple(range(steps)), tuple(timesteps), tuple(sigmas))


def _grid(scheduler: Any, steps: int) -> tuple[list[float], list[float]]:
    """Timesteps and sigmas of all its steps; of those that know none, no sigmas.

    Raises:
        ConfigError: they are not one each.
    """
    timesteps = [float(each) for each in scheduler.timesteps]
    sigmas = [float(each) for each in scheduler.sigmas] if _has_sigmas(scheduler) else []
    if len(timesteps) != steps or len(sigmas) not in (0, steps + 1) or len(set(timesteps)) < steps:
        raise ConfigError(
            f"{steps} steps of it are {len(timesteps)} calls of the network at {len(set(timesteps))} timesteps",
            where=type(scheduler).__name__,
            fix="Take one that calls the network once a step, at another timestep each: DDIM, Euler, DPM-Solver++",
        )
    return timesteps, sigmas


def _has_sigmas(scheduler: Any) -> bool:
    return isinstance(getattr(scheduler, "sigmas", None), Tensor)


def _goes_by_stride(scheduler: Any) -> bool:
    """DDIM computes where a step ends from the number of steps, not from its timesteps."""
    return type(scheduler).__name__ in ("DDIMScheduler", "DDIMParallelScheduler")


class _Walking:
    """In front of a scheduler's class."""

    timesteps: Tensor
    sigmas: Tensor
    num_inference_steps: int
    qdiff_schedule: Schedule
    _watch: Watch | None = None

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **given: Any) -> None:
        schedule = self.qdiff_schedule
        if num_inference_steps not in (None, len(schedule)) or "timesteps" in given or "sigmas" in given:
            asked = "its own timesteps" if num_inference_steps is None else f"{num_inference_steps} steps"
            raise InputError(
                f"it takes the {len(schedule)} steps of a schedule, and is asked for {asked}",
                where=type(self).__name__,
                fix=f"Pass num_inference_steps={len(schedule)}, or use the scheduler without the schedule",
            )
        super().set_timesteps(schedule.out_of, device=device, **given)  # type: ignore[misc]  # of the class behind it
        timesteps, sigmas = _grid(self, schedule.out_of)
        chosen = list(schedule.chosen)
        _check_same(self, [timesteps[each] for each in chosen], schedule.timesteps)
        self._set(chosen, schedule.out_of, bool(sigmas))

    def _set(self, chosen: list[int], out_of: int, has_sigmas: bool) -> None:
        self.timesteps = self.timesteps[chosen]
        if has_sigmas:
            self.sigmas = self.sigmas[[*chosen, out_of]]
        self.num_inference_steps = len(chosen)

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        taken = self._step(model_output, timestep, sample, *args, **options)
        if self._watch is not None:
            arrived = taken[0] if isinstance(taken, tuple) else taken.prev_sample
            seen = Taken(self._number(timestep), model_output, sample, arrived, options)
            instead = self._watch(seen)
            if instead is not None:
                taken = (instead, *taken[1:]) if isinstance(taken, tuple) else _with(taken, instead)
        return taken

    def _number(self, timestep: Any) -> int:
        """Which of its steps begins there."""
        found = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps)).nonzero()
        if not len(found):
            raise InputError(
                f"none of its steps begins at timestep {float(timestep):g}",
                where=type(self).__name__,
                fix="Step through its own timesteps",
            )
        return int(found[0])

    def _step(self, *args: Any, **options: Any) -> Any:
        return super().step(*args, **options)  # type: ignore[misc]  # of the class behind it


class _WalkingDDIM(_Walking):
    """Takes all steps, and holds ε through those at which the network is not asked.

    One long step would be shorter: a step's length is the same for all, rounded down, so that many steps end a little
    before the next begins; and every step clips its estimate of the image. Held, ε leads where all steps lead.
    """

    _begins: list[int]
    alphas_cumprod: Tensor
    config: Any

    def _set(self, chosen: list[int], out_of: int, has_sigmas: bool) -> None:
        self._begins = [int(each) for each in self.timesteps]
        super()._set(chosen, out_of, has_sigmas)

    def _step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        if args or options.get("eta"):
            raise InputError(
                "it draws noise between its steps (eta), which a schedule is not made for",
                where=type(self).__name__,
                fix="Leave eta at 0, and pass further arguments by name",
            )
        as_tuple = not options.pop("return_dict", True)
        schedule = self.qdiff_schedule
        held = range(*(*schedule.chosen, schedule.out_of)[self._number(timestep) :][:2])
        noise = self._noise(model_output, sample, self._begins[held[0]])
        steps, self.num_inference_steps = self.num_inference_steps, schedule.out_of
        try:
            taken = super()._step(model_output, timestep, sample, **options)
            for step in held[1:]:
                sample, timestep = taken.prev_sample, self._begins[step]
                taken = super()._step(self._output(noise, sample, timestep), timestep, sample, **options)
        finally:
            self.num_inference_steps = steps
        return (taken.prev_sample, taken.pred_original_sample) if as_tuple else taken

    def _noise(self, output: Tensor, sample: Tensor, timestep: int) -> Tensor:
        """ε of what the network predicts: ``x = √ᾱ x₀ + √(1 - ᾱ) ε``, ``v = √ᾱ ε - √(1 - ᾱ) x₀``."""
        signal, noise = self._parts(timestep)
        kind = self.config.prediction_type
        if kind == "v_prediction":
            return signal * output + noise * sample
        return output if kind == "epsilon" else (sample - signal * output) / noise

    def _output(self, held: Tensor, sample: Tensor, timestep: int) -> Tensor:
        """What a network would predict that sees this ε in the sample."""
        signal, noise = self._parts(timestep)
        kind = self.config.prediction_type
        if kind == "v_prediction":
            return (held - noise * sample) / signal
        return held if kind == "epsilon" else (sample - noise * held) / signal

    def _parts(self, timestep: int) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod[timestep]
        return alpha.sqrt(), (1 - alpha).sqrt()


def _like(method: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def called(*args: Any, **options: Any) -> Any:
        return ours(*args, **options)

    return called


def _with(taken: Any, arrived: Tensor) -> Any:
    """The scheduler's output, arrived elsewhere."""
    other = copy.copy(taken)
    other.prev_sample = arrived
    return other


def _check_same(scheduler: object, found: Sequence[float], expected: Sequence[float]) -> None:
    largest = max(1.0, *map(abs, expected))
    if not torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=TOLERANCE, atol=TOLERANCE * largest):
        raise ConfigError(
            f"its timesteps there are {[round(each, 3) for each in found]}, those of the schedule "
            f"{[round(each, 3) for each in expected]}",
            where=type(scheduler).__name__,
            fix="Use the scheduler's settings (spacing, offset, σs) that the schedule was made with, or make another",
        )
