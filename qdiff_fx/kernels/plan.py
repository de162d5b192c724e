"""A run of operators that C++ calls one after another, with their arguments bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.dispatch import status

# Kinds of arguments, as ops/arguments.h numbers them.
NONE, SLOT, INT, FLOAT, TENSOR, DTYPE, LIST = range(7)

# Types of arguments, as ops/dispatched.cpp numbers them; an optional and a list are followed by what they are of.
_TYPES = {"TensorType": 0, "IntType": 1, "SymIntType": 1, "FloatType": 2, "BoolType": 3, "ScalarTypeType": 4}
_OPTIONAL, _LIST, _NOTHING = 5, 6, 7
# C++ calls these as functions, and knows the types of their arguments; of others torch has to take what it is passed.
_AS_FUNCTIONS = ("aten::add",)


def types_of(operator: torch._ops.OpOverload[..., Any]) -> list[int]:
    """The types of an operator's arguments and of its result, one after another.

    Raises:
        KernelError: there are others than torch passes between libraries of different releases.
    """
    schema = operator._schema
    if schema.name in _AS_FUNCTIONS:
        return []
    return [code for each in (*schema.arguments, *schema.returns) for code in _type(each.real_type, schema.name)]


def _type(found: Any, name: str) -> list[int]:
    kind = found.kind()
    if kind == "OptionalType":
        inner = found.getElementType()
        known = inner.kind() in (*_TYPES, "ListType")
        return [_OPTIONAL, *(_type(inner, name) if known else [_NOTHING])]
    if kind == "ListType":
        return [_LIST, *_type(found.getElementType(), name)]
    if kind not in _TYPES:
        raise KernelError(f"an argument or result of type {found} cannot be planned", where=name)
    return [_TYPES[kind]]


class Plan:
    """Operators and slots for their values; the inputs are the first.

    Args:
        slots: how many values there are.
    """

    _number: int | None = None
    _delete: Callable[[int], None] | None = None

    def __init__(self, slots: int):
        self._delete = status().delete_plan
        self._number = torch.ops.qdiff_native.plan_new(slots)

    def __del__(self) -> None:
        # Not as an operator: garbage is collected at any moment, also while a mode watches what torch is asked to do.
        if self._number is not None and self._delete is not None:
            self._delete(self._number)

    def add(
        self,
        operator: torch._ops.OpOverload[..., Any],
        code: Sequence[int],
        floats: Sequence[float],
        tensors: Sequence[Tensor],
        result: int,
        dead: Sequence[int],
    ) -> None:
        """Add a call.

        Args:
            operator: one whose arguments and one result are tensors, numbers, dtypes and lists of them.
            code: its arguments, all of them, as kinds and what each is followed by.
            floats, tensors: what the code refers to.
            result: the slot of its value.
            dead: slots nobody reads after it.
        """
        name, overload = operator._schema.name, operator._schema.overload_name
        types = types_of(operator)
        torch.ops.qdiff_native.plan_add(self._number, name, overload, types, code, floats, tensors, result, dead)

    def run(
        self,
        tensors: Sequence[Tensor],
        numbers: Sequence[float],
        results: Sequence[int],
        number_results: Sequence[int],
    ) -> tuple[list[Tensor], list[int]]:
        """Call all operators; the inputs are the first slots, tensors before numbers.

        Args:
            results, number_results: the slots whose values are asked for; numbers among them are whole.
        """
        found: tuple[list[Tensor], list[int]] = torch.ops.qdiff_native.plan_run(
            self._number, tensors, numbers, results, number_results
        )
        return found
