"""Group norm as the kernel that can also apply SiLU and quantize, and read the parts of a concat."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import GROUP_NORM, NO_QUANTIZER, replace_by_kernel
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class FuseGroupNorm(Rule[fx.Node]):
    """``group_norm(x)`` → ``group_norm_act([x], activation=none)``, which writes floats."""

    targets = frozenset({aten.group_norm.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        given = [*found.args[:5], *(None, None, 1e-5)[len(found.args) - 2 :]]
        x, groups, weight, bias, epsilon = given[:5]
        kwargs = {"parts": [x], "groups": groups, "weight": weight, "bias": bias, "epsilon": epsilon}
        kwargs |= {"activation": Activation.NONE.value, "out_dtype": torch.float32, **NO_QUANTIZER}
        replace_by_kernel(found, GROUP_NORM, kwargs)
        return "group_norm_act"
