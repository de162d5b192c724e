"""The observers that are left leave the graph."""

from __future__ import annotations

from typing import cast

from torch import fx

from qdiff_fx.passes.framework import Change, Pass, PassReport


class RemoveObservers(Pass):
    """``observer(x, t)`` becomes ``x``: the last step of conversion, after which no node calls a module."""

    name = "remove_observers"
    requires = frozenset({"activations quantized", "weights quantized", "attention quantized"})
    ensures = frozenset({"quantized"})
    breaks = requires

    def run(self, gm: fx.GraphModule) -> PassReport:
        changes: list[Change] = []
        for observer in gm.graph.nodes:
            if observer.op == "call_module":
                changes.append(Change(observer.name, str(observer.target), "removed"))
                observer.replace_all_uses_with(cast(fx.Node, observer.args[0]))
                gm.graph.erase_node(observer)
        return PassReport(self.name, tuple(changes))
