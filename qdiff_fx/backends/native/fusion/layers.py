"""Quantize nodes and integer layers as calls of our kernels, one for one: what the other rewrites start from.

All of a kernel's arguments are keyword arguments until the end, so that a rewrite changes one by its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.common.base import activation_of, weight_codes, weight_of
from qdiff_fx.backends.common.geometry import CONVS, conv_geometry
from qdiff_fx.backends.common.memory import trim
from qdiff_fx.backends.common.running import computes
from qdiff_fx.backends.native.fusion.limits import WeightReach, sums_refusal
from qdiff_fx.backends.native.fusion.numbers import ATTENTION_NUMBERS, NO_OUTPUT_QUANTIZER
from qdiff_fx.ir.annotations import put
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor, is_op
from qdiff_fx.ir.facts import layer_info, quantized_layers
from qdiff_fx.kernels.integer import Activation

aten, qd, qdiff = torch.ops.aten, torch.ops.quantized_decomposed, torch.ops.qdiff

CONV, LINEAR = qdiff.int_conv.default, qdiff.int_linear.default
QUANTIZE, QUANTIZE_REST, GROUP_NORM, LAYER_NORM = (
    qdiff.act_quantize.default,
    qdiff.act_quantize_rest.default,
    qdiff.group_norm_act.default,
    qdiff.layer_norm_act.default,
)
LAYERS = (CONV, LINEAR)
QUANTIZERS = (QUANTIZE, QUANTIZE_REST)
TRIM_EVERY = 32 << 20  # bytes freed: packed weights would otherwise take new memory beside what freed ones leave
NO_QUANTIZER = {"scale": 1.0, "zero_point": 0, "low": 0, "high": 0}


def refusal(layer: fx.Node) -> str:
    """Why the kernels do not take a layer of the q/dq graph; empty when they do."""
    info = layer_info(layer)
    if info.float_reason or info.kind == "attention":
        return info.float_reason
    is_conv = layer.target in CONVS
    if not is_conv and not is_op(layer, aten.linear.default):
        return f"there is no integer kernel for {info.kind} ({layer.target})"
    activation = activation_of(layer)
    if activation is None or weight_of(layer) is None:
        return "its input or weight is not a dequantized tensor"
    if activation.args[5] != torch.uint8:
        return "its input is not quantized to uint8"
    if is_conv and conv_geometry(layer, CONVS[layer.target])[3] != 1:
        return "grouped convolutions have no integer kernel"
    return sums_refusal(layer)


def args_of(node: fx.Node) -> list[Any]:
    """The positional arguments of any call, to be read."""
    return list(node.args)


def call(graph: fx.Graph, target: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> fx.Node:
    """A call where the graph is being written; `target` may be another node's."""
    return graph.call_function(target, args, kwargs)


def named(node: fx.Node) -> dict[str, Any]:
    """The keyword arguments of a kernel call, to be read."""
    return dict(node.kwargs)


def lower_layers(gm: fx.GraphModule, *, release: bool = False) -> None:
    """Rewrite every layer the kernels take and every quantize node, in place.

    Args:
        release: free the codes of a weight once they are packed, unless somebody else reads them.
    """
    readers = Counter(str(n.target) for n in gm.graph.nodes if n.op == "get_attr")
    # Both layers of a 16-bit input read the same codes through one node.
    waiting = Counter(str(_codes_node(n).target) for n in quantized_layers(gm) if weight_of(n) is not None)
    packed: dict[tuple[str, int], PackedWeight] = {}
    for quantize in [n for n in gm.graph.nodes if is_op(n, qd.quantize_per_tensor.default)]:
        _lower_quantize(quantize)
    untrimmed = 0
    for layer in quantized_layers(gm):
        if is_op(layer, ATTENTION_NUMBERS) or refusal(layer):
            continue
        lower = _lower_linear if is_op(layer, aten.linear.default) else _lower_conv
        codes = _codes_node(layer)
        key = str(codes.target), layer_info(layer).weight_bits
        if key not in packed:
            packed[key] = _pack(gm, layer)
        with gm.graph.inserting_before(layer):
            integer = lower(gm, layer, packed[key])
        integer.meta.update(layer.meta)
        waiting[str(codes.target)] -= 1
        if release and readers[str(codes.target)] == 1 and not waiting[str(codes.target)]:
            storage = get_attr_tensor(gm, codes).untyped_storage()
            untrimmed += storage.nbytes()
            storage.resize_(0)
            if untrimmed >= TRIM_EVERY:
                trim()
                untrimmed = 0
        layer.replace_all_uses_with(integer)
        gm.graph.erase_node(layer)


