"""SiLU or ReLU behind a layer is computed by the layer's kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import fuse_into_epilogue, is_open, read_elsewhere
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten
ACTIVATIONS: dict[Any, Activation] = {aten.silu.default: Activation.SILU, aten.relu.default: Activation.RELU}
NAMES = {Activation.SILU: "SiLU", Activation.RELU: "ReLU"}


class FuseActivationIntoLayer(Rule[fx.Node]):
    """``silu(layer(x))`` → ``layer(x, activation=silu)``."""

    targets = frozenset(ACTIVATIONS)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if is_open(node.args[0]) else None

    def subject(self, node: fx.Node, found: fx.Node) -> fx.Node:
        return found.all_input_nodes[0]

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        name = NAMES[ACTIVATIONS[found.target]]
        return read_elsewhere(f"layer's result before {name}", found.all_input_nodes[0], found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        activation = ACTIVATIONS[found.target]
        fuse_into_epilogue(found.all_input_nodes[0], found, activation=activation.value)
        return f"{NAMES[activation]} is part of the layer"
