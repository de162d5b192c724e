import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff_fx.errors import CalibrationError
from qdiff_fx.observers.statistics import (
    SMALLEST_EXPONENT,
    Statistics,
    coarsen,
    merge_statistics,
    smallest_exponent,
)

finite = st.floats(-(2.0**120), 2.0**120, width=32)


@given(finite, finite, st.sampled_from([2, 16, 2048]))
def test_smallest_exponent_holds_both_ends_and_no_finer_one_does(a, b, bins):
    lo, hi = min(a, b), max(a, b)

    def fits(exponent):
        return all(-bins // 2 <= math.floor(math.ldexp(end, -exponent)) < bins // 2 for end in (lo, hi))

    exponent = smallest_exponent(lo, hi, bins)
    assert fits(exponent)
    assert exponent == SMALLEST_EXPONENT or not fits(exponent - 1)


def test_coarsen_adds_neighbours_on_either_side_of_zero():
    hist = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]])
    assert coarsen(hist, torch.tensor([0, 1])).tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 3, 7, 11, 15, 0, 0]]


@given(st.lists(st.integers(0, 2**40), min_size=16, max_size=16), st.integers(0, 300), st.integers(0, 300))
def test_coarsening_in_steps_equals_coarsening_at_once(row, first, second):
    hist = torch.tensor([row])
    stepwise = coarsen(coarsen(hist, torch.tensor([first])), torch.tensor([second]))
    assert torch.equal(stepwise, coarsen(hist, torch.tensor([first + second])))
    assert stepwise.sum() == sum(row)


def test_merge_refuses_other_bins():
    def empty(bins):
        values, counts = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
        return Statistics(values, values, torch.zeros(2, bins, dtype=torch.int64), counts, counts, name="conv_in")

    with pytest.raises(CalibrationError, match=r"conv_in: .*\[2, 8\] and \[2, 16\].*same timestep_bins"):
        merge_statistics(empty(8), empty(16))
