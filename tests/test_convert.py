"""Conversion: what it refuses, what it leaves alone, and how rules show in the result."""

import pytest
import torch
from tiny_graphs import Plain, Shortcut, prepared, qdq_graph
from torch import nn

from qdiff_fx import QDiffConfig, Rule, convert_qdiff, prepare_qdiff
from qdiff_fx.errors import BackendError, CalibrationError, ConfigError, ConversionError
from qdiff_fx.ir.annotations import path_of, require, value
from qdiff_fx.ir.edit import get_attr_tensor, is_op
from qdiff_fx.ir.facts import StaticQParams, quantized_layers
from qdiff_fx.passes.quantize.convert import convert

X, T = torch.linspace(-2, 3, 2 * 3 * 64).reshape(2, 3, 8, 8), torch.tensor([40.0, 900.0])
qd = torch.ops.quantized_decomposed


def test_a_network_that_saw_no_data_is_refused():
    network = prepared(Shortcut(), X, T, calibrated=False)
    with pytest.raises(CalibrationError, match="conv_in input"):
        convert_qdiff(network, "reference")


def test_a_graph_without_observers_is_refused():
    with pytest.raises(ConversionError, match="prepare_qdiff"):
        convert(qdq_graph(Plain(nn.Conv2d(3, 4, 1)), X), QDiffConfig())


def test_converting_leaves_the_prepared_network_as_it_was():
    network = prepared(Shortcut(), X, T)
    before = network(X, T)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first = convert_qdiff(network, "reference")(X, T)
    torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
    second = convert_qdiff(network, "reference")(X, T)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(network(X, T), before, rtol=0, atol=0)


def test_rules_show_in_the_explanation():
    rules = (Rule("conv_*", weight_bits=4), Rule(r"re:to_[kv]", act_bits=6), Rule("deep", quantize=False))
    quantized = convert_qdiff(prepared(Shortcut(), X, T, rules=rules), "reference")
    rows = {row.info.path: row for row in quantized.explain()}
    assert rows["conv_in"].info.weight_bits == rows["conv_out"].info.weight_bits == 4
    assert rows["to_q"].info.weight_bits == 8
    assert (rows["to_k"].info.act_bits, rows["to_q"].info.act_bits) == (6, 8)
    assert rows["deep"].reason == "a rule of the configuration keeps it in float"
    assert {"shortcut[0:16]", "shortcut[16:32]"} <= set(rows)
    assert [row.info.kind for row in quantized.explain() if row.info.softmax_bits] == ["attention"]
    assert "deep" in str(quantized.explain())


def test_a_rule_that_matches_no_layer_is_refused_with_paths_that_exist():
    config = QDiffConfig(rules=(Rule("up_block.*", quantize=False),))
    with pytest.raises(ConfigError, match=r"up_block.*conv_in"):
        prepare_qdiff(Shortcut().eval(), config, {"x": X, "t": T})


def test_missing_example_inputs_are_refused():
    with pytest.raises(ConfigError, match="example_inputs"):
        prepare_qdiff(Shortcut().eval())


def test_example_inputs_by_position_are_refused():
    """What was passed is named by its type: a tensor in an error message is a page of numbers."""
    inputs = (torch.zeros(1, 3, 8, 8), torch.tensor(1))
    with pytest.raises(ConfigError, match="a tuple of example inputs") as caught:
        prepare_qdiff(torch.nn.Identity(), QDiffConfig(), inputs)  # type: ignore[arg-type]
    assert "tensor(" not in str(caught.value)


def test_a_configuration_of_another_type_is_refused():
    with pytest.raises(ConfigError, match="expected a QDiffConfig, not a dict"):
        prepare_qdiff(torch.nn.Identity(), {"weight_bits": 4}, {"sample": torch.zeros(1)})  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_become_codes_of_the_asked_width(bits):
    conv = nn.Conv2d(3, 8, 3)
    gm = qdq_graph(Plain(conv), X, weight_bits=bits)
    (node,) = [n for n in gm.graph.nodes if is_op(n, qd.dequantize_per_channel.default)]
    codes, scales = (get_attr_tensor(gm, n) for n in node.args[:2])
    assert codes.dtype == torch.int8
    assert scales.shape == (8,)
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() <= 2 ** (bits - 1) - 1
    error = (conv.weight - codes * scales.view(-1, 1, 1, 1)).norm() / conv.weight.norm()
    assert error < 2.0 ** (1.2 - bits)
    assert not any(isinstance(value, nn.Parameter) and value.dim() > 1 for value in gm.parameters())


def test_one_tensor_read_by_three_layers_is_quantized_once():
    gm = qdq_graph(Shortcut(), X, T, act_granularity="tensor")
    layers = {path_of(n): n for n in quantized_layers(gm)}
    assert layers["to_q"].args[0] is layers["to_k"].args[0] is layers["to_v"].args[0]


def test_attention_takes_codes_of_the_kernels_types():
    gm = qdq_graph(Shortcut(), X, T)
    (attention,) = [n for n in gm.graph.nodes if is_op(n, torch.ops.qdiff.int_attention.default)]
    assert [value(n).dtype for n in attention.args[:3]] == [torch.uint8, torch.int8, torch.int8]


def test_tables_have_a_row_per_timestep_bin_and_one_scale_beside_them():
    gm = qdq_graph(Shortcut(), X, T, timestep_bins=10)
    quantize = [n for n in gm.graph.nodes if is_op(n, qd.quantize_per_tensor.tensor)]
    assert quantize
    for node in quantize:
        table = get_attr_tensor(gm, node.args[1].args[0])
        assert table.shape == (10,)
        scale = require(node, StaticQParams).scale
        # Every range holds 0, so the one over all timesteps is at most two of them laid end to end.
        assert table.min() * 0.5 < scale <= table.max() * 2


def test_a_network_without_a_timestep_gets_one_scale():
    gm = qdq_graph(Plain(nn.Conv2d(3, 4, 1)), X)
    assert any(is_op(n, qd.quantize_per_tensor.default) for n in gm.graph.nodes)


@pytest.mark.parametrize(("name", "way_out"), [("cuda", "inductor"), ("Inductor", "reference")])
def test_an_unknown_backend_is_refused_with_the_known_ones(name, way_out):
    network = prepared(Plain(nn.Conv2d(3, 4, 1)), X)
    with pytest.raises(BackendError, match=way_out):
        convert_qdiff(network, name)


def test_a_backend_this_machine_cannot_run_is_refused(monkeypatch):
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    with pytest.raises(BackendError, match="no oneDNN"):
        convert_qdiff(prepared(Plain(nn.Conv2d(3, 4, 1)), X), "inductor")
