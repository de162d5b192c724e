"""The prepared graph with a differentiable quantizer in place of every observer and every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import fx, nn

from qdiff_fx.config import QDiffConfig
from qdiff_fx.ir.annotations import fact, has, path_of, set_path
from qdiff_fx.ir.edit import clean, copy_graph, get_attr_tensor
from qdiff_fx.ir.facts import ActivationPlan, LayerPlan
from qdiff_fx.passes.quantize.decisions import activation_decision, is_wide, layer_decision, weight_axis
from qdiff_fx.reconstruction.adaround import AdaRound
from qdiff_fx.reconstruction.quantizers import ActivationQuantizer, LayerBias, LayerWeight, Switch


@dataclass(frozen=True)
class Simulation:
    """A network that computes in float or, as its switch says, with quantized weights and activations.

    Attributes:
        graph_module: takes and returns what the prepared graph does.
        weights, biases: by the name of their layer's node, which is its name in the prepared graph too.
        activations: by the name of the observer's node.
    """

    graph_module: fx.GraphModule
    switch: Switch
    weights: dict[str, LayerWeight]
    biases: dict[str, LayerBias]
    activations: dict[str, ActivationQuantizer]


def simulate(prepared: fx.GraphModule, config: QDiffConfig) -> Simulation:
    """Build the simulation of an observed, calibrated graph; it is left as it is.

    Raises:
        CalibrationError: an observer saw no data.
    """
    gm = copy_graph(prepared)
    simulation = Simulation(gm, Switch(), {}, {}, {})
    for node in list(gm.graph.nodes):
        plan = fact(node, LayerPlan)
        if plan is not None and plan.info.quantized and plan.info.kind != "attention":
            _replace_weight(simulation, node, plan, config)
    for node in [n for n in gm.graph.nodes if n.op == "call_module" and n.name not in simulation.activations]:
        # What 16 bits leave over is nothing beside the error of 8.
        if has(node, ActivationPlan) and not is_wide(node):
            _replace_observer(simulation, prepared, node, config)
        elif isinstance(node.args, tuple) and node.args:  # watches a layer's output
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            gm.graph.erase_node(node)
    clean(gm)
    # Nothing but what reconstruction learns. The gradient of a GroupNorm's weight also crashes torch 2.13 on CPU
    # where the image and its gradient differ in layout.
    gm.requires_grad_(False)
    return simulation


def _replace_weight(simulation: Simulation, node: fx.Node, plan: LayerPlan, config: QDiffConfig) -> None:
    gm = simulation.graph_module
    weight = get_attr_tensor(gm, cast(fx.Node, node.args[1])).detach()
    decided = layer_decision(gm, node, plan, config)
    rounding = AdaRound(weight.float(), decided, plan.info.weight_bits, weight_axis(plan))
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


def _replace_observer(simulation: Simulation, prepared: fx.GraphModule, node: fx.Node, config: QDiffConfig) -> None:
    original = next(n for n in prepared.graph.nodes if n.name == node.name)
    params = activation_decision(prepared, original, config)
    quantizer = ActivationQuantizer(params, simulation.switch, config.num_train_timesteps)
    simulation.activations[node.name] = quantizer
    target = f"activation_quantizers.{node.name}"
    simulation.graph_module.add_submodule(target, quantizer)
    node.target = target
