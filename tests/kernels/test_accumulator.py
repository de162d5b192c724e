"""Sums of more than 32 bits: an error when a weight is packed, never a wrapped result."""

from __future__ import annotations

import pytest
import torch

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels import ops as plain
from qdiff_fx.kernels.accumulator import MOST_WEIGHTS, overflow, signed_sums

ops = torch.ops.qdiff
INPUTS = 70_000


def channels(*magnitudes: int, inputs: int = INPUTS) -> torch.Tensor:
    return torch.tensor(magnitudes, dtype=torch.int8)[:, None].repeat(1, inputs)


def test_sums_of_each_sign():
    positive, negative = signed_sums(torch.tensor([[[-128, 127], [127, -1]], [[0, 0], [3, -4]]], dtype=torch.int8))
    assert (positive.tolist(), negative.tolist()) == ([254, 3], [-129, -4])


@pytest.mark.parametrize("pack", [ops.pack_weight, plain.pack_weight.reference], ids=["operator", "plain"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_whose_sums_might_wrap_is_refused(pack, sign):
    with pytest.raises((RuntimeError, KernelError), match=rf"70000 weights per output channel.*255 \* {127 * INPUTS}"):
        pack(channels(3, sign * 127), 8)


def test_the_largest_sums_that_fit_are_exact():
    """All codes at their end, with the zero-point at the other: nothing between is allowed to wrap either."""
    codes = channels(120, -120, 1)
    codes[:2, : MOST_WEIGHTS - 120 * INPUTS] += torch.tensor([[1], [-1]], dtype=torch.int8)
    assert codes[0].sum() == MOST_WEIGHTS
    assert overflow(codes, 8) == ""
    for value, zero_point in ((255, 0), (0, 255)):
        x = torch.full((2, INPUTS), value, dtype=torch.uint8)
        weight, sums = ops.pack_weight(codes, 8)
        arguments = (
            [weight],
            [torch.full((sums.numel(),), 1e-6)],
            [sums],
            3,
            None,
            None,
            0,
            torch.float32,
            1.0,
            0,
            0,
            0,
        )
        result = ops.int_linear(x, 1.0, zero_point, *arguments)
        expected = (x.double() - zero_point) @ codes.double().T * 1e-6
        torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=0)


def test_one_more_does_not_fit():
    codes = channels(120)
    codes[0, : MOST_WEIGHTS + 1 - 120 * INPUTS] += 1
    assert "more than 32 bits hold" in overflow(codes, 8)


def test_few_weights_of_few_bits_need_no_look():
    assert overflow(torch.full((1, INPUTS), 7, dtype=torch.int8), 4) == ""
