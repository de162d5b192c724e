"""Whether the image being denoised reaches a node, or only the timestep and the conditioning do."""

from __future__ import annotations

import torch
from torch import fx

from qdiff_fx.ir import ops
from qdiff_fx.ir.annotations import any_value
from qdiff_fx.ir.facts import is_sample


def depends_on_sample(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the image being denoised reaches `node`; True when no placeholder is marked as that image.

    Its values count, not its size or dtype: a time embedding made as wide as the image's batch is conditioning.
    """
    samples = {n for n in gm.graph.nodes if n.op == "placeholder" and is_sample(n)}
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
    if isinstance(any_value(node), int | torch.SymInt):
        return []
    return ops.read_by_value(node)
