"""Read a call's arguments by the names its schema gives them."""

from __future__ import annotations

from typing import Any

from torch import fx


def bound(node: fx.Node) -> dict[str, Any]:
    """Every argument of an ATen call by name, defaults filled in: `bound(conv)["stride"]`."""
    values: dict[str, Any] = {}
    for index, parameter in enumerate(node.target._schema.arguments):
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
