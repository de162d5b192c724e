"""A float network together with all it takes to draw images with it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from qdiff_fx.bundled.captions import captions
from qdiff_fx.calibration import CalibrationData, collect_calibration_data
from qdiff_fx.calibration.in_flight import InFlight
from qdiff_fx.config import QDiffConfig
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.errors import CalibrationError, QDiffError
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.progress import Progress
from qdiff_fx.sampling import Trajectory
from qdiff_fx.sampling.denoiser import denoiser_name
from qdiff_fx.sampling.guidance_until import guidance_until
from qdiff_fx.sampling.recorder import as_trajectory, recording, watching
from qdiff_fx.sampling.samplers import length_of_schedule
from qdiff_fx.schedule import Schedule
from qdiff_fx.schedules import schedule_of, with_schedule, without_schedule
from qdiff_fx.sources.parts import Part, put_parts
from qdiff_fx.sources.request import SampleRequest
from qdiff_fx.sources.subjects import EMBEDDED, PROMPT, check_subjects, in_turn, missing_pictures

Found = TypeVar("Found")


USUAL_STEPS = 25
STEPS_OF_DISTILLED = {"LCMScheduler": 4, "TCDScheduler": 4}
"""Of schedulers for networks that are distilled to few steps."""


class _SeenEnough(Exception):
    """Ends a sampler's run."""


class SourceError(QDiffError):
    """A SOURCE that cannot be found, loaded or run."""


