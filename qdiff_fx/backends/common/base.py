"""The interface every backend implements, and what it reports about each layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import fx, nn

import qdiff_fx.kernels  # noqa: F401, registers the operators named here
from qdiff_fx.ir.edit import get_attr_tensor, is_op
from qdiff_fx.quant.packing import unpack_codes
from qdiff_fx.quant.qparams import LayerInfo

qd = torch.ops.quantized_decomposed
ATTENTION = torch.ops.qdiff.int_attention.default
DEQUANTIZE_ACTIVATION = (qd.dequantize_per_tensor.default, qd.dequantize_per_tensor.tensor)
DEQUANTIZE_WEIGHT = qd.dequantize_per_channel.default


@dataclass(frozen=True)
class LoweringOptions:
    """What a caller may choose about a lowering.

    Attributes:
        compute_dtype: float type between the integer operations; ``None`` leaves it to the backend: float16 for
            ``native``, float32 for the others.
        output_quantizers: quantize as torch.ao's kernels do (``reference`` only): layer outputs to u8, and one scale
            per tensor over all timesteps.
        compile: hand the lowered graph to ``torch.compile`` (``inductor`` only); off is for inspecting it.
        reuse: remember what depends on the timestep or on the conditioning alone (``native`` only); the results are
            the same to the bit.
        release: the q/dq graph's weights may be freed as they are packed (``native`` only), so that no two copies of
            all of them exist at a time; the graph cannot be lowered again.
        reduce_range: 7-bit activation codes where 8-bit ones and the weight's may overflow 16 bits (``inductor``,
            ``x86``, ``qnnpack`` and, to compare them with, ``reference``). ``None`` leaves it to the backend: where
            this processor's kernels saturate.
    """

    compute_dtype: torch.dtype | None = None
    output_quantizers: bool = False
    compile: bool = True
    reuse: bool = True
    release: bool = False
    reduce_range: bool | None = None

    @property
    def float_type(self) -> torch.dtype:
        """The compute type of backends that have no preference."""
        return self.compute_dtype or torch.float32


@dataclass(frozen=True)
class LayerReport:
    """One row of ``explain()``.

    Attributes:
        info: bits and path of the layer.
        kernel: what it runs on.
        reason: why it runs in float; empty when it runs on integers.
        note: what else a user should know about it; mostly empty.
        weight_scale, act_scale: (smallest, largest) scale, ``None`` where there is none.
    """

    info: LayerInfo
    kernel: str
    reason: str = ""
    weight_scale: tuple[float, float] | None = None
    act_scale: tuple[float, float] | None = None
    note: str = ""

    @property
    def integer(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Lowered:
    """A runnable module on flat tensor inputs, and the report of its layers."""

    module: nn.Module
    layers: tuple[LayerReport, ...]


class Backend(ABC):
    """Turns the q/dq graph into something that runs.

    A new backend is one file that subclasses this and one line in ``backends/__init__.py``.

    Attributes:
        name: what users call it.
        frees_weights: whether it lowers graphs whose low-bit codes are still packed, and frees what it has packed when
            asked to.
    """

    name: str
    frees_weights: bool = False

    def unavailable(self) -> str:
        """Why this machine cannot run the backend; empty when it can."""
        return ""

    def saturates(self) -> bool:
        """Whether its kernels on this machine add two u8·s8 products in 16 bits, which saturate silently."""
        return False

    @abstractmethod
    def supports(self, layer: fx.Node) -> str:
        """Why a quantized layer of the q/dq graph would run in float; empty when it runs on integers."""

    @abstractmethod
    def lower(self, gm: fx.GraphModule, options: LoweringOptions) -> Lowered:
        """Lower a q/dq graph, which is left as it is."""


def quantized_layers(gm: fx.GraphModule) -> list[fx.Node]:
    """Every weight layer and attention of a q/dq graph, in execution order."""
    return [node for node in gm.graph.nodes if "layer" in node.meta]


def without_casts(node: object) -> object:
    """The node behind dtype casts of dequantized values."""
    while isinstance(node, fx.Node) and is_op(node, torch.ops.aten.to.dtype):
        node = node.args[0]
    return node


def activation_of(layer: fx.Node) -> fx.Node | None:
    """The dequantize node that feeds a weight layer."""
    node = without_casts(layer.args[0])
    return node if isinstance(node, fx.Node) and is_op(node, *DEQUANTIZE_ACTIVATION) else None


def weight_of(layer: fx.Node) -> fx.Node | None:
    """The dequantize node of a weight layer's codes."""
    node = without_casts(layer.args[1]) if len(layer.args) > 1 else None
    return node if isinstance(node, fx.Node) and is_op(node, DEQUANTIZE_WEIGHT) else None


def weight_codes(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The int8 codes a get_attr node reads, unpacked where a loader left them packed."""
    tensor = get_attr_tensor(gm, node)
    packed = node.meta.get("packed")
    return unpack_codes(tensor, *packed) if packed else tensor


def report(gm: fx.GraphModule, layer: fx.Node, kernel: str, reason: str = "", note: str = "") -> LayerReport:
    """The report row of a layer of the q/dq graph, its scales read from the graph."""
    info: LayerInfo = layer.meta["layer"]
    reason = info.float_reason or reason
    weight_scale = act_scale = None
    if is_op(layer, ATTENTION):
        act_scale = _tensor_range(gm, layer.args[4])
    elif info.quantized:
        weight, activation = weight_of(layer), activation_of(layer)
        weight_scale = _tensor_range(gm, weight.args[1]) if weight else None
        act_scale = _scale_range(gm, activation) if activation else None
    return LayerReport(info, "float" if reason else kernel, reason, weight_scale, act_scale, note)


def _scale_range(gm: fx.GraphModule, activation: fx.Node) -> tuple[float, float] | None:
    scale = activation.args[1]
    return (scale, scale) if isinstance(scale, float) else _tensor_range(gm, scale)


def _tensor_range(gm: fx.GraphModule, node: object) -> tuple[float, float] | None:
    if isinstance(node, fx.Node) and is_op(node, torch.ops.aten.index_select.default):
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    tensor = get_attr_tensor(gm, node)
    return tensor.min().item(), tensor.max().item()
