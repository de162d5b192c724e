"""What a convolution's result is shifted by, channel by channel, is added by its kernel: the time embedding."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import CONV, fuse_into_epilogue, is_open, read_elsewhere
from qdiff_fx.ir.annotations import value, value_or_none
from qdiff_fx.ir.shapes import same_shape
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class Shifted(NamedTuple):
    """``add(conv, shift spread over the pixels)``; shift (N, O)."""

    add: fx.Node
    conv: fx.Node
    shift: fx.Node


class FuseChannelShift(Rule[Shifted]):
    """``conv(x) + shift[:, :, None, None]`` → ``conv(x, shift=shift)``."""

    targets = frozenset({aten.add.Tensor})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Shifted | None:
        if node.kwargs.get("alpha", 1) != 1:
            return None
        left, right = node.args[:2]
        return _shifted(node, left, right) or _shifted(node, right, left)

    def subject(self, node: fx.Node, found: Shifted) -> fx.Node:
        return found.conv

    def refuse(self, gm: fx.GraphModule, found: Shifted) -> str:
        for name in ("shift", "residual"):
            if found.conv.kwargs[name] is not None:
                return f"it adds a {name} already"
        if not same_shape(found.conv, found.add):
            return "the sum spreads the convolution's result over a batch of shifts"
        return read_elsewhere("layer's result before a sum", found.conv, found.add)

    def rewrite(self, gm: fx.GraphModule, found: Shifted) -> str:
        fuse_into_epilogue(found.conv, found.add, shift=found.shift)
        return "part of the convolution"


def _shifted(add: fx.Node, conv: Any, other: Any) -> Shifted | None:
    if getattr(conv, "target", None) is not CONV or not is_open(conv):
        return None
    inner = other
    for dim in (3, 2):
        if getattr(inner, "target", None) is not aten.unsqueeze.default or inner.args[1] not in (dim, -1):
            return None
        inner = inner.args[0]
    shift = value_or_none(inner)
    fits = shift is not None and shift.dim() == 2 and shift.shape[1] == conv.kwargs["out_channels"]
    return Shifted(add, conv, inner) if fits and value(add).dim() == 4 else None
