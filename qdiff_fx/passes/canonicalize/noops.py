"""Calls that give back what they were given go away."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.constants import scalar
from qdiff_fx.ir.edit import is_mutable
from qdiff_fx.ir.ops import NoOp
from qdiff_fx.ir.shapes import is_tensor, same_dtype_and_device, same_shape
from qdiff_fx.passes.rule import Rule, replace_node


def is_noop(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's value always equals its first argument: same elements, shape, dtype and device."""
    row = ops.row_of(node.target)
    test = _TESTS.get(row.noop) if row is not None and row.noop is not None else None
    if test is None or not node.args or not is_tensor(node.args[0]) or not is_tensor(node):
        return False
    return same_dtype_and_device(node, operand(node)) and test(gm, node)


class DropNoOp(Rule[fx.Node]):
    """`f(x)` → `x` where `f` is the identity: a cast to the same dtype, a dropout in eval mode, a copy."""

    def __init__(self) -> None:
        self.targets = ops.where(lambda row: row.noop in _TESTS)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if is_noop(gm, node) else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        if found.target in ops.ALIASES | ops.RESHAPES | ops.DROPOUTS:
            return ""
        return _why_keep_copy(gm, found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        replace_node(found, operand(found))
        return f"{found.target} dropped: it changes nothing"


class DropTrainingDropout(Rule[fx.Node]):
    """Names the dropouts that are switched on: nothing can be done about them here."""

    targets = ops.DROPOUTS

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return None if is_noop(gm, node) else node

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return f"dropout is in training mode with p={bound(found)['p']}: capture the network in eval mode"

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        raise NotImplementedError("always refused")


class DropSingleCat(Rule[fx.Node]):
    """`cat([x])` → `x`."""

    targets = ops.where(lambda row: row.noop is NoOp.ONE_TENSOR)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if len(bound(node)["tensors"]) == 1 else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return _why_keep_copy(gm, found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        replace_node(found, bound(found)["tensors"][0])
        return "aten.cat of one tensor dropped"


class DropAssert(Rule[fx.Node]):
    """Assertions about metadata were true at capture and the signature checks what may still vary."""

    targets = ops.ASSERTIONS

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return None if node.users else node

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        found.graph.erase_node(found)
        return f"{found.target} dropped"


def _why_keep_copy(gm: fx.GraphModule, node: fx.Node) -> str:
    """Why a fresh copy of the same values must stay a copy; empty when nobody can tell the difference."""
    writers = [n.name for n in gm.graph.nodes if n.op == "call_function" and is_mutable(n)]
    if writers:
        return f"a copy may not go while {writers[0]} writes in place"
    if node.target in ops.COPIES:
        readers = [n.name for n in gm.graph.nodes if n.target in ops.STRIDE_READERS]
        if readers:
            return f"a copy may not go while {readers[0]} reads strides"
    source = node.all_input_nodes[0]
    if source.op in ("placeholder", "get_attr") and any(user.op == "output" for user in node.users):
        return "the network would return one of its own inputs or parameters instead of a copy"
    return ""


def _always(gm: fx.GraphModule, node: fx.Node) -> bool:
    return True


def _keeps_shape(gm: fx.GraphModule, node: fx.Node) -> bool:
    return same_shape(node, operand(node))


def _keeps_order(gm: fx.GraphModule, node: fx.Node) -> bool:
    dims = bound(node)["dims"]
    return list(dims) == sorted(dims)


def _is_off(gm: fx.GraphModule, node: fx.Node) -> bool:
    values = bound(node)
    return not values["train"] or values["p"] == 0


def _is_unit(gm: fx.GraphModule, node: fx.Node) -> bool:
    return scalar(gm, node.args[1]) == 1.0


def _pads_nothing(gm: fx.GraphModule, node: fx.Node) -> bool:
    return not any(bound(node)["pad"])


_Test = Callable[[fx.GraphModule, fx.Node], bool]
_TESTS: dict[NoOp, _Test] = {
    NoOp.SAME_TYPE: _always,
    NoOp.SAME_SHAPE: _keeps_shape,
    NoOp.SWITCHED_OFF: _is_off,
    NoOp.BY_ONE: _is_unit,
    NoOp.IN_ORDER: _keeps_order,
    NoOp.NOTHING_PADDED: _pads_nothing,
}
