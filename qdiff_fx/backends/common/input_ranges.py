"""The ranges that the quantizers of a q/dq graph cover, read back from their scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx.backends.common.base import activation_of
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import layer_info, quantized_layers


def input_ranges(graph: fx.GraphModule) -> dict[str, list[tuple[float, float]]]:
    """Layer → the smallest and the largest number its input's codes stand for, in every timestep bin, or once."""
    found = {}
    for node in quantized_layers(graph):
        source = activation_of(node)
        if source is not None:
            found[layer_info(node).path] = _ranges(graph, bound(source))
    return found


def _ranges(graph: fx.GraphModule, given: dict[str, Any]) -> list[tuple[float, float]]:
    scale, zero_point = (_numbers(graph, given[name]) for name in ("scale", "zero_point"))
    low, high = ((given[name] - zero_point) * scale for name in ("quant_min", "quant_max"))
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _numbers(graph: fx.GraphModule, given: Any) -> Tensor:
    """A number, or the table that it is looked up in."""
    if not isinstance(given, fx.Node):
        return torch.tensor([given], dtype=torch.float64)
    table = given if given.op == "get_attr" else operand(given)
    return get_attr_tensor(graph, table).double().flatten()
