"""Scales and zero-points that a graph holds as tensors of one element become the numbers in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import ATTENTION, NO_OUTPUT_QUANTIZER
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.passes.framework import checks
from qdiff_fx.passes.rule import Rule

qd = torch.ops.quantized_decomposed
BY_TENSORS = torch.ops.qdiff.int_attention.default
ATTENTION_ARGUMENTS = (
    *("q", "k", "v", "mask", "q_scale", "q_zero_point", "k_scale", "v_scale"),
    *("softmax_scale", "prob_bits", "out_dtype"),
)
BY_NUMBER: dict[Any, Any] = {
    qd.quantize_per_tensor.tensor: qd.quantize_per_tensor.default,
    qd.dequantize_per_tensor.tensor: qd.dequantize_per_tensor.default,
}


class QuantizeByNumbers(Rule[fx.Node]):
    """``quantize(x, tensor(scale), tensor(zero_point), …)`` → ``quantize(x, scale, zero_point, …)``."""

    targets = frozenset(BY_NUMBER)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        found.target = BY_NUMBER[found.target]
        found.args = (found.args[0], *(_number(gm, arg) for arg in found.args[1:3]), *found.args[3:])
        return "parameters are numbers"


class AttentionByNumbers(Rule[fx.Node]):
    """Attention whose scales are tensors → the overload that takes numbers, and a quantizer of its output."""

    targets = frozenset({BY_TENSORS})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        values = [*found.args[:4], *(_number(gm, constant) for constant in found.args[4:8]), *found.args[8:]]
        found.target = ATTENTION
        found.args = ()
        found.kwargs = {**dict(zip(ATTENTION_ARGUMENTS, values, strict=True)), **NO_OUTPUT_QUANTIZER}
        return "scales are numbers"


def _number(gm: fx.GraphModule, value: Any) -> Any:
    """The number in a tensor the graph holds; numbers, also those looked up, stay what they are."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return get_attr_tensor(gm, value).item()
    return value


@checks("scaled by numbers")
def _scaled_by_tensors(gm: fx.GraphModule) -> list[str]:
    left = {*BY_NUMBER, BY_TENSORS}
    return [f"{node.name} takes its scale as a tensor" for node in gm.graph.nodes if node.target in left]
