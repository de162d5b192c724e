"""The torch.ao engines against the reference that quantizes layer outputs as they do.

Layers are compared one by one, on the inputs the reference gives them: across a deep network one code that rounds
the other way becomes many, so two correct implementations drift apart by as much as quantization itself costs.
"""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st
from tiny_graphs import alike
from torch import fx, nn

from examples import examples
from qdiff_fx.backends import BackendOptions, get_backend
from qdiff_fx.backends.common.base import activation_of, weight_of
from qdiff_fx.backends.common.reduced_range import reduce_range
from qdiff_fx.backends.reference import ReferenceOptions
from qdiff_fx.backends.torch_ao.backend import TorchAOBackend, TorchAOOptions
from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.ir.annotations import drop, exported_module, put, set_path
from qdiff_fx.ir.edit import clean, get_attr_tensor
from qdiff_fx.ir.facts import Input, QuantizedLayer, StaticQParams, layer_info, quantized_layers
from qdiff_fx.passes.canonicalize.canonicalize import Canonicalize
from qdiff_fx.passes.framework import run_passes
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.passes.quantize.convert import convert
from qdiff_fx.passes.quantize.insert_observers import InsertObservers
from qdiff_fx.passes.split_shortcut.split_shortcut import SplitShortcut
from qdiff_fx.quant.numerics import sqnr_db

qd, qdiff = torch.ops.quantized_decomposed, torch.ops.qdiff
nnq = torch.ao.nn.quantized
QUANTIZED_MODULES = (nnq.Conv1d, nnq.Conv2d, nnq.Conv3d, nnq.ConvTranspose1d, nnq.ConvTranspose2d, nnq.Linear)
AS_TORCH_AO = ReferenceOptions(output_quantizers=True)
ENGINES = torch.backends.quantized.supported_engines
needs_x86 = pytest.mark.skipif("x86" not in ENGINES, reason="this build of torch has no x86 engine")
needs_qnnpack = pytest.mark.skipif("qnnpack" not in ENGINES, reason="this build of torch has no qnnpack engine")
# QNNPACK rounds the bias to a multiple of input scale times weight scale, so near ties it may go the other way.
FLIPPED_CODES = {"x86": 1e-3, "qnnpack": 1e-2}
A_FEW = 3


@pytest.fixture(params=[pytest.param("x86", marks=needs_x86), pytest.param("qnnpack", marks=needs_qnnpack)])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def quantized_graph(net: nn.Module, *inputs: torch.Tensor, **config) -> fx.GraphModule:
    """The q/dq graph of ``net``, calibrated on ``inputs``; dimension 0 of each input is the batch."""
    defaults = {"split": "off", "weight_range": "max", "act_range": "minmax"}
    chosen = QDiffConfig(**alike(defaults | config))
    gm = _export(net, *inputs)
    run_passes(
        gm, [Canonicalize(), SplitShortcut(chosen.split), Annotate(chosen), InsertObservers(chosen, outputs=True)]
    )
    with torch.no_grad():
        gm(*inputs)
    gm = convert(gm, chosen)
    if "x86" in ENGINES and get_backend("x86").saturates():
        reduce_range(gm, quantized_layers(gm))
    return clean(gm)


def _export(net: nn.Module, *inputs: torch.Tensor) -> fx.GraphModule:
    shapes = tuple({0: torch.export.Dim("batch", max=63)} for _ in inputs)
    gm = torch.export.export(net.eval(), inputs, dynamic_shapes=shapes, strict=False).module()
    for node in list(gm.graph.nodes):
        if node.op == "call_module":
            gm.graph.erase_node(node)
        set_path(node, exported_module(node))
        if node.op == "placeholder" and node.target == "t":
            put(node, Input("timestep"))
    gm.graph.set_codegen(fx.graph.CodeGen())
    return clean(gm)


def lowered(gm: fx.GraphModule, backend: str, options: BackendOptions | None = None) -> nn.Module:
    return get_backend(backend).lower(gm, options).module


