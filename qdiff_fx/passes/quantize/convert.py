"""Observed graph → q/dq graph with constant parameters: what every backend and the saved folder start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import fx

import qdiff_fx.kernels  # noqa: F401, registers the operators used here
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import ConversionError
from qdiff_fx.ir.annotations import describe_like, drop, has, nodes_with, put, require, value
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import add_buffer, clean, copy_graph, get_attr_tensor, insert_call, insert_get_attr
from qdiff_fx.ir.facts import (
    REST,
    ActivationPlan,
    LayerPlan,
    Observed,
    QuantizedLayer,
    StaticQParams,
    WeightCodes,
    layer_info,
    timestep_input,
)
from qdiff_fx.ir.properties import properties, set_properties, weight_rounding
from qdiff_fx.observers import TimestepObserver
from qdiff_fx.passes.quantize.decisions import (
    DECIDED,
    activation_decision,
    is_wide,
    layer_decision,
    measure,
    weight_axis,
)
from qdiff_fx.quant.numerics import choose_qparams, dequantize, weight_range
from qdiff_fx.quant.qparams import QParams, TensorSpec

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


@dataclass
class QuantizedActivation:
    """The nodes of one quantized activation: codes, dequantized values, and its parameters as nodes or numbers.

    An activation of 16 bits is two of 8: the codes here, and those of what they leave over.
    """

    params: QParams
    scale: float | fx.Node
    zero_point: int | fx.Node
    codes: fx.Node
    values: fx.Node
    rest: QuantizedActivation | None = None


def convert(prepared: fx.GraphModule, config: QDiffConfig) -> fx.GraphModule:
    """A new graph in which observers became quantize/dequantize nodes and weights integer codes.

    Args:
        prepared: an observed, calibrated graph; it is left as it is.
        config: the configuration it was prepared with.

    Returns:
        The q/dq graph; ``layer_info(node)`` of each layer is its ``LayerInfo``.

    Raises:
        CalibrationError: an observer saw no data.
        ConversionError: the graph was not prepared.
    """
    if "observed" not in properties(prepared):
        raise ConversionError("the graph has no observers", fix="Call prepare_qdiff and calibrate first")
    if config.weight_rounding == "second_order" and weight_rounding(prepared) != "second_order":
        raise ConversionError(
            "the configuration asks for second_order rounding and no weight has been rounded",
            where="weight_rounding",
            fix="Call round_weights with the calibration data first",
        )
    gm = copy_graph(prepared)
    tables = _TimestepTables(gm, config)
    activations = {
        node: _quantize_activation(gm, node, config, tables)
        for node in gm.graph.nodes
        if node.op == "call_module" and has(node, ActivationPlan)
    }
    for node in nodes_with(gm, LayerPlan):
        _convert_layer(gm, node, config, activations)
    for observer in [n for n in gm.graph.nodes if n.op == "call_module"]:
        observer.replace_all_uses_with(cast(fx.Node, observer.args[0]))
        gm.graph.erase_node(observer)
    set_properties(gm, {"canonical", "quantized"})
    return clean(gm)


def _convert_layer(
    gm: fx.GraphModule, node: fx.Node, config: QDiffConfig, activations: dict[fx.Node, QuantizedActivation]
) -> None:
    plan, observed = require(node, LayerPlan), drop(node, Observed)
    drop(node, LayerPlan)
    info = plan.info
    if not info.quantized:
        put(node, QuantizedLayer(info))
        return
    if plan.info.kind == "attention":
        _convert_attention(gm, node, plan, activations)
        return
    assert observed is not None
    if observed.output_observer:
        observer = cast(TimestepObserver, gm.get_submodule(observed.output_observer))
        output_plan = ActivationPlan(TensorSpec(8), plan.inputs[0].act_range)
        info = replace(info, output=measure(observer, output_plan, per_timestep=False))
    put(node, QuantizedLayer(info))
    activation = activations[cast(fx.Node, node.args[0])]
    node.update_arg(0, activation.values)
    node.update_arg(1, _quantize_weight(gm, node, plan, config))
    if activation.rest is not None:
        _add_layer_of_rest(gm, node, activation.rest)


def _add_layer_of_rest(gm: fx.GraphModule, node: fx.Node, rest: QuantizedActivation) -> None:
    """``layer(x)`` becomes ``layer(x̂) + layer(x - x̂)``, the bias added once, the weight's codes stored once."""
    with gm.graph.inserting_after(node):
        total = gm.graph.call_function(aten.add.Tensor)
    describe_like(total, node)
    node.replace_all_uses_with(total)
    args = (rest.values, node.args[1], None, *node.args[3:])
    fine = insert_call(gm.graph, total, node.target, args, node.kwargs, like=node)  # type: ignore[arg-type]
    info = layer_info(node)
    fine_info = replace(info, path=info.path + REST, output=_range_over_rest(gm, node, rest) if info.output else None)
    put(fine, QuantizedLayer(fine_info))
    total.args = (node, fine)


