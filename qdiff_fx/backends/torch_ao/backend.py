"""``x86`` and ``qnnpack``: torch.ao's ``prepare_fx``/``convert_fx`` with our parameters.

torch.ao's integer layers take u8 and return u8, so each layer's output is quantized too, with the parameters in
``LayerInfo.output``. Everything between layers stays in float; attention runs on our own kernel.
"""

from __future__ import annotations

import copy
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from qdiff_fx.backends.common.base import ATTENTION, Backend, BackendOptions, Lowered, report
from qdiff_fx.backends.common.compute_dtype import set_compute_dtype
from qdiff_fx.backends.common.output_ranges import require_output_ranges
from qdiff_fx.backends.common.reduced_range import fit_products
from qdiff_fx.backends.common.saturation import x86_engine_saturates
from qdiff_fx.backends.common.static_scales import use_static_scales
from qdiff_fx.backends.torch_ao.module_graph import TRANSPOSED_CONVS, LayerConstants, constants_of, refusal, to_modules
from qdiff_fx.ir.edit import clean, copy_graph, is_op
from qdiff_fx.ir.facts import layer_info, quantized_layers
from qdiff_fx.kernels.running import attention_kernel_name

aten, qdiff = torch.ops.aten, torch.ops.qdiff

INT32_MAX = 2**31 - 1
# From more groups on, torch's x86 engine leaves oneDNN for FBGEMM's depthwise kernels.
ONEDNN_GROUPS = 100
_engine_lock = threading.RLock()


@dataclass(frozen=True)
class TorchAOOptions(BackendOptions):
    """Choices of ``x86`` and ``qnnpack``.

    Attributes:
        compute_dtype: float type between the integer operations; ``None`` is float32.
        reduce_range: 7-bit activation codes where 8-bit ones and the weight's may overflow 16 bits; ``None``: where
            this processor's kernels saturate.
    """

    compute_dtype: torch.dtype | None = None
    reduce_range: bool | None = None


def missing_torch_ao() -> str:
    """Why torch.ao's FX mode cannot be used; empty when it can. It is deprecated, and going to leave torch."""
    try:
        importlib.import_module("qdiff_fx.backends.torch_ao.fx_mode")
    except ImportError as error:
        return f"this build of torch has no torch.ao.quantization.quantize_fx ({error})"
    return ""


class TorchAOBackend(Backend):
    """One engine of ``torch.backends.quantized``.

    Without AVX-512 VNNI the kernels of ``x86`` add u8·s8 products in 16 bits: layers with 8-bit weights get 7-bit
    activations there. ``qnnpack`` is the ARM engine; it runs on x86 too, slowly.

    Packed weights remember the engine they were packed for. The process-wide engine is switched only while packing,
    and a lowered module may run in any thread, under any engine.
    """

    options = TorchAOOptions
    quantizes_outputs = True

    def __init__(self, engine: str):
        self.name = engine

    def unavailable(self) -> str:
        reason = missing_torch_ao()
        if reason:
            return f'{reason}, which the {self.name} backend is made of; load the network with backend="native"'
        if self.name not in torch.backends.quantized.supported_engines:
            return f"this build of torch has no {self.name} engine"
        return ""

    def supports(self, layer: fx.Node) -> str:
        """As for every backend; ``lower`` asks after it has put static scales in the place of tables."""
        info = layer_info(layer)
        if is_op(layer, ATTENTION):
            return info.float_reason
        reason = refusal(layer)
        if reason:
            return reason
        constants = constants_of(cast(fx.GraphModule, layer.graph.owning_module), layer)
        return _qnnpack_refusal(layer, constants) if self.name == "qnnpack" else _x86_refusal(layer, constants)

    def saturates(self) -> bool:
        if self.name != "x86":
            return False
        with _engine(self.name):
            return x86_engine_saturates()

    def lower(self, gm: fx.GraphModule, options: TorchAOOptions | None = None, *, release: bool = False) -> Lowered:
        options = options or TorchAOOptions()
        float_type = options.compute_dtype or torch.float32
        require_output_ranges(gm, f"backend={self.name!r}")
        lowered = copy_graph(gm)
        use_static_scales(lowered)
        notes = fit_products(lowered, self, options.reduce_range)
        layers = {node: self.supports(node) for node in quantized_layers(lowered)}
        rows = tuple(
            report(lowered, node, self._kernel(node), reason, notes.get(node, "")) for node, reason in layers.items()
        )
        integer = [node for node, reason in layers.items() if not reason and not is_op(node, ATTENTION)]
        _use_attention_kernel(lowered, float_type)
        constants = to_modules(lowered, integer, float_type)
        clean(lowered)
        if float_type != torch.float32:
            set_compute_dtype(lowered, float_type, gm)
        from qdiff_fx.backends.torch_ao.fx_mode import convert

        with _engine(self.name):
            converted = convert(clean(lowered), constants)
        return Lowered(EngineModule(clean(converted), self.name), rows)

    def _kernel(self, layer: fx.Node) -> str:
        if is_op(layer, ATTENTION):
            return attention_kernel_name(cast(int, layer.args[9]))
        return f"quantized::{str(layer.target).split('.')[1]} ({self.name})"


