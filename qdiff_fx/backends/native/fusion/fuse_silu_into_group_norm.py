"""SiLU behind a group norm is computed by the norm's kernel."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import GROUP_NORM, read_elsewhere
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.checks import CODES
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class FuseSiluIntoGroupNorm(Rule[fx.Node]):
    """``silu(group_norm_act(x))`` → ``group_norm_act(x, activation=silu)``."""

    targets = frozenset({aten.silu.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        norm = node.args[0]
        if not isinstance(norm, fx.Node) or norm.target is not GROUP_NORM:
            return None
        plain = norm.kwargs["activation"] == Activation.NONE and norm.kwargs["out_dtype"] not in CODES
        return node if plain else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return read_elsewhere("norm's output before SiLU", found.all_input_nodes[0], found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        (norm,) = found.all_input_nodes
        norm.kwargs = {**norm.kwargs, "activation": Activation.SILU.value}
        found.replace_all_uses_with(norm)
        gm.graph.erase_node(found)
        return "part of the group norm"
