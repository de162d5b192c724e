"""Weights that integers cannot stand for are refused by the name of their layer; odd strides are taken as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdiff_fx import QDiffConfig, Rule, convert_qdiff, prepare_qdiff
from qdiff_fx.errors import CalibrationError, CaptureError, ConversionError
from qdiff_fx.quant.parameters import WeightParameters

X = torch.linspace(-1, 1, 2 * 4 * 16).reshape(2, 4, 4, 4)
FAST = {"weight_range": "max", "act_range": "minmax", "edge_weight_bits": 2}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return self.second(self.first(x))


def converted(net: nn.Module, x: torch.Tensor = X, **config):
    prepared = prepare_qdiff(net.eval(), QDiffConfig(**FAST, **config), {"x": x})
    with torch.no_grad():
        prepared(x)
    return convert_qdiff(prepared, "reference"), convert_qdiff(prepared, "native")


def scaled(first: float, second: float) -> nn.Module:
    net = Two()
    with torch.no_grad():
        net.first.weight.mul_(first)
        net.second.weight.mul_(second)
    return net


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_numbers_that_are_none_are_found_when_the_network_is_prepared(bad, name):
    net = Two()
    with torch.no_grad():
        getattr(net.second, name).view(-1)[3] = bad
    with pytest.raises(ConversionError, match=rf"second: its {name} holds NaN or infinity \(1 of \d+ numbers\)"):
        converted(net)


def test_and_again_when_it_is_converted():
    net = Two().eval()
    prepared = prepare_qdiff(net, QDiffConfig(**FAST), {"x": X})
    with torch.no_grad():
        prepared(X)
        net.first.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ConversionError, match="first: its weight holds NaN"):
        convert_qdiff(prepared)


def test_what_stays_in_float_may_hold_anything():
    net = Two()
    with torch.no_grad():
        net.second.bias[0] = torch.inf
    assert converted(net, rules=(Rule("second", quantize=False),))[1](X)[:, 0].isinf().all()


def test_weights_that_hold_no_numbers():
    net = Two()
    net.second.to("meta")
    with pytest.raises(CaptureError, match="second.weight: it is on the meta device.*Say where its weights are"):
        converted(net)


def test_activations_that_overflow_are_named():
    with pytest.raises(CalibrationError, match="second input: the activation holds NaN or infinity"):
        converted(scaled(3e38, 1.0), X * 1e5)


def test_scales_that_float32_does_not_hold():
    with pytest.raises(ConversionError, match="second: its weights are too small for scales of float32"):
        converted(scaled(1e37, 1e-38))
    with pytest.raises(ConversionError, match="second: the product of the scales .* exceeds float32"):
        converted(scaled(1e37, 1e8))


def test_double_precision_that_float32_does_not_hold():
    net = Two().double()
    with torch.no_grad():
        net.first.weight[0, 0, 0, 0] = 1e200
    with pytest.raises(ConversionError, match=r"first: its weight holds NaN or infinity \(1 of 144 numbers\)"):
        converted(net, X.double())


def test_weights_that_no_output_shows_may_be_as_small_as_they_like():
    net = scaled(1.0, 1e-42)
    for network in converted(net):
        torch.testing.assert_close(network(X), net(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_expanded_and_strided_weights_and_biases(bits):
    odd, plain = Two(), Two()
    odd.first.weight = nn.Parameter(odd.first.weight[:1].expand(4, -1, -1, -1))
    odd.second.weight = nn.Parameter(odd.second.weight.transpose(2, 3))
    odd.first.bias, odd.second.bias = nn.Parameter(odd.first.bias[:1].expand(4)), nn.Parameter(torch.randn(8)[::2])
    with torch.no_grad():
        for layer in ("first", "second"):
            for name in ("weight", "bias"):
                setattr(getattr(plain, layer), name, nn.Parameter(getattr(getattr(odd, layer), name).clone(
                    memory_format=torch.contiguous_format
                )))  # fmt: skip
    for one, other in zip(converted(odd, weight_bits=bits), converted(plain, weight_bits=bits), strict=True):
        assert torch.equal(one(X), other(X))


@pytest.mark.parametrize(
    ("code", "scale", "bits", "message"),
    [
        (8, 1.0, 4, r"codes of 4 bits lie in \[-8, 7\]"),
        (-9, 1.0, 4, r"codes of 4 bits lie in \[-8, 7\]"),
        (-128, 1.0, 8, r"codes of 8 bits lie in \[-127, 127\]"),
        (1, torch.inf, 4, "not a positive finite"),
        (1, torch.nan, 4, "not a positive finite"),
        (1, 0.0, 4, "not a positive finite"),
    ],
)
def test_parameters_that_are_none(code, scale, bits, message):
    with pytest.raises(ConversionError, match=message):
        WeightParameters(torch.tensor([[code]], dtype=torch.int8), torch.tensor([scale]), bits)
