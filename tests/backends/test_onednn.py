"""oneDNN's int8 layers against the reference: the same integers, so the same sums up to float rounding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_graphs import Plain, Shortcut, as_taken_by, run
from tiny_graphs import qdq_graph as plain_qdq_graph
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from examples import examples
from qdiff_fx.backends import get_backend
from qdiff_fx.backends.inductor.backend import InductorOptions
from qdiff_fx.backends.inductor.onednn import LAYER_OPS, SUM_OPS, accumulate_sums, lower_to_onednn, refusal
from qdiff_fx.backends.inductor.output_quantization import hide_from_inductor, write_codes
from qdiff_fx.ir.annotations import path_of, set_value
from qdiff_fx.ir.edit import clean, copy_graph, is_op
from qdiff_fx.ir.facts import quantized_layers

EAGER = InductorOptions(compile=False)
qd = torch.ops.quantized_decomposed
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


def qdq_graph(net: nn.Module, *inputs: torch.Tensor, **config) -> torch.fx.GraphModule:
    return as_taken_by("inductor", plain_qdq_graph(net, *inputs, **config))


def both(gm: torch.fx.GraphModule, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(reference, oneDNN) on the same inputs."""
    reference, onednn = get_backend("reference").lower(gm), get_backend("inductor").lower(gm, EAGER)
    return run(reference.module, *inputs), run(onednn.module, *inputs)


@given(st.data())
@examples(12)
def test_a_convolution_agrees_with_the_reference(data):
    groups = data.draw(st.sampled_from([1, 1, 2, 4]))
    dilation = data.draw(st.integers(1, 2))
    conv = nn.Conv2d(
        groups * data.draw(st.integers(1, 9)),
        groups * data.draw(st.integers(1, 9)),
        data.draw(st.sampled_from([1, 3, (3, 1)])),
        stride=data.draw(st.integers(1, 2)),
        padding=data.draw(st.integers(0, 2)),
        dilation=dilation,
        groups=groups,
        bias=data.draw(st.booleans()),
    )
    torch.manual_seed(data.draw(st.integers(0, 100)))
    x = torch.randn(2, conv.in_channels, 9, 8) + data.draw(st.sampled_from([0.0, 2.0]))
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    bits = data.draw(st.integers(2, 8))
    gm = qdq_graph(Plain(conv), x, weight_bits=bits, act_bits=data.draw(st.integers(4, 8)))
    expected, actual = both(gm, x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(3,), (2, 5), (2, 3, 4)]), st.integers(2, 8))
