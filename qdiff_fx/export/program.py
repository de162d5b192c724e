"""A quantized network as a program of `torch.export`, with the q/dq operators that torch's other tools know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from qdiff_fx.export.plain import plain_graph
from qdiff_fx.ir.annotations import example_size, value
from qdiff_fx.signature import CallSignature
from qdiff_fx.signature.inputs import Size, TensorInput


def exported_program(graph: fx.GraphModule, signature: CallSignature) -> ExportedProgram:
    """The q/dq graph, traced once more: it takes the network's tensors by position and returns a tuple.

    Args:
        graph: with values.
        signature: of the network; its open sizes stay open.
    """
    network = _Positional(plain_graph(graph))
    inputs = [_example(node, spec) for node, spec in zip(_placeholders(graph), signature.inputs, strict=True)]
    with torch.no_grad():
        return torch.export.export(
            network, tuple(inputs), dynamic_shapes=(tuple(map(_open, signature.inputs)),), strict=False
        )


class _Positional(nn.Module):
    def __init__(self, graph: fx.GraphModule):
        super().__init__()
        self.network = graph

    def forward(self, *tensors: Tensor) -> Any:
        return self.network(*tensors)


def _placeholders(graph: fx.GraphModule) -> list[fx.Node]:
    return list(graph.graph.find_nodes(op="placeholder"))


def _example(node: fx.Node, spec: TensorInput) -> Tensor:
    """Zeros of the captured example's sizes. A size of one would be taken for one that stays."""
    sizes = [example_size(size) for size in value(node).shape]
    shape = [
        2 * size if isinstance(dim, Size) and size == dim.multiple else size
        for size, dim in zip(sizes, spec.dims, strict=True)
    ]
    return torch.zeros(shape, dtype=spec.dtype)


def _open(spec: TensorInput) -> dict[int, Any]:
    return {index: Dim.AUTO for index, dim in enumerate(spec.dims) if isinstance(dim, Size)}
