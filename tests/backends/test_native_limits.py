"""Values and sums too large for the types the native backend likes to hold them in."""

from __future__ import annotations

import torch
from tiny_graphs import Plain, qdq_graph, run
from torch import nn

from qdiff_fx.backends import get_backend
from qdiff_fx.quant.numerics import sqnr_db

NATIVE, REFERENCE = get_backend("native"), get_backend("reference")


def test_a_layer_whose_sums_might_exceed_32_bits_runs_in_float():
    """As many weights, all of one size: the integer kernel would have wrapped to the other sign."""
    layer = nn.Linear(70_000, 2)
    with torch.no_grad():
        layer.weight.fill_(0.01)
    x = torch.rand(3, 70_000) + 1
    gm = qdq_graph(Plain(layer), x, act_range="minmax")
    lowered = NATIVE.lower(gm)
    (row,) = lowered.layers
    assert "70000 weights per output channel" in row.reason
    assert sqnr_db(run(REFERENCE.lower(gm).module, x), run(lowered.module, x)) > 100


def test_as_many_weights_of_which_most_are_small_stay_on_integers():
    torch.manual_seed(0)
    layer, x = nn.Linear(70_000, 2), torch.rand(3, 70_000)
    nn.init.normal_(layer.weight)
    gm = qdq_graph(Plain(layer), x)
    lowered = NATIVE.lower(gm)
    assert lowered.layers[0].integer
    assert sqnr_db(run(REFERENCE.lower(gm).module, x), run(lowered.module, x)) > 60
