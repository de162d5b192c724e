"""A transposed convolution between dequantize nodes becomes a kernel on the codes, and a move of its results."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from qdiff_fx.backends.common.geometry import TRANSPOSED_CONVS
from qdiff_fx.backends.native.fusion.layer_calls import (
    Codes,
    Moves,
    Window,
    changed_bias,
    insert_conv,
    moved,
    replace_layer,
)
from qdiff_fx.backends.native.fusion.lower_layer import LowerLayer
from qdiff_fx.backends.native.fusion.supported import phases_of
from qdiff_fx.backends.native.fusion.weight_forms import Phases
from qdiff_fx.ir.annotations import describe_like, value

aten = torch.ops.aten
FLATTEN, UNFLATTEN = aten.flatten.using_ints, aten.unflatten.int
PERMUTE, SLICE = aten.permute.default, aten.slice.Tensor


class LowerTransposedConv(LowerLayer):
    """``conv_transpose(dequantize(x), dequantize(w), b)`` → ``int_conv([x], [v], c)`` and pixels out of its channels.

    Neighbours that are computed from the same window of the input are its channels, as `Phases` says.
    """

    targets = frozenset(TRANSPOSED_CONVS)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        codes, phases = Codes.read_by(found), phases_of(found)
        weight = self.packer.pack(found, phases)
        self.packer.done(found)
        if len(phases.axes) == 1:
            codes = replace(codes, node=moved(found, codes.node, (aten.unsqueeze.default, 2)))
        ones = [1] * len(phases.axes)
        window = Window.along(weight.kernel, ones, phases.padding, ones)
        bias = changed_bias(found, "of_phases", lambda bias: bias.repeat(phases.count))
        kernel = insert_conv(found, codes, weight, window, bias, _computed(found, phases))
        move = _to_line if len(phases.axes) == 1 else _to_image
        result = moved(found, kernel, *move([*phases.strides, weight.channels // phases.count]), *_cut(phases))
        describe_like(result, found)
        replace_layer(found, result)
        return f"int_conv of {phases.count} phases"


def _computed(layer: fx.Node, phases: Phases) -> Tensor:
    """What the kernel produces."""
    batch, channels, *sizes = value(layer).shape
    columns = zip(sizes, phases.surplus, phases.strides, strict=True)
    made = [(size + surplus) // stride for size, surplus, stride in columns]
    lines = [1] * (2 - len(made))
    return value(layer).new_empty((batch, channels * phases.count, *lines, *made))


def _to_line(split: list[int]) -> Moves:
    """(N, s·O, 1, W) → (N, O, W·s); on channels-last memory nothing is copied."""
    rows = ((aten.squeeze.dim, 2), (UNFLATTEN, 1, split), (PERMUTE, [0, 3, 1, 2]), (FLATTEN, 1, 2))
    return (*rows, (PERMUTE, [0, 2, 1]))


def _to_image(split: list[int]) -> Moves:
    """(N, s·t·O, H, W) → (N, O, H·s, W·t), channels last; t·O numbers at a time are copied together."""
    pixels = ((UNFLATTEN, 1, split), (PERMUTE, [0, 4, 1, 5, 2, 3]), (FLATTEN, 3, 4), (FLATTEN, 1, 2))
    return (*pixels, (PERMUTE, [0, 3, 1, 2]))


def _cut(phases: Phases) -> Moves:
    """What is computed beyond the ends."""
    return tuple((SLICE, dim, 0, -surplus) for dim, surplus in enumerate(phases.surplus, 2) if surplus)
