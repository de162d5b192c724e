"""A sum is added by the layer that makes one of its sides, into what it writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import TO_ITSELF, fuse_into_epilogue, is_open, read_elsewhere
from qdiff_fx.ir.annotations import value_or_none
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class Sum(NamedTuple):
    """``add(layer, other)``."""

    add: fx.Node
    layer: fx.Node
    other: fx.Node


class FuseResidualAdd(Rule[Sum]):
    """``layer(x) + other`` → ``layer(x, residual=other)``, of two layers the later."""

    targets = frozenset({aten.add.Tensor})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Sum | None:
        left, right = node.args[:2]
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or node.kwargs.get("alpha", 1) != 1:
            return None
        pairs = [(right, left), (left, right)]  # the later one ends the sum
        found = [Sum(node, layer, other) for layer, other in pairs if is_open(layer)]
        return next((each for each in found if not self.refuse(gm, each)), found[0] if found else None)

    def subject(self, node: fx.Node, found: Sum) -> fx.Node:
        return found.layer

    def refuse(self, gm: fx.GraphModule, found: Sum) -> str:
        if found.other is found.layer:
            return TO_ITSELF
        if len(found.layer.users) > 1:
            return read_elsewhere("layer's result before a sum", found.layer, found.add)
        if found.layer.kwargs["residual"] is not None:
            return "it adds a residual already"
        if not _shape(found.other) == _shape(found.add) == _shape(found.layer):
            return "the sum spreads one of its sides over the other, which the layer's kernel cannot"
        return ""

    def rewrite(self, gm: fx.GraphModule, found: Sum) -> str:
        fuse_into_epilogue(found.layer, found.add, residual=found.other)
        return "part of the layer"


def _shape(node: fx.Node) -> Any:
    known = value_or_none(node)
    return None if known is None else known.shape
