"""From a source to a saved folder: the whole job in one call, and its steps one by one."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from qdiff_fx.api import convert_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.calibration import CalibrationData, calibrate
from qdiff_fx.kernels import status
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.progress import Progress, phase
from qdiff_fx.reconstruction import Reconstruction, reconstruct
from qdiff_fx.sources import Source
from qdiff_fx.weight_rounding import round_weights
from qdiff_fx.workflow.job import Job, WorkFolder


@dataclass(frozen=True)
class Decided:
    """What calibration came to.

    Attributes:
        rounded_to_nearest: layers that second-order rounding left to nearest codes, and why.
        reconstruction: None where none was asked for.
    """

    rounded_to_nearest: dict[str, str]
    reconstruction: Reconstruction | None


@dataclass(frozen=True)
class Done:
    """A finished job."""

    quantized: QuantizedUNet
    decided: Decided


def quantize(
    source: Source,
    job: Job,
    out: str | os.PathLike[str],
    *,
    resume_dir: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> Done:
    """Sample with the float network, calibrate, round its weights, convert and save.

    Args:
        source: the float network, and how it is sampled.
        job: what is to be done.
        out: the folder to write.
        resume_dir: keep everything there as it is finished; a run that was killed goes on from it, to the same bytes.
        progress: show bars, or report to this.
    Raises:
        QDiffError: what is wrong, in words; nothing half-written stays.
    """
    folder = WorkFolder(resume_dir, source, job)
    prepared = prepare(source, job, progress)
    build_kernels(progress)
    data = draw(source, job, folder, progress)
    decided = decide(prepared, data, job, folder, progress)
    return Done(save(prepared, source, out, progress), decided)


def prepare(source: Source, job: Job, progress: bool | Progress) -> PreparedUNet:
    """Capture the source's network and put observers in."""
    with phase(progress, "capturing", None, "network"):
        config = replace(job.config, num_train_timesteps=source.num_train_timesteps)
        return prepare_qdiff(source.unet, config, source.example_inputs(), backend=job.backend)


def draw(source: Source, job: Job, folder: WorkFolder, progress: bool | Progress) -> CalibrationData:
    """The trajectories, as the float network draws them."""
    source.progress = False
    return source.calibration_data(job.request, every=job.every, resume_dir=folder.samples, progress=progress)


def decide(
    prepared: PreparedUNet, data: CalibrationData, job: Job, folder: WorkFolder, progress: bool | Progress
) -> Decided:
    """Show the recorded inputs to the network, round its weights by them and reconstruct, as the job has it."""
    shown = data.spread(job.rows)
    calibrate(prepared, shown, resume_dir=folder.statistics, progress=progress)
    refused: dict[str, str] = {}
    if prepared.qconfig.weight_rounding != "nearest":
        refused = round_weights(prepared, shown, resume_dir=folder.rounding, progress=progress).refused
    learned = None
    if job.reconstruction is not None:
        learned = reconstruct(prepared, shown, job.reconstruction, resume_dir=folder.units, progress=progress)
    return Decided(refused, learned)


def build_kernels(progress: bool | Progress) -> None:
    """They are compiled when they are first asked for, which takes half a minute where the package brought none."""
    with phase(progress, "kernels", None, "build"):
        status()


def save(
    prepared: PreparedUNet, source: Source, out: str | os.PathLike[str], progress: bool | Progress
) -> QuantizedUNet:
    """Quantize with what was decided, and write the folder."""
    with phase(progress, "saving", None, "folder"):
        quantized = convert_qdiff(prepared, backend="reference", source=source.identifier)
        save_qdiff(quantized, Path(out))
        return quantized
