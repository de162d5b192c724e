"""A piece of a graph by itself: the computation of one node from given nodes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from qdiff_fx.ir.annotations import describe_like, fact, put
from qdiff_fx.ir.facts import Input


@dataclass(frozen=True)
class Subgraph:
    """A graph of its own.

    Attributes:
        module: called with the values of `inputs` in order; returns a tuple of one tensor.
        inputs: names of the nodes of the whole graph that it starts from.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]


def subgraph(gm: fx.GraphModule, node: fx.Node, is_given: Callable[[fx.Node], bool]) -> Subgraph:
    """The computation of `node` from the nearest nodes that are given; `node` itself is computed in any case."""
    needed, pending = {node}, list(node.all_input_nodes)
    given = set()
    while pending:
        current = pending.pop()
        if current in needed or current in given:
            continue
        if current.op == "placeholder" or is_given(current):
            given.add(current)
            continue
        needed.add(current)
        pending.extend(current.all_input_nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs = [each for each in gm.graph.nodes if each in given]
    for each in inputs:
        copies[each] = graph.placeholder(each.name)
        # That it may be a layer of the whole graph is not so here.
        describe_like(copies[each], each)
        role = fact(each, Input)
        if role:
            put(copies[each], role)
    for each in gm.graph.nodes:
        if each in needed:
            copies[each] = graph.node_copy(each, copies.__getitem__)
    graph.output((copies[node],))
    return Subgraph(fx.GraphModule(gm, graph), tuple(each.name for each in inputs))
