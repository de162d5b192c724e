"""What the calls of integer layers have in common, however a layer becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx.backends.common.base import activation_of
from qdiff_fx.backends.native.fusion.kernels import CONV, NO_OUTPUT_QUANTIZER
from qdiff_fx.backends.native.fusion.pack_weight import PackedWeight
from qdiff_fx.ir.annotations import describe_like
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor, insert_call
from qdiff_fx.kernels.activations import Activation

aten = torch.ops.aten
Moves = tuple[tuple[Any, ...], ...]  # operators, each with its arguments after the first

# What a layer's kernel does to its result until a fusion changes it.
PLAIN_EPILOGUE: dict[str, Any] = {
    "residual": None,
    "activation": Activation.NONE.value,
    "out_dtype": torch.float32,
    **NO_OUTPUT_QUANTIZER,
}


@dataclass(frozen=True)
class Codes:
    """The input of an integer layer.

    Attributes:
        node: uint8 codes.
        scale, zero_point: numbers, or nodes of numbers that are looked up by the timestep.
    """

    node: fx.Node
    scale: Any
    zero_point: Any

    @classmethod
    def read_by(cls, layer: fx.Node) -> Codes:
        """Those behind a layer's dequantize node."""
        activation = activation_of(layer)
        assert activation is not None
        return cls(operand(activation), activation.args[1], activation.args[2])


@dataclass(frozen=True)
class Window:
    """How an `int_conv` moves over an image: each (height, width), the padding top, bottom, left, right."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def along(
        cls, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> Window:
        """Of one or two dimensions; a line is an image of one line."""
        missing = 2 - len(kernel)
        one, none = (1,) * missing, (0,) * missing * 2
        return cls((*one, *kernel), (*one, *stride), (*none, *padding), (*one, *dilation))


def bias_of(layer: fx.Node) -> fx.Node | None:
    """A layer's bias."""
    return operand(layer, 2) if len(layer.args) > 2 and layer.args[2] is not None else None


def changed_bias(layer: fx.Node, name: str, change: Any) -> fx.Node | None:
    """What a function makes of a layer's bias, if it has one, under a name beside it."""
    bias, gm = bias_of(layer), layer.graph.owning_module
    if bias is None or gm is None:
        return None
    changed: Tensor = change(get_attr_tensor(gm, bias).detach())
    with layer.graph.inserting_before(layer):
        return layer.graph.get_attr(add_buffer(gm, f"{bias.target}_{name}", changed))


def insert_conv(
    layer: fx.Node, codes: Codes, weight: PackedWeight, window: Window, bias: fx.Node | None, value: Tensor
) -> fx.Node:
    """An `int_conv` before `layer`, of which it computes all or some; `value` is what it produces."""
    graph, sources = layer.graph, [codes.node]
    if len(weight.parts) > 1:
        sources = [channels(layer, codes.node, part.first, part.last) for part in weight.parts]
    count = len(sources)
    with graph.inserting_before(layer):
        arguments: dict[str, Any] = {
            **{"codes": sources, "scales": [codes.scale] * count, "zero_points": [codes.zero_point] * count},
            **weight.arguments(graph),
            **{"out_channels": weight.channels, "kernel": list(window.kernel), "stride": list(window.stride)},
            **{"padding": list(window.padding), "dilation": list(window.dilation), "enlarge": [1, 1]},
            **{"bias": bias, "shift": None, **PLAIN_EPILOGUE},
        }
        kernel = graph.call_function(CONV, kwargs=arguments)
    describe_like(kernel, layer, value=value, facts=True)
    return kernel


def channels(layer: fx.Node, codes: fx.Node, first: int, last: int) -> fx.Node:
    """Channels `first` to `last` of images, before `layer`."""
    return insert_call(layer.graph, layer, aten.slice.Tensor, (codes, 1, first, last))


def moved(layer: fx.Node, node: fx.Node, *moves: tuple[Any, ...]) -> fx.Node:
    """A node after some `Moves`, before `layer`."""
    for target, *arguments in moves:
        node = insert_call(layer.graph, layer, target, (node, *arguments))
    return node


def replace_layer(layer: fx.Node, result: fx.Node) -> None:
    """Whoever read the layer reads what is computed in its place."""
    layer.replace_all_uses_with(result)
    layer.graph.erase_node(layer)
