"""A linear layer of values and gates applies the gates itself: its weight is cut into two."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx

from qdiff_fx.backends.native.fusion.fuse_output_quantizer import quantizer_of_output
from qdiff_fx.backends.native.fusion.kernels import LINEAR, QUANTIZE, fuse_into_epilogue, is_open, read_in_floats
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule

PACKED_BLOCK = 64  # output channels that are packed together: kBlockChannels of kernels.h


class Gated(NamedTuple):
    """``quantize(linear(x), activation=geglu)``."""

    quantize: fx.Node
    layer: fx.Node


class FuseGeglu(Rule[Gated]):
    """``quantize(linear(x, w), activation=geglu)`` → ``linear(x, [values of w, gates of w], activation=geglu)``."""

    targets = frozenset({QUANTIZE})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Gated | None:
        layer: Any = node.kwargs["x"]
        if node.kwargs["activation"] != Activation.GEGLU or getattr(layer, "target", None) is not LINEAR:
            return None
        return Gated(node, layer) if is_open(layer) else None

    def subject(self, node: fx.Node, found: Gated) -> fx.Node:
        return found.layer

    def refuse(self, gm: fx.GraphModule, found: Gated) -> str:
        layer = found.layer
        features: Any = layer.kwargs["out_features"]
        if features % (2 * PACKED_BLOCK):
            return f"its {features} output features are no multiple of {2 * PACKED_BLOCK}: gates are packed with values"
        if layer.kwargs["residual"] is not None:
            return "it adds a residual before its gates are applied"
        return read_in_floats("layer's values and gates", layer)

    def rewrite(self, gm: fx.GraphModule, found: Gated) -> str:
        layer = found.layer
        features: Any = layer.kwargs["out_features"]
        changes = {"activation": Activation.GEGLU.value, "out_features": features // 2} | _halves(gm, layer)
        fuse_into_epilogue(layer, found.quantize, **quantizer_of_output(found.quantize), **changes)
        return "values and gates in one layer"


def _halves(gm: fx.GraphModule, layer: fx.Node) -> dict[str, list[fx.Node]]:
    halves: dict[str, list[fx.Node]] = {}
    for name in ("weights", "weight_scales", "weight_sums"):
        whole: Any = layer.kwargs[name]
        (node,) = whole
        with gm.graph.inserting_before(layer):
            halves[name] = [
                gm.graph.get_attr(add_buffer(gm, f"{node.target}_{half}", tensor))
                for half, tensor in zip(("values", "gates"), get_attr_tensor(gm, node).chunk(2), strict=True)
            ]
    return halves
