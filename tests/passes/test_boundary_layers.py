"""Which layers count as the boundary layers, and what the configuration makes of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.ir.annotations import exported_module, nodes_with, put, require, set_path
from qdiff_fx.ir.facts import Input, LayerPlan
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.framework import run_passes
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.passes.split_shortcut.split_shortcut import SplitShortcut

IMAGE = (2, 4, 6, 6)


class Three(nn.Module):
    """first → silu → middle → silu → last, with `before` and `after` around them."""

    def __init__(self, before=lambda x: x, after=lambda y, x: y):
        super().__init__()
        self.first, self.middle, self.last = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self.last(F.silu(self.middle(F.silu(self.first(self.before(x)))))), x)


def bits(net, shape=IMAGE, **config):
    """Weight and activation bits by path."""
    gm = torch.export.export(net.eval(), (torch.randn(shape),), strict=False).module()
    for node in list(gm.graph.nodes):
        if node.op == "call_module":
            gm.graph.erase_node(node)
        set_path(node, exported_module(node))
        if node.op == "placeholder":
            put(node, Input("sample"))
    run_passes(gm, [Canonicalize(), SplitShortcut(), Annotate(QDiffConfig(**config))])
    infos = [require(node, LayerPlan).info for node in nodes_with(gm, LayerPlan)]
    return {info.path: (info.weight_bits, info.act_bits) for info in infos}


def test_the_sample_gets_two_codes_and_the_edges_more_weight_bits():
    assert bits(Three(), weight_bits=4) == {"first": (8, 16), "middle": (4, 8), "last": (8, 8)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (lambda x: 2 * x - 1, lambda y, x: -y / 3),
        (lambda x: 3 * torch.tanh(x / 3), lambda y, x: y.clamp(-1, 1)),
        (lambda x: F.pad(x, (1, 1, 1, 1))[..., :6, :6], lambda y, x: x + y),
        (lambda x: x.flatten(2).reshape(x.shape), lambda y, x: y.permute(0, 2, 3, 1)),
    ],
)
def test_moves_and_scalings_do_not_hide_an_edge(before, after):
    assert bits(Three(before, after), weight_bits=4) == {"first": (8, 16), "middle": (4, 8), "last": (8, 8)}


@pytest.mark.parametrize(("before", "after"), [(torch.sin, lambda y, x: y), (lambda x: x * x.flip(0), lambda y, x: y)])
def test_what_is_made_of_the_sample_is_not_the_sample(before, after):
    assert bits(Three(before, after), weight_bits=4)["first"] == (4, 8)


def test_a_result_that_is_read_by_other_things_too_is_still_the_prediction():
    assert bits(Three(after=lambda y, x: (y, y.relu().mean())), weight_bits=4)["last"] == (8, 8)


def test_every_chunk_of_a_split_first_layer_that_is_the_sample():
    class Inpainting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.last(F.silu(self.first(torch.cat([x, F.relu(x)], 1))))

    assert bits(Inpainting(), weight_bits=4) == {"first[0:4]": (8, 16), "first[4:8]": (4, 8), "last": (8, 8)}


def test_edges_can_be_treated_like_the_rest():
    assert set(bits(Three(), weight_bits=4, edge_weight_bits=2, sample_act_bits=8).values()) == {(4, 8)}


def test_edges_never_get_fewer_bits_than_the_rest():
    assert bits(Three(), weight_bits=8, edge_weight_bits=4)["last"] == (8, 8)


def test_rules_have_the_last_word():
    rules = (Rule("first", weight_bits=3, act_bits=6), Rule("middle", act_bits=16))
    assert bits(Three(), weight_bits=4, rules=rules) == {"first": (3, 6), "middle": (4, 16), "last": (8, 8)}
