"""Observers of layers' inputs become quantize and dequantize nodes."""

from __future__ import annotations

from typing import cast

import torch
from torch import fx

import qdiff_fx.kernels  # noqa: F401, registers the operators used here
from qdiff_fx.config import QDiffConfig
from qdiff_fx.ir.annotations import put, value
from qdiff_fx.ir.edit import add_buffer, elementwise, insert_call, insert_get_attr
from qdiff_fx.ir.facts import StaticQParams, timestep_input
from qdiff_fx.passes.framework import Change, Pass, PassReport
from qdiff_fx.passes.quantize.readings import readings
from qdiff_fx.passes.quantize.sixteen_bit_inputs import read_residual_too
from qdiff_fx.quant.parameters import ActivationParameters, ParameterStore

aten, qd = torch.ops.aten, torch.ops.quantized_decomposed


class QuantizeActivations(Pass):
    """``layer(observer(x, t))`` becomes ``layer(dequantize(quantize(x)))``, by a store of parameters.

    Layers that read one observer alike read one dequantize node. Scales and zero-points are numbers, or come from a
    table by the timestep's bin, which is computed once per call. An input of 16 bits is quantized twice, what the
    first code leaves over by the second, and the layer runs on both (`wide_inputs`).
    """

    name = "quantize_activations"
    requires = frozenset({"observed"})
    ensures = frozenset({"activations quantized"})
    # Quantizers may stand where a canonical graph has nothing to cast or to move.
    breaks = frozenset({"canonical", "split", "annotated", "observed"})

    def __init__(self, parameters: ParameterStore, config: QDiffConfig):
        self.parameters, self.config = parameters, config

    def run(self, gm: fx.GraphModule) -> PassReport:
        tables = TimestepTables(gm, self.config)
        changes: list[Change] = []
        residuals: dict[fx.Node, fx.Node] = {}
        for reading in list(readings(gm)):
            observer, parameters = reading.observer, self.parameters.activations[reading.id]
            source = cast(fx.Node, observer.args[0])
            exact, values = insert_quantizer(gm, observer, source, parameters, tables)
            for layer, index in reading.readers:
                layer.update_arg(index, values)
            if parameters.residual is not None:
                residual = insert_call(gm.graph, observer, aten.sub.Tensor, (source, exact))
                _, values = insert_quantizer(gm, observer, residual, parameters.residual, tables)
                residuals |= {layer: values for layer, _ in reading.readers}
            spec = reading.plan.spec
            changes.append(Change(observer.name, reading.id, f"quantized to {spec.bits} bits"))
        for layer in [node for node in gm.graph.nodes if node in residuals]:
            read_residual_too(gm, layer, residuals[layer])
        return PassReport(self.name, tuple(changes))


class TimestepTables:
    """Scales and zero-points looked up by the timestep's bin, which is computed once per call.

    A network without a timestep has nothing to look up by: it gets one scale per tensor.
    """

    def __init__(self, gm: fx.GraphModule, config: QDiffConfig):
        self.gm, self.config, self.timestep = gm, config, timestep_input(gm)
        self._bin: fx.Node | None = None

    def lookup(self, before: fx.Node, name: str, table: torch.Tensor) -> fx.Node:
        """The entry of this call's bin, as a node before another one; the table is stored under a name like that."""
        node = insert_get_attr(self.gm, before, add_buffer(self.gm, f"timestep_tables.{before.name}_{name}", table))
        return insert_call(self.gm.graph, before, aten.index_select.default, (node, 0, self._bin_node()))

    def _bin_node(self) -> fx.Node:
        if self._bin is None:
            assert self.timestep is not None
            target = torch.ops.qdiff.timestep_bin.default
            args = (self.timestep, *self.config.schedule.arguments)
            self._bin = insert_call(self.gm.graph, self.timestep.next, target, args, like=self.timestep)
        return self._bin


def insert_quantizer(
    gm: fx.GraphModule, before: fx.Node, source: fx.Node, parameters: ActivationParameters, tables: TimestepTables
) -> tuple[fx.Node, fx.Node]:
    """Quantize and dequantize `source`; the values in float32, and in the network's own type."""
    params, static = parameters.params, parameters.static
    scale: float | fx.Node = params.scale[0]
    zero_point: int | fx.Node = params.zero_point[0]
    quantize, dequantize = qd.quantize_per_tensor.default, qd.dequantize_per_tensor.default
    if table := params.per_timestep:
        scale = tables.lookup(before, "scale", torch.tensor(params.scale, dtype=torch.float32))
        zero_point = tables.lookup(before, "zero_point", torch.tensor(params.zero_point, dtype=torch.int64))
        quantize, dequantize = qd.quantize_per_tensor.tensor, qd.dequantize_per_tensor.tensor
    tail = (scale, zero_point, *params.spec.integers)
    integers, numbers = (elementwise(value(source), each) for each in (params.spec.dtype, torch.float32))
    codes = insert_call(gm.graph, before, quantize, (source, *tail), known=integers)
    exact = insert_call(gm.graph, before, dequantize, (codes, *tail), known=numbers)
    if table:
        # Beside the table, for backends whose kernels take one scale only.
        put(codes, StaticQParams(static.scale[0], static.zero_point[0]))
    dtype = value(before).dtype
    # Dequantizing gives float32; a network in another type goes on in its own.
    values = exact if dtype == torch.float32 else insert_call(gm.graph, before, aten.to.dtype, (exact, dtype))
    return exact, values