def run(module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result = module(*inputs)
    return result[0] if isinstance(result, tuple) else result


def converted_modules(module: nn.Module) -> list[nn.Module]:
    """The torch.ao modules of a lowered network, in execution order."""
    gm = module.graph_module
    return [gm.get_submodule(node.target) for node in gm.graph.nodes if node.op == "call_module"]


class _Recorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule):
        super().__init__(gm)
        self.values: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, node: fx.Node):
        self.values[node] = super().run_node(node)
        return self.values[node]


def integer_layers(gm: fx.GraphModule, engine: str) -> list[fx.Node]:
    """The weight layers of a q/dq graph that the engine takes."""
    layers = [node for node in quantized_layers(gm) if layer_info(node).kind != "attention"]
    return [node for node in layers if not get_backend(engine).supports(node)]


def code_differences(gm: fx.GraphModule, engine: str, *inputs: torch.Tensor) -> Iterator[torch.Tensor]:
    """|code of torch.ao - code of the reference| of every layer's output, both on the reference's input codes."""
    reference = lowered(gm, "reference", AS_TORCH_AO)
    recorder = _Recorder(reference)
    with torch.no_grad():
        recorder.run(*inputs)
    layers = integer_layers(reference, engine)
    for layer, module in zip(layers, converted_modules(lowered(gm, engine)), strict=True):
        codes, scale, zero_point = activation_of(layer).args[:3]
        quantized = torch._make_per_tensor_quantized_tensor(recorder.values[codes], scale, zero_point)
        expected = next(user for user in layer.users if user.target is qd.quantize_per_tensor.default)
        yield (module(quantized).int_repr().int() - recorder.values[expected].int()).abs()


def assert_layers_agree(gm: fx.GraphModule, engine: str, *inputs: torch.Tensor) -> None:
    differences = [difference.flatten() for difference in code_differences(gm, engine, *inputs)]
    assert differences
    together = torch.cat(differences)
    assert together.max() <= 1
    assert (together > 0).sum() <= A_FEW + FLIPPED_CODES[engine] * together.numel()


