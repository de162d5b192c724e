"""Quantize before what only moves values, so that codes are moved, and quantizers meet what they can join."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.layers import QUANTIZERS, named
from qdiff_fx.ir.edit import is_op
from qdiff_fx.kernels.integer import Activation

aten = torch.ops.aten

# One scale for the whole tensor: it does not matter where in it a value lies.
MOVES = (
    aten.reshape.default,
    aten.view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.upsample_nearest2d.vec,
    aten.expand.default,
)


def hoist_quantizers(gm: fx.GraphModule) -> None:
    """``quantize(move(x))`` becomes ``move(quantize(x))``, through any number of moves, in place."""
    for quantize in [n for n in gm.graph.nodes if is_op(n, *QUANTIZERS)]:
        while named(quantize)["activation"] == Activation.NONE and is_op(named(quantize)["x"], *MOVES):
            _swap(quantize)


def _swap(quantize: fx.Node) -> None:
    move = named(quantize)["x"]
    graph = quantize.graph
    with graph.inserting_before(quantize):
        moved = graph.call_function(move.target, (quantize, *move.args[1:]), dict(move.kwargs))
    moved.meta = {"path": move.meta.get("path", ""), "val": move.meta["val"]}
    quantize.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)
    quantize.append(moved)
    source = move.args[0]
    quantize.kwargs = {**quantize.kwargs, "x": source}
    quantize.meta["val"] = source.meta["val"]
