"""The range and the histogram per timestep."""

from __future__ import annotations

import torch
from torch import Tensor

from qdiff_fx.observers.base import Observer
from qdiff_fx.observers.statistics import coarsen, smallest_exponent

CHUNK_ELEMENTS = 1 << 15  # small enough to stay in L2 between the five passes over it
MAX_ELEMENTS_PER_SAMPLE = 1 << 20  # of one sample that enter the histogram


class TimestepObserver(Observer):
    """Keeps min, max and a histogram for every timestep bin (Q-Diffusion, section 4.1: ranges move with t).

    The histogram grid only ever coarsens, by powers of two around 0 (see `Statistics`), so a merged observer
    equals one that saw all the data. Of a sample with more than 2^20 elements every n-th enters the histogram, n
    odd and fixed by the sample's size; min and max are exact always.
    """

    kind = "timestep"

    def __init__(self, timestep_bins: int, num_train_timesteps: int, histogram_bins: int = 2048, *, name: str = ""):
        super().__init__(timestep_bins, num_train_timesteps, histogram_bins, name=name)

    def record(self, index: int, rows: Tensor, lo: float, hi: float) -> None:
        before = int(self.exponent[index])
        exponent = max(before, smallest_exponent(lo, hi, self.histogram_bins))
        if exponent > before:
            steps = torch.tensor([exponent - before], device=self.hist.device)
            self.hist[index] = coarsen(self.hist[index : index + 1], steps)[0]
            self.exponent[index] = exponent
        self.hist[index] += count_on_grid(_subsample(rows), exponent, self.histogram_bins)


def _subsample(rows: Tensor) -> Tensor:
    """rows [R, K] -> [R, <= 2^20]. An odd stride does not lock on to the even widths of feature maps."""
    stride = -(-rows.shape[1] // MAX_ELEMENTS_PER_SAMPLE)
    return rows if stride == 1 else rows[:, :: stride | 1]


def count_on_grid(values: Tensor, exponent: int, bins: int) -> Tensor:
    """Occurrences int64 [bins] of float32 values (any shape) on the grid of width `2^exponent` around 0."""
    # Dividing by a power of two is exact, except that small values may underflow when it is large.
    dtype = torch.float32 if exponent <= 0 else torch.float64
    total = torch.zeros(bins, dtype=torch.int64, device=values.device)
    for chunk in values.reshape(-1).split(CHUNK_ELEMENTS):
        steps = (chunk.to(dtype) * 2.0**-exponent).floor_().add_(bins // 2)
        total += torch.bincount(steps.to(torch.int16), minlength=bins)
    return total
