"""Let an integer layer write codes itself where all that follows is a quantize."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

from qdiff_fx.backends.inductor.onednn import LAYER_OPS
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, is_op

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed

RESHAPES = (aten.reshape.default, aten.permute.default)
# Inductor takes every integer output of a layer for u8, so s8 codes leave the layer with this added to them.
SIGNED_OFFSET = 128
Quantizer = tuple[float, int, int, int, torch.dtype]  # scale, zero_point, qmin, qmax, dtype
FULL_RANGE = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def write_codes(gm: fx.GraphModule) -> int:
    """``quantize(reshape*(layer(…)))`` becomes ``reshape*(layer(…) as codes)``, in place; returns how many.

    oneDNN saturates to the storage type, so only codes that use all of it qualify; and only where nothing else
    reads the layer's float output.
    """
    fused = 0
    for quantize in [n for n in gm.graph.nodes if is_op(n, qd.quantize_per_tensor.default)]:
        value = operand(quantize)
        scale, zero_point, *limits, dtype = cast(Quantizer, quantize.args[1:])
        layer = _only_source(value)
        if layer is None or FULL_RANGE[dtype] != tuple(limits):
            continue
        offset = SIGNED_OFFSET if dtype == torch.int8 else 0
        # The output scale, zero-point and type come right before the post-op, which is the last three arguments.
        layer.args = (*layer.args[:-6], scale, zero_point + offset, torch.uint8, *layer.args[-3:])
        quantize.replace_all_uses_with(_signed(gm, quantize, value) if offset else value)
        gm.graph.erase_node(quantize)
        fused += 1
    return fused


def _signed(gm: fx.GraphModule, before: fx.Node, codes: fx.Node) -> fx.Node:
    with gm.graph.inserting_before(before):
        wide = gm.graph.call_function(aten.to.dtype, (codes, torch.int32))
        centred = gm.graph.call_function(aten.sub.Tensor, (wide, SIGNED_OFFSET))
        return gm.graph.call_function(aten.to.dtype, (centred, torch.int8))


def hide_from_inductor(gm: fx.GraphModule) -> None:
    """Give every quantize whose codes are not all of u8 its scale as a tensor, in place.

    Inductor's own fusions of a layer with the quantize behind it assume u8 codes from 0 to 255 whatever the node
    says. They do not look at the overload that takes tensors.
    """
    for quantize in [n for n in gm.graph.nodes if is_op(n, qd.quantize_per_tensor.default)]:
        scale, zero_point, *limits, dtype = cast(Quantizer, quantize.args[1:])
        if dtype == torch.uint8 and tuple(limits) == FULL_RANGE[torch.uint8]:
            continue
        with gm.graph.inserting_before(quantize):
            constants = [
                gm.graph.get_attr(add_buffer(gm, f"quantize_constants.{quantize.name}_{name}", torch.tensor([number])))
                for name, number in (("scale", float(scale)), ("zero_point", int(zero_point)))
            ]
        quantize.target = qd.quantize_per_tensor.tensor
        quantize.args = (operand(quantize), *constants, *limits, dtype)


def _only_source(node: object) -> fx.Node | None:
    """The integer layer at the start of a chain of reshapes that nothing else reads."""
    while isinstance(node, fx.Node) and len(_readers(node)) == 1:
        if is_op(node, *LAYER_OPS):
            return node if node.args[-4] in (torch.float32, torch.bfloat16) else None
        if not is_op(node, *RESHAPES):
            return None
        node = node.args[0]
    return None


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads the values; asking for a size does not."""
    return [user for user in node.users if not is_op(user, aten.sym_size.int)]
