"""The float type in which kernels hand activations to each other, and float32 wherever anyone else reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.hoist import MOVES
from qdiff_fx.backends.native.fusion.layers import GROUP_NORM, LAYER_NORM, LAYERS, QUANTIZERS, named
from qdiff_fx.backends.native.fusion.numbers import ATTENTION_NUMBERS
from qdiff_fx.ir.edit import is_op
from qdiff_fx.kernels.integer import CODES

aten = torch.ops.aten
PRODUCERS = (*LAYERS, ATTENTION_NUMBERS, GROUP_NORM, LAYER_NORM)
READ_ANY_FLOAT: dict[Any, tuple[str, ...]] = {  # kernel -> its arguments that may be of any float type
    **dict.fromkeys(LAYERS, ("residual",)),
    **dict.fromkeys(QUANTIZERS, ("x",)),
    GROUP_NORM: ("parts",),
    LAYER_NORM: ("x",),
}


def settle_dtypes(gm: fx.GraphModule, dtype: torch.dtype) -> None:
    """Let every kernel write `dtype` whose readers take it, in place."""
    for node in gm.graph.nodes:
        if is_op(node, *PRODUCERS) and named(node)["out_dtype"] not in CODES:
            node.kwargs = {**node.kwargs, "out_dtype": dtype if _all_take_it(node) else torch.float32}


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
