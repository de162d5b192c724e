"""The phases of a job, one by one; `run.py` is all of them in one call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdiff_fx.api import convert_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.calibration.in_flight import InFlight
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.kernels import status
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.progress import Progress, phase
from qdiff_fx.reconstruction import Reconstruction, reconstruct
from qdiff_fx.schedule import Schedule
from qdiff_fx.sources import Source
from qdiff_fx.weight_rounding import RoundingReport, round_weights
from qdiff_fx.workflow.estimate import shown_calls
from qdiff_fx.workflow.job import Job, WorkFolder
from qdiff_fx.workflow.measure import Costs, measure
from qdiff_fx.workflow.overall import Overall
from qdiff_fx.workflow.shared import adding_up, own_folder

EXAMPLES = 2
"""Samples in the call that a network is captured from."""


@dataclass(frozen=True)
class Decided:
    """What calibration came to.

    Attributes:
        rounding: of weights to second order; None where they are rounded to nearest.
        reconstruction: None where none was asked for.
    """

    rounding: RoundingReport | None
    reconstruction: Reconstruction | None


def prepare(source: Source, job: Job, progress: bool | Progress) -> PreparedUNet:
    """Capture the source's network and put observers in."""
    with phase(progress, "capturing", None, "network"):
        return _prepared(source, job, source.example_inputs(EXAMPLES))


def prepare_and_measure(
    source: Source,
    job: Job,
    progress: bool | Progress,
    example_inputs: Callable[[], Mapping[str, Any]] | None = None,
) -> tuple[PreparedUNet, Costs]:
    """The same, and what the work to come will cost; kernels are built.

    Args:
        example_inputs: gives those of `EXAMPLES` samples, in place of the source.
    """
    with phase(progress, "capturing", None, "network"):
        example = source.example_inputs(EXAMPLES) if example_inputs is None else example_inputs()
        begun = time.monotonic()
        prepared = _prepared(source, job, example)
        seconds = time.monotonic() - begun
    build_kernels(progress)
    with phase(progress, "measuring", None, "step"):
        return prepared, measure(source, prepared, example, EXAMPLES, seconds)


def _prepared(source: Source, job: Job, example: Mapping[str, Any]) -> PreparedUNet:
    config = replace(job.config, num_train_timesteps=source.num_train_timesteps)
    return prepare_qdiff(source.unet, config, example, backend=job.backend)


def draw(
    source: Source,
    job: Job,
    folder: WorkFolder,
    progress: bool | Progress,
    workers: Workers = ALONE,
    observing: InFlight | None = None,
) -> CalibrationData:
    """The trajectories, as the float network draws them."""
    source.progress = False
    return source.calibration_data(
        job.request,
        every=job.every,
        resume_dir=folder.samples,
        workers=workers,
        observing=observing,
        progress=progress,
    )


def draw_watched(
    source: Source,
    prepared: PreparedUNet,
    job: Job,
    costs: Costs,
    folder: WorkFolder,
    progress: bool | Progress,
    workers: Workers,
) -> tuple[CalibrationData, bool]:
    """The same, and whether the prepared network's observers have seen their share of them meanwhile."""
    if not source.draws:
        return draw(source, job, folder, progress, workers), False
    seen_in = own_folder(folder.statistics, workers)
    observing = InFlight(prepared, shown_calls(costs, job), seen_in)
    with adding_up(prepared, workers):
        data = draw(source, job, folder, progress, workers, observing)
    return data, bool(workers.agreed(observing.possible))


def decide(
    prepared: PreparedUNet,
    data: CalibrationData,
    job: Job,
    folder: WorkFolder,
    progress: bool | Progress,
    workers: Workers = ALONE,
    *,
    learned_from: CalibrationData | None = None,
) -> Decided:
    """Round the weights of a calibrated network by the recorded inputs, and reconstruct, as the job has it.

    All processes round together; one reconstructs, from other rows where these are given, which is what it then knows
    alone.
    """
    rounding = None
    if prepared.qconfig.weight_rounding != "nearest":
        # What comes before the first layer is a part of it too.
        with phase(progress if isinstance(progress, Overall) else False, "rounding", None, "layer"):
            rounding = round_weights(prepared, data, resume_dir=folder.rounding, progress=progress, workers=workers)
    learned = None
    if job.reconstruction is not None and workers.leads:
        rows = data if learned_from is None else learned_from
        learned = reconstruct(prepared, rows, job.reconstruction, resume_dir=folder.units, progress=progress)
    return Decided(rounding, learned)


def build_kernels(progress: bool | Progress) -> None:
    """They are compiled when they are first asked for, which takes half a minute where the package brought none."""
    with phase(progress, "kernels", None, "build"):
        status()


def save(
    prepared: PreparedUNet,
    source: Source,
    out: str | os.PathLike[str],
    progress: bool | Progress,
    schedule: Schedule | None = None,
) -> QuantizedUNet:
    """Quantize with what was decided, and write the folder."""
    with phase(progress, "saving", None, "folder"):
        quantized = convert_qdiff(prepared, backend="reference", source=source.identifier, schedule=schedule)
        save_qdiff(quantized, Path(out))
        return quantized
