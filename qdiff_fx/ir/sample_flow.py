"""Whether the image being denoised reaches a node, or only the timestep and the conditioning do."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

# Only the size and dtype of argument 0 matter, or of argument 1.
_LIKE = frozenset(
    {
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.empty_like.default,
        aten.full_like.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_empty.default,
        aten.new_full.default,
    }
)
_AS = frozenset(
    {
        aten.expand_as.default,
        aten.view_as.default,
        aten.reshape_as.default,
        aten.type_as.default,
        aten.to.other,
    }
)


def depends_on_sample(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the image being denoised reaches `node`; True when no placeholder is marked as that image.

    Its values count, not its size or dtype: a time embedding made as wide as the image's batch is conditioning.
    """
    samples = {n for n in gm.graph.nodes if n.op == "placeholder" and n.meta.get("sample")}
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting and samples.isdisjoint(seen):
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += _read_by_value(current)
    return not samples or not samples.isdisjoint(seen)


def _read_by_value(node: fx.Node) -> list[fx.Node]:
    """The inputs whose elements, not only their sizes, `node` depends on."""
    if isinstance(node.meta.get("val"), int | torch.SymInt) or node.target in _LIKE:
        return []
    return node.all_input_nodes[:1] if node.target in _AS else node.all_input_nodes
