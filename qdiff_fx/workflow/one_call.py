"""`qdiff_fx.quantize(pipe)`: what is given comes back, quantized."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from qdiff_fx.api import convert_qdiff
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ConfigError
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.progress import Progress
from qdiff_fx.schedules import schedule_of
from qdiff_fx.sources import RecordedSource, SampleRequest, Source
from qdiff_fx.storage.hub import HUB_ID
from qdiff_fx.workflow.amounts import parse_seconds
from qdiff_fx.workflow.job import Job, WorkFolder
from qdiff_fx.workflow.overall import Overall
from qdiff_fx.workflow.run import calibrated
from qdiff_fx.workflow.screen import make_screen

MOST_SAMPLES, SAMPLES = 128, 8
"""Trajectories that a budget chooses at most, as many as the paper has for Stable Diffusion; and without a budget."""
STEPS = 25
Given = TypeVar("Given")
Data = CalibrationData | Sequence[str] | None


def quantize(
    pipe_or_unet: Given,
    bits: str | QDiffConfig = "w4a8",
    data: Data = None,
    budget: str | float | None = "30min",
    backend: str = "native",
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: bool | Progress = True,
) -> Given:
    """Calibrate a pipeline's UNet on its own trajectories, round its weights, and put the result in its place.

    Args:
        pipe_or_unet: a pipeline, or its UNet together with `data` that were recorded.
        bits: "w4a8", "w8a8", or a configuration.
        data: prompts; or the network's own inputs, from `collect_calibration_data` or `calibrating`. None: captions
            that come with the package, for pipelines that take prompts.
        budget: the time it may take, "30min" or seconds; as many trajectories and rows as fit are used. None: eight
            trajectories at most, and as many of their rows as a network of its size needs.
        backend: what it is to run on.
        steps: of the sampler, while it is recorded; those of its schedule where it has one, see `with_schedule`.
        seed: of the noise.
        progress: show how far it is, or report to this.
    Returns:
        The same pipeline with a quantized UNet, or the quantized UNet. Where anything fails the pipeline is as it was.
    Raises:
        ConfigError: bits, budget or data that can never work.
        SourceError: a pipeline that does not say what to draw, or has no UNet.
        QDiffError: whatever else is wrong, in words.
    """
    seconds = parse_seconds(budget, "budget") if isinstance(budget, str) else budget
    schedule = schedule_of(getattr(pipe_or_unet, "scheduler", None))
    steps = steps if schedule is None else len(schedule)
    request = SampleRequest(SAMPLES if seconds is None else MOST_SAMPLES, steps, seed, schedule=schedule)
    owner, source, request = _source(pipe_or_unet, data, request)
    job = Job(_config(bits), request, backend=backend, budget=seconds, at_most=source.draws)
    with _shown(progress) as shown:
        quantized = quantized_source(source, job, shown)
    quantized.schedule = schedule
    if owner is None:
        return cast(Given, quantized)
    owner.put(quantized)
    return pipe_or_unet


def quantized_source(source: Source, job: Job, progress: bool | Progress) -> QuantizedUNet:
    """The job, in memory."""
    with _with_its_bars(source.pipe):
        found = calibrated(source, job, WorkFolder(None, source, job), progress=progress)
    assert found is not None, "nobody was there to stop it"
    return convert_qdiff(found.prepared, backend=job.backend, source=source.identifier)


def _config(bits: object) -> QDiffConfig:
    if isinstance(bits, QDiffConfig):
        return bits
    if not isinstance(bits, str):
        raise ConfigError(f"{bits!r} says no bits", where="bits", fix='Write "w4a8", or give a QDiffConfig')
    return QDiffConfig.of_bits(bits)


def _source(given: Any, data: Data, request: SampleRequest) -> tuple[Source | None, Source, SampleRequest]:
    """Whoever gets the result in the network's place, where what is calibrated on comes from, and how much of it."""
    owner = None if isinstance(given, nn.Module) else Source(_identifier(given), given, _prompts(data))
    if isinstance(given, (QuantizedUNet, PreparedUNet)):
        raise ConfigError(f"it is a {type(given).__name__} already", where="quantize", fix="Give the float network")
    if isinstance(data, CalibrationData):
        identifier, unet = ("", given) if owner is None else (owner.identifier, owner.unet)
        recorded = RecordedSource(identifier, unet, data)
        return owner, recorded, recorded.request
    if owner is None:
        raise ConfigError(
            "a network alone does not say how it is sampled",
            where="data",
            fix="Give the pipeline; or data that collect_calibration_data or calibrating recorded",
        )
    if data is not None and not owner.takes_prompts:
        raise ConfigError(f"{type(given).__name__} takes no prompts", where="data", fix="Leave them out")
    return owner, owner, request


def _identifier(pipe: Any) -> str:
    """Of the hub; where something lies on this machine is nobody's business."""
    name = getattr(pipe, "name_or_path", None)
    return name if isinstance(name, str) and HUB_ID.fullmatch(name) and not Path(name).exists() else ""


def _prompts(data: Data) -> tuple[str, ...]:
    if data is None or isinstance(data, CalibrationData):
        return ()
    prompts = (data,) if isinstance(data, str) else tuple(data)
    if not prompts or not all(isinstance(each, str) for each in prompts):
        raise ConfigError(
            "they are no prompts", where="data", fix="Give a list of strings, CalibrationData, or nothing at all"
        )
    return prompts


@contextmanager
def _with_its_bars(pipe: Any) -> Iterator[None]:
    """What it says about its own progress is left as it was."""
    before = getattr(pipe, "_progress_bar_config", None)
    try:
        yield
    finally:
        if before is not None:
            pipe._progress_bar_config = before
        elif hasattr(pipe, "_progress_bar_config"):
            del pipe._progress_bar_config


def _shown(progress: bool | Progress) -> AbstractContextManager[bool | Progress]:
    if progress is not True:
        return nullcontext(progress)
    return Overall(make_screen(partial(print, file=sys.stderr), interactive=sys.stderr.isatty()))