class Source:
    """Where a network comes from and how it is sampled: any diffusers pipeline that denoises with one network.

    Args:
        identifier, pipe: see below.
        prompts: given to the images in turn; captions that come with the package where there are none.
        given: other arguments of the pipeline, of which lists and tensors have an item for each image, in turn.
    Attributes:
        identifier: what ``resolve`` turns into this source again; saved networks record it.
        pipe: takes prompts or a batch size, and returns ``.images``.
        unet: its float network, in eval mode, whatever the pipeline calls it.
        num_train_timesteps: length of the network's training schedule.
        progress: show bars.
        draws: whether trajectories are yet to be drawn.
    """

    draws = True

    def __init__(self, identifier: str, pipe: Any, prompts: Sequence[str] = (), given: Mapping[str, Any] | None = None):
        try:
            self._name = denoiser_name(pipe)
        except CalibrationError as error:
            raise SourceError(error.what, where=identifier, fix=error.fix) from error
        self.identifier, self.pipe, self.prompts = identifier, pipe, tuple(prompts) or captions()
        self.unet: nn.Module = getattr(pipe, self._name)
        self._check()
        self.unet.eval()
        self.num_train_timesteps: int = length_of_schedule(pipe.scheduler) or QDiffConfig.num_train_timesteps
        self.progress = False
        self._takes = inspect.signature(type(pipe).__call__).parameters
        self.given = dict(given or {})
        own = {PROMPT: self.prompts} if prompts and self.takes_prompts else {}
        check_subjects(own | self.given, self._takes, type(pipe).__name__)

    def _check(self) -> None:
        if isinstance(self.unet, (PreparedUNet, QuantizedUNet)):
            raise SourceError(
                f"its {self._name} is a {type(self.unet).__name__} already",
                where=self.identifier,
                fix="Give the float one",
            )

    @property
    def name(self) -> str:
        """What the pipeline calls its network."""
        return self._name

    @torch.no_grad()
    def sample(self, unet: nn.Module, request: SampleRequest) -> torch.Tensor:
        """Images (N, C, H, W) in [-1, 1], denoised by ``unet``, which is called as this source's own network is."""
        setattr(self.pipe, self._name, unet)
        try:
            images: np.ndarray = self._call(request).images
        finally:
            setattr(self.pipe, self._name, self.unet)
        return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) * 2 - 1

    @torch.no_grad()
    def run(self, request: SampleRequest) -> None:
        """Draw with the float network, for what somebody sees meanwhile."""
        self._call(request)

    def quantized(self, network: QuantizedUNet | None, parts: Mapping[Part, QuantizedUNet]) -> Any:
        """The pipeline itself, with these in the place of its own networks."""
        if network is not None:
            setattr(self.pipe, self._name, network)
        put_parts(self.pipe, parts)
        return self.pipe

    def labels(self, request: SampleRequest) -> torch.Tensor | None:
        """The class (N,) each image is asked to show; ``None`` where classes mean nothing."""
        return None

    def trajectory(self, request: SampleRequest) -> Trajectory:
        """Denoise with the float network and keep every call it gets."""
        with recording(self.unet) as calls:
            final = self.sample(self.unet, request)
        return as_trajectory(self._seen(calls), final)

    def _seen(self, calls: list[Found]) -> list[Found]:
        if not calls:
            raise SourceError("its sampler never called the network", where=self.identifier)
        return calls

    def example_inputs(self, count: int = 2) -> dict[str, Any]:
        """``forward`` arguments of one call of the network, for ``count`` images.

        Sampling ends there: the network does not run, nor does what comes after it, a decoder of large images say.
        """
        seen: list[dict[str, Any]] = []

        def see(inputs: dict[str, Any]) -> None:
            seen.append(inputs)
            raise _SeenEnough

        with watching(self.unet, before=see), torch.no_grad(), suppress(_SeenEnough):
            self._call(SampleRequest(count, steps=2))
        return self._seen(seen)[0]

    def calibration_data(
        self,
        request: SampleRequest,
        *,
        every: int,
        resume_dir: str | os.PathLike[str] | None = None,
        workers: Workers = ALONE,
        observing: InFlight | None = None,
        progress: bool | Progress | None = None,
    ) -> CalibrationData:
        """The float network's inputs at every ``every``-th step; see `collect_calibration_data`."""
        return collect_calibration_data(
            self.pipe,
            scheduler=self.scheduler_for(request),
            num_samples=request.count,
            num_inference_steps=request.steps,
            every=every,
            seed=request.seed,
            inputs=self.subjects(request),
            resume_dir=resume_dir,
            workers=workers,
            observing=observing,
            progress=self.progress if progress is None else progress,
        )

    def make_scheduler(self, steps: int) -> Any:
        """A scheduler for that many steps; ``None`` where the pipeline's own serves."""
        return None

    def scheduler_for(self, request: SampleRequest) -> Any:
        """A scheduler that takes the steps of the request; ``None`` where the pipeline's own serves.

        Raises:
            ConfigError: its schedule is another scheduler's.
        """
        if request.schedule is None:
            scheduled = schedule_of(self.pipe.scheduler) is not None
            return without_schedule(self.pipe.scheduler) if scheduled else self.make_scheduler(request.steps)
        return with_schedule(self.make_scheduler(request.schedule.out_of) or self.pipe.scheduler, request.schedule)

    @property
    def takes_prompts(self) -> bool:
        return PROMPT in self._takes

    def steps_taken(self, steps: int | None, schedule: Schedule | None) -> int:
        """Of an image: those of a schedule, or those that somebody asks for, or the usual."""
        if schedule is not None:
            return len(schedule)
        return self.usual_steps if steps is None else steps

    @property
    def usual_steps(self) -> int:
        """Of an image, where nobody says: those of a distilled sampler, or the pipeline's own where they are few."""
        own = getattr(self._takes.get("num_inference_steps"), "default", None)
        distilled = STEPS_OF_DISTILLED.get(type(self.pipe.scheduler).__name__, USUAL_STEPS)
        return min(own if isinstance(own, int) else USUAL_STEPS, distilled, USUAL_STEPS)

    def subjects(self, request: SampleRequest) -> dict[str, Any]:
        """The pipeline's arguments that say what to draw, one item per image."""
        if pictures := missing_pictures(self.pipe, self.given, self._takes):
            example = ", ".join(f'"{name}": [...]' for name in ("prompt", *pictures))
            raise SourceError(
                f"{type(self.pipe).__name__} draws by {' and '.join(pictures)}, which nobody gave",
                where=self.identifier,
                fix=f"Give them: --image FILE, or in Python qdiff_fx.quantize(pipe, data={{{example}}})",
            )
        found = in_turn(self.given, request.numbers)
        if self.takes_prompts and EMBEDDED not in found:
            return in_turn({PROMPT: self.prompts}, request.numbers) | found
        if found or self.takes_prompts or "batch_size" in self._takes:
            return found
        raise SourceError(
            f"{type(self.pipe).__name__} takes neither prompts nor a batch size",
            where=self.identifier,
            fix="Record calls of your own with qdiff_fx.calibrating(pipe), or write a Python file with load_unet() and "
            "make_scheduler(steps)",
        )

    def _call(self, request: SampleRequest) -> Any:
        """What the pipeline returns, with images (N, H, W, C) in [0, 1] where it draws such."""
        given: dict[str, Any] = {
            "batch_size": request.count,
            "num_inference_steps": request.steps,
            "generator": request.generators(),
            "output_type": "np",
        }
        if request.guidance_until != 1:
            given |= self._guidance(request.guidance_until)
        arguments = {name: value for name, value in given.items() if name in self._takes}
        self.pipe.set_progress_bar_config(disable=not self.progress, leave=False, desc="denoising")
        with self._taking_steps_of(request):
            return self.pipe(**arguments, **self.subjects(request))

    @contextmanager
    def _taking_steps_of(self, request: SampleRequest) -> Iterator[None]:
        """Its scheduler takes the steps asked for, where it would take those of a schedule alone, or others."""
        own = self.pipe.scheduler
        if request.schedule is None and schedule_of(own) is None:
            yield
            return
        try:
            self.pipe.scheduler = self.scheduler_for(request)
            yield
        finally:
            self.pipe.scheduler = own

    def _guidance(self, share: float) -> dict[str, Any]:
        own = guidance_until.__name__
        return {own: share} if own in self._takes else guidance_until(share, self.pipe)
