"""A run of operators as one call into C++: Python's share of every call would be felt at small batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx.backends.native.fusion.hoist_size import SIZE
from qdiff_fx.ir.arguments import operand, operator_of
from qdiff_fx.kernels import status

# Kinds of arguments, as plan.cpp numbers them.
NONE, SLOT, INT, FLOAT, TENSOR, DTYPE, LIST = range(7)

RESULTS = ("Tensor", "int")  # as a schema names them


def plannable(graph: fx.Graph) -> set[fx.Node]:
    """The nodes a plan can hold: operators with one result, and arguments that can be written down."""
    return {node for node in graph.nodes if _can_plan(node)} if status().available else set()


def _can_plan(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    schema = target._schema
    if [str(each.type) in RESULTS for each in schema.returns] != [True] or schema.is_mutable:
        return False
    # Sizes of inputs are what Python computes other sizes from: they come first.
    if target is SIZE and operand(node).op == "placeholder":
        return False
    return all(_can_write(value, str(each.type)) for value, each in zip(arguments_of(node), schema.arguments))


def arguments_of(node: fx.Node) -> list[Any]:
    """The arguments of an operator in the order of its schema, up to the last that is given."""
    arguments = list(node.args)
    left = dict(node.kwargs)
    if not left:
        return arguments
    for argument in operator_of(node)._schema.arguments[len(arguments) :]:
        if not left:
            break
        arguments.append(left.pop(argument.name) if argument.name in left else argument.default_value)
    return arguments


def _can_write(value: Any, type_name: str) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_can_write(each, type_name) for each in value)
    if isinstance(value, fx.Node):
        return True
    # Python makes a tensor of a number where an operator wants one.
    number = isinstance(value, (bool, int, float)) and not type_name.startswith("Tensor")
    return number or value is None or isinstance(value, torch.dtype)


class PlanWriter:
    """Turns nodes into a plan.

    Args:
        constants: the tensor behind each get_attr they read.
        inputs: the nodes whose values the plan is given, in order.
        nodes: what it computes, in order.
        results: those of them that are read elsewhere.
    """

    def __init__(
        self,
        constants: Mapping[fx.Node, Tensor],
        inputs: Sequence[fx.Node],
        nodes: Sequence[fx.Node],
        results: Sequence[fx.Node],
    ):
        self._constants = constants
        self._slots = {node: slot for slot, node in enumerate((*inputs, *nodes))}
        self.plan = torch.classes.qdiff_native.Plan(len(self._slots))
        last = {each: node for node in nodes for each in node.all_input_nodes}
        mortal = self._slots.keys() - set(results)
        for node in nodes:
            dead = [self._slots[each] for each in node.all_input_nodes if last[each] is node and each in mortal]
            self._add(node, dead)
        self.results = [self._slots[node] for node in results]

    def run(self, inputs: list[Any]) -> list[Any]:
        """The values of `results`."""
        found: list[Any] = self.plan.run(inputs, self.results)
        return found

    def _add(self, node: fx.Node, dead: list[int]) -> None:
        code: list[int] = []
        floats: list[float] = []
        tensors: list[Tensor] = []

        def write(value: Any) -> None:
            if isinstance(value, fx.Node) and value.op != "get_attr":
                code.extend((SLOT, self._slots[value]))
            elif isinstance(value, fx.Node):
                code.extend((TENSOR, len(tensors)))
                tensors.append(self._constants[value])
            elif isinstance(value, torch.dtype):
                code.extend((DTYPE, len(tensors)))
                tensors.append(torch.empty(0, dtype=value))
            elif isinstance(value, (list, tuple)):
                code.extend((LIST, len(value)))
                for each in value:
                    write(each)
            elif isinstance(value, float):
                code.extend((FLOAT, len(floats)))
                floats.append(value)
            elif value is None:
                code.append(NONE)
            else:
                code.extend((INT, int(value)))

        for argument in arguments_of(node):
            write(argument)
        target: Any = node.target  # an operator, as `can_plan` found
        schema = target._schema
        self.plan.add(schema.name, schema.overload_name, code, floats, tensors, self._slots[node], dead)
