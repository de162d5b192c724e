"""The range and the histogram per timestep."""

from __future__ import annotations

import torch
from torch import Tensor

import qdiff_fx.kernels  # noqa: F401, registers the operator used here
from qdiff_fx.observers.base import Observer
from qdiff_fx.observers.statistics import coarsen, smallest_exponent

MAX_ELEMENTS_PER_SAMPLE = 1 << 18  # of one sample that enter the histogram


class TimestepObserver(Observer):
    """Keeps min, max and a histogram for every timestep bin (Q-Diffusion, section 4.1: ranges move with t).

    The histogram grid only ever coarsens, by powers of two around 0 (see `Statistics`), so a merged observer
    equals one that saw all the data. Of a sample with more than 2^18 elements every n-th enters the histogram, n
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
        step = _step(rows.shape[1])
        self.hist[index] += torch.ops.qdiff.histogram(rows, exponent, self.histogram_bins, step)


def _step(elements: int) -> int:
    """Of so many elements of a sample every how many enter the histogram, so that there are at most 2^18."""
    step = -(-elements // MAX_ELEMENTS_PER_SAMPLE)
    return step if step == 1 else step | 1  # an odd one does not lock on to the even widths of feature maps
