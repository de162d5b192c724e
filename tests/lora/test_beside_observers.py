"""A LoRA beside a network that is being calibrated: what its observers see, and what is made of it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_net import BATCHES, Net, fused, lora, outputs, sqnr
from torch import Tensor

from qdiff_fx import PreparedUNet, QDiffConfig, calibrate, convert_qdiff, load_prepared, prepare_qdiff, save_prepared
from qdiff_fx.errors import ArtifactError, ConfigError

LARGE = 1.0
"""Of the matrices' numbers: what they add is several times what the layers return."""


@pytest.fixture
def float_net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def prepared(float_net: Net) -> PreparedUNet:
    made = prepare_qdiff(float_net, QDiffConfig(weight_bits=8), BATCHES[0])
    calibrate(made, BATCHES, progress=False)
    return made


def kept(prepared: PreparedUNet, expected: Tensor, tensors: dict[str, Tensor]) -> float:
    """How near the quantized network comes to a float one, both with the LoRA."""
    quantized = convert_qdiff(prepared, "reference")
    quantized.load_lora_adapter(tensors)
    return sqnr(expected, outputs(quantized))


def test_it_adds_what_it_adds_to_the_float_network(float_net: Net, prepared: PreparedUNet) -> None:
    before = outputs(prepared)
    prepared.load_lora_adapter(lora())
    prepared.set_adapters("default_0", 0.5)
    torch.testing.assert_close(outputs(prepared), outputs(fused(float_net, lora(), 0.5)))
    prepared.unload_lora()
    assert torch.equal(outputs(prepared), before)


@pytest.mark.parametrize("size", [0.1, LARGE])
def test_ranges_that_were_seen_with_it_hold_it(float_net: Net, prepared: PreparedUNet, size: float) -> None:
    """It comes as near as where it is fused and quantized with the rest; with other ranges it is far from that."""
    tensors = lora(size=size)
    twin = fused(float_net, tensors)
    expected = outputs(twin)
    quantized_with_it = prepare_qdiff(twin, QDiffConfig(weight_bits=8), BATCHES[0])
    calibrate(quantized_with_it, BATCHES, progress=False)
    wanted = sqnr(expected, outputs(convert_qdiff(quantized_with_it, "reference")))
    assert kept(prepared, expected, tensors) < wanted - 5
    prepared.load_lora_adapter(tensors)
    calibrate(prepared, BATCHES, progress=False)
    assert kept(prepared, expected, tensors) > wanted - 0.5


def test_they_are_as_if_the_float_network_had_it(float_net: Net, prepared: PreparedUNet) -> None:
    """Statistics of inputs with it are those of a network that it is fused into."""
    twin = prepare_qdiff(fused(float_net, lora()), QDiffConfig(weight_bits=8), BATCHES[0])
    calibrate(twin, BATCHES, progress=False)
    anew = prepare_qdiff(float_net, QDiffConfig(weight_bits=8), BATCHES[0])
    anew.load_lora_adapter(lora())
    calibrate(anew, BATCHES, progress=False)
    seen, expected = (
        {name: each for name, each in network.named_buffers() if name.endswith("max_val")} for network in (anew, twin)
    )
    assert seen
    for name, each in expected.items():
        torch.testing.assert_close(seen[name], each)


def test_what_is_converted_and_saved_is_the_network_alone(prepared: PreparedUNet, tmp_path: Path) -> None:
    expected = outputs(convert_qdiff(prepared, "reference"))
    prepared.load_lora_adapter(lora())
    assert torch.equal(outputs(convert_qdiff(prepared, "reference")), expected)
    loaded = load_prepared(save_prepared(prepared, tmp_path / "prepared"))
    assert not loaded.active_adapters()
    assert torch.equal(outputs(convert_qdiff(loaded, "reference")), expected)


def test_a_pickle_has_it(prepared: PreparedUNet) -> None:
    prepared.load_lora_adapter(lora(), adapter_name="style")
    twin = pickle.loads(pickle.dumps(prepared))
    assert twin.active_adapters() == ["style"]
    torch.testing.assert_close(outputs(twin), outputs(prepared))


def test_a_calibration_goes_on_beside_the_same_one_only(float_net: Net, tmp_path: Path) -> None:
    def calibrated(tensors: dict[str, Tensor]) -> None:
        made = prepare_qdiff(float_net, QDiffConfig(weight_bits=8), BATCHES[0])
        made.load_lora_adapter(tensors)
        calibrate(made, BATCHES, resume_dir=tmp_path, progress=False)

    calibrated(lora(1))
    calibrated(lora(1))
    with pytest.raises(ArtifactError, match="another network"):
        calibrated(lora(2))


def test_one_of_another_network_is_refused_and_changes_nothing(prepared: PreparedUNet) -> None:
    before = outputs(prepared)
    elsewhere: dict[str, Any] = {"other.lora_A.weight": torch.ones(2, 9), "other.lora_B.weight": torch.ones(8, 2)}
    with pytest.raises(ConfigError, match="it changes other, and the network has no such"):
        prepared.load_lora_adapter(elsewhere, prefix=None)
    assert not prepared.active_adapters()
    assert torch.equal(outputs(prepared), before)
