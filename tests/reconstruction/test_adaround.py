"""AdaRound: where it starts, what it learns, that it ends in codes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qdiff_fx.passes.quantize.nearest import weight_scales
from qdiff_fx.quant.numerics import quantize, weight_range
from qdiff_fx.quant.parameters import WeightParameters
from qdiff_fx.reconstruction.adaround import AdaRound


def nearest(weight, bits):
    scales = weight_scales(weight, bits)
    zeros = torch.zeros_like(scales, dtype=torch.int64)
    codes = quantize(weight, scales, zeros, *weight_range(bits), axis=0, dtype=torch.int8)
    return WeightParameters(codes, scales, bits)


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_it_starts_from_the_float_weight_where_nothing_clips(bits, seed):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    rounding = AdaRound(weight, nearest(weight, bits))
    rounding.begin()
    torch.testing.assert_close(rounding(), weight, rtol=1e-4, atol=1e-4)


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_finishing_at_once_gives_the_codes_it_started_from(bits, seed):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    start = nearest(weight, bits)
    rounding = AdaRound(weight, start)
    rounding.begin()
    rounding.finish()
    assert (rounding.codes != start.codes).float().mean() < 0.1  # exact ties may go either way
    assert rounding.codes.dtype == torch.int8


def test_the_regulariser_counts_what_is_undecided():
    weight = torch.tensor([[0.0, 0.25, 0.5, 1.0]])
    start = WeightParameters(torch.tensor([[0, 0, 0, 1]], dtype=torch.int8), torch.ones(1), 4)
    rounding = AdaRound(weight, start)
    rounding.begin()
    assert not rounding.settled()
    torch.testing.assert_close(rounding.regulariser(2.0), torch.tensor(0.75 + 1.0), rtol=1e-3, atol=1e-3)


def test_codes_given_at_the_start_are_kept_when_nothing_is_learned():
    weight = torch.full((1, 3), 0.4)
    start = WeightParameters(torch.tensor([[1, 0, 2]], dtype=torch.int8), torch.ones(1), 4)
    rounding = AdaRound(weight, start)
    torch.testing.assert_close(rounding(), start.codes.float())
    rounding.begin()
    # Between the given code and its neighbour on the weight's side, as near the weight as that allows.
    torch.testing.assert_close(rounding(), torch.tensor([[0.4, 0.4, 1.0]]), rtol=1e-4, atol=1e-4)


def test_a_head_start_lies_between_the_weight_and_its_code():
    weight = torch.full((1, 3), 0.4)
    start = WeightParameters(torch.tensor([[1, 0, 2]], dtype=torch.int8), torch.ones(1), 4)
    rounding = AdaRound(weight, start)
    rounding.begin(head_start=0.75)
    torch.testing.assert_close(rounding(), torch.tensor([[0.85, 0.1, 1.75]]), rtol=1e-4, atol=1e-4)
    rounding.finish()
    assert rounding.codes.equal(start.codes)


def test_it_learns_to_round_for_the_output_not_for_the_weight():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(32, 8, bias=False), torch.randn(256, 4) @ torch.randn(4, 32)  # correlated inputs
    weight = layer.weight.detach()
    rounding = AdaRound(weight, nearest(weight, 3))
    target = inputs @ weight.T
    before = (inputs @ rounding().T - target).square().mean()
    optimizer = torch.optim.Adam([rounding.begin()], lr=0.02)
    for step in range(300):
        optimizer.zero_grad()
        penalty = rounding.regulariser(20 - 18 * step / 300) if step > 60 else 0
        ((inputs @ rounding().T - target).square().sum(1).mean() + 0.01 * penalty).backward()
        optimizer.step()
    rounding.finish()
    after = (inputs @ rounding().T - target).square().mean()
    assert after < before / 2
