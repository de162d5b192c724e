"""From an exported program to the flat graph the rest of the package works on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from qdiff_fx.capture.adapter import NETWORK, unfold_inputs
from qdiff_fx.graph import clean, get_attr_tensor, is_op
from qdiff_fx.signature.inputs import TensorInput

_ASSERTIONS = (
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
)


def flat_module(program: ExportedProgram, inputs: Sequence[TensorInput]) -> fx.GraphModule:
    """A plain GraphModule: placeholders named after `inputs`, parameters at their original dotted names.

    Parameters and buffers share memory with the network's, as objects of their own: moving or replacing
    those of the graph leaves the network alone.
    """
    if any(map(_writes, program.graph.nodes)):
        program = program.run_decompositions({})
    unlifted = program.module(check_guards=False)
    graph = unlifted.graph
    graph.set_codegen(fx.graph.CodeGen())
    for node in reversed(graph.nodes):
        if is_op(node, *_ASSERTIONS) or (_writes(node) and not node.users):
            graph.erase_node(node)
    _keep_value_and_path(graph)
    unfold_inputs(graph, inputs)
    return clean(fx.GraphModule(_own_tensors(unlifted), graph, "CapturedGraph"))


def _writes(node: fx.Node) -> bool:
    """Whether the node changes one of its inputs in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _own_tensors(unlifted: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Every tensor the graph reads, at its name in the network; get_attr nodes are renamed along."""
    tensors: dict[str, torch.Tensor] = {}
    owned: dict[int, torch.Tensor] = {}
    for node in unlifted.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = get_attr_tensor(unlifted, node)
        node.target = str(node.target).removeprefix(f"{NETWORK}.")
        node._rename(node.target.replace(".", "_"))
        node.meta["path"] = node.target.rpartition(".")[0]
        tensors[node.target] = owned.setdefault(id(tensor), _own(tensor))
    return tensors


def _own(tensor: torch.Tensor) -> torch.Tensor:
    shared = tensor.detach()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(shared, requires_grad=tensor.requires_grad)
    return shared


def _keep_value_and_path(graph: fx.Graph) -> None:
    """Of export's notes on each node only the fake value stays, and the path of the module that made it."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        value = node.meta.get("val")
        node.meta.clear()
        node.meta.update(val=value, path=_module_path(path))


def _module_path(path: str) -> str:
    """Without the adapter's prefix, and without the call counter ("block@1") of a module called twice."""
    parts = [part.split("@")[0] for part in path.split(".")]
    return ".".join(parts[1:] if parts[0] == NETWORK else parts)
