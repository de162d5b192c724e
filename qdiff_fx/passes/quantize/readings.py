"""Who reads which observed activation, and how it is to be quantized for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from qdiff_fx.ir.annotations import nodes_with, require
from qdiff_fx.ir.facts import ActivationPlan, LayerPlan, layer_id


@dataclass(frozen=True)
class Reading:
    """One observed activation as some layers read it: all of one plan share its parameters and its codes.

    Attributes:
        id: layer id and argument index of the first of them, its key in a store of parameters.
        observer: the call of the observer.
        readers: layers and argument indices, in execution order.
        layers: their ids.
    """

    id: str
    observer: fx.Node
    plan: ActivationPlan
    readers: tuple[tuple[fx.Node, int], ...]
    layers: tuple[str, ...]


def readings(gm: fx.GraphModule) -> Iterator[Reading]:
    """Every activation that planned layers read through an observer, in execution order of the observers.

    Layers that share an observer and differ in their plans have a reading each.
    """
    found: dict[fx.Node, dict[ActivationPlan, list[tuple[fx.Node, int]]]] = {}
    ids: dict[fx.Node, str] = {}
    for layer in nodes_with(gm, LayerPlan):
        planned = require(layer, LayerPlan)
        ids[layer] = planned.info.path
        for index, plan in planned.inputs.items():
            observer = layer.args[index]
            if isinstance(observer, fx.Node) and observer.op == "call_module":
                found.setdefault(observer, {}).setdefault(plan, []).append((layer, index))
    for observer in [node for node in gm.graph.nodes if node in found]:
        for plan, readers in found[observer].items():
            layers = tuple(ids[layer] for layer, _ in readers)
            yield Reading(f"{layers[0]} input {readers[0][1]}", observer, plan, tuple(readers), layers)


def unobserved(gm: fx.GraphModule) -> list[str]:
    """Ids of the layers that are planned to be quantized and whose inputs no observer watches."""
    return [
        layer_id(layer)
        for layer in nodes_with(gm, LayerPlan)
        for index in require(layer, LayerPlan).inputs
        if getattr(layer.args[index], "op", "") != "call_module"
    ]
