"""A concat of channels that only group norms read is never made: their kernel reads the parts."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import GROUP_NORM, read_elsewhere
from qdiff_fx.kernels.checks import MOST_PARTS
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class Concat(NamedTuple):
    """A concat, and the group norms that read it."""

    concat: fx.Node
    norms: list[fx.Node]


class FuseConcatIntoNorm(Rule[Concat]):
    """``group_norm([cat([a, b], 1)])`` → ``group_norm([a, b])``, for every norm that reads the concat."""

    targets = frozenset({aten.cat.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Concat | None:
        norms = [user for user in node.users if user.target is GROUP_NORM and user.kwargs["parts"] == [node]]
        return Concat(node, norms) if norms else None

    def subject(self, node: fx.Node, found: Concat) -> fx.Node:
        return found.norms[0]

    def refuse(self, gm: fx.GraphModule, found: Concat) -> str:
        parts, dim = _arguments(found.concat)
        if dim != 1:
            return f"its concat is along dimension {dim}, the kernel joins channels, dimension 1"
        if len(parts) > MOST_PARTS:
            return f"its concat has {len(parts)} parts, the kernel takes {MOST_PARTS}"
        return read_elsewhere("concat", found.concat, *found.norms)

    def rewrite(self, gm: fx.GraphModule, found: Concat) -> str:
        parts, _ = _arguments(found.concat)
        for norm in found.norms:
            norm.kwargs = {**norm.kwargs, "parts": list(parts)}
        gm.graph.erase_node(found.concat)
        return f"{len(parts)} parts are read by {len(found.norms)} norms"


def _arguments(concat: fx.Node) -> tuple[list[fx.Node], int]:
    return cast("tuple[list[fx.Node], int]", (*concat.args, 0)[:2])
