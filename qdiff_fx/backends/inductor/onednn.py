"""Rewrite the q/dq graph onto oneDNN's int8 convolution and linear, weights packed ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument

from qdiff_fx.backends.common.base import ATTENTION, activation_of, weight_of, weight_tensors
from qdiff_fx.backends.common.geometry import CONVS, conv_geometry
from qdiff_fx.backends.common.running import computes
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import describe_like, path_of, put, require, set_path, value, value_or_none
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, calls_of, get_attr_tensor, is_op
from qdiff_fx.ir.facts import QuantizedLayer, layer_info, quantized_layers
from qdiff_fx.ir.ops import Trait

aten, onednn = torch.ops.aten, torch.ops.onednn

NO_POST_OP: tuple[Argument, ...] = ("none", [], "")


def refusal(layer: fx.Node) -> str:
    """Why oneDNN's int8 kernels do not take a quantized layer; empty when they do."""
    info = layer_info(layer)
    if info.float_reason or is_op(layer, ATTENTION):
        return info.float_reason
    if layer.target not in CONVS and not is_op(layer, aten.linear.default):
        return f"oneDNN has no int8 kernel for {info.kind} ({layer.target})"
    if activation_of(layer) is None or weight_of(layer) is None:
        return "its input or weight is not a dequantized tensor"
    return ""


def lower_to_onednn(gm: fx.GraphModule, output_dtype: torch.dtype) -> None:
    """Replace, in place, every layer oneDNN takes; the others keep dequantized values."""
    for layer in quantized_layers(gm):
        if refusal(layer):
            continue
        if layer.target in CONVS:
            _replace(gm, layer, _lower_conv, output_dtype)
        elif is_op(layer, aten.linear.default):
            _replace(gm, layer, _lower_linear, output_dtype)


def _replace(
    gm: fx.GraphModule,
    layer: fx.Node,
    lower: Callable[[fx.GraphModule, fx.Node, torch.dtype], fx.Node],
    output_dtype: torch.dtype,
) -> None:
    with gm.graph.inserting_before(layer):
        integer = lower(gm, layer, output_dtype)
    set_path(integer, path_of(layer))
    put(integer, require(layer, QuantizedLayer))
    computes(integer, layer)
    result = integer
    if CONVS.get(layer.target) == 1:
        with gm.graph.inserting_before(layer):
            result = gm.graph.call_function(aten.squeeze.dim, (integer, 2))
        describe_like(result, layer)
    layer.replace_all_uses_with(result)
    gm.graph.erase_node(layer)


def _lower_conv(gm: fx.GraphModule, layer: fx.Node, output_dtype: torch.dtype) -> fx.Node:
    dims = CONVS[layer.target]
    stride, padding, dilation, groups = conv_geometry(layer, dims)
    codes, scales = weight_tensors(gm, layer)
    if dims == 1:
        # A line is an image of one line: what torch says of the shapes of oneDNN's 1-D convolutions is wrong.
        codes = codes.unsqueeze(2)
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
    # oneDNN packs for a zero-point that is not known yet; any value does, the real one comes with the call.
    packed = onednn.qconv_prepack(codes, scales, 1.0, 128, stride, padding, dilation, groups, None)
    geometry = (stride, padding, dilation, groups)
    return _call(gm, layer, onednn.qconv_pointwise, packed, geometry, output_dtype)


def _lower_linear(gm: fx.GraphModule, layer: fx.Node, output_dtype: torch.dtype) -> fx.Node:
    codes, _ = weight_tensors(gm, layer)
    packed = onednn.qlinear_prepack(codes, None)
    return _call(gm, layer, onednn.qlinear_pointwise, packed, (), output_dtype)


