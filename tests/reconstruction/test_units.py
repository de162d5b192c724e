"""Units: residual blocks whole, every other layer alone, in execution order."""

import pytest
import torch
from residual_net import make_prepared
from zoo import QUICK, every_architecture, networks, prepared

from qdiff_fx import QDiffConfig
from qdiff_fx.ir.annotations import has
from qdiff_fx.ir.facts import Part
from qdiff_fx.ir.subgraph import Subgraph, subgraph
from qdiff_fx.reconstruction.units import find_units, is_quantized


def test_blocks_and_layers_in_execution_order():
    units = find_units(make_prepared().graph_module)
    assert units[0].path == "block"
    assert (units[0].kind, len(units[0].layers)) == ("block", 2)
    assert units[-1].path == "conv_out"
    assert len(units) == 10


@pytest.mark.parametrize("name", networks("ddpm_cifar", "sd1", "ddpm_class", "sdxl", *QUICK))
def test_every_quantized_layer_is_in_exactly_one_unit(name):
    gm = prepared(name, QDiffConfig()).graph_module
    layers = [layer for unit in find_units(gm) for layer in unit.layers]
    assert sorted(layers) == sorted(node.name for node in gm.graph.nodes if is_quantized(node))


@pytest.mark.parametrize("name", networks("sd1", "controlnet"))
def test_resblocks_and_transformer_blocks_are_units(name):
    paths = {unit.path for unit in find_units(prepared(name, QDiffConfig()).graph_module) if unit.kind == "block"}
    assert "down_blocks.0.resnets.0" in paths
    assert "up_blocks.1.attentions.0.transformer_blocks.0" in paths
    assert not any(path.endswith(".attn1") for path in paths)


@pytest.mark.parametrize("name", networks("ddpm_cifar", "ddpm_class"))
def test_attention_without_a_transformer_is_a_unit(name):
    paths = {unit.path for unit in find_units(prepared(name, QDiffConfig()).graph_module)}
    assert {"mid_block.resnets.0", "mid_block.attentions.0", "conv_in", "conv_out"} <= paths
    assert not [path for path in paths if ".conv1" in path]


@every_architecture
def test_a_unit_reads_only_earlier_units_and_inputs(name):
    gm = prepared(name, QDiffConfig()).graph_module
    units = find_units(gm)
    assert units
    earlier = {node.name for node in gm.graph.nodes if node.op == "placeholder"}
    for unit in units:
        part = part_of(gm, unit.output, units)
        assert set(part.inputs) <= earlier, unit.path
        inside = {node.name for node in part.module.graph.nodes}
        assert set(unit.layers) <= inside
        earlier.add(unit.output)


def part_of(gm, output, units) -> Subgraph:
    outputs = {each.output for each in units}
    node = next(each for each in gm.graph.nodes if each.name == output)
    return subgraph(gm, [node], lambda each: each.name in outputs)


def test_units_compute_what_the_network_does():
    network = make_prepared()
    gm, x, t = network.graph_module, torch.randn(2, 3, 8, 8), torch.tensor([20.0, 500.0])
    values = dict(zip([n.name for n in gm.graph.nodes if n.op == "placeholder"], network.flatten_inputs((x, t), {})))
    units = find_units(gm)
    with torch.no_grad():
        for unit in units:
            part = part_of(gm, unit.output, units)
            (values[unit.output],) = part.module(*(values[name] for name in part.inputs))
        torch.testing.assert_close(values[units[-1].output], network(x, t))


def test_parts_of_a_split_layer_are_one_unit():
    gm = make_prepared().graph_module
    units = find_units(gm)
    parts = {node.name for node in gm.graph.nodes if is_quantized(node) and has(node, Part)}
    assert len(parts) == 2
    assert any(parts <= set(unit.layers) for unit in units)
