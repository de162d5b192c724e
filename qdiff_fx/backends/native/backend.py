"""The backend: which rewrites run, in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from qdiff_fx.backends.common.base import Backend, BackendOptions, Lowered, report
from qdiff_fx.backends.common.remaining_weights import DequantizeWeight
from qdiff_fx.backends.common.running import name_running, note_layers
from qdiff_fx.backends.native.explain import describe, with_refusals
from qdiff_fx.backends.native.fusion.add_before_moves import AddBeforeMoves
from qdiff_fx.backends.native.fusion.fuse_activation_into_layer import FuseActivationIntoLayer
from qdiff_fx.backends.native.fusion.fuse_activation_into_quantizer import FuseActivationIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_channel_shift import FuseChannelShift
from qdiff_fx.backends.native.fusion.fuse_concat_into_norm import FuseConcatIntoNorm
from qdiff_fx.backends.native.fusion.fuse_geglu import FuseGeglu
from qdiff_fx.backends.native.fusion.fuse_group_norm import FuseGroupNorm
from qdiff_fx.backends.native.fusion.fuse_layer_norm import FuseLayerNorm
from qdiff_fx.backends.native.fusion.fuse_norm_into_quantizer import FuseNormIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_output_quantizer import FuseOutputQuantizer
from qdiff_fx.backends.native.fusion.fuse_padding import FusePadding
from qdiff_fx.backends.native.fusion.fuse_relu_into_quantizer import FuseReluIntoQuantizer
from qdiff_fx.backends.native.fusion.fuse_residual_add import FuseResidualAdd
from qdiff_fx.backends.native.fusion.fuse_residual_code import FuseResidualCode
from qdiff_fx.backends.native.fusion.fuse_silu_into_group_norm import FuseSiluIntoGroupNorm
from qdiff_fx.backends.native.fusion.fuse_upsampling import FuseUpsampling
from qdiff_fx.backends.native.fusion.hoist_quantizer import HoistQuantizer
from qdiff_fx.backends.native.fusion.hoist_size import HoistSize
from qdiff_fx.backends.native.fusion.look_up_scales import LookUpScales
from qdiff_fx.backends.native.fusion.lower_layers import LowerLayers
from qdiff_fx.backends.native.fusion.merge_split_convs import MergeSplitConvs
from qdiff_fx.backends.native.fusion.scales_as_numbers import AttentionByNumbers, QuantizeByNumbers
from qdiff_fx.backends.native.fusion.settle_float_types import SettleFloatTypes
from qdiff_fx.backends.native.fusion.supported import why_float
from qdiff_fx.backends.native.runtime.program import Program
from qdiff_fx.backends.native.runtime.reuse import RememberWhatRepeats
from qdiff_fx.backends.native.runtime.timing import layer_seconds
from qdiff_fx.ir.edit import copy_graph
from qdiff_fx.ir.facts import quantized_layers
from qdiff_fx.kernels import status
from qdiff_fx.passes.canonicalize.compute_in_float32 import ComputeInFloat32
from qdiff_fx.passes.framework import Pass, run_passes
from qdiff_fx.passes.quantize.widen_weights import WidenWeights
from qdiff_fx.passes.rule import Rewrites

FUSIONS: tuple[Pass, ...] = (
    # The second code of a 16-bit input is made from its values, while both quantizers still read one tensor.
    Rewrites("residual codes", FuseResidualCode(), requires={"lowered"}, revisit="changed"),
    # Codes are moved instead of values, so that quantizers meet what they can join.
    Rewrites("hoist quantizers", HoistQuantizer(), revisit="changed"),
    # Prologues: what comes right before a quantizer is done by it, or a norm writes codes.
    Rewrites(
        "prologues",
        FuseGroupNorm(),
        FuseLayerNorm(),
        FuseSiluIntoGroupNorm(),
        FuseReluIntoQuantizer(),
        FuseActivationIntoQuantizer(),
        FuseNormIntoQuantizer(),
        revisit="changed",
    ),
    # Norms read the parts of a concat. After the norms: all readers of a concat have to be their kernels.
    Rewrites("concats", FuseConcatIntoNorm(), revisit="changed"),
    # Sizes are asked of what is there anyway, so that a question is no reason to keep a value.
    Rewrites("sizes", HoistSize(), revisit="changed"),
    # Padding and upsampling are where a convolution reads.
    Rewrites("windows", FusePadding(), FuseUpsampling(), revisit="changed"),
    # Sums move to where a layer can add them.
    Rewrites("sums before moves", AddBeforeMoves(), revisit="changed"),
    # Epilogues: what comes right after a layer is done by it, sums first, the next quantizer last.
    Rewrites(
        "epilogues",
        FuseChannelShift(),
        MergeSplitConvs(),
        FuseResidualAdd(),
        FuseActivationIntoLayer(),
        FuseOutputQuantizer(),
        FuseGeglu(),
        ensures={"fused"},
        revisit="changed",
    ),
)


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
        return why_float(layer)

    def layer_seconds(self, module: nn.Module, call: Callable[[], Any]) -> dict[str, float]:
        return layer_seconds(module, call)

    def lower(self, gm: fx.GraphModule, options: NativeOptions | None = None, *, release: bool = False) -> Lowered:
        options = options or NativeOptions()
        status()  # the kernels decide how weights are packed, so they are built before the first is
        rows = [report(gm, node, "", self.supports(node)) for node in quantized_layers(gm)]
        lowered = copy_graph(gm)
        note_layers(lowered)
        with torch.no_grad():
            reports = run_passes(lowered, passes(options, release=release))
        program = Program(lowered)
        return Lowered(program, with_refusals(name_running(rows, program, describe), reports, program))


def passes(options: NativeOptions, *, release: bool = False) -> tuple[Pass, ...]:
    """From a q/dq graph to the calls that run, in order."""
    remember = (RememberWhatRepeats(),) if options.reuse else ()
    return (
        # What the first release saved of a half-precision network computes in half precision.
        ComputeInFloat32(),
        WidenWeights(),
        # Scales and zero-points are plain numbers, those of a timestep looked up once per step.
        Rewrites(
            "scales",
            LookUpScales(),
            QuantizeByNumbers(),
            AttentionByNumbers(),
            requires={"quantized"},
            ensures={"scaled by numbers"},
            breaks={"canonical", "quantized"},
            revisit="changed",
        ),
        # Layers and quantizers become calls of kernels, one for one; weights are packed.
        LowerLayers(release=release),
        # Layers without a kernel read float weights.
        Rewrites("float weights", DequantizeWeight(), revisit="changed"),
        *FUSIONS,
        # Kernels hand each other half precision, everyone else gets float32.
        SettleFloatTypes(options.compute_dtype or torch.float16),
        # What does not depend on the image is computed once.
        *remember,
    )
