"""What rules that lower a layer have in common."""

from __future__ import annotations

from torch import fx

from qdiff_fx.backends.native.fusion.pack_weight import WeightPacker
from qdiff_fx.backends.native.fusion.supported import why_float
from qdiff_fx.ir.annotations import has
from qdiff_fx.ir.facts import QuantizedLayer
from qdiff_fx.passes.rule import Rule


class LowerLayer(Rule[fx.Node]):
    """A layer between dequantize nodes → its kernel on the codes.

    Args:
        packer: of the weights of the graph.
    """

    def __init__(self, packer: WeightPacker):
        self.packer = packer

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if has(node, QuantizedLayer) else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return why_float(found)
