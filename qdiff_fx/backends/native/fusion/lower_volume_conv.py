"""A convolution of volumes between dequantize nodes becomes a kernel on the codes of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.common.geometry import VOLUME_CONV, conv_geometry
from qdiff_fx.backends.native.fusion.layer_calls import Codes, Window, bias_of, insert_conv, moved, replace_layer
from qdiff_fx.backends.native.fusion.lower_layer import LowerLayer
from qdiff_fx.backends.native.fusion.weight_forms import AlongTime, FramesAsChannels
from qdiff_fx.ir.annotations import describe_like, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import insert_call

aten = torch.ops.aten
FLATTEN, UNFLATTEN = aten.flatten.using_ints, aten.unflatten.int
PAD = aten.constant_pad_nd.default
PERMUTE, SLICE = aten.permute.default, aten.slice.Tensor
END = torch.iinfo(torch.int64).max


class Axis(NamedTuple):
    """How the convolution moves along one dimension."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def stands_still(self) -> bool:
        return (self.kernel, self.stride, self.padding) == (1, 1, 0)


class LowerVolumeConv(LowerLayer):
    """``conv3d(dequantize(x), dequantize(w), b)`` → ``int_conv([x], [w], b)``, of images that lie in the volume.

    One that moves along time only is one of images whose rows are frames. Any other is one of frames, each with the
    codes of all frames that it reads side by side as channels.
    """

    targets = frozenset({VOLUME_CONV})

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        stride, padding, dilation, _ = conv_geometry(found, 3)
        kernel = value(operand(found, 1)).shape[2:]
        axes = [Axis(*numbers) for numbers in zip(kernel, stride, padding, dilation, strict=True)]
        along_time = all(axis.stands_still for axis in axes[1:])
        result = self._along_time(found, axes) if along_time else self._of_frames(found, axes)
        self.packer.done(found)
        describe_like(result, found)
        replace_layer(found, result)
        return "int_conv"

    def _along_time(self, layer: fx.Node, axes: list[Axis]) -> fx.Node:
        """(N, C, T, H, W) as (N, C, T, H·W), which copies nothing."""
        codes = Codes.read_by(layer)
        image = replace(codes, node=moved(layer, codes.node, (FLATTEN, 3, 4)))
        still = Axis(1, 1, 0, 1)
        kernel = self._conv(layer, image, AlongTime(), [axes[0], still], value(layer).flatten(3))
        return moved(layer, kernel, (UNFLATTEN, 3, [-1, _size(layer, codes.node, 4)]))

    def _of_frames(self, layer: fx.Node, axes: list[Axis]) -> fx.Node:
        """(N, C, T, H, W) as (N·T, t·C, H, W)."""
        codes = Codes.read_by(layer)
        frames = _read_together(
            layer, replace(codes, node=moved(layer, codes.node, (PERMUTE, [0, 2, 3, 4, 1]))), axes[0]
        )
        image = replace(codes, node=moved(layer, frames, (FLATTEN, 0, 1), (PERMUTE, [0, 3, 1, 2])))
        made = value(layer).transpose(1, 2).flatten(0, 1)
        kernel = self._conv(layer, image, FramesAsChannels(), axes[1:], made)
        return moved(layer, kernel, (UNFLATTEN, 0, [_size(layer, codes.node, 0), -1]), (PERMUTE, [0, 2, 1, 3, 4]))

    def _conv(self, layer: fx.Node, codes: Codes, form: Any, axes: list[Axis], made: torch.Tensor) -> fx.Node:
        weight = self.packer.pack(layer, form)
        _, stride, padding, dilation = zip(*axes, strict=True)
        window = Window(weight.kernel, stride, tuple(side for pad in padding for side in (pad, pad)), dilation)
        return insert_conv(layer, codes, weight, window, bias_of(layer), made)


def _read_together(layer: fx.Node, frames: Codes, time: Axis) -> fx.Node:
    """(N, T, H, W, C) → (N, T', H, W, t·C): with every frame those that are read with it."""
    if time.stands_still:
        return frames.node
    padded = _padded(layer, frames, time.padding)
    taken = []
    for tap in range(time.kernel):
        left = (time.kernel - 1 - tap) * time.dilation  # behind the last that this tap reads
        taken.append(moved(layer, padded, (SLICE, 1, tap * time.dilation, -left if left else END, time.stride)))
    return insert_call(layer.graph, layer, aten.cat.default, (taken, -1))


def _padded(layer: fx.Node, frames: Codes, padding: int) -> fx.Node:
    """With frames of zeros before and behind."""
    if not padding:
        return frames.node
    sides = [0] * 6 + [padding, padding]
    with layer.graph.inserting_before(layer):
        padded = layer.graph.call_function(PAD, (frames.node, sides, frames.zero_point))
    describe_like(padded, layer, value=aten.constant_pad_nd.default(value(frames.node), sides, 0))
    return padded


def _size(layer: fx.Node, codes: fx.Node, dim: int) -> fx.Node:
    """A size that the result has too. Asked when it runs: of a loaded graph only those of its example are known."""
    return insert_call(layer.graph, layer, aten.sym_size.int, (codes, dim))
