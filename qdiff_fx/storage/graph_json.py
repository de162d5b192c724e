"""A graph as JSON: node names, operators of our table alone, arguments, shapes. No code is stored."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import example_size, fact, path_of, value_or_none
from qdiff_fx.ir.facts import Input, Part, QuantizedLayer, StaticQParams, WeightCodes

ENUMS: dict[str, type] = {
    "dtype": torch.dtype,
    "memory_format": torch.memory_format,
    "layout": torch.layout,
}


def graph_to_json(graph: fx.Graph) -> list[dict[str, Any]]:
    """One dictionary per node, in execution order.

    Raises:
        ArtifactError: a node calls something outside the table of operators (`ir/ops`), or has an argument of an
            unknown type.
    """
    return [_node_to_json(node) for node in graph.nodes]


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    row: dict[str, Any] = {"name": node.name, "op": node.op, "target": _target_name(node)}
    row["args"] = [_encode(node, arg) for arg in node.args]
    if node.kwargs:
        row["kwargs"] = {key: _encode(node, value) for key, value in node.kwargs.items()}
    row |= _known_to_json(node)
    value = value_or_none(node)
    if value is not None:
        row["val"] = [str(value.dtype).removeprefix("torch."), [example_size(size) for size in value.shape]]
    return row


def _known_to_json(node: fx.Node) -> dict[str, Any]:
    """What is known about a node and means something to the passes that run after loading, each under its key."""
    role, part, codes, static, layer = (
        fact(node, Input),
        fact(node, Part),
        fact(node, WeightCodes),
        fact(node, StaticQParams),
        fact(node, QuantizedLayer),
    )
    row: dict[str, Any] = {}
    if path_of(node):
        row["path"] = path_of(node)
    if role:
        row[role.role] = True
    if part:
        row["channels"] = part.channels
    if codes:
        row["weight_bits"] = codes.bits
    if static:
        row["static_qparams"] = (static.scale, static.zero_point)
    if layer:
        row["layer"] = layer.info.to_json()
    return row


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    reason, row = ops.why_not_stored(node), ops.row_of(node.target)
    if reason or row is None:
        raise ArtifactError(
            reason,
            where=f"node {node.name}",
            fix="Compute this outside the network; or, if it only computes, give it a row in qdiff_fx/ir/ops",
        )
    return row.name


def _encode(node: fx.Node, value: Any) -> Any:
    """JSON for one argument; anything JSON lacks becomes a one-key dictionary."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_encode(node, item) for item in value]}
    if isinstance(value, list):
        return [_encode(node, item) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode(node, item) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for key, kind in ENUMS.items():
        if isinstance(value, kind):
            return {key: str(value).removeprefix("torch.")}
    raise ArtifactError(f"an argument of type {type(value).__name__} cannot be saved", where=f"node {node.name}")
