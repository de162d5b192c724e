"""Weights of layers that stay in float although their codes are at hand."""

from __future__ import annotations

from typing import cast

from torch import fx

from qdiff_fx.backends.common.base import DEQUANTIZE_WEIGHT, weight_codes
from qdiff_fx.ir.annotations import describe_like
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor
from qdiff_fx.passes.rule import Rule, apply_rules
from qdiff_fx.quant.numerics import dequantize


class DequantizeWeight(Rule[fx.Node]):
    """``dequantize(codes, scales)`` → the values it gives.

    Inductor would do it at every call, and its dequantize per channel does not take weights without zero-points.
    """

    targets = frozenset({DEQUANTIZE_WEIGHT})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        codes, scales, axis = operand(found), operand(found, 1), cast(int, found.args[3])
        weight = dequantize(weight_codes(gm, codes), get_attr_tensor(gm, scales), 0, axis=axis)
        name = add_buffer(gm, f"{codes.target}_dequantized", weight)
        with gm.graph.inserting_before(found):
            constant = gm.graph.get_attr(name)
        describe_like(constant, found, facts=True)
        found.replace_all_uses_with(constant)
        gm.graph.erase_node(found)
        return "its values"


def dequantize_remaining_weights(gm: fx.GraphModule) -> None:
    """Dequantize now, in place, the weights of layers that stay in float."""
    apply_rules(gm, (DequantizeWeight(),), revisit="changed")
