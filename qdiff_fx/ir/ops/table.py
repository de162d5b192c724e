"""The table: one row for each operator we recognise, and what is asked of it.

An operator that has no row is captured, rewritten around and computed like any other; but no pass knows what it does,
and a graph that calls it cannot be saved.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from qdiff_fx.ir.arguments import bound
from qdiff_fx.ir.edit import is_mutable
from qdiff_fx.ir.ops import elements, functions, integers, layers, layouts, norms, pointwise
from qdiff_fx.ir.ops.operator import Channels, Operator, Trait

Target = Callable[..., Any]

_FAMILIES = (layers, pointwise, layouts, norms, elements, integers, functions)
TABLE: dict[str, Operator] = {
    row.name: row for row in itertools.chain.from_iterable(family.ROWS for family in _FAMILIES)
}
_PYTHON: dict[str, Any] = {"operator": operator, "math": math, "torch": torch}


def resolve(row: Operator) -> Target | None:
    """What a node that calls this operator has as its target; None where this build of torch has no such operator.

    Those outside aten exist once `qdiff_fx.kernels` is imported.
    """
    owner, *rest = row.name.split(".")
    try:
        found: Target = functools.reduce(getattr, rest, _PYTHON.get(owner) or getattr(torch.ops, owner))
    except AttributeError:
        return None
    return found


@functools.cache
def _python_names() -> dict[Target, str]:
    rows = (row for row in TABLE.values() if row.namespace in _PYTHON)
    return {target: row.name for row in rows if (target := resolve(row)) is not None}


def row_of(target: object) -> Operator | None:
    """The row of what a node calls, if it has one."""
    if isinstance(target, torch._ops.OpOverload):
        return TABLE.get(str(target))
    return TABLE.get(_python_names().get(target, "")) if callable(target) else None


def select(wanted: Callable[[Operator], bool]) -> Iterator[Target]:
    """The targets of the rows that are wanted, in the order of the table."""
    for row in TABLE.values():
        target = resolve(row) if wanted(row) else None
        if target is not None:
            yield target


def where(wanted: Callable[[Operator], bool]) -> frozenset[Target]:
    """The targets of the rows that are wanted."""
    return frozenset(select(wanted))


def overloads(packet: str) -> frozenset[Target]:
    """Every overload of one operator, "aten.masked_fill", that has a row."""
    return where(lambda row: row.packet == packet)


def spellings(*canonical: Target) -> frozenset[Target]:
    """What canonicalize spells as one of these operators, and they themselves."""
    names = {str(target) for target in canonical}
    return where(lambda row: row.name in names or row.canonical in names)


def has_trait(target: object, trait: Trait) -> bool:
    """Whether the operator has a row with this trait."""
    row = row_of(target)
    return row is not None and trait in row.traits


def channels_of(target: object) -> Channels:
    """What an operator does to channels; of one that has no row torch knows at least whether it is pointwise."""
    row = row_of(target)
    if row is not None:
        return row.channels
    pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return Channels.KEPT_BY_ALL if pointwise else Channels.UNFOLLOWED


def is_pure(node: fx.Node) -> bool:
    """Whether the node calls an aten operator that computes the same whenever it is called, and writes nowhere."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in target.tags
    return target.namespace == "aten" and not random and not is_mutable(node)


def read_by_value(node: fx.Node) -> list[fx.Node]:
    """The inputs whose elements, not only their sizes and type, the node's result depends on."""
    row = row_of(node.target)
    if row is None or not row.sizes_only:
        return node.all_input_nodes
    values = {name: value for name, value in bound(node).items() if name not in row.sizes_only}
    found: list[fx.Node] = []
    fx.map_arg(values, found.append)
    return found


def why_not_stored(node: fx.Node) -> str:
    """Why a call may not be in a saved graph; empty when it may."""
    row = row_of(node.target)
    if row is None or not row.stored:
        return f"{node.target} is not an operator that can be saved"
    if row.writes is not None:
        call = bound(node)
        if call[row.writes.flag] is not False and call[row.writes.statistics] is not None:
            return f"{node.target} with {row.writes.flag} writes into its {row.writes.statistics}"
    return ""
