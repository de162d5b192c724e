"""The observers that are left leave the graph."""

from __future__ import annotations

from typing import cast

from torch import fx

from qdiff_fx.ir.annotations import nodes_with
from qdiff_fx.ir.facts import LayerPlan
from qdiff_fx.passes.framework import Change, Pass, PassReport, checks


class RemoveObservers(Pass):
    """``observer(x, t)`` becomes ``x``: the last step of conversion, after which no node calls a module."""

    name = "remove_observers"
    requires = frozenset({"activations quantized", "weights quantized", "attention quantized"})
    ensures = frozenset({"canonical", "quantized"})
    breaks = requires | {"observed", "annotated"}

    def run(self, gm: fx.GraphModule) -> PassReport:
        changes: list[Change] = []
        for observer in gm.graph.nodes:
            if observer.op == "call_module":
                changes.append(Change(observer.name, str(observer.target), "removed"))
                observer.replace_all_uses_with(cast(fx.Node, observer.args[0]))
                gm.graph.erase_node(observer)
        return PassReport(self.name, tuple(changes))


@checks("quantized")
def _not_quantized(gm: fx.GraphModule) -> list[str]:
    called = [f"{node.name} still calls {node.target}" for node in gm.graph.nodes if node.op == "call_module"]
    return called + [f"{node.name} is planned and not converted" for node in nodes_with(gm, LayerPlan)]
