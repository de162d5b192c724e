"""The float network as a graph, and its values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.ir.edit import copy_graph
from qdiff_fx.passes.quantize.widen_weights import WidenWeights


def without_observers(prepared: fx.GraphModule) -> fx.GraphModule:
    """The float network as a graph, its nodes named as in the prepared graph."""
    gm = copy_graph(prepared)
    for node in [n for n in gm.graph.nodes if n.op == "call_module"]:
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
    # Whoever keeps all values of many runs holds them in float32 once.
    WidenWeights().run(gm)
    gm.graph.lint()
    gm.recompile()
    return gm


@torch.no_grad()
def all_values(gm: fx.GraphModule, tensors: list[torch.Tensor]) -> dict[fx.Node, Any]:
    """The value of every node on these inputs."""
    interpreter = fx.Interpreter(gm, garbage_collect_values=False)
    interpreter.run(*tensors)
    return interpreter.env
