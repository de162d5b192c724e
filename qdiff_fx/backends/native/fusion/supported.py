"""Which quantized layers have an integer kernel, and why the others have none."""

from __future__ import annotations

import math

import torch
from torch import fx

from qdiff_fx.backends.common.base import activation_of, weight_codes, weight_of
from qdiff_fx.backends.common.geometry import CONVS, TRANSPOSED_CONVS, VOLUME_CONV, conv_geometry, transposed_axes
from qdiff_fx.backends.native.fusion.limits import input_parts
from qdiff_fx.backends.native.fusion.weight_forms import Phases
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.facts import layer_info
from qdiff_fx.kernels.checks import MOST_TAPS

LINEAR = torch.ops.aten.linear.default
MOST_ROW_DIMS = 4  # of the rows of a linear layer that is computed as a convolution
# What a kernel computes of zeros is lost. Measured, see "Other convolutions" in docs/kernels.md: beyond these float is
# faster.
BLOCK_CHANNELS, LEAST_GROUP_CHANNELS = 64, 16
MOST_WASTE = 3.0


def why_float(layer: fx.Node) -> str:
    """Why the kernels do not take a layer of the q/dq graph; empty when they do."""
    info = layer_info(layer)
    if info.float_reason or info.kind == "attention":
        return info.float_reason
    if layer.target not in (LINEAR, VOLUME_CONV, *CONVS, *TRANSPOSED_CONVS):
        return f"there is no integer kernel for {info.kind} ({layer.target})"
    activation, weight = activation_of(layer), weight_of(layer)
    if activation is None or weight is None:
        return "its input or weight is not a dequantized tensor"
    if activation.args[5] != torch.uint8:
        return "its input is not quantized to uint8"
    if layer.target is LINEAR:
        return _why_linear(layer, weight)
    if layer.target in TRANSPOSED_CONVS:
        return _why_transposed(layer)
    return _why_volume(layer) if layer.target is VOLUME_CONV else _why_conv(layer)


def is_depthwise(conv: fx.Node) -> bool:
    """Whether every channel is convolved by itself."""
    groups, weight = conv_geometry(conv, CONVS[conv.target])[3], value(operand(conv, 1)).shape
    return bool(groups > 1 and weight[0] == groups and weight[1] == 1)


def groups_together(conv: fx.Node) -> int:
    """How many groups of a grouped convolution one call computes: those whose output channels fill a block."""
    groups = conv_geometry(conv, CONVS[conv.target])[3]
    return min(groups, max(1, BLOCK_CHANNELS // (value(conv).shape[1] // groups)))


def phases_of(conv: fx.Node) -> Phases:
    """A transposed convolution as an ordinary one."""
    return Phases(transposed_axes(conv, value(operand(conv, 1)).shape[2:]))


def _why_linear(layer: fx.Node, weight: fx.Node) -> str:
    if value(layer).dim() <= MOST_ROW_DIMS:
        return ""
    gm = layer.graph.owning_module
    if gm is None or len(input_parts(weight_codes(gm, operand(weight)))) == 1:
        return ""
    return f"its sums may exceed 32 bits, and rows of {value(layer).dim()} dimensions are not summed in parts"


def _why_conv(layer: fx.Node) -> str:
    groups = conv_geometry(layer, CONVS[layer.target])[3]
    outputs = value(layer).shape[1] // groups
    if not is_depthwise(layer) and groups > 1 and outputs < LEAST_GROUP_CHANNELS:
        return f"a grouped convolution with groups of {outputs} output channels is faster in float"
    return _why_window(value(operand(layer, 1)).shape[2:])


def _why_transposed(layer: fx.Node) -> str:
    phases = phases_of(layer)
    if phases.waste > MOST_WASTE:
        return f"as an integer convolution it would multiply {phases.waste:.3g} times as often: float is faster"
    return _why_window(phases.window)


def _why_volume(layer: fx.Node) -> str:
    if conv_geometry(layer, 3)[3] != 1:
        return "grouped convolutions of volumes have no integer kernel"
    return _why_window(value(operand(layer, 1)).shape[3:])


def _why_window(kernel: tuple[int, ...]) -> str:
    taps = math.prod(kernel)
    return f"its kernel has {taps} taps, more than {MOST_TAPS}" if taps > MOST_TAPS else ""
