"""The activation function before a quantizer is computed by it."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import QUANTIZERS, layer_behind, read_elsewhere
from qdiff_fx.ir.annotations import value
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten


class Activated(NamedTuple):
    """``quantize(activation(source))``."""

    quantize: fx.Node
    activation: Activation
    source: fx.Node


class FuseActivationIntoQuantizer(Rule[Activated]):
    """``quantize(act(x))`` → ``quantize(x, activation=act)``.

    The activation is computed once for every quantizer that reads it: cheaper than a pass over memory.
    """

    targets = QUANTIZERS

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Activated | None:
        if node.kwargs["activation"] != Activation.NONE:
            return None
        found = _activation(node.kwargs["x"])
        return Activated(node, *found) if found else None

    def subject(self, node: fx.Node, found: Activated) -> fx.Node:
        return layer_behind(node)

    def refuse(self, gm: fx.GraphModule, found: Activated) -> str:
        if found.activation == Activation.RELU:  # cheap: where its floats are read too, the layer before it makes both
            relu: Any = found.quantize.kwargs["x"]
            quantizers = [user for user in relu.users if user.target in QUANTIZERS]
            return read_elsewhere("ReLU before its quantizer", relu, *quantizers)
        features = value(found.source).shape[-1]
        if found.activation == Activation.GEGLU and features % 2:
            return f"its {features} gated features do not halve"
        return ""

    def rewrite(self, gm: fx.GraphModule, found: Activated) -> str:
        changed = {"x": found.source, "activation": found.activation.value}
        found.quantize.kwargs = {**found.quantize.kwargs, **changed}
        return f"{found.activation.name} is part of the quantizer"


def _activation(node: Any) -> tuple[Activation, fx.Node] | None:
    target = getattr(node, "target", None)
    if target is aten.silu.default:
        return Activation.SILU, node.args[0]
    if target is aten.relu.default:
        return Activation.RELU, node.args[0]
    if target is aten.gelu.default:
        tanh = node.kwargs.get("approximate", node.args[1] if len(node.args) > 1 else "none") == "tanh"
        return (Activation.GELU_TANH if tanh else Activation.GELU), node.args[0]
    if target is aten.mul.Tensor:
        source = _gated(*node.args) or _gated(*reversed(node.args))
        return (Activation.GEGLU, source) if source is not None else None
    return None


def _gated(kept: Any, gate: Any) -> fx.Node | None:
    """The tensor of which `kept` is the first half and `gate` the gelu of the second."""
    if getattr(gate, "target", None) is not aten.gelu.default or len(gate.args) > 1 or gate.kwargs:
        return None
    halves = [half for half in (kept, gate.args[0]) if getattr(half, "target", None) is operator.getitem]
    if [half.args[1] for half in halves] != [0, 1] or halves[0].args[0] is not halves[1].args[0]:
        return None
    chunk = halves[0].args[0]
    if getattr(chunk, "target", None) is not aten.chunk.default or chunk.args[1:] != (2, -1):
        return None
    source: fx.Node = chunk.args[0]
    return source
