"""The prepared graph with a differentiable quantizer in place of every observer and every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import fx, nn

from qdiff_fx.config import QDiffConfig
from qdiff_fx.ir.annotations import describe_like, nodes_with, path_of, set_path
from qdiff_fx.ir.edit import clean, copy_graph, get_attr_tensor
from qdiff_fx.ir.facts import LayerPlan, layer_id
from qdiff_fx.ir.widening import weight_tensor
from qdiff_fx.passes.quantize.measure import measure
from qdiff_fx.passes.quantize.readings import Reading, readings
from qdiff_fx.quant.parameters import NOTHING, ParameterStore, WeightParameters
from qdiff_fx.reconstruction.adaround import AdaRound
from qdiff_fx.reconstruction.quantizers import ActivationQuantizer, LayerBias, LayerWeight, Switch


@dataclass(frozen=True)
class Simulation:
    """A network that computes in float or, as its switch says, with quantized weights and activations.

    Attributes:
        graph_module: takes and returns what the prepared graph does.
        weights, biases: by the name of their layer's node, which is its name in the prepared graph too.
        activations: by the name of the observer's node.
        start: the parameters that all of them start from.
        ids: the name of a layer or an observer → its layer id or activation id in `start`.
    """

    graph_module: fx.GraphModule
    switch: Switch
    weights: dict[str, LayerWeight]
    biases: dict[str, LayerBias]
    activations: dict[str, ActivationQuantizer]
    start: ParameterStore
    ids: dict[str, str]


def simulate(prepared: fx.GraphModule, config: QDiffConfig, decided: ParameterStore = NOTHING) -> Simulation:
    """Build the simulation of an observed, calibrated graph; it is left as it is.

    Args:
        decided: what quantizers start from where earlier rounding or reconstruction decided it.

    Raises:
        CalibrationError: an observer saw no data.
    """
    gm = copy_graph(prepared)
    simulation = Simulation(gm, Switch(), {}, {}, {}, measure(gm, config, decided), {})
    # What 16 bits leave over is nothing beside the error of 8.
    narrow = [reading for reading in readings(gm) if simulation.start.activations[reading.id].residual is None]
    for layer in nodes_with(gm, LayerPlan):
        name = layer_id(layer)
        if name in simulation.start.weights:
            simulation.ids[layer.name] = name
            _replace_weight(simulation, layer, simulation.start.weights[name])
    for reading in narrow:
        _replace_observer(simulation, reading, config)
    for node in [n for n in gm.graph.nodes if n.op == "call_module" and n.args]:
        if node.name not in simulation.activations:  # watches a layer's output, or an input nobody quantizes
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            gm.graph.erase_node(node)
    clean(gm)
    # Nothing but what reconstruction learns. The gradient of a GroupNorm's weight also crashes torch 2.13 on CPU
    # where the image and its gradient differ in layout.
    gm.requires_grad_(False)
    return simulation


def _replace_weight(simulation: Simulation, node: fx.Node, decided: WeightParameters) -> None:
    gm = simulation.graph_module
    rounding = AdaRound(weight_tensor(gm, node).float(), decided)
    holder = LayerWeight(rounding, simulation.switch)
    simulation.weights[node.name] = holder
    node.update_arg(1, _call(gm, node, f"layer_weights.{node.name}", holder))
    if len(node.args) > 2 and isinstance(node.args[2], fx.Node):
        bias = get_attr_tensor(gm, node.args[2]).detach()
        simulation.biases[node.name] = LayerBias(
            bias, bias if decided.bias is None else decided.bias, simulation.switch
        )
        node.update_arg(2, _call(gm, node, f"layer_biases.{node.name}", simulation.biases[node.name]))


def _call(gm: fx.GraphModule, before: fx.Node, target: str, module: nn.Module) -> fx.Node:
    gm.add_submodule(target, module)
    with gm.graph.inserting_before(before):
        node = gm.graph.call_module(target)
    set_path(node, path_of(before))
    return node


def _replace_observer(simulation: Simulation, reading: Reading, config: QDiffConfig) -> None:
    gm, node = simulation.graph_module, reading.observer
    params = simulation.start.activations[reading.id].params
    quantizer = ActivationQuantizer(params, simulation.switch, config.schedule)
    if node.name in simulation.activations:  # for layers that read it otherwise
        with gm.graph.inserting_after(node):
            node = gm.graph.call_module(str(node.target), reading.observer.args)
        describe_like(node, reading.observer)
        for layer, index in reading.readers:
            layer.update_arg(index, node)
    simulation.activations[node.name] = quantizer
    simulation.ids[node.name] = reading.id
    target = f"activation_quantizers.{node.name}"
    gm.add_submodule(target, quantizer)
    node.target = target