def _range_over_rest(gm: fx.GraphModule, node: fx.Node, rest: QuantizedActivation) -> QParams:
    """What the layer can at most make of half a step of the coarse codes."""
    codes, scales, _, axis = _dequantized_weight(node).args[:4]
    weight = dequantize(get_attr_tensor(gm, codes), get_attr_tensor(gm, scales), 0, axis=axis)  # type: ignore[arg-type]
    largest = weight.abs().movedim(axis, 0).flatten(1).sum(1).max() * max(rest.params.scale) * 127  # type: ignore[arg-type]
    spec = TensorSpec(8)
    scale, zero_point = choose_qparams(-largest, largest, spec.bits, symmetric=False, signed=False)
    return QParams(spec, (float(scale),), (int(zero_point),))


def _quantize_activation(
    gm: fx.GraphModule, node: fx.Node, config: QDiffConfig, tables: _TimestepTables
) -> QuantizedActivation:
    params = activation_decision(gm, node, config)
    static = measure(
        cast(TimestepObserver, gm.get_submodule(str(node.target))), require(node, ActivationPlan), per_timestep=False
    )
    source = cast(fx.Node, node.args[0])
    activation, values = _insert_quantizer(gm, node, source, params, static, tables)
    if is_wide(node):
        rest = insert_call(gm.graph, node, aten.sub.Tensor, (source, values))
        activation.rest, _ = _insert_quantizer(gm, node, rest, _finer(params), _finer(static), tables)
    return activation


def _finer(params: QParams) -> QParams:
    """Parameters for what is left over: half a step to either side."""
    halves = torch.tensor(params.scale) / 2
    spec = params.spec
    scale, zero_point = choose_qparams(-halves, halves, spec.bits, symmetric=False, signed=spec.signed)
    return QParams(spec, tuple(scale.tolist()), tuple(zero_point.tolist()))


def _insert_quantizer(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, params: QParams, static: QParams, tables: _TimestepTables
) -> tuple[QuantizedActivation, fx.Node]:
    """Quantize and dequantize `source` before `node`; also the values before they are cast to the network's dtype."""
    scale: float | fx.Node = params.scale[0]
    zero_point: int | fx.Node = params.zero_point[0]
    quantize_op, dequantize_op = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
    if params.per_timestep:
        scale, zero_point = tables.lookup(node, params)
        quantize_op, dequantize_op = qd.quantize_per_tensor.tensor, qd.dequantize_per_tensor.tensor
    spec = params.spec
    tail = (scale, zero_point, spec.qmin, spec.qmax, spec.dtype)
    codes = insert_call(gm.graph, node, quantize_op, (source, *tail))
    values = insert_call(gm.graph, node, dequantize_op, (codes, *tail))
    if params.per_timestep:
        # Beside the table, for backends whose kernels take one scale only.
        put(codes, StaticQParams(static.scale[0], static.zero_point[0]))
    return QuantizedActivation(params, scale, zero_point, codes, _cast_like(gm, node, values)), values


def _cast_like(gm: fx.GraphModule, node: fx.Node, values: fx.Node) -> fx.Node:
    """Dequantizing gives float32; a network in another dtype goes on in its own."""
    dtype = value(node).dtype
    if dtype == torch.float32:
        return values
    return insert_call(gm.graph, node, aten.to.dtype, (values, dtype))


