"""timestep_bin: arithmetic, dtypes, limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import timestep_bin


@given(st.integers(0, 999), st.integers(1, 50))
def test_integers_use_integer_division(t: int, bins: int) -> None:
    result = timestep_bin(torch.tensor([t, 0]), bins, 1000)
    assert (result.dtype, result.shape) == (torch.int64, (1,))
    assert int(result) == t * bins // 1000


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.float32, torch.float64, torch.float16])
def test_dtypes_agree(dtype: torch.dtype) -> None:
    for t in (0, 1, 49, 50, 999):
        assert int(timestep_bin(torch.tensor([t], dtype=dtype), 20, 1000)) == t // 50


@pytest.mark.parametrize(("t", "expected"), [(-5.0, 0), (1000.0, 9), (1e9, 9), (99.99, 0), (100.0, 1)])
def test_out_of_range_goes_to_the_nearest_bin(t: float, expected: int) -> None:
    assert int(timestep_bin(torch.tensor([t]), 10, 1000)) == expected


def test_scalar_timestep() -> None:
    assert timestep_bin(torch.tensor(999), 10, 1000).tolist() == [9]


@pytest.mark.parametrize(("bins", "steps"), [(0, 1000), (10, 0)])
def test_empty_table_is_refused(bins: int, steps: int) -> None:
    with pytest.raises(KernelError, match="must be 1.."):
        timestep_bin(torch.tensor([1]), bins, steps)
