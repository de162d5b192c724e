"""Values and sums too large for the types the native backend likes to hold them in."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_graphs import Plain, Shortcut, alike, qdq_graph, run
from torch import fx, nn

from qdiff_fx import QDiffConfig, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.backends import get_backend
from qdiff_fx.backends.native.backend import NativeOptions
from qdiff_fx.backends.native.fusion.kernels import CONV
from qdiff_fx.backends.native.fusion.limits import input_parts
from qdiff_fx.backends.native.fusion.magnitude import Magnitudes
from qdiff_fx.kernels.accumulator import MOST_WEIGHTS
from qdiff_fx.quant.numerics import sqnr_db

NATIVE, REFERENCE = get_backend("native"), get_backend("reference")


@pytest.mark.parametrize("rows", [(), (3,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_that_might_exceed_32_bits_are_made_of_parts(rows, sign):
    """As many weights, all of one size: one sum of the integer kernel would have wrapped to the other sign."""
    layer = nn.Linear(70_000, 2)
    with torch.no_grad():
        layer.weight.fill_(sign * 0.01)
    x = torch.rand(*rows, 70_000) + 1
    gm = qdq_graph(Plain(layer), x, act_range="minmax")
    lowered = NATIVE.lower(gm)
    (row,) = lowered.layers
    assert row.integer
    assert row.notes == ()  # it sums two parts, but not two layers
    assert sqnr_db(run(REFERENCE.lower(gm).module, x), run(lowered.module, x)) > 100


def test_rows_of_more_dimensions_than_an_image_stay_in_float():
    layer = nn.Linear(70_000, 1)
    with torch.no_grad():
        layer.weight.fill_(0.01)
    net = Plain(nn.Sequential(nn.Unflatten(0, (1, 1, 1, -1)), layer))
    lowered = NATIVE.lower(qdq_graph(net, torch.rand(1, 70_000) + 1))
    assert lowered.layers[0].reason.startswith("its sums may exceed 32 bits, and rows of 5 dimensions")


@pytest.mark.parametrize(
    ("layer", "size", "parts"),
    [
        (nn.Conv2d(7_400, 2, 3, padding=1), (3, 2), 2),
        (nn.Conv2d(7_400, 2, 3, padding=1, dilation=2), (3, 4), 2),
        (nn.Conv1d(23_000, 2, 3, padding=1), (3,), 2),
        (nn.Conv2d(2 * 7_400, 32, 3, groups=2), (3, 3), 4),  # both groups in one call
        (nn.ConvTranspose2d(17_000, 2, 4, stride=2, padding=1), (1, 2), 2),
    ],
    ids=["conv2d", "dilated", "conv1d", "grouped", "transposed"],
)
def test_convolutions_of_more_products_than_32_bits_hold(layer, size, parts):
    with torch.no_grad():
        layer.weight.fill_(-0.01)
    x = torch.rand(2, layer.in_channels, *size) + 1
    gm = qdq_graph(Plain(layer), x, act_range="minmax")
    lowered = NATIVE.lower(gm)
    assert lowered.layers[0].integer
    kernels = [node for node in lowered.module.graph_module.graph.nodes if node.target is CONV]
    assert {len(node.kwargs["codes"]) for node in kernels} == {parts}
    assert sqnr_db(run(REFERENCE.lower(gm).module, x), run(lowered.module, x)) > 100


def test_where_inputs_are_cut():
    """At the exact bound they are not; one weight more, and they are in the middle."""
    most = MOST_WEIGHTS // 127
    codes = torch.full((2, most + 1), 127, dtype=torch.int8)
    codes[1] = 0
    assert input_parts(codes[:, :most]) == [(0, most)]
    assert input_parts(codes) == [(0, (most + 2) // 2), ((most + 2) // 2, most + 1)]
    assert len(input_parts(codes.repeat(1, 3))) == 4


def test_as_many_weights_of_which_most_are_small_stay_on_integers():
    torch.manual_seed(0)
    layer, x = nn.Linear(70_000, 2), torch.rand(3, 70_000)
    nn.init.normal_(layer.weight)
    gm = qdq_graph(Plain(layer), x)
    lowered = NATIVE.lower(gm)
    assert lowered.layers[0].integer
    assert sqnr_db(run(REFERENCE.lower(gm).module, x), run(lowered.module, x)) > 60


class LargeInside(nn.Module):
    """A residual sum of large values between layers, made small again by a norm."""

    def __init__(self, gain: float):
        super().__init__()
        self.conv_in, self.conv, self.conv_out = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.norm = nn.GroupNorm(2, 4)
        with torch.no_grad():
            self.conv_in.weight.mul_(gain)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.conv_in(x + t[:, None, None, None] / 1000)
        return self.conv_out(nn.functional.silu(self.norm(h + self.conv(h))))


X, T = torch.linspace(-2, 3, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8), torch.tensor([500.0, 500.0])


def large_inside(gain: float):
    torch.manual_seed(0)
    example = {"x": X, "t": T}
    network = prepare_qdiff(LargeInside(gain).eval(), QDiffConfig(**alike({})), example)
    with torch.no_grad():
        network(X, T)
    return convert_qdiff(network, "native")


def types_between_kernels(quantized):
    """What each convolution writes that another kernel reads, in execution order."""
    calls = [node for node in quantized._run[0].graph_module.graph.nodes if node.target is CONV]
    return [node.kwargs["out_dtype"] for node in calls]


def test_values_that_float16_does_not_hold_are_handed_on_in_float32(tmp_path):
    """Activations of 4.6e5: in float16 they were infinite, and the result a picture of nothing."""
    quantized = large_inside(1e6)
    expected = quantized.with_backend("reference")(X, T)
    assert sqnr_db(expected, quantized(X, T)) > 45
    assert torch.float16 not in types_between_kernels(quantized)
    save_qdiff(quantized, tmp_path / "saved")
    loaded = load_qdiff(tmp_path / "saved", "native")
    assert torch.equal(loaded(X, T), quantized(X, T))


def test_values_that_calibration_has_not_seen_fit_too():
    """A thousand times the noise: the inputs of layers are clipped, and what is handed on is bounded by that."""
    for gain in (1e4, 1e6):
        quantized = large_inside(gain)
        result = quantized(1000 * X, T)
        assert result.isfinite().all()
        assert sqnr_db(quantized.with_backend("reference")(1000 * X, T), result) > 40


def test_usual_values_stay_in_float16():
    quantized = large_inside(1.0)
    assert types_between_kernels(quantized)[:-1] == [torch.float16] * 2
    assert sqnr_db(quantized.with_backend("reference")(X, T), quantized(X, T)) > 40


class Bounded(fx.Interpreter):
    """Runs a lowered graph and looks whether every float lies within its bound."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.magnitudes, self.checked = Magnitudes(module), 0

    def run_node(self, n: fx.Node):
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and result.is_floating_point() and n.op == "call_function":
            found, most = result.abs().max().item(), self.magnitudes.of(n)
            assert found <= most, f"{n.format_node()} reaches {found}, beyond {most}"
            self.checked += most < math.inf
        return result


