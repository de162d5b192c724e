"""Weights of half precision that are read in float32 become float32."""

from __future__ import annotations

from torch import fx

from qdiff_fx.ir.annotations import path_of, set_value, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor, replace_tensor
from qdiff_fx.ir.widening import is_widened
from qdiff_fx.passes.framework import Change, Pass, PassReport


class WidenWeights(Pass):
    """``layer(x, widen(w))`` becomes ``layer(x, w)``, where w is a buffer of float32.

    For what a q/dq graph keeps in float: few layers, which are called many times.
    """

    name = "widen_weights"

    def run(self, gm: fx.GraphModule) -> PassReport:
        changes = []
        for node in [each for each in gm.graph.nodes if is_widened(each)]:
            source, known = operand(node), value(node)
            if value(source).dtype != known.dtype:  # else another layer that reads it came first
                replace_tensor(gm, str(source.target), get_attr_tensor(gm, source).detach().to(known.dtype))
                set_value(source, known)
                changes.append(Change(source.name, path_of(node), f"{source.target} is held in {known.dtype}"))
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
        return PassReport(self.name, tuple(changes))
