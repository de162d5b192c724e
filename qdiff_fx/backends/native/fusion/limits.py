"""Whether what the kernels add up, and hand to each other, fits the type it is held in."""

from __future__ import annotations

from torch import fx

from qdiff_fx.backends.common.base import weight_codes, weight_of
from qdiff_fx.ir.annotations import value
from qdiff_fx.kernels.accumulator import MOST_WEIGHTS, overflow


def sums_refusal(layer: fx.Node) -> str:
    """Why a layer's sums might exceed the 32 bits kernels add them in; empty when they cannot."""
    weight = weight_of(layer)
    codes, gm = weight.args[0] if weight else None, layer.graph.owning_module
    if not isinstance(codes, fx.Node) or gm is None:
        return ""
    out, *inputs = value(codes).shape
    if inputs and 128 * value(codes).numel() <= MOST_WEIGHTS * out:
        return ""
    return overflow(weight_codes(gm, codes), bits=8)
