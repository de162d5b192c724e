"""A quantizer whose zero-point is its lowest code is a ReLU already, and reads before one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import QUANTIZE, layer_behind, read_elsewhere
from qdiff_fx.backends.native.fusion.look_up_scales import values_of
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule, replace_node

aten = torch.ops.aten


class Rectified(NamedTuple):
    """``quantize(relu(source))``."""

    quantize: fx.Node
    relu: fx.Node


class FuseReluIntoQuantizer(Rule[Rectified]):
    """``quantize(relu(x))`` → ``quantize(x)``: what is negative becomes the lowest code either way, to the bit.

    Only where nobody but quantizers reads the ReLU. Elsewhere it has to be computed, which the layer before it does.
    """

    targets = frozenset({QUANTIZE})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Rectified | None:
        relu: Any = node.kwargs["x"]
        rectified = getattr(relu, "target", None) is aten.relu.default
        return Rectified(node, relu) if rectified and node.kwargs["activation"] == Activation.NONE else None

    def subject(self, node: fx.Node, found: Rectified) -> fx.Node:
        return layer_behind(node)

    def refuse(self, gm: fx.GraphModule, found: Rectified) -> str:
        quantizers = [user for user in found.relu.users if user.target is QUANTIZE]
        elsewhere = read_elsewhere("ReLU before its quantizer", found.relu, *quantizers)
        return elsewhere or next(filter(None, (_why_not(gm, each) for each in quantizers)), "")

    def rewrite(self, gm: fx.GraphModule, found: Rectified) -> str:
        replace_node(found.relu, found.relu.all_input_nodes[0])
        return "the quantizer is a ReLU"


def _why_not(gm: fx.GraphModule, quantize: fx.Node) -> str:
    """Why a quantizer lets values below zero pass; empty when it does not."""
    if quantize.kwargs["activation"] != Activation.NONE:
        return "between ReLU and quantizer lies another activation function"
    low, zero_points = quantize.kwargs["low"], set(values_of(gm, quantize.kwargs["zero_point"]))
    return "" if zero_points == {low} else "the zero-point of its quantizer is not the lowest code: ReLU is computed"
