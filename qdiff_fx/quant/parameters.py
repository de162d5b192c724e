"""What a network is quantized with, as data: codes, scales and zero-points by the ids of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from qdiff_fx.errors import ConversionError
from qdiff_fx.quant.numerics import weight_range
from qdiff_fx.quant.qparams import QParams, TensorSpec


@dataclass(frozen=True, eq=False)
class WeightParameters:
    """The integers a weight becomes: ``w ≈ codes · scales``, the scales along one axis.

    Attributes:
        codes: int8, shaped like the weight.
        scales: float32 [O], one for each output channel.
        bits: width of one code.
        axis: the dimension of the weight that its O output channels lie along.
        bias: the layer's new bias [O]; ``None`` keeps the one it has.

    Raises:
        ConversionError: the tensors do not fit each other; a code does not fit the bits; a scale is no positive number.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    axis: int = 0
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        channels = self.codes.shape[self.axis] if self.axis < self.codes.dim() else -1
        if self.codes.dtype != torch.int8 or self.scales.dtype != torch.float32 or self.scales.shape != (channels,):
            raise ConversionError(
                f"codes {self.codes.dtype} {list(self.codes.shape)} and scales {self.scales.dtype} "
                f"{list(self.scales.shape)} along axis {self.axis} are no weight"
            )
        least, most = weight_range(self.bits)
        if self.codes.numel() and not least <= int(self.codes.min()) <= int(self.codes.max()) <= most:
            raise ConversionError(f"codes of {self.bits} bits lie in [{least}, {most}], and these do not")
        if not bool((self.scales.isfinite() & (self.scales > 0)).all()):
            raise ConversionError("a scale is not a positive finite number")
        if self.bias is not None and self.bias.shape != (channels,):
            raise ConversionError(f"a bias of shape {list(self.bias.shape)} does not fit {channels} output channels")

    def __eq__(self, other: object) -> bool:
        """Whether the numbers are the same, bit for bit."""
        return (
            isinstance(other, WeightParameters)
            and (self.bits, self.axis) == (other.bits, other.axis)
            and torch.equal(self.codes, other.codes)
            and torch.equal(self.scales, other.scales)
            and (self.bias is None) == (other.bias is None)
            and (self.bias is None or other.bias is None or torch.equal(self.bias, other.bias))
        )


@dataclass(frozen=True)
class ActivationParameters:
    """Scale and zero-point of one activation; those of several layers that read it alike.

    An activation of 16 bits is two of 8: its code, and that of what the first leaves over.

    Attributes:
        act_range: how the range was chosen from what was observed; learned step sizes start from it.
        params: a table over the timestep bins, or one value.
        static: one value over all timesteps, for backends whose kernels take no table; ``params`` where that is one.
        residual: of the second code of 16 bits.
    """

    act_range: str
    params: QParams
    static: QParams
    residual: ActivationParameters | None = None

    def to_json(self) -> dict[str, Any]:
        residual = self.residual.to_json() if self.residual else None
        return {"act_range": self.act_range, "params": self.params.to_json(), "static": self.static.to_json()} | (
            {"residual": residual} if residual else {}
        )


@dataclass(frozen=True)
class OutputParameters:
    """Scale and zero-point of a layer's output, for backends whose operators quantize what they return."""

    params: QParams

    def __post_init__(self) -> None:
        if self.params.per_timestep or self.params.spec != TensorSpec(8):
            raise ConversionError("the output of a layer has one scale, and 8 bits")


@dataclass(frozen=True)
class ParameterStore:
    """The parameters of a network: of a whole one, as conversion reads it, or only of what has been decided so far.

    It is never changed: ``store | other`` is a new one in which `other`'s entries replace those of the same id.

    Attributes:
        weights: layer id → its weight.
        activations: activation id → its parameters; the id is that of the layer that reads it first, and where.
        inputs: layer id → argument index → activation id.
        outputs: layer id → its output.
        weight_rounding: how the weights have been rounded so far.
    """

    weights: Mapping[str, WeightParameters] = field(default_factory=dict)
    activations: Mapping[str, ActivationParameters] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    outputs: Mapping[str, OutputParameters] = field(default_factory=dict)
    weight_rounding: Literal["nearest", "second_order"] = "nearest"

    def input(self, layer: str, index: int) -> ActivationParameters | None:
        """What a layer's argument is quantized with; None where that is not decided."""
        activation = self.inputs.get(layer, {}).get(index)
        return None if activation is None else self.activations[activation]

    def __bool__(self) -> bool:
        return bool(self.weights or self.activations or self.outputs)

    def __or__(self, other: ParameterStore) -> ParameterStore:
        inputs = dict(self.inputs)
        for layer, reads in other.inputs.items():
            inputs[layer] = {**inputs.get(layer, {}), **reads}
        return replace(
            self,
            weights={**self.weights, **other.weights},
            activations={**self.activations, **other.activations},
            inputs=inputs,
            outputs={**self.outputs, **other.outputs},
            weight_rounding=other.weight_rounding if other.weight_rounding != "nearest" else self.weight_rounding,
        )

    def with_weights(self, weights: Mapping[str, WeightParameters]) -> ParameterStore:
        """The same with these weights in place of those of the same layers."""
        return replace(self, weights={**self.weights, **weights})


NOTHING = ParameterStore()
"""The store of a network for which nothing has been decided."""