def _call(
    gm: fx.GraphModule,
    layer: fx.Node,
    op: torch._ops.OpOverloadPacket,
    packed: torch.Tensor,
    geometry: tuple[Argument, ...],
    output_dtype: torch.dtype,
) -> fx.Node:
    activation, weight = activation_of(layer), weight_of(layer)
    assert activation is not None
    assert weight is not None
    quantized, scale, zero_point = activation.args[:3]
    if CONVS.get(layer.target) == 1:
        quantized = gm.graph.call_function(aten.unsqueeze.default, (quantized, 2))
        describe_like(quantized, operand(activation), value=value(operand(activation)).unsqueeze(2))
    overload = op.tensor if isinstance(scale, fx.Node) else op.default
    base = str(operand(weight).target)
    packed_node = gm.graph.get_attr(add_buffer(gm, f"{base}_packed", packed))
    scales = operand(weight, 1)
    channels = get_attr_tensor(gm, scales).numel()
    zeros = add_buffer(gm, f"{base}_zero_points", torch.zeros(channels, dtype=torch.int32))
    zeros_node = gm.graph.get_attr(zeros)
    bias = layer.args[2] if len(layer.args) > 2 else None
    return gm.graph.call_function(
        overload,
        (
            *(quantized, scale, zero_point, packed_node, scales, zeros_node, bias),
            *geometry,
            *(1.0, 0, output_dtype, *NO_POST_OP),
        ),
    )


def accumulate_sums(graph: fx.Graph) -> int:
    """``add(x, int8_layer(…))`` becomes the layer's sum post-op on x, where nothing else reads either.

    This is how the halves of a split shortcut are summed, and residuals, without a pass over memory of their own.
    Runs on the functional graph Inductor is about to schedule: the post-op writes into ``x``.

    Returns:
        How many adds were absorbed.
    """
    absorbed = 0
    for add in calls_of(graph, aten.add.Tensor):
        pair = _accumulation(add)
        if pair is None:
            continue
        into, layer = pair
        with graph.inserting_before(add):
            fused = graph.call_function(*_with_sum(layer, into))
        describe_like(fused, add, facts=True)
        add.replace_all_uses_with(fused)
        graph.erase_node(add)
        graph.erase_node(layer)
        absorbed += 1
    return absorbed


LAYER_OPS = ops.where(lambda row: Trait.ONEDNN_LAYER in row.traits)
SUM_OPS = ops.where(lambda row: Trait.ONEDNN_SUM in row.traits)


def _accumulation(add: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(x, layer) when the add can be the layer's post-op. x must be a fresh buffer: another layer's output."""
    left, right = add.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or add.kwargs.get("alpha", 1) != 1:
        return None
    for into, layer in ((left, right), (right, left)):
        same_layout = _same_shape(into, layer) and _same_shape(into, add)
        fresh = is_op(into, *LAYER_OPS, *SUM_OPS) and len(into.users) == 1
        if fresh and same_layout and is_op(layer, *LAYER_OPS) and len(layer.users) == 1 and into < layer:
            return (into, layer) if _takes_sum(layer) else None
    return None


def _takes_sum(layer: fx.Node) -> bool:
    is_conv = is_op(layer, onednn.qconv_pointwise.default, onednn.qconv_pointwise.tensor)
    return not is_conv or len(cast("list[int]", layer.args[7])) == 2


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    left, right = value_or_none(a), value_or_none(b)
    return left is not None and right is not None and left.shape == right.shape and left.dtype == right.dtype


def _with_sum(layer: fx.Node, into: fx.Node) -> tuple[Callable[..., object], tuple[Argument, ...]]:
    per_timestep = is_op(layer, onednn.qconv_pointwise.tensor, onednn.qlinear_pointwise.tensor)
    args = layer.args
    if is_op(layer, onednn.qconv_pointwise.default, onednn.qconv_pointwise.tensor):
        op = onednn.qconv2d_pointwise.binary_tensor if per_timestep else onednn.qconv2d_pointwise.binary
        return op, (*args[:6], into, *args[6:14], 1.0, 0, "sum", 1.0, *NO_POST_OP)
    op = onednn.qlinear_pointwise.binary_tensor if per_timestep else onednn.qlinear_pointwise.binary
    return op, (*args[:6], into, *args[6:10], 1.0, 0, "sum", 1.0, *NO_POST_OP)
