"""One unit as a graph of its own."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx


def extract(gm: fx.GraphModule, output: str, boundary: Collection[str]) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The part of a graph that computes the node `output` from the nodes named in `boundary` and the placeholders.

    Returns:
        a GraphModule that shares its tensors and modules with `gm`, and the names of its inputs in order.
    """
    nodes = {node.name: node for node in gm.graph.nodes}
    needed: set[fx.Node] = set()
    inputs: set[fx.Node] = set()
    waiting = [nodes[output]]
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder" or (node.name in boundary and node.name != output):
            inputs.add(node)
        elif node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    graph, copies = fx.Graph(), {}
    names = tuple(node.name for node in gm.graph.nodes if node in inputs)
    for name in names:
        copies[nodes[name]] = graph.placeholder(name)
    for node in gm.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, lambda each: copies[each])
    graph.output(copies[nodes[output]])
    return fx.GraphModule(gm, graph, "Unit"), names
