"""Facts about nodes: by type, apart from torch's own notes, never shared between copies of a graph."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import fx

from qdiff_fx.errors import PassError
from qdiff_fx.ir import annotations, facts
from qdiff_fx.ir.annotations import (
    any_value,
    describe,
    describe_like,
    drop,
    fact,
    facts_of,
    has,
    nodes_with,
    path_of,
    put,
    require,
    set_path,
    set_value,
    value,
    value_or_none,
)
from qdiff_fx.ir.arguments import function_of, operand, operator_of
from qdiff_fx.ir.edit import ancestors, copy_graph, fake_mode, get_attr_tensor
from qdiff_fx.ir.facts import Input, LayerPlan, Part, QuantizedLayer, StaticQParams, layer_id, new_layer_ids
from qdiff_fx.quant.qparams import LayerInfo


def graph() -> fx.GraphModule:
    made = fx.Graph()
    x = made.placeholder("x")
    y = made.call_function(torch.ops.aten.relu.default, (x,))
    made.output((y,))
    return fx.GraphModule(torch.nn.Module(), made)


def relu(gm: fx.GraphModule) -> fx.Node:
    return next(node for node in gm.graph.nodes if node.op == "call_function")


def test_a_fact_is_found_by_its_type():
    node = relu(graph())
    assert fact(node, Part) is None
    assert not has(node, Part)
    put(node, Part((0, 4), "conv"), StaticQParams(0.5, 3))
    assert fact(node, Part) == require(node, Part) == Part((0, 4), "conv")
    put(node, Part((4, 8)))
    assert facts_of(node) == (Part((4, 8)), StaticQParams(0.5, 3))


def test_a_dropped_fact_is_gone_and_the_others_stay():
    node = relu(graph())
    put(node, Part((0, 4)), StaticQParams(0.5, 3))
    assert drop(node, Part) == Part((0, 4))
    assert drop(node, Part) is None
    assert facts_of(node) == (StaticQParams(0.5, 3),)


def test_nodes_are_listed_by_what_they_carry():
    gm = graph()
    put(relu(gm), Part((0, 4)))
    assert nodes_with(gm, Part) == [relu(gm)]
    assert nodes_with(gm, Input) == []


def test_what_is_missing_is_named_with_its_node_module_and_stage():
    node = relu(graph())
    set_path(node, "block.act")
    with pytest.raises(PassError, match=r"relu_default of block\.act: it carries no LayerPlan\. The annotate pass"):
        require(node, LayerPlan)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy_graph])
def test_copies_of_a_graph_start_with_the_same_facts_and_part_ways(copied):
    gm = graph()
    put(relu(gm), Part((0, 4)))
    other = copied(gm)
    assert fact(relu(other), Part) == Part((0, 4))
    put(relu(other), StaticQParams(0.5, 3))
    drop(relu(other), Part)
    assert facts_of(relu(gm)) == (Part((0, 4)),)
    assert facts_of(relu(other)) == (StaticQParams(0.5, 3),)


def test_every_fact_is_frozen():
    kinds = annotations.Fact.__subclasses__()
    assert {Input, Part, LayerPlan, QuantizedLayer} <= set(kinds)
    for kind in kinds:
        assert kind.__dataclass_params__.frozen, kind
    with pytest.raises(FrozenInstanceError):
        Part((0, 4)).split_of = "conv"  # type: ignore[misc]


def test_value_and_path():
    node = relu(graph())
    assert any_value(node) is None
    assert value_or_none(node) is None
    assert path_of(node) == ""
    with pytest.raises(TypeError, match="relu_default holds NoneType"):
        value(node)
    set_value(node, 7)
    assert any_value(node) == 7
    assert value_or_none(node) is None
    tensor = torch.zeros(2)
    set_value(node, tensor)
    assert value(node) is value_or_none(node) is tensor


def test_a_node_described_anew_forgets_the_rest():
    node = relu(graph())
    put(node, Part((0, 4)))
    describe(node, value=3, path="block")
    assert (any_value(node), path_of(node), facts_of(node)) == (3, "block", ())


@pytest.mark.parametrize("with_facts", [False, True])
def test_a_node_described_like_another(with_facts):
    gm = graph()
    x, y = list(gm.graph.nodes)[:2]
    describe(x, value=3, path="block")
    put(x, Input("sample"))
    put(y, Part((0, 4)))
    describe_like(y, x, facts=with_facts)
    assert (any_value(y), path_of(y), facts_of(y)) == (3, "block", (Input("sample"),) if with_facts else ())
    describe_like(y, x, value=None, facts=with_facts)
    assert any_value(y) is None
    assert any_value(x) == 3


def test_a_layer_keeps_its_id_through_conversion():
    node = relu(graph())
    set_path(node, "block.conv")
    put(node, Part((4, 8)))
    assert new_layer_ids([node]) == {node: "block.conv[4:8]"}
    with pytest.raises(PassError, match="it carries no LayerPlan"):
        layer_id(node)
    put(node, LayerPlan(LayerInfo("block.conv[4:8]#2", "conv"), {}))
    assert layer_id(node) == "block.conv[4:8]#2"
    drop(node, LayerPlan)
    put(node, QuantizedLayer(LayerInfo("block.conv[4:8]#2", "conv")))
    assert layer_id(node) == "block.conv[4:8]#2"


def test_at_most_one_input_is_the_timestep():
    gm = graph()
    assert facts.timestep_input(gm) is None
    (x, *_) = gm.graph.nodes
    put(x, Input("timestep"))
    assert facts.timestep_input(gm) is x
    assert facts.is_timestep(x)
    assert not facts.is_sample(x)


def test_layers_that_share_a_path_are_numbered_and_those_outside_every_module_go_by_their_operators():
    made = fx.Graph()
    x = made.placeholder("x")
    layers = [made.call_function(torch.ops.aten.relu.default, (x,)) for _ in range(6)]
    for node in layers[:4]:
        set_path(node, "conv")
    for node in (layers[2], layers[3]):
        put(node, Part((0, 4), "whole"))
    put(layers[5], Part((4, 8), "whole"))
    ids = ["conv", "conv#2", "conv[0:4]", "conv[0:4]#2", "relu", "relu#2[4:8]"]
    assert list(new_layer_ids(layers).values()) == ids
    assert [facts.whole_layer(each) for each in ids[:4]] == ["conv", "conv#2", "conv", "conv#2"]
    assert facts.whole_layer("conv[0:4]#2[rest]") == "conv#2"


def test_what_a_node_depends_on_is_found_once():
    made = fx.Graph()
    x, unread = made.placeholder("x"), made.placeholder("unread")
    y = made.call_function(torch.ops.aten.relu.default, (x,))
    z = made.call_function(torch.ops.aten.add.Tensor, (y, x))
    assert ancestors(z) == {x, y}
    assert ancestors(unread) == set()


def test_what_a_node_is_not_is_said_by_its_name():
    gm = graph()
    x, node = next(iter(gm.graph.nodes)), relu(gm)
    with pytest.raises(TypeError, match="x is a placeholder, not a get_attr"):
        get_attr_tensor(gm, x)
    gm.inner = torch.nn.Identity()
    with pytest.raises(TypeError, match="inner is a Identity, not a tensor"):
        get_attr_tensor(gm, gm.graph.get_attr("inner"))
    with pytest.raises(TypeError, match="x is a placeholder, not a call"):
        function_of(x)
    with pytest.raises(TypeError, match="not an operator of torch"):
        operator_of(gm.graph.call_function(len, (x,)))
    with pytest.raises(TypeError, match="argument 1 of relu_default is None, not a node"):
        operand(node, 1)
    with pytest.raises(ValueError, match="was it captured"):
        fake_mode(gm.graph)
