"""Whether what the kernels add up, and hand to each other, fits the type it is held in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qdiff_fx.ir.annotations import Fact
from qdiff_fx.kernels.accumulator import overflow, signed_sums


def input_parts(codes: Tensor) -> list[tuple[int, int]]:
    """Where to cut the input channels of int8 codes (out, in, ...) so that the sums of each part fit 32 bits.

    Of few enough weights, which is nearly always, the number alone tells that they need not be cut.
    """
    return _halved(codes, 0, codes.shape[1])


def _halved(codes: Tensor, first: int, last: int) -> list[tuple[int, int]]:
    # No function inside the other: it would hold itself, and with itself the codes, until garbage is collected.
    if last - first == 1 or not overflow(codes[:, first:last], bits=8):
        return [(first, last)]
    middle = first + -(-(last - first) // 2)
    return [*_halved(codes, first, middle), *_halved(codes, middle, last)]


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
