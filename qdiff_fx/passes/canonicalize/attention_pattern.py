"""Recognise attention written out by hand: softmax(c · q kᵀ + mask) v, around its softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.shapes import same_sizes, swap_last_two
from qdiff_fx.passes.canonicalize.attention_scores import (
    MATMUL,
    NotAttention,
    Scores,
    check_masks,
    check_only_reader,
    is_widening,
    reaches_product,
    read_scores,
)
from qdiff_fx.passes.canonicalize.spelling import permutation

aten = torch.ops.aten


@dataclass(frozen=True)
class Mix:
    """Where the probabilities go: `product = p · v`, or with `flipped` its transpose `vᵀ · pᵀ`."""

    product: fx.Node
    v: fx.Node
    flipped: bool


@dataclass(frozen=True)
class Attention:
    """softmax(scale · q kᵀ + masks) v, with where its parts were found."""

    scores: Scores
    mix: Mix


def resembles_attention(softmax: fx.Node) -> bool:
    """Whether a matrix product feeds this softmax, or is fed by it, through nothing but elementwise steps."""
    above = reaches_product(softmax, lambda node: node.all_input_nodes)
    return above or reaches_product(softmax, lambda node: list(node.users))


def read_attention(gm: fx.GraphModule, softmax: fx.Node) -> Attention:
    """Take the attention around `softmax` apart. Raises NotAttention with the reason when it is none."""
    _check_softmax(softmax)
    found = Attention(read_scores(gm, operand(softmax)), _read_mix(softmax))
    _check_operands(found)
    return found


def _check_softmax(softmax: fx.Node) -> None:
    rank = value(operand(softmax)).dim()
    dim = bound(softmax)["dim"] % rank
    if dim != rank - 1:
        raise NotAttention(f"softmax is over dimension {dim}, not the last")


def _read_mix(softmax: fx.Node) -> Mix:
    """Walk down from the softmax to the product with v."""
    node, flipped = softmax, False
    while True:
        check_only_reader(node, "probabilities")
        user = next(iter(node.users))
        if is_op(user, MATMUL):
            return _read_product(user, node, flipped)
        if is_op(user, aten.permute.default) and permutation(user) == swap_last_two(value(user).dim()):
            flipped = not flipped
        elif not is_op(user, *ops.CASTS):
            what = user.target if user.op == "call_function" else f"the {user.op}"
            raise NotAttention(f"{what} stands between the softmax and the product with v")
        node = user


def _read_product(product: fx.Node, probabilities: fx.Node, flipped: bool) -> Mix:
    if operand(product) is operand(product, 1):
        raise NotAttention("the probabilities are multiplied by themselves")
    if (operand(product) is probabilities) == flipped:
        raise NotAttention("the product with v sums over the queries, not over the keys")
    v = operand(product, 0 if flipped else 1)
    return Mix(product, _without_casts(v), flipped)


def _without_casts(node: fx.Node) -> fx.Node:
    while is_widening(node):
        node = operand(node)
    return node


def _check_operands(found: Attention) -> None:
    left, right, v = found.scores.left, found.scores.right, found.mix.v
    types = {value(node).dtype for node in (left.base, right.base, v)}
    if len(types) != 1:
        raise NotAttention(f"q, k and v have different dtypes: {', '.join(sorted(map(str, types)))}")
    if len({len(left.dims), len(right.dims), value(v).dim()}) != 1 or value(v).dim() < 2:
        raise NotAttention("q, k and v have different numbers of dimensions")
    leading = [_leading(left.base, left.dims), _leading(right.base, right.dims), value(v).shape[:-2]]
    if not all(same_sizes(leading[0], other) for other in leading[1:]):
        raise NotAttention(f"q, k and v have different leading dimensions: {[tuple(dims) for dims in leading]}")
    if not math.isfinite(found.scores.scale):
        raise NotAttention(f"the scale is {found.scores.scale}")
    check_masks(found.scores)


def _leading(base: fx.Node, dims: tuple[int, ...]) -> list[object]:
    return [value(base).shape[dim] for dim in dims[:-2]]
