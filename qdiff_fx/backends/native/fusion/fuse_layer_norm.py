"""Layer norm as the kernel that can also quantize."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import LAYER_NORM, NO_QUANTIZER, replace_by_kernel
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class FuseLayerNorm(Rule[fx.Node]):
    """``layer_norm(x, [C])`` → ``layer_norm_act(x)``, which writes floats."""

    targets = frozenset({aten.layer_norm.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        shape: Any = found.args[1]
        return "" if len(shape) == 1 else f"it normalises {len(shape)} dimensions, the kernel one"

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        given = [*found.args[:5], *(None, None, 1e-5)[len(found.args) - 2 :]]
        x, _, weight, bias, epsilon = given[:5]
        kwargs = {"x": x, "weight": weight, "bias": bias, "epsilon": epsilon, "out_dtype": torch.float32}
        replace_by_kernel(found, LAYER_NORM, kwargs | NO_QUANTIZER)
        return "layer_norm_act"
