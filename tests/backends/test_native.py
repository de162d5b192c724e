"""The native backend: which nodes become one, and that the result is the reference's."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_graphs import Plain, Shortcut, prepared, qdq_graph, run
from torch import nn

from examples import examples
from qdiff_fx.backends import get_backend
from qdiff_fx.backends.native.backend import NativeOptions
from qdiff_fx.backends.native.fusion.kernels import CONV, GROUP_NORM, LAYER_NORM, LINEAR, QUANTIZE, QUANTIZE_REST
from qdiff_fx.config import Rule
from qdiff_fx.kernels import status
from qdiff_fx.passes.quantize.convert import convert
from qdiff_fx.quant.numerics import sqnr_db

aten = torch.ops.aten
X = torch.linspace(-2, 3, 2 * 4 * 6 * 5).reshape(2, 4, 6, 5)
T = torch.tensor([500, 500])
KERNELS = {
    CONV: "conv",
    LINEAR: "linear",
    QUANTIZE: "quantize",
    QUANTIZE_REST: "quantize_rest",
    GROUP_NORM: "group_norm",
    LAYER_NORM: "layer_norm",
}


def lowered(gm, dtype=torch.float32):
    # What is remembered from call to call is tested in test_native_reuse.py; here every kernel stays in sight.
    return get_backend("native").lower(gm, NativeOptions(dtype, reuse=False)).module


def kernels(module) -> dict[str, int]:
    """How many calls of each kernel there are."""
    return dict(Counter(KERNELS[n.target] for n in module.graph_module.graph.nodes if n.target in KERNELS))


def others(module) -> set[str]:
    """What else computes, apart from shapes and moves."""
    free = {aten.reshape.default, aten.permute.default, aten.unsqueeze.default, aten.sym_size.int}
    calls = [n for n in module.graph_module.graph.nodes if n.op == "call_function" and n.target not in KERNELS]
    return {str(n.target) for n in calls if n.target not in free and "builtin" not in str(n.target)}


def calls(module, target):
    return [dict(n.kwargs) for n in module.graph_module.graph.nodes if n.target is target]


def check(net: nn.Module, *inputs: torch.Tensor, flips: bool = False, **config):
    """Lower `net`, compare with the reference, return the lowered module.

    `flips`: a norm is rounded otherwise than by torch, which may move a value across a boundary to the next code.
    """
    torch.manual_seed(0)
    gm = qdq_graph(net, *inputs, **config)
    module = lowered(gm)
    expected = run(get_backend("reference").lower(gm).module, *inputs)
    actual = run(module, *inputs)
    if flips:
        assert sqnr_db(expected, actual) > 50
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    # By default values between kernels are rounded to 11 bits, which moves some across a boundary: 54.7 dB or more.
    assert sqnr_db(expected, run(lowered(gm, torch.float16), *inputs)) > 50
    return module


class Net(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


def conv(inputs=4, outputs=4, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


@given(st.data())
@examples(20)
def test_a_convolution_agrees_with_the_reference(data):
    layer = nn.Conv2d(
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 70)),
        data.draw(st.sampled_from([1, 3, (3, 1)])),
        stride=data.draw(st.integers(1, 2)),
        padding=data.draw(st.integers(0, 2)),
        dilation=data.draw(st.integers(1, 2)),
        bias=data.draw(st.booleans()),
    )
    torch.manual_seed(data.draw(st.integers(0, 100)))
    x = torch.randn(2, layer.in_channels, 9, 8) + data.draw(st.sampled_from([0.0, 2.0]))
    bits = {"weight_bits": data.draw(st.integers(2, 8)), "act_bits": data.draw(st.integers(4, 8))}
    module = check(Plain(layer), x, **bits)
    assert kernels(module) == {"quantize": 1, "conv": 1}


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(3,), (2, 5), (2, 3, 4)]), st.integers(2, 8))
@examples(8)
def test_a_linear_layer_agrees_with_the_reference(features, outputs, rows, bits):
    module = check(Plain(nn.Linear(features, outputs)), torch.randn(*rows, features), weight_bits=bits)
    assert kernels(module) == {"quantize": 1, "linear": 1}


def test_a_one_dimensional_convolution():
    module = check(Plain(nn.Conv1d(4, 6, 3, padding=1, stride=2)), torch.randn(2, 4, 9))
    assert kernels(module) == {"quantize": 1, "conv": 1}


def test_norm_and_activation_become_the_quantizer():
    net = Net(lambda m, x: m.conv(F.silu(m.norm(x))), norm=nn.GroupNorm(2, 4), conv=conv())
    module = check(net, X, flips=True)
    assert kernels(module) == {"group_norm": 1, "conv": 1}
    assert others(module) == set()


def test_the_second_code_of_a_wide_input_is_one_kernel():
    """Behind a norm with its activation, and behind a move: both codes come from one value."""
    net = Net(lambda s, x: s.conv(F.silu(s.norm(x))), norm=nn.GroupNorm(2, 4), conv=nn.Conv2d(4, 8, 3, padding=1))
    module = check(net, X, flips=True, rules=(Rule("conv", act_bits=16),))
    assert kernels(module) == {"group_norm": 1, "quantize": 1, "quantize_rest": 1, "conv": 1}
    assert not others(module)
    net = Net(lambda s, x: s.linear(x.flatten(2).transpose(1, 2)), linear=nn.Linear(4, 8))
    module = check(net, X, rules=(Rule("linear", act_bits=16),))
    assert kernels(module) == {"quantize": 1, "quantize_rest": 1, "linear": 2}


def test_a_norm_somebody_else_reads_stays_in_float():
    def both(m, x):
        h = m.norm(x)
        return m.conv(h) + h

    module = check(Net(both, norm=nn.GroupNorm(2, 4), conv=conv()), X, flips=True)
    assert kernels(module) == {"group_norm": 1, "quantize": 1, "conv": 1}
    assert others(module) == set(), "the sum is the layer's residual"


def test_a_concat_is_never_made():
    def shortcut(m, x):
        a, b = m.a(x), m.b(x)
        return m.conv(F.silu(m.norm(torch.cat([a, b], 1)))) + m.shortcut(torch.cat([a, b], 1))

    net = Net(shortcut, a=conv(4, 5), b=conv(4, 7), norm=nn.GroupNorm(3, 12), conv=conv(12, 6), shortcut=conv(12, 6, 1))
    module = check(net, X, flips=True)
    assert others(module) == set()
    (norm,) = calls(module, GROUP_NORM)
    assert len(norm["parts"]) == 2
    # a, b, conv, and both halves of the shortcut as one; conv adds it or is added.
    assert kernels(module)["conv"] == 4
    assert sorted(len(call["codes"]) for call in calls(module, CONV)) == [1, 1, 1, 2]
    assert sum(call["residual"] is not None for call in calls(module, CONV)) == 1


def test_layer_norm_and_gated_gelu():
    def feed_forward(m, x):
        value, gate = m.up(m.norm(x)).chunk(2, -1)
        return x + m.down(value * F.gelu(gate))

    net = Net(feed_forward, norm=nn.LayerNorm(8), up=nn.Linear(8, 24), down=nn.Linear(12, 8))
    module = check(net, torch.randn(2, 5, 8), flips=True)
    assert kernels(module) == {"layer_norm": 1, "linear": 2, "quantize": 1}
    assert others(module) == set()


def test_a_gated_layer_whose_weight_can_be_cut_gates_itself():
    def feed_forward(m, x):
        value, gate = m.up(x).chunk(2, -1)
        return m.down(value * F.gelu(gate))

    module = check(Net(feed_forward, up=nn.Linear(8, 256), down=nn.Linear(128, 8)), torch.randn(2, 5, 8))
    assert kernels(module) == {"linear": 2, "quantize": 1}
    assert [len(call["weights"]) for call in calls(module, LINEAR)] == [2, 1]


def test_attention_writes_codes():
    def attend(m, x):
        q, k, v = (f(x).unflatten(-1, (2, 8)).transpose(1, 2) for f in (m.q, m.k, m.v))
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net = Net(attend, **{name: nn.Linear(16, 16) for name in ("q", "k", "v", "out")})
    module = check(net, torch.randn(2, 5, 16), flips=True)
    assert kernels(module) == {"linear": 4, "quantize": 1}


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_done_by_the_layer_before_it(approximate):
    net = Net(lambda m, x: m.b(F.gelu(m.a(x), approximate=approximate)), a=nn.Linear(8, 20), b=nn.Linear(20, 4))
    module = check(net, torch.randn(3, 8))
    assert kernels(module) == {"quantize": 1, "linear": 2}
    assert [call["out_dtype"] for call in calls(module, LINEAR)] == [torch.uint8, torch.float32]


def test_the_time_embedding_is_added_by_the_convolution():
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.time = conv(), nn.Linear(1, 4)

        def forward(self, x, t):
            return self.conv(x) + self.time(t[:, None].to(x.dtype) / 1000)[:, :, None, None]

    module = check(Timed(), X, T)
    assert kernels(module) == {"quantize": 2, "conv": 1, "linear": 1}
    assert "aten.add.Tensor" not in others(module)
    assert calls(module, CONV)[0]["shift"] is not None


def test_a_time_embedding_that_a_reshape_spreads_over_the_pixels():
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.time = conv(), nn.Linear(1, 4)

        def forward(self, x, t):
            h = self.conv(x)
            return h + self.time(t[:, None].to(x.dtype) / 1000).view(h.shape[0], -1, 1, 1)

    check(Timed(), X, T)


@pytest.mark.parametrize("padding", [(0, 1, 0, 1), (1, 2, 3, 0), (1, 0)])
def test_zero_padding_is_where_the_kernel_reads(padding):
    net = Net(lambda m, x: m.conv(F.pad(x, padding)), conv=nn.Conv2d(4, 6, 3, stride=2))
    module = check(net, X)
    assert others(module) == set()
    assert kernels(module) == {"quantize": 1, "conv": 1}


@pytest.mark.parametrize("padding", [{"mode": "reflect"}, {"mode": "constant", "value": 1.0}])
def test_other_padding_stays(padding):
    net = Net(lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1), **padding)), conv=nn.Conv2d(4, 6, 3))
    assert others(check(net, X)) != set()


@pytest.mark.parametrize("factor", [2.0, (3.0, 1.0)])
def test_nearest_upsampling_is_where_the_kernel_reads(factor):
    net = Net(lambda m, x: m.conv(F.interpolate(m.a(x), scale_factor=factor)), a=conv(), conv=conv())
    module = check(net, X)
    assert others(module) == set()
    assert [call["enlarge"] for call in calls(module, CONV)] == [
        [1, 1],
        [2, 2] if factor == 2.0 else [3, 1],
    ]


def test_upsampling_to_a_size_moves_codes():
    net = Net(lambda m, x: m.conv(F.interpolate(x, size=(9, 7))), conv=conv())
    module = check(net, X)
    assert others(module) == {"aten.upsample_nearest2d.vec"}
    (upsample,) = [n for n in module.graph_module.graph.nodes if n.target is aten.upsample_nearest2d.vec]
    assert upsample.args[0].target is QUANTIZE


def test_layers_whose_result_is_only_quantized_write_codes():
    net = Net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv())
    module = check(net, X)
    assert kernels(module) == {"quantize": 1, "conv": 2}


def test_a_network_agrees_with_the_reference():
    """Deep enough that codes flip at rounding boundaries, so agreement is measured, not exact."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    gm = qdq_graph(Shortcut(), x, T)
    expected = run(get_backend("reference").lower(gm).module, x, T)
    module = lowered(gm)
    assert sqnr_db(expected, run(module, x, T)) > 55
    assert sqnr_db(expected, run(lowered(gm, torch.float16), x, T)) > 33
    assert sqnr_db(expected, run(lowered(gm, torch.bfloat16), x, T)) > 25
    assert "aten.cat.default" not in others(module)


