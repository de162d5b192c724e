"""From what was observed to parameters: statistics, weights and a configuration in, a store out; nothing is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import fx

from qdiff_fx.config import QDiffConfig
from qdiff_fx.ir.annotations import fact, nodes_with, require
from qdiff_fx.ir.facts import (
    RESIDUAL,
    ActivationPlan,
    Input,
    LayerPlan,
    Observed,
    layer_id,
    timestep_input,
)
from qdiff_fx.observers import Observer, Statistics, choose_range
from qdiff_fx.passes.quantize.check_scales import check_scales, check_weight, weight_and_bias
from qdiff_fx.passes.quantize.nearest import nearest
from qdiff_fx.passes.quantize.readings import Reading, readings
from qdiff_fx.quant.numerics import choose_qparams, dequantize
from qdiff_fx.quant.parameters import NOTHING, ActivationParameters, OutputParameters, ParameterStore, WeightParameters
from qdiff_fx.quant.qparams import SIXTEEN_BITS, QParams, TensorSpec

CODE = TensorSpec(8)
"""Of each of the two codes of 16 bits, and of a layer's output."""


def measure(gm: fx.GraphModule, config: QDiffConfig, decided: ParameterStore = NOTHING) -> ParameterStore:
    """Everything an observed graph is quantized with.

    Args:
        gm: an observed, calibrated graph.
        config: the configuration its layers were annotated with.
        decided: what rounding or reconstruction decided. It is taken as it is where it is of the bits, the range and
            the granularity that are asked for; the rest is measured, weights rounded to nearest.

    Raises:
        CalibrationError: an observer saw no data.
        ConversionError: a weight is not finite, or of a size that scales of float32 cannot stand for.
    """
    store = measure_activations(gm, config, decided)
    activations, inputs = store.activations, store.inputs
    weights: dict[str, WeightParameters] = {}
    outputs: dict[str, OutputParameters] = {}
    for node in nodes_with(gm, LayerPlan):
        plan = require(node, LayerPlan)
        name = plan.info.path
        if not plan.info.quantized or plan.info.kind == "attention":
            continue
        axis = 1 if plan.info.kind == "conv_transpose" else 0
        tensor, bias = weight_and_bias(gm, node)
        check_weight(name, tensor, bias)
        weight = decided.weights.get(name)
        if weight is None or (weight.bits, weight.axis) != (plan.info.weight_bits, axis):
            weight = nearest(tensor.float(), plan.info.weight_bits, axis, config.weight_range)
        weights[name] = weight
        check_scales(name, tensor, weight, activations[inputs[name][0]])
        observed = fact(node, Observed)
        if observed is not None and observed.output_observer:
            statistics = cast(Observer, gm.get_submodule(observed.output_observer)).statistics()
            outputs[name] = OutputParameters(_qparams(statistics, ActivationPlan(CODE, plan.inputs[0].act_range)))
        residual = activations[inputs[name][0]].residual
        if residual is not None and name in outputs:
            outputs[name + RESIDUAL] = OutputParameters(_range_over_residual(weight, residual))
    return replace(store, weights=weights, outputs=outputs, weight_rounding=decided.weight_rounding)


def measure_activations(gm: fx.GraphModule, config: QDiffConfig, decided: ParameterStore = NOTHING) -> ParameterStore:
    """What the layers' inputs are quantized with; arguments and errors as of `measure`."""
    activations: dict[str, ActivationParameters] = {}
    inputs: dict[str, dict[int, str]] = {}
    varying = _varying(gm) if config.act_granularity == "timestep" and timestep_input(gm) else set()
    for reading in list(readings(gm)):
        activations[reading.id] = _activation(gm, reading, reading.observer.args[0] in varying, decided)
        for layer, (_, index) in zip(reading.layers, reading.readers, strict=True):
            inputs.setdefault(layer, {})[index] = reading.id
    return ParameterStore(activations=activations, inputs=inputs)


