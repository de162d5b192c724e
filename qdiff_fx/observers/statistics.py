"""What an observer saw, one row per timestep bin, and how two such records become one.

Histogram grid: row t has N bins of width `2^exponent[t]`; bin i covers `[i - N/2, i + 1 - N/2) * 2^exponent[t]`.
Widths are powers of two and every grid has an edge at 0, so one step coarser means adding neighbours in pairs:
exact integer arithmetic. A record therefore does not depend on how its data were split, or in what order they came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff_fx.errors import CalibrationError

SMALLEST_EXPONENT = -100  # of a row without data, or with zeros only; its reciprocal fits in float32


@dataclass(frozen=True)
class Statistics:
    """The record of one observer over T timestep bins; bin 0 holds the smallest (least noisy) timesteps.

    Attributes:
        min_val, max_val: float32 [T], exact; +inf and -inf where nothing was seen.
        hist: int64 [T, N], occurrences on the grid described above; N is 0 for observers that keep none.
        exponent: int64 [T].
        count: int64 [T], elements seen (an observer may put fewer of them in the histogram).
        name: the observer's, for error messages.
    """

    min_val: Tensor
    max_val: Tensor
    hist: Tensor
    exponent: Tensor
    count: Tensor
    name: str = ""

    @property
    def seen(self) -> Tensor:
        """bool [T]: which timestep bins hold data."""
        return self.count > 0


def merge_statistics(a: Statistics, b: Statistics) -> Statistics:
    """The record of an observer that saw the data of both; associative, commutative and exact.

    Raises:
        CalibrationError: the two count different timestep or histogram bins.
    """
    if a.hist.shape != b.hist.shape:
        raise CalibrationError(
            f"statistics over [timesteps, histogram] bins {list(a.hist.shape)} and {list(b.hist.shape)} do not add up",
            where=a.name,
            fix="Calibrate both with the same timestep_bins and histogram_bins",
        )
    exponent = torch.maximum(a.exponent, b.exponent)
    return Statistics(
        min_val=torch.minimum(a.min_val, b.min_val),
        max_val=torch.maximum(a.max_val, b.max_val),
        hist=coarsen(a.hist, exponent - a.exponent) + coarsen(b.hist, exponent - b.exponent),
        exponent=exponent,
        count=a.count + b.count,
        name=a.name,
    )


def coarsen(hist: Tensor, steps: Tensor) -> Tensor:
    """hist [T, N] with the bins of row t widened by `2^steps[t]`, steps int64 [T] >= 0."""
    if not bool(steps.any()):
        return hist
    bins = hist.shape[1]
    index = torch.arange(bins, device=hist.device) - bins // 2
    # An arithmetic shift rounds towards minus infinity, on either side of 0, just as floor(x / width) does.
    target = (index[None, :] >> steps.clamp(max=62)[:, None]) + bins // 2
    return torch.zeros_like(hist).scatter_add_(1, target, hist)


def smallest_exponent(lo: float, hi: float, bins: int) -> int:
    """The finest grid of `bins` bins (a power of two) that holds the finite values lo and hi."""
    half = (bins // 2).bit_length() - 1  # the grid covers [-2^(half + e), 2^(half + e))
    needed = SMALLEST_EXPONENT
    if hi > 0:
        needed = max(needed, math.frexp(hi)[1] - half)  # hi < 2^k
    if lo < 0:
        mantissa, power = math.frexp(-lo)  # -lo <= 2^k, and k - 1 does when it is a power of two
        needed = max(needed, power - half - (mantissa == 0.5))
    return needed