def _lower_quantize(node: fx.Node) -> None:
    value, scale, zero_point, low, high, dtype = node.args
    node.target = QUANTIZE
    node.args = ()
    node.kwargs = {
        "x": value,
        "activation": Activation.NONE.value,
        "out_dtype": dtype,
        **{"scale": scale, "zero_point": zero_point, "low": low, "high": high},
    }


def _lower_linear(gm: fx.GraphModule, layer: fx.Node, weight: PackedWeight) -> fx.Node:
    codes, scale, zero_point = _activation(layer)
    return gm.graph.call_function(
        LINEAR,
        kwargs={
            **{"codes": codes, "scale": scale, "zero_point": zero_point},
            **weight.arguments(gm.graph.get_attr),
            "out_features": weight.channels,
            **{"bias": _bias(layer), "residual": None, "activation": Activation.NONE.value},
            **{"out_dtype": torch.float32, **NO_OUTPUT_QUANTIZER},
        },
    )


def _lower_conv(gm: fx.GraphModule, layer: fx.Node, weight: PackedWeight) -> fx.Node:
    codes, scale, zero_point = _activation(layer)
    dims = CONVS[layer.target]
    stride, padding, dilation, _ = conv_geometry(layer, dims)
    kernel = list(_codes_node(layer).meta["val"].shape[2:])
    if dims == 1:
        codes = gm.graph.call_function(aten.unsqueeze.default, (codes, 2))  # an image of one line
        kernel, stride, padding, dilation = [1, *kernel], [1, *stride], [0, *padding], [1, *dilation]
    node = gm.graph.call_function(
        CONV,
        kwargs={
            **{"codes": [codes], "scales": [scale], "zero_points": [zero_point]},
            **weight.arguments(gm.graph.get_attr),
            **{"out_channels": weight.channels, "kernel": kernel, "stride": stride},
            **{"padding": [side for pad in padding for side in (pad, pad)], "dilation": dilation, "enlarge": [1, 1]},
            **{"bias": _bias(layer), "shift": None, "residual": None, "activation": Activation.NONE.value},
            **{"out_dtype": torch.float32, **NO_OUTPUT_QUANTIZER},
        },
    )
    if dims == 2:
        return node
    node.meta["path"] = layer.meta.get("path", "")
    computes(node, layer)
    return gm.graph.call_function(aten.squeeze.dim, (node, 2))


def _activation(layer: fx.Node) -> tuple[fx.Node, Any, Any]:
    activation = activation_of(layer)
    assert activation is not None
    codes, scale, zero_point = activation.args[:3]
    return codes, scale, zero_point  # type: ignore[return-value]


def _bias(layer: fx.Node) -> Any:
    return layer.args[2] if len(layer.args) > 2 else None


def _codes_node(layer: fx.Node) -> fx.Node:
    weight = weight_of(layer)
    assert weight is not None
    return weight.args[0]  # type: ignore[return-value]


@dataclass(frozen=True)
class PackedWeight:
    """One weight as the kernels read it: names of the buffers that hold it, whichever layers call for it.

    Attributes:
        channels: how many output channels are real; the buffers hold some more, as padding.
        reach: how large results it makes.
    """

    packed: str
    scales: str
    sums: str
    channels: int
    reach: WeightReach

    def arguments(self, read: Callable[[str], fx.Node]) -> dict[str, list[fx.Node]]:
        """The kernel's arguments, each a node of its own that `read` makes."""
        weight = read(self.packed)
        put(weight, self.reach)
        return {
            "weights": [weight],
            "weight_scales": [read(self.scales)],
            "weight_sums": [read(self.sums)],
        }


def _pack(gm: fx.GraphModule, layer: fx.Node) -> PackedWeight:
    """Pack the codes of a layer's weight."""
    codes_node, scales_node = _codes_node(layer), weight_of(layer).args[1]  # type: ignore[union-attr]
    codes = weight_codes(gm, codes_node)
    packed, sums = qdiff.pack_weight(codes, layer_info(layer).weight_bits)
    scales = torch.zeros(sums.numel())
    scales[: codes.shape[0]] = get_attr_tensor(gm, scales_node).float()  # type: ignore[arg-type]
    base = str(codes_node.target)
    return PackedWeight(
        add_buffer(gm, f"{base}_packed", packed),
        add_buffer(gm, f"{base}_padded_scales", scales),
        add_buffer(gm, f"{base}_sums", sums),
        codes.shape[0],
        WeightReach.of_codes(codes, scales[: codes.shape[0]]),
    )