class X86Backend(TorchAOBackend):
    """oneDNN and FBGEMM."""

    def __init__(self) -> None:
        super().__init__("x86")


class QnnpackBackend(TorchAOBackend):
    """The kernels for ARM."""

    def __init__(self) -> None:
        super().__init__("qnnpack")


class EngineModule(nn.Module):
    """A lowered graph; copies of it are packed for the same engine, whichever is current."""

    def __init__(self, graph_module: fx.GraphModule, engine: str):
        super().__init__()
        self.graph_module, self.engine = graph_module, engine

    def forward(self, *inputs: Tensor) -> Any:
        return self.graph_module(*inputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineModule:
        with _engine(self.engine):
            return EngineModule(copy.deepcopy(self.graph_module, memo), self.engine)


def _use_attention_kernel(gm: fx.GraphModule, compute_dtype: torch.dtype) -> None:
    for node in gm.graph.nodes:
        if is_op(node, ATTENTION):
            node.target = qdiff.int_attention_vnni.default
            if compute_dtype != torch.float32:
                node.update_arg(10, compute_dtype)


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """Pack weights for an engine. The setting is one per process, so one thread packs at a time."""
    with _engine_lock:
        previous = torch.backends.quantized.engine
        torch.backends.quantized.engine = name
        try:
            yield
        finally:
            torch.backends.quantized.engine = previous


def _x86_refusal(layer: fx.Node, constants: LayerConstants) -> str:
    if layer.target in TRANSPOSED_CONVS:
        return "torch.ao's x86 engine has no transposed convolution with one weight scale per channel"
    depthwise = constants.options.get("groups", 1) > ONEDNN_GROUPS
    if depthwise and constants.codes.int().abs().max() > 64:
        return f"above {ONEDNN_GROUPS} groups torch.ao's x86 engine sums in 16 bits, which 8-bit weights overflow"
    return ""


def _qnnpack_refusal(layer: fx.Node, constants: LayerConstants) -> str:
    """QNNPACK holds the bias and the whole sum in int32, and multiplies it by ``scale`` in float32."""
    if is_op(layer, aten.conv_transpose3d.input):
        return "torch.ao's qnnpack engine computes 3-d transposed convolutions wrongly"
    scale = constants.input.scale * constants.scales.double()
    if scale.min() < torch.finfo(torch.float32).tiny:
        return "its input and weight scales multiply to less than float32 holds"
    other_axes = [axis for axis in range(constants.codes.dim()) if axis != constants.axis]
    largest_sum = 255 * constants.codes.double().abs().sum(other_axes)
    if constants.bias is not None:
        largest_sum += constants.bias.double().abs() / scale
    requantized = largest_sum * (scale / constants.output.scale).clamp(min=1)
    if requantized.max() > INT32_MAX:
        return "qnnpack's 32-bit sums may overflow: a bias or weight is large for its scale"
    return ""
