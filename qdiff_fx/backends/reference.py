"""Float arithmetic on integer codes: the oracle the other backends are judged against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from qdiff_fx.backends.common.base import Backend, BackendOptions, Lowered, report
from qdiff_fx.backends.common.output_ranges import require_output_ranges
from qdiff_fx.backends.common.reduced_range import fit_products
from qdiff_fx.backends.common.static_scales import use_static_scales
from qdiff_fx.ir.annotations import value
from qdiff_fx.ir.edit import clean, copy_graph, insert_call
from qdiff_fx.ir.facts import layer_info, quantized_layers

qd = torch.ops.quantized_decomposed


@dataclass(frozen=True)
class ReferenceOptions(BackendOptions):
    """Choices of the reference.

    Attributes:
        output_quantizers: quantize as torch.ao's kernels do: layer outputs to u8, and one scale per tensor over all
            timesteps.
        reduce_range: 7-bit activation codes where 8-bit ones and the weight's may overflow 16 bits, to compare with
            backends whose kernels saturate on this processor.
    """

    output_quantizers: bool = False
    reduce_range: bool | None = None


class ReferenceBackend(Backend):
    """Runs the q/dq graph as it is written."""

    name = "reference"
    options = ReferenceOptions

    def supports(self, layer: fx.Node) -> str:
        return ""

    def lower(self, gm: fx.GraphModule, options: ReferenceOptions | None = None, *, release: bool = False) -> Lowered:
        options = options or ReferenceOptions()
        lowered = copy_graph(gm)
        if options.output_quantizers:
            require_output_ranges(gm, "output_quantizers=True")
            use_static_scales(lowered)
        notes = fit_products(lowered, self, options.reduce_range)
        if options.output_quantizers:
            quantize_outputs(lowered)
        layers = tuple(
            report(lowered, node, "float arithmetic on codes", note=notes.get(node, ""))
            for node in quantized_layers(lowered)
        )
        return Lowered(clean(lowered), layers)


def quantize_outputs(gm: fx.GraphModule) -> None:
    """Quantize and dequantize the output of every weight layer, as kernels do that return u8."""
    for node in quantized_layers(gm):
        info = layer_info(node)
        if info.output is None:
            continue
        spec = info.output.spec
        tail = (info.output.scale[0], info.output.zero_point[0], spec.qmin, spec.qmax, spec.dtype)
        codes = insert_call(gm.graph, node.next, qd.quantize_per_tensor.default, (node, *tail), like=node)
        values = insert_call(gm.graph, codes.next, qd.dequantize_per_tensor.default, (codes, *tail), like=node)
        if value(node).dtype != torch.float32:
            cast = torch.ops.aten.to.dtype
            values = insert_call(gm.graph, values.next, cast, (values, value(node).dtype), like=node)
        for user in [user for user in node.users if user is not codes]:
            user.replace_input_with(node, values)