@examples(6)
def test_a_linear_layer_agrees_with_the_reference(features, outputs, rows, bits):
    x = torch.randn(*rows, features)
    gm = qdq_graph(Plain(nn.Linear(features, outputs)), x, weight_bits=bits)
    expected, actual = both(gm, x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("granularity", ["tensor", "timestep"])
def test_a_network_with_shortcut_and_attention_agrees(granularity):
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([40.0, 40.0])
    gm = qdq_graph(Shortcut(), x, t, act_granularity=granularity)
    expected, actual = both(gm, x, t)
    # Codes that sit on a rounding boundary may flip between two orders of summation; nothing else may differ.
    assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 45


def test_a_transposed_convolution_is_refused_with_the_reason():
    x = torch.randn(2, 4, 6, 6)
    gm = qdq_graph(Plain(nn.ConvTranspose2d(4, 6, 2, stride=2)), x)
    (row,) = get_backend("inductor").lower(gm, EAGER).layers
    assert not row.integer
    assert "no int8 kernel for conv_transpose" in row.reason
    expected, actual = both(gm, x)
    torch.testing.assert_close(actual, expected)


def lowered_shortcut() -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([40.0, 40.0])
    gm = qdq_graph(Shortcut(), x, t, act_granularity="tensor")
    lowered = copy_graph(gm)
    lower_to_onednn(lowered, torch.float32)
    return gm, lowered


def test_every_layer_is_lowered():
    gm, lowered = lowered_shortcut()
    assert not any(refusal(node) for node in quantized_layers(gm))
    # 3 convolutions, 2 parts of the shortcut, 4 linear layers.
    assert sum(is_op(node, *LAYER_OPS) for node in lowered.graph.nodes) == 9
    assert not any("dequantize_per_channel" in str(node.target) for node in clean(lowered).graph.nodes)


def test_the_parts_of_a_shortcut_are_summed_by_the_second_one():
    gm, lowered = lowered_shortcut()
    shortcuts = [n for n in lowered.graph.nodes if is_op(n, *LAYER_OPS) and "shortcut" in path_of(n)]
    (add,) = {user for node in shortcuts for user in node.users}
    # Inductor works on a graph whose nodes know their shapes; here they come from the graph before lowering.
    for node in (*shortcuts, add):
        set_value(node, torch.empty(2, 16, 8, 8))
    assert accumulate_sums(lowered.graph) == 1
    assert [path_of(n) for n in lowered.graph.nodes if is_op(n, *SUM_OPS)] == ["shortcut"]
    lowered.graph.lint()
    lowered.recompile()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([40.0, 40.0])
    expected = run(get_backend("reference").lower(gm).module, x, t)
    actual = run(lowered, x, t)
    assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 45


def test_a_sum_that_something_else_reads_stays():
    _, lowered = lowered_shortcut()
    shortcuts = [n for n in lowered.graph.nodes if is_op(n, *LAYER_OPS) and "shortcut" in path_of(n)]
    for node in lowered.graph.nodes:
        set_value(node, torch.empty(2, 16, 8, 8))
    with lowered.graph.inserting_after(shortcuts[0]):
        lowered.graph.call_function(torch.ops.aten.neg.default, (shortcuts[0],))
    accumulate_sums(lowered.graph)
    assert not any(path_of(n) == "shortcut" for n in lowered.graph.nodes if is_op(n, *SUM_OPS))


def test_queries_keys_and_values_leave_their_layers_as_codes():
    gm, lowered = lowered_shortcut()
    assert write_codes(lowered) == 3
    clean(lowered)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([40.0, 40.0])
    expected = run(get_backend("reference").lower(gm).module, x, t)
    actual = run(lowered, x, t)
    assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 45


def test_codes_narrower_than_their_storage_are_not_left_to_saturation():
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([40.0, 40.0])
    gm = qdq_graph(Shortcut(), x, t, act_granularity="tensor", act_bits=6)
    lowered = copy_graph(gm)
    lower_to_onednn(lowered, torch.float32)
    assert write_codes(lowered) == 0
    hide_from_inductor(lowered)
    assert not any(is_op(node, qd.quantize_per_tensor.default) for node in lowered.graph.nodes)
    expected, actual = run(gm, x, t), run(clean(lowered), x, t)
    assert 20 * torch.log10(expected.norm() / (expected - actual).norm()) > 45


def test_torch_knows_the_shapes_of_convolutions_of_lines():
    """What is compiled is what torch believes of shapes, not what a kernel returns."""
    layers = Plain(nn.Sequential(nn.Conv1d(3, 4, 3, padding=1, stride=2), nn.Conv1d(4, 4, 5, padding=4, dilation=2)))
    x = torch.randn(2, 3, 12)
    module = get_backend("inductor").lower(qdq_graph(layers, x), EAGER).module
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        believed = run(module, mode.from_tensor(x))
    assert believed.shape == run(module, x).shape == layers(x).shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_keep_their_types_whatever_it_computes_in(dtype):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = self.layer(x)
            return y, y.argmax(1), y > 0, y.double()

    x = torch.randn(2, 3, 4, 4)
    options = InductorOptions(compile=False, compute_dtype=dtype)
    results = get_backend("inductor").lower(qdq_graph(Several(), x), options).module(x)
    assert [each.dtype for each in results] == [torch.float32, torch.int64, torch.bool, torch.float64]
