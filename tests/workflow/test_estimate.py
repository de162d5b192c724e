"""What a job will take, and what fits into a budget: of digits, measured once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.calibration.chunk_store import IN_MEMORY
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ConfigError
from qdiff_fx.reconstruction import ReconstructionConfig
from qdiff_fx.sources import SampleRequest
from qdiff_fx.weight_rounding.jobs import MOST_COLUMNS
from qdiff_fx.workflow.estimate import check_fits, estimate, fitted, flowing_bytes, recorded_rows
from qdiff_fx.workflow.job import ALL_ROWS, Job
from qdiff_fx.workflow.measure import Costs, LayerSize, Rates

RATES = Rates(
    moments=1e11, product=4e10, entries=1e8, factorisation=5e9, weights=1e7, feedback=1e9, search=4e7, ranges=1e3
)
LAYERS = (
    LayerSize("conv", 64, 576, 1024, "a"),
    LayerSize("to_q", 64, 64, 1024, "b"),
    LayerSize("to_k", 64, 64, 1024, "b"),
)
COSTS = Costs(4, 8, 0.1, 0.15, 10**7, 10**7, 5000, 7.0, 6 * 10**8, 120, LAYERS, RATES)
JOB = Job(QDiffConfig(), SampleRequest(8, 25))


def seconds_of(costs: Costs, job: Job) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in estimate(costs, job).phases}


def test_rows_are_those_that_are_recorded() -> None:
    assert recorded_rows(COSTS, JOB) == 400
    assert recorded_rows(COSTS, replace(JOB, every=3)) == 9 * 8 * 2


def test_phases_add_up_and_follow_the_data() -> None:
    found = estimate(COSTS, JOB)
    assert found.seconds == sum(phase.seconds for phase in found.phases)
    assert found.peak_bytes == max(phase.peak_bytes for phase in found.phases)
    seconds = seconds_of(COSTS, JOB)
    assert seconds["sampling"] == pytest.approx(2 * 25 * 0.1)
    assert seconds["calibrating"] == pytest.approx(50 * 0.15)
    fewer = seconds_of(COSTS, replace(JOB, rows=100))
    assert fewer["sampling"] == seconds["sampling"]
    assert fewer["calibrating"] == pytest.approx(seconds["calibrating"] / 4)
    assert 0 < fewer["rounding"] < seconds["rounding"]
    assert estimate(COSTS, replace(JOB, rows=10_000)).rows == 400


def test_what_is_seen_while_it_is_drawn_costs_what_observing_costs() -> None:
    costs = replace(COSTS, in_flight=True)
    for rows, calls in ((None, 50), (ALL_ROWS, 50), (200, 25), (25, 25), (5, 5)):
        seconds = seconds_of(costs, replace(JOB, rows=rows))
        assert "calibrating" not in seconds
        assert seconds["sampling"] == pytest.approx(2 * 25 * 0.1 + calls * 0.05)
    assert estimate(replace(costs, watched_bytes=10**9), JOB).phases[0].peak_bytes > 16 * 10**8


def test_what_is_called_beside_the_network_takes_its_time() -> None:
    alone, beside = (seconds_of(replace(COSTS, beside=each), JOB) for each in (0.0, 0.1))
    assert beside["sampling"] == pytest.approx(2 * alone["sampling"])
    assert {**beside, "sampling": 0} == {**alone, "sampling": 0}


def test_only_what_will_be_done_is_estimated() -> None:
    nearest = replace(JOB, config=QDiffConfig(weight_rounding="nearest"))
    assert set(seconds_of(COSTS, nearest)) == {"sampling", "calibrating", "saving"}
    learning = replace(nearest, reconstruction=ReconstructionConfig.fast())
    standard = replace(nearest, reconstruction=ReconstructionConfig.standard())
    assert seconds_of(COSTS, standard)["reconstructing"] > 2 * seconds_of(COSTS, learning)["reconstructing"] > 0


def test_processes_share_the_work() -> None:
    alone, shared = (estimate(COSTS, JOB, processes).phases for processes in (1, 2))
    for one, two in zip(alone, shared, strict=True):
        assert one.seconds / 2 <= two.seconds <= one.seconds
    assert shared[0].seconds == pytest.approx(alone[0].seconds / 2)


def test_layers_that_read_the_same_share_their_second_moments() -> None:
    apart = replace(COSTS, layers=(*LAYERS[:2], replace(LAYERS[2], reads="c")))
    assert seconds_of(apart, JOB)["rounding"] > seconds_of(COSTS, JOB)["rounding"]


@given(st.floats(30, 2000), st.floats(1, 3))
@examples(50)
def test_more_time_never_gives_fewer_rows(budget: float, factor: float) -> None:
    most = replace(JOB, request=SampleRequest(128, 25), budget=1.0)
    less, more = (fitted(COSTS, most, seconds) for seconds in (budget, budget * factor))
    assert estimate(COSTS, less).seconds <= budget
    assert estimate(COSTS, less).rows <= estimate(COSTS, more).rows
    assert less.request.count <= more.request.count
    assert less.budget is None


@pytest.mark.parametrize("most", [1, 3, 4, 6, 128])
def test_no_more_trajectories_than_asked_for(most: int) -> None:
    chosen = fitted(COSTS, replace(JOB, request=SampleRequest(most, 25), budget=1.0), 1e6)
    assert (chosen.request.count, chosen.rows) == (most, ALL_ROWS)


def test_too_little_time_names_the_least() -> None:
    least = estimate(COSTS, replace(JOB, request=SampleRequest(4, 25), rows=25)).seconds
    job = replace(JOB, budget=1.0)
    fitted(COSTS, job, least + 0.01)
    with pytest.raises(ConfigError, match=rf"budget: 1.0 s are left for what takes {least:.0f} s at least. Give"):
        fitted(COSTS, job, 1.0)
    with pytest.raises(ConfigError, match="0.0 s are left"):
        fitted(COSTS, job, -5.0)


def test_a_budget_and_rows_are_not_given_together() -> None:
    with pytest.raises(ConfigError, match="the budget chooses the rows"):
        replace(JOB, rows=3, budget=1.0)


def test_memory_is_a_cap() -> None:
    found = estimate(COSTS, JOB)
    check_fits(found, found.peak_bytes)
    with pytest.raises(ConfigError, match=r"memory: rounding takes about 0\.8. GB, the cap is"):
        check_fits(found, found.peak_bytes - 1)


def test_wide_layers_are_estimated_in_the_parts_they_are_rounded_in() -> None:
    def rounding(columns: int) -> tuple[float, int]:
        layers = (LayerSize("conv", 64, columns, 64, "a"),)
        found = estimate(replace(COSTS, layers=layers), JOB)
        return next((phase.seconds, phase.peak_bytes) for phase in found.phases if phase.name == "rounding")

    one, two = rounding(MOST_COLUMNS), rounding(2 * MOST_COLUMNS)
    assert one[0] < two[0] < 2.2 * one[0]
    assert one[1] == two[1]


def test_layers_of_bytes_are_cheaper_to_round() -> None:
    def seconds(bits: int) -> float:
        layers = (LayerSize("conv", 64, 4608, 64, "a", bits),)
        found = estimate(replace(COSTS, layers=layers), JOB)
        return next(phase.seconds for phase in found.phases if phase.name == "rounding")

    assert seconds(8) < seconds(4)


def test_what_flows_between_blocks_stays_in_memory_up_to_a_cap() -> None:
    assert flowing_bytes(COSTS, 8) == COSTS.step_bytes // 2
    assert flowing_bytes(COSTS, 10**6) == IN_MEMORY
