"""Where a graph is cut, what crosses, and that the pieces compute what the whole does."""

import pytest
import torch
import torch.nn.functional as F
import zoo
from tiny_graphs import Shortcut, prepare
from torch import nn

from qdiff_fx import QDiffConfig, prepare_qdiff
from qdiff_fx.ir.blocks import MOST_LAYERS, cut_into_blocks, part_of
from qdiff_fx.ir.facts import layer_id, planned_info


def is_layer(node):
    info = planned_info(node)
    return info is not None and info.quantized


class Residual(nn.Module):
    """Two residual blocks of two layers each, and one wide layer within the second."""

    def __init__(self, channels=8):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(channels, channels) for _ in range(3))
        self.wide = nn.Linear(channels, 4 * channels)
        self.back = nn.Linear(4 * channels, channels)

    def forward(self, sample):
        sample = sample + self.b(F.silu(self.a(sample)))
        sample = sample + self.back(F.silu(self.wide(sample)))
        return self.c(sample)


class Chain(nn.Module):
    """Layers of one size, one after the other: nowhere is less to carry than elsewhere."""

    def __init__(self, count):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))

    def forward(self, sample):
        return self.layers(sample)


def graph_of(net, example):
    return prepare_qdiff(net.eval(), QDiffConfig(), example).graph_module


def layers_of(blocks):
    return [[layer_id(layer) for layer in block.layers] for block in blocks]


def test_it_is_cut_between_residual_blocks():
    blocks = cut_into_blocks(graph_of(Residual(), {"sample": torch.randn(2, 5, 8)}), is_layer)
    assert layers_of(blocks) == [["a", "b"], ["wide", "back", "c"]]
    first, second = blocks
    assert not first.inputs
    assert len(first.outputs) == 1
    assert second.inputs == first.outputs == second.finished


def test_a_chain_without_narrow_places_is_cut_where_it_gets_too_long():
    blocks = cut_into_blocks(graph_of(Chain(20), {"sample": torch.randn(2, 8)}), is_layer)
    assert sum(len(block.layers) for block in blocks) == 20
    assert all(1 <= len(block.layers) <= MOST_LAYERS for block in blocks)


def test_a_shortcut_is_carried_once_and_forgotten_after_its_last_reader():
    graph = zoo.prepared("one_resolution", QDiffConfig()).graph_module
    blocks = cut_into_blocks(graph, is_layer)
    written = [name for block in blocks for name in block.outputs]
    assert len(written) == len(set(written))
    at_hand: set[str] = set()
    longest = 0
    for index, block in enumerate(blocks):
        assert set(block.inputs) <= at_hand
        at_hand |= set(block.outputs)
        at_hand -= set(block.finished)
        longest = max(longest, len(at_hand))
        later = {name for each in blocks[index + 1 :] for name in each.inputs}
        assert at_hand - later == (set(block.outputs) if block is blocks[-1] else set())
    assert longest > 3  # shortcuts wait for the way up


@pytest.mark.parametrize("name", zoo.networks("ddpm_cifar", "sd1", "one_resolution", "conditioned"))
def test_the_blocks_one_after_the_other_compute_what_the_graph_does(name):
    example, prepared = zoo.captured(name)[1], zoo.prepared(name, QDiffConfig())
    graph = prepared.graph_module
    names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    values = dict(zip(names, prepared.flatten_inputs((), example), strict=True))
    layers = []
    with torch.no_grad():
        expected = graph(*values.values())
        for block in cut_into_blocks(graph, is_layer):
            layers += block.layers
            part = part_of(graph, block)
            outputs = part.module(*(values[name] for name in part.inputs))
            values |= dict(zip(block.outputs, outputs, strict=True))
            for name in block.finished:
                del values[name]
    assert layers == [node for node in graph.graph.nodes if is_layer(node)]
    torch.testing.assert_close([values[name] for name in block.outputs], list(expected), rtol=0, atol=0)


def test_layers_that_share_an_observed_input_across_a_cut_each_find_it():
    net = Shortcut()
    graph = prepare(net, QDiffConfig(), {"x": torch.randn(2, 3, 16, 16), "t": torch.full((2,), 40.0)}).graph_module
    for block in cut_into_blocks(graph, is_layer):
        part = part_of(graph, block).module
        found = [layer_id(node) for node in part.graph.nodes if is_layer(node)]
        assert found == [layer_id(layer) for layer in block.layers]
        for node in part.graph.nodes:
            if is_layer(node):
                assert node.args[0].op == "call_module"
