"""Every small network of the zoo through both passes: what must be found in it, and the same numbers out."""

import pytest
import torch
from torch import fx
from torch.utils._pytree import tree_leaves
from zoo import ARCHITECTURES, captured, networks, resized

from qdiff_fx.ir.annotations import put
from qdiff_fx.ir.edit import clean, copy_graph
from qdiff_fx.ir.facts import Input
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.framework import run_passes
from qdiff_fx.passes.split_shortcut.split_shortcut import SplitShortcut
from qdiff_fx.signature import DropIn

aten = torch.ops.aten


def batched(value):
    """Timesteps as the captured graphs have them: one per sample."""
    return torch.as_tensor(value).expand(2).clone() if torch.as_tensor(value).dim() == 0 else value


@pytest.fixture(scope="module", params=networks(*ARCHITECTURES))
def network(request):
    """(architecture, flat inputs, graph, expected first output), exported at fixed sizes."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[request.param]
    module, inputs = architecture()
    inputs = {
        name: batched(value) if isinstance(value, int | torch.Tensor) else value for name, value in inputs.items()
    }
    with torch.no_grad():
        expected = tree_leaves(dict(found) if hasattr(found := module(**inputs), "items") else found)[0]
    gm = torch.export.export(module, (), kwargs=inputs, strict=False).module(check_guards=False)
    gm.graph.set_codegen(fx.graph.CodeGen())
    put(next(node for node in gm.graph.nodes if node.op == "placeholder"), Input("sample"))
    return architecture, tree_leaves(inputs), copy_graph(clean(gm)), expected


def outputs(gm, inputs):
    with torch.no_grad():
        return gm(*inputs)[0]


def test_the_up_path_is_split_and_the_attention_found(network):
    architecture, inputs, captured, expected = network
    gm = copy_graph(captured)
    canonicalised, split = run_passes(gm, [Canonicalize(), SplitShortcut()])
    attentions = [node for node in gm.graph.nodes if node.target is aten.scaled_dot_product_attention.default]
    assert len(attentions) == architecture.attentions
    assert len(split.changed) == architecture.up_concats
    assert canonicalised.refused == ()
    assert {refusal.reason for refusal in split.refused} <= {
        "the concat holds only conditioning, the sample does not reach it"
    }
    torch.testing.assert_close(outputs(gm, inputs), expected, rtol=1e-4, atol=2e-5)
    assert [r.changed for r in run_passes(gm, [Canonicalize(), SplitShortcut()])] == [(), ()]


def test_splitting_all_finds_more_and_computes_the_same(network):
    architecture, inputs, captured, expected = network
    gm = copy_graph(captured)
    split = run_passes(gm, [Canonicalize(), SplitShortcut("all")])[1]
    assert len(split.changed) >= architecture.up_concats
    torch.testing.assert_close(outputs(gm, inputs), expected, rtol=1e-4, atol=2e-5)


def test_the_captured_graph_is_left_alone(network):
    _, inputs, captured, expected = network
    run_passes(copy_graph(captured), [Canonicalize(), SplitShortcut()])
    torch.testing.assert_close(outputs(captured, inputs), expected)


@pytest.mark.parametrize("name", networks("ddpm_cifar", "ddpm_scale_shift", "one_resolution"))
def test_a_captured_network_with_open_sizes(name):
    model, inputs, graph = captured(name)
    gm = copy_graph(graph.module)
    split = run_passes(gm, [Canonicalize(), SplitShortcut()])[1]
    assert len(split.changed) == ARCHITECTURES[name].up_concats
    assert [refusal.path for refusal in split.refused] == ["time_embedding.linear_1"]
    larger = resized(inputs, 3, scale=2) | {"timestep": torch.tensor([1, 50, 900])}
    with torch.no_grad():
        torch.testing.assert_close(
            DropIn(gm, graph.signature)(**larger).sample, model(**larger).sample, rtol=1e-4, atol=2e-5
        )
