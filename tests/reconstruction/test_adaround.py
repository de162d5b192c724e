"""AdaRound: where it starts, what it learns, that it ends in codes."""

from dataclasses import replace

import pytest
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


def test_the_regulariser_alone_settles_every_weight_on_its_side():
    weight = torch.tensor([[0.0, 0.3, 0.7, 1.4]])
    start = WeightParameters(torch.tensor([[0, 0, 1, 1]], dtype=torch.int8), torch.ones(1), 4)
    rounding = AdaRound(weight, start)
    learner = rounding.begin(head_start=0.5)
    assert not learner.settled()
    for _ in range(200):
        learner.weight.grad = torch.zeros_like(weight)
        learner.step(0.05, pull=1.0, beta=2.0)
    assert learner.settled()
    torch.testing.assert_close(rounding(), start.codes.float())


@pytest.mark.parametrize("shape", [(4, 3, 3, 2), (4, 5)])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_of_every_layout_learn_the_same(shape, axis):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    scales = torch.rand(shape[axis]) / 4 + 0.1
    codes = torch.round(weight / scales.view([-1 if dim == axis else 1 for dim in range(len(shape))]))
    start = WeightParameters(codes.clamp(-8, 7).to(torch.int8), scales, 4, axis)
    rounding = AdaRound(weight, start)
    learner = rounding.begin()
    assert rounding().shape == weight.shape
    moved = AdaRound(weight.transpose(0, axis), replace(start, codes=start.codes.transpose(0, axis), axis=0))
    other = moved.begin()
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for _ in range(60):
        learner.weight.grad, other.weight.grad = gradient.clone(), gradient.transpose(0, axis).clone()
        learner.step(0.05), other.step(0.05)
    assert torch.equal(rounding().transpose(0, axis), moved())
    rounding.finish(), moved.finish()
    assert torch.equal(rounding.codes.transpose(0, axis), moved.codes)
    # Against the gradient, but for what is already at that end.
    assert ((rounding.codes - weight / rounding.scales) * gradient <= 0)[rounding.codes.abs() < 7].all()


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
    learner = rounding.begin()
    for step in range(300):
        (inputs @ rounding().T - target).square().sum(1).mean().backward()
        learner.step(0.02, 0.01 if step > 60 else 0.0, 20 - 18 * step / 300)
    rounding.finish()
    after = (inputs @ rounding().T - target).square().mean()
    assert after < before / 2
