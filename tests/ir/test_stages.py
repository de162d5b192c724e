"""The legal graph of every stage: real networks keep to it, and each way to depart from it is said."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import zoo
from tiny_graphs import Shortcut, prepared
from torch import fx

from qdiff_fx import convert_qdiff
from qdiff_fx.capture import capture
from qdiff_fx.errors import PassError
from qdiff_fx.ir.annotations import drop, nodes_with, put, require, set_value
from qdiff_fx.ir.edit import copy_graph, get_attr_tensor
from qdiff_fx.ir.facts import LayerPlan, Observed, QuantizedLayer, WeightCodes, layer_info
from qdiff_fx.ir.stages import STAGES, illegal
from qdiff_fx.passes.framework import Pass, PassReport, run_passes
from qdiff_fx.quant.qparams import LayerInfo

aten = torch.ops.aten
X, T = torch.randn(2, 3, 8, 8), torch.tensor([40.0, 900.0])
BATCHES = [{"x": X, "t": T}]


@pytest.fixture(scope="module")
def networks() -> dict[str, fx.GraphModule]:
    """A graph of every stage."""
    network = prepared(Shortcut(), X, T)
    return {
        "captured": capture(Shortcut().eval(), {"x": X, "t": T}).module,
        "canonical": network.graph_module,
        "annotated": network.graph_module,
        "observed": network.graph_module,
        "quantized": convert_qdiff(network).graph_module,
    }


@pytest.fixture
def graph(networks):
    return lambda stage: copy_graph(networks[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_a_network_is_legal_at_every_stage(graph, stage):
    assert illegal(graph(stage), stage) == []


def test_what_is_no_stage_is_not_checked(graph):
    assert illegal(graph("observed"), "tidy") == []


def last(gm: fx.GraphModule, kind: type) -> fx.Node:
    return nodes_with(gm, kind)[-1]


def info_of_last(gm: fx.GraphModule) -> LayerInfo:
    return require(last(gm, LayerPlan), LayerPlan).info


def call_of(gm: fx.GraphModule) -> fx.Node:
    return next(node for node in gm.graph.nodes if node.op == "call_function")


def without_value(gm):
    set_value(next(n for n in gm.graph.nodes if n.target in (aten.conv2d.default, aten.linear.default)), None)


def with_kernel(gm):
    node = call_of(gm)
    node.target = torch.ops.onednn.qlinear_pointwise.default


def with_codes(gm):
    call_of(gm).target = torch.ops.quantized_decomposed.quantize_per_tensor.default


def with_the_same_id(gm):
    first, second = nodes_with(gm, LayerPlan)[:2]
    put(second, replace(require(second, LayerPlan), info=require(first, LayerPlan).info))


def read_past_the_observer(gm):
    layer = next(n for n in nodes_with(gm, LayerPlan) if require(n, LayerPlan).info.quantized)
    layer.update_arg(0, layer.args[0].args[0])


def with_float_weight(gm):
    layer = next(n for n in nodes_with(gm, QuantizedLayer) if layer_info(n).weight_bits)
    with gm.graph.inserting_before(layer):
        gm.register_buffer("floats", get_attr_tensor(gm, layer.args[1].args[0]).float())
        layer.update_arg(1, gm.graph.get_attr("floats"))


def with_other_bits(gm):
    put(nodes_with(gm, WeightCodes)[0], WeightCodes(3))


def with_module(gm):
    gm.add_module("left", torch.nn.Identity())
    node = call_of(gm)
    with gm.graph.inserting_after(node):
        gm.graph.call_module("left", (node,))


@pytest.mark.parametrize(
    ("stage", "spoil", "message"),
    [
        ("captured", without_value, "has no value"),
        ("captured", with_kernel, "has no place yet"),
        ("captured", with_module, "it still calls left"),
        ("canonical", without_value, "has no value"),
        ("canonical", with_kernel, "has no place yet"),
        ("annotated", with_codes, "has no place yet"),
        ("annotated", lambda gm: drop(last(gm, LayerPlan), LayerPlan), "carries no LayerPlan"),
        ("annotated", with_the_same_id, "2 layers have the id"),
        (
            "annotated",
            lambda gm: put(call_of(gm), QuantizedLayer(require(last(gm, LayerPlan), LayerPlan).info)),
            "still",
        ),
        ("observed", lambda gm: drop(last(gm, Observed), Observed), "is to be quantized and is not observed"),
        ("observed", read_past_the_observer, "input 0 of .* is not read through an observer"),
        ("quantized", with_module, "it still calls left"),
        ("quantized", lambda gm: put(call_of(gm), Observed()), "still carries a Observed"),
        ("quantized", lambda gm: drop(last(gm, QuantizedLayer), QuantizedLayer), "carries no QuantizedLayer"),
        ("quantized", with_float_weight, "is not dequantized from codes"),
        ("quantized", with_other_bits, "has 3 bits where its layer says 8"),
    ],
)
def test_each_departure_is_said(graph, stage, spoil, message):
    gm = graph(stage)
    spoil(gm)
    problems = illegal(gm, stage)
    assert problems
    assert any(re.search(message, each) for each in problems), problems


class Forgets(Pass):
    """Loses the plan of one layer."""

    name = "forgets"

    def run(self, gm: fx.GraphModule) -> PassReport:
        drop(last(gm, LayerPlan), LayerPlan)
        return PassReport(self.name)


def test_the_manager_checks_results(graph):
    with pytest.raises(PassError, match=r"pass forgets .*the result is not annotated: .* carries no LayerPlan"):
        run_passes(graph("annotated"), [Forgets()])


@pytest.mark.parametrize("name", zoo.networks("sd1", "sdxl", "conditioned", "handwritten_sum"))
def test_networks_of_the_zoo_are_legal(name):
    assert illegal(zoo.captured(name)[2].module, "captured") == []
    assert illegal(zoo.quantized(name).graph_module, "quantized") == []
