"""From a source to a saved folder: the whole job in one call, and its steps one by one."""

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
from qdiff_fx.workflow.enough import enough
from qdiff_fx.workflow.estimate import Estimate, check_fits, estimate, fitted, shown_calls
from qdiff_fx.workflow.job import Job, WorkFolder
from qdiff_fx.workflow.measure import Costs, measure
from qdiff_fx.workflow.overall import Overall
from qdiff_fx.workflow.shared import adding_up, calibrate_together, own_folder

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


@dataclass(frozen=True)
class Done:
    """A finished job.

    Attributes:
        job: as it was done: with the trajectories and rows that a budget chose.
    """

    quantized: QuantizedUNet
    decided: Decided
    job: Job


@dataclass(frozen=True)
class Calibrated:
    """A job but for converting: the network that knows everything, what was decided, and the job as it was done."""

    prepared: PreparedUNet
    decided: Decided
    job: Job


Announce = Callable[[Estimate, Job], bool]
"""Is told what a job will take before it starts, and says whether to go on."""


def quantize(
    source: Source,
    job: Job,
    out: str | os.PathLike[str],
    *,
    resume_dir: str | os.PathLike[str] | None = None,
    samples_dir: str | os.PathLike[str] | None = None,
    memory_bytes: int | None = None,
    announce: Announce | None = None,
    workers: Workers = ALONE,
    progress: bool | Progress = True,
) -> Done | None:
    """Sample with the float network, calibrate, round its weights, convert and save.

    Args:
        source: the float network, and how it is sampled.
        job: what is to be done.
        out: the folder to write.
        resume_dir: keep everything there as it is finished; a run that was killed goes on from it, to the same bytes.
        samples_dir: keep the trajectories there instead.
        memory_bytes: refuse a job that would hold more.
        announce: is told what it will take, once a step has been timed.
        workers: processes that call this together, with the same arguments. They share trajectories, calibration and
            rounding; the leading one does what comes then, and is the only one that returns anything.
        progress: show bars, or report to this.
    Returns:
        None where `announce` stopped it.
    Raises:
        QDiffError: what is wrong, in words; nothing half-written stays.
    """
    with workers.together():
        folder = _work_folder(resume_dir, source, job, workers, samples_dir)
        found = calibrated(source, job, folder, memory_bytes, announce, workers, progress)
        if found is None:
            return None
        done = None
        if workers.leads:
            done = Done(save(found.prepared, source, out, progress, job.request.schedule), found.decided, found.job)
        workers.barrier()
        return done


def calibrated(
    source: Source,
    job: Job,
    folder: WorkFolder,
    memory_bytes: int | None = None,
    announce: Announce | None = None,
    workers: Workers = ALONE,
    progress: bool | Progress = True,
) -> Calibrated | None:
    """Everything of `quantize` but converting and saving."""
    begun = time.monotonic()
    with workers.together():
        prepared, costs = prepare_and_measure(source, job, progress)
        passed = progress.passed() if isinstance(progress, Overall) else time.monotonic() - begun
        settled = _settled(folder, job, costs, passed, workers)
        expected = estimate(costs, settled, workers.count)
        if memory_bytes is not None:
            check_fits(expected, memory_bytes)
        if not workers.agreed(announce is None or not workers.leads or announce(expected, settled)):
            return None
        if isinstance(progress, Overall):
            progress.expect({each.name: each.seconds for each in expected.phases})
        data, calibrated = draw_watched(source, prepared, settled, costs, folder, progress, workers)
        shown = data.spread(settled.rows).rebatched(costs.rows)
        if not calibrated:
            calibrate_together(prepared, shown, workers, resume_dir=folder.statistics, progress=progress)
        # Learning draws from what it is given, and takes no longer for more of it.
        learned_from = data if job.rows is None else shown
        decided = decide(prepared, shown, settled, folder, progress, workers, learned_from=learned_from)
        return Calibrated(prepared, decided, settled)


def _work_folder(
    resume_dir: str | os.PathLike[str] | None,
    source: Source,
    job: Job,
    workers: Workers,
    samples_dir: str | os.PathLike[str] | None,
) -> WorkFolder:
    """One process makes it, then the others open it."""
    if not workers.leads:
        workers.barrier()
    folder = WorkFolder(resume_dir, source, job, processes=workers.count, samples=samples_dir)
    if workers.leads:
        workers.barrier()
    return folder


def _settled(folder: WorkFolder, job: Job, costs: Costs, passed: float, workers: Workers) -> Job:
    """What is enough, or what the budget allows by the clock of one process."""
    if job.budget is None:
        return enough(costs, job)
    left = job.budget - passed
    chosen = folder.settled(job, lambda: fitted(costs, job, left, workers.count)) if workers.leads else job
    samples, rows = workers.agreed([chosen.request.count, chosen.rows])
    return replace(job, budget=None, at_most=False, request=replace(job.request, count=samples), rows=rows)


def prepare(source: Source, job: Job, progress: bool | Progress) -> PreparedUNet:
    """Capture the source's network and put observers in."""
    with phase(progress, "capturing", None, "network"):
        return _prepared(source, job, source.example_inputs(EXAMPLES))


def prepare_and_measure(source: Source, job: Job, progress: bool | Progress) -> tuple[PreparedUNet, Costs]:
    """The same, and what the work to come will cost; kernels are built."""
    with phase(progress, "capturing", None, "network"):
        example = source.example_inputs(EXAMPLES)
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
