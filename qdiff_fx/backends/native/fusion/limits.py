"""Whether what the kernels add up, and hand to each other, fits the type it is held in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from qdiff_fx.backends.common.base import weight_codes
from qdiff_fx.ir.annotations import Fact, value
from qdiff_fx.kernels.accumulator import MOST_WEIGHTS, overflow, signed_sums


def sums_refusal(weight: fx.Node) -> str:
    """Why the sums of the layer that reads the dequantized `weight` might exceed the 32 bits kernels add them in.

    Empty when they cannot.
    """
    codes, gm = weight.args[0], weight.graph.owning_module
    if not isinstance(codes, fx.Node) or gm is None:
        return ""
    shape = value(codes).shape
    if len(shape) > 1 and 128 * shape.numel() <= MOST_WEIGHTS * shape[0]:
        return ""
    return overflow(weight_codes(gm, codes), bits=8)


@dataclass(frozen=True)
class WeightReach(Fact):
    """How far a packed weight takes its inputs.

    Attributes:
        positive, negative: float64 (out,), the sums of each output channel's weights above and below zero.
    """

    stage: ClassVar[str] = "packing"
    positive: Tensor
    negative: Tensor

    @classmethod
    def of_codes(cls, codes: Tensor, scales: Tensor) -> WeightReach:
        """Of int8 codes (out, in, ...) with one scale per output channel (out,)."""
        positive, negative = signed_sums(codes)
        return cls(positive * scales.double(), negative * scales.double())

    def over(self, ranges: Iterable[tuple[float, float, float]]) -> Tensor:
        """The largest magnitude (out,) of the products' sums under any of several quantizers.

        Args:
            ranges: scale, and the lowest and the highest code less the zero-point, around zero.
        """
        up, down = self.positive, self.negative
        each = [abs(s) * torch.maximum(high * up + low * down, -(low * up + high * down)) for s, low, high in ranges]
        return torch.stack(each).amax(0)
