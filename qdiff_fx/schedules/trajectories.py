"""The sampler's runs that a schedule is chosen by, and where it would arrive by other steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.errors import CalibrationError
from qdiff_fx.sampling.samplers import make_sampler
from qdiff_fx.schedule import Schedule
from qdiff_fx.schedules.walk import Taken, Watch, with_schedule

REMEMBERING = ("model_outputs", "derivatives", "ets", "last_sample")
"""Where solvers of higher order keep what they computed at earlier steps."""
LOOPS_OWN = ("return_dict", "generator")
"""Options of a step that do not change where it leads, as long as it draws no noise."""
REPLAYED = 1e-3
"""How exactly a step taken again has to arrive where it did, as a part of how large the sample is there."""


@dataclass(frozen=True)
class At:
    """A step of some way: what the network was given, after guidance what it predicted, both (N, C, H, W).

    Attributes:
        step: its number among all steps.
    """

    step: int
    sample: Tensor
    prediction: Tensor


class Sampling:
    """Draws the same samples along whichever steps.

    Args:
        source, scheduler, guidance_scale: as for `collect_calibration_data`.
        every_step: the schedule of all steps.
        count, inputs: what is drawn.
        seed: of the noise.
    """

    def __init__(
        self,
        source: Any,
        scheduler: Any,
        every_step: Schedule,
        count: int,
        inputs: Mapping[str, Any],
        seed: int,
        guidance_scale: float | None,
    ):
        self.source, self.scheduler, self.every_step = source, scheduler, every_step
        self.count, self.inputs, self.seed, self.guidance_scale = count, inputs, seed, guidance_scale
        self.options: dict[str, Any] = {}

    def reference(self) -> tuple[At, list[Tensor]]:
        """The first step, and the samples at every step and at last the images: (N, C, H, W) each.

        Raises:
            CalibrationError: the network predicts NaN or infinity; or the sampler draws noise on the way.
        """
        seen: list[Taken] = []
        self._draw(self.every_step, seen.append)
        if len(seen) != len(self.every_step):
            raise CalibrationError(
                f"the sampler took {len(seen)} of {len(self.every_step)} steps",
                where="optimize_schedule",
                fix="Give a pipeline that begins with noise and takes all steps of its scheduler",
            )
        self.options = {name: value for name, value in seen[0].options.items() if name not in LOOPS_OWN}
        samples = [*(taken.sample for taken in seen), seen[-1].arrived]
        way = [At(taken.number, taken.sample, taken.prediction) for taken in seen]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)  # noise on the way is other noise
            for end in range(1, len(samples)):
                self._check_replayed(self.arrived(way[:end], end), samples[end], end)
        return way[0], samples

    def predictions(self, arrivals: Mapping[int, Tensor]) -> dict[int, At]:
        """What the network predicts of these samples, each at the step of that number; none of them the first."""
        steps = sorted(arrivals)
        found: dict[int, At] = {}

        def watch(taken: Taken) -> Tensor | None:
            if taken.number:
                step = steps[taken.number - 1]
                found[step] = At(step, taken.sample, taken.prediction)
            return arrivals[steps[taken.number]] if taken.number < len(steps) else None

        self._draw(self.every_step.part([0, *steps]), watch)
        return found

    def arrived(self, way: Sequence[At], end: int) -> Tensor:
        """Where a way leads, at the step of that number; with the number of all steps, at the end."""
        before, after = [each.step for each in way], range(end, len(self.every_step))
        walked = with_schedule(self.scheduler, self.every_step.part([*before, *after]))
        walked.is_scale_input_called = True  # what some would warn of: predictions are there already
        first = 0 if any(hasattr(self.scheduler, name) for name in REMEMBERING) else len(way) - 1
        for number in range(first, len(way)):
            at = way[number]
            arrived: Tensor = walked.step(
                at.prediction, walked.timesteps[number], at.sample, **self.options
            ).prev_sample
        return arrived

    def _draw(self, schedule: Schedule, watch: Watch) -> None:
        def checked(taken: Taken) -> Tensor | None:
            if not bool(taken.prediction.isfinite().all()):
                raise CalibrationError(
                    f"the network predicts NaN or infinity at timestep {schedule.timesteps[taken.number]:g}",
                    where="optimize_schedule",
                    fix="Check its weights and its conditioning; float16 overflows where bfloat16 and float32 do not",
                )
            return watch(taken)

        walked = with_schedule(self.scheduler, schedule, checked)
        sampler = make_sampler(self.source, walked, len(schedule), self.guidance_scale)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            sampler.sample(self.count, self.inputs, torch.Generator().manual_seed(self.seed))

    def _check_replayed(self, again: Tensor, arrived: Tensor, end: int) -> None:
        size = float(arrived.double().square().mean().sqrt())
        off = float((again.double() - arrived.double()).square().mean().sqrt())
        if off > REPLAYED * max(size, 1e-6):
            raise CalibrationError(
                f"{type(self.scheduler).__name__} arrives elsewhere when it takes step {end} again: it draws noise on "
                "the way",
                where="optimize_schedule",
                fix="Give a scheduler that draws none: scheduler=DDIMScheduler, Euler or DPM-Solver++ of its config",
            )
