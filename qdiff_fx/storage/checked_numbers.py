"""Whole numbers that a loaded graph computes from sizes: never of more digits than sizes need.

Python's whole numbers grow without end: squaring one forty times fills memory and never returns. What a number is at
the sizes of the example says nothing about other sizes, so this counts the bits it can have at any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from qdiff_fx.errors import ArtifactError
from qdiff_fx.ir import ops
from qdiff_fx.ir.ops import Kind

BITS_OF_A_SIZE = 63
MOST_BITS = 2048
LARGEST_EXPONENT = 8


def check_numbers(graph: fx.Graph) -> None:
    """Raises ArtifactError, naming the node, where arithmetic of sizes could make absurdly long numbers."""
    bits: dict[fx.Node, int] = {}
    for node in graph.nodes:
        row = ops.row_of(node.target) if node.op == "call_function" else None
        if row is None or row.kind is not Kind.NUMBER:
            continue
        bits[node] = _bits(row.name, node, bits)
        if bits[node] > MOST_BITS:
            raise ArtifactError(
                f"the number may grow to {bits[node]} bits, which no size of a tensor has",
                where=f"graph.json, node {node.name} ({row.name})",
            )


def _bits(name: str, node: fx.Node, known: Mapping[fx.Node, int]) -> int:
    operands = [each for arg in node.args for each in (arg if isinstance(arg, list | tuple) else [arg])]
    each = [_bits_of(operand, known) for operand in operands]
    if name == "operator.mul":
        return sum(each)
    if name == "operator.pow":
        return each[0] * _exponent(operands[1])
    return max(each, default=0) + len(each)


def _bits_of(operand: Any, known: Mapping[fx.Node, int]) -> int:
    if isinstance(operand, fx.Node):
        return known.get(operand, BITS_OF_A_SIZE)
    return operand.bit_length() if isinstance(operand, int) else BITS_OF_A_SIZE


def _exponent(operand: Any) -> int:
    """The exponent; one that is unknown or large counts as beyond all bounds."""
    small = isinstance(operand, int | float) and abs(operand) <= LARGEST_EXPONENT
    return max(1, int(abs(operand))) if small else MOST_BITS + 1
