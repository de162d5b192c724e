"""The distribution behind a record: a density that is constant between edges, and what quantizing it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def quantization_error(
    distribution: Distribution, lo: Tensor, hi: Tensor, bits: int, *, symmetric: bool, p: float
) -> Tensor:
    """The mean of `|x - x̂|^p` under each of K candidate ranges: lo, hi [K] -> float64 [K].

    x̂ is what `choose_grid` and `quantize` make of x, clipping and zero-point rounding included. The integral
    over the density is exact but for rounding, so histogram bins may be as wide as a quantization step, or wider.
    """
    grid = choose_grid(lo, hi, bits, symmetric=symmetric)
    widths = distribution.edges.diff()
    coarse = float(distribution.edges.abs().max() / widths.min()) <= COARSE
    # In units of about the largest scale no power leaves the range of float32.
    unit = 2.0 ** math.frexp(float(grid[0].max()))[1]
    density = distribution.mass / widths * unit
    if coarse:
        numbers = (distribution.edges / unit, density, grid[0].double() / unit, grid[1], grid[2])
        errors: Tensor = OPERATOR.range_errors(*(each.float() for each in numbers), p).double()
    else:
        scale, first, last = (each.double()[:, None] for each in (grid[0] / unit, grid[1], grid[2]))
        errors = error_integral(distribution.edges / unit, scale, first, last, p).diff(dim=1) @ density
    return errors.mul(unit**p)


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
