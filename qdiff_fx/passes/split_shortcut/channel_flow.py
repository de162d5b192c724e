"""Follow the input channels of a layer back to the concatenation they come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.ops import Channels
from qdiff_fx.ir.shapes import is_tensor, positive_dim, same_sizes
from qdiff_fx.passes.canonicalize.noops import is_noop
from qdiff_fx.passes.canonicalize.spelling import permutation

aten = torch.ops.aten

CAT = aten.cat.default


@dataclass(frozen=True)
class DirectCat:
    """A layer fed by `cat` through `steps` (nearest to the cat first) that treat each channel alike."""

    layer: fx.Node
    cat: fx.Node
    steps: tuple[fx.Node, ...]


def input_dim(layer: fx.Node) -> int:
    """The dimension of the layer's input that holds its input channels."""
    return value(operand(layer)).dim() - 1 if layer.target is ops.LINEAR else 1


def weight_dim(layer: fx.Node) -> int:
    """The dimension of the layer's weight that runs over its input channels."""
    return 0 if layer.target in ops.TRANSPOSED_CONVS.values() else 1


def find_direct_cat(gm: fx.GraphModule, layer: fx.Node) -> DirectCat | None:
    """The concatenation that feeds `layer` directly, or through no-ops and padding."""
    steps: list[fx.Node] = []
    current = operand(layer)
    while not is_op(current, CAT):
        if not is_op(current, *ops.PADS) and not is_noop(gm, current):
            return None
        if is_op(current, *ops.PADS):
            steps.append(current)
        current = operand(current)
    return DirectCat(layer, current, tuple(reversed(steps)))


def cat_dim(cat: fx.Node) -> int:
    """The dimension a concatenation is along, counted from the front."""
    return positive_dim(bound(cat)["dim"], value(cat).dim())


def chunks(gm: fx.GraphModule, cat: fx.Node) -> list[fx.Node]:
    """What is concatenated, in order: concatenations of concatenations opened up, empty tensors left out."""
    found: list[fx.Node] = []
    for tensor in bound(cat)["tensors"]:
        inner = _skip_noops(gm, tensor)
        if is_op(inner, CAT) and cat_dim(inner) == cat_dim(cat):
            found += chunks(gm, inner)
        elif not same_sizes([value(tensor).numel()], [0]):
            found.append(tensor)
    return found


def padded_dims(pad: fx.Node) -> set[int]:
    """The dimensions a padding op makes larger or smaller."""
    sizes, rank = (bound(pad).get(name) for name in ("pad", "padding")), value(pad).dim()
    ends = next(list(found) for found in sizes if found is not None)
    return {rank - 1 - index // 2 for index, end in enumerate(ends) if end != 0}


def boundaries(gm: fx.GraphModule, node: fx.Node, dim: int) -> frozenset[int]:
    """Where, inside dimension `dim` of `node`, the channels of different chunks meet; empty when unknown.

    Looks through everything that keeps channel i channel i: elementwise ops, norms, pooling, padding, permutes.
    """
    if is_op(node, CAT):
        return _cat_boundaries(gm, node, dim)
    found: frozenset[int] = frozenset()
    for source, source_dim in _same_channels(gm, node, dim):
        found |= boundaries(gm, source, source_dim)
    return found


def _cat_boundaries(gm: fx.GraphModule, cat: fx.Node, dim: int) -> frozenset[int]:
    if cat_dim(cat) != dim:
        return frozenset()
    offset, found = 0, set()
    for tensor in chunks(gm, cat):
        size = value(tensor).shape[dim]
        if not isinstance(size, int):
            return frozenset()
        found |= {offset + inner for inner in boundaries(gm, tensor, dim)} | {offset + size}
        offset += size
    return frozenset(found - {offset})


def _same_channels(gm: fx.GraphModule, node: fx.Node, dim: int) -> list[tuple[fx.Node, int]]:
    """The inputs whose channel i, in the dimension given with them, becomes channel i of `node`."""
    if node.op != "call_function" or not is_tensor(node):
        return []
    effect = ops.channels_of(node.target)
    if effect is Channels.PERMUTED:
        return [(operand(node), permutation(node)[dim])]
    if is_noop(gm, node) or effect is Channels.KEPT or (effect is Channels.KEPT_IN_DIM_1 and dim == 1):
        return [(operand(node), dim)]
    if effect is Channels.PADDED:
        return [] if dim in padded_dims(node) else [(operand(node), dim)]
    if effect is Channels.KEPT_BY_ALL:
        return [(source, dim) for source in node.all_input_nodes if _has_channels(source, node, dim)]
    return []


def _has_channels(source: fx.Node, node: fx.Node, dim: int) -> bool:
    """Whether an elementwise op reads `source` channel by channel rather than stretching it."""
    if not is_tensor(source) or value(source).dim() != value(node).dim():
        return False
    return same_sizes([value(source).shape[dim]], [value(node).shape[dim]])


def _skip_noops(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    while is_noop(gm, node):
        node = operand(node)
    return node
