"""A graph cut into blocks, in execution order, where little has to be carried from one to the next.

A cut lies after a node. What crosses it are the values computed before it that are read after it: the shortcuts that
are under way, and what the next block starts from. Cuts are made where that is least: between residual blocks, where
only the sum crosses, not within one, where its input crosses too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf, prod
from typing import Any

import torch
from torch import fx

from qdiff_fx.ir.annotations import any_value
from qdiff_fx.ir.subgraph import Subgraph, subgraph

MOST_LAYERS = 8
"""Of a block: one that has more is cut further, where least crosses within it."""
UNKNOWN = 16
"""What a size counts as that nobody knows."""


@dataclass(frozen=True)
class Block:
    """One of the parts a graph was cut into.

    Attributes:
        layers: those of the nodes that it was cut by, in execution order.
        inputs: names of the values that earlier blocks computed and this one reads.
        outputs: names of the values that this one computes and later ones read; of the last, the graph's results.
        finished: those of its inputs, and of its outputs, that no later block reads.
    """

    layers: tuple[fx.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    finished: tuple[str, ...]


def cut_into_blocks(gm: fx.GraphModule, is_layer: Callable[[fx.Node], bool]) -> list[Block]:
    """The blocks of a graph, each with at least one layer; observers (called modules) belong to whoever reads them.

    Args:
        is_layer: what blocks are made of.
    """
    nodes = list(gm.graph.nodes)
    crossing = _Crossing(nodes)
    layers = [index for index, node in enumerate(nodes) if is_layer(node)]
    cuts = list(_cuts(crossing, layers))
    starts, ends = [-1, *cuts], [*cuts, len(nodes) - 1]
    known: set[str] = set()
    blocks = []
    for start, end in zip(starts, ends, strict=True):
        before, after = crossing.names(start), crossing.names(end)
        last = end == len(nodes) - 1
        outputs = _results(nodes[-1]) if last else [name for name in after if name not in known]
        known |= set(after)
        inside = tuple(nodes[index] for index in layers if start < index <= end)
        reads = tuple(name for name in before if crossing.read_between(name, start, end))
        finished = tuple(name for name in before if last or name not in after)
        blocks.append(Block(inside, reads, tuple(outputs), finished))
    return blocks


def part_of(gm: fx.GraphModule, block: Block, outputs: Sequence[str] | None = None) -> Subgraph:
    """What a block computes as a graph of its own, from its inputs and the graph's; of other outputs, if given."""
    nodes = {node.name: node for node in gm.graph.nodes}
    given = set(block.inputs)
    wanted = [nodes[name] for name in (block.outputs if outputs is None else outputs)]
    return subgraph(gm, wanted, lambda node: node.name in given)


class _Crossing:
    """What crosses a cut after each node."""

    def __init__(self, nodes: Sequence[fx.Node]):
        position = {node: index for index, node in enumerate(nodes)}
        free: set[fx.Node] = set()
        self._position = position
        self._readers: dict[fx.Node, list[int]] = {}
        changes = [0.0] * (len(nodes) + 1)
        forbidden = [0.0] * (len(nodes) + 1)
        for node in nodes:
            if node.op in ("call_module", "output"):
                continue
            readers = sorted(position[reader] for reader in _readers(node))
            if _is_free(node, free):
                free.add(node)
            else:
                self._readers[node] = readers
            # An input that is still to be read makes a place no narrower than a value would.
            if readers and (node in self._readers or node.op == "placeholder"):
                size = _bytes(node)
                changed, by = (forbidden, 1.0) if size == inf else (changes, size)
                changed[position[node]] += by
                changed[readers[-1]] -= by
        self.bytes: list[float] = []
        total = barriers = 0.0
        for index in range(len(nodes)):
            total, barriers = total + changes[index], barriers + forbidden[index]
            self.bytes.append(inf if barriers else total)

    def names(self, cut: int) -> list[str]:
        """What crosses the cut after the node of that index; nothing before the first and behind the last one."""
        return [
            node.name
            for node, readers in self._readers.items()
            if readers and self._position[node] <= cut < readers[-1] and cut >= 0
        ]

    def read_between(self, name: str, start: int, end: int) -> bool:
        """Whether a value is read by a node in (start, end]."""
        readers = next(readers for node, readers in self._readers.items() if node.name == name)
        return any(start < reader <= end for reader in readers)


def _cuts(crossing: _Crossing, layers: Sequence[int]) -> Iterator[int]:
    """Indices of the nodes after which the graph is cut."""
    if not layers:
        return
    chosen: list[int] = []
    for cut in _local_minima(crossing.bytes[: layers[-1]]):
        # Only where a layer lies between this cut and the one before.
        if any((chosen[-1] if chosen else -1) < layer <= cut for layer in layers):
            chosen.append(cut)
    starts, ends = [-1, *chosen], [*chosen, len(crossing.bytes) - 1]
    for start, end in zip(starts, ends, strict=True):
        yield from _cut_further(crossing, [layer for layer in layers if start < layer <= end])
        if end in chosen:
            yield end


def _local_minima(values: Sequence[float]) -> Iterator[int]:
    """The first index of every run of equal values that lies below both of its neighbours; infinite ones are none."""
    finite = [(index, value) for index, value in enumerate(values) if value != inf]
    runs = [(value, next(run)[0]) for value, run in groupby(finite, key=lambda each: each[1])]
    for before, (value, first), after in zip(runs, runs[1:], runs[2:], strict=False):
        if before[0] > value < after[0]:
            yield first


def _cut_further(crossing: _Crossing, layers: Sequence[int]) -> Iterator[int]:
    """Cuts between the layers of a block that has too many of them, where least crosses; next to the middle first."""
    if len(layers) <= MOST_LAYERS:
        return
    middle = layers[len(layers) // 2]
    places = range(layers[0], layers[-1])
    cut = min(places, key=lambda place: (crossing.bytes[place], abs(place - middle)))
    if crossing.bytes[cut] == inf:
        return
    yield from _cut_further(crossing, [layer for layer in layers if layer <= cut])
    yield cut
    yield from _cut_further(crossing, [layer for layer in layers if layer > cut])


def _is_free(node: fx.Node, free: set[fx.Node]) -> bool:
    """Whether every block can have the value for nothing: an input, a constant, a size of an input."""
    if node.op in ("placeholder", "get_attr"):
        return True
    constant = all(each in free and each.op != "placeholder" for each in node.all_input_nodes)
    of_sizes = _is_number(node) and all(each in free for each in node.all_input_nodes)
    return constant or of_sizes


def _is_number(node: fx.Node) -> bool:
    return isinstance(any_value(node), int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The users of a value; observers are looked through."""
    for user in node.users:
        if user.op == "call_module":
            yield from _readers(user)
        else:
            yield user


def _bytes(node: fx.Node) -> float:
    """Of the value, at the sizes the graph was captured with; infinite where it is no tensor and cannot be carried."""
    value = any_value(node)
    if not isinstance(value, torch.Tensor):
        return inf
    return float(value.element_size() * prod(map(_size, value.shape)))


def _size(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else UNKNOWN


def _results(output: fx.Node) -> list[str]:
    """What the graph computes: an input or a tensor of its own that it hands out is no block's work."""
    return [node.name for node in output.all_input_nodes if node.op not in ("placeholder", "get_attr")]
