"""Calls that give back what they were given go away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.constants import scalar
from qdiff_fx.ir.edit import is_mutable
from qdiff_fx.ir.shapes import is_tensor, same_dtype_and_device, same_shape
from qdiff_fx.passes.rule import Rule, replace_node

aten = torch.ops.aten

ALIASES = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh.default,
        aten.positive.default,
    }
)
COPIES = frozenset({aten.clone.default, aten.contiguous.default, aten.lift_fresh_copy.default})
CASTS = frozenset(
    {
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten._to_copy.default,
        aten.type_as.default,
    }
)
# With an unchanged shape each of these is the identity; permute and repeat are not, so they are not here.
RESHAPES = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.view_as.default,
        aten.reshape_as.default,
        aten.expand.default,
        aten.expand_as.default,
        aten.broadcast_to.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.slice.Tensor,
        aten.narrow.default,
    }
)
DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})
UNIT_SCALES = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})
ASSERTS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_async.default,
        aten._assert_async.msg,
        aten._assert_scalar.default,
    }
)
# These look at strides, which removing a copy changes.
STRIDE_READERS = frozenset({aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default})


def is_noop(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's value always equals its first argument: same elements, shape, dtype and device."""
    if node.target not in _TESTS or not node.args or not is_tensor(node.args[0]) or not is_tensor(node):
        return False
    return same_dtype_and_device(node, operand(node)) and _TESTS[node.target](gm, node)


class DropNoOp(Rule[fx.Node]):
    """`f(x)` → `x` where `f` is the identity: a cast to the same dtype, a dropout in eval mode, a copy."""

    def __init__(self) -> None:
        self.targets = frozenset(_TESTS)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if is_noop(gm, node) else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        if found.target in ALIASES or found.target in RESHAPES or found.target in DROPOUTS:
            return ""
        return _why_keep_copy(gm, found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        replace_node(found, operand(found))
        return f"{found.target} dropped: it changes nothing"


class DropTrainingDropout(Rule[fx.Node]):
    """Names the dropouts that are switched on: nothing can be done about them here."""

    targets = DROPOUTS

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return None if is_noop(gm, node) else node

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return f"dropout is in training mode with p={bound(found)['p']}: capture the network in eval mode"

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        raise NotImplementedError("always refused")


class DropSingleCat(Rule[fx.Node]):
    """`cat([x])` → `x`."""

    targets = frozenset({aten.cat.default})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if len(bound(node)["tensors"]) == 1 else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return _why_keep_copy(gm, found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        replace_node(found, bound(found)["tensors"][0])
        return "aten.cat of one tensor dropped"


class DropAssert(Rule[fx.Node]):
    """Assertions about metadata were true at capture and the signature checks what may still vary."""

    targets = ASSERTS

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
    if node.target in COPIES:
        readers = [n.name for n in gm.graph.nodes if n.target in STRIDE_READERS]
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
_TESTS: dict[Any, _Test] = {
    **dict.fromkeys(ALIASES | COPIES | CASTS, _always),
    **dict.fromkeys(RESHAPES, _keeps_shape),
    **dict.fromkeys(DROPOUTS, _is_off),
    **dict.fromkeys(UNIT_SCALES, _is_unit),
    aten.permute.default: _keeps_order,
    aten.pad.default: _pads_nothing,
    aten.constant_pad_nd.default: _pads_nothing,
}
