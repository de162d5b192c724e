"""What we want of a tensor (bits, signedness, symmetry) and what we measured for it (scale, zero-point)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from qdiff_fx.errors import ConfigError
from qdiff_fx.quant.numerics import integer_range

LayerKind = Literal["conv", "conv_transpose", "linear", "attention"]

WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = range(4, 9)
SIXTEEN_BITS = 16  # of the input of a weight layer: two codes of 8 bits, the second of what the first leaves over
SOFTMAX_BITS = (4, 5, 6, 7, 8, 16)


@dataclass(frozen=True)
class TensorSpec:
    """The integers a tensor is stored in.

    Attributes:
        bits: width of one code.
        signed: int8 storage if true, uint8 otherwise.
        symmetric: the zero-point is 0 (signed) and the range is mirrored around it.
    """

    bits: int
    signed: bool = False
    symmetric: bool = False

    @property
    def qmin(self) -> int:
        return integer_range(self.bits, signed=self.signed)[0]

    @property
    def qmax(self) -> int:
        return integer_range(self.bits, signed=self.signed)[1]

    @property
    def integers(self) -> tuple[int, int, torch.dtype]:
        """Smallest and largest code, and the type that holds them: how quantize nodes are called."""
        return (*integer_range(self.bits, signed=self.signed), self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.signed else torch.uint8


@dataclass(frozen=True)
class QParams:
    """Measured parameters of one activation: ``x ≈ (q − zero_point) · scale``.

    Attributes:
        spec: the integers the activation is stored in.
        scale: one value, or one for each timestep bin.
        zero_point: as many values as ``scale``.
    """

    spec: TensorSpec
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.scale or len(self.scale) != len(self.zero_point):
            raise ConfigError(
                f"{len(self.scale)} scales and {len(self.zero_point)} zero-points do not describe one activation"
            )

    @property
    def per_timestep(self) -> bool:
        return len(self.scale) > 1

    def to_json(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "bits": spec.bits,
            "signed": spec.signed,
            "symmetric": spec.symmetric,
            "scale": list(self.scale),
            "zero_point": list(self.zero_point),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> QParams:
        spec = TensorSpec(data["bits"], data["signed"], data["symmetric"])
        return QParams(spec, tuple(data["scale"]), tuple(data["zero_point"]))


@dataclass(frozen=True)
class LayerInfo:
    """What became of one weight layer or one attention: the row ``explain()`` prints.

    Attributes:
        path: dotted module path, with ``[k0:k1]`` appended for one part of a split shortcut.
        kind: "conv", "conv_transpose", "linear" or "attention".
        weight_bits: 0 where the layer has no weight (attention) or stays in float.
        act_bits: bits of the input activations, 0 if in float.
        softmax_bits: bits of the attention probabilities, 0 for weight layers.
        float_reason: why the layer is in float; empty when it is quantized.
        output: parameters of the layer's output, for backends whose ops quantize what they return.
    """

    path: str
    kind: LayerKind
    weight_bits: int = 0
    act_bits: int = 0
    softmax_bits: int = 0
    float_reason: str = ""
    output: QParams | None = None

    @property
    def quantized(self) -> bool:
        return not self.float_reason

    def to_json(self) -> dict[str, Any]:
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "output"}
        data["output"] = self.output.to_json() if self.output else None
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> LayerInfo:
        output = QParams.from_json(data["output"]) if data["output"] else None
        return LayerInfo(**{**data, "output": output})