def test_scales_follow_the_timestep():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    network = prepared(Shortcut(), x, torch.tensor([0, 0]), calibrated=False)
    with torch.no_grad():
        network(x, torch.tensor([0, 0]))
        network(x * 20, torch.tensor([999, 999]))
    gm = convert(network.graph_module, network.qconfig)
    reference = get_backend("reference").lower(gm).module
    for sample, t in ((x, 0), (x * 20, 999), (x, 0)):
        step = torch.tensor([t, t])
        assert sqnr_db(run(reference, sample, step), run(lowered(gm), sample, step)) > 50


def test_any_batch_and_resolution():
    torch.manual_seed(0)
    gm = qdq_graph(Shortcut(), torch.randn(2, 3, 8, 8), T)
    reference, module = get_backend("reference").lower(gm).module, lowered(gm)
    for batch, size in ((1, 8), (5, 8), (2, 16), (3, 12)):
        x, t = torch.randn(batch, 3, size, size), torch.full((batch,), 500)
        assert sqnr_db(run(reference, x, t), run(module, x, t)) > 50


def test_what_it_does_not_take_runs_in_float_and_says_why():
    net = Net(lambda m, x: m.up(x[:, :, None])[:, :, 0], up=nn.ConvTranspose3d(4, 3, 1))
    (row,) = get_backend("native").lower(qdq_graph(net, X)).layers
    assert "no integer kernel for conv_transpose (aten.conv_transpose3d" in row.reason
    check(net, X)


