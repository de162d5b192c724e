"""What gets bits of its own: every layer that a rule can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx

from qdiff_fx.config import QDiffConfig, Rule
from qdiff_fx.ir.annotations import nodes_with, path_of, require, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.facts import LayerPlan, layer_id
from qdiff_fx.networks import PreparedUNet
from qdiff_fx.passes.quantize.convert import convert, reannotate
from qdiff_fx.quant.packing import packed_size
from qdiff_fx.quant.qparams import SIXTEEN_BITS
from qdiff_fx.tuning.choice import AS_CONFIGURED, FLOAT, Choice

DEFAULT_BITS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Unit:
    """The layers of one module path: one of them, or the parts of a split shortcut.

    Attributes:
        path: the dotted module path, as rules match it.
        layers: names of its nodes, in execution order; the same in the prepared and in the float graph.
        counts: number of weights of each weight layer; empty for attention alone.
        float_bytes: size of these weights where it stays in float.
        configured: the choice that leaves it as configured.
        widens: its inputs can have 16 bits, and do not have them as configured.
    """

    path: str
    layers: tuple[str, ...]
    counts: tuple[int, ...]
    float_bytes: int
    configured: Choice
    widens: bool

    def choices(self, bits: tuple[int, ...], *, allow_float: bool, allow_wide: bool) -> tuple[Choice, ...]:
        """What may be chosen for it.

        16-bit inputs come with the most weight bits only: beside fewer, the weights' noise is what is heard.
        """
        quantized = tuple(Choice(each) for each in bits) if self.counts else (AS_CONFIGURED,)
        wide = (Choice(max(bits), wide=True),) if allow_wide and self.widens else ()
        return (*quantized, *wide, *((FLOAT,) if allow_float else ()))

    def bytes_at(self, choice: Choice) -> int:
        """Bytes of its weights in a saved network."""
        if choice == FLOAT:
            return self.float_bytes
        return sum(packed_size(count, choice.weight_bits) for count in self.counts)

    def rule(self, choice: Choice) -> Rule:
        """The rule that makes a choice."""
        if choice == FLOAT:
            return Rule(self.path, quantize=False)
        return Rule(
            self.path,
            weight_bits=choice.weight_bits if self.counts else None,
            act_bits=SIXTEEN_BITS if choice.wide else None,
            quantize=True,
        )


def units_of(prepared: fx.GraphModule) -> list[Unit]:
    """The quantized layers of a prepared graph by module path, in execution order."""
    groups: dict[str, list[fx.Node]] = {}
    for node in planned_layers(prepared):
        # A layer outside every module is named by its id.
        groups.setdefault(path_of(node) or layer_id(node), []).append(node)
    return [_unit(prepared, path, nodes) for path, nodes in groups.items()]


def planned_layers(prepared: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a prepared graph that will be quantized, in execution order."""
    return [node for node in nodes_with(prepared, LayerPlan) if require(node, LayerPlan).info.quantized]


def _unit(prepared: fx.GraphModule, path: str, nodes: list[fx.Node]) -> Unit:
    weights = [value(operand(node, 1)) for node in nodes if require(node, LayerPlan).info.kind != "attention"]
    counts = tuple(weight.numel() for weight in weights)
    infos = [require(node, LayerPlan).info for node in nodes]
    configured = Choice(infos[0].weight_bits) if counts else AS_CONFIGURED
    widens = all(info.kind != "attention" and info.act_bits != SIXTEEN_BITS for info in infos)
    names = tuple(node.name for node in nodes)
    return Unit(path, names, counts, sum(weight.nbytes for weight in weights), configured, widens)


def with_choices(config: QDiffConfig, units: list[Unit], choices: Mapping[str, Choice]) -> QDiffConfig:
    """The configuration with one more rule for every unit: path → choice."""
    return replace(config, rules=(*config.rules, *(unit.rule(choices[unit.path]) for unit in units)))


def convert_as(prepared: PreparedUNet, config: QDiffConfig) -> fx.GraphModule:
    """The q/dq graph under a configuration that differs from the prepared one in bits and in what is quantized.

    Weights that were not decided at these bits are rounded to nearest: any better rounding takes minutes for each
    choice, and ranks the layers much alike.

    Raises:
        ConfigError: layers that the prepared network keeps in float would have to be quantized.
    """
    graph = reannotate(prepared.graph_module, config, prepared.qconfig)
    return convert(graph, replace(config, weight_rounding="nearest"), prepared.decided)
