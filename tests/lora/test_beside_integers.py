"""LoRA beside a quantized network: what is added, what is kept, what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_net import BATCHES, Net, fused, lora, outputs, sqnr
from safetensors.torch import save_file

from qdiff_fx import (
    QDiffConfig,
    QuantizedUNet,
    calibrate,
    convert_qdiff,
    export_qdiff,
    load_qdiff,
    prepare_qdiff,
    round_weights,
    save_qdiff,
)
from qdiff_fx.errors import ConfigError
from qdiff_fx.kernels import status

BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(not status().available, reason="no kernels"))]


GAIN = 12
"""Decibels: how much nearer to the float network with a LoRA the quantized one is with it than without."""


@pytest.fixture(scope="module")
def float_net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def folder(float_net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepared = prepare_qdiff(float_net, QDiffConfig(weight_bits=8), BATCHES[0])
    calibrate(prepared, BATCHES, progress=False)
    round_weights(prepared, BATCHES, progress=False)
    return save_qdiff(convert_qdiff(prepared, "reference"), tmp_path_factory.mktemp("saved") / "net")


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_adds_what_it_adds_to_the_float_network(float_net: Net, folder: Path, backend: str) -> None:
    network = load_qdiff(folder, backend)
    before = outputs(network)
    network.load_lora_adapter(lora())
    assert network.active_adapters() == ["default_0"]
    for weight in (1.0, 0.5):
        network.set_adapters("default_0", weight)
        expected = outputs(fused(float_net, lora(), weight))
        assert sqnr(expected, outputs(network)) > sqnr(expected, before) + GAIN
    network.disable_lora()
    assert not network.active_adapters()
    assert torch.equal(outputs(network), before)
    network.enable_lora()
    assert not torch.equal(outputs(network), before)
    network.unload_lora()
    assert torch.equal(outputs(network), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_add_up(float_net: Net, folder: Path, backend: str) -> None:
    network = load_qdiff(folder, backend)
    before = outputs(network)
    network.load_lora_adapter(lora(1), adapter_name="a")
    network.load_lora_adapter(lora(2), adapter_name="b")
    assert network.active_adapters() == ["b"]
    network.set_adapters(["a", "b"], [0.5, -0.25])
    expected = outputs(fused(fused(float_net, lora(1), 0.5), lora(2), -0.25))
    assert sqnr(expected, outputs(network)) > sqnr(expected, before) + GAIN
    network.delete_adapters("a")
    assert network.active_adapters() == ["b"]
    network.load_lora_adapter(lora(3), adapter_name="b", hotswap=True)
    expected = outputs(fused(float_net, lora(3), -0.25))
    assert sqnr(expected, outputs(network)) > sqnr(expected, before) + GAIN


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_it_adds_at_the_end_is_added_exactly(float_net: Net, folder: Path, backend: str) -> None:
    """Nothing behind it rounds or clips; what it reads are codes."""
    network, down, up = load_qdiff(folder, backend), torch.randn(2, 8, 1, 1), torch.randn(3, 2, 1, 1)
    before = outputs(network)
    network.load_lora_adapter({"unet.out.lora_A.weight": down, "unet.out.lora_B.weight": up})
    twin = copy.deepcopy(float_net)
    twin.out.weight.data += (up.flatten(1) @ down.flatten(1)).view_as(twin.out.weight)
    assert sqnr(outputs(twin) - outputs(float_net), outputs(network) - before) > 40


def test_layers_stay_integers_and_it_is_said_what_is_not(folder: Path) -> None:
    network = load_qdiff(folder, "reference")
    before = {row.info.path for row in network.explain().rows}
    network.load_lora_adapter(lora())
    rows = {row.info.path: row.info for row in network.explain().rows}
    assert {path for path, info in rows.items() if info.quantized} == before
    added = {path: info for path, info in rows.items() if not info.quantized}
    assert len(added) == 2 * len([path for path in before if not path.startswith("out")])
    assert all("a LoRA" in info.float_reason for info in added.values())


def test_copies_and_other_backends_have_it_too(folder: Path) -> None:
    network = load_qdiff(folder, "reference")
    network.load_lora_adapter(lora())
    expected = outputs(network)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), network.with_backend("reference")):
        assert torch.equal(outputs(twin), expected)
        twin.unload_lora()
        assert not torch.equal(outputs(twin), expected)
    assert torch.equal(outputs(network), expected)


def test_what_is_exported_holds_it(folder: Path, tmp_path: Path) -> None:
    network = load_qdiff(folder, "reference")
    before = outputs(network)
    network.load_lora_adapter(lora())
    program = torch.export.load(export_qdiff(network, tmp_path / "net.pt2")).module()
    found = torch.cat([program(batch["sample"], batch["timestep"])[0] for batch in BATCHES])
    assert sqnr(outputs(network), found) > sqnr(outputs(network), before) + GAIN


def test_it_is_not_saved_and_saving_says_so(folder: Path, tmp_path: Path) -> None:
    network = load_qdiff(folder, "reference")
    before = outputs(network)
    network.load_lora_adapter(lora(), adapter_name="style")
    with pytest.raises(ConfigError, match=r"the LoRA 'style' is beside it, and would be lost\. Call disable_lora"):
        save_qdiff(network, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    network.disable_lora()
    assert torch.equal(outputs(load_qdiff(save_qdiff(network, tmp_path / "saved"), "reference")), before)


def test_a_file_is_read(folder: Path, tmp_path: Path) -> None:
    save_file(lora(), tmp_path / "lora.safetensors")
    one, other = load_qdiff(folder, "reference"), load_qdiff(folder, "reference")
    one.load_lora_adapter(lora())
    other.load_lora_adapter(tmp_path / "lora.safetensors")
    assert torch.equal(outputs(one), outputs(other))
    for bad in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ConfigError, match="it cannot be read"):
            other.load_lora_adapter(bad)


WIDE = {"unet.last.lora_A.weight": torch.ones(2, 9), "unet.last.lora_B.weight": torch.ones(8, 2)}
ELSEWHERE = {"unet.other.lora_A.weight": torch.ones(2, 9), "unet.other.lora_B.weight": torch.ones(8, 2)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda net: net.load_lora_adapter(WIDE), r"LoRA, last: its matrices \(2, 9\) and \(8, 2\) do not fit"),
        (lambda net: net.load_lora_adapter(ELSEWHERE), "it changes other, and the network has no such"),
        (lambda net: net.load_lora_adapter(lora(), prefix="text_encoder"), "it holds nothing for this network"),
        (lambda net: net.load_lora_adapter(lora(), adapter_name="known"), "there is already a LoRA 'known'"),
        (lambda net: net.load_lora_adapter(lora(), adapter_name="new", hotswap=True), "there is no LoRA 'new'"),
        (lambda net: net.set_adapters("new"), r"there is no LoRA 'new'. There are \['known'\]"),
        (lambda net: net.set_adapters(["known"], [1.0, 2.0]), "are no weights of"),
        (lambda net: net.set_adapters("known", {"mid": 1.0}), "are no weights of"),
        (lambda net: net.delete_adapters(["known", "new"]), "there is no LoRA 'new'"),
    ],
)
def test_what_is_refused_leaves_it_as_it_was(folder: Path, change: Any, says: str) -> None:
    network: QuantizedUNet = load_qdiff(folder, "reference")
    network.load_lora_adapter(lora(), adapter_name="known")
    before = outputs(network)
    with pytest.raises(ConfigError, match=says):
        change(network)
    assert network.active_adapters() == ["known"]
    assert torch.equal(outputs(network), before)
