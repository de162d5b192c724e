"""Which quantized layers have an integer kernel, and why the others have none."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.backends.common.base import activation_of, weight_of
from qdiff_fx.backends.common.geometry import CONVS, conv_geometry
from qdiff_fx.backends.native.fusion.limits import sums_refusal
from qdiff_fx.ir.facts import layer_info

aten = torch.ops.aten


def why_float(layer: fx.Node) -> str:
    """Why the kernels do not take a layer of the q/dq graph; empty when they do."""
    info = layer_info(layer)
    if info.float_reason or info.kind == "attention":
        return info.float_reason
    is_conv = layer.target in CONVS
    if not is_conv and layer.target is not aten.linear.default:
        return f"there is no integer kernel for {info.kind} ({layer.target})"
    activation, weight = activation_of(layer), weight_of(layer)
    if activation is None or weight is None:
        return "its input or weight is not a dequantized tensor"
    if activation.args[5] != torch.uint8:
        return "its input is not quantized to uint8"
    if is_conv and conv_geometry(layer, CONVS[layer.target])[3] != 1:
        return "grouped convolutions have no integer kernel"
    return sums_refusal(weight)
