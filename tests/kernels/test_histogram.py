"""Histograms on grids of powers of two: compiled kernels and plain torch count the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import examples
from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.ops.histogram import reference

BOTH = pytest.mark.parametrize("histogram", [reference, torch.ops.qdiff.histogram])


@BOTH
@given(
    st.lists(st.floats(-(2.0**30), 2.0**30, width=32), min_size=1, max_size=50),
    st.sampled_from([-100, -9, 0, 7, 25, 127]),
)
@examples(60)
def test_bins_are_floor_of_value_over_width(histogram, values, exponent):
    inside = [v for v in values if -8 * 2.0**exponent <= v < 8 * 2.0**exponent]
    expected = [0] * 16
    for value in inside:
        expected[int(value // 2.0**exponent) + 8] += 1
    assert histogram(torch.tensor([inside], dtype=torch.float32), exponent, 16, 1).tolist() == expected


@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 900), st.sampled_from([1, 3, 5, 64]))
@examples(40)
def test_both_count_the_same(seed, rows, columns, step):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    for each in (x, x.half(), x.bfloat16(), x.t().contiguous().t()):
        assert torch.equal(torch.ops.qdiff.histogram(each, -8, 2048, step), reference(each, -8, 2048, step))


def test_more_numbers_than_one_task_takes():
    x = torch.arange(3 * 50_000, dtype=torch.float32).view(3, -1).remainder_(1000)
    for step in (1, 7):
        assert torch.equal(torch.ops.qdiff.histogram(x, 0, 2048, step), reference(x, 0, 2048, step))


@BOTH
def test_what_lies_outside_is_counted_at_the_ends(histogram):
    x = torch.tensor([[-9.0, -8.0, 7.9, 8.0, 1e9, -1e9]])
    assert histogram(x, 0, 16, 1).nonzero().flatten().tolist() == [0, 15]


@BOTH
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.zeros(3), 0, 16, 1), "rows of numbers"),
        ((torch.zeros(3, 3, dtype=torch.int32), 0, 16, 1), "must be float32"),
        ((torch.zeros(3, 3), 128, 16, 1), "exponent must be"),
        ((torch.zeros(3, 3), 0, 1, 1), "bins must be"),
        ((torch.zeros(3, 3), 0, 16, 0), "step must be"),
    ],
)
def test_refusals(histogram, arguments, says):
    with pytest.raises((KernelError, RuntimeError), match=says):
        histogram(*arguments)
