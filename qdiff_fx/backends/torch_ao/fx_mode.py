"""torch.ao's ``prepare_fx`` and ``convert_fx``, told every parameter. Nothing else of torch.ao is used."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx
from torch.ao.quantization import QConfig, QConfigMapping
from torch.ao.quantization.observer import ObserverBase
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from qdiff_fx.backends.torch_ao.module_graph import LayerConstants


class FixedParameters(ObserverBase):
    """An observer that reports what it was told, whatever it sees."""

    def __init__(
        self,
        dtype: torch.dtype,
        qscheme: torch.qscheme,
        scales: tuple[float, ...] = (1.0,),
        zero_point: int = 0,
        ch_axis: int = -1,
    ):
        super().__init__(dtype)
        self.qscheme, self.ch_axis = qscheme, ch_axis
        self.scales, self.zero_point = scales, zero_point

    def forward(self, x: Tensor) -> Tensor:
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        scales = torch.tensor(self.scales, dtype=torch.float32)
        return scales, torch.full_like(scales, self.zero_point, dtype=torch.int64)


def convert(gm: fx.GraphModule, constants: dict[str, LayerConstants]) -> fx.GraphModule:
    """Replace the named float modules of ``gm`` by ``torch.ao.nn.quantized`` ones; everything else stays in float."""
    mapping = QConfigMapping()
    for name, layer in constants.items():
        mapping.set_module_name(name, _qconfig(layer))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(gm, mapping, example_inputs=())
        _set_activation_parameters(prepared, constants)
        return convert_fx(prepared)


def _qconfig(layer: LayerConstants) -> QConfig:
    activation = FixedParameters.with_args(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
    weight = FixedParameters.with_args(
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        scales=tuple(layer.scales.tolist()),
        ch_axis=layer.axis,
    )
    return QConfig(activation=activation, weight=weight)


def _set_activation_parameters(prepared: fx.GraphModule, constants: dict[str, LayerConstants]) -> None:
    """Every observer watches either the output of one of our modules or the input of some of them."""
    modules = dict(prepared.named_modules())
    for node in prepared.graph.nodes:
        observer = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(observer, FixedParameters):
            continue
        source, reader = node.args[0], next(iter(node.users))
        made_by = constants.get(str(source.target)) if source.op == "call_module" else None
        parameters = made_by.output if made_by else constants[str(reader.target)].input
        observer.scales, observer.zero_point = (parameters.scale,), parameters.zero_point
