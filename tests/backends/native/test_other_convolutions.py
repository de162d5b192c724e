"""Transposed and grouped convolutions, and those of volumes: that they run on integers and compute what they should."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_graphs import Plain, prepared, qdq_graph, run
from torch import fx, nn

from examples import examples
from qdiff_fx import QDiffConfig, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.backends import get_backend
from qdiff_fx.backends.common.geometry import Axis
from qdiff_fx.backends.native.backend import NativeOptions
from qdiff_fx.backends.native.fusion.kernels import CONV, DEPTHWISE
from qdiff_fx.backends.native.fusion.supported import MOST_WASTE
from qdiff_fx.backends.native.fusion.weight_forms import OfGroups, Phases
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.quantize.convert import convert

aten = torch.ops.aten
NATIVE, REFERENCE = get_backend("native"), get_backend("reference")
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_CONVS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
IN_TORCH = {1: (F.conv1d, F.conv_transpose1d), 2: (F.conv2d, F.conv_transpose2d)}


def lower(net: nn.Module, *inputs: torch.Tensor, **config):
    """The lowered module, which computes what the reference does, and its rows."""
    gm = qdq_graph(net, *inputs, **config)
    lowered = NATIVE.lower(gm, NativeOptions(torch.float32, reuse=False))
    expected = run(REFERENCE.lower(gm).module, *inputs)
    actual = run(lowered.module, *inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    return lowered.module, lowered.layers


def convs(module) -> list[dict]:
    return [dict(node.kwargs) for node in module.graph_module.graph.nodes if node.target is CONV]


@st.composite
def axes(draw) -> Axis:
    """Of a transposed convolution that makes at least one place of one."""
    kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 2))
    reach = dilation * (kernel - 1) + 1
    padding = draw(st.integers(0, min(kernel, (reach - 1) // 2)))
    return Axis(kernel, stride, padding, draw(st.integers(0, max(stride, dilation) - 1)), dilation)


def options(found: list[Axis]) -> dict[str, tuple[int, ...]]:
    names = {"stride": "stride", "padding": "padding", "output_padding": "extra", "dilation": "dilation"}
    return {name: tuple(getattr(axis, field) for axis in found) for name, field in names.items()}


@pytest.mark.parametrize("dims", [1, 2])
@given(st.data())
@examples(60)
def test_phases_are_the_transposed_convolution(dims, data):
    """Exactly, with the largest codes there are, and where there are more phases than taps."""
    found = [data.draw(axes()) for _ in range(dims)]
    phases = Phases(tuple(found))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    inputs, outputs = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    size = [data.draw(st.integers(1, 5)) for _ in range(dims)]
    x = torch.tensor([0.0, 255.0, 128.0]).double()[torch.randint(3, (2, inputs, *size))]
    weight = torch.tensor([-128, 127, 3], dtype=torch.int8)[
        torch.randint(3, (inputs, outputs, *(axis.kernel for axis in found)))
    ]
    conv, transposed = IN_TORCH[dims]
    arranged, scales = phases.arrange(weight, torch.arange(outputs).float())
    pads = [tuple(phases.padding[2 * dim : 2 * dim + 2]) for dim in range(dims)]
    padded = F.pad(x, [side for pad in reversed(pads) for side in pad])
    made = conv(padded, arranged.double()).unflatten(1, (*phases.strides, outputs))
    expected = transposed(x, weight.double(), **options(found))
    assert scales.tolist() == list(range(outputs)) * phases.count
    for phase in itertools.product(*map(range, phases.strides)):
        places = tuple(slice(first, None, step) for first, step in zip(phase, phases.strides, strict=True))
        wanted = expected[(..., *places)]
        assert torch.equal(made[(slice(None), *phase)][(..., *map(slice, wanted.shape[2:]))], wanted)


@pytest.mark.parametrize("dims", [1, 2])
@given(st.data())
@examples(25)
def test_a_transposed_convolution_agrees_with_the_reference(dims, data):
    found = [data.draw(axes()) for _ in range(dims)]
    torch.manual_seed(data.draw(st.integers(0, 100)))
    layer = TRANSPOSED_CONVS[dims](
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 33)),
        tuple(axis.kernel for axis in found),
        **options(found),
        bias=data.draw(st.booleans()),
    )
    x = torch.randn(2, layer.in_channels, *(6, 5)[:dims]) + data.draw(st.sampled_from([0.0, 2.0]))
    bits = {"weight_bits": data.draw(st.integers(2, 8)), "act_bits": data.draw(st.integers(4, 8))}
    module, (row,) = lower(Plain(layer), x, **bits)
    waste = Phases(tuple(found)).waste
    assert row.integer == (waste <= MOST_WASTE)
    assert len(convs(module)) == row.integer
    assert row.integer or row.reason == f"as an integer convolution it would multiply {waste:.3g} times as often: " + (
        "float is faster"
    )


class UpAndDown(nn.Module):
    """A transposed convolution whose result the next layer quantizes."""

    def __init__(self, dims: int):
        super().__init__()
        self.up = TRANSPOSED_CONVS[dims](4, 6, 4, stride=2, padding=1)
        self.down = CONVS[dims](6, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x))


@pytest.mark.parametrize("dims", [1, 2])
def test_codes_are_moved_between_layers_at_any_size(dims):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *(6, 5)[:dims])
    module, rows = lower(UpAndDown(dims), x)
    assert all(row.integer for row in rows)
    assert [conv["out_dtype"] for conv in convs(module)] == [torch.uint8, torch.float32]
    gm = qdq_graph(UpAndDown(dims), x)
    lowered, reference = NATIVE.lower(gm, NativeOptions(torch.float32)).module, REFERENCE.lower(gm).module
    for batch, size in ((1, 6), (3, 8), (2, 5)):
        other = torch.randn(batch, 4, *(size, 6)[:dims])
        torch.testing.assert_close(run(lowered, other), run(reference, other), rtol=1e-4, atol=1e-4)


@given(st.data())
@examples(25)
def test_a_grouped_convolution_agrees_with_the_reference(data):
    dims, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 5))
    inputs, outputs = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([16, 17, 20, 40, 64, 70]))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    layer = CONVS[dims](
        inputs * groups,
        outputs * groups,
        data.draw(st.sampled_from([1, 3])),
        groups=groups,
        stride=data.draw(st.integers(1, 2)),
        padding=data.draw(st.integers(0, 2)),
        dilation=data.draw(st.integers(1, 2)),
        bias=data.draw(st.booleans()),
    )
    x = torch.randn(2, layer.in_channels, *(9, 8)[:dims]) + data.draw(st.sampled_from([0.0, 2.0]))
    bits = {"weight_bits": data.draw(st.integers(2, 8)), "act_bits": data.draw(st.integers(4, 8))}
    module, (row,) = lower(Plain(layer), x, **bits)
    assert row.integer
    assert len(convs(module)) == -(-groups // max(1, 64 // outputs))


@given(st.data())
@examples(25)
def test_a_convolution_of_every_channel_by_itself_agrees_with_the_reference(data):
    dims, channels = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([2, 7, 16, 33, 64, 70, 130]))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    layer = CONVS[dims](
        channels,
        channels,
        data.draw(st.sampled_from([1, 3, 5])),
        groups=channels,
        stride=data.draw(st.integers(1, 2)),
        padding=data.draw(st.integers(0, 3)),
        dilation=data.draw(st.integers(1, 2)),
        bias=data.draw(st.booleans()),
    )
    x = torch.randn(2, channels, *(9, 10)[:dims]) + data.draw(st.sampled_from([0.0, 2.0]))
    bits = {"weight_bits": data.draw(st.integers(2, 8)), "act_bits": data.draw(st.integers(4, 8))}
    module, (row,) = lower(Plain(layer), x, **bits)
    assert row.integer
    assert len(module.graph_module.graph.find_nodes(op="call_function", target=DEPTHWISE)) == 1


def test_a_kernel_of_one_tap_keeps_its_weight_when_codes_are_released():
    torch.manual_seed(0)
    x = torch.randn(2, 33, 9, 10)
    gm = qdq_graph(Plain(nn.Conv2d(33, 33, 1, groups=33)), x)
    expected = run(REFERENCE.lower(gm).module, x)
    module = NATIVE.lower(gm, NativeOptions(torch.float32, reuse=False), release=True).module
    assert all(buffer.untyped_storage().nbytes() > 0 for buffer in module.graph_module.buffers())  # a read would crash
    torch.testing.assert_close(run(module, x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


class Separable(nn.Module):
    """A residual, SiLU and the next quantizer behind convolutions of every channel by itself."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(20, 20, 3, padding=1, groups=20) for _ in range(2))
        self.point = nn.Conv2d(20, 20, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(x) + self.point(F.silu(self.first(x)))


def test_what_lies_behind_is_fused_into_it():
    torch.manual_seed(0)
    module, rows = lower(Separable(), torch.randn(2, 20, 7, 6))
    kernels = module.graph_module.graph.find_nodes(op="call_function", target=DEPTHWISE)
    assert (Activation.SILU, torch.uint8) in [(each.kwargs["activation"], each.kwargs["out_dtype"]) for each in kernels]
    assert "its kernel also does: silu, quantizes its result" in {note for row in rows for note in row.notes}


def test_groups_are_the_grouped_convolution():
    """Exactly, with the largest codes there are."""
    x = torch.tensor([0.0, 255.0]).double()[torch.randint(2, (2, 12, 5, 4))]
    weight = torch.tensor([-128, 127], dtype=torch.int8)[torch.randint(2, (15, 4, 3, 3))]
    scales = torch.arange(15).float()
    expected = F.conv2d(x, weight.double(), groups=3)
    for first, count in ((0, 1), (0, 2), (1, 2), (0, 3)):
        codes, kept = OfGroups(first, count, 3).arrange(weight, scales)
        made = F.conv2d(x[:, 4 * first : 4 * (first + count)], codes.double())
        assert torch.equal(made, expected[:, 5 * first : 5 * (first + count)])
        assert torch.equal(kept, scales[5 * first : 5 * (first + count)])


def test_small_groups_stay_in_float():
    layer = nn.Conv2d(45, 45, 3, groups=3)
    _, (row,) = lower(Plain(layer), torch.randn(1, 45, 6, 6))
    assert row.reason == "a grouped convolution with groups of 15 output channels is faster in float"


@st.composite
def still_or_moving(draw) -> dict[str, int]:
    """What a convolution of volumes does along one dimension: nothing, or something."""
    if draw(st.booleans()):
        return {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    names = {"kernel_size": (1, 3), "stride": (1, 2), "padding": (0, 2), "dilation": (1, 2)}
    return {name: draw(st.integers(*ends)) for name, ends in names.items()}


@given(st.data())
@examples(20)
def test_a_convolution_of_volumes_agrees_with_the_reference(data):
    drawn = [data.draw(still_or_moving()) for _ in range(3)]
    options = {name: tuple(each[name] for each in drawn) for name in drawn[0]}
    torch.manual_seed(data.draw(st.integers(0, 100)))
    inputs, outputs = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 33))
    layer = nn.Conv3d(inputs, outputs, **options, bias=data.draw(st.booleans()))
    x = torch.randn(2, inputs, 6, 5, 7) + data.draw(st.sampled_from([0.0, 2.0]))
    bits = {"weight_bits": data.draw(st.integers(2, 8)), "act_bits": data.draw(st.integers(4, 8))}
    module, (row,) = lower(Plain(layer), x, **bits)
    assert row.integer
    assert len(convs(module)) == 1


