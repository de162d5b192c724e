"""What each layer returns, against the float network's."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_graphs import Shortcut
from torch import nn

from qdiff_fx import QDiffConfig, QuantizedUNet, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.backends.common.input_ranges import input_ranges
from qdiff_fx.evaluation.layer_errors import layer_sqnr, mean_over_steps
from qdiff_fx.quant.numerics import sqnr_db

TIMESTEPS = (900, 480, 20)


def inputs(timestep: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(timestep)
    return {"x": torch.randn(2, 3, 8, 8, generator=generator), "t": torch.full((2,), timestep)}


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(0)
    return Shortcut().eval()


@pytest.fixture(scope="module")
def quantized(unet: nn.Module) -> QuantizedUNet:
    examples = [inputs(each) for each in TIMESTEPS]
    prepared = prepare_qdiff(unet, QDiffConfig(weight_bits=4, weight_rounding="nearest"), examples[0])
    calibrate(prepared, examples, progress=False)
    return convert_qdiff(prepared)


def test_layers_are_compared_with_the_modules_they_were(quantized: QuantizedUNet, unet: nn.Module) -> None:
    found = layer_sqnr(quantized, unet, inputs(900))
    # The shortcut is two convolutions, whose sum is the layer's output.
    assert set(found) == {"conv_in", "deep", "shortcut", "to_q", "to_k", "to_v", "conv_out", "time"}
    assert found.pop("time") == math.inf  # of a single number, which stays in float
    assert all(5 < value < 80 for value in found.values()), found
    assert found["conv_in"] > found["deep"]  # eight bits at the edge, four inside
    with torch.no_grad():
        expected, actual = unet(**inputs(900)), quantized.with_backend("reference")(**inputs(900))
    assert found["conv_out"] == pytest.approx(sqnr_db(expected, actual), abs=1e-3)
    assert not any(module._forward_hooks for module in unet.modules())


def test_means_are_of_the_steps_that_have_a_layer() -> None:
    assert mean_over_steps([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}


def test_ranges_cover_what_was_seen(quantized: QuantizedUNet) -> None:
    found = input_ranges(quantized.graph_module)
    assert set(found) >= {"conv_in", "deep", "shortcut[0:16]", "shortcut[16:32]"}
    for ranges in found.values():
        assert len(ranges) in (1, quantized.qconfig.timestep_bins)
        assert all(low <= 0 <= high for low, high in ranges)
    # Inputs of conv_in are normal: a good range leaves out little.
    assert all(2 < high < 6 for _, high in found["conv_in"])


def test_layers_are_timed(quantized: QuantizedUNet) -> None:
    before = quantized(**inputs(480))
    seconds = quantized.layer_seconds(inputs(480))
    assert {"conv_in", "deep", "conv_out"} <= set(seconds)
    assert all(value > 0 for value in seconds.values())
    assert torch.equal(quantized(**inputs(480)), before)  # it runs as it did
    assert quantized.with_backend("reference").layer_seconds(inputs(480)) == {}
