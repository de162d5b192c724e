"""Scales per timestep: all tables of a network are read at once, as plain numbers."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from qdiff_fx.ir.annotations import path_of, set_path, set_value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten
TIMESTEP_BIN = torch.ops.qdiff.timestep_bin.default
MODULE = "numbers_of_the_step"


class StepNumbers(nn.Module):
    """``forward(bin)``: row `bin` of every table, as Python numbers.

    A kernel that takes a number needs no tensor to be made, looked up and read.
    """

    def __init__(self, tables: list[Tensor]):
        super().__init__()
        self.rows = list(zip(*(table.tolist() for table in tables), strict=True))

    def forward(self, index: Tensor) -> tuple[float | int, ...]:
        return self.rows[int(index)]


class LookUpScales(Rule[list[fx.Node]]):
    """``index_select(table, 0, bin)``, for every table: ``numbers[i]`` with one ``numbers = StepNumbers(bin)``."""

    targets = frozenset({TIMESTEP_BIN})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
        lookups = [user for user in node.users if user.target is aten.index_select.default and user.args[2] is node]
        return sorted(lookups) or None

    def rewrite(self, gm: fx.GraphModule, found: list[fx.Node]) -> str:
        step_bin: Any = found[0].args[2]
        names: list[Any] = list(dict.fromkeys(lookup.args[0] for lookup in found))
        gm.add_module(MODULE, StepNumbers([get_attr_tensor(gm, table) for table in names]))
        with gm.graph.inserting_after(step_bin):
            row = gm.graph.call_module(MODULE, (step_bin,))
        for lookup in found:
            table: Any = lookup.args[0]
            with gm.graph.inserting_before(lookup):
                number = gm.graph.call_function(operator.getitem, (row, names.index(table)))
            set_path(number, path_of(lookup))
            set_value(number, get_attr_tensor(gm, table)[0].item())
            lookup.replace_all_uses_with(number)
            gm.graph.erase_node(lookup)
        return f"{len(found)} lookups in {len(names)} tables became one"


def values_of(gm: fx.GraphModule, number: Any) -> list[float | int]:
    """What a number of the lowered graph may be: over all rows of the table it is looked up in, or itself."""
    if not isinstance(number, fx.Node):
        return [number]
    row, column = operand(number), cast(int, number.args[1])
    table = cast(StepNumbers, gm.get_submodule(str(row.target)))
    return [each[column] for each in table.rows]