class Volumes(nn.Module):
    """Convolutions along time, of frames, and of both, whose zero-points go by the timestep."""

    def __init__(self):
        super().__init__()
        self.frames = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
        self.volume = nn.Conv3d(8, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.volume(F.silu(self.time(self.frames(x + t[:, None, None, None, None] / 500))))


def test_volumes_of_any_size_at_any_timestep():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, 5)
    network = prepared(Volumes(), x, torch.tensor([0, 0]), calibrated=False)
    with torch.no_grad():
        network(x, torch.tensor([0, 0]))
        network(x * 20, torch.tensor([999, 999]))
    gm = convert(network.graph_module, network.qconfig)
    lowered = NATIVE.lower(gm, NativeOptions(torch.float32))
    assert all(row.integer for row in lowered.layers)
    (padded,) = lowered.module.graph_module.graph.find_nodes(op="call_function", target=aten.constant_pad_nd.default)
    assert isinstance(padded.args[2], fx.Node)  # frames of zeros are frames of the zero-point of the step
    reference = REFERENCE.lower(gm).module
    for shape, t in (((2, 3, 4, 6, 5), 0), ((1, 3, 7, 4, 4), 999), ((3, 3, 1, 6, 6), 999)):
        other, step = torch.randn(shape) * (1 + t / 50), torch.full((shape[0],), t)
        torch.testing.assert_close(run(lowered.module, other, step), run(reference, other, step), rtol=1e-4, atol=1e-3)


def test_a_loaded_network_takes_volumes_of_any_size(tmp_path):
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 4, 6, 5), torch.tensor([0, 0])
    network = prepare_qdiff(Volumes().eval(), QDiffConfig(edge_weight_bits=2, sample_act_bits=8), {"x": x, "t": t})
    with torch.no_grad():
        network(x, t)
    quantized = convert_qdiff(network, "native")
    save_qdiff(quantized, tmp_path / "saved")
    loaded = load_qdiff(tmp_path / "saved", "native")
    for shape in ((2, 3, 4, 6, 5), (1, 3, 7, 4, 4), (3, 3, 1, 6, 6)):
        other, step = torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)
        assert torch.equal(loaded(other, step), quantized(other, step))


def test_grouped_convolutions_of_volumes_stay_in_float():
    _, (row,) = lower(Plain(nn.Conv3d(4, 32, 3, groups=2)), torch.randn(1, 4, 5, 5, 5))
    assert row.reason == "grouped convolutions of volumes have no integer kernel"


def test_a_window_of_too_many_taps_stays_in_float():
    _, (row,) = lower(Plain(nn.Conv1d(1, 1, 1025)), torch.randn(1, 1, 1030))
    assert row.reason == "its kernel has 1025 taps, more than 1024"
