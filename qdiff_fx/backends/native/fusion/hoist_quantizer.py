"""Quantize before what only moves values, so that codes are moved, and quantizers meet what they can join."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import MOVES, QUANTIZERS
from qdiff_fx.ir.annotations import any_value, describe_like, set_value
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class HoistQuantizer(Rule[fx.Node]):
    """``quantize(move(x))`` → ``move(quantize(x))``, through any number of moves."""

    targets = QUANTIZERS

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        moved = getattr(node.kwargs["x"], "target", None) in MOVES
        return node if moved and node.kwargs["activation"] == Activation.NONE else None

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        moves = 0
        while getattr(found.kwargs["x"], "target", None) in MOVES:
            _swap(found)
            moves += 1
        return f"above {moves} moves"


def _swap(quantize: fx.Node) -> None:
    move: Any = quantize.kwargs["x"]
    graph = quantize.graph
    with graph.inserting_before(quantize):
        moved = graph.call_function(move.target, (quantize, *move.args[1:]), dict(move.kwargs))
    describe_like(moved, move)
    quantize.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)
    quantize.append(moved)
    source = move.args[0]
    quantize.kwargs = {**quantize.kwargs, "x": source}
    set_value(quantize, any_value(source))