def test_layers_in_float_meet_float32():
    """Half precision is a way to hold activations between kernels; what is not ours never sees it."""
    torch.manual_seed(0)
    net = Net(lambda m, x: m.c(F.relu(m.b(m.a(x)))), a=conv(), b=conv(), c=conv())
    gm = qdq_graph(net, X, rules=(Rule("b", quantize=False),))
    expected = run(get_backend("reference").lower(gm).module, X)
    actual = run(lowered(gm, torch.float16), X)
    assert actual.dtype == torch.float32
    assert sqnr_db(expected, actual) > 55


def test_every_layer_names_its_kernel():
    gm = qdq_graph(Shortcut(), torch.randn(2, 3, 8, 8), T)
    rows = get_backend("native").lower(gm).layers
    assert {row.kernel for row in rows} == {
        f"qdiff::{name} ({status().kernel or 'plain torch'})" for name in ("int_conv", "int_linear", "int_attention")
    }


def test_two_threads_call_one_network():
    torch.manual_seed(0)
    module = lowered(qdq_graph(Shortcut(), torch.randn(2, 3, 8, 8), T))
    inputs = [(torch.randn(2, 3, 8, 8), torch.full((2,), t)) for t in range(0, 1000, 50)]
    expected = [run(module, *each) for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda each: run(module, *each), inputs * 3))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected * 3, strict=True))
