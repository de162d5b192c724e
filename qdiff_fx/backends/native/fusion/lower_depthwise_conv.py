"""A convolution of every channel by itself, between dequantize nodes, becomes a kernel on the codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.common.base import weight_codes, weight_of, weight_tensors
from qdiff_fx.backends.common.geometry import CONVS, conv_geometry
from qdiff_fx.backends.native.fusion.kernels import DEPTHWISE
from qdiff_fx.backends.native.fusion.layer_calls import PLAIN_EPILOGUE, Codes, Window, bias_of, moved, replace_layer
from qdiff_fx.backends.native.fusion.limits import WeightReach
from qdiff_fx.backends.native.fusion.lower_layer import LowerLayer
from qdiff_fx.backends.native.fusion.supported import is_depthwise
from qdiff_fx.ir.annotations import describe_like, put, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer

aten = torch.ops.aten


class LowerDepthwiseConv(LowerLayer):
    """``conv(dequantize(x), dequantize(w), b, groups=channels)`` → ``int_depthwise_conv(x, w, b)``."""

    targets = frozenset({aten.conv1d.default, aten.conv2d.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return super().match(gm, node) if is_depthwise(node) else None

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        dims, codes = CONVS[found.target], Codes.read_by(found)
        image = value(found)
        if dims == 1:
            codes = replace(codes, node=moved(found, codes.node, (aten.unsqueeze.default, 2)))
            image = image.unsqueeze(2)
        weight, arguments = _weight(gm, found)
        self.packer.done(found)
        stride, padding, dilation, _ = conv_geometry(found, dims)
        window = Window.along(weight.shape[:dims], stride, [side for pad in padding for side in (pad, pad)], dilation)
        kwargs: dict[str, Any] = {
            **{"codes": codes.node, "scale": codes.scale, "zero_point": codes.zero_point, **arguments},
            **{"stride": list(window.stride), "padding": list(window.padding), "dilation": list(window.dilation)},
            **{"bias": bias_of(found), **PLAIN_EPILOGUE},
        }
        with gm.graph.inserting_before(found):
            kernel = gm.graph.call_function(DEPTHWISE, kwargs=kwargs)
        describe_like(kernel, found, value=image, facts=True)
        replace_layer(found, moved(found, kernel, (aten.squeeze.dim, 2)) if dims == 1 else kernel)
        return "int_depthwise_conv"


def _weight(gm: fx.GraphModule, layer: fx.Node) -> tuple[torch.Tensor, dict[str, fx.Node]]:
    """The codes (..., channels), and they and their scales as arguments of the kernel."""
    dequantized = weight_of(layer)
    assert dequantized is not None
    node = operand(dequantized)
    codes, scales = weight_codes(gm, node), weight_tensors(gm, layer)[1].float().clone()
    reach = WeightReach.of_codes(codes, scales)
    # A copy, also of one tap: the codes may be freed.
    moved_codes = codes.flatten(0, 1).movedim(0, -1).clone(memory_format=torch.contiguous_format)
    image = moved_codes if codes.dim() == 4 else moved_codes.unsqueeze(0)
    with gm.graph.inserting_before(layer):
        weight = gm.graph.get_attr(add_buffer(gm, f"{node.target}_by_channel", image))
        weight_scale = gm.graph.get_attr(add_buffer(gm, f"{node.target}_channel_scales", scales))
    put(weight, reach)
    return moved_codes, {"weight": weight, "weight_scale": weight_scale}
