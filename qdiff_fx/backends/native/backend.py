"""The backend: which rewrites run, in which order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from qdiff_fx.backends.common.base import Backend, BackendOptions, Lowered, report
from qdiff_fx.backends.common.remaining_weights import dequantize_remaining_weights
from qdiff_fx.backends.common.running import name_running, note_layers
from qdiff_fx.backends.native.explain import describe
from qdiff_fx.backends.native.fusion import layers
from qdiff_fx.backends.native.fusion.absorb_input import absorb_inputs
from qdiff_fx.backends.native.fusion.absorb_output import absorb_outputs
from qdiff_fx.backends.native.fusion.dtypes import settle_dtypes
from qdiff_fx.backends.native.fusion.hoist import hoist_quantizers
from qdiff_fx.backends.native.fusion.numbers import numbers_from_tables
from qdiff_fx.backends.native.fusion.rests import join_rests
from qdiff_fx.backends.native.fusion.sizes import ask_inputs_for_sizes
from qdiff_fx.backends.native.fusion.window import absorb_windows
from qdiff_fx.backends.native.runtime.program import Program
from qdiff_fx.backends.native.runtime.reuse import remember_what_repeats
from qdiff_fx.ir.edit import clean, copy_graph
from qdiff_fx.ir.facts import quantized_layers
from qdiff_fx.kernels import status

REWRITES = (join_rests, hoist_quantizers, absorb_inputs, ask_inputs_for_sizes, absorb_windows, absorb_outputs)


@dataclass(frozen=True)
class NativeOptions(BackendOptions):
    """Choices of ``native``.

    Attributes:
        compute_dtype: float type in which kernels hand activations to each other; ``None`` is float16.
        reuse: remember what depends on the timestep or on the conditioning alone; the results are the same to the bit.
    """

    compute_dtype: torch.dtype | None = None
    reuse: bool = True


class NativeBackend(Backend):
    """One kernel per integer layer, with what surrounds the layer done on the way in and out.

    Between the kernels activations are held in ``options.compute_dtype``; float16 and bfloat16 halve that memory.
    """

    name = "native"
    options = NativeOptions
    frees_weights = True

    def supports(self, layer: fx.Node) -> str:
        return layers.refusal(layer)

    def lower(self, gm: fx.GraphModule, options: NativeOptions | None = None, *, release: bool = False) -> Lowered:
        options = options or NativeOptions()
        status()  # the kernels decide how weights are packed, so they are built before the first is
        rows = [report(gm, node, "", self.supports(node)) for node in quantized_layers(gm)]
        lowered = copy_graph(gm)
        note_layers(lowered)
        with torch.no_grad():
            numbers_from_tables(lowered)
            layers.lower_layers(lowered, release=release)
            dequantize_remaining_weights(lowered)
            for rewrite in REWRITES:
                rewrite(lowered)
                # Nodes nobody reads any more would count as readers of what they read.
                lowered.graph.eliminate_dead_code()
            settle_dtypes(lowered, options.compute_dtype or torch.float16)
            if options.reuse:
                remember_what_repeats(lowered)
        program = Program(clean(lowered))
        return Lowered(program, name_running(rows, program, describe))
