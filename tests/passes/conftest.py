"""Graphs of tiny networks, without the package's own capture: the passes are tested on their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from qdiff_fx.graph import clean


class Call(nn.Module):
    """A function as a module, so that export takes it."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def export_graph(
    network: nn.Module | Callable[..., Any], *inputs: torch.Tensor, dynamic: bool = False
) -> fx.GraphModule:
    """The ATen graph of `network` in eval mode; `dynamic` makes dimension 0 of every input the batch."""
    module = (network if isinstance(network, nn.Module) else Call(network)).eval()
    shapes = tuple({0: torch.export.Dim("batch", max=64)} if dynamic else None for _ in inputs)
    spec = shapes if isinstance(network, nn.Module) else (shapes,)
    gm = torch.export.export(module, inputs, dynamic_shapes=spec if dynamic else None, strict=False).module()
    for node in list(gm.graph.nodes):
        if node.op == "call_module":
            gm.graph.erase_node(node)
        stack = node.meta.get("nn_module_stack") or {"": ("", None)}
        node.meta["path"] = list(stack.values())[-1][0]
    gm.graph.set_codegen(fx.graph.CodeGen())
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    placeholders[0].meta["sample"] = True
    return clean(gm)


@pytest.fixture(scope="session")
def export() -> Callable[..., fx.GraphModule]:
    return export_graph
