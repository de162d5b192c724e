"""Quantize nodes and integer layers become calls of our kernels, one for one: what the fusions start from."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.common.base import activation_of
from qdiff_fx.backends.common.geometry import CONVS, conv_geometry
from qdiff_fx.backends.native.fusion.kernels import CONV, LINEAR, NO_OUTPUT_QUANTIZER, QUANTIZE, replace_by_kernel
from qdiff_fx.backends.native.fusion.pack_weight import WeightPacker
from qdiff_fx.backends.native.fusion.supported import why_float
from qdiff_fx.ir.annotations import describe_like, has, set_value, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.facts import QuantizedLayer
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.framework import Pass, PassReport, checks
from qdiff_fx.passes.rule import Rule, apply_rules

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed
QDQ_QUANTIZE = qd.quantize_per_tensor.default

# What a layer's kernel does to its result until a fusion changes it.
PLAIN_EPILOGUE: dict[str, Any] = {
    "residual": None,
    "activation": Activation.NONE.value,
    "out_dtype": torch.float32,
    **NO_OUTPUT_QUANTIZER,
}


class LowerLayers(Pass):
    """Every layer the kernels take, and every quantizer.

    Args:
        release: free the codes of a weight once they are packed, unless somebody else reads them.
    """

    name = "lower_layers"
    requires = frozenset({"scaled by numbers"})
    ensures = frozenset({"lowered"})
    breaks = frozenset({"scaled by numbers"})  # there is nothing left that could be scaled otherwise

    def __init__(self, *, release: bool):
        self.release = release

    def run(self, gm: fx.GraphModule) -> PassReport:
        packer = WeightPacker(gm, release=self.release)
        # Why a layer stays in float is reported with the layer.
        changes, _ = apply_rules(gm, (LowerQuantizer(), LowerLinear(packer), LowerConv(packer)), revisit="changed")
        return PassReport(self.name, tuple(changes))


class LowerQuantizer(Rule[fx.Node]):
    """``quantize_per_tensor(x, scale, …)`` → ``act_quantize(x, activation=none, scale=scale, …)``."""

    targets = frozenset({QDQ_QUANTIZE})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        x, scale, zero_point, low, high, dtype = found.args
        found.target = QUANTIZE
        found.args = ()
        found.kwargs = {
            **{"x": x, "activation": Activation.NONE.value, "out_dtype": dtype},
            **{"scale": scale, "zero_point": zero_point, "low": low, "high": high},
        }
        return "act_quantize"


class _LowerLayer(Rule[fx.Node]):
    """A layer between dequantize nodes → its kernel on the codes."""

    def __init__(self, packer: WeightPacker):
        self.packer = packer

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if has(node, QuantizedLayer) else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return why_float(found)


class LowerLinear(_LowerLayer):
    """``linear(dequantize(x), dequantize(w), b)`` → ``int_linear(x, w, b)``."""

    targets = frozenset({aten.linear.default})

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        codes, scale, zero_point = _activation(found)
        weight = self.packer.pack(found)
        with gm.graph.inserting_before(found):
            constants = weight.arguments(gm.graph)
        kwargs = {
            **{"codes": codes, "scale": scale, "zero_point": zero_point, **constants},
            **{"out_features": weight.channels, "bias": _bias(found), **PLAIN_EPILOGUE},
        }
        self.packer.done(found)
        replace_by_kernel(found, LINEAR, kwargs)
        return "int_linear"


class LowerConv(_LowerLayer):
    """``conv(dequantize(x), dequantize(w), b)`` → ``int_conv([x], [w], b)``; a line is an image of one."""

    targets = frozenset({aten.conv1d.default, aten.conv2d.default})

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        codes, scale, zero_point = _activation(found)
        stride, padding, dilation, _ = conv_geometry(found, CONVS[found.target])
        flat = CONVS[found.target] == 1
        weight = self.packer.pack(found)
        kernel = list(weight.kernel)
        with gm.graph.inserting_before(found):
            constants = weight.arguments(gm.graph)
            if flat:
                codes = _unsqueezed(codes)
                kernel, stride, padding, dilation = [1, *kernel], [1, *stride], [0, *padding], [1, *dilation]
        kwargs = {
            **{"codes": [codes], "scales": [scale], "zero_points": [zero_point], **constants},
            **{"out_channels": weight.channels, "kernel": kernel, "stride": stride},
            **{"padding": [side for pad in padding for side in (pad, pad)], "dilation": dilation, "enlarge": [1, 1]},
            **{"bias": _bias(found), "shift": None, **PLAIN_EPILOGUE},
        }
        self.packer.done(found)
        result = replace_by_kernel(found, CONV, kwargs)
        if flat:
            _squeeze(result)
        return "int_conv"


def _unsqueezed(line: fx.Node) -> fx.Node:
    """A line as an image of one line."""
    image = line.graph.call_function(aten.unsqueeze.default, (line, 2))
    describe_like(image, line, value=value(line).unsqueeze(2))
    return image


def _squeeze(kernel: fx.Node) -> None:
    """Whoever reads the kernel's image of one line reads that line."""
    with kernel.graph.inserting_after(kernel):
        line = kernel.graph.call_function(aten.squeeze.dim, (kernel, 2))
    describe_like(line, kernel)
    set_value(kernel, value(line).unsqueeze(2))
    kernel.replace_all_uses_with(line, delete_user_cb=lambda user: user is not line)


def _activation(layer: fx.Node) -> tuple[fx.Node, Any, Any]:
    activation = activation_of(layer)
    assert activation is not None
    return operand(activation), activation.args[1], activation.args[2]


def _bias(layer: fx.Node) -> Any:
    return layer.args[2] if len(layer.args) > 2 else None


@checks("lowered")
def _not_lowered(gm: fx.GraphModule) -> list[str]:
    return [f"{node.name} is no kernel" for node in gm.graph.nodes if node.target is QDQ_QUANTIZE]
