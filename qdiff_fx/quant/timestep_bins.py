"""The denoising schedule cut into equal parts: which part, or bin, a timestep belongs to.

A schedule is that of training, whole numbers from 0 on, or a range of whatever a network is called with instead: the
logarithm of σ, a time in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff_fx.errors import ConfigError

Span = tuple[float, float]


def timestep_bin(
    timesteps: Tensor, bins: int, num_train_timesteps: int, start: float = 0.0, stop: float = 0.0
) -> Tensor:
    """``clamp(floor(t * bins / num_train_timesteps), 0, bins - 1)`` of every timestep.

    Of a range: ``clamp(floor((t - start) * bins / (stop - start)), 0, bins - 1)``.

    In float64, whatever comes in: `t * bins` is then exact for every timestep below 2^40, integer or float32, and the
    remainder that decides the floor is as well. In float32 the product of a timestep just below an edge can round up
    to it (428.57111 of 1000 in 7 bins), and a network would read another row of its tables than was measured.

    Args:
        timesteps: any shape, integer or floating.
        bins: at least 1.
        num_train_timesteps: length of the training schedule, at least 1; a range, if one is given, is taken instead.
        start, stop: of the range; the same where there is none.

    Returns:
        int64, of the same shape. Timesteps outside the schedule go to the nearest bin.
    """
    exact = timesteps.to(torch.float64)
    length: float = num_train_timesteps
    if start != stop:
        exact, length = exact - start, stop - start
    index = torch.div(exact * bins, length, rounding_mode="floor")
    return index.clamp(0, bins - 1).to(torch.int64)


@dataclass(frozen=True)
class TimestepBins:
    """A schedule in `bins` equal parts; bin 0 holds the smallest timesteps, mostly the least noisy ones.

    Attributes:
        num_train_timesteps: timesteps lie in [0, num_train_timesteps].
        bins: how many parts.
        span: the range [start, stop] that timesteps lie in instead.

    Raises:
        ConfigError: no bins, or more of them than timesteps; a range without a length.
    """

    num_train_timesteps: int
    bins: int
    span: Span | None = None

    def __post_init__(self) -> None:
        if self.bins < 1 or (self.span is None and self.bins > self.num_train_timesteps):
            raise ConfigError(
                f"{self.bins} bins do not fit a schedule of {self.num_train_timesteps} timesteps",
                where="timestep_bins",
                fix="Use 1 to num_train_timesteps",
            )
        if self.span is not None and not (all(map(math.isfinite, self.span)) and self.span[0] < self.span[1]):
            raise ConfigError(
                f"timesteps cannot lie in [{self.span[0]}, {self.span[1]}]",
                where="timestep_range",
                fix="Give two finite numbers, the smaller one first",
            )

    @property
    def ends(self) -> Span:
        """Where the first bin begins and the last one ends."""
        return self.span or (0.0, float(self.num_train_timesteps))

    @property
    def width(self) -> float:
        """Timesteps in a bin; bin i is [start + i * width, start + (i + 1) * width), the last one with its end."""
        start, stop = self.ends
        return (stop - start) / self.bins

    @property
    def arguments(self) -> tuple[int | float, ...]:
        """What `timestep_bin` takes after the timesteps."""
        return (self.bins, self.num_train_timesteps, *(self.span or ()))

    def __str__(self) -> str:
        if self.span is None:
            return f"the schedule [0, {self.num_train_timesteps}]"
        return f"the range [{self.span[0]:g}, {self.span[1]:g}]"

    def bin_of(self, timesteps: Tensor) -> Tensor:
        """int64, of the same shape; see `timestep_bin`."""
        return timestep_bin(timesteps, self.bins, self.num_train_timesteps, *(self.span or ()))

    def split(self, timesteps: Tensor) -> list[Tensor]:
        """The rows [B] of a batch by bin: for each bin that occurs, lowest first, the indices of its rows."""
        bins = self.bin_of(timesteps.reshape(-1))
        return [torch.nonzero(bins == value).flatten() for value in bins.unique()]

    def rows_of(self, timesteps: Tensor, count: int) -> Tensor:
        """The bin of each of `count` rows made from a batch [B], as int64 [count].

        They are the batch's samples, or a multiple of them (attention heads folded in: sample-major). Of any other
        count nobody can tell whose they are: all get the first sample's bin.
        """
        bins = self.bin_of(timesteps.reshape(-1))
        repeats, remainder = divmod(count, len(bins))
        return bins[:1].expand(count) if remainder or not repeats else bins.repeat_interleave(repeats)

    def outside(self, timesteps: Tensor) -> int | float | None:
        """The first timestep that is not in the schedule (NaN included), if there is one.

        Its end is: samplers of flow matching begin there. It belongs to the last bin.
        """
        return _first_not_between(timesteps, *self.ends)

    def beyond(self, timesteps: Tensor) -> int | float | None:
        """The first timestep for which not even the nearest bin can serve, if there is one.

        Of a schedule of training, that is one `outside`. Of a range that was measured, samplers of other steps go past
        the ends: it may be once its length.
        """
        start, stop = self.ends
        margin = 0.0 if self.span is None else stop - start
        return _first_not_between(timesteps, start - margin, stop + margin)


def _first_not_between(timesteps: Tensor, low: float, high: float) -> int | float | None:
    between = (timesteps >= low) & (timesteps <= high)
    return None if bool(between.all()) else timesteps[~between].flatten()[0].item()
