"""Nearest-neighbour upsampling before a convolution becomes part of where its kernel reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import CONV
from qdiff_fx.ir.arguments import operand
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class Upsampled(NamedTuple):
    """``conv(upsample(codes))``."""

    conv: fx.Node
    upsample: fx.Node


class FuseUpsampling(Rule[Upsampled]):
    """``conv(upsample(codes, factors))`` → ``conv(codes, enlarge=factors)``."""

    targets = frozenset({CONV})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Upsampled | None:
        codes: Any = node.kwargs["codes"]
        upsample, *more = codes
        nearest = upsample.target is aten.upsample_nearest2d.vec
        return Upsampled(node, upsample) if nearest and not more else None

    def refuse(self, gm: fx.GraphModule, found: Upsampled) -> str:
        _, size, factors = _arguments(found.upsample)
        if size is not None:
            return "it is upsampled to a size, the kernel takes whole factors"
        if any(factor != int(factor) for factor in factors):
            return f"it is upsampled by {factors}, the kernel takes whole factors"
        if found.conv.kwargs["enlarge"] != [1, 1]:
            return "it is upsampled twice, the kernel does so once"
        return ""

    def rewrite(self, gm: fx.GraphModule, found: Upsampled) -> str:
        conv, upsample = found
        codes, _, factors = _arguments(upsample)
        enlarge = [int(factor) for factor in factors]
        conv.kwargs = {**conv.kwargs, "codes": [codes], "enlarge": enlarge}
        if not upsample.users:
            gm.graph.erase_node(upsample)
        return f"enlarge {enlarge}"


def _arguments(upsample: fx.Node) -> tuple[fx.Node, Any, Any]:
    return operand(upsample), upsample.args[1], upsample.args[2]
