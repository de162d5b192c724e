"""The float type in which kernels hand activations to each other, and float32 wherever anyone else reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import ATTENTION, GROUP_NORM, LAYER_NORM, LAYERS, MOVES, NORMS, QUANTIZERS
from qdiff_fx.backends.native.fusion.magnitude import Magnitudes
from qdiff_fx.ir.annotations import value_or_none
from qdiff_fx.kernels.checks import CODES
from qdiff_fx.passes.framework import Pass, PassReport
from qdiff_fx.passes.rule import Rule, apply_rules

HANDED_ON = frozenset({*MOVES, torch.ops.aten.add.Tensor})
PRODUCERS = frozenset({*LAYERS, *NORMS, ATTENTION})
WIDE = 1e38  # what float32 and bfloat16 reach
READ_ANY_FLOAT: dict[Any, tuple[str, ...]] = {  # kernel -> its arguments that may be of any float type
    **dict.fromkeys(LAYERS, ("residual",)),
    **dict.fromkeys(QUANTIZERS, ("x",)),
    GROUP_NORM: ("parts",),
    LAYER_NORM: ("x",),
}


class SettleFloatTypes(Pass):
    """Every kernel writes `dtype` whose readers take it and whose values it is sure to hold."""

    name = "float types"
    requires = frozenset({"fused"})
    ensures = frozenset({"typed"})

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def run(self, gm: fx.GraphModule) -> PassReport:
        changes, _ = apply_rules(gm, (SettleFloatType(self.dtype, Magnitudes(gm)),), revisit="changed")
        return PassReport(self.name, tuple(changes))


class SettleFloatType(Rule[tuple[fx.Node, torch.dtype]]):
    """``kernel(x, out_dtype=float32)`` → ``kernel(x, out_dtype=float16)``, and back where that does not hold."""

    targets = PRODUCERS

    def __init__(self, dtype: torch.dtype, magnitudes: Magnitudes):
        self.dtype, self.magnitudes = dtype, magnitudes

    def match(self, gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, torch.dtype] | None:
        given: Any = node.kwargs["out_dtype"]
        if given in CODES:
            return None
        takes = _all_take_it(node) and _holds(self.dtype, node, self.magnitudes)
        settled = self.dtype if takes else torch.float32
        return None if given == settled else (node, settled)

    def rewrite(self, gm: fx.GraphModule, found: tuple[fx.Node, torch.dtype]) -> str:
        node, dtype = found
        node.kwargs = {**node.kwargs, "out_dtype": dtype}
        return f"writes {dtype}"


def _holds(dtype: torch.dtype, value: fx.Node, magnitudes: Magnitudes) -> bool:
    """Whether a value, and the sums that are made of it in its own type, are in the range of `dtype`."""
    most = torch.finfo(dtype).max
    if most > WIDE:
        return True
    made_of_it = (user for user in value.users if user.target in HANDED_ON and _may_be_narrow(user))
    return magnitudes.of(value) <= most and all(_holds(dtype, each, magnitudes) for each in made_of_it)


def _may_be_narrow(value: fx.Node) -> bool:
    """Whether torch may hold a value in another type than float32; a sum with a float32 tensor it does not."""
    if value.target in PRODUCERS:
        return True
    if value.target in HANDED_ON:
        return all(_may_be_narrow(each) for each in value.args if isinstance(each, fx.Node))
    found = value_or_none(value)
    return found is None or found.dtype != torch.float32 or found.dim() == 0


def _all_take_it(node: fx.Node) -> bool:
    return all(_takes_it(user, node) for user in node.users)


def _takes_it(user: fx.Node, value: fx.Node) -> bool:
    if user.op != "call_function":
        return False
    if user.target in HANDED_ON:
        return _all_take_it(user)
    taken = READ_ANY_FLOAT.get(user.target, ())
    readers = [name for name, argument in user.kwargs.items() if value in _nodes(argument)]
    return bool(readers) and all(name in taken for name in readers)


def _nodes(argument: object) -> list[object]:
    return list(argument) if isinstance(argument, (list, tuple)) else [argument]
