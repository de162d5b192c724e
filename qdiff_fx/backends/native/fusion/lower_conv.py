"""A convolution between dequantize nodes becomes a kernel on the codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx

from qdiff_fx.backends.common.geometry import CONVS, conv_geometry
from qdiff_fx.backends.native.fusion.layer_calls import (
    Codes,
    Window,
    bias_of,
    changed_bias,
    channels,
    insert_conv,
    moved,
    replace_layer,
)
from qdiff_fx.backends.native.fusion.lower_layer import LowerLayer
from qdiff_fx.backends.native.fusion.supported import groups_together, is_depthwise
from qdiff_fx.backends.native.fusion.weight_forms import OfGroups
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.edit import insert_call

aten = torch.ops.aten


class LowerConv(LowerLayer):
    """``conv(dequantize(x), dequantize(w), b)`` → ``int_conv([x], [w], b)``; a line is an image of one.

    Of several groups: one call for as many of them as its kernel computes at once, and their results side by side.
    """

    targets = frozenset({aten.conv1d.default, aten.conv2d.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return None if is_depthwise(node) else super().match(gm, node)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        dims = CONVS[found.target]
        groups = conv_geometry(found, dims)[3]
        codes = Codes.read_by(found)
        if dims == 1:
            codes = replace(codes, node=moved(found, codes.node, (aten.unsqueeze.default, 2)))
        result = self._whole(found, codes) if groups == 1 else self._grouped(found, codes, groups)
        self.packer.done(found)
        replace_layer(found, moved(found, result, (aten.squeeze.dim, 2)) if dims == 1 else result)
        return "int_conv"

    def _whole(self, layer: fx.Node, codes: Codes) -> fx.Node:
        weight = self.packer.pack(layer)
        return insert_conv(layer, codes, weight, _window(layer, weight.kernel), bias_of(layer), _image(layer))

    def _grouped(self, layer: fx.Node, codes: Codes, groups: int) -> fx.Node:
        image, results = _image(layer), []
        together = groups_together(layer)
        inputs, outputs = value(codes.node).shape[1] // groups, image.shape[1] // groups
        for first in range(0, groups, together):
            count = min(together, groups - first)
            weight = self.packer.pack(layer, OfGroups(first, count, groups))
            made = slice(first * outputs, (first + count) * outputs)
            part = replace(codes, node=channels(layer, codes.node, first * inputs, (first + count) * inputs))
            bias = changed_bias(layer, f"of_{first}", _sliced(made))
            results.append(insert_conv(layer, part, weight, _window(layer, weight.kernel), bias, image[:, made]))
        return insert_call(layer.graph, layer, aten.cat.default, (results, 1))


def _window(layer: fx.Node, kernel: tuple[int, ...]) -> Window:
    stride, padding, dilation, _ = conv_geometry(layer, CONVS[layer.target])
    return Window.along(kernel, stride, [side for pad in padding for side in (pad, pad)], dilation)


def _image(layer: fx.Node) -> Tensor:
    """What a layer produces, a line as an image of one."""
    found = value(layer)
    return found.unsqueeze(2) if CONVS[layer.target] == 1 else found


def _sliced(part: slice) -> Callable[[Tensor], Tensor]:
    return lambda bias: bias[part].clone()
