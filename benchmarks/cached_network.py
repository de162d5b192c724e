"""A network that computes its deep features at some steps only: two programs over the same weights.

A cut is one tensor of the graph. What the output needs beside it is computed at every step, what only it needs is not:
the cheaper inputs of a UNet's last concatenations leave little to compute (DeepCache, Ma et al. 2023, section 3.3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from qdiff_fx.capture import CapturedGraph
from qdiff_fx.ir.sample_flow import depends_on_sample
from qdiff_fx.ir.subgraph import subgraph
from qdiff_fx.signature.dropin import DropIn, answer


@dataclass(frozen=True)
class Cut:
    """A tensor that may be kept: the name of its node, and the share of all multiply-adds that remain without it."""

    name: str
    left: float


class _Counting(fx.Interpreter):
    """Counts what every node multiplies."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.counts: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.counts[n.name] = counter.get_total_flops()
        return result


def find_cuts(captured: CapturedGraph, example: Mapping[str, Any]) -> list[Cut]:
    """What concatenations read, the cut that leaves least to compute first.

    Args:
        example: a call of the network.
    """
    gm = captured.module
    counting = _Counting(gm)
    with torch.no_grad():
        counting.run(*captured.signature.bind((), example).tensors)
    total = sum(counting.counts.values())
    (output,) = gm.graph.find_nodes(op="output")
    joined = [
        each
        for node in gm.graph.nodes
        if node.target is torch.ops.aten.cat.default
        for each in node.all_input_nodes
        if depends_on_sample(gm, each)
    ]
    cuts = []
    for node in dict.fromkeys(joined):
        left = sum(counting.counts[each.name] for each in _needed(output, node))
        cuts.append(Cut(node.name, left / total))
    return sorted(cuts, key=lambda cut: cut.left)


def _needed(output: fx.Node, kept: fx.Node) -> set[fx.Node]:
    """The nodes that the output is computed from where one is there already."""
    found, pending = set[fx.Node](), [output]
    while pending:
        node = pending.pop()
        if node not in found and node is not kept:
            found.add(node)
            pending += node.all_input_nodes
    return found


class CachedNetwork(DropIn):
    """Called as the network is. `restart` before every image: what is kept belongs to one.

    Attributes:
        seen: what the tensor of the cut was at each step that computed it, where `watching`.
    """

    def __init__(self, captured: CapturedGraph, cut: Cut):
        super().__init__(captured.module, captured.signature)
        self._steps = _Steps(captured.module, cut.name)

    def restart(self, full: Collection[int], watching: bool = False, every: int = 0) -> None:
        """Begin an image whose steps of these numbers, 0 among them, compute everything; and another every so many."""
        self._steps.restart(full, watching, every)

    @property
    def seen(self) -> list[Tensor]:
        return self._steps.seen

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return answer(self._steps, self.signature, self.signature.bind(args, kwargs))


class _Steps(nn.Module):
    """The two programs, and what is kept between steps."""

    def __init__(self, gm: fx.GraphModule, cut: str):
        super().__init__()
        nodes = {node.name: node for node in gm.graph.nodes}
        results: Sequence[fx.Node] = next(node for node in nodes.values() if node.op == "output").all_input_nodes
        self._placeholders = [node.name for node in nodes.values() if node.op == "placeholder"]
        self._cut = cut
        self._whole = subgraph(gm, [*results, nodes[cut]], lambda node: False)
        self._rest = subgraph(gm, results, lambda node: node.name == cut)
        self.restart({0}, False, 0)

    def restart(self, full: Collection[int], watching: bool, every: int) -> None:
        self._full, self._watching, self._every, self._step = frozenset(full), watching, every, 0
        self._kept: Tensor | None = None
        self.seen: list[Tensor] = []

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(self._placeholders, inputs, strict=True))
        if self._every and self._step == self._every:
            self.restart(self._full, self._watching, self._every)
        if self._kept is None or self._step in self._full:
            *results, self._kept = self._whole.module(*(values[name] for name in self._whole.inputs))
            if self._watching:
                self.seen.append(self._kept)
        else:
            values[self._cut] = self._kept
            results = self._rest.module(*(values[name] for name in self._rest.inputs))
        self._step += 1
        return tuple(results)


def placed_refreshes(features: Sequence[Tensor], moves: Sequence[float], count: int) -> list[int]:
    """The `count` steps at which to compute features so that what the others reuse has changed least.

    Dynamic programming over the squared relative change between a step's features and those it reuses, times how far
    the step moves, summed over the steps.

    Args:
        features: of each step, of the same shape.
        moves: by how much each step lowers the noise level.
    """
    steps = len(features)
    flat = torch.stack([each.flatten() for each in features]).double()
    change = torch.cdist(flat, flat).square() / flat.square().sum(1)[:, None]
    change *= torch.tensor(moves, dtype=torch.float64)[:, None]
    reused = change.tril().cumsum(0)  # [until, from]: by all steps up to one, of what step `from` computed
    best = {0: (0.0, [0])}  # by the last step that computes: what earlier ones cost, and which they are
    for _ in range(count - 1):
        further: dict[int, tuple[float, list[int]]] = {}
        for last, (cost, chosen) in best.items():
            for following in range(last + 1, steps):
                total = cost + float(reused[following - 1, last])
                if following not in further or total < further[following][0]:
                    further[following] = total, [*chosen, following]
        best = further
    return min(best.values(), key=lambda found: found[0] + float(reused[steps - 1, found[1][-1]]))[1]
