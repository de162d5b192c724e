"""Attention runs on the codes of its query, keys and values."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

import qdiff_fx.kernels  # noqa: F401, registers the operators used here
from qdiff_fx.ir.annotations import drop, nodes_with, put, require, value
from qdiff_fx.ir.edit import add_buffer, insert_call, insert_get_attr, is_op
from qdiff_fx.ir.facts import LayerPlan, Observed, QuantizedLayer
from qdiff_fx.passes.framework import Change, Pass, PassReport, Refusal

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


class QuantizeAttention(Pass):
    """``sdpa(dequantize(q), dequantize(k), dequantize(v))`` becomes one integer attention on q, k and v."""

    name = "quantize_attention"
    requires = frozenset({"activations quantized"})
    ensures = frozenset({"attention quantized"})

    def run(self, gm: fx.GraphModule) -> PassReport:
        changes: list[Change] = []
        refusals: list[Refusal] = []
        for node in nodes_with(gm, LayerPlan):
            info = require(node, LayerPlan).info
            if info.kind != "attention":
                continue
            if info.quantized:
                attention = _integer_attention(gm, node, info.softmax_bits)
                put(attention, QuantizedLayer(info))
                changes.append(Change(node.name, info.path, f"probabilities of {info.softmax_bits} bits"))
                node.replace_all_uses_with(attention)
                gm.graph.erase_node(node)
            else:
                drop(node, LayerPlan)
                drop(node, Observed)
                put(node, QuantizedLayer(info))
                refusals.append(Refusal(node.name, info.path, info.float_reason))
        return PassReport(self.name, tuple(changes), tuple(refusals))


def _integer_attention(gm: fx.GraphModule, node: fx.Node, softmax_bits: int) -> fx.Node:
    query, key, value_ = (_quantizer(cast(fx.Node, node.args[index])) for index in range(3))
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    softmax_scale = node.kwargs.get("scale")
    if softmax_scale is None:
        softmax_scale = float(value(cast(fx.Node, node.args[0])).shape[-1]) ** -0.5
    constants = [
        _as_tensor(gm, node, quantizer.args[position], dtype)
        for quantizer, position, dtype in (
            (query, 1, torch.float32),
            (query, 2, torch.int64),
            (key, 1, torch.float32),
            (value_, 1, torch.float32),
        )
    ]
    args = (query, key, value_, mask, *constants, softmax_scale, softmax_bits, value(node).dtype)
    return insert_call(gm.graph, node, torch.ops.qdiff.int_attention.default, args)


def _quantizer(values: fx.Node) -> fx.Node:
    """The quantize node behind dequantized values."""
    if is_op(values, aten.to.dtype):
        values = cast(fx.Node, values.args[0])
    return cast(fx.Node, values.args[0])


def _as_tensor(gm: fx.GraphModule, before: fx.Node, number: object, dtype: torch.dtype) -> fx.Node:
    if isinstance(number, fx.Node):
        return number
    name = add_buffer(gm, f"attention_constants.{before.name}", torch.tensor(number, dtype=dtype))
    return insert_get_attr(gm, before, name)
