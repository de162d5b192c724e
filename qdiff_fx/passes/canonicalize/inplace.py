"""Calls that write into their input become calls that return a new tensor, where nobody can tell."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher

from qdiff_fx.ir.annotations import any_value, value
from qdiff_fx.ir.arguments import operand, operator_of
from qdiff_fx.ir.edit import fake_mode
from qdiff_fx.ir.shapes import same_sizes
from qdiff_fx.passes.rule import Rule


def functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """`aten.relu_.default` → `aten.relu.default`; None when there is no such op or nothing is written."""
    namespace, _, name = target._schema.name.partition("::")
    written = [arg for arg in target._schema.arguments if arg.is_write]
    if not name.endswith("_") or len(written) != 1 or written[0] is not target._schema.arguments[0]:
        return None
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    return getattr(packet, target._overloadname, None)


class MakeFunctional(Rule[fx.Node]):
    """`relu_(x)` → `y = relu(x)`, and whoever reads `x` afterwards reads `y`."""

    def wants(self, node: fx.Node) -> bool:
        return isinstance(node.target, torch._ops.OpOverload) and functional(node.target) is not None

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        written = operand(found)
        later = _later(found)
        for alias in _aliases(written, found):
            if alias.op in ("placeholder", "get_attr"):
                return f"it writes into {alias.name}, which outlives the call"
            reader = next((user for user in alias.users if user in later), None)
            if alias is not written and reader is not None:
                return f"it writes into memory that {reader.name} reads through {alias.name}"
        return _why_other_type(found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        written, later = operand(found), _later(found)
        before = found.target
        found.target = _functional_of(found)
        written.replace_all_uses_with(found, delete_user_cb=lambda user: user in later)
        return f"{before} → {found.target}"


def _functional_of(node: fx.Node) -> torch._ops.OpOverload:
    """The functional operator of a call that `MakeFunctional` wants."""
    found = functional(operator_of(node))
    assert found is not None
    return found


def _later(node: fx.Node) -> set[fx.Node]:
    """The nodes after `node` in execution order."""
    found = set()
    current = node.next
    while current.op != "root":
        found.add(current)
        current = current.next
    return found


def _aliases(node: fx.Node, writer: fx.Node) -> set[fx.Node]:
    """The nodes whose values may share memory with `node`, itself included, apart from the writer's own."""
    found, pending = {node}, [node]
    while pending:
        current = pending.pop()
        near = [user for user in current.users if user is not writer and _may_alias(user)]
        near += current.all_input_nodes[:1] if _may_alias(current) else []
        pending += [other for other in near if other not in found]
        found.update(near)
    return found


def _may_alias(node: fx.Node) -> bool:
    """Whether the result may be a view of the first argument (an earlier write returns its argument too)."""
    if node.target is operator.getitem:
        return True
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _why_other_type(node: fx.Node) -> str:
    """In-place calls keep the type of what they write into; the functional op may promote instead."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), any_value)
    before = value(operand(node))
    with fake_mode(node.graph), enable_python_dispatcher(), torch.no_grad():
        after = _functional_of(node)(*args, **kwargs)
    if after.dtype == before.dtype and same_sizes(after.shape, before.shape):
        return ""
    return f"the result would become {after.dtype} of shape {tuple(after.shape)}"
