"""The facts passes write on nodes, in the order of the stages that write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from torch import fx

from qdiff_fx.config import ActRange
from qdiff_fx.ir.annotations import FACTS, Fact, fact, nodes_with, path_of, require
from qdiff_fx.quant.qparams import LayerInfo, TensorSpec

RESIDUAL = "[rest]"  # ends the id of a layer that reads the residual, the second code of a 16-bit input

Role = Literal["sample", "timestep"]


@dataclass(frozen=True)
class Input(Fact):
    """Of a placeholder: it is the image being denoised, or the timestep. One without is conditioning."""

    stage: ClassVar[str] = "capture"

    role: Role


@dataclass(frozen=True)
class Part(Fact):
    """Of a layer: it is one part of a layer over a concatenation.

    Attributes:
        channels: the slice [k0, k1) of the whole layer's input channels.
        split_of: name of the node that the whole layer was; parts of one layer share it. Not stored in a saved folder.
    """

    stage: ClassVar[str] = "the split_shortcut pass"

    channels: tuple[int, int]
    split_of: str = ""


@dataclass(frozen=True)
class ActivationPlan:
    """How one activation is to be quantized."""

    spec: TensorSpec
    act_range: ActRange


@dataclass(frozen=True)
class LayerPlan(Fact):
    """What is planned for one layer.

    Attributes:
        info: the row ``explain()`` prints, before measuring.
        inputs: argument index → plan of that activation; empty when the layer stays in float.
    """

    stage: ClassVar[str] = "the annotate pass"

    info: LayerInfo
    inputs: Mapping[int, ActivationPlan]


@dataclass(frozen=True)
class Observed(Fact):
    """Of a layer: its inputs have observers.

    Attributes:
        output_observer: dotted path of the module that observes its output; "" when none does.
    """

    stage: ClassVar[str] = "the insert_observers pass"

    output_observer: str = ""


@dataclass(frozen=True)
class QuantizedLayer(Fact):
    """Of a weight layer or attention of a q/dq graph: what became of it.

    Attributes:
        info: the row ``explain()`` prints.
    """

    stage: ClassVar[str] = "conversion"

    info: LayerInfo

    @property
    def reads_residual(self) -> bool:
        """Whether it reads the second code of a 16-bit input: what the first leaves over."""
        return self.info.path.endswith(RESIDUAL)


@dataclass(frozen=True)
class Computes(Fact):
    """Of a call in a lowered graph: the layers it computes, by the paths of their reports."""

    stage: ClassVar[str] = "lowering"

    layers: tuple[str, ...]


@dataclass(frozen=True)
class WeightCodes(Fact):
    """Of a get_attr: it reads the integer codes of a weight.

    Attributes:
        bits: width of one code.
        packed_shape: shape of the codes where memory holds them packed (`quant/packing.py`); None when it does not.
    """

    stage: ClassVar[str] = "conversion"

    bits: int
    packed_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class StaticQParams(Fact):
    """Of a quantize node that looks its parameters up by timestep: those over all timesteps.

    For backends whose kernels take one scale only.
    """

    stage: ClassVar[str] = "conversion"

    scale: float
    zero_point: int


def is_sample(node: fx.Node) -> bool:
    """Whether `node` is the placeholder of the image being denoised."""
    found = fact(node, Input)
    return found is not None and found.role == "sample"


def is_timestep(node: fx.Node) -> bool:
    """Whether `node` is the placeholder of the timestep."""
    found = fact(node, Input)
    return found is not None and found.role == "timestep"


def timestep_input(gm: fx.GraphModule) -> fx.Node | None:
    """The placeholder of the timestep; None for a network without one."""
    return next((node for node in gm.graph.find_nodes(op="placeholder") if is_timestep(node)), None)


def layer_info(node: fx.Node) -> LayerInfo:
    """What became of a layer of a q/dq graph. Raises PassError where `node` is no such layer."""
    found = node.meta.get(FACTS, {}).get(QuantizedLayer) or require(node, QuantizedLayer)
    return cast(QuantizedLayer, found).info


def quantized_layers(gm: fx.GraphModule) -> list[fx.Node]:
    """Every weight layer and attention of a q/dq graph, in execution order."""
    return nodes_with(gm, QuantizedLayer)


def planned_info(node: fx.Node) -> LayerInfo | None:
    """What is planned for a layer of an annotated graph; None where `node` is no layer."""
    plan = fact(node, LayerPlan)
    return plan.info if plan else None


def new_layer_ids(layers: Iterable[fx.Node]) -> dict[fx.Node, str]:
    """An id for each layer of a graph, given in execution order; see `layer_id`."""
    nodes = list(layers)
    ids: dict[fx.Node, str] = {}
    given: Counter[str] = Counter()
    functional = _functional_names(nodes)
    for node in nodes:
        part = fact(node, Part)
        name = path_of(node) or functional[_whole_name(node)]
        if part:
            name += f"[{part.channels[0]}:{part.channels[1]}]"
        given[name] += 1
        ids[node] = name if given[name] == 1 else f"{name}#{given[name]}"
    return ids


def _functional_names(layers: list[fx.Node]) -> dict[str, str]:
    """Names for the layers that the network itself calls as functions, by the names of their nodes.

    By operator and number, "conv2d", "conv2d#2": how many layers of modules there are makes no difference.
    """
    paths = {path_of(node) for node in layers}
    names: dict[str, str] = {}
    given: Counter[str] = Counter()
    for node in layers:
        whole = _whole_name(node)
        if path_of(node) or whole in names:
            continue
        base = str(node.target).removeprefix("aten.").partition(".")[0]
        while base in paths:
            base += "_"
        given[base] += 1
        names[whole] = base if given[base] == 1 else f"{base}#{given[base]}"
    return names


def _whole_name(layer: fx.Node) -> str:
    part = fact(layer, Part)
    return (part.split_of if part else "") or layer.name


def whole_layer(layer: str) -> str:
    """The id of a layer without what says which part of it, or which of its two codes, is meant."""
    return re.sub(r"\[[^\[\]]*\]", "", layer)


def layer_id(node: fx.Node) -> str:
    """The name of a layer in reports, rules, tuning files and artifacts, unique within its graph.

    Its module's path, "[k0:k1]" of a part, and "#2", "#3", … in execution order where several layers would share
    that: "mid.attn#2". A layer that the network itself calls as a function goes by its operator, "conv2d#2". It is
    given once, when the graph is annotated, and stays through conversion, saving and loading.

    Raises:
        PassError: `node` is no layer of an annotated or converted graph.
    """
    facts = node.meta.get(FACTS, {})
    found = facts.get(QuantizedLayer) or facts.get(LayerPlan) or require(node, LayerPlan)
    return cast("QuantizedLayer | LayerPlan", found).info.path
