"""What a kernel call of the lowered graph runs, what it does beside its layer, and why not more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from qdiff_fx.backends.common.base import LayerReport
from qdiff_fx.backends.common.running import Running, attention_name
from qdiff_fx.backends.native.fusion.kernels import ATTENTION, LAYERS
from qdiff_fx.ir.annotations import require
from qdiff_fx.ir.facts import Computes
from qdiff_fx.kernels.activations import Activation
from qdiff_fx.kernels.checks import CODES
from qdiff_fx.kernels.running import kernel_name
from qdiff_fx.passes.framework import PassReport

ACTIVATIONS = {
    Activation.SILU: "silu",
    Activation.GELU: "gelu",
    Activation.GELU_TANH: "gelu (tanh)",
    Activation.GEGLU: "geglu",
    Activation.RELU: "relu",
}


def describe(node: fx.Node) -> Running | None:
    """What a call runs; None where it is no kernel of a layer."""
    arguments: dict[str, Any] = node.kwargs
    if node.target is ATTENTION:
        kernel = attention_name(node, arguments["prob_bits"])
    elif node.target in LAYERS:
        kernel = kernel_name(node.target)
    else:
        return None
    absorbed = ", ".join(_absorbed(node))
    return Running(kernel, (f"its kernel also does: {absorbed}",) if absorbed else ())


def with_refusals(
    rows: Sequence[LayerReport], reports: Sequence[PassReport], module: nn.Module
) -> tuple[LayerReport, ...]:
    """The rows, with why what surrounds a layer was not fused into it, as far as the lowered module still shows it."""
    graphs = [each.graph for each in module.modules() if isinstance(each, fx.GraphModule)]
    left = {node.name for graph in graphs for node in graph.nodes}
    reasons: dict[str, dict[str, None]] = defaultdict(dict)
    for report in reports:
        for refusal in report.refused:
            if refusal.node in left:
                reasons[refusal.path][f"not fused: {refusal.reason}"] = None
    return tuple(replace(row, notes=(*row.notes, *reasons.get(row.info.path, ()))) for row in rows)


def _absorbed(node: fx.Node) -> Iterator[str]:
    arguments: dict[str, Any] = node.kwargs
    layers = require(node, Computes).layers
    if len(layers) > 1:
        yield f"sums {len(layers)} layers"
    if any(factor > 1 for factor in arguments.get("enlarge", ())):
        yield "upsamples its input"
    if arguments.get("shift") is not None:
        yield "adds a number for each channel"
    if arguments.get("residual") is not None:
        yield "adds a tensor"
    activation = Activation(arguments.get("activation", Activation.NONE))
    if activation in ACTIVATIONS:
        yield ACTIVATIONS[activation]
    if arguments["out_dtype"] in CODES:
        yield "quantizes its result"
