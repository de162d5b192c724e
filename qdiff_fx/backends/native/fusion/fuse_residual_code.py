"""The second code of a 16-bit input straight from its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import QUANTIZE, QUANTIZE_REST, layer_behind, replace_by_kernel
from qdiff_fx.passes.rule import Rule

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed
PARAMETERS = ("scale", "zero_point", "low", "high")


class ResidualCode(NamedTuple):
    """Two quantizers of one value: `second` codes what `first` leaves over."""

    first: fx.Node
    second: fx.Node


class FuseResidualCode(Rule[ResidualCode]):
    """``quantize(x - dequantize(quantize(x)))`` → one kernel on x.

    It makes the first code again, which costs less than reading it, and reads x in whichever type the kernel before
    writes.
    """

    targets = frozenset({QUANTIZE})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> ResidualCode | None:
        difference: Any = node.kwargs["x"]
        if getattr(difference, "target", None) is not aten.sub.Tensor or difference.kwargs:
            return None
        source, values = difference.args
        if getattr(values, "target", None) is not qd.dequantize_per_tensor.default:
            return None
        first, *parameters = values.args
        if getattr(first, "target", None) is not QUANTIZE or first.kwargs["x"] is not source:
            return None
        same = parameters[:4] == [first.kwargs[name] for name in PARAMETERS]
        return ResidualCode(first, node) if same else None

    def subject(self, node: fx.Node, found: ResidualCode) -> fx.Node:
        return layer_behind(node)

    def refuse(self, gm: fx.GraphModule, found: ResidualCode) -> str:
        if found.first.kwargs["out_dtype"] != torch.uint8 or found.second.kwargs["out_dtype"] != torch.uint8:
            return "its residual code is not one of uint8, which is what the kernel writes"
        low, high = found.second.kwargs["low"], found.second.kwargs["high"]
        return "" if (low, high) == (0, 255) else f"its residual code lies in {low}..{high}, the kernel's in 0..255"

    def rewrite(self, gm: fx.GraphModule, found: ResidualCode) -> str:
        first: Mapping[str, Any] = found.first.kwargs
        kwargs = {name: first[name] for name in ("x", "activation", *PARAMETERS)}
        kwargs |= {f"rest_{name}": found.second.kwargs[name] for name in ("scale", "zero_point")}
        replace_by_kernel(found.second, QUANTIZE_REST, kwargs)
        return "act_quantize_rest"
