"""One scale per tensor in place of a table over timesteps, for kernels that take no other."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.backends.common.base import ATTENTION
from qdiff_fx.ir.annotations import fact
from qdiff_fx.ir.edit import calls_of, is_op
from qdiff_fx.ir.facts import StaticQParams

qd = torch.ops.quantized_decomposed

STATIC_OVERLOAD = {
    qd.quantize_per_tensor.tensor: qd.quantize_per_tensor.default,
    qd.dequantize_per_tensor.tensor: qd.dequantize_per_tensor.default,
}


def use_static_scales(gm: fx.GraphModule) -> int:
    """Quantize the inputs of weight layers with the scale measured over all timesteps, in place; returns how many.

    Conversion measures that scale beside every table. Attention keeps its tables: its kernel takes them.
    """
    changed = 0
    for quantize in calls_of(gm.graph, qd.quantize_per_tensor.tensor):
        static = fact(quantize, StaticQParams)
        if static is None or any(is_op(user, ATTENTION) for user in quantize.users):
            continue
        for node in (quantize, *quantize.users):
            if node.target in STATIC_OVERLOAD:
                node.target = STATIC_OVERLOAD[node.target]
                node.args = (node.args[0], static.scale, static.zero_point, *node.args[3:])
        changed += 1
    return changed
