"""Attention written out by hand becomes one scaled_dot_product_attention, always spelled the same way."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.arguments import bound
from qdiff_fx.ir.constants import scalar, share_buffer
from qdiff_fx.ir.edit import insert_call, insert_get_attr
from qdiff_fx.ir.shapes import is_tensor, same_dtype_and_device, same_shape, same_sizes, swap_last_two
from qdiff_fx.passes.canonicalize.attention_pattern import Attention, read_attention, resembles_attention
from qdiff_fx.passes.canonicalize.attention_scores import Factor, Mask, NotAttention
from qdiff_fx.passes.rule import Rule, replace_node

aten = torch.ops.aten
SDPA = ops.ATTENTION


class WhereToMaskedFill(Rule[fx.Node]):
    """`where(keep, x, c)` with a number c → `masked_fill(x, not keep, c)`."""

    targets = frozenset({aten.where.ScalarOther, aten.where.self})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        call = bound(node)
        kept, is_bool = call["self"], value(call["condition"]).dtype == torch.bool
        if not is_bool or not is_tensor(kept) or scalar(gm, call["other"]) is None:
            return None
        return node if same_shape(node, kept) and same_dtype_and_device(node, kept) else None

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        drop = insert_call(gm.graph, found, aten.logical_not.default, (call["condition"],))
        found.args = (call["self"], drop, scalar(gm, call["other"]))
        found.target = aten.masked_fill.Scalar
        return "aten.where → aten.masked_fill.Scalar"


class FuseAttention(Rule[fx.Node]):
    """matmul, scale, mask, softmax, matmul → `scaled_dot_product_attention(q, k, v, mask, 0.0, False, scale=c)`.

    q (…, L, D), k (…, S, D) and v (…, S, E) are transposed into place where the products had them otherwise.
    """

    targets = frozenset({aten.softmax.int})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        return node if resembles_attention(node) else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        try:
            read_attention(gm, found)
        except NotAttention as reason:
            return str(reason)
        return ""

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        attention = read_attention(gm, found)
        at = attention.mix.product
        fused = _build(gm.graph, attention, at)
        if attention.mix.flipped:
            fused = _transposed(fused, at)
        if value(fused).dtype != value(at).dtype:
            fused = insert_call(gm.graph, at, aten.to.dtype, (fused, value(at).dtype))
        replace_node(at, fused)
        return "matmul, softmax, matmul → one attention"


def _build(graph: fx.Graph, attention: Attention, at: fx.Node) -> fx.Node:
    scores, mix = attention.scores, attention.mix
    q = _operand(scores.left, at)
    k = _transposed(_operand(scores.right, at), at)
    v = _transposed(mix.v, at) if mix.flipped else mix.v
    mask = _combined([_mask(each, q, at) for each in scores.masks], at)
    return insert_call(graph, at, SDPA, (q, k, v, mask, 0.0, False), {"scale": scores.scale})


def _operand(factor: Factor, at: fx.Node) -> fx.Node:
    if list(factor.dims) == sorted(factor.dims):
        return factor.base
    return insert_call(at.graph, at, aten.permute.default, (factor.base, list(factor.dims)))


def _transposed(node: fx.Node, at: fx.Node) -> fx.Node:
    return insert_call(at.graph, at, aten.permute.default, (node, swap_last_two(value(node).dim())))


def _mask(mask: Mask, q: fx.Node, at: fx.Node) -> fx.Node:
    """The mask as the fused op takes it: boolean (True = keep), or additive in q's dtype."""
    graph, dtype = at.graph, value(q).dtype
    if mask.fill == -math.inf:
        return insert_call(graph, at, aten.logical_not.default, (mask.tensor,))
    added, factor = mask.tensor, mask.factor if mask.fill is None else mask.fill
    if value(added).dtype != dtype:
        added = insert_call(graph, at, aten.to.dtype, (added, dtype))
    return added if factor == 1 else insert_call(graph, at, aten.mul.Tensor, (added, factor))


def _combined(masks: list[fx.Node], at: fx.Node) -> fx.Node | None:
    if not masks:
        return None
    total = masks[0]
    for mask in masks[1:]:
        total = insert_call(at.graph, at, aten.add.Tensor, (total, mask))
    return total