def fitting(gm: fx.GraphModule, config: QDiffConfig, decided: ParameterStore) -> ParameterStore:
    """What of the decided parameters is still valid for a graph that was annotated anew.

    Weights of layers whose bits have changed are left out, and all of them where they were rounded to second order and
    the configuration asks for nearest codes. Activations are looked at when they are used (`measure`).
    """
    bits = {layer_id(layer): require(layer, LayerPlan).info.weight_bits for layer in nodes_with(gm, LayerPlan)}
    concerned = {name: weight for name, weight in decided.weights.items() if bits.get(name)}
    if decided.weight_rounding == "second_order" and config.weight_rounding == "nearest":
        return replace(decided, weights={}, weight_rounding="nearest")
    kept = {name: weight for name, weight in concerned.items() if bits[name] == weight.bits}
    # Where codes are missing now, rounding has to be asked for again; it keeps those that are here.
    rounding = decided.weight_rounding if len(kept) == len(concerned) else "nearest"
    return replace(decided, weights=kept, weight_rounding=rounding)


def _activation(gm: fx.GraphModule, reading: Reading, table: bool, decided: ParameterStore) -> ActivationParameters:
    plan, wide = reading.plan, reading.plan.spec.bits == SIXTEEN_BITS
    # The second of two codes pays for the range of the first: nothing needs to be clipped.
    coarse = ActivationPlan(CODE, "minmax") if wide else plan
    observer = cast(Observer, gm.get_submodule(str(reading.observer.target)))
    statistics = observer.statistics()
    # A single step that is ever taken needs no table: its scale is a number, which kernels take as it is.
    table = table and int(statistics.seen.sum()) != 1
    found = decided.input(reading.layers[0], reading.readers[0][1])
    params = None if found is None else found.params
    if (
        found is None
        or params is None
        or (found.act_range, params.spec, found.residual is not None) != (plan.act_range, coarse.spec, wide)
        or len(params.scale) != (observer.timestep_bins if table else 1)
    ):
        params = _qparams(statistics, coarse, per_timestep=table)
    static = _qparams(statistics, coarse) if params.per_timestep else params
    residual = None
    if wide:
        halves = _finer(params)
        residual = ActivationParameters(plan.act_range, halves, _finer(static) if params.per_timestep else halves)
    return ActivationParameters(plan.act_range, params, static, residual)


def _qparams(statistics: Statistics, plan: ActivationPlan, *, per_timestep: bool = False) -> QParams:
    """Scale and zero-point of what was observed: one pair, or one for each timestep bin."""
    spec = plan.spec
    lo, hi = choose_range(
        statistics, plan.act_range, bits=spec.bits, per_timestep=per_timestep, symmetric=spec.symmetric
    )
    scale, zero_point = choose_qparams(lo, hi, spec.bits, symmetric=spec.symmetric, signed=spec.signed)
    return QParams(spec, tuple(scale.reshape(-1).tolist()), tuple(zero_point.reshape(-1).tolist()))


def _finer(params: QParams) -> QParams:
    """Parameters for what is left over: half a step to either side."""
    halves = torch.tensor(params.scale) / 2
    spec = params.spec
    scale, zero_point = choose_qparams(-halves, halves, spec.bits, symmetric=False, signed=spec.signed)
    return QParams(spec, tuple(scale.tolist()), tuple(zero_point.tolist()))


def _range_over_residual(weight: WeightParameters, residual: ActivationParameters) -> QParams:
    """What the layer can at most make of half a step of the coarse codes."""
    values = dequantize(weight.codes, weight.scales, 0, axis=weight.axis)
    largest = values.abs().movedim(weight.axis, 0).flatten(1).sum(1).max() * max(residual.params.scale) * 127
    scale, zero_point = choose_qparams(-largest, largest, CODE.bits, symmetric=False, signed=False)
    return QParams(CODE, (float(scale),), (int(zero_point),))


def _varying(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes that can change from step to step: all but what depends on the conditioning alone."""
    varying: set[fx.Node] = set()
    conditioning: set[fx.Node] = set()
    for node in gm.graph.nodes:
        read = node.all_input_nodes
        if any(each in varying for each in read) or (node.op == "placeholder" and fact(node, Input)):
            varying.add(node)
        elif node.op == "placeholder" or any(each in conditioning for each in read):
            conditioning.add(node)
    return set(gm.graph.nodes) - conditioning
