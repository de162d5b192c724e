"""Activations of 16 bits: two codes of 8, on the kernels that are there."""

import pytest
import torch
import torch.nn.functional as F
from tiny_graphs import Plain, Shortcut, prepared, qdq_graph, reference_for, run
from torch import nn

from qdiff_fx import Rule, convert_qdiff, load_qdiff, save_qdiff
from qdiff_fx.errors import ConfigError
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.facts import layer_id, quantized_layers
from qdiff_fx.quant.numerics import sqnr_db

X, T = torch.linspace(-2, 3, 2 * 3 * 64).reshape(2, 3, 8, 8).sin() * 3, torch.tensor([40.0, 900.0])
WIDE = (Rule("layer", act_bits=16),)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 5), nn.ConvTranspose2d(3, 4, 3)])
def test_two_codes_leave_no_error_to_speak_of(layer):
    torch.manual_seed(0)
    net = Plain(layer)
    gm = qdq_graph(net, X, rules=WIDE)
    narrow, wide = run(qdq_graph(net, X), X), run(gm, X)
    (weight,) = [n for n in gm.graph.nodes if is_op(n, torch.ops.quantized_decomposed.dequantize_per_channel.default)]
    state = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    with torch.no_grad():
        values = torch.fx.Interpreter(gm, garbage_collect_values=False)
        values.run(X)
        exact = torch.func.functional_call(layer, state | {"weight": values.env[weight]}, X)
    assert sqnr_db(exact, wide) > sqnr_db(exact, narrow) + 40


def test_the_bias_is_added_once_and_codes_are_stored_once():
    gm = qdq_graph(Plain(nn.Conv2d(3, 4, 3)), X, rules=WIDE)
    layers = quantized_layers(gm)
    assert [layer_id(n) for n in layers] == ["layer", "layer[rest]"]
    assert [n.args[2] is not None for n in layers] == [True, False]
    assert layers[0].args[1] is layers[1].args[1]


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.Linear(8, 5)])
def test_both_codes_meet_one_packed_weight(layer, tmp_path):
    network = convert_qdiff(prepared(Plain(layer), X, rules=WIDE), "native", reuse=False)
    weights = packed_weights(network)
    assert len(weights) == 2
    assert len(set(weights)) == 1
    # A network loaded for these kernels keeps nothing beside what is packed.
    save_qdiff(network, tmp_path / "saved")
    loaded = load_qdiff(tmp_path / "saved", "native", reuse=False)
    assert packed_weights(loaded) == weights
    assert not list(loaded._modules["graph_module"].buffers())
    torch.testing.assert_close(loaded(X), network(X), rtol=0, atol=0)


def packed_weights(network):
    """Names of the weights that kernels read, in order; a kernel may read those of several layers."""
    kernels = torch.ops.qdiff.int_conv.default, torch.ops.qdiff.int_linear.default
    nodes = network._lowered.module.graph_module.graph.nodes
    return [weight.target for n in nodes if is_op(n, *kernels) for weight in n.kwargs["weights"]]


@pytest.mark.parametrize("granularity", ["tensor", "timestep"])
@pytest.mark.parametrize("backend", ["native", "inductor", "x86"])
def test_backends_agree_with_the_reference(backend, granularity):
    torch.manual_seed(0)
    network = prepared(Shortcut(), X, T, sample_act_bits=16, act_granularity=granularity)
    options = reference_for(backend, output_quantizers=backend == "x86")
    reference = convert_qdiff(network, "reference").with_backend("reference", options)
    options = {"compile": False} if backend == "inductor" else {}
    actual = reference.with_backend(backend) if not options else convert_qdiff(network, backend, **options)
    assert all(row.integer for row in actual.explain())
    assert sqnr_db(reference(X, T), actual(X, T)) > 35


def test_a_saved_network_gives_the_same(tmp_path):
    torch.manual_seed(0)
    network = convert_qdiff(prepared(Shortcut(), X, T, sample_act_bits=16), "native")
    save_qdiff(network, tmp_path / "saved")
    torch.testing.assert_close(load_qdiff(tmp_path / "saved")(X, T), network(X, T), rtol=0, atol=0)


def test_values_beyond_the_calibrated_range_are_clipped_to_it():
    gm = qdq_graph(Plain(nn.Conv2d(3, 4, 1)), X, rules=WIDE)
    assert sqnr_db(run(gm, (2 * X).clamp(X.min(), X.max())), run(gm, 2 * X)) > 35


def test_attention_over_wide_activations_stays_in_float():
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    quantized = convert_qdiff(prepared(Attention(), X, rules=(Rule("*", act_bits=16),)), "reference")
    assert [row.reason for row in quantized.explain()] == ["attention has no 16-bit activations"]


def test_only_rules_and_the_sample_may_ask_for_them():
    with pytest.raises(ConfigError, match="act_bits"):
        prepared(Plain(nn.Conv2d(3, 4, 1)), X, act_bits=16)
