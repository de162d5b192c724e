"""A sum behind reshapes and permutations of a layer's result moves before them: there the layer can add it."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import fx

from qdiff_fx.backends.native.fusion.kernels import TO_ITSELF, is_open, read_elsewhere
from qdiff_fx.ir.annotations import any_value, describe, describe_like, path_of, value, value_or_none
from qdiff_fx.ir.arguments import function_of
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten
PERMUTE, RESHAPE = aten.permute.default, aten.reshape.default


class MovedLayer(NamedTuple):
    """``add(moves(layer), other)``; `moves` in execution order."""

    add: fx.Node
    layer: fx.Node
    moves: list[fx.Node]
    other: fx.Node


class AddBeforeMoves(Rule[MovedLayer]):
    """``moves(layer(…)) + x`` → ``moves(layer(…) + inverse_moves(x))``.

    On a channels-last image the moves between pixels and tokens, and their inverses, copy nothing.
    """

    targets = frozenset({aten.add.Tensor})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> MovedLayer | None:
        if node.kwargs.get("alpha", 1) != 1:
            return None
        left, right = node.args[:2]
        candidates = [_moved_layer(node, left, right), _moved_layer(node, right, left)]
        found = [each for each in candidates if each is not None]
        # Of two sides that are moved layers the first that may be rewritten.
        return next((each for each in found if not self.refuse(gm, each)), found[0] if found else None)

    def subject(self, node: fx.Node, found: MovedLayer) -> fx.Node:
        return found.layer

    def refuse(self, gm: fx.GraphModule, found: MovedLayer) -> str:
        if found.other is found.moves[-1]:
            return TO_ITSELF
        shape = value(found.add).shape
        other = value_or_none(found.other)
        if other is None or other.shape != shape or value(found.moves[-1]).shape != shape:
            return "the sum spreads one of its sides over the other, which the layer's kernel cannot"
        for node, reader in zip((found.layer, *found.moves), (*found.moves, found.add), strict=True):
            if len(node.users) > 1:
                return read_elsewhere("layer's result", node, reader)
        if any(_source_sizes(move) is None for move in found.moves):
            return "a reshape behind it cannot be undone: more than one size is unknown"
        return ""

    def rewrite(self, gm: fx.GraphModule, found: MovedLayer) -> str:
        add, layer, moves, other = found
        graph = gm.graph
        with graph.inserting_before(add):
            inverse = other
            for move in reversed(moves):
                inverse = _inverse(move, inverse)
            total = graph.call_function(aten.add.Tensor, (layer, inverse))
            describe(total, value=any_value(layer), path=path_of(add))
            result = total
            for move in moves:
                redone = graph.call_function(function_of(move), (result, *move.args[1:]))
                describe_like(redone, move, facts=True)
                result = redone
        add.replace_all_uses_with(result)
        for replaced in (add, *reversed(moves)):
            graph.erase_node(replaced)
        return f"added before {len(moves)} moves"


def _moved_layer(add: fx.Node, moved: Any, other: Any) -> MovedLayer | None:
    """The reshapes and permutations from an integer layer to `moved`."""
    moves: list[fx.Node] = []
    node = moved
    while getattr(node, "target", None) in (PERMUTE, RESHAPE):
        moves.insert(0, node)
        node = node.args[0]
    # Where the other side is a layer, that one adds.
    if not moves or not isinstance(other, fx.Node) or not is_open(node) or is_open(other):
        return None
    return MovedLayer(add, node, moves, other)


def _inverse(move: fx.Node, moved: fx.Node) -> fx.Node:
    source = value(move.all_input_nodes[0])
    graph = moved.graph
    if move.target is PERMUTE:
        order = [dim % source.dim() for dim in cast("list[int]", move.args[1])]
        node = graph.call_function(PERMUTE, (moved, [order.index(dim) for dim in range(len(order))]))
    else:
        sizes = _source_sizes(move)
        assert sizes is not None
        read = [
            graph.call_function(aten.sym_size.int, (moved, size.dim)) if isinstance(size, _SizeOf) else size
            for size in sizes
        ]
        node = graph.call_function(RESHAPE, (moved, read))
    describe(node, value=source, path=path_of(move))
    return node


class _SizeOf(NamedTuple):
    """The size of that dim of a reshape's result."""

    dim: int


def _source_sizes(move: fx.Node) -> list[int | _SizeOf] | None:
    """Sizes to give the result of a reshape back the shape of its input; None when they cannot be told."""
    if move.target is PERMUTE:
        return []
    source, result = value(move.all_input_nodes[0]).shape, value(move).shape
    limit = min(len(source), len(result))
    leading = next((i for i in range(limit) if source[i] != result[i]), limit)
    trailing = next((i for i in range(limit - leading) if source[-1 - i] != result[-1 - i]), limit - leading)
    if len(source) - leading - trailing > 1:
        return None
    merged = [-1] * (len(source) - leading - trailing)
    ends = range(len(result) - trailing, len(result))
    return [*map(_SizeOf, range(leading)), *merged, *map(_SizeOf, ends)]
