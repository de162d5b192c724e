"""From statistics to ranges: pure functions `Statistics -> (lo, hi)`.

Static ranges are 0-d, and count every timestep bin that holds data the same, however many samples fell into it.
With `per_timestep` they are tables [T]; bins without data copy the nearest bin that has some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qdiff_fx.errors import CalibrationError, ConfigError
from qdiff_fx.observers.distribution import (
    Distribution,
    distribution_at,
    pooled_distribution,
    quantile,
    quantization_errors,
)
from qdiff_fx.observers.statistics import Statistics
from qdiff_fx.quant.digest import digest
from qdiff_fx.quant.range_methods import range_method

Range = tuple[Tensor, Tensor]

REMEMBERED = 1 << 13
"""Ranges: rounding, reconstruction and conversion ask for the same ones, and tuning asks many times."""
_chosen: dict[tuple[object, ...], Range] = {}
DESCENT_ROUNDS = 3  # of the asymmetric search; it has always settled before
SHRINK = 0.01


def choose_range(
    stats: Statistics, method: str, bits: int, per_timestep: bool = False, symmetric: bool = False
) -> Range:
    """The range by a named method with the paper's settings; arguments that a method has no use for are ignored.

    Returns:
        lo, hi float32: 0-d, or [T] with `per_timestep`. Pass them to `numerics.choose_qparams`.
    Raises:
        ConfigError: an unknown method.
        CalibrationError: the observer saw no data, or kept no histogram where the method needs one.
    """
    choose = range_method(method)
    record = digest([stats.min_val, stats.max_val, stats.hist, stats.exponent, stats.count])
    key = choose, record, bits, per_timestep, symmetric
    if key not in _chosen:
        if len(_chosen) >= REMEMBERED:
            del _chosen[next(iter(_chosen))]  # the oldest
        _chosen[key] = choose(stats, bits, per_timestep, symmetric)
    lo, hi = _chosen[key]
    return lo.clone(), hi.clone()


def minmax_range(stats: Statistics, per_timestep: bool = False) -> Range:
    """The smallest and the largest value seen."""
    seen = _seen(stats)
    if per_timestep:
        return _fill_missing(seen, stats.min_val), _fill_missing(seen, stats.max_val)
    return stats.min_val.min(), stats.max_val.max()


def moving_average_range(stats: Statistics, momentum: float = 0.95, per_timestep: bool = False) -> Range:
    """Running min and max along the denoising trajectory, `m ← momentum * m + (1 - momentum) * min_t`.

    Q-Diffusion updates such an average once per calibration batch, so its result depends on the order of the data.
    Here the update goes over the timestep bins from the noisiest down, each with its exact range: the same
    smoothing along t, independent of order and batch size. With `per_timestep`, bin t gets the average as of t.
    """
    seen = _seen(stats)
    lo, hi = torch.zeros_like(stats.min_val), torch.zeros_like(stats.max_val)
    newest = None
    for index in reversed(seen.nonzero().flatten().tolist()):
        keep = 0.0 if newest is None else momentum
        previous = index if newest is None else newest
        lo[index] = keep * lo[previous] + (1 - keep) * stats.min_val[index]
        hi[index] = keep * hi[previous] + (1 - keep) * stats.max_val[index]
        newest = index
    if per_timestep:
        return _fill_missing(seen, lo), _fill_missing(seen, hi)
    return lo[newest], hi[newest]


def percentile_range(stats: Statistics, percentile: float = 99.99, per_timestep: bool = False) -> Range:
    """The range that leaves out `100 - percentile` percent of the values at each end."""
    if not 50 < percentile <= 100:
        raise ConfigError(f"{percentile} is not in (50, 100]", where="percentile")

    def chosen(distributions: Sequence[Distribution], lo: Tensor, hi: Tensor) -> Range:
        tail = 1 - percentile / 100
        ends = [[quantile(each, share) for share in (tail, 1 - tail)] for each in distributions]
        low, high = torch.tensor(ends, dtype=torch.float64).T.clamp(lo, hi)
        return low, high

    return _from_distribution(stats, per_timestep, chosen)


def mse_range(
    stats: Statistics,
    bits: int,
    p: float = 2.4,
    candidates: int = 80,
    symmetric: bool = False,
    per_timestep: bool = False,
) -> Range:
    """The range with the least mean `|x - x̂|^p` among shrunk ranges (Q-Diffusion: 80 candidates, 1 % each, L2.4).

    Symmetric ranges shrink as one. For asymmetric ones that is only the start: then each end is searched with the
    other held, in turn, until one does not move, because activations after SiLU or softmax have one long tail.
    """
    if candidates < 1 or SHRINK * (candidates - 1) >= 1 or p <= 0:
        raise ConfigError(f"{candidates} candidates and error |.|^{p} cannot be searched", where="mse_range")
    fractions = 1 - SHRINK * torch.arange(candidates, dtype=torch.float64)

    def chosen(distributions: Sequence[Distribution], lo: Tensor, hi: Tensor) -> Range:
        def best(which: Tensor, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
            """Of some distributions, [A], each under its own candidates, [A, K] or [A, 1]."""
            lows, highs = torch.broadcast_tensors(lows, highs)
            some = [distributions[index] for index in which.tolist()]
            errors = quantization_errors(some, lows, highs, bits, symmetric=symmetric, p=p)
            least = errors.argmin(dim=1, keepdim=True)
            return lows.gather(1, least)[:, 0], highs.gather(1, least)[:, 0]

        if symmetric:
            hi = torch.maximum(-lo, hi)
            lo = -hi
        lows, highs = lo[:, None] * fractions, hi[:, None] * fractions
        low, high = best(torch.arange(len(lo)), lows.clamp(max=0), highs.clamp(min=0))
        if symmetric:
            return low, high
        # Where one end is zero and stays there, all pairs have been tried.
        moving = ((lo < 0) & (hi > 0)).nonzero()[:, 0]
        for turn in range(DESCENT_ROUNDS):
            lower, _ = best(moving, lows[moving], high[moving, None])
            moved = lower != low[moving]
            low[moving] = lower
            if turn:  # elsewhere the high end was searched with this low one
                moving = moving[moved]
            _, higher = best(moving, low[moving, None], highs[moving])
            moved = higher != high[moving]
            high[moving] = higher
            moving = moving[moved]  # elsewhere the low end was searched with this high one
        return low, high

    return _from_distribution(stats, per_timestep, chosen)


def by_minmax(stats: Statistics, bits: int, per_timestep: bool, symmetric: bool) -> Range:
    """`act_range="minmax"`."""
    return minmax_range(stats, per_timestep)


def by_moving_average(stats: Statistics, bits: int, per_timestep: bool, symmetric: bool) -> Range:
    """`act_range="moving_average"`."""
    return moving_average_range(stats, per_timestep=per_timestep)


def by_percentile(stats: Statistics, bits: int, per_timestep: bool, symmetric: bool) -> Range:
    """`act_range="percentile"`."""
    return percentile_range(stats, per_timestep=per_timestep)


def by_mse(stats: Statistics, bits: int, per_timestep: bool, symmetric: bool) -> Range:
    """`act_range="mse"`."""
    return mse_range(stats, bits, symmetric=symmetric, per_timestep=per_timestep)


def _from_distribution(
    stats: Statistics, per_timestep: bool, chosen: Callable[[Sequence[Distribution], Tensor, Tensor], Range]
) -> Range:
    """Apply `chosen` to the even mixture of all timesteps, or to each timestep bin.

    It gets some distributions, and the least and the largest value of each, float64.
    """
    seen = _seen(stats)
    if stats.hist.shape[1] == 0:
        raise CalibrationError(
            "this range needs a histogram and the observer keeps none",
            where=stats.name,
            fix='Observe with TimestepObserver, or choose "minmax" or "moving_average"',
        )
    if not per_timestep:
        ends = stats.min_val.min().reshape(1), stats.max_val.max().reshape(1)
        lo, hi = chosen([pooled_distribution(stats)], *(end.double() for end in ends))
        return lo[0].float(), hi[0].float()
    lows, highs = torch.zeros(len(seen)), torch.zeros(len(seen))
    full = [distribution_at(stats, index) for index in seen.nonzero().flatten().tolist()]
    lo, hi = chosen(full, stats.min_val[seen].double(), stats.max_val[seen].double())
    lows[seen], highs[seen] = lo.float(), hi.float()
    return _fill_missing(seen, lows), _fill_missing(seen, highs)


def _seen(stats: Statistics) -> Tensor:
    """Which timestep bins hold data, bool [T]. Raises CalibrationError where none does."""
    seen = stats.seen
    if not bool(seen.any()):
        raise CalibrationError(
            "the observer saw no data",
            where=stats.name,
            fix="Run calibrate(prepared, batches), or a pipeline with the prepared network, before converting",
        )
    return seen


def _fill_missing(seen: Tensor, values: Tensor) -> Tensor:
    """values [T] with every bin that saw nothing replaced by its nearest neighbour that did (ties: the lower)."""
    known = seen.nonzero().flatten()
    distance = (torch.arange(len(values), device=known.device)[:, None] - known[None, :]).abs()
    return values[known[distance.argmin(dim=1)]]
