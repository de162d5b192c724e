"""SiLU behind a layer is computed by the layer's kernel."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import fuse_into_epilogue, is_open, read_elsewhere
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class FuseActivationIntoLayer(Rule[fx.Node]):
    """``silu(layer(x))`` → ``layer(x, activation=silu)``."""

    targets = frozenset({aten.silu.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if is_open(node.args[0]) else None

    def subject(self, node: fx.Node, found: fx.Node) -> fx.Node:
        return found.all_input_nodes[0]

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return read_elsewhere("layer's result before SiLU", found.all_input_nodes[0], found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        fuse_into_epilogue(found.all_input_nodes[0], found, activation=Activation.SILU.value)
        return "part of the layer"
