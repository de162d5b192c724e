"""oneDNN int8 convolutions and linears and int8 attention under ``torch.compile``."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from typing import cast

import torch
import torch._inductor.config
from torch import fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass

from qdiff_fx.backends.common.base import ATTENTION, Backend, BackendOptions, Lowered, report
from qdiff_fx.backends.common.compute_dtype import set_compute_dtype
from qdiff_fx.backends.common.reduced_range import fit_products
from qdiff_fx.backends.common.remaining_weights import dequantize_remaining_weights
from qdiff_fx.backends.common.running import Running, attention_name, name_running, note_layers
from qdiff_fx.backends.common.saturation import onednn_saturates
from qdiff_fx.backends.inductor import onednn
from qdiff_fx.backends.inductor.output_quantization import hide_from_inductor, write_codes
from qdiff_fx.ir.edit import clean, copy_graph, is_op
from qdiff_fx.ir.facts import quantized_layers


class AccumulateSums(CustomGraphPass):
    """Runs ``onednn.accumulate_sums`` on Inductor's graph, where post-ops may write in place."""

    def __call__(self, graph: fx.Graph) -> None:
        onednn.accumulate_sums(graph)

    def uuid(self) -> bytes:
        return hashlib.sha256(inspect.getsource(onednn).encode()).digest()


@dataclass(frozen=True)
class InductorOptions(BackendOptions):
    """Choices of ``inductor``.

    Attributes:
        compile: hand the lowered graph to ``torch.compile``; off is for inspecting it.
        compute_dtype: float type between the integer operations; ``None`` is float32.
        reduce_range: 7-bit activation codes where 8-bit ones and the weight's may overflow 16 bits; ``None``: where
            this processor's kernels saturate.
    """

    compile: bool = True
    compute_dtype: torch.dtype | None = None
    reduce_range: bool | None = None


class InductorBackend(Backend):
    """Quantize and dequantize become part of the generated loops around the integer kernels."""

    name = "inductor"
    options = InductorOptions

    def unavailable(self) -> str:
        if not torch.backends.mkldnn.is_available():
            return "this build of torch has no oneDNN"
        if not hasattr(torch.ops.onednn, "qconv_pointwise"):
            return "this build of torch has no int8 oneDNN operators"
        return ""

    def supports(self, layer: fx.Node) -> str:
        return onednn.refusal(layer)

    def saturates(self) -> bool:
        return onednn_saturates()

    def lower(self, gm: fx.GraphModule, options: InductorOptions | None = None, *, release: bool = False) -> Lowered:
        options = options or InductorOptions()
        float_type = options.compute_dtype or torch.float32
        lowered = copy_graph(gm)
        notes = fit_products(lowered, self, options.reduce_range)
        rows = [
            report(lowered, node, "", self.supports(node), notes.get(node, "")) for node in quantized_layers(lowered)
        ]
        note_layers(lowered)
        onednn.lower_to_onednn(lowered, float_type)
        dequantize_remaining_weights(lowered)
        write_codes(lowered)
        hide_from_inductor(lowered)
        for node in lowered.graph.nodes:
            if is_op(node, ATTENTION):
                node.target = torch.ops.qdiff.int_attention_vnni.default
                node.update_arg(10, float_type)
        if float_type != torch.float32:
            set_compute_dtype(lowered, float_type, gm)
        clean(lowered)
        layers = name_running(rows, lowered, _describe)
        return Lowered(Compiled(lowered) if options.compile else lowered, layers)


class Compiled(nn.Module):
    """A lowered graph that is compiled on its first call, and again for shapes it has not seen."""

    def __init__(self, lowered: fx.GraphModule):
        super().__init__()
        self.lowered = lowered
        # Compiling removes nodes from the graph and leaves its code; with this map Dynamo would look up nodes by line
        # when it compiles again for another shape, and fail.
        lowered._lineno_map = None
        self.compiled = torch.compile(lowered, options={"post_grad_custom_pre_pass": AccumulateSums()})

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Dynamo too reads `freezing`, to tell constants from inputs, and sees no per-compile options. Without it
        # the packed weights would be inputs, which Inductor's int8 linear refuses.
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            outputs: tuple[torch.Tensor, ...] = self.compiled(*inputs)
            return outputs


def _describe(node: fx.Node) -> Running | None:
    if is_op(node, torch.ops.qdiff.int_attention_vnni.default):
        return Running(attention_name(node, cast(int, node.args[9])))
    return Running(f"onednn::{str(node.target).split('.')[1]}") if is_op(node, *onednn.LAYER_OPS) else None
