"""Graphs of tiny networks, without the package's own capture: the passes are tested on their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from qdiff_fx.ir.annotations import exported_module, put, set_path
from qdiff_fx.ir.edit import clean
from qdiff_fx.ir.facts import Input


class Call(nn.Module):
    """A function as a module, so that export takes it."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def export_graph(
    network: nn.Module | Callable[..., Any],
    *inputs: torch.Tensor,
    dynamic: bool = False,
    symbolic: dict[int, Any] | None = None,
    train: bool = False,
) -> fx.GraphModule:
    """The ATen graph of `network`, its first input marked as the sample.

    `symbolic` names the dynamic dimensions of every input; `dynamic` makes dimension 0 the batch.
    """
    module = (network if isinstance(network, nn.Module) else Call(network)).train(train)
    if dynamic:
        symbolic = {0: torch.export.Dim("batch", max=64)}
    shapes = tuple(symbolic for _ in inputs)
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    spec = (shapes,) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes
    program = torch.export.export(module, inputs, dynamic_shapes=spec if symbolic else None, strict=False)
    gm = program.module()
    for node in list(gm.graph.nodes):
        if node.op == "call_module":
            gm.graph.erase_node(node)
        set_path(node, exported_module(node))
    gm.graph.set_codegen(fx.graph.CodeGen())
    put(next(node for node in gm.graph.nodes if node.op == "placeholder"), Input("sample"))
    return clean(gm)


def call_graph(gm: fx.GraphModule, *inputs: torch.Tensor) -> torch.Tensor:
    """The graph's first output."""
    with torch.no_grad():
        result = gm(*inputs)
    return result[0] if isinstance(result, tuple | list) else result


def op_names(gm: fx.GraphModule) -> list[str]:
    """The ops of a graph in execution order, without namespace and overload: ["conv2d", "add"]."""
    return [
        str(node.target).removeprefix("aten.").split(".")[0] for node in gm.graph.nodes if node.op == "call_function"
    ]


@pytest.fixture(scope="session")
def export() -> Callable[..., fx.GraphModule]:
    return export_graph


@pytest.fixture(scope="session")
def call() -> Callable[..., torch.Tensor]:
    return call_graph


@pytest.fixture(scope="session")
def ops() -> Callable[[fx.GraphModule], list[str]]:
    return op_names
