"""A linear layer between dequantize nodes becomes a kernel on the codes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import LINEAR, replace_by_kernel
from qdiff_fx.backends.native.fusion.layer_calls import (
    PLAIN_EPILOGUE,
    Codes,
    Moves,
    Window,
    bias_of,
    insert_conv,
    moved,
    replace_layer,
)
from qdiff_fx.backends.native.fusion.lower_layer import LowerLayer
from qdiff_fx.backends.native.fusion.pack_weight import PackedWeight
from qdiff_fx.ir.annotations import value

aten = torch.ops.aten
PERMUTE = aten.permute.default
SQUEEZE, UNSQUEEZE = aten.squeeze.dim, aten.unsqueeze.default

# Rows (..., I) as an image (N, I, H, W) and back, without a copy, by their number of dimensions.
AS_IMAGE: dict[int, tuple[Moves, Moves]] = {
    1: (((UNSQUEEZE, 0), (UNSQUEEZE, 2), (UNSQUEEZE, 3)), ((SQUEEZE, 3), (SQUEEZE, 2), (SQUEEZE, 0))),
    2: (((UNSQUEEZE, 2), (UNSQUEEZE, 3)), ((SQUEEZE, 3), (SQUEEZE, 2))),
    3: (((PERMUTE, [0, 2, 1]), (UNSQUEEZE, 2)), ((SQUEEZE, 2), (PERMUTE, [0, 2, 1]))),
    4: (((PERMUTE, [0, 3, 1, 2]),), ((PERMUTE, [0, 2, 3, 1]),)),
}


class LowerLinear(LowerLayer):
    """``linear(dequantize(x), dequantize(w), b)`` → ``int_linear(x, w, b)``.

    Where its sums may exceed 32 bits → a convolution of an image of rows, which has parts that are summed in float.
    """

    targets = frozenset({aten.linear.default})

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        codes, weight = Codes.read_by(found), self.packer.pack(found)
        self.packer.done(found)
        if len(weight.parts) > 1:
            return _rows_as_image(found, codes, weight)
        with gm.graph.inserting_before(found):
            constants = weight.arguments(gm.graph)
        kwargs = {
            **{"codes": codes.node, "scale": codes.scale, "zero_point": codes.zero_point, **constants},
            **{"out_features": weight.channels, "bias": bias_of(found), **PLAIN_EPILOGUE},
        }
        replace_by_kernel(found, LINEAR, kwargs)
        return "int_linear"


def _rows_as_image(layer: fx.Node, codes: Codes, weight: PackedWeight) -> str:
    to_image, to_rows = AS_IMAGE[value(layer).dim()]
    codes = replace(codes, node=moved(layer, codes.node, *to_image))
    image = value(layer)
    for move, *arguments in to_image:
        image = move(image, *arguments)
    kernel = insert_conv(layer, codes, weight, Window.along([1, 1], [1, 1], [0] * 4, [1, 1]), bias_of(layer), image)
    replace_layer(layer, moved(layer, kernel, *to_rows))
    return f"int_conv of {len(weight.parts)} parts"
