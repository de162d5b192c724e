"""Weights become integer codes with a dequantize node behind them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

import qdiff_fx.kernels  # noqa: F401, registers the operators used here
from qdiff_fx.ir.annotations import drop, nodes_with, put, require, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, insert_call, insert_get_attr
from qdiff_fx.ir.facts import RESIDUAL, LayerPlan, Observed, QuantizedLayer, WeightCodes
from qdiff_fx.ir.widening import weight_source
from qdiff_fx.passes.framework import Change, Pass, PassReport, Refusal
from qdiff_fx.quant.numerics import weight_range
from qdiff_fx.quant.parameters import ParameterStore

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


class QuantizeWeights(Pass):
    """``layer(x, w)`` becomes ``layer(x, dequantize(codes, scales))``, by a store of parameters.

    One scale per output channel, and no zero-points: weights are symmetric. The layers that read both codes of a
    16-bit input read one dequantize node. From here on a layer carries what became of it, in place of what was planned.
    """

    name = "quantize_weights"
    requires = frozenset({"activations quantized"})
    ensures = frozenset({"weights quantized"})

    def __init__(self, parameters: ParameterStore):
        self.parameters = parameters

    def run(self, gm: fx.GraphModule) -> PassReport:
        changes: list[Change] = []
        refusals: list[Refusal] = []
        weights: dict[str, fx.Node] = {}
        for layer in nodes_with(gm, LayerPlan):
            info = require(layer, LayerPlan).info
            if info.kind == "attention":
                continue
            drop(layer, LayerPlan)
            drop(layer, Observed)
            if not info.quantized:
                put(layer, QuantizedLayer(info))
                refusals.append(Refusal(layer.name, info.path, info.float_reason))
                continue
            output = self.parameters.outputs.get(info.path)
            put(layer, QuantizedLayer(replace(info, output=output.params if output else None)))
            owner = info.path.removesuffix(RESIDUAL)
            if owner == info.path:
                weights[owner] = self._quantize(gm, layer, owner)
            layer.update_arg(1, weights[owner])
            changes.append(Change(layer.name, info.path, f"weight of {info.weight_bits} bits"))
        return PassReport(self.name, tuple(changes), tuple(refusals))

    def _quantize(self, gm: fx.GraphModule, layer: fx.Node, name: str) -> fx.Node:
        weight, source = self.parameters.weights[name], weight_source(layer.args[1])
        assert source is not None
        base, dtype = str(source.target), value(operand(layer, 1)).dtype
        codes = insert_get_attr(gm, layer, add_buffer(gm, f"{base}_codes", weight.codes))
        scales = insert_get_attr(gm, layer, add_buffer(gm, f"{base}_scales", weight.scales))
        put(codes, WeightCodes(weight.bits))
        args = (codes, scales, None, weight.axis, *weight_range(weight.bits), torch.int8)
        values = insert_call(gm.graph, layer, qd.dequantize_per_channel.default, args)
        if dtype != torch.float32:
            values = insert_call(gm.graph, layer, aten.to.dtype, (values, dtype))
        if weight.bias is not None:
            bias = insert_get_attr(gm, layer, add_buffer(gm, f"{base}_bias", weight.bias.to(dtype)))
            layer.args = (*layer.args[:2], bias, *layer.args[3:])
        return values
