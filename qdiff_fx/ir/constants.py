"""Values known before the network runs: parameters, buffers and what is computed from them alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import value_or_none
from qdiff_fx.ir.arguments import function_of
from qdiff_fx.ir.edit import add_buffer, ancestors, get_attr_tensor


def is_constant(node: object) -> bool:
    """Whether `node` is computed from parameters and buffers alone, by deterministic ATen ops."""
    pending: list[object] = [node]
    seen: set[fx.Node] = set()
    while pending:
        current = pending.pop()
        if not isinstance(current, fx.Node) or current in seen or current.op == "get_attr":
            continue
        # Only aten: dequantize(codes) is constant too, and is exactly what must not be folded.
        if not ops.is_pure(current):
            return False
        seen.add(current)
        pending.extend(current.all_input_nodes)
    return True


def evaluate(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The tensor a constant node holds. Raises ValueError when the node is not constant."""
    if not is_constant(node):
        raise ValueError(f"{node.name} is not constant")
    known: dict[fx.Node, torch.Tensor] = {}
    with torch.no_grad():
        for each in sorted({node, *ancestors(node)}):
            known[each] = _compute(gm, each, known)
    return known[node]


def _compute(gm: fx.GraphModule, node: fx.Node, known: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
    if node.op == "get_attr":
        return get_attr_tensor(gm, node).detach()
    args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
    computed: torch.Tensor = function_of(node)(*args, **kwargs)
    return computed


def scalar(gm: fx.GraphModule, arg: object) -> float | None:
    """The number an argument always is: a Python number, or a constant tensor without dimensions."""
    if isinstance(arg, int | float) and not isinstance(arg, bool):
        return float(arg)
    if not isinstance(arg, fx.Node) or not is_constant(arg):
        return None
    val = value_or_none(arg)
    if val is None or val.dim() or val.is_complex():
        return None
    return float(evaluate(gm, arg))


def share_buffer(gm: fx.GraphModule, name: str, tensor: torch.Tensor) -> str:
    """Register `tensor` as buffer `name`, or reuse the one of that name that already holds the same values."""
    owner, _, leaf = name.rpartition(".")
    try:
        present = getattr(gm.get_submodule(owner), leaf, None)
    except AttributeError:
        present = None
    if isinstance(present, torch.Tensor) and present.dtype == tensor.dtype and torch.equal(present, tensor):
        return name
    return add_buffer(gm, name, tensor)
