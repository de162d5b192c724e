"""Turn quantized layers of the q/dq graph back into float ``nn`` modules, each with the integers it stands for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from qdiff_fx.backends.common.base import activation_of, weight_of
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import describe_like, value
from qdiff_fx.ir.edit import get_attr_tensor, is_op
from qdiff_fx.ir.facts import layer_info
from qdiff_fx.quant.numerics import dequantize

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed

CONVS: dict[object, type[nn.Module]] = {
    ops.CONVS[dims]: module for dims, module in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), start=1)
}
TRANSPOSED_CONVS: dict[object, type[nn.Module]] = {
    ops.TRANSPOSED_CONVS[dims]: module
    for dims, module in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), start=1)
}
CONV_OPTIONS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
TRANSPOSED_CONV_OPTIONS = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}


class Affine(NamedTuple):
    """``x ≈ (q − zero_point) · scale`` with u8 codes."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class LayerConstants:
    """Everything constant about one quantized layer.

    Attributes:
        input, output: how its activations are quantized.
        codes: int8 weight.
        scales: one per slice of ``codes`` along ``axis``, shape [codes.shape[axis]].
        bias: float32 [output channels] or ``None``.
        options: keyword arguments of the ``nn`` convolution; empty for a linear.
    """

    input: Affine
    output: Affine
    codes: Tensor
    scales: Tensor
    axis: int
    bias: Tensor | None
    options: dict[str, Any]


def refusal(layer: fx.Node) -> str:
    """Why a weight layer of the q/dq graph has no module with constant scales; empty when it has one."""
    info = layer_info(layer)
    if info.float_reason:
        return info.float_reason
    activation = activation_of(layer)
    if activation is None or weight_of(layer) is None:
        return "its input or weight is not a dequantized tensor"
    if not is_op(activation, qd.dequantize_per_tensor.default):
        return 'per-timestep scales are not supported by torch.ao; convert with act_granularity="tensor"'
    if not is_op(activation.args[0], qd.quantize_per_tensor.default):
        return "its input codes are not made by a quantize node"
    if info.output is None:
        return "the range of its output was not measured"
    if len(layer.args) > 2 and isinstance(layer.args[2], fx.Node) and layer.args[2].op != "get_attr":
        return "its bias is not a constant"
    return ""


def constants_of(gm: fx.GraphModule, layer: fx.Node) -> LayerConstants:
    """Read the constants of a layer that ``refusal`` let through."""
    activation, weight, output = activation_of(layer), weight_of(layer), layer_info(layer).output
    assert activation is not None
    assert weight is not None
    assert output is not None
    scale, zero_point = cast(tuple[float, int], activation.args[1:3])
    codes, scales, _, axis = cast(tuple[fx.Node, fx.Node, object, int], weight.args[:4])
    bias = cast(fx.Node | None, layer.args[2] if len(layer.args) > 2 else None)
    return LayerConstants(
        input=Affine(scale, zero_point),
        output=Affine(output.scale[0], output.zero_point[0]),
        codes=get_attr_tensor(gm, codes),
        scales=get_attr_tensor(gm, scales),
        axis=axis,
        bias=None if bias is None else get_attr_tensor(gm, bias).detach().float(),
        options=_options(layer),
    )


def _options(layer: fx.Node) -> dict[str, Any]:
    if is_op(layer, aten.linear.default):
        return {}
    defaults = CONV_OPTIONS if layer.target in CONVS else TRANSPOSED_CONV_OPTIONS
    options = {**defaults, **dict(zip(defaults, layer.args[3:], strict=False))}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def to_modules(
    gm: fx.GraphModule, layers: Iterable[fx.Node], compute_dtype: torch.dtype = torch.float32
) -> dict[str, LayerConstants]:
    """Replace, in place, each of ``layers`` by a call of a float32 module on the values before quantization.

    Layers that read one quantized tensor read one node afterwards; no two quantized tensors share a node, so
    whoever quantizes module inputs anew cannot confuse their scales.

    Args:
        layers: nodes that ``refusal`` let through.
        compute_dtype: type of the layers' results, where it is not float32.

    Returns:
        The constants of each module by its name in ``gm``.
    """
    modules: dict[str, LayerConstants] = {}
    inputs: dict[fx.Node, fx.Node] = {}
    owner = _unused_name(gm, "layers")
    gm.add_submodule(owner, nn.Module())
    for layer in layers:
        activation = cast(fx.Node, activation_of(layer))
        if activation not in inputs:
            inputs[activation] = _module_input(gm.graph, activation)
        constants = constants_of(gm, layer)
        name = _add_module(gm, owner, layer, constants)
        _call_instead(gm.graph, layer, name, inputs[activation], compute_dtype)
        modules[name] = constants
    return modules


def _module_input(graph: fx.Graph, activation: fx.Node) -> fx.Node:
    """x of ``dequantize(quantize(x))``, in float32 and clipped to what fewer than 256 codes hold."""
    quantized = cast(fx.Node, activation.args[0])
    x, scale, zero_point, qmin, qmax = cast(tuple[fx.Node, float, int, int, int], quantized.args[:5])
    with graph.inserting_before(quantized):
        values = graph.call_function(aten.to.dtype, (x, torch.float32))
        if (qmin, qmax) != (0, 255):
            bounds = (qmin - zero_point) * scale, (qmax - zero_point) * scale
            values = graph.call_function(aten.clamp.default, (values, *bounds))
    return values


def _call_instead(graph: fx.Graph, layer: fx.Node, name: str, x: fx.Node, compute_dtype: torch.dtype) -> None:
    dtype = value(layer).dtype if compute_dtype == torch.float32 else compute_dtype
    with graph.inserting_before(layer):
        result = graph.call_module(name, (x,))
        describe_like(result, layer, facts=True)
        if dtype != torch.float32:
            result = graph.call_function(aten.to.dtype, (result, dtype))
    layer.replace_all_uses_with(result)
    graph.erase_node(layer)


def _add_module(gm: fx.GraphModule, owner: str, layer: fx.Node, constants: LayerConstants) -> str:
    weight = dequantize(constants.codes, constants.scales, 0, axis=constants.axis)
    module = float_module(layer.target, weight, constants.bias, constants.options)
    # Module paths may hold one another ("attn" and "attn.to_q"), so they are flattened; and a part of one may be a word
    # of Python's or of torch.ao's ("in", "qconfig").
    flat = "".join(c if c.isalnum() else "_" for c in layer_info(layer).path).strip("_")
    name = f"{owner}.{_unused_name(gm.get_submodule(owner), f'layer_{flat or layer.name}')}"
    gm.add_submodule(name, module)
    return name


def _unused_name(module: nn.Module, stem: str) -> str:
    candidates = itertools.chain([stem], (f"{stem}_{count}" for count in itertools.count(1)))
    return next(name for name in candidates if not hasattr(module, name))


def float_module(target: object, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> nn.Module:
    """The ``nn`` module in eval mode that computes the ATen operator ``target`` with this weight and bias."""
    kernel = tuple(weight.shape[2:])
    common = {**options, "bias": bias is not None, "device": "meta"}
    module: nn.Module
    if target in CONVS:
        module = CONVS[target](weight.shape[1] * options["groups"], weight.shape[0], kernel, **common)
    elif target in TRANSPOSED_CONVS:
        module = TRANSPOSED_CONVS[target](weight.shape[0], weight.shape[1] * options["groups"], kernel, **common)
    else:
        module = nn.Linear(weight.shape[1], weight.shape[0], **common)
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    return module.eval()