class _TimestepTables:
    """Scales and zero-points looked up by the timestep's bin, which is computed once per call.

    A network without a timestep has nothing to look up by: it gets one scale per tensor.
    """

    def __init__(self, gm: fx.GraphModule, config: QDiffConfig):
        self.gm, self.config = gm, config
        self.timestep = timestep_input(gm)
        self._bin: fx.Node | None = None

    def lookup(self, before: fx.Node, params: QParams) -> tuple[fx.Node, fx.Node]:
        scale = self._row(before, "scale", torch.tensor(params.scale, dtype=torch.float32))
        zero_point = self._row(before, "zero_point", torch.tensor(params.zero_point, dtype=torch.int64))
        return scale, zero_point

    def _row(self, before: fx.Node, suffix: str, table: torch.Tensor) -> fx.Node:
        name = add_buffer(self.gm, f"timestep_tables.{before.name}_{suffix}", table)
        node = insert_get_attr(self.gm, before, name)
        return insert_call(self.gm.graph, before, aten.index_select.default, (node, 0, self._bin_node()))

    def _bin_node(self) -> fx.Node:
        if self._bin is None:
            assert self.timestep is not None
            target = torch.ops.qdiff.timestep_bin.default
            args = (self.timestep, self.config.timestep_bins, self.config.num_train_timesteps)
            self._bin = insert_call(self.gm.graph, self.timestep.next, target, args, like=self.timestep)
        return self._bin


def _quantize_weight(gm: fx.GraphModule, node: fx.Node, plan: LayerPlan, config: QDiffConfig) -> fx.Node:
    """Replace the weight by ``dequantize(codes, scales)``; one scale per output channel, zero-point 0."""
    weight_node = cast(fx.Node, node.args[1])
    decided = layer_decision(gm, node, plan, config)
    bits, axis = plan.info.weight_bits, weight_axis(plan)
    qmin, qmax = weight_range(bits)
    base = str(weight_node.target)
    codes_node = insert_get_attr(gm, node, add_buffer(gm, f"{base}_codes", decided.codes))
    scales_node = insert_get_attr(gm, node, add_buffer(gm, f"{base}_scales", decided.scales))
    # Symmetric weights: no zero-points to store.
    args = (codes_node, scales_node, None, axis, *weight_range(bits), torch.int8)
    values = insert_call(gm.graph, node, qd.dequantize_per_channel.default, args)
    put(codes_node, WeightCodes(bits))
    dtype = value(weight_node).dtype
    if dtype != torch.float32:
        values = insert_call(gm.graph, node, aten.to.dtype, (values, dtype))
    node.meta.pop(DECIDED, None)
    if decided.bias is not None:
        _set_bias(gm, node, decided.bias.to(dtype), f"{base}_bias")
    return values


def _set_bias(gm: fx.GraphModule, node: fx.Node, bias: torch.Tensor, name: str) -> None:
    args = [*node.args, *[None] * (3 - len(node.args))]
    args[2] = insert_get_attr(gm, node, add_buffer(gm, name, bias))
    node.args = tuple(args)


def _dequantized_weight(layer: fx.Node) -> fx.Node:
    node = cast(fx.Node, layer.args[1])
    return node if node.target is qd.dequantize_per_channel.default else cast(fx.Node, node.args[0])


def _convert_attention(
    gm: fx.GraphModule, node: fx.Node, plan: LayerPlan, activations: dict[fx.Node, QuantizedActivation]
) -> None:
    """``sdpa(q, k, v)`` becomes one integer attention on the codes of q, k and v."""
    q, k, v = (activations[cast(fx.Node, node.args[i])] for i in range(3))
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    softmax_scale = node.kwargs.get("scale")
    if softmax_scale is None:
        softmax_scale = float(value(operand(node)).shape[-1]) ** -0.5
    constants = [
        _as_tensor(gm, node, number, dtype)
        for number, dtype in (
            (q.scale, torch.float32),
            (q.zero_point, torch.int64),
            (k.scale, torch.float32),
            (v.scale, torch.float32),
        )
    ]
    args = (
        *(q.codes, k.codes, v.codes, mask),
        *constants,
        *(softmax_scale, plan.info.softmax_bits, value(node).dtype),
    )
    attention = insert_call(gm.graph, node, torch.ops.qdiff.int_attention.default, args)
    put(attention, QuantizedLayer(plan.info))
    node.replace_all_uses_with(attention)
    gm.graph.erase_node(node)


def _as_tensor(gm: fx.GraphModule, before: fx.Node, value: float | int | fx.Node, dtype: torch.dtype) -> fx.Node:
    if isinstance(value, fx.Node):
        return value
    name = add_buffer(gm, f"attention_constants.{before.name}", torch.tensor(value, dtype=dtype))
    return insert_get_attr(gm, before, name)
