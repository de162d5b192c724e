"""A layer whose input has 16 bits runs twice: on the first code, and on the residual, which the second code holds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from qdiff_fx.ir.annotations import describe_like, put, require
from qdiff_fx.ir.arguments import function_of
from qdiff_fx.ir.edit import insert_call
from qdiff_fx.ir.facts import RESIDUAL, LayerPlan

aten = torch.ops.aten


def read_residual_too(gm: fx.GraphModule, layer: fx.Node, residual: fx.Node) -> None:
    """``layer(x̂)`` becomes ``layer(x̂) + layer(residual)``, in place; the bias is added once, both read one weight."""
    with gm.graph.inserting_after(layer):
        total = gm.graph.call_function(aten.add.Tensor)
    describe_like(total, layer)
    layer.replace_all_uses_with(total)
    args = (residual, layer.args[1], None, *layer.args[3:])
    fine = insert_call(gm.graph, total, function_of(layer), args, layer.kwargs, like=layer)
    plan = require(layer, LayerPlan)
    put(fine, replace(plan, info=replace(plan.info, path=plan.info.path + RESIDUAL)))
    total.args = (layer, fine)
