"""A piece of a graph by itself: the computation of one node from given nodes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from qdiff_fx.graph import copy_graph

INPUT_META = ("val", "path", "timestep", "sample")


@dataclass(frozen=True)
class Excerpt:
    """A graph of its own.

    Attributes:
        module: called with the values of `inputs` in order; returns a tuple of one tensor.
        inputs: names of the nodes of the whole graph that it starts from.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]


def excerpt(gm: fx.GraphModule, node: fx.Node, is_given: Callable[[fx.Node], bool]) -> Excerpt:
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
        copies[each].meta.update({key: each.meta[key] for key in INPUT_META if key in each.meta})
    for each in gm.graph.nodes:
        if each in needed:
            copies[each] = graph.node_copy(each, copies.__getitem__)
    graph.output((copies[node],))
    return Excerpt(fx.GraphModule(gm, graph), tuple(each.name for each in inputs))


def without_observers(prepared: fx.GraphModule) -> fx.GraphModule:
    """The float network as a graph, its nodes named as in the prepared graph."""
    gm = copy_graph(prepared)
    for node in [n for n in gm.graph.nodes if n.op == "call_module"]:
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
    gm.graph.lint()
    gm.recompile()
    return gm


@torch.no_grad()
def all_values(gm: fx.GraphModule, tensors: list[torch.Tensor]) -> dict[fx.Node, object]:
    """The value of every node on these inputs."""
    interpreter = fx.Interpreter(gm, garbage_collect_values=False)
    interpreter.run(*tensors)
    return interpreter.env
