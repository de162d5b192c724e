"""How many bits the layers of a quantized network have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from qdiff_fx.ir.annotations import nodes_with, require
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import WeightCodes, layer_info, quantized_layers, whole_layer
from qdiff_fx.quant.qparams import SIXTEEN_BITS


@dataclass(frozen=True)
class Bits:
    """Of a network whose layers may differ.

    Attributes:
        weights: of a weight on integers, in the mean.
        wide: layers that read 16 bits.
    """

    weights: float
    wide: int

    def __str__(self) -> str:
        """``4.37 bits a weight, 2 layers read 16 bits``."""
        reading = f"{self.wide} layer{'s read' if self.wide != 1 else ' reads'} {SIXTEEN_BITS} bits"
        return f"{self.weights:.2f} bits a weight, {reading}"


def bits_of_layers(graph: fx.GraphModule) -> Bits:
    """What the layers of a q/dq graph have."""
    total = bits = 0
    for node in nodes_with(graph, WeightCodes):
        codes = require(node, WeightCodes)
        count = math.prod(codes.packed_shape or get_attr_tensor(graph, node).shape)
        total, bits = total + count, bits + count * codes.bits
    infos = [layer_info(node) for node in quantized_layers(graph)]
    wide = {whole_layer(info.path) for info in infos if info.quantized and info.act_bits == SIXTEEN_BITS}
    return Bits(bits / max(total, 1), len(wide))
