"""The codes of one weight, given the factor of what it is multiplied with."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.config import WeightRange
from qdiff_fx.passes.quantize.nearest import weight_scales
from qdiff_fx.quant.numerics import weight_range
from qdiff_fx.quant.parameters import WeightParameters
from qdiff_fx.weight_rounding.nearest_plane import HessianFactor, feedback_codes, searched_codes

SCALE_RATIOS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05)
"""Of the scale nearest rounding would use; searched per channel."""
SEARCHED_BITS = 7
"""At most; with more the others gain 1.5 % of the error at most (docs/quality.md), and take three times as long."""
CHUNK_ELEMENTS = 1 << 24  # of the weights, all their candidate scales counted, that are rounded at a time


def second_order(
    weight: Tensor, bits: int, factor: HessianFactor, method: WeightRange, *, scales: Tensor | None = None
) -> WeightParameters:
    """The codes, and per output channel the scale, under which the layer's output changes least.

    Args:
        weight: float32 [O, ...], K entries per output channel.
        factor: of the Hessian [K, K] of what it is multiplied with.
        method: how the scale is found that `SCALE_RATIOS` multiply.
        scales: float32 [O], instead of that: of a weight that this one is a part of.
    """
    qmin, qmax = weight_range(bits)
    scales = weight_scales(weight, bits, method=method) if scales is None else scales
    ratios = SCALE_RATIOS if bits <= SEARCHED_BITS else (1.0,)
    candidates = scales[:, None] * torch.tensor(ratios)  # [O, R]
    codes, chosen = [], []
    step = max(1, CHUNK_ELEMENTS // (weight[0].numel() * len(ratios)))
    for rows, some in zip(weight.flatten(1).split(step), candidates.split(step), strict=True):
        tried, _, best = searched_codes(rows, some, factor, qmin, qmax)
        codes.append(tried)
        chosen.append(best)
    return WeightParameters(torch.cat(codes).view(weight.shape), torch.cat(chosen), bits)


class InParts:
    """The codes of one weight, some input channels after the others: its Hessian is too large to have at once.

    What the channels of different parts have in common is left out of account. The first part decides the scales.

    Args:
        weight: float32 [O, C, ...].
        bits, method: as of `second_order`.
    """

    def __init__(self, weight: Tensor, bits: int, method: WeightRange):
        self._weight, self._bits, self._method = weight, bits, method
        self._scales: Tensor | None = None
        self._codes: list[Tensor] = []

    def add(self, channels: slice, factor: HessianFactor) -> None:
        """Choose the codes of the next channels."""
        part = self._weight[:, channels]
        if self._scales is None:
            whole = weight_scales(self._weight, self._bits, method=self._method)
            found = second_order(part, self._bits, factor, self._method, scales=whole)
            self._scales = found.scales
            self._codes.append(found.codes)
        else:
            codes, _ = feedback_codes(part.flatten(1), self._scales, factor, *weight_range(self._bits))
            self._codes.append(codes.view(part.shape))

    def done(self) -> WeightParameters:
        """All of them."""
        assert self._scales is not None
        return WeightParameters(torch.cat(self._codes, 1), self._scales, self._bits)
