"""Weights that layers in float read: float32 in a q/dq graph, whatever the network held."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from qdiff_fx import QDiffConfig, Rule, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.capture import capture
from qdiff_fx.ir.edit import copy_graph, tensors_of
from qdiff_fx.ir.widening import is_widened
from qdiff_fx.passes.canonicalize.compute_in_float32 import ComputeInFloat32
from qdiff_fx.passes.framework import run_passes
from qdiff_fx.passes.quantize.widen_weights import WidenWeights


class Net(nn.Module):
    """A layer called twice, and one over a concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.first(x)
        return self.last(torch.cat([self.twice(self.twice(skip).relu()), skip], 1))


def network(dtype: torch.dtype) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype).eval()


def widened(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if is_widened(node)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_weight_becomes_float32_and_nothing_else_changes(dtype):
    x = torch.randn(2, 3, 6, 6).to(dtype)
    graph = copy_graph(capture(network(dtype), {"x": x}).module)
    run_passes(graph, [ComputeInFloat32()])
    expected = graph(x)[0]
    assert len(widened(graph)) == 4
    (report,) = run_passes(graph, [WidenWeights()])
    assert [each.node for each in report.changed] == ["first_weight", "twice_weight", "last_weight"]
    assert not widened(graph)
    assert {each.dtype for each in tensors_of(graph, graph.graph.nodes).values()} == {torch.float32}
    assert torch.equal(graph(x)[0], expected)
    (again,) = run_passes(graph, [WidenWeights()])
    assert not again.changed


def test_a_network_of_float32_stays_as_it_is():
    graph = copy_graph(capture(network(torch.float32), {"x": torch.randn(2, 3, 6, 6)}).module)
    (report,) = run_passes(graph, [ComputeInFloat32(), WidenWeights()])[1:]
    assert not report.changed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("split", ["off", "shortcut"])
def test_a_network_of_half_precision_is_quantized_as_its_float32_twin(dtype, split):
    """Bit by bit: codes, scales, what stays in float."""
    config = QDiffConfig(weight_bits=4, weight_rounding="nearest", split=split, rules=(Rule("twice", quantize=False),))
    batches = [{"x": torch.randn(2, 3, 6, 6).to(dtype)} for _ in range(3)]
    found = []
    for float32 in (False, True):
        own = network(dtype).float() if float32 else network(dtype)
        given = [{"x": each["x"].float()} if float32 else each for each in batches]
        prepared = prepare_qdiff(own, config, given[0])
        calibrate(prepared, given, progress=False)
        graph = convert_qdiff(prepared, "reference").graph_module
        assert not widened(graph)
        found.append({str(node.target): each for node, each in tensors_of(graph, graph.graph.nodes).items()})
    half, full = found
    assert half.keys() == full.keys()
    assert all(half[name].dtype == full[name].dtype and torch.equal(half[name], full[name]) for name in half)
