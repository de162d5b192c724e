"""Code under torch.no_grad() or torch.autocast(enabled=False) comes out of export as a nested graph: inline it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.capture.adapter import module_path
from qdiff_fx.errors import CaptureError
from qdiff_fx.ir.edit import is_op

_GRAD_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST_REGION = torch.ops.higher_order.wrap_with_autocast


def inline_regions(gm: fx.GraphModule) -> None:
    """Replace every region by its operators.

    Whether gradients are recorded is the caller's choice, and autocast that is switched off changes nothing.
    Raises CaptureError for autocast that is switched on: its casts are not part of the graph.
    """
    for call in list(gm.graph.nodes):
        if is_op(call, _AUTOCAST_REGION) and call.args[2]:
            raise CaptureError(
                "the network runs a part of itself under torch.autocast",
                where=module_path(call),
                fix="Take the autocast out, and convert the network as a whole if it should run in another dtype",
            )
        if is_op(call, _GRAD_REGION, _AUTOCAST_REGION):
            _inline(gm, call)


def _inline(gm: fx.GraphModule, call: fx.Node) -> None:
    position = 1 if call.target is _GRAD_REGION else 4
    region: Any
    region, *operands = call.args[position:]
    body: Any = gm.get_submodule(region.target)
    inline_regions(body)
    parameters = [node for node in body.graph.nodes if node.op == "placeholder"]
    inlined = dict(zip(parameters, operands, strict=True))
    with gm.graph.inserting_before(call):
        results: Any = gm.graph.graph_copy(body.graph, inlined)
    for read in list(call.users):
        read.replace_all_uses_with(results[read.args[1]])
        gm.graph.erase_node(read)
    gm.graph.erase_node(call)
    if not region.users:
        gm.graph.erase_node(region)
