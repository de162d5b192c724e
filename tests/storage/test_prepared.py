"""Prepared networks as data: saved, loaded, merged, and converted to several bit-widths from one calibration."""

import json
from dataclasses import replace

import pytest
import torch
from residual_net import QUICK, batches, make_prepared
from safetensors.torch import load_file, save_file
from tiny_graphs import Plain, Shortcut, prepared
from torch import nn

from qdiff_fx import (
    Rule,
    calibrate,
    convert_qdiff,
    load_prepared,
    merge_prepared,
    reconstruct,
    round_weights,
    save_prepared,
    save_qdiff,
)
from qdiff_fx.errors import ArtifactError, CalibrationError, ConfigError, ConversionError
from qdiff_fx.ir.annotations import any_value
from qdiff_fx.storage import sealed
from qdiff_fx.storage.prepared import GRAPH, KIND, MANIFEST, TENSORS

X, T = torch.linspace(-2, 3, 2 * 3 * 64).reshape(2, 3, 8, 8).sin() * 3, torch.tensor([40.0, 900.0])
MORE = [{"x": X * 2 + 0.3, "t": torch.tensor([300.0, 700.0])}]


def folder_bytes(network, folder):
    """The files of a converted, saved network; the manifest names what they depend on."""
    saved = save_qdiff(convert_qdiff(network, "reference"), folder)
    return {file.name: file.read_bytes() for file in saved.iterdir()}


def reloaded(network, tmp_path):
    return load_prepared(save_prepared(network, tmp_path / "prepared"))


def shortcut(**config):
    torch.manual_seed(0)
    return prepared(Shortcut(), X, T, **config)


@pytest.mark.parametrize("config", [{}, {"sample_act_bits": 16, "weight_bits": 4}, {"act_granularity": "tensor"}])
def test_a_loaded_network_goes_on_as_the_saved_one_would(tmp_path, config):
    network = shortcut(**config)
    again = reloaded(network, tmp_path)
    torch.testing.assert_close(again(X, T), network(X, T), rtol=0, atol=0)
    for each in (network, again):
        calibrate(each, MORE, progress=False)
    assert folder_bytes(again, tmp_path / "b") == folder_bytes(network, tmp_path / "a")
    assert [str(report) for report in again.reports] == [str(report) for report in network.reports]


def test_sizes_that_were_open_stay_open(tmp_path):
    network = shortcut()
    again = reloaded(network, tmp_path)
    for node, twin in zip(network.graph_module.graph.nodes, again.graph_module.graph.nodes, strict=True):
        value, loaded = any_value(node), any_value(twin)
        if isinstance(value, torch.Tensor):
            assert [type(size) for size in value.shape] == [type(size) for size in loaded.shape], node.name
    wider = torch.cat([X, X])
    assert again(wider, torch.cat([T, T])).shape[0] == 4


def test_it_is_rounded_and_reconstructed_to_the_same(tmp_path):
    network = shortcut(weight_bits=4, weight_rounding="second_order")
    again = reloaded(network, tmp_path)
    for each in (network, again):
        round_weights(each, MORE, progress=False)
    assert again.decided == network.decided
    assert reloaded(network, tmp_path).decided == network.decided
    network = make_prepared()
    again = load_prepared(save_prepared(network, tmp_path / "net"))
    for each in (network, again):
        reconstruct(each, batches(), QUICK, progress=False)
    assert again.decided == network.decided
    loaded = load_prepared(save_prepared(again, tmp_path / "net"))
    assert loaded.decided == network.decided
    assert folder_bytes(loaded, tmp_path / "b") == folder_bytes(network, tmp_path / "a")


