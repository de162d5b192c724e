"""The interface every backend implements, and what it reports about each layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

import qdiff_fx.kernels  # noqa: F401, registers the operators named here
from qdiff_fx.ir.annotations import fact
from qdiff_fx.ir.arguments import operand
from qdiff_fx.ir.edit import get_attr_tensor
from qdiff_fx.ir.facts import WeightCodes, layer_info, whole_layer
from qdiff_fx.quant.packing import unpack_codes
from qdiff_fx.quant.qparams import LayerInfo

qd = torch.ops.quantized_decomposed
ATTENTION = torch.ops.qdiff.int_attention.default
DEQUANTIZE_ACTIVATION = (qd.dequantize_per_tensor.default, qd.dequantize_per_tensor.tensor)
DEQUANTIZE_WEIGHT = qd.dequantize_per_channel.default


@dataclass(frozen=True)
class BackendOptions:
    """What a caller may choose about a lowering: every backend that offers a choice has a class of its own."""


@dataclass(frozen=True)
class LayerReport:
    """One row of ``explain()``.

    Attributes:
        info: bits and path of the layer.
        kernel: what it runs on.
        reason: why it runs in float; empty when it runs on integers.
        note: what else a user should know about it; mostly empty.
        notes: details of how it runs, shown on demand: what its kernel does beside it, and why not more.
        weight_scale, act_scale: (smallest, largest) scale, ``None`` where there is none.
    """

    info: LayerInfo
    kernel: str
    reason: str = ""
    weight_scale: tuple[float, float] | None = None
    act_scale: tuple[float, float] | None = None
    note: str = ""
    notes: tuple[str, ...] = ()

    @property
    def integer(self) -> bool:
        return not self.reason


def count_layers(rows: Iterable[LayerReport]) -> tuple[int, int]:
    """How many layers run on integers, and how many do not.

    A layer that was split, or reads a 16-bit input in two codes, has several rows, ``path[0:64]`` or ``path[rest]``. It
    counts once, as one in float if any part of it is.
    """
    whole: dict[str, bool] = {}
    for row in rows:
        path = whole_layer(row.info.path)
        whole[path] = whole.get(path, True) and row.integer
    return sum(whole.values()), len(whole) - sum(whole.values())


@dataclass(frozen=True)
class Lowered:
    """A runnable module on flat tensor inputs, and the report of its layers."""

    module: nn.Module
    layers: tuple[LayerReport, ...]


class Backend(ABC):
    """Turns the q/dq graph into something that runs.

    A new backend is one file that subclasses this and one line in ``registry.py``.

    Attributes:
        name: what users call it.
        options: the class of its options.
        quantizes_outputs: whether its kernels quantize what layers return, whose ranges then have to be measured.
        frees_weights: whether it lowers graphs whose low-bit codes are still packed, and frees what it has packed when
            asked to.
    """

    name: str
    options: type[BackendOptions] = BackendOptions
    quantizes_outputs: bool = False
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

    def layer_seconds(self, module: nn.Module, call: Callable[[], Any]) -> dict[str, float]:
        """Layer → seconds of its kernel in a step, where a backend can tell.

        Args:
            module: what `lower` returned.
            call: a step of it.
        """
        return {}

    @abstractmethod
    def lower(self, gm: fx.GraphModule, options: Any = None, *, release: bool = False) -> Lowered:
        """Lower a q/dq graph, which is left as it is.

        Args:
            gm: the q/dq graph.
            options: an object of the backend's class of options; ``None`` is all defaults.
            release: free the graph's weights as they are packed, so that no two copies of all of them exist at a time;
                the graph cannot be lowered again. Only asked of backends that have ``frees_weights``.
        """


def without_casts(node: object) -> object:
    """The node behind dtype casts of dequantized values."""
    while isinstance(node, fx.Node) and node.target is torch.ops.aten.to.dtype:
        node = node.args[0]
    return node


def activation_of(layer: fx.Node) -> fx.Node | None:
    """The dequantize node that feeds a weight layer."""
    node = without_casts(layer.args[0])
    return node if isinstance(node, fx.Node) and node.target in DEQUANTIZE_ACTIVATION else None


def weight_of(layer: fx.Node) -> fx.Node | None:
    """The dequantize node of a weight layer's codes."""
    node = without_casts(layer.args[1]) if len(layer.args) > 1 else None
    return node if isinstance(node, fx.Node) and node.target is DEQUANTIZE_WEIGHT else None


def weight_tensors(gm: fx.GraphModule, layer: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, as they are stored, and scales of a quantized weight layer. Raises TypeError when it has none."""
    weight = weight_of(layer)
    if weight is None:
        raise TypeError(f"{layer.name} reads no quantized weight")
    return get_attr_tensor(gm, operand(weight)), get_attr_tensor(gm, operand(weight, 1))


def weight_codes(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The int8 codes a get_attr node reads, unpacked where a loader left them packed."""
    tensor = get_attr_tensor(gm, node)
    known = fact(node, WeightCodes)
    if known is None or known.packed_shape is None:
        return tensor
    return unpack_codes(tensor, known.bits, known.packed_shape)


def report(gm: fx.GraphModule, layer: fx.Node, kernel: str, reason: str = "", note: str = "") -> LayerReport:
    """The report row of a layer of the q/dq graph, its scales read from the graph."""
    info = layer_info(layer)
    reason = info.float_reason or reason
    weight_scale = act_scale = None
    if layer.target is ATTENTION:
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
    if isinstance(node, fx.Node) and node.target is torch.ops.aten.index_select.default:
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    tensor = get_attr_tensor(gm, node)
    return tensor.min().item(), tensor.max().item()
