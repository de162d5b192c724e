"""Every fusion: where it fires, that it computes the same, that it is done after one run, and why it is not made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fusions import Net, changes_of_a_second_run, lower, outputs, quantized, reasons
from torch import nn

from qdiff_fx.backends.native.fusion.add_before_moves import AddBeforeMoves
from qdiff_fx.backends.native.fusion.fuse_activation_into_layer import FuseActivationIntoLayer
from qdiff_fx.backends.native.fusion.fuse_activation_into_quantizer import FuseActivationIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_channel_shift import FuseChannelShift
from qdiff_fx.backends.native.fusion.fuse_concat_into_norm import FuseConcatIntoNorm
from qdiff_fx.backends.native.fusion.fuse_geglu import FuseGeglu
from qdiff_fx.backends.native.fusion.fuse_group_norm import FuseGroupNorm
from qdiff_fx.backends.native.fusion.fuse_layer_norm import FuseLayerNorm
from qdiff_fx.backends.native.fusion.fuse_norm_into_quantizer import FuseNormIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_output_quantizer import FuseOutputQuantizer
from qdiff_fx.backends.native.fusion.fuse_padding import FusePadding
from qdiff_fx.backends.native.fusion.fuse_relu_into_quantizer import FuseReluIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_residual_add import FuseResidualAdd
from qdiff_fx.backends.native.fusion.fuse_residual_code import FuseResidualCode
from qdiff_fx.backends.native.fusion.fuse_silu_into_group_norm import FuseSiluIntoGroupNorm
from qdiff_fx.backends.native.fusion.fuse_upsampling import FuseUpsampling
from qdiff_fx.backends.native.fusion.hoist_quantizer import HoistQuantizer
from qdiff_fx.backends.native.fusion.kernels import CONV
from qdiff_fx.backends.native.fusion.merge_split_convs import MergeSplitConvs
from qdiff_fx.config import Rule
from qdiff_fx.ir.text import format_graph
from qdiff_fx.kernels.activations import Activation

GOLDEN = Path(__file__).parent / "golden"
IMAGE = torch.linspace(-2, 3, 2 * 4 * 6 * 5).reshape(2, 4, 6, 5)
TOKENS = torch.linspace(-2, 3, 2 * 5 * 8).reshape(2, 5, 8)


def conv(inputs=4, outputs=4, size=3):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def norm(channels=4):
    return nn.GroupNorm(2, channels)


def gated(value):
    kept, gate = value.chunk(2, -1)
    return kept * F.gelu(gate)


def spread(m, x):
    """A channel shift made of the image itself."""
    return m.shift(x.mean((2, 3)))[:, :, None, None]


def behind_tokens(m, x):
    """A sum behind the move of tokens to pixels."""
    tokens = m.linear(x.flatten(2).transpose(1, 2))
    return x + tokens.transpose(1, 2).reshape(x.shape)


# fusion -> a network in which it fires, and the input.
CASES = {
    FuseResidualCode: (lambda: Net(lambda m, x: m.a(x), a=conv()), IMAGE),
    HoistQuantizer: (lambda: Net(lambda m, x: m.a(x.flatten(2).transpose(1, 2)), a=nn.Linear(4, 8)), IMAGE),
    FuseGroupNorm: (lambda: Net(lambda m, x: m.a(m.n(x)), n=norm(), a=conv()), IMAGE),
    FuseLayerNorm: (lambda: Net(lambda m, x: m.a(m.n(x)), n=nn.LayerNorm(8), a=nn.Linear(8, 8)), TOKENS),
    FuseSiluIntoGroupNorm: (lambda: Net(lambda m, x: F.silu(m.n(m.a(x))), n=norm(), a=conv()), IMAGE),
    FuseActivationIntoQuantizer: (lambda: Net(lambda m, x: m.a(F.gelu(x)), a=conv()), IMAGE),
    FuseReluIntoQuantizer: (lambda: Net(lambda m, x: m.b(F.relu(m.n(m.a(x)))), a=conv(), n=norm(), b=conv()), IMAGE),
    FuseNormIntoQuantizer: (lambda: Net(lambda m, x: m.a(F.silu(m.n(x))), n=norm(), a=conv()), IMAGE),
    FuseConcatIntoNorm: (
        lambda: Net(lambda m, x: m.b(m.n(torch.cat([m.a(x), x], 1))), a=conv(), n=norm(8), b=conv(8)),
        IMAGE,
    ),
    FusePadding: (lambda: Net(lambda m, x: m.a(F.pad(x, (0, 1, 0, 1))), a=nn.Conv2d(4, 4, 3, stride=2)), IMAGE),
    FuseUpsampling: (lambda: Net(lambda m, x: m.a(F.interpolate(x, scale_factor=2.0)), a=conv()), IMAGE),
    AddBeforeMoves: (lambda: Net(behind_tokens, linear=nn.Linear(4, 4)), IMAGE),
    FuseChannelShift: (lambda: Net(lambda m, x: m.a(x) + spread(m, x), a=conv(), shift=nn.Linear(4, 4)), IMAGE),
    MergeSplitConvs: (lambda: Net(lambda m, x: m.b(torch.cat([m.a(x), x], 1)), a=conv(), b=conv(8)), IMAGE),
    FuseResidualAdd: (lambda: Net(lambda m, x: x + m.a(x), a=conv()), IMAGE),
    FuseActivationIntoLayer: (lambda: Net(lambda m, x: F.silu(m.a(x)), a=conv()), IMAGE),
    FuseOutputQuantizer: (lambda: Net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv()), IMAGE),
    FuseGeglu: (lambda: Net(lambda m, x: m.b(gated(m.a(x))), a=nn.Linear(8, 256), b=nn.Linear(128, 8)), TOKENS),
}
CONFIG = {FuseResidualCode: {"rules": (Rule("a", act_bits=16),)}}


@pytest.mark.parametrize("fusion", CASES, ids=lambda fusion: fusion.__name__)
def test_a_fusion(fusion):
    build, x = CASES[fusion]
    torch.manual_seed(0)
    gm = quantized(build(), x, **CONFIG.get(fusion, {}))
    (fused, _), (unfused, _) = lower(gm), lower(gm, without=fusion)
    text = format_graph(fused)
    assert text != format_graph(unfused), "it fires"
    expected, actual = outputs((unfused, fused), x)
    # A norm is rounded otherwise than by torch, which may move a value across a boundary to the next code.
    assert (actual - expected).abs().max() < 0.02 * expected.abs().max()
    assert text == (GOLDEN / f"{fusion.__name__}.txt").read_text().rstrip("\n")
    assert changes_of_a_second_run(fused) == []


def rectified_sum(m, x):
    """As in tiny autoencoders: what is quantized and added later."""
    h = F.relu(m.a(x))
    return m.c(F.relu(m.b(h) + h))


def test_a_quantizer_that_is_a_relu_writes_the_same_codes():
    build, x = CASES[FuseReluIntoQuantizer]
    torch.manual_seed(0)
    gm = quantized(build(), x)
    expected, actual = outputs((lower(gm, without=FuseReluIntoQuantizer)[0], lower(gm)[0]), x)
    assert torch.equal(actual, expected)


def test_a_relu_that_is_quantized_and_added_is_computed_by_its_layer_and_the_last_one_by_the_quantizer():
    torch.manual_seed(0)
    gm = quantized(Net(rectified_sum, a=conv(), b=conv(), c=conv()), IMAGE)
    fused, _ = lower(gm)
    convs = [node for node in fused.graph.nodes if node.target is CONV]
    assert [conv.kwargs["activation"] for conv in convs] == [Activation.RELU, Activation.NONE, Activation.NONE]
    assert [conv.kwargs["out_dtype"] for conv in convs] == [torch.float32, torch.uint8, torch.float32]
    assert torch.ops.aten.relu.default not in {node.target for node in fused.graph.nodes}
    expected, actual = outputs((gm, fused), IMAGE)
    assert (actual - expected).abs().max() < 1e-5


def nine_parts(m, x):
    return m.b(m.n(torch.cat([m.a(x), *[x] * 8], 1)))


REFUSALS = {
    "a ReLU that is quantized and added": (
        lambda: Net(rectified_sum, a=conv(), b=conv(), c=conv()),
        IMAGE,
        ("b", "the ReLU before its quantizer is also read by aten.add"),
    ),
    "a norm whose output is summed": (
        lambda: Net(lambda m, x: (lambda h: m.a(h) + h)(m.n(x)), n=norm(), a=conv()),
        IMAGE,
        ("a", "the norm's float output is also read by aten.add"),
    ),
    "SiLU of a norm that is read before it": (
        lambda: Net(lambda m, x: (lambda h: m.a(F.silu(h)) + F.silu(h) + h)(m.n(m.b(x))), n=norm(), a=conv(), b=conv()),
        IMAGE,
        ("", "the norm's output before SiLU is also read by aten.silu, aten.add and"),
    ),
    "gelu between norm and quantizer": (
        lambda: Net(lambda m, x: m.a(F.gelu(m.n(x))), n=norm(), a=conv()),
        IMAGE,
        ("a", "between norm and quantizer lies GELU, which the norm's kernel does not compute"),
    ),
    "a layer norm over two dimensions": (
        lambda: Net(lambda m, x: m.a(m.n(x)), n=nn.LayerNorm((5, 8)), a=nn.Linear(8, 8)),
        TOKENS,
        ("n", "it normalises 2 dimensions, the kernel one"),
    ),
    "a concat of nine parts": (
        lambda: Net(nine_parts, a=conv(), n=norm(36), b=conv(36)),
        IMAGE,
        ("n", "its concat has 9 parts, the kernel takes 8"),
    ),
    "a concat that is read": (
        lambda: Net(lambda m, x: (lambda h: m.n(h) * h)(torch.cat([m.a(x), x], 1)), a=conv(), n=norm(8)),
        IMAGE,
        ("n", "the concat is also read by aten.mul"),
    ),
    "a concat of pixels": (
        lambda: Net(lambda m, x: m.b(m.n(torch.cat([m.a(x), x], 2))), a=conv(), n=norm(), b=conv()),
        IMAGE,
        ("n", "its concat is along dimension 2, the kernel joins channels, dimension 1"),
    ),
    "padding by reflection": (
        lambda: Net(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1), mode="reflect")), a=nn.Conv2d(4, 4, 3)),
        IMAGE,
        ("a", "it is padded with reflect, the kernel pads with zero"),
    ),
    "padding with ones": (
        lambda: Net(lambda m, x: m.a(F.pad(x, (1, 1, 1, 1), value=1.0)), a=nn.Conv2d(4, 4, 3)),
        IMAGE,
        ("a", "it is padded with 1.0, the kernel pads with zero"),
    ),
    "negative padding": (
        lambda: Net(lambda m, x: m.a(F.pad(x, (-1, 1, 1, 1))), a=nn.Conv2d(4, 4, 3)),
        IMAGE,
        ("a", "the padding is negative or known only when it runs"),
    ),
    "padded channels": (
        lambda: Net(lambda m, x: m.a(F.pad(x, (0, 0, 0, 0, 1, 1))), a=nn.Conv2d(6, 4, 3)),
        IMAGE,
        ("a", "other dimensions than those of the image are padded"),
    ),
    "upsampling to a size": (
        lambda: Net(lambda m, x: m.a(F.interpolate(x, size=(9, 7))), a=conv()),
        IMAGE,
        ("a", "it is upsampled to a size, the kernel takes whole factors"),
    ),
    "upsampling by a half": (
        lambda: Net(lambda m, x: m.a(F.interpolate(x, scale_factor=1.5)), a=conv()),
        IMAGE,
        ("a", "it is upsampled by [1.5, 1.5], the kernel takes whole factors"),
    ),
    "a sum that spreads a moved layer": (
        lambda: Net(
            lambda m, x: m.a(x) + m.shift(x.mean((2, 3))).view(x.shape[0], -1, 1, 1), a=conv(), shift=nn.Linear(4, 4)
        ),
        IMAGE,
        ("a", "the sum spreads one of its sides over the other, which the layer's kernel cannot"),
    ),
    "a layer that is read before the sum": (
        lambda: Net(lambda m, x: (lambda h: (h + x) * h)(m.a(x)), a=conv()),
        IMAGE,
        ("a", "the layer's result before a sum is also read by aten.mul"),
    ),
    "SiLU of a layer that is read": (
        lambda: Net(lambda m, x: (lambda h: F.silu(h) * h)(m.a(x)), a=conv()),
        IMAGE,
        ("a", "the layer's result before SiLU is also read by aten.mul"),
    ),
    "a layer that is quantized and read": (
        lambda: Net(lambda m, x: (lambda h: m.b(h) * h)(m.a(x)), a=conv(), b=conv()),
        IMAGE,
        ("a", "the layer's float output is also read by aten.mul"),
    ),
    "a layer the network returns": (
        lambda: Net(lambda m, x: (lambda h: m.b(F.silu(h)) + h)(m.a(x)), a=conv(), b=conv()),
        IMAGE,
        ("a", "the layer's float output is also read by"),
    ),
    "gates packed with values": (
        lambda: Net(lambda m, x: m.b(gated(m.a(x))), a=nn.Linear(8, 24), b=nn.Linear(12, 8)),
        TOKENS,
        ("a", "its 24 output features are no multiple of 128: gates are packed with values"),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_reason(case):
    build, x, (path, reason) = REFUSALS[case]
    torch.manual_seed(0)
    found = reasons(quantized(build(), x))
    assert any(where == path and why.startswith(reason) for where, why in found), found


def test_a_network_whose_layers_all_join_their_neighbours_has_no_reasons():
    build, x = CASES[FuseOutputQuantizer]
    assert reasons(quantized(build(), x)) == []
