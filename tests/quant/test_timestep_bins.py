"""One formula for the bins of a schedule: exact on every edge, the same for every dtype."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff_fx.errors import ConfigError
from qdiff_fx.kernels import timestep_bin as operator
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.quant.timestep_bins import TimestepBins

SCHEDULE = TimestepBins(1000, 7)
FLOAT32 = st.floats(0, 1000, exclude_max=True, width=32)


@given(st.integers(0, 999), st.integers(1, 50))
def test_whole_timesteps_are_divided_in_whole_numbers(t: int, bins: int) -> None:
    found = TimestepBins(1000, bins).bin_of(torch.tensor([t]))
    assert (found.dtype, found.tolist()) == (torch.int64, [t * bins // 1000])


@given(FLOAT32)
def test_fractional_timesteps_are_exact_to_the_last_bit(t: float) -> None:
    numerator, denominator = t.as_integer_ratio()
    assert SCHEDULE.bin_of(torch.tensor(t)).item() == numerator * 7 // (denominator * 1000)


@pytest.mark.parametrize("edge", range(1, 7))
def test_just_below_an_edge_the_network_reads_what_was_measured(edge: int) -> None:
    t = torch.tensor([edge * 1000 / 7], dtype=torch.float32)
    while float(t) * 7 >= edge * 1000:
        t = torch.nextafter(t, torch.zeros(1))
    observer = TimestepObserver(7, 1000)
    observer(torch.ones(1, 3), t)
    assert observer.count.nonzero().item() == operator(t, 7, 1000).item() == edge - 1


@given(st.lists(FLOAT32, min_size=1, max_size=6))
def test_split_gives_every_row_once_with_rows_of_its_bin(timesteps: list[float]) -> None:
    given_ = torch.tensor(timesteps)
    parts = SCHEDULE.split(given_)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(timesteps)))
    bins = [SCHEDULE.bin_of(given_[rows]).unique().tolist() for rows in parts]
    assert all(len(each) == 1 for each in bins)
    assert bins == sorted(bins)
    assert len(bins) == len({each[0] for each in bins})


def test_rows_follow_the_sample_they_were_made_from() -> None:
    batch = torch.tensor([10, 990])
    assert SCHEDULE.rows_of(batch, 4).tolist() == [0, 0, 6, 6]
    assert SCHEDULE.rows_of(batch, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("timesteps", "outside"), [([0, 1000], None), ([5, 1001], 1001), ([-1.0, 5.0], -1.0), ([0.5, math.nan], math.nan)]
)
def test_outside_names_the_first_timestep_that_is(timesteps: list[float], outside: float | None) -> None:
    assert SCHEDULE.outside(torch.tensor(timesteps)) == pytest.approx(outside, nan_ok=True)


def test_width_is_the_schedules_part() -> None:
    assert TimestepBins(300, 25).width == 12


@pytest.mark.parametrize(("steps", "bins"), [(10, 11), (10, 0), (0, 1)])
def test_bins_that_do_not_fit_are_refused(steps: int, bins: int) -> None:
    with pytest.raises(ConfigError, match=f"{bins} bins do not fit a schedule of {steps}"):
        TimestepBins(steps, bins)
