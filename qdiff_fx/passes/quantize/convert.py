"""Observed graph → q/dq graph with constant parameters: what every backend and the saved folder start from."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import fx

from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ConfigError, ConversionError
from qdiff_fx.ir.annotations import nodes_with, put, require
from qdiff_fx.ir.edit import copy_graph
from qdiff_fx.ir.facts import LayerPlan, layer_id
from qdiff_fx.ir.properties import properties
from qdiff_fx.passes.framework import run_passes
from qdiff_fx.passes.quantize.annotate import Annotate
from qdiff_fx.passes.quantize.measure import measure
from qdiff_fx.passes.quantize.quantize_activations import QuantizeActivations
from qdiff_fx.passes.quantize.quantize_attention import QuantizeAttention
from qdiff_fx.passes.quantize.quantize_weights import QuantizeWeights
from qdiff_fx.passes.quantize.readings import readings, unobserved
from qdiff_fx.passes.quantize.remove_observers import RemoveObservers
from qdiff_fx.passes.quantize.widen_weights import WidenWeights
from qdiff_fx.quant.parameters import NOTHING, ParameterStore

FIXED = ("split", "num_train_timesteps", "timestep_bins", "timestep_range")
"""What of a configuration decides how the graph is written and watched: it cannot change once there are statistics."""


def convert(prepared: fx.GraphModule, config: QDiffConfig, decided: ParameterStore = NOTHING) -> fx.GraphModule:
    """A new graph in which observers became quantize/dequantize nodes and weights integer codes.

    Args:
        prepared: an observed, calibrated graph; it is left as it is.
        config: the configuration its layers were annotated with.
        decided: what rounding or reconstruction decided; everything else is measured from statistics and weights.

    Returns:
        The q/dq graph; ``layer_info(node)`` of each layer is its ``LayerInfo``.

    Raises:
        CalibrationError: an observer saw no data.
        ConversionError: the graph was not prepared, or its weights were not rounded as the configuration asks.
    """
    if "observed" not in properties(prepared):
        raise ConversionError("the graph has no observers", fix="Call prepare_qdiff and calibrate first")
    if config.weight_rounding == "second_order" and decided.weight_rounding != "second_order":
        raise ConversionError(
            "the configuration asks for second_order rounding and no weight has been rounded",
            where="weight_rounding",
            fix="Call round_weights with the calibration data first",
        )
    gm = copy_graph(prepared)
    quantize_graph(gm, config, measure(prepared, config, decided))
    _own(gm, prepared)
    return gm


def convert_part(part: fx.GraphModule, config: QDiffConfig, parameters: ParameterStore) -> None:
    """Quantize a part of an observed graph in place, by parameters of the whole one.

    Args:
        part: its layers have the ids they have in the whole graph. Its weights may have other bits than planned.
        config: the configuration the whole graph was annotated with.
        parameters: of the whole graph's activations, and of the part's weights.
    """
    inputs = {layer: dict(parameters.inputs.get(layer, {})) for layer in map(layer_id, nodes_with(part, LayerPlan))}
    activations = {}
    for reading in readings(part):
        # In the whole graph another layer may have been the first to read it.
        found = parameters.input(reading.layers[0], reading.readers[0][1])
        if found is None:
            raise ConversionError("its input has no parameters", where=reading.layers[0])
        activations[reading.id] = found
    for layer in nodes_with(part, LayerPlan):
        plan, weight = require(layer, LayerPlan), parameters.weights.get(layer_id(layer))
        if weight is not None and weight.bits != plan.info.weight_bits:
            put(layer, replace(plan, info=replace(plan.info, weight_bits=weight.bits)))
    quantize_graph(part, config, replace(parameters, activations=activations, inputs=inputs, outputs={}))


def quantize_graph(gm: fx.GraphModule, config: QDiffConfig, parameters: ParameterStore) -> None:
    """An observed graph becomes a q/dq graph, in place."""
    run_passes(
        gm,
        [
            QuantizeActivations(parameters, config),  # observer(x) becomes dequantize(quantize(x))
            QuantizeWeights(parameters),  # w becomes dequantize(codes)
            QuantizeAttention(),  # sdpa on dequantized values becomes one on codes
            RemoveObservers(),  # those of outputs, and of what is in float now
            WidenWeights(),  # those of layers that stay in float
        ],
    )


def _own(gm: fx.GraphModule, prepared: fx.GraphModule) -> None:
    """Copy what is shared with the float network: who trains that one on must not change half of this one."""
    shared = {id(tensor) for tensor in chain(prepared.parameters(), prepared.buffers())}
    copies: dict[int, torch.Tensor] = {}
    for module in gm.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in stores:
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) in shared:
                    tensors[name] = copies.setdefault(id(tensor), _copy(tensor))


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.detach().clone()
    return torch.nn.Parameter(copied, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copied


def reannotate(prepared: fx.GraphModule, config: QDiffConfig, before: QDiffConfig) -> fx.GraphModule:
    """A copy of an observed graph that follows another configuration; observers, and what they saw, are shared.

    Args:
        prepared: an observed graph; it is left as it is.
        config: other bits, ranges or rules.
        before: the configuration it follows so far.

    Raises:
        ConfigError: the configuration needs another graph, or quantizes layers that were not observed, or has a rule
            that matches no layer.
    """
    for name in FIXED:
        if getattr(config, name) != getattr(before, name):
            raise ConfigError(
                f"{getattr(config, name)!r} where the network was prepared with {getattr(before, name)!r}",
                where=name,
                fix="Prepare and calibrate the network anew for that",
            )
    gm = copy_graph(prepared)
    Annotate(config).run(gm)
    missing = list(dict.fromkeys(unobserved(gm)))
    if missing:
        raise ConfigError(
            f"the inputs of {', '.join(missing)} were not observed, and would have to be quantized",
            where="config",
            fix="Prepare and calibrate the network with a configuration that quantizes these layers",
        )
    return gm
