"""What gets bits of its own: every layer that a rule can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx

from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.convert import convert
from qdiff_fx.graph import copy_graph, get_attr_tensor
from qdiff_fx.packing import packed_size
from qdiff_fx.passes.annotate import Annotate, LayerPlan

FLOAT = 0
"""The choice of a unit that stays in float; every other choice is its weight bits."""
AS_CONFIGURED = 8
"""The choice of a unit without weights (attention) that is quantized."""
DEFAULT_BITS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Unit:
    """The layers of one module path: one of them, or the parts of a split shortcut.

    Attributes:
        path: the dotted module path, as rules match it.
        layers: names of its nodes, in execution order; the same in the prepared and in the float graph.
        counts: number of weights of each weight layer; empty for attention alone.
        float_bytes: size of these weights in the network's own type.
    """

    path: str
    layers: tuple[str, ...]
    counts: tuple[int, ...]
    float_bytes: int

    def choices(self, bits: tuple[int, ...], *, allow_float: bool) -> tuple[int, ...]:
        """What may be chosen for it: weight bits, and `FLOAT`."""
        return (*(bits if self.counts else (AS_CONFIGURED,)), *((FLOAT,) if allow_float else ()))

    def bytes_at(self, choice: int) -> int:
        """Bytes of its weights in a saved network."""
        if choice == FLOAT:
            return self.float_bytes
        return sum(packed_size(count, choice) for count in self.counts)

    def rule(self, choice: int) -> Rule:
        """The rule that makes a choice."""
        if choice == FLOAT:
            return Rule(self.path, quantize=False)
        return Rule(self.path, weight_bits=choice if self.counts else None, quantize=True)


def units_of(prepared: fx.GraphModule) -> list[Unit]:
    """The quantized layers of a prepared graph by module path, in execution order."""
    groups: dict[str, list[fx.Node]] = {}
    for node in planned_layers(prepared):
        groups.setdefault(node.meta.get("path", ""), []).append(node)
    return [_unit(prepared, path, nodes) for path, nodes in groups.items()]


def planned_layers(prepared: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a prepared graph that will be quantized, in execution order."""
    plans: dict[fx.Node, LayerPlan] = {n: n.meta["plan"] for n in prepared.graph.nodes if "plan" in n.meta}
    return [node for node, plan in plans.items() if plan.info.quantized]


def _unit(prepared: fx.GraphModule, path: str, nodes: list[fx.Node]) -> Unit:
    weights = [
        get_attr_tensor(prepared, node.args[1])  # type: ignore[arg-type]
        for node in nodes
        if node.meta["plan"].info.kind != "attention"
    ]
    counts = tuple(weight.numel() for weight in weights)
    return Unit(path, tuple(node.name for node in nodes), counts, sum(weight.nbytes for weight in weights))


def with_choices(config: QDiffConfig, units: list[Unit], choices: Mapping[str, int]) -> QDiffConfig:
    """The configuration with one more rule for every unit: path → choice."""
    return replace(config, rules=(*config.rules, *(unit.rule(choices[unit.path]) for unit in units)))


def convert_as(prepared: fx.GraphModule, config: QDiffConfig) -> fx.GraphModule:
    """The q/dq graph under a configuration that differs from the prepared one in weights and in what is quantized.

    What was observed is used again: nothing is captured or calibrated anew. Layers that the prepared graph keeps in
    float have no observers and cannot be taken back. Weights are rounded to nearest: any better rounding takes minutes
    for each choice, and ranks the layers much alike.
    """
    graph = copy_graph(prepared)
    Annotate(config).run(graph)
    return convert(graph, replace(config, weight_rounding="nearest"))
