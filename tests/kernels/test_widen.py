"""widen: every number of half precision, and any part of a tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.ops.widen import widen

HALF = st.sampled_from([torch.float16, torch.bfloat16])


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit by bit, where they are numbers."""
    nan = a.isnan()
    return bool(torch.equal(nan, b.isnan())) and torch.equal(a[~nan].view(torch.int32), b[~nan].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_is_exact(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    assert alike(widen(every), every.float())


@given(HALF, st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 3), st.booleans())
def test_any_part_of_a_tensor(dtype: torch.dtype, shape: list[int], start: int, turned: bool) -> None:
    whole = torch.randn(*shape, 7).to(dtype)
    part = (whole.transpose(0, -1) if turned else whole)[..., min(start, whole.shape[0] if turned else 7) :]
    found = widen(part)
    assert found.dtype == torch.float32
    assert torch.equal(found, part.float())


def test_results_do_not_share_memory() -> None:
    one, other = torch.ones(1 << 20).half(), torch.zeros(1 << 20).half()
    first = widen(one)
    widen(other)
    assert bool((first == 1).all())


def test_nothing_is_learned_through_it() -> None:
    weight = torch.nn.Parameter(torch.ones(4).half())
    assert not widen(weight).requires_grad


@pytest.mark.parametrize("weight", [torch.ones(3, dtype=torch.int8), None])
def test_what_is_no_floating_tensor_is_refused(weight: torch.Tensor | None) -> None:
    with pytest.raises(KernelError, match="widen"):
        widen(weight)