class Attention(nn.Module):
    def __init__(self, channels: int = 16, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        tokens = x.view(batch, channels, height * width).transpose(1, 2)
        q, k, v = (
            project(tokens).view(batch, -1, self.heads, channels // self.heads).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
        return self.out(mixed).transpose(1, 2).reshape(batch, channels, height, width)


class Concat(nn.Module):
    """A shortcut: two tensors of very different size go through one convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.shortcut = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(11, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(torch.cat([self.first(x), 30 * x], dim=1))


class TwoReaders(nn.Module):
    """Two layers of one tensor."""

    def __init__(self):
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.coarse(x) + self.fine(x)


class SmallUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.norm, self.attention = nn.GroupNorm(4, 16), Attention()
        self.up = nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1)
        self.last = nn.Conv2d(32, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = F.silu(self.first(x))
        low = self.down(high)
        low = low + self.attention(self.norm(low))
        return self.last(torch.cat([self.up(low), high], dim=1))


IMAGE = (2, 4, 7, 6)
# Built in the test, under its seed.
LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 8, 3, padding=1), IMAGE),
    "strided": (lambda: nn.Conv2d(4, 8, 3, stride=(2, 1), padding=(0, 2)), IMAGE),
    "dilated": (lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2), IMAGE),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2), IMAGE),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE),
    "odd channels, no bias": (lambda: nn.Conv2d(4, 5, 1, bias=False), IMAGE),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1), (2, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 3, padding=1), (2, 4, 5, 4, 3)),
    "linear": (lambda: nn.Linear(12, 7), (2, 12)),
    "linear on tokens": (lambda: nn.Linear(12, 7, bias=False), (2, 5, 12)),
    "in a row": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)), IMAGE),
    "attention": (Attention, (2, 16, 3, 3)),
    "concat": (Concat, (2, 3, 6, 6)),
    "two readers": (TwoReaders, (2, 3, 6, 6)),
    "unet": (SmallUNet, (2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_give_the_codes_of_the_reference(name, engine):
    build, shape = LAYERS[name]
    gm = quantized_graph(build(), torch.randn(shape))
    assert_layers_agree(gm, engine, 1.5 * torch.randn(16, *shape[1:]))


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_modules_hold_exactly_our_codes_and_scales(engine, weight_bits):
    gm = quantized_graph(SmallUNet(), torch.randn(2, 3, 8, 8), weight_bits=weight_bits)
    layers, modules = integer_layers(gm, engine), converted_modules(lowered(gm, engine))
    assert len(layers) == (8 if engine == "qnnpack" else 7)  # see test_x86_refuses_transposed_convolutions
    for layer, module in zip(layers, modules, strict=True):
        codes, scales, _, axis = weight_of(layer).args[:4]
        assert type(module) in QUANTIZED_MODULES
        assert torch.equal(module.weight().int_repr(), get_attr_tensor(gm, codes))
        assert torch.equal(module.weight().q_per_channel_scales().float(), get_attr_tensor(gm, scales))
        assert module.weight().q_per_channel_axis() == axis
        output = layer_info(layer).output
        assert (module.scale, module.zero_point) == (output.scale[0], output.zero_point[0])


def test_only_our_layers_are_quantized(engine):
    gm = quantized_graph(SmallUNet(), torch.randn(2, 3, 8, 8))
    graph = lowered(gm, engine).graph_module.graph
    quantize = [node for node in graph.nodes if node.target is torch.quantize_per_tensor]
    modules = [node for node in graph.nodes if node.op == "call_module"]
    inputs = {activation_of(layer) for layer in integer_layers(gm, engine)}
    assert len(quantize) == len(inputs)
    assert {user for node in quantize for user in node.users} == set(modules)
    assert {user.target for node in modules for user in node.users} == {"dequantize"}


def test_calibrated_input_parameters_are_used(engine):
    x = torch.randn(2, 4, 7, 6)
    gm = quantized_graph(nn.Conv2d(4, 8, 3), x)
    (layer,) = quantized_layers(gm)
    low = lowered(gm, engine).graph_module
    (quantize,) = (node for node in low.graph.nodes if node.target is torch.quantize_per_tensor)
    scale, zero_point = (getattr(low, node.target).item() for node in quantize.args[1:3])
    assert (scale, zero_point) == tuple(activation_of(layer).args[1:3])


# hypothesis runs the examples of one call of the fixture, which holds nothing but the name.
# The same examples every time: once in some runs torch's own x86 convolution ended the process on a drawn one, inside
# its kernel, and an example that kills its process is not replayed.
@examples(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_convolution_agrees_to_one_code(engine, data):
    dims = data.draw(st.sampled_from([1, 2]))
    groups = data.draw(st.integers(1, 3))
    channels, outputs = (groups * data.draw(st.integers(1, 5)) for _ in range(2))
    kernel, stride, dilation = (data.draw(st.integers(1, 3)) for _ in range(3))
    padding = data.draw(st.integers(0, 2))
    size = data.draw(st.integers(1, 9))
    assume(size + 2 * padding > dilation * (kernel - 1))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    torch.manual_seed(data.draw(st.integers(0, 1000)))  # so that an example fails again when it is replayed
    conv = (nn.Conv1d, nn.Conv2d)[dims - 1](channels, outputs, kernel, **options, bias=data.draw(st.booleans()))
    x = torch.randn(2, channels, *[size] * dims)
    gm = quantized_graph(conv, x, weight_bits=data.draw(st.integers(2, 8)), act_bits=data.draw(st.integers(4, 8)))
    (layer,) = quantized_layers(gm)
    expected = run(lowered(gm, "reference", AS_TORCH_AO), 1.5 * x)
    actual = run(lowered(gm, engine), 1.5 * x)
    one_code = 1.001 * layer_info(layer).output.scale[0]
    assert (actual - expected).abs().max() <= one_code + _bias_rounding(gm, layer, engine)


def _bias_rounding(gm: fx.GraphModule, layer: fx.Node, engine: str) -> float:
    """QNNPACK keeps the bias as a multiple of input scale times weight scale, which is coarse at few weight bits."""
    weight_scales = get_attr_tensor(gm, weight_of(layer).args[1])
    return 0.5 * activation_of(layer).args[1] * weight_scales.max().item() if engine == "qnnpack" else 0.0


@pytest.mark.parametrize("act_bits", [4, 7])
def test_narrow_activations_are_clipped_to_their_codes(engine, act_bits):
    x = torch.randn(2, 4, 7, 6)
    gm = quantized_graph(nn.Conv2d(4, 8, 3, padding=1), x, act_bits=act_bits)
    (layer,) = quantized_layers(gm)
    expected, actual = run(lowered(gm, "reference", AS_TORCH_AO), 20 * x), run(lowered(gm, engine), 20 * x)
    assert (actual - expected).abs().max() <= 1.001 * layer_info(layer).output.scale[0]


def test_readers_of_one_tensor_keep_their_own_quantizers(engine):
    x = torch.randn(2, 3, 6, 6)
    gm = quantized_graph(TwoReaders(), x, rules=(Rule("coarse", act_bits=4),))
    scales = {layer_info(node).path: activation_of(node).args[1] for node in quantized_layers(gm)}
    assert scales["coarse"] > 8 * scales["fine"]
    expected, actual = run(lowered(gm, "reference", AS_TORCH_AO), x), run(lowered(gm, engine), x)
    step = max(layer_info(node).output.scale[0] for node in quantized_layers(gm))
    assert (actual - expected).abs().max() <= 2.002 * step


def test_readers_of_one_quantized_tensor_share_it(engine):
    gm = lowered(quantized_graph(TwoReaders(), torch.randn(2, 3, 6, 6)), engine).graph_module
    assert sum(node.target is torch.quantize_per_tensor for node in gm.graph.nodes) == 1


def test_a_split_shortcut_becomes_two_layers(engine):
    x = torch.randn(2, 3, 6, 6)
    gm = quantized_graph(Concat(), x, split="shortcut")
    assert [row.info.path for row in get_backend(engine).lower(gm).layers] == [
        "first",
        "shortcut[0:8]",
        "shortcut[8:11]",
    ]
    assert_layers_agree(gm, engine, x)


def test_attention_stays_on_integers(engine):
    x = torch.randn(2, 16, 3, 3)
    gm = quantized_graph(Attention(), x)
    result = get_backend(engine).lower(gm)
    (row,) = (row for row in result.layers if row.info.kind == "attention")
    assert row.integer
    assert any(n.target is qdiff.int_attention_vnni.default for n in result.module.graph_module.graph.nodes)
    expected = run(lowered(gm, "reference", AS_TORCH_AO), x)
    assert sqnr_db(expected, run(result.module, x)) > 35


@needs_x86
def test_x86_refuses_transposed_convolutions_and_runs_them_in_float():
    net, x = nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1), torch.randn(2, 4, 5, 5)
    gm = quantized_graph(net, x)
    result = get_backend("x86").lower(gm)
    assert [row.reason for row in result.layers] == [
        "torch.ao's x86 engine has no transposed convolution with one weight scale per channel"
    ]
    torch.testing.assert_close(run(result.module, x), run(lowered(gm, "reference"), x))


@needs_qnnpack
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, output_padding=1), (2, 4, 9)),
        (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 4)),
        (lambda: nn.ConvTranspose2d(4, 6, (3, 2), padding=1, dilation=2, bias=False), (2, 4, 5, 6)),
    ],
)
def test_qnnpack_takes_transposed_convolutions(build, shape):
    gm = quantized_graph(build(), torch.randn(shape))
    assert_layers_agree(gm, "qnnpack", torch.randn(16, *shape[1:]))


@needs_qnnpack
def test_qnnpack_refuses_3d_transposed_convolutions():
    gm = quantized_graph(nn.ConvTranspose3d(2, 3, 2), torch.randn(2, 2, 3, 3, 3))
    assert "3-d transposed" in get_backend("qnnpack").supports(quantized_layers(gm)[0])


@needs_qnnpack
def test_qnnpack_refuses_a_bias_that_32_bits_do_not_hold():
    net, x = nn.Conv2d(4, 3, 3), torch.randn(2, 4, 6, 6)
    net.weight.data[1] *= 1e-9
    net.bias.data[1] = 1.0
    gm = quantized_graph(net, x)
    result = get_backend("qnnpack").lower(gm)
    assert [row.reason for row in result.layers] == [
        "qnnpack's 32-bit sums may overflow: a bias or weight is large for its scale"
    ]
    torch.testing.assert_close(run(result.module, x), run(lowered(gm, "reference"), x))
    if "x86" in ENGINES:
        assert_layers_agree(gm, "x86", x)


@needs_x86
@pytest.mark.parametrize(("weight_bits", "refused"), [(8, True), (7, False)])
def test_x86_refuses_many_groups_of_8_bit_weights(weight_bits, refused):
    """FBGEMM's depthwise kernel adds pairs of products in 16 bits: 2 * 255 * 127 saturates, 2 * 255 * 64 does not."""
    net, x = nn.Conv2d(104, 104, 3, padding=1, groups=104), torch.randn(1, 104, 5, 5).clamp(-1, 3)
    gm = quantized_graph(net, x.expand(2, -1, -1, -1).clone(), weight_bits=weight_bits)
    reason = get_backend("x86").supports(quantized_layers(gm)[0])
    assert ("16 bits" in reason) == refused
    if not refused:
        assert_layers_agree(gm, "x86", x)


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.conv(x * (1 + t)[:, None, None, None])))


def test_tables_of_scales_give_way_to_the_scale_over_all_timesteps(engine):
    x, t = torch.randn(2, 3, 6, 6), torch.tensor([3.0, 900.0])
    gm = quantized_graph(Timed(), x, t, act_granularity="timestep")
    result = get_backend(engine).lower(gm)
    assert all(row.integer for row in result.layers)
    assert_layers_agree(gm, engine, x, t)


def test_a_table_without_a_scale_over_all_timesteps_runs_in_float(engine):
    x, t = torch.randn(2, 3, 6, 6), torch.tensor([3.0, 900.0])
    gm = quantized_graph(Timed(), x, t, act_granularity="timestep")
    for node in gm.graph.nodes:
        drop(node, StaticQParams)
    result = get_backend(engine).lower(gm)
    reason = 'per-timestep scales are not supported by torch.ao; convert with act_granularity="tensor"'
    assert [row.reason for row in result.layers] == [reason, reason]
    same = torch.full_like(t, 900.0)
    torch.testing.assert_close(run(result.module, x, same), run(lowered(gm, "reference"), x, same))


def test_a_layer_without_measured_output_is_refused(engine):
    gm = quantized_graph(nn.Conv2d(4, 8, 3), torch.randn(2, 4, 6, 6))
    (layer,) = quantized_layers(gm)
    put(layer, QuantizedLayer(replace(layer_info(layer), output=None)))
    assert get_backend(engine).supports(layer) == "the range of its output was not measured"


def test_layers_kept_in_float_keep_their_reason(engine):
    x = torch.randn(2, 3, 6, 6)
    gm = quantized_graph(TwoReaders(), x, rules=(Rule("coarse", quantize=False),))
    rows = {row.info.path: row for row in get_backend(engine).lower(gm).layers}
    assert rows["coarse"].kernel == "float"
    assert "rule" in rows["coarse"].reason
    assert rows["fine"].kernel == f"quantized::conv2d ({engine})"
    assert rows["fine"].weight_scale[0] > 0
    assert rows["fine"].act_scale[0] == activation_of(quantized_layers(gm)[1]).args[1]


def test_batch_and_layout_may_change(engine):
    x = torch.randn(2, 3, 8, 8)
    gm = quantized_graph(SmallUNet(), x)
    low = lowered(gm, engine)
    whole = run(low, torch.cat([x, x[:1]]))
    assert whole.shape == (3, 3, 8, 8)
    torch.testing.assert_close(whole[:2], run(low, x))
    torch.testing.assert_close(run(low, x.to(memory_format=torch.channels_last)), run(low, x))


def test_nothing_is_changed_but_the_result(engine):
    gm = quantized_graph(SmallUNet(), torch.randn(2, 3, 8, 8))
    code, tensors = gm.code, {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low = lowered(gm, engine)
        run(low, torch.randn(2, 3, 8, 8))
    assert torch.backends.quantized.engine == before
    assert gm.code == code
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in gm.state_dict().items())
    gm.recompile()
    assert gm.code == code


def test_the_engine_is_restored_after_a_failure(engine, monkeypatch):
    gm = quantized_graph(nn.Conv2d(4, 8, 3), torch.randn(2, 4, 6, 6))
    seen = []

    def fail(*_, **__):
        seen.append(torch.backends.quantized.engine)
        raise RuntimeError("no")

    monkeypatch.setattr("qdiff_fx.backends.torch_ao.fx_mode.convert_fx", fail)
    before = torch.backends.quantized.engine
    with pytest.raises(RuntimeError, match="no"):
        get_backend(engine).lower(gm)
    assert seen == [engine]
    assert torch.backends.quantized.engine == before


def test_packed_layers_keep_their_engine(engine):
    """Running under another engine and copying under another engine change no bit."""
    x = torch.randn(2, 3, 8, 8)
    low = lowered(quantized_graph(SmallUNet(), x), engine)
    expected = run(low, x)
    before = torch.backends.quantized.engine
    try:
        for other in ENGINES:
            torch.backends.quantized.engine = other
            assert torch.equal(run(low, x), expected)
            assert torch.equal(run(copy.deepcopy(low), x), expected)
            assert torch.backends.quantized.engine == other
    finally:
        torch.backends.quantized.engine = before


class AwkwardNames(nn.Module):
    """A module called like the one this backend adds, and one that is applied twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm, conv = self.layers
        return conv(norm(conv(x)))


def test_names_of_modules_do_not_clash(engine):
    x = torch.randn(2, 4, 6, 6)
    gm = quantized_graph(AwkwardNames(), x)
    assert len(integer_layers(gm, engine)) == 2
    assert_layers_agree(gm, engine, x)
    assert run(lowered(gm, engine), x).shape == x.shape


def test_bfloat16_between_the_layers(engine):
    net, x = SmallUNet(), torch.randn(2, 3, 8, 8)
    gm = quantized_graph(net, x)
    result = run(lowered(gm, engine, TorchAOOptions(compute_dtype=torch.bfloat16)), x)
    assert result.dtype == torch.float32
    assert sqnr_db(run(net, x), result) > sqnr_db(run(net, x), run(lowered(gm, engine), x)) - 3


def test_a_bfloat16_network(engine):
    net, x = SmallUNet().bfloat16(), torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    gm = quantized_graph(net, x)
    result = run(lowered(gm, engine), x)
    expected = run(lowered(gm, "reference", AS_TORCH_AO), x)
    assert result.dtype == torch.bfloat16
    assert sqnr_db(expected, result) > 20


def test_unknown_engines_are_unavailable():
    assert TorchAOBackend("abacus").unavailable() == "this build of torch has no abacus engine"
