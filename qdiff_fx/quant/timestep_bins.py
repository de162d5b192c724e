"""The denoising schedule cut into equal parts: which part, or bin, a timestep belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qdiff_fx.errors import ConfigError


def timestep_bin(timesteps: Tensor, bins: int, num_train_timesteps: int) -> Tensor:
    """``clamp(floor(t * bins / num_train_timesteps), 0, bins - 1)`` of every timestep.

    In float64, whatever comes in: `t * bins` is then exact for every timestep below 2^40, integer or float32, and the
    remainder that decides the floor is as well. In float32 the product of a timestep just below an edge can round up
    to it (428.57111 of 1000 in 7 bins), and a network would read another row of its tables than was measured.

    Args:
        timesteps: any shape, integer or floating.
        bins: at least 1.
        num_train_timesteps: length of the training schedule, at least 1.

    Returns:
        int64, of the same shape. Timesteps outside the schedule go to the nearest bin.
    """
    index = torch.div(timesteps.to(torch.float64) * bins, num_train_timesteps, rounding_mode="floor")
    return index.clamp(0, bins - 1).to(torch.int64)


@dataclass(frozen=True)
class TimestepBins:
    """A training schedule of `num_train_timesteps` in `bins` equal parts; bin 0 holds the least noisy timesteps.

    Raises:
        ConfigError: more bins than timesteps, or none.
    """

    num_train_timesteps: int
    bins: int

    def __post_init__(self) -> None:
        if not 1 <= self.bins <= self.num_train_timesteps:
            raise ConfigError(
                f"{self.bins} bins do not fit a schedule of {self.num_train_timesteps} timesteps",
                where="timestep_bins",
                fix="Use 1 to num_train_timesteps",
            )

    @property
    def width(self) -> float:
        """Timesteps in a bin; bin i is [i * width, (i + 1) * width)."""
        return self.num_train_timesteps / self.bins

    def bin_of(self, timesteps: Tensor) -> Tensor:
        """int64, of the same shape; see `timestep_bin`."""
        return timestep_bin(timesteps, self.bins, self.num_train_timesteps)

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
        """The first timestep that is not in the schedule (NaN included), if there is one."""
        inside = (timesteps >= 0) & (timesteps < self.num_train_timesteps)
        return None if bool(inside.all()) else timesteps[~inside].flatten()[0].item()
