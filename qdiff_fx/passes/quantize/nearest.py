"""Weights rounded to their nearest codes, each output channel with a scale of its own."""

from __future__ import annotations

import torch
from torch import Tensor

import qdiff_fx.kernels  # noqa: F401, registers the operator used here
from qdiff_fx.config import WeightRange
from qdiff_fx.errors import ConfigError, ConversionError
from qdiff_fx.quant.parameters import WeightParameters

CANDIDATES, SHRINK, POWER = 80, 0.01, 2.4
"""Of "mse", as in Q-Diffusion (Li et al., arXiv 2302.04304)."""


def nearest(weight: Tensor, bits: int, axis: int, method: WeightRange) -> WeightParameters:
    """A weight with every value rounded to its nearest code; one scale for each slice along `axis`.

    Raises as `weight_scales`.
    """
    channels_first = weight.detach().movedim(axis, 0)
    codes, scales = _codes_and_scales(channels_first, bits, method)
    return WeightParameters(codes.view(channels_first.shape).movedim(0, axis).contiguous(), scales, bits, axis)


def weight_scales(weight: Tensor, bits: int, *, axis: int = 0, method: WeightRange = "max") -> Tensor:
    """Symmetric scale of every output channel, for codes in `weight_range(bits)` and zero point 0.

    "max" is the smallest scale under which nothing clips, `max(max(w) / qmax, min(w) / qmin)`. "mse" tries 80 scales,
    that one shrunk by 1 % more each time, and keeps the one with the least `sum |w - ŵ|^2.4`. A channel of zeros gets
    scale 1.

    Args:
        weight: floating, with O output channels along `axis`: 0 for conv and linear, 1 for conv_transpose.
    Returns:
        float32 [O].
    Raises:
        ConversionError: the weight holds NaN or infinity.
        ConfigError: an unknown method.
    """
    return _codes_and_scales(weight.detach().movedim(axis, 0), bits, method)[1]


def _codes_and_scales(weight: Tensor, bits: int, method: WeightRange) -> tuple[Tensor, Tensor]:
    """Codes int8 [O, K] and scales [O] of a weight with its output channels first."""
    if method not in ("max", "mse"):
        raise ConfigError(f"unknown method {method!r}", where="weight_scales", fix="Use 'max' or 'mse'")
    candidates = CANDIDATES if method == "mse" else 1
    rows = weight.reshape(weight.shape[0], -1)
    codes, scales = torch.ops.qdiff.nearest_codes(rows, bits, candidates, SHRINK, POWER)
    if bool(scales.isnan().any()):
        raise ConversionError("the weight holds NaN or infinity", where="weight_scales")
    return codes, scales
