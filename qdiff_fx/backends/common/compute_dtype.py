"""Choose the float type that flows between integer operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import fx

from qdiff_fx.backends.common.base import DEQUANTIZE_ACTIVATION, DEQUANTIZE_WEIGHT
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import describe_like, value, value_or_none
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor, is_op
from qdiff_fx.ir.facts import is_timestep
from qdiff_fx.ir.ops import Trait

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


def set_compute_dtype(gm: fx.GraphModule, dtype: torch.dtype, before: fx.GraphModule) -> None:
    """Run everything between the integer operations of a lowered float32 graph in ``dtype``, in place.

    Inputs are cast on the way in (the timestep is not: bf16 holds no integer above 256 exactly), parameters once,
    here, and outputs back to the types they had in the graph before it was lowered.
    """
    returned = _types_returned(before.graph.output_node())
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and not is_timestep(node):
            _cast_after(node, dtype)
        elif node.op == "get_attr":
            _cast_parameter(gm, node, dtype)
        elif is_op(node, *DEQUANTIZE_ACTIVATION, DEQUANTIZE_WEIGHT):
            _cast_after(node, dtype)
        elif node.op == "output":
            _cast_outputs(node, returned)


def _is_float(node: fx.Node) -> bool:
    known = value_or_none(node)
    return known is not None and known.is_floating_point()


def _cast_after(node: fx.Node, dtype: torch.dtype) -> None:
    if not _is_float(node) or not node.users:
        return
    with node.graph.inserting_after(node):
        made = node.graph.call_function(aten.to.dtype, (node, dtype))
    describe_like(made, node, value=value(node).to(dtype))
    node.replace_all_uses_with(
        made, delete_user_cb=lambda user: user is not made and not ops.has_trait(user.target, Trait.READS_FLOAT32)
    )


def _cast_parameter(gm: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> None:
    users = [user for user in node.users if not ops.has_trait(user.target, Trait.READS_FLOAT32)]
    tensor = get_attr_tensor(gm, node)
    if not users or tensor.layout != torch.strided or not tensor.is_floating_point():
        return
    name = add_buffer(gm, f"{node.target}_{str(dtype).removeprefix('torch.')}", tensor.detach().to(dtype))
    with gm.graph.inserting_after(node):
        narrow = gm.graph.get_attr(name)
    known = value_or_none(node)
    describe_like(narrow, node, value=None if known is None else known.to(dtype), facts=True)
    for user in users:
        user.replace_input_with(node, narrow)


def _types_returned(output: fx.Node) -> list[torch.dtype | None]:
    """For each result its type; None where that is not floating, or not known."""
    results = cast("Sequence[fx.Node]", output.args[0])
    return [value(each).dtype if _is_float(each) else None for each in results]


def _cast_outputs(output: fx.Node, types: Sequence[torch.dtype | None]) -> None:
    """What is returned has the types it had before."""
    results = list(cast("Sequence[fx.Node]", output.args[0]))
    for index, (node, dtype) in enumerate(zip(results, types, strict=True)):
        if dtype is not None:
            with output.graph.inserting_before(output):
                results[index] = output.graph.call_function(aten.to.dtype, (node, dtype))
    output.args = (tuple(results),)
