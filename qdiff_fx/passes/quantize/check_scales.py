"""Weights and scales that integers cannot stand for: named by their layer, before they become wrong numbers."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from qdiff_fx.errors import ConversionError
from qdiff_fx.ir.annotations import nodes_with, require
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import LayerPlan
from qdiff_fx.ir.widening import weight_tensor
from qdiff_fx.quant.numerics import SMALLEST_SCALE
from qdiff_fx.quant.parameters import ActivationParameters, WeightParameters

LARGEST = torch.finfo(torch.float32).max
NEGLIGIBLE = 1e-20
"""Of what a layer makes of its largest input: below it, weights that all become 0 are nothing lost."""


def check_weights(gm: fx.GraphModule) -> None:
    """`check_weight` of every layer that is to be quantized."""
    for node in nodes_with(gm, LayerPlan):
        info = require(node, LayerPlan).info
        if info.quantized and info.kind != "attention":
            check_weight(info.path, *weight_and_bias(gm, node))


def weight_and_bias(gm: fx.GraphModule, layer: fx.Node) -> tuple[Tensor, Tensor | None]:
    """Of a layer with a weight, in the type it computes in; no bias where that is none, or computed."""
    bias = layer.args[2] if len(layer.args) > 2 else None
    known = isinstance(bias, fx.Node) and bias.op == "get_attr"
    return weight_tensor(gm, layer), get_attr_tensor(gm, operand(layer, 2)) if known else None


def check_weight(layer: str, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ConversionError, which names the layer, for tensors that hold no numbers, NaN or infinity."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.is_meta:
            raise ConversionError(
                f"its {name} is on the meta device and holds no numbers", where=layer, fix="Load the weights first"
            )
        if not _is_finite(tensor):
            count = int((~tensor.float().isfinite()).sum())
            raise ConversionError(
                f"its {name} holds NaN or infinity ({count} of {tensor.numel()} numbers)",
                where=layer,
                fix="Mend the checkpoint, or keep the layer in float by a rule with quantize=False",
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite in float32: of double precision, too large is as bad. Copies nothing."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).float().isfinite().all())


def check_scales(layer: str, tensor: Tensor, weight: WeightParameters, activation: ActivationParameters) -> None:
    """Raises ConversionError, which names the layer, where scales of float32 are too coarse or too large for it.

    Args:
        layer: its id.
        tensor: its weight.
        weight: what that becomes.
        activation: what its input becomes.
    """
    way_out = "Scale the weights, or keep the layer in float by a rule with quantize=False"
    act_scale = max(activation.params.scale)
    largest = float(torch.stack(tensor.detach().aminmax()).abs().max())
    reach = largest * act_scale * activation.params.spec.qmax
    if reach > NEGLIGIBLE and float(weight.scales.max()) <= SMALLEST_SCALE:
        raise ConversionError("its weights are too small for scales of float32", where=layer, fix=way_out)
    if act_scale * float(weight.scales.max()) > LARGEST:
        raise ConversionError(
            "the product of the scales of its input and its weights exceeds float32", where=layer, fix=way_out
        )
