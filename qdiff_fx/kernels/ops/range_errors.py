"""What quantizing each of some distributions costs under each of many grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.registration import register

SCHEMA = "(Tensor edges, Tensor density, int[] bins, Tensor scales, Tensor firsts, Tensor lasts, float power) -> Tensor"
MOST_POWER = 8.0


def reference(
    edges: Tensor, density: Tensor, bins: Sequence[int], scales: Tensor, firsts: Tensor, lasts: Tensor, power: float
) -> Tensor:
    """The mean of `|x - scale * clamp(round(x / scale), first, last)|^power`, float32 [D, K]: D distributions, K grids.

    The integral over the density is exact but for rounding, so its bins may be as wide as a step, or wider: every
    multiple of the scale contributes one cell with the integral `2 (scale / 2)^(power + 1) / (power + 1)`; the rest is
    the part of a cell, or of the clipped tail, between x and its multiple.

    Compiled kernels give the same numbers with every instruction set and any number of threads, and for a distribution
    the same whatever others come with it.

    Args:
        edges: float32 [M_1 + 1 + M_2 + 1 + ...], rising for each distribution.
        density: float32 [M_1 + M_2 + ...], constant between two edges.
        bins: M_1, M_2, ...
        scales, firsts, lasts: float32 [D, K]; multiples are whole numbers below 2^21.
    """
    check(edges, density, bins, scales, firsts, lasts, power)
    found = torch.empty_like(scales)
    each = zip(edges.split([count + 1 for count in bins]), density.split(list(bins)), strict=True)
    for index, (own, mass) in enumerate(each):
        scale, first, last = (numbers[index, :, None] for numbers in (scales, firsts, lasts))
        found[index] = error_integral(own, scale, first, last, power).diff(dim=1) @ mass
    return found


def error_integral(x: Tensor, scale: Tensor, first: Tensor, last: Tensor, power: float) -> Tensor:
    """An antiderivative of the error in x: x [M], others [K, 1] -> [K, M]."""
    point = (x / scale).round_().clamp_(first, last)  # in place: [K, M] is large
    rest = x - point * scale
    cell = 2 * (scale / 2) ** (power + 1)
    partial = rest.abs().pow_(power + 1).copysign_(rest)
    return point.mul_(cell).add_(partial).div_(power + 1)


def check(
    edges: Tensor, density: Tensor, bins: Sequence[int], scales: Tensor, firsts: Tensor, lasts: Tensor, power: float
) -> None:
    """Raise KernelError unless `range_errors` takes such tensors and numbers."""
    op = "range_errors"
    checks.plain(op, (edges, density, scales, firsts, lasts))
    if scales.dim() != 2 or len(scales) != len(bins):
        raise checks.error(op, "there must be a row of scales for each distribution")
    if any(count < 1 for count in bins):
        raise checks.error(op, "a distribution has no bins")
    all_bins, grids = sum(bins), tuple(scales.shape)
    for what, tensor, shape in (
        ("the edges", edges, (all_bins + len(bins),)),
        ("the density", density, (all_bins,)),
        ("the scales", scales, grids),
        ("the first multiples", firsts, grids),
        ("the last multiples", lasts, grids),
    ):
        if tensor.dtype != torch.float32:
            raise checks.error(op, f"{what} must be float32")
        if tuple(tensor.shape) != shape:
            raise checks.error(op, f"{what} must have the shape {list(shape)}, not {list(tensor.shape)}")
    if not 1 <= power <= MOST_POWER:
        raise checks.error(op, f"the power must be 1..8, not {power}")


def fake(
    edges: Tensor, density: Tensor, bins: Sequence[int], scales: Tensor, firsts: Tensor, lasts: Tensor, power: float
) -> Tensor:
    """One number for each grid."""
    check(edges, density, bins, scales, firsts, lasts, power)
    return scales.new_empty(scales.shape)


register("range_errors", SCHEMA, reference, fake)
