"""A run of operators as one call into C++: Python's share of every call would be felt at small batches."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qdiff_fx.backends.native.fusion.hoist_size import SIZE
from qdiff_fx.errors import KernelError
from qdiff_fx.ir.annotations import any_value
from qdiff_fx.ir.arguments import operand, operator_of
from qdiff_fx.kernels import status
from qdiff_fx.kernels.plan import DTYPE, FLOAT, INT, LIST, NONE, SLOT, TENSOR, Plan, types_of

RESULTS = ("Tensor", "int")  # as a schema names them
ADD = torch.ops.aten.add.Tensor
_ARITHMETIC = (
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.floordiv,
    operator.mod,
    operator.neg,
)

_NUMBERS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("IntType", "SymIntType", "BoolType"), (bool, int)),
    **dict.fromkeys(("FloatType", "NumberType"), (bool, int, float)),
}


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
    if target is ADD and not _adds_floats(node):
        return False
    try:
        types_of(target)
    except KernelError:
        return False
    return all(_can_write(value, each.real_type) for value, each in zip(arguments_of(node), schema.arguments))


def _adds_floats(node: fx.Node) -> bool:
    """Whether an addition is one of floats, for sure: of others its factor has to be whole."""
    value = any_value(node)
    return isinstance(value, Tensor) and value.is_floating_point()


def is_number(node: fx.Node) -> bool:
    """Whether a node holds a number, rather than a tensor."""
    if isinstance(node.target, torch._ops.OpOverload):
        return [str(each.type) for each in node.target._schema.returns] == ["int"]
    if node.target in _ARITHMETIC:
        return all(map(is_number, node.all_input_nodes))
    return isinstance(any_value(node), (int, float, torch.SymInt, torch.SymFloat))


def arguments_of(node: fx.Node) -> list[Any]:
    """All arguments of an operator in the order of its schema."""
    arguments = list(node.args)
    given = dict(node.kwargs)
    for argument in operator_of(node)._schema.arguments[len(arguments) :]:
        arguments.append(given.pop(argument.name) if argument.name in given else argument.default_value)
    return arguments


def _can_write(value: Any, found: Any) -> bool:
    kind = found.kind()
    if kind == "OptionalType":
        inner = found.getElementType()
        return value is None or (inner.kind() != "NumberType" and _can_write(value, inner))
    if kind == "ListType":
        return isinstance(value, (list, tuple)) and all(_can_write(each, found.getElementType()) for each in value)
    if kind == "TensorType":  # Python makes a tensor of a number where an operator wants one
        return isinstance(value, fx.Node) and not is_number(value)
    if kind == "ScalarTypeType":
        return isinstance(value, torch.dtype)
    if isinstance(value, fx.Node):
        return kind in _NUMBERS and is_number(value)
    return isinstance(value, _NUMBERS.get(kind, ()))


class PlanWriter:
    """Turns nodes into a plan.

    Args:
        constants: the tensor behind each get_attr they read.
        inputs: the nodes whose values the plan is given, in any order.
        nodes: what it computes, in order.
        results: those of them that are read elsewhere, in any order.

    Attributes:
        tensors, numbers: the inputs, in the order `run` takes them.
        tensor_results, number_results: the results, in the order it returns them.
    """

    def __init__(
        self,
        constants: Mapping[fx.Node, Tensor],
        inputs: Sequence[fx.Node],
        nodes: Sequence[fx.Node],
        results: Sequence[fx.Node],
    ):
        self._constants = constants
        self.tensors, self.numbers = _tensors_and_numbers(inputs)
        self.tensor_results, self.number_results = _tensors_and_numbers(results)
        self._slots = {node: slot for slot, node in enumerate((*self.tensors, *self.numbers, *nodes))}
        self._plan = Plan(len(self._slots))
        last = {each: node for node in nodes for each in node.all_input_nodes}
        mortal = self._slots.keys() - set(results)
        for node in nodes:
            dead = [self._slots[each] for each in node.all_input_nodes if last[each] is node and each in mortal]
            self._add(node, dead)
        self._results = [self._slots[node] for node in self.tensor_results]
        self._number_results = [self._slots[node] for node in self.number_results]

    def run(self, tensors: list[Tensor], numbers: list[float]) -> tuple[list[Tensor], list[int]]:
        """The values of the results."""
        return self._plan.run(tensors, numbers, self._results, self._number_results)

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
        self._plan.add(target, code, floats, tensors, self._slots[node], dead)


def _tensors_and_numbers(nodes: Sequence[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    return [node for node in nodes if not is_number(node)], [node for node in nodes if is_number(node)]
