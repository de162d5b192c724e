"""Quantize nodes and integer layers become calls of our kernels, one for one: what the fusions start from."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import QUANTIZE
from qdiff_fx.backends.native.fusion.lower_conv import LowerConv
from qdiff_fx.backends.native.fusion.lower_depthwise_conv import LowerDepthwiseConv
from qdiff_fx.backends.native.fusion.lower_linear import LowerLinear
from qdiff_fx.backends.native.fusion.lower_transposed_conv import LowerTransposedConv
from qdiff_fx.backends.native.fusion.lower_volume_conv import LowerVolumeConv
from qdiff_fx.backends.native.fusion.pack_weight import WeightPacker
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.framework import Pass, PassReport, checks
from qdiff_fx.passes.rule import Rule, apply_rules

QDQ_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default


class LowerLayers(Pass):
    """Every layer the kernels take, and every quantizer.

    Args:
        release: free the codes of a weight once they are packed, unless somebody else reads them.
    """

    name = "lower_layers"
    requires = frozenset({"scaled by numbers"})
    ensures = frozenset({"lowered"})
    breaks = frozenset({"scaled by numbers"})  # there is nothing left that could be scaled otherwise

    def __init__(self, *, release: bool):
        self.release = release

    def run(self, gm: fx.GraphModule) -> PassReport:
        packer = WeightPacker(gm, release=self.release)
        # Why a layer stays in float is reported with the layer.
        lowerings = LowerLinear, LowerConv, LowerDepthwiseConv, LowerVolumeConv, LowerTransposedConv
        rules = LowerQuantizer(), *(lowering(packer) for lowering in lowerings)
        changes, _ = apply_rules(gm, rules, revisit="changed")
        return PassReport(self.name, tuple(changes))


class LowerQuantizer(Rule[fx.Node]):
    """``quantize_per_tensor(x, scale, …)`` → ``act_quantize(x, activation=none, scale=scale, …)``."""

    targets = frozenset({QDQ_QUANTIZE})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        x, scale, zero_point, low, high, dtype = found.args
        found.target = QUANTIZE
        found.args = ()
        found.kwargs = {
            **{"x": x, "activation": Activation.NONE.value, "out_dtype": dtype},
            **{"scale": scale, "zero_point": zero_point, "low": low, "high": high},
        }
        return "act_quantize"


@checks("lowered")
def _not_lowered(gm: fx.GraphModule) -> list[str]:
    return [f"{node.name} is no kernel" for node in gm.graph.nodes if node.target is QDQ_QUANTIZE]
