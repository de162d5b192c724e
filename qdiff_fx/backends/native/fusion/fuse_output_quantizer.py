"""A layer whose result is only quantized writes the codes itself, the activation function before them included."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx

from qdiff_fx.backends.native.fusion.kernels import ATTENTION, LAYERS, QUANTIZE, fuse_into_epilogue, read_in_floats
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.checks import CODES
from qdiff_fx.passes.rule import Rule


class QuantizedResult(NamedTuple):
    """``quantize(layer(x))``."""

    quantize: fx.Node
    layer: fx.Node


class FuseOutputQuantizer(Rule[QuantizedResult]):
    """``quantize(layer(x), activation=act)`` → ``layer(x, activation=act, out_dtype=uint8, out_scale=…)``."""

    targets = frozenset({QUANTIZE})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> QuantizedResult | None:
        layer = node.kwargs["x"]
        if not isinstance(layer, fx.Node) or (layer.target not in LAYERS and layer.target is not ATTENTION):
            return None
        if node.kwargs["activation"] == Activation.GEGLU or layer.kwargs["out_dtype"] in CODES:
            return None
        return QuantizedResult(node, layer)

    def subject(self, node: fx.Node, found: QuantizedResult) -> fx.Node:
        return found.layer

    def refuse(self, gm: fx.GraphModule, found: QuantizedResult) -> str:
        elsewhere = read_in_floats("layer's float output", found.layer)
        return elsewhere or _why_activation(found.layer, found.quantize.kwargs["activation"])

    def rewrite(self, gm: fx.GraphModule, found: QuantizedResult) -> str:
        changes = quantizer_of_output(found.quantize)
        if found.quantize.kwargs["activation"] != Activation.NONE:
            changes["activation"] = found.quantize.kwargs["activation"]
        fuse_into_epilogue(found.layer, found.quantize, **changes)
        return "the layer writes codes"


def quantizer_of_output(quantize: fx.Node) -> dict[str, Any]:
    """A quantizer's parameters as arguments of the kernel that writes its codes."""
    parameters = {f"out_{name}": quantize.kwargs[name] for name in ("scale", "zero_point", "low", "high")}
    return {**parameters, "out_dtype": quantize.kwargs["out_dtype"]}


def _why_activation(layer: fx.Node, activation: Any) -> str:
    if activation == Activation.NONE:
        return ""
    if layer.target is ATTENTION:
        return f"attention's kernel does not compute {Activation(activation).name}"
    own = layer.kwargs["activation"]
    return "" if own == Activation.NONE else "two activation functions follow it, its kernel computes one"
