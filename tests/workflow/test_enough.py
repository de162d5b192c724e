"""A small network is shown all there is, a large one what its size allows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qdiff_fx.calibration.data import CalibrationData
from qdiff_fx.config import QDiffConfig
from qdiff_fx.sources import SampleRequest
from qdiff_fx.workflow.enough import MEMORY_CAP, enough, rounded_by, usual_trajectories, within_memory
from qdiff_fx.workflow.job import ALL_ROWS, Job
from qdiff_fx.workflow.measure import Costs, LayerSize, Rates

RATES = Rates(1e11, 4e10, 1e8, 5e9, 1e7, 1e9, 4e7, 1e3)
JOB = Job(QDiffConfig(), SampleRequest(8, 25), at_most=True)


def costs(multiplications: float) -> Costs:
    layers = (LayerSize("conv", 1, 1, int(multiplications), "a"),)
    return Costs(4, 8, 0.1, 0.15, 10**7, 10**7, 5000, 7.0, 6 * 10**8, 120, layers, RATES)


@pytest.mark.parametrize(
    ("multiplications", "steps", "rows", "trajectories"),
    [
        (2e8, 25, 9000, 8),
        (1.2e10, 25, 150, 8),
        (1.15e10, 25, 150, 8),  # as many of every timestep
        (3.5e11, 25, 50, 4),
        (3.5e11, 10, 40, 4),
        (3.5e11, 6, 36, 6),  # as many trajectories as make 32 rows, of those there are
        (3.5e11, 4, 32, 8),
        (3.5e11, 3, 33, 8),
        (0, 1, 1_800_000_000_000, 8),
    ],
)
def test_rows_and_trajectories_follow_the_size(
    multiplications: float, steps: int, rows: int, trajectories: int
) -> None:
    chosen = enough(costs(multiplications), replace(JOB, request=SampleRequest(8, steps)))
    assert (chosen.rows, chosen.request.count, chosen.at_most) == (rows, trajectories, False)
    assert enough(costs(multiplications), replace(JOB, request=SampleRequest(8, 3 * steps), every=3)).rows == rows


@pytest.mark.parametrize(("multiplications", "rounded"), [(2e8, 4500), (1.2e10, 75), (3.5e11, 50)])
def test_weights_are_rounded_by_half_of_the_rows_where_these_are_many(multiplications: float, rounded: int) -> None:
    chosen = enough(costs(multiplications), JOB)
    assert chosen.rounded == rounded
    shown = CalibrationData(
        [{"sample": torch.arange(6.0)[:, None], "timestep": torch.full((6,), t)} for t in range(25)]
    )
    some = rounded_by(shown, replace(chosen, rounded=75), 4)
    assert [len(batch["sample"]) for batch in some] == [3] * 25
    assert rounded_by(shown, JOB, 4) is shown


@pytest.mark.parametrize(("steps", "trajectories"), [(25, 8), (4, 8), (2, 16), (1, 32)])
def test_few_steps_are_drawn_more_often(steps: int, trajectories: int) -> None:
    assert usual_trajectories(steps) == trajectories
    job = replace(JOB, request=SampleRequest(trajectories, steps))
    assert enough(costs(3.5e11), job).request.count == (4 if steps == 25 else trajectories)


def test_what_is_given_is_kept() -> None:
    given = enough(costs(3.5e11), replace(JOB, rows=ALL_ROWS, at_most=False))
    assert (given.rows, given.rounded, given.request.count) == (ALL_ROWS, None, 8)
    fewer = enough(costs(3.5e11), replace(JOB, request=SampleRequest(2, 25)))
    assert fewer.request.count == 2


@pytest.mark.parametrize(
    ("share", "count", "every"),
    [
        (1e-3, 8, 1),  # of the cap, by one trajectory of 25 steps
        (0.2, 5, 1),
        (0.9, 1, 1),
        (2.5, 1, 3),
        (1000.0, 1, 25),
    ],
)
def test_no_more_is_recorded_than_memory_holds(share: float, count: int, every: int) -> None:
    large = replace(costs(2e8), changing_bytes=int(share * MEMORY_CAP / (25 * 2)))
    chosen = within_memory(large, JOB)
    assert (chosen.request.count, chosen.every) == (count, every)
    assert within_memory(large, replace(JOB, at_most=False)) == replace(JOB, at_most=False)
    assert within_memory(costs(2e8), JOB) == JOB
