"""Conversion pass by pass: what each makes, what it leaves alone, and that a second run changes nothing."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_graphs import Plain, Shortcut, prepared
from torch import fx, nn

from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.errors import CalibrationError, PassError
from qdiff_fx.ir.annotations import fact, nodes_with
from qdiff_fx.ir.edit import copy_graph
from qdiff_fx.ir.facts import LayerPlan, QuantizedLayer, layer_id
from qdiff_fx.ir.text import format_graph
from qdiff_fx.passes.framework import run_passes, violations
from qdiff_fx.passes.quantize.measure import fitting, measure
from qdiff_fx.passes.quantize.quantize_activations import QuantizeActivations
from qdiff_fx.passes.quantize.quantize_attention import QuantizeAttention
from qdiff_fx.passes.quantize.quantize_weights import QuantizeWeights
from qdiff_fx.passes.quantize.readings import readings
from qdiff_fx.passes.quantize.remove_observers import RemoveObservers
from qdiff_fx.quant.numerics import dequantize, fake_quantize
from qdiff_fx.quant.parameters import NOTHING

X, T = torch.linspace(-2, 3, 2 * 3 * 64).reshape(2, 3, 8, 8).sin() * 3, torch.tensor([40.0, 900.0])
FLOAT = (Rule("layer", quantize=False),)
WIDE = (Rule("layer", act_bits=16),)


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def stages(network, *passes: type) -> tuple[fx.GraphModule, list]:
    """The graph of a prepared network after these passes, and their reports."""
    parameters = measure(network.graph_module, network.qconfig, network.decided)
    gm = copy_graph(network.graph_module)
    made = {
        QuantizeActivations: lambda: QuantizeActivations(parameters, network.qconfig),
        QuantizeWeights: lambda: QuantizeWeights(parameters),
    }
    return gm, run_passes(gm, [made.get(kind, kind)() for kind in passes])


ALL = (QuantizeActivations, QuantizeWeights, QuantizeAttention, RemoveObservers)


def test_golden_graph_of_a_layer():
    gm, reports = stages(prepared(Plain(nn.Conv2d(3, 4, 3)), X), *ALL)
    assert format_graph(gm) == GOLDEN_LAYER.strip()
    assert [len(report.changed) for report in reports] == [1, 1, 0, 2]  # the input's observer and the output's


def test_golden_graph_of_a_layer_with_an_input_of_16_bits():
    assert format_graph(stages(prepared(Plain(nn.Conv2d(3, 4, 3)), X, rules=WIDE), *ALL)[0]) == GOLDEN_WIDE.strip()


def test_golden_graph_of_attention():
    assert format_graph(stages(prepared(Attention(), X), *ALL)[0]) == GOLDEN_ATTENTION.strip()


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("config", [{}, {"sample_act_bits": 16}, {"quantize_attention": False}])
def test_a_second_run_of_a_pass_changes_nothing(position, config):
    network = prepared(Shortcut(), X, T, **config)
    gm, _ = stages(network, *ALL[: position + 1])
    before = str(gm.graph)
    parameters = measure(network.graph_module, network.qconfig)
    again = (
        QuantizeActivations(parameters, network.qconfig),
        QuantizeWeights(parameters),
        QuantizeAttention(),
        RemoveObservers(),
    )[position]
    assert again.run(gm).changed == ()
    assert str(gm.graph) == before


def test_activations_alone_compute_what_fake_quantization_does():
    layer = nn.Conv2d(3, 4, 3)
    gm, _ = stages(prepared(Plain(layer), X), QuantizeActivations)
    (reading,) = readings(prepared(Plain(layer), X).graph_module)
    params = measure(prepared(Plain(layer), X).graph_module, QDiffConfig()).activations[reading.id].params
    values = fake_quantize(X, params.scale[0], params.zero_point[0], 0, 255)
    with torch.no_grad():
        torch.testing.assert_close(gm(X)[0], layer(values), rtol=0, atol=0)


def test_weights_are_what_the_store_says():
    network = prepared(Plain(nn.Conv2d(3, 4, 3)), X, weight_bits=4)
    weight = measure(network.graph_module, network.qconfig).weights["layer"]
    gm, _ = stages(network, QuantizeActivations, QuantizeWeights)
    values = fx.Interpreter(gm, garbage_collect_values=False)
    values.run(X)
    (layer,) = nodes_with(gm, QuantizedLayer)
    assert torch.equal(values.env[layer.args[1]], dequantize(weight.codes, weight.scales, 0, axis=0))


def test_layers_in_float_are_left_alone_and_the_report_says_why():
    gm, reports = stages(prepared(Shortcut(), X, T, rules=(Rule("deep", quantize=False),)), *ALL)
    assert {refusal.path: refusal.reason for report in reports for refusal in report.refused} == {
        "deep": "a rule of the configuration keeps it in float"
    }
    (deep,) = [n for n in nodes_with(gm, QuantizedLayer) if layer_id(n) == "deep"]
    assert deep.args[1].op == "get_attr"
    _, reports = stages(prepared(Attention(), X, quantize_attention=False), *ALL)
    assert [refusal.reason for refusal in reports[2].refused] == ["quantize_attention is off"]


def test_passes_come_in_their_order():
    network = prepared(Plain(nn.Conv2d(3, 4, 3)), X)
    with pytest.raises(PassError, match="quantize_weights.*not activations quantized"):
        stages(network, QuantizeWeights)
    with pytest.raises(PassError, match="remove_observers.*not attention quantized"):
        stages(network, QuantizeActivations, QuantizeWeights, RemoveObservers)


def test_a_graph_that_is_not_converted_to_the_end_is_told():
    gm, _ = stages(prepared(Plain(nn.Conv2d(3, 4, 3)), X), QuantizeActivations)
    assert any("still calls" in problem for problem in violations(gm, "quantized"))
    assert any("still carries a LayerPlan" in problem for problem in violations(gm, "quantized"))
    assert violations(stages(prepared(Plain(nn.Conv2d(3, 4, 3)), X), *ALL)[0], "quantized") == []


def test_layers_that_read_one_observer_alike_share_its_parameters():
    store = measure((network := prepared(Shortcut(), X, T)).graph_module, network.qconfig)
    assert store.inputs["to_q"] == store.inputs["to_k"] == store.inputs["to_v"] == {0: "to_q input 0"}
    assert store.input("to_v", 0) is store.activations["to_q input 0"]
    network = network.with_config(replace(network.qconfig, rules=(Rule("to_k", act_bits=6),)))
    other = measure(network.graph_module, network.qconfig)
    assert other.inputs["to_v"] == {0: "to_q input 0"}
    assert other.inputs["to_k"] == {0: "to_k input 0"}
    assert other.input("to_v", 0) == store.input("to_v", 0)
    assert other.input("to_k", 0).params.spec.bits == 6


def test_measuring_needs_data():
    network = prepared(Plain(nn.Conv2d(3, 4, 3)), X, calibrated=False)
    with pytest.raises(CalibrationError, match="layer input: the observer saw no data"):
        measure(network.graph_module, network.qconfig)


def test_what_was_decided_is_taken_where_it_is_what_is_asked_for():
    network = prepared(Shortcut(), X, T)
    measured = measure(network.graph_module, network.qconfig)
    doubled = {
        name: replace(each, params=replace(each.params, scale=tuple(2 * scale for scale in each.params.scale)))
        for name, each in measured.activations.items()
    }
    halved = {name: replace(each, scales=each.scales / 2) for name, each in measured.weights.items()}
    decided = replace(measured, activations=doubled, weights=halved)
    again = measure(network.graph_module, network.qconfig, decided)
    assert again.weights == halved
    assert {name: each.params for name, each in again.activations.items()} == {
        name: each.params for name, each in doubled.items()
    }
    for change in ({"act_bits": 6}, {"act_range": "minmax"}, {"act_granularity": "tensor"}):
        other = network.with_config(replace(network.qconfig, sample_act_bits=change.get("act_bits", 8), **change))
        taken = measure(other.graph_module, other.qconfig, decided).activations
        assert taken == measure(other.graph_module, other.qconfig).activations
    other = network.with_config(replace(network.qconfig, weight_bits=4))
    assert measure(other.graph_module, other.qconfig, decided).weights["deep"].bits == 4


def test_second_order_codes_hold_for_their_bits_and_for_their_rounding():
    network = prepared(Shortcut(), X, T, weight_bits=4)
    store = replace(measure(network.graph_module, network.qconfig), weight_rounding="second_order")
    mixed = replace(network.qconfig, rules=(Rule("deep", weight_bits=6), Rule("to_q", quantize=False)))
    kept = fitting(network.with_config(mixed).graph_module, mixed, store)
    assert set(store.weights) - set(kept.weights) == {"deep", "to_q"}
    assert kept.weight_rounding == "nearest"  # deep would have to be rounded again
    less = replace(network.qconfig, rules=(Rule("to_q", quantize=False),))
    assert fitting(network.with_config(less).graph_module, less, store).weight_rounding == "second_order"
    nearest = replace(network.qconfig, weight_rounding="nearest")
    assert not fitting(network.graph_module, nearest, store).weights


def test_no_plan_is_left():
    gm, _ = stages(prepared(Shortcut(), X, T), *ALL)
    assert not nodes_with(gm, LayerPlan)
    assert all(fact(node, QuantizedLayer).info.quantized for node in nodes_with(gm, QuantizedLayer))
    assert not NOTHING


GOLDEN_LAYER = """
%0: f32[?,3,?,?] = input x
%1: u8[?,3,?,?] = quantized_decomposed.quantize_per_tensor.default(%0, 0.0235292, 128, 0, 255, torch.uint8)
%2: f32[?,3,?,?] = quantized_decomposed.dequantize_per_tensor.default(%1, 0.0235292, 128, 0, 255, torch.uint8)
%3: f32[4,3,3,3] = quantized_decomposed.dequantize_per_channel.default(layer.weight_codes, layer.weight_scales, None, 0, -127, 127, torch.int8)  # layer
%4: f32[?,4,?,?] = aten.conv2d.default(%2, %3, layer.bias, [1, 1], [0, 0], [1, 1], 1)  # layer
return [%4]
"""  # noqa: E501
GOLDEN_WIDE = """
%0: f32[?,3,?,?] = input x
%1: u8[?,3,?,?] = quantized_decomposed.quantize_per_tensor.default(%0, 0.0235292, 128, 0, 255, torch.uint8)
%2: f32[?,3,?,?] = quantized_decomposed.dequantize_per_tensor.default(%1, 0.0235292, 128, 0, 255, torch.uint8)
%3: f32[?,3,?,?] = aten.sub.Tensor(%0, %2)
%4: u8[?,3,?,?] = quantized_decomposed.quantize_per_tensor.default(%3, 9.22712e-05, 127, 0, 255, torch.uint8)
%5: f32[?,3,?,?] = quantized_decomposed.dequantize_per_tensor.default(%4, 9.22712e-05, 127, 0, 255, torch.uint8)
%6: f32[4,3,3,3] = quantized_decomposed.dequantize_per_channel.default(layer.weight_codes, layer.weight_scales, None, 0, -127, 127, torch.int8)  # layer
%7: f32[?,4,?,?] = aten.conv2d.default(%2, %6, layer.bias, [1, 1], [0, 0], [1, 1], 1)  # layer
%8: f32[?,4,?,?] = aten.conv2d.default(%5, %6, None, [1, 1], [0, 0], [1, 1], 1)  # layer
%9: f32[?,4,?,?] = aten.add.Tensor(%7, %8)  # layer
return [%9]
"""  # noqa: E501
GOLDEN_ATTENTION = """
%0: f32[?,3,?,?] = input x
%1: i8[?,3,?,?] = quantized_decomposed.quantize_per_tensor.default(%0, 0.023622, 0, -128, 127, torch.int8)
%2: u8[?,3,?,?] = quantized_decomposed.quantize_per_tensor.default(%0, 0.0235292, 128, 0, 255, torch.uint8)
%3: f32[?,3,?,17] = qdiff.int_attention.default(%2, %1, %1, None, attention_constants.scaled_dot_product_attention, attention_constants.scaled_dot_product_attention_1, attention_constants.scaled_dot_product_attention_2, attention_constants.scaled_dot_product_attention_3, 0.242536, 8, torch.float32)
return [%3]
"""  # noqa: E501
