"""Networks of half and double precision: what becomes float32, and what stays as the network wrote it."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from qdiff_fx.capture import capture
from qdiff_fx.config import QDiffConfig
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import value_or_none
from qdiff_fx.ir.edit import copy_graph, get_attr_tensor
from qdiff_fx.ir.widening import is_widened, weight_source
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.canonicalize.compute_in_float32 import ComputeInFloat32
from qdiff_fx.passes.framework import Pass, run_passes
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.passes.split_shortcut.split_shortcut import SplitShortcut

CASTS = ("aten.to.dtype", "aten._to_copy.default")


class Embedded(nn.Module):
    """A convolution shifted by an embedding of the timestep that is computed in a type of its own."""

    def __init__(self, embedded_in: torch.dtype):
        super().__init__()
        self.conv, self.time, self.embedded_in = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), embedded_in

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = t.to(self.embedded_in)[:, None] * torch.tensor([1.0, 0.5, 0.25, 0.1], dtype=self.embedded_in)
        h = self.conv(x) + self.time(angles.sin().to(x.dtype))[..., None, None]
        return h, torch.softmax(h, 1, dtype=torch.float32)


def rewritten(dtype: torch.dtype, embedded_in: torch.dtype) -> tuple[nn.Module, fx.GraphModule, list]:
    torch.manual_seed(0)
    network = Embedded(embedded_in).to(dtype).eval()
    calls = {"x": torch.randn(2, 3, 5, 5).to(dtype), "t": torch.tensor([901, 33])}
    graph = copy_graph(capture(network, calls).module)
    return network, graph, run_passes(graph, [ComputeInFloat32()])


def calls_in(graph: fx.GraphModule, dtype: torch.dtype) -> list[str]:
    """The operators whose results are of a type, casts apart."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and value_or_none(node) is not None]
    return [str(node.target) for node in nodes if value_or_none(node).dtype == dtype and "to.dtype" not in str(node)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layers_compute_in_float32_and_results_keep_their_types(dtype):
    network, graph, (report,) = rewritten(dtype, torch.float32)
    assert report.changed
    assert not [name for name in calls_in(graph, dtype) if name not in CASTS]
    held = {node: get_attr_tensor(graph, node).dtype for node in graph.graph.nodes if node.op == "get_attr"}
    of_layers = {weight_source(node.args[1]) for node in graph.graph.nodes if node.target in ops.WEIGHT_LAYERS}
    assert {held.pop(node) for node in of_layers} == {torch.float32 if dtype == torch.float64 else dtype}
    assert set(held.values()) == {torch.float32}
    x, t = torch.randn(2, 3, 5, 5).to(dtype), torch.tensor([5, 6])
    with torch.no_grad():
        ours, theirs = graph(x, t), network.float()(x.float(), t)
    assert [each.dtype for each in ours] == [dtype, torch.float32]
    # The embedding is rounded to the network's type, as the network does.
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0, atol=2 * torch.finfo(dtype).eps + 1e-6)
    again = run_passes(graph, [ComputeInFloat32()])
    assert not again[0].changed
    assert all(map(torch.equal, graph(x, t), ours))


def graph_of(network: nn.Module, x: torch.Tensor, *passes: Pass) -> fx.GraphModule:
    graph = copy_graph(capture(network.eval(), {"x": x}).module)
    run_passes(graph, [ComputeInFloat32(), *passes])
    return graph


def widened(graph: fx.GraphModule) -> list[str]:
    return [str(node.args[0].target) for node in graph.graph.nodes if is_widened(node)]


class Tied(nn.Module):
    """One weight that two layers read, and one that a layer reads and another operator too."""

    def __init__(self):
        super().__init__()
        self.twice, self.also_added = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.also_added(self.twice(self.twice(x))) + self.also_added.weight


def test_a_weight_is_widened_for_each_layer_unless_others_than_layers_read_it():
    network, x = Tied().half(), torch.randn(4, 4).half()
    graph = graph_of(network, x)
    assert widened(graph) == ["twice.weight", "twice.weight"]
    assert graph.get_submodule("also_added").weight.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], network(x), rtol=1e-2, atol=1e-2)


class Concat(nn.Module):
    """A convolution over a concatenation, which is split."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.first(x), x], 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_and_their_parts_are_the_networks_own_memory(dtype):
    network, x = Concat().to(dtype), torch.randn(2, 3, 5, 5).to(dtype)
    graph = graph_of(network, x, Canonicalize(), SplitShortcut(), Annotate(QDiffConfig()))
    assert len(widened(graph)) == 3
    own = {each.untyped_storage().data_ptr() for each in network.parameters()}
    held = [each for each in (*graph.parameters(), *graph.buffers()) if each.dim() == 4]
    assert {each.dtype for each in held} == {dtype}
    assert all(each.untyped_storage().data_ptr() in own for each in held)
    with torch.no_grad():
        assert torch.equal(graph(x)[0], network.float()(x.float()).to(dtype))


def test_the_phase_of_an_embedding_is_that_of_the_network():
    """901 is no bfloat16: 900 is what the network was trained with."""
    network, graph, _ = rewritten(torch.bfloat16, torch.bfloat16)
    assert "aten.sin.default" in calls_in(graph, torch.bfloat16)
    x, t = torch.randn(1, 3, 5, 5).bfloat16(), torch.tensor([901])
    with torch.no_grad():
        ours, theirs, other = graph(x, t)[0], network(x, t)[0], network(x, t - 4)[0]
    assert (ours - theirs).abs().max() < 0.1 * (other - theirs).abs().max()


def test_a_float32_network_keeps_its_embedding_in_float64():
    _, graph, (report,) = rewritten(torch.float32, torch.float64)
    assert not report.changed
    assert "aten.sin.default" in calls_in(graph, torch.float64)


def test_an_input_that_the_network_casts_itself_is_cast_once():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * x.to(torch.float32).std() + t[:, None, None, None] / 1000

    torch.manual_seed(0)
    network, x, t = Casting().half().eval(), torch.randn(2, 3, 5, 5).half(), torch.tensor([5.0, 6.0])
    graph = copy_graph(capture(network, {"x": x, "t": t}).module)
    run_passes(graph, [ComputeInFloat32()])
    with torch.no_grad():
        torch.testing.assert_close(graph(x, t)[0], network(x, t), rtol=2e-3, atol=2e-3)
    sample = next(iter(graph.graph.nodes))
    assert [str(user.target) for user in sample.users] == ["aten.to.dtype"]
