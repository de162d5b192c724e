"""Which layers are at the boundary of the network: what they read is the sample, or what they make the prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import any_value
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.facts import is_sample

# What a tensor goes through on the way from the network's input to a layer, or from a layer to the prediction.
MOVES = ops.ALIASES | ops.COPIES | ops.CASTS | ops.RESHAPES | ops.PADS | ops.PERMUTATIONS
SCALINGS = ops.AFFINE | ops.LIMITS  # decoders limit latents, and pictures


def reads_sample(layer: fx.Node) -> bool:
    """Whether a layer's input is the image being denoised, moved, cast, scaled or limited at most."""
    current = _observed(layer.args[0])
    while is_op(current, *MOVES, *SCALINGS):
        tensors = [node for node in current.all_input_nodes if isinstance(any_value(node), torch.Tensor)]
        if len(tensors) != 1:
            return False
        current = _observed(tensors[0])
    return isinstance(current, fx.Node) and current.op == "placeholder" and is_sample(current)


def makes_prediction(layer: fx.Node) -> bool:
    """Whether a layer's result is what the network returns, moved, cast, scaled, limited or added to at most."""
    readers = list(layer.users)
    while readers:
        reader = readers.pop()
        if reader.op == "output":
            return True
        if is_op(reader, *MOVES, *SCALINGS) or _is_observer(reader):
            readers += reader.users
    return False


def _is_observer(node: object) -> bool:
    """The only modules that a graph calls are observers, which hand on what they see."""
    return isinstance(node, fx.Node) and node.op == "call_module"


def _observed(node: Any) -> Any:
    return node.args[0] if _is_observer(node) else node