def test_it_is_saved_in_another_type_too(tmp_path):
    torch.manual_seed(0)
    network = prepared(Plain(nn.Conv2d(3, 4, 3)).to(torch.bfloat16), X.to(torch.bfloat16))
    assert folder_bytes(reloaded(network, tmp_path), tmp_path / "b") == folder_bytes(network, tmp_path / "a")
    assert load_file(tmp_path / "prepared" / TENSORS)["weight:layer.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, TENSORS])
def test_damage_is_noticed(tmp_path, name):
    folder = save_prepared(shortcut(), tmp_path / "prepared")
    content = (folder / name).read_bytes()
    for position in (0, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 1
        (folder / name).write_bytes(damaged)
        with pytest.raises(ArtifactError):
            load_prepared(folder)
    (folder / name).unlink()
    with pytest.raises(ArtifactError):
        load_prepared(folder)


def forge(folder, change):
    """Let `change` edit the graph's description and the tensors, and seal the folder again."""
    graph, tensors = json.loads((folder / GRAPH).read_text()), load_file(folder / TENSORS)
    change(graph, tensors)
    (folder / GRAPH).write_text(json.dumps(graph))
    save_file(tensors, folder / TENSORS)
    sealed.seal(folder, KIND, json.loads((folder / MANIFEST).read_text()))


def rename_observer(graph, tensors):
    graph["observers"][next(iter(graph["observers"]))]["kind"] = "os.system"


def call_something(graph, tensors):
    node = next(node for node in graph["nodes"] if node["op"] == "call_module")
    node["target"] = "observers"


def drop_statistics(graph, tensors):
    tensors.pop(next(name for name in tensors if name.endswith(":hist")))


def shorten_statistics(graph, tensors):
    name = next(name for name in tensors if name.endswith(":min_val"))
    tensors[name] = tensors[name][:-1].clone()


def shrink_weight(graph, tensors):
    name = next(name for name in tensors if name.startswith("weight:") and tensors[name].dim() == 4)
    tensors[name] = tensors[name][:-1].clone()


def invent_layer(graph, tensors):
    graph["decided"]["inputs"]["nowhere"] = []


def invent_activation(graph, tensors):
    graph["decided"]["inputs"]["conv_in"] = [[0, "nothing"]]


@pytest.mark.parametrize(
    "change",
    [
        rename_observer,
        call_something,
        drop_statistics,
        shorten_statistics,
        shrink_weight,
        invent_layer,
        invent_activation,
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, change):
    folder = save_prepared(shortcut(), tmp_path / "prepared")
    forge(folder, lambda graph, tensors: None)
    load_prepared(folder)
    forge(folder, change)
    with pytest.raises(ArtifactError):
        load_prepared(folder)


def test_neither_kind_of_folder_is_taken_for_the_other(tmp_path):
    network = shortcut()
    quantized = save_qdiff(convert_qdiff(network, "reference"), tmp_path / "quantized")
    with pytest.raises(ArtifactError, match=r"not a saved prepared network.*save_prepared"):
        load_prepared(quantized)
    with pytest.raises(ArtifactError, match="not a saved prepared network"):
        save_prepared(network, quantized)


def test_merging_is_having_seen_both(tmp_path):
    first, second = shortcut(), shortcut(calibrated=False)
    calibrate(second, MORE, progress=False)
    whole = shortcut()
    calibrate(whole, MORE, progress=False)
    expected = folder_bytes(whole, tmp_path / "whole")
    before = folder_bytes(first, tmp_path / "before")
    assert folder_bytes(merge_prepared(first, second), tmp_path / "ab") == expected
    assert folder_bytes(merge_prepared(second, first), tmp_path / "ba") == expected
    assert folder_bytes(first, tmp_path / "after") == before
    # On another machine.
    assert folder_bytes(first.merge(reloaded(second, tmp_path)), tmp_path / "merged") == expected


def test_only_calibrations_of_one_network_under_one_configuration_are_merged():
    network = shortcut()
    with pytest.raises(CalibrationError, match="weight_bits is 8 and 4"):
        merge_prepared(network, shortcut(weight_bits=4))
    torch.manual_seed(1)
    with pytest.raises(CalibrationError, match=r"conv_in\.weight has other values"):
        merge_prepared(network, prepared(Shortcut(), X, T))
    with pytest.raises(CalibrationError, match="not called alike"):
        merge_prepared(network, prepared(Plain(nn.Conv2d(3, 4, 3)), X))
    first, second = (shortcut(weight_bits=4, weight_rounding="second_order") for _ in range(2))
    round_weights(first, MORE, progress=False)
    assert merge_prepared(second, first).decided == first.decided
    round_weights(second, [{"x": X, "t": T}], progress=False)
    with pytest.raises(CalibrationError, match="rounded or reconstructed"):
        first.merge(second)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_bits": 4},
        {"act_bits": 6, "sample_act_bits": 6},
        {"act_granularity": "tensor", "act_range": "minmax"},
        {"quantize_attention": False},
        {"rules": (Rule("deep", quantize=False), Rule("to_*", act_bits=16))},
    ],
)
def test_one_calibration_gives_what_a_calibration_for_those_bits_gives(change):
    network = shortcut()
    other = replace(network.qconfig, **change)
    anew = shortcut(**{"sample_act_bits": 8, **change})
    expected = convert_qdiff(anew, "reference")(X, T)
    torch.testing.assert_close(convert_qdiff(network, "reference", config=other)(X, T), expected, rtol=0, atol=0)
    # And back again.
    back = network.with_config(other).with_config(network.qconfig)
    torch.testing.assert_close(
        convert_qdiff(back, "reference")(X, T), convert_qdiff(network, "reference")(X, T), rtol=0, atol=0
    )


def test_what_was_not_observed_cannot_be_quantized():
    network = shortcut(rules=(Rule("deep", quantize=False),), quantize_attention=False)
    with pytest.raises(ConfigError, match="the inputs of deep were not observed"):
        network.with_config(replace(network.qconfig, rules=()))
    with pytest.raises(ConfigError, match=r"^split: 'off' where .* 'shortcut'"):
        network.with_config(replace(network.qconfig, split="off"))
    with pytest.raises(ConfigError, match="timestep_bins"):
        convert_qdiff(network, config=replace(network.qconfig, timestep_bins=7))


def test_rounding_is_asked_for_again_where_bits_change():
    network = shortcut(weight_bits=4, weight_rounding="second_order")
    round_weights(network, MORE, progress=False)
    other = network.with_config(replace(network.qconfig, rules=(Rule("deep", weight_bits=3),)))
    with pytest.raises(ConversionError, match="round_weights"):
        convert_qdiff(other, "reference")
    assert round_weights(other, MORE, progress=False).rounded == ("deep",)
    assert other.decided.weights["deep"].bits == 3
    assert other.decided.weights["conv_in"] is network.decided.weights["conv_in"]


def test_several_plans_for_one_observer_count_once():
    network = shortcut()
    other = network.with_config(replace(network.qconfig, rules=(Rule("to_k", act_bits=6),)))
    before = {name: each.clone() for name, each in network.graph_module.observers.named_buffers()}
    calibrate(other, [{"x": X, "t": T}], progress=False)
    counts = {name: each for name, each in network.graph_module.observers.named_buffers() if name.endswith(".count")}
    assert counts
    assert all(torch.equal(each, 2 * before[name]) for name, each in counts.items())
