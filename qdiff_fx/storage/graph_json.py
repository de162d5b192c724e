"""A q/dq graph as JSON and back: node names, operators of our table alone, arguments, shapes. No code is stored."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import fact, path_of, put, set_path, set_value, value_or_none
from qdiff_fx.ir.facts import Input, Part, QuantizedLayer, StaticQParams, WeightCodes
from qdiff_fx.quant.qparams import LayerInfo

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


def graph_from_json(rows: list[dict[str, Any]], modules: Collection[str] = ()) -> fx.Graph:
    """The graph ``graph_to_json`` wrote; every tensor node gets a fake tensor as its value.

    Args:
        rows: one dictionary per node.
        modules: paths of the modules that nodes may call; there are none in a q/dq graph.

    Raises:
        ArtifactError: the description is malformed or calls something outside the table of operators.
    """
    if not isinstance(rows, list):
        raise ArtifactError(f"the nodes are a {type(rows).__name__}, not a list", where="graph.json")
    graph, mode = fx.Graph(), FakeTensorMode()
    nodes: dict[str, fx.Node] = {}
    for index, row in enumerate(rows):
        try:
            node = _node_from_json(graph, row, nodes, modules)
            nodes[row["name"]] = node
            _describe_from_json(node, row, mode)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise ArtifactError(f"node {index} is malformed ({cause})", where="graph.json") from error
    graph.lint()
    return graph


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    row: dict[str, Any] = {"name": node.name, "op": node.op, "target": _target_name(node)}
    row["args"] = [_encode(node, arg) for arg in node.args]
    if node.kwargs:
        row["kwargs"] = {key: _encode(node, value) for key, value in node.kwargs.items()}
    row |= _known_to_json(node)
    value = value_or_none(node)
    if value is not None:
        row["val"] = [str(value.dtype).removeprefix("torch."), [_hint(size) for size in value.shape]]
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


def _hint(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _node_from_json(
    graph: fx.Graph, row: dict[str, Any], nodes: dict[str, fx.Node], modules: Collection[str]
) -> fx.Node:
    args = tuple(_decode(arg, nodes) for arg in row["args"])
    kwargs = {key: _decode(value, nodes) for key, value in row.get("kwargs", {}).items()}
    for key in kwargs:
        _check_name(key)
    calls_module = row["op"] == "call_module" and row["target"] in modules
    if row["op"] not in ("placeholder", "get_attr", "call_function", "output") and not calls_module:
        raise ArtifactError(f"node {row['name']!r} has operation {row['op']!r}", where="graph.json")
    target: Callable[..., Any] | str = row["target"]
    if row["op"] == "call_function":
        target = _target(row["target"])
    elif row["op"] in ("get_attr", "call_module"):
        _check_attribute(row["target"])
    else:
        _check_name(row["target"])
    _check_name(row["name"])
    node = graph.create_node(row["op"], target, args, kwargs, name=row["name"])
    if node.op == "call_function":
        _check_call(node)
    return node


def _check_name(text: str) -> None:
    """torch.fx writes names into the code it generates for a graph, so only a Python name may pass."""
    if not text.isidentifier() or keyword.iskeyword(text):
        raise ArtifactError(f"{text!r} is not a name", where="graph.json")


def _check_attribute(path: str) -> None:
    """torch.fx quotes the parts of a path that are no names, so none of them may end the quotes."""
    if not path.isprintable() or set(path) & set("\"'\\"):
        raise ArtifactError(f"{path!r} is not the path of a tensor", where="graph.json")


def _describe_from_json(node: fx.Node, row: dict[str, Any], mode: FakeTensorMode) -> None:
    """The reverse of `_known_to_json`, and the value."""
    set_path(node, row.get("path", ""))
    if row.get("timestep"):
        put(node, Input("timestep"))
    elif row.get("sample"):
        put(node, Input("sample"))
    if "channels" in row:
        first, end = row["channels"]
        put(node, Part((first, end)))
    if "weight_bits" in row:
        put(node, WeightCodes(row["weight_bits"]))
    if "static_qparams" in row:
        put(node, StaticQParams(*row["static_qparams"]))
    if "layer" in row:
        put(node, QuantizedLayer(LayerInfo.from_json(row["layer"])))
    if "val" in row:
        dtype, shape = row["val"]
        with mode:
            set_value(node, torch.empty(shape, dtype=_named(torch.dtype, dtype)))


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


def _target(name: str) -> Callable[..., Any]:
    row = ops.TABLE.get(name)
    if row is None or not row.stored:
        raise ArtifactError(
            f"{name!r} is not an operator that may be loaded",
            where="graph.json",
            fix="A newer qdiff_fx may know it; in a folder from somebody else it may be meant to do harm",
        )
    target = ops.resolve(row)
    if target is None:
        raise ArtifactError(
            f"this build of torch has no operator {name!r}", where="graph.json", fix="Use the torch it was saved with"
        )
    return target


def _check_call(node: fx.Node) -> None:
    """An operator of the list may still be asked to do more than compute."""
    reason = ops.why_not_stored(node)
    if reason:
        raise ArtifactError(f"{reason}, which a loaded graph may not", where=f"graph.json, node {node.name}")


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


def _decode(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((key, content),) = value.items()
    if key == "node":
        return nodes[content]
    if key == "tuple":
        return tuple(_decode(item, nodes) for item in content)
    if key == "slice":
        return slice(*(_decode(item, nodes) for item in content))
    if key == "float":
        return float(content)
    if key == "device":
        return torch.device(content)
    return _named(ENUMS[key], content)


def _named(kind: type, name: str) -> Any:
    value = getattr(torch, name)
    if not isinstance(value, kind):
        raise ArtifactError(f"torch.{name} is not a {kind.__name__}", where="graph.json")
    return value
