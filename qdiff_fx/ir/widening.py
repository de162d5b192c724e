"""Weights of half precision: held as the network holds them, and widened in front of each layer that reads them.

    layer(x, widen(weight))

So a network takes the bytes of its weights, shared with whoever else holds it, and what a layer reads in float32 lives
as long as that layer computes. Widening is one pass over the weight at every call, 0.7 ns a number, where the layer
itself makes one for each position of its input: 0.6 s of the 13 that a step of Stable Diffusion 1.5 takes one core.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, fx

from qdiff_fx.ir.annotations import describe, path_of, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor

HALF_TYPES = frozenset({torch.float16, torch.bfloat16})
"""Of these float32 holds every value."""
WIDEN = "qdiff.widen.default"


def is_widened(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` is the float32 form of a weight of half precision."""
    # By its name, as the operator is there only once the kernels are.
    return isinstance(node, fx.Node) and node.op == "call_function" and str(node.target) == WIDEN


def weight_source(weight: object) -> fx.Node | None:
    """The get_attr that a layer's weight is read from, as it is or widened; None where the weight is computed."""
    source = weight.args[0] if is_widened(weight) else weight
    return source if isinstance(source, fx.Node) and source.op == "get_attr" else None


def weight_tensor(gm: fx.GraphModule, layer: fx.Node) -> Tensor:
    """What a layer reads as its weight, where that is a parameter or buffer: the very tensor, or a widened copy.

    Raises:
        TypeError: the weight is computed.
    """
    source = weight_source(operand(layer, 1))
    if source is None:
        raise TypeError(f"the weight of {layer.name} is no parameter or buffer")
    return get_attr_tensor(gm, source).detach().to(value(operand(layer, 1)).dtype)


def insert_widening(source: fx.Node, layer: fx.Node) -> fx.Node:
    """The float32 form of a get_attr of half precision, made right in front of the layer that reads it."""
    graph = layer.graph
    with graph.inserting_before(layer):
        widened = graph.call_function(torch.ops.qdiff.widen.default, (source,))
    describe(widened, value=value(source).to(torch.float32), path=path_of(layer))
    return widened
