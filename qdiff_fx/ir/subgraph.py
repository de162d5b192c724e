"""A piece of a graph by itself: the computation of some nodes from given nodes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from qdiff_fx.ir.annotations import describe_like, fact, put
from qdiff_fx.ir.facts import Input
from qdiff_fx.ir.properties import copy_notes


@dataclass(frozen=True)
class Subgraph:
    """A graph of its own.

    Attributes:
        module: called with the values of `inputs` in order; returns a tuple of the values of the nodes asked for.
        inputs: names of the nodes of the whole graph that it starts from.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]


def subgraph(gm: fx.GraphModule, nodes: Sequence[fx.Node], is_given: Callable[[fx.Node], bool]) -> Subgraph:
    """The computation of `nodes` from the nearest nodes that are given; they themselves are computed in any case."""
    needed, pending = set(nodes), [each for node in nodes for each in node.all_input_nodes]
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
    graph.output(tuple(copies[node] for node in nodes))
    module = fx.GraphModule(gm, graph)
    copy_notes(module, gm)
    return Subgraph(module, tuple(each.name for each in inputs))
