"""How many trajectories are drawn, and how many of their rows are shown, where nobody says.

A small network is shown all. A large one is shown as many rows of every timestep as make `WORK` of all of them, as each
passes the network in floats, and those that weights are rounded by twice more, on integers; but two of every timestep,
and `LEAST_ROWS`, at least. Where they are that few, half of the trajectories hold enough of them; but those of few
steps are as many as make that many rows. Weights are rounded by as many as make `WORK_OF_ROUNDING`: rounding looks at
so many positions, from however many rows, where the range of a timestep comes from its rows alone. What either costs in
quality is in docs/quality.md.

It depends on the network alone, not on how fast a machine is: the same command gives the same bytes everywhere.
"""

from __future__ import annotations

import math
from dataclasses import replace

from qdiff_fx.calibration.collect import MEMORY_CAP
from qdiff_fx.calibration.data import CalibrationData
from qdiff_fx.schedule import Schedule
from qdiff_fx.sources import SampleRequest, Source
from qdiff_fx.workflow.estimate import recorded_rows
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.measure import Costs

WORK = 1.8e12
"""Multiplications, of the layers that are quantized, that all rows together make."""
WORK_OF_ROUNDING = WORK / 2
"""The same of the rows that weights are rounded by."""
LEAST_EACH, LEAST_ROWS = 2, 32
FEW_TRAJECTORIES, TRAJECTORIES = 4, 8
"""Of a large network, and of others."""
MOST_TRAJECTORIES = 128
"""That a budget chooses, as many as the paper has for Stable Diffusion."""


def at_most(
    source: Source, samples: int | None, steps: int | None, schedule: Schedule | None, seed: int, *, budgeted: bool
) -> SampleRequest:
    """What is drawn of a source at most.

    Args:
        samples, steps: where somebody says.
        schedule: the steps themselves; their number is theirs.
        budgeted: as many samples are drawn as a time allows.
    """
    taken = source.steps_taken(steps, schedule)
    usual = MOST_TRAJECTORIES if budgeted else usual_trajectories(taken)
    return SampleRequest(samples or usual, taken, seed, schedule=schedule)


def usual_trajectories(steps: int) -> int:
    """How many of so many steps are drawn where nobody says; a large network does with half of them."""
    return max(TRAJECTORIES, _least(steps))


def _least(steps: int) -> int:
    """How many of so many steps make enough rows to round weights on."""
    return math.ceil(LEAST_ROWS / steps)


def enough(costs: Costs, job: Job) -> Job:
    """The job with the rows that are shown, and the trajectories that are drawn, where it leaves them open."""
    steps = math.ceil(job.request.steps / job.every)
    of_a_row = max(1, sum(layer.multiplications for layer in costs.layers))
    least = max(LEAST_EACH, _least(steps))
    each, rounded = (max(least, int(work / of_a_row / steps)) for work in (WORK, WORK_OF_ROUNDING))
    few = job.at_most and each == least
    count = min(job.request.count, max(FEW_TRAJECTORIES, _least(steps))) if few else job.request.count
    request = replace(job.request, count=count)
    if job.rows is None:
        job = replace(job, rows=each * steps, rounded=rounded * steps)
    return replace(job, at_most=False, request=request)


def within_memory(costs: Costs, job: Job) -> Job:
    """The job with no more trajectories than may be recorded, where it leaves their number open; of one alone that is
    too much, fewer steps are recorded. A ControlNet adds as much to every step as a dozen images."""
    if not job.at_most and job.budget is None:
        return job
    one = recorded_rows(costs, replace(job, request=replace(job.request, count=costs.samples))) * costs.changing_bytes
    fitting = costs.samples * MEMORY_CAP // max(one, 1)
    if fitting >= job.request.count:
        return job
    every = min(job.request.steps, job.every * -(-one // (costs.samples * MEMORY_CAP)))
    return replace(job, every=every, request=replace(job.request, count=max(fitting, 1)))


def rounded_by(shown: CalibrationData, job: Job, at_once: int) -> CalibrationData:
    """Those of the rows that are shown which weights are rounded by, so many in a batch."""
    return shown if job.rounded is None else shown.spread(job.rounded).rebatched(at_once)
