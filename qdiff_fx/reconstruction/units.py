"""The units a network is reconstructed by, in execution order: residual blocks, then whatever layers remain.

Units are found in the graph. A block is the innermost module whose own `forward` adds two tensors that both depend on
the image: a ResBlock, an attention block, a transformer block. It must have one output only; where it has more
(a module called twice, say), its layers become units of their own, as do layers outside of every block. A layer that
computes the same for every batch is in no unit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from qdiff_fx.ir.annotations import fact, has, path_of, value
from qdiff_fx.ir.edit import is_op
from qdiff_fx.ir.facts import Part, layer_id, planned_info
from qdiff_fx.ir.sample_flow import depends_on_sample
from qdiff_fx.ir.shapes import is_tensor

aten = torch.ops.aten

UnitKind = Literal["block", "layer"]


@dataclass(frozen=True)
class Unit:
    """A part of the network that is reconstructed as a whole.

    Attributes:
        path: the module path of the block, or of the layer.
        layers: names of its quantized layers (attention included), in execution order.
        output: name of the node that is compared with the float network's.
    """

    path: str
    kind: UnitKind
    layers: tuple[str, ...]
    output: str


def find_units(gm: fx.GraphModule) -> tuple[Unit, ...]:
    """The units of an annotated graph, in execution order; no quantized layer is in two of them."""
    position = {node: index for index, node in enumerate(gm.graph.nodes)}
    layers = [node for node in gm.graph.nodes if is_quantized(node)]
    units: list[tuple[int, Unit]] = []
    taken: set[fx.Node] = set()
    for path in _block_paths(gm):
        members = [node for node in gm.graph.nodes if node.op == "call_function" and _is_under(node, path)]
        outputs = _outputs(members)
        inside = [node for node in layers if node in set(members)]
        if inside and len(outputs) == 1 and _is_batched(outputs[0]):
            units.append((position[outputs[0]], _unit(path, "block", inside, outputs[0])))
            taken.update(inside)
    for parts in _whole_layers(node for node in layers if node not in taken):
        output = _sum_of(parts)
        if not _is_batched(output):
            continue
        units.append((position[output], _unit(path_of(parts[0]), "layer", parts, output)))
    return tuple(unit for _, unit in sorted(units, key=lambda each: each[0]))


def is_quantized(node: fx.Node) -> bool:
    """Whether the node is a layer or an attention that the plan quantizes."""
    info = planned_info(node)
    return info is not None and info.quantized


def _unit(path: str, kind: UnitKind, layers: list[fx.Node], output: fx.Node) -> Unit:
    return Unit(path or layer_id(layers[0]), kind, tuple(node.name for node in layers), output.name)


def _block_paths(gm: fx.GraphModule) -> list[str]:
    """Modules whose own forward holds a residual addition and that contain no other such module."""
    paths = {path_of(node) for node in gm.graph.nodes if _is_residual(gm, node)} - {""}
    return sorted(path for path in paths if not any(other.startswith(f"{path}.") for other in paths))


def _is_residual(gm: fx.GraphModule, node: fx.Node) -> bool:
    if not is_op(node, aten.add.Tensor) or _is_sum_of_parts(node):
        return False
    operands = node.args[:2]
    return all(isinstance(each, fx.Node) and depends_on_sample(gm, each) for each in operands)


def _is_sum_of_parts(node: object) -> bool:
    """Whether the node only puts the parts of a split layer together again."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":  # an observer
        return bool(node.args) and _is_sum_of_parts(node.args[0])
    if has(node, Part):
        return True
    return is_op(node, aten.add.Tensor) and all(_is_sum_of_parts(each) for each in node.args[:2])


def _is_under(node: fx.Node, path: str) -> bool:
    own = path_of(node)
    return own == path or own.startswith(f"{path}.")


def _outputs(members: list[fx.Node]) -> list[fx.Node]:
    """The members whose values are used outside; sizes do not count, quantizers are looked through."""
    inside = set(members)

    def leaves(node: fx.Node) -> bool:
        return any(user not in inside and (is_tensor(user) or user.op == "output") for user in _readers(node))

    return [node for node in members if is_tensor(node) and leaves(node)]


def _is_batched(node: fx.Node) -> bool:
    """Whether there is a result for each sample of the batch."""
    shape = value(node).shape
    return len(shape) > 0 and not isinstance(shape[0], int)


def _whole_layers(layers: Iterable[fx.Node]) -> list[list[fx.Node]]:
    """Layers with the parts of a split one together."""
    groups: dict[str, list[fx.Node]] = {}
    for node in layers:
        part = fact(node, Part)
        groups.setdefault(part.split_of if part else node.name, []).append(node)
    return list(groups.values())


def _sum_of(parts: list[fx.Node]) -> fx.Node:
    """The node that holds a whole layer's result."""
    total = parts[0]
    for _ in parts[1:]:
        total = next(user for user in _readers(total) if _is_sum_of_parts(user))
    return total


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The users of a value; observers are looked through."""
    for user in node.users:
        if user.op == "call_module":
            yield from _readers(user)
        else:
            yield user
