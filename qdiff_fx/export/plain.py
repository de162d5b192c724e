"""The q/dq graph without operators of ours: attention on codes, written out in quantizers and products."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound
from qdiff_fx.ir.edit import calls_of, clean, copy_graph
from qdiff_fx.kernels.ops import timestep_bin

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

WIDEST = 8
"""Bits of a probability that is written as a code."""


def plain_graph(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy whose calls are torch's own, or functions that only make such calls."""
    written = copy_graph(graph)
    for node in calls_of(written.graph, torch.ops.qdiff.timestep_bin.default):
        node.target = timestep_bin.reference
    for node in calls_of(written.graph, torch.ops.qdiff.int_attention.default):
        with written.graph.inserting_before(node):
            node.replace_all_uses_with(_attention(written.graph, bound(node)))
    return clean(written)


def _attention(graph: fx.Graph, given: dict[str, Any]) -> fx.Node:
    """See `kernels.ops.int_attention`: a row's largest probability is one, and the sum divides at the end."""

    def call(target: Any, *args: Any) -> fx.Node:
        return graph.call_function(target, args)

    def dequantized(name: str) -> fx.Node:
        codes = given[name]
        scale, zero_point, *limits = codes.args[1:6]
        kind = qd.dequantize_per_tensor.tensor if isinstance(scale, fx.Node) else qd.dequantize_per_tensor.default
        return call(kind, codes, scale, zero_point, *limits)

    q, k, v = (dequantized(name) for name in ("q", "k", "v"))
    scores = call(
        aten.mul.Tensor, call(aten.matmul.default, q, call(aten.transpose.int, k, -1, -2)), given["softmax_scale"]
    )
    if given["mask"] is not None:
        scores = _masked(graph, scores, given["mask"])
    # Of a row that may attend nothing, minus infinity less itself would be no number.
    peak = call(aten.clamp.default, call(aten.amax.default, scores, [-1], True), torch.finfo(torch.float32).min)
    probabilities = _coded(graph, call(aten.exp.default, call(aten.sub.Tensor, scores, peak)), given["prob_bits"])
    total = call(aten.sum.dim_IntList, probabilities, [-1], True)
    mixed = call(aten.matmul.default, probabilities, v)
    # A sum is one at least, or nothing is attended and it is zero.
    found = call(aten.div.Tensor, mixed, call(aten.clamp.default, total, 1 / (2 ** given["prob_bits"] - 1)))
    dtype = given["out_dtype"]
    return found if dtype == torch.float32 else _cast(graph, found, dtype)


def _cast(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    return graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})


def _masked(graph: fx.Graph, scores: fx.Node, mask: fx.Node) -> fx.Node:
    if value(mask).dtype != torch.bool:
        return graph.call_function(aten.add.Tensor, (scores, mask))
    least = graph.call_function(aten.scalar_tensor.default, (float("-inf"),))
    return graph.call_function(aten.where.self, (mask, scores, least))


def _coded(graph: fx.Graph, exponentials: fx.Node, bits: int) -> fx.Node:
    """The nearest of `2**bits - 1` steps from zero to one."""
    levels = 2**bits - 1
    if bits <= WIDEST:
        limits = (1 / levels, 0, 0, levels, torch.uint8)
        codes = graph.call_function(qd.quantize_per_tensor.default, (exponentials, *limits))
        return graph.call_function(qd.dequantize_per_tensor.default, (codes, *limits))
    steps = graph.call_function(aten.mul.Tensor, (exponentials, levels))
    return graph.call_function(aten.div.Tensor, (graph.call_function(aten.round.default, (steps,)), levels))
