"""The matches a fusion leaves alone, and what it says of them, on graphs of a few calls that are made by hand."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx

from qdiff_fx.backends.native.fusion.add_before_moves import AddBeforeMoves
from qdiff_fx.backends.native.fusion.fuse_activation_into_quantizer import FuseActivationIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_channel_shift import FuseChannelShift
from qdiff_fx.backends.native.fusion.fuse_concat_into_norm import FuseConcatIntoNorm
from qdiff_fx.backends.native.fusion.fuse_geglu import FuseGeglu
from qdiff_fx.backends.native.fusion.fuse_norm_into_quantizer import FuseNormIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_output_quantizer import FuseOutputQuantizer
from qdiff_fx.backends.native.fusion.fuse_padding import FusePadding
from qdiff_fx.backends.native.fusion.fuse_relu_into_quantizer import FuseReluIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_residual_code import FuseResidualCode
from qdiff_fx.backends.native.fusion.fuse_upsampling import FuseUpsampling
from qdiff_fx.backends.native.fusion.hoist_size import HoistSize
from qdiff_fx.backends.native.fusion.kernels import (
    ATTENTION,
    CONV,
    GROUP_NORM,
    LAYER_NORM,
    LINEAR,
    QUANTIZE,
    TO_ITSELF,
    layer_behind,
    read_elsewhere,
)
from qdiff_fx.backends.native.fusion.look_up_scales import StepNumbers
from qdiff_fx.ir.annotations import describe, value
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed
CODES = {"scale": 0.5, "zero_point": 3, "low": 0, "high": 255, "out_dtype": torch.uint8}
PLAIN = {"activation": Activation.NONE.value, "out_dtype": torch.float32}


class Hand:
    """A graph written call by call; every value is a tensor of the shape given with it."""

    def __init__(self) -> None:
        self.gm = fx.GraphModule(torch.nn.Module(), fx.Graph())

    def input(self, *shape: int) -> fx.Node:
        return self._described(self.gm.graph.placeholder(f"x{len(self.gm.graph.nodes)}"), shape)

    def call(self, shape: tuple[int, ...], target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self._described(self.gm.graph.call_function(target, args, kwargs), shape)

    def quantize(self, x: fx.Node, **changes: Any) -> fx.Node:
        return self.call(
            tuple(value(x).shape), QUANTIZE, **{"x": x, "activation": Activation.NONE.value, **CODES, **changes}
        )

    def conv(self, codes: fx.Node, **changes: Any) -> fx.Node:
        given = {"codes": [codes], "padding": [0] * 4, "enlarge": [1, 1], "shift": None, "residual": None, **PLAIN}
        return self.call((2, 4, 6, 5), CONV, **{**given, "out_channels": 4, **changes})

    def linear(self, codes: fx.Node, **changes: Any) -> fx.Node:
        return self.call((2, 5, 8), LINEAR, **{"codes": codes, "residual": None, "out_features": 8, **PLAIN, **changes})

    def why(self, rule: Rule[Any], node: fx.Node) -> str | None:
        """What the rule says against its match at `node`; None when there is no match."""
        found = rule.match(self.gm, node)
        return None if found is None else rule.refuse(self.gm, found)

    @staticmethod
    def _described(node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        describe(node, value=torch.empty(shape, device="meta"))
        return node


@pytest.fixture
def hand() -> Hand:
    return Hand()


def image(hand: Hand) -> fx.Node:
    return hand.input(2, 4, 6, 5)


@pytest.mark.parametrize("rule", [AddBeforeMoves(), FuseChannelShift()], ids=lambda rule: type(rule).__name__)
def test_a_sum_that_scales_one_side_is_no_match(hand, rule):
    layer = hand.conv(image(hand))
    moved = hand.call((2, 30, 4), aten.reshape.default, layer, [2, 30, 4])
    shift = hand.input(2, 4)
    for dim in (2, 3):
        shift = hand.call((2, 4, 1, 1)[: dim + 1], aten.unsqueeze.default, shift, dim)
    sides = (moved, hand.input(2, 30, 4)) if isinstance(rule, AddBeforeMoves) else (layer, shift)
    shape = (2, 30, 4) if isinstance(rule, AddBeforeMoves) else (2, 4, 6, 5)
    assert hand.why(rule, hand.call(shape, aten.add.Tensor, *sides, alpha=2)) is None
    assert hand.why(rule, hand.call(shape, aten.add.Tensor, *sides)) is not None


def test_what_is_added_behind_moves(hand):
    rule = AddBeforeMoves()
    moved = hand.call((2, 8, 5), aten.permute.default, hand.linear(hand.input(2, 5, 8)), [0, 2, 1])
    assert hand.why(rule, hand.call((2, 8, 5), aten.add.Tensor, moved, moved)) == TO_ITSELF

    read = hand.linear(hand.input(2, 5, 8))
    moved = hand.call((2, 8, 5), aten.permute.default, read, [0, 2, 1])
    hand.call((2, 5, 8), aten.relu.default, read)
    total = hand.call((2, 8, 5), aten.add.Tensor, moved, hand.input(2, 8, 5))
    assert hand.why(rule, total) == "the layer's result is also read by aten.relu"

    # Of sizes (2, 5, 8) nothing is left in (80,): two of them would have to be guessed.
    flat = hand.call((80,), aten.reshape.default, hand.linear(hand.input(2, 5, 8)), [80])
    total = hand.call((80,), aten.add.Tensor, flat, hand.input(80))
    assert hand.why(rule, total) == "a reshape behind it cannot be undone: more than one size is unknown"

    moved = hand.call((2, 8, 5), aten.permute.default, hand.linear(hand.input(2, 5, 8)), [0, 2, 1])
    total = hand.call((2, 8, 5), aten.add.Tensor, moved, hand.input(1, 8, 5))
    assert "spreads one of its sides over the other" in hand.why(rule, total)


def test_a_norm_that_cannot_compute_what_follows_it(hand):
    rule = FuseNormIntoQuantizer()
    group = {"parts": [image(hand)], "weight": None, "bias": None, **PLAIN}
    norm = lambda **changes: hand.call((2, 4, 6, 5), GROUP_NORM, **{**group, **changes})  # noqa: E731
    silu, gelu = Activation.SILU.value, Activation.GELU.value
    assert hand.why(rule, hand.quantize(norm(), activation=silu)) == ""
    assert "lies GELU, which the norm's kernel" in hand.why(rule, hand.quantize(norm(), activation=gelu))
    twice = hand.quantize(norm(activation=silu), activation=silu)
    assert "two activation functions, the norm's kernel computes one" in hand.why(rule, twice)
    # A layer norm's kernel has no activation function at all.
    layer = hand.call((2, 5, 8), LAYER_NORM, x=hand.input(2, 5, 8), weight=None, bias=None, out_dtype=torch.float32)
    assert "lies SILU, which the norm's kernel" in hand.why(rule, hand.quantize(layer, activation=silu))
    assert hand.why(rule, hand.quantize(norm(out_dtype=torch.uint8))) is None

    shared = norm()
    quantizers = [hand.quantize(shared, scale=scale) for scale in (0.5, 0.25)]
    reason = "the norm's float output is quantized 2 times, each with a scale of its own"
    assert [hand.why(rule, each) for each in quantizers] == [reason] * 2


PADDINGS = {
    "zeros": ((aten.pad.default, [1, 1, 0, 2]), ""),
    "zeros by the other operator": ((aten.constant_pad_nd.default, [1, 1]), ""),
    "ones by the other operator": ((aten.constant_pad_nd.default, [1, 1], 1.0), "it is padded with 1.0"),
    "reflection": ((aten.pad.default, [1, 1, 1, 1], "reflect"), "it is padded with reflect"),
    "ones": ((aten.pad.default, [1, 1, 1, 1], "constant", 1.0), "it is padded with 1.0"),
    "channels": ((aten.pad.default, [0, 0, 0, 0, 1, 1]), "other dimensions than those of the image"),
    "less than nothing": ((aten.pad.default, [-1, 0]), "the padding is negative"),
}


@pytest.mark.parametrize("case", PADDINGS)
def test_padding(hand, case):
    (target, *args), reason = PADDINGS[case]
    pad = hand.call((2, 4, 7, 7), target, image(hand), *args)
    why = hand.why(FusePadding(), hand.conv(hand.quantize(pad)))
    assert why == "" if not reason else why.startswith(reason)


def test_padding_before_upsampling(hand):
    pad = hand.call((2, 4, 7, 7), aten.pad.default, image(hand), [1, 1])
    why = hand.why(FusePadding(), hand.conv(hand.quantize(pad), enlarge=[2, 2]))
    assert why == "the image is padded before it is upsampled, the kernel pads it afterwards"


def test_padding_stays_for_another_reader_of_the_padded_codes(hand):
    x = image(hand)
    codes = hand.quantize(hand.call((2, 4, 7, 7), aten.pad.default, x, [1, 2, 3, 4]))
    conv, other = hand.conv(codes, padding=[1, 1, 1, 1]), hand.conv(codes)
    rule = FusePadding()
    assert rule.rewrite(hand.gm, rule.match(hand.gm, conv)) == "padding [4, 5, 2, 3]"
    assert conv.kwargs["codes"][0].kwargs["x"] is x
    assert other.kwargs["codes"] == [codes]
    assert not codes._erased
    rule.rewrite(hand.gm, rule.match(hand.gm, other))
    assert codes._erased


def test_upsampling(hand):
    rule, target = FuseUpsampling(), aten.upsample_nearest2d.vec
    conv = lambda size, factors, **changes: hand.conv(  # noqa: E731
        hand.call((2, 4, 12, 10), target, image(hand), size, factors), **changes
    )
    assert hand.why(rule, conv(None, [2.0, 2.0])) == ""
    assert hand.why(rule, conv([12, 10], None)) == "it is upsampled to a size, the kernel takes whole factors"
    assert "it is upsampled by [1.5, 2.0]" in hand.why(rule, conv(None, [1.5, 2.0]))
    assert "it is upsampled twice" in hand.why(rule, conv(None, [2.0, 2.0], enlarge=[2, 2]))

    codes = hand.call((2, 4, 12, 10), target, image(hand), None, [2.0, 3.0])
    first, second = hand.conv(codes), hand.conv(codes)
    assert rule.rewrite(hand.gm, rule.match(hand.gm, first)) == "enlarge [2, 3]"
    assert second.kwargs["codes"] == [codes]


def test_a_concat_that_a_norm_cannot_read_in_parts(hand):
    def why(parts: int, *dim: int) -> str | None:
        concat = hand.call((2, 4, 6, 5), aten.cat.default, [image(hand) for _ in range(parts)], *dim)
        hand.call((2, 4, 6, 5), GROUP_NORM, parts=[concat], **PLAIN)
        return hand.why(FuseConcatIntoNorm(), concat)

    assert why(8, 1) == ""
    assert why(9, 1) == "its concat has 9 parts, the kernel takes 8"
    assert why(2) == "its concat is along dimension 0, the kernel joins channels, dimension 1"


def test_a_residual_code(hand):
    def why(first: dict[str, Any], second: dict[str, Any], **changed: Any) -> str | None:
        x = hand.input(2, 8)
        codes = hand.quantize(x, **first)
        parameters = {**{name: codes.kwargs[name] for name in ("scale", "zero_point", "low", "high")}, **changed}
        values = hand.call((2, 8), qd.dequantize_per_tensor.default, codes, *parameters.values(), torch.uint8)
        rest = hand.call((2, 8), aten.sub.Tensor, x, values)
        return hand.why(FuseResidualCode(), hand.quantize(rest, **second))

    signed = {"out_dtype": torch.int8, "low": -128, "high": 127}
    assert why({}, {}) == ""
    assert (
        why({}, signed) == why(signed, {}) == "its residual code is not one of uint8, which is what the kernel writes"
    )
    assert why({}, {"high": 127}) == "its residual code lies in 0..127, the kernel's in 0..255"
    assert why({}, {}, scale=0.75) is None, "what is left over is not that of the first code"

    x = hand.input(2, 8)
    foreign = hand.call((2, 8), qd.dequantize_per_tensor.default, hand.input(2, 8), 0.5, 3, 0, 255, torch.uint8)
    for values in (foreign, x):  # codes that come in; no codes at all
        assert hand.why(FuseResidualCode(), hand.quantize(hand.call((2, 8), aten.sub.Tensor, x, values))) is None


def gates(hand: Hand, features: int, parts: tuple[Any, ...] = (2, -1), order: tuple[int, int] = (0, 1)) -> fx.Node:
    """``quantize(first * gelu(second))`` of the halves of so many features."""
    chunk = hand.call((2, 5, features), aten.chunk.default, hand.input(2, 5, features), *parts)
    kept, gate = (hand.call((2, 5, features // 2), operator.getitem, chunk, index) for index in order)
    gelu = hand.call((2, 5, features // 2), aten.gelu.default, gate)
    return hand.quantize(hand.call((2, 5, features // 2), aten.mul.Tensor, kept, gelu))


def test_gates(hand):
    rule = FuseActivationIntoQuantizer()
    assert hand.why(rule, gates(hand, 8)) == ""
    assert hand.why(rule, gates(hand, 7)) == "its 7 gated features do not halve"
    assert hand.why(rule, gates(hand, 8, parts=(2, 1))) is None, "halves of the tokens"
    assert hand.why(rule, gates(hand, 8, order=(1, 0))) is None, "the values gated by the gates"
    assert hand.why(rule, hand.quantize(gates(hand, 8), activation=Activation.SILU.value)) is None


def test_gates_of_a_layer_that_adds_a_residual(hand):
    def why(**changes: Any) -> str | None:
        layer = hand.linear(hand.input(2, 5, 8), out_features=256, **changes)
        return hand.why(FuseGeglu(), hand.quantize(layer, activation=Activation.GEGLU.value))

    assert why() == ""
    assert why(residual=hand.input(2, 5, 256)) == "it adds a residual before its gates are applied"


def test_attention_computes_no_activation(hand):
    attention = hand.call((2, 5, 8), ATTENTION, hand.input(2, 5, 8), out_dtype=torch.float32)
    why = hand.why(FuseOutputQuantizer(), hand.quantize(attention, activation=Activation.SILU.value))
    assert why == "attention's kernel does not compute SILU"


def test_sizes_that_a_kernel_does_not_change_are_asked_of_its_input(hand):
    tokens, pixels = hand.input(2, 5, 8), image(hand)
    gated = hand.quantize(tokens, activation=Activation.GEGLU.value)
    group = hand.call((2, 4, 6, 5), GROUP_NORM, parts=[pixels])
    layer = hand.call((2, 5, 8), LAYER_NORM, x=tokens)
    answers = [
        (hand.linear(tokens), 1, tokens),
        (hand.linear(tokens), -1, None),
        (hand.conv(pixels), 0, pixels),
        (hand.conv(pixels), 2, None),
        (group, -1, pixels),
        (group, 1, None),
        (layer, 2, tokens),
        (hand.quantize(tokens), 2, tokens),
        (gated, 1, tokens),
        (gated, 2, None),
    ]
    rule = HoistSize()
    for node, dim, above in answers:
        found = rule.match(hand.gm, hand.gm.graph.call_function(aten.sym_size.int, (node, dim)))
        assert (found and found.above) is above, (node, dim)


def test_reasons_name_at_most_three_readers(hand):
    layer = hand.linear(hand.input(2, 5, 8))
    names = ("relu", "neg", "sin", "cos")
    for count, name in enumerate(names, 1):
        hand.call((2, 5, 8), getattr(aten, name).default, layer)
        if count == 3:
            assert read_elsewhere("result", layer).endswith("aten.relu, aten.neg and aten.sin")
    assert read_elsewhere("result", layer).endswith("aten.relu, aten.neg and 2 others")
    (first, *_), returned = layer.users, hand.linear(hand.input(2, 5, 8))
    assert "aten.relu" not in read_elsewhere("result", layer, first)
    hand.gm.graph.output((returned,))
    assert read_elsewhere("result", returned) == "the result is also read by the network's output"


def test_the_layer_behind_a_quantizer(hand):
    alone, moved = (hand.quantize(hand.input(2, 5, 8)) for _ in range(2))
    hand.call((2, 5, 8), aten.relu.default, alone)
    layer = hand.linear(hand.call((2, 5, 8), aten.permute.default, moved, [0, 1, 2]))
    assert layer_behind(alone) is alone
    assert layer_behind(moved) is layer


def test_quantizers_that_are_no_relu(hand):
    rule = FuseReluIntoQuantizer()

    def quantized_relu(**changes: Any) -> fx.Node:
        return hand.quantize(hand.call((2, 4, 6, 5), aten.relu.default, image(hand)), **changes)

    assert hand.why(rule, quantized_relu(zero_point=0)) == ""
    assert hand.why(rule, quantized_relu(zero_point=7, low=7)) == ""
    assert hand.why(rule, quantized_relu(activation=Activation.SILU.value)) is None
    computed = "the zero-point of its quantizer is not the lowest code: ReLU is computed"
    assert hand.why(rule, quantized_relu(zero_point=3)) == computed
    # A zero-point by the timestep: every row counts.
    for zero_points, reason in (([0, 0], ""), ([0, 1], computed)):
        name = f"rows{len(hand.gm.graph.nodes)}"
        hand.gm.add_module(name, StepNumbers([torch.tensor(zero_points)]))
        row = hand.gm.graph.call_module(name, (0,))
        number = hand.call((), operator.getitem, row, 0)
        assert hand.why(rule, quantized_relu(zero_point=number)) == reason

    # Two quantizers of one ReLU, of which one passes what is negative.
    first = quantized_relu(zero_point=0)
    hand.quantize(first.kwargs["x"], zero_point=3)
    assert hand.why(rule, first) == computed
    hand.call((2, 4, 6, 5), aten.neg.default, first.kwargs["x"])
    assert hand.why(rule, first) == "the ReLU before its quantizer is also read by aten.neg"
    assert hand.why(FuseActivationIntoQuantizer(), first) == "the ReLU before its quantizer is also read by aten.neg"
    silu = quantized_relu(zero_point=0)
    hand.quantize(silu.kwargs["x"], zero_point=0, activation=Activation.SILU.value)
    assert hand.why(rule, silu) == "between ReLU and quantizer lies another activation function"
