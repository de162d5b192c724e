"""The distribution behind a record: a density that is constant between edges, and what quantizing it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qdiff_fx.kernels.ops.range_errors import error_integral
from qdiff_fx.observers.statistics import Statistics
from qdiff_fx.quant.numerics import choose_grid

OPERATOR = torch.ops.qdiff
COARSE = 1 << 13
"""Bins up to the farthest edge of a histogram whose errors float32 tells apart, and so the operator."""


@dataclass(frozen=True)
class Distribution:
    """Probability `mass[m]` spread evenly over `[edges[m], edges[m + 1])`; float64 on the CPU.

    Attributes:
        edges: [M + 1], strictly rising.
        mass: [M], >= 0, sums to 1.
    """

    edges: Tensor
    mass: Tensor

    @cached_property
    def density(self) -> Tensor:
        """[M]."""
        return self.mass / self.edges.diff()

    @cached_property
    def is_coarse(self) -> bool:
        """Whether float32 tells its edges apart."""
        return float(self.edges.abs().max() / self.edges.diff().min()) <= COARSE


def distribution_at(stats: Statistics, index: int) -> Distribution:
    """The distribution in one timestep bin that holds data."""
    width = 2.0 ** int(stats.exponent[index])
    first, last = (int(float(end[index]) // width) for end in (stats.min_val, stats.max_val))
    half = stats.hist.shape[1] // 2
    mass = stats.hist[index, first + half : last + half + 1].cpu().double()
    return Distribution(torch.arange(first, last + 2, dtype=torch.float64) * width, mass / mass.sum())


def pooled_distribution(stats: Statistics) -> Distribution:
    """The distribution over all timesteps, every timestep bin that holds data weighted evenly.

    The grids are nested (see `Statistics`), so their union has few edges and represents the mixture exactly.
    """
    parts = [distribution_at(stats, index) for index in stats.seen.nonzero().flatten().tolist()]
    edges = torch.cat([part.edges for part in parts]).unique()
    cumulative = torch.stack([_cumulative(part, edges) for part in parts]).mean(dim=0)
    return Distribution(edges, cumulative.diff().clamp(min=0))


def quantile(distribution: Distribution, probability: float) -> float:
    """The value x with P(X < x) = probability."""
    cumulative = torch.cat([distribution.mass.new_zeros(1), distribution.mass.cumsum(0)])
    return float(_interpolate(cumulative, distribution.edges, torch.tensor([probability], dtype=torch.float64)))


def quantization_errors(
    distributions: Sequence[Distribution], lo: Tensor, hi: Tensor, bits: int, *, symmetric: bool, p: float
) -> Tensor:
    """The mean of `|x - x̂|^p` of D distributions, each under K candidate ranges of its own: lo, hi [D, K] -> float64.

    x̂ is what `choose_grid` and `quantize` make of x, clipping and zero-point rounding included. The integral
    over the density is exact but for rounding, so histogram bins may be as wide as a quantization step, or wider.
    """
    scale, first, last = choose_grid(lo, hi, bits, symmetric=symmetric)
    # In units of about the largest scale no power leaves the range of float32.
    units = [2.0**exponent for exponent in scale.amax(dim=1).frexp().exponent.tolist()]
    column = torch.tensor(units, dtype=torch.float64)[:, None]
    grids = scale.double() / column, first, last
    edges = [each.edges / unit for each, unit in zip(distributions, units, strict=True)]
    density = [each.density * unit for each, unit in zip(distributions, units, strict=True)]
    errors = torch.empty(scale.shape, dtype=torch.float64)
    coarse = [index for index, each in enumerate(distributions) if each.is_coarse]
    if coarse:
        together = (torch.cat([each[index] for index in coarse]).float() for each in (edges, density))
        bins = [len(density[index]) for index in coarse]
        numbers = (each[coarse].float() for each in grids)
        errors[coarse] = OPERATOR.range_errors(*together, bins, *numbers, p).double()
    for index in set(range(len(distributions))) - set(coarse):
        scale, first, last = (each[index, :, None].double() for each in grids)
        errors[index] = error_integral(edges[index], scale, first, last, p).diff(dim=1) @ density[index]
    return errors.mul_(column.pow(p))


def _cumulative(distribution: Distribution, x: Tensor) -> Tensor:
    """P(X < x) for every x [K]."""
    cumulative = torch.cat([distribution.mass.new_zeros(1), distribution.mass.cumsum(0)])
    return _interpolate(distribution.edges, cumulative, x)


def _interpolate(xs: Tensor, ys: Tensor, x: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), xs rising, constant beyond its ends."""
    right = torch.searchsorted(xs, x).clamp(1, xs.numel() - 1)
    left = right - 1
    run = (xs[right] - xs[left]).clamp(min=torch.finfo(xs.dtype).tiny)
    share = ((x - xs[left]) / run).clamp(0, 1)
    return ys[left] + share * (ys[right] - ys[left])