@pytest.mark.parametrize("size", [1, 1e4])
def test_no_value_exceeds_its_bound(size):
    """Of a network with a split shortcut, attention and a time embedding, whatever comes in."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)
    gm = qdq_graph(Shortcut(), images, T)
    module = NATIVE.lower(gm, NativeOptions(reuse=False)).module.graph_module
    bounded = Bounded(module)
    with torch.no_grad():
        bounded.run(size * images, T)
    assert bounded.checked >= 8


def bound_of(build) -> float:
    """Of what `build(graph, x, w)` returns; x is any tensor, w a weight [2, 3] whose larger row sums to 6."""
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.get_attr("w")
    made = build(lambda target, *args: graph.call_function(target, args), x, w)
    graph.output(made)
    return Magnitudes(fx.GraphModule({"w": torch.tensor([[1.0, -2.0, 3.0], [1.0, 1.0, 1.0]])}, graph)).of(made)


ATEN = torch.ops.aten


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda call, x, w: call(ATEN.sin.default, x), 1.0),
        (lambda call, x, w: call(ATEN.exp.default, x), math.inf),
        (lambda call, x, w: call(ATEN.linear.default, call(ATEN.sigmoid.default, x), w), 6.0),
        (lambda call, x, w: call(ATEN.linear.default, w, x), math.inf),  # by a weight that is computed
        (lambda call, x, w: call(ATEN.embedding.default, w, x), 3.0),
        (lambda call, x, w: call(ATEN.constant_pad_nd.default, w, [1, 1], -7.0), 7.0),
        (lambda call, x, w: call(ATEN.mul.Tensor, x, 0.0), 0.0),
        (lambda call, x, w: call(ATEN.div.Tensor, w, -2.0), 1.5),
        (lambda call, x, w: call(ATEN.div.Tensor, w, 0.0), math.inf),
        (lambda call, x, w: call(ATEN.cat.default, [w, call(ATEN.div.Tensor, w, x)]), math.inf),
    ],
)
def test_bounds_of_calls_small_enough_to_check_by_hand(build, expected):
    assert bound_of(build) == expected
