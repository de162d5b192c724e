"""The codes of one weight, given the factor of what it is multiplied with."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.config import WeightRange
from qdiff_fx.passes.quantize.nearest import weight_scales
from qdiff_fx.quant.numerics import weight_range
from qdiff_fx.quant.parameters import WeightParameters
from qdiff_fx.weight_rounding.nearest_plane import HessianFactor, searched_codes

SCALE_RATIOS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05)  # of the scale nearest rounding would use; searched per channel
CHUNK_ELEMENTS = 1 << 24  # of the weights, all their candidate scales counted, that are rounded at a time


def second_order(weight: Tensor, bits: int, factor: HessianFactor, method: WeightRange) -> WeightParameters:
    """The codes, and per output channel the scale, under which the layer's output changes least.

    Args:
        weight: float32 [O, ...], K entries per output channel.
        factor: of the Hessian [K, K] of what it is multiplied with.
        method: how the scale is found that `SCALE_RATIOS` multiply.
    """
    qmin, qmax = weight_range(bits)
    candidates = weight_scales(weight, bits, method=method)[:, None] * torch.tensor(SCALE_RATIOS)  # [O, R]
    codes, chosen = [], []
    step = max(1, CHUNK_ELEMENTS // (weight[0].numel() * len(SCALE_RATIOS)))
    for rows, scales in zip(weight.flatten(1).split(step), candidates.split(step), strict=True):
        tried, _, best = searched_codes(rows, scales, factor, qmin, qmax)
        codes.append(tried)
        chosen.append(best)
    return WeightParameters(torch.cat(codes).view(weight.shape), torch.cat(chosen), bits)
