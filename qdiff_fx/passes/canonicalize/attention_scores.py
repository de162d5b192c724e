"""Read what a softmax acts on: c · q kᵀ + masks, whichever way the product, scale and mask were written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound, operand
from qdiff_fx.ir.constants import scalar
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.shapes import is_tensor, same_shape
from qdiff_fx.passes.canonicalize.spelling import permutation

aten = torch.ops.aten

MATMUL = aten.matmul.default
# A filled-in score at or below this is added instead, which differs only in rows that are masked entirely:
# fp16 code writes -1e4, others more.
LOWEST_FILL = -1e4


class NotAttention(Exception):
    """Why a softmax between two products is not the attention the fused op computes."""


@dataclass(frozen=True)
class Mask:
    """One mask on the scores.

    `tensor` is added, times `factor`; or, with `fill` set, `tensor` is boolean and True overwrites by `fill`.
    """

    tensor: fx.Node
    factor: float = 1.0
    fill: float | None = None


@dataclass(frozen=True)
class Factor:
    """One side of q kᵀ: `factor · permute(base, dims)`, the permute and any cast peeled off `base`."""

    base: fx.Node
    dims: tuple[int, ...]
    factor: float


@dataclass
class Scores:
    """What the softmax acts on: `scale · left · right + masks`."""

    left: Factor
    right: Factor
    scale: float
    masks: list[Mask] = field(default_factory=list)


def read_scores(gm: fx.GraphModule, node: fx.Node) -> Scores:
    """Walk up from the softmax to the product, collecting scales and masks on the way."""
    shape, scale = node, 1.0
    masks: list[Mask] = []
    while True:
        check_only_reader(node, "scores")
        if not same_shape(node, shape):
            raise NotAttention("the mask stretches the scores to a larger shape")
        if is_op(node, MATMUL):
            left, right = _peel(gm, operand(node)), _peel(gm, operand(node, 1))
            return Scores(left, right, scale * left.factor * right.factor, masks)
        node, factor, mask = _step_up(gm, node, scale)
        scale *= factor
        masks += [mask] if mask else []


def _step_up(gm: fx.GraphModule, node: fx.Node, scale: float) -> tuple[fx.Node, float, Mask | None]:
    """One step from the softmax towards the product: what came before, times what, plus which mask."""
    if is_op(node, *ops.CASTS):
        return operand(node), 1.0, None
    scaled = _read_scaled(gm, node)
    if scaled is not None:
        return scaled[0], scaled[1], None
    if is_op(node, aten.add.Tensor) and bound(node)["alpha"] == 1:
        source, mask = _split_sum(node)
        return source, 1.0, Mask(mask, factor=scale)
    filled = _read_fill(gm, node)
    if filled is not None:
        source, mask, number = filled
        _check_fill(number * scale)
        return source, 1.0, Mask(mask, fill=number * scale)
    if is_op(node, *ops.MULTIPLICATIONS, *ops.DIVISIONS):
        raise NotAttention("the scores are scaled by a tensor, not by a number")
    what = node.target if node.op == "call_function" else f"the {node.op} {node.name}"
    raise NotAttention(f"the softmax does not act on q·kᵀ: {what} comes before it")


def _read_scaled(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, float] | None:
    """`x · c` or `x / c` with a constant number c → (x, c or 1/c)."""
    if not is_op(node, *ops.MULTIPLICATIONS, *ops.DIVISIONS) or not is_tensor(node.args[0]):
        return None
    for source, other in ((0, 1), (1, 0)) if is_op(node, *ops.MULTIPLICATIONS) else ((0, 1),):
        number = scalar(gm, node.args[other])
        if number is not None and is_tensor(node.args[source]):
            return operand(node, source), number if is_op(node, *ops.MULTIPLICATIONS) else 1 / (number or math.nan)
    return None


def _split_sum(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The side of an addition that leads to a product, and the other, the mask."""
    sides = [arg for arg in node.args if is_tensor(arg)]
    leading = [side for side in sides if _leads_to_product(side)]
    if len(sides) != 2 or len(leading) != 1:
        raise NotAttention("the softmax does not act on one product plus a mask")
    mask = next(side for side in sides if side is not leading[0])
    return leading[0], mask


def _leads_to_product(node: fx.Node) -> bool:
    return is_op(node, MATMUL) or (
        is_op(node, *ops.BETWEEN_SCORES) and reaches_product(node, lambda current: current.all_input_nodes)
    )


def _read_fill(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, fx.Node, float] | None:
    """`masked_fill(x, mask, c)` → (x, mask, c). (`where(keep, x, c)` is spelled masked_fill beforehand.)"""
    if not is_op(node, *ops.FILLS):
        return None
    number = scalar(gm, node.args[2])
    return None if number is None else (operand(node), operand(node, 1), number)


def _check_fill(number: float) -> None:
    if number > LOWEST_FILL:
        raise NotAttention(f"masked scores are set to {number:g}, not to minus infinity")


def _peel(gm: fx.GraphModule, node: fx.Node) -> Factor:
    """Take number factors and widening casts off one side of the product, through permutes."""
    plain = Factor(node, tuple(range(value(node).dim())), 1.0)
    current, peeled = plain, plain
    while True:
        base, scaled = current.base, _read_scaled(gm, current.base)
        if is_op(base, aten.permute.default):
            dims = permutation(base)
            current = Factor(operand(base), tuple(dims[d] for d in current.dims), current.factor)
        elif is_widening(base):
            current = peeled = Factor(operand(base), current.dims, current.factor)
        elif scaled is not None and value(scaled[0]).dim() == len(current.dims):
            current = peeled = Factor(scaled[0], current.dims, current.factor * scaled[1])
        else:
            return peeled


def is_widening(node: fx.Node) -> bool:
    """Whether the node casts to a wider float: the fused op accumulates in float32 by itself."""
    if not is_op(node, *ops.CASTS):
        return False
    before, after = value(operand(node)).dtype, value(node).dtype
    return before.is_floating_point and after.is_floating_point and before.itemsize < after.itemsize


def check_masks(scores: Scores) -> None:
    """Raises NotAttention for masks the fused op cannot take together, or at all."""
    booleans = [mask for mask in scores.masks if mask.fill == -math.inf]
    if booleans and len(scores.masks) > 1:
        raise NotAttention("more than one mask, one of them boolean")
    for mask in scores.masks:
        kind = value(mask.tensor)
        if mask.fill is None and not kind.is_floating_point():
            raise NotAttention(f"the added mask holds {kind.dtype}")


def check_only_reader(node: fx.Node, what: str) -> None:
    """Raises NotAttention when fusing would not make `node` disappear."""
    if len(node.users) != 1:
        names = ", ".join(sorted(user.name for user in node.users))
        raise NotAttention(f"the {what} are read by more than one node ({names})")


def reaches_product(start: fx.Node, neighbours: Callable[[fx.Node], list[fx.Node]]) -> bool:
    """Whether a matrix product lies in the direction of `neighbours`, with only steps attention may have between."""
    seen: set[fx.Node] = set()
    waiting = neighbours(start)
    while waiting:
        current = waiting.pop()
        if is_op(current, MATMUL):
            return True
        if current not in seen and is_op(current, *ops.BETWEEN_SCORES):
            seen.add(current)
            waiting = [*waiting, *neighbours(current)]
    return False
