"""Read a call's arguments by the names its schema gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx


def function_of(node: fx.Node) -> Callable[..., Any]:
    """What a call_function node calls. Raises TypeError for any other node, whose target is a name."""
    if isinstance(node.target, str):
        raise TypeError(f"{node.name} is a {node.op}, not a call of a function")
    return node.target


def operator_of(node: fx.Node) -> torch._ops.OpOverload:
    """The operator of torch that a node calls, e.g. `torch.ops.aten.add.Tensor`. Raises TypeError when it is none."""
    if not isinstance(node.target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} calls {node.target}, not an operator of torch")
    return node.target


def bound(node: fx.Node) -> dict[str, Any]:
    """Every argument of an ATen call by name, defaults filled in: `bound(conv)["stride"]`."""
    values: dict[str, Any] = {}
    for index, parameter in enumerate(operator_of(node)._schema.arguments):
        if index < len(node.args):
            values[parameter.name] = node.args[index]
        elif parameter.name in node.kwargs:
            values[parameter.name] = node.kwargs[parameter.name]
        else:
            values[parameter.name] = parameter.default_value
    return values


def operand(node: fx.Node, index: int = 0) -> fx.Node:
    """The node passed as positional argument `index`. Raises TypeError when that argument is no node."""
    found = node.args[index] if index < len(node.args) else None
    if not isinstance(found, fx.Node):
        raise TypeError(f"argument {index} of {node.name} is {found!r}, not a node")
    return found
