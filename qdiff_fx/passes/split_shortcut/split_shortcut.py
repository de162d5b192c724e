"""Split shortcut: a layer over a concatenation becomes one layer per chunk, summed (Q-Diffusion, section 4.2)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import fx

from qdiff_fx.config import SplitPolicy
from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import nodes_with, require, value
from qdiff_fx.ir.arguments import bound, function_of, operand
from qdiff_fx.ir.edit import insert_call, is_mutable
from qdiff_fx.ir.facts import Part
from qdiff_fx.ir.properties import set_split_policy, split_policy
from qdiff_fx.ir.sample_flow import depends_on_sample
from qdiff_fx.ir.widening import weight_source
from qdiff_fx.passes.framework import Pass, PassReport, checks
from qdiff_fx.passes.rule import Rule, apply_rules, pending
from qdiff_fx.passes.split_shortcut.channel_flow import (
    DirectCat,
    boundaries,
    cat_dim,
    chunks,
    find_direct_cat,
    input_dim,
    padded_dims,
)
from qdiff_fx.passes.split_shortcut.split_parts import bad_parts, split_layer

aten = torch.ops.aten


class SplitDirect(Rule[DirectCat]):
    """`conv(cat([a, b]), W, bias)` → `conv(a, W[:, :k]) + conv(b, W[:, k:], bias)`.

    Also for a linear layer, a transposed convolution, any number of chunks, and with padding in between, which
    then pads each chunk. The bias goes to the last part, so that it is added once.
    """

    targets = frozenset(ops.WEIGHT_LAYERS)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> DirectCat | None:
        found = find_direct_cat(gm, node)
        return found if found is not None and len(chunks(gm, found.cat)) > 1 else None

    def refuse(self, gm: fx.GraphModule, found: DirectCat) -> str:
        return _why_dimensions_differ(found) or _why_chunks_differ(gm, found) or _why_not(gm, found.layer)

    def rewrite(self, gm: fx.GraphModule, found: DirectCat) -> str:
        inputs = chunks(gm, found.cat)
        for step in found.steps:
            inputs = [
                insert_call(gm.graph, found.layer, function_of(step), (chunk, *step.args[1:]), step.kwargs, like=step)
                for chunk in inputs
            ]
        return split_layer(gm, found.layer, inputs)


class SplitBehind(Rule[fx.Node]):
    """`conv(f(cat([a, b])), W)` with a channel-by-channel f → `conv(y[:, :k], W[:, :k]) + conv(y[:, k:], …)`."""

    targets = frozenset(ops.WEIGHT_LAYERS)

    def match(self, gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
        if find_direct_cat(gm, node) is not None or not _is_batched(node):
            return None
        return node if boundaries(gm, operand(node), input_dim(node)) else None

    def refuse(self, gm: fx.GraphModule, found: fx.Node) -> str:
        return _why_not(gm, found)

    def rewrite(self, gm: fx.GraphModule, found: fx.Node) -> str:
        source, dim = operand(found), input_dim(found)
        ends = sorted(boundaries(gm, source, dim) | {value(source).shape[dim]})
        starts = [0, *ends[:-1]]
        inputs = [
            insert_call(gm.graph, found, aten.slice.Tensor, (source, dim, start, end))
            for start, end in zip(starts, ends)
        ]
        return split_layer(gm, found, inputs)


class SplitShortcut(Pass):
    """Splits layers that sum over concatenated channels, exactly, so that each chunk gets its own quantizer.

    Args:
        policy: "shortcut" splits layers that read a concatenation itself, as the paper does; "all" also those
            behind a norm or an activation of one; "off" none.

    Each part is marked as a `Part`: its slice of the input channels, and the name of the layer it was. Only
    concatenations the denoised image flows through count.

    Raises:
        ValueError: an unknown policy.
    """

    name = "split_shortcut"
    requires = frozenset({"canonical"})
    ensures = frozenset({"split"})

    def __init__(self, policy: SplitPolicy = "shortcut"):
        _rules(policy)
        self.policy = policy

    def run(self, gm: fx.GraphModule) -> PassReport:
        """Rewrite in place. A concatenation nothing else reads disappears."""
        set_split_policy(gm, self.policy)
        changes, refusals = apply_rules(gm, _rules(self.policy))
        return PassReport(self.name, tuple(changes), tuple(refusals))


def _rules(policy: SplitPolicy) -> tuple[Rule[Any], ...]:
    known: dict[str, tuple[Rule[Any], ...]] = {
        "off": (),
        "shortcut": (SplitDirect(),),
        "all": (SplitDirect(), SplitBehind()),
    }
    if policy not in known:
        raise ValueError(f"split policy {policy!r} is none of {', '.join(known)}")
    return known[policy]


def _why_dimensions_differ(found: DirectCat) -> str:
    dim, layer = cat_dim(found.cat), found.layer
    if not _is_batched(layer):
        return "the input has no batch dimension"
    if dim != input_dim(layer):
        return f"the concat is along dimension {dim}, the layer sums over dimension {input_dim(layer)}"
    if any(dim in padded_dims(step) for step in found.steps):
        return "the concat is padded along its channels"
    return ""


def _why_chunks_differ(gm: fx.GraphModule, found: DirectCat) -> str:
    parts, dim = chunks(gm, found.cat), cat_dim(found.cat)
    symbolic = [part.name for part in parts if not isinstance(value(part).shape[dim], int)]
    if symbolic:
        return f"the number of channels of {symbolic[0]} is symbolic"
    types = {value(part).dtype for part in parts}
    if len(types) > 1:
        return f"the chunks have different dtypes: {', '.join(sorted(map(str, types)))}"
    return ""


def _why_not(gm: fx.GraphModule, layer: fx.Node) -> str:
    """What about the layer itself forbids splitting it."""
    weight, groups = operand(layer, 1), bound(layer).get("groups", 1)
    if groups != 1:
        return f"groups={groups}: an output channel sees only its own group"
    if weight_source(weight) is None:
        return "the weight is not a constant"
    if not depends_on_sample(gm, operand(layer)):
        return "the concat holds only conditioning, the sample does not reach it"
    # A part reads its chunk where the layer was, later than the concat did.
    writers = [node.name for node in gm.graph.nodes if node.op == "call_function" and is_mutable(node)]
    return f"{writers[0]} writes in place" if writers else ""


def _is_batched(layer: fx.Node) -> bool:
    return "groups" not in bound(layer) or value(operand(layer)).dim() == value(operand(layer, 1)).dim()


@checks("split")
def _not_split(gm: fx.GraphModule) -> list[str]:
    problems = pending(gm, _rules(split_policy(gm)))
    layers: dict[str, list[fx.Node]] = defaultdict(list)
    for node in nodes_with(gm, Part):
        if node.target in ops.WEIGHT_LAYERS:
            layers[require(node, Part).split_of].append(node)
    return problems + [problem for name, parts in layers.items() for problem in bad_parts(name, parts)]
