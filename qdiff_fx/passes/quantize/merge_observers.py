"""Two calibrations of one network become one: what two sets of observers saw, in one set."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import fx

from qdiff_fx.errors import CalibrationError
from qdiff_fx.ir.edit import copy_graph, get_attr_tensor
from qdiff_fx.observers import Observer


def merge_observers(gm: fx.GraphModule, other: fx.GraphModule) -> None:
    """Add what the observers of `other` saw to those of `gm`, in place and exactly, in any order of merging.

    Raises:
        CalibrationError: the graphs, their weights or their observers differ; the message says where.
    """
    _check_same(gm, other)
    paths = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    for path in paths:
        cast(Observer, gm.get_submodule(path)).merge(cast(Observer, other.get_submodule(path)))


def copy_with_observers(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of an observed graph with observers of its own; weights are shared."""
    copied = copy_graph(gm)
    for path in dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module"):
        owner, _, name = path.rpartition(".")
        setattr(copied.get_submodule(owner), name, copy.deepcopy(gm.get_submodule(path)))
    return copied


def _check_same(gm: fx.GraphModule, other: fx.GraphModule) -> None:
    nodes, others = list(gm.graph.nodes), list(other.graph.nodes)
    for node, twin in zip(nodes, others, strict=False):
        if node.format_node() != twin.format_node():
            raise _different(f"node {node.name} is {node.format_node()} here and {twin.format_node()} there")
        if node.op == "get_attr" and not torch.equal(get_attr_tensor(gm, node), get_attr_tensor(other, twin)):
            raise _different(f"{node.target} has other values")
        if node.op == "call_module":
            a, b = (cast(Observer, each.get_submodule(str(node.target))) for each in (gm, other))
            if (a.schedule, a.hist.shape) != (b.schedule, b.hist.shape):
                raise _different(f"the observer {a.name!r} counts other bins")
    if len(nodes) != len(others):
        raise _different(f"one graph has {len(nodes)} nodes, the other {len(others)}")


def _different(what: str) -> CalibrationError:
    return CalibrationError(
        f"calibrations of different networks cannot be merged: {what}",
        where="merge",
        fix="Prepare both from the same weights, with the same configuration",
    )