class SpellAttention(Rule[fx.Node]):
    """The fused op's options → plain arguments: scale as a number, causality as a mask, shared heads repeated."""

    targets = frozenset({SDPA})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        kwargs = {key: val for key, val in node.kwargs.items() if val is not None}
        canonical = len(node.args) == 6 and set(kwargs) == {"scale"} and not node.args[5]
        return None if canonical and not node.args[4] else node

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        if call["dropout_p"]:
            return f"the attention drops probabilities (dropout_p={call['dropout_p']})"
        if call["scale"] is None and not isinstance(value(call["query"]).shape[-1], int):
            return "the scale depends on a symbolic head size"
        if call["is_causal"] and not all(isinstance(size, int) for size in _lengths(call)):
            return "the attention is causal and its length is symbolic"
        if call["enable_gqa"] and not _heads_are_known(call):
            return "the heads are shared and their number is symbolic"
        return ""

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        call = bound(found)
        q, mask = call["query"], call["attn_mask"]
        k, v = call["key"], call["value"]
        if call["enable_gqa"]:
            k, v = (_repeat_heads(node, q, found) for node in (k, v))
        if call["is_causal"]:
            mask = _causal_mask(gm, _lengths(call), found)
        scale = call["scale"] if call["scale"] is not None else 1 / math.sqrt(value(q).shape[-1])
        found.args, found.kwargs = (q, k, v, mask, 0.0, False), {"scale": float(scale)}
        return "every argument written out"


class ExpandAttention(Rule[fx.Node]):
    """Query, keys and values that broadcast, keys of one head for all → expanded to the dimensions of the result."""

    targets = frozenset({SDPA})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        leading = value(node).shape[:-2]
        short = [each for each in _operands(node) if not same_sizes(value(each).shape[:-2], leading)]
        return node if short and not bound(node)["enable_gqa"] else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        known = all(_asked_of(dim, found) is not None for dim in range(value(found).dim() - 2))
        return "" if known else "its arguments are broadcast to sizes that none of them has"

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        sizes: list[Any] = [_asked_of(dim, found) for dim in range(value(found).dim() - 2)]
        for dim, size in enumerate(sizes):
            if isinstance(size, tuple):
                sizes[dim] = insert_call(gm.graph, found, aten.sym_size.int, size)
        for index, node in enumerate(_operands(found)):
            if not same_sizes(value(node).shape[:-2], value(found).shape[:-2]):
                expanded = insert_call(gm.graph, found, aten.expand.default, (node, [*sizes, -1, -1]))
                found.update_arg(index, expanded)
        return "what several heads or images read is repeated for each"


def _operands(attention: fx.Node) -> list[fx.Node]:
    call = bound(attention)
    return [call[name] for name in ("query", "key", "value")]


def _asked_of(dim: int, attention: fx.Node) -> int | tuple[fx.Node, int] | None:
    """A leading size of the result, or the argument and its dimension that has it; None where it cannot be told."""
    rank, size = value(attention).dim(), value(attention).shape[dim]
    if isinstance(size, int):
        return size
    for node in _operands(attention):
        own = dim - rank + value(node).dim()
        if own >= 0 and same_sizes([value(node).shape[own]], [size]):
            return node, own
    return None


def _lengths(call: dict[str, fx.Node]) -> tuple[int, int]:
    return value(call["query"]).shape[-2], value(call["key"]).shape[-2]


def _heads_are_known(call: dict[str, fx.Node]) -> bool:
    q, k, v = (value(call[name]).shape[-3] for name in ("query", "key", "value"))
    return all(isinstance(q, int) and isinstance(size, int) or same_sizes([q], [size]) for size in (k, v))


def _repeat_heads(node: fx.Node, q: fx.Node, at: fx.Node) -> fx.Node:
    heads, wanted = value(node).shape[-3], value(q).shape[-3]
    if same_sizes([heads], [wanted]):
        return node
    return insert_call(at.graph, at, aten.repeat_interleave.self_int, (node, wanted // heads, -3))


def _causal_mask(gm: fx.GraphModule, lengths: tuple[int, int], at: fx.Node) -> fx.Node:
    """Query i sees keys 0…i, as the fused op's is_causal."""
    name = share_buffer(gm, f"causal_{lengths[0]}_{lengths[1]}", torch.ones(lengths, dtype=torch.bool).tril())
    return insert_get_attr(gm, at, name)
