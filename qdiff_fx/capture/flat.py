"""From an exported program to the flat graph the rest of the package works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from qdiff_fx.capture.adapter import NETWORK, module_path, unfold_inputs
from qdiff_fx.capture.regions import inline_regions
from qdiff_fx.capture.tensor_names import rename_tensors
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import any_value, describe, set_path, set_value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import clean, get_attr_tensor, is_op
from qdiff_fx.signature.inputs import TensorInput


def flat_module(program: ExportedProgram, inputs: Sequence[TensorInput]) -> fx.GraphModule:
    """A plain GraphModule: placeholders named after `inputs`, parameters at their original dotted names.

    Parameters and buffers share memory with the network's, as objects of their own: moving or replacing
    those of the graph leaves the network alone.
    """
    program = _functional(program)
    paths = rename_tensors(program)
    unlifted = program.module(check_guards=False)
    inline_regions(unlifted)
    graph = unlifted.graph
    graph.set_codegen(fx.graph.CodeGen())
    for node in reversed(graph.nodes):
        if _writes(node):
            node.replace_all_uses_with(operand(node, 1))
        if is_op(node, *ops.CAPTURE_NOTES) or _writes(node):
            graph.erase_node(node)
    _keep_value_and_path(graph)
    unfold_inputs(graph, inputs)
    return clean(fx.GraphModule(_own_tensors(unlifted, paths), graph, "CapturedGraph"))


def _functional(program: ExportedProgram) -> ExportedProgram:
    """The program without in-place operators; but the copies of the results into inputs at its end."""
    bodies = [module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    if not any(_writes(node) for graph in bodies for node in graph.nodes):
        return program
    functional: ExportedProgram = program.run_decompositions({})
    for node in functional.graph.nodes:
        # The only two operators that export respells on the way.
        if is_op(node, torch.ops.aten.clone.default):
            node.replace_all_uses_with(operand(node))
        elif is_op(node, torch.ops.aten._native_batch_norm_legit_no_training.default):
            _as_batch_norm(node)
    return functional


def _as_batch_norm(node: fx.Node) -> None:
    value, weight, bias, mean, variance, momentum, epsilon = node.args
    node.target = torch.ops.aten.batch_norm.default
    node.args = (value, weight, bias, mean, variance, False, momentum, epsilon, False)
    set_value(node, any_value(node)[0])
    for output in list(node.users):
        output.replace_all_uses_with(node)


def _writes(node: fx.Node) -> bool:
    """Whether the node changes one of its inputs in place."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _own_tensors(unlifted: fx.GraphModule, paths: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Every tensor the graph reads by its name; get_attr nodes are renamed along. `paths`: where they were."""
    tensors: dict[str, torch.Tensor] = {}
    owned: dict[int, torch.Tensor] = {}
    for node in unlifted.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = get_attr_tensor(unlifted, node)
        node.target = str(node.target).removeprefix(f"{NETWORK}.")
        node._rename(node.target.replace(".", "_"))
        set_path(node, paths.get(node.target, node.target).rpartition(".")[0])
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
        describe(node, value=any_value(node), path=module_path(node))
