"""The float type in which kernels hand activations to each other, and float32 wherever anyone else reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.hoist import MOVES
from qdiff_fx.backends.native.fusion.layers import GROUP_NORM, LAYER_NORM, LAYERS, QUANTIZERS, named
from qdiff_fx.backends.native.fusion.magnitude import Magnitudes
from qdiff_fx.backends.native.fusion.numbers import ATTENTION_NUMBERS
from qdiff_fx.ir.annotations import value_or_none
from qdiff_fx.ir.edit import is_op
from qdiff_fx.kernels.integer import CODES

aten = torch.ops.aten
PRODUCERS = (*LAYERS, ATTENTION_NUMBERS, GROUP_NORM, LAYER_NORM)
WIDE = 1e38  # what float32 and bfloat16 reach
READ_ANY_FLOAT: dict[Any, tuple[str, ...]] = {  # kernel -> its arguments that may be of any float type
    **dict.fromkeys(LAYERS, ("residual",)),
    **dict.fromkeys(QUANTIZERS, ("x",)),
    GROUP_NORM: ("parts",),
    LAYER_NORM: ("x",),
}


def settle_dtypes(gm: fx.GraphModule, dtype: torch.dtype) -> None:
    """Let every kernel write `dtype` whose readers take it and whose values it is sure to hold, in place."""
    magnitudes = Magnitudes(gm)
    for node in gm.graph.nodes:
        if is_op(node, *PRODUCERS) and named(node)["out_dtype"] not in CODES:
            takes = _all_take_it(node) and _holds(dtype, node, magnitudes)
            node.kwargs = {**node.kwargs, "out_dtype": dtype if takes else torch.float32}


def _holds(dtype: torch.dtype, value: fx.Node, magnitudes: Magnitudes) -> bool:
    """Whether a value, and the sums that are made of it in its own type, are in the range of `dtype`."""
    most = torch.finfo(dtype).max
    if most > WIDE:
        return True
    made_of_it = (user for user in value.users if is_op(user, *MOVES, aten.add.Tensor) and _may_be_narrow(user))
    return magnitudes.of(value) <= most and all(_holds(dtype, each, magnitudes) for each in made_of_it)


def _may_be_narrow(value: fx.Node) -> bool:
    """Whether torch may hold a value in another type than float32; a sum with a float32 tensor it does not."""
    if is_op(value, *PRODUCERS):
        return True
    if is_op(value, *MOVES, aten.add.Tensor):
        return all(_may_be_narrow(each) for each in value.args if isinstance(each, fx.Node))
    found = value_or_none(value)
    return found is None or found.dtype != torch.float32 or found.dim() == 0


def _all_take_it(node: fx.Node) -> bool:
    return all(_takes_it(user, node) for user in node.users)


def _takes_it(user: fx.Node, value: fx.Node) -> bool:
    if is_op(user, *MOVES, aten.add.Tensor):
        return _all_take_it(user)
    taken = READ_ANY_FLOAT.get(user.target, ()) if user.op == "call_function" else ()
    readers = [name for name, argument in user.kwargs.items() if value in _nodes(argument)]
    return bool(readers) and all(name in taken for name in readers)


def _nodes(argument: object) -> list[object]:
    return list(argument) if isinstance(argument, (list, tuple)) else [argument]
