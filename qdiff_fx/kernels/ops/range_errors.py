"""What quantizing a distribution costs under each of many grids."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.kernels import checks
from qdiff_fx.kernels.registration import register

SCHEMA = "(Tensor edges, Tensor density, Tensor scales, Tensor firsts, Tensor lasts, float power) -> Tensor"
MOST_POWER = 8.0


def reference(edges: Tensor, density: Tensor, scales: Tensor, firsts: Tensor, lasts: Tensor, power: float) -> Tensor:
    """The mean of `|x - scale * clamp(round(x / scale), first, last)|^power` for each grid, float32 [K].

    The integral over the density is exact but for rounding, so its bins may be as wide as a step, or wider: every
    multiple of the scale contributes one cell with the integral `2 (scale / 2)^(power + 1) / (power + 1)`; the rest is
    the part of a cell, or of the clipped tail, between x and its multiple.

    Compiled kernels give the same numbers with every instruction set and any number of threads.

    Args:
        edges: float32 [M + 1], rising.
        density: float32 [M], constant between two edges.
        scales, firsts, lasts: float32 [K]; multiples are whole numbers below 2^21.
    """
    check(edges, density, scales, firsts, lasts, power)
    scale, first, last = (each[:, None] for each in (scales, firsts, lasts))
    return error_integral(edges, scale, first, last, power).diff(dim=1) @ density


def error_integral(x: Tensor, scale: Tensor, first: Tensor, last: Tensor, power: float) -> Tensor:
    """An antiderivative of the error in x: x [M], others [K, 1] -> [K, M]."""
    point = (x / scale).round_().clamp_(first, last)  # in place: [K, M] is large
    rest = x - point * scale
    cell = 2 * (scale / 2) ** (power + 1)
    partial = rest.abs().pow_(power + 1).copysign_(rest)
    return point.mul_(cell).add_(partial).div_(power + 1)


def check(edges: Tensor, density: Tensor, scales: Tensor, firsts: Tensor, lasts: Tensor, power: float) -> None:
    """Raise KernelError unless `range_errors` takes such tensors and numbers."""
    op = "range_errors"
    checks.plain(op, (edges, density, scales, firsts, lasts))
    if density.dim() != 1 or scales.dim() != 1:
        raise checks.error(op, "the density and the scales must be lists")
    bins, grids = len(density), len(scales)
    for what, tensor, count in (
        ("the edges", edges, bins + 1),
        ("the density", density, bins),
        ("the scales", scales, grids),
        ("the first multiples", firsts, grids),
        ("the last multiples", lasts, grids),
    ):
        if tensor.dtype != torch.float32:
            raise checks.error(op, f"{what} must be float32")
        if tuple(tensor.shape) != (count,):
            raise checks.error(op, f"expected {count} numbers of {what}, not {tuple(tensor.shape)}")
    if not 1 <= power <= MOST_POWER:
        raise checks.error(op, f"the power must be 1..8, not {power}")


def fake(edges: Tensor, density: Tensor, scales: Tensor, firsts: Tensor, lasts: Tensor, power: float) -> Tensor:
    """One number for each grid."""
    check(edges, density, scales, firsts, lasts, power)
    return scales.new_empty(scales.shape)


register("range_errors", SCHEMA, reference, fake)
