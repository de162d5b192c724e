"""The convolutions of a split shortcut, each over its chunk, become one call that sums in the accumulators."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import fx

from qdiff_fx.backends.common.running import computes
from qdiff_fx.backends.native.fusion.kernels import CONV, TO_ITSELF, fuse_into_epilogue, is_open, read_elsewhere
from qdiff_fx.ir.edit import add_buffer, get_attr_tensor
from qdiff_fx.passes.rule import Rule

aten = torch.ops.aten
WINDOW = ("kernel", "stride", "padding", "dilation", "enlarge", "out_channels")
SOURCES = ("codes", "scales", "zero_points", "weights", "weight_scales", "weight_sums")


class Halves(NamedTuple):
    """``add(first, second)``, two convolutions in execution order."""

    add: fx.Node
    first: fx.Node
    second: fx.Node


class MergeSplitConvs(Rule[Halves]):
    """``conv(a, v) + conv(b, w)`` of one window → ``conv([a, b], [v, w])``; also for more than two, one by one."""

    targets = frozenset({aten.add.Tensor})

    def match(self, gm: fx.GraphModule, node: fx.Node) -> Halves | None:
        left, right = node.args[:2]
        if not is_open(left) or not is_open(right) or node.kwargs.get("alpha", 1) != 1:
            return None
        first, second = sorted((left, right))
        return Halves(node, first, second) if _same_window(first, second) else None

    def subject(self, node: fx.Node, found: Halves) -> fx.Node:
        return found.second

    def refuse(self, gm: fx.GraphModule, found: Halves) -> str:
        add, *halves = found
        if found.first is found.second:
            return TO_ITSELF
        for half in halves:
            taken = [name for name in ("shift", "residual") if half.kwargs[name] is not None]
            if taken:
                return f"a convolution of the same window that it is added to has a {taken[0]} of its own"
            if len(half.users) > 1:
                return read_elsewhere("result of a convolution of the same window", half, add)
        return ""

    def rewrite(self, gm: fx.GraphModule, found: Halves) -> str:
        add, first, second = found
        ours, theirs = cast("tuple[dict[str, list[Any]], ...]", (first.kwargs, second.kwargs))
        changes: dict[str, Any] = {name: [*ours[name], *theirs[name]] for name in SOURCES}
        computes(second, first, second)
        fuse_into_epilogue(second, add, **changes, bias=_sum_of_biases(gm, first, second))
        gm.graph.erase_node(first)
        return f"{len(changes['codes'])} sources"


def _same_window(first: Any, second: Any) -> bool:
    convs = first.target is CONV and second.target is CONV
    return convs and all(first.kwargs[name] == second.kwargs[name] for name in WINDOW)


def _sum_of_biases(gm: fx.GraphModule, first: fx.Node, second: fx.Node) -> Any:
    biases: list[Any] = [node.kwargs["bias"] for node in (first, second) if node.kwargs["bias"] is not None]
    if len(biases) < 2:
        return biases[0] if biases else None
    total = get_attr_tensor(gm, biases[0]) + get_attr_tensor(gm, biases[1])
    with gm.graph.inserting_before(first):
        return gm.graph.get_attr(add_buffer(gm, f"{biases[0].target}_sum", total.detach()))
