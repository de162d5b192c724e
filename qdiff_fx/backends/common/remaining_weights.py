"""Weights of layers that stay in float although their codes are at hand."""

from __future__ import annotations

from typing import cast

from torch import fx

from qdiff_fx.backends.common.base import DEQUANTIZE_WEIGHT, weight_codes
from qdiff_fx.ir.annotations import describe_like
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor, is_op
from qdiff_fx.quant.numerics import dequantize


def dequantize_remaining_weights(gm: fx.GraphModule) -> None:
    """Dequantize now, in place, the weights of layers that stay in float.

    Inductor would do it at every call, and its dequantize per channel does not take weights without zero-points.
    """
    for node in [n for n in gm.graph.nodes if is_op(n, DEQUANTIZE_WEIGHT) and n.users]:
        codes, scales, axis = operand(node), operand(node, 1), cast(int, node.args[3])
        weight = dequantize(weight_codes(gm, codes), get_attr_tensor(gm, scales), 0, axis=axis)
        name = add_buffer(gm, f"{codes.target}_dequantized", weight)
        with gm.graph.inserting_before(node):
            constant = gm.graph.get_attr(name)
        describe_like(constant, node, facts=True)
        node.replace_all_uses_with(constant)
        gm.graph.erase_node(node)
