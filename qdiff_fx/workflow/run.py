"""From a source to a saved folder: the whole job in one call; `phases.py` has its phases one by one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.networks import PreparedUNet, QuantizedUNet
from qdiff_fx.progress import Progress, phase
from qdiff_fx.sources import Source
from qdiff_fx.sources.parts import Part
from qdiff_fx.workflow.enough import enough, rounded_by, within_memory
from qdiff_fx.workflow.estimate import Estimate, check_fits, estimate, fitted
from qdiff_fx.workflow.job import Job, WorkFolder
from qdiff_fx.workflow.measure import Costs
from qdiff_fx.workflow.overall import Overall
from qdiff_fx.workflow.parts import FEW_TRAJECTORIES, OtherParts
from qdiff_fx.workflow.phases import Decided, build_kernels, decide, draw_watched, prepare_and_measure, save
from qdiff_fx.workflow.shared import calibrate_together


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
    """A job but for converting.

    Attributes:
        prepared, decided: the network that knows everything, and what was decided about it; None where the job is about
            other parts alone.
        job: as it was done.
        parts: other parts of the pipeline, likewise.
        left: what the job wants of these and could not have, with the reasons.
    """

    prepared: PreparedUNet | None
    decided: Decided | None
    job: Job
    parts: Mapping[Part, PreparedUNet] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)


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
        folder = work_folder(resume_dir, source, job, workers, samples_dir)
        found = calibrated(source, job, folder, memory_bytes, announce, workers, progress)
        if found is None:
            return None
        done = None
        if workers.leads:
            assert found.prepared is not None, "parts alone are no folder: see quantize_pipeline"
            assert found.decided is not None
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
        others = OtherParts(source, job)
        prepared, costs = _captured(source, job, others, progress)
        others.prepare(progress)
        costs = costs and replace(costs, beside=others.of_a_step)
        passed = progress.passed() if isinstance(progress, Overall) else time.monotonic() - begun
        settled, expected = _planned(folder, job, costs, others, passed, workers)
        if memory_bytes is not None:
            check_fits(expected, memory_bytes)
        if not workers.agreed(announce is None or not workers.leads or announce(expected, settled)):
            return None
        if isinstance(progress, Overall):
            progress.expect({each.name: each.seconds for each in expected.phases})
        decided = None
        with others.listening(settled, folder):
            if prepared is None or costs is None:
                others.draw(settled, folder, progress, workers)
            else:
                data, seen = draw_watched(source, prepared, settled, costs, folder, progress, workers)
        if prepared is not None and costs is not None:
            shown = data.spread(settled.rows).rebatched(costs.rows)
            if not seen:
                calibrate_together(prepared, shown, workers, resume_dir=folder.statistics, progress=progress)
            # Learning draws from what it is given, and takes no longer for more of it.
            learned_from = data if job.rows is None else shown
            rounded = rounded_by(shown, settled, costs.rows)
            decided = decide(prepared, rounded, settled, folder, progress, workers, learned_from=learned_from)
            del data, shown, rounded, learned_from
        parts = others.calibrate(settled, folder, workers, progress)
        return Calibrated(prepared, decided, settled, parts, others.left)


def _captured(
    source: Source, job: Job, others: OtherParts, progress: bool | Progress
) -> tuple[PreparedUNet | None, Costs | None]:
    """The network with observers, and what the work on it costs. One call of it shows what others are called with."""
    if job.network:
        return prepare_and_measure(source, job, progress, others.example)
    build_kernels(progress)
    with phase(progress, "capturing", None, "network"):
        others.example()
    return None, None


def _planned(
    folder: WorkFolder, job: Job, costs: Costs | None, others: OtherParts, passed: float, workers: Workers
) -> tuple[Job, Estimate]:
    """How much of everything there will be, and what it will take."""
    if costs is None:
        count = min(job.request.count, FEW_TRAJECTORIES)
        settled = replace(job, budget=None, at_most=False, request=replace(job.request, count=count))
        expected = Estimate((), 0)
    else:
        later = sum(each.seconds for each in others.phases(job.request.count, workers.count))
        settled = _settled(folder, job, costs, passed + later, workers)
        expected = estimate(costs, settled, workers.count)
    more = others.phases(settled.request.count, workers.count)
    return settled, replace(expected, phases=(*expected.phases, *more))


def work_folder(
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
    job = within_memory(costs, job)
    if job.budget is None:
        return enough(costs, job)
    left = job.budget - passed
    chosen = folder.settled(job, lambda: fitted(costs, job, left, workers.count)) if workers.leads else job
    samples, rows = workers.agreed([chosen.request.count, chosen.rows])
    return replace(job, budget=None, at_most=False, request=replace(job.request, count=samples), rows=rows)
