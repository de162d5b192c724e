"""Networks called from code that torch.compile compiles, or that torch.export exports."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import ONE_RESOLUTION, noise, unconditional

from qdiff_fx import PreparedUNet, QDiffConfig, QuantizedUNet, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.errors import QDiffError
from qdiff_fx.kernels import status

BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(not status().available, reason="no kernels"))]
GRAPHS = "eager"  # Dynamo decides what is compiled; a compiler behind it takes its time and has no say


@pytest.fixture(scope="module")
def prepared() -> PreparedUNet:
    torch.manual_seed(0)
    example = {"sample": noise(3), "timestep": 7}
    made = prepare_qdiff(unconditional(**ONE_RESOLUTION), QDiffConfig(timestep_bins=1), example)
    calibrate(made, [example], progress=False)
    return made


@pytest.fixture(params=BACKENDS)
def network(request: pytest.FixtureRequest, prepared: PreparedUNet) -> QuantizedUNet:
    torch._dynamo.reset()
    return convert_qdiff(prepared, request.param)


def test_it_is_called_as_it_is(network: QuantizedUNet) -> None:
    compiled = torch.compile(network, backend=GRAPHS)
    for timestep in (7, 300, torch.tensor(20)):
        sample = noise(3)
        assert torch.equal(compiled(sample, timestep).sample, network(sample, timestep).sample)


def test_what_surrounds_it_is_compiled(network: QuantizedUNet) -> None:
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> nn.Module:
        graphs.append(graph)
        return graph

    def step(sample: torch.Tensor, timestep: int) -> torch.Tensor:
        return (sample * 2 - network(sample.tanh(), timestep).sample).clamp(-1, 1)

    sample = noise(3)
    assert torch.equal(torch.compile(step, backend=keep)(sample, 7), step(sample, 7))
    called = [{node.target for node in graph.graph.nodes} for graph in graphs]
    assert len(called) == 2
    assert "tanh" in called[0]
    assert "clamp" in called[1]


def test_one_graph_of_it_all_is_refused_with_the_way_out(network: QuantizedUNet) -> None:
    compiled = torch.compile(network, backend=GRAPHS, fullgraph=True)
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match=r"QuantizedUNet: It runs on kernels .* leave fullgraph=True out"
    ):
        compiled(noise(3), 7)


def test_a_network_that_watches_sees_what_it_would_have_seen(prepared: PreparedUNet) -> None:
    torch._dynamo.reset()
    sample = noise(3)
    expected = prepared(sample, 7).sample
    assert torch.equal(torch.compile(prepared, backend=GRAPHS)(sample, 7).sample, expected)


def test_exporting_it_names_the_call_that_does(network: QuantizedUNet) -> None:
    with pytest.raises(QDiffError, match=r"qdiff_fx\.export_qdiff\(network"):
        torch.export.export(network, (noise(3), torch.tensor([7, 7])), strict=False)
